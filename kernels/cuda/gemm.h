// Matrix products of the CUDA member, for the .cu files of linear and the head. A product's sums are made by one of
// three engines, chosen by the storage of its operands alone, never by their sizes:
//
//  - both operands bf16 with k along their rows (x W^T): tensor cores, k by steps of 16 in order;
//  - an fp32 gradient and a bf16 matrix with k down its rows (dy W, dy^T x): tensor cores, the gradient as two bf16
//    parts (kernels/cuda/gemm_split.h), k by steps of 16 in order, counted from where the product or the leaf begins;
//  - everything else: fp32 fused multiply-adds, k = 0 .. K-1 in order, from +0: the CPU kernels' bits.
//
// A second product of a job is made by the first one's engine: the callers give no others.
//
// One block makes one tile of the result and goes through all of k by itself. The tile's size follows the problem's, so
// that small products fill the GPU too; no bit depends on it.
#ifndef KERNELS_CUDA_GEMM_H
#define KERNELS_CUDA_GEMM_H

#include "kernels/cuda/cuda_device.h"

// A stored matrix, as a kernel reads it.
typedef struct gemm_operand {
    const void *data; // NULL: absent
    int64_t stride;
    const int32_t *index; // NULL, or which stored row each row is; one outside [0, bound) is a row of zeros
    int bound;
    int rows, columns;
    bool half;  // bf16, else f32
    bool four;  // rows may be read by groups of four elements
    bool eight; // and by groups of eight
} gemm_operand_t;

typedef enum gemm_store {
    GEMM_STORE,  // out = sum + bias, or alpha * sum; with a second product fma(alpha, second, sum + bias)
    GEMM_ADD,    // out = (out + sum) + second
    GEMM_FMA,    // out = fma(alpha, sum, base + bias)
    GEMM_RESUME, // the sums start from out instead of +0
} gemm_store_t;

typedef struct gemm_output {
    void *data;
    int64_t stride;
    bool half, four, two; // four, two: groups of so many elements may be stored at once
    gemm_store_t store;
    float alpha;
    const float *bias; // NULL: none
    const float *base; // GEMM_FMA: [rows, columns]
    int64_t base_stride;
} gemm_output_t;

// out[m][n] from sum over k of A(m, k) B(k, n), and of a second pair with sums of its own.
typedef struct gemm_job {
    gemm_operand_t a, b;   // A(m, k) = a[m][k]
    gemm_operand_t a2, b2; // the second product; data NULL: none
    bool b_across;         // B(k, n) = b[k][n], else b[n][k]
    gemm_output_t out;
    int rows, columns;
} gemm_job_t;

enum { GEMM_LEAVES = 512 };
// Boundaries of some leaves, by value in a kernel's arguments: no copy to the device, nothing to wait for.
typedef struct gemm_leaves {
    int32_t start[GEMM_LEAVES + 1];
} gemm_leaves_t;

static inline gemm_operand_t gemm_operand_of(matrix_t m) {
    gemm_operand_t out = {};
    bool half = m.dtype == DTYPE_BF16;
    out.data = m.data;
    out.stride = m.stride;
    out.rows = m.rows;
    out.columns = m.columns;
    out.half = half;
    out.four = (uintptr_t)m.data % (half ? 8 : 16) == 0 && m.stride % 4 == 0;
    out.eight = half && (uintptr_t)m.data % 16 == 0 && m.stride % 8 == 0;
    return out;
}

// Whether a gradient and what it meets go to the tensor cores in two parts.
static inline bool gemm_splits(const gemm_operand_t *gradient, const gemm_operand_t *other) {
    return !gradient->half && other->half;
}

static inline gemm_output_t gemm_output_to(matrix_t m, gemm_store_t store, float alpha) {
    gemm_output_t out = {};
    uintptr_t bytes = m.dtype == DTYPE_BF16 ? 2 : 4;
    out.data = m.data;
    out.stride = m.stride;
    out.half = m.dtype == DTYPE_BF16;
    out.four = (uintptr_t)m.data % (4 * bytes) == 0 && m.stride % 4 == 0;
    out.two = (uintptr_t)m.data % (2 * bytes) == 0 && m.stride % 2 == 0;
    out.store = store;
    out.alpha = alpha;
    return out;
}

static inline matrix_t gemm_rows(matrix_t m, int first, int rows) {
    m.data = (char *)m.data + (size_t)(first * m.stride) * dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

// Leaves that cover all of `rows`.
static inline status_t cuda_check_leaves(const device_t *device, const char *op, const leaves_t *leaves, int rows) {
    if (device->measuring) return STATUS_OK;
    TRY(check_leaves(op, leaves, rows));
    if (leaves->count ? leaves->start[0] != 0 || leaves->start[leaves->count] != rows : rows > 0)
        FAIL(STATUS_INVALID, "%s: the %d gradient leaves do not cover the rows 0 to %d", op, leaves->count, rows);
    return STATUS_OK;
}

#ifdef __cplusplus
extern "C" {
#endif
status_t CUDA_NAME(gemm_product)(device_t *device, const gemm_job_t *job) STATUS_CHECKED;
// sink += alpha * a^T b, leaf by leaf of the rows of both: a leaf's sum goes over its rows in order, is multiplied and
// then quantised once. a is a gradient: its engine is chosen as above.
status_t CUDA_NAME(gemm_sink)(device_t *device, const gemm_operand_t *a, const gemm_operand_t *b, float alpha,
                              const gradient_sink_t *sink, const leaves_t *leaves) STATUS_CHECKED;
// sink += the column sums of a, leaf by leaf, rows in order from +0.
status_t CUDA_NAME(gemm_sink_columns)(device_t *device, const gemm_operand_t *a, const gradient_sink_t *sink,
                                      const leaves_t *leaves) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif
#endif
