// Gradients of parameters: sums over the rows of a leaf, added into exact sums. One launch serves GEMM_LEAVES leaves.
#include "kernels/cuda/gemm_split.h"

enum { COLUMN_THREADS = 32, COLUMN_ROWS = 16 };

template <typename tile_t>
static __global__ void __launch_bounds__(tile_t::threads)
    fma_sink_kernel(gemm_operand_t a, gemm_operand_t b, float alpha, int64_t *sink, unsigned *flags, double factor,
                    gemm_leaves_t leaves) {
    CUDA_SHARED(fma_shared<tile_t>, tile, [1]);
    int row, column, first = leaves.start[blockIdx.y], last = leaves.start[blockIdx.y + 1];
    if (first == last) return;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, a.columns, b.columns, &row, &column);
    float sum[tile_t::side][tile_t::side] = {};
    fma_sum<tile_t, true, true>(sum, tile[0], a, b, row, column, first, last);
    CUDA_UNROLL
    for (int i = 0; i < tile_t::side; i++) {
        CUDA_UNROLL
        for (int j = 0; j < tile_t::side; j++) {
            int r = row + fma_row<tile_t>(i / 4, i % 4), c = column + fma_column<tile_t>(j / 4) + j % 4;
            if (r < a.columns && c < b.columns)
                cuda_sink_add(sink + (int64_t)r * b.columns + c, flags, factor, __fmul_rn(alpha, sum[i][j]));
        }
    }
}

template <typename tile_t>
static __global__ void __launch_bounds__(tile_t::threads)
    split_sink_kernel(gemm_operand_t a, gemm_operand_t b, float alpha, int64_t *sink, unsigned *flags, double factor,
                      gemm_leaves_t leaves) {
    CUDA_SHARED(split_shared<tile_t>, tile, [1]);
    int row, column, first = leaves.start[blockIdx.y], last = leaves.start[blockIdx.y + 1];
    if (first == last) return;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, a.columns, b.columns, &row, &column);
    float sum[tile_t::high][tile_t::wide][4] = {};
    split_sum<tile_t, true>(sum, tile[0], a, b, row, column, first, last);
    CUDA_UNROLL
    for (int i = 0; i < tile_t::high; i++) {
        CUDA_UNROLL
        for (int j = 0; j < tile_t::wide * 4; j++) {
            int r = row + mma_row<tile_t>(i, j % 4 / 2), c = column + mma_column<tile_t>(j / 4) + j % 2;
            if (r < a.columns && c < b.columns)
                cuda_sink_add(sink + (int64_t)r * b.columns + c, flags, factor, __fmul_rn(alpha, sum[i][j / 4][j % 4]));
        }
    }
}

// A thread a column; COLUMN_ROWS rows are read before they are added in order, so that memory is waited for once.
static __global__ void __launch_bounds__(COLUMN_THREADS)
    sink_columns_kernel(gemm_operand_t a, int64_t *sink, unsigned *flags, double factor, gemm_leaves_t leaves) {
    int column = (int)(blockIdx.x * COLUMN_THREADS + threadIdx.x);
    int first = leaves.start[blockIdx.y], last = leaves.start[blockIdx.y + 1];
    if (column >= a.columns || first == last) return;
    const float *from = (const float *)a.data + column;
    float sum = 0.0f;
    int row = first;
    for (; row + COLUMN_ROWS <= last; row += COLUMN_ROWS) {
        float value[COLUMN_ROWS];
        CUDA_UNROLL
        for (int i = 0; i < COLUMN_ROWS; i++) value[i] = from[(row + i) * a.stride];
        CUDA_UNROLL
        for (int i = 0; i < COLUMN_ROWS; i++) sum = __fadd_rn(sum, value[i]);
    }
    for (; row < last; row++) sum = __fadd_rn(sum, from[row * a.stride]);
    cuda_sink_add(sink + column, flags, factor, sum);
}

// The leaves first, first + 1, ...; returns how many.
static int take_leaves(const leaves_t *leaves, int first, gemm_leaves_t *out) {
    int count = leaves->count - first < GEMM_LEAVES ? leaves->count - first : (int)GEMM_LEAVES;
    memcpy(out->start, leaves->start + first, (size_t)(count + 1) * sizeof(*out->start));
    return count;
}

// One launch's arguments, beside its leaves.
typedef struct sink_job {
    gemm_operand_t a, b;
    float alpha;
    int64_t *sum;
    unsigned *flags;
    double factor;
    void *stream;
} sink_job_t;

template <typename tile_t, typename kernel_t>
static status_t sink_launch(kernel_t kernel, const sink_job_t *given, const gemm_leaves_t *leaves, unsigned count) {
    sink_job_t job = *given;
    gemm_leaves_t some = *leaves;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.a.columns, job.b.columns), count), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, job.stream, job.a, job.b, job.alpha, job.sum, job.flags, job.factor,
                       some);
}

// Whether tiles of a kind are small enough for the matrix, and many enough.
template <typename tile_t> static bool sink_fits(const sink_job_t *job, unsigned count) {
    int rows = job->a.columns, columns = job->b.columns;
    return gemm_blocks<tile_t>(rows, columns) * count >= GEMM_ENOUGH && rows > tile_t::rows / 2 &&
           columns > tile_t::columns / 2;
}

static status_t sink_leaves(const sink_job_t *job, const gemm_leaves_t *leaves, unsigned count) {
    if (gemm_splits(&job->a, &job->b)) {
        if (sink_fits<split_large_t>(job, count))
            return sink_launch<split_large_t>(split_sink_kernel<split_large_t>, job, leaves, count);
        if (sink_fits<split_medium_t>(job, count))
            return sink_launch<split_medium_t>(split_sink_kernel<split_medium_t>, job, leaves, count);
        return sink_launch<split_small_t>(split_sink_kernel<split_small_t>, job, leaves, count);
    }
    if (sink_fits<fma_large_t>(job, count))
        return sink_launch<fma_large_t>(fma_sink_kernel<fma_large_t>, job, leaves, count);
    return sink_launch<fma_small_t>(fma_sink_kernel<fma_small_t>, job, leaves, count);
}

extern "C" status_t CUDA_NAME(gemm_sink)(device_t *device, const gemm_operand_t *a, const gemm_operand_t *b,
                                         float alpha, const gradient_sink_t *sink, const leaves_t *leaves) {
    sink_job_t job = {*a, *b, alpha, sink->sum, sink->flags, ldexp(1.0, sink->exponent), cuda_stream(device)};
    if (a->columns == 0 || b->columns == 0) return STATUS_OK;
    for (int first = 0; first < leaves->count; first += GEMM_LEAVES) {
        gemm_leaves_t some;
        unsigned count = (unsigned)take_leaves(leaves, first, &some);
        TRY(sink_leaves(&job, &some, count));
    }
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(gemm_sink_columns)(device_t *device, const gemm_operand_t *given_a,
                                                 const gradient_sink_t *sink, const leaves_t *leaves) {
    gemm_operand_t a = *given_a;
    void *stream = cuda_stream(device);
    int64_t *sum = sink->sum;
    unsigned *flags = sink->flags;
    double factor = ldexp(1.0, sink->exponent);
    unsigned blocks = (unsigned)((a.columns + COLUMN_THREADS - 1) / COLUMN_THREADS);
    if (a.columns == 0) return STATUS_OK;
    for (int first = 0; first < leaves->count; first += GEMM_LEAVES) {
        gemm_leaves_t some;
        unsigned count = (unsigned)take_leaves(leaves, first, &some);
        TRY(CUDA_LAUNCH(sink_columns_kernel, dim3(blocks, count), dim3(COLUMN_THREADS), 0, stream, a, sum, flags,
                        factor, some));
    }
    return STATUS_OK;
}
