// Gradient norm and AdamW over the exact sums, with the CPU's bits.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_shim.h"
extern "C" {
#include "kernels/optimizer.h"
}

// Half a warp has a block of the norm: lane i sums the elements i, i + 16, ... in order, which are 128 bytes a step.
enum { NORM_LANES = 16, NORM_THREADS = 256, NORM_BLOCKS = NORM_THREADS / NORM_LANES };

static __device__ __forceinline__ int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// The largest of all threads' values, in thread 0.
static __device__ __forceinline__ int64_t block_largest(int64_t value) {
    CUDA_SHARED(int64_t, partial, [NORM_THREADS / 32]);
    for (int bits = 16; bits; bits /= 2)
        value = larger(value, (int64_t)__shfl_xor_sync(0xffffffffu, (long long)value, bits));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; threadIdx.x == 0 && i < NORM_THREADS / 32; i++) value = larger(value, partial[i]);
    return value;
}

static __global__ void __launch_bounds__(NORM_THREADS)
    gradient_norm_kernel(const int64_t *sum, int64_t count, double unit, double *square_sum, int64_t *largest) {
    int64_t block = (int64_t)blockIdx.x * NORM_BLOCKS + (int)threadIdx.x / NORM_LANES, start = block * GRADIENT_BLOCK;
    int lane = (int)threadIdx.x % NORM_LANES, left = 0;
    if (start < count) left = count - start < GRADIENT_BLOCK ? (int)(count - start) : GRADIENT_BLOCK;
    double squares = 0.0;
    int64_t most = 0;
    for (int i = lane; i < left; i += NORM_LANES) {
        int64_t value = sum[start + i];
        double g = (double)value * unit;
        squares = squares + g * g;
        most = larger(most, value < 0 ? (value == INT64_MIN ? INT64_MAX : -value) : value);
    }
    for (unsigned by = NORM_LANES / 2; by; by /= 2)
        squares = squares + __shfl_down_sync(0xffffffffu, squares, by, NORM_LANES);
    if (lane == 0 && left) square_sum[block] = squares;
    most = block_largest(most);
    if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

static __global__ void __launch_bounds__(NORM_THREADS)
    largest_kernel(const int64_t *largest, int64_t count, int64_t *absmax) {
    int64_t most = 0;
    for (int64_t i = (int)threadIdx.x; i < count; i += NORM_THREADS) most = larger(most, largest[i]);
    most = block_largest(most);
    if (threadIdx.x == 0) *absmax = most;
}

extern "C" status_t CUDA_NAME(gradient_norm)(device_t *device, const gradient_norm_args_t *args) {
    TRY(check_gradient_norm(args));
    int64_t count = args->count, blocks = (count + GRADIENT_BLOCK - 1) / GRADIENT_BLOCK, *largest;
    int64_t groups = (blocks + NORM_BLOCKS - 1) / NORM_BLOCKS, *absmax = args->absmax;
    TRY(device_workspace(device, (size_t)groups * sizeof(*largest), (void **)&largest));
    if (device->measuring) return STATUS_OK;
    void *stream = cuda_stream(device);
    const int64_t *sum = args->sum;
    double unit = ldexp(1.0, -args->exponent), *square_sum = args->square_sum;
    if (groups)
        TRY(CUDA_LAUNCH(gradient_norm_kernel, dim3((unsigned)groups), dim3(NORM_THREADS), 0, stream, sum, count, unit,
                        square_sum, largest));
    return CUDA_LAUNCH(largest_kernel, dim3(1), dim3(NORM_THREADS), 0, stream, largest, groups, absmax);
}

// ---- AdamW ----

enum { ADAMW_THREADS = 256, ADAMW_PACK = 4 };

typedef struct adamw {
    int64_t count;
    float *master, *first_moment, *second_moment;
    const int64_t *sum;
    adamw_factors_t by;
    float beta2, eps;
    uint32_t *probe;
    bool aligned; // all four tensors, to 16 bytes
} adamw_t;

typedef struct adamw_state {
    float p, m, v;
} adamw_state_t;

static __device__ __forceinline__ void adamw_step(const adamw_t &a, int64_t sum, adamw_state_t *at) {
    float g = (float)((double)sum * a.by.gradient);
    float p = __fmul_rn(at->p, a.by.decay);
    float m = __fadd_rn(at->m, __fmul_rn(a.by.first, __fadd_rn(g, -at->m)));
    float v = __fadd_rn(__fmul_rn(at->v, a.beta2), __fmul_rn(__fmul_rn(a.by.second, g), g));
    float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), a.by.root_correction), a.eps);
    p = __fadd_rn(p, -__fdiv_rn(__fmul_rn(a.by.step_size, m), root));
    *at = adamw_state_t{p, m, v};
}

static __device__ __forceinline__ bool adamw_finite(const adamw_state_t &at) {
    return at.p - at.p == 0.0f && at.m - at.m == 0.0f && at.v - at.v == 0.0f;
}

// Element by element; with a probe nothing is kept but whether all would be finite.
static __device__ __forceinline__ bool adamw_one(const adamw_t &a, int64_t i) {
    adamw_state_t at = {a.master[i], a.first_moment[i], a.second_moment[i]};
    adamw_step(a, a.sum[i], &at);
    if (a.probe) return adamw_finite(at);
    a.master[i] = at.p;
    a.first_moment[i] = at.m;
    a.second_moment[i] = at.v;
    return true;
}

static __device__ __forceinline__ int64_t adamw_whole(unsigned low, unsigned high) {
    return (int64_t)((uint64_t)high << 32 | low);
}
static __device__ __forceinline__ bool adamw_four(const adamw_t &a, int64_t i) {
    float4 p = *(const float4 *)(a.master + i), m = *(const float4 *)(a.first_moment + i);
    float4 v = *(const float4 *)(a.second_moment + i);
    uint4 low = ((const uint4 *)(a.sum + i))[0], high = ((const uint4 *)(a.sum + i))[1];
    adamw_state_t at[ADAMW_PACK] = {{p.x, m.x, v.x}, {p.y, m.y, v.y}, {p.z, m.z, v.z}, {p.w, m.w, v.w}};
    int64_t sum[ADAMW_PACK] = {adamw_whole(low.x, low.y), adamw_whole(low.z, low.w), adamw_whole(high.x, high.y),
                               adamw_whole(high.z, high.w)};
    bool finite = true;
    for (int e = 0; e < ADAMW_PACK; e++) {
        adamw_step(a, sum[e], &at[e]);
        finite = finite && adamw_finite(at[e]);
    }
    if (a.probe) return finite;
    *(float4 *)(a.master + i) = make_float4(at[0].p, at[1].p, at[2].p, at[3].p);
    *(float4 *)(a.first_moment + i) = make_float4(at[0].m, at[1].m, at[2].m, at[3].m);
    *(float4 *)(a.second_moment + i) = make_float4(at[0].v, at[1].v, at[2].v, at[3].v);
    return true;
}

static __global__ void __launch_bounds__(ADAMW_THREADS) adamw_kernel(adamw_t a) {
    int64_t i = ((int64_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) * ADAMW_PACK;
    bool finite = true;
    if (a.aligned && i + ADAMW_PACK <= a.count)
        finite = adamw_four(a, i);
    else
        for (int e = 0; e < ADAMW_PACK && i + e < a.count; e++) finite = adamw_one(a, i + e) && finite;
    if (!finite) atomicOr(a.probe, (unsigned)GRADIENT_NOT_FINITE);
}

extern "C" status_t CUDA_NAME(adamw)(device_t *device, const adamw_args_t *args) {
    TRY(check_adamw(args));
    if (device->measuring || args->count == 0) return STATUS_OK;
    uintptr_t all = (uintptr_t)args->master | (uintptr_t)args->first_moment | (uintptr_t)args->second_moment;
    adamw_t a = {
        args->count, args->master, args->first_moment, args->second_moment, args->sum,
        {},          args->beta2,  args->eps,          args->probe,         (all | (uintptr_t)args->sum) % 16 == 0};
    a.by = adamw_factors_of(args);
    int64_t each = ADAMW_THREADS * ADAMW_PACK;
    return CUDA_LAUNCH(adamw_kernel, dim3((unsigned)((args->count + each - 1) / each)), dim3(ADAMW_THREADS), 0,
                       cuda_stream(device), a);
}
