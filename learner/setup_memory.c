// The worst launches that the data can ask for, found by reading lengths, measured by dry runs.
#include "common/comm/memory_share.h"
#include "learner/setup.h"
#include "learner/sft_batch.h"

#include <stdlib.h>
#include <string.h>

enum { CANDIDATES = 3 };

// What a sample costs by three rules: rows, image rows, and both with image rows weighing more (the vision part keeps
// several rows of patches for each).
static void costs_of(const learner_t *learner, const packed_sample_t *sample, int length, int64_t cost[CANDIDATES]) {
    const image_rules_t *rules = &learner->model->config.image;
    int64_t image_rows = 0;
    for (int i = 0; i < length && sample->image_count; i++) image_rows += sample->tokens[i] == rules->image_token;
    cost[0] = length;
    cost[1] = image_rows;
    cost[2] = length + 6 * image_rows;
}

// ---- SFT: over the packs of one epoch ----

typedef struct sft_worst {
    int64_t cost[CANDIDATES];
    int64_t step[CANDIDATES];
    int pack[CANDIDATES]; // the pack of that step
} sft_worst_t;

static status_t sft_scan_step(learner_t *learner, int64_t step, sft_worst_t *worst) {
    sft_batch_t batch;
    TRY(sft_batch_open(learner, step, &batch));
    for (int p = 0; p < batch.plan.packs; p++) {
        int64_t cost[CANDIDATES] = {0};
        for (int i = batch.plan.pack_start[p]; i < batch.plan.pack_start[p + 1]; i++) {
            const packed_sample_t *sample = &batch.sample[batch.plan.item[i]];
            int64_t one[CANDIDATES];
            costs_of(learner, sample, sample->length, one);
            for (int c = 0; c < CANDIDATES; c++) cost[c] += one[c];
        }
        for (int c = 0; c < CANDIDATES; c++) {
            if (cost[c] <= worst->cost[c]) continue;
            worst->cost[c] = cost[c];
            worst->step[c] = step;
            worst->pack[c] = p;
        }
    }
    sft_batch_close(&batch);
    return STATUS_OK;
}

static status_t sft_measure(learner_t *learner, int64_t step, int pack) {
    sft_batch_t batch;
    TRY(sft_batch_open(learner, step, &batch));
    // A launch of nothing but the worst pack is an upper bound for any launch of as many packs.
    int leaves =
        learner->config->sft.launch_leaves < batch.plan.packs ? learner->config->sft.launch_leaves : batch.plan.packs;
    leaf_t *leaf = NULL;
    status_t status = ALLOCATE(&leaf, leaves);
    if (!status) status = sft_batch_leaf(learner, &batch, pack, &leaf[0]);
    for (int i = 1; i < leaves && !status; i++) leaf[i] = leaf[0];
    launch_options_t options = {.temperature = 1.0f, .recording = true, .leaves = leaves};
    if (!status) status = launcher_measure(&learner->launcher, learner->model, leaf, leaves, &options);
    free(leaf);
    sft_batch_close(&batch);
    if (learner->patches) patch_cache_release_all(learner->patches);
    return status;
}

static status_t sft_plan(learner_t *learner) {
    int64_t batch = learner->config->sft.batch, steps = (packed_count(learner->packed) + batch - 1) / batch + 1;
    if (steps > learner->last) steps = learner->last;
    sft_worst_t worst = {0};
    for (int64_t step = 0; step < steps; step++) TRY(sft_scan_step(learner, step, &worst));
    for (int c = 0; c < CANDIDATES; c++) {
        if (worst.cost[c] > 0) TRY(sft_measure(learner, worst.step[c], worst.pack[c]));
    }
    return STATUS_OK;
}

// ---- GRPO: the longest prompts with all completions at their budget ----

static status_t grpo_measure(learner_t *learner, int64_t index) {
    const config_t *config = learner->config;
    packed_sample_t sample;
    TRY(packed_sample(learner->packed, index, &sample));
    int completions = config->grpo.completions, budget = config->grpo.max_new_tokens;
    int leaves = config->grpo.launch_leaves < config->grpo.prompts ? config->grpo.launch_leaves : config->grpo.prompts;
    int length = sample.prompt_length + budget;
    int32_t *tokens = NULL;
    batch_sequence_t *sequence = NULL;
    const image_patches_t **images = NULL;
    leaf_t *leaf = NULL;
    status_t status = ALLOCATE(&tokens, length);
    if (!status) status = ALLOCATE(&sequence, completions + 1);
    if (!status) status = ALLOCATE(&images, sample.image_count);
    if (!status) status = ALLOCATE(&leaf, leaves);
    if (!status) status = learner_sample_images(learner, &sample, images);
    if (!status) {
        const model_config_t *model = &learner->model->config;
        memcpy(tokens, sample.tokens, (size_t)sample.prompt_length * sizeof(*tokens));
        for (int i = sample.prompt_length; i < length; i++) {
            tokens[i] = model->eos_token_count > 0 ? model->eos_tokens[0] : 0;
        }
        sequence[0] = (batch_sequence_t){tokens, sample.prompt_length, -1, 0,
                                         images, sample.image_count,   0,  sample.prompt_length};
        for (int i = 1; i <= completions; i++) {
            sequence[i] = (batch_sequence_t){tokens, length, 0, sample.prompt_length, NULL, 0, 0, sample.prompt_length};
        }
        for (int i = 0; i < leaves; i++) leaf[i] = (leaf_t){sequence, completions + 1};
        launch_options_t options = {
            .temperature = (float)config->grpo.temperature, .entropy = true, .recording = true, .leaves = leaves};
        status = launcher_measure(&learner->launcher, learner->model, leaf, leaves, &options);
    }
    free(leaf);
    free(images);
    free(sequence);
    free(tokens);
    if (learner->patches) patch_cache_release_all(learner->patches);
    return status;
}

static status_t grpo_plan(learner_t *learner) {
    int64_t worst[CANDIDATES] = {0}, index[CANDIDATES] = {0};
    for (int64_t i = 0; i < packed_count(learner->packed); i++) {
        packed_sample_t sample;
        TRY(packed_sample(learner->packed, i, &sample));
        int64_t cost[CANDIDATES];
        costs_of(learner, &sample, sample.prompt_length, cost);
        for (int c = 0; c < CANDIDATES; c++) {
            if (cost[c] <= worst[c]) continue;
            worst[c] = cost[c];
            index[c] = i;
        }
    }
    for (int c = 0; c < CANDIDATES; c++) {
        if (worst[c] > 0 && (c == 0 || index[c] != index[0])) TRY(grpo_measure(learner, index[c]));
    }
    return STATUS_OK;
}

status_t learner_plan_memory(learner_t *learner, bool grpo, bool plan_only) {
    status_t status = grpo ? grpo_plan(learner) : sft_plan(learner);
    if (learner->patches)
        ledger_note_host(learner->device, LEDGER_IMAGES, (int64_t)learner->config->data.patch_cache_mb << 20);
    if (grpo) ledger_plan(learner->device, LEDGER_OTHER, LEDGER_PROBE_BYTES); // the kernel fingerprint
    tape_plan(learner->device, &learner->launcher.memory, LEDGER_VALUES);
    TRY(learner_agree(learner, status, "memory plan"));
    // Before anything is taken for it: ranks that share a device could otherwise each find room that the other takes.
    // A dry run leaves it to the whole job's table (memory_print).
    status = plan_only ? STATUS_OK : memory_agree(learner->comm, learner->device);
    if (!status && !plan_only) status = launcher_ready(&learner->launcher);
    return learner_agree(learner, status, "memory plan");
}
