// y = x W^T + bias. One block makes one tile of y and goes through all of K by itself, in order: no split of K, so a
// row's bits depend on that row and W alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"

// Tensor cores: 4 warps, each 32 x 32 of the 64 x 64 tile; two tiles of K in shared memory, one in use while the other
// is on its way. The padding of a row by 8 elements keeps ldmatrix free of bank conflicts.
enum { TILE = 64, TILE_K = 32, TILE_STRIDE = TILE_K + 8, STAGES = 2, GEMM_THREADS = 128, CHUNK = 8 };
// Plain FMAs: 16 x 16 threads, an output each.
enum { PLAIN = 16 };

// Rows first .. first + TILE - 1 and columns k .. k + TILE_K - 1 of a matrix; what lies outside becomes zeros.
template <bool aligned>
static __device__ __forceinline__ void load_tile(bf16_t (&tile)[TILE][TILE_STRIDE], const bf16_t *from, int64_t stride,
                                                 int first, int rows, int k, int columns) {
    for (int i = (int)threadIdx.x; i < TILE * TILE_K / CHUNK; i += GEMM_THREADS) {
        int r = i / (TILE_K / CHUNK), c = i % (TILE_K / CHUNK) * CHUNK, row = first + r;
        int left = row < rows ? columns - k - c : 0;
        left = left < 0 ? 0 : left > CHUNK ? CHUNK : left;
        const bf16_t *at = left ? from + row * stride + k + c : from;
        if constexpr (aligned)
            cuda_copy_async16(&tile[r][c], at, left * (int)sizeof(bf16_t));
        else
            for (int e = 0; e < CHUNK; e++) tile[r][c + e] = e < left ? at[e] : __float2bfloat16_rn(0.0f);
    }
}

template <typename y_t>
static __device__ __forceinline__ void store_tile(const float (&sum)[2][4][4], const float *bias, y_t *y,
                                                  int64_t stride, int row, int column, int rows, int columns) {
    int lane = (int)threadIdx.x % 32;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            for (int e = 0; e < 4; e++) {
                int r = row + i * 16 + lane / 4 + e / 2 * 8, c = column + j * 8 + lane % 4 * 2 + e % 2;
                if (r < rows && c < columns)
                    cuda_put(y + r * stride + c, bias ? __fadd_rn(sum[i][j][e], bias[c]) : sum[i][j][e]);
            }
}

template <typename y_t, bool aligned>
static __global__ void __launch_bounds__(GEMM_THREADS)
    gemm_bf16_kernel(const bf16_t *x, int64_t x_stride, const bf16_t *w, int64_t w_stride, const float *bias, y_t *y,
                     int64_t y_stride, int m, int n, int k) {
    CUDA_SHARED(bf16_t, a_tile, [STAGES][TILE][TILE_STRIDE]);
    CUDA_SHARED(bf16_t, b_tile, [STAGES][TILE][TILE_STRIDE]);
    int row = (int)blockIdx.y * TILE, column = (int)blockIdx.x * TILE, lane = (int)threadIdx.x % 32;
    int warp_row = (int)threadIdx.x / 64 * 32, warp_column = (int)threadIdx.x / 32 % 2 * 32;
    float sum[2][4][4] = {};
    load_tile<aligned>(a_tile[0], x, x_stride, row, m, 0, k);
    load_tile<aligned>(b_tile[0], w, w_stride, column, n, 0, k);
    cuda_copy_commit();
    for (int step = 0; step * TILE_K < k; step++) {
        int now = step % STAGES, next = (step + 1) % STAGES;
        cuda_copy_wait<0>();
        __syncthreads(); // the tile is whole, and nobody reads the other one any more
        if ((step + 1) * TILE_K < k) {
            load_tile<aligned>(a_tile[next], x, x_stride, row, m, (step + 1) * TILE_K, k);
            load_tile<aligned>(b_tile[next], w, w_stride, column, n, (step + 1) * TILE_K, k);
            cuda_copy_commit();
        }
        for (int part = 0; part < TILE_K; part += 16) {
            unsigned a[2][4], b[2][4];
            for (int i = 0; i < 2; i++)
                cuda_load_matrices(a[i], &a_tile[now][warp_row + i * 16 + lane % 16][part + lane / 16 * 8]);
            for (int j = 0; j < 2; j++)
                cuda_load_matrices(
                    b[j], &b_tile[now][warp_column + j * 16 + lane / 16 * 8 + lane % 8][part + lane / 8 % 2 * 8]);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4; j++) {
                    unsigned half[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    cuda_mma_bf16(sum[i][j], a[i], half);
                }
        }
    }
    store_tile(sum, bias, y, y_stride, row + warp_row, column + warp_column, m, n);
}

template <typename x_t, typename w_t, typename y_t>
static __global__ void __launch_bounds__(PLAIN *PLAIN)
    gemm_plain_kernel(const x_t *x, int64_t x_stride, const w_t *w, int64_t w_stride, const float *bias, y_t *y,
                      int64_t y_stride, int m, int n, int k) {
    CUDA_SHARED(float, a_tile, [PLAIN][PLAIN + 1]);
    CUDA_SHARED(float, b_tile, [PLAIN][PLAIN + 1]);
    int i = (int)threadIdx.y, j = (int)threadIdx.x;
    int row = (int)blockIdx.y * PLAIN + i, column = (int)blockIdx.x * PLAIN + j, other = (int)blockIdx.x * PLAIN + i;
    float sum = 0.0f;
    for (int first = 0; first < k; first += PLAIN) {
        bool inside = first + j < k;
        a_tile[i][j] = inside && row < m ? cuda_get(x + row * x_stride + first + j) : 0.0f;
        b_tile[i][j] = inside && other < n ? cuda_get(w + other * w_stride + first + j) : 0.0f;
        __syncthreads();
        for (int e = 0; e < PLAIN && first + e < k; e++) sum = __fmaf_rn(a_tile[i][e], b_tile[j][e], sum);
        __syncthreads();
    }
    if (row < m && column < n) cuda_put(y + row * y_stride + column, bias ? __fadd_rn(sum, bias[column]) : sum);
}

static dim3 tiles(const linear_args_t *args, int side) {
    return dim3((unsigned)((args->y.columns + side - 1) / side), (unsigned)((args->y.rows + side - 1) / side));
}

static bool rows_aligned(matrix_t m) {
    return (uintptr_t)m.data % 16 == 0 && m.stride % CHUNK == 0;
}

template <typename y_t> static status_t gemm_bf16(const linear_args_t *args, void *stream) {
    const bf16_t *x = (const bf16_t *)args->x.data, *w = (const bf16_t *)args->weight.data;
    int64_t x_stride = args->x.stride, w_stride = args->weight.stride, y_stride = args->y.stride;
    const float *bias = args->bias;
    y_t *y = (y_t *)args->y.data;
    int m = args->x.rows, n = args->weight.rows, k = args->x.columns;
    auto kernel = rows_aligned(args->x) && rows_aligned(args->weight) ? gemm_bf16_kernel<y_t, true>
                                                                      : gemm_bf16_kernel<y_t, false>;
    return CUDA_LAUNCH(kernel, tiles(args, TILE), dim3(GEMM_THREADS), 0, stream, x, x_stride, w, w_stride, bias, y,
                       y_stride, m, n, k);
}

template <typename x_t, typename w_t, typename y_t>
static status_t gemm_plain(const linear_args_t *args, void *stream) {
    auto kernel = gemm_plain_kernel<x_t, w_t, y_t>;
    const x_t *x = (const x_t *)args->x.data;
    const w_t *w = (const w_t *)args->weight.data;
    int64_t x_stride = args->x.stride, w_stride = args->weight.stride, y_stride = args->y.stride;
    const float *bias = args->bias;
    y_t *y = (y_t *)args->y.data;
    int m = args->x.rows, n = args->weight.rows, k = args->x.columns;
    return CUDA_LAUNCH(kernel, tiles(args, PLAIN), dim3(PLAIN, PLAIN), 0, stream, x, x_stride, w, w_stride, bias, y,
                       y_stride, m, n, k);
}

template <typename y_t> static status_t gemm_to(const linear_args_t *args, void *stream) {
    bool x_half = args->x.dtype == DTYPE_BF16, w_half = args->weight.dtype == DTYPE_BF16;
    if (x_half && w_half) return gemm_bf16<y_t>(args, stream);
    if (x_half) return gemm_plain<bf16_t, float, y_t>(args, stream);
    return w_half ? gemm_plain<float, bf16_t, y_t>(args, stream) : gemm_plain<float, float, y_t>(args, stream);
}

extern "C" status_t CUDA_NAME(linear)(device_t *device, const linear_args_t *args) {
    int m = args->x.rows, n = args->weight.rows, k = args->x.columns;
    TRY(check_values("linear", "x", &args->x, m, k));
    TRY(check_values("linear", "weight", &args->weight, n, k));
    TRY(check_values("linear", "y", &args->y, m, n));
    if (args->lora_a.data) FAIL(STATUS_UNAVAILABLE, "linear: there is no kernel for an adapter yet");
    if (device->measuring || m == 0 || n == 0) return STATUS_OK;
    void *stream = cuda_stream(device);
    return args->y.dtype == DTYPE_BF16 ? gemm_to<bf16_t>(args, stream) : gemm_to<float>(args, stream);
}
