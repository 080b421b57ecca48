// A learner rank of `poise grpo`: publish version t, wait for the batch of step t, update, again.
#include "learner/grpo_internal.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_REDOS = 24 };

// ---- one step ----

static launch_options_t launch_settings(const grpo_run_t *run, bool recording, bool entropy) {
    const config_t *config = run->learner.config;
    return (launch_options_t){(float)config->grpo.temperature, entropy, recording, config->grpo.launch_leaves};
}

// The reference's log-probs of the batch, once, before the weights move.
static status_t score_reference(grpo_run_t *run) {
    learner_t *learner = &run->learner;
    if (!learner->reference) return STATUS_OK;
    launch_options_t options = launch_settings(run, false, false);
    status_t status = launch_leaves(&learner->launcher, learner->reference, run->batch.leaf, run->batch.leaf_count,
                                    &options, grpo_reference, run);
    return learner_agree(learner, status, "reference log-probs");
}

// One optimizer step over the whole batch, its leaves summed again as long as a sum overflows.
static status_t update(grpo_run_t *run, int number, double normaliser) {
    learner_t *learner = &run->learner;
    const config_t *config = learner->config;
    bool last = number == config->grpo.updates - 1;
    run->first_update = number == 0;
    for (int tries = 0;; tries++) {
        run->count_metrics = tries == 0;
        launch_options_t options = launch_settings(run, true, number == 0 && tries == 0);
        job_phase(learner->job, "computing gradients");
        TRY(optimizer_begin(learner->optimizer));
        status_t status = launch_leaves(&learner->launcher, learner->model, run->batch.leaf, run->batch.leaf_count,
                                        &options, grpo_loss, run);
        double computed = clock_seconds();
        TRY(learner_agree(learner, status, "gradients"));
        run->times.wait_s += clock_seconds() - computed;
        link_progress(run->link);
        job_phase(learner->job, "updating the weights");
        TRY(optimizer_step(learner->optimizer, normaliser, run->batch.step, last, &run->report));
        run->times.reduce_s += run->report.reduce_s;
        run->times.update_s += run->report.update_s + run->report.gather_s;
        if (!run->report.redo) return STATUS_OK;
        run->redos++;
        if (tries == MOST_REDOS)
            FAIL(STATUS_FAILED, "the gradients of step %lld do not fit after %d tries", (long long)run->batch.step,
                 MOST_REDOS);
    }
}

// The version counts steps, also past a step that changed nothing (skipped, or without a completion that counts).
static status_t set_version(learner_t *learner, int64_t version) {
    if (learner->model->version == version) return STATUS_OK;
    bool *changed;
    TRY(ALLOCATE(&changed, learner->model->parameter_count));
    status_t status = model_parameters_changed(learner->model, changed, version);
    free(changed);
    return status;
}

static status_t train_step(grpo_run_t *run, int64_t step) {
    learner_t *learner = &run->learner;
    const config_t *config = learner->config;
    run->redos = 0;
    run->report = (optimizer_report_t){.learning_rate = optimizer_learning_rate(config, step)};
    job_phase(learner->job, "preparing the batch");
    TRY(grpo_batch_prepare(run));
    double started = clock_seconds();
    launcher_clear_times(&learner->launcher);
    TRY(score_reference(run));
    double normaliser = grpo_normaliser(config->grpo.aggregation, run->batch.sequences, run->batch.tokens);
    bool skipped = false;
    for (int u = 0; u < config->grpo.updates && normaliser > 0.0; u++) {
        TRY(update(run, u, normaliser));
        skipped = skipped || run->report.skipped;
    }
    run->report.skipped = skipped;
    TRY(set_version(learner, step + 1));
    run->times.train_s = clock_seconds() - started;
    return STATUS_OK;
}

// ---- checkpoints: under staleness k the k versions before the current one belong to the state ----

static int64_t oldest_version(const grpo_run_t *run, int64_t completed) {
    int64_t oldest = completed - run->learner.config->grpo.staleness;
    return oldest < 0 ? 0 : oldest;
}

static void snapshot_name(int64_t version, char name[64]) {
    snprintf(name, 64, "weights/version-%lld", (long long)version);
}

static status_t save_versions(void *context, store_t *store) {
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
        TRY(weight_server_restore(run->server, run->learner.model, old->first + i, old->bytes[i], (size_t)old->size[i],
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
    if (due || stop || final) TRY(checkpoint_save(learner, "grpo", completed, save_versions, run));
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

static status_t one_step(grpo_run_t *run, int64_t step, bool *stop) {
    learner_t *learner = &run->learner;
    TRY(grpo_wait_batch(run, step));
    TRY(train_step(run, step));
    status_t status = STATUS_OK;
    job_phase(learner->job, "writing metrics");
    if (learner->first && learner->config->metrics.trajectories) status = trajectory_write(run, step + 1);
    TRY(learner_agree(learner, status, "trajectories"));
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
    TRY(set_version(learner, completed));
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
    grpo_stream_close(run);
    metrics_close(run->metrics);
    learner_close(&run->learner);
    free(run);
    return status;
}

status_t learner_grpo_run(job_t *job) {
    return learner_grpo_run_with(job, NULL);
}
