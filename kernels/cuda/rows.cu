// embedding and add: an element is a function of its inputs alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"

enum { ROW_THREADS = 128 };

template <typename table_t, typename y_t>
static __global__ void __launch_bounds__(ROW_THREADS)
    embedding_kernel(const int32_t *token, int words, uint32_t *fault, const table_t *table, int64_t table_stride,
                     float scale, y_t *y, int64_t y_stride, int columns) {
    int64_t row = blockIdx.x;
    if (!cuda_index(token[row], words, fault, CUDA_FAULT_EMBEDDING)) return;
    const table_t *from = table + token[row] * table_stride;
    for (int c = (int)threadIdx.x; c < columns; c += ROW_THREADS)
        cuda_put(y + row * y_stride + c, __fmul_rn(cuda_get(from + c), scale));
}

// Rows of one token meet in the same sums, in any order: the sums are exact.
static __global__ void __launch_bounds__(ROW_THREADS)
    embedding_backward_kernel(const int32_t *token, int words, uint32_t *fault, const float *dy, int64_t dy_stride,
                              float scale, int64_t *sum, unsigned *flags, double factor, int columns) {
    int64_t row = blockIdx.x;
    if (!cuda_index(token[row], words, fault, CUDA_FAULT_EMBEDDING)) return;
    int64_t *to = sum + (int64_t)token[row] * columns;
    for (int c = (int)threadIdx.x; c < columns; c += ROW_THREADS)
        cuda_sink_add(to + c, flags, factor, __fmul_rn(dy[row * dy_stride + c], scale));
}

template <typename a_t, typename b_t, typename y_t>
static __global__ void __launch_bounds__(ROW_THREADS)
    add_kernel(const a_t *a, int64_t a_stride, const b_t *b, int64_t b_stride, y_t *y, int64_t y_stride, int columns) {
    int64_t row = blockIdx.x;
    for (int c = (int)threadIdx.x; c < columns; c += ROW_THREADS)
        cuda_put(y + row * y_stride + c, __fadd_rn(cuda_get(a + row * a_stride + c), cuda_get(b + row * b_stride + c)));
}

// The factor, in the table's dtype.
static float embedding_scale(const embedding_args_t *args) {
    return args->table.dtype == DTYPE_BF16 ? bf16_widen(bf16_round(args->scale)) : args->scale;
}

template <typename table_t, typename y_t>
static status_t embedding_typed(const embedding_args_t *args, uint32_t *fault, void *stream) {
    auto kernel = embedding_kernel<table_t, y_t>;
    const int32_t *token = args->token;
    const table_t *table = (const table_t *)args->table.data;
    y_t *y = (y_t *)args->y.data;
    int64_t table_stride = args->table.stride, y_stride = args->y.stride;
    float scale = embedding_scale(args);
    int columns = args->y.columns, words = args->table.rows;
    if (args->y.rows == 0) return STATUS_OK;
    return CUDA_LAUNCH(kernel, dim3((unsigned)args->y.rows), dim3(ROW_THREADS), 0, stream, token, words, fault, table,
                       table_stride, scale, y, y_stride, columns);
}

extern "C" status_t CUDA_NAME(embedding)(device_t *device, const embedding_args_t *args) {
    TRY(check_embedding(args));
    if (device->measuring) return STATUS_OK;
    uint32_t *fault = cuda_fault(device);
    void *stream = cuda_stream(device);
    bool half = args->y.dtype == DTYPE_BF16;
    if (args->table.dtype == DTYPE_BF16)
        return half ? embedding_typed<bf16_t, bf16_t>(args, fault, stream)
                    : embedding_typed<bf16_t, float>(args, fault, stream);
    return half ? embedding_typed<float, bf16_t>(args, fault, stream)
                : embedding_typed<float, float>(args, fault, stream);
}

extern "C" status_t CUDA_NAME(embedding_backward)(device_t *device, const embedding_args_t *args,
                                                  const embedding_gradients_t *gradients) {
    TRY(check_embedding_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    uint32_t *fault = cuda_fault(device);
    void *stream = cuda_stream(device);
    if (!gradients->table || args->y.rows == 0) return STATUS_OK;
    const int32_t *token = args->token;
    const float *dy = (const float *)gradients->dy.data;
    int64_t dy_stride = gradients->dy.stride, *sum = gradients->table->sum;
    unsigned *flags = gradients->table->flags;
    float scale = embedding_scale(args);
    double factor = ldexp(1.0, gradients->table->exponent);
    int columns = args->y.columns, words = args->table.rows;
    return CUDA_LAUNCH(embedding_backward_kernel, dim3((unsigned)args->y.rows), dim3(ROW_THREADS), 0, stream, token,
                       words, fault, dy, dy_stride, scale, sum, flags, factor, columns);
}

template <typename a_t, typename b_t, typename y_t> static status_t add_typed(const add_args_t *args, void *stream) {
    auto kernel = add_kernel<a_t, b_t, y_t>;
    const a_t *a = (const a_t *)args->a.data;
    const b_t *b = (const b_t *)args->b.data;
    y_t *y = (y_t *)args->y.data;
    int64_t a_stride = args->a.stride, b_stride = args->b.stride, y_stride = args->y.stride;
    int columns = args->y.columns;
    if (args->y.rows == 0) return STATUS_OK;
    return CUDA_LAUNCH(kernel, dim3((unsigned)args->y.rows), dim3(ROW_THREADS), 0, stream, a, a_stride, b, b_stride, y,
                       y_stride, columns);
}

template <typename a_t, typename b_t> static status_t add_to(const add_args_t *args, void *stream) {
    return args->y.dtype == DTYPE_BF16 ? add_typed<a_t, b_t, bf16_t>(args, stream)
                                       : add_typed<a_t, b_t, float>(args, stream);
}

extern "C" status_t CUDA_NAME(add)(device_t *device, const add_args_t *args) {
    TRY(check_add(args));
    if (device->measuring) return STATUS_OK;
    void *stream = cuda_stream(device);
    bool b_half = args->b.dtype == DTYPE_BF16;
    if (args->a.dtype == DTYPE_BF16)
        return b_half ? add_to<bf16_t, bf16_t>(args, stream) : add_to<bf16_t, float>(args, stream);
    return b_half ? add_to<float, bf16_t>(args, stream) : add_to<float, float>(args, stream);
}
