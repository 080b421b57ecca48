// Activations and their derivatives: the CPU's formulas (kernels/cpu/activation_impl.h, which explains them), operation
// by operation, so that the bits are the same.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_rows.h"

template <int degree>
static __device__ __forceinline__ float activation_polynomial(float x, const float (&coefficient)[degree + 1]) {
    float p = coefficient[degree];
    for (int i = degree - 1; i >= 0; i--) p = __fmaf_rn(p, x, coefficient[i]);
    return p;
}

// Phi(x), the normal distribution function.
static __device__ __forceinline__ float activation_phi(float x) {
    const float small[7] = {1.1283791065216064f,    -0.3761262595653534f,  0.11283600330352783f,
                            -0.026854444295167923f, 0.005189535208046436f, -0.000802083988673985f,
                            0.00007889114931458607f};
    const float large[11] = {-4.664851803681813e-05f,  -1.1289973258972168f,    0.36654141545295715f,
                             -0.10905448347330093f,    0.026178374886512756f,   -0.00482470728456974f,
                             0.0006570545374415815f,   -6.333384953904897e-05f, 4.058882041135803e-06f,
                             -1.5439229628100293e-07f, 2.628592454811951e-09f};
    float negative = __fadd_rn(0.0f, -x);
    float t = __fmul_rn(x > negative ? x : negative, 0.70710678f);
    float near = __fadd_rn(1.0f, -__fmul_rn(t, activation_polynomial<6>(__fmul_rn(t, t), small)));
    float bounded = t < 9.4f ? t : 9.4f;
    float r = activation_polynomial<10>(bounded, large), twice = __fmul_rn(x, x), square = __fmul_rn(0.5f, twice);
    float high = __fadd_rn(r, -square), lost = __fadd_rn(r, -__fadd_rn(high, square));
    float low = __fadd_rn(lost, -__fmul_rn(0.5f, __fmaf_rn(x, x, __fadd_rn(0.0f, -twice))));
    float far = cuda_exp(high), part = low > -1.0f ? low : -1.0f;
    part = part < 1.0f ? part : 1.0f;
    far = __fmaf_rn(far, part, far);
    float tail = __fmul_rn(0.5f, t < 1.0f ? near : far);
    return x < 0.0f ? tail : __fadd_rn(1.0f, -tail);
}

// f(x), and f'(x) where wanted.
template <activation_t kind, bool sloped>
static __device__ __forceinline__ float activation_value(float x, float *slope) {
    float g = x, g_slope = 1.0f;
    if (kind == ACTIVATION_GELU_ERF) {
        float phi = activation_phi(x);
        if (sloped) {
            float density = cuda_exp(__fmul_rn(__fmul_rn(x, x), -0.5f));
            *slope = __fmaf_rn(__fmul_rn(x, 0.39894228f), density, phi);
        }
        return __fmul_rn(x, phi);
    }
    if (kind == ACTIVATION_QUICK_GELU) {
        g_slope = 1.702f;
        g = __fmul_rn(g_slope, x);
    }
    if (kind == ACTIVATION_GELU_TANH) {
        const float a = 1.5957691216f, b = 0.0713548162726f;
        float squared = __fmul_rn(x, x);
        g = __fmul_rn(x, __fmaf_rn(b, squared, a));
        g_slope = __fmaf_rn(__fmul_rn(3.0f, b), squared, a);
    }
    float e = cuda_exp(__fadd_rn(0.0f, -g)), sigmoid = __fdiv_rn(1.0f, __fadd_rn(1.0f, e));
    float value = __fmul_rn(x, sigmoid);
    if (sloped) *slope = __fmaf_rn(__fmul_rn(value, __fmul_rn(e, sigmoid)), g_slope, sigmoid);
    return value;
}

template <activation_t kind>
static __global__ void __launch_bounds__(ROWS_THREADS)
    activation_kernel(rows_grid_t grid, rows_t x, rows_t up, rows_t y, int columns) {
    int64_t row;
    int unit;
    float value[PACK], factor[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    int c = unit * PACK;
    rows_get(x, row, c, columns, value);
    if (up.data) rows_get(up, row, c, columns, factor);
    for (int i = 0; i < PACK; i++) {
        value[i] = activation_value<kind, false>(value[i], NULL);
        if (up.data) value[i] = __fmul_rn(value[i], factor[i]);
    }
    rows_put(y, row, c, columns, value);
}

typedef struct activation_rows {
    rows_t x, up, dy, dx, dup; // data NULL: not there, or not wanted
} activation_rows_t;

// dx += dy up f'(x); dup += dy f(x).
template <activation_t kind>
static __global__ void __launch_bounds__(ROWS_THREADS)
    activation_backward_kernel(rows_grid_t grid, activation_rows_t m, int columns) {
    int64_t row;
    int unit;
    float value[PACK], slope[PACK], dy[PACK], other[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    int c = unit * PACK;
    rows_get(m.x, row, c, columns, value);
    rows_get(m.dy, row, c, columns, dy);
    for (int i = 0; i < PACK; i++) value[i] = activation_value<kind, true>(value[i], &slope[i]);
    if (m.dup.data) {
        rows_get(m.dup, row, c, columns, other);
        for (int i = 0; i < PACK; i++) other[i] = __fmaf_rn(dy[i], value[i], other[i]);
        rows_put(m.dup, row, c, columns, other);
    }
    if (!m.dx.data) return;
    if (m.up.data) {
        rows_get(m.up, row, c, columns, other);
        for (int i = 0; i < PACK; i++) dy[i] = __fmul_rn(dy[i], other[i]);
    }
    rows_get(m.dx, row, c, columns, other);
    for (int i = 0; i < PACK; i++) other[i] = __fmaf_rn(dy[i], slope[i], other[i]);
    rows_put(m.dx, row, c, columns, other);
}

template <activation_t kind> static status_t activation_run(const activation_args_t *args, void *stream) {
    auto kernel = activation_kernel<kind>;
    rows_grid_t grid = rows_share(args->x.rows, args->x.columns, PACK);
    rows_t x = rows_of(&args->x), up = rows_of(&args->up), y = rows_of(&args->y);
    int columns = args->x.columns;
    if (rows_none(&grid)) return STATUS_OK;
    return CUDA_LAUNCH(kernel, rows_blocks(&grid), rows_threads(&grid), 0, stream, grid, x, up, y, columns);
}

template <activation_t kind>
static status_t activation_run_backward(const activation_args_t *args, const activation_gradients_t *gradients,
                                        void *stream) {
    auto kernel = activation_backward_kernel<kind>;
    rows_grid_t grid = rows_share(args->x.rows, args->x.columns, PACK);
    activation_rows_t m = {rows_of(&args->x), rows_of(&args->up), rows_of(&gradients->dy), rows_of(&gradients->dx),
                           rows_of(&gradients->dup)};
    int columns = args->x.columns;
    if (rows_none(&grid)) return STATUS_OK;
    return CUDA_LAUNCH(kernel, rows_blocks(&grid), rows_threads(&grid), 0, stream, grid, m, columns);
}

extern "C" status_t CUDA_NAME(activation)(device_t *device, const activation_args_t *args) {
    TRY(check_activation(args));
    if (device->measuring) return STATUS_OK;
    void *stream = cuda_stream(device);
    switch (args->kind) {
    case ACTIVATION_SILU:
        return activation_run<ACTIVATION_SILU>(args, stream);
    case ACTIVATION_GELU_ERF:
        return activation_run<ACTIVATION_GELU_ERF>(args, stream);
    case ACTIVATION_GELU_TANH:
        return activation_run<ACTIVATION_GELU_TANH>(args, stream);
    default:
        return activation_run<ACTIVATION_QUICK_GELU>(args, stream);
    }
}

extern "C" status_t CUDA_NAME(activation_backward)(device_t *device, const activation_args_t *args,
                                                   const activation_gradients_t *gradients) {
    TRY(check_activation_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    void *stream = cuda_stream(device);
    switch (args->kind) {
    case ACTIVATION_SILU:
        return activation_run_backward<ACTIVATION_SILU>(args, gradients, stream);
    case ACTIVATION_GELU_ERF:
        return activation_run_backward<ACTIVATION_GELU_ERF>(args, gradients, stream);
    case ACTIVATION_GELU_TANH:
        return activation_run_backward<ACTIVATION_GELU_TANH>(args, gradients, stream);
    default:
        return activation_run_backward<ACTIVATION_QUICK_GELU>(args, gradients, stream);
    }
}
