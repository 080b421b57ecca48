// Rows of a matrix in packs of 8 elements: 16 bytes of bf16, twice 16 of f32. The dtype is looked at when the kernel
// runs: one branch that all threads take alike is nothing beside the memory these ops wait for, and an op whose
// matrices may each be f32 or bf16 stays one kernel.
#ifndef KERNELS_CUDA_CUDA_ROWS_H
#define KERNELS_CUDA_CUDA_ROWS_H

#include "kernels/cuda/cuda_shim.h"

enum { PACK = 8, ROWS_THREADS = 256 };

// A matrix as kernels see it.
typedef struct rows {
    void *data;
    int64_t stride;
    bool half;    // bf16
    bool aligned; // every row starts at a multiple of 16 bytes
} rows_t;

static inline bool rows_aligned(const matrix_t *m) {
    return ((uintptr_t)m->data | (uintptr_t)((size_t)m->stride * dtype_bytes(m->dtype))) % 16 == 0;
}
static inline rows_t rows_of(const matrix_t *m) {
    rows_t rows = {m->data, m->stride, m->dtype == DTYPE_BF16, rows_aligned(m)};
    return rows;
}

// The columns c .. c + 7 of a row (c a multiple of 8); those from `columns` on read as 0 and are not written.
static __device__ __forceinline__ void rows_get(const rows_t &m, int64_t row, int c, int columns, float (&out)[PACK]) {
    bool whole = m.aligned && c + PACK <= columns;
    if (m.half) {
        const bf16_t *at = (const bf16_t *)m.data + row * m.stride + c;
        if (whole) {
            uint4 four = *(const uint4 *)at;
            unsigned word[4] = {four.x, four.y, four.z, four.w};
            for (int i = 0; i < PACK; i++)
                out[i] = __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
        } else
            for (int i = 0; i < PACK; i++) out[i] = c + i < columns ? __bfloat162float(at[i]) : 0.0f;
        return;
    }
    const float *at = (const float *)m.data + row * m.stride + c;
    if (whole) {
        float4 low = ((const float4 *)at)[0], high = ((const float4 *)at)[1];
        float all[PACK] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        for (int i = 0; i < PACK; i++) out[i] = all[i];
    } else
        for (int i = 0; i < PACK; i++) out[i] = c + i < columns ? at[i] : 0.0f;
}

static __device__ __forceinline__ unsigned rows_bits(float value) {
    bf16_t half = __float2bfloat16_rn(value);
    unsigned short bits;
    memcpy(&bits, &half, sizeof(bits));
    return bits;
}
static __device__ __forceinline__ void rows_put(const rows_t &m, int64_t row, int c, int columns,
                                                const float (&value)[PACK]) {
    bool whole = m.aligned && c + PACK <= columns;
    if (m.half) {
        bf16_t *at = (bf16_t *)m.data + row * m.stride + c;
        if (whole) {
            unsigned word[4];
            for (int i = 0; i < 4; i++) word[i] = rows_bits(value[2 * i]) | rows_bits(value[2 * i + 1]) << 16;
            *(uint4 *)at = make_uint4(word[0], word[1], word[2], word[3]);
        } else
            for (int i = 0; i < PACK; i++)
                if (c + i < columns) at[i] = __float2bfloat16_rn(value[i]);
        return;
    }
    float *at = (float *)m.data + row * m.stride + c;
    if (whole) {
        ((float4 *)at)[0] = make_float4(value[0], value[1], value[2], value[3]);
        ((float4 *)at)[1] = make_float4(value[4], value[5], value[6], value[7]);
    } else
        for (int i = 0; i < PACK; i++)
            if (c + i < columns) at[i] = value[i];
}

// A thread for each pack (or other unit of a row): short rows share a block, long ones take several.
typedef struct rows_grid {
    int rows, units;
    int lanes; // threads of a row within a block
    int each;  // rows of a block
} rows_grid_t;

static inline rows_grid_t rows_share(int rows, int columns, int unit) {
    int units = (columns + unit - 1) / unit, parts = (units + ROWS_THREADS - 1) / ROWS_THREADS;
    int lanes = parts ? (units + parts - 1) / parts : 1;
    rows_grid_t grid = {rows, units, lanes, ROWS_THREADS / lanes};
    return grid;
}
static inline bool rows_none(const rows_grid_t *grid) {
    return grid->rows == 0 || grid->units == 0;
}
static inline dim3 rows_blocks(const rows_grid_t *grid) {
    return dim3((unsigned)((grid->rows + grid->each - 1) / grid->each),
                (unsigned)((grid->units + grid->lanes - 1) / grid->lanes));
}
static inline dim3 rows_threads(const rows_grid_t *grid) {
    return dim3((unsigned)(grid->lanes * grid->each));
}
// The row and unit of this thread; false: it has none.
static __device__ __forceinline__ bool rows_place(const rows_grid_t &grid, int64_t *row, int *unit) {
    int thread = (int)threadIdx.x;
    *row = (int64_t)blockIdx.x * grid.each + thread / grid.lanes;
    *unit = (int)blockIdx.y * grid.lanes + thread % grid.lanes;
    return *row < grid.rows && *unit < grid.units;
}

#endif
