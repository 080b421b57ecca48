// Products with a result in memory: the forward of linear, and the gradients of its input.
#include "kernels/cuda/gemm_split.h"

// What becomes of a sum, and of the second product's where there is one.
template <bool second>
static __device__ __forceinline__ float finish(const gemm_output_t &out, int row, int column, float sum, float other) {
    float old;
    switch (out.store) {
    case GEMM_ADD:
        old = __fadd_rn(((const float *)out.data)[row * out.stride + column], sum);
        return second ? __fadd_rn(old, other) : old;
    case GEMM_FMA:
        old = out.base[row * out.base_stride + column];
        return __fmaf_rn(out.alpha, sum, out.bias ? __fadd_rn(old, out.bias[column]) : old);
    case GEMM_RESUME:
        return sum;
    default:
        old = out.bias ? __fadd_rn(sum, out.bias[column]) : second ? sum : __fmul_rn(out.alpha, sum);
        return second ? __fmaf_rn(out.alpha, other, old) : old;
    }
}

static __device__ __forceinline__ unsigned two_halves(float low, float high) {
    return cuda_bf16_bits(low) | cuda_bf16_bits(high) << 16;
}

// `count` (2 or 4) finished values of a row, in one store where they lie so.
template <int count>
static __device__ __forceinline__ void store_values(const gemm_output_t &out, int row, int column, int columns,
                                                    const float (&value)[count]) {
    int64_t at = row * out.stride + column;
    bool whole = column + count <= columns && (count == 4 ? out.four : out.two);
    if (out.half) {
        bf16_t *to = (bf16_t *)out.data + at;
        if (!whole) {
            CUDA_UNROLL
            for (int e = 0; e < count; e++)
                if (column + e < columns) cuda_put(to + e, value[e]);
        } else if constexpr (count == 4)
            *(uint2 *)(void *)to = make_uint2(two_halves(value[0], value[1]), two_halves(value[2], value[3]));
        else
            *(unsigned *)(void *)to = two_halves(value[0], value[1]);
        return;
    }
    float *to = (float *)out.data + at;
    if (!whole) {
        CUDA_UNROLL
        for (int e = 0; e < count; e++)
            if (column + e < columns) to[e] = value[e];
    } else if constexpr (count == 4)
        *(float4 *)(void *)to = make_float4(value[0], value[1], value[2], value[3]);
    else
        *(float2 *)(void *)to = make_float2(value[0], value[1]);
}

// A block's sums as the tensor cores' engines lay them out, and those of the second product.
template <typename tile_t, bool second>
static __device__ __forceinline__ void store_tile(const gemm_job_t &job, int row, int column,
                                                  const float (&sum)[tile_t::high][tile_t::wide][4],
                                                  const float (&other)[tile_t::high][tile_t::wide][4]) {
    CUDA_UNROLL
    for (int i = 0; i < tile_t::high; i++) {
        CUDA_UNROLL
        for (int half = 0; half < 2; half++) {
            int r = row + mma_row<tile_t>(i, half);
            if (r >= job.rows) continue;
            CUDA_UNROLL
            for (int j = 0; j < tile_t::wide; j++) {
                int c = column + mma_column<tile_t>(j);
                float value[2] = {};
                CUDA_UNROLL
                for (int e = 0; e < 2; e++)
                    if (c + e < job.columns)
                        value[e] =
                            finish<second>(job.out, r, c + e, sum[i][j][half * 2 + e], other[i][j][half * 2 + e]);
                store_values<2>(job.out, r, c, job.columns, value);
            }
        }
    }
}

template <typename tile_t, bool aligned, bool second>
static __global__ void __launch_bounds__(tile_t::threads) mma_product_kernel(gemm_job_t job) {
    CUDA_SHARED(mma_shared<tile_t>, tile, [1]);
    int row, column;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, job.rows, job.columns, &row, &column);
    float sum[tile_t::high][tile_t::wide][4] = {}, other[tile_t::high][tile_t::wide][4] = {};
    mma_sum<tile_t, aligned>(sum, tile[0], job.a, job.b, row, column);
    if constexpr (second) mma_sum<tile_t, aligned>(other, tile[0], job.a2, job.b2, row, column);
    store_tile<tile_t, second>(job, row, column, sum, other);
}

template <typename tile_t, bool second>
static __global__ void __launch_bounds__(tile_t::threads, tile_t::resident) split_product_kernel(gemm_job_t job) {
    CUDA_SHARED(split_shared<tile_t>, tile, [1]);
    int row, column;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, job.rows, job.columns, &row, &column);
    float sum[tile_t::high][tile_t::wide][4] = {}, other[tile_t::high][tile_t::wide][4] = {};
    if (job.out.store == GEMM_RESUME) {
        CUDA_UNROLL
        for (int i = 0; i < tile_t::high; i++) {
            CUDA_UNROLL
            for (int j = 0; j < tile_t::wide * 4; j++) {
                int r = row + mma_row<tile_t>(i, j % 4 / 2), c = column + mma_column<tile_t>(j / 4) + j % 2;
                if (r < job.rows && c < job.columns)
                    sum[i][j / 4][j % 4] = ((const float *)job.out.data)[r * job.out.stride + c];
            }
        }
    }
    split_sum<tile_t, false>(sum, tile[0], job.a, job.b, row, column, 0, job.a.columns);
    if constexpr (second) split_sum<tile_t, false>(other, tile[0], job.a2, job.b2, row, column, 0, job.a2.columns);
    store_tile<tile_t, second>(job, row, column, sum, other);
}

template <typename tile_t, bool b_across, bool second>
static __global__ void __launch_bounds__(tile_t::threads) fma_product_kernel(gemm_job_t job) {
    CUDA_SHARED(fma_shared<tile_t>, tile, [1]);
    int row, column;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, job.rows, job.columns, &row, &column);
    float sum[tile_t::side][tile_t::side] = {}, other[tile_t::side][tile_t::side] = {};
    if (job.out.store == GEMM_RESUME) {
        CUDA_UNROLL
        for (int i = 0; i < tile_t::side; i++) {
            CUDA_UNROLL
            for (int j = 0; j < tile_t::side; j++) {
                int r = row + fma_row<tile_t>(i / 4, i % 4), c = column + fma_column<tile_t>(j / 4) + j % 4;
                if (r < job.rows && c < job.columns) sum[i][j] = ((const float *)job.out.data)[r * job.out.stride + c];
            }
        }
    }
    fma_sum<tile_t, false, b_across>(sum, tile[0], job.a, job.b, row, column, 0, job.a.columns);
    if constexpr (second)
        fma_sum<tile_t, false, b_across>(other, tile[0], job.a2, job.b2, row, column, 0, job.a2.columns);
    CUDA_UNROLL
    for (int i = 0; i < tile_t::side; i++) {
        int r = row + fma_row<tile_t>(i / 4, i % 4);
        if (r >= job.rows) continue;
        CUDA_UNROLL
        for (int g = 0; g < tile_t::groups; g++) {
            int c = column + fma_column<tile_t>(g);
            float value[4] = {};
            CUDA_UNROLL
            for (int e = 0; e < 4; e++)
                if (c + e < job.columns)
                    value[e] = finish<second>(job.out, r, c + e, sum[i][g * 4 + e], other[i][g * 4 + e]);
            store_values<4>(job.out, r, c, job.columns, value);
        }
    }
}

template <typename tile_t, bool aligned> static status_t mma_launch(const gemm_job_t *given, void *stream) {
    gemm_job_t job = *given;
    auto kernel = job.a2.data ? mma_product_kernel<tile_t, aligned, true> : mma_product_kernel<tile_t, aligned, false>;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.rows, job.columns)), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, stream, job);
}

template <bool aligned> static status_t mma_product(const gemm_job_t *job, void *stream) {
    if (gemm_blocks<mma_large_t>(job->rows, job->columns) >= GEMM_ENOUGH)
        return mma_launch<mma_large_t, aligned>(job, stream);
    if (gemm_blocks<mma_medium_t>(job->rows, job->columns) >= GEMM_ENOUGH && job->rows > 16)
        return mma_launch<mma_medium_t, aligned>(job, stream);
    return mma_launch<mma_small_t, aligned>(job, stream);
}

template <typename tile_t> static status_t split_launch(const gemm_job_t *given, void *stream) {
    gemm_job_t job = *given;
    auto kernel = job.a2.data ? split_product_kernel<tile_t, true> : split_product_kernel<tile_t, false>;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.rows, job.columns)), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, stream, job);
}

// An adapter's rank is a few columns: small tiles waste the least of them, and there are more to read the gradient.
static status_t split_product(const gemm_job_t *job, void *stream) {
    if (gemm_blocks<split_large_t>(job->rows, job->columns) >= GEMM_ENOUGH && job->columns > 64)
        return split_launch<split_large_t>(job, stream);
    if (gemm_blocks<split_medium_t>(job->rows, job->columns) >= GEMM_ENOUGH && job->columns > 32)
        return split_launch<split_medium_t>(job, stream);
    return split_launch<split_small_t>(job, stream);
}

template <typename tile_t> static status_t fma_launch(const gemm_job_t *given, void *stream) {
    gemm_job_t job = *given;
    auto along = job.a2.data ? fma_product_kernel<tile_t, false, true> : fma_product_kernel<tile_t, false, false>;
    auto across = job.a2.data ? fma_product_kernel<tile_t, true, true> : fma_product_kernel<tile_t, true, false>;
    auto kernel = job.b_across ? across : along;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.rows, job.columns)), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, stream, job);
}

extern "C" status_t CUDA_NAME(gemm_product)(device_t *device, const gemm_job_t *job) {
    void *stream = cuda_stream(device);
    if (job->rows == 0 || job->columns == 0) return STATUS_OK;
    bool half = !job->b_across && job->a.half && job->b.half;
    if (job->a2.data) half = half && job->a2.half && job->b2.half;
    if (half) {
        bool aligned = job->a.eight && job->b.eight;
        if (job->a2.data) aligned = aligned && job->a2.eight && job->b2.eight;
        return aligned ? mma_product<true>(job, stream) : mma_product<false>(job, stream);
    }
    if (job->b_across && gemm_splits(&job->a, &job->b) && (!job->a2.data || gemm_splits(&job->a2, &job->b2)))
        return split_product(job, stream);
    if (gemm_blocks<fma_large_t>(job->rows, job->columns) >= GEMM_ENOUGH) return fma_launch<fma_large_t>(job, stream);
    return fma_launch<fma_small_t>(job, stream);
}
