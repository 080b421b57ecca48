// embedding and add: an element is a function of its inputs alone.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_rows.h"

static __global__ void __launch_bounds__(ROWS_THREADS)
    embedding_kernel(rows_grid_t grid, const int32_t *token, int words, uint32_t *fault, rows_t table, float scale,
                     rows_t y, int columns) {
    int64_t row;
    int unit;
    float value[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    if (!cuda_index(token[row], words, fault, CUDA_FAULT_EMBEDDING)) return;
    rows_get(table, token[row], unit * PACK, columns, value);
    for (int i = 0; i < PACK; i++) value[i] = __fmul_rn(value[i], scale);
    rows_put(y, row, unit * PACK, columns, value);
}

// Rows of one token meet in the same sums, in any order: the sums are exact.
static __global__ void __launch_bounds__(ROWS_THREADS)
    embedding_backward_kernel(rows_grid_t grid, const int32_t *token, int words, uint32_t *fault, rows_t dy,
                              float scale, int64_t *sum, unsigned *flags, double factor, int columns) {
    int64_t row;
    int unit;
    float value[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    if (!cuda_index(token[row], words, fault, CUDA_FAULT_EMBEDDING)) return;
    int c = unit * PACK;
    rows_get(dy, row, c, columns, value);
    int64_t *to = sum + (int64_t)token[row] * columns + c;
    for (int i = 0; i < PACK; i++)
        if (c + i < columns) cuda_sink_add(to + i, flags, factor, __fmul_rn(value[i], scale));
}

static __global__ void __launch_bounds__(ROWS_THREADS)
    add_kernel(rows_grid_t grid, rows_t a, rows_t b, rows_t y, int columns) {
    int64_t row;
    int unit;
    float left[PACK], right[PACK];
    if (!rows_place(grid, &row, &unit)) return;
    rows_get(a, row, unit * PACK, columns, left);
    rows_get(b, row, unit * PACK, columns, right);
    for (int i = 0; i < PACK; i++) left[i] = __fadd_rn(left[i], right[i]);
    rows_put(y, row, unit * PACK, columns, left);
}

// The factor, in the table's dtype.
static float embedding_scale(const embedding_args_t *args) {
    return args->table.dtype == DTYPE_BF16 ? bf16_widen(bf16_round(args->scale)) : args->scale;
}

extern "C" status_t CUDA_NAME(embedding)(device_t *device, const embedding_args_t *args) {
    TRY(check_embedding(args));
    if (device->measuring) return STATUS_OK;
    rows_grid_t grid = rows_share(args->y.rows, args->y.columns, PACK);
    if (rows_none(&grid)) return STATUS_OK;
    const int32_t *token = args->token;
    uint32_t *fault = cuda_fault(device);
    rows_t table = rows_of(&args->table), y = rows_of(&args->y);
    float scale = embedding_scale(args);
    int columns = args->y.columns, words = args->table.rows;
    return CUDA_LAUNCH(embedding_kernel, rows_blocks(&grid), rows_threads(&grid), 0, cuda_stream(device), grid, token,
                       words, fault, table, scale, y, columns);
}

extern "C" status_t CUDA_NAME(embedding_backward)(device_t *device, const embedding_args_t *args,
                                                  const embedding_gradients_t *gradients) {
    TRY(check_embedding_backward(args, gradients));
    if (device->measuring || !gradients->table) return STATUS_OK;
    rows_grid_t grid = rows_share(args->y.rows, args->y.columns, PACK);
    if (rows_none(&grid)) return STATUS_OK;
    const int32_t *token = args->token;
    uint32_t *fault = cuda_fault(device);
    rows_t dy = rows_of(&gradients->dy);
    int64_t *sum = gradients->table->sum;
    unsigned *flags = gradients->table->flags;
    float scale = embedding_scale(args);
    double factor = ldexp(1.0, gradients->table->exponent);
    int columns = args->y.columns, words = args->table.rows;
    return CUDA_LAUNCH(embedding_backward_kernel, rows_blocks(&grid), rows_threads(&grid), 0, cuda_stream(device), grid,
                       token, words, fault, dy, scale, sum, flags, factor, columns);
}

extern "C" status_t CUDA_NAME(add)(device_t *device, const add_args_t *args) {
    TRY(check_add(args));
    if (device->measuring) return STATUS_OK;
    rows_grid_t grid = rows_share(args->y.rows, args->y.columns, PACK);
    if (rows_none(&grid)) return STATUS_OK;
    rows_t a = rows_of(&args->a), b = rows_of(&args->b), y = rows_of(&args->y);
    int columns = args->y.columns;
    return CUDA_LAUNCH(add_kernel, rows_blocks(&grid), rows_threads(&grid), 0, cuda_stream(device), grid, a, b, y,
                       columns);
}
