// CUDA's names for the simulator: what a .cu file finds when it is compiled as C++. Included by
// kernels/cuda/cuda_shim.h alone. Functions take the caller's file and line by default arguments, so that the source
// stays plain CUDA.
#ifndef KERNELS_SIM_SIM_CUDA_H
#define KERNELS_SIM_SIM_CUDA_H

#include "kernels/sim/sim.h"
#include <cmath>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __constant__ static const

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};
typedef sim_dim_t uint3;
#define threadIdx (sim_self->thread_index)
#define blockIdx  (sim_self->block_index)
#define blockDim  (sim_self->block_size)
#define gridDim   (sim_self->grid_size)
#define warpSize  32

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y) {
    return float2{x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return float4{x, y, z, w};
}
static inline int4 make_int4(int x, int y, int z, int w) {
    return int4{x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y) {
    return uint2{x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return uint4{x, y, z, w};
}

#define SIM_AT const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- shared memory and launches ----
#define CUDA_SHARED(type, name, dimensions)                                                                            \
    typedef type name##_shared_t dimensions;                                                                           \
    static const char name##_key = 0;                                                                                  \
    name##_shared_t &name = *(name##_shared_t *)sim_shared_take(&name##_key, sizeof(name##_shared_t), alignof(type),   \
                                                                #name, __FILE__, __LINE__)
#define CUDA_DYNAMIC_SHARED(type, name) type *name = (type *)sim_shared_dynamic()

template <typename body_t> static inline void sim_run_body(void *context) {
    (*static_cast<body_t *>(context))();
}
template <typename body_t>
static inline status_t sim_launch_body(const char *name, const void *function, dim3 grid, dim3 block,
                                       size_t shared_bytes, void *stream, body_t body) {
    static_assert(std::is_trivially_copyable<body_t>::value, "a kernel's arguments are copied as bytes");
    sim_launch_t launch = {name,
                           function,
                           {grid.x, grid.y, grid.z},
                           {block.x, block.y, block.z},
                           shared_bytes,
                           sim_run_body<body_t>,
                           &body,
                           sizeof(body),
                           false};
    return sim_enqueue(&launch, sizeof(body), stream);
}
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                    \
    sim_launch_body(__func__, (const void *)(kernel), grid, block, shared_bytes, (void *)(stream),                     \
                    [=]() { kernel(__VA_ARGS__); })

#define CUDA_GRANT_SHARED(kernel, bytes) sim_grant_shared((const void *)(kernel), bytes, __func__)
#define CUDA_UNROLL
#define CUDA_UNROLL_BY(times)

// ---- barriers ----
static inline void __syncthreads(SIM_AT) {
    sim_barrier(0, 0, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SIM_AT) {
    sim_warp_exchange("__syncwarp", mask, "", 0, true, file, line);
}
static inline void cuda_named_barrier(int barrier, int threads, SIM_AT) {
    if (barrier == 0) sim_fault(file, line, "named barriers are 1 to 15; 0 is that of __syncthreads");
    sim_barrier(barrier, threads, file, line);
}
static inline void __threadfence(void) {
}
static inline void __threadfence_block(void) {
}

// ---- shuffles and votes ----
// What these read is the simulator's own: no hook looks at it.
#define SIM_UNSEEN __attribute__((no_sanitize("thread"))) static
template <typename value_t>
SIM_UNSEEN value_t sim_shuffle(const char *what, unsigned mask, value_t value, int from, const char *file, int line) {
    value_t out;
    const unsigned char *all = sim_warp_exchange(what, mask, &value, sizeof(value), false, file, line);
    if (from < 0) return value;
    if (!(mask >> from & 1u)) sim_fault(file, line, "%s reads lane %d, which the mask %08x lacks", what, from, mask);
    memcpy(&out, all + from * SIM_PACKET, sizeof(out));
    return out;
}
// The lane a shuffle reads from within its segment of `width` lanes; -1: its own value.
template <typename value_t>
static inline value_t __shfl_sync(unsigned mask, value_t value, int lane, int width = 32, SIM_AT) {
    int own = sim_lane();
    return sim_shuffle("__shfl_sync", mask, value, (own & ~(width - 1)) + (lane & (width - 1)), file, line);
}
template <typename value_t>
static inline value_t __shfl_xor_sync(unsigned mask, value_t value, int bits, int width = 32, SIM_AT) {
    int own = sim_lane(), from = own ^ bits;
    return sim_shuffle("__shfl_xor_sync", mask, value, from / width > own / width ? -1 : from, file, line);
}
template <typename value_t>
static inline value_t __shfl_up_sync(unsigned mask, value_t value, unsigned by, int width = 32, SIM_AT) {
    int own = sim_lane(), from = own - (int)by;
    return sim_shuffle("__shfl_up_sync", mask, value, from < (own & ~(width - 1)) ? -1 : from, file, line);
}
template <typename value_t>
static inline value_t __shfl_down_sync(unsigned mask, value_t value, unsigned by, int width = 32, SIM_AT) {
    int own = sim_lane(), from = own + (int)by;
    return sim_shuffle("__shfl_down_sync", mask, value, from >= (own & ~(width - 1)) + width ? -1 : from, file, line);
}
template <typename value_t, typename step_t>
SIM_UNSEEN value_t sim_reduce(const char *what, unsigned mask, value_t value, step_t step, const char *file, int line) {
    const unsigned char *all = sim_warp_exchange(what, mask, &value, sizeof(value), false, file, line);
    bool first = true;
    value_t sum = value, one;
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1u)) continue;
        memcpy(&one, all + lane * SIM_PACKET, sizeof(one));
        sum = first ? one : step(sum, one);
        first = false;
    }
    return sum;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SIM_AT) {
    unsigned bit = predicate ? 1u << sim_lane() : 0u;
    return sim_reduce(
        "__ballot_sync", mask, bit, [](unsigned a, unsigned b) { return a | b; }, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, SIM_AT) {
    return sim_reduce(
        "__any_sync", mask, predicate != 0, [](bool a, bool b) { return a || b; }, file, line);
}
static inline int __all_sync(unsigned mask, int predicate, SIM_AT) {
    return sim_reduce(
        "__all_sync", mask, predicate != 0, [](bool a, bool b) { return a && b; }, file, line);
}
template <typename value_t> static inline value_t __reduce_add_sync(unsigned mask, value_t value, SIM_AT) {
    return sim_reduce(
        "__reduce_add_sync", mask, value, [](value_t a, value_t b) { return a + b; }, file, line);
}
template <typename value_t> static inline value_t __reduce_max_sync(unsigned mask, value_t value, SIM_AT) {
    return sim_reduce(
        "__reduce_max_sync", mask, value, [](value_t a, value_t b) { return a > b ? a : b; }, file, line);
}
template <typename value_t> static inline value_t __reduce_min_sync(unsigned mask, value_t value, SIM_AT) {
    return sim_reduce(
        "__reduce_min_sync", mask, value, [](value_t a, value_t b) { return a < b ? a : b; }, file, line);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SIM_AT) {
    return sim_reduce(
        "__reduce_or_sync", mask, value, [](unsigned a, unsigned b) { return a | b; }, file, line);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned value, SIM_AT) {
    return sim_reduce(
        "__reduce_and_sync", mask, value, [](unsigned a, unsigned b) { return a & b; }, file, line);
}

// ---- numbers: the ones that are IEEE operations on a GPU too, so that their bits are the GPU's ----
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline int __double2int_rn(double a) {
    return (int)rint(a);
}
static inline long long __double2ll_rn(double a) {
    return (long long)rint(a);
}
static inline unsigned __float_as_uint(float a) {
    unsigned bits;
    memcpy(&bits, &a, sizeof(bits));
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float a;
    memcpy(&a, &bits, sizeof(a));
    return a;
}
static inline int __popc(unsigned a) {
    return __builtin_popcount(a);
}
template <typename value_t> static inline value_t __ldg(const value_t *at) {
    return *at;
}

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(2) __half {
    uint16_t bits;
};
static inline float __bfloat162float(__nv_bfloat16 a) {
    return __uint_as_float((unsigned)a.bits << 16);
}
// To nearest, ties to even; a NaN becomes the hardware's.
static inline __nv_bfloat16 __float2bfloat16_rn(float a) {
    unsigned bits = __float_as_uint(a);
    if (a != a) return __nv_bfloat16{0x7fff};
    return __nv_bfloat16{(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
static inline float __half2float(__half a) {
    unsigned sign = (unsigned)(a.bits & 0x8000) << 16, exponent = a.bits >> 10 & 31, fraction = a.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    float size = exponent ? ldexpf((float)(fraction | 1024), (int)exponent - 25) : ldexpf((float)fraction, -24);
    return sign ? -size : size;
}
static inline __half __float2half_rn(float a) {
    uint16_t sign = (uint16_t)(__float_as_uint(a) >> 16 & 0x8000);
    float size = fabsf(a);
    if (a != a) return __half{0x7fff};
    if (size >= 65520.0f) return __half{(uint16_t)(sign | 0x7c00)};
    int exponent = size < 0x1p-14f ? -14 : ilogbf(size);
    // Counted in units of the last place; a carry goes into the exponent by itself.
    unsigned units = (unsigned)rintf(ldexpf(size, 10 - exponent));
    return __half{(uint16_t)(sign | (units + ((unsigned)(exponent + 14) << 10)))};
}

// ---- atomics, on integers only: sums of floats would depend on who comes first ----
static inline unsigned atomicAdd(unsigned *at, unsigned value) {
    return sim_atomic_u32(
        at, [](uint32_t old, uint32_t b) { return old + b; }, value);
}
static inline int atomicAdd(int *at, int value) {
    return (int)atomicAdd((unsigned *)at, (unsigned)value);
}
static inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
    return sim_atomic_add_u64((uint64_t *)at, value);
}
static inline unsigned atomicOr(unsigned *at, unsigned value) {
    return sim_atomic_u32(
        at, [](uint32_t old, uint32_t b) { return old | b; }, value);
}
static inline unsigned atomicMax(unsigned *at, unsigned value) {
    return sim_atomic_u32(
        at, [](uint32_t old, uint32_t b) { return old > b ? old : b; }, value);
}

// ---- tiles ----
// Copies 16 bytes to shared memory in the background; of them the first from_bytes from `from`, the rest zeros.
static inline void cuda_copy_async16(void *to, const void *from, int from_bytes = 16, SIM_AT) {
    sim_copy_async(to, from, 16, from_bytes, file, line);
}
static inline void cuda_copy_commit(void) {
    sim_copy_commit();
}
template <int groups_left> static inline void cuda_copy_wait(SIM_AT) {
    sim_copy_wait(groups_left, file, line);
}

// Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8; lane i gets elements 2 (i % 4) and
// the next of row i / 4 of each.
static inline void cuda_load_matrices(unsigned (&out)[4], const void *row, SIM_AT) {
    sim_words_t words = sim_load_matrices(row, false, file, line);
    for (int m = 0; m < 4; m++) out[m] = words.at[m];
}
// The same, each matrix transposed: lane i gets elements i / 4 of rows 2 (i % 4) and the next.
static inline void cuda_load_matrices_transposed(unsigned (&out)[4], const void *row, SIM_AT) {
    sim_words_t words = sim_load_matrices(row, true, file, line);
    for (int m = 0; m < 4; m++) out[m] = words.at[m];
}

// D = A B + D of one warp, A 16 x 16 by rows and B 16 x 8 by columns in bf16, D 16 x 8 in fp32; the layout of the
// registers is PTX's (mma.m16n8k16). Each element: k = 0 .. 15 in order, one fused multiply-add a step, from D.
static inline void cuda_mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIM_AT) {
    sim_floats_t sum = sim_mma(sim_words_t{{a[0], a[1], a[2], a[3]}}, (uint64_t)b[1] << 32 | b[0],
                               sim_floats_t{{d[0], d[1], d[2], d[3]}}, file, line);
    for (int i = 0; i < 4; i++) d[i] = sum.at[i];
}

#endif
