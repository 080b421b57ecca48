// The door of rollout/: what launch/ calls.
#ifndef ROLLOUT_ROLLOUT_H
#define ROLLOUT_ROLLOUT_H

#include "common/comm/job.h"

// Runs a rollout worker until the reward rank says stop: joins, pulls weights, generates groups, streams completions.
// `model` is this rank's own copy (colocated ranks: the learner's, then weights are not pulled).
status_t rollout_worker_run(job_t *job) STATUS_CHECKED;
// Runs the reward rank (coordinator) until training is done: rollout/reward/coordinator.h.
status_t reward_rank_run(job_t *job) STATUS_CHECKED;
// The hidden subcommand `poise __scorer`: reads scoring requests from descriptor 0, answers on descriptor 1, until end
// of file.
status_t reward_scorer_main(void) STATUS_CHECKED;

// JSON Lines tools (design section 7). Output appears under its final name only when whole.
typedef struct tool_options {
    const char *model, *adapter; // adapter NULL: none
    const char *input, *output;
    const char *device; // "cpu"
    const char *dtype;  // "fp32"
    int threads;
    double temperature;
    int max_tokens, samples; // generate
    uint64_t seed;
} tool_options_t;
status_t tool_score(const tool_options_t *options) STATUS_CHECKED;
status_t tool_generate(const tool_options_t *options) STATUS_CHECKED;
status_t tool_tokenize(const tool_options_t *options) STATUS_CHECKED;

// Evaluation over a packed test file: greedy answers, one JSON line a sample as it finishes (OUTPUT/samples.jsonl),
// then OUTPUT/summary.json. Resumes: samples already written are not generated again. Ranks split the samples; the
// files are identical for any rank count. Collective over job->world.
status_t eval_run(job_t *job) STATUS_CHECKED;

#endif
