// Trajectory logs: OUTPUT/trajectories/step-N.h5, N completed steps; all groups of that step, in the plan's order.
//
// groups: serial, sample, version [P] and completion_start [P + 1]; completions: index, token_start [C + 1], reward,
// reward_tag, reward_answer, advantage (f32), flags (1 truncated, 2 excluded); tokens and logprobs, one after another.
// exact/reward and exact/advantage are the bits of the doubles; updates/ and tensors/ are what the step computed.
#include "learner/trajectory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { TRAJECTORY_SCHEMA = 2 };

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

void trajectory_free(trajectory_t *t) {
    void *const all[] = {t->serial,         t->sample,        t->version,   t->completion_start,
                         t->token_start,    t->reward_bits,   t->index,     t->flags,
                         t->advantage_bits, t->token,         t->reward,    t->tag,
                         t->answer,         t->advantage,     t->logprob,   t->policy_loss,
                         t->kl_loss,        t->norm,          t->deviation, t->skipped,
                         t->logprob_hash,   t->before,        t->after,     t->names,
                         t->config,         t->training_hash, t->data_hash};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) free(all[i]);
    *t = (trajectory_t){0};
}

void trajectory_path(const char *output, int64_t completed, char path[4096]) {
    snprintf(path, 4096, "%s/trajectories/step-%lld.h5", output, (long long)completed);
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

status_t trajectory_write_groups(const trajectory_t *t, store_t *store) {
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

status_t trajectory_take_groups(const grpo_run_t *run, trajectory_t *out) {
    const grpo_batch_t *batch = &run->batch;
    *out = (trajectory_t){.groups = batch->plan->groups};
    for (int64_t g = 0; g < out->groups; g++) {
        const message_group_t *group = &batch->group[g].group;
        out->completions += group->count;
        for (int i = 0; i < group->count; i++) out->tokens += group->item[i].length;
    }
    status_t status = allocate(out);
    int64_t completion = 0;
    for (int64_t g = 0; g < out->groups && !status; g++) copy_group(out, &batch->group[g].group, g, &completion);
    if (status) trajectory_free(out);
    return status;
}

// ---- what the step computed ----

static status_t take_names(const optimizer_t *optimizer, char **out) {
    size_t size = 1, at = 0;
    int tensors = optimizer_tensors(optimizer);
    for (int i = 0; i < tensors; i++) size += strlen(optimizer_tensor(optimizer, i)->name) + 1;
    TRY(ALLOCATE(out, size));
    for (int i = 0; i < tensors; i++)
        at += (size_t)snprintf(*out + at, size - at, "%s\n", optimizer_tensor(optimizer, i)->name);
    return STATUS_OK;
}

static status_t take_record(const grpo_run_t *run, trajectory_t *t) {
    const grpo_record_t *record = &run->record;
    const optimizer_t *optimizer = run->learner.optimizer;
    int completions = run->learner.config->grpo.completions, slots = run->learner.config->grpo.prompts * completions;
    t->updates = record->updates;
    t->tensors = optimizer_tensors(optimizer);
    int64_t **const columns[] = {&t->policy_loss, &t->kl_loss, &t->deviation, &t->norm, &t->skipped};
    for (size_t i = 0; i < sizeof(columns) / sizeof(*columns); i++) TRY(ALLOCATE(columns[i], t->updates));
    TRY(ALLOCATE(&t->logprob_hash, t->updates * t->completions));
    TRY(ALLOCATE(&t->before, t->tensors));
    TRY(ALLOCATE(&t->after, t->tensors));
    memcpy(t->before, record->before, (size_t)t->tensors * sizeof(int64_t));
    memcpy(t->after, record->after, (size_t)t->tensors * sizeof(int64_t));
    for (int64_t u = 0; u < t->updates; u++) {
        const grpo_update_record_t *update = &record->update[u];
        t->policy_loss[u] = trajectory_bits(update->policy_loss);
        t->kl_loss[u] = trajectory_bits(update->kl_loss);
        t->deviation[u] = trajectory_bits(update->ratio_deviation);
        t->norm[u] = trajectory_bits(update->gradient_norm);
        t->skipped[u] = update->skipped;
        for (int64_t g = 0; g < t->groups; g++) {
            for (int64_t c = t->completion_start[g]; c < t->completion_start[g + 1]; c++) {
                const int64_t *fields = record->share + (u * slots + g * completions + t->index[c]) * RECORD_FIELDS;
                t->logprob_hash[u * t->completions + c] = fields[RECORD_LOGPROB_HASH];
            }
        }
    }
    uint64_t fingerprint = run->fingerprint; // made once: it takes memory of the device
    if (!fingerprint) TRY(device_fingerprint(run->learner.device, &fingerprint));
    t->fingerprint = (int64_t)fingerprint;
    return take_names(optimizer, &t->names);
}

static status_t write_configuration(const config_t *config, store_t *store) {
    char *text, hash[CONFIG_HASH_BYTES];
    TRY(config_training_hash_text(config, hash));
    TRY(config_to_text(config, &text));
    status_t status = store_write_string(store, "config", text);
    free(text);
    return status ? status : store_write_string(store, "training_hash", hash);
}

static status_t write_record(const trajectory_t *t, store_t *store) {
    const struct {
        const char *name;
        const int64_t *data;
        int64_t count;
    } sets[] = {{"updates/policy_loss", t->policy_loss, t->updates},
                {"updates/kl_loss", t->kl_loss, t->updates},
                {"updates/ratio_deviation", t->deviation, t->updates},
                {"updates/gradient_norm", t->norm, t->updates},
                {"updates/skipped", t->skipped, t->updates},
                {"updates/logprob_hash", t->logprob_hash, t->updates * t->completions},
                {"tensors/before", t->before, t->tensors},
                {"tensors/after", t->after, t->tensors}};
    for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++)
        TRY(store_write(store, sets[i].name, DTYPE_I64, sets[i].data, sets[i].count, false));
    TRY(store_write_number(store, "fingerprint", t->fingerprint));
    return store_write_string(store, "tensors/names", t->names);
}

static status_t write_file(const grpo_run_t *run, const trajectory_t *t, store_t *store) {
    TRY(store_write_number(store, "schema", TRAJECTORY_SCHEMA));
    TRY(store_write_number(store, "step", t->step));
    TRY(store_write_string(store, "data_hash", packed_hash(run->learner.packed)));
    TRY(write_configuration(run->learner.config, store));
    TRY(trajectory_write_groups(t, store));
    TRY(write_record(t, store));
    return store_commit(store);
}

status_t trajectory_write(const grpo_run_t *run, int64_t completed) {
    trajectory_t t;
    char path[4096];
    store_t *store = NULL;
    TRY(trajectory_take_groups(run, &t));
    t.step = completed;
    status_t status = take_record(run, &t);
    snprintf(path, sizeof(path), "%s/trajectories", run->learner.config->output);
    if (!status) status = file_make_directory(path);
    trajectory_path(run->learner.config->output, completed, path);
    if (!status) status = store_create(path, &store);
    if (!status) status = write_file(run, &t, store);
    store_close(store);
    trajectory_free(&t);
    return status;
}
