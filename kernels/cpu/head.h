// The CPU device's head: token_logprobs and token_sample of the device table; kernels/device.h documents them. What it
// leaves open:
//
//  - Both make logits x = hidden W^T with the product of linear and y = x / temperature (a division: exact at 1), and
//    reduce a row by one routine: max m, s = sum of e^(y - m), t = sum of e^(y - m) (y - m), each over 16 lanes.
//    logprob = (y[target] - m) - ln s, lse = m + ln s, entropy = ln s - t / s. So a sampled token's log-prob has the
//    bits of its score, whatever stood beside it in either batch.
//  - token_logprobs: rows in any order, repeats allowed (dhidden adds in order of entries). A row whose logits are not
//  all finite gets NaN throughout.
//    token_sample: such a row is STATUS_FAILED, because no token can be drawn from it.
//  - The draw: with the masses e^(y - m) of the allowed ids (banned ones count 0), summed in blocks of 256 ids (16
//  lanes)
//    and over blocks in double precision, the target is uniform * total; inside the block that passes it ids are added
//    one by one in double. Should the block's end not pass it by rounding, its last id of non-zero mass is drawn.
//  - top_gap compares allowed ids only (what the draw chose from); with one allowed id it is infinite.
//  - Backward takes the rows' lse from forward: dlogit = (dlogprob * (onehot - e^(y - lse))) / temperature. A hidden
//    row's gradient is one sum over the vocabulary in order, then added to dhidden; a leaf's weight gradient is one sum
//    over its entries in order, quantised once. The vocabulary goes by blocks, so memory grows with the rows alone.
//  - hidden and weight in f32 or bf16; logits are fp32, never rounded to bf16; a vocabulary of at most 2^24 ids.
#ifndef KERNELS_CPU_HEAD_H
#define KERNELS_CPU_HEAD_H

#include "kernels/device.h"

status_t cpu_token_logprobs(device_t *device, const token_logprobs_args_t *args) STATUS_CHECKED;
status_t cpu_token_logprobs_backward(device_t *device, const token_logprobs_args_t *args,
                                     const token_logprobs_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_token_sample(device_t *device, const token_sample_args_t *args) STATUS_CHECKED;

#endif
