// Ops whose rows stand alone: embedding, gather, scatter, rmsnorm, rope, activation, add.
#include "tests/ops/parts/ops.h"

#include <math.h>
#include <string.h>

static double elements(const int *shape) {
    return (double)shape[0] * shape[1];
}

// Copies the dense part of one tensor's values or gradients to another of the same shape.
static void copy_rows(matrix_t from, matrix_t to) {
    for (int64_t r = 0; r < from.rows; r++)
        memcpy((char *)to.data + (size_t)(r * to.stride) * dtype_bytes(to.dtype),
               (const char *)from.data + (size_t)(r * from.stride) * dtype_bytes(to.dtype),
               (size_t)from.columns * dtype_bytes(to.dtype));
}
static void add_gradient(matrix_t from, matrix_t to) {
    for (int64_t r = 0; r < from.rows; r++)
        for (int64_t c = 0; c < from.columns; c++)
            ((float *)to.data)[r * to.stride + c] += ((const float *)from.data)[r * from.stride + c];
}

// ---- embedding: shape M, K, V ----
enum { EMBEDDING_TABLE, EMBEDDING_Y };
static status_t embedding_setup(problem_t *p) {
    TRY(problem_tensor(p, "table", TENSOR_PARAM, false, p->shape[2], p->shape[1], 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 3, 1.0f));
    return problem_array(p, true, p->shape[0], 1, 0, p->shape[2]);
}
static embedding_args_t embedding_args(problem_t *p) {
    return (embedding_args_t){.token = p->array[0].value,
                              .table = problem_matrix(p, EMBEDDING_TABLE),
                              .scale = 1.5f,
                              .y = problem_matrix(p, EMBEDDING_Y)};
}
static status_t embedding_run(problem_t *p, device_t *device) {
    embedding_args_t args = embedding_args(p);
    return device->table->embedding(device, &args);
}
static status_t embedding_run_backward(problem_t *p, device_t *device) {
    embedding_args_t args = embedding_args(p);
    gradient_sink_t table = problem_sink(p, EMBEDDING_TABLE);
    embedding_gradients_t gradients = {.dy = problem_gradient(p, EMBEDDING_Y), .table = &table};
    return device->table->embedding_backward(device, &args, &gradients);
}
static void embedding_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1];
    for (int i = 0; i < p->shape[0]; i++)
        for (int c = 0; c < columns; c++)
            value[EMBEDDING_Y][i * columns + c] = 1.5 * value[EMBEDDING_TABLE][p->array[0].value[i] * columns + c];
}
static double embedding_bytes(const int *shape, bool backward) {
    return elements(shape) * (backward ? 20 : 8);
}
const op_t op_embedding = {.name = "embedding",
                           .backward = "embedding_backward",
                           .setup = embedding_setup,
                           .run = embedding_run,
                           .run_backward = embedding_run_backward,
                           .reference = embedding_reference,
                           .tolerance = 1e-6,
                           .bytes = embedding_bytes};

// ---- gather: shape M, K, rows of x ----
enum { ROWS_X, ROWS_START, ROWS_Y };
static status_t gather_setup(problem_t *p) {
    TRY(problem_tensor(p, "x", TENSOR_INPUT, false, p->shape[2], p->shape[1], 5, 1.0f));
    TRY(problem_tensor(p, "unused", TENSOR_CONST, false, 0, 1, 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 2, 1.0f));
    return problem_array(p, true, p->shape[0], 1, -1, p->shape[2]);
}
static rows_args_t rows_args(problem_t *p) {
    return (rows_args_t){.x = problem_matrix(p, ROWS_X), .index = p->array[0].value, .y = problem_matrix(p, ROWS_Y)};
}
static status_t gather_run(problem_t *p, device_t *device) {
    rows_args_t args = rows_args(p);
    return device->table->gather_rows(device, &args);
}
static status_t gather_run_backward(problem_t *p, device_t *device) {
    rows_args_t args = rows_args(p);
    rows_gradients_t gradients = {.dy = problem_gradient(p, ROWS_Y), .dx = problem_gradient(p, ROWS_X)};
    return device->table->gather_rows_backward(device, &args, &gradients);
}
static void gather_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1];
    for (int i = 0; i < p->shape[0]; i++)
        for (int c = 0; c < columns; c++) {
            int row = p->array[0].value[i];
            value[ROWS_Y][i * columns + c] = row < 0 ? 0.0 : value[ROWS_X][row * columns + c];
        }
}
static double rows_bytes(const int *shape, bool backward) {
    return elements(shape) * (backward ? 12 : 8);
}
const op_t op_gather = {.name = "gather_rows",
                        .backward = "gather_rows_backward",
                        .setup = gather_setup,
                        .run = gather_run,
                        .run_backward = gather_run_backward,
                        .reference = gather_reference,
                        .tolerance = 0,
                        .bytes = rows_bytes};

// ---- scatter: shape M, K, rows of y (prime, so that i * 7 mod rows has no repeats) ----
static status_t scatter_setup(problem_t *p) {
    TRY(problem_tensor(p, "x", TENSOR_INPUT, false, p->shape[0], p->shape[1], 4, 1.0f));
    TRY(problem_tensor(p, "y before", TENSOR_INPUT, false, p->shape[2], p->shape[1], 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, false, p->shape[2], p->shape[1], 1, 1.0f));
    TRY(problem_array(p, false, p->shape[0], 1, 0, 1));
    for (int i = 0; i < p->shape[0]; i++) p->array[0].value[i] = i % 5 == 4 ? -1 : i * 7 % p->shape[2];
    return STATUS_OK;
}
static void scatter_prepare(problem_t *p) {
    copy_rows(problem_matrix(p, ROWS_START), problem_matrix(p, ROWS_Y));
}
static status_t scatter_run(problem_t *p, device_t *device) {
    rows_args_t args = rows_args(p);
    return device->table->scatter_rows(device, &args);
}
static status_t scatter_run_backward(problem_t *p, device_t *device) {
    rows_args_t args = rows_args(p);
    rows_gradients_t gradients = {.dy = problem_gradient(p, ROWS_Y), .dx = problem_gradient(p, ROWS_X)};
    return device->table->scatter_rows_backward(device, &args, &gradients);
}
static void scatter_finish_backward(problem_t *p) { // what is left belongs to y as it was
    add_gradient(problem_gradient(p, ROWS_Y), problem_gradient(p, ROWS_START));
}
static void scatter_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1];
    memcpy(value[ROWS_Y], value[ROWS_START], (size_t)p->shape[2] * (size_t)columns * sizeof(double));
    for (int i = 0; i < p->shape[0]; i++)
        for (int c = 0; c < columns; c++)
            if (p->array[0].value[i] >= 0)
                value[ROWS_Y][p->array[0].value[i] * columns + c] = value[ROWS_X][i * columns + c];
}
const op_t op_scatter = {.name = "scatter_rows",
                         .backward = "scatter_rows_backward",
                         .setup = scatter_setup,
                         .prepare = scatter_prepare,
                         .run = scatter_run,
                         .run_backward = scatter_run_backward,
                         .finish_backward = scatter_finish_backward,
                         .reference = scatter_reference,
                         .tolerance = 0,
                         .bytes = rows_bytes};

// ---- pooling: shape M, K, rows of x, rows of a mean; a fifth argument: the side of a square grid instead ----
enum { POOL_X, POOL_Y };
static status_t pool_setup(problem_t *p) {
    int count = p->shape[3], side = p->shape[4];
    TRY(problem_tensor(p, "x", TENSOR_INPUT, false, p->shape[2], p->shape[1], 4, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 1, 1.0f));
    TRY(problem_array(p, true, p->shape[0], count, 0, p->shape[2]));
    for (int i = 0; side && i < p->shape[0] * count; i++) { // windows of kernel x kernel with stride kernel
        int kernel = (int)lround(sqrt(count)), across = side / kernel, out = i / count, in = i % count;
        int row = out / across * kernel + in / kernel, column = out % across * kernel + in % kernel;
        p->array[0].value[i] = (row * side + column) % p->shape[2];
    }
    return STATUS_OK;
}
static pool_args_t pool_args(problem_t *p) {
    return (pool_args_t){.x = problem_matrix(p, POOL_X),
                         .index = p->array[0].value,
                         .count = p->shape[3],
                         .y = problem_matrix(p, POOL_Y)};
}
static status_t pool_run(problem_t *p, device_t *device) {
    pool_args_t args = pool_args(p);
    return device->table->pool_rows(device, &args);
}
static status_t pool_run_backward(problem_t *p, device_t *device) {
    pool_args_t args = pool_args(p);
    pool_gradients_t gradients = {.dy = problem_gradient(p, POOL_Y), .dx = problem_gradient(p, POOL_X)};
    return device->table->pool_rows_backward(device, &args, &gradients);
}
static void pool_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1], count = p->shape[3];
    for (int i = 0; i < p->shape[0]; i++)
        for (int c = 0; c < columns; c++) {
            double sum = 0;
            for (int j = 0; j < count; j++) sum += value[POOL_X][p->array[0].value[i * count + j] * columns + c];
            value[POOL_Y][i * columns + c] = sum / count;
        }
}
static double pool_bytes(const int *shape, bool backward) {
    return elements(shape) * (4 + (backward ? 8 : 4) * shape[3]);
}
const op_t op_pool = {.name = "pool_rows",
                      .backward = "pool_rows_backward",
                      .setup = pool_setup,
                      .run = pool_run,
                      .run_backward = pool_run_backward,
                      .reference = pool_reference,
                      .tolerance = 5e-7,
                      .bytes = pool_bytes};

// ---- rmsnorm: shape M, K, flavour ----
enum { NORM_X, NORM_W, NORM_Y, NORM_RSTD };
static status_t norm_setup(problem_t *p) {
    TRY(problem_tensor(p, "x", TENSOR_INPUT, true, p->shape[0], p->shape[1], 3, 2.0f));
    TRY(problem_tensor(p, "weight", TENSOR_PARAM, false, 1, p->shape[1], 0, 1.5f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 7, 1.0f));
    return problem_tensor(p, "rstd", TENSOR_SAVED, true, p->shape[0], 1, 0, 1.0f);
}
static rmsnorm_args_t norm_args(problem_t *p) {
    return (rmsnorm_args_t){.x = problem_matrix(p, NORM_X),
                            .weight = p->tensor[NORM_W].value,
                            .eps = 1e-3f,
                            .flavour = (norm_flavour_t)p->shape[2],
                            .y = problem_matrix(p, NORM_Y),
                            .rstd = p->tensor[NORM_RSTD].value};
}
static status_t norm_run(problem_t *p, device_t *device) {
    rmsnorm_args_t args = norm_args(p);
    return device->table->rmsnorm(device, &args);
}
static status_t norm_run_backward(problem_t *p, device_t *device) {
    rmsnorm_args_t args = norm_args(p);
    gradient_sink_t weight = problem_sink(p, NORM_W);
    rmsnorm_gradients_t gradients = {
        .dy = problem_gradient(p, NORM_Y), .dx = problem_gradient(p, NORM_X), .weight = &weight, .leaves = p->leaves};
    return device->table->rmsnorm_backward(device, &args, &gradients);
}
static void norm_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1];
    for (int i = 0; i < p->shape[0]; i++) {
        const double *x = value[NORM_X] + (size_t)i * (size_t)columns;
        double squares = 0;
        for (int c = 0; c < columns; c++) squares += x[c] * x[c];
        double rstd = 1.0 / sqrt(squares / columns + (double)1e-3f);
        value[NORM_RSTD][i] = rstd;
        for (int c = 0; c < columns; c++)
            value[NORM_Y][i * columns + c] =
                x[c] * rstd * ((p->shape[2] == NORM_ONE_PLUS_WEIGHT ? 1.0 : 0.0) + value[NORM_W][c]);
    }
}
static double norm_bytes(const int *shape, bool backward) {
    return elements(shape) * (backward ? 24 : 8); // backward reads x and dy twice, dx once and writes it
}
static int norm_inexact(const int *shape) {
    return shape[2] == NORM_CAST_THEN_WEIGHT ? HALF_FORWARD : 0;
}
const op_t op_rmsnorm = {.name = "rmsnorm",
                         .inexact = norm_inexact,
                         .backward = "rmsnorm_backward",
                         .setup = norm_setup,
                         .run = norm_run,
                         .run_backward = norm_run_backward,
                         .reference = norm_reference,
                         .tolerance = 2e-6,
                         .bytes = norm_bytes};

// ---- layernorm: shape M, K, bias, level of x (tenths) ----
enum { LAYER_X, LAYER_W, LAYER_BIAS, LAYER_Y, LAYER_MEAN, LAYER_RSTD };
static status_t layer_setup(problem_t *p) {
    TRY(problem_tensor(p, "x", TENSOR_INPUT, true, p->shape[0], p->shape[1], 3, 2.0f));
    TRY(problem_tensor(p, "weight", TENSOR_PARAM, false, 1, p->shape[1], 0, 1.5f));
    TRY(problem_tensor(p, "bias", p->shape[2] ? TENSOR_PARAM : TENSOR_CONST, false, 1, p->shape[1], 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 7, 1.0f));
    for (int64_t i = 0; i < p->shape[0]; i++)
        for (int c = 0; c < p->shape[1]; c++)
            p->tensor[LAYER_X].value[i * p->tensor[LAYER_X].stride + c] += (float)p->shape[3] * 0.1f;
    TRY(problem_tensor(p, "mean", TENSOR_SAVED, true, p->shape[0], 1, 0, 1.0f));
    return problem_tensor(p, "rstd", TENSOR_SAVED, true, p->shape[0], 1, 0, 1.0f);
}
static layernorm_args_t layer_args(problem_t *p) {
    return (layernorm_args_t){.x = problem_matrix(p, LAYER_X),
                              .weight = p->tensor[LAYER_W].value,
                              .bias = p->shape[2] ? p->tensor[LAYER_BIAS].value : NULL,
                              .eps = 1e-3f,
                              .y = problem_matrix(p, LAYER_Y),
                              .mean = p->tensor[LAYER_MEAN].value,
                              .rstd = p->tensor[LAYER_RSTD].value};
}
static status_t layer_run(problem_t *p, device_t *device) {
    layernorm_args_t args = layer_args(p);
    return device->table->layernorm(device, &args);
}
static status_t layer_run_backward(problem_t *p, device_t *device) {
    layernorm_args_t args = layer_args(p);
    gradient_sink_t weight = problem_sink(p, LAYER_W), bias = problem_sink(p, LAYER_BIAS);
    layernorm_gradients_t gradients = {.dy = problem_gradient(p, LAYER_Y),
                                       .dx = problem_gradient(p, LAYER_X),
                                       .weight = &weight,
                                       .bias = p->shape[2] ? &bias : NULL,
                                       .leaves = p->leaves};
    return device->table->layernorm_backward(device, &args, &gradients);
}
static void layer_reference(const problem_t *p, double *const *value) {
    int columns = p->shape[1];
    for (int i = 0; i < p->shape[0]; i++) {
        const double *x = value[LAYER_X] + (size_t)i * (size_t)columns;
        double sum = 0, squares = 0;
        for (int c = 0; c < columns; c++) sum += x[c];
        double mean = sum / columns;
        for (int c = 0; c < columns; c++) squares += (x[c] - mean) * (x[c] - mean);
        double rstd = 1.0 / sqrt(squares / columns + (double)1e-3f);
        value[LAYER_MEAN][i] = mean;
        value[LAYER_RSTD][i] = rstd;
        for (int c = 0; c < columns; c++)
            value[LAYER_Y][i * columns + c] =
                (x[c] - mean) * rstd * value[LAYER_W][c] + (p->shape[2] ? value[LAYER_BIAS][c] : 0.0);
    }
}
const op_t op_layernorm = {.name = "layernorm",
                           .backward = "layernorm_backward",
                           .setup = layer_setup,
                           .run = layer_run,
                           .run_backward = layer_run_backward,
                           .reference = layer_reference,
                           .tolerance = 3e-6,
                           .bytes = norm_bytes};

// ---- rope_table: shape M, half ----
enum { TABLE_COSINE, TABLE_SINE, TABLE_FREQUENCY };
static status_t table_setup(problem_t *p) {
    int half = p->shape[1];
    TRY(problem_tensor(p, "cosine", TENSOR_SAVED, true, p->shape[0], half, 0, 1.0f));
    TRY(problem_tensor(p, "sine", TENSOR_SAVED, true, p->shape[0], half, 0, 1.0f));
    TRY(problem_tensor(p, "inverse frequency", TENSOR_CONST, false, 1, half, 0, 1.0f));
    for (int j = 0; j < half; j++) p->tensor[TABLE_FREQUENCY].value[j] = (float)pow(1e6, -(double)j / half);
    for (int axis = 0; axis < 3; axis++) TRY(problem_array(p, true, p->shape[0], 1, 0, 30000));
    TRY(problem_array(p, false, half, 1, 0, 3));
    return STATUS_OK;
}
static status_t table_run(problem_t *p, device_t *device) {
    rope_table_args_t args = {.rows = p->shape[0],
                              .half = p->shape[1],
                              .position = {p->array[0].value, p->array[1].value, p->array[2].value},
                              .axis = p->array[3].value,
                              .inverse_frequency = p->tensor[TABLE_FREQUENCY].value,
                              .cosine = p->tensor[TABLE_COSINE].value,
                              .sine = p->tensor[TABLE_SINE].value};
    return device->table->rope_table(device, &args);
}
static void table_reference(const problem_t *p, double *const *value) {
    int half = p->shape[1];
    for (int i = 0; i < p->shape[0]; i++)
        for (int j = 0; j < half; j++) {
            // The angle is fp32 by definition; its rounding is part of the op.
            float angle = (float)p->array[p->array[3].value[j]].value[i] * (float)value[TABLE_FREQUENCY][j];
            value[TABLE_COSINE][i * half + j] = cos((double)angle);
            value[TABLE_SINE][i * half + j] = sin((double)angle);
        }
}
static double table_bytes(const int *shape, bool backward) {
    (void)backward;
    return elements(shape) * 8;
}
const op_t op_rope_table = {.name = "rope_table",
                            .setup = table_setup,
                            .run = table_run,
                            .reference = table_reference,
                            .tolerance = 1e-7,
                            .bytes = table_bytes};

// ---- rope: shape M, half, heads. Works in place, in y, which is made a copy of x first ----
enum { ROPE_X, ROPE_COSINE, ROPE_SINE, ROPE_Y };
static status_t rope_setup(problem_t *p) {
    int half = p->shape[1], columns = 2 * half * p->shape[2];
    TRY(problem_tensor(p, "x", TENSOR_INPUT, true, p->shape[0], columns, 0, 1.0f));
    TRY(problem_tensor(p, "cosine", TENSOR_CONST, true, p->shape[0], half, 0, 1.0f));
    TRY(problem_tensor(p, "sine", TENSOR_CONST, true, p->shape[0], half, 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], columns, 9, 1.0f));
    for (int i = 0; i < p->shape[0] * half; i++) {
        double angle = 3.0 * (double)problem_random(p, 20, i);
        p->tensor[ROPE_COSINE].value[i] = (float)cos(angle);
        p->tensor[ROPE_SINE].value[i] = (float)sin(angle);
    }
    return STATUS_OK;
}
static status_t rope_turn(problem_t *p, device_t *device, matrix_t x, bool inverse) {
    rope_args_t args = {.x = x,
                        .heads = p->shape[2],
                        .half = p->shape[1],
                        .cosine = p->tensor[ROPE_COSINE].value,
                        .sine = p->tensor[ROPE_SINE].value,
                        .inverse = inverse};
    return device->table->rope(device, &args);
}
static void rope_prepare(problem_t *p) {
    copy_rows(problem_matrix(p, ROPE_X), problem_matrix(p, ROPE_Y));
}
static status_t rope_run(problem_t *p, device_t *device) {
    return rope_turn(p, device, problem_matrix(p, ROPE_Y), false);
}
static status_t rope_run_backward(problem_t *p, device_t *device) {
    return rope_turn(p, device, problem_gradient(p, ROPE_Y), true);
}
static void rope_finish_backward(problem_t *p) {
    add_gradient(problem_gradient(p, ROPE_Y), problem_gradient(p, ROPE_X));
}
static void rope_reference(const problem_t *p, double *const *value) {
    int half = p->shape[1], heads = p->shape[2];
    for (int i = 0; i < p->shape[0]; i++)
        for (int head = 0; head < heads; head++)
            for (int j = 0; j < half; j++) {
                int a = (i * heads + head) * 2 * half + j, b = a + half;
                double c = value[ROPE_COSINE][i * half + j], s = value[ROPE_SINE][i * half + j];
                value[ROPE_Y][a] = value[ROPE_X][a] * c - value[ROPE_X][b] * s;
                value[ROPE_Y][b] = value[ROPE_X][b] * c + value[ROPE_X][a] * s;
            }
}
static double rope_bytes(const int *shape, bool backward) {
    (void)backward;
    return elements(shape) * shape[2] * 2 * 8 + elements(shape) * 8;
}
const op_t op_rope = {.name = "rope",
                      .setup = rope_setup,
                      .prepare = rope_prepare,
                      .run = rope_run,
                      .run_backward = rope_run_backward,
                      .finish_backward = rope_finish_backward,
                      .reference = rope_reference,
                      .tolerance = 1e-6,
                      .bytes = rope_bytes};

// ---- activation: shape M, K, kind, gated, tenths of the spread ----
enum { ACTIVATION_X, ACTIVATION_UP, ACTIVATION_Y };
static status_t activation_setup(problem_t *p) {
    bool gated = p->shape[3] != 0;
    TRY(problem_tensor(p, "x", TENSOR_INPUT, true, p->shape[0], p->shape[1], 2, (float)p->shape[4] * 0.1f));
    TRY(problem_tensor(p, "up", gated ? TENSOR_INPUT : TENSOR_CONST, true, p->shape[0], p->shape[1], 0, 1.0f));
    return problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 0, 1.0f);
}
static activation_args_t activation_args(problem_t *p) {
    activation_args_t args = {
        .kind = (activation_t)p->shape[2], .x = problem_matrix(p, ACTIVATION_X), .y = problem_matrix(p, ACTIVATION_Y)};
    if (p->shape[3]) args.up = problem_matrix(p, ACTIVATION_UP);
    return args;
}
static status_t activation_run(problem_t *p, device_t *device) {
    activation_args_t args = activation_args(p);
    return device->table->activation(device, &args);
}
static status_t activation_run_backward(problem_t *p, device_t *device) {
    activation_args_t args = activation_args(p);
    activation_gradients_t gradients = {.dy = problem_gradient(p, ACTIVATION_Y),
                                        .dx = problem_gradient(p, ACTIVATION_X)};
    if (p->shape[3]) gradients.dup = problem_gradient(p, ACTIVATION_UP);
    return device->table->activation_backward(device, &args, &gradients);
}
static double activation_of(int kind, double x) {
    const double root = sqrt(2.0 / acos(-1.0));
    switch (kind) {
    case ACTIVATION_SILU:
        return x / (1.0 + exp(-x));
    case ACTIVATION_GELU_ERF:
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case ACTIVATION_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(root * (x + 0.044715 * x * x * x)));
    default:
        return x / (1.0 + exp(-1.702 * x));
    }
}
static void activation_reference(const problem_t *p, double *const *value) {
    for (int i = 0; i < p->shape[0] * p->shape[1]; i++) {
        double y = activation_of(p->shape[2], value[ACTIVATION_X][i]);
        value[ACTIVATION_Y][i] = p->shape[3] ? y * value[ACTIVATION_UP][i] : y;
    }
}
static double activation_bytes(const int *shape, bool backward) {
    return elements(shape) * (shape[3] ? (backward ? 28 : 12) : (backward ? 16 : 8));
}
const op_t op_activation = {.name = "activation",
                            .backward = "activation_backward",
                            .setup = activation_setup,
                            .run = activation_run,
                            .run_backward = activation_run_backward,
                            .reference = activation_reference,
                            .tolerance = 5e-7,
                            .bytes = activation_bytes};

// ---- add: shape M, K ----
enum { ADD_A, ADD_B, ADD_Y };
static status_t add_setup(problem_t *p) {
    TRY(problem_tensor(p, "a", TENSOR_CONST, true, p->shape[0], p->shape[1], 1, 1.0f));
    TRY(problem_tensor(p, "b", TENSOR_CONST, true, p->shape[0], p->shape[1], 0, 1.0f));
    return problem_tensor(p, "y", TENSOR_OUTPUT, true, p->shape[0], p->shape[1], 2, 1.0f);
}
static status_t add_run(problem_t *p, device_t *device) {
    add_args_t args = {.a = problem_matrix(p, ADD_A), .b = problem_matrix(p, ADD_B), .y = problem_matrix(p, ADD_Y)};
    return device->table->add(device, &args);
}
static void add_reference(const problem_t *p, double *const *value) {
    for (int i = 0; i < p->shape[0] * p->shape[1]; i++) value[ADD_Y][i] = value[ADD_A][i] + value[ADD_B][i];
}
static double add_bytes(const int *shape, bool backward) {
    (void)backward;
    return elements(shape) * 12;
}
const op_t op_add = {.name = "add",
                     .setup = add_setup,
                     .run = add_run,
                     .reference = add_reference,
                     .tolerance = 1e-6,
                     .bytes = add_bytes};
