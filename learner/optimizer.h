// Optimizer: exact gradient sums over leaves and ranks, global clipping, sharded AdamW on fp32 masters.
//
// The trained tensors lie one after another in a flat space, each padded to whole blocks of GRADIENT_BLOCK elements.
// Rank r owns a contiguous range of blocks: after reduce-scatter it holds the sums there, updates its masters and
// moments, and all-gathers the published values. The norm adds per-block sums of squares in block order. Every result
// is the same for any number of ranks.
#ifndef LEARNER_OPTIMIZER_H
#define LEARNER_OPTIMIZER_H

#include "common/comm/comm.h"
#include "common/config/config.h"
#include "common/model/model.h"
#include "common/store/store.h"

typedef struct optimizer optimizer_t;

// Makes sums (the model's trainable parameters' sinks), masters and moments for the trained tensors of the model. Which
// parameters are trainable must be decided before (learner_freeze in learner/setup.h). Collective.
status_t optimizer_open(const config_t *config, model_t *model, comm_t *learners, optimizer_t **out) STATUS_CHECKED;
void optimizer_close(optimizer_t *optimizer);
// Zeroes the sums and sets the sinks' exponents: to call before the leaves of a step.
status_t optimizer_begin(optimizer_t *optimizer) STATUS_CHECKED;
// What the tape tells of the step's last launch, so that the sums over ranks begin while its backward runs. NULL: they
// begin later. Valid until the next call.
const tape_listener_t *optimizer_listener(optimizer_t *optimizer);
// Begins the sums that have not begun. Without it optimizer_step does. To be called by every rank or none.
status_t optimizer_reduce_rest(optimizer_t *optimizer) STATUS_CHECKED;
// Instead of optimizer_step, for a step that is left out: waits for what has begun. Collective.
status_t optimizer_drop(optimizer_t *optimizer) STATUS_CHECKED;

typedef struct optimizer_report {
    double gradient_norm, learning_rate;
    bool redo;    // a leaf would have overflowed: exponents were changed, run the step's leaves again
    bool skipped; // NaN or Inf: nothing was updated
    int tensor;   // where skipped: the first tensor whose gradient, or (`weights`) whose updated state, is not finite
    bool weights;
    double reduce_s, update_s, gather_s; // reduce_s: what was waited for, not what backward hid
    double hidden_s;                     // how long sums were under way beside backward
    double early;                        // share of the sums' buckets that began while backward ran
} optimizer_report_t;
// Sums over ranks, divides by `normaliser`, clips, updates, publishes to the model (version + 1 when `publish`).
// Collective.
status_t optimizer_step(optimizer_t *optimizer, double normaliser, int64_t step, bool publish,
                        optimizer_report_t *report) STATUS_CHECKED;
// After leaves were computed on this rank alone (optimizer_begin, then launches): the first tensor whose gradient holds
// NaN or Inf; -1: none. Not collective.
status_t optimizer_own_flag(optimizer_t *optimizer, int *tensor) STATUS_CHECKED;
// Steps in a row that were left out; kept in checkpoints.
int64_t *optimizer_skipped_in_row(optimizer_t *optimizer);
// Learning rate of step `completed` (warm-up from 0 in warmup_steps, then the schedule to final_fraction at
// optimizer.steps).
double optimizer_learning_rate(const config_t *config, int64_t completed);

// Checkpoint parts: whole tensors (gathered to rank 0), so another number of ranks can load them. Collective; store is
// NULL but on rank 0 when saving; every rank opens the file when loading.
status_t optimizer_save(optimizer_t *optimizer, store_t *store) STATUS_CHECKED;
status_t optimizer_load(optimizer_t *optimizer, store_t *store) STATUS_CHECKED;
// SHA-256 (hex) over the published trained tensors in order: equal bits, equal hash.
status_t optimizer_weights_hash(optimizer_t *optimizer, char out[65]) STATUS_CHECKED;
// The trained tensors, in order: how many, their names, and XXH3-64 of each one's published bytes (out: [tensors]).
int optimizer_tensors(const optimizer_t *optimizer);
const trained_tensor_t *optimizer_tensor(const optimizer_t *optimizer, int number);
// Bytes of its published values.
size_t optimizer_tensor_size(const optimizer_t *optimizer, int number);
// The published bytes of one on the host; valid until the next call of any function here.
status_t optimizer_tensor_bytes(optimizer_t *optimizer, int number, const void **bytes, size_t *size) STATUS_CHECKED;
status_t optimizer_tensor_hashes(optimizer_t *optimizer, int64_t *out) STATUS_CHECKED;

#endif
