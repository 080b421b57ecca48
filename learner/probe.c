#include "learner/probe.h"

#include "learner/checkpoint.h"
#include "learner/sft_batch.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

typedef struct probe {
    sft_batch_t batch;
    leaf_t *leaf; // this rank's packs
    int *pack;    // their numbers
    int leaves;
    int64_t *hash; // [2 * samples] of each sample's log-probs, then how many: set by the rank that computed them
} probe_t;

static status_t take_logprobs(void *context, const launch_view_t *view) {
    probe_t *probe = context;
    const batch_t *batch = view->batch;
    const pack_plan_t *plan = &probe->batch.plan;
    int sequence_base = 0;
    for (int l = 0; l < batch->leaf_count; l++) {
        int number = view->first + l, entry = batch->leaf_entry_start[l], end = batch->leaf_entry_start[l + 1];
        for (int s = 0; s < probe->leaf[number].count; s++) {
            int item = plan->item[plan->pack_start[probe->pack[number]] + s], first = entry;
            while (entry < end && batch->entry_sequence[entry] == sequence_base + s) entry++;
            size_t bytes = (size_t)(entry - first) * sizeof(*view->logprob);
            probe->hash[2 * item] = (int64_t)XXH3_64bits(view->logprob + first, bytes);
            probe->hash[2 * item + 1] = entry - first;
        }
        sequence_base += probe->leaf[number].count;
    }
    return STATUS_OK;
}

static status_t compute(learner_t *learner, probe_t *probe) {
    TRY(sft_batch_open(learner, 0, &probe->batch));
    int packs = probe->batch.plan.packs;
    TRY(ALLOCATE(&probe->leaf, packs));
    TRY(ALLOCATE(&probe->pack, packs));
    TRY(ALLOCATE(&probe->hash, 2 * (size_t)probe->batch.count));
    for (int p = 0; p < packs; p++) {
        if (probe->batch.owner[p] != comm_rank(learner->comm)) continue;
        probe->pack[probe->leaves] = p;
        TRY(sft_batch_leaf(learner, &probe->batch, p, &probe->leaf[probe->leaves++]));
    }
    launch_options_t options = {.temperature = 1.0f, .leaves = learner->config->sft.launch_leaves};
    return launch_leaves(&learner->launcher, learner->model, probe->leaf, probe->leaves, &options, take_logprobs,
                         probe);
}

static status_t probe_logprobs(learner_t *learner, probe_t *probe, learner_probe_t *out) {
    TRY(learner_plan_memory(learner, false, false));
    TRY(learner_agree(learner, compute(learner, probe), "log-probs of the first samples"));
    TRY(comm_all_reduce_i64(learner->comm, probe->hash, 2 * (int64_t)probe->batch.count, COMM_SUM, "log-prob hashes"));
    out->logprobs = XXH3_64bits(probe->hash, 2 * (size_t)probe->batch.count * sizeof(*probe->hash));
    for (int i = 0; i < probe->batch.count; i++) out->tokens += probe->hash[2 * i + 1];
    return STATUS_OK;
}

status_t learner_probe(job_t *job, bool grpo, learner_probe_t *out) {
    learner_t learner;
    probe_t probe = {0};
    *out = (learner_probe_t){0};
    TRY(learner_open(job, grpo, &learner));
    status_t status = checkpoint_resume(&learner, grpo ? "grpo" : "sft", NULL, NULL, &out->completed);
    if (!status) status = optimizer_weights_hash(learner.optimizer, out->weights);
    if (!status && !grpo) status = probe_logprobs(&learner, &probe, out);
    sft_batch_close(&probe.batch);
    free(probe.leaf);
    free(probe.pack);
    free(probe.hash);
    learner_close(&learner);
    return status;
}
