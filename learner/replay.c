// `poise replay`: the steps from a checkpoint to step N again, from their trajectories.
#include "learner/replay_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- which steps can be replayed ----

typedef struct history {
    int64_t *logged, *checkpoint; // ascending
    size_t logged_count, checkpoint_count;
} history_t;

static void history_free(history_t *history) {
    free(history->logged);
    free(history->checkpoint);
    *history = (history_t){0};
}

static void reverse(int64_t *value, size_t count) {
    for (size_t i = 0; i < count / 2; i++) {
        int64_t swap = value[i];
        value[i] = value[count - 1 - i];
        value[count - 1 - i] = swap;
    }
}

static status_t history_read(const char *run, history_t *out) {
    *out = (history_t){0};
    TRY(checkpoint_list(run, "trajectories", &out->logged, &out->logged_count));
    TRY(checkpoint_list(run, "checkpoints", &out->checkpoint, &out->checkpoint_count));
    reverse(out->logged, out->logged_count);
    reverse(out->checkpoint, out->checkpoint_count);
    return STATUS_OK;
}

static bool contains(const int64_t *value, size_t count, int64_t wanted) {
    for (size_t i = 0; i < count; i++)
        if (value[i] == wanted) return true;
    return false;
}

// The first step of the unbroken row of logged steps that ends with `step`; step + 1 when that is not logged.
static int64_t row_start(const history_t *history, int64_t step) {
    while (step > 0 && contains(history->logged, history->logged_count, step)) step--;
    return step + 1;
}

// Whether `step` can be reached from the completed steps `start`.
static bool reaches(const history_t *history, int64_t start, int64_t step) {
    return start < step && row_start(history, step) <= start + 1;
}

static bool replayable(const history_t *history, int64_t step) {
    bool found = reaches(history, 0, step);
    for (size_t i = 0; i < history->checkpoint_count && !found; i++)
        found = reaches(history, history->checkpoint[i], step);
    return found;
}

void replay_list(const int64_t *ascending, size_t count, char *out, size_t size) {
    size_t at = 0;
    out[0] = 0;
    for (size_t i = 0; i < count && at < size; i++) {
        int64_t first = ascending[i], last = first;
        while (i + 1 < count && ascending[i + 1] == last + 1) last = ascending[++i];
        at += (size_t)snprintf(out + at, size - at, at ? ", %lld" : "%lld", (long long)first);
        if (last > first && at < size) at += (size_t)snprintf(out + at, size - at, " to %lld", (long long)last);
    }
    if (!at) snprintf(out, size, "none");
}

static status_t list_replayable(const history_t *history, char *out, size_t size) {
    int64_t *steps;
    size_t count = 0;
    TRY(ALLOCATE(&steps, history->logged_count));
    for (size_t i = 0; i < history->logged_count; i++)
        if (replayable(history, history->logged[i])) steps[count++] = history->logged[i];
    replay_list(steps, count, out, size);
    free(steps);
    return STATUS_OK;
}

static status_t check_step(const replay_options_t *options, const history_t *history) {
    char list[512];
    if (history->logged_count == 0)
        FAIL(STATUS_INVALID,
             "%s holds no trajectories, so no step of it can be replayed; a run keeps them with metrics.trajectories: "
             "true",
             options->run);
    TRY(list_replayable(history, list, sizeof(list)));
    if (!contains(history->logged, history->logged_count, options->step))
        FAIL(STATUS_INVALID, "step %lld is not among the trajectories of %s; steps that can be replayed: %s",
             (long long)options->step, options->run, list);
    if (!replayable(history, options->step))
        FAIL(
            STATUS_INVALID,
            "step %lld of %s cannot be reached: no checkpoint before it is left from which all steps are logged; steps "
            "that can be replayed: %s",
            (long long)options->step, options->run, list);
    return STATUS_OK;
}

status_t learner_replay_config(const replay_options_t *options, const char *const *settings, int setting_count,
                               config_t *out) {
    history_t history;
    trajectory_t trajectory = {0};
    char path[4096], output[4200];
    const char **list = NULL;
    if (options->bad) return replay_bad_config(options, settings, setting_count, out);
    if (access(options->run, F_OK) != 0) FAIL(STATUS_INVALID, "there is no run folder %s", options->run);
    status_t status = history_read(options->run, &history);
    if (!status) status = check_step(options, &history);
    history_free(&history);
    trajectory_path(options->run, options->step, path);
    if (!status) status = trajectory_read(path, &trajectory);
    if (!status) status = ALLOCATE(&list, setting_count + 1);
    for (int i = 0; i < setting_count && !status; i++) list[i] = settings[i];
    snprintf(output, sizeof(output), "output=%s", options->run);
    if (!status) list[setting_count] = output;
    if (!status) status = config_read_text(trajectory.config, path, list, setting_count + 1, out);
    free(list);
    trajectory_free(&trajectory);
    return status;
}

// ---- the state to begin with ----

static status_t load_checkpoint(replay_t *replay, int64_t step, store_t *store) {
    learner_t *learner = &replay->run.learner;
    TRY(optimizer_load(learner->optimizer, store));
    int64_t oldest = step - learner->config->grpo.staleness;
    for (int64_t version = oldest < 0 ? 0 : oldest; version < step; version++) {
        char name[64];
        int64_t size;
        replay_snapshot_t *snapshot = replay_snapshot(replay, version);
        snprintf(name, sizeof(name), "weights/version-%lld", (long long)version);
        free(snapshot->bytes);
        snapshot->bytes = NULL;
        snapshot->version = version;
        TRY(store_read_all(store, name, DTYPE_U8, &snapshot->bytes, &size));
        if ((size_t)size != replay->weights_size)
            FAIL(STATUS_INVALID, "the checkpoint of step %lld holds %lld bytes of version %lld, the model has %zu",
                 (long long)step, (long long)size, (long long)version, replay->weights_size);
    }
    return STATUS_OK;
}

// The newest checkpoint that leads to the step and can be opened, else the start of the run.
static status_t load_start(replay_t *replay, const history_t *history) {
    learner_t *learner = &replay->run.learner;
    int64_t step = replay->options->step;
    status_t status = STATUS_OK, passed = STATUS_OK;
    for (size_t i = history->checkpoint_count; i-- > 0;) {
        store_t *store = NULL;
        int64_t from = history->checkpoint[i];
        if (!reaches(history, from, step)) continue;
        status = checkpoint_open(learner, "grpo", from, &store);
        if (!status) {
            status = load_checkpoint(replay, from, store);
            store_close(store);
            replay->start = from;
            status_free(passed);
            return status;
        }
        passed = status_first(passed, status);
    }
    replay->start = 0;
    if (reaches(history, 0, step)) {
        status_free(passed);
        return STATUS_OK;
    }
    return passed;
}

// ---- steps ----

static status_t check_configuration(const replay_t *replay) {
    const learner_t *learner = &replay->run.learner;
    const trajectory_t *t = &replay->trajectory;
    char hash[CONFIG_HASH_BYTES];
    TRY(config_training_hash_text(learner->config, hash));
    if (strcmp(hash, t->training_hash) != 0)
        FAIL(STATUS_INVALID,
             "step %lld was trained under another configuration (%s there, %s now); leave out settings that shape "
             "training",
             (long long)t->step, t->training_hash, hash);
    if (strcmp(packed_hash(learner->packed), t->data_hash) != 0)
        FAIL(STATUS_INVALID,
             "step %lld was trained on other data than %s (%s there, %s now); name its file by --set "
             "data.train=FILE",
             (long long)t->step, learner->config->data.train, t->data_hash, packed_hash(learner->packed));
    return STATUS_OK;
}

static status_t prepare_step(replay_t *replay, int64_t step) {
    grpo_run_t *run = &replay->run;
    char path[4096];
    trajectory_path(run->learner.config->output, step + 1, path);
    TRY(trajectory_read(path, &replay->trajectory));
    if (replay->trajectory.step != step + 1)
        FAIL(STATUS_INVALID, "%s is of step %lld", path, (long long)replay->trajectory.step);
    TRY(check_configuration(replay));
    uint64_t fingerprint;
    TRY(device_fingerprint(run->learner.device, &fingerprint));
    if ((uint64_t)replay->trajectory.fingerprint != fingerprint) replay->other_kernels = true;
    status_t status = trajectory_to_batch(&replay->trajectory, run, step);
    if (!status || status_kind(status) != STATUS_PEER) return status;
    // What a stream would blame on its sender is here the file's fault.
    status_t damaged = STATUS_NEW(STATUS_INVALID, "%s is damaged: %s", path, status_message(status));
    status_free(status);
    return damaged;
}

static void close_step(replay_t *replay) {
    grpo_batch_close(&replay->run);
    trajectory_free(&replay->trajectory);
    free(replay->sampled);
    replay->sampled = NULL;
}

static status_t replay_step(replay_t *replay, int64_t step) {
    grpo_run_t *run = &replay->run;
    learner_t *learner = &run->learner;
    TRY(learner_agree(learner, prepare_step(replay, step), "reading trajectories"));
    TRY(grpo_batch_prepare(run));
    TRY(replay_sample(replay));
    TRY(replay_keep(replay));
    TRY(grpo_train_step(run, step));
    status_t status = learner->first ? replay_compare(replay) : STATUS_OK;
    TRY(learner_agree(learner, status, "comparing"));
    replay->repeated++;
    return comm_broadcast(learner->comm, &replay->differing, sizeof(replay->differing), 0, "comparing");
}

static status_t replay_all(replay_t *replay, job_t *job) {
    learner_t *learner = &replay->run.learner;
    history_t history = {0};
    TRY(learner_open(job, true, learner));
    for (int i = 0; i < optimizer_tensors(learner->optimizer); i++)
        replay->weights_size += optimizer_tensor_size(learner->optimizer, i);
    TRY(learner_agree(learner, grpo_record_open(&replay->run), "memory of the record"));
    TRY(ALLOCATE(&replay->snapshot, learner->config->grpo.staleness + 1));
    for (int i = 0; i <= learner->config->grpo.staleness; i++) replay->snapshot[i].version = -1;
    status_t status = history_read(replay->options->run, &history);
    if (!status) status = load_start(replay, &history);
    history_free(&history);
    TRY(learner_agree(learner, status, "reading a checkpoint"));
    TRY(grpo_set_version(learner, replay->start));
    for (int64_t step = replay->start; step < replay->options->step && !replay->differing; step++) {
        status = replay_step(replay, step);
        close_step(replay);
        TRY(status);
    }
    return learner_agree(learner, learner->first ? replay_report(replay, stdout) : STATUS_OK, "the report");
}

status_t learner_replay(job_t *job, const replay_options_t *options, char sentence[512]) {
    replay_t *replay;
    if (options->bad) return replay_bad(job, options, sentence);
    TRY(ALLOCATE(&replay, 1));
    replay->options = options;
    replay->run.offline = true;
    status_t status = replay_all(replay, job);
    sentence[0] = 0;
    if (!status && replay->differing && replay->run.learner.first)
        replay_sentence(&replay->difference[0], sentence, 512);
    close_step(replay);
    for (int i = 0; replay->snapshot && i <= job->config->grpo.staleness; i++) free(replay->snapshot[i].bytes);
    free(replay->snapshot);
    grpo_record_close(&replay->run);
    learner_close(&replay->run.learner);
    free(replay);
    return status;
}
