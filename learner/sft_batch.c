#include "learner/sft_batch.h"

#include <stdlib.h>

static status_t choose(learner_t *learner, int64_t step, sft_batch_t *batch, int *length) {
    const config_t *config = learner->config;
    for (int i = 0; i < batch->count; i++) {
        int64_t index = packed_order(learner->packed, (uint64_t)config->seed, step * batch->count + i);
        packed_sample_t *sample = &batch->sample[i];
        TRY(packed_sample(learner->packed, index, sample));
        if (sample->length > config->sft.pack_tokens) {
            FAIL(STATUS_INVALID,
                 "sample \"%s\" has %d tokens but sft.pack_tokens is %d; raise it, or pack the data with a lower "
                 "--max-length",
                 sample->id, sample->length, config->sft.pack_tokens);
        }
        length[i] = sample->length;
        batch->tokens += sample->length;
    }
    TRY(pack_plan_make(length, batch->count, config->sft.pack_tokens, &batch->plan));
    TRY(ALLOCATE(&batch->owner, batch->plan.packs));
    TRY(ALLOCATE(&batch->leaf_memory, 2 * (size_t)batch->plan.packs));
    return balance_owners(batch->plan.tokens, batch->plan.packs, comm_size(learner->comm), batch->owner);
}

status_t sft_batch_open(learner_t *learner, int64_t step, sft_batch_t *out) {
    *out = (sft_batch_t){.count = learner->config->sft.batch};
    int *length = NULL;
    status_t status = ALLOCATE(&length, out->count);
    if (!status) status = ALLOCATE(&out->sample, out->count);
    if (!status) status = choose(learner, step, out, length);
    free(length);
    if (status) sft_batch_close(out);
    return status;
}

void sft_batch_close(sft_batch_t *batch) {
    for (int i = 0; i < batch->leaf_count; i++) free(batch->leaf_memory[i]);
    free(batch->leaf_memory);
    free(batch->owner);
    pack_plan_free(&batch->plan);
    free(batch->sample);
    *batch = (sft_batch_t){0};
}

status_t sft_batch_leaf(learner_t *learner, sft_batch_t *batch, int pack, leaf_t *out) {
    const pack_plan_t *plan = &batch->plan;
    int first = plan->pack_start[pack], count = plan->pack_start[pack + 1] - first, images = 0;
    for (int i = 0; i < count; i++) images += batch->sample[plan->item[first + i]].image_count;
    batch_sequence_t *sequence;
    const image_patches_t **patches;
    TRY(ALLOCATE(&sequence, count));
    batch->leaf_memory[batch->leaf_count++] = sequence;
    TRY(ALLOCATE(&patches, images));
    batch->leaf_memory[batch->leaf_count++] = patches;
    for (int i = 0; i < count; i++) {
        const packed_sample_t *sample = &batch->sample[plan->item[first + i]];
        TRY(learner_sample_images(learner, sample, patches));
        sequence[i] = (batch_sequence_t){.tokens = sample->tokens,
                                         .length = sample->length,
                                         .shared_with = -1,
                                         .images = patches,
                                         .image_count = sample->image_count,
                                         .first_target = sample->prompt_length};
        patches += sample->image_count;
    }
    *out = (leaf_t){sequence, count};
    return STATUS_OK;
}
