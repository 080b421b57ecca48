// Losses as functions of log-probs: each fills dL/dlogprob per entry, unnormalised; sums over leaves
// and ranks are divided once, at the optimizer, by globally summed counts.
#ifndef LEARNER_LOSS_H
#define LEARNER_LOSS_H

#include "common/config/config.h"

// ---- SFT. One sample's entries: logprob[i] with segment[i] (segment_t). ----
typedef struct sft_weights {
    double think, answer; // w_t, w_a at this step; ignored by vanilla
} sft_weights_t;
// w(tau) = w_end + (w_start - w_end) (1 + cos(pi tau / T)) / 2 with tau = completed steps, T = the configured total
// (SCALe, eq. of the schedule). FIXED uses the start values; VANILLA gives 1, 1.
sft_weights_t sft_weights_at(const config_t *config, int64_t completed_steps);
typedef struct sft_sums {           // of one rank; summed over ranks they give the step's loss and normaliser
    double loss;                    // sum over samples of the weighted sum (vanilla: sum over tokens)
    double think_loss, answer_loss; // sums over samples of the segment means
    int64_t samples, tokens, think_tokens, answer_tokens, empty_think, empty_answer;
} sft_sums_t;
// SCALe / fixed: dlogprob[i] = -w_s / n_s, loss += sum_s w_s * mean CE over segment s; an empty segment drops its term
// and is counted. Normaliser: samples. Vanilla: dlogprob[i] = -1 over all response tokens; normaliser: tokens.
void sft_sample_loss(config_objective_t objective, sft_weights_t weights, const float *logprob, const uint8_t *segment,
                     int count, float *dlogprob, sft_sums_t *sums);
// What the summed gradient is divided by.
double sft_normaliser(config_objective_t objective, const sft_sums_t *global);

// ---- GRPO. One completion's entries. ----
typedef struct grpo_options {
    double clip_low, clip_high, kl; // kl: coefficient of the k3 estimator; 0: off
    config_aggregation_t aggregation;
    int max_new_tokens;
} grpo_options_t;
typedef struct grpo_sums {
    double policy_loss, kl_loss; // sums under the aggregation's inner weights
    double ratio_max_deviation;
    int64_t tokens, clipped_low, clipped_high, sequences;
} grpo_sums_t;
// l_tok = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + kl * k3, rho = exp(logp - logp_old), k3 = exp(d) - d
// - 1 with d = logp_ref - logp. logp_ref may be NULL when kl is 0. Token weight: token_mean 1, sequence_mean 1/count,
// constant 1/max_new_tokens. ratio: [count] out, may be NULL.
void grpo_completion_loss(const grpo_options_t *options, double advantage, const float *logprob,
                          const float *logprob_old, const float *logprob_ref, int count, float *dlogprob, float *ratio,
                          grpo_sums_t *sums);
// token_mean: tokens counted; otherwise: sequences counted.
double grpo_normaliser(config_aggregation_t aggregation, int64_t sequences, int64_t tokens);

#endif
