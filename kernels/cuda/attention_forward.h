// The forward of attention: one walk over blocks of keys, which prefill and decode have in common, so that their bits
// are the same whatever they are launched with.
//
// A row's sums depend on its own keys alone: a block of keys that it does not see leaves maximum, sum and accumulators
// as they are to the bit (factor 1, zeros added), so that it does not matter which blocks its tile goes through.
#ifndef KERNELS_CUDA_ATTENTION_FORWARD_H
#define KERNELS_CUDA_ATTENTION_FORWARD_H

#include "kernels/cuda/attention.h"

// warps: of a tile in prefill. keys: of a block; smaller where registers or shared memory are short. Both go into
// nothing but speed and, the latter, the bits: it is the same in prefill and in decode.
template <typename value_t, int size> struct attention_shape {
    static constexpr bool tensor = sizeof(value_t) == sizeof(bf16_t);
    static constexpr int warps = !tensor && size > 128 ? 2 : 4;
    static constexpr int keys = !tensor || size > 128 ? 32 : 64;
    static constexpr int stride = attention_stride<value_t>(size);
    static constexpr int N = keys / 8, D = size / 8;
};

template <typename value_t, int size, int warps> static constexpr size_t attention_tile_bytes(bool merging) {
    typedef attention_shape<value_t, size> shape;
    size_t rows = warps * ATTENTION_WARP_ROWS, scratch = shape::tensor ? 0 : rows * shape::keys * sizeof(float);
    return (rows + 2 * shape::keys) * shape::stride * sizeof(value_t) + scratch +
           (merging ? (size_t)warps * 32 * shape::D * 4 * sizeof(float) : 0);
}

// Running maximum, sum and accumulators of the 16 rows of a warp; of each thread's two rows. Until the sum is folded,
// it is that of the thread's own columns.
template <int D> struct attention_state {
    float sum[D][4];
    float maximum[2], total[2];
};
template <int D> static __device__ __forceinline__ void attention_state_clear(attention_state<D> &state) {
    CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 4; e++) state.sum[d][e] = 0.0f;
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        state.maximum[i] = -INFINITY;
        state.total[i] = 0.0f;
    }
}

static __device__ __forceinline__ float attention_quad_sum(float value) {
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
static __device__ __forceinline__ float attention_larger(float a, float b) {
    return a > b ? a : b;
}

// From products to p, and the state to the new maximum.
template <int N, int D>
static __device__ __forceinline__ void attention_softmax(const attention_call_t &call, const attention_tile_t &tile,
                                                         const attention_sight_t (&sight)[2], int start, bool whole,
                                                         float (&s)[N][4], attention_state<D> &state) {
    int column = start + (int)threadIdx.x % 4 * 2;
    float largest[2] = {-INFINITY, -INFINITY};
    CUDA_UNROLL for (int n = 0; n < N; n++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
        bool seen = whole || attention_sees(call, tile, sight[e / 2], column + n * 8 + e % 2);
        s[n][e] = seen ? __fmul_rn(s[n][e], call.scale) : -INFINITY;
        largest[e / 2] = attention_larger(s[n][e], largest[e / 2]);
    }
    float factor[2];
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        largest[i] = attention_larger(__shfl_xor_sync(0xffffffffu, largest[i], 1), largest[i]);
        largest[i] = attention_larger(__shfl_xor_sync(0xffffffffu, largest[i], 2), largest[i]);
        largest[i] = attention_larger(largest[i], state.maximum[i]);
        float base = largest[i] == -INFINITY ? 0.0f : largest[i]; // nothing seen so far
        factor[i] = attention_exp(__fadd_rn(state.maximum[i], -base));
        state.maximum[i] = largest[i];
        state.total[i] = __fmul_rn(state.total[i], factor[i]);
        largest[i] = base;
    }
    CUDA_UNROLL for (int n = 0; n < N; n++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
        s[n][e] = attention_exp(__fadd_rn(s[n][e], -largest[e / 2]));
        state.total[e / 2] = __fadd_rn(state.total[e / 2], s[n][e]);
    }
    CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 4; e++) state.sum[d][e] =
        __fmul_rn(state.sum[d][e], factor[e / 2]);
}

// How two parts of a list become one: the later is added to the earlier. A part of which nothing is seen changes
// nothing.
typedef struct attention_join {
    float maximum, earlier, later; // the new maximum, and the factors of both
} attention_join_t;
static __device__ __forceinline__ attention_join_t attention_join_of(float earlier, float later) {
    if (later == -INFINITY) return attention_join_t{earlier, 1.0f, 0.0f};
    float top = attention_larger(earlier, later);
    return attention_join_t{top, attention_exp(__fadd_rn(earlier, -top)), attention_exp(__fadd_rn(later, -top))};
}
static __device__ __forceinline__ float attention_joined(const attention_join_t &join, float earlier, float later) {
    return __fmaf_rn(earlier, join.earlier, __fmul_rn(later, join.later));
}

// The parts that a row's tile has been through: in shared memory, each thread's own numbers. A second set of
// accumulators in registers would halve the warps of a multiprocessor.
template <int D> struct attention_parts {
    float *sum; // [D * 4][threads]
    float maximum[2], total[2];
};

// Moves the state of a part there, and starts anew.
template <int D, int threads>
static __device__ __forceinline__ void attention_close_part(attention_state<D> &state, attention_parts<D> &parts) {
    attention_join_t join[2];
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        float total = attention_quad_sum(state.total[i]);
        join[i] = attention_join_of(parts.maximum[i], state.maximum[i]);
        parts.total[i] = attention_joined(join[i], parts.total[i], total);
        parts.maximum[i] = join[i].maximum;
    }
    CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
        float *at = parts.sum + (d * 4 + e) * threads + threadIdx.x;
        *at = attention_joined(join[e / 2], *at, state.sum[d][e]);
    }
    attention_state_clear(state);
}

// What a block of threads has in shared memory.
template <typename value_t, int size, int warps> struct attention_tiles {
    value_t *q, *k, *v;
    float *scratch, *parts;
};
template <typename value_t, int size, int warps>
static __device__ __forceinline__ attention_tiles<value_t, size, warps> attention_tiles_in(value_t *memory) {
    typedef attention_shape<value_t, size> shape;
    value_t *k = memory + warps * ATTENTION_WARP_ROWS * shape::stride, *v = k + shape::keys * shape::stride;
    float *scratch = (float *)(void *)(v + shape::keys * shape::stride);
    float *parts = scratch + (shape::tensor ? 0 : warps * ATTENTION_WARP_ROWS * shape::keys);
    return attention_tiles<value_t, size, warps>{memory, k, v, scratch, parts};
}

// Takes the rows of a tile through the blocks of keys that meet [low, high), in order, and leaves in the state the sums
// with the totals folded. Parts are closed where ATTENTION_SPLIT positions end, unless all lies in one. q is on its way
// when this is called. While scores are computed the values are on their way, and the next keys while those are summed.
template <typename value_t, int size, int warps>
static __device__ __forceinline__ void
attention_walk(const attention_call_t &call, const attention_tile_t &tile, int kv_head, int low, int high,
               const attention_tiles<value_t, size, warps> &tiles, attention_state<size / 8> &state) {
    typedef attention_shape<value_t, size> shape;
    const int threads = warps * 32, keys = shape::keys, N = shape::N, D = shape::D;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, row = warp * ATTENTION_WARP_ROWS + lane / 4;
    attention_sight_t sight[2] = {attention_sight_at(call, tile, row), attention_sight_at(call, tile, row + 8)};
    // What all rows of the warp see without a look at groups.
    int last = tile.rows - warp * ATTENTION_WARP_ROWS;
    last = last > ATTENTION_WARP_ROWS ? ATTENTION_WARP_ROWS - 1 : last - 1;
    int all_low = attention_sight_at(call, tile, warp * ATTENTION_WARP_ROWS + last).low;
    int all_high = attention_sight_at(call, tile, warp * ATTENTION_WARP_ROWS).high;
    bool several = low / ATTENTION_SPLIT != (high - 1) / ATTENTION_SPLIT;
    attention_parts<D> parts = {tiles.parts, {-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    for (int i = 0; several && i < D * 4; i++) parts.sum[i * threads + (int)threadIdx.x] = 0.0f;
    attention_state_clear(state);
    attention_load_keys<value_t, size, keys, threads>(tiles.k, call, call.k, tile, kv_head, low / keys * keys, low,
                                                      high);
    cuda_copy_commit();
    for (int start = low / keys * keys; start < high; start += keys) {
        attention_load_keys<value_t, size, keys, threads>(tiles.v, call, call.v, tile, kv_head, start, low, high);
        cuda_copy_commit();
        cuda_copy_wait<1>();
        __syncthreads(); // the keys are there
        float s[N][4] = {};
        attention_dot<size>(s, tiles.q + warp * ATTENTION_WARP_ROWS * shape::stride, tiles.k);
        __syncthreads(); // nobody needs the keys any more
        if (start + keys < high)
            attention_load_keys<value_t, size, keys, threads>(tiles.k, call, call.k, tile, kv_head, start + keys, low,
                                                              high);
        cuda_copy_commit();
        attention_softmax(call, tile, sight, start, all_low <= start && start + keys <= all_high, s, state);
        cuda_copy_wait<1>();
        __syncthreads(); // the values are there
        attention_add<size>(state.sum, s, tiles.v, tiles.scratch);
        if (several && ((start + keys) % ATTENTION_SPLIT == 0 || start + keys >= high))
            attention_close_part<D, threads>(state, parts);
        __syncthreads(); // nobody needs the values any more
    }
    cuda_copy_wait<0>();
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        state.maximum[i] = several ? parts.maximum[i] : state.maximum[i];
        state.total[i] = several ? parts.total[i] : attention_quad_sum(state.total[i]);
    }
    if (several)
        CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 4; e++) state.sum[d][e] =
            parts.sum[(d * 4 + e) * threads + (int)threadIdx.x];
}

// The natural logarithm as the CPU's kernels take it (kernels/cpu/attention_impl.h), the same bits.
static __device__ __forceinline__ float attention_log(float x) {
    unsigned bits = __float_as_uint(x);
    int exponent = (int)((bits - 0x3f3504f3u) & 0xff800000u) >> 23;
    double mantissa = (double)__uint_as_float(bits - ((unsigned)exponent << 23));
    double z = (mantissa - 1.0) / (mantissa + 1.0), s = z * z, series = 1.0 / 13;
    series = series * s + 1.0 / 11;
    series = series * s + 1.0 / 9;
    series = series * s + 1.0 / 7;
    series = series * s + 1.0 / 5;
    series = series * s + 1.0 / 3;
    return (float)((double)exponent * 0.69314718055994531 + 2.0 * (z + z * s * series));
}

// One number of the output; a row that saw no key gives zeros. The added zero turns -0 into +0: whether a sum of zeros
// is -0 depends on steps that hidden keys do not make.
static __device__ __forceinline__ float attention_output(float sum, float total, float maximum) {
    if (maximum == -INFINITY) return 0.0f;
    return __fadd_rn(__fdiv_rn(sum, total), 0.0f);
}
static __device__ __forceinline__ float attention_lse(float total, float maximum) {
    return maximum == -INFINITY ? -INFINITY : __fadd_rn(maximum, attention_log(total));
}
static __device__ __forceinline__ void attention_put(const attention_call_t &call, int64_t at, float value) {
    if (call.out_half)
        cuda_put((bf16_t *)call.out + at, value);
    else
        cuda_put((float *)call.out + at, value);
}

// Few queries a sequence (attention_decode.cu); attention.cu chooses, and whether lists are split.
status_t CUDA_NAME(attention_decode)(const attention_call_t *call, bool halves, void *stream) STATUS_CHECKED;

// ---- the kernel ----

// Rows of q that belong to no sequence give zeros.
static __device__ __forceinline__ void attention_clear(const attention_call_t &call, int kv_head, int threads) {
    int sequences = call.mask.sequences, columns = call.group * call.head_dim;
    int first = sequences ? call.mask.query_start[0] : call.query_rows;
    int last = sequences ? call.mask.query_start[sequences] : call.query_rows;
    for (int64_t row = 0; row < call.query_rows; row++) {
        if (row == first && last > first) row = last;
        if (row >= call.query_rows) break;
        int64_t at = row * call.out_stride + (int64_t)kv_head * columns;
        for (int c = (int)threadIdx.x; c < columns; c += threads) attention_put(call, at + c, 0.0f);
        for (int c = (int)threadIdx.x; call.lse && c < call.group; c += threads)
            call.lse[row * call.heads + (int64_t)kv_head * call.group + c] = 0.0f;
    }
}

// The results of a tile, or of one part of its list.
template <int D>
static __device__ __forceinline__ void attention_store(const attention_call_t &call, const attention_tile_t &tile,
                                                       int kv_head, int part, const attention_state<D> &state) {
    int lane = (int)threadIdx.x % 32;
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        int r = (int)threadIdx.x / 32 * ATTENTION_WARP_ROWS + lane / 4 + i * 8;
        if (r >= tile.rows) continue;
        attention_row_t row = attention_row_at(call, tile, kv_head, r);
        int64_t at = row.query * call.out_stride + (int64_t)row.head * call.head_dim;
        int64_t own = row.query * call.heads + row.head, piece = own * call.splits + part;
        CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 2; e++) {
            int column = d * 8 + lane % 4 * 2 + e;
            if (column >= call.head_dim) continue;
            float sum = state.sum[d][i * 2 + e];
            if (call.splits)
                call.partial[piece * call.head_dim + column] = sum;
            else
                attention_put(call, at + column, attention_output(sum, state.total[i], state.maximum[i]));
        }
        if (lane % 4) continue;
        if (call.splits) {
            call.partial_state[piece * 2] = state.maximum[i];
            call.partial_state[piece * 2 + 1] = state.total[i];
        } else if (call.lse)
            call.lse[own] = attention_lse(state.total[i], state.maximum[i]);
    }
}

// A block takes one tile of rows through all keys they see; or, where lists are split, through the parts blockIdx.z,
// blockIdx.z + gridDim.z, ... one by one. The last tiles of a list see the most keys and start first.
template <typename value_t, int size, int warps>
static __global__ void __launch_bounds__(warps * 32, (size > 80 ? 8 : 12) / warps)
    attention_kernel(attention_call_t call) {
    CUDA_DYNAMIC_SHARED(value_t, memory);
    auto tiles = attention_tiles_in<value_t, size, warps>(memory);
    const int rows = warps * ATTENTION_WARP_ROWS;
    int64_t slot = (int64_t)gridDim.x - 1 - blockIdx.x;
    int kv_head = (int)blockIdx.y, low, high;
    if (slot == 0 && !call.splits) attention_clear(call, kv_head, warps * 32);
    attention_tile_t tile;
    if (!attention_take(call, slot, rows, &tile)) return;
    int length = call.splits ? ATTENTION_SPLIT : INT32_MAX, part = (int)blockIdx.z;
    if (call.splits && part * length >= tile.keys) return;
    attention_reach(call, tile, &low, &high);
    attention_load_rows<value_t, size, rows, warps * 32>(tiles.q, call, call.q, tile, kv_head);
    cuda_copy_commit();
    do {
        attention_state<size / 8> state;
        int first = part * length, last = call.splits ? first + length : INT32_MAX;
        first = first < low ? low : first;
        last = last > high ? high : last;
        attention_state_clear(state);
        if (first < last) attention_walk<value_t, size, warps>(call, tile, kv_head, first, last, tiles, state);
        attention_store(call, tile, kv_head, part, state);
        part += (int)gridDim.z;
    } while (call.splits && part * length < tile.keys);
    cuda_copy_wait<0>();
}

// depth: blocks to a list that is split, else 1.
template <typename value_t, int size, int warps>
static status_t attention_launch(const attention_call_t *given, unsigned depth, void *stream) {
    attention_call_t call = *given;
    auto kernel = attention_kernel<value_t, size, warps>;
    size_t bytes = attention_tile_bytes<value_t, size, warps>(!call.splits && call.key_rows > ATTENTION_SPLIT);
    TRY(CUDA_GRANT_SHARED(kernel, bytes));
    dim3 grid(attention_slots(call, warps * ATTENTION_WARP_ROWS), (unsigned)call.kv_heads, depth);
    return CUDA_LAUNCH(kernel, grid, dim3(warps * 32), bytes, stream, call);
}

#endif
