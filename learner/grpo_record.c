// What a step computed, to the bit: kept for its trajectories, so that a replay can be compared with it.
#include "learner/trajectory.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static int64_t slots_of(const grpo_run_t *run) {
    return (int64_t)run->learner.config->grpo.prompts * run->learner.config->grpo.completions;
}

static int64_t *fields_of(const grpo_run_t *run, int update, int64_t slot) {
    return run->record.share + ((int64_t)update * slots_of(run) + slot) * RECORD_FIELDS;
}

status_t grpo_record_open(grpo_run_t *run) {
    grpo_record_t *record = &run->record;
    int tensors = optimizer_tensors(run->learner.optimizer), updates = run->learner.config->grpo.updates;
    TRY(ALLOCATE(&record->update, updates));
    TRY(ALLOCATE(&record->share, (int64_t)updates * slots_of(run) * RECORD_FIELDS));
    TRY(ALLOCATE(&record->before, tensors));
    TRY(ALLOCATE(&record->after, tensors));
    record->hashed_version = -1;
    record->on = true;
    return STATUS_OK;
}

void grpo_record_close(grpo_run_t *run) {
    grpo_record_t *record = &run->record;
    free(record->update);
    free(record->share);
    free(record->before);
    free(record->after);
    *record = (grpo_record_t){0};
}

status_t grpo_record_begin(grpo_run_t *run) {
    grpo_record_t *record = &run->record;
    const learner_t *learner = &run->learner;
    if (!record->on) return STATUS_OK;
    size_t tensors = (size_t)optimizer_tensors(learner->optimizer);
    record->updates = 0;
    memset(record->share, 0,
           (size_t)learner->config->grpo.updates * (size_t)slots_of(run) * RECORD_FIELDS * sizeof(int64_t));
    if (!learner->first) return STATUS_OK;
    if (record->hashed_version != learner->model->version)
        TRY(optimizer_tensor_hashes(learner->optimizer, record->after));
    memcpy(record->before, record->after, tensors * sizeof(int64_t));
    return STATUS_OK;
}

void grpo_record_completion(grpo_run_t *run, const grpo_leaf_t *leaf, int completion, const grpo_sums_t *sums,
                            const float *logprob) {
    if (!run->record.on) return;
    const message_group_item_t *item = &leaf->group->item[leaf->item[completion]];
    int64_t *fields =
        fields_of(run, run->update, (int64_t)leaf->number * run->learner.config->grpo.completions + item->index);
    fields[RECORD_POLICY_LOSS] = trajectory_bits(sums->policy_loss);
    fields[RECORD_KL_LOSS] = trajectory_bits(sums->kl_loss);
    fields[RECORD_RATIO_DEVIATION] = trajectory_bits(sums->ratio_max_deviation);
    fields[RECORD_LOGPROB_HASH] = (int64_t)XXH3_64bits(logprob, (size_t)item->length * sizeof(float));
}

void grpo_record_update(grpo_run_t *run) {
    if (!run->record.on) return;
    run->record.update[run->record.updates++] =
        (grpo_update_record_t){.gradient_norm = run->report.gradient_norm, .skipped = run->report.skipped};
}

status_t grpo_record_end(grpo_run_t *run, double normaliser) {
    grpo_record_t *record = &run->record;
    learner_t *learner = &run->learner;
    if (!record->on) return STATUS_OK;
    int64_t slots = slots_of(run);
    TRY(comm_all_reduce_i64(learner->comm, record->share,
                            (int64_t)learner->config->grpo.updates * slots * RECORD_FIELDS, COMM_SUM, "step record"));
    for (int u = 0; u < record->updates; u++) {
        grpo_update_record_t *update = &record->update[u];
        for (int64_t slot = 0; slot < slots; slot++) {
            const int64_t *fields = fields_of(run, u, slot);
            double deviation = trajectory_real(fields[RECORD_RATIO_DEVIATION]);
            update->policy_loss += trajectory_real(fields[RECORD_POLICY_LOSS]);
            update->kl_loss += trajectory_real(fields[RECORD_KL_LOSS]);
            // A NaN is worse than any number.
            if (!(deviation <= update->ratio_deviation)) update->ratio_deviation = deviation;
        }
        update->policy_loss /= normaliser;
        update->kl_loss /= normaliser;
    }
    if (!learner->first) return STATUS_OK;
    record->hashed_version = -1;
    TRY(optimizer_tensor_hashes(learner->optimizer, record->after));
    record->hashed_version = learner->model->version;
    return STATUS_OK;
}
