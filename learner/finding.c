#include "learner/finding.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAD_STEPS_KEPT = 8 };

const char *finding_name(finding_kind_t kind) {
    static const char *const names[] = {
        "nothing",  "a reward or advantage", "a log-prob of the sampler",   "a log-prob of the reference", "a log-prob",
        "the loss", "the gradient",          "the weights after the update"};
    return names[kind];
}

void finding_note(finding_t *first, finding_kind_t kind, int leaf, const char *format, ...) {
    bool earlier = !first->kind || kind < first->kind || (kind == first->kind && leaf < first->leaf);
    if (!earlier) return;
    va_list arguments;
    first->kind = kind;
    first->leaf = leaf;
    va_start(arguments, format);
    vsnprintf(first->where, sizeof(first->where), format, arguments);
    va_end(arguments);
}

status_t finding_agree(learner_t *learner, finding_t *finding) {
    // Kind, leaf, rank; a leaf is computed by one rank, so that the rank decides nothing but who tells.
    int rank = comm_rank(learner->comm);
    int64_t key = (int64_t)finding->kind << 52 | (int64_t)(finding->leaf + 1) << 24 | rank;
    if (!finding->kind) key = INT64_MAX;
    finding->rank = rank;
    TRY(comm_all_reduce_i64(learner->comm, &key, 1, COMM_MIN, "looking for NaN"));
    if (key == INT64_MAX) return STATUS_OK;
    return comm_broadcast(learner->comm, finding, sizeof(*finding), (int)(key & 0xffffff), "naming a NaN");
}

void finding_sentence(const finding_t *finding, char *out, size_t size) {
    int length = snprintf(out, size, "NaN or infinity in %s: %s", finding_name(finding->kind), finding->where);
    if (finding->leaf >= 0 && length > 0 && (size_t)length < size)
        snprintf(out + length, size - (size_t)length, ", learner %d", finding->rank);
}

// ---- saving ----

void bad_step_path(const char *output, int64_t completed, char path[4096]) {
    snprintf(path, 4096, "%s/bad_steps/step-%lld.h5", output, (long long)completed);
}

static status_t write_inputs(void *context, store_t *store) {
    const bad_step_t *bad = context;
    char sentence[640];
    finding_sentence(bad->finding, sentence, sizeof(sentence));
    TRY(store_write_number(store, "bad/update", bad->update));
    TRY(store_write_number(store, "bad/finding", bad->finding->kind));
    TRY(store_write_string(store, "bad/sentence", sentence));
    return bad->inputs(bad->context, store);
}

static status_t remove_old(const config_t *config) {
    int64_t *steps;
    size_t count;
    status_t status = STATUS_OK;
    TRY(checkpoint_list(config->output, "bad_steps", &steps, &count));
    for (size_t i = BAD_STEPS_KEPT; i < count; i++) {
        char path[4096];
        bad_step_path(config->output, steps[i], path);
        (void)unlink(path); // a file more is no harm
    }
    free(steps);
    return status;
}

static status_t save(learner_t *learner, const bad_step_t *bad) {
    char path[4096];
    bad_step_path(learner->config->output, bad->step + 1, path);
    TRY(checkpoint_write(learner, path, bad->kind, bad->step, write_inputs, (void *)(uintptr_t)bad));
    return learner->first ? remove_old(learner->config) : STATUS_OK;
}

// ---- deciding ----

static status_t stop(learner_t *learner, const bad_step_t *bad, const char *sentence, const char *why) {
    // Weights that this step's earlier updates have moved belong to no checkpoint.
    if (bad->update == 0 && bad->step > 0)
        TRY(checkpoint_save(learner, bad->kind, bad->step, true, bad->versions, bad->context));
    FAIL(STATUS_FAILED,
         "step %lld: %s; %s. Its inputs are in bad_steps/step-%lld.h5: \"poise replay %s --bad-step %lld\" shows where "
         "it "
         "begins",
         (long long)bad->step + 1, sentence, why, (long long)bad->step + 1, learner->config->output,
         (long long)bad->step + 1);
}

status_t bad_step_handle(learner_t *learner, const bad_step_t *bad) {
    const config_t *config = learner->config;
    int64_t *row = optimizer_skipped_in_row(learner->optimizer);
    char sentence[640];
    finding_sentence(bad->finding, sentence, sizeof(sentence));
    TRY(save(learner, bad));
    if (config->optimizer.nonfinite == NONFINITE_STOP)
        return stop(learner, bad, sentence, "the run stops; optimizer.nonfinite: skip would leave the step out");
    if (*row >= config->optimizer.nonfinite_limit) {
        char why[160];
        snprintf(why, sizeof(why), "%lld steps in a row were skipped before it (optimizer.nonfinite_limit)",
                 (long long)*row);
        return stop(learner, bad, sentence, why);
    }
    ++*row;
    if (learner->first)
        fprintf(stderr, "poise: step %lld is skipped: %s (its inputs: bad_steps/step-%lld.h5)\n",
                (long long)bad->step + 1, sentence, (long long)bad->step + 1);
    return STATUS_OK;
}
