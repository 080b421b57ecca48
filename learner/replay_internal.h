// Inside `poise replay`: the run that is repeated, what differs, and the reports.
#ifndef LEARNER_REPLAY_INTERNAL_H
#define LEARNER_REPLAY_INTERNAL_H

#include "learner/learner.h"
#include "learner/trajectory.h"

enum { REPLAY_DIFFERENCES = 16 };

// One quantity that is not what the run recorded. Numbers that do not apply are -1, texts empty.
typedef struct replay_difference {
    const char *quantity; // "weights before the step", "sampler log-prob", "learner log-probs", "loss", ...
    int64_t step;         // completed steps, as in the names of files
    int64_t update;       // of the step, from 1
    int64_t serial;       // of the group
    int64_t sample, completion, token;
    char tensor[192], id[128];
    char recorded[64], computed[64];
    int64_t elements, of; // that differ, where a checkpoint lets it be seen; of the tensor
} replay_difference_t;

typedef struct replay_snapshot {
    int64_t version;
    void *bytes; // the trained tensors, one after another
} replay_snapshot_t;

typedef struct replay {
    grpo_run_t run;
    const replay_options_t *options;
    int64_t start;               // completed steps of the state it began with
    int64_t repeated;            // steps done again
    size_t weights_size;         // bytes of a snapshot
    replay_snapshot_t *snapshot; // [staleness + 1], by version modulo that
    trajectory_t trajectory;     // of the step under way
    int64_t *sampled;            // [trajectory.tokens] bits of the sampler's log-probs as the learner computes them
    replay_difference_t difference[REPLAY_DIFFERENCES];
    int differences;             // kept
    int64_t differing;           // found
    bool other_kernels;          // the run's kernels are not this machine's
    int64_t completions, tokens; // compared
    bool checkpoint_compared;    // of the last step
} replay_t;

// Fills `sampled` for run->batch. Collective.
status_t replay_sample(replay_t *replay) STATUS_CHECKED;
// The place of a version that the staleness needs.
replay_snapshot_t *replay_snapshot(const replay_t *replay, int64_t version);
// Keeps the version that the step begins with, for the steps that sampled from it.
status_t replay_keep(replay_t *replay) STATUS_CHECKED;
// What the step computed against what its file says, in causal order. Learner 0.
status_t replay_compare(replay_t *replay) STATUS_CHECKED;
// The report on stdout. Learner 0.
status_t replay_report(const replay_t *replay, FILE *stream) STATUS_CHECKED;
// Steps "step-N.h5" of one of RUN's folders as text for messages: "3 to 6, 9"; "none".
void replay_list(const int64_t *ascending, size_t count, char *out, size_t size);
// The two halves of replaying a bad step.
status_t replay_bad_config(const replay_options_t *options, const char *const *settings, int setting_count,
                           config_t *out) STATUS_CHECKED;
status_t replay_bad(job_t *job, const replay_options_t *options, char sentence[512]) STATUS_CHECKED;
// One line on a difference.
void replay_sentence(const replay_difference_t *difference, char *out, size_t size);

#endif
