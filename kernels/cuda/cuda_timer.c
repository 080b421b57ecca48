// Times of the device between places in its stream. Compiled twice, as cuda_device.c is.
#include "kernels/cuda/peak.h"

#include <stdlib.h>
#ifdef POISE_CUDA_HOST
#include <cuda_runtime_api.h>
#else
#include "kernels/sim/sim_runtime.h"
#endif

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) FAIL(STATUS_FAILED, "timer: %s", cudaGetErrorString(error_));                       \
    } while (0)

struct device_timer {
    int marks;
    cudaEvent_t event[];
};

status_t CUDA_NAME(timer_open)(int marks, device_timer_t **out) {
    char *memory = NULL;
    TRY(ALLOCATE(&memory, sizeof(device_timer_t) + (size_t)marks * sizeof(cudaEvent_t)));
    device_timer_t *timer = *out = (device_timer_t *)(void *)memory;
    for (; timer->marks < marks; timer->marks++)
        CUDA_TRY(cudaEventCreateWithFlags(&timer->event[timer->marks], cudaEventDefault));
    return STATUS_OK;
}

void CUDA_NAME(timer_close)(device_timer_t *timer) {
    for (int i = 0; timer && i < timer->marks; i++) (void)cudaEventDestroy(timer->event[i]);
    free(timer);
}

status_t CUDA_NAME(timer_mark)(device_t *device, device_timer_t *timer, int mark) {
    CUDA_TRY(cudaEventRecord(timer->event[mark], (cudaStream_t)cuda_stream(device)));
    return STATUS_OK;
}

status_t CUDA_NAME(timer_seconds)(device_timer_t *timer, int from, int to, double *seconds) {
    float milliseconds = 0.0f;
    CUDA_TRY(cudaEventElapsedTime(&milliseconds, timer->event[from], timer->event[to]));
    *seconds = 1e-3 * (double)milliseconds;
    return STATUS_OK;
}

status_t CUDA_NAME(timer_end)(void) {
#ifdef POISE_CUDA_HOST
    CUDA_TRY(cudaDeviceReset());
#endif
    return STATUS_OK;
}
