// linear by the library: copies of rows that are not aligned or no whole tiles, the products, and what follows them.
#include "kernels/cuda/cuda_library.h"
#include "kernels/cuda/cuda_shim.h"
#include "kernels/cuda/gemm.h"

enum { COPY_THREADS = 256, COPY_BLOCKS = 4096, EACH = LIBRARY_GROUP };

// to[r][c] = from[r][c], rows from `rows` on are zeros: groups of eight bf16, `groups` to a row. Loads are of 16 bytes
// where from lies so.
template <bool aligned>
static __global__ void __launch_bounds__(COPY_THREADS)
    pad_kernel(const uint16_t *from, int64_t stride, int rows, int all, int groups, uint16_t *to) {
    int64_t count = (int64_t)all * groups, step = (int64_t)gridDim.x * COPY_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * COPY_THREADS + threadIdx.x; i < count; i += step) {
        int row = (int)(i / groups), group = (int)(i % groups);
        uint4 value = make_uint4(0, 0, 0, 0);
        if (row < rows) {
            const uint16_t *at = from + row * stride + group * EACH;
            if constexpr (aligned)
                value = *(const uint4 *)(const void *)at;
            else {
                unsigned word[EACH / 2];
                CUDA_UNROLL
                for (int e = 0; e < EACH / 2; e++) word[e] = (unsigned)at[2 * e] | (unsigned)at[2 * e + 1] << 16;
                value = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
        *(uint4 *)(void *)(to + i * EACH) = value;
    }
}

// Four elements of one row from column on, of which `left` are there.
static __device__ __forceinline__ void store_four(matrix_t y, bool four, int row, int column, int left,
                                                  const float (&value)[4]) {
    int64_t at = row * y.stride + column;
    if (y.dtype == DTYPE_BF16) {
        bf16_t *to = (bf16_t *)y.data + at;
        if (four && left >= 4) {
            *(uint2 *)(void *)to = make_uint2(cuda_bf16_bits(value[0]) | cuda_bf16_bits(value[1]) << 16,
                                              cuda_bf16_bits(value[2]) | cuda_bf16_bits(value[3]) << 16);
            return;
        }
        CUDA_UNROLL
        for (int e = 0; e < 4; e++)
            if (e < left) cuda_put(to + e, value[e]);
        return;
    }
    float *to = (float *)y.data + at;
    if (four && left >= 4) {
        *(float4 *)(void *)to = make_float4(value[0], value[1], value[2], value[3]);
        return;
    }
    CUDA_UNROLL
    for (int e = 0; e < 4; e++)
        if (e < left) to[e] = value[e];
}

// y = sums + bias, rounded once; sums of bf16 are moved as they are. Groups of four columns; a row of sums is a whole
// number of them.
template <bool half>
static __global__ void __launch_bounds__(COPY_THREADS)
    finish_kernel(const void *sums, int stride, const float *bias, matrix_t y, bool four) {
    int groups = (y.columns + 3) / 4;
    int64_t count = (int64_t)y.rows * groups, step = (int64_t)gridDim.x * COPY_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * COPY_THREADS + threadIdx.x; i < count; i += step) {
        int row = (int)(i / groups), column = (int)(i % groups) * 4, left = y.columns - column;
        int64_t at = (int64_t)row * stride + column;
        float value[4];
        if constexpr (half) {
            uint2 two = *(const uint2 *)(const void *)((const uint16_t *)sums + at);
            value[0] = __uint_as_float(two.x << 16), value[1] = __uint_as_float(two.x & 0xffff0000u);
            value[2] = __uint_as_float(two.y << 16), value[3] = __uint_as_float(two.y & 0xffff0000u);
        } else {
            float4 all = *(const float4 *)(const void *)((const float *)sums + at);
            value[0] = all.x, value[1] = all.y, value[2] = all.z, value[3] = all.w;
        }
        if (bias) {
            CUDA_UNROLL
            for (int e = 0; e < 4; e++)
                if (e < left) value[e] = __fadd_rn(value[e], bias[column + e]);
        }
        store_four(y, four, row, column, left, value);
    }
}

static dim3 copy_grid(int64_t count) {
    int64_t blocks = (count + COPY_THREADS - 1) / COPY_THREADS;
    return dim3((unsigned)(blocks < COPY_BLOCKS ? blocks : (int64_t)COPY_BLOCKS));
}

// A copy with `all` rows, contiguous.
static status_t pad(device_t *device, matrix_t *m, int all, void *to) {
    void *stream = cuda_stream(device);
    const uint16_t *from = (const uint16_t *)m->data;
    uint16_t *out = (uint16_t *)to;
    int64_t stride = m->stride;
    int rows = m->rows, groups = m->columns / EACH;
    auto kernel = library_aligned(m) ? pad_kernel<true> : pad_kernel<false>;
    TRY(CUDA_LAUNCH(kernel, copy_grid((int64_t)all * groups), dim3(COPY_THREADS), 0, stream, from, stride, rows, all,
                    groups, out));
    *m = matrix_view(to, DTYPE_BF16, all, m->columns);
    return STATUS_OK;
}

static status_t finish(device_t *device, const matrix_t *sums, const float *bias, matrix_t y) {
    void *stream = cuda_stream(device);
    const void *from = sums->data;
    int stride = (int)sums->stride;
    uintptr_t bytes = dtype_bytes(y.dtype);
    bool four = (uintptr_t)y.data % (4 * bytes) == 0 && y.stride % 4 == 0;
    auto kernel = sums->dtype == DTYPE_BF16 ? finish_kernel<true> : finish_kernel<false>;
    return CUDA_LAUNCH(kernel, copy_grid((int64_t)y.rows * ((y.columns + 3) / 4)), dim3(COPY_THREADS), 0, stream, from,
                       stride, bias, y, four);
}

static status_t finish_adapter(device_t *device, const linear_args_t *args, const matrix_t *sums, matrix_t xa,
                               matrix_t y) {
    gemm_job_t job = {};
    job.a = gemm_operand_of(xa);
    job.b = gemm_operand_of(args->lora_b);
    job.out = gemm_output_to(y, GEMM_FMA, args->lora_scale);
    job.out.bias = args->bias;
    job.out.base = (const float *)sums->data;
    job.out.base_stride = sums->stride;
    job.rows = y.rows;
    job.columns = y.columns;
    return CUDA_NAME(gemm_product)(device, &job);
}

extern "C" status_t CUDA_NAME(library_linear)(device_t *device, const linear_args_t *args, const library_plan_t *plan,
                                              void *scratch) {
    matrix_t weight = args->weight;
    char *copy = (char *)scratch, *room = copy + plan->x + plan->weight;
    if (plan->weight) TRY(pad(device, &weight, weight.rows, copy + plan->x));
    for (int first = 0; first < args->x.rows; first += plan->rows) {
        int rows = args->x.rows - first < plan->rows ? args->x.rows - first : plan->rows;
        int all = (rows + LIBRARY_ROWS - 1) / LIBRARY_ROWS * LIBRARY_ROWS;
        matrix_t x = gemm_rows(args->x, first, rows), y = gemm_rows(args->y, first, rows);
        matrix_t sums = matrix_view(room, plan->sums, all, y.columns);
        sums.stride = plan->stride;
        bool direct = plan->whole && rows == all && library_aligned(&y);
        if (rows != all || !library_aligned(&x)) TRY(pad(device, &x, all, copy));
        TRY(CUDA_NAME(library_multiply)(device, &x, &weight, direct ? &y : &sums));
        if (args->lora_a.data)
            TRY(finish_adapter(device, args, &sums, gemm_rows(args->lora_xa, first, rows), y));
        else if (!direct)
            TRY(finish(device, &sums, args->bias, y));
    }
    return STATUS_OK;
}
