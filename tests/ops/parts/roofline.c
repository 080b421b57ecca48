// The ceilings of this machine on one thread: fused multiply-adds from registers, and a copy between large arrays.
#include "tests/ops/parts/ops.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
#define FMA_LOOP(name, isa, lane_bytes)                                                                                \
    __attribute__((target(isa), noinline)) static double name(double *flops) {                                         \
        typedef float vector_t __attribute__((vector_size(lane_bytes)));                                               \
        enum { CHAINS = 12, STEPS = 2000000 };                                                                         \
        vector_t sum[CHAINS], a = {0}, b = {0};                                                                        \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) sum[i] = a;                                          \
        double start = seconds_now();                                                                                  \
        for (int step = 0; step < STEPS; step++)                                                                       \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) __asm__ volatile("vfmadd231ps %1, %2, %0" :      \
                                                                                       "+v"(sum[i]) : "v"(a), "v"(b)); \
        double seconds = seconds_now() - start;                                                                        \
        *flops = 2.0 * CHAINS * STEPS * (lane_bytes) / 4 / seconds;                                                    \
        float keep = 0;                                                                                                \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) keep += sum[i][0];                                   \
        return (double)keep;                                                                                           \
    }
FMA_LOOP(fma_wide, "avx512f", 64)
FMA_LOOP(fma_narrow, "avx2,fma", 32)
#endif

roofline_t harness_roofline(void) {
    roofline_t best = {0, 0};
    enum { BYTES = 64 << 20 };
    char *from = malloc(BYTES), *to = malloc(BYTES);
    if (from && to) {
        memset(from, 1, BYTES);
        memset(to, 2, BYTES);
        for (int i = 0; i < 6; i++) {
            double start = seconds_now();
            memcpy(to, from, BYTES);
            __asm__ volatile("" : : "r"(to) : "memory");
            double rate = 2.0 * BYTES / (seconds_now() - start);
            if (rate > best.bytes) best.bytes = rate;
        }
    }
    free(from);
    free(to);
#if defined(__x86_64__)
    for (int i = 0; i < 4; i++) {
        double flops = 0, keep = 0;
        if (__builtin_cpu_supports("avx512f"))
            keep = fma_wide(&flops);
        else if (__builtin_cpu_supports("fma"))
            keep = fma_narrow(&flops);
        if (keep == 0 && flops > best.flops) best.flops = flops;
    }
#endif
    return best;
}
