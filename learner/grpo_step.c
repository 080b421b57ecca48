// One GRPO step on a batch that is here: the reference's log-probs, the updates, the version.
#include "learner/grpo_internal.h"

#include <stdlib.h>

enum { MOST_REDOS = 24 };

static launch_options_t launch_settings(const grpo_run_t *run, bool recording, bool entropy) {
    const config_t *config = run->learner.config;
    return (launch_options_t){.temperature = (float)config->grpo.temperature,
                              .entropy = entropy,
                              .recording = recording,
                              .leaves = config->grpo.launch_leaves};
}

// The reference's log-probs of the batch, once, before the weights move.
static status_t score_reference(grpo_run_t *run) {
    learner_t *learner = &run->learner;
    if (!learner->reference) return STATUS_OK;
    launch_options_t options = launch_settings(run, false, false);
    status_t status = launch_leaves(&learner->launcher, learner->reference, run->batch.leaf, run->batch.leaf_count,
                                    &options, grpo_reference, run);
    TRY(learner_agree(learner, status, "reference log-probs"));
    return finding_agree(learner, &run->finding);
}

// Which group's gradient holds the NaN: each leaf by itself again.
static status_t find_leaf(grpo_run_t *run) {
    learner_t *learner = &run->learner;
    launch_options_t options = launch_settings(run, true, false);
    status_t status = STATUS_OK;
    run->count_metrics = false;
    for (int i = 0; i < run->batch.leaf_count && !status && !run->finding.kind; i++) {
        const grpo_leaf_t *leaf = &run->batch.own[i];
        int tensor = -1;
        run->leaf_base = i;
        status = optimizer_begin(learner->optimizer);
        if (!status)
            status =
                launch_leaves(&learner->launcher, learner->model, &run->batch.leaf[i], 1, &options, grpo_loss, run);
        if (!status) status = optimizer_own_flag(learner->optimizer, &tensor);
        if (tensor >= 0)
            finding_note(&run->finding, FINDING_GRADIENT, leaf->number, "tensor %s of group %llu (sample \"%s\")",
                         optimizer_tensor(learner->optimizer, tensor)->name, (unsigned long long)leaf->group->serial,
                         leaf->sample.id);
    }
    run->leaf_base = 0;
    TRY(learner_agree(learner, status, "looking for NaN"));
    return finding_agree(learner, &run->finding);
}

// After an optimizer step that changed nothing because of a NaN.
static status_t find_skipped(grpo_run_t *run) {
    const char *name = optimizer_tensor(run->learner.optimizer, run->report.tensor)->name;
    if (run->report.weights) {
        finding_note(&run->finding, FINDING_WEIGHTS, -1, "tensor %s", name);
        return STATUS_OK;
    }
    TRY(find_leaf(run));
    if (!run->finding.kind) finding_note(&run->finding, FINDING_GRADIENT, -1, "tensor %s", name);
    return STATUS_OK;
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
        TRY(learner_gradients(learner, run->batch.leaf, run->batch.leaf_count, &options, grpo_loss, run, &run->finding,
                              &run->times.wait_s));
        if (run->link) link_progress(run->link);
        if (run->finding.kind) {
            run->report = (optimizer_report_t){.skipped = true, .learning_rate = run->report.learning_rate};
            return STATUS_OK;
        }
        job_phase(learner->job, "updating the weights");
        TRY(optimizer_step(learner->optimizer, normaliser, run->batch.step, last, &run->report));
        run->times.reduce_s += run->report.reduce_s;
        run->times.hidden_s += run->report.hidden_s;
        run->times.update_s += run->report.update_s + run->report.gather_s;
        if (run->report.skipped) return find_skipped(run);
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
    double normaliser = grpo_normaliser(config->grpo.aggregation, run->batch.sequences, run->batch.tokens);
    run->update = 0;
    TRY(finding_agree(learner, &run->finding));
    if (!run->finding.kind) TRY(score_reference(run));
    for (int u = 0; u < config->grpo.updates && normaliser > 0.0 && !run->finding.kind; u++) {
        TRY(update(run, u, normaliser));
        grpo_record_update(run);
    }
    run->report.skipped = run->finding.kind != FINDING_NONE;
    if (run->report.skipped)
        TRY(grpo_handle_finding(run));
    else if (normaliser > 0.0)
        *optimizer_skipped_in_row(learner->optimizer) = 0;
    TRY(grpo_set_version(learner, step + 1));
    run->times.train_s = clock_seconds() - started;
    return grpo_record_end(run, normaliser);
}
