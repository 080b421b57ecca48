// The sampler's log-probs again, under the version it sampled from; and the versions that takes.
#include "learner/replay_internal.h"

#include <stdlib.h>
#include <string.h>

replay_snapshot_t *replay_snapshot(const replay_t *replay, int64_t version) {
    return &replay->snapshot[version % (replay->run.learner.config->grpo.staleness + 1)];
}

static status_t take_weights(replay_t *replay, void **out) {
    optimizer_t *optimizer = replay->run.learner.optimizer;
    size_t at = 0;
    TRY(memory_allocate(replay->weights_size, 1, out));
    for (int i = 0; i < optimizer_tensors(optimizer); i++) {
        const void *bytes;
        size_t size;
        TRY(optimizer_tensor_bytes(optimizer, i, &bytes, &size));
        memcpy((char *)*out + at, bytes, size);
        at += size;
    }
    return STATUS_OK;
}

// Only the model's published values; masters stay.
static status_t put_weights(replay_t *replay, const void *bytes) {
    learner_t *learner = &replay->run.learner;
    size_t at = 0;
    for (int i = 0; i < optimizer_tensors(learner->optimizer); i++) {
        const trained_tensor_t *tensor = optimizer_tensor(learner->optimizer, i);
        size_t size = optimizer_tensor_size(learner->optimizer, i);
        TRY(learner->device->table->upload(learner->device, tensor->parameter->value.data, (const char *)bytes + at,
                                           size));
        at += size;
    }
    return model_parameters_changed(learner->model, NULL, learner->model->version);
}

status_t replay_keep(replay_t *replay) {
    if (replay->run.learner.config->grpo.staleness == 0) return STATUS_OK;
    replay_snapshot_t *snapshot = replay_snapshot(replay, replay->run.batch.step);
    free(snapshot->bytes);
    *snapshot = (replay_snapshot_t){.version = replay->run.batch.step};
    return take_weights(replay, &snapshot->bytes);
}

// Entries lie leaf by leaf, completion by completion.
static status_t take_logprobs(void *context, const launch_view_t *view) {
    replay_t *replay = context;
    const trajectory_t *t = &replay->trajectory;
    for (int l = 0; l < view->batch->leaf_count; l++) {
        const grpo_leaf_t *leaf = &replay->run.batch.own[view->first + l];
        const float *logprob = view->logprob + view->batch->leaf_entry_start[l];
        for (int c = 0; c < leaf->completions; c++) {
            int64_t at = t->completion_start[leaf->number] + leaf->item[c];
            for (int64_t i = t->token_start[at]; i < t->token_start[at + 1]; i++, logprob++) {
                uint32_t bits;
                memcpy(&bits, logprob, sizeof(bits));
                replay->sampled[i] = bits;
            }
        }
    }
    return STATUS_OK;
}

static status_t score(replay_t *replay) {
    grpo_run_t *run = &replay->run;
    launch_options_t options = {.temperature = (float)run->learner.config->grpo.temperature,
                                .leaves = run->learner.config->grpo.launch_leaves};
    return launch_leaves(&run->learner.launcher, run->learner.model, run->batch.leaf, run->batch.leaf_count, &options,
                         take_logprobs, replay);
}

static status_t score_version(replay_t *replay, int64_t version) {
    if (version == replay->run.batch.step) return score(replay);
    const replay_snapshot_t *snapshot = replay_snapshot(replay, version);
    void *now = NULL;
    if (snapshot->version != version || !snapshot->bytes)
        FAIL(STATUS_FAILED, "version %lld of the weights is not at hand", (long long)version);
    status_t status = take_weights(replay, &now);
    if (!status) status = put_weights(replay, snapshot->bytes);
    if (!status) status = score(replay);
    if (!status) status = put_weights(replay, now);
    free(now);
    return status;
}

status_t replay_sample(replay_t *replay) {
    learner_t *learner = &replay->run.learner;
    const trajectory_t *t = &replay->trajectory;
    int64_t version = replay->run.batch.step - learner->config->grpo.staleness;
    TRY(ALLOCATE(&replay->sampled, t->tokens));
    status_t status = score_version(replay, version < 0 ? 0 : version);
    TRY(learner_agree(learner, status, "sampler's log-probs"));
    return comm_all_reduce_i64(learner->comm, replay->sampled, t->tokens, COMM_SUM, "sampler's log-probs");
}
