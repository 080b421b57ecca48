// What a simulator must catch, and the same kernels made right. A comment "LINE name" marks the line that a message has
// to name.
#include "kernels/cuda/cuda_shim.h"
#include "tests/sim/faults.h"

enum { THREADS = 64 };

// out[block] = the sum of 64 numbers, through shared memory.
template <bool barrier> static __global__ void sum_kernel(float *out, const float *in) {
    CUDA_SHARED(float, partial, [THREADS]);
    int t = (int)threadIdx.x;
    partial[t] = in[blockIdx.x * THREADS + t];
    if (barrier) __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < THREADS; i++) sum += partial[i]; // LINE removed barrier
    out[blockIdx.x * THREADS + t] = sum;
}

// Two lanes of a warp write the same place; the shadow of a race that no order of lanes shows.
static __global__ void write_race_kernel(uint32_t *bits) {
    CUDA_SHARED(uint32_t, place, [2]);
    if (threadIdx.x % 32 < 2) place[0] = 7; // LINE write race
    __syncthreads();
    bits[threadIdx.x] = place[0];
}

// A lane reads what its neighbour wrote: right with __syncwarp, wrong without.
template <bool barrier> static __global__ void neighbour_kernel(float *out, const float *in) {
    CUDA_SHARED(float, row, [THREADS]);
    int t = (int)threadIdx.x;
    row[t] = in[t];
    if (barrier) __syncwarp();
    out[t] = row[t ^ 1]; // LINE neighbour
}

// The second loop's writes meet the first one's reads: the barrier at the end of a loop's body was forgotten.
template <bool barrier> static __global__ void reuse_kernel(float *out, const float *in) {
    CUDA_SHARED(float, row, [THREADS]);
    int t = (int)threadIdx.x;
    float sum = 0.0f;
    for (int i = 0; i < 2; i++) {
        row[t] = in[t] + (float)i; // LINE reuse
        __syncthreads();
        sum += row[THREADS - 1 - t];
        if (barrier) __syncthreads();
    }
    out[t] = sum;
}

static __global__ void divergent_kernel(uint32_t *bits) {
    if (threadIdx.x < 40)
        __syncthreads(); // LINE divergent first
    else
        __syncthreads(); // LINE divergent second
    bits[threadIdx.x] = 1;
}

static __global__ void stuck_kernel(uint32_t *bits) {
    if (threadIdx.x % 32 < 16) __syncthreads(); // LINE stuck
    bits[threadIdx.x] = 1;
}

static __global__ void bounds_kernel(float *out, int place, bool writes) {
    CUDA_SHARED(float, before, [8]);
    CUDA_SHARED(float, table, [8]);
    CUDA_SHARED(float, after, [8]);
    if (threadIdx.x == 3) {
        before[0] = after[0] = 1.0f;
        if (writes)
            table[place] = 1.0f; // LINE write bounds
        else
            out[0] = table[place]; // LINE read bounds
    }
}

static __global__ void dynamic_kernel(float *out, int count) {
    CUDA_DYNAMIC_SHARED(float, buffer);
    for (int i = (int)threadIdx.x; i < count; i += THREADS) buffer[i] = (float)i; // LINE dynamic
    __syncthreads();
    out[threadIdx.x] = buffer[count - 1 - (int)threadIdx.x];
}

// More dynamic memory than a kernel may have unasked.
enum { LARGE_BYTES = 97 * 512 };
template <bool granted> static __global__ void large_kernel(float *out) {
    CUDA_DYNAMIC_SHARED(float, buffer);
    buffer[LARGE_BYTES / 4 - 1 - (int)threadIdx.x] = granted ? 1.0f : 0.0f;
    out[threadIdx.x] = buffer[LARGE_BYTES / 4 - 1 - (int)threadIdx.x];
}

static __global__ void misaligned_kernel(float *out) {
    CUDA_SHARED(float, row, [16]);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 16; i++) row[i] = 1.0f;
        volatile long long *wide = (volatile long long *)(void *)&row[1];
        out[0] = (float)*wide; // LINE misaligned
    }
}

// Nobody wrote: NaN in every block, whatever the last block left.
static __global__ void fresh_kernel(float *out) {
    CUDA_SHARED(float, row, [THREADS]);
    int t = (int)threadIdx.x;
    out[blockIdx.x * THREADS + t] = row[t];
    row[t] = 1.0f;
}

static __global__ void own_mask_kernel(uint32_t *bits) {
    bits[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, threadIdx.x, 1); // LINE own mask
}
static __global__ void absent_kernel(uint32_t *bits) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x % 32 < 16) value = __shfl_xor_sync(0xffffffffu, value, 1); // LINE absent
    bits[threadIdx.x] = value;
}
static __global__ void two_masks_kernel(uint32_t *bits) {
    uint32_t mask = threadIdx.x % 32 == 5 ? 0x00ffffffu : 0xffffffffu;
    bits[threadIdx.x] = __shfl_xor_sync(mask, threadIdx.x, 1); // LINE two masks
}
static __global__ void unnamed_kernel(uint32_t *bits) {
    if (threadIdx.x % 32 < 16) bits[threadIdx.x] = __shfl_sync(0x0000ffffu, threadIdx.x, 20); // LINE unnamed
}

// bits[t], bits[64 + t], ...: what each warp call gives.
static __global__ void warp_kernel(uint32_t *bits) {
    unsigned t = threadIdx.x, lane = t % 32, all = 0xffffffffu;
    bits[t] = __shfl_sync(all, t, 3);
    bits[64 + t] = __shfl_up_sync(all, t, 2u);
    bits[128 + t] = __shfl_down_sync(all, t, 5u, 8);
    bits[192 + t] = __ballot_sync(all, lane % 3 == 0);
    bits[256 + t] = (unsigned)(__any_sync(all, lane == 9) + 2 * __all_sync(all, lane < 31));
    bits[320 + t] = __reduce_add_sync(all, t);
    bits[384 + t] = lane < 8 ? __reduce_max_sync(0xffu, t) : __shfl_xor_sync(0xffffff00u, t, 1);
    if (lane == 0) atomicAdd(&bits[448], t + 1);
}

// Warp 0 makes what warp 1 takes, by way of barrier 3; the block has a third warp that does not take part.
template <bool barrier> static __global__ void named_kernel(float *out, const float *in) {
    CUDA_SHARED(float, row, [32]);
    int t = (int)threadIdx.x;
    if (t >= 64) return;
    if (t < 32) row[t] = in[t];
    if (barrier) cuda_named_barrier(3, 64);
    if (t >= 32) out[t - 32] = row[63 - t]; // LINE named
}

template <bool waits> static __global__ void copy_kernel(float *out, const float *in) {
    CUDA_SHARED(float, row, [THREADS]);
    int t = (int)threadIdx.x;
    if (t < 16) cuda_copy_async16(&row[t * 4], in + t * 4, t == 15 ? 8 : 16);
    cuda_copy_commit();
    if (waits) cuda_copy_wait<0>();
    __syncthreads();
    out[t] = row[t];
}

// Wrong through global memory, where races are not recorded: only another order of threads or blocks shows it.
static __global__ void order_kernel(uint32_t *bits) {
    bits[0] = blockIdx.x * THREADS + threadIdx.x;
}

// d = a b for one warp and one 16 x 8 x 16 tile; in: a [16][16], b [8][16] (by columns), as floats.
static __global__ void mma_kernel(float *out, const float *in) {
    CUDA_SHARED(bf16_t, tile, [24][16]);
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 24 * 16; i += 32) tile[i / 16][i % 16] = __float2bfloat16_rn(in[i]);
    __syncwarp();
    unsigned a[4], b[4];
    float d[4] = {};
    cuda_load_matrices(a, &tile[lane % 16][lane / 16 * 8]);
    cuda_load_matrices(b, &tile[16 + lane % 8][lane / 8 % 2 * 8]);
    unsigned half[2] = {b[0], b[1]};
    cuda_mma_bf16(d, a, half);
    for (int e = 0; e < 4; e++) out[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = d[e];
}

static __global__ void heap_kernel(float *out, int place) {
    if (threadIdx.x == 1) out[place] = 1.0f; // LINE heap
}

#define ON(kernel, blocks, threads, shared, ...)                                                                       \
    do {                                                                                                               \
        auto function = kernel;                                                                                        \
        return CUDA_LAUNCH(function, dim3(blocks), dim3(threads), shared, args.stream, __VA_ARGS__);                   \
    } while (0)

static status_t run_barriers(const char *name, fault_args_t args) {
    float *out = args.out;
    uint32_t *bits = args.bits;
    const float *in = args.in;
    if (!strcmp(name, "sum")) ON(sum_kernel<true>, 2, THREADS, 0, out, in);
    if (!strcmp(name, "removed barrier")) ON(sum_kernel<false>, 2, THREADS, 0, out, in);
    if (!strcmp(name, "write race")) ON(write_race_kernel, 1, THREADS, 0, bits);
    if (!strcmp(name, "neighbour, right")) ON(neighbour_kernel<true>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "neighbour")) ON(neighbour_kernel<false>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "reuse, right")) ON(reuse_kernel<true>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "reuse")) ON(reuse_kernel<false>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "divergent")) ON(divergent_kernel, 1, THREADS, 0, bits);
    if (!strcmp(name, "stuck")) ON(stuck_kernel, 1, THREADS, 0, bits);
    if (!strcmp(name, "named, right")) ON(named_kernel<true>, 1, 96, 0, out, in);
    if (!strcmp(name, "named")) ON(named_kernel<false>, 1, 96, 0, out, in);
    if (!strcmp(name, "order")) ON(order_kernel, 3, THREADS, 0, bits);
    FAIL(STATUS_INVALID, "there is no kernel '%s'", name);
}

static status_t run_memory(const char *name, fault_args_t args) {
    float *out = args.out;
    const float *in = args.in;
    if (!strcmp(name, "write bounds")) ON(bounds_kernel, 1, 32, 0, out, 8, true);
    if (!strcmp(name, "read bounds")) ON(bounds_kernel, 1, 32, 0, out, -1, false);
    if (!strcmp(name, "dynamic, right")) ON(dynamic_kernel, 1, THREADS, 400, out, 100);
    if (!strcmp(name, "dynamic")) ON(dynamic_kernel, 1, THREADS, 396, out, 100);
    if (!strcmp(name, "not granted")) ON(large_kernel<false>, 1, THREADS, LARGE_BYTES, out);
    if (!strcmp(name, "granted")) {
        TRY(CUDA_GRANT_SHARED(large_kernel<true>, LARGE_BYTES));
        ON(large_kernel<true>, 1, THREADS, LARGE_BYTES, out);
    }
    if (!strcmp(name, "granted too much")) return CUDA_GRANT_SHARED(large_kernel<true>, 164 * 1024);
    if (!strcmp(name, "misaligned")) ON(misaligned_kernel, 1, 32, 0, out);
    if (!strcmp(name, "fresh")) ON(fresh_kernel, 2, THREADS, 0, out);
    if (!strcmp(name, "copy, right")) ON(copy_kernel<true>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "copy")) ON(copy_kernel<false>, 1, THREADS, 0, out, in);
    if (!strcmp(name, "mma")) ON(mma_kernel, 1, 32, 0, out, in);
    if (!strcmp(name, "heap")) ON(heap_kernel, 1, 32, 0, out, 1024);
    if (!strcmp(name, "large block")) ON(heap_kernel, 1, 1025, 0, out, 0);
    return run_barriers(name, args);
}

extern "C" status_t fault_run(const char *name, fault_args_t args) {
    uint32_t *bits = args.bits;
    if (!strcmp(name, "own mask")) ON(own_mask_kernel, 1, 32, 0, bits);
    if (!strcmp(name, "absent")) ON(absent_kernel, 1, 32, 0, bits);
    if (!strcmp(name, "two masks")) ON(two_masks_kernel, 1, 32, 0, bits);
    if (!strcmp(name, "unnamed")) ON(unnamed_kernel, 1, 32, 0, bits);
    if (!strcmp(name, "warp")) ON(warp_kernel, 1, THREADS, 0, bits);
    return run_memory(name, args);
}

extern "C" float fault_exp(float x) {
    return cuda_exp(x);
}
extern "C" uint16_t fault_half(float x) {
    return __float2half_rn(x).bits;
}
extern "C" float fault_whole(uint16_t half) {
    return __half2float(__half{half});
}
extern "C" uint16_t fault_bf16(float x) {
    return __float2bfloat16_rn(x).bits;
}
