// Rows: embedding, gather and scatter backward, pooling, add, rope. Written once over v16_t.
#include "kernels/cpu/quantize_impl.h"
#include "kernels/cpu/vector_bf16.h"

// The factor, in the table's dtype.
static inline v16_t embedding_scale(const embedding_args_t *args) {
    return row_round(row_of(&args->table, 0), v16_set(args->scale));
}

static void embedding_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const embedding_args_t *args = ((const embedding_job_t *)context)->args;
    int columns = args->table.columns;
    v16_t scale = embedding_scale(args);
    for (int64_t i = first; i < last; i++) {
        row_t from = row_of(&args->table, args->token[i]), to = row_of(&args->y, i);
        int c = 0;
        for (; c + LANES <= columns; c += LANES) row_put(to, c, v16_mul(row_get(from, c, LANES), scale), LANES);
        if (c < columns) row_put(to, c, v16_mul(row_get(from, c, columns - c), scale), columns - c);
    }
}

// A share of columns: rows of one token meet in the same sums, so rows are not split.
static void embedding_backward_columns(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const embedding_job_t *job = context;
    const embedding_args_t *args = job->args;
    const matrix_t *dy = &job->gradients->dy;
    const gradient_sink_t *sink = job->gradients->table;
    double factor = ldexp(1.0, sink->exponent);
    v16_t scale = embedding_scale(args);
    for (int64_t i = 0; i < args->y.rows; i++) {
        const float *from = (const float *)dy->data + i * dy->stride;
        int64_t *sum = sink->sum + (int64_t)args->token[i] * args->table.columns;
        for (int64_t c = first; c < last; c += LANES) {
            int n = last - c < LANES ? (int)(last - c) : LANES;
            float value[LANES];
            v16_store(value, v16_mul(v16_load_up_to(from + c, n), scale));
            quantize_add(sum + c, value, n, factor, sink->flags);
        }
    }
}

// to[c] += from[c] for a share of columns.
static inline void rows_accumulate(float *to, const float *from, int64_t first, int64_t last) {
    int64_t c = first;
    for (; c + LANES <= last; c += LANES) v16_store(to + c, v16_add(v16_load(to + c), v16_load(from + c)));
    if (c < last) {
        int n = (int)(last - c);
        v16_store_up_to(to + c, v16_add(v16_load_up_to(to + c, n), v16_load_up_to(from + c, n)), n);
    }
}

static void gather_backward_columns(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rows_job_t *job = context;
    const matrix_t *dy = &job->gradients->dy, *dx = &job->gradients->dx;
    for (int64_t i = 0; i < dy->rows; i++) {
        int64_t row = job->args->index[i];
        if (row >= 0)
            rows_accumulate((float *)dx->data + row * dx->stride, (const float *)dy->data + i * dy->stride, first,
                            last);
    }
}

static void pool_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const pool_args_t *args = ((const pool_job_t *)context)->args;
    int columns = args->y.columns;
    v16_t count = v16_set((float)args->count);
    for (int64_t i = first; i < last; i++) {
        const int32_t *index = args->index + i * args->count;
        row_t y = row_of(&args->y, i);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            v16_t sum = v16_set(0.0f);
            for (int j = 0; j < args->count; j++) sum = v16_add(sum, row_get(row_of(&args->x, index[j]), c, n));
            row_put(y, c, v16_div(sum, count), n);
        }
    }
}

// A share of columns: a row of x may belong to several means.
static void pool_backward_columns(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const pool_job_t *job = context;
    const pool_args_t *args = job->args;
    const matrix_t *dy_matrix = &job->gradients->dy, *dx_matrix = &job->gradients->dx;
    v16_t count = v16_set((float)args->count);
    for (int64_t i = 0; i < dy_matrix->rows; i++) {
        const float *dy = (const float *)dy_matrix->data + i * dy_matrix->stride;
        const int32_t *index = args->index + i * args->count;
        for (int64_t c = first; c < last; c += LANES) {
            int n = last - c < LANES ? (int)(last - c) : LANES;
            v16_t share = v16_div(v16_load_up_to(dy + c, n), count);
            for (int j = 0; j < args->count; j++) {
                float *dx = (float *)dx_matrix->data + index[j] * dx_matrix->stride + c;
                v16_store_up_to(dx, v16_add(v16_load_up_to(dx, n), share), n);
            }
        }
    }
}

static void scatter_backward_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rows_job_t *job = context;
    const matrix_t *dy = &job->gradients->dy, *dx = &job->gradients->dx;
    for (int64_t i = first; i < last; i++) {
        int64_t row = job->args->index[i];
        if (row < 0) continue;
        float *from = (float *)dy->data + row * dy->stride;
        if (dx->data) rows_accumulate((float *)dx->data + i * dx->stride, from, 0, dy->columns);
        memset(from, 0, (size_t)dy->columns * sizeof(float));
    }
}

// Rows from one matrix to another of any dtype: to[to_row(i)] = from[from_row(i)].
static void convert_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const convert_job_t *job = context;
    int columns = job->from.columns;
    for (int64_t i = first; i < last; i++) {
        int64_t from_row = job->from_row ? job->from_row[i] : i, to_row = job->to_row ? job->to_row[i] : i;
        if (to_row < 0) continue;
        row_t from = row_of(&job->from, from_row < 0 ? 0 : from_row), to = row_of(&job->to, to_row);
        for (int c = 0; c < columns; c += LANES) {
            int n = columns - c < LANES ? columns - c : LANES;
            row_put(to, c, from_row < 0 ? v16_set(0.0f) : row_get(from, c, n), n);
        }
    }
}

static void add_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const add_args_t *args = context;
    int columns = args->y.columns;
    for (int64_t i = first; i < last; i++) {
        row_t a = row_of(&args->a, i), b = row_of(&args->b, i), y = row_of(&args->y, i);
        int c = 0;
        for (; c + LANES <= columns; c += LANES)
            row_put(y, c, v16_add(row_get(a, c, LANES), row_get(b, c, LANES)), LANES);
        int n = columns - c;
        if (n) row_put(y, c, v16_add(row_get(a, c, n), row_get(b, c, n)), n);
    }
}

// One head: a and b are its halves. Products are rounded before they meet, as PyTorch does it.
static inline void rope_head(row_t a, row_t b, const float *cosine, const float *sine, int half, bool inverse) {
    for (int c = 0; c < half; c += LANES) {
        int n = half - c < LANES ? half - c : LANES;
        v16_t x = row_get(a, c, n);
        v16_t y = row_get(b, c, n);
        v16_t co = v16_load_up_to(cosine + c, n);
        v16_t si = v16_load_up_to(sine + c, n);
        v16_t xc = v16_mul(x, co), xs = v16_mul(x, si), yc = v16_mul(y, co), ys = v16_mul(y, si);
        v16_t left = inverse ? v16_add(xc, ys) : v16_sub(xc, ys);
        v16_t right = inverse ? v16_sub(yc, xs) : v16_add(yc, xs);
        row_put(a, c, left, n);
        row_put(b, c, right, n);
    }
}

static void rope_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rope_args_t *args = context;
    int half = args->half;
    for (int64_t i = first; i < last; i++) {
        row_t row = row_of(&args->x, i);
        for (int head = 0; head < args->heads; head++) {
            row_t a = row_from(row, (int64_t)head * 2 * half);
            rope_head(a, row_from(a, half), args->cosine + i * half, args->sine + i * half, half, args->inverse);
        }
    }
}
