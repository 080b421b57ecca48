#include "kernels/check.h"

#include <math.h>

enum { EXPONENT_LIMIT = 900 };

#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) FAIL(STATUS_INVALID, __VA_ARGS__);                                                           \
    } while (0)

// Shape alone, any dtype.
static status_t check_shape(const char *op, const char *field, const matrix_t *m, int rows, int columns) {
    REQUIRE(rows >= 0 && columns >= 0, "%s: %s has a negative size, [%d, %d]", op, field, rows, columns);
    REQUIRE(m->rows == rows && m->columns == columns, "%s: %s is [%d, %d], expected [%d, %d]", op, field, m->rows,
            m->columns, rows, columns);
    REQUIRE(m->stride >= m->columns, "%s: %s has a stride of %lld elements for %d columns", op, field,
            (long long)m->stride, m->columns);
    REQUIRE(m->data || rows == 0 || columns == 0, "%s: %s has no data", op, field);
    return STATUS_OK;
}

status_t check_values(const char *op, const char *field, const matrix_t *m, int rows, int columns) {
    TRY(check_shape(op, field, m, rows, columns));
    if (m->dtype != DTYPE_F32 && m->dtype != DTYPE_BF16)
        FAIL(STATUS_UNAVAILABLE, "%s: there is no kernel for %s in %s; use f32 or bf16", op, field,
             dtype_name(m->dtype));
    return STATUS_OK;
}

status_t check_matrix(const char *op, const char *field, const matrix_t *m, int rows, int columns) {
    TRY(check_shape(op, field, m, rows, columns));
    if (m->dtype != DTYPE_F32)
        FAIL(STATUS_UNAVAILABLE, "%s: there is no kernel for %s in %s; use f32", op, field, dtype_name(m->dtype));
    return STATUS_OK;
}

status_t check_leaves(const char *op, const leaves_t *leaves, int rows) {
    REQUIRE(leaves->count >= 0, "%s: %d gradient leaves", op, leaves->count);
    REQUIRE(leaves->count == 0 || leaves->start, "%s: the gradient leaves have no boundaries", op);
    for (int i = 0; i < leaves->count; i++)
        REQUIRE(leaves->start[i] >= 0 && leaves->start[i] <= leaves->start[i + 1] && leaves->start[i + 1] <= rows,
                "%s: gradient leaf %d covers rows %d to %d of %d", op, i, leaves->start[i], leaves->start[i + 1], rows);
    return STATUS_OK;
}

status_t check_sink(const char *op, const char *field, const gradient_sink_t *sink) {
    REQUIRE(sink->sum && sink->flags, "%s: the gradient sum of %s has no memory", op, field);
    REQUIRE(sink->exponent >= -EXPONENT_LIMIT && sink->exponent <= EXPONENT_LIMIT,
            "%s: the gradient exponent of %s is %d, outside -%d to %d", op, field, sink->exponent, EXPONENT_LIMIT,
            EXPONENT_LIMIT);
    return STATUS_OK;
}

status_t check_indices(const char *op, const char *field, const int32_t *index, int64_t count, int low, int bound) {
    REQUIRE(index || count == 0, "%s: %s is missing", op, field);
    for (int64_t i = 0; i < count; i++)
        REQUIRE(index[i] >= low && index[i] < bound, "%s: %s[%lld] is %d, outside [%d, %d)", op, field, (long long)i,
                index[i], low, bound);
    return STATUS_OK;
}

status_t check_embedding(const embedding_args_t *args) {
    TRY(check_values("embedding", "the table", &args->table, args->table.rows, args->table.columns));
    return check_values("embedding", "y", &args->y, args->y.rows, args->table.columns);
}

status_t check_embedding_backward(const embedding_args_t *args, const embedding_gradients_t *gradients) {
    TRY(check_embedding(args));
    TRY(check_matrix("embedding backward", "dy", &gradients->dy, args->y.rows, args->y.columns));
    return gradients->table ? check_sink("embedding backward", "the table", gradients->table) : STATUS_OK;
}

static status_t check_rows(const char *op, const rows_args_t *args) {
    TRY(check_shape(op, "x", &args->x, args->x.rows, args->x.columns));
    TRY(check_shape(op, "y", &args->y, args->y.rows, args->x.columns));
    if (args->x.dtype == args->y.dtype && dtype_bytes(args->x.dtype) > 0) return STATUS_OK;
    TRY(check_values(op, "x", &args->x, args->x.rows, args->x.columns));
    return check_values(op, "y", &args->y, args->y.rows, args->x.columns);
}

status_t check_gather(const rows_args_t *args) {
    return check_rows("gather_rows", args);
}

status_t check_scatter(const rows_args_t *args) {
    return check_rows("scatter_rows", args);
}

status_t check_rows_backward(const char *op, const rows_args_t *args, const rows_gradients_t *gradients) {
    TRY(check_rows(op, args));
    TRY(check_matrix(op, "dy", &gradients->dy, args->y.rows, args->y.columns));
    if (gradients->dx.data) TRY(check_matrix(op, "dx", &gradients->dx, args->x.rows, args->x.columns));
    return STATUS_OK;
}

status_t check_pool(const pool_args_t *args) {
    const char *op = "pool_rows";
    REQUIRE(args->count >= 1, "%s: the mean of %d rows", op, args->count);
    TRY(check_values(op, "x", &args->x, args->x.rows, args->x.columns));
    return check_values(op, "y", &args->y, args->y.rows, args->x.columns);
}

status_t check_pool_backward(const pool_args_t *args, const pool_gradients_t *gradients) {
    const char *op = "pool_rows backward";
    TRY(check_pool(args));
    TRY(check_matrix(op, "dy", &gradients->dy, args->y.rows, args->y.columns));
    if (gradients->dx.data) TRY(check_matrix(op, "dx", &gradients->dx, args->x.rows, args->x.columns));
    return STATUS_OK;
}

status_t check_rmsnorm(const rmsnorm_args_t *args) {
    TRY(check_values("rmsnorm", "x", &args->x, args->x.rows, args->x.columns));
    TRY(check_values("rmsnorm", "y", &args->y, args->x.rows, args->x.columns));
    REQUIRE(args->x.columns > 0, "rmsnorm: rows without columns");
    REQUIRE(args->weight && args->rstd, "rmsnorm: the weight or rstd is missing");
    REQUIRE(args->eps >= 0 && isfinite(args->eps), "rmsnorm: eps is %g", (double)args->eps);
    REQUIRE(args->flavour == NORM_CAST_THEN_WEIGHT || args->flavour == NORM_ONE_PLUS_WEIGHT,
            "rmsnorm: unknown flavour %d", (int)args->flavour);
    return STATUS_OK;
}

status_t check_rmsnorm_backward(const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients) {
    TRY(check_rmsnorm(args));
    TRY(check_matrix("rmsnorm backward", "dy", &gradients->dy, args->x.rows, args->x.columns));
    if (gradients->dx.data) TRY(check_matrix("rmsnorm backward", "dx", &gradients->dx, args->x.rows, args->x.columns));
    if (!gradients->weight) return STATUS_OK;
    TRY(check_sink("rmsnorm backward", "the weight", gradients->weight));
    return check_leaves("rmsnorm backward", &gradients->leaves, args->x.rows);
}

status_t check_layernorm(const layernorm_args_t *args) {
    const char *op = "layernorm";
    TRY(check_values(op, "x", &args->x, args->x.rows, args->x.columns));
    TRY(check_values(op, "y", &args->y, args->x.rows, args->x.columns));
    REQUIRE(args->x.columns > 0, "%s: rows without columns", op);
    REQUIRE(args->weight, "%s: the weight is missing", op);
    REQUIRE((args->mean && args->rstd) || args->x.rows == 0, "%s: no memory for the means or rstd", op);
    REQUIRE(args->eps >= 0 && isfinite(args->eps), "%s: eps is %g", op, (double)args->eps);
    return STATUS_OK;
}

status_t check_layernorm_backward(const layernorm_args_t *args, const layernorm_gradients_t *gradients) {
    const char *op = "layernorm backward";
    TRY(check_layernorm(args));
    TRY(check_matrix(op, "dy", &gradients->dy, args->x.rows, args->x.columns));
    if (gradients->dx.data) TRY(check_matrix(op, "dx", &gradients->dx, args->x.rows, args->x.columns));
    if (!gradients->weight && !gradients->bias) return STATUS_OK;
    if (gradients->weight) TRY(check_sink(op, "the weight", gradients->weight));
    if (gradients->bias) TRY(check_sink(op, "the bias", gradients->bias));
    return check_leaves(op, &gradients->leaves, args->x.rows);
}

status_t check_rope_table(const rope_table_args_t *args) {
    REQUIRE(args->rows >= 0 && args->half > 0, "rope_table: %d rows of %d angles", args->rows, args->half);
    REQUIRE(args->axis && args->inverse_frequency, "rope_table: the axes or the frequencies are missing");
    REQUIRE((args->cosine && args->sine) || args->rows == 0, "rope_table: no memory for the table");
    REQUIRE(args->precision == DTYPE_F32 || args->precision == DTYPE_BF16, "rope_table: a table of %s values",
            dtype_name(args->precision));
    return STATUS_OK;
}

status_t check_rope(const rope_args_t *args) {
    REQUIRE(args->heads > 0 && args->half > 0, "rope: %d heads of 2 x %d", args->heads, args->half);
    REQUIRE((int64_t)args->heads * args->half <= INT32_MAX / 2, "rope: %d heads of 2 x %d are too wide", args->heads,
            args->half);
    REQUIRE((args->cosine && args->sine) || args->x.rows == 0, "rope: the table is missing");
    return check_values("rope", "x", &args->x, args->x.rows, args->heads * args->half * 2);
}

status_t check_attention(const attention_args_t *args) {
    const char *op = "attention";
    int heads = args->heads, kv_heads = args->kv_heads, size = args->head_dim;
    REQUIRE(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "%s: %d heads do not share %d key heads evenly", op,
            heads, kv_heads);
    REQUIRE(size > 0 && size <= ATTENTION_MAX_HEAD_DIM, "%s: a head size of %d is outside 1 to %d", op, size,
            ATTENTION_MAX_HEAD_DIM);
    REQUIRE(heads <= INT32_MAX / ATTENTION_MAX_HEAD_DIM, "%s: %d heads are too many", op, heads);
    TRY(check_values(op, "q", &args->q, args->q.rows, heads * size));
    TRY(check_values(op, "k", &args->k, args->k.rows, kv_heads * size));
    TRY(check_values(op, "v", &args->v, args->k.rows, kv_heads * size));
    TRY(check_values(op, "out", &args->out, args->q.rows, heads * size));
    const attention_mask_t *mask = &args->mask;
    REQUIRE(mask->sequences >= 0, "%s: %d sequences", op, mask->sequences);
    REQUIRE(mask->window >= 0, "%s: a window of %d", op, mask->window);
    REQUIRE(isfinite(args->scale), "%s: the scale is not finite", op);
    return STATUS_OK;
}

status_t check_attention_indices(const attention_args_t *args) {
    const char *op = "attention";
    const attention_mask_t *mask = &args->mask;
    if (mask->sequences == 0) return STATUS_OK;
    REQUIRE(mask->query_start && mask->query_position && mask->key_start, "%s: the mask lacks its arrays", op);
    REQUIRE(mask->query_start[0] >= 0 && mask->key_start[0] >= 0, "%s: the first sequence starts before 0", op);
    for (int s = 0; s < mask->sequences; s++) {
        REQUIRE(mask->query_start[s] <= mask->query_start[s + 1] && mask->query_start[s + 1] <= args->q.rows,
                "%s: sequence %d has the queries %d to %d of %d", op, s, mask->query_start[s], mask->query_start[s + 1],
                args->q.rows);
        REQUIRE(mask->key_start[s] <= mask->key_start[s + 1], "%s: sequence %d has keys from %d to %d", op, s,
                mask->key_start[s], mask->key_start[s + 1]);
        int queries = mask->query_start[s + 1] - mask->query_start[s];
        REQUIRE(mask->query_position[s] >= 0 && mask->query_position[s] <= INT32_MAX - queries,
                "%s: sequence %d has its first query at position %d", op, s, mask->query_position[s]);
    }
    int first = mask->key_start[0];
    int64_t count = mask->key_start[mask->sequences] - first;
    return check_indices(op, "key_row", mask->key_row ? mask->key_row + first : NULL, count, 0, args->k.rows);
}

status_t check_attention_backward(const attention_args_t *args, const attention_gradients_t *gradients) {
    const char *op = "attention backward";
    TRY(check_attention(args));
    REQUIRE(args->lse || args->q.rows == 0, "%s: it needs lse; give the forward memory for it", op);
    TRY(check_matrix(op, "dout", &gradients->dout, args->q.rows, args->q.columns));
    TRY(check_matrix(op, "dq", &gradients->dq, args->q.rows, args->q.columns));
    TRY(check_matrix(op, "dk", &gradients->dk, args->k.rows, args->k.columns));
    return check_matrix(op, "dv", &gradients->dv, args->k.rows, args->k.columns);
}

status_t check_activation(const activation_args_t *args) {
    REQUIRE(args->kind >= ACTIVATION_SILU && args->kind <= ACTIVATION_QUICK_GELU, "activation: unknown kind %d",
            (int)args->kind);
    TRY(check_values("activation", "x", &args->x, args->x.rows, args->x.columns));
    if (args->up.data) TRY(check_values("activation", "up", &args->up, args->x.rows, args->x.columns));
    return check_values("activation", "y", &args->y, args->x.rows, args->x.columns);
}

status_t check_activation_backward(const activation_args_t *args, const activation_gradients_t *gradients) {
    const char *op = "activation backward";
    TRY(check_activation(args));
    TRY(check_matrix(op, "dy", &gradients->dy, args->x.rows, args->x.columns));
    if (gradients->dx.data) TRY(check_matrix(op, "dx", &gradients->dx, args->x.rows, args->x.columns));
    if (!gradients->dup.data) return STATUS_OK;
    REQUIRE(args->up.data, "%s: a gradient of up is wanted, but the form is not gated", op);
    return check_matrix(op, "dup", &gradients->dup, args->x.rows, args->x.columns);
}

status_t check_add(const add_args_t *args) {
    TRY(check_values("add", "a", &args->a, args->y.rows, args->y.columns));
    TRY(check_values("add", "b", &args->b, args->y.rows, args->y.columns));
    return check_values("add", "y", &args->y, args->y.rows, args->y.columns);
}

status_t check_gradient_norm(const gradient_norm_args_t *args) {
    REQUIRE(args->count >= 0 && args->absmax, "gradient_norm: %lld elements, or no memory for the maximum",
            (long long)args->count);
    REQUIRE((args->sum && args->square_sum) || args->count == 0, "gradient_norm: the sums are missing");
    REQUIRE(args->exponent >= -EXPONENT_LIMIT && args->exponent <= EXPONENT_LIMIT,
            "gradient_norm: the exponent is %d, outside -%d to %d", args->exponent, EXPONENT_LIMIT, EXPONENT_LIMIT);
    return STATUS_OK;
}

status_t check_adamw(const adamw_args_t *args) {
    REQUIRE(args->count >= 0, "adamw: %lld elements", (long long)args->count);
    REQUIRE((args->master && args->first_moment && args->second_moment && args->sum) || args->count == 0,
            "adamw: a tensor is missing");
    REQUIRE(args->exponent >= -EXPONENT_LIMIT && args->exponent <= EXPONENT_LIMIT,
            "adamw: the exponent is %d, outside -%d to %d", args->exponent, EXPONENT_LIMIT, EXPONENT_LIMIT);
    REQUIRE(args->step >= 1, "adamw: steps count from 1, not %lld", (long long)args->step);
    REQUIRE(args->beta1 >= 0 && args->beta1 < 1 && args->beta2 >= 0 && args->beta2 < 1,
            "adamw: beta1 %g and beta2 %g must be in [0, 1)", (double)args->beta1, (double)args->beta2);
    return STATUS_OK;
}
