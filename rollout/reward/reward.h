// The reward seam: one table a reward; a completion's reward is the weighted sum of its parts.
//
// Rewards run in scorer children (reward_scorer_main), so one that crashes or hangs costs a child, not the run.
#ifndef ROLLOUT_REWARD_REWARD_H
#define ROLLOUT_REWARD_REWARD_H

#include "common/text/answer.h"

typedef struct reward_input {
    const char *completion; // text, special tokens left out
    const char *answer;     // gold; NULL: the answer part is not paid and counts as 0
    const char *kind;
    const char *const *options;
    int option_count;
    tag_style_t tag_style;
    int tokens, budget; // length of the completion, and the most it could have had
} reward_input_t;

typedef enum reward_outcome { REWARD_OK, REWARD_TIMEOUT, REWARD_ERROR } reward_outcome_t;

typedef struct reward_function {
    const char *name; // "tag", "answer", "length"
    // Score in [0, 1]. An error means "no reward", never 0.
    status_t (*score)(const reward_input_t *input, double *out);
} reward_function_t;
// Registered rewards, ended by a NULL name.
extern const reward_function_t reward_functions[];
const reward_function_t *reward_find(const char *name); // NULL: unknown

// Group advantage (GRPO): A_i = (r_i - mean) / (std + eps), unbiased std over the counted
// completions. Exactly 0 for all when max == min or fewer than two count; excluded ones get 0. spread: whether any
// advantage is non-zero.
void reward_group_advantages(const double *rewards, const bool *excluded, int count, double eps, double *advantages,
                             bool *spread);

#endif
