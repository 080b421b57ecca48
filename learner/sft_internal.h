// Inside the SFT learner: the run, and one step of it.
#ifndef LEARNER_SFT_INTERNAL_H
#define LEARNER_SFT_INTERNAL_H

#include "learner/gradients.h"
#include "learner/loss.h"
#include "learner/sft_batch.h"

typedef struct sft_run {
    learner_t learner;
    sft_batch_t batch;
    leaf_t *leaf; // this rank's packs
    int *pack;    // their numbers
    int leaves;
    int64_t step; // completed before the one under way
    sft_weights_t weights;
    double *slot;       // [batch][SLOT_FIELDS]: each sample's numbers, set by the rank that computed it
    metrics_t *metrics; // learner 0 only
    progress_t progress;
    optimizer_report_t report;
    int redos;
    int leaf_base;     // of leaf, where launches begin: not 0 while a NaN is traced to its pack
    finding_t finding; // the step's first NaN or infinity, once it has one
    bool offline;      // a replay: nothing is saved or decided
    double step_started, data_s;
    double wait_s; // for learners that had more to compute
} sft_run_t;

// Step `step` from its samples to the update. A NaN or infinity leaves the step out, or ends the run (bad_step_handle).
// Collective; sft_finish afterwards, also after errors.
status_t sft_train_step(sft_run_t *run, int64_t step, sft_sums_t *sums) STATUS_CHECKED;
void sft_finish(sft_run_t *run);

#endif
