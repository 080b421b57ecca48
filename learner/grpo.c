// A learner rank of `poise grpo`: publish version t, wait for the batch of step t, update, again.
#include "learner/disk.h"
#include "learner/trajectory.h"

#include <stdlib.h>
#include <string.h>

// ---- checkpoints: under staleness k the k versions before the current one belong to the state ----

static int64_t oldest_version(const grpo_run_t *run, int64_t completed) {
    int64_t oldest = completed - run->learner.config->grpo.staleness;
    return oldest < 0 ? 0 : oldest;
}

static void snapshot_name(int64_t version, char name[64]) {
    snprintf(name, 64, "weights/version-%lld", (long long)version);
}

status_t grpo_save_versions(void *context, store_t *store) {
    grpo_run_t *run = context;
    int64_t completed = run->learner.model->version;
    for (int64_t version = oldest_version(run, completed); version < completed; version++) {
        const void *bytes;
        size_t size;
        char name[64];
        snapshot_name(version, name);
        TRY(weight_server_snapshot(run->server, version, &bytes, &size));
        TRY(store_write(store, name, DTYPE_U8, bytes, (int64_t)size, false));
    }
    return STATUS_OK;
}

typedef struct old_versions {
    grpo_run_t *run;
    int64_t first;
    int count;
    void **bytes; // [count]
    int64_t *size;
} old_versions_t;

static void old_versions_free(old_versions_t *old) {
    for (int i = 0; i < old->count; i++) free(old->bytes[i]);
    free(old->bytes);
    free(old->size);
    *old = (old_versions_t){0};
}

static status_t load_versions(void *context, store_t *store) {
    old_versions_t *old = context;
    int64_t completed = old->run->learner.model->version;
    old->first = oldest_version(old->run, completed);
    TRY(ALLOCATE(&old->bytes, completed - old->first));
    TRY(ALLOCATE(&old->size, completed - old->first));
    for (int64_t version = old->first; version < completed; version++) {
        char name[64];
        snapshot_name(version, name);
        TRY(store_read_all(store, name, DTYPE_U8, &old->bytes[old->count], &old->size[old->count]));
        old->count++;
    }
    return STATUS_OK;
}

// Announces what the checkpoint kept, oldest first, then the current version: rollouts start as after any step.
static status_t announce_start(grpo_run_t *run, old_versions_t *old, int64_t completed) {
    // Workers keep image features by vision version: versions restored one after another must not share one.
    run->learner.model->vision_version += old->count;
    for (int i = 0; i < old->count && run->server; i++) {
        message_t message = {.type = MESSAGE_WEIGHTS};
        void *bytes = old->bytes[i];
        old->bytes[i] = NULL; // taken over
        TRY(weight_server_restore(run->server, run->learner.model, old->first + i, bytes, (size_t)old->size[i],
                                  &message.weights));
        message.weights.vision_version -= old->count - i;
        TRY(grpo_send(run, &message));
    }
    TRY(grpo_announce(run, completed));
    if (!run->colocated) return STATUS_OK;
    const learner_colocated_t *colocated = run->colocated;
    if (colocated->start) TRY(colocated->start(colocated->context, run->learner.model, run->learner.packed));
    return colocated->published ? colocated->published(colocated->context, completed) : STATUS_OK;
}

// ---- the run ----

// After step `completed`: tell the world, and leave a checkpoint where one is due. At the end the checkpoint and the
// model come first: once the last version is announced the reward rank ends the run.
static status_t after_step(grpo_run_t *run, int64_t completed, bool stop) {
    learner_t *learner = &run->learner;
    const config_t *config = learner->config;
    bool final = completed == learner->last;
    bool due = config->checkpoint.every > 0 && completed % config->checkpoint.every == 0;
    if (due || stop || final) TRY(checkpoint_save(learner, "grpo", completed, stop || final, grpo_save_versions, run));
    if (stop || final) TRY(learner_end_metrics(learner, run->metrics));
    if (final) TRY(learner_save_model(learner));
    if (stop && !final) {
        message_t message = {.type = MESSAGE_STOP};
        snprintf(message.stop.reason, sizeof(message.stop.reason), "asked to stop after step %lld",
                 (long long)completed);
        return learner->first ? grpo_send(run, &message) : STATUS_OK;
    }
    TRY(grpo_announce(run, completed));
    if (final || !run->colocated || !run->colocated->published) return STATUS_OK;
    return run->colocated->published(run->colocated->context, completed);
}

typedef struct kept_trajectory {
    const grpo_run_t *run;
    int64_t completed;
} kept_trajectory_t;

static status_t write_trajectory(void *context) {
    const kept_trajectory_t *kept = context;
    return kept->run->learner.first ? trajectory_write(kept->run, kept->completed) : STATUS_OK;
}

static status_t keep_trajectory(grpo_run_t *run, int64_t completed) {
    const config_t *config = run->learner.config;
    if (!config->metrics.trajectories) return STATUS_OK;
    char what[64], folder[4096];
    snprintf(folder, sizeof(folder), "%s/trajectories", config->output);
    snprintf(what, sizeof(what), "the trajectories of step %lld", (long long)completed);
    kept_trajectory_t kept = {run, completed};
    const disk_task_t task = {.what = what,
                              .folder = folder,
                              .next = "without this step's trajectories",
                              .run = write_trajectory,
                              .context = &kept};
    return disk_try(&run->learner, &task);
}

static status_t one_step(grpo_run_t *run, int64_t step, bool *stop) {
    learner_t *learner = &run->learner;
    TRY(grpo_wait_batch(run, step));
    job_phase(run->learner.job, "preparing the batch");
    TRY(grpo_batch_prepare(run));
    TRY(grpo_train_step(run, step));
    job_phase(learner->job, "writing metrics");
    TRY(keep_trajectory(run, step + 1));
    TRY(grpo_report(run, step + 1));
    return learner_should_stop(learner, stop);
}

static status_t train(grpo_run_t *run, int64_t completed) {
    learner_t *learner = &run->learner;
    bool stop = false;
    while (completed < learner->last && !stop) {
        double sync_s = run->times.sync_s; // of the announcement that this step waited for
        run->times = (grpo_times_t){.step_started = clock_seconds(), .sync_s = sync_s};
        status_t status = one_step(run, completed, &stop);
        grpo_batch_close(run);
        TRY(status);
        run->times.sync_s = 0.0;
        TRY(after_step(run, ++completed, stop));
    }
    TRY(grpo_wait_stop(run));
    if (completed == learner->last) return STATUS_OK;
    FAIL(STATUS_CANCELLED, "stopped after step %lld of %lld; the same command goes on from there", (long long)completed,
         (long long)learner->last);
}

static status_t grpo_run(grpo_run_t *run, job_t *job, old_versions_t *old) {
    learner_t *learner = &run->learner;
    TRY(learner_open(job, true, learner));
    int64_t completed;
    TRY(checkpoint_resume(learner, "grpo", load_versions, old, &completed));
    TRY(grpo_set_version(learner, completed));
    if (learner->config->metrics.trajectories)
        TRY(learner_agree(learner, grpo_record_open(run), "memory of the trajectories"));
    TRY(learner_plan_memory(learner, true, false));
    TRY(learner_open_metrics(learner, "grpo", completed, &run->metrics, &run->progress));
    if (completed >= learner->last && learner->first)
        fprintf(stderr, "poise: all %lld steps are done already\n", (long long)learner->last);
    job_phase(learner->job, "joining the reward rank");
    TRY(learner_agree(learner, grpo_stream_open(run, completed), "joining the reward rank"));
    TRY(announce_start(run, old, completed));
    old_versions_free(old);
    if (completed >= learner->last) TRY(learner_save_model(learner));
    status_t status = train(run, completed);
    if (learner->first) progress_end(&run->progress);
    return status;
}

// Tells the reward rank why this learner gives up; without a link its silence says it.
static void report_failure(grpo_run_t *run, status_t failure) {
    if (!run->link || !failure || status_kind(failure) == STATUS_CANCELLED) return;
    message_t message = {.type = MESSAGE_ERROR};
    message.error.world_rank = comm_world_rank(run->learner.comm);
    snprintf(message.error.sentence, sizeof(message.error.sentence), "%s", status_message(failure));
    link_buffer_t buffer;
    status_t status = message_pack(&message, &buffer);
    if (!status) status = link_send(run->link, buffer, 1.0);
    status_free(status);
}

status_t learner_grpo_run_with(job_t *job, const learner_colocated_t *colocated) {
    grpo_run_t *run;
    TRY(ALLOCATE(&run, 1));
    old_versions_t old = {.run = run};
    run->colocated = colocated;
    status_t status = grpo_run(run, job, &old);
    report_failure(run, status);
    if (colocated && colocated->end) colocated->end(colocated->context);
    old_versions_free(&old);
    grpo_batch_close(run);
    grpo_record_close(run);
    grpo_stream_close(run);
    metrics_close(run->metrics);
    learner_close(&run->learner);
    free(run);
    return status;
}

status_t learner_grpo_run(job_t *job) {
    return learner_grpo_run_with(job, NULL);
}
