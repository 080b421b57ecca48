// attention of few queries a sequence: tiles of one warp; where there are too few of them for the GPU, the list of keys
// is split over blocks, and a second kernel joins the parts in order, as a single block would.
#include "kernels/cuda/attention_forward.h"

enum : unsigned { JOIN_THREADS = 64, PART_BLOCKS = 2048 };

// A block joins the parts of one row, in the steps of attention_close_part. Every thread follows maximum and total by
// itself.
static __global__ void __launch_bounds__(JOIN_THREADS, 16) attention_join_kernel(attention_call_t call) {
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

// depth: see attention_launch. Enough blocks for every multiprocessor; most lists are shorter than k has rows.
template <typename value_t, int size> static status_t attention_few(const attention_call_t *call, void *stream) {
    unsigned tiles = attention_slots(*call, ATTENTION_WARP_ROWS) * (unsigned)call->kv_heads;
    unsigned depth = PART_BLOCKS / tiles + 1, most = call->splits ? (unsigned)call->splits : 1;
    return attention_launch<value_t, size, 1>(call, depth < most ? depth : most, stream);
}

static status_t attention_few_sized(const attention_call_t *call, bool halves, void *stream) {
    if (halves && call->head_dim <= 64) return attention_few<bf16_t, 64>(call, stream);
    if (halves && call->head_dim <= 80) return attention_few<bf16_t, 80>(call, stream);
    if (halves && call->head_dim <= 128) return attention_few<bf16_t, 128>(call, stream);
    if (halves) return attention_few<bf16_t, 256>(call, stream);
    if (call->head_dim <= 64) return attention_few<float, 64>(call, stream);
    return call->head_dim <= 128 ? attention_few<float, 128>(call, stream) : attention_few<float, 256>(call, stream);
}

status_t CUDA_NAME(attention_decode)(const attention_call_t *given, bool halves, void *stream) {
    attention_call_t call = *given;
    TRY(attention_few_sized(&call, halves, stream));
    if (!call.splits) return STATUS_OK;
    dim3 grid((unsigned)call.query_rows, (unsigned)call.heads);
    return CUDA_LAUNCH(attention_join_kernel, grid, dim3(JOIN_THREADS), 0, stream, call);
}
