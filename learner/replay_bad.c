// `poise replay --bad-step`: a step that held NaN or infinity again, leaf by leaf, watching every op.
#include "learner/replay_internal.h"
#include "learner/sft_internal.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TENSORS_SHOWN = 8 };

typedef struct bad_tensor {
    char name[192];
    int64_t elements, of, first;
    double value; // of the first
} bad_tensor_t;

typedef struct bad {
    const replay_options_t *options;
    bool grpo;
    grpo_run_t grpo_run;
    sft_run_t sft_run;
    learner_t *learner; // of one of them
    trajectory_t groups;
    int64_t update;
    char *recorded;    // the run's sentence
    finding_t finding; // of the replay
    float *row;        // scratch of the watch
    int row_capacity;
    char op[768]; // what made the first value; "": none did
    bad_tensor_t tensor[TENSORS_SHOWN];
    int tensors, bad_tensors; // shown; found
} bad_t;

// ---- configuration ----

static status_t list_bad(const char *run, char *out, size_t size) {
    int64_t *steps;
    size_t count;
    TRY(checkpoint_list(run, "bad_steps", &steps, &count));
    for (size_t i = 0; i < count / 2; i++) {
        int64_t swap = steps[i];
        steps[i] = steps[count - 1 - i];
        steps[count - 1 - i] = swap;
    }
    replay_list(steps, count, out, size);
    free(steps);
    return STATUS_OK;
}

status_t replay_bad_config(const replay_options_t *options, const char *const *settings, int setting_count,
                           config_t *out) {
    // One leaf a launch and nothing recomputed: the order of the ops is then the order of the story.
    static const char *const order[] = {"recompute=none", "sft.launch_leaves=1", "grpo.launch_leaves=1"};
    enum { ORDER = sizeof(order) / sizeof(*order) };
    char path[4096], output[4200], list[512], *text = NULL;
    const char **all = NULL;
    store_t *store = NULL;
    bad_step_path(options->run, options->step, path);
    if (access(path, F_OK) != 0) {
        TRY(list_bad(options->run, list, sizeof(list)));
        FAIL(STATUS_INVALID, "%s keeps no bad step %lld; bad steps there: %s", options->run, (long long)options->step,
             list);
    }
    status_t status = store_open(path, &store);
    if (!status) status = store_read_string(store, "config", &text);
    store_close(store);
    if (!status) status = ALLOCATE(&all, setting_count + ORDER + 1);
    for (int i = 0; i < setting_count && !status; i++) all[i] = settings[i];
    for (int i = 0; i < ORDER && !status; i++) all[setting_count + i] = order[i];
    snprintf(output, sizeof(output), "output=%s", options->run);
    if (!status) all[setting_count + ORDER] = output;
    if (!status) status = config_read_text(text, path, all, setting_count + ORDER + 1, out);
    free(all);
    free(text);
    return status;
}

// ---- the watch ----

static const char *parameter_name(const model_t *model, const parameter_t *weight, char out[256]) {
    for (int i = 0; i < model->parameter_count; i++) {
        if (weight == &model->parameter[i]) snprintf(out, 256, " %s", model->spec[i].name);
        if (weight == &model->parameter[i]) return out;
    }
    return "";
}

static void name_leaf(const bad_t *bad, char out[256]) {
    int at = bad->learner->launcher.first;
    out[0] = 0;
    if (bad->grpo && at + bad->grpo_run.leaf_base < bad->grpo_run.batch.leaf_count) {
        const grpo_leaf_t *leaf = &bad->grpo_run.batch.own[at + bad->grpo_run.leaf_base];
        snprintf(out, 256, ", group %llu (sample \"%.128s\")", (unsigned long long)leaf->group->serial,
                 leaf->sample.id);
    } else if (!bad->grpo && at + bad->sft_run.leaf_base < bad->sft_run.leaves) {
        snprintf(out, 256, ", pack %d", bad->sft_run.pack[at + bad->sft_run.leaf_base]);
    }
}

// One row of an f32 or bf16 matrix, into bad->row.
static status_t fetch_row(bad_t *bad, const matrix_t *from, int row) {
    device_t *device = bad->learner->device;
    int columns = from->columns;
    size_t size = dtype_bytes(from->dtype);
    const char *data = (const char *)from->data + (size_t)row * (size_t)from->stride * size;
    if (columns > bad->row_capacity) {
        free(bad->row);
        bad->row = NULL;
        bad->row_capacity = 0;
        TRY(ALLOCATE(&bad->row, columns));
        bad->row_capacity = columns;
    }
    TRY(device->table->download(device, bad->row, data, (size_t)columns * size));
    // In place from the end: a float never reaches back over a half that is still to be read.
    for (int c = columns; c-- > 0 && from->dtype == DTYPE_BF16;) {
        uint16_t half;
        memcpy(&half, (const char *)bad->row + (size_t)c * sizeof(half), sizeof(half));
        bad->row[c] = bf16_widen(half);
    }
    return STATUS_OK;
}

static status_t watch(void *context, const char *op, const parameter_t *weight, matrix_t value, bool backward) {
    bad_t *bad = context;
    char leaf[256], name[256];
    for (int r = 0; r < value.rows && !bad->op[0]; r++) {
        TRY(fetch_row(bad, &value, r));
        for (int c = 0; c < value.columns && !bad->op[0]; c++) {
            if (isfinite(bad->row[c])) continue;
            name_leaf(bad, leaf);
            snprintf(bad->op, sizeof(bad->op), "%s of %s%s, row %d of %d, column %d: %g%s",
                     backward ? "gradient of the input" : "output", op,
                     parameter_name(bad->learner->model, weight, name), r, value.rows, c, (double)bad->row[c], leaf);
        }
    }
    return STATUS_OK;
}

// ---- weights ----

static status_t scan_weight(bad_t *bad, const char *name, const parameter_t *parameter) {
    const matrix_t *value = &parameter->value;
    bad_tensor_t found = {.of = (int64_t)value->rows * value->columns};
    for (int r = 0; r < value->rows; r++) {
        TRY(fetch_row(bad, value, r));
        for (int c = 0; c < value->columns; c++) {
            if (isfinite(bad->row[c])) continue;
            if (!found.elements) found.first = (int64_t)r * value->columns + c;
            if (!found.elements) found.value = (double)bad->row[c];
            found.elements++;
        }
    }
    if (!found.elements) return STATUS_OK;
    snprintf(found.name, sizeof(found.name), "%s", name);
    bad->bad_tensors++;
    if (bad->tensors < TENSORS_SHOWN) bad->tensor[bad->tensors++] = found;
    return STATUS_OK;
}

static status_t scan_weights(bad_t *bad) {
    model_t *model = bad->learner->model;
    trained_tensor_t *trained = NULL;
    int count = 0;
    for (int i = 0; i < model->parameter_count; i++) TRY(scan_weight(bad, model->spec[i].name, &model->parameter[i]));
    if (model->adapter_rank == 0) return STATUS_OK;
    TRY(model_trained_tensors(model, &trained, &count));
    status_t status = STATUS_OK;
    for (int i = 0; i < count && !status; i++) status = scan_weight(bad, trained[i].name, trained[i].parameter);
    free(trained);
    return status;
}

// ---- the step ----

static status_t load(bad_t *bad, store_t *store) {
    TRY(store_read_number(store, "bad/update", &bad->update));
    TRY(store_read_string(store, "bad/sentence", &bad->recorded));
    if (bad->grpo) TRY(trajectory_read_groups(store, &bad->groups));
    return optimizer_load(bad->learner->optimizer, store);
}

static status_t run_grpo(bad_t *bad, int64_t step) {
    TRY(trajectory_to_batch(&bad->groups, &bad->grpo_run, step));
    TRY(grpo_batch_prepare(&bad->grpo_run));
    status_t status = grpo_train_step(&bad->grpo_run, step);
    bad->finding = bad->grpo_run.finding;
    return status;
}

static status_t run_sft(bad_t *bad, int64_t step) {
    sft_sums_t sums;
    status_t status = sft_train_step(&bad->sft_run, step, &sums);
    bad->finding = bad->sft_run.finding;
    return status;
}

static status_t repeat(bad_t *bad, job_t *job) {
    char path[4096];
    store_t *store = NULL;
    int64_t step = bad->options->step - 1;
    bad->grpo_run.offline = bad->sft_run.offline = true;
    TRY(learner_open(job, bad->grpo, bad->learner));
    bad_step_path(bad->options->run, bad->options->step, path);
    status_t status = checkpoint_open_path(bad->learner, path, bad->grpo ? "grpo" : "sft", step, &store);
    if (!status) status = load(bad, store);
    store_close(store);
    TRY(learner_agree(bad->learner, status, "reading the bad step"));
    TRY(scan_weights(bad));
    bad->learner->launcher.watch = watch;
    bad->learner->launcher.watch_context = bad;
    return bad->grpo ? run_grpo(bad, step) : run_sft(bad, step);
}

// ---- the report ----

// Who computed it is not part of what was found.
static bool same_finding(const bad_t *bad, const char *sentence) {
    size_t length = strlen(bad->recorded);
    const char *learner = strstr(bad->recorded, ", learner ");
    for (const char *next = learner; next; next = strstr(next + 1, ", learner ")) learner = next;
    if (learner) length = (size_t)(learner - bad->recorded);
    return strlen(sentence) == length && !strncmp(sentence, bad->recorded, length);
}

static void report_text(const bad_t *bad, const char *sentence, FILE *stream) {
    fprintf(stream, "%s, bad step %lld, update %lld\nrecorded: %s\nreplayed: %s\n", bad->options->run,
            (long long)bad->options->step, (long long)bad->update + 1, bad->recorded,
            sentence[0] ? sentence : "no NaN and no infinity");
    for (int i = 0; i < bad->tensors; i++) {
        const bad_tensor_t *tensor = &bad->tensor[i];
        fprintf(
            stream,
            "before the step: tensor %s holds %lld of %lld elements that are NaN or infinite, first element %lld: %g\n",
            tensor->name, (long long)tensor->elements, (long long)tensor->of, (long long)tensor->first, tensor->value);
    }
    if (bad->bad_tensors > bad->tensors) fprintf(stream, "and %d more tensors\n", bad->bad_tensors - bad->tensors);
    fprintf(stream, "first such value of an op: %s\n", bad->op[0] ? bad->op : "none");
}

static status_t report_json(const bad_t *bad, const char *sentence, bool agrees, FILE *stream) {
    json_t *tensors = json_array();
    for (int i = 0; i < bad->tensors; i++) {
        const bad_tensor_t *tensor = &bad->tensor[i];
        json_array_append_new(tensors, json_pack("{s:s, s:I, s:I, s:I}", "tensor", tensor->name, "elements",
                                                 (json_int_t)tensor->elements, "of", (json_int_t)tensor->of, "first",
                                                 (json_int_t)tensor->first));
    }
    json_t *report =
        json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:b, s:o}", "run", bad->options->run, "bad_step",
                  (json_int_t)bad->options->step, "update", (json_int_t)bad->update + 1, "recorded", bad->recorded,
                  "replayed", sentence, "first_op", bad->op, "agrees", (int)agrees, "weights", tensors);
    char *text = report ? json_dumps(report, JSON_INDENT(1)) : NULL;
    json_decref(report);
    if (!text) FAIL(STATUS_MEMORY, "no memory for the report");
    fprintf(stream, "%s\n", text);
    free(text);
    return STATUS_OK;
}

static status_t report(const bad_t *bad, char out[512]) {
    char sentence[640] = "";
    finding_t finding = bad->finding;
    finding.leaf = -1;
    if (finding.kind) finding_sentence(&finding, sentence, sizeof(sentence));
    bool agrees = same_finding(bad, sentence);
    if (bad->options->json)
        TRY(report_json(bad, sentence, agrees, stdout));
    else
        report_text(bad, sentence, stdout);
    if (!agrees)
        snprintf(out, 512, "bad step %lld is not what the run recorded: %.160s there, %.160s here",
                 (long long)bad->options->step, bad->recorded, sentence[0] ? sentence : "no NaN and no infinity");
    if (fflush(stdout) != 0) FAIL(STATUS_IO, "cannot write the report");
    return STATUS_OK;
}

static status_t read_kind(const replay_options_t *options, bool *grpo) {
    char path[4096], *kind = NULL;
    store_t *store;
    bad_step_path(options->run, options->step, path);
    TRY(store_open(path, &store));
    status_t status = store_read_string(store, "kind", &kind);
    store_close(store);
    *grpo = !status && !strcmp(kind, "grpo");
    free(kind);
    return status;
}

status_t replay_bad(job_t *job, const replay_options_t *options, char sentence[512]) {
    bad_t *bad;
    TRY(ALLOCATE(&bad, 1));
    bad->options = options;
    sentence[0] = 0;
    status_t status = read_kind(options, &bad->grpo);
    bad->learner = bad->grpo ? &bad->grpo_run.learner : &bad->sft_run.learner;
    if (!status) status = repeat(bad, job);
    if (!status && bad->learner->first) status = report(bad, sentence);
    grpo_batch_close(&bad->grpo_run);
    sft_finish(&bad->sft_run);
    trajectory_free(&bad->groups);
    learner_close(bad->learner);
    free(bad->row);
    free(bad->recorded);
    free(bad);
    return status;
}
