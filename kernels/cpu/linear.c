#include "kernels/cpu/linear.h"

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"

// Rows of a bf16 forward whose fp32 forms exist at once: many enough that packing the weight again costs little.
enum { LINEAR_ROWS = 512 };

size_t cpu_packed_bytes(device_t *device, matrix_t weight) {
    // A bf16 weight is widened as it is packed, so that it is not stored twice.
    if (weight.dtype != DTYPE_F32 || weight.rows < 1 || weight.columns < 1 || !gemm_kernels_for(device)->packs)
        return 0;
    return gemm_packed_bytes(weight.columns, weight.rows);
}

status_t cpu_pack_weight(device_t *device, matrix_t weight, void *packed) {
    const gemm_kernels_t *kernels = gemm_kernels_for(device);
    TRY(gemm_check_matrix(device, "pack_weight: the weight", weight, weight.rows, weight.columns));
    if (!kernels->packs)
        FAIL(STATUS_UNAVAILABLE, "the portable kernels have no packed form of a weight; use the weight itself");
    if (device->measuring) return STATUS_OK;
    if (!packed) FAIL(STATUS_INVALID, "pack_weight: the place for the packed weight is missing");
    gemm_pack(kernels, device->threads, weight.data, 1, weight.stride, weight.columns, weight.rows, packed);
    return STATUS_OK;
}

static status_t check_linear(const device_t *device, const linear_args_t *args) {
    int m = args->x.rows, k = args->x.columns, n = args->weight.rows, r = args->lora_a.rows;
    TRY(gemm_check_values(device, "linear: x", args->x, m, k));
    TRY(gemm_check_values(device, "linear: the weight", args->weight, n, k));
    TRY(gemm_check_values(device, "linear: y", args->y, m, n));
    if (!args->lora_a.data) return STATUS_OK;
    if (r < 1) FAIL(STATUS_INVALID, "linear: an adapter needs a rank of 1 or more, not %d", r);
    TRY(gemm_check_values(device, "linear: lora_a", args->lora_a, r, k));
    TRY(gemm_check_values(device, "linear: lora_b", args->lora_b, n, r));
    TRY(gemm_check_values(device, "linear: lora_xa", args->lora_xa, m, r));
    return STATUS_OK;
}

// C = A B with A a matrix by rows and B(k, n) = b[n][k], the weights' orientation.
static gemm_job_t product_transposed(matrix_t a, matrix_t b, const void *packed, matrix_t c) {
    return (gemm_job_t){.m = a.rows,
                        .n = b.rows,
                        .k = b.columns,
                        .a = a.data,
                        .a_row = a.stride,
                        .a_step = 1,
                        .b = b.data,
                        .b_half = b.dtype == DTYPE_BF16,
                        .b_step = 1,
                        .b_column = b.stride,
                        .packed = packed,
                        .output = GEMM_STORE,
                        .c = c.data,
                        .c_stride = c.stride,
                        .alpha = 1.0f};
}

// C = A B with B(k, n) = b[k][n].
static gemm_job_t product(matrix_t a, matrix_t b, matrix_t c) {
    return (gemm_job_t){.m = a.rows,
                        .n = b.columns,
                        .k = b.rows,
                        .a = a.data,
                        .a_row = a.stride,
                        .a_step = 1,
                        .b = b.data,
                        .b_half = b.dtype == DTYPE_BF16,
                        .b_step = b.stride,
                        .b_column = 1,
                        .output = GEMM_STORE,
                        .c = c.data,
                        .c_stride = c.stride,
                        .alpha = 1.0f};
}

// sink += alpha * a^T b, leaf by leaf of the rows of both.
static gemm_job_t product_over_rows(matrix_t a, matrix_t b, float alpha, const gradient_sink_t *sink,
                                    const leaves_t *leaves) {
    return (gemm_job_t){.m = a.columns,
                        .n = b.columns,
                        .k = a.rows,
                        .a = a.data,
                        .a_row = 1,
                        .a_step = a.stride,
                        .b = b.data,
                        .b_half = b.dtype == DTYPE_BF16,
                        .b_step = b.stride,
                        .b_column = 1,
                        .output = GEMM_SINK,
                        .alpha = alpha,
                        .sink = sink,
                        .leaves = leaves};
}

// The scratch that the jobs need when they run one after the other.
static size_t jobs_scratch(device_t *device, const gemm_job_t *jobs, int count) {
    size_t most = 0;
    for (int i = 0; i < count; i++) {
        size_t bytes = gemm_scratch_bytes(gemm_kernels_for(device), device->threads, &jobs[i]);
        if (bytes > most) most = bytes;
    }
    return most;
}

static void run_jobs(device_t *device, const gemm_job_t *jobs, int count, void *scratch) {
    for (int i = 0; i < count; i++) gemm_run(gemm_kernels_for(device), device->threads, &jobs[i], scratch);
}

// The forward of some rows, with operands and results in fp32: what lies as bf16 passes through these.
typedef struct linear_chunk {
    matrix_t x, y, xa; // fp32: the op's own rows, or scratch
    size_t x_bytes, y_bytes, xa_bytes;
    void *scratch;
} linear_chunk_t;

static size_t chunk_bytes(matrix_t m, int rows) {
    size_t bytes = (size_t)rows * (size_t)m.columns * sizeof(float);
    return m.data && m.dtype == DTYPE_BF16 ? (bytes + 63) / 64 * 64 : 0;
}

static matrix_t rows_from(matrix_t m, int first, int rows) {
    if (m.data) m.data = (char *)m.data + (size_t)(first * m.stride) * dtype_bytes(m.dtype);
    m.rows = rows;
    return m;
}

static matrix_t chunk_place(matrix_t m, int first, int rows, void *scratch) {
    if (m.dtype != DTYPE_BF16) return rows_from(m, first, rows);
    return matrix_view(scratch, DTYPE_F32, rows, m.columns);
}

static void convert(device_t *device, matrix_t from, matrix_t to) {
    convert_job_t job = {.from = from, .to = to};
    if (from.data == to.data) return;
    cpu_parallel(device, from.rows, 1, 6.0 * from.columns, cpu_device_kernels(device)->convert, &job);
}

static int forward_jobs(const linear_args_t *args, const linear_chunk_t *chunk, gemm_job_t jobs[3]) {
    int count = 0;
    jobs[count] = product_transposed(chunk->x, args->weight, args->packed, chunk->y);
    jobs[count++].bias = args->bias;
    if (!args->lora_a.data) return count;
    jobs[count++] = product_transposed(chunk->x, args->lora_a, NULL, chunk->xa);
    jobs[count] = product_transposed(chunk->xa, args->lora_b, NULL, chunk->y);
    jobs[count].output = GEMM_FMA;
    jobs[count++].alpha = args->lora_scale;
    return count;
}

static void linear_rows(device_t *device, const linear_args_t *args, int first, int rows, char *workspace,
                        linear_chunk_t chunk) {
    gemm_job_t jobs[3];
    chunk.x = chunk_place(args->x, first, rows, workspace);
    chunk.y = chunk_place(args->y, first, rows, workspace + chunk.x_bytes);
    chunk.xa = chunk_place(args->lora_xa, first, rows, workspace + chunk.x_bytes + chunk.y_bytes);
    void *scratch = workspace + chunk.x_bytes + chunk.y_bytes + chunk.xa_bytes;
    convert(device, rows_from(args->x, first, rows), chunk.x);
    int count = forward_jobs(args, &chunk, jobs);
    run_jobs(device, jobs, count > 1 ? 2 : 1, scratch);
    if (count > 1) {
        matrix_t kept = rows_from(args->lora_xa, first, rows);
        convert(device, chunk.xa, kept);
        convert(device, kept, chunk.xa);
        run_jobs(device, jobs + 2, 1, scratch);
    }
    convert(device, chunk.y, rows_from(args->y, first, rows));
}

status_t cpu_linear(device_t *device, const linear_args_t *args) {
    gemm_job_t jobs[3];
    void *workspace;
    TRY(check_linear(device, args));
    if (args->x.rows == 0) return STATUS_OK;
    bool half = args->x.dtype == DTYPE_BF16 || args->y.dtype == DTYPE_BF16;
    int most = half && args->x.rows > LINEAR_ROWS ? LINEAR_ROWS : args->x.rows;
    linear_chunk_t chunk = {.x_bytes = chunk_bytes(args->x, most),
                            .y_bytes = chunk_bytes(args->y, most),
                            .xa_bytes = args->lora_a.data ? chunk_bytes(args->lora_xa, most) : 0,
                            .x = rows_from(args->x, 0, most),
                            .y = rows_from(args->y, 0, most),
                            .xa = rows_from(args->lora_xa, 0, most)};
    size_t bytes = chunk.x_bytes + chunk.y_bytes + chunk.xa_bytes;
    bytes += jobs_scratch(device, jobs, forward_jobs(args, &chunk, jobs));
    TRY(device_workspace(device, bytes, &workspace));
    if (device->measuring) return STATUS_OK;
    for (int first = 0; first < args->x.rows; first += most) {
        int rows = args->x.rows - first < most ? args->x.rows - first : most;
        linear_rows(device, args, first, rows, workspace, chunk);
    }
    return STATUS_OK;
}

typedef struct bias_context {
    const gemm_kernels_t *kernels;
    const linear_gradients_t *gradients;
} bias_context_t;

static void bias_task(void *argument, int task, int worker) {
    const bias_context_t *context = argument;
    const linear_gradients_t *gradients = context->gradients;
    const leaves_t *leaves = &gradients->leaves;
    float sums[GEMM_PANEL];
    (void)worker;
    int column = task * GEMM_PANEL;
    int columns = gradients->dy.columns - column < GEMM_PANEL ? gradients->dy.columns - column : GEMM_PANEL;
    for (int leaf = 0; leaf < leaves->count; leaf++) {
        context->kernels->column_sums((const float *)gradients->dy.data + column, gradients->dy.stride,
                                      leaves->start[leaf], leaves->start[leaf + 1], columns, sums);
        context->kernels->sink(gradients->bias, column, sums, columns);
    }
}

static status_t check_backward(const device_t *device, const linear_args_t *args, const linear_gradients_t *gradients) {
    TRY(check_linear(device, args));
    TRY(gemm_check_matrix(device, "linear_backward: dy", gradients->dy, args->x.rows, args->weight.rows));
    if (gradients->dx.data)
        TRY(gemm_check_matrix(device, "linear_backward: dx", gradients->dx, args->x.rows, args->x.columns));
    if ((gradients->lora_a || gradients->lora_b) && !args->lora_a.data)
        FAIL(STATUS_INVALID, "linear_backward: a gradient of an adapter is wanted where there is no adapter");
    if (gradients->weight || gradients->bias || gradients->lora_a || gradients->lora_b)
        TRY(gemm_check_leaves(device, "linear_backward", gradients->leaves, args->x.rows));
    return STATUS_OK;
}

status_t cpu_linear_backward(device_t *device, const linear_args_t *args, const linear_gradients_t *gradients) {
    gemm_job_t jobs[6];
    int count = 0, m = args->x.rows;
    void *workspace;
    TRY(check_backward(device, args, gradients));
    if (m == 0) return STATUS_OK;
    bool adapter = args->lora_a.data && (gradients->dx.data || gradients->lora_a);
    size_t dxa_bytes = adapter ? ((size_t)m * (size_t)args->lora_a.rows * sizeof(float) + 63) / 64 * 64 : 0;
    matrix_t dxa = matrix_view(NULL, DTYPE_F32, m, args->lora_a.rows);
    for (int pass = 0; pass < 2; pass++) { // first for the sizes, then with the workspace in place
        count = 0;
        if (gradients->dx.data) {
            jobs[count] = product(gradients->dy, args->weight, gradients->dx);
            jobs[count++].output = GEMM_ADD;
        }
        if (adapter) {
            jobs[count] = product(gradients->dy, args->lora_b, dxa);
            jobs[count++].alpha = args->lora_scale;
        }
        if (adapter && gradients->dx.data) {
            jobs[count] = product(dxa, args->lora_a, gradients->dx);
            jobs[count++].output = GEMM_ADD;
        }
        if (gradients->weight)
            jobs[count++] = product_over_rows(gradients->dy, args->x, 1.0f, gradients->weight, &gradients->leaves);
        if (gradients->lora_a)
            jobs[count++] = product_over_rows(dxa, args->x, 1.0f, gradients->lora_a, &gradients->leaves);
        if (gradients->lora_b)
            jobs[count++] = product_over_rows(gradients->dy, args->lora_xa, args->lora_scale, gradients->lora_b,
                                              &gradients->leaves);
        if (pass == 1) break;
        TRY(device_workspace(device, dxa_bytes + jobs_scratch(device, jobs, count), &workspace));
        if (device->measuring) return STATUS_OK;
        dxa.data = workspace;
    }
    run_jobs(device, jobs, count, (char *)workspace + dxa_bytes);
    if (gradients->bias) {
        bias_context_t context = {.kernels = gemm_kernels_for(device), .gradients = gradients};
        gemm_share(device->threads, (gradients->dy.columns + GEMM_PANEL - 1) / GEMM_PANEL,
                   4.0 * m * gradients->dy.columns, bias_task, &context);
    }
    return STATUS_OK;
}
