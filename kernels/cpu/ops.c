#include "kernels/cpu/ops.h"
#include "kernels/check.h"
#include "kernels/cpu/cpu_kernels.h"

#include <math.h>
#include <string.h>

const cpu_kernels_t *cpu_device_kernels(const device_t *device) {
    switch (cpu_device_set(device)) {
#if defined(__x86_64__)
    case CPU_AVX2:
        return &cpu_kernels_avx2;
    case CPU_AVX512:
        return &cpu_kernels_avx512;
#endif
    default:
        return &cpu_kernels_portable;
    }
}

// Columns are shared out in cache lines.
enum { COLUMN_UNIT = 64 };

// ---- embedding ----

status_t cpu_embedding(device_t *device, const embedding_args_t *args) {
    TRY(check_embedding(args));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("embedding", "token", args->token, args->y.rows, 0, args->table.rows));
    embedding_job_t job = {.args = args};
    cpu_parallel(device, args->y.rows, 1, 8.0 * args->y.columns, cpu_device_kernels(device)->embedding, &job);
    return STATUS_OK;
}

status_t cpu_embedding_backward(device_t *device, const embedding_args_t *args,
                                const embedding_gradients_t *gradients) {
    TRY(check_embedding_backward(args, gradients));
    if (device->measuring || !gradients->table) return STATUS_OK;
    TRY(check_indices("embedding backward", "token", args->token, args->y.rows, 0, args->table.rows));
    embedding_job_t job = {.args = args, .gradients = gradients};
    cpu_parallel(device, args->y.columns, COLUMN_UNIT, 20.0 * args->y.rows,
                 cpu_device_kernels(device)->embedding_backward, &job);
    return STATUS_OK;
}

// ---- gather and scatter ----

typedef struct rows_copy {
    const matrix_t *from, *to;
    const int32_t *index;
    bool scatter;
} rows_copy_t;

static void rows_copy_share(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rows_copy_t *copy = context;
    size_t size = dtype_bytes(copy->from->dtype), bytes = (size_t)copy->from->columns * size;
    for (int64_t i = first; i < last; i++) {
        int64_t row = copy->index[i], from = copy->scatter ? i : row, to = copy->scatter ? row : i;
        char *target = (char *)copy->to->data + (size_t)(to * copy->to->stride) * size;
        if (row >= 0)
            memcpy(target, (const char *)copy->from->data + (size_t)(from * copy->from->stride) * size, bytes);
        else if (!copy->scatter)
            memset(target, 0, bytes);
    }
}

// Scattering two rows to one place would make the result depend on who writes last.
static status_t rows_distinct(device_t *device, const rows_args_t *args) {
    uint8_t *seen;
    size_t bytes = ((size_t)args->y.rows + 7) / 8;
    TRY(device_workspace(device, bytes, (void **)&seen));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("scatter_rows", "index", args->index, args->x.rows, -1, args->y.rows));
    memset(seen, 0, bytes);
    for (int i = 0; i < args->x.rows; i++) {
        int row = args->index[i];
        if (row < 0) continue;
        if (seen[row / 8] >> (row % 8) & 1)
            FAIL(STATUS_INVALID, "scatter_rows: index[%d] writes row %d, which an earlier entry writes too", i, row);
        seen[row / 8] |= (uint8_t)(1 << (row % 8));
    }
    return STATUS_OK;
}

// Copies rows as they are, or from one dtype to another.
static void rows_run(device_t *device, const rows_args_t *args, bool scatter) {
    int rows = scatter ? args->x.rows : args->y.rows;
    double cost = 2.0 * (double)dtype_bytes(args->x.dtype) * args->x.columns;
    if (args->x.dtype == args->y.dtype) {
        rows_copy_t copy = {.from = &args->x, .to = &args->y, .index = args->index, .scatter = scatter};
        cpu_parallel(device, rows, 1, cost, rows_copy_share, &copy);
        return;
    }
    convert_job_t job = {.from = args->x, .to = args->y};
    *(scatter ? &job.to_row : &job.from_row) = args->index;
    cpu_parallel(device, rows, 1, cost, cpu_device_kernels(device)->convert, &job);
}

status_t cpu_gather_rows(device_t *device, const rows_args_t *args) {
    TRY(check_gather(args));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("gather_rows", "index", args->index, args->y.rows, -1, args->x.rows));
    rows_run(device, args, false);
    return STATUS_OK;
}

status_t cpu_gather_rows_backward(device_t *device, const rows_args_t *args, const rows_gradients_t *gradients) {
    TRY(check_rows_backward("gather_rows backward", args, gradients));
    if (device->measuring || !gradients->dx.data) return STATUS_OK;
    TRY(check_indices("gather_rows backward", "index", args->index, args->y.rows, -1, args->x.rows));
    rows_job_t job = {.args = args, .gradients = gradients};
    cpu_parallel(device, args->x.columns, COLUMN_UNIT, 12.0 * args->y.rows, cpu_device_kernels(device)->gather_backward,
                 &job);
    return STATUS_OK;
}

status_t cpu_scatter_rows(device_t *device, const rows_args_t *args) {
    TRY(check_scatter(args));
    TRY(rows_distinct(device, args));
    if (device->measuring) return STATUS_OK;
    rows_run(device, args, true);
    return STATUS_OK;
}

status_t cpu_scatter_rows_backward(device_t *device, const rows_args_t *args, const rows_gradients_t *gradients) {
    TRY(check_rows_backward("scatter_rows backward", args, gradients));
    TRY(rows_distinct(device, args));
    if (device->measuring) return STATUS_OK;
    rows_job_t job = {.args = args, .gradients = gradients};
    cpu_parallel(device, args->x.rows, 1, 16.0 * args->x.columns, cpu_device_kernels(device)->scatter_backward, &job);
    return STATUS_OK;
}

// ---- pooling ----

status_t cpu_pool_rows(device_t *device, const pool_args_t *args) {
    TRY(check_pool(args));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("pool_rows", "index", args->index, (int64_t)args->y.rows * args->count, 0, args->x.rows));
    pool_job_t job = {.args = args};
    cpu_parallel(device, args->y.rows, 1, 4.0 * (args->count + 1) * args->y.columns, cpu_device_kernels(device)->pool,
                 &job);
    return STATUS_OK;
}

status_t cpu_pool_rows_backward(device_t *device, const pool_args_t *args, const pool_gradients_t *gradients) {
    TRY(check_pool_backward(args, gradients));
    if (device->measuring || !gradients->dx.data) return STATUS_OK;
    int64_t count = (int64_t)args->y.rows * args->count;
    TRY(check_indices("pool_rows backward", "index", args->index, count, 0, args->x.rows));
    pool_job_t job = {.args = args, .gradients = gradients};
    cpu_parallel(device, args->x.columns, COLUMN_UNIT, 8.0 * (double)count, cpu_device_kernels(device)->pool_backward,
                 &job);
    return STATUS_OK;
}

// ---- rmsnorm ----

status_t cpu_rmsnorm(device_t *device, const rmsnorm_args_t *args) {
    TRY(check_rmsnorm(args));
    if (device->measuring) return STATUS_OK;
    rmsnorm_job_t job = {.args = args};
    cpu_parallel(device, args->x.rows, 4, 8.0 * args->x.columns, cpu_device_kernels(device)->rmsnorm, &job);
    return STATUS_OK;
}

status_t cpu_rmsnorm_backward(device_t *device, const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients) {
    TRY(check_rmsnorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    rmsnorm_job_t job = {.args = args, .gradients = gradients};
    const cpu_kernels_t *kernels = cpu_device_kernels(device);
    if (gradients->weight)
        cpu_parallel(device, args->x.columns, COLUMN_UNIT, 8.0 * args->x.rows, kernels->rmsnorm_dweight, &job);
    if (gradients->dx.data) cpu_parallel(device, args->x.rows, 1, 16.0 * args->x.columns, kernels->rmsnorm_dx, &job);
    return STATUS_OK;
}

// ---- layernorm ----

status_t cpu_layernorm(device_t *device, const layernorm_args_t *args) {
    TRY(check_layernorm(args));
    if (device->measuring) return STATUS_OK;
    layernorm_job_t job = {.args = args};
    cpu_parallel(device, args->x.rows, 4, 12.0 * args->x.columns, cpu_device_kernels(device)->layernorm, &job);
    return STATUS_OK;
}

status_t cpu_layernorm_backward(device_t *device, const layernorm_args_t *args,
                                const layernorm_gradients_t *gradients) {
    TRY(check_layernorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    layernorm_job_t job = {.args = args, .gradients = gradients};
    const cpu_kernels_t *kernels = cpu_device_kernels(device);
    if (gradients->weight || gradients->bias)
        cpu_parallel(device, args->x.columns, COLUMN_UNIT, 8.0 * args->x.rows, kernels->layernorm_dweight, &job);
    if (gradients->dx.data) cpu_parallel(device, args->x.rows, 1, 16.0 * args->x.columns, kernels->layernorm_dx, &job);
    return STATUS_OK;
}

// ---- rope ----

static void rope_table_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const rope_table_args_t *args = context;
    for (int64_t i = first; i < last; i++)
        for (int j = 0; j < args->half; j++) {
            float angle = (float)args->position[args->axis[j]][i] * args->inverse_frequency[j];
            float cosine = (float)cos((double)angle), sine = (float)sin((double)angle);
            bool half = args->precision == DTYPE_BF16;
            args->cosine[i * args->half + j] = half ? bf16_widen(bf16_round(cosine)) : cosine;
            args->sine[i * args->half + j] = half ? bf16_widen(bf16_round(sine)) : sine;
        }
}

status_t cpu_rope_table(device_t *device, const rope_table_args_t *args) {
    TRY(check_rope_table(args));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("rope_table", "axis", args->axis, args->half, 0, 3));
    for (int j = 0; j < args->half && args->rows; j++)
        if (!args->position[args->axis[j]])
            FAIL(STATUS_INVALID, "rope_table: angle %d uses the positions of axis %d, which are missing", j,
                 args->axis[j]);
    rope_table_args_t copy = *args;
    cpu_parallel(device, args->rows, 1, 200.0 * args->half, rope_table_rows, &copy);
    return STATUS_OK;
}

status_t cpu_rope(device_t *device, const rope_args_t *args) {
    TRY(check_rope(args));
    if (device->measuring) return STATUS_OK;
    rope_args_t copy = *args;
    cpu_parallel(device, args->x.rows, 1, 8.0 * args->x.columns, cpu_device_kernels(device)->rope, &copy);
    return STATUS_OK;
}

// ---- activation and add ----

status_t cpu_activation(device_t *device, const activation_args_t *args) {
    TRY(check_activation(args));
    if (device->measuring) return STATUS_OK;
    activation_job_t job = {.args = args};
    cpu_parallel(device, args->x.rows, 1, 16.0 * args->x.columns, cpu_device_kernels(device)->activation, &job);
    return STATUS_OK;
}

status_t cpu_activation_backward(device_t *device, const activation_args_t *args,
                                 const activation_gradients_t *gradients) {
    TRY(check_activation_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    activation_job_t job = {.args = args, .gradients = gradients};
    cpu_parallel(device, args->x.rows, 1, 30.0 * args->x.columns, cpu_device_kernels(device)->activation_backward,
                 &job);
    return STATUS_OK;
}

status_t cpu_add(device_t *device, const add_args_t *args) {
    TRY(check_add(args));
    if (device->measuring) return STATUS_OK;
    add_args_t copy = *args;
    cpu_parallel(device, args->y.rows, 1, 12.0 * args->y.columns, cpu_device_kernels(device)->add, &copy);
    return STATUS_OK;
}

// ---- optimizer ----

status_t cpu_gradient_norm(device_t *device, const gradient_norm_args_t *args) {
    TRY(check_gradient_norm(args));
    int64_t blocks = (args->count + GRADIENT_BLOCK - 1) / GRADIENT_BLOCK;
    gradient_norm_job_t job = {.args = args};
    TRY(device_workspace(device, (size_t)blocks * sizeof(*job.absmax), (void **)&job.absmax));
    if (device->measuring) return STATUS_OK;
    cpu_parallel(device, blocks, 1, 8.0 * GRADIENT_BLOCK, cpu_device_kernels(device)->gradient_norm, &job);
    int64_t largest = 0;
    for (int64_t i = 0; i < blocks; i++) largest = job.absmax[i] > largest ? job.absmax[i] : largest;
    *args->absmax = largest;
    return STATUS_OK;
}

status_t cpu_adamw(device_t *device, const adamw_args_t *args) {
    TRY(check_adamw(args));
    if (device->measuring) return STATUS_OK;
    adamw_job_t job = {.args = args, .by = adamw_factors_of(args)};
    cpu_parallel(device, args->count, COLUMN_UNIT, 32.0, cpu_device_kernels(device)->adamw, &job);
    return STATUS_OK;
}
