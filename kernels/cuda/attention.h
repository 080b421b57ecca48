// What the attention kernels have in common: tiles in shared memory, the two products, and what a row sees.
//
// A row is a query with one of the heads that share a key head: row r of a sequence is query r / group, head r % group
// of the key head. Rows go in tiles, 16 to a warp; keys go in blocks that begin at position 0 of their sequence. A warp
// holds 16 rows by 8 N columns as mma lays them out: value[n][e] of lane i is row i / 4 + e / 2 * 8 and column
// n * 8 + i % 4 * 2 + e % 2. Both kinds of arithmetic keep to that layout, so that all else is written once:
// tensor cores where q, k and v are bf16, else fp32 with fused multiply-adds.
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"

// Lists longer than ATTENTION_SPLIT keys are attended to in parts of that many positions, each by itself, and merged in
// order: in decode by blocks of their own, in prefill by one block after another. The size is part of the result's
// bits.
enum { ATTENTION_SPLIT = 256, ATTENTION_WARP_ROWS = 16 };

// One matrix with its heads, as tiles are read from it.
typedef struct attention_source {
    const void *data;
    int64_t stride;
    bool half;    // bf16, else f32
    bool aligned; // every head of every row begins at a multiple of 16 bytes and is as long
} attention_source_t;

// A launch: everything by value.
typedef struct attention_call {
    attention_source_t q, k, v, dout;
    attention_mask_t mask;
    int heads, kv_heads, group, head_dim, query_rows, key_rows;
    float scale;
    void *out;
    int64_t out_stride;
    bool out_half;
    float *lse;
    uint32_t *fault;
    float *partial, *partial_state; // decode: [row][head][splits] sums of head_dim, and {maximum, sum}
    int splits;
    float *dq, *dk, *dv; // backward
    int64_t dq_stride, dk_stride, dv_stride;
    const float *delta;    // [row][head]
    const int2 *row_range; // [sequences] the first and the last row of k that a sequence lists
} attention_call_t;

static inline attention_source_t attention_source_of(const matrix_t *m, int head_dim) {
    size_t each = dtype_bytes(m->dtype), stride = (size_t)m->stride * each;
    bool aligned = (uintptr_t)m->data % 16 == 0 && stride % 16 == 0 && (size_t)head_dim * each % 16 == 0;
    return attention_source_t{m->data, m->stride, m->dtype == DTYPE_BF16, aligned};
}

static inline attention_call_t attention_call_of(const attention_args_t *args, uint32_t *fault) {
    attention_call_t call = {};
    call.q = attention_source_of(&args->q, args->head_dim);
    call.k = attention_source_of(&args->k, args->head_dim);
    call.v = attention_source_of(&args->v, args->head_dim);
    call.mask = args->mask;
    call.heads = args->heads;
    call.kv_heads = args->kv_heads;
    call.group = args->heads / args->kv_heads;
    call.head_dim = args->head_dim;
    call.query_rows = args->q.rows;
    call.key_rows = args->k.rows;
    call.scale = args->scale;
    call.out = args->out.data;
    call.out_stride = args->out.stride;
    call.out_half = args->out.dtype == DTYPE_BF16;
    call.lse = args->lse;
    call.fault = fault;
    return call;
}

static inline bool attention_halves(const attention_args_t *args) {
    return args->q.dtype == DTYPE_BF16 && args->k.dtype == DTYPE_BF16 && args->v.dtype == DTYPE_BF16;
}

// How many tiles of `rows` rows there can be, and where those of a sequence begin: sequence s has the slots from
// query_start[s] * group / rows + s up to the next one's, which are enough for it, wherever its queries begin. So a
// block finds its work by itself, and the host need not know how long the sequences are.
static inline unsigned attention_slots(const attention_call_t &call, int rows) {
    return (unsigned)((int64_t)call.query_rows * call.group / rows + call.mask.sequences + 1);
}
static __device__ __forceinline__ int64_t attention_slot(const attention_call_t &call, int sequence, int rows) {
    return (int64_t)call.mask.query_start[sequence] * call.group / rows + sequence;
}

// A tile of rows of one sequence.
typedef struct attention_tile {
    int sequence;
    int first, rows;     // rows of the sequence
    int query, position; // of the sequence's first query
    int key, keys;       // its keys in key_row
} attention_tile_t;

// The last of `count` sequences that begins at or before some place, or -1; before(s) must hold for a first few of them
// only. All lanes of a warp call it: 32 are tried at a time.
template <typename before_t> static __device__ __forceinline__ int attention_find(int count, before_t before) {
    int lane = (int)threadIdx.x % 32, low = 0, left = count;
    while (left > 0) {
        int step = (left + 31) / 32, at = lane * step;
        int found = __popc(__ballot_sync(0xffffffffu, at < left && before(low + at)));
        if (found == 0) return low - 1;
        low += (found - 1) * step;
        left -= (found - 1) * step;
        if (step == 1) return low;
        if (left > step) left = step;
    }
    return -1;
}

// A sequence as the mask describes it; false where that is impossible, and the fault word says so.
static __device__ __forceinline__ bool attention_sequence(const attention_call_t &call, int sequence,
                                                          attention_tile_t *tile) {
    const attention_mask_t &mask = call.mask;
    int first = mask.query_start[sequence], last = mask.query_start[sequence + 1];
    int key = mask.key_start[sequence], keys = mask.key_start[sequence + 1] - key;
    int position = mask.query_position[sequence];
    bool right = first >= 0 && first <= last && last <= call.query_rows && key >= 0 && keys >= 0 &&
                 keys <= call.key_rows && position >= 0 && position <= INT32_MAX - (last - first);
    *tile = attention_tile_t{sequence, 0, (last - first) * call.group, first, position, key, keys};
    return cuda_index(right ? 0 : -1, 1, call.fault, CUDA_FAULT_ATTENTION);
}

// The tile of a slot; false where there is none.
static __device__ __forceinline__ bool attention_take(const attention_call_t &call, int64_t slot, int rows,
                                                      attention_tile_t *tile) {
    int sequence = attention_find(call.mask.sequences, [&](int s) { return attention_slot(call, s, rows) <= slot; });
    if (sequence < 0 || !attention_sequence(call, sequence, tile)) return false;
    int64_t first = (slot - attention_slot(call, sequence, rows)) * rows;
    if (first >= tile->rows) return false;
    tile->first = (int)first;
    tile->rows = tile->rows - tile->first < rows ? tile->rows - tile->first : rows;
    return true;
}

// Where row `r` of a tile lies: its row of q, and its head.
typedef struct attention_row {
    int64_t query;
    int head;
} attention_row_t;
static __device__ __forceinline__ attention_row_t attention_row_at(const attention_call_t &call,
                                                                   const attention_tile_t &tile, int kv_head, int r) {
    int at = tile.first + r;
    return attention_row_t{(int64_t)tile.query + at / call.group, kv_head * call.group + at % call.group};
}

// ---- masks: the keys [low, high) of a row, and from high on those of its image group ----
typedef struct attention_sight {
    int low, high, group;
} attention_sight_t;

static __device__ __forceinline__ attention_sight_t attention_sight_at(const attention_call_t &call,
                                                                       const attention_tile_t &tile, int r) {
    const attention_mask_t &mask = call.mask;
    if (r >= tile.rows) return attention_sight_t{0, 0, -1};
    int position = tile.position + (tile.first + r) / call.group;
    bool inside = position < tile.keys;
    return attention_sight_t{mask.window > 0 && position >= mask.window ? position - mask.window + 1 : 0,
                             mask.causal && inside ? position + 1 : tile.keys,
                             mask.causal && mask.group && inside ? mask.group[tile.key + position] : -1};
}
static __device__ __forceinline__ bool attention_sees(const attention_call_t &call, const attention_tile_t &tile,
                                                      const attention_sight_t &sight, int position) {
    if (position < sight.low || position >= tile.keys) return false;
    return position < sight.high || (sight.group >= 0 && call.mask.group[tile.key + position] == sight.group);
}

// The keys that some row of a tile may see, as a range. All lanes of a warp call it.
static __device__ __forceinline__ void attention_reach(const attention_call_t &call, const attention_tile_t &tile,
                                                       int *low, int *high) {
    *low = attention_sight_at(call, tile, 0).low;
    *high = attention_sight_at(call, tile, tile.rows - 1).high;
    bool grouped = false;
    if (call.mask.causal && call.mask.group)
        for (int r = (int)threadIdx.x % 32; r < tile.rows; r += 32)
            grouped |= attention_sight_at(call, tile, r).group >= 0;
    if (__any_sync(0xffffffffu, grouped)) *high = tile.keys;
}

// ---- tiles in shared memory: rows of `size` values, 16 bytes more between them against bank conflicts ----
template <typename value_t> static __host__ __device__ constexpr int attention_stride(int size) {
    return size + 16 / (int)sizeof(value_t);
}

// Copies one head of `rows` rows; place(r) is where it begins in the source, or -1: zeros. Columns from head_dim on are
// zeros. The copies are asynchronous where source and tile are alike.
template <typename value_t, int size, int rows, int threads, typename place_t>
static __device__ __forceinline__ void attention_load(value_t *tile, const attention_source_t &source, int head_dim,
                                                      place_t place) {
    const int chunk = 16 / (int)sizeof(value_t), chunks = size / chunk, stride = attention_stride<value_t>(size);
    bool alike = source.aligned && source.half == (sizeof(value_t) == sizeof(bf16_t));
    for (int i = (int)threadIdx.x; i < rows * chunks; i += threads) {
        int r = i / chunks, c = i % chunks * chunk;
        int64_t at = place(r);
        int left = at < 0 ? 0 : head_dim - c;
        left = left < 0 ? 0 : left > chunk ? chunk : left;
        value_t *to = tile + r * stride + c;
        if (alike) {
            const value_t *from = (const value_t *)source.data;
            cuda_copy_async16(to, left ? from + at + c : from, left * (int)sizeof(value_t));
            continue;
        }
        for (int e = 0; e < chunk; e++) {
            float value = 0.0f;
            if (e < left)
                value = source.half ? cuda_get((const bf16_t *)source.data + at + c + e)
                                    : cuda_get((const float *)source.data + at + c + e);
            cuda_put(to + e, value);
        }
    }
}

// Rows of q (or of its gradient) of a tile.
template <typename value_t, int size, int rows, int threads>
static __device__ __forceinline__ void attention_load_rows(value_t *to, const attention_call_t &call,
                                                           const attention_source_t &source,
                                                           const attention_tile_t &tile, int kv_head) {
    attention_load<value_t, size, rows, threads>(to, source, call.head_dim, [&](int r) -> int64_t {
        if (r >= tile.rows) return -1;
        attention_row_t row = attention_row_at(call, tile, kv_head, r);
        return row.query * source.stride + (int64_t)row.head * call.head_dim;
    });
}

// Keys (or values) at the positions start, start + 1, ... that lie in [low, high); zeros for the others.
template <typename value_t, int size, int rows, int threads>
static __device__ __forceinline__ void
attention_load_keys(value_t *to, const attention_call_t &call, const attention_source_t &source,
                    const attention_tile_t &tile, int kv_head, int start, int low, int high) {
    attention_load<value_t, size, rows, threads>(to, source, call.head_dim, [&](int r) -> int64_t {
        int position = start + r;
        if (position < low || position >= high) return -1;
        int row = call.mask.key_row[tile.key + position];
        if (!cuda_index(row, call.key_rows, call.fault, CUDA_FAULT_ATTENTION)) return -1;
        return row * source.stride + (int64_t)kv_head * call.head_dim;
    });
}

// ---- products. a: the 16 rows of this warp; b: 8 N rows; each sum in order of d, or of the rows of b ----

// sum[n][e] += a_row . b_column
template <int size, int N>
static __device__ __forceinline__ void attention_dot(float (&sum)[N][4], const bf16_t *a, const bf16_t *b) {
    const int stride = attention_stride<bf16_t>(size);
    int lane = (int)threadIdx.x % 32;
    a += lane % 16 * stride + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
    CUDA_UNROLL for (int d = 0; d < size; d += 16) {
        unsigned row[4];
        cuda_load_matrices(row, a + d);
        CUDA_UNROLL for (int n = 0; n < N; n += 2) {
            unsigned column[4];
            cuda_load_matrices(column, b + n * 8 * stride + d);
            unsigned first[2] = {column[0], column[1]}, second[2] = {column[2], column[3]};
            cuda_mma_bf16(sum[n], row, first);
            cuda_mma_bf16(sum[n + 1], row, second);
        }
    }
}
template <int size, int N>
static __device__ __forceinline__ void attention_dot(float (&sum)[N][4], const float *a, const float *b) {
    const int stride = attention_stride<float>(size);
    int lane = (int)threadIdx.x % 32;
    a += lane / 4 * stride;
    b += lane % 4 * 2 * stride;
    CUDA_UNROLL_BY(1) for (int d = 0; d < size; d += 4) {
        float4 row[2] = {*(const float4 *)(const void *)(a + d), *(const float4 *)(const void *)(a + 8 * stride + d)};
        CUDA_UNROLL for (int n = 0; n < N; n++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
            const float4 column = *(const float4 *)(const void *)(b + (n * 8 + e % 2) * stride + d);
            float s = sum[n][e];
            s = __fmaf_rn(row[e / 2].x, column.x, s);
            s = __fmaf_rn(row[e / 2].y, column.y, s);
            s = __fmaf_rn(row[e / 2].z, column.z, s);
            sum[n][e] = __fmaf_rn(row[e / 2].w, column.w, s);
        }
    }
}

static __device__ __forceinline__ unsigned attention_pair(float low, float high) {
    bf16_t pair[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
    unsigned bits;
    memcpy(&bits, pair, sizeof(bits));
    return bits;
}

// sum[d][e] += sum over the rows j of b of p[row][j] b[j][column d * 8 ...]. On the tensor cores p is rounded to bf16;
// the other kind has scratch[16][8 N] for each warp.
template <int size, int N, int D>
static __device__ __forceinline__ void attention_add(float (&sum)[D][4], const float (&p)[N][4], const bf16_t *b,
                                                     float *) {
    const int stride = attention_stride<bf16_t>(size);
    int lane = (int)threadIdx.x % 32;
    b += lane % 16 * stride + lane / 16 * 8;
    CUDA_UNROLL for (int j = 0; j < N; j += 2) {
        unsigned row[4] = {attention_pair(p[j][0], p[j][1]), attention_pair(p[j][2], p[j][3]),
                           attention_pair(p[j + 1][0], p[j + 1][1]), attention_pair(p[j + 1][2], p[j + 1][3])};
        CUDA_UNROLL for (int d = 0; d < D; d += 2) {
            unsigned column[4];
            cuda_load_matrices_transposed(column, b + j * 8 * stride + d * 8);
            unsigned first[2] = {column[0], column[1]}, second[2] = {column[2], column[3]};
            cuda_mma_bf16(sum[d], row, first);
            cuda_mma_bf16(sum[d + 1], row, second);
        }
    }
}
template <int size, int N, int D>
static __device__ __forceinline__ void attention_add(float (&sum)[D][4], const float (&p)[N][4], const float *b,
                                                     float *scratch) {
    const int stride = attention_stride<float>(size);
    int lane = (int)threadIdx.x % 32;
    b += lane % 4 * 2;
    // p goes through shared memory, so that the loop over j need not be unrolled: the code would fill megabytes.
    float *own = scratch + (int)threadIdx.x / 32 * ATTENTION_WARP_ROWS * N * 8;
    __syncwarp();
    CUDA_UNROLL for (int j = 0; j < N; j++) CUDA_UNROLL for (int e = 0; e < 4; e++)
        own[(lane / 4 + e / 2 * 8) * N * 8 + j * 8 + lane % 4 * 2 + e % 2] = p[j][e];
    __syncwarp();
    own += lane / 4 * N * 8;
    CUDA_UNROLL_BY(1) for (int j = 0; j < N * 8; j++) {
        float upper = own[j], lower = own[8 * N * 8 + j];
        CUDA_UNROLL for (int d = 0; d < D; d++) {
            float2 column = *(const float2 *)(const void *)(b + j * stride + d * 8);
            sum[d][0] = __fmaf_rn(upper, column.x, sum[d][0]);
            sum[d][1] = __fmaf_rn(upper, column.y, sum[d][1]);
            sum[d][2] = __fmaf_rn(lower, column.x, sum[d][2]);
            sum[d][3] = __fmaf_rn(lower, column.y, sum[d][3]);
        }
    }
}

// cuda_exp for x <= 0 or NaN, the same bits with fewer steps.
static __device__ __forceinline__ float attention_exp(float x) {
    float bounded = x < -87.0f ? -87.0f : x;
    float n = rintf(__fmul_rn(bounded, 1.44269504f));
    float r = __fmaf_rn(n, -0.693359375f, bounded);
    r = __fmaf_rn(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = __fmaf_rn(p, r, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    return x < -87.0f ? 0.0f : __fmul_rn(p, __uint_as_float((unsigned)((int)n + 127) << 23));
}

#endif
