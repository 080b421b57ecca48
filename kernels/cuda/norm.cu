// rmsnorm and its backward. A row belongs to one block of NORM_THREADS threads, however many rows there are: thread t
// sums the columns t, t + NORM_THREADS, ... in order; a warp folds by halves; the warps' sums are added in order.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"

enum { NORM_THREADS = 128, NORM_WARPS = NORM_THREADS / 32, FOLD_COLUMNS = 32, FOLD_ROWS = 8 };

// The sum of every thread's value, the same in all of them. All threads of the block call it.
static __device__ __forceinline__ float block_sum(float value) {
    CUDA_SHARED(float, partial, [NORM_WARPS]);
    int warp = (int)threadIdx.x / 32;
    value = cuda_warp_sum(value);
    if (threadIdx.x % 32 == 0) partial[warp] = value;
    __syncthreads();
    float sum = partial[0];
    for (int i = 1; i < NORM_WARPS; i++) sum = __fadd_rn(sum, partial[i]);
    __syncthreads(); // the next call writes there
    return sum;
}

static __device__ __forceinline__ float norm_weight(const float *weight, int c, bool one_plus) {
    return one_plus ? __fadd_rn(1.0f, weight[c]) : weight[c];
}

template <typename x_t, typename y_t>
static __global__ void __launch_bounds__(NORM_THREADS)
    rmsnorm_kernel(const x_t *x, int64_t x_stride, const float *weight, float eps, bool one_plus, y_t *y,
                   int64_t y_stride, float *rstd_out, int columns) {
    int64_t row = blockIdx.x;
    x += row * x_stride;
    y += row * y_stride;
    float squares = 0.0f;
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) {
        float v = cuda_get(x + c);
        squares = __fmaf_rn(v, v, squares);
    }
    float mean = __fdiv_rn(block_sum(squares), (float)columns);
    float rstd = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
    if (threadIdx.x == 0) rstd_out[row] = rstd;
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) {
        float hat = __fmul_rn(cuda_get(x + c), rstd);
        if (!one_plus && sizeof(y_t) == sizeof(bf16_t)) hat = __bfloat162float(__float2bfloat16_rn(hat));
        cuda_put(y + c, __fmul_rn(hat, norm_weight(weight, c, one_plus)));
    }
}

// dx += rstd * (dy w - xhat * mean(dy w xhat)), xhat = x rstd.
template <typename x_t>
static __global__ void __launch_bounds__(NORM_THREADS)
    rmsnorm_dx_kernel(const x_t *x, int64_t x_stride, const float *weight, bool one_plus, const float *rstd_in,
                      const float *dy, int64_t dy_stride, float *dx, int64_t dx_stride, int columns) {
    int64_t row = blockIdx.x;
    x += row * x_stride;
    dy += row * dy_stride;
    dx += row * dx_stride;
    float rstd = rstd_in[row], sum = 0.0f;
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) {
        float g = __fmul_rn(dy[c], norm_weight(weight, c, one_plus));
        sum = __fmaf_rn(g, __fmul_rn(cuda_get(x + c), rstd), sum);
    }
    float mean = __fdiv_rn(block_sum(sum), (float)columns);
    for (int c = (int)threadIdx.x; c < columns; c += NORM_THREADS) {
        float g = __fmul_rn(dy[c], norm_weight(weight, c, one_plus));
        float hat = __fmul_rn(cuda_get(x + c), rstd);
        dx[c] = __fmaf_rn(rstd, __fadd_rn(g, -__fmul_rn(hat, mean)), dx[c]);
    }
}

// One leaf's rows first .. last - 1: thread (c, r) sums the rows first + r, + FOLD_ROWS, ... of a column; then the
// FOLD_ROWS sums are added in order.
template <typename x_t>
static __global__ void __launch_bounds__(FOLD_COLUMNS *FOLD_ROWS)
    rmsnorm_dweight_kernel(const x_t *x, int64_t x_stride, const float *rstd, const float *dy, int64_t dy_stride,
                           int first, int last, int columns, int64_t *sink, unsigned *flags, double factor) {
    CUDA_SHARED(float, partial, [FOLD_ROWS][FOLD_COLUMNS]);
    int c = (int)(blockIdx.x * FOLD_COLUMNS + threadIdx.x);
    float sum = 0.0f;
    if (c < columns)
        for (int row = first + (int)threadIdx.y; row < last; row += FOLD_ROWS) {
            float hat = __fmul_rn(cuda_get(x + row * x_stride + c), rstd[row]);
            sum = __fmaf_rn(dy[row * dy_stride + c], hat, sum);
        }
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || c >= columns) return;
    sum = partial[0][threadIdx.x];
    for (int r = 1; r < FOLD_ROWS; r++) sum = __fadd_rn(sum, partial[r][threadIdx.x]);
    cuda_sink_add(sink + c, flags, factor, sum);
}

template <typename x_t, typename y_t> static status_t rmsnorm_typed(const rmsnorm_args_t *args, void *stream) {
    auto kernel = rmsnorm_kernel<x_t, y_t>;
    const x_t *x = (const x_t *)args->x.data;
    y_t *y = (y_t *)args->y.data;
    int64_t x_stride = args->x.stride, y_stride = args->y.stride;
    const float *weight = args->weight;
    float eps = args->eps, *rstd = args->rstd;
    bool one_plus = args->flavour == NORM_ONE_PLUS_WEIGHT;
    int columns = args->x.columns;
    if (args->x.rows == 0) return STATUS_OK;
    return CUDA_LAUNCH(kernel, dim3((unsigned)args->x.rows), dim3(NORM_THREADS), 0, stream, x, x_stride, weight, eps,
                       one_plus, y, y_stride, rstd, columns);
}

extern "C" status_t CUDA_NAME(rmsnorm)(device_t *device, const rmsnorm_args_t *args) {
    TRY(check_rmsnorm(args));
    if (device->measuring) return STATUS_OK;
    void *stream = cuda_stream(device);
    bool x_half = args->x.dtype == DTYPE_BF16, y_half = args->y.dtype == DTYPE_BF16;
    if (x_half)
        return y_half ? rmsnorm_typed<bf16_t, bf16_t>(args, stream) : rmsnorm_typed<bf16_t, float>(args, stream);
    return y_half ? rmsnorm_typed<float, bf16_t>(args, stream) : rmsnorm_typed<float, float>(args, stream);
}

template <typename x_t>
static status_t rmsnorm_backward_typed(const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients, void *stream) {
    const x_t *x = (const x_t *)args->x.data;
    const float *dy = (const float *)gradients->dy.data, *weight = args->weight, *rstd = args->rstd;
    float *dx = (float *)gradients->dx.data;
    int64_t x_stride = args->x.stride, dy_stride = gradients->dy.stride, dx_stride = gradients->dx.stride;
    int columns = args->x.columns;
    bool one_plus = args->flavour == NORM_ONE_PLUS_WEIGHT;
    if (dx && args->x.rows) {
        auto kernel = rmsnorm_dx_kernel<x_t>;
        TRY(CUDA_LAUNCH(kernel, dim3((unsigned)args->x.rows), dim3(NORM_THREADS), 0, stream, x, x_stride, weight,
                        one_plus, rstd, dy, dy_stride, dx, dx_stride, columns));
    }
    if (!gradients->weight) return STATUS_OK;
    auto kernel = rmsnorm_dweight_kernel<x_t>;
    dim3 grid((unsigned)(columns + FOLD_COLUMNS - 1) / FOLD_COLUMNS), block(FOLD_COLUMNS, FOLD_ROWS);
    int64_t *sum = gradients->weight->sum;
    unsigned *flags = gradients->weight->flags;
    double factor = ldexp(1.0, gradients->weight->exponent);
    for (int leaf = 0; leaf < gradients->leaves.count; leaf++) {
        int first = gradients->leaves.start[leaf], last = gradients->leaves.start[leaf + 1];
        if (first == last) continue;
        TRY(CUDA_LAUNCH(kernel, grid, block, 0, stream, x, x_stride, rstd, dy, dy_stride, first, last, columns, sum,
                        flags, factor));
    }
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(rmsnorm_backward)(device_t *device, const rmsnorm_args_t *args,
                                                const rmsnorm_gradients_t *gradients) {
    TRY(check_rmsnorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    if (args->x.dtype == DTYPE_BF16) return rmsnorm_backward_typed<bf16_t>(args, gradients, cuda_stream(device));
    return rmsnorm_backward_typed<float>(args, gradients, cuda_stream(device));
}
