// What cuda_library.c and cuda_library_probe.c share.
#ifndef KERNELS_CUDA_CUDA_LIBRARY_INTERNAL_H
#define KERNELS_CUDA_CUDA_LIBRARY_INTERNAL_H

#include "kernels/cuda/cuda_library.h"
#include "kernels/ledger.h"

typedef struct library_shape {
    int n, k;
    dtype_t sums;
    bool taken;
} library_shape_t;

typedef struct cuda_library {
    cublas_library_t call;
    void *file, *handle, *description;
    void *x, *weight, *sums[2];      // layouts; sums: fp32, bf16
    cublas_algorithm_t algorithm[2]; // the same
    bool chosen;                     // the first of them
    bool rounds;                     // the second one's results are the first one's, rounded: they may be used
    library_shape_t *shape;          // what the algorithms were asked
    size_t capacity;
    int shapes;
} cuda_library_t;

enum { PROBE_SHAPES = 6 };
// What the probe keeps between algorithms: operands on the device, and what our own products and the chosen algorithm
// make of them.
typedef struct library_probe {
    struct probe_shape {
        void *x, *weight, *y;
        float *own, *sums; // on the host
    } shape[PROBE_SHAPES];
} library_probe_t;

status_t CUDA_NAME(probe_open)(device_t *device, library_probe_t *probe) STATUS_CHECKED;
// Whether the algorithm for fp32 results (half: bf16) keeps the contract; the failure says what it does instead.
status_t CUDA_NAME(probe_run)(device_t *device, cuda_library_t *library, library_probe_t *probe,
                              bool half) STATUS_CHECKED;
void CUDA_NAME(probe_close)(device_t *device, library_probe_t *probe);
// An error that the runtime still remembers is not the next launch's.
void CUDA_NAME(library_forget_error)(void);

#endif
