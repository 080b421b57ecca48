// The one header by which a .cu file of kernels/cuda reaches the GPU, or the simulator that runs the same source on a
// CPU (kernels/sim; docs/gpu.md). Beside plain CUDA a kernel uses:
//
//   CUDA_SHARED(float, tile, [32][33]);        __shared__ float tile[32][33];   aligned to 16 bytes
//   CUDA_DYNAMIC_SHARED(float, buffer);        extern __shared__ memory, aligned to 16 bytes, as float *buffer
//   CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   kernel<<<...>>>(...); a status_t
//   CUDA_NAME(linear)                          cuda_linear, or sim_linear in the simulator
//   CUDA_GRANT_SHARED(kernel, bytes)           before a launch with more than 48 KiB of dynamic memory; a status_t
//   CUDA_UNROLL for (...)                      #pragma unroll: arrays that shall stay in registers need it;
//   CUDA_UNROLL_BY(4) cuda_named_barrier, cuda_copy_async16 / _commit / _wait<n>, cuda_load_matrices and _transposed
//   (ldmatrix), cuda_mma_bf16
//
// Both builds compute without contraction and with IEEE division and square root, so that whatever is written with
// these operations gives the same bits in both. Functions whose rounding only the hardware knows (__expf, rsqrtf, ...)
// are left out on purpose: cuda_exp below is ours.
#ifndef KERNELS_CUDA_CUDA_SHIM_H
#define KERNELS_CUDA_CUDA_SHIM_H

#include <cmath>
#include <cstdint>
#include <cstring>
extern "C" {
#include "kernels/check.h"
#include "kernels/cuda/cuda_device.h"
}

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define CUDA_SHARED(type, name, dimensions)                                                                            \
    typedef type name##_shared_t dimensions;                                                                           \
    __shared__ __align__(16) name##_shared_t name
extern __shared__ uint4 cuda_dynamic_shared[];
#define CUDA_DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(cuda_dynamic_shared)

static inline status_t cuda_launched(const char *launcher) {
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return STATUS_OK;
    FAIL(STATUS_FAILED, "the kernel of %s cannot be launched: %s", launcher, cudaGetErrorString(error));
}
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                    \
    (kernel<<<grid, block, shared_bytes, (cudaStream_t)(stream)>>>(__VA_ARGS__), cuda_launched(__func__))

static inline status_t cuda_granted(const void *kernel, size_t bytes, const char *launcher) {
    if (bytes <= 48 * 1024) return STATUS_OK;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error == cudaSuccess) return STATUS_OK;
    int gpu = 0, most = 0;
    (void)cudaGetLastError(); // it is told here; the next launch has not failed
    (void)cudaGetDevice(&gpu);
    (void)cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu);
    FAIL(STATUS_FAILED,
         "the kernel of %s cannot have %zu bytes of shared memory, a block has at most %d on this GPU: %s", launcher,
         bytes, most, cudaGetErrorString(error));
}
#define CUDA_GRANT_SHARED(kernel, bytes) cuda_granted((const void *)(kernel), bytes, __func__)
#define CUDA_UNROLL                      _Pragma("unroll")
#define CUDA_PRAGMA(text)                _Pragma(#text)
#define CUDA_UNROLL_BY(times)            CUDA_PRAGMA(unroll times)

static __device__ __forceinline__ void cuda_named_barrier(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
static __device__ __forceinline__ void cuda_copy_async16(void *to, const void *from, int from_bytes = 16) {
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(from_bytes) : "memory");
}
static __device__ __forceinline__ void cuda_copy_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int groups_left> static __device__ __forceinline__ void cuda_copy_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}
static __device__ __forceinline__ void cuda_load_matrices(unsigned (&out)[4], const void *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void cuda_load_matrices_transposed(unsigned (&out)[4], const void *row) {
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void cuda_mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
#include "kernels/sim/sim_cuda.h"
#endif

typedef __nv_bfloat16 bf16_t;

// e^x, the CPU kernels' formula (kernels/cpu/vector.h): the same bits.
static __device__ __forceinline__ float cuda_exp(float x) {
    float bounded = x < -87.0f ? -87.0f : x;
    bounded = bounded > 88.02f ? 88.02f : bounded;
    float n = rintf(__fmul_rn(bounded, 1.44269504f));
    float r = __fmaf_rn(n, -0.693359375f, bounded);
    r = __fmaf_rn(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = __fmaf_rn(p, r, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    if (x != x) return x;
    return x < -87.0f ? 0.0f : __fmul_rn(p, __uint_as_float((unsigned)((int)n + 127) << 23));
}

// One element of a matrix in f32 or bf16.
static __device__ __forceinline__ float cuda_get(const float *at) {
    return *at;
}
static __device__ __forceinline__ float cuda_get(const bf16_t *at) {
    return __bfloat162float(*at);
}
static __device__ __forceinline__ void cuda_put(float *at, float value) {
    *at = value;
}
static __device__ __forceinline__ void cuda_put(bf16_t *at, float value) {
    *at = __float2bfloat16_rn(value);
}

// The 16 bits of what cuda_put would store.
static __device__ __forceinline__ unsigned cuda_bf16_bits(float value) {
    bf16_t half = __float2bfloat16_rn(value);
    unsigned short bits;
    memcpy(&bits, &half, sizeof(bits));
    return bits;
}

// Whether an index may be used; else the fault word says whose it was.
static __device__ __forceinline__ bool cuda_index(int index, int bound, uint32_t *fault, cuda_fault_t op) {
    if (index >= 0 && index < bound) return true;
    *(volatile uint32_t *)fault = op;
    return false;
}

// The sum over a warp, the same in every lane: lane i with lane i ^ 16, then ^ 8, 4, 2, 1.
static __device__ __forceinline__ float cuda_warp_sum(float value) {
    for (int bits = 16; bits; bits /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, bits));
    return value;
}

// Adds one leaf's contribution to an exact sum (gradient_sink_t in kernels/device.h); integers need no order.
static __device__ __forceinline__ void cuda_sink_add(int64_t *sum, unsigned *flags, double factor, float value) {
    double scaled = (double)value * factor;
    if (!(scaled - scaled == 0.0)) {
        atomicOr(flags, 2u); // GRADIENT_NOT_FINITE
        return;
    }
    double whole = rint(scaled);
    if (!(fabs(whole) < 140737488355328.0)) {
        atomicOr(flags, 1u); // GRADIENT_OVERFLOW
        return;
    }
    if (whole != 0.0) atomicAdd((unsigned long long *)sum, (unsigned long long)(long long)whole);
}

#endif
