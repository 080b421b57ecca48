// Activations and their derivatives. Written once over v16_t, over rows of f32 or bf16.
//
// silu, quick-gelu and tanh-gelu are x * sigmoid(g(x)): x, 1.702 x and 2 sqrt(2/pi) (x + 0.044715 x^3), since
// (1 + tanh u) / 2 = sigmoid(2 u). erf-gelu is x * Phi(x) with Phi from an erfc of our own.
#include "kernels/cpu/vector_bf16.h"

static inline v16_t activation_polynomial(v16_t x, const float *coefficient, int degree) {
    v16_t p = v16_set(coefficient[degree]);
    for (int i = degree - 1; i >= 0; i--) p = v16_fma(p, x, v16_set(coefficient[i]));
    return p;
}

// Phi(x), the normal distribution function. With t = |x| / sqrt 2: below t = 1 erf(t) = t P(t^2), minimax of degree 6
// (absolute error below 2e-9 before rounding); above erfc(t) = exp(-t^2 + R(t)), R of degree 10 fitted on [1, 9.4]
// (relative error below 3e-7). What rounding takes from the exponent is put back as a factor, so that the lower tail
// keeps its relative accuracy.
static inline v16_t activation_phi(v16_t x) {
    static const float small[7] = {1.1283791065216064f,    -0.3761262595653534f,  0.11283600330352783f,
                                   -0.026854444295167923f, 0.005189535208046436f, -0.000802083988673985f,
                                   0.00007889114931458607f};
    static const float large[11] = {-4.664851803681813e-05f,  -1.1289973258972168f,    0.36654141545295715f,
                                    -0.10905448347330093f,    0.026178374886512756f,   -0.00482470728456974f,
                                    0.0006570545374415815f,   -6.333384953904897e-05f, 4.058882041135803e-06f,
                                    -1.5439229628100293e-07f, 2.628592454811951e-09f};
    v16_t zero = v16_set(0.0f), one = v16_set(1.0f), half = v16_set(0.5f);
    v16_t t = v16_mul(v16_max(x, v16_sub(zero, x)), v16_set(0.70710678f));
    v16_t squared = v16_mul(t, t);
    v16_t near = v16_sub(one, v16_mul(t, activation_polynomial(squared, small, 6)));
    v16_t bounded = v16_min(t, v16_set(9.4f));
    // The exponent as a sum of two: high + low = R - x^2 / 2.
    v16_t r = activation_polynomial(bounded, large, 10), twice = v16_mul(x, x), square = v16_mul(half, twice);
    v16_t high = v16_sub(r, square), lost = v16_sub(r, v16_add(high, square));
    v16_t low = v16_sub(lost, v16_mul(half, v16_fma(x, x, v16_sub(zero, twice))));
    v16_t far = v16_exp(high);
    // (Where x^2 is infinite, low is NaN and far is 0.)
    far = v16_fma(far, v16_min(v16_max(low, v16_set(-1.0f)), one), far);
    v16_t tail = v16_mul(half, v16_select_less(t, one, near, far));
    return v16_select_less(x, zero, tail, v16_sub(one, tail));
}

// sigmoid(x), and 1 - sigmoid(x) without its cancellation.
static inline v16_t activation_sigmoid(v16_t x, v16_t *rest) {
    v16_t one = v16_set(1.0f), e = v16_exp(v16_sub(v16_set(0.0f), x)), sigmoid = v16_div(one, v16_add(one, e));
    *rest = v16_mul(e, sigmoid);
    return sigmoid;
}

// f(x), and f'(x) where wanted. `kind` is a constant at every call.
static inline __attribute__((always_inline)) v16_t activation_value(const activation_t kind, v16_t x, v16_t *slope) {
    v16_t one = v16_set(1.0f), g = x, g_slope = one;
    if (kind == ACTIVATION_GELU_ERF) {
        v16_t phi = activation_phi(x);
        if (slope) {
            v16_t density = v16_exp(v16_mul(v16_mul(x, x), v16_set(-0.5f)));
            *slope = v16_fma(v16_mul(x, v16_set(0.39894228f)), density, phi);
        }
        return v16_mul(x, phi);
    }
    if (kind == ACTIVATION_QUICK_GELU) {
        g_slope = v16_set(1.702f);
        g = v16_mul(g_slope, x);
    }
    if (kind == ACTIVATION_GELU_TANH) {
        v16_t a = v16_set(1.5957691216f), b = v16_set(0.0713548162726f), squared = v16_mul(x, x);
        g = v16_mul(x, v16_fma(b, squared, a));
        g_slope = v16_fma(v16_mul(v16_set(3.0f), b), squared, a);
    }
    v16_t rest, sigmoid = activation_sigmoid(g, &rest);
    v16_t value = v16_mul(x, sigmoid);
    if (slope) *slope = v16_fma(v16_mul(value, rest), g_slope, sigmoid);
    return value;
}

static inline __attribute__((always_inline)) void
activation_kind_rows(const activation_args_t *args, const activation_t kind, int64_t first, int64_t last) {
    int columns = args->x.columns;
    for (int64_t row = first; row < last; row++) {
        row_t x = row_of(&args->x, row), up = row_of(&args->up, row), y = row_of(&args->y, row);
        bool gated = args->up.data;
        int c = 0;
        for (; c + LANES <= columns; c += LANES) {
            v16_t value = activation_value(kind, row_get(x, c, LANES), NULL);
            row_put(y, c, gated ? v16_mul(value, row_get(up, c, LANES)) : value, LANES);
        }
        int n = columns - c;
        if (!n) continue;
        v16_t value = activation_value(kind, row_get(x, c, n), NULL);
        row_put(y, c, gated ? v16_mul(value, row_get(up, c, n)) : value, n);
    }
}

static void activation_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const activation_args_t *args = ((const activation_job_t *)context)->args;
    switch (args->kind) {
    case ACTIVATION_SILU:
        activation_kind_rows(args, ACTIVATION_SILU, first, last);
        break;
    case ACTIVATION_GELU_ERF:
        activation_kind_rows(args, ACTIVATION_GELU_ERF, first, last);
        break;
    case ACTIVATION_GELU_TANH:
        activation_kind_rows(args, ACTIVATION_GELU_TANH, first, last);
        break;
    case ACTIVATION_QUICK_GELU:
        activation_kind_rows(args, ACTIVATION_QUICK_GELU, first, last);
        break;
    }
}

static inline const float *activation_row(const matrix_t *m, int64_t row) {
    return m->data ? (const float *)m->data + row * m->stride : NULL;
}

// dx += dy up f'(x); dup += dy f(x).
static inline __attribute__((always_inline)) void
activation_kind_backward(const activation_job_t *job, const activation_t kind, int64_t first, int64_t last) {
    const activation_args_t *args = job->args;
    const activation_gradients_t *gradients = job->gradients;
    int columns = args->x.columns;
    for (int64_t row = first; row < last; row++) {
        row_t x = row_of(&args->x, row), up = row_of(&args->up, row);
        const float *dy = activation_row(&gradients->dy, row);
        float *dx = (float *)(uintptr_t)activation_row(&gradients->dx, row);
        float *dup = (float *)(uintptr_t)activation_row(&gradients->dup, row);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t slope, dy_c = v16_load_up_to(dy + c, n);
            v16_t value = activation_value(kind, row_get(x, c, n), &slope);
            if (dup) v16_store_up_to(dup + c, v16_fma(dy_c, value, v16_load_up_to(dup + c, n)), n);
            if (!dx) continue;
            v16_t g = args->up.data ? v16_mul(dy_c, row_get(up, c, n)) : dy_c;
            v16_store_up_to(dx + c, v16_fma(g, slope, v16_load_up_to(dx + c, n)), n);
        }
    }
}

static void activation_backward_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const activation_job_t *job = context;
    switch (job->args->kind) {
    case ACTIVATION_SILU:
        activation_kind_backward(job, ACTIVATION_SILU, first, last);
        break;
    case ACTIVATION_GELU_ERF:
        activation_kind_backward(job, ACTIVATION_GELU_ERF, first, last);
        break;
    case ACTIVATION_GELU_TANH:
        activation_kind_backward(job, ACTIVATION_GELU_TANH, first, last);
        break;
    case ACTIVATION_QUICK_GELU:
        activation_kind_backward(job, ACTIVATION_QUICK_GELU, first, last);
        break;
    }
}
