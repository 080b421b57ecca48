// attention: many queries a sequence here, few in attention_decode.cu. How the work is cut goes into no bit.
#include "kernels/cuda/attention_forward.h"

enum {
    ATTENTION_SHORT_ROWS = 32,        // up to this many rows a sequence, tiles of one warp waste less
    ATTENTION_BLOCKS_WANTED = 528,    // enough for every multiprocessor: fewer blocks have their lists split
    ATTENTION_SPLIT_BYTES = 256 << 20 // of scratch at most; beyond, lists are not split
};

template <typename value_t, int size> static status_t attention_tall(const attention_call_t *call, void *stream) {
    return attention_launch<value_t, size, attention_shape<value_t, size>::warps>(call, 1, stream);
}
static status_t attention_tall_sized(const attention_call_t *call, bool halves, void *stream) {
    if (halves && call->head_dim <= 64) return attention_tall<bf16_t, 64>(call, stream);
    if (halves && call->head_dim <= 80) return attention_tall<bf16_t, 80>(call, stream);
    if (halves && call->head_dim <= 128) return attention_tall<bf16_t, 128>(call, stream);
    if (halves) return attention_tall<bf16_t, 256>(call, stream);
    if (call->head_dim <= 64) return attention_tall<float, 64>(call, stream);
    return call->head_dim <= 128 ? attention_tall<float, 128>(call, stream) : attention_tall<float, 256>(call, stream);
}

// Parts of lists that go to blocks of their own, or 0: lists stay whole. Known from shapes alone, so that a captured
// graph serves every step of a decode: no list is longer than k has rows.
static int attention_splits(const attention_args_t *args) {
    int64_t parts = ((int64_t)args->k.rows + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    int64_t group = args->heads / args->kv_heads, rows = (int64_t)args->q.rows * group,
            sequences = args->mask.sequences;
    int64_t blocks = (rows / ATTENTION_WARP_ROWS + sequences + 1) * args->kv_heads;
    int64_t bytes = (int64_t)args->q.rows * args->heads * parts * (args->head_dim + 2) * (int64_t)sizeof(float);
    bool few = rows <= sequences * ATTENTION_SHORT_ROWS && blocks < ATTENTION_BLOCKS_WANTED;
    return few && parts > 1 && bytes <= ATTENTION_SPLIT_BYTES ? (int)parts : 0;
}

extern "C" status_t CUDA_NAME(attention)(device_t *device, const attention_args_t *args) {
    TRY(check_attention(args));
    attention_call_t call = attention_call_of(args, cuda_fault(device));
    call.splits = attention_splits(args);
    if (call.splits) {
        size_t parts = (size_t)args->q.rows * (size_t)args->heads * (size_t)call.splits;
        TRY(device_workspace(device, parts * ((size_t)args->head_dim + 2) * sizeof(float), (void **)&call.partial));
        if (!device->measuring) call.partial_state = call.partial + parts * (size_t)args->head_dim;
    }
    if (device->measuring || args->q.rows == 0) return STATUS_OK;
    void *stream = cuda_stream(device);
    bool halves = attention_halves(args);
    bool few = (int64_t)args->q.rows * call.group <= (int64_t)args->mask.sequences * ATTENTION_SHORT_ROWS;
    return few ? CUDA_NAME(attention_decode)(&call, halves, stream) : attention_tall_sized(&call, halves, stream);
}
