// Ceilings of a GPU, measured: what a kernel's speed is a share of (tests/gpu/run).
#ifndef KERNELS_CUDA_PEAK_H
#define KERNELS_CUDA_PEAK_H

#include "kernels/cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif
typedef enum peak { PEAK_COPY, PEAK_FMA, PEAK_TENSOR } peak_t;
enum { PEAK_THREADS = 256, PEAK_CHAINS = 16 };
// Puts one kernel on the device's stream. PEAK_COPY copies the first half of `memory` to the second (bytes: of the
// whole, a multiple of 32). The others do `rounds` times PEAK_CHAINS steps in each of `blocks` blocks, a step being an
// fp32 FMA of every thread or a bf16 product of 16 x 8 x 16 of every warp, and write one float for each thread.
status_t CUDA_NAME(peak)(device_t *device, peak_t kind, void *memory, size_t bytes, int blocks,
                         int rounds) STATUS_CHECKED;

// Times between marks in the device's stream, by events (cuda_timer.c). Seconds can be read once the stream has been
// waited for. timer_end: the process is done with the GPU (compute-sanitizer looks for leaks then).
typedef struct device_timer device_timer_t;
status_t CUDA_NAME(timer_open)(int marks, device_timer_t **out) STATUS_CHECKED;
void CUDA_NAME(timer_close)(device_timer_t *timer); // NULL is allowed
status_t CUDA_NAME(timer_mark)(device_t *device, device_timer_t *timer, int mark) STATUS_CHECKED;
status_t CUDA_NAME(timer_seconds)(device_timer_t *timer, int from, int to, double *seconds) STATUS_CHECKED;
status_t CUDA_NAME(timer_end)(void) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif
#endif
