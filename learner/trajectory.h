// Trajectory files (docs/file-formats.md): all groups of a step in the plan's order, and what the step computed from
// them. Written by learner 0; read again by a replay.
#ifndef LEARNER_TRAJECTORY_H
#define LEARNER_TRAJECTORY_H

#include "learner/grpo_internal.h"

#include <string.h>

typedef struct trajectory {
    int64_t step; // completed steps: the one that this was
    int64_t groups, completions, tokens;
    int64_t *serial, *sample, *version, *completion_start;       // [groups], completion_start [groups + 1]
    int64_t *token_start, *reward_bits, *advantage_bits;         // [completions], token_start [completions + 1]
    int32_t *index, *flags, *token;                              // token: [tokens]
    float *reward, *tag, *answer, *advantage, *logprob;          // logprob: [tokens]
    int64_t updates;                                             // done
    int64_t *policy_loss, *kl_loss, *deviation, *norm, *skipped; // [updates]; bits of doubles, but `skipped`
    int64_t *logprob_hash;                                       // [updates * completions]; 0: excluded
    int64_t tensors, *before, *after;                            // [tensors] XXH3-64 of the trained tensors
    int64_t fingerprint;                                         // of learner 0's kernels
    char *names, *config, *training_hash, *data_hash;            // names: of the tensors, a line each
} trajectory_t;

// Doubles are kept by their bits.
static inline int64_t trajectory_bits(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}
static inline double trajectory_real(int64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

// Writes the file of step `completed`: the groups of run->batch (learner 0 has fetched them all) and run->record.
status_t trajectory_write(const grpo_run_t *run, int64_t completed) STATUS_CHECKED;
// The file of step `completed` in a run's folder.
void trajectory_path(const char *output, int64_t completed, char path[4096]);
// Reads and checks a whole file: counts that fit each other, starts that ascend, numbers in range. STATUS_INVALID names
// what is wrong. Free by trajectory_free, also after errors.
status_t trajectory_read(const char *path, trajectory_t *out) STATUS_CHECKED;
void trajectory_free(trajectory_t *trajectory);
// The batch as groups only (updates and tensors 0), and its datasets. Needs all groups of the step in run->batch.
status_t trajectory_take_groups(const grpo_run_t *run, trajectory_t *out) STATUS_CHECKED;
status_t trajectory_write_groups(const trajectory_t *trajectory, store_t *store) STATUS_CHECKED;
// The same two of a file that has only those.
status_t trajectory_read_groups(store_t *store, trajectory_t *out) STATUS_CHECKED;
// Fills run->batch with the groups, as if they had come from the reward rank; groups are given to learners by tokens.
status_t trajectory_to_batch(const trajectory_t *trajectory, grpo_run_t *run, int64_t step) STATUS_CHECKED;

#endif
