// One GRPO step's groups as gradient leaves, and the loss over them.
#include "learner/grpo_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- checking what came ----

static status_t check_item(const grpo_run_t *run, const message_group_t *group, int at) {
    const message_group_item_t *item = &group->item[at];
    const config_t *config = run->learner.config;
    bool fits = item->index >= 0 && item->index < config->grpo.completions && item->length >= 1 &&
                item->length <= config->grpo.max_new_tokens;
    for (int i = 0; i < at && fits; i++) fits = group->item[i].index != item->index;
    for (int t = 0; t < item->length && fits; t++) {
        fits = item->tokens[t] >= 0 && item->tokens[t] < run->learner.model->config.vocabulary;
    }
    if (!fits) {
        FAIL(STATUS_PEER, "completion %d of group %llu is malformed (length %d)", item->index,
             (unsigned long long)group->serial, item->length);
    }
    return STATUS_OK;
}

static status_t check_group(const grpo_run_t *run, const message_group_t *group) {
    const config_t *config = run->learner.config;
    int64_t version = run->batch.step - config->grpo.staleness;
    if (version < 0) version = 0;
    if (group->version != version) {
        FAIL(STATUS_PEER, "group %llu of step %lld was sampled from weights %lld instead of %lld",
             (unsigned long long)group->serial, (long long)run->batch.step, (long long)group->version,
             (long long)version);
    }
    if (group->count != config->grpo.completions || group->sample < 0 ||
        group->sample >= packed_count(run->learner.packed)) {
        FAIL(STATUS_PEER, "group %llu has %d completions of sample %lld", (unsigned long long)group->serial,
             group->count, (long long)group->sample);
    }
    for (int i = 0; i < group->count; i++) TRY(check_item(run, group, i));
    return STATUS_OK;
}

// ---- laying out ----

static status_t allocate_leaf(grpo_leaf_t *leaf, bool reference) {
    const message_group_t *group = leaf->group;
    size_t tokens = 0, entries = 0;
    for (int i = 0; i < group->count; i++) {
        if (group->item[i].excluded) continue;
        tokens += (size_t)leaf->sample.prompt_length + (size_t)group->item[i].length;
        entries += (size_t)group->item[i].length;
    }
    TRY(ALLOCATE(&leaf->sequence, group->count + 1));
    TRY(ALLOCATE(&leaf->item, group->count));
    TRY(ALLOCATE(&leaf->tokens, tokens));
    TRY(ALLOCATE(&leaf->images, leaf->sample.image_count));
    return reference ? ALLOCATE(&leaf->reference, entries) : STATUS_OK;
}

static status_t lay_out(grpo_run_t *run, grpo_leaf_t *leaf) {
    learner_t *learner = &run->learner;
    const message_group_t *group = leaf->group;
    TRY(packed_sample(learner->packed, group->sample, &leaf->sample));
    const packed_sample_t *sample = &leaf->sample;
    if (sample->prompt_length < 1) FAIL(STATUS_INVALID, "sample \"%s\" has no prompt", sample->id);
    TRY(allocate_leaf(leaf, learner->reference != NULL));
    TRY(learner_sample_images(learner, sample, leaf->images));
    int prompt = sample->prompt_length;
    leaf->sequence[0] = (batch_sequence_t){.tokens = sample->tokens,
                                           .length = prompt,
                                           .shared_with = -1,
                                           .images = leaf->images,
                                           .image_count = sample->image_count,
                                           .first_target = prompt};
    int32_t *tokens = leaf->tokens;
    for (int i = 0; i < group->count; i++) {
        const message_group_item_t *item = &group->item[i];
        if (item->excluded) continue;
        memcpy(tokens, sample->tokens, (size_t)prompt * sizeof(*tokens));
        memcpy(tokens + prompt, item->tokens, (size_t)item->length * sizeof(*tokens));
        leaf->item[leaf->completions++] = i;
        leaf->sequence[leaf->completions] = (batch_sequence_t){.tokens = tokens,
                                                               .length = prompt + item->length,
                                                               .shared_with = 0,
                                                               .shared_length = prompt,
                                                               .first_target = prompt};
        tokens += prompt + item->length;
    }
    return STATUS_OK;
}

static double *slot_of(const grpo_run_t *run, const grpo_leaf_t *leaf, int completion) {
    const message_group_item_t *item = &leaf->group->item[leaf->item[completion]];
    return run->batch.slot +
           ((size_t)leaf->number * (size_t)run->learner.config->grpo.completions + (size_t)item->index) * SLOT_FIELDS;
}

static void fill_slots(grpo_run_t *run, const grpo_leaf_t *leaf) {
    for (int c = 0; c < leaf->completions; c++) {
        const message_group_item_t *item = &leaf->group->item[leaf->item[c]];
        double *slot = slot_of(run, leaf, c);
        slot[SLOT_COUNTED] = 1.0;
        slot[SLOT_LENGTH] = item->length;
        slot[SLOT_REWARD] = item->reward;
        slot[SLOT_REWARD_TAG] = item->reward_tag;
        slot[SLOT_REWARD_ANSWER] = item->reward_answer;
        slot[SLOT_ADVANTAGE] = item->advantage;
        slot[SLOT_TRUNCATED] = item->truncated;
    }
}

// NaN or infinity in what came.
static void find_inputs(grpo_run_t *run, const grpo_leaf_t *leaf) {
    for (int c = 0; c < leaf->completions; c++) {
        const message_group_item_t *item = &leaf->group->item[leaf->item[c]];
        if (!isfinite(item->reward) || !isfinite(item->advantage))
            finding_note(&run->finding, FINDING_REWARD, leaf->number,
                         "group %llu (sample \"%s\"), completion %d, reward %g, advantage %g",
                         (unsigned long long)leaf->group->serial, leaf->sample.id, item->index, item->reward,
                         item->advantage);
        for (int t = 0; t < item->length; t++) {
            if (isfinite(item->logprobs[t])) continue;
            finding_note(&run->finding, FINDING_SAMPLER, leaf->number,
                         "group %llu (sample \"%s\"), completion %d, token %d", (unsigned long long)leaf->group->serial,
                         leaf->sample.id, item->index, t);
            break;
        }
    }
}

static status_t prepare_own(grpo_run_t *run) {
    grpo_batch_t *batch = &run->batch;
    const message_plan_t *plan = batch->plan;
    TRY(ALLOCATE(&batch->own, plan->groups));
    TRY(ALLOCATE(&batch->leaf, plan->groups));
    TRY(ALLOCATE(&batch->slot, (size_t)plan->groups * (size_t)run->learner.config->grpo.completions * SLOT_FIELDS));
    TRY(ALLOCATE(&batch->ratio_bin, RATIO_BINS));
    for (int i = 0; i < plan->groups; i++) {
        if (!batch->group[i].type) continue;
        TRY(check_group(run, &batch->group[i].group));
        if (plan->owner[i] != run->learner.job->role_index) continue;
        grpo_leaf_t *leaf = &batch->own[batch->own_count++]; // counted first: closing frees what was made
        *leaf = (grpo_leaf_t){.group = &batch->group[i].group, .number = i};
        TRY(lay_out(run, leaf));
        fill_slots(run, leaf);
        find_inputs(run, leaf);
        if (leaf->completions == 0) continue;
        for (int c = 0; c < leaf->completions; c++) {
            batch->sequences++;
            batch->tokens += leaf->group->item[leaf->item[c]].length;
        }
    }
    // Groups without a completion that counts are not computed.
    int kept = 0;
    for (int i = 0; i < batch->own_count; i++) {
        grpo_leaf_t swap = batch->own[kept];
        if (batch->own[i].completions == 0) continue;
        batch->own[kept] = batch->own[i];
        batch->own[i] = swap;
        batch->leaf[kept] = (leaf_t){batch->own[kept].sequence, batch->own[kept].completions + 1};
        kept++;
    }
    return STATUS_OK;
}

static int computed_leaves(const grpo_batch_t *batch) {
    int count = 0;
    while (count < batch->own_count && batch->own[count].completions > 0) count++;
    return count;
}

status_t grpo_batch_prepare(grpo_run_t *run) {
    learner_t *learner = &run->learner;
    grpo_batch_t *batch = &run->batch;
    double started = clock_seconds();
    run->finding = (finding_t){0};
    TRY(learner_agree(learner, prepare_own(run), "groups"));
    batch->leaf_count = computed_leaves(batch);
    int64_t counts[2] = {batch->sequences, batch->tokens};
    TRY(comm_all_reduce_i64(learner->comm, counts, 2, COMM_SUM, "counts"));
    batch->sequences = counts[0];
    batch->tokens = counts[1];
    if (batch->sequences != batch->plan->sequences || batch->tokens != batch->plan->completion_tokens) {
        FAIL(STATUS_PEER, "the plan of step %lld counts %lld completions of %lld tokens, the groups hold %lld of %lld",
             (long long)batch->step, (long long)batch->plan->sequences, (long long)batch->plan->completion_tokens,
             (long long)batch->sequences, (long long)batch->tokens);
    }
    run->times.data_s += clock_seconds() - started;
    return STATUS_OK;
}

void grpo_batch_close(grpo_run_t *run) {
    grpo_batch_t *batch = &run->batch;
    for (int i = 0; i < batch->own_count; i++) {
        grpo_leaf_t *leaf = &batch->own[i];
        free(leaf->sequence);
        free(leaf->item);
        free(leaf->tokens);
        free(leaf->reference);
        free(leaf->images);
    }
    for (int i = 0; batch->plan && batch->group && i < batch->plan->groups; i++) {
        if (batch->group[i].type) message_free(&batch->group[i]);
    }
    if (batch->plan) message_free(&batch->plan_message);
    free(batch->group);
    free(batch->own);
    free(batch->leaf);
    free(batch->slot);
    free(batch->ratio_bin);
    *batch = (grpo_batch_t){0};
    if (run->learner.patches) patch_cache_release_all(run->learner.patches);
}

// ---- losses ----

typedef status_t (*completion_visit_t)(grpo_run_t *run, const launch_view_t *view, grpo_leaf_t *leaf, int completion,
                                       int entry, int reference);

// Entries lie leaf by leaf, completion by completion; prompts have none.
static status_t visit(grpo_run_t *run, const launch_view_t *view, completion_visit_t each) {
    const batch_t *batch = view->batch;
    for (int l = 0; l < batch->leaf_count; l++) {
        grpo_leaf_t *leaf = &run->batch.own[run->leaf_base + view->first + l];
        int entry = batch->leaf_entry_start[l], reference = 0;
        for (int c = 0; c < leaf->completions; c++) {
            int length = leaf->group->item[leaf->item[c]].length;
            TRY(each(run, view, leaf, c, entry, reference));
            entry += length;
            reference += length;
        }
        if (entry != batch->leaf_entry_start[l + 1])
            FAIL(STATUS_FAILED, "group %llu has %d log-probs instead of %d", (unsigned long long)leaf->group->serial,
                 batch->leaf_entry_start[l + 1] - batch->leaf_entry_start[l], reference);
    }
    return STATUS_OK;
}

// Notes the first NaN or infinity of a completion's values.
static void find_values(grpo_run_t *run, finding_kind_t kind, const grpo_leaf_t *leaf, int completion,
                        const float *value) {
    const message_group_item_t *item = &leaf->group->item[leaf->item[completion]];
    for (int t = 0; t < item->length; t++) {
        if (isfinite(value[t])) continue;
        finding_note(&run->finding, kind, leaf->number, "group %llu (sample \"%s\"), completion %d, token %d",
                     (unsigned long long)leaf->group->serial, leaf->sample.id, item->index, t);
        return;
    }
}

static status_t keep_reference(grpo_run_t *run, const launch_view_t *view, grpo_leaf_t *leaf, int completion, int entry,
                               int reference) {
    int length = leaf->group->item[leaf->item[completion]].length;
    find_values(run, FINDING_REFERENCE, leaf, completion, view->logprob + entry);
    memcpy(leaf->reference + reference, view->logprob + entry, (size_t)length * sizeof(float));
    return STATUS_OK;
}

status_t grpo_reference(void *context, const launch_view_t *view) {
    return visit(context, view, keep_reference);
}

static void count_ratios(grpo_batch_t *batch, const float *logprob, const float *old, int length) {
    for (int i = 0; i < length; i++) {
        double log_ratio = ((double)logprob[i] - (double)old[i]) * RATIO_BINS_PER_UNIT;
        if (log_ratio > RATIO_BIN_LIMIT) log_ratio = RATIO_BIN_LIMIT;
        if (!(log_ratio > -RATIO_BIN_LIMIT)) log_ratio = -RATIO_BIN_LIMIT;
        batch->ratio_bin[RATIO_BIN_LIMIT + (int)lrint(log_ratio)]++;
    }
}

static status_t completion_loss(grpo_run_t *run, const launch_view_t *view, grpo_leaf_t *leaf, int completion,
                                int entry, int reference) {
    const config_t *config = run->learner.config;
    const message_group_item_t *item = &leaf->group->item[leaf->item[completion]];
    const float *logprob = view->logprob + entry;
    grpo_options_t options = {config->grpo.clip_low, config->grpo.clip_high, config->grpo.kl, config->grpo.aggregation,
                              config->grpo.max_new_tokens};
    grpo_sums_t sums = {0};
    grpo_completion_loss(&options, item->advantage, logprob, item->logprobs,
                         leaf->reference ? leaf->reference + reference : NULL, item->length, view->dlogprob + entry,
                         NULL, &sums);
    find_values(run, FINDING_LOGPROB, leaf, completion, logprob);
    find_values(run, FINDING_LOSS, leaf, completion, view->dlogprob + entry);
    if (!isfinite(sums.policy_loss) || !isfinite(sums.kl_loss))
        finding_note(&run->finding, FINDING_LOSS, leaf->number, "group %llu (sample \"%s\"), completion %d",
                     (unsigned long long)leaf->group->serial, leaf->sample.id, item->index);
    if (!run->count_metrics) return STATUS_OK;
    grpo_record_completion(run, leaf, completion, &sums, logprob);
    double *slot = slot_of(run, leaf, completion);
    slot[SLOT_POLICY_LOSS] += sums.policy_loss;
    slot[SLOT_KL_LOSS] += sums.kl_loss;
    slot[SLOT_CLIPPED_LOW] += (double)sums.clipped_low;
    slot[SLOT_CLIPPED_HIGH] += (double)sums.clipped_high;
    if (sums.ratio_max_deviation > slot[SLOT_RATIO_DEVIATION]) slot[SLOT_RATIO_DEVIATION] = sums.ratio_max_deviation;
    count_ratios(&run->batch, logprob, item->logprobs, item->length);
    if (!run->first_update) return STATUS_OK;
    for (int i = 0; i < item->length; i++) {
        double difference = fabs((double)logprob[i] - (double)item->logprobs[i]);
        // NaN compares false: it must not pass for agreement.
        if (!(difference <= slot[SLOT_LOGPROB_DIFFERENCE])) slot[SLOT_LOGPROB_DIFFERENCE] = difference;
        if (view->entropy) slot[SLOT_ENTROPY] += (double)view->entropy[entry + i];
    }
    return STATUS_OK;
}

status_t grpo_loss(void *context, const launch_view_t *view) {
    return visit(context, view, completion_loss);
}
