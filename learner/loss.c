#include "learner/loss.h"

#include "common/text/answer.h"

#include <math.h>

static double cosine_weight(double start, double end, double tau) {
    return end + 0.5 * (start - end) * (1.0 + cos(3.14159265358979323846 * tau));
}

sft_weights_t sft_weights_at(const config_t *config, int64_t completed_steps) {
    if (config->sft.objective == OBJECTIVE_VANILLA) return (sft_weights_t){1.0, 1.0};
    if (config->sft.objective == OBJECTIVE_FIXED) {
        return (sft_weights_t){config->sft.think_start, config->sft.answer_start};
    }
    int64_t total = config->optimizer.steps > 0 ? config->optimizer.steps : 1;
    double tau = (double)completed_steps / (double)total;
    if (tau < 0.0) tau = 0.0;
    if (tau > 1.0) tau = 1.0;
    return (sft_weights_t){cosine_weight(config->sft.think_start, config->sft.think_end, tau),
                           cosine_weight(config->sft.answer_start, config->sft.answer_end, tau)};
}

void sft_sample_loss(config_objective_t objective, sft_weights_t weights, const float *logprob, const uint8_t *segment,
                     int count, float *dlogprob, sft_sums_t *sums) {
    double nll[SEGMENT_COUNT] = {0};
    int64_t tokens[SEGMENT_COUNT] = {0};
    for (int i = 0; i < count; i++) {
        int which = segment[i] < SEGMENT_COUNT ? segment[i] : SEGMENT_NONE;
        nll[which] -= (double)logprob[i];
        tokens[which]++;
    }
    double mean[SEGMENT_COUNT] = {0}, gradient[SEGMENT_COUNT] = {0};
    double weight[SEGMENT_COUNT] = {[SEGMENT_THINK] = weights.think, [SEGMENT_ANSWER] = weights.answer};
    for (int which = SEGMENT_THINK; which <= SEGMENT_ANSWER; which++) {
        if (tokens[which]) mean[which] = nll[which] / (double)tokens[which];
        if (objective == OBJECTIVE_VANILLA) {
            sums->loss += nll[which];
            gradient[which] = -1.0;
        } else if (tokens[which]) {
            sums->loss += weight[which] * mean[which];
            // A weight of zero must give +0, so that the segment is absent from the gradient to the bit.
            gradient[which] = weight[which] == 0.0 ? 0.0 : -weight[which] / (double)tokens[which];
        }
    }
    for (int i = 0; i < count; i++) {
        dlogprob[i] = (float)gradient[segment[i] < SEGMENT_COUNT ? segment[i] : SEGMENT_NONE];
    }
    sums->think_loss += mean[SEGMENT_THINK];
    sums->answer_loss += mean[SEGMENT_ANSWER];
    sums->samples++;
    sums->tokens += tokens[SEGMENT_THINK] + tokens[SEGMENT_ANSWER];
    sums->think_tokens += tokens[SEGMENT_THINK];
    sums->answer_tokens += tokens[SEGMENT_ANSWER];
    sums->empty_think += tokens[SEGMENT_THINK] == 0;
    sums->empty_answer += tokens[SEGMENT_ANSWER] == 0;
}

double sft_normaliser(config_objective_t objective, const sft_sums_t *global) {
    return (double)(objective == OBJECTIVE_VANILLA ? global->tokens : global->samples);
}

static double token_weight(const grpo_options_t *options, int count) {
    switch (options->aggregation) {
    case AGGREGATION_SEQUENCE_MEAN:
        return 1.0 / (double)count;
    case AGGREGATION_CONSTANT:
        return 1.0 / (double)(options->max_new_tokens > 0 ? options->max_new_tokens : 1);
    case AGGREGATION_TOKEN_MEAN:
    default:
        return 1.0;
    }
}

void grpo_completion_loss(const grpo_options_t *options, double advantage, const float *logprob,
                          const float *logprob_old, const float *logprob_ref, int count, float *dlogprob, float *ratio,
                          grpo_sums_t *sums) {
    sums->sequences++;
    sums->tokens += count;
    if (count <= 0) return;
    double weight = token_weight(options, count), policy = 0.0, divergence = 0.0;
    double low = 1.0 - options->clip_low, high = 1.0 + options->clip_high;
    for (int i = 0; i < count; i++) {
        double rho = exp((double)logprob[i] - (double)logprob_old[i]), gradient = 0.0;
        if (ratio) ratio[i] = (float)rho;
        if (fabs(rho - 1.0) > sums->ratio_max_deviation) sums->ratio_max_deviation = fabs(rho - 1.0);
        if (advantage != 0.0) {
            double clipped = rho < low ? low : rho > high ? high : rho;
            // The clipped branch is flat: its gradient is zero exactly where it is the smaller one.
            bool flat_high = advantage > 0.0 && rho > high, flat_low = advantage < 0.0 && rho < low;
            policy -= (flat_high || flat_low ? clipped : rho) * advantage;
            if (!flat_high && !flat_low) gradient -= rho * advantage;
            sums->clipped_high += flat_high;
            sums->clipped_low += flat_low;
        }
        if (options->kl != 0.0 && logprob_ref) {
            double delta = (double)logprob_ref[i] - (double)logprob[i], growth = expm1(delta);
            divergence += growth - delta;
            gradient -= options->kl * growth;
        }
        // Adding +0 turns a negative zero into a positive one.
        dlogprob[i] = (float)(gradient * weight + 0.0);
    }
    sums->policy_loss += policy * weight;
    sums->kl_loss += options->kl * divergence * weight;
}

double grpo_normaliser(config_aggregation_t aggregation, int64_t sequences, int64_t tokens) {
    return (double)(aggregation == AGGREGATION_TOKEN_MEAN ? tokens : sequences);
}
