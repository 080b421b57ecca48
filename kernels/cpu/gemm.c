#include "kernels/cpu/gemm.h"

#include <math.h>
#include <string.h>

#define PACK_COST 4.0 // multiply-adds an element

enum {
    DIRECT_ROWS = 12,       // up to two strips of rows: packing would cost more than it saves
    GROUP_BYTES = 512 << 10 // packed at once a thread: stays in its second-level cache until used
};

const gemm_kernels_t *gemm_kernels_for(const device_t *device) {
    if (!strcmp(device->kernels, "avx512")) return &gemm_kernels_avx512;
    if (!strcmp(device->kernels, "avx2")) return &gemm_kernels_avx2;
    return &gemm_kernels_portable;
}

void gemm_share(threads_t *threads, int tasks, double work, threads_task_t task, void *context) {
    const double worth_waking = 262144;
    if (work >= worth_waking)
        threads_run(threads, tasks, task, context);
    else
        for (int i = 0; i < tasks; i++) task(context, i, 0);
}

static inline int64_t round_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

static inline int panel_width(int n, int panel) {
    int64_t left = round_up(n, 16) - (int64_t)panel * GEMM_PANEL;
    return left < GEMM_PANEL ? (int)left : GEMM_PANEL;
}

size_t gemm_packed_bytes(int64_t k, int64_t n) {
    return (size_t)k * (size_t)round_up(n, 16) * sizeof(float);
}

typedef struct pack_context {
    const gemm_kernels_t *kernels;
    const void *b;
    bool b_half;
    int64_t b_step, b_column;
    int k, n, first_panel;
    float *packed; // of first_panel
} pack_context_t;

static void pack_task(void *argument, int task, int worker) {
    const pack_context_t *context = argument;
    (void)worker;
    int column = (context->first_panel + task) * GEMM_PANEL;
    int columns = context->n - column < GEMM_PANEL ? context->n - column : GEMM_PANEL;
    const void *b = gemm_at(context->b, context->b_half, column * context->b_column);
    context->kernels->pack(b, context->b_half, context->b_step, context->b_column, context->k, columns,
                           context->packed + (int64_t)task * GEMM_PANEL * context->k);
}

void gemm_pack(const gemm_kernels_t *kernels, threads_t *threads, const float *b, int64_t b_step, int64_t b_column,
               int k, int n, float *packed) {
    pack_context_t context = {.kernels = kernels,
                              .b = b,
                              .b_step = b_step,
                              .b_column = b_column,
                              .k = k,
                              .n = n,
                              .first_panel = 0,
                              .packed = packed};
    gemm_share(threads, (int)(round_up(n, GEMM_PANEL) / GEMM_PANEL), PACK_COST * k * n, pack_task, &context);
}

// Whether the job reads B where it lies.
static bool job_is_direct(const gemm_kernels_t *kernels, const gemm_job_t *job) {
    if (!kernels->packs) return true;
    return !job->packed && !job->b_half && job->b_column == 1 && job->m <= DIRECT_ROWS && job->n % 16 == 0;
}

static int group_panels(threads_t *threads, const gemm_job_t *job) {
    int64_t panels = round_up(job->n, GEMM_PANEL) / GEMM_PANEL;
    int64_t panel_bytes = (int64_t)job->k * GEMM_PANEL * (int64_t)sizeof(float);
    int64_t count = threads_count(threads);
    int64_t group = GROUP_BYTES * count / (panel_bytes ? panel_bytes : 1);
    if (group < count) group = count;
    return (int)(group < panels ? group : panels);
}

// Grows with k and n, so that the scratch of a job serves every smaller one.
size_t gemm_scratch_bytes(const gemm_kernels_t *kernels, threads_t *threads, const gemm_job_t *job) {
    if (job->packed || job_is_direct(kernels, job)) return 0;
    size_t panel_bytes = (size_t)job->k * GEMM_PANEL * sizeof(float), count = (size_t)threads_count(threads);
    size_t all = panel_bytes * (size_t)(round_up(job->n, GEMM_PANEL) / GEMM_PANEL);
    size_t group = count * (panel_bytes > GROUP_BYTES ? panel_bytes : (size_t)GROUP_BYTES);
    return all < group ? all : group;
}

typedef struct run_context {
    const gemm_kernels_t *kernels;
    const gemm_job_t *job;
    const float *panels; // of first_panel; NULL: direct
    int first_panel, row_blocks;
} run_context_t;

static void run_task(void *argument, int task, int worker) {
    const run_context_t *context = argument;
    const gemm_job_t *job = context->job;
    (void)worker;
    // Row blocks inside panels: a panel stays in cache while the rows pass.
    int local = task / context->row_blocks, row_block = task % context->row_blocks;
    int panel = context->first_panel + local;
    gemm_block_t block = {.job = job, .column = panel * GEMM_PANEL};
    block.row = (int)((int64_t)job->m * row_block / context->row_blocks);
    block.row_end = (int)((int64_t)job->m * (row_block + 1) / context->row_blocks);
    block.column_end = block.column + GEMM_PANEL < job->n ? block.column + GEMM_PANEL : job->n;
    if (context->panels) {
        block.b = context->panels + (int64_t)local * GEMM_PANEL * job->k;
        block.b_step = panel_width(job->n, panel);
        block.b_column = 1;
    } else {
        block.b = gemm_at(job->b, job->b_half, block.column * job->b_column);
        block.b_half = job->b_half;
        block.b_step = job->b_step;
        block.b_column = job->b_column;
    }
    context->kernels->block(&block);
}

// Row blocks a panel: few enough rows for a tile of sums, and enough tasks to keep the threads evenly busy.
static int row_blocks(threads_t *threads, int rows, int panels) {
    int least = (rows + GEMM_ROW_BLOCK - 1) / GEMM_ROW_BLOCK, most = (rows + DIRECT_ROWS - 1) / DIRECT_ROWS;
    if (threads_count(threads) == 1) return least;
    int wanted = (4 * threads_count(threads) + panels - 1) / panels;
    if (wanted > most) wanted = most;
    return wanted > least ? wanted : least;
}

void gemm_run(const gemm_kernels_t *kernels, threads_t *threads, const gemm_job_t *job, void *scratch) {
    if (job->m == 0 || job->n == 0) return;
    int panels = (int)(round_up(job->n, GEMM_PANEL) / GEMM_PANEL);
    double work = (double)job->m * job->n * job->k;
    run_context_t context = {.kernels = kernels, .job = job};
    context.row_blocks = row_blocks(threads, job->m, panels);
    if (job_is_direct(kernels, job) || job->packed) {
        context.panels = job_is_direct(kernels, job) ? NULL : job->packed;
        gemm_share(threads, panels * context.row_blocks, work, run_task, &context);
        return;
    }
    int group = group_panels(threads, job);
    context.row_blocks = row_blocks(threads, job->m, group);
    for (int first = 0; first < panels; first += group) {
        int count = first + group < panels ? group : panels - first;
        pack_context_t pack = {.kernels = kernels,
                               .b = job->b,
                               .b_half = job->b_half,
                               .b_step = job->b_step,
                               .b_column = job->b_column,
                               .k = job->k,
                               .n = job->n,
                               .first_panel = first,
                               .packed = scratch};
        gemm_share(threads, count, PACK_COST * job->k * count * GEMM_PANEL, pack_task, &pack);
        context.panels = scratch;
        context.first_panel = first;
        gemm_share(threads, count * context.row_blocks, work * count / panels, run_task, &context);
    }
}

double gradient_scale(int exponent) {
    // Beyond these every finite float gives 0 below, or overflows above, just as it does at the ends.
    return ldexp(1.0, exponent < -1022 ? -1022 : exponent > 1023 ? 1023 : exponent);
}

void gradient_add_one(int64_t *sum, uint32_t *flags, double scale, float value) {
    if (!isfinite(value)) {
        __atomic_fetch_or(flags, (uint32_t)GRADIENT_NOT_FINITE, __ATOMIC_RELAXED);
        return;
    }
    double whole = rint((double)value * scale);
    if (!(fabs(whole) < ldexp(1.0, GRADIENT_LIMIT_BITS)))
        __atomic_fetch_or(flags, (uint32_t)GRADIENT_OVERFLOW, __ATOMIC_RELAXED);
    else
        *sum += (int64_t)whole;
}

status_t gemm_check_matrix(const device_t *device, const char *name, matrix_t m, int rows, int columns) {
    if (m.dtype != DTYPE_F32)
        FAIL(STATUS_UNAVAILABLE, "%s is of type %s, but the CPU kernels want f32 there", name, dtype_name(m.dtype));
    return gemm_check_values(device, name, m, rows, columns);
}

status_t gemm_check_values(const device_t *device, const char *name, matrix_t m, int rows, int columns) {
    if (m.dtype != DTYPE_F32 && m.dtype != DTYPE_BF16)
        FAIL(STATUS_UNAVAILABLE, "%s is of type %s, but the CPU kernels work in f32 and bf16; use one of these", name,
             dtype_name(m.dtype));
    if (m.rows != rows || m.columns != columns)
        FAIL(STATUS_INVALID, "%s is [%d, %d] where [%d, %d] is needed", name, m.rows, m.columns, rows, columns);
    if (rows < 0 || columns < 1 || m.stride < columns)
        FAIL(STATUS_INVALID, "%s is [%d, %d] with a stride of %lld elements; the stride must be at least the columns",
             name, rows, columns, (long long)m.stride);
    if (!m.data && rows > 0 && !device->measuring) FAIL(STATUS_INVALID, "%s has no data", name);
    return STATUS_OK;
}

status_t gemm_check_leaves(const device_t *device, const char *name, leaves_t leaves, int rows) {
    if (leaves.count < 0 || (leaves.count > 0 && !leaves.start && !device->measuring))
        FAIL(STATUS_INVALID, "%s: the gradient leaves are missing", name);
    if (device->measuring) return STATUS_OK;
    if (leaves.count == 0) {
        if (rows > 0) FAIL(STATUS_INVALID, "%s: a parameter gradient needs at least one leaf", name);
        return STATUS_OK;
    }
    if (leaves.start[0] != 0 || leaves.start[leaves.count] != rows)
        FAIL(STATUS_INVALID, "%s: the gradient leaves cover rows %d to %d where 0 to %d is needed", name,
             (int)leaves.start[0], (int)leaves.start[leaves.count], rows);
    for (int i = 0; i < leaves.count; i++)
        if (leaves.start[i] > leaves.start[i + 1])
            FAIL(STATUS_INVALID, "%s: gradient leaf %d ends before it starts", name, i);
    return STATUS_OK;
}
