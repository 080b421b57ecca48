// One GRPO step on a batch that is here: the reference's log-probs, the updates, the version.
#include "learner/grpo_internal.h"

#include <stdlib.h>

enum { MOST_REDOS = 24 };

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
    run->update = number;
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
        if (run->link) link_progress(run->link);
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

status_t grpo_set_version(learner_t *learner, int64_t version) {
    if (learner->model->version == version) return STATUS_OK;
    bool *changed;
    TRY(ALLOCATE(&changed, learner->model->parameter_count));
    status_t status = model_parameters_changed(learner->model, changed, version);
    free(changed);
    return status;
}

status_t grpo_train_step(grpo_run_t *run, int64_t step) {
    learner_t *learner = &run->learner;
    const config_t *config = learner->config;
    run->redos = 0;
    run->report = (optimizer_report_t){.learning_rate = optimizer_learning_rate(config, step)};
    double started = clock_seconds();
    launcher_clear_times(&learner->launcher);
    TRY(grpo_record_begin(run));
    TRY(score_reference(run));
    double normaliser = grpo_normaliser(config->grpo.aggregation, run->batch.sequences, run->batch.tokens);
    bool skipped = false;
    for (int u = 0; u < config->grpo.updates && normaliser > 0.0; u++) {
        TRY(update(run, u, normaliser));
        grpo_record_update(run);
        skipped = skipped || run->report.skipped;
    }
    run->report.skipped = skipped;
    TRY(grpo_set_version(learner, step + 1));
    run->times.train_s = clock_seconds() - started;
    return grpo_record_end(run, normaliser);
}
