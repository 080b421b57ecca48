// `poise sft`: packs are gradient leaves, steps are exact sums over them.
#include "learner/learner.h"

#include "learner/sft_internal.h"

#include <stdlib.h>
#include <string.h>

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
    metrics_add(metrics, "time/reduce_hidden", optimizer->hidden_s);
    metrics_add(metrics, "time/update", optimizer->update_s + optimizer->gather_s);
}

// Learner 0: the step's line, every metrics.every steps and after the last.
static status_t report(sft_run_t *run, int64_t completed, const sft_sums_t *sums) {
    const learner_t *learner = &run->learner;
    if (!learner->first) return STATUS_OK;
    double seconds = clock_seconds() - run->step_started;
    double loss = sums->loss / sft_normaliser(learner->config->sft.objective, sums);
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
        status_t status = sft_train_step(run, completed, &sums);
        job_phase(learner->job, "writing metrics");
        if (!status) status = learner_note_metrics(learner, report(run, ++completed, &sums));
        sft_finish(run);
        TRY(status);
        TRY(learner_should_stop(learner, &stop));
        bool due = config->checkpoint.every > 0 && completed % config->checkpoint.every == 0;
        bool last = stop || completed == learner->last;
        if (due || last) TRY(checkpoint_save(learner, "sft", completed, last, NULL, NULL));
        if (last) TRY(learner_end_metrics(learner, run->metrics));
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
