// Trajectories back from a file, checked, and as a batch to train on.
#include "learner/trajectory.h"

#include <stdlib.h>
#include <string.h>

typedef struct column {
    const char *name;
    dtype_t dtype;
    void **out;
    int64_t count;
} column_t;

static status_t read_columns(store_t *store, const column_t *columns, size_t many) {
    for (size_t i = 0; i < many; i++) {
        int64_t count;
        TRY(store_read_all(store, columns[i].name, columns[i].dtype, columns[i].out, &count));
        if (count != columns[i].count)
            FAIL(STATUS_INVALID, "its dataset %s has %lld entries where %lld fit the others", columns[i].name,
                 (long long)count, (long long)columns[i].count);
    }
    return STATUS_OK;
}

static status_t check_starts(const char *name, const int64_t *start, int64_t count, int64_t end) {
    bool good = start[0] == 0 && start[count] == end;
    for (int64_t i = 0; i < count && good; i++) good = start[i] <= start[i + 1];
    if (!good) FAIL(STATUS_INVALID, "its dataset %s does not divide %lld entries in order", name, (long long)end);
    return STATUS_OK;
}

status_t trajectory_read_groups(store_t *store, trajectory_t *t) {
    TRY(store_read_all(store, "groups/serial", DTYPE_I64, (void **)&t->serial, &t->groups));
    TRY(store_read_all(store, "completions/index", DTYPE_I32, (void **)&t->index, &t->completions));
    TRY(store_read_all(store, "tokens", DTYPE_I32, (void **)&t->token, &t->tokens));
    const column_t columns[] = {
        {"groups/sample", DTYPE_I64, (void **)&t->sample, t->groups},
        {"groups/version", DTYPE_I64, (void **)&t->version, t->groups},
        {"groups/completion_start", DTYPE_I64, (void **)&t->completion_start, t->groups + 1},
        {"completions/token_start", DTYPE_I64, (void **)&t->token_start, t->completions + 1},
        {"completions/reward", DTYPE_F32, (void **)&t->reward, t->completions},
        {"completions/reward_tag", DTYPE_F32, (void **)&t->tag, t->completions},
        {"completions/reward_answer", DTYPE_F32, (void **)&t->answer, t->completions},
        {"completions/advantage", DTYPE_F32, (void **)&t->advantage, t->completions},
        {"completions/flags", DTYPE_I32, (void **)&t->flags, t->completions},
        {"exact/reward", DTYPE_I64, (void **)&t->reward_bits, t->completions},
        {"exact/advantage", DTYPE_I64, (void **)&t->advantage_bits, t->completions},
        {"logprobs", DTYPE_F32, (void **)&t->logprob, t->tokens},
    };
    TRY(read_columns(store, columns, sizeof(columns) / sizeof(*columns)));
    if (t->groups < 1) FAIL(STATUS_INVALID, "it holds no groups");
    TRY(check_starts("groups/completion_start", t->completion_start, t->groups, t->completions));
    return check_starts("completions/token_start", t->token_start, t->completions, t->tokens);
}

static status_t read_record(store_t *store, trajectory_t *t) {
    TRY(store_read_all(store, "updates/gradient_norm", DTYPE_I64, (void **)&t->norm, &t->updates));
    TRY(store_read_all(store, "tensors/after", DTYPE_I64, (void **)&t->after, &t->tensors));
    if (t->updates > 1000) FAIL(STATUS_INVALID, "it holds %lld updates of one step", (long long)t->updates);
    const column_t columns[] = {
        {"updates/policy_loss", DTYPE_I64, (void **)&t->policy_loss, t->updates},
        {"updates/kl_loss", DTYPE_I64, (void **)&t->kl_loss, t->updates},
        {"updates/ratio_deviation", DTYPE_I64, (void **)&t->deviation, t->updates},
        {"updates/skipped", DTYPE_I64, (void **)&t->skipped, t->updates},
        {"updates/logprob_hash", DTYPE_I64, (void **)&t->logprob_hash, t->updates * t->completions},
        {"tensors/before", DTYPE_I64, (void **)&t->before, t->tensors},
    };
    TRY(read_columns(store, columns, sizeof(columns) / sizeof(*columns)));
    TRY(store_read_number(store, "fingerprint", &t->fingerprint));
    TRY(store_read_string(store, "tensors/names", &t->names));
    TRY(store_read_string(store, "config", &t->config));
    TRY(store_read_string(store, "training_hash", &t->training_hash));
    return store_read_string(store, "data_hash", &t->data_hash);
}

status_t trajectory_read(const char *path, trajectory_t *out) {
    store_t *store;
    int64_t schema = 0;
    *out = (trajectory_t){0};
    TRY(store_open(path, &store));
    status_t status = store_read_number(store, "schema", &schema);
    if (!status && schema != 2)
        status = STATUS_NEW(STATUS_INVALID, "it has schema %lld, this program replays schema 2", (long long)schema);
    if (!status) status = store_read_number(store, "step", &out->step);
    if (!status) status = trajectory_read_groups(store, out);
    if (!status) status = read_record(store, out);
    store_close(store);
    if (!status) return STATUS_OK;
    trajectory_free(out);
    return status_context(status, "the trajectories %s cannot be replayed", path);
}

// ---- as a batch ----

static status_t copy_item(const trajectory_t *t, int64_t c, message_group_item_t *item) {
    int64_t start = t->token_start[c], length = t->token_start[c + 1] - start;
    if (length > INT32_MAX) FAIL(STATUS_INVALID, "a completion of %lld tokens", (long long)length);
    *item = (message_group_item_t){.index = t->index[c],
                                   .length = (int32_t)length,
                                   .reward = trajectory_real(t->reward_bits[c]),
                                   .reward_tag = (double)t->tag[c],
                                   .reward_answer = (double)t->answer[c],
                                   .advantage = trajectory_real(t->advantage_bits[c]),
                                   .truncated = (t->flags[c] & 1) != 0,
                                   .excluded = (t->flags[c] & 2) != 0};
    TRY(ALLOCATE(&item->tokens, length));
    TRY(ALLOCATE(&item->logprobs, length));
    memcpy(item->tokens, t->token + start, (size_t)length * sizeof(int32_t));
    memcpy(item->logprobs, t->logprob + start, (size_t)length * sizeof(float));
    return STATUS_OK;
}

static status_t copy_group(const trajectory_t *t, int64_t g, message_t *message) {
    int64_t first = t->completion_start[g], count = t->completion_start[g + 1] - first;
    if (count > MESSAGE_MAX_COMPLETIONS) FAIL(STATUS_INVALID, "a group of %lld completions", (long long)count);
    *message = (message_t){.type = MESSAGE_GROUP};
    message_group_t *group = &message->group;
    group->serial = (uint64_t)t->serial[g];
    group->sample = t->sample[g];
    group->version = t->version[g];
    TRY(ALLOCATE(&group->item, count));
    group->count = (int32_t)count; // from here message_free knows of every item
    for (int64_t i = 0; i < count; i++) TRY(copy_item(t, first + i, &group->item[i]));
    return STATUS_OK;
}

static status_t fill_plan(const trajectory_t *t, int ranks, message_plan_t *plan) {
    TRY(ALLOCATE(&plan->serial, t->groups));
    TRY(ALLOCATE(&plan->owner, t->groups));
    TRY(ALLOCATE(&plan->tokens, t->groups));
    for (int64_t g = 0; g < t->groups; g++) {
        plan->serial[g] = (uint64_t)t->serial[g];
        for (int64_t c = t->completion_start[g]; c < t->completion_start[g + 1]; c++) {
            int64_t length = t->token_start[c + 1] - t->token_start[c];
            plan->tokens[g] += length;
            if (t->flags[c] & 2) continue;
            plan->sequences++;
            plan->completion_tokens += length;
        }
    }
    return balance_owners(plan->tokens, plan->groups, ranks, plan->owner);
}

status_t trajectory_to_batch(const trajectory_t *t, grpo_run_t *run, int64_t step) {
    grpo_batch_t *batch = &run->batch;
    if (t->groups != run->learner.config->grpo.prompts)
        FAIL(STATUS_INVALID, "the trajectories of step %lld hold %lld groups, not the %d of grpo.prompts",
             (long long)step + 1, (long long)t->groups, run->learner.config->grpo.prompts);
    batch->step = step;
    batch->plan_message = (message_t){.type = MESSAGE_PLAN};
    batch->plan_message.plan.step = step;
    batch->plan_message.plan.groups = (int32_t)t->groups;
    batch->plan = &batch->plan_message.plan;
    TRY(ALLOCATE(&batch->group, t->groups));
    TRY(fill_plan(t, comm_size(run->learner.comm), &batch->plan_message.plan));
    for (int64_t g = 0; g < t->groups; g++) {
        status_t status = copy_group(t, g, &batch->group[g]);
        if (status) return status_context(status, "the trajectories of step %lld", (long long)step + 1);
    }
    return STATUS_OK;
}
