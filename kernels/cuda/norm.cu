// rmsnorm, layernorm and their backwards, with the bits of the CPU's kernels: a row's sums run in 16 lanes (column i in
// lane i mod 16, in order) and fold 8-4-2-1; a leaf's sum over its rows runs in order. Such chains are short beside the
// memory they wait for as long as their operands come from shared memory: a block stages tiles with wide loads, and
// half a warp sums each row.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_rows.h"

enum { NORM_THREADS = 128, NORM_LANES = 16, NORM_ROWS = NORM_THREADS / NORM_LANES, NORM_TILE = 4096 };

// How rows are laid out in a tile of NORM_TILE numbers: up to 8 short rows a block, or a long row in parts.
typedef struct norm_shape {
    int rows, columns;
    int each;   // rows of a block
    int stride; // numbers of a row in the tile
    int width;  // columns that are staged at a time
} norm_shape_t;

// arrays: numbers that are staged for a column.
static norm_shape_t norm_shape_of(int rows, int columns, int arrays) {
    norm_shape_t shape = {rows, columns, 1, NORM_TILE / arrays, NORM_TILE / arrays};
    // The rows that the two halves of a warp read begin 16 banks apart.
    int stride = (columns + 31) / 32 * 32 + NORM_LANES, each = NORM_TILE / arrays / stride;
    if (each < 2) return shape;
    shape.each = each < NORM_ROWS ? each : NORM_ROWS;
    shape.stride = stride;
    return shape;
}
static unsigned norm_blocks(const norm_shape_t *shape) {
    return (unsigned)((shape->rows + shape->each - 1) / shape->each);
}

// This thread's part of the elementwise passes over the block's rows: packs lane, lane + per, ... of one row.
typedef struct norm_place {
    int64_t row;
    int slot, lane, per; // slot: the row's place in the block, -1: none
} norm_place_t;
static __device__ __forceinline__ norm_place_t norm_place_of(const norm_shape_t &shape) {
    int per = NORM_THREADS / shape.each, slot = (int)threadIdx.x / per;
    int64_t row = (int64_t)blockIdx.x * shape.each + slot;
    norm_place_t place = {row, slot < shape.each && row < shape.rows ? slot : -1, (int)threadIdx.x % per, per};
    return place;
}

static __device__ __forceinline__ void tile_put(float *at, const float (&value)[PACK]) {
    ((float4 *)at)[0] = make_float4(value[0], value[1], value[2], value[3]);
    ((float4 *)at)[1] = make_float4(value[4], value[5], value[6], value[7]);
}
static __device__ __forceinline__ void tile_get(const float *at, float (&value)[PACK]) {
    float4 low = ((const float4 *)at)[0], high = ((const float4 *)at)[1];
    float all[PACK] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    for (int i = 0; i < PACK; i++) value[i] = all[i];
}

// The columns first .. of the block's rows, as f32.
static __device__ __forceinline__ void norm_stage(const norm_shape_t &shape, const norm_place_t &place, const rows_t &x,
                                                  int first, float *tile) {
    int left = shape.columns - first, count = left < shape.width ? left : shape.width;
    for (int c = place.lane * PACK; place.slot >= 0 && c < count; c += place.per * PACK) {
        float value[PACK];
        rows_get(x, place.row, first + c, shape.columns, value);
        tile_put(tile + place.slot * shape.stride + c, value);
    }
}

// The sum of a lane's value over the 16 lanes of its row, in all of them.
static __device__ __forceinline__ float norm_fold(float value) {
    for (unsigned by = NORM_LANES / 2; by; by /= 2)
        value = __fadd_rn(value, __shfl_down_sync(0xffffffffu, value, by, NORM_LANES));
    return __shfl_sync(0xffffffffu, value, 0, NORM_LANES);
}

enum norm_sum { NORM_SUM, NORM_SQUARES };
// The sum of x - from, or of its square, over the row of this half warp, the same in its lanes. staged: the tile holds
// the whole row already. All threads of the block call it; it leaves the last part of the row in the tile.
template <norm_sum kind>
static __device__ __forceinline__ float norm_row_sum(const norm_shape_t &shape, const norm_place_t &place,
                                                     const rows_t &x, bool staged, float from, float *tile) {
    int slot = (int)threadIdx.x / NORM_LANES, lane = (int)threadIdx.x % NORM_LANES;
    bool mine = slot < shape.each && (int64_t)blockIdx.x * shape.each + slot < shape.rows;
    float sum = 0.0f;
    for (int first = 0; first < shape.columns; first += shape.width) {
        int left = shape.columns - first, count = left < shape.width ? left : shape.width;
        if (!staged) {
            __syncthreads(); // nobody reads the part before any more
            norm_stage(shape, place, x, first, tile);
            __syncthreads();
        }
        const float *at = tile + slot * shape.stride;
        int end = mine ? count : 0;
        for (int c = lane; c < end; c += NORM_LANES) {
            float v = at[c];
            if (kind == NORM_SQUARES) {
                v = __fadd_rn(v, -from);
                sum = __fmaf_rn(v, v, sum);
            } else
                sum = __fadd_rn(sum, v);
        }
    }
    return norm_fold(sum);
}

static __device__ __forceinline__ float norm_weight(const float *weight, int c, int columns, bool one_plus) {
    if (c >= columns) return 0.0f;
    return one_plus ? __fadd_rn(1.0f, weight[c]) : weight[c];
}

// ---- forward ----

typedef struct norm {
    rows_t x, y;
    const float *weight, *bias;
    float *mean, *rstd;
    float eps;
    bool one_plus; // rmsnorm: the weight is 1 + w
    bool cast;     // rmsnorm: the normalised value is rounded before the weight meets it
} norm_t;

template <bool centred> // layernorm
static __global__ void __launch_bounds__(NORM_THREADS) norm_kernel(norm_shape_t shape, norm_t norm) {
    CUDA_SHARED(float, tile, [NORM_TILE]);
    CUDA_SHARED(float, level, [2][NORM_ROWS]); // the rows' means and rstd
    norm_place_t place = norm_place_of(shape);
    int thread = (int)threadIdx.x, columns = shape.columns;
    bool whole = columns <= shape.width;
    float mean = 0.0f;
    if (centred) mean = __fdiv_rn(norm_row_sum<NORM_SUM>(shape, place, norm.x, false, 0.0f, tile), (float)columns);
    float squares = norm_row_sum<NORM_SQUARES>(shape, place, norm.x, centred && whole, mean, tile);
    float rstd = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, (float)columns), norm.eps)));
    if (thread % NORM_LANES == 0) {
        level[0][thread / NORM_LANES] = mean;
        level[1][thread / NORM_LANES] = rstd;
    }
    __syncthreads();
    if (place.slot < 0) return;
    mean = level[0][place.slot];
    rstd = level[1][place.slot];
    if (place.lane == 0) {
        norm.rstd[place.row] = rstd;
        if (centred) norm.mean[place.row] = mean;
    }
    for (int c = place.lane * PACK; c < columns; c += place.per * PACK) {
        float value[PACK];
        if (whole)
            tile_get(tile + place.slot * shape.stride + c, value);
        else
            rows_get(norm.x, place.row, c, columns, value);
        for (int i = 0; i < PACK; i++) {
            float hat = __fmul_rn(centred ? __fadd_rn(value[i], -mean) : value[i], rstd);
            float weight = norm_weight(norm.weight, c + i, columns, norm.one_plus);
            if (!centred && norm.cast) hat = __bfloat162float(__float2bfloat16_rn(hat));
            value[i] = centred ? __fmaf_rn(hat, weight, norm.bias && c + i < columns ? norm.bias[c + i] : 0.0f)
                               : __fmul_rn(hat, weight);
        }
        rows_put(norm.y, place.row, c, columns, value);
    }
}

// ---- dx ----

// g = dy w and xhat of 8 columns.
template <bool centred>
static __device__ __forceinline__ void norm_pack(const norm_t &norm, const rows_t &dy, int64_t row, int c, int columns,
                                                 float mean, float rstd, float (&g)[PACK], float (&hat)[PACK]) {
    rows_get(dy, row, c, columns, g);
    rows_get(norm.x, row, c, columns, hat);
    for (int i = 0; i < PACK; i++) {
        g[i] = __fmul_rn(g[i], norm_weight(norm.weight, c + i, columns, norm.one_plus));
        hat[i] = __fmul_rn(centred ? __fadd_rn(hat[i], -mean) : hat[i], rstd);
    }
}

// rmsnorm: dx += rstd (g - xhat mean(g xhat)); layernorm: dx += rstd (g - mean(g) - xhat mean(g xhat)).
template <bool centred>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_dx_kernel(norm_shape_t shape, norm_t norm, rows_t dy, rows_t dx) {
    CUDA_SHARED(float, g_tile, [NORM_TILE / 2]);
    CUDA_SHARED(float, hat_tile, [NORM_TILE / 2]);
    CUDA_SHARED(float, level, [2][NORM_ROWS]);
    norm_place_t place = norm_place_of(shape);
    int slot = (int)threadIdx.x / NORM_LANES, lane = (int)threadIdx.x % NORM_LANES, columns = shape.columns;
    bool summed = slot < shape.each && (int64_t)blockIdx.x * shape.each + slot < shape.rows;
    bool mine = place.slot >= 0, whole = columns <= shape.width;
    float mean = mine && centred ? norm.mean[place.row] : 0.0f, rstd = mine ? norm.rstd[place.row] : 0.0f;
    float plain = 0.0f, product = 0.0f, g[PACK], hat[PACK];
    for (int first = 0; first < columns; first += shape.width) {
        int count = columns - first < shape.width ? columns - first : shape.width;
        if (first) __syncthreads(); // nobody reads the part before any more
        for (int c = place.lane * PACK; mine && c < count; c += place.per * PACK) {
            norm_pack<centred>(norm, dy, place.row, first + c, columns, mean, rstd, g, hat);
            tile_put(g_tile + place.slot * shape.stride + c, g);
            tile_put(hat_tile + place.slot * shape.stride + c, hat);
        }
        __syncthreads();
        int end = summed ? count : 0;
        for (int c = lane; c < end; c += NORM_LANES) {
            float v = g_tile[slot * shape.stride + c];
            if (centred) plain = __fadd_rn(plain, v);
            product = __fmaf_rn(v, hat_tile[slot * shape.stride + c], product);
        }
    }
    plain = centred ? norm_fold(plain) : 0.0f;
    product = norm_fold(product);
    if (lane == 0) {
        level[0][slot] = __fdiv_rn(plain, (float)columns);
        level[1][slot] = __fdiv_rn(product, (float)columns);
    }
    __syncthreads();
    if (!mine) return;
    plain = level[0][place.slot];
    product = level[1][place.slot];
    for (int c = place.lane * PACK; c < columns; c += place.per * PACK) {
        float sum[PACK];
        if (whole) {
            tile_get(g_tile + place.slot * shape.stride + c, g);
            tile_get(hat_tile + place.slot * shape.stride + c, hat);
        } else
            norm_pack<centred>(norm, dy, place.row, c, columns, mean, rstd, g, hat);
        rows_get(dx, place.row, c, columns, sum);
        for (int i = 0; i < PACK; i++) {
            float inner = centred ? __fadd_rn(g[i], -plain) : g[i];
            sum[i] = __fmaf_rn(rstd, __fadd_rn(inner, -__fmul_rn(hat[i], product)), sum[i]);
        }
        rows_put(dx, place.row, c, columns, sum);
    }
}

// ---- parameters ----

// Leaves of one launch: their bounds travel as an argument.
enum { FOLD_COLUMNS = 32, FOLD_WARPS = 8, FOLD_ROWS = 64, FOLD_EACH = FOLD_ROWS / FOLD_WARPS, FOLD_LEAVES = 256 };
typedef struct fold_leaves {
    int32_t start[FOLD_LEAVES + 1];
} fold_leaves_t;
typedef struct fold_sinks {
    int64_t *weight, *bias; // NULL: frozen
    unsigned *weight_flags, *bias_flags;
    double weight_factor, bias_factor;
} fold_sinks_t;

template <bool centred>
static __device__ __forceinline__ void fold_fetch(const norm_t &norm, const rows_t &dy, int row, int last, int c,
                                                  int columns, float (&g)[FOLD_EACH], float (&hat)[FOLD_EACH]) {
    for (int i = 0; i < FOLD_EACH; i++) {
        int64_t r = row + i * FOLD_WARPS + (int)threadIdx.y;
        g[i] = hat[i] = 0.0f;
        if (r >= last || c >= columns) continue;
        float x = norm.x.half ? cuda_get((const bf16_t *)norm.x.data + r * norm.x.stride + c)
                              : cuda_get((const float *)norm.x.data + r * norm.x.stride + c);
        g[i] = ((const float *)dy.data)[r * dy.stride + c];
        hat[i] = __fmul_rn(centred ? __fadd_rn(x, -norm.mean[r]) : x, norm.rstd[r]);
    }
}

// A block has 32 columns of one leaf: dw = sum of dy xhat and db = sum of dy, over its rows in order. Two warps sum
// (one each) while the next 64 rows are on their way to all.
template <bool centred>
static __global__ void __launch_bounds__(FOLD_COLUMNS *FOLD_WARPS)
    norm_dweight_kernel(norm_t norm, rows_t dy, fold_leaves_t leaves, fold_sinks_t sinks, int columns) {
    CUDA_SHARED(float, g_tile, [FOLD_ROWS][FOLD_COLUMNS]);
    CUDA_SHARED(float, hat_tile, [FOLD_ROWS][FOLD_COLUMNS]);
    int lane = (int)threadIdx.x, warp = (int)threadIdx.y, c = (int)blockIdx.x * FOLD_COLUMNS + lane;
    int first = leaves.start[blockIdx.y], last = leaves.start[blockIdx.y + 1];
    float g[FOLD_EACH], hat[FOLD_EACH], sum = 0.0f;
    fold_fetch<centred>(norm, dy, first, last, c, columns, g, hat);
    for (int row = first; row < last; row += FOLD_ROWS) {
        for (int i = 0; i < FOLD_EACH; i++) {
            g_tile[i * FOLD_WARPS + warp][lane] = g[i];
            hat_tile[i * FOLD_WARPS + warp][lane] = hat[i];
        }
        __syncthreads();
        fold_fetch<centred>(norm, dy, row + FOLD_ROWS, last, c, columns, g, hat);
        int count = last - row < FOLD_ROWS ? last - row : FOLD_ROWS;
        if (warp == 0)
            for (int r = 0; r < count; r++) sum = __fmaf_rn(g_tile[r][lane], hat_tile[r][lane], sum);
        if (centred && warp == 1)
            for (int r = 0; r < count; r++) sum = __fadd_rn(sum, g_tile[r][lane]);
        __syncthreads();
    }
    if (c >= columns) return;
    if (warp == 0 && sinks.weight) cuda_sink_add(sinks.weight + c, sinks.weight_flags, sinks.weight_factor, sum);
    if (warp == 1 && sinks.bias) cuda_sink_add(sinks.bias + c, sinks.bias_flags, sinks.bias_factor, sum);
}

template <bool centred>
static status_t norm_dweight(const norm_t *given, const matrix_t *dy_matrix, int columns, const leaves_t *leaves,
                             const gradient_sink_t *weight, const gradient_sink_t *bias, void *stream) {
    auto kernel = norm_dweight_kernel<centred>;
    norm_t norm = *given;
    rows_t dy = rows_of(dy_matrix);
    fold_sinks_t sinks = {};
    if (weight) {
        sinks.weight = weight->sum;
        sinks.weight_flags = weight->flags;
        sinks.weight_factor = ldexp(1.0, weight->exponent);
    }
    if (bias) {
        sinks.bias = bias->sum;
        sinks.bias_flags = bias->flags;
        sinks.bias_factor = ldexp(1.0, bias->exponent);
    }
    if (!weight && !bias) return STATUS_OK;
    for (int leaf = 0; leaf < leaves->count; leaf += FOLD_LEAVES) {
        fold_leaves_t some;
        int count = leaves->count - leaf < FOLD_LEAVES ? leaves->count - leaf : FOLD_LEAVES;
        for (int i = 0; i <= count; i++) some.start[i] = leaves->start[leaf + i];
        TRY(CUDA_LAUNCH(kernel, dim3((unsigned)(columns + FOLD_COLUMNS - 1) / FOLD_COLUMNS, (unsigned)count),
                        dim3(FOLD_COLUMNS, FOLD_WARPS), 0, stream, norm, dy, some, sinks, columns));
    }
    return STATUS_OK;
}

template <bool centred>
static status_t norm_dx(const norm_t *given, const matrix_t *dy_matrix, const matrix_t *dx_matrix, void *stream) {
    auto kernel = norm_dx_kernel<centred>;
    norm_shape_t shape = norm_shape_of(dy_matrix->rows, dy_matrix->columns, 2);
    norm_t norm = *given;
    rows_t dy = rows_of(dy_matrix), dx = rows_of(dx_matrix);
    if (!dx.data || shape.rows == 0) return STATUS_OK;
    return CUDA_LAUNCH(kernel, dim3(norm_blocks(&shape)), dim3(NORM_THREADS), 0, stream, shape, norm, dy, dx);
}

// ---- the ops ----

static norm_t rmsnorm_of(const rmsnorm_args_t *args) {
    norm_t norm = {};
    norm.x = rows_of(&args->x);
    norm.y = rows_of(&args->y);
    norm.weight = args->weight;
    norm.rstd = args->rstd;
    norm.eps = args->eps;
    norm.one_plus = args->flavour == NORM_ONE_PLUS_WEIGHT;
    norm.cast = !norm.one_plus && norm.y.half;
    return norm;
}

extern "C" status_t CUDA_NAME(rmsnorm)(device_t *device, const rmsnorm_args_t *args) {
    TRY(check_rmsnorm(args));
    if (device->measuring || args->x.rows == 0) return STATUS_OK;
    auto kernel = norm_kernel<false>;
    norm_t norm = rmsnorm_of(args);
    norm_shape_t shape = norm_shape_of(args->x.rows, args->x.columns, 1);
    return CUDA_LAUNCH(kernel, dim3(norm_blocks(&shape)), dim3(NORM_THREADS), 0, cuda_stream(device), shape, norm);
}

extern "C" status_t CUDA_NAME(rmsnorm_backward)(device_t *device, const rmsnorm_args_t *args,
                                                const rmsnorm_gradients_t *gradients) {
    TRY(check_rmsnorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    norm_t norm = rmsnorm_of(args);
    void *stream = cuda_stream(device);
    TRY(norm_dx<false>(&norm, &gradients->dy, &gradients->dx, stream));
    return norm_dweight<false>(&norm, &gradients->dy, args->x.columns, &gradients->leaves, gradients->weight, NULL,
                               stream);
}

static norm_t layernorm_of(const layernorm_args_t *args) {
    norm_t norm = {};
    norm.x = rows_of(&args->x);
    norm.y = rows_of(&args->y);
    norm.weight = args->weight;
    norm.bias = args->bias;
    norm.mean = args->mean;
    norm.rstd = args->rstd;
    norm.eps = args->eps;
    return norm;
}

extern "C" status_t CUDA_NAME(layernorm)(device_t *device, const layernorm_args_t *args) {
    TRY(check_layernorm(args));
    if (device->measuring || args->x.rows == 0) return STATUS_OK;
    auto kernel = norm_kernel<true>;
    norm_t norm = layernorm_of(args);
    norm_shape_t shape = norm_shape_of(args->x.rows, args->x.columns, 1);
    return CUDA_LAUNCH(kernel, dim3(norm_blocks(&shape)), dim3(NORM_THREADS), 0, cuda_stream(device), shape, norm);
}

extern "C" status_t CUDA_NAME(layernorm_backward)(device_t *device, const layernorm_args_t *args,
                                                  const layernorm_gradients_t *gradients) {
    TRY(check_layernorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    norm_t norm = layernorm_of(args);
    void *stream = cuda_stream(device);
    TRY(norm_dx<true>(&norm, &gradients->dy, &gradients->dx, stream));
    return norm_dweight<true>(&norm, &gradients->dy, args->x.columns, &gradients->leaves, gradients->weight,
                              gradients->bias, stream);
}
