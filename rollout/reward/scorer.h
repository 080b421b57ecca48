// Scorers: child processes that compute rewards, so that a scorer that crashes, hangs, forks or eats memory costs a
// child and one completion, never the run.
//
// The reward rank starts them by posix_spawn of `poise __scorer` in a process group of their own (never fork without
// exec under MPI), with limits on memory, files and processes. Requests and answers are JSON lines over a socket pair;
// one request is out per child, and an answer names its request. A child past the time limit is killed with all that it
// has started, wherever that has moved itself, and replaced; the outcome is REWARD_TIMEOUT. A child that ends or
// answers nonsense gives REWARD_ERROR, unless it had scored others before: then a fresh one is asked first, so that a
// completion's outcome does not depend on those before it. So one request starts two processes at most.
//
// While a pool is open the process is a child subreaper; children that it starts by other means meanwhile are taken for
// scorers' and killed.
#ifndef ROLLOUT_REWARD_SCORER_H
#define ROLLOUT_REWARD_SCORER_H

#include "rollout/reward/reward.h"

typedef struct scorer_pool scorer_pool_t;

typedef struct scorer_options {
    const char *program; // this executable
    int scorers;
    double timeout_s;
    int64_t memory_mb; // address space of a child
    double tag_weight, answer_weight, length_weight;
} scorer_options_t;

typedef struct scorer_result {
    uint64_t serial;
    int32_t index;
    reward_outcome_t outcome;
    double reward, tag, answer; // with REWARD_OK
    char why[256];              // with the others
} scorer_result_t;

status_t scorer_pool_open(const scorer_options_t *options, scorer_pool_t **out) STATUS_CHECKED;
void scorer_pool_close(scorer_pool_t *pool); // ends the children
// Whether scorer_submit would take a request now.
bool scorer_pool_free(const scorer_pool_t *pool);
// Whether a request is out.
bool scorer_pool_busy(const scorer_pool_t *pool);
// Hands a request to a free child. Strings are copied; bytes of the completion that are not UTF-8 count as U+FFFD.
// STATUS_INVALID when none is free.
status_t scorer_submit(scorer_pool_t *pool, uint64_t serial, int32_t index, const reward_input_t *input) STATUS_CHECKED;
// Takes one finished result, waiting at most wait_s; *have says whether there was one. Kills and replaces children as
// needed.
status_t scorer_take(scorer_pool_t *pool, double wait_s, scorer_result_t *out, bool *have) STATUS_CHECKED;

#endif
