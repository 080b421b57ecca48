// What the kernels of the head share as device code. Included by .cu files alone.
#ifndef KERNELS_CUDA_HEAD_TILES_H
#define KERNELS_CUDA_HEAD_TILES_H

#include "kernels/cuda/cuda_shim.h"
#include "kernels/cuda/head.h"

enum { HEAD_THREADS = 256, HEAD_WARPS = HEAD_THREADS / 32, HEAD_MOST_IDS = 1 << 24 };

static inline status_t head_check(const char *op, const matrix_t *hidden, const matrix_t *weight) {
    TRY(check_values(op, "hidden", hidden, hidden->rows, weight->columns));
    TRY(check_values(op, "the weight", weight, weight->rows, weight->columns));
    if (weight->rows < 1 || weight->rows > HEAD_MOST_IDS)
        FAIL(STATUS_INVALID, "%s: a vocabulary of %d ids is not in 1 .. %d", op, weight->rows, (int)HEAD_MOST_IDS);
    return STATUS_OK;
}

static inline size_t head_padded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

// ln x for x >= 1, the CPU kernels' formula (kernels/cpu/head.c): basic operations in double, rounded once.
static __device__ __forceinline__ float head_log(float x) {
    int exponent;
    double m = frexp((double)x, &exponent);
    if (!(x - x == 0.0f)) return x;
    if (m < 0.70710678118654752) {
        m = m * 2.0;
        exponent--;
    }
    double u = (m - 1.0) / (m + 1.0), square = u * u, series = 0.0;
    for (int n = 23; n >= 1; n -= 2) series = series * square + 1.0 / n;
    return (float)((double)exponent * 0.69314718055994531 + 2.0 * u * series);
}

static __device__ __forceinline__ float head_larger(float a, float b) {
    return a > b ? a : b;
}

// The sum of every thread's value, warps in order; the largest. The same in all threads of the block, which all call
// it.
// Threads from `busy` on hold 0, or -infinity: their warps have nothing to fold.
static __device__ __forceinline__ float head_block_sum(float value, int busy) {
    CUDA_SHARED(float, partial, [HEAD_WARPS]);
    if ((int)threadIdx.x / 32 * 32 < busy) value = cuda_warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = partial[0];
    for (int i = 1; i < HEAD_WARPS; i++) sum = __fadd_rn(sum, partial[i]);
    __syncthreads(); // the next call writes there
    return sum;
}
static __device__ __forceinline__ float head_block_max(float value, int busy) {
    CUDA_SHARED(float, largest, [HEAD_WARPS]);
    for (int bits = (int)threadIdx.x / 32 * 32 < busy ? 16 : 0; bits; bits /= 2)
        value = head_larger(value, __shfl_xor_sync(0xffffffffu, value, bits));
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = value;
    __syncthreads();
    float max = largest[0];
    for (int i = 1; i < HEAD_WARPS; i++) max = head_larger(max, largest[i]);
    __syncthreads();
    return max;
}

// One row's reductions over its groups: thread t takes the groups t, t + HEAD_THREADS, ... in order.
typedef struct head_sums {
    float max, sum, product;
} head_sums_t;
static __device__ __forceinline__ head_sums_t head_combine(const head_job_t &job, int row) {
    int64_t first = (int64_t)row * job.groups;
    float max = -INFINITY, sum = 0.0f, product = 0.0f;
    for (int g = (int)threadIdx.x; g < job.groups; g += HEAD_THREADS) max = head_larger(max, job.max[first + g]);
    max = head_block_max(max, job.groups);
    for (int g = (int)threadIdx.x; g < job.groups; g += HEAD_THREADS) {
        float away = __fadd_rn(job.max[first + g], -max), weight = cuda_exp(away), mass = job.sum[first + g];
        // e^-inf is 0, and so is what it weighs.
        float moved = weight > 0.0f ? __fmaf_rn(mass, away, job.product[first + g]) : 0.0f;
        sum = __fmaf_rn(weight, mass, sum);
        product = __fmaf_rn(weight, moved, product);
    }
    head_sums_t out;
    out.max = max;
    out.sum = head_block_sum(sum, job.groups);
    out.product = head_block_sum(product, job.groups);
    return out;
}

#endif
