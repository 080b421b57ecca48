// The evaluation's files: OUTPUT/eval.json says what they belong to, samples.rank-R.jsonl grow while it runs,
// samples.jsonl and summary.json are its result.
#include "rollout/eval.h"

#include "common/store/store.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

// ---- identity ----

static void hash_parameter(const eval_t *eval, const parameter_t *parameter, XXH3_state_t *state, status_t *status) {
    if (*status) return;
    size_t bytes =
        (size_t)parameter->value.rows * (size_t)parameter->value.columns * dtype_bytes(parameter->value.dtype);
    void *host;
    *status = memory_allocate(bytes, 1, &host);
    if (*status) return;
    *status = eval->device->table->download(eval->device, host, parameter->value.data, bytes);
    if (!*status) *status = eval->device->table->synchronize(eval->device);
    if (!*status) XXH3_64bits_update(state, host, bytes);
    free(host);
}

static void hash_float(XXH3_state_t *state, float value) {
    XXH3_64bits_update(state, &value, sizeof(value));
}

status_t eval_identify(eval_t *eval) {
    const config_t *config = eval->config;
    const model_t *model = eval->model;
    XXH3_state_t *state = XXH3_createState();
    status_t status = STATUS_OK;
    if (!state) FAIL(STATUS_MEMORY, "cannot hash the weights: memory is short");
    XXH3_64bits_reset(state);
    for (int i = 0; i < model->parameter_count; i++) {
        hash_parameter(eval, &model->parameter[i], state, &status);
        if (!model->adapter[i]) continue;
        hash_parameter(eval, &model->adapter[i]->a, state, &status);
        hash_parameter(eval, &model->adapter[i]->b, state, &status);
        hash_float(state, model->adapter[i]->scale);
    }
    XXH3_64bits_update(state, packed_hash(eval->packed), strlen(packed_hash(eval->packed)));
    int64_t settings[] = {
        config->eval.max_new_tokens, config->eval.shuffle_images, config->eval.shuffle_images ? eval->count : 0,
        config->eval.bare,           config->grpo.strict_tags,    config->eval.temperature > 0 ? config->seed : 0};
    XXH3_64bits_update(state, settings, sizeof(settings));
    hash_float(state, (float)config->eval.temperature);
    uint64_t digest = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    snprintf(eval->identity, sizeof(eval->identity), "%016llx", (unsigned long long)digest);
    return status;
}

// ---- lines of earlier runs ----

static status_t join_path(const char *folder, const char *name, char **out) {
    size_t bytes = strlen(folder) + strlen(name) + 2;
    TRY(memory_allocate(bytes, 1, (void **)out));
    snprintf(*out, bytes, "%s/%s", folder, name);
    return STATUS_OK;
}

static bool is_samples_file(const char *name) {
    if (!strcmp(name, "samples.jsonl")) return true;
    size_t length = strlen(name), head = strlen("samples.rank-"), tail = strlen(".jsonl");
    if (length <= head + tail || strncmp(name, "samples.rank-", head) != 0) return false;
    return !strcmp(name + length - tail, ".jsonl") && strspn(name + head, "0123456789") == length - head - tail;
}

// Whether a line is a whole, right one of this evaluation; *index is its sample.
static bool is_sample_line(eval_t *eval, const char *text, size_t length, int64_t *index) {
    static const struct {
        const char *key;
        json_type type;
    } wanted[] = {{"text", JSON_STRING},          {"kind", JSON_STRING},           {"answer", JSON_STRING},
                  {"think_tokens", JSON_INTEGER}, {"answer_tokens", JSON_INTEGER}, {"tokens", JSON_INTEGER}};
    packed_sample_t sample;
    bool good = false;
    if (!length || text[length - 1] != '\n') return false;
    json_t *line = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    const json_t *number = json_object_get(line, "index"), *id = json_object_get(line, "id");
    if (!json_is_integer(number) || !json_is_string(id)) goto done;
    *index = json_integer_value(number);
    if (*index < 0 || *index >= eval->count || eval->done[*index]) goto done;
    status_t status = packed_sample(eval->packed, *index, &sample);
    status_free(status);
    if (status || strcmp(sample.id, json_string_value(id)) != 0) goto done;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++) {
        const json_t *value = json_object_get(line, wanted[i].key);
        if (!value || json_typeof(value) != wanted[i].type) goto done;
    }
    good = json_is_boolean(json_object_get(line, "correct")) && json_is_boolean(json_object_get(line, "invalid")) &&
           json_is_boolean(json_object_get(line, "truncated")) && json_is_number(json_object_get(line, "tag_score"));
done:
    json_decref(line);
    return good;
}

// Marks the whole samples of one file as done and copies this rank's to `own`.
static status_t read_samples(eval_t *eval, const char *path, tool_text_t *own) {
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    status_t status = STATUS_OK;
    if (!file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    while (!status && (length = getline(&line, &capacity, file)) > 0) {
        int64_t index;
        if (!is_sample_line(eval, line, (size_t)length, &index)) continue;
        eval->done[index] = true;
        if (index % eval->ranks != eval->rank) continue;
        status = memory_grow((void **)&own->data, &own->capacity, own->length + (size_t)length, 1);
        if (status) break;
        memcpy(own->data + own->length, line, (size_t)length);
        own->length += (size_t)length;
    }
    free(line);
    fclose(file);
    return status;
}

// Calls `use` for every samples file of the folder.
typedef status_t (*samples_use_t)(eval_t *eval, const char *path, tool_text_t *own);
static status_t each_samples_file(eval_t *eval, samples_use_t use, tool_text_t *own) {
    DIR *folder = opendir(eval->config->output);
    status_t status = STATUS_OK;
    if (!folder) FAIL(STATUS_IO, "cannot read the folder %s: %s", eval->config->output, strerror(errno));
    for (struct dirent *entry = readdir(folder); entry && !status; entry = readdir(folder)) {
        char *path;
        if (!is_samples_file(entry->d_name)) continue;
        status = join_path(eval->config->output, entry->d_name, &path);
        if (status) break;
        status = use(eval, path, own);
        free(path);
    }
    closedir(folder);
    return status;
}

static status_t remove_samples(eval_t *eval, const char *path, tool_text_t *own) {
    (void)eval;
    (void)own;
    if (unlink(path) != 0) FAIL(STATUS_IO, "cannot remove %s: %s", path, strerror(errno));
    return STATUS_OK;
}

// The rank files of more ranks than there are now.
static status_t remove_surplus(eval_t *eval, const char *path, tool_text_t *own) {
    const char *dash = strrchr(path, '-');
    if (!strcmp(strrchr(path, '/') + 1, "samples.jsonl") || !dash || strtoll(dash + 1, NULL, 10) < eval->ranks)
        return STATUS_OK;
    return remove_samples(eval, path, own);
}

// ---- resuming ----

static status_t remove_summary(eval_t *eval) {
    char *path;
    TRY(join_path(eval->config->output, "summary.json", &path));
    status_t status = STATUS_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = STATUS_NEW(STATUS_IO, "cannot remove %s: %s", path, strerror(errno));
    free(path);
    return status;
}

// Rank 0: makes sure that what lies in the folder belongs to this evaluation.
static status_t claim_folder(eval_t *eval) {
    char *path, *found = NULL, wanted[128];
    size_t size;
    bool same = false;
    TRY(file_make_directory(eval->config->output));
    TRY(join_path(eval->config->output, "eval.json", &path));
    snprintf(wanted, sizeof(wanted), "{\"identity\":\"%s\",\"samples\":\"%s\"}\n", eval->identity,
             packed_hash(eval->packed));
    status_t status = STATUS_OK;
    if (access(path, F_OK) == 0) status = file_read_whole(path, 4096, &found, &size);
    if (!status && found) same = !strcmp(found, wanted);
    if (!status && found && !same)
        fprintf(stderr, "poise: the results in %s are of another model or of other settings; they are replaced\n",
                eval->config->output);
    if (!status && !same) status = each_samples_file(eval, remove_samples, NULL);
    if (!status && !same) status = remove_summary(eval);
    if (!status && !same) status = file_write_whole(path, wanted, strlen(wanted));
    free(found);
    free(path);
    return status;
}

static status_t open_own(eval_t *eval, const tool_text_t *own) {
    char name[64];
    snprintf(name, sizeof(name), "samples.rank-%d.jsonl", eval->rank);
    TRY(join_path(eval->config->output, name, &eval->path));
    TRY(file_write_whole(eval->path, own->data ? own->data : "", own->length));
    eval->file = fopen(eval->path, "a");
    if (!eval->file) FAIL(STATUS_IO, "cannot write %s: %s", eval->path, strerror(errno));
    return STATUS_OK;
}

status_t eval_resume(eval_t *eval) {
    tool_text_t own = {0};
    TRY(eval_agree(eval, eval->rank == 0 ? claim_folder(eval) : STATUS_OK, "evaluation folder"));
    status_t status = eval_agree(eval, each_samples_file(eval, read_samples, &own), "earlier samples");
    // All have read before anyone writes or removes.
    if (!status) status = eval_agree(eval, open_own(eval, &own), "sample files");
    if (!status)
        status = eval_agree(eval, eval->rank == 0 ? each_samples_file(eval, remove_surplus, NULL) : STATUS_OK,
                            "earlier ranks' files");
    free(own.data);
    return status;
}

status_t eval_append(eval_t *eval, int64_t index, const tool_text_t *line) {
    // One write a line: a run that is killed leaves at most one torn line, which the next run drops.
    if (fwrite(line->data, 1, line->length, eval->file) != line->length || fflush(eval->file) != 0)
        FAIL(STATUS_IO, "cannot write %s: %s", eval->path, strerror(errno));
    eval->done[index] = true;
    eval->finished++;
    return STATUS_OK;
}

// ---- the result ----

typedef struct tally {
    int64_t n, correct, bare, invalid, traces, traces_right, think, tokens, truncated;
    double tags;
} tally_t;

static void tally_line(tally_t *tally, const json_t *line) {
    const json_t *trace = json_object_get(line, "trace_correct");
    tally->n++;
    tally->correct += json_is_true(json_object_get(line, "correct"));
    tally->bare += json_is_true(json_object_get(line, "correct_bare"));
    tally->invalid += json_is_true(json_object_get(line, "invalid"));
    tally->traces += json_is_boolean(trace);
    tally->traces_right += json_is_true(trace);
    tally->think += json_integer_value(json_object_get(line, "think_tokens"));
    tally->tokens += json_integer_value(json_object_get(line, "tokens"));
    tally->truncated += json_is_true(json_object_get(line, "truncated"));
    tally->tags += json_number_value(json_object_get(line, "tag_score"));
}

static json_t *share(double part, int64_t of) {
    return of ? json_real(part / (double)of) : json_null();
}

static status_t write_summary(const eval_t *eval, const tally_t *all, json_t *kinds, double seconds) {
    json_t *summary = json_object();
    const char *kind;
    json_t *counts;
    json_t *by_kind = json_object();
    json_object_foreach(kinds, kind, counts) {
        int64_t n = json_integer_value(json_array_get(counts, 0)),
                right = json_integer_value(json_array_get(counts, 1));
        json_object_set_new(by_kind, kind, json_pack("{s:I,s:o}", "n", n, "accuracy", share((double)right, n)));
    }
    json_object_set_new(summary, "n", json_integer(all->n));
    json_object_set_new(summary, "accuracy", share((double)all->correct, all->n));
    json_object_set_new(summary, "accuracy_bare",
                        eval->config->eval.bare ? share((double)all->bare, all->n) : json_null());
    json_object_set_new(summary, "invalid_rate", share((double)all->invalid, all->n));
    json_object_set_new(summary, "by_kind", by_kind);
    json_object_set_new(summary, "mean_think_tokens", share((double)all->think, all->n));
    json_object_set_new(summary, "trace_accuracy", share((double)all->traces_right, all->traces));
    json_object_set_new(summary, "mean_tokens", share((double)all->tokens, all->n));
    json_object_set_new(summary, "tag_score", share(all->tags, all->n));
    json_object_set_new(summary, "truncated", share((double)all->truncated, all->n));
    json_object_set_new(summary, "seconds", json_real(seconds));
    json_object_set_new(summary, "shuffle_images", json_integer(eval->config->eval.shuffle_images));
    char *text = json_dumps(summary, JSON_INDENT(2) | JSON_REAL_PRECISION(17)), *path = NULL;
    json_decref(summary);
    status_t status = text ? join_path(eval->config->output, "summary.json", &path)
                           : STATUS_NEW(STATUS_MEMORY, "cannot write the summary: memory is short");
    if (!status) status = file_write_whole(path, text, strlen(text));
    free(text);
    free(path);
    return status;
}

// All ranks' lines by index.
static status_t collect_line(eval_t *eval, char **lines, const char *text, size_t length) {
    int64_t index;
    if (!is_sample_line(eval, text, length, &index)) return STATUS_OK;
    eval->done[index] = true;
    return memory_copy_bytes(text, length, &lines[index]);
}

static status_t collect(eval_t *eval, char **lines) {
    memset(eval->done, 0, (size_t)eval->count * sizeof(*eval->done));
    for (int rank = 0; rank < eval->ranks; rank++) {
        char name[64], *path, *line = NULL;
        size_t capacity = 0;
        ssize_t length;
        snprintf(name, sizeof(name), "samples.rank-%d.jsonl", rank);
        TRY(join_path(eval->config->output, name, &path));
        FILE *file = fopen(path, "r");
        status_t status = file ? STATUS_OK : STATUS_NEW(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        while (!status && (length = getline(&line, &capacity, file)) > 0)
            status = collect_line(eval, lines, line, (size_t)length);
        free(line);
        free(path);
        if (file) fclose(file);
        TRY(status);
    }
    for (int64_t i = 0; i < eval->count; i++)
        if (!lines[i])
            FAIL(STATUS_FAILED, "the line of sample %lld is missing in %s", (long long)i, eval->config->output);
    return STATUS_OK;
}

static status_t write_result(eval_t *eval, char **lines, double seconds) {
    tally_t all = {0};
    tool_writer_t writer;
    char *path;
    TRY(join_path(eval->config->output, "samples.jsonl", &path));
    status_t status = tool_writer_open(path, &writer);
    json_t *kinds = json_object();
    for (int64_t i = 0; !status && i < eval->count; i++) {
        json_t *line = json_loads(lines[i], 0, NULL);
        const char *kind = json_string_value(json_object_get(line, "kind"));
        json_t *counts = json_object_get(kinds, kind);
        tally_line(&all, line);
        int64_t n = json_integer_value(json_array_get(counts, 0)) + 1;
        int64_t right = json_integer_value(json_array_get(counts, 1)) + json_is_true(json_object_get(line, "correct"));
        json_object_set_new(kinds, kind, json_pack("[I,I]", n, right));
        json_decref(line);
        if (fputs(lines[i], writer.file) < 0) status = STATUS_NEW(STATUS_IO, "cannot write %s", path);
    }
    if (!status) status = tool_writer_finish(&writer);
    tool_writer_close(&writer);
    if (!status) status = write_summary(eval, &all, kinds, seconds);
    json_decref(kinds);
    free(path);
    return status;
}

static status_t remove_rank_files(eval_t *eval, const char *path, tool_text_t *own) {
    return strcmp(strrchr(path, '/') + 1, "samples.jsonl") ? remove_samples(eval, path, own) : STATUS_OK;
}

// A run that found all its samples answered took no time worth noting: the time that they took stays.
static status_t earlier_seconds(eval_t *eval, double *seconds) {
    char *path;
    TRY(join_path(eval->config->output, "summary.json", &path));
    json_t *summary = json_load_file(path, 0, NULL);
    free(path);
    if (json_integer_value(json_object_get(summary, "n")) == eval->count)
        *seconds = json_number_value(json_object_get(summary, "seconds"));
    json_decref(summary);
    return STATUS_OK;
}

status_t eval_merge(eval_t *eval, double seconds, bool answered) {
    char **lines;
    if (!answered) TRY(earlier_seconds(eval, &seconds));
    TRY(ALLOCATE(&lines, eval->count));
    status_t status = collect(eval, lines);
    if (!status) status = write_result(eval, lines, seconds);
    if (!status) status = each_samples_file(eval, remove_rank_files, NULL);
    for (int64_t i = 0; i < eval->count; i++) free(lines[i]);
    free(lines);
    return status;
}
