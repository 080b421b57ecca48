// Inside the GRPO learner: the run, its stream to the reward rank, and one step's batch.
#ifndef LEARNER_GRPO_INTERNAL_H
#define LEARNER_GRPO_INTERNAL_H

#include "common/metrics/metrics.h"
#include "common/wire/weights.h"
#include "learner/checkpoint.h"
#include "learner/gradients.h"
#include "learner/learner.h"
#include "learner/loss.h"

// One completion's numbers in a step, shared among learners slot by slot (learner_share).
enum {
    SLOT_COUNTED, // 1 when it was not excluded
    SLOT_POLICY_LOSS,
    SLOT_KL_LOSS,
    SLOT_ENTROPY, // sum over tokens, before the first update
    SLOT_RATIO_DEVIATION,
    SLOT_CLIPPED_LOW,
    SLOT_CLIPPED_HIGH,
    SLOT_LOGPROB_DIFFERENCE, // largest |learner - rollout| before the first update
    SLOT_LENGTH,
    SLOT_REWARD,
    SLOT_REWARD_TAG,
    SLOT_REWARD_ANSWER,
    SLOT_ADVANTAGE,
    SLOT_TRUNCATED,
    SLOT_FIELDS
};
// Ratios are counted in bins of log ratio, so that quantiles need no floating-point sums over ranks.
enum { RATIO_BINS_PER_UNIT = 1024, RATIO_BIN_LIMIT = 8192, RATIO_BINS = 2 * RATIO_BIN_LIMIT + 1 };

// Versions that rollouts may report on before a step's line is written: staleness is at most 16.
enum { STATISTICS_VERSIONS = 32 };

// A group that this learner computes.
typedef struct grpo_leaf {
    const message_group_t *group;
    int number; // of the group in the plan
    packed_sample_t sample;
    batch_sequence_t *sequence; // the prompt, then the completions that count
    int *item;                  // [completions that count] into group->item
    int completions;
    int32_t *tokens;  // all sequences' tokens
    float *reference; // log-probs of the reference, completion after completion; NULL without KL
    const image_patches_t **images;
} grpo_leaf_t;

typedef struct grpo_batch {
    int64_t step;
    message_t plan_message;
    const message_plan_t *plan; // inside plan_message; NULL: no batch
    message_t *group;           // [plan->groups]; type 0 where this learner did not fetch it
    grpo_leaf_t *own;           // [own_count]
    leaf_t *leaf;               // [own_count]
    int own_count;
    int leaf_count;              // of leaf: own groups with a completion that counts; they come first in `own`
    double *slot;                // [groups * completions][SLOT_FIELDS]
    int64_t *ratio_bin;          // [RATIO_BINS]
    int64_t sequences, tokens;   // that count, of all learners
    double policy_loss, kl_loss; // filled from the slots
} grpo_batch_t;

// What a step computed, to the bit, for its trajectories: a replay compares with it. Off unless `on`.
enum { RECORD_POLICY_LOSS, RECORD_KL_LOSS, RECORD_RATIO_DEVIATION, RECORD_LOGPROB_HASH, RECORD_FIELDS };
typedef struct grpo_update_record {
    double policy_loss, kl_loss, ratio_deviation; // of all learners, after aggregation
    double gradient_norm;
    int64_t skipped;
} grpo_update_record_t;
typedef struct grpo_record {
    bool on;
    int updates;                  // done in this step
    grpo_update_record_t *update; // [grpo.updates]
    // [grpo.updates][prompts * completions][RECORD_FIELDS]: the bits of doubles, and the hash of a completion's
    // log-probs; of all learners once a step is done.
    int64_t *share;
    int64_t *before, *after; // [tensors] hashes of the trained tensors; learner 0
    int64_t hashed_version;  // of `after`; -1: not known
} grpo_record_t;

typedef struct grpo_times {
    double step_started, idle_s, fetch_s, data_s, wait_s, reduce_s, hidden_s, update_s, sync_s, train_s;
} grpo_times_t;

typedef struct grpo_run {
    learner_t learner;
    const learner_colocated_t *colocated; // NULL: rollouts are elsewhere
    link_t *link;
    weight_server_t *server; // learner 0
    uint64_t fingerprint;    // of the kernels; 0: not made yet
    message_t *pending;      // plans that came early
    size_t pending_count, pending_capacity;
    bool stopped; // the reward rank said stop
    char stop_reason[256];
    message_statistics_t statistics[STATISTICS_VERSIONS]; // sums by the weights' version, at its number modulo
    grpo_batch_t batch;
    bool first_update;  // log-probs of this pass are compared with the rollout's
    bool count_metrics; // false while a step's leaves are summed again
    optimizer_report_t report;
    int redos;
    int update;        // the number of the one under way
    int leaf_base;     // of batch.own, where launches begin: not 0 while a NaN is traced to its group
    finding_t finding; // the step's first NaN or infinity, once it has one
    bool offline;      // a replay: a NaN leaves the step as it would have been left, but nothing is saved or decided
    grpo_record_t record;
    bool mismatch_told;
    grpo_times_t times;
    metrics_t *metrics; // learner 0
    progress_t progress;
} grpo_run_t;

// ---- grpo_stream.c ----
status_t grpo_stream_open(grpo_run_t *run, int64_t completed) STATUS_CHECKED;
void grpo_stream_close(grpo_run_t *run);
// Learner 0: the model's weights as `version`, published and announced. The others do nothing.
status_t grpo_announce(grpo_run_t *run, int64_t version) STATUS_CHECKED;
status_t grpo_send(grpo_run_t *run, const message_t *message) STATUS_CHECKED;
// Waits for the plan of `step`, then fetches its groups into run->batch.
status_t grpo_wait_batch(grpo_run_t *run, int64_t step) STATUS_CHECKED;
// Waits until the reward rank says stop.
status_t grpo_wait_stop(grpo_run_t *run) STATUS_CHECKED;

// What the rollouts reported of the groups of `step` (and of any before); it is forgotten.
message_statistics_t grpo_take_statistics(grpo_run_t *run, int64_t step);

// ---- grpo_step.c ----
// The updates of a step on run->batch, which is prepared: log-probs, losses, exact sums, AdamW; then the model holds
// version step + 1. Collective.
status_t grpo_train_step(grpo_run_t *run, int64_t step) STATUS_CHECKED;
// The version counts steps, also past a step that changed nothing (skipped, or without a completion that counts).
status_t grpo_set_version(learner_t *learner, int64_t version) STATUS_CHECKED;

// What a checkpoint keeps besides: the older versions under staleness (checkpoint_part_t; the context is the run).
status_t grpo_save_versions(void *context, store_t *store) STATUS_CHECKED;

// ---- grpo_bad.c ----
// After a step with a finding. Collective.
status_t grpo_handle_finding(grpo_run_t *run) STATUS_CHECKED;

// ---- grpo_record.c ----
status_t grpo_record_open(grpo_run_t *run) STATUS_CHECKED;
void grpo_record_close(grpo_run_t *run);
// The hashes of the weights that the step begins with; clears what the step before left.
status_t grpo_record_begin(grpo_run_t *run) STATUS_CHECKED;
// A completion's numbers in the update under way.
void grpo_record_completion(grpo_run_t *run, const grpo_leaf_t *leaf, int completion, const grpo_sums_t *sums,
                            const float *logprob);
// After an update: keeps run->report.
void grpo_record_update(grpo_run_t *run);
// Shares the completions' numbers, adds them up, hashes the weights. Collective.
status_t grpo_record_end(grpo_run_t *run, double normaliser) STATUS_CHECKED;

// ---- grpo_batch.c ----
// Checks the fetched groups and lays this learner's out as leaves. Collective (counts are summed).
status_t grpo_batch_prepare(grpo_run_t *run) STATUS_CHECKED;
void grpo_batch_close(grpo_run_t *run);
// The loss of a pass over the batch (launch_loss_t; the context is the run), and the scoring of the reference.
status_t grpo_loss(void *context, const launch_view_t *view) STATUS_CHECKED;
status_t grpo_reference(void *context, const launch_view_t *view) STATUS_CHECKED;

// ---- grpo_metrics.c ----
// Collective; learner 0 writes the line of `completed`.
status_t grpo_report(grpo_run_t *run, int64_t completed) STATUS_CHECKED;

#endif
