// The canaries: what each runs, what it measures and what must come out.
#include "launch/canary/canary.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STEPS = 64, SHORT_RUN = 3, SING_STEPS = 10, SING_ENDS = 3, START_STEPS = 100, COLOUR_COUNT = 6 };
// Shares of right answers: a model that sees its pictures has more than the first; one that is shown those of other
// questions has chance plus three standard errors at most.
static const double seeing = 0.75, chance = 1.0 / COLOUR_COUNT;

const char *canary_name(canary_kind_t kind) {
    static const char *const name[CANARIES] = {"lr0", "ratio", "length", "segments", "images"};
    return name[kind];
}

// ---- shared ----

static row_t *row_add(canary_t *c, const char *name, const char *expected) {
    row_t *row = &c->row[c->rows++];
    *row = (row_t){.name = name};
    snprintf(row->expected, sizeof(row->expected), "%s", expected);
    return row;
}

static void row_judge(row_t *row, bool passed) {
    row->verdict = passed ? VERDICT_PASS : VERDICT_FAIL;
}

// Rank 0 reads files that the others do not: its failure is everybody's.
static status_t agree(canary_t *c, status_t status) {
    int64_t failed = status != STATUS_OK;
    status_t shared = comm_all_reduce_i64(c->world, &failed, 1, COMM_MAX, "canary results");
    if (status || shared) return status_first(status, shared);
    if (failed) FAIL(STATUS_PEER, "rank 0 could not judge a canary; its message says why");
    return STATUS_OK;
}

static double most_of(const double *values, int count) {
    double most = 0;
    for (int i = 0; i < count; i++)
        if (!(values[i] <= most)) most = values[i]; // a NaN is worse than any number
    return most;
}

static status_t most_metric(const canary_t *c, const char *name, const char *metric, double *out) {
    double values[MOST_STEPS];
    int count;
    TRY(canary_metric(c, name, metric, values, MOST_STEPS, &count));
    *out = most_of(values, count);
    return STATUS_OK;
}

static double least_of(int a, int b) {
    return a < b ? a : b;
}

// Where the weights come from: the user's model, the one trained at the start, or random ones.
static void add_model(const canary_t *c, settings_t *s, bool trained) {
    if (c->file) return;
    if (trained)
        settings_add(s, "model=%s/start/model", c->folder);
    else
        settings_add(s, "init_std=0.05");
}

static void add_sft(const canary_t *c, settings_t *s, const char *own, const char *of_user, int samples) {
    settings_add(s, "data.train=%s/data/%s.h5", c->folder, c->file ? of_user : own);
    settings_add(s, "optimizer.steps=%d", SHORT_RUN);
    settings_add(s, "sft.batch=%d", c->file ? (int)least_of(least_of(c->config.sft.batch, 4), samples) : 8);
}

static void add_grpo(const canary_t *c, settings_t *s) {
    settings_add(s, "data.train=%s/data/%s.h5", c->folder, c->file ? "user" : "sing");
    settings_add(s, "grpo.reward_answer=0");
    settings_add(s, "grpo.excluded_limit=0");
    if (!c->file) {
        settings_add(s, "grpo.prompts=6");
        settings_add(s, "grpo.completions=8");
        settings_add(s, "grpo.max_new_tokens=24");
        return;
    }
    const config_t *config = &c->config;
    settings_add(s, "grpo.prompts=%d", (int)least_of(config->grpo.prompts, 4));
    settings_add(s, "grpo.completions=%d",
                 config->grpo.completions < 2 ? 2 : (int)least_of(config->grpo.completions, 4));
    settings_add(s, "grpo.max_new_tokens=%d", (int)least_of(config->grpo.max_new_tokens, 32));
}

static double moving_rate(const canary_t *c) {
    if (!c->file) return 1e-3;
    return c->config.optimizer.learning_rate > 0 ? c->config.optimizer.learning_rate : 1e-4;
}

// ---- lr0: a learning rate of 0 moves no bit ----

// Weight decay is on: it, too, is scaled by the rate. The fault is a rate that is not 0.
static void add_standing(const canary_t *c, settings_t *s) {
    settings_add(s, "optimizer.learning_rate=%s", c->injected[CANARY_LR0] ? "1e-6" : "0");
    settings_add(s, "optimizer.weight_decay=0.1");
}

static status_t judge_lr0(canary_t *c, bool grpo, const char *name, const learner_probe_t *before,
                          const learner_probe_t *after) {
    double pull, ratio = 0;
    TRY(most_metric(c, name, "gradient_norm", &pull));
    if (grpo) TRY(most_metric(c, name, "ratio/max_deviation", &ratio));
    bool weights = !strcmp(before->weights, after->weights) && after->completed == SHORT_RUN;
    bool logprobs = grpo ? ratio == 0 : before->logprobs == after->logprobs && before->tokens > 0;
    row_t *row = row_add(c, grpo ? "lr0 (grpo)" : "lr0 (sft)", "weights and log-probs equal in every bit");
    int used =
        snprintf(row->measured, sizeof(row->measured), "weights %.8s -> %.8s, ", before->weights, after->weights);
    size_t left = sizeof(row->measured) - (size_t)used;
    if (grpo)
        snprintf(row->measured + used, left, "ratios of second updates within %g of 1; gradients up to %.3g", ratio,
                 pull);
    else
        snprintf(row->measured + used, left, "%lld log-probs %s; gradients up to %.3g", (long long)after->tokens,
                 logprobs ? "equal" : "moved", pull);
    row_judge(row, weights && logprobs);
    if (pull == 0 && weights && logprobs) {
        row->verdict = VERDICT_SKIP;
        snprintf(row->measured, sizeof(row->measured), "no gradient in %d steps: nothing could have moved", SHORT_RUN);
    }
    return STATUS_OK;
}

static status_t check_lr0(canary_t *c, bool grpo) {
    const char *name = grpo ? "lr0-grpo" : "lr0-sft";
    learner_probe_t before = {0}, after = {0};
    settings_t s = {0};
    add_model(c, &s, true);
    add_standing(c, &s);
    if (grpo) {
        add_grpo(c, &s);
        settings_add(&s, "optimizer.steps=%d", SHORT_RUN);
        settings_add(&s, "grpo.updates=2"); // the second one's ratios compare log-probs before and after the first
        settings_add(&s, "grpo.reward_tag=1");
        settings_add(&s, "grpo.reward_length=1");
    } else {
        add_sft(c, &s, "traces", "user", c->samples);
    }
    status_t status = canary_probe(c, grpo, name, &s, &before);
    if (!status) status = canary_run(c, grpo ? RUN_GRPO : RUN_SFT, name, &s);
    if (!status) status = canary_probe(c, grpo, name, &s, &after);
    settings_free(&s);
    TRY(status);
    return agree(c, c->first ? judge_lr0(c, grpo, name, &before, &after) : STATUS_OK);
}

// ---- ratio: the first ratio of every batch is exactly 1 ----

static status_t judge_ratio(canary_t *c, const learner_probe_t *before, const learner_probe_t *after) {
    double ratio, difference, tokens[MOST_STEPS], sum = 0;
    int steps;
    TRY(most_metric(c, "ratio", "ratio/max_deviation", &ratio));
    TRY(most_metric(c, "ratio", "logprob_max_abs_diff", &difference));
    TRY(canary_metric(c, "ratio", "tokens", tokens, MOST_STEPS, &steps));
    for (int i = 0; i < steps; i++) sum += tokens[i];
    bool moved = strcmp(before->weights, after->weights) != 0;
    row_t *row = row_add(c, "ratio", "all exactly 1, no log-prob off by a bit, while weights move");
    snprintf(row->measured, sizeof(row->measured),
             "%.0f tokens in %d batches: ratios within %g of 1, log-probs within %g; weights %s", sum, steps, ratio,
             difference, moved ? "moved" : "did not move");
    row_judge(row, ratio == 0 && difference == 0 && moved && sum > 0);
    return STATUS_OK;
}

// The fault: the sampler's temperature differs from the learner's in its last bit. (It is the reward rank that tells
// workers their temperature.)
static status_t check_ratio(canary_t *c) {
    learner_probe_t before = {0}, after = {0};
    settings_t s = {0};
    add_model(c, &s, true);
    add_grpo(c, &s);
    settings_add(&s, "optimizer.steps=%d", SHORT_RUN + 1);
    settings_add(&s, "optimizer.learning_rate=%.17g", moving_rate(c));
    settings_add(&s, "optimizer.weight_decay=0.1"); // weights move even where all rewards are equal
    settings_add(&s, "grpo.updates=1");
    settings_add(&s, "grpo.reward_tag=1");
    settings_add(&s, "grpo.reward_length=1");
    status_t status = canary_probe(c, true, "ratio", &s, &before);
    if (c->injected[CANARY_RATIO] && comm_rank(c->world) == comm_size(c->world) - 1) {
        float temperature = c->file ? (float)c->config.grpo.temperature : 1.0f;
        settings_add(&s, "grpo.temperature=%.17g", (double)nextafterf(temperature, 1000.0f));
    }
    if (!status) status = canary_run(c, RUN_GRPO, "ratio", &s);
    if (c->injected[CANARY_RATIO] && comm_rank(c->world) == comm_size(c->world) - 1) free(s.text[--s.count]);
    if (!status) status = canary_probe(c, true, "ratio", &s, &after);
    settings_free(&s);
    TRY(status);
    return agree(c, c->first ? judge_ratio(c, &before, &after) : STATUS_OK);
}

// ---- length: what is paid for grows ----

static status_t judge_length(canary_t *c, const char *name, bool longer) {
    double length[MOST_STEPS], first = 0, last = 0;
    int steps;
    TRY(canary_metric(c, name, "length/mean", length, MOST_STEPS, &steps));
    for (int i = 0; i < SING_ENDS && i < steps; i++) {
        first += length[i] / SING_ENDS;
        last += length[steps - 1 - i] / SING_ENDS;
    }
    row_t *row = row_add(c, longer ? "length (longer)" : "length (shorter)",
                         longer ? "grows by a quarter or more" : "shrinks by a quarter or more");
    snprintf(row->measured, sizeof(row->measured), "mean length %.2f -> %.2f tokens in %d steps", first, last, steps);
    row_judge(row, longer ? last >= 1.25 * first : last <= 0.75 * first);
    return STATUS_OK;
}

// The fault: the reward's sign is the other one.
static status_t check_length(canary_t *c, bool longer) {
    const char *name = longer ? "length-longer" : "length-shorter";
    settings_t s = {0};
    add_model(c, &s, true);
    add_grpo(c, &s);
    settings_add(&s, "optimizer.steps=%d", SING_STEPS);
    settings_add(&s, "optimizer.learning_rate=1e-3");
    settings_add(&s, "grpo.reward_tag=0");
    settings_add(&s, "grpo.reward_length=%d", longer != c->injected[CANARY_LENGTH] ? 1 : -1);
    status_t status = canary_run(c, RUN_GRPO, name, &s);
    settings_free(&s);
    TRY(status);
    return agree(c, c->first ? judge_length(c, name, longer) : STATUS_OK);
}

// ---- segments: a weight of 0 leaves nothing of a segment in the gradient ----

static status_t segment_run(canary_t *c, const char *name, const char *data, int think, int answer) {
    settings_t s = {0};
    char user[32];
    snprintf(user, sizeof(user), "user-%s", data);
    char own[32];
    snprintf(own, sizeof(own), "traces-%s", data);
    add_model(c, &s, false);
    add_sft(c, &s, own, user, c->with_segments);
    settings_add(&s, "optimizer.learning_rate=%.17g", moving_rate(c));
    settings_add(&s, "sft.objective=fixed");
    settings_add(&s, "sft.think_start=%d", think);
    settings_add(&s, "sft.answer_start=%d", answer);
    status_t status = canary_run(c, RUN_SFT, name, &s);
    settings_free(&s);
    return status;
}

static status_t judge_segments(canary_t *c) {
    static const char *const run[] = {"segments-0-1", "segments-answer", "segments-1-0", "segments-think"};
    char hash[4][65];
    for (int i = 0; i < 4; i++) TRY(canary_weights(c, run[i], hash[i]));
    for (int i = 0; i < 2; i++) {
        const char *weighted = hash[2 * i], *alone = hash[2 * i + 1], *other = hash[2 * (1 - i)];
        row_t *row =
            row_add(c, i ? "segments (1,0)" : "segments (0,1)",
                    i ? "the bits of learning the think tokens alone" : "the bits of learning the answer alone");
        snprintf(row->measured, sizeof(row->measured),
                 "weights %.8s; that segment alone %.8s, the other weighting %.8s", weighted, alone, other);
        row_judge(row, !strcmp(weighted, alone) && strcmp(weighted, other) != 0);
    }
    return STATUS_OK;
}

// Weights (0, 1) on all tokens against (1, 1) on data in which the think tokens are not there to learn, and the other
// way round: equal only if not one bit of the other segment's gradient is in the sum. The fault: the weights swapped.
static status_t check_segments(canary_t *c) {
    if (c->file && !c->with_segments) {
        if (!c->first) return STATUS_OK;
        row_t *row = row_add(c, "segments", "each alone");
        snprintf(row->measured, sizeof(row->measured), "no sample of data.train has a think and an answer segment");
        row->verdict = VERDICT_SKIP;
        return STATUS_OK;
    }
    int think = c->injected[CANARY_SEGMENTS] ? 1 : 0;
    TRY(segment_run(c, "segments-0-1", "both", think, 1 - think));
    TRY(segment_run(c, "segments-answer", "answer", 1, 1));
    TRY(segment_run(c, "segments-1-0", "both", 1 - think, think));
    TRY(segment_run(c, "segments-think", "think", 1, 1));
    return agree(c, c->first ? judge_segments(c) : STATUS_OK);
}

// ---- images: without its picture a question is answered by chance ----

static status_t judge_images(canary_t *c) {
    double own, other, count;
    TRY(canary_summary(c, "images-own", "accuracy", &own));
    TRY(canary_summary(c, "images-shuffled", "accuracy", &other));
    TRY(canary_summary(c, "images-own", "n", &count));
    double most = chance + 3 * sqrt(chance * (1 - chance) / count);
    row_t *row = row_add(c, "images", "");
    snprintf(row->expected, sizeof(row->expected), "%.0f %% or more; shuffled chance (%.0f %%), %.0f %% at most",
             100 * seeing, 100 * chance, 100 * most);
    snprintf(row->measured, sizeof(row->measured), "%.0f questions: %.1f %% right, with shuffled images %.1f %%", count,
             100 * own, 100 * other);
    row_judge(row, own >= seeing && other <= most);
    return STATUS_OK;
}

static status_t eval_one(canary_t *c, const char *name, int shuffle) {
    settings_t s = {0};
    add_model(c, &s, true);
    settings_add(&s, "data.test=%s/data/test.h5", c->folder);
    settings_add(&s, "eval.max_new_tokens=32");
    settings_add(&s, "eval.shuffle_images=%d", shuffle);
    status_t status = canary_run(c, RUN_EVAL, name, &s);
    settings_free(&s);
    return status;
}

// The fault: the images of the shuffled evaluation stay where they are.
static status_t check_images(canary_t *c) {
    TRY(eval_one(c, "images-own", 0));
    TRY(eval_one(c, "images-shuffled", c->injected[CANARY_IMAGES] ? 0 : 1));
    return agree(c, c->first ? judge_images(c) : STATUS_OK);
}

// ---- all ----

// A model that names the colours it sees and sings songs of all lengths.
static status_t train_start(canary_t *c) {
    settings_t s = {0};
    add_model(c, &s, false);
    settings_add(&s, "data.train=%s/data/start.h5", c->folder);
    settings_add(&s, "optimizer.steps=%d", START_STEPS);
    settings_add(&s, "optimizer.learning_rate=3e-3");
    settings_add(&s, "sft.objective=vanilla");
    settings_add(&s, "sft.batch=32");
    settings_add(&s, "save_model=true");
    status_t status = canary_run(c, RUN_SFT, "start", &s);
    settings_free(&s);
    return status;
}

status_t canary_check(canary_t *c) {
    bool trained =
        c->wanted[CANARY_LR0] || c->wanted[CANARY_RATIO] || c->wanted[CANARY_LENGTH] || c->wanted[CANARY_IMAGES];
    if (!c->file && trained) TRY(train_start(c));
    if (c->wanted[CANARY_LR0]) TRY(check_lr0(c, false));
    if (c->wanted[CANARY_LR0]) TRY(check_lr0(c, true));
    if (c->wanted[CANARY_RATIO]) TRY(check_ratio(c));
    if (c->wanted[CANARY_LENGTH]) TRY(check_length(c, true));
    if (c->wanted[CANARY_LENGTH]) TRY(check_length(c, false));
    if (c->wanted[CANARY_SEGMENTS]) TRY(check_segments(c));
    if (c->wanted[CANARY_IMAGES]) TRY(check_images(c));
    return STATUS_OK;
}
