// Copies, FMAs from registers and tensor-core products from registers, with nothing beside them.
#include "kernels/cuda/cuda_shim.h"
#include "kernels/cuda/peak.h"

static __global__ void __launch_bounds__(PEAK_THREADS) peak_copy_kernel(uint4 *to, const uint4 *from, int64_t count) {
    int64_t stride = (int64_t)gridDim.x * PEAK_THREADS;
    for (int64_t i = (int64_t)blockIdx.x * PEAK_THREADS + threadIdx.x; i < count; i += stride) to[i] = from[i];
}

// Chains that do not wait for each other; the factors come from memory, so that nothing can be computed before.
static __global__ void __launch_bounds__(PEAK_THREADS) peak_fma_kernel(float *out, int rounds) {
    int place = (int)(blockIdx.x * PEAK_THREADS + threadIdx.x);
    float factor = out[place], sum[PEAK_CHAINS];
    for (int i = 0; i < PEAK_CHAINS; i++) sum[i] = (float)i;
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < PEAK_CHAINS; i++) sum[i] = __fmaf_rn(sum[i], factor, factor);
    float total = 0.0f;
    for (int i = 0; i < PEAK_CHAINS; i++) total = __fadd_rn(total, sum[i]);
    out[place] = total;
}

static __global__ void __launch_bounds__(PEAK_THREADS) peak_tensor_kernel(float *out, int rounds) {
    int place = (int)(blockIdx.x * PEAK_THREADS + threadIdx.x);
    unsigned bits = __float_as_uint(out[place]);
    unsigned a[4] = {bits, bits, bits, bits}, b[2] = {bits, bits};
    float sum[PEAK_CHAINS][4];
    for (int i = 0; i < PEAK_CHAINS; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = 0.0f;
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < PEAK_CHAINS; i++) cuda_mma_bf16(sum[i], a, b);
    float total = 0.0f;
    for (int i = 0; i < PEAK_CHAINS; i++)
        for (int j = 0; j < 4; j++) total = __fadd_rn(total, sum[i][j]);
    out[place] = total;
}

extern "C" status_t CUDA_NAME(peak)(device_t *device, peak_t kind, void *memory, size_t bytes, int blocks, int rounds) {
    void *stream = cuda_stream(device);
    float *out = static_cast<float *>(memory);
    if (kind == PEAK_COPY) {
        int64_t count = (int64_t)(bytes / 2 / sizeof(uint4));
        uint4 *from = static_cast<uint4 *>(memory);
        return CUDA_LAUNCH(peak_copy_kernel, dim3((unsigned)blocks), dim3(PEAK_THREADS), 0, stream, from + count, from,
                           count);
    }
    if (bytes < (size_t)blocks * PEAK_THREADS * sizeof(float))
        FAIL(STATUS_INVALID, "%d blocks write more than %zu bytes", blocks, bytes);
    if (kind == PEAK_FMA)
        return CUDA_LAUNCH(peak_fma_kernel, dim3((unsigned)blocks), dim3(PEAK_THREADS), 0, stream, out, rounds);
    return CUDA_LAUNCH(peak_tensor_kernel, dim3((unsigned)blocks), dim3(PEAK_THREADS), 0, stream, out, rounds);
}
