// What the CPU's kernel files share: which kernel set runs, and how work is split over the device's threads.
#ifndef KERNELS_CPU_CPU_DEVICE_H
#define KERNELS_CPU_CPU_DEVICE_H

#include "kernels/device.h"

typedef enum cpu_kernel_set { CPU_PORTABLE = 0, CPU_AVX2, CPU_AVX512, CPU_SET_COUNT } cpu_kernel_set_t;

// The kernel set of an open CPU device.
cpu_kernel_set_t cpu_device_set(const device_t *device);
// "portable", "avx2", "avx512".
const char *cpu_set_name(cpu_kernel_set_t set);
// Whether this machine can run it.
bool cpu_set_available(cpu_kernel_set_t set);

// A share of a range: items first .. last - 1. `worker` is in [0, threads_count), for scratch memory a thread.
typedef void (*cpu_range_t)(void *context, int64_t first, int64_t last, int worker);
// Splits `items` independent items over the threads, in contiguous shares that are multiples of `unit` items (the last
// may be shorter). `cost` is the rough work of one item in bytes or FMAs; small totals stay on the calling thread.
void cpu_parallel(device_t *device, int64_t items, int64_t unit, double cost, cpu_range_t range, void *context);

#endif
