// The gradients of a step, as SFT and GRPO compute them: leaves on every learner, sums over learners beside them.
#ifndef LEARNER_GRADIENTS_H
#define LEARNER_GRADIENTS_H

#include "learner/finding.h"

// Computes this learner's leaves and begins the sums over learners, bucket by bucket, while the last launch's backward
// runs; an optimizer_step comes next. What one learner failed in, all fail in. Where a loss found a NaN or infinity,
// all know it in *finding, nothing is under way, and the step is left out. *wait_s grows by the time that learners with
// more to compute took. Collective.
status_t learner_gradients(learner_t *learner, const leaf_t *leaf, int count, const launch_options_t *options,
                           launch_loss_t loss, void *context, finding_t *finding, double *wait_s) STATUS_CHECKED;

#endif
