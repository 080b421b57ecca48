// What a GRPO step says about itself. All numbers come from slots and counts, so that they do not depend on how many
// learners there are.
#include "learner/grpo_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct moments {
    double mean, deviation, most;
} moments_t;

static int64_t slots_of(const grpo_run_t *run) {
    return (int64_t)run->batch.plan->groups * run->learner.config->grpo.completions;
}

// Mean, unbiased deviation and maximum of a field over the completions that count.
static moments_t moments_of(const grpo_run_t *run, int field) {
    moments_t out = {0};
    int64_t count = 0;
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < slots_of(run); i++) {
        const double *slot = run->batch.slot + i * SLOT_FIELDS;
        if (slot[SLOT_COUNTED] == 0.0) continue;
        sum += slot[field];
        // A NaN is worse than any number.
        if (count == 0 || !(slot[field] <= out.most)) out.most = slot[field];
        count++;
    }
    if (count == 0) return out;
    out.mean = sum / (double)count;
    for (int64_t i = 0; i < slots_of(run); i++) {
        const double *slot = run->batch.slot + i * SLOT_FIELDS;
        if (slot[SLOT_COUNTED] != 0.0) squares += (slot[field] - out.mean) * (slot[field] - out.mean);
    }
    out.deviation = count > 1 ? sqrt(squares / (double)(count - 1)) : 0.0;
    return out;
}

static double total_of(const grpo_run_t *run, int field) {
    double sum = 0.0;
    for (int64_t i = 0; i < slots_of(run); i++) sum += run->batch.slot[i * SLOT_FIELDS + field];
    return sum;
}

// The smallest ratio that at least a share `q` of the tokens do not exceed.
static double ratio_quantile(const grpo_batch_t *batch, double q) {
    int64_t total = 0, seen = 0;
    for (int i = 0; i < RATIO_BINS; i++) total += batch->ratio_bin[i];
    int64_t wanted = (int64_t)ceil(q * (double)total);
    for (int i = 0; i < RATIO_BINS; i++) {
        seen += batch->ratio_bin[i];
        if (seen >= wanted && seen > 0) return exp((double)(i - RATIO_BIN_LIMIT) / RATIO_BINS_PER_UNIT);
    }
    return 1.0;
}

static void add_rewards(grpo_run_t *run) {
    static const struct {
        int field;
        const char *name;
    } parts[] = {{SLOT_REWARD, "reward"}, {SLOT_REWARD_TAG, "reward/tag"}, {SLOT_REWARD_ANSWER, "reward/answer"}};
    char name[64];
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++) {
        moments_t moments = moments_of(run, parts[i].field);
        metrics_add(run->metrics, parts[i].name, moments.mean);
        snprintf(name, sizeof(name), "%s_std", parts[i].name);
        metrics_add(run->metrics, name, moments.deviation);
    }
    const message_plan_t *plan = run->batch.plan;
    metrics_add(run->metrics, "advantage/std", moments_of(run, SLOT_ADVANTAGE).deviation);
    metrics_add(run->metrics, "advantage/max", moments_of(run, SLOT_ADVANTAGE).most);
    metrics_add(run->metrics, "groups", plan->groups);
    metrics_add(run->metrics, "groups/spreadless", (double)plan->spreadless);
    metrics_add(run->metrics, "completions/excluded", (double)plan->excluded);
    metrics_add(run->metrics, "completions/timeout", (double)plan->timeouts);
    metrics_add(run->metrics, "completions/error", (double)(plan->excluded - plan->timeouts));
}

static void add_policy(grpo_run_t *run, double normaliser) {
    const config_t *config = run->learner.config;
    const grpo_batch_t *batch = &run->batch;
    metrics_t *metrics = run->metrics;
    double updates = config->grpo.updates, tokens = batch->tokens > 0 ? (double)batch->tokens : 1.0;
    double policy = total_of(run, SLOT_POLICY_LOSS) / normaliser / updates;
    double kl = total_of(run, SLOT_KL_LOSS) / normaliser / updates;
    metrics_add(metrics, "loss", policy + kl);
    metrics_add(metrics, "loss/policy", policy);
    metrics_add(metrics, "loss/kl", kl);
    metrics_add(metrics, "ratio/p01", ratio_quantile(batch, 0.01));
    metrics_add(metrics, "ratio/p50", ratio_quantile(batch, 0.5));
    metrics_add(metrics, "ratio/p99", ratio_quantile(batch, 0.99));
    metrics_add(metrics, "ratio/max_deviation", moments_of(run, SLOT_RATIO_DEVIATION).most);
    metrics_add(metrics, "clip/low", total_of(run, SLOT_CLIPPED_LOW) / (tokens * updates));
    metrics_add(metrics, "clip/high", total_of(run, SLOT_CLIPPED_HIGH) / (tokens * updates));
    metrics_add(metrics, "entropy", total_of(run, SLOT_ENTROPY) / tokens);
    metrics_add(metrics, "logprob_max_abs_diff", moments_of(run, SLOT_LOGPROB_DIFFERENCE).most);
    moments_t length = moments_of(run, SLOT_LENGTH);
    metrics_add(metrics, "length/mean", length.mean);
    metrics_add(metrics, "length/max", length.most);
    metrics_add(metrics, "length/truncated", moments_of(run, SLOT_TRUNCATED).mean);
    metrics_add(metrics, "gradient_norm", run->report.gradient_norm);
    metrics_add(metrics, "learning_rate", run->report.learning_rate);
    metrics_add(metrics, "skipped", run->report.skipped);
    metrics_add(metrics, "redone", run->redos);
}

static void add_times(grpo_run_t *run, const message_statistics_t *rollout) {
    const grpo_times_t *times = &run->times;
    const message_plan_t *plan = run->batch.plan;
    metrics_t *metrics = run->metrics;
    double tokens = (double)run->batch.tokens;
    metrics_add(metrics, "time/step", clock_seconds() - times->step_started);
    metrics_add(metrics, "time/generate", plan->generate_s);
    metrics_add(metrics, "time/reward", plan->reward_s);
    metrics_add(metrics, "time/train", times->train_s);
    metrics_add(metrics, "time/sync", times->sync_s);
    metrics_add(metrics, "time/fetch", times->fetch_s);
    metrics_add(metrics, "time/data", times->data_s + run->learner.launcher.data_s);
    metrics_add(metrics, "time/forward", run->learner.launcher.forward_s);
    metrics_add(metrics, "time/backward", run->learner.launcher.backward_s);
    metrics_add(metrics, "time/wait", times->wait_s);
    metrics_add(metrics, "time/reduce", times->reduce_s);
    metrics_add(metrics, "time/reduce_hidden", times->hidden_s);
    metrics_add(metrics, "time/update", times->update_s);
    metrics_add(metrics, "time/idle_learner", times->idle_s);
    metrics_add(metrics, "time/idle_rollout", rollout->idle_s);
    metrics_add(metrics, "time/busy_rollout", rollout->busy_s);
    metrics_add(metrics, "time/sync_rollout", rollout->sync_s);
    if (plan->generate_s > 0.0) metrics_add(metrics, "tokens_per_second/generate", tokens / plan->generate_s);
    if (times->train_s > 0.0) {
        metrics_add(metrics, "tokens_per_second/train", tokens * run->learner.config->grpo.updates / times->train_s);
    }
    metrics_add(metrics, "tokens", tokens);
    metrics_add(metrics, "rollout/generated_tokens", (double)rollout->generated_tokens);
    metrics_add(metrics, "rollout/prefill_tokens", (double)rollout->prefill_tokens);
    metrics_add(metrics, "rollout/preemptions", (double)rollout->preemptions);
    metrics_add(metrics, "rollout/pages_saved", (double)rollout->pages_saved);
    if (rollout->decode_steps > 0)
        metrics_add(metrics, "rollout/decode_rows", (double)rollout->decode_rows / (double)rollout->decode_steps);
}

// Sampling and training must agree before the first update when both use the same weights; say so once if not.
static void tell_mismatch(grpo_run_t *run) {
    double difference = moments_of(run, SLOT_LOGPROB_DIFFERENCE).most;
    if (run->mismatch_told || run->learner.config->grpo.staleness > 0 || difference == 0.0) return;
    run->mismatch_told = true;
    fprintf(stderr,
            "poise: rollout and learner log-probs differ by up to %g: their kernels are not the same. Ratios are taken "
            "against the rollout's log-probs, which corrects for it; logprob_max_abs_diff follows it\n",
            difference);
}

static status_t write_line(grpo_run_t *run, int64_t completed) {
    const learner_t *learner = &run->learner;
    message_statistics_t rollout = grpo_take_statistics(run, completed - 1);
    double normaliser = grpo_normaliser(learner->config->grpo.aggregation, run->batch.sequences, run->batch.tokens);
    tell_mismatch(run);
    char detail[128];
    snprintf(detail, sizeof(detail), "reward %.3f, length %.1f", moments_of(run, SLOT_REWARD).mean,
             moments_of(run, SLOT_LENGTH).mean);
    progress_show(&run->progress, completed, detail);
    bool final = completed == learner->last;
    if (completed % learner->config->metrics.every != 0 && !final) return STATUS_OK;
    add_rewards(run);
    add_policy(run, normaliser > 0.0 ? normaliser : 1.0);
    add_times(run, &rollout);
    if (final) {
        char hash[65];
        TRY(optimizer_weights_hash(learner->optimizer, hash));
        metrics_add_text(run->metrics, "weights_hash", hash);
    }
    return metrics_write(run->metrics, completed);
}

status_t grpo_report(grpo_run_t *run, int64_t completed) {
    learner_t *learner = &run->learner;
    TRY(learner_share(learner, run->batch.slot, slots_of(run) * SLOT_FIELDS, "step numbers"));
    TRY(comm_all_reduce_i64(learner->comm, run->batch.ratio_bin, RATIO_BINS, COMM_SUM, "ratios"));
    return learner_note_metrics(learner, learner->first ? write_line(run, completed) : STATUS_OK);
}
