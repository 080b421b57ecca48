// `poise sft`: packs are gradient leaves, steps are exact sums over them.
#include "learner/learner.h"

#include "learner/checkpoint.h"
#include "learner/loss.h"
#include "learner/sft_batch.h"

#include <stdlib.h>
#include <string.h>

enum { SLOT_FIELDS = 9, MOST_REDOS = 24 };

typedef struct sft_run {
    learner_t learner;
    sft_batch_t batch;
    leaf_t *leaf; // this rank's packs
    int *pack;    // their numbers
    int leaves;
    sft_weights_t weights;
    double *slot;       // [batch][SLOT_FIELDS]: each sample's numbers, set by the rank that computed it
    metrics_t *metrics; // learner 0 only
    progress_t progress;
    optimizer_report_t report;
    int redos;
    double step_started, data_s;
    double wait_s; // for learners that had more to compute
} sft_run_t;

// ---- one step ----

static status_t prepare(sft_run_t *run, int64_t step) {
    learner_t *learner = &run->learner;
    TRY(sft_batch_open(learner, step, &run->batch));
    int packs = run->batch.plan.packs;
    run->leaves = 0;
    TRY(ALLOCATE(&run->leaf, packs));
    TRY(ALLOCATE(&run->pack, packs));
    TRY(ALLOCATE(&run->slot, (size_t)run->batch.count * SLOT_FIELDS));
    for (int p = 0; p < packs; p++) {
        if (run->batch.owner[p] != comm_rank(learner->comm)) continue;
        run->pack[run->leaves] = p;
        TRY(sft_batch_leaf(learner, &run->batch, p, &run->leaf[run->leaves++]));
    }
    return STATUS_OK;
}

static void finish(sft_run_t *run) {
    sft_batch_close(&run->batch);
    free(run->leaf);
    free(run->pack);
    free(run->slot);
    run->leaf = NULL;
    run->pack = NULL;
    run->slot = NULL;
    if (run->learner.patches) patch_cache_release_all(run->learner.patches);
}

// Entries of a sequence lie together; their sample is found through the pack's items.
static status_t sft_loss(void *context, const launch_view_t *view) {
    sft_run_t *run = context;
    const batch_t *batch = view->batch;
    const pack_plan_t *plan = &run->batch.plan;
    int sequence_base = 0;
    for (int l = 0; l < batch->leaf_count; l++) {
        int number = view->first + l, pack = run->pack[number];
        int entry = batch->leaf_entry_start[l], end = batch->leaf_entry_start[l + 1];
        for (int s = 0; s < run->leaf[number].count; s++) {
            int item = plan->item[plan->pack_start[pack] + s], first = entry;
            const packed_sample_t *sample = &run->batch.sample[item];
            while (entry < end && batch->entry_sequence[entry] == sequence_base + s) entry++;
            const uint8_t *segments = sample->segments + (first < entry ? batch->entry_position[first] : 0);
            sft_sums_t sums = {0};
            sft_sample_loss(run->learner.config->sft.objective, run->weights, view->logprob + first, segments,
                            entry - first, view->dlogprob + first, &sums);
            double *slot = run->slot + (size_t)item * SLOT_FIELDS;
            const double fields[SLOT_FIELDS] = {sums.loss,
                                                sums.think_loss,
                                                sums.answer_loss,
                                                (double)sums.samples,
                                                (double)sums.tokens,
                                                (double)sums.think_tokens,
                                                (double)sums.answer_tokens,
                                                (double)sums.empty_think,
                                                (double)sums.empty_answer};
            memcpy(slot, fields, sizeof(fields));
        }
        sequence_base += run->leaf[number].count;
    }
    return STATUS_OK;
}

static sft_sums_t add_slots(const sft_run_t *run) {
    sft_sums_t sums = {0};
    for (int i = 0; i < run->batch.count; i++) {
        const double *slot = run->slot + (size_t)i * SLOT_FIELDS;
        sums.loss += slot[0];
        sums.think_loss += slot[1];
        sums.answer_loss += slot[2];
        sums.samples += (int64_t)slot[3];
        sums.tokens += (int64_t)slot[4];
        sums.think_tokens += (int64_t)slot[5];
        sums.answer_tokens += (int64_t)slot[6];
        sums.empty_think += (int64_t)slot[7];
        sums.empty_answer += (int64_t)slot[8];
    }
    return sums;
}

// Computes this rank's packs and, together with the others, the step's sums.
static status_t compute(sft_run_t *run, sft_sums_t *sums) {
    learner_t *learner = &run->learner;
    job_phase(learner->job, "computing gradients");
    TRY(optimizer_begin(learner->optimizer));
    launch_options_t options = {.temperature = 1.0f, .recording = true, .leaves = learner->config->sft.launch_leaves};
    status_t status =
        launch_leaves(&learner->launcher, learner->model, run->leaf, run->leaves, &options, sft_loss, run);
    double computed = clock_seconds();
    TRY(learner_agree(learner, status, "gradients"));
    run->wait_s += clock_seconds() - computed;
    if (run->redos > 0) return STATUS_OK; // the losses are known already
    TRY(learner_share(learner, run->slot, (int64_t)run->batch.count * SLOT_FIELDS, "losses"));
    *sums = add_slots(run);
    return STATUS_OK;
}

static status_t sft_step(sft_run_t *run, int64_t step, sft_sums_t *sums) {
    learner_t *learner = &run->learner;
    run->weights = sft_weights_at(learner->config, step);
    run->step_started = clock_seconds();
    run->wait_s = 0.0;
    launcher_clear_times(&learner->launcher);
    job_phase(learner->job, "preparing samples");
    TRY(learner_agree(learner, prepare(run, step), "samples"));
    run->data_s = clock_seconds() - run->step_started;
    double reduce_s = 0.0;
    *sums = (sft_sums_t){0};
    for (run->redos = 0;; run->redos++) {
        TRY(compute(run, sums));
        double normaliser = sft_normaliser(learner->config->sft.objective, sums);
        if (sums->tokens == 0) {
            FAIL(STATUS_INVALID, "no sample of step %lld has a response to learn; pack the data with assistant turns",
                 (long long)step);
        }
        job_phase(learner->job, "updating the weights");
        TRY(optimizer_step(learner->optimizer, normaliser, step, true, &run->report));
        reduce_s += run->report.reduce_s;
        if (!run->report.redo) break;
        if (run->redos == MOST_REDOS)
            FAIL(STATUS_FAILED, "the gradients of step %lld do not fit after %d tries", (long long)step, MOST_REDOS);
    }
    run->report.reduce_s = reduce_s;
    return STATUS_OK;
}

// ---- reporting ----

static void add_metrics(sft_run_t *run, const sft_sums_t *sums, double loss, double seconds) {
    const learner_t *learner = &run->learner;
    const optimizer_report_t *optimizer = &run->report;
    metrics_t *metrics = run->metrics;
    int64_t with_think = sums->samples - sums->empty_think, with_answer = sums->samples - sums->empty_answer;
    metrics_add(metrics, "loss", loss);
    if (with_think) metrics_add(metrics, "loss/think", sums->think_loss / (double)with_think);
    if (with_answer) metrics_add(metrics, "loss/answer", sums->answer_loss / (double)with_answer);
    metrics_add(metrics, "weight/think", run->weights.think);
    metrics_add(metrics, "weight/answer", run->weights.answer);
    metrics_add(metrics, "gradient_norm", optimizer->gradient_norm);
    metrics_add(metrics, "learning_rate", optimizer->learning_rate);
    metrics_add(metrics, "samples", (double)sums->samples);
    metrics_add(metrics, "packs", run->batch.plan.packs);
    metrics_add(metrics, "tokens", (double)run->batch.tokens);
    metrics_add(metrics, "tokens/loss", (double)sums->tokens);
    metrics_add(metrics, "empty/think", (double)sums->empty_think);
    metrics_add(metrics, "empty/answer", (double)sums->empty_answer);
    metrics_add(metrics, "skipped", optimizer->skipped);
    metrics_add(metrics, "redone", run->redos);
    metrics_add(metrics, "tokens_per_second", (double)run->batch.tokens / seconds);
    metrics_add(metrics, "time/step", seconds);
    metrics_add(metrics, "time/data", run->data_s + learner->launcher.data_s);
    metrics_add(metrics, "time/forward", learner->launcher.forward_s);
    metrics_add(metrics, "time/backward", learner->launcher.backward_s);
    metrics_add(metrics, "time/wait", run->wait_s);
    metrics_add(metrics, "time/reduce", optimizer->reduce_s);
    metrics_add(metrics, "time/update", optimizer->update_s + optimizer->gather_s);
}

// Learner 0: the step's line, every metrics.every steps and after the last.
static status_t report(sft_run_t *run, int64_t completed, const sft_sums_t *sums) {
    const learner_t *learner = &run->learner;
    if (!learner->first) return STATUS_OK;
    double seconds = clock_seconds() - run->step_started;
    double loss = sums->loss / sft_normaliser(learner->config->sft.objective, sums);
    if (run->report.skipped)
        fprintf(stderr, "poise: step %lld was skipped: its gradient holds NaN or infinity\n", (long long)completed);
    char detail[128];
    snprintf(detail, sizeof(detail), "loss %.4f, %.0f tokens/s", loss, (double)run->batch.tokens / seconds);
    progress_show(&run->progress, completed, detail);
    bool final = completed == learner->last;
    if (completed % learner->config->metrics.every != 0 && !final) return STATUS_OK;
    add_metrics(run, sums, loss, seconds);
    if (final) {
        char hash[65];
        TRY(optimizer_weights_hash(learner->optimizer, hash));
        metrics_add_text(run->metrics, "weights_hash", hash);
    }
    return metrics_write(run->metrics, completed);
}

// ---- the run ----

static status_t train(sft_run_t *run, int64_t completed) {
    learner_t *learner = &run->learner;
    const config_t *config = learner->config;
    bool stop = false;
    while (completed < learner->last && !stop) {
        sft_sums_t sums;
        status_t status = sft_step(run, completed, &sums);
        job_phase(learner->job, "writing metrics");
        if (!status) status = learner_agree(learner, report(run, ++completed, &sums), "metrics");
        finish(run);
        TRY(status);
        TRY(learner_should_stop(learner, &stop));
        bool due = config->checkpoint.every > 0 && completed % config->checkpoint.every == 0;
        if (due || stop || completed == learner->last) TRY(checkpoint_save(learner, "sft", completed, NULL, NULL));
    }
    if (completed < learner->last) {
        FAIL(STATUS_CANCELLED, "stopped after step %lld of %lld; the same command goes on from there",
             (long long)completed, (long long)learner->last);
    }
    return learner_save_model(learner);
}

static status_t sft_run(sft_run_t *run, job_t *job) {
    learner_t *learner = &run->learner;
    TRY(learner_open(job, false, learner));
    int64_t completed;
    TRY(checkpoint_resume(learner, "sft", NULL, NULL, &completed));
    TRY(learner_plan_memory(learner, false, false));
    TRY(learner_open_metrics(learner, "sft", completed, &run->metrics, &run->progress));
    status_t status = train(run, completed);
    if (learner->first) progress_end(&run->progress);
    return status;
}

status_t learner_sft_run(job_t *job) {
    sft_run_t run = {0};
    status_t status = sft_run(&run, job);
    metrics_close(run.metrics);
    learner_close(&run.learner);
    return status;
}
