#include "learner/launch.h"

#include "common/comm/job.h"

#include <stdlib.h>
#include <string.h>

status_t launcher_open(const config_t *config, device_t *device, launcher_t *out) {
    *out = (launcher_t){.device = device};
    const char *name = config->recompute ? config->recompute : "none";
    if (!strcmp(name, "none"))
        out->recompute = RECOMPUTE_NONE;
    else if (!strcmp(name, "cheap"))
        out->recompute = RECOMPUTE_CHEAP;
    else if (!strcmp(name, "block"))
        out->recompute = RECOMPUTE_BLOCK;
    else
        FAIL(STATUS_INVALID, "recompute is \"%s\"; it can be none, cheap or block", name);
    return STATUS_OK;
}

void launcher_close(launcher_t *launcher) {
    if (launcher->device) tape_plan(launcher->device, &(tape_memory_t){.gradients = 0}, LEDGER_VALUES);
    if (launcher->device) ledger_plan(launcher->device, LEDGER_GRADIENTS, 0);
    tape_close(launcher->tape);
    free(launcher->host);
    *launcher = (launcher_t){0};
}

void launcher_clear_times(launcher_t *launcher) {
    launcher->forward_s = launcher->backward_s = launcher->data_s = 0.0;
    launcher->rows = 0;
}

static launch_size_t size_of(const batch_t *batch, int sequences, bool recording) {
    launch_size_t size = {.rows = batch->text.rows,
                          .images = batch->image_count,
                          .entries = batch->entry_count,
                          .sequences = sequences,
                          .recording = recording};
    for (int i = 0; i < batch->image_count; i++) {
        size.patches += batch->images[i].patch_rows;
        size.features += batch->images[i].shape.feature_rows;
    }
    return size;
}

static bool size_equal(const launch_size_t *a, const launch_size_t *b) {
    return a->rows == b->rows && a->patches == b->patches && a->features == b->features && a->images == b->images &&
           a->entries == b->entries && a->sequences == b->sequences && a->recording == b->recording;
}

static void remember(launcher_t *launcher, const launch_size_t *size) {
    int kept = launcher->measured_count;
    // Forgetting one costs a dry run when it comes again, nothing else.
    if (kept == LAUNCH_SIZES) memmove(launcher->measured, launcher->measured + 1, (size_t)--kept * sizeof(*size));
    launcher->measured[kept++] = *size;
    launcher->measured_count = kept;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static status_t dry_run(launcher_t *launcher, model_t *model, batch_t *batch, const launch_options_t *options) {
    tape_t *tape;
    TRY(tape_open_measuring(launcher->device, launcher->recompute, &tape));
    tape_reset(tape, options->recording);
    head_output_t *head = NULL;
    status_t status = batch_forward(model, tape, batch, options->temperature, options->entropy, &head);
    if (!status && options->recording) status = tape_backward(tape);
    tape_memory_t memory = tape_memory(tape);
    tape_close(tape);
    TRY(status);
    launcher->memory.values = larger(launcher->memory.values, memory.values);
    launcher->memory.gradients = larger(launcher->memory.gradients, memory.gradients);
    launcher->memory.workspace = larger(launcher->memory.workspace, memory.workspace);
    return STATUS_OK;
}

status_t launcher_ready(launcher_t *launcher) {
    tape_close(launcher->tape);
    launcher->tape = NULL;
    tape_plan(launcher->device, &launcher->memory, LEDGER_VALUES);
    return tape_open(launcher->device, &launcher->memory, launcher->recompute, &launcher->tape);
}

// Makes sure that the launch fits: a size not yet known is run dry first.
static status_t reserve(launcher_t *launcher, model_t *model, batch_t *batch, int sequences,
                        const launch_options_t *options) {
    launch_size_t size = size_of(batch, sequences, options->recording);
    for (int i = 0; i < launcher->measured_count && launcher->tape; i++) {
        if (size_equal(&size, &launcher->measured[i])) return STATUS_OK;
    }
    tape_memory_t before = launcher->memory;
    TRY(dry_run(launcher, model, batch, options));
    remember(launcher, &size);
    if (launcher->tape && launcher->memory.values == before.values && launcher->memory.gradients == before.gradients &&
        launcher->memory.workspace == before.workspace)
        return STATUS_OK;
    return launcher_ready(launcher);
}

static int sequences_of(const leaf_t *leaf, int count) {
    int sequences = 0;
    for (int i = 0; i < count; i++) sequences += leaf[i].count;
    return sequences;
}

static status_t build(model_t *model, const leaf_t *leaf, int count, batch_t *batch) {
    int at = 0, total = sequences_of(leaf, count);
    batch_sequence_t *sequence;
    TRY(ALLOCATE(&sequence, total));
    for (int i = 0; i < count; i++) {
        int base = at;
        for (int s = 0; s < leaf[i].count; s++, at++) {
            sequence[at] = leaf[i].sequence[s];
            sequence[at].leaf = i;
            if (sequence[at].shared_with >= 0) sequence[at].shared_with += base;
        }
    }
    status_t status = batch_build(model, sequence, total, batch);
    free(sequence);
    return status;
}

status_t launcher_measure(launcher_t *launcher, model_t *model, const leaf_t *leaf, int count,
                          const launch_options_t *options) {
    batch_t batch;
    TRY(build(model, leaf, count, &batch));
    status_t status = dry_run(launcher, model, &batch, options);
    launch_size_t size = size_of(&batch, sequences_of(leaf, count), options->recording);
    if (!status) remember(launcher, &size);
    batch_free(&batch);
    return status;
}

// Downloads the head's outputs, runs the loss, uploads what it wants back. *any: some gradient is not zero.
static status_t run_loss(launcher_t *launcher, const batch_t *batch, const head_output_t *head, int first,
                         const launch_options_t *options, launch_loss_t loss, void *context, bool *any) {
    device_t *device = launcher->device;
    size_t count = (size_t)batch->entry_count, bytes = count * sizeof(float);
    if (count > launcher->host_capacity) {
        free(launcher->host);
        launcher->host = NULL;
        launcher->host_capacity = 0;
        TRY(ALLOCATE(&launcher->host, 3 * count));
        launcher->host_capacity = count;
    }
    float *logprob = launcher->host, *entropy = logprob + count, *dlogprob = entropy + count;
    if (count) TRY(device->table->download(device, logprob, head->logprob, bytes));
    if (count && options->entropy) TRY(device->table->download(device, entropy, head->entropy, bytes));
    if (count) memset(dlogprob, 0, bytes);
    launch_view_t view = {batch, first, logprob, options->entropy ? entropy : NULL,
                          options->recording ? dlogprob : NULL};
    TRY(loss(context, &view));
    *any = false;
    if (!options->recording || !count) return STATUS_OK;
    for (size_t i = 0; i < count && !*any; i++) *any = dlogprob[i] != 0.0f;
    return device->table->upload(device, head->dlogprob, dlogprob, bytes);
}

static status_t run_launch(launcher_t *launcher, model_t *model, batch_t *batch, int first,
                           const launch_options_t *options, launch_loss_t loss, void *context) {
    double started = clock_seconds();
    tape_t *tape = launcher->tape;
    launcher->first = first;
    tape_watch(tape, launcher->watch, launcher->watch_context);
    tape_reset(tape, options->recording);
    head_output_t *head = NULL;
    TRY(batch_forward(model, tape, batch, options->temperature, options->entropy, &head));
    TRY(launcher->device->table->synchronize(launcher->device));
    bool any = false;
    TRY(run_loss(launcher, batch, head, first, options, loss, context, &any));
    double middle = clock_seconds();
    launcher->forward_s += middle - started;
    launcher->rows += batch->text.rows;
    if (any) {
        TRY(tape_backward(tape));
        TRY(launcher->device->table->synchronize(launcher->device));
    }
    tape_reset(tape, false);
    launcher->backward_s += clock_seconds() - middle;
    return STATUS_OK;
}

status_t launch_leaves(launcher_t *launcher, model_t *model, const leaf_t *leaf, int count,
                       const launch_options_t *options, launch_loss_t loss, void *context) {
    int step = options->leaves > 0 ? options->leaves : 1;
    for (int first = 0; first < count; first += step) {
        int here = count - first < step ? count - first : step;
        double started = clock_seconds();
        batch_t batch;
        TRY(build(model, leaf + first, here, &batch));
        status_t status = reserve(launcher, model, &batch, sequences_of(leaf + first, here), options);
        launcher->data_s += clock_seconds() - started;
        if (!status) tape_listen(launcher->tape, first + here == count ? options->listener : NULL);
        if (!status) status = run_launch(launcher, model, &batch, first, options, loss, context);
        batch_free(&batch);
        TRY(status);
    }
    return STATUS_OK;
}

status_t balance_owners(const int64_t *weight, int count, int ranks, int *owner) {
    int64_t *load;
    TRY(ALLOCATE(&load, ranks));
    for (int i = 0; i < count; i++) owner[i] = -1;
    // Quadratic, over the few dozen leaves of a step.
    for (int placed = 0; placed < count; placed++) {
        int heaviest = -1, least = 0;
        for (int i = 0; i < count; i++) {
            if (owner[i] < 0 && (heaviest < 0 || weight[i] > weight[heaviest])) heaviest = i;
        }
        for (int r = 1; r < ranks; r++) {
            if (load[r] < load[least]) least = r;
        }
        owner[heaviest] = least;
        load[least] += weight[heaviest];
    }
    free(load);
    return STATUS_OK;
}
