// Products of linear's forward by a library: x W^T of bf16 by bf16, where cuBLASLt is found and keeps the bit contract.
//
// When a device is opened the library is loaded (libcublasLt.so; POISE_CUBLAS names another file, "none" asks for our
// own products), an algorithm is chosen that cuts k nowhere and wants no workspace, and a probe computes rows in
// different company with it. Where a row's bits depend on anything beside it, or the library or an algorithm is not
// there, all products are our own (kernels/cuda/gemm.h). That is decided once for the device, for all that runs on it;
// device->note says which and why.
//
// One algorithm makes the products of all shapes, so the probe has tried the very one that runs. Whether it takes a
// shape (N, K) is asked once and never depends on the number of rows: those are padded to LIBRARY_ROWS, and go in parts
// of bounded size. Bias, adapter and rounding are our own kernels', as in kernels/cuda/gemm.cu.
#ifndef KERNELS_CUDA_CUDA_LIBRARY_H
#define KERNELS_CUDA_CUDA_LIBRARY_H

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/cuda_device.h"

enum { LIBRARY_ROWS = 64, LIBRARY_GROUP = 8 }; // rows of a product; elements of 16 bytes, the alignment of all operands

// How a linear goes by the library; taken false: it does not.
typedef struct library_plan {
    bool taken;
    bool whole;       // the product is all of y: it may be written there
    dtype_t sums;     // what the library writes
    int rows;         // at once, a multiple of LIBRARY_ROWS
    int stride;       // of the sums in scratch
    size_t x, weight; // bytes of scratch for copies of x and, where it is not aligned, of the weight
    size_t bytes;     // in all
} library_plan_t;

#ifdef __cplusplus
extern "C" {
#endif
// Sets the device's library, note and identity; a library that cannot be used is no failure.
status_t CUDA_NAME(library_open)(device_t *device) STATUS_CHECKED;
void CUDA_NAME(library_close)(device_t *device);
// The functions; *file goes to library_unload.
status_t CUDA_NAME(library_load)(cublas_library_t *out, void **file) STATUS_CHECKED;
void CUDA_NAME(library_unload)(void *file);
// How this linear goes; depends on its shapes and dtypes, the rows only in the sizes.
status_t CUDA_NAME(library_plan)(device_t *device, const linear_args_t *args, library_plan_t *out) STATUS_CHECKED;
// out = x W^T: operands aligned to 16 bytes, x.rows a multiple of LIBRARY_ROWS, out as wide as it is planned.
status_t CUDA_NAME(library_multiply)(device_t *device, const matrix_t *x, const matrix_t *weight,
                                     const matrix_t *out) STATUS_CHECKED;
// linear as planned, but for x A^T, which is there already. scratch: plan->bytes (library.cu).
status_t CUDA_NAME(library_linear)(device_t *device, const linear_args_t *args, const library_plan_t *plan,
                                   void *scratch) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif

static inline bool library_aligned(const matrix_t *m) {
    return (uintptr_t)m->data % 16 == 0 && (size_t)m->stride * dtype_bytes(m->dtype) % 16 == 0;
}

#endif
