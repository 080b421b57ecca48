// The door of rollout/: what launch/ calls.
#ifndef ROLLOUT_ROLLOUT_H
#define ROLLOUT_ROLLOUT_H

#include "common/comm/job.h"
#include "common/model/model.h"

// Runs a rollout worker until the reward rank says stop: joins, pulls weights, generates groups, streams completions.
// Takes part in job_share_endpoint (collective over the world).
status_t rollout_worker_run(job_t *job) STATUS_CHECKED;
// The same, one turn at a time, so that a colocated rank can alternate learning and generating in one thread.
// Collective over the world only where job->coordinator_endpoint is not known yet. model: the learner's own, whose
// weights are then used in place and never pulled (a version counts as held when model->version has reached it); NULL:
// the worker opens its own from the configuration. After an error the reward rank has been told; close the worker.
typedef struct rollout_worker rollout_worker_t;
status_t rollout_worker_open(job_t *job, model_t *model, rollout_worker_t **out) STATUS_CHECKED;
// Takes what has arrived (waiting at most wait_s for it when there is nothing to generate) and runs one engine step.
// *stopped: the reward rank has said stop.
status_t rollout_worker_step(rollout_worker_t *worker, double wait_s, bool *stopped) STATUS_CHECKED;
// Whether groups are open: weights that are used in place must not change now.
bool rollout_worker_busy(const rollout_worker_t *worker);
// Why the reward rank said stop; "" before.
const char *rollout_worker_stop_reason(const rollout_worker_t *worker);
void rollout_worker_print_summary(const rollout_worker_t *worker); // one line on stderr
void rollout_worker_close(rollout_worker_t *worker);
// `poise rollout`: one more worker for a running job, in a process outside of it, until the job ends or this process is
// asked to stop (USR1, TERM, INT: it leaves, and what it had not finished goes to others). Not collective; uses no MPI.
typedef struct rollout_pool_options {
    const char *join; // the job's output folder, its join.json, or an endpoint
    const char *keys; // join.json for the keys of an endpoint, or NULL
    const char *setting[64];
    int settings;
} rollout_pool_options_t;
status_t rollout_pool_run(const rollout_pool_options_t *options) STATUS_CHECKED;
// --dry-run: prints the memory table of one worker's engine; no generation.
status_t rollout_print_plan(job_t *job, FILE *stream) STATUS_CHECKED;
// Runs the reward rank (coordinator) until training is done: rollout/reward/coordinator.h.
status_t reward_rank_run(job_t *job) STATUS_CHECKED;
// The hidden subcommand `poise __scorer`: reads scoring requests from descriptor 0, answers on descriptor 1, until end
// of file.
status_t reward_scorer_main(void) STATUS_CHECKED;

// JSON Lines tools (docs/manual.md). Output appears under its final name only when whole.
typedef struct tool_options {
    const char *model, *adapter; // adapter NULL: none
    const char *input, *output;
    const char *device; // "cpu"
    const char *dtype;  // "fp32" or "bf16"
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
// --dry-run: opens what eval_run opens, with its errors, and prints on rank 0 what would be asked and the memory table
// of one rank's engine; no generation, and no file is written. Collective over job->world.
status_t eval_print_plan(job_t *job, FILE *stream) STATUS_CHECKED;

#endif
