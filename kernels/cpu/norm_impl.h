// rmsnorm and its backward. Written once over v16_t.
#include "kernels/cpu/quantize_impl.h"
#include "kernels/cpu/vector_bf16.h"

// Rows whose sums run side by side: each is a chain of its own, together they hide the latency of one.
enum { NORM_ROWS = 4, NORM_VECTORS = 4 };

// The factor of a column beside rstd: w, or 1 + w.
static inline v16_t norm_weight(const rmsnorm_args_t *args, int c, int n) {
    v16_t w = v16_load_up_to(args->weight + c, n);
    return args->flavour == NORM_ONE_PLUS_WEIGHT ? v16_add(v16_set(1.0f), w) : w;
}

// Sums of squares of `rows` rows (a constant at every call, as `half` is) in 16 lanes each.
static inline __attribute__((always_inline)) void norm_squares(const matrix_t *x, const bool half, int64_t row,
                                                               int columns, const int rows, v16_t *sum) {
    row_t at[NORM_ROWS];
    for (int r = 0; r < rows; r++) {
        at[r] = (row_t){row_of(x, row + r).at, half};
        sum[r] = v16_set(0.0f);
    }
    int c = 0;
    for (; c + LANES <= columns; c += LANES)
        for (int r = 0; r < rows; r++) {
            v16_t v = row_get(at[r], c, LANES);
            sum[r] = v16_fma(v, v, sum[r]);
        }
    if (c < columns)
        for (int r = 0; r < rows; r++) {
            v16_t v = row_get(at[r], c, columns - c);
            sum[r] = v16_fma(v, v, sum[r]);
        }
}

static inline void norm_row(const rmsnorm_args_t *args, int64_t row, v16_t squares) {
    int columns = args->x.columns;
    row_t x = row_of(&args->x, row), y = row_of(&args->y, row);
    float rstd = 1.0f / sqrtf(v16_sum(squares) / (float)columns + args->eps);
    args->rstd[row] = rstd;
    v16_t r = v16_set(rstd);
    int c = 0;
    // Cast, then weight: the normalised value is rounded to y's dtype before the weight meets it.
    bool cast = y.half && args->flavour == NORM_CAST_THEN_WEIGHT;
    for (; c < columns; c += LANES) {
        int n = columns - c < LANES ? columns - c : LANES;
        v16_t hat = v16_mul(row_get(x, c, n), r);
        row_put(y, c, v16_mul(cast ? v16_round_bf16(hat) : hat, norm_weight(args, c, n)), n);
    }
}

static void rmsnorm_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rmsnorm_args_t *args = ((const rmsnorm_job_t *)context)->args;
    bool half = args->x.dtype == DTYPE_BF16;
    int64_t row = first;
    v16_t sum[NORM_ROWS];
    for (; row + NORM_ROWS <= last; row += NORM_ROWS) {
        if (half)
            norm_squares(&args->x, true, row, args->x.columns, NORM_ROWS, sum);
        else
            norm_squares(&args->x, false, row, args->x.columns, NORM_ROWS, sum);
        for (int r = 0; r < NORM_ROWS; r++) norm_row(args, row + r, sum[r]);
    }
    for (; row < last; row++) {
        norm_squares(&args->x, half, row, args->x.columns, 1, sum);
        norm_row(args, row, sum[0]);
    }
}

// dx += rstd * (dy w - xhat * mean(dy w xhat)), xhat = x rstd.
static void rmsnorm_dx_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rmsnorm_job_t *job = context;
    const rmsnorm_args_t *args = job->args;
    const matrix_t *dy_matrix = &job->gradients->dy, *dx_matrix = &job->gradients->dx;
    int columns = args->x.columns;
    for (int64_t row = first; row < last; row++) {
        row_t x = row_of(&args->x, row);
        const float *dy = (const float *)dy_matrix->data + row * dy_matrix->stride;
        float *dx = (float *)dx_matrix->data + row * dx_matrix->stride;
        v16_t rstd = v16_set(args->rstd[row]), sum = v16_set(0.0f);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t g = v16_mul(v16_load_up_to(dy + c, n), norm_weight(args, c, n));
            sum = v16_fma(g, v16_mul(row_get(x, c, n), rstd), sum);
        }
        v16_t mean = v16_set(v16_sum(sum) / (float)columns);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t g = v16_mul(v16_load_up_to(dy + c, n), norm_weight(args, c, n));
            v16_t hat = v16_mul(row_get(x, c, n), rstd);
            v16_t inner = v16_sub(g, v16_mul(hat, mean));
            v16_store_up_to(dx + c, v16_fma(rstd, inner, v16_load_up_to(dx + c, n)), n);
        }
    }
}

// dw = sum over the rows of a leaf, in order, of dy * xhat; a share of columns.
static void rmsnorm_dweight_columns(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rmsnorm_job_t *job = context;
    const rmsnorm_args_t *args = job->args;
    const matrix_t *dy_matrix = &job->gradients->dy;
    const gradient_sink_t *sink = job->gradients->weight;
    const leaves_t *leaves = &job->gradients->leaves;
    double factor = ldexp(1.0, sink->exponent);
    for (int leaf = 0; leaf < leaves->count; leaf++)
        for (int64_t c = first; c < last; c += NORM_VECTORS * LANES) {
            int width = last - c < NORM_VECTORS * LANES ? (int)(last - c) : NORM_VECTORS * LANES;
            v16_t sum[NORM_VECTORS];
            for (int v = 0; v < NORM_VECTORS; v++) sum[v] = v16_set(0.0f);
            for (int64_t row = leaves->start[leaf]; row < leaves->start[leaf + 1]; row++) {
                row_t x = row_from(row_of(&args->x, row), c);
                const float *dy = (const float *)dy_matrix->data + row * dy_matrix->stride + c;
                v16_t rstd = v16_set(args->rstd[row]);
                for (int v = 0; v < NORM_VECTORS; v++) {
                    int n = width - v * LANES;
                    if (n <= 0) break;
                    if (n > LANES) n = LANES;
                    v16_t hat = v16_mul(row_get(x, v * LANES, n), rstd);
                    sum[v] = v16_fma(v16_load_up_to(dy + v * LANES, n), hat, sum[v]);
                }
            }
            float value[NORM_VECTORS * LANES];
            for (int v = 0; v < NORM_VECTORS; v++) v16_store(value + v * LANES, sum[v]);
            quantize_add(sink->sum + c, value, width, factor, sink->flags);
        }
}
