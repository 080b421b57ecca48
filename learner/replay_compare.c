// What a repeated step computed against what its trajectories say, in causal order: the weights it begins with, the
// sampler's log-probs, then for each update log-probs, loss, ratio and gradient norm, then every trained tensor.
#include "learner/replay_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static replay_difference_t nothing(const replay_t *replay, const char *quantity) {
    return (replay_difference_t){.quantity = quantity,
                                 .step = replay->trajectory.step,
                                 .update = -1,
                                 .serial = -1,
                                 .sample = -1,
                                 .completion = -1,
                                 .token = -1,
                                 .elements = -1,
                                 .of = -1};
}

// Counts it, and keeps it while there is room. The first of a step's comes first.
static void add(replay_t *replay, const replay_difference_t *difference) {
    replay->differing++;
    if (replay->differences < REPLAY_DIFFERENCES) replay->difference[replay->differences++] = *difference;
}

static status_t name_completion(const replay_t *replay, int64_t group, int64_t completion,
                                replay_difference_t *difference) {
    const trajectory_t *t = &replay->trajectory;
    packed_sample_t sample;
    difference->serial = t->serial[group];
    difference->sample = t->sample[group];
    difference->completion = t->index[completion];
    TRY(packed_sample(replay->run.learner.packed, t->sample[group], &sample));
    snprintf(difference->id, sizeof(difference->id), "%s", sample.id);
    return STATUS_OK;
}

static void show_float(char out[64], uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    snprintf(out, 64, "%.9g (0x%08" PRIx32 ")", (double)value, bits);
}

static void show_double(char out[64], int64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof(value));
    snprintf(out, 64, "%.17g (0x%016" PRIx64 ")", value, (uint64_t)bits);
}

static void show_hash(char out[64], int64_t hash) {
    snprintf(out, 64, "%016" PRIx64, (uint64_t)hash);
}

// One difference a completion: its first token.
static status_t compare_sampler(replay_t *replay) {
    const trajectory_t *t = &replay->trajectory;
    for (int64_t g = 0; g < t->groups; g++) {
        for (int64_t c = t->completion_start[g]; c < t->completion_start[g + 1]; c++) {
            if (t->flags[c] & 2) continue; // excluded ones are not computed
            replay->completions++;
            replay->tokens += t->token_start[c + 1] - t->token_start[c];
            for (int64_t i = t->token_start[c]; i < t->token_start[c + 1]; i++) {
                uint32_t recorded;
                memcpy(&recorded, &t->logprob[i], sizeof(recorded));
                if (recorded == (uint32_t)replay->sampled[i]) continue;
                replay_difference_t difference = nothing(replay, "sampler's log-prob");
                TRY(name_completion(replay, g, c, &difference));
                difference.token = i - t->token_start[c];
                show_float(difference.recorded, recorded);
                show_float(difference.computed, (uint32_t)replay->sampled[i]);
                add(replay, &difference);
                break;
            }
        }
    }
    return STATUS_OK;
}

static status_t compare_logprobs(replay_t *replay, int64_t update) {
    const trajectory_t *t = &replay->trajectory;
    const config_t *config = replay->run.learner.config;
    int64_t slots = (int64_t)config->grpo.prompts * config->grpo.completions;
    for (int64_t g = 0; g < t->groups; g++) {
        for (int64_t c = t->completion_start[g]; c < t->completion_start[g + 1]; c++) {
            int64_t slot = update * slots + g * config->grpo.completions + t->index[c];
            int64_t recorded = t->logprob_hash[update * t->completions + c];
            int64_t computed = replay->run.record.share[slot * RECORD_FIELDS + RECORD_LOGPROB_HASH];
            if (recorded == computed) continue;
            replay_difference_t difference = nothing(replay, "learner's log-probs");
            TRY(name_completion(replay, g, c, &difference));
            difference.update = update + 1;
            show_hash(difference.recorded, recorded);
            show_hash(difference.computed, computed);
            add(replay, &difference);
        }
    }
    return STATUS_OK;
}

static void compare_real(replay_t *replay, const char *quantity, int64_t update, int64_t recorded, int64_t computed) {
    if (recorded == computed) return;
    replay_difference_t difference = nothing(replay, quantity);
    difference.update = update + 1;
    show_double(difference.recorded, recorded);
    show_double(difference.computed, computed);
    add(replay, &difference);
}

static status_t compare_updates(replay_t *replay) {
    const trajectory_t *t = &replay->trajectory;
    const grpo_record_t *record = &replay->run.record;
    if (t->updates != record->updates) {
        replay_difference_t difference = nothing(replay, "number of updates");
        snprintf(difference.recorded, sizeof(difference.recorded), "%" PRId64, t->updates);
        snprintf(difference.computed, sizeof(difference.computed), "%d", record->updates);
        add(replay, &difference);
        return STATUS_OK;
    }
    for (int64_t u = 0; u < t->updates; u++) {
        const grpo_update_record_t *update = &record->update[u];
        TRY(compare_logprobs(replay, u));
        compare_real(replay, "policy loss", u, t->policy_loss[u], trajectory_bits(update->policy_loss));
        compare_real(replay, "KL loss", u, t->kl_loss[u], trajectory_bits(update->kl_loss));
        compare_real(replay, "largest ratio deviation", u, t->deviation[u], trajectory_bits(update->ratio_deviation));
        compare_real(replay, "gradient norm", u, t->norm[u], trajectory_bits(update->gradient_norm));
        if ((t->skipped[u] != 0) == (update->skipped != 0)) continue;
        replay_difference_t difference = nothing(replay, "whether the update was skipped");
        difference.update = u + 1;
        snprintf(difference.recorded, sizeof(difference.recorded), "%s", t->skipped[u] ? "yes" : "no");
        snprintf(difference.computed, sizeof(difference.computed), "%s", update->skipped ? "yes" : "no");
        add(replay, &difference);
    }
    return STATUS_OK;
}

// How many elements of a tensor are not those of the step's checkpoint.
static status_t count_elements(replay_t *replay, store_t *checkpoint, int tensor, int64_t *out) {
    optimizer_t *optimizer = replay->run.learner.optimizer;
    char name[256];
    float *stored;
    const void *bytes;
    size_t size;
    int64_t count;
    *out = 0;
    snprintf(name, sizeof(name), "optimizer/master/%s", optimizer_tensor(optimizer, tensor)->name);
    TRY(store_read_all(checkpoint, name, DTYPE_F32, (void **)&stored, &count));
    status_t status = optimizer_tensor_bytes(optimizer, tensor, &bytes, &size);
    const trained_tensor_t *about = optimizer_tensor(optimizer, tensor);
    if (!status && count != about->elements)
        status = STATUS_NEW(STATUS_INVALID, "the checkpoint's tensor %s has another size", name);
    // What would be published from the stored master, against what is.
    bool rounded = replay->run.learner.model->dtype == DTYPE_BF16, half = about->parameter->value.dtype == DTYPE_BF16;
    for (int64_t i = 0; i < count && !status; i++) {
        uint16_t narrow = bf16_round(stored[i]);
        float wide = rounded ? bf16_widen(narrow) : stored[i];
        *out += half ? narrow != ((const uint16_t *)bytes)[i]
                     : memcmp(&wide, (const char *)bytes + (size_t)i * sizeof(wide), sizeof(wide)) != 0;
    }
    free(stored);
    return status;
}

static status_t compare_tensor(replay_t *replay, const char *quantity, int tensor, int64_t recorded, int64_t computed,
                               store_t *checkpoint) {
    const trained_tensor_t *about = optimizer_tensor(replay->run.learner.optimizer, tensor);
    int64_t elements = -1;
    if (checkpoint) TRY(count_elements(replay, checkpoint, tensor, &elements));
    if (recorded == computed && elements <= 0) return STATUS_OK;
    replay_difference_t difference = nothing(replay, recorded == computed ? "weights in the checkpoint" : quantity);
    snprintf(difference.tensor, sizeof(difference.tensor), "%s", about->name);
    show_hash(difference.recorded, recorded);
    show_hash(difference.computed, computed);
    difference.elements = elements;
    difference.of = about->elements;
    add(replay, &difference);
    return STATUS_OK;
}

static status_t compare_tensors(replay_t *replay, const char *quantity, const int64_t *recorded,
                                const int64_t *computed, store_t *checkpoint) {
    for (int i = 0; i < replay->trajectory.tensors; i++)
        TRY(compare_tensor(replay, quantity, i, recorded[i], computed[i], checkpoint));
    return STATUS_OK;
}

// Without one there is less to compare (NULL). One that is there and cannot be read is no agreement, unless it is that
// of a step on the way.
static status_t open_checkpoint(const replay_t *replay, store_t **out) {
    const learner_t *learner = &replay->run.learner;
    int64_t step = replay->trajectory.step;
    char path[4096];
    snprintf(path, sizeof(path), "%s/checkpoints/step-%lld.h5", learner->config->output, (long long)step);
    *out = NULL;
    if (access(path, F_OK) != 0) return STATUS_OK;
    status_t status = checkpoint_open_path(learner, path, "grpo", step, out);
    if (!status) return STATUS_OK;
    *out = NULL;
    if (status_kind(status) == STATUS_MEMORY) return status;
    if (step == replay->options->step)
        return status_context(status, "the checkpoint of step %lld cannot be compared; move it away to do without",
                              (long long)step);
    status_free(status);
    return STATUS_OK;
}

status_t replay_compare(replay_t *replay) {
    const trajectory_t *t = &replay->trajectory;
    const grpo_record_t *record = &replay->run.record;
    learner_t *learner = &replay->run.learner;
    store_t *checkpoint = NULL;
    if (t->tensors != optimizer_tensors(learner->optimizer))
        FAIL(STATUS_INVALID, "step %lld trained %lld tensors, this model has %d", (long long)t->step,
             (long long)t->tensors, optimizer_tensors(learner->optimizer));
    TRY(compare_tensors(replay, "weights before the step", t->before, record->before, NULL));
    TRY(compare_sampler(replay));
    TRY(compare_updates(replay));
    TRY(open_checkpoint(replay, &checkpoint));
    replay->checkpoint_compared = checkpoint != NULL;
    status_t status = compare_tensors(replay, "weights after the step", t->after, record->after, checkpoint);
    store_close(checkpoint);
    return status;
}
