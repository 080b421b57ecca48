// The two engines of kernels/cuda/gemm.h as device code: each gives a thread its part of one tile's sums, in registers,
// and the caller does with them what it wants. Included by .cu files alone.
#ifndef KERNELS_CUDA_GEMM_TILES_H
#define KERNELS_CUDA_GEMM_TILES_H

#include "kernels/cuda/cuda_shim.h"
#include "kernels/cuda/gemm.h"

// ---- which tile a block makes ----

enum { GEMM_GROUP = 8, GEMM_ENOUGH = 32 };

// Blocks that run at the same time should share what they read: they go down GEMM_GROUP tiles of rows before they step
// to the next tile of columns, so that a wave of blocks touches a patch of the result and not a whole row of tiles.
static __device__ __forceinline__ void gemm_place(int block, int tile_rows, int tile_columns, int rows, int columns,
                                                  int *row, int *column) {
    int down = (rows + tile_rows - 1) / tile_rows, across = (columns + tile_columns - 1) / tile_columns;
    int group = block / (GEMM_GROUP * across), first = group * GEMM_GROUP, within = block - first * across;
    int height = down - first < GEMM_GROUP ? down - first : GEMM_GROUP;
    *row = (first + within % height) * tile_rows;
    *column = within / height * tile_columns;
}

template <typename tile_t> static int64_t gemm_blocks(int rows, int columns) {
    return (int64_t)((rows + tile_t::rows - 1) / tile_t::rows) * ((columns + tile_t::columns - 1) / tile_t::columns);
}

// ---- fp32 by fused multiply-adds ----
// A thread makes side x side outputs, in groups of four by four so that it reads shared memory 16 bytes at a time; a
// warp is 4 x 8 threads, so a step of k costs it few distinct reads. The operands lie in shared memory by k, two steps
// deep: the next one is read into registers, widened where it is bf16, while this one is used.
template <int tile_rows, int tile_columns, int tile_side> struct fma_tile {
    static constexpr int rows = tile_rows, columns = tile_columns, side = tile_side, step = 16, groups = side / 4;
    static constexpr int threads = rows * columns / (side * side);
    static constexpr int warps_across = columns / (32 * groups);
};
typedef fma_tile<128, 128, 8> fma_large_t;
typedef fma_tile<32, 64, 4> fma_small_t;

template <typename tile_t> struct fma_shared {
    float a[2][tile_t::step][tile_t::rows], b[2][tile_t::step][tile_t::columns];
};

// The rows and columns of the tile that are this thread's: group g begins at row + g * (rows / groups).
template <typename tile_t> static __device__ __forceinline__ int fma_row(int group, int i) {
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    return group * (tile_t::rows / tile_t::groups) + warp / tile_t::warps_across * 16 + lane / 8 * 4 + i;
}
template <typename tile_t> static __device__ __forceinline__ int fma_column(int group) {
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    return group * (tile_t::columns / tile_t::groups) + warp % tile_t::warps_across * 32 + lane % 8 * 4;
}

// Four elements of a row; zeros outside `rows` and `columns`.
static __device__ __forceinline__ void fetch_four(float (&out)[4], const gemm_operand_t &m, int row, int rows,
                                                  int column, int columns) {
    int left = row < rows ? columns - column : 0;
    int64_t stored = row;
    if (left > 0 && m.index) {
        stored = m.index[row];
        if (stored < 0 || stored >= m.bound) left = 0;
    }
    int64_t at = stored * m.stride + column;
    if (m.half) {
        const bf16_t *from = (const bf16_t *)m.data + at;
        if (left >= 4 && m.four) {
            uint2 two = *(const uint2 *)(const void *)from;
            out[0] = __uint_as_float(two.x << 16);
            out[1] = __uint_as_float(two.x & 0xffff0000u);
            out[2] = __uint_as_float(two.y << 16);
            out[3] = __uint_as_float(two.y & 0xffff0000u);
            return;
        }
        CUDA_UNROLL
        for (int e = 0; e < 4; e++) out[e] = e < left ? cuda_get(from + e) : 0.0f;
        return;
    }
    const float *from = (const float *)m.data + at;
    if (left >= 4 && m.four) {
        float4 four = *(const float4 *)(const void *)from;
        out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
        return;
    }
    CUDA_UNROLL
    for (int e = 0; e < 4; e++) out[e] = e < left ? from[e] : 0.0f;
}

// One operand's part of a step: `extent` rows (or columns) of the tile by 16 of k. across: k goes down the stored rows.
template <typename tile_t, int extent, bool across> struct fma_fetch {
    static constexpr int groups = extent * tile_t::step / 4, each = groups / tile_t::threads;
    float value[each][4];

    __device__ __forceinline__ void read(const gemm_operand_t &m, int first, int k, int k_end) {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int group = (int)threadIdx.x + i * tile_t::threads;
            if (across)
                fetch_four(value[i], m, k + group / (extent / 4), k_end, first + group % (extent / 4) * 4, m.columns);
            else
                fetch_four(value[i], m, first + group / 4, m.rows, k + group % 4 * 4, k_end);
        }
    }
    // Place i of step k lies at i ^ (k / 4 % 4 * 8): the four k of a group, written down a column, and the eight rows
    // that a warp holds of each then fall into 32 different banks; reads of one k only move together.
    __device__ __forceinline__ void write(float (&to)[tile_t::step][extent]) const {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int group = (int)threadIdx.x + i * tile_t::threads;
            if (across) {
                int k = group / (extent / 4), at = (group % (extent / 4) * 4) ^ (k / 4 % 4 * 8);
                *(float4 *)(void *)&to[k][at] = make_float4(value[i][0], value[i][1], value[i][2], value[i][3]);
            } else {
                int k = group % 4 * 4, at = (group / 4) ^ (k / 4 % 4 * 8);
                CUDA_UNROLL
                for (int e = 0; e < 4; e++) to[k + e][at] = value[i][e];
            }
        }
    }
};

template <typename tile_t>
static __device__ __forceinline__ void fma_step(float (&sum)[tile_t::side][tile_t::side],
                                                const float (&a)[tile_t::step][tile_t::rows],
                                                const float (&b)[tile_t::step][tile_t::columns]) {
    CUDA_UNROLL
    for (int k = 0; k < tile_t::step; k++) {
        float left[tile_t::side], right[tile_t::side];
        CUDA_UNROLL
        for (int g = 0; g < tile_t::groups; g++) {
            float4 x = *(const float4 *)(const void *)&a[k][fma_row<tile_t>(g, 0) ^ (k / 4 % 4 * 8)];
            float4 y = *(const float4 *)(const void *)&b[k][fma_column<tile_t>(g) ^ (k / 4 % 4 * 8)];
            left[g * 4] = x.x, left[g * 4 + 1] = x.y, left[g * 4 + 2] = x.z, left[g * 4 + 3] = x.w;
            right[g * 4] = y.x, right[g * 4 + 1] = y.y, right[g * 4 + 2] = y.z, right[g * 4 + 3] = y.w;
        }
        CUDA_UNROLL
        for (int i = 0; i < tile_t::side; i++) {
            CUDA_UNROLL
            for (int j = 0; j < tile_t::side; j++) sum[i][j] = __fmaf_rn(left[i], right[j], sum[i][j]);
        }
    }
}

// sum += the products of k .. k_end - 1, in order. All threads of the block call it, and may call it again at once.
template <typename tile_t, bool a_across, bool b_across>
static __device__ __forceinline__ void fma_sum(float (&sum)[tile_t::side][tile_t::side], fma_shared<tile_t> &tile,
                                               const gemm_operand_t &a, const gemm_operand_t &b, int row, int column,
                                               int k, int k_end) {
    fma_fetch<tile_t, tile_t::rows, a_across> left;
    fma_fetch<tile_t, tile_t::columns, b_across> right;
    if (k >= k_end) return;
    left.read(a, row, k, k_end);
    right.read(b, column, k, k_end);
    left.write(tile.a[0]);
    right.write(tile.b[0]);
    __syncthreads();
    for (int now = 0; k < k_end; k += tile_t::step, now ^= 1) {
        bool more = k + tile_t::step < k_end;
        if (more) {
            left.read(a, row, k + tile_t::step, k_end);
            right.read(b, column, k + tile_t::step, k_end);
        }
        fma_step<tile_t>(sum, tile.a[now], tile.b[now]);
        if (more) {
            left.write(tile.a[now ^ 1]);
            right.write(tile.b[now ^ 1]);
        }
        __syncthreads(); // the next step is whole, and nobody reads this one any more
    }
}

// ---- bf16 on the tensor cores ----
// A ring of stages in shared memory, each 32 of k, filled by asynchronous copies. A row of a stage is four pieces of 16
// bytes; piece p of row r lies at p ^ (r / 2 % 4), so that the eight rows of an ldmatrix, and the eight threads that
// copy two rows, meet all 32 banks.
template <int tile_rows, int tile_columns, int warp_tile_rows, int tile_stages> struct mma_tile {
    static constexpr int rows = tile_rows, columns = tile_columns, stages = tile_stages, step = 32;
    static constexpr int warp_rows = warp_tile_rows, warp_columns = 32; // 32 in each: the head's groups of columns
    static constexpr int high = warp_rows / 16, wide = warp_columns / 8, warps_across = columns / warp_columns;
    static constexpr int threads = rows / warp_rows * warps_across * 32;
};
typedef mma_tile<128, 128, 64, 3> mma_large_t; // 48 KiB: two blocks fit on a multiprocessor
typedef mma_tile<64, 64, 32, 4> mma_medium_t;
typedef mma_tile<16, 32, 16, 8> mma_small_t; // one warp; the deep ring keeps memory busy when the weight streams by

template <typename tile_t> struct mma_shared {
    bf16_t a[tile_t::stages][tile_t::rows][tile_t::step], b[tile_t::stages][tile_t::columns][tile_t::step];
};

static __device__ __forceinline__ int mma_piece(int row, int piece) {
    return (piece ^ (row / 2 % 4)) * 8;
}

// What a thread copies of one operand at every step: pieces of 16 bytes, always of the same rows.
template <typename tile_t, int extent, bool aligned> struct mma_fetch {
    static constexpr int each = extent * 4 / tile_t::threads;
    const bf16_t *from[each]; // NULL: a row of zeros

    __device__ __forceinline__ void open(const gemm_operand_t &m, int first) {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int row = first + ((int)threadIdx.x + i * tile_t::threads) / 4;
            int64_t stored = row < m.rows ? m.index ? m.index[row] : row : -1;
            if (m.index && stored >= m.bound) stored = -1;
            from[i] = stored < 0 ? NULL : (const bf16_t *)m.data + stored * m.stride;
        }
    }
    __device__ __forceinline__ void copy(bf16_t (&to)[extent][tile_t::step], const gemm_operand_t &m, int k) const {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int place = (int)threadIdx.x + i * tile_t::threads, row = place / 4, piece = place % 4;
            int left = from[i] ? m.columns - k - piece * 8 : 0;
            left = left < 0 ? 0 : left > 8 ? 8 : left;
            const bf16_t *at = left ? from[i] + k + piece * 8 : (const bf16_t *)m.data;
            bf16_t *put = &to[row][mma_piece(row, piece)];
            if constexpr (aligned)
                cuda_copy_async16(put, at, left * (int)sizeof(bf16_t));
            else
                for (int e = 0; e < 8; e++) put[e] = e < left ? at[e] : __float2bfloat16_rn(0.0f);
        }
    }
};

template <typename tile_t>
static __device__ __forceinline__ void mma_step(float (&sum)[tile_t::high][tile_t::wide][4],
                                                const bf16_t (&a)[tile_t::rows][tile_t::step],
                                                const bf16_t (&b)[tile_t::columns][tile_t::step]) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int first_row = warp / tile_t::warps_across * tile_t::warp_rows;
    int first_column = warp % tile_t::warps_across * tile_t::warp_columns;
    CUDA_UNROLL
    for (int part = 0; part < tile_t::step / 8; part += 2) {
        unsigned left[tile_t::high][4], right[tile_t::wide / 2][4];
        CUDA_UNROLL
        for (int i = 0; i < tile_t::high; i++) {
            int row = first_row + i * 16 + lane % 16;
            cuda_load_matrices(left[i], &a[row][mma_piece(row, part + lane / 16)]);
        }
        CUDA_UNROLL
        for (int j = 0; j < tile_t::wide / 2; j++) {
            int row = first_column + j * 16 + lane / 16 * 8 + lane % 8;
            cuda_load_matrices(right[j], &b[row][mma_piece(row, part + lane / 8 % 2)]);
        }
        CUDA_UNROLL
        for (int i = 0; i < tile_t::high; i++) {
            CUDA_UNROLL
            for (int j = 0; j < tile_t::wide; j++) {
                unsigned half[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
                cuda_mma_bf16(sum[i][j], left[i], half);
            }
        }
    }
}

// sum += the products of all of k, in order. All threads of the block call it, and may call it again at once.
template <typename tile_t, bool aligned>
static __device__ __forceinline__ void mma_sum(float (&sum)[tile_t::high][tile_t::wide][4], mma_shared<tile_t> &tile,
                                               const gemm_operand_t &a, const gemm_operand_t &b, int row, int column) {
    int steps = (a.columns + tile_t::step - 1) / tile_t::step;
    mma_fetch<tile_t, tile_t::rows, aligned> left;
    mma_fetch<tile_t, tile_t::columns, aligned> right;
    left.open(a, row);
    right.open(b, column);
    for (int step = 0; step < tile_t::stages - 1; step++) {
        if (step < steps) {
            left.copy(tile.a[step], a, step * tile_t::step);
            right.copy(tile.b[step], b, step * tile_t::step);
        }
        cuda_copy_commit(); // also where there is nothing: the count of groups tells the stages apart
    }
    for (int step = 0; step < steps; step++) {
        int now = step % tile_t::stages, ahead = step + tile_t::stages - 1, next = ahead % tile_t::stages;
        cuda_copy_wait<tile_t::stages - 2>();
        __syncthreads(); // this stage is whole, and nobody reads the one before it any more, which is the next to fill
        if (ahead < steps) {
            left.copy(tile.a[next], a, ahead * tile_t::step);
            right.copy(tile.b[next], b, ahead * tile_t::step);
        }
        cuda_copy_commit();
        mma_step<tile_t>(sum, tile.a[now], tile.b[now]);
    }
    cuda_copy_wait<0>();
    __syncthreads();
}

// The row and the first of two columns of the tile where sum[i][j][2 * half] and the next belong.
template <typename tile_t> static __device__ __forceinline__ int mma_row(int i, int half) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    return warp / tile_t::warps_across * tile_t::warp_rows + i * 16 + half * 8 + lane / 4;
}
template <typename tile_t> static __device__ __forceinline__ int mma_column(int j) {
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    return warp % tile_t::warps_across * tile_t::warp_columns + j * 8 + lane % 4 * 2;
}

#endif
