#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/head.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/ops.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Below this much work (bytes or FMAs) waking the pool costs more than it brings.
#define CPU_SHARE_COST 65536.0

typedef struct cpu_state {
    cpu_kernel_set_t set;
} cpu_state_t;

cpu_kernel_set_t cpu_device_set(const device_t *device) {
    return ((const cpu_state_t *)device->state)->set;
}

const char *cpu_set_name(cpu_kernel_set_t set) {
    static const char *const name[CPU_SET_COUNT] = {"portable", "avx2", "avx512"};
    return name[set];
}

bool cpu_set_available(cpu_kernel_set_t set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (set == CPU_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == CPU_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("fma");
#endif
    return set == CPU_PORTABLE;
}

// Denormals are computed, never flushed, and rounding is to nearest: the state every rank computes in.
static void cpu_set_rounding(void *context, int task, int worker) {
    (void)context, (void)task, (void)worker;
#if defined(__x86_64__)
    _mm_setcsr(0x1f80); // all exceptions masked, round to nearest, FTZ and DAZ off
#endif
}

static status_t cpu_choose(const char *name, cpu_kernel_set_t *out) {
    for (int set = CPU_SET_COUNT - 1; set >= 0; set--) {
        bool available = cpu_set_available((cpu_kernel_set_t)set);
        *out = (cpu_kernel_set_t)set;
        if (!*name && available) return STATUS_OK;
        if (strcmp(name, cpu_set_name(*out)) != 0) continue;
        if (available) return STATUS_OK;
        FAIL(STATUS_UNAVAILABLE, "this CPU lacks the instructions of the kernel set 'cpu:%s'; use 'cpu'", name);
    }
    FAIL(STATUS_INVALID, "there is no kernel set 'cpu:%s'; the known ones are portable, avx2 and avx512", name);
}

static status_t cpu_open(device_t *device) {
    cpu_kernel_set_t set;
    TRY(cpu_choose(device->kernels, &set));
    cpu_state_t *state;
    TRY(ALLOCATE(&state, 1));
    state->set = set;
    device->state = state;
    device->kernels = cpu_set_name(set);
    int count = threads_count(device->threads);
    threads_run(device->threads, count, cpu_set_rounding, NULL); // one task a worker
    return STATUS_OK;
}

static void cpu_close(device_t *device) {
    free(device->state);
    device->state = NULL;
}

static status_t cpu_allocate(device_t *device, size_t bytes, void **out) {
    (void)device;
    *out = NULL;
    if (posix_memalign(out, 64, bytes ? bytes : 64))
        FAIL(STATUS_MEMORY, "cannot allocate %zu bytes; use a smaller batch or a machine with more memory", bytes);
    memset(*out, 0, bytes);
    return STATUS_OK;
}

static void cpu_release(device_t *device, void *memory) {
    (void)device;
    free(memory);
}

static status_t cpu_copy(device_t *device, void *to, const void *from, size_t bytes) {
    (void)device;
    if (bytes) memmove(to, from, bytes);
    return STATUS_OK;
}

static status_t cpu_zero(device_t *device, void *memory, size_t bytes) {
    (void)device;
    if (bytes) memset(memory, 0, bytes);
    return STATUS_OK;
}

static status_t cpu_synchronize(device_t *device) {
    (void)device; // kernels have finished when they return
    return STATUS_OK;
}

typedef struct cpu_split {
    int64_t items, unit, shares;
    cpu_range_t range;
    void *context;
} cpu_split_t;

static void cpu_split_task(void *context, int task, int worker) {
    const cpu_split_t *split = context;
    int64_t units = (split->items + split->unit - 1) / split->unit;
    int64_t first = units * task / split->shares * split->unit;
    int64_t last = units * (task + 1) / split->shares * split->unit;
    if (last > split->items) last = split->items;
    if (first < last) split->range(split->context, first, last, worker);
}

void cpu_parallel(device_t *device, int64_t items, int64_t unit, double cost, cpu_range_t range, void *context) {
    if (items <= 0) return;
    double wanted = (double)items * cost / CPU_SHARE_COST;
    int64_t shares = threads_count(device->threads);
    if (wanted < (double)shares) shares = (int64_t)wanted;
    if (shares < 1) shares = 1;
    cpu_split_t split = {.items = items, .unit = unit, .shares = shares, .range = range, .context = context};
    threads_run(device->threads, (int)shares, cpu_split_task, &split);
}

const device_table_t device_cpu_table = {
    .name = "cpu",
    .host_memory = true,
    .open = cpu_open,
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .zero = cpu_zero,
    .synchronize = cpu_synchronize,
    .embedding = cpu_embedding,
    .embedding_backward = cpu_embedding_backward,
    .gather_rows = cpu_gather_rows,
    .gather_rows_backward = cpu_gather_rows_backward,
    .scatter_rows = cpu_scatter_rows,
    .scatter_rows_backward = cpu_scatter_rows_backward,
    .pool_rows = cpu_pool_rows,
    .pool_rows_backward = cpu_pool_rows_backward,
    .rmsnorm = cpu_rmsnorm,
    .rmsnorm_backward = cpu_rmsnorm_backward,
    .layernorm = cpu_layernorm,
    .layernorm_backward = cpu_layernorm_backward,
    .rope_table = cpu_rope_table,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attention_backward = cpu_attention_backward,
    .activation = cpu_activation,
    .activation_backward = cpu_activation_backward,
    .add = cpu_add,
    .gradient_norm = cpu_gradient_norm,
    .adamw = cpu_adamw,
    .packed_bytes = cpu_packed_bytes,
    .pack_weight = cpu_pack_weight,
    .linear = cpu_linear,
    .linear_backward = cpu_linear_backward,
    .token_logprobs = cpu_token_logprobs,
    .token_logprobs_backward = cpu_token_logprobs_backward,
    .token_sample = cpu_token_sample,
};
