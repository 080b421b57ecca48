// The samples of one SFT step: which, how they are packed, and who computes which pack.
#ifndef LEARNER_SFT_BATCH_H
#define LEARNER_SFT_BATCH_H

#include "learner/setup.h"

// The same on all ranks; only `leaf` memory differs.
typedef struct sft_batch {
    int count;
    packed_sample_t *sample; // [count] in order of their serial numbers
    pack_plan_t plan;        // over the whole step, before ranks are assigned
    int *owner;              // [plan.packs]
    int64_t tokens;          // of the whole step
    void **leaf_memory;      // what sft_batch_leaf made
    int leaf_count;
} sft_batch_t;

// Step `step` takes the samples of serial numbers step * batch .. step * batch + batch - 1. Not collective.
status_t sft_batch_open(learner_t *learner, int64_t step, sft_batch_t *out) STATUS_CHECKED;
void sft_batch_close(sft_batch_t *batch);
// Pack `pack` as a gradient leaf; decodes its images. Valid until sft_batch_close and patch_cache_release_all.
status_t sft_batch_leaf(learner_t *learner, sft_batch_t *batch, int pack, leaf_t *out) STATUS_CHECKED;

#endif
