// The head of the CUDA member: token_logprobs, its backward, and token_sample, which share the kernels that make logits
// and reduce them, so that a sampled token's log-prob has the bits of its score.
//
//  - Logits are sums as kernels/cuda/gemm.h makes them, fp32, then y = logit / temperature. The block that makes a tile
//    of them reduces it at once: for each row and group of HEAD_GROUP ids the largest y, the sum of e^(y - max) and of
//    e^(y - max) (y - max). A second kernel puts a row's groups together in a fixed order. Scoring never stores a
//    logit.
//  - A row whose logits are not all finite gets NaN throughout; token_sample cannot draw from it (CUDA_FAULT_DRAW).
//  - token_sample keeps the logits of a chunk of rows. The draw is the CPU's, in its order (kernels/cpu/head.h).
//  - Backward makes the logits again, a block of ids for all entries, and turns them into
//    dlogit = (dlogprob * (onehot - e^(y - lse))) / temperature as they are made.
#ifndef KERNELS_CUDA_HEAD_H
#define KERNELS_CUDA_HEAD_H

#include "kernels/cuda/gemm.h"

enum { HEAD_GROUP = 32 };

typedef struct head_job {
    gemm_operand_t hidden, weight; // weight: the ids first .. first + ids - 1
    int rows, first, ids;
    float temperature;
    const float *temperatures; // NULL, or one a row; 0 counts as 1
    const int32_t *targets;    // NULL, or one a row
    // Scoring: [rows, groups] each; target_logit [rows] where there are targets.
    int groups;
    float *max, *sum, *product, *target_logit;
    // [rows, stride]: the logits, NULL where nobody wants them; a multiple of four apart.
    float *logits;
    int64_t stride;
    // The gradient's factors, one a row; with dlogprob `logits` become dlogits and nothing is scored.
    const float *lse, *dlogprob;
} head_job_t;

static inline int head_groups(int ids) {
    return (ids + HEAD_GROUP - 1) / HEAD_GROUP;
}

#ifdef __cplusplus
extern "C" {
#endif
status_t CUDA_NAME(head_logits)(device_t *device, const head_job_t *job) STATUS_CHECKED;
// The ops with a chunk of so many rows (backward: ids, made a multiple of 32); 0: as many as fit. No bit depends on it.
status_t CUDA_NAME(head_score)(device_t *device, const token_logprobs_args_t *args, int chunk) STATUS_CHECKED;
status_t CUDA_NAME(head_backward)(device_t *device, const token_logprobs_args_t *args,
                                  const token_logprobs_gradients_t *gradients, int chunk) STATUS_CHECKED;
status_t CUDA_NAME(head_sample)(device_t *device, const token_sample_args_t *args, int chunk) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif
#endif
