#include "rollout/reward/reward.h"

#include <math.h>
#include <string.h>

static status_t reward_tag(const reward_input_t *input, double *out) {
    *out = answer_tag_score(input->completion, strlen(input->completion), input->tag_style);
    return STATUS_OK;
}

// Exact match of the last complete <answer> with the gold answer; a completion without one earns 0.
static status_t reward_answer(const reward_input_t *input, double *out) {
    const char *start;
    size_t span;
    *out = 0;
    if (!input->answer) return STATUS_OK;
    if (!*input->answer) FAIL(STATUS_INVALID, "the sample has no gold answer to compare with");
    if (!answer_extract(input->completion, strlen(input->completion), &start, &span)) return STATUS_OK;
    bool equal = false;
    TRY(answer_equal(start, span, input->answer, input->options, input->option_count, &equal));
    *out = equal ? 1 : 0;
    return STATUS_OK;
}

// The used share of the budget.
static status_t reward_length(const reward_input_t *input, double *out) {
    if (input->budget < 1) FAIL(STATUS_INVALID, "a length is scored against a budget of at least one token");
    *out = (double)input->tokens / input->budget;
    return STATUS_OK;
}

const reward_function_t reward_functions[] = {
    {"tag", reward_tag},
    {"answer", reward_answer},
    {"length", reward_length},
    {NULL, NULL},
};

const reward_function_t *reward_find(const char *name) {
    for (const reward_function_t *f = reward_functions; f->name; f++)
        if (!strcmp(f->name, name)) return f;
    return NULL;
}

void reward_group_advantages(const double *rewards, const bool *excluded, int count, double eps, double *advantages,
                             bool *spread) {
    double least = INFINITY, most = -INFINITY, sum = 0;
    int counted = 0;
    for (int i = 0; i < count; i++) {
        advantages[i] = 0;
        if (excluded[i]) continue;
        counted++;
        sum += rewards[i];
        least = rewards[i] < least ? rewards[i] : least;
        most = rewards[i] > most ? rewards[i] : most;
    }
    // Equal rewards are tested on the rewards themselves: their computed deviation need not be exactly 0, and dividing
    // it by a small eps has made large advantages out of nothing in other systems.
    *spread = counted >= 2 && most > least;
    if (!*spread) return;
    double mean = sum / counted, squares = 0;
    for (int i = 0; i < count; i++)
        if (!excluded[i]) squares += (rewards[i] - mean) * (rewards[i] - mean);
    double deviation = sqrt(squares / (counted - 1));
    for (int i = 0; i < count; i++)
        if (!excluded[i]) advantages[i] = (rewards[i] - mean) / (deviation + eps);
}
