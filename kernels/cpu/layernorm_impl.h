// layernorm and its backward. Written once over v16_t.
#include "kernels/cpu/quantize_impl.h"
#include "kernels/cpu/vector_bf16.h"

// Rows whose sums run side by side, and vectors of columns that a pass over a leaf's rows sums.
enum { LAYERNORM_ROWS = 4, LAYERNORM_VECTORS = 4 };

// Per row the sum of x - from (from[r] in every lane), or of its square, in 16 lanes. `rows` and `squares` are
// constants at every call.
static inline __attribute__((always_inline)) void layernorm_sums(const row_t *x, int columns, const int rows,
                                                                 const bool squares, const float *from, v16_t *sum) {
    for (int r = 0; r < rows; r++) sum[r] = v16_set(0.0f);
    int c = 0;
    for (; c + LANES <= columns; c += LANES)
        for (int r = 0; r < rows; r++) {
            v16_t v = row_get(x[r], c, LANES);
            if (squares) v = v16_sub(v, v16_set(from[r]));
            sum[r] = squares ? v16_fma(v, v, sum[r]) : v16_add(sum[r], v);
        }
    int n = columns - c;
    if (!n) return;
    for (int r = 0; r < rows; r++) {
        float lane[LANES] = {0};
        v16_t v = row_get(x[r], c, n);
        if (squares) {
            v16_store_partial(lane, v16_sub(v, v16_set(from[r])), n); // lanes without a column stay 0
            v = v16_load(lane);
        }
        sum[r] = squares ? v16_fma(v, v, sum[r]) : v16_add(sum[r], v);
    }
}

// Columns c .. c + n - 1 of a row, normalised.
static inline v16_t layernorm_hat(row_t x, int64_t c, v16_t mean, v16_t rstd, int n) {
    return v16_mul(v16_sub(row_get(x, c, n), mean), rstd);
}

static inline __attribute__((always_inline)) void layernorm_some(const layernorm_args_t *args, int64_t first,
                                                                 const int rows, const bool half) {
    int columns = args->x.columns;
    row_t x[LAYERNORM_ROWS];
    for (int r = 0; r < rows; r++) x[r] = (row_t){row_of(&args->x, first + r).at, half};
    float *mean = args->mean + first, *rstd = args->rstd + first;
    v16_t sum[LAYERNORM_ROWS], zero = v16_set(0.0f);
    layernorm_sums(x, columns, rows, false, NULL, sum);
    for (int r = 0; r < rows; r++) mean[r] = v16_sum(sum[r]) / (float)columns;
    layernorm_sums(x, columns, rows, true, mean, sum);
    for (int r = 0; r < rows; r++) {
        rstd[r] = 1.0f / sqrtf(v16_sum(sum[r]) / (float)columns + args->eps);
        row_t y = row_of(&args->y, first + r);
        v16_t from = v16_set(mean[r]), scale = v16_set(rstd[r]);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t hat = layernorm_hat(x[r], c, from, scale, n);
            v16_t bias = args->bias ? v16_load_up_to(args->bias + c, n) : zero;
            row_put(y, c, v16_fma(hat, v16_load_up_to(args->weight + c, n), bias), n);
        }
    }
}

static void layernorm_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const layernorm_args_t *args = ((const layernorm_job_t *)context)->args;
    int64_t row = first;
    bool half = args->x.dtype == DTYPE_BF16;
    for (; row + LAYERNORM_ROWS <= last && half; row += LAYERNORM_ROWS) layernorm_some(args, row, LAYERNORM_ROWS, true);
    for (; row + LAYERNORM_ROWS <= last; row += LAYERNORM_ROWS) layernorm_some(args, row, LAYERNORM_ROWS, false);
    for (; row < last; row++) layernorm_some(args, row, 1, half);
}

// dx += rstd * (dy w - mean(dy w) - xhat * mean(dy w xhat)), xhat = (x - mean) rstd.
static void layernorm_dx_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const layernorm_job_t *job = context;
    const layernorm_args_t *args = job->args;
    const matrix_t *dy_matrix = &job->gradients->dy, *dx_matrix = &job->gradients->dx;
    int columns = args->x.columns;
    for (int64_t row = first; row < last; row++) {
        row_t x = row_of(&args->x, row);
        const float *dy = (const float *)dy_matrix->data + row * dy_matrix->stride;
        float *dx = (float *)dx_matrix->data + row * dx_matrix->stride;
        v16_t mean = v16_set(args->mean[row]), rstd = v16_set(args->rstd[row]);
        v16_t plain = v16_set(0.0f), product = v16_set(0.0f);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            // Lanes without a column: dy is 0 there, so both sums stay.
            v16_t g = v16_mul(v16_load_up_to(dy + c, n), v16_load_up_to(args->weight + c, n));
            plain = v16_add(plain, g);
            product = v16_fma(g, layernorm_hat(x, c, mean, rstd, n), product);
        }
        v16_t level = v16_set(v16_sum(plain) / (float)columns), slope = v16_set(v16_sum(product) / (float)columns);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t g = v16_mul(v16_load_up_to(dy + c, n), v16_load_up_to(args->weight + c, n));
            v16_t hat = layernorm_hat(x, c, mean, rstd, n);
            v16_t inner = v16_sub(v16_sub(g, level), v16_mul(hat, slope));
            v16_store_up_to(dx + c, v16_fma(rstd, inner, v16_load_up_to(dx + c, n)), n);
        }
    }
}

// Per leaf, over its rows in order: dw = sum of dy * xhat and db = sum of dy, for at most LAYERNORM_VECTORS vectors of
// columns from c on.
static void layernorm_leaf(const layernorm_job_t *job, int leaf, int64_t c, int width, v16_t *dw, v16_t *db) {
    const layernorm_args_t *args = job->args;
    const matrix_t *dy_matrix = &job->gradients->dy;
    const leaves_t *leaves = &job->gradients->leaves;
    for (int v = 0; v < LAYERNORM_VECTORS; v++) dw[v] = db[v] = v16_set(0.0f);
    for (int64_t row = leaves->start[leaf]; row < leaves->start[leaf + 1]; row++) {
        row_t x = row_from(row_of(&args->x, row), c);
        const float *dy = (const float *)dy_matrix->data + row * dy_matrix->stride + c;
        v16_t mean = v16_set(args->mean[row]), rstd = v16_set(args->rstd[row]);
        for (int v = 0; v < LAYERNORM_VECTORS && v * LANES < width; v++) {
            int n = width - v * LANES < LANES ? width - v * LANES : LANES;
            v16_t g = v16_load_up_to(dy + v * LANES, n);
            dw[v] = v16_fma(g, layernorm_hat(x, v * LANES, mean, rstd, n), dw[v]);
            db[v] = v16_add(db[v], g);
        }
    }
}

static void layernorm_dweight_columns(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const layernorm_job_t *job = context;
    const gradient_sink_t *sinks[2] = {job->gradients->weight, job->gradients->bias};
    for (int leaf = 0; leaf < job->gradients->leaves.count; leaf++)
        for (int64_t c = first; c < last; c += LAYERNORM_VECTORS * LANES) {
            int width = last - c < LAYERNORM_VECTORS * LANES ? (int)(last - c) : LAYERNORM_VECTORS * LANES;
            v16_t sum[2][LAYERNORM_VECTORS];
            layernorm_leaf(job, leaf, c, width, sum[0], sum[1]);
            for (int i = 0; i < 2; i++) {
                float value[LAYERNORM_VECTORS * LANES];
                if (!sinks[i]) continue;
                for (int v = 0; v < LAYERNORM_VECTORS; v++) v16_store(value + v * LANES, sum[i][v]);
                quantize_add(sinks[i]->sum + c, value, width, ldexp(1.0, sinks[i]->exponent), sinks[i]->flags);
            }
        }
}
