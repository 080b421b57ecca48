// The engine of backward's products as device code, where the gradient is fp32 and the matrix that it meets is bf16:
// tensor cores, the gradient as two bf16 parts. Included by .cu files alone.
//
// x is near high + low, high = bf16(x), low = bf16(x - high): off by at most 2^-17 of x where low is no subnormal.
// Both parts meet the same bf16 numbers, exactly, and go into one fp32 sum: for each 16 of k first low, then high. One
// part alone is off by up to 2^-8, more than finite differences allow a gradient; a third makes x whole, for half as
// much time again, where the other matrix has been rounded to 2^-8 already. tf32 takes the time of two bf16 parts and
// is off by up to 2^-11. What is not finite, or beyond bf16's largest number, makes NaN.
#ifndef KERNELS_CUDA_GEMM_SPLIT_H
#define KERNELS_CUDA_GEMM_SPLIT_H

#include "kernels/cuda/gemm_tiles.h"

enum { SPLIT_STEP = 32 }; // of k between barriers; sums that are resumed begin at a multiple

// Two stages in shared memory. The gradient is read into registers while the stage before is used, and cut in two on
// its way to shared memory; the other matrix is copied there asynchronously. A step does twice the products of
// mma_tile's for the same bytes, so that one stage ahead is enough.
template <int tile_rows, int tile_columns, int warp_tile_rows> struct split_tile {
    static constexpr int rows = tile_rows, columns = tile_columns, step = SPLIT_STEP;
    static constexpr int warp_rows = warp_tile_rows, warp_columns = 32;
    static constexpr int high = warp_rows / 16, wide = warp_columns / 8, warps_across = columns / warp_columns;
    static constexpr int threads = rows / warp_rows * warps_across * 32;
    static constexpr int resident = threads > 128 ? 1 : 3; // blocks: more of them, and registers spill
};
typedef split_tile<128, 128, 64> split_large_t; // 48 KiB
typedef split_tile<64, 64, 32> split_medium_t;
typedef split_tile<32, 32, 16> split_small_t; // an adapter's rank is no more

template <typename tile_t> struct split_shared {
    bf16_t high[2][tile_t::rows * tile_t::step], low[2][tile_t::rows * tile_t::step];
    bf16_t b[2][tile_t::columns * tile_t::step];
};

// Where a piece of 8 elements lies in a tile whose rows have `pieces` of them: the eight rows of which an ldmatrix
// takes one piece each meet all 32 banks.
template <int pieces> static __device__ __forceinline__ int split_at(int row, int piece) {
    int turn = pieces >= 8 ? row % 8 : row / (8 / pieces) % pieces;
    return (row * pieces + (piece ^ turn)) * 8;
}

// The gradient's part of a step: `rows` rows of the tile by 32 of k. across: k goes down the stored rows, and does so
// in shared memory too.
template <typename tile_t, bool across> struct split_fetch {
    static constexpr int width = across ? tile_t::rows : tile_t::step; // elements of a row in shared memory
    static constexpr int each = tile_t::rows * tile_t::step / 4 / tile_t::threads;
    float value[each][4];

    __device__ __forceinline__ void read(const gemm_operand_t &m, int first, int k, int k_end) {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int group = (int)threadIdx.x + i * tile_t::threads, row = group / (width / 4), at = group % (width / 4) * 4;
            if (across)
                fetch_four(value[i], m, k + row, k_end, first + at, m.columns);
            else
                fetch_four(value[i], m, first + row, m.rows, k + at, k_end);
        }
    }
    __device__ __forceinline__ void write(bf16_t *high, bf16_t *low) const {
        CUDA_UNROLL
        for (int i = 0; i < each; i++) {
            int group = (int)threadIdx.x + i * tile_t::threads, row = group / (width / 4), at = group % (width / 4) * 4;
            int place = split_at<width / 8>(row, at / 8) + at % 8;
            unsigned upper[4], lower[4];
            CUDA_UNROLL
            for (int e = 0; e < 4; e++) {
                upper[e] = cuda_bf16_bits(value[i][e]);
                lower[e] = cuda_bf16_bits(__fadd_rn(value[i][e], -__uint_as_float(upper[e] << 16)));
            }
            *(uint2 *)(void *)(high + place) = make_uint2(upper[0] | upper[1] << 16, upper[2] | upper[3] << 16);
            *(uint2 *)(void *)(low + place) = make_uint2(lower[0] | lower[1] << 16, lower[2] | lower[3] << 16);
        }
    }
};

// The other matrix's part: 32 of its rows, which are k, by the tile's columns.
template <typename tile_t>
static __device__ __forceinline__ void split_copy(bf16_t *to, const gemm_operand_t &m, int first, int k, int k_end) {
    const int pieces = tile_t::columns / 8, each = tile_t::step * pieces / tile_t::threads;
    CUDA_UNROLL
    for (int i = 0; i < each; i++) {
        int place = (int)threadIdx.x + i * tile_t::threads, row = place / pieces, piece = place % pieces;
        int left = k + row < k_end ? m.columns - first - piece * 8 : 0;
        int64_t stored = k + row;
        if (left > 0 && m.index) {
            stored = m.index[k + row];
            if (stored < 0 || stored >= m.bound) left = 0;
        }
        left = left < 0 ? 0 : left > 8 ? 8 : left;
        const bf16_t *from = (const bf16_t *)m.data;
        if (left) from += stored * m.stride + first + piece * 8;
        bf16_t *put = to + split_at<pieces>(row, piece);
        if (m.eight)
            cuda_copy_async16(put, from, left * (int)sizeof(bf16_t));
        else
            for (int e = 0; e < 8; e++) put[e] = e < left ? from[e] : __float2bfloat16_rn(0.0f);
    }
}

// One of the two parts by 16 of k.
template <typename tile_t, bool a_across>
static __device__ __forceinline__ void split_part(float (&sum)[tile_t::high][tile_t::wide][4], const bf16_t *a,
                                                  const unsigned (&right)[tile_t::wide / 2][4], int k) {
    int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 / tile_t::warps_across * tile_t::warp_rows;
    unsigned left[tile_t::high][4];
    CUDA_UNROLL
    for (int i = 0; i < tile_t::high; i++) {
        int row = first + i * 16;
        if (a_across) {
            int at = split_at<tile_t::rows / 8>(k + lane / 16 * 8 + lane % 8, row / 8 + lane / 8 % 2);
            cuda_load_matrices_transposed(left[i], a + at);
        } else {
            int at = split_at<tile_t::step / 8>(row + lane % 16, k / 8 + lane / 16);
            cuda_load_matrices(left[i], a + at);
        }
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

template <typename tile_t, bool a_across>
static __device__ __forceinline__ void split_step(float (&sum)[tile_t::high][tile_t::wide][4],
                                                  const split_shared<tile_t> &tile, int now) {
    int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 % tile_t::warps_across * tile_t::warp_columns;
    CUDA_UNROLL
    for (int k = 0; k < tile_t::step; k += 16) {
        unsigned right[tile_t::wide / 2][4];
        CUDA_UNROLL
        for (int j = 0; j < tile_t::wide / 2; j++) {
            int at = split_at<tile_t::columns / 8>(k + lane % 16, first / 8 + j * 2 + lane / 16);
            cuda_load_matrices_transposed(right[j], tile.b[now] + at);
        }
        split_part<tile_t, a_across>(sum, tile.low[now], right, k);
        split_part<tile_t, a_across>(sum, tile.high[now], right, k);
    }
}

// sum += the products of k .. k_end - 1, in steps of 16 from k on, the last one filled up with zeros. All threads of
// the block call it, and may call it again at once.
template <typename tile_t, bool a_across>
static __device__ __forceinline__ void split_sum(float (&sum)[tile_t::high][tile_t::wide][4],
                                                 split_shared<tile_t> &tile, const gemm_operand_t &a,
                                                 const gemm_operand_t &b, int row, int column, int k, int k_end) {
    split_fetch<tile_t, a_across> left;
    if (k >= k_end) return;
    left.read(a, row, k, k_end);
    split_copy<tile_t>(tile.b[0], b, column, k, k_end);
    cuda_copy_commit();
    left.write(tile.high[0], tile.low[0]);
    for (int now = 0; k < k_end; k += tile_t::step, now ^= 1) {
        bool more = k + tile_t::step < k_end;
        cuda_copy_wait<0>();
        __syncthreads(); // this stage is whole, and nobody reads the other one any more
        if (more) {
            left.read(a, row, k + tile_t::step, k_end);
            split_copy<tile_t>(tile.b[now ^ 1], b, column, k + tile_t::step, k_end);
            cuda_copy_commit();
        }
        split_step<tile_t, a_across>(sum, tile, now);
        if (more) left.write(tile.high[now ^ 1], tile.low[now ^ 1]);
    }
    __syncthreads();
}

#endif
