#include "learner/gradients.h"

status_t learner_gradients(learner_t *learner, const leaf_t *leaf, int count, const launch_options_t *options,
                           launch_loss_t loss, void *context, finding_t *finding, double *wait_s) {
    optimizer_t *optimizer = learner->optimizer;
    launch_options_t heard = *options;
    job_phase(learner->job, "computing gradients");
    TRY(optimizer_begin(optimizer));
    heard.listener = optimizer_listener(optimizer);
    status_t status = launch_leaves(&learner->launcher, learner->model, leaf, count, &heard, loss, context);
    // Also by a learner without leaves. (Where one failed, none goes on.)
    if (!status) status = optimizer_reduce_rest(optimizer);
    double computed = clock_seconds();
    TRY(learner_agree(learner, status, "gradients"));
    *wait_s += clock_seconds() - computed;
    TRY(finding_agree(learner, finding));
    return finding->kind ? optimizer_drop(optimizer) : STATUS_OK;
}
