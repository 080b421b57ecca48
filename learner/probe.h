// Probe: what a run would start from, or has ended in, as hashes; for checks that compare the two.
#ifndef LEARNER_PROBE_H
#define LEARNER_PROBE_H

#include "common/comm/job.h"

typedef struct learner_probe {
    int64_t completed; // steps of the checkpoint that was looked at; 0: the starting weights
    char weights[65];  // SHA-256 of the trained tensors, as in the last line of a run's metrics
    uint64_t logprobs; // SFT: hash of the bits of the log-probs of the first step's samples; GRPO: 0
    int64_t tokens;    // of which there are so many
} learner_probe_t;

// Opens the learner as a run with this configuration would, newest checkpoint of the output folder included, and
// trains nothing. Collective over job->learners; the same on all of them, for any number of them.
status_t learner_probe(job_t *job, bool grpo, learner_probe_t *out) STATUS_CHECKED;

#endif
