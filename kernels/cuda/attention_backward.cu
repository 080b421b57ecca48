// attention's backward, without atomics on gradients: dq by tiles of rows; dk and dv by tiles of rows of k and v, each
// of which has one block that goes through the sequences that list it in order, and through their queries in order. So
// rows that sequences share are summed in the order that kernels/device.h states, and no result depends on what runs
// beside.
//
// Probabilities are computed anew from lse. On the tensor cores p, ds and dout are rounded to bf16 for the products.
#include "kernels/cuda/attention.h"

enum { BACK_KEYS = 32, BACK_N = BACK_KEYS / 8, BACK_COLUMNS = 128, DELTA_THREADS = 128, RANGE_THREADS = 128 };

template <typename value_t, int size> struct back_shape {
    static constexpr bool tensor = sizeof(value_t) == sizeof(bf16_t);
    static constexpr int warps = !tensor && size > 128 ? 2 : 4; // for shared memory
    static constexpr int rows = warps * ATTENTION_WARP_ROWS, threads = warps * 32;
    static constexpr int stride = attention_stride<value_t>(size);
    static constexpr int resident = (size > 128 ? 8 : 12) / warps; // blocks: what the registers are shared out for
    // dk and dv together would not fit the registers at head size 256: halves of the columns go to blocks of their own.
    static constexpr int columns = size < BACK_COLUMNS ? size : BACK_COLUMNS, halves = size / columns;
    static constexpr size_t scratch = tensor ? 0 : (size_t)rows * BACK_KEYS * sizeof(float);
    static constexpr size_t bytes = (size_t)(2 * rows + 2 * BACK_KEYS) * stride * sizeof(value_t) + scratch;
};

// delta = sum over d of dout * out: a warp to a head of a row, lane i the columns i, i + 32, ... in order. With it,
// dout in bf16 for the tensor cores, where they are used: both passes read it many times.
template <typename out_t>
static __global__ void __launch_bounds__(DELTA_THREADS)
    attention_delta_kernel(attention_call_t call, const out_t *out, float *delta, bf16_t *half) {
    int64_t at = (int64_t)blockIdx.x * (DELTA_THREADS / 32) + threadIdx.x / 32;
    if (at >= (int64_t)call.query_rows * call.heads) return;
    int64_t row = at / call.heads, column = at % call.heads * call.head_dim;
    const float *dout = (const float *)call.dout.data + row * call.dout.stride + column;
    float sum = 0.0f;
    for (int d = (int)threadIdx.x % 32; d < call.head_dim; d += 32) {
        float value = dout[d];
        sum = __fmaf_rn(value, cuda_get(out + row * call.out_stride + column + d), sum);
        if (half) half[at * call.head_dim + d] = __float2bfloat16_rn(value);
    }
    sum = cuda_warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[at] = sum;
}

// The first and the last row of k that each sequence lists; an empty range where it has no keys.
static __global__ void __launch_bounds__(RANGE_THREADS) attention_range_kernel(attention_call_t call, int2 *range) {
    CUDA_SHARED(int, lowest, [RANGE_THREADS / 32]);
    CUDA_SHARED(int, highest, [RANGE_THREADS / 32]);
    attention_tile_t tile;
    int low = INT32_MAX, high = -1, warp = (int)threadIdx.x / 32;
    bool right = attention_sequence(call, (int)blockIdx.x, &tile);
    for (int j = (int)threadIdx.x; right && j < tile.keys; j += RANGE_THREADS) {
        int row = call.mask.key_row[tile.key + j];
        if (!cuda_index(row, call.key_rows, call.fault, CUDA_FAULT_ATTENTION)) continue;
        low = row < low ? row : low;
        high = row > high ? row : high;
    }
    low = __reduce_min_sync(0xffffffffu, low);
    high = __reduce_max_sync(0xffffffffu, high);
    if (threadIdx.x % 32 == 0) {
        lowest[warp] = low;
        highest[warp] = high;
    }
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < RANGE_THREADS / 32; i++) {
        low = lowest[i] < low ? lowest[i] : low;
        high = highest[i] > high ? highest[i] : high;
    }
    range[blockIdx.x].x = low;
    range[blockIdx.x].y = high;
}

// From a score and dp = dout . v to p and ds.
static __device__ __forceinline__ void back_softmax(float scale, bool seen, float lse, float delta, float *score,
                                                    float *dp) {
    float x = __fadd_rn(__fmul_rn(*score, scale), -lse);
    float p = attention_exp(seen ? x : -INFINITY);
    float ds = __fmul_rn(__fmul_rn(p, __fadd_rn(*dp, -delta)), scale);
    *score = p;
    *dp = seen ? ds : 0.0f;
}

// ---- dq ----

template <int D>
static __device__ __forceinline__ void back_add_rows(const attention_call_t &call, const attention_tile_t &tile,
                                                     int kv_head, const float (&sum)[D][4]) {
    int lane = (int)threadIdx.x % 32;
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        int r = (int)threadIdx.x / 32 * ATTENTION_WARP_ROWS + lane / 4 + i * 8;
        if (r >= tile.rows) continue;
        attention_row_t row = attention_row_at(call, tile, kv_head, r);
        float *to = call.dq + row.query * call.dq_stride + (int64_t)row.head * call.head_dim;
        CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 2; e++) {
            int column = d * 8 + lane % 4 * 2 + e;
            if (column < call.head_dim) to[column] = __fadd_rn(to[column], sum[d][i * 2 + e]);
        }
    }
}

template <typename value_t, int size>
static __global__ void __launch_bounds__(back_shape<value_t, size>::threads, back_shape<value_t, size>::resident)
    attention_dq_kernel(attention_call_t call) {
    typedef back_shape<value_t, size> shape;
    const int threads = shape::threads, rows = shape::rows, N = BACK_N;
    CUDA_DYNAMIC_SHARED(value_t, q);
    value_t *dout = q + rows * shape::stride, *k = dout + rows * shape::stride, *v = k + BACK_KEYS * shape::stride;
    float *scratch = (float *)(void *)(v + BACK_KEYS * shape::stride);
    int kv_head = (int)blockIdx.y, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, low, high;
    attention_tile_t tile;
    if (!attention_take(call, (int64_t)gridDim.x - 1 - blockIdx.x, rows, &tile)) return;
    attention_reach(call, tile, &low, &high);
    attention_load_rows<value_t, size, rows, threads>(q, call, call.q, tile, kv_head);
    attention_load_rows<value_t, size, rows, threads>(dout, call, call.dout, tile, kv_head);
    cuda_copy_commit();
    attention_sight_t sight[2];
    float lse[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, sum[size / 8][4] = {};
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        int r = warp * ATTENTION_WARP_ROWS + lane / 4 + i * 8;
        sight[i] = attention_sight_at(call, tile, r);
        if (r >= tile.rows) continue;
        attention_row_t row = attention_row_at(call, tile, kv_head, r);
        lse[i] = call.lse[row.query * call.heads + row.head];
        delta[i] = call.delta[row.query * call.heads + row.head];
    }
    for (int start = low / BACK_KEYS * BACK_KEYS; start < high; start += BACK_KEYS) {
        attention_load_keys<value_t, size, BACK_KEYS, threads>(k, call, call.k, tile, kv_head, start, low, high);
        attention_load_keys<value_t, size, BACK_KEYS, threads>(v, call, call.v, tile, kv_head, start, low, high);
        cuda_copy_commit();
        cuda_copy_wait<0>();
        __syncthreads();
        float s[N][4] = {}, dp[N][4] = {};
        attention_dot<size>(s, q + warp * ATTENTION_WARP_ROWS * shape::stride, k);
        attention_dot<size>(dp, dout + warp * ATTENTION_WARP_ROWS * shape::stride, v);
        CUDA_UNROLL for (int n = 0; n < N; n++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
            bool seen = attention_sees(call, tile, sight[e / 2], start + n * 8 + lane % 4 * 2 + e % 2);
            back_softmax(call.scale, seen, lse[e / 2], delta[e / 2], &s[n][e], &dp[n][e]);
        }
        attention_add<size>(sum, dp, k, scratch);
        __syncthreads();
    }
    cuda_copy_wait<0>();
    back_add_rows(call, tile, kv_head, sum);
}

// ---- dk and dv ----

// What the queries of one step are to the block, beside their tiles.
typedef struct back_queries {
    attention_sight_t sight[BACK_KEYS];
    float lse[BACK_KEYS], delta[BACK_KEYS];
} back_queries_t;

// Where a sequence lists the rows of this block, and which of its queries may see them.
typedef struct back_span {
    int first, last; // rows of the sequence; first is a multiple of BACK_KEYS
} back_span_t;

// Fills place[] with 1 + the position of each row, 0 for rows that the sequence does not list.
template <int rows, int threads>
static __device__ __forceinline__ back_span_t back_find(const attention_call_t &call, const attention_tile_t &tile,
                                                        int first_row, unsigned *place) {
    const attention_mask_t &mask = call.mask;
    for (int r = (int)threadIdx.x; r < rows; r += threads) place[r] = 0;
    __syncthreads();
    for (int j = (int)threadIdx.x; j < tile.keys; j += threads) {
        int r = mask.key_row[tile.key + j] - first_row;
        if (r < 0 || r >= rows) continue;
        // A row that is listed twice has no place of its own.
        cuda_index(atomicMax(&place[r], (unsigned)j + 1u) ? -1 : 0, 1, call.fault, CUDA_FAULT_ATTENTION);
    }
    __syncthreads();
    unsigned low = 0xffffffffu, high = 0;
    bool grouped = false;
    for (int r = (int)threadIdx.x % 32; r < rows; r += 32) {
        unsigned at = place[r];
        if (!at) continue;
        low = at < low ? at : low;
        high = at > high ? at : high;
        grouped |= mask.group && mask.group[tile.key + (int)at - 1] >= 0;
    }
    low = __reduce_min_sync(0xffffffffu, low);
    high = __reduce_max_sync(0xffffffffu, high);
    grouped = __any_sync(0xffffffffu, grouped);
    if (!high) return back_span_t{0, 0};
    int64_t first = mask.causal && !grouped ? (int64_t)low - 1 - tile.position : 0, last = tile.rows / call.group;
    if (mask.window > 0 && (int64_t)high - 1 + mask.window - tile.position < last)
        last = (int64_t)high - 1 + mask.window - tile.position;
    if (first < 0) first = 0;
    if (last <= first) return back_span_t{0, 0};
    return back_span_t{(int)(first * call.group / BACK_KEYS * BACK_KEYS), (int)(last * call.group)};
}

template <int threads>
static __device__ __forceinline__ void back_fill_queries(const attention_call_t &call, const attention_tile_t &tile,
                                                         int kv_head, back_queries_t &queries) {
    for (int r = (int)threadIdx.x; r < BACK_KEYS; r += threads) {
        queries.sight[r] = attention_sight_at(call, tile, r);
        attention_row_t row = attention_row_at(call, tile, kv_head, r < tile.rows ? r : 0);
        queries.lse[r] = call.lse[row.query * call.heads + row.head];
        queries.delta[r] = call.delta[row.query * call.heads + row.head];
    }
}

template <int D>
static __device__ __forceinline__ void back_add_keys(const attention_call_t &call, float *to, int64_t stride,
                                                     int first_row, int kv_head, int first_column,
                                                     const float (&sum)[D][4]) {
    int lane = (int)threadIdx.x % 32;
    CUDA_UNROLL for (int i = 0; i < 2; i++) {
        int row = first_row + (int)threadIdx.x / 32 * ATTENTION_WARP_ROWS + lane / 4 + i * 8;
        if (row >= call.key_rows) continue;
        float *at = to + row * stride + (int64_t)kv_head * call.head_dim;
        CUDA_UNROLL for (int d = 0; d < D; d++) CUDA_UNROLL for (int e = 0; e < 2; e++) {
            int column = first_column + d * 8 + lane % 4 * 2 + e;
            if (column < call.head_dim) at[column] = __fadd_rn(at[column], sum[d][i * 2 + e]);
        }
    }
}

// What a block of the pass has in shared memory.
template <typename value_t, int size> struct back_tiles {
    value_t *k, *v, *q, *dout;
    float *scratch;
    unsigned *place;
    back_queries_t *queries;
};

// One sequence's queries, in steps of BACK_KEYS rows: rows and columns have changed places, a thread's rows are keys.
template <typename value_t, int size, int D>
static __device__ __forceinline__ void
back_sequence(const attention_call_t &call, const attention_tile_t &whole, const back_span_t &span, int kv_head,
              int first_column, const back_tiles<value_t, size> &tiles, float (&dk)[D][4], float (&dv)[D][4]) {
    typedef back_shape<value_t, size> shape;
    const int threads = shape::threads, N = BACK_N;
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, own = warp * ATTENTION_WARP_ROWS;
    int place[2] = {(int)tiles.place[own + lane / 4] - 1, (int)tiles.place[own + lane / 4 + 8] - 1};
    for (int first = span.first; first < span.last; first += BACK_KEYS) {
        attention_tile_t tile = whole;
        tile.first = first;
        tile.rows = whole.rows - first < BACK_KEYS ? whole.rows - first : BACK_KEYS;
        __syncthreads(); // nobody needs the last step's tiles any more
        attention_load_rows<value_t, size, BACK_KEYS, threads>(tiles.q, call, call.q, tile, kv_head);
        attention_load_rows<value_t, size, BACK_KEYS, threads>(tiles.dout, call, call.dout, tile, kv_head);
        cuda_copy_commit();
        back_fill_queries<threads>(call, tile, kv_head, *tiles.queries);
        cuda_copy_wait<0>();
        __syncthreads();
        float s[N][4] = {}, dp[N][4] = {};
        attention_dot<size>(s, tiles.k + own * shape::stride, tiles.q);
        attention_dot<size>(dp, tiles.v + own * shape::stride, tiles.dout);
        CUDA_UNROLL for (int n = 0; n < N; n++) CUDA_UNROLL for (int e = 0; e < 4; e++) {
            int r = n * 8 + lane % 4 * 2 + e % 2, at = place[e / 2];
            bool seen = at >= 0 && attention_sees(call, tile, tiles.queries->sight[r], at);
            back_softmax(call.scale, seen, tiles.queries->lse[r], tiles.queries->delta[r], &s[n][e], &dp[n][e]);
        }
        attention_add<size>(dv, s, tiles.dout + first_column, tiles.scratch);
        attention_add<size>(dk, dp, tiles.q + first_column, tiles.scratch);
    }
}

template <typename value_t, int size>
static __global__ void __launch_bounds__(back_shape<value_t, size>::threads)
    attention_dkv_kernel(attention_call_t call) {
    typedef back_shape<value_t, size> shape;
    const int threads = shape::threads, rows = shape::rows, D = shape::columns / 8;
    CUDA_DYNAMIC_SHARED(value_t, k);
    CUDA_SHARED(unsigned, place, [rows]);
    CUDA_SHARED(unsigned, found, [shape::warps]);
    CUDA_SHARED(back_queries_t, queries, [1]);
    value_t *v = k + rows * shape::stride, *q = v + rows * shape::stride, *dout = q + BACK_KEYS * shape::stride;
    back_tiles<value_t, size> tiles = {k,     v,      q, dout, (float *)(void *)(dout + BACK_KEYS * shape::stride),
                                       place, queries};
    int first_row = (int)blockIdx.x * rows, kv_head = (int)blockIdx.y, first_column = (int)blockIdx.z * shape::columns;
    auto at = [&](const attention_source_t &source) {
        return [&](int r) -> int64_t {
            if (first_row + r >= call.key_rows) return -1;
            return (int64_t)(first_row + r) * source.stride + (int64_t)kv_head * call.head_dim;
        };
    };
    attention_load<value_t, size, rows, threads>(k, call.k, call.head_dim, at(call.k));
    attention_load<value_t, size, rows, threads>(v, call.v, call.head_dim, at(call.v));
    cuda_copy_commit();
    float dk[D][4] = {}, dv[D][4] = {};
    for (int base = 0; base < call.mask.sequences; base += threads) {
        int mine = base + (int)threadIdx.x;
        bool meets = mine < call.mask.sequences && call.row_range[mine].x < first_row + rows &&
                     call.row_range[mine].y >= first_row;
        unsigned vote = __ballot_sync(0xffffffffu, meets);
        if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = vote;
        __syncthreads();
        for (int i = 0; i < threads; i++) {
            if (!(found[i / 32] >> i % 32 & 1u)) continue;
            attention_tile_t whole;
            if (!attention_sequence(call, base + i, &whole)) continue;
            back_span_t span = back_find<rows, threads>(call, whole, first_row, place);
            back_sequence<value_t, size>(call, whole, span, kv_head, first_column, tiles, dk, dv);
            __syncthreads(); // nobody needs place[] any more
        }
        __syncthreads(); // nor found[]
    }
    cuda_copy_wait<0>();
    back_add_keys(call, call.dk, call.dk_stride, first_row, kv_head, first_column, dk);
    back_add_keys(call, call.dv, call.dv_stride, first_row, kv_head, first_column, dv);
}

// ---- launches ----

template <typename value_t, int size> static status_t attention_back(const attention_call_t *given, void *stream) {
    typedef back_shape<value_t, size> shape;
    attention_call_t call = *given;
    auto dq = attention_dq_kernel<value_t, size>, dkv = attention_dkv_kernel<value_t, size>;
    unsigned heads = (unsigned)call.kv_heads, tiles = (unsigned)((call.key_rows + shape::rows - 1) / shape::rows);
    TRY(CUDA_GRANT_SHARED(dq, shape::bytes));
    TRY(CUDA_LAUNCH(dq, dim3(attention_slots(call, shape::rows), heads), dim3(shape::threads), shape::bytes, stream,
                    call));
    TRY(CUDA_GRANT_SHARED(dkv, shape::bytes));
    return CUDA_LAUNCH(dkv, dim3(tiles, heads, shape::halves), dim3(shape::threads), shape::bytes, stream, call);
}

static status_t attention_back_sized(const attention_call_t *call, bool halves, void *stream) {
    if (halves && call->head_dim <= 64) return attention_back<bf16_t, 64>(call, stream);
    if (halves && call->head_dim <= 80) return attention_back<bf16_t, 80>(call, stream);
    if (halves && call->head_dim <= 128) return attention_back<bf16_t, 128>(call, stream);
    if (halves) return attention_back<bf16_t, 256>(call, stream);
    if (call->head_dim <= 64) return attention_back<float, 64>(call, stream);
    return call->head_dim <= 128 ? attention_back<float, 128>(call, stream) : attention_back<float, 256>(call, stream);
}

static status_t attention_delta(const attention_call_t *given, float *delta, bf16_t *half, void *stream) {
    attention_call_t call = *given;
    int64_t warps = (int64_t)call.query_rows * call.heads, each = DELTA_THREADS / 32;
    dim3 grid((unsigned)((warps + each - 1) / each)), block(DELTA_THREADS);
    if (call.out_half) {
        const bf16_t *out = (const bf16_t *)call.out;
        return CUDA_LAUNCH(attention_delta_kernel<bf16_t>, grid, block, 0, stream, call, out, delta, half);
    }
    const float *out = (const float *)call.out;
    return CUDA_LAUNCH(attention_delta_kernel<float>, grid, block, 0, stream, call, out, delta, half);
}

static size_t attention_rounded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

extern "C" status_t CUDA_NAME(attention_backward)(device_t *device, const attention_args_t *args,
                                                  const attention_gradients_t *gradients) {
    TRY(check_attention_backward(args, gradients));
    bool halves = attention_halves(args);
    size_t numbers = (size_t)args->q.rows * (size_t)args->heads;
    size_t deltas = attention_rounded(numbers * sizeof(float));
    size_t ranges = attention_rounded((size_t)args->mask.sequences * sizeof(int2));
    size_t copies = halves ? numbers * (size_t)args->head_dim * sizeof(bf16_t) : 0;
    char *scratch;
    TRY(device_workspace(device, deltas + ranges + copies, (void **)&scratch));
    if (device->measuring || args->q.rows == 0 || args->k.rows == 0 || args->mask.sequences == 0) return STATUS_OK;
    void *stream = cuda_stream(device);
    attention_call_t call = attention_call_of(args, cuda_fault(device));
    float *delta = (float *)(void *)scratch;
    int2 *range = (int2 *)(void *)(scratch + deltas);
    bf16_t *half = halves ? (bf16_t *)(void *)(scratch + deltas + ranges) : NULL;
    call.dout = attention_source_of(&gradients->dout, args->head_dim);
    call.dq = (float *)gradients->dq.data;
    call.dk = (float *)gradients->dk.data;
    call.dv = (float *)gradients->dv.data;
    call.dq_stride = gradients->dq.stride;
    call.dk_stride = gradients->dk.stride;
    call.dv_stride = gradients->dv.stride;
    TRY(attention_delta(&call, delta, half, stream));
    TRY(CUDA_LAUNCH(attention_range_kernel, dim3((unsigned)args->mask.sequences), dim3(RANGE_THREADS), 0, stream, call,
                    range));
    call.delta = delta;
    call.row_range = range;
    if (halves) {
        matrix_t copy = matrix_view(half, DTYPE_BF16, args->q.rows, args->q.columns);
        call.dout = attention_source_of(&copy, args->head_dim);
    }
    return attention_back_sized(&call, halves, stream);
}
