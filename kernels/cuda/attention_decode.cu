// attention of few queries a sequence: tiles of one warp; where there are too few of them for the GPU, the list of keys is
// split over blocks, and a second kernel joins the parts in order, as a single block would.
#include "kernels/cuda/attention_forward.h"

enum { JOIN_THREADS = 64, PART_BLOCKS = 2048 };

// A block takes one tile through the parts blockIdx.z, blockIdx.z + gridDim.z, ... of its list.
template <typename value_t, int size>
static __global__ void __launch_bounds__(32) attention_part_kernel(attention_call_t call) {
    CUDA_DYNAMIC_SHARED(value_t, memory);
    auto tiles = attention_tiles_in<value_t, size, 1>(memory);
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % 32, low, high;
    attention_tile_t tile;
    if (!attention_take(call, blockIdx.x, ATTENTION_WARP_ROWS, &tile)) return;
    if ((int)blockIdx.z * ATTENTION_SPLIT >= tile.keys) return;
    attention_reach(call, tile, &low, &high);
    attention_load_rows<value_t, size, ATTENTION_WARP_ROWS, 32>(tiles.q, call, call.q, tile, kv_head);
    cuda_copy_commit();
    for (int part = (int)blockIdx.z; part * ATTENTION_SPLIT < tile.keys; part += (int)gridDim.z) {
        int first = part * ATTENTION_SPLIT, last = first + ATTENTION_SPLIT;
        first = first < low ? low : first;
        last = last > high ? high : last;
        attention_state<size / 8> state;
        attention_state_clear(state);
        if (first < last) attention_walk<value_t, size, 1>(call, tile, kv_head, first, last, tiles, state);
        for (int i = 0; i < 2; i++) {
            int r = lane / 4 + i * 8;
            if (r >= tile.rows) continue;
            attention_row_t row = attention_row_at(call, tile, kv_head, r);
            int64_t at = (row.query * call.heads + row.head) * call.splits + part;
            if (lane % 4 == 0) {
                call.partial_state[at * 2] = state.maximum[i];
                call.partial_state[at * 2 + 1] = state.total[i];
            }
            CUDA_UNROLL for (int d = 0; d < size / 8; d++) CUDA_UNROLL for (int e = 0; e < 2; e++) {
                int column = d * 8 + lane % 4 * 2 + e;
                if (column < call.head_dim) call.partial[at * call.head_dim + column] = state.sum[d][i * 2 + e];
            }
        }
    }
    cuda_copy_wait<0>();
}

// A block joins the parts of one row. Every thread follows maximum and total by itself.
static __global__ void __launch_bounds__(JOIN_THREADS) attention_join_kernel(attention_call_t call) {
    int64_t row = blockIdx.x, head = blockIdx.y;
    int64_t out = row * call.out_stride + head * call.head_dim, first = (row * call.heads + head) * call.splits;
    int sequence = attention_find(call.mask.sequences, [&](int s) { return call.mask.query_start[s] <= row; });
    bool inside = sequence >= 0 && row < call.mask.query_start[sequence + 1];
    attention_tile_t tile = {};
    if (inside && !attention_sequence(call, sequence, &tile)) return;
    int parts = (tile.keys + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    const float *states = call.partial_state + first * 2;
    float maximum = -INFINITY, total = 0.0f;
    for (int column = (int)threadIdx.x; column < call.head_dim; column += JOIN_THREADS) {
        float sum = 0.0f;
        maximum = -INFINITY;
        total = 0.0f;
        CUDA_UNROLL_BY(4) for (int part = 0; part < parts; part++) {
            float later = states[part * 2];
            float value = call.partial[(first + part) * call.head_dim + column];
            attention_join_t join = attention_join_of(maximum, later);
            total = attention_joined(join, total, states[part * 2 + 1]);
            sum = attention_joined(join, sum, value);
            maximum = join.maximum;
        }
        attention_put(call, out + column, attention_output(sum, total, maximum));
    }
    if (call.lse && threadIdx.x == 0) call.lse[row * call.heads + head] = inside ? attention_lse(total, maximum) : 0.0f;
}

template <typename value_t, int size> static status_t attention_parts_of(const attention_call_t *given, void *stream) {
    attention_call_t call = *given;
    auto kernel = attention_part_kernel<value_t, size>;
    size_t bytes = attention_tile_bytes<value_t, size, 1>(false);
    TRY(CUDA_GRANT_SHARED(kernel, bytes));
    unsigned slots = attention_slots(call, ATTENTION_WARP_ROWS), heads = (unsigned)call.kv_heads;
    unsigned deep = (unsigned)PART_BLOCKS / (slots * heads) + 1;
    dim3 grid(slots, heads, deep < (unsigned)call.splits ? deep : (unsigned)call.splits);
    return CUDA_LAUNCH(kernel, grid, dim3(32), bytes, stream, call);
}

template <typename value_t> static status_t attention_parts_sized(const attention_call_t *call, void *stream) {
    if (call->head_dim <= 64) return attention_parts_of<value_t, 64>(call, stream);
    if (call->head_dim <= 80) return attention_parts_of<value_t, 80>(call, stream);
    if (call->head_dim <= 128) return attention_parts_of<value_t, 128>(call, stream);
    return attention_parts_of<value_t, 256>(call, stream);
}

status_t CUDA_NAME(attention_split)(const attention_call_t *given, bool halves, void *stream) {
    attention_call_t call = *given;
    TRY(halves ? attention_parts_sized<bf16_t>(&call, stream) : attention_parts_sized<float>(&call, stream));
    dim3 grid((unsigned)call.query_rows, (unsigned)call.heads);
    return CUDA_LAUNCH(attention_join_kernel, grid, dim3(JOIN_THREADS), 0, stream, call);
}

template <typename value_t> static status_t attention_short_sized(const attention_call_t *call, void *stream) {
    if (call->head_dim <= 64) return attention_launch<value_t, 64, 1>(call, stream);
    if (call->head_dim <= 80) return attention_launch<value_t, 80, 1>(call, stream);
    if (call->head_dim <= 128) return attention_launch<value_t, 128, 1>(call, stream);
    return attention_launch<value_t, 256, 1>(call, stream);
}

status_t CUDA_NAME(attention_short)(const attention_call_t *call, bool halves, void *stream) {
    return halves ? attention_short_sized<bf16_t>(call, stream) : attention_short_sized<float>(call, stream);
}
