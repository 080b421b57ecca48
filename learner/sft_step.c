// One SFT step: its packs, losses, exact sums and update.
#include "learner/sft_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT_FIELDS = 9, MOST_REDOS = 24 };

// ---- one step ----

static status_t prepare(sft_run_t *run, int64_t step) {
    learner_t *learner = &run->learner;
    TRY(sft_batch_open(learner, step, &run->batch));
    int packs = run->batch.plan.packs;
    run->leaves = 0;
    TRY(ALLOCATE(&run->leaf, packs));
    TRY(ALLOCATE(&run->pack, packs));
    TRY(ALLOCATE(&run->slot, (size_t)run->batch.count * SLOT_FIELDS));
    for (int p = 0; p < packs; p++) {
        if (run->batch.owner[p] != comm_rank(learner->comm)) continue;
        run->pack[run->leaves] = p;
        TRY(sft_batch_leaf(learner, &run->batch, p, &run->leaf[run->leaves++]));
    }
    return STATUS_OK;
}

void sft_finish(sft_run_t *run) {
    sft_batch_close(&run->batch);
    free(run->leaf);
    free(run->pack);
    free(run->slot);
    run->leaf = NULL;
    run->pack = NULL;
    run->slot = NULL;
    if (run->learner.patches) patch_cache_release_all(run->learner.patches);
}

// Notes NaN and infinity in a sample's values.
static void find_values(sft_run_t *run, int pack, const packed_sample_t *sample, const float *logprob,
                        const float *dlogprob, int count, const sft_sums_t *sums) {
    for (int i = 0; i < count; i++) {
        if (isfinite(logprob[i]) && isfinite(dlogprob[i])) continue;
        finding_note(&run->finding, isfinite(logprob[i]) ? FINDING_LOSS : FINDING_LOGPROB, pack,
                     "pack %d, sample \"%s\", token %d of its response", pack, sample->id, i);
        return;
    }
    if (!isfinite(sums->loss))
        finding_note(&run->finding, FINDING_LOSS, pack, "pack %d, sample \"%s\"", pack, sample->id);
}

// Entries of a sequence lie together; their sample is found through the pack's items.
static status_t sft_loss(void *context, const launch_view_t *view) {
    sft_run_t *run = context;
    const batch_t *batch = view->batch;
    const pack_plan_t *plan = &run->batch.plan;
    int sequence_base = 0;
    for (int l = 0; l < batch->leaf_count; l++) {
        int number = run->leaf_base + view->first + l, pack = run->pack[number];
        int entry = batch->leaf_entry_start[l], end = batch->leaf_entry_start[l + 1];
        for (int s = 0; s < run->leaf[number].count; s++) {
            int item = plan->item[plan->pack_start[pack] + s], first = entry;
            const packed_sample_t *sample = &run->batch.sample[item];
            while (entry < end && batch->entry_sequence[entry] == sequence_base + s) entry++;
            const uint8_t *segments = sample->segments + (first < entry ? batch->entry_position[first] : 0);
            sft_sums_t sums = {0};
            sft_sample_loss(run->learner.config->sft.objective, run->weights, view->logprob + first, segments,
                            entry - first, view->dlogprob + first, &sums);
            find_values(run, pack, sample, view->logprob + first, view->dlogprob + first, entry - first, &sums);
            double *slot = run->slot + (size_t)item * SLOT_FIELDS;
            const double fields[SLOT_FIELDS] = {sums.loss,
                                                sums.think_loss,
                                                sums.answer_loss,
                                                (double)sums.samples,
                                                (double)sums.tokens,
                                                (double)sums.think_tokens,
                                                (double)sums.answer_tokens,
                                                (double)sums.empty_think,
                                                (double)sums.empty_answer};
            memcpy(slot, fields, sizeof(fields));
        }
        sequence_base += run->leaf[number].count;
    }
    return STATUS_OK;
}

static sft_sums_t add_slots(const sft_run_t *run) {
    sft_sums_t sums = {0};
    for (int i = 0; i < run->batch.count; i++) {
        const double *slot = run->slot + (size_t)i * SLOT_FIELDS;
        sums.loss += slot[0];
        sums.think_loss += slot[1];
        sums.answer_loss += slot[2];
        sums.samples += (int64_t)slot[3];
        sums.tokens += (int64_t)slot[4];
        sums.think_tokens += (int64_t)slot[5];
        sums.answer_tokens += (int64_t)slot[6];
        sums.empty_think += (int64_t)slot[7];
        sums.empty_answer += (int64_t)slot[8];
    }
    return sums;
}

// Computes this rank's packs and, together with the others, the step's sums.
static status_t compute(sft_run_t *run, sft_sums_t *sums) {
    learner_t *learner = &run->learner;
    launch_options_t options = {.temperature = 1.0f, .recording = true, .leaves = learner->config->sft.launch_leaves};
    TRY(learner_gradients(learner, run->leaf, run->leaves, &options, sft_loss, run, &run->finding, &run->wait_s));
    if (run->redos > 0) return STATUS_OK; // the losses are known already
    TRY(learner_share(learner, run->slot, (int64_t)run->batch.count * SLOT_FIELDS, "losses"));
    *sums = add_slots(run);
    return STATUS_OK;
}

// Which pack's gradient holds the NaN: each by itself again.
static status_t find_pack(sft_run_t *run) {
    learner_t *learner = &run->learner;
    launch_options_t options = {.temperature = 1.0f, .recording = true, .leaves = 1};
    status_t status = STATUS_OK;
    for (int i = 0; i < run->leaves && !status && !run->finding.kind; i++) {
        int tensor = -1, pack = run->pack[i];
        run->leaf_base = i;
        status = optimizer_begin(learner->optimizer);
        if (!status)
            status = launch_leaves(&learner->launcher, learner->model, &run->leaf[i], 1, &options, sft_loss, run);
        if (!status) status = optimizer_own_flag(learner->optimizer, &tensor);
        if (tensor < 0) continue;
        const packed_sample_t *sample = &run->batch.sample[run->batch.plan.item[run->batch.plan.pack_start[pack]]];
        finding_note(&run->finding, FINDING_GRADIENT, pack, "tensor %s, pack %d of %d samples from \"%s\" on",
                     optimizer_tensor(learner->optimizer, tensor)->name, pack, run->leaf[i].count, sample->id);
    }
    run->leaf_base = 0;
    TRY(learner_agree(learner, status, "looking for NaN"));
    return finding_agree(learner, &run->finding);
}

static status_t find_skipped(sft_run_t *run) {
    const char *name = optimizer_tensor(run->learner.optimizer, run->report.tensor)->name;
    if (run->report.weights) {
        finding_note(&run->finding, FINDING_WEIGHTS, -1, "tensor %s", name);
        return STATUS_OK;
    }
    TRY(find_pack(run));
    if (!run->finding.kind) finding_note(&run->finding, FINDING_GRADIENT, -1, "tensor %s", name);
    return STATUS_OK;
}

static status_t write_samples(void *context, store_t *store) {
    const sft_run_t *run = context;
    int64_t *number;
    TRY(ALLOCATE(&number, run->batch.count));
    for (int i = 0; i < run->batch.count; i++)
        number[i] =
            packed_order(run->learner.packed, (uint64_t)run->learner.config->seed, run->step * run->batch.count + i);
    status_t status = store_write(store, "samples", DTYPE_I64, number, run->batch.count, false);
    free(number);
    return status;
}

// What becomes of the step; the version counts it either way.
static status_t end_step(sft_run_t *run, int64_t step) {
    learner_t *learner = &run->learner;
    if (!run->finding.kind) {
        *optimizer_skipped_in_row(learner->optimizer) = 0;
        return STATUS_OK;
    }
    double rate = run->report.learning_rate;
    run->report = (optimizer_report_t){.skipped = true, .learning_rate = rate};
    if (run->offline) return STATUS_OK;
    bad_step_t bad = {.kind = "sft", .step = step, .finding = &run->finding, .inputs = write_samples, .context = run};
    return bad_step_handle(learner, &bad);
}

status_t sft_train_step(sft_run_t *run, int64_t step, sft_sums_t *sums) {
    learner_t *learner = &run->learner;
    run->weights = sft_weights_at(learner->config, step);
    run->step = step;
    run->finding = (finding_t){0};
    run->report = (optimizer_report_t){.learning_rate = optimizer_learning_rate(learner->config, step)};
    run->step_started = clock_seconds();
    run->wait_s = 0.0;
    launcher_clear_times(&learner->launcher);
    job_phase(learner->job, "preparing samples");
    TRY(learner_agree(learner, prepare(run, step), "samples"));
    run->data_s = clock_seconds() - run->step_started;
    double reduce_s = 0.0, hidden_s = 0.0;
    *sums = (sft_sums_t){0};
    for (run->redos = 0;; run->redos++) {
        TRY(compute(run, sums));
        if (run->finding.kind) return end_step(run, step);
        double normaliser = sft_normaliser(learner->config->sft.objective, sums);
        if (sums->tokens == 0) {
            FAIL(STATUS_INVALID, "no sample of step %lld has a response to learn; pack the data with assistant turns",
                 (long long)step);
        }
        job_phase(learner->job, "updating the weights");
        TRY(optimizer_step(learner->optimizer, normaliser, step, true, &run->report));
        reduce_s += run->report.reduce_s;
        hidden_s += run->report.hidden_s;
        if (run->report.skipped) TRY(find_skipped(run));
        if (!run->report.redo) break;
        if (run->redos == MOST_REDOS)
            FAIL(STATUS_FAILED, "the gradients of step %lld do not fit after %d tries", (long long)step, MOST_REDOS);
    }
    run->report.reduce_s = reduce_s;
    run->report.hidden_s = hidden_s;
    return end_step(run, step);
}
