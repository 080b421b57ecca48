// Trajectory logs: OUTPUT/trajectories/step-N.h5, N completed steps; all groups of that step, in the plan's order.
//
// groups: serial, sample, version [P] and completion_start [P + 1]; completions: index, token_start [C + 1], reward,
// reward_tag, reward_answer, advantage (f32), flags (1 truncated, 2 excluded); tokens and logprobs, one after another.
// exact/reward and exact/advantage are the bits of the doubles, for replay.
#include "learner/grpo_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct trajectory {
    int64_t groups, completions, tokens;
    int64_t *serial, *sample, *version, *completion_start;
    int64_t *token_start, *reward_bits, *advantage_bits;
    int32_t *index, *flags, *token;
    float *reward, *tag, *answer, *advantage, *logprob;
} trajectory_t;

static status_t allocate(trajectory_t *t) {
    TRY(ALLOCATE(&t->serial, t->groups));
    TRY(ALLOCATE(&t->sample, t->groups));
    TRY(ALLOCATE(&t->version, t->groups));
    TRY(ALLOCATE(&t->completion_start, t->groups + 1));
    TRY(ALLOCATE(&t->token_start, t->completions + 1));
    TRY(ALLOCATE(&t->reward_bits, t->completions));
    TRY(ALLOCATE(&t->advantage_bits, t->completions));
    TRY(ALLOCATE(&t->index, t->completions));
    TRY(ALLOCATE(&t->flags, t->completions));
    TRY(ALLOCATE(&t->reward, t->completions));
    TRY(ALLOCATE(&t->tag, t->completions));
    TRY(ALLOCATE(&t->answer, t->completions));
    TRY(ALLOCATE(&t->advantage, t->completions));
    TRY(ALLOCATE(&t->token, t->tokens));
    return ALLOCATE(&t->logprob, t->tokens);
}

static void release(trajectory_t *t) {
    void *const all[] = {t->serial,      t->sample,      t->version, t->completion_start,
                         t->token_start, t->reward_bits, t->index,   t->advantage_bits,
                         t->flags,       t->token,       t->reward,  t->tag,
                         t->answer,      t->advantage,   t->logprob};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]);
}

static void copy_group(trajectory_t *t, const message_group_t *group, int64_t g, int64_t *completion) {
    t->serial[g] = (int64_t)group->serial;
    t->sample[g] = group->sample;
    t->version[g] = group->version;
    for (int i = 0; i < group->count; i++) {
        const message_group_item_t *item = &group->item[i];
        int64_t c = (*completion)++, start = t->token_start[c];
        t->index[c] = item->index;
        t->flags[c] = (item->truncated ? 1 : 0) | (item->excluded ? 2 : 0);
        t->reward[c] = (float)item->reward;
        t->tag[c] = (float)item->reward_tag;
        t->answer[c] = (float)item->reward_answer;
        t->advantage[c] = (float)item->advantage;
        memcpy(&t->reward_bits[c], &item->reward, sizeof(int64_t));
        memcpy(&t->advantage_bits[c], &item->advantage, sizeof(int64_t));
        memcpy(t->token + start, item->tokens, (size_t)item->length * sizeof(int32_t));
        memcpy(t->logprob + start, item->logprobs, (size_t)item->length * sizeof(float));
        t->token_start[c + 1] = start + item->length;
    }
    t->completion_start[g + 1] = *completion;
}

static status_t write_all(const trajectory_t *t, store_t *store) {
    const struct {
        const char *name;
        dtype_t dtype;
        const void *data;
        int64_t count;
    } sets[] = {{"groups/serial", DTYPE_I64, t->serial, t->groups},
                {"groups/sample", DTYPE_I64, t->sample, t->groups},
                {"groups/version", DTYPE_I64, t->version, t->groups},
                {"groups/completion_start", DTYPE_I64, t->completion_start, t->groups + 1},
                {"completions/index", DTYPE_I32, t->index, t->completions},
                {"completions/token_start", DTYPE_I64, t->token_start, t->completions + 1},
                {"completions/reward", DTYPE_F32, t->reward, t->completions},
                {"completions/reward_tag", DTYPE_F32, t->tag, t->completions},
                {"completions/reward_answer", DTYPE_F32, t->answer, t->completions},
                {"completions/advantage", DTYPE_F32, t->advantage, t->completions},
                {"completions/flags", DTYPE_I32, t->flags, t->completions},
                {"exact/reward", DTYPE_I64, t->reward_bits, t->completions},
                {"exact/advantage", DTYPE_I64, t->advantage_bits, t->completions},
                {"tokens", DTYPE_I32, t->token, t->tokens},
                {"logprobs", DTYPE_F32, t->logprob, t->tokens}};
    for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++)
        TRY(store_write(store, sets[i].name, sets[i].dtype, sets[i].data, sets[i].count, true));
    return STATUS_OK;
}

status_t trajectory_write(const grpo_run_t *run, int64_t completed) {
    const grpo_batch_t *batch = &run->batch;
    trajectory_t t = {.groups = batch->plan->groups};
    for (int64_t g = 0; g < t.groups; g++) {
        const message_group_t *group = &batch->group[g].group;
        t.completions += group->count;
        for (int i = 0; i < group->count; i++) t.tokens += group->item[i].length;
    }
    char path[4096];
    store_t *store = NULL;
    status_t status = allocate(&t);
    int64_t completion = 0;
    for (int64_t g = 0; g < t.groups && !status; g++) copy_group(&t, &batch->group[g].group, g, &completion);
    snprintf(path, sizeof(path), "%s/trajectories", run->learner.config->output);
    if (!status) status = file_make_directory(path);
    snprintf(path, sizeof(path), "%s/trajectories/step-%lld.h5", run->learner.config->output, (long long)completed);
    if (!status) status = store_create(path, &store);
    if (!status) status = store_write_number(store, "schema", 1);
    if (!status) status = store_write_number(store, "step", completed);
    if (!status) status = store_write_string(store, "data_hash", packed_hash(run->learner.packed));
    if (!status) status = write_all(&t, store);
    release(&t);
    if (!status) status = store_commit(store);
    store_close(store);
    return status;
}
