// The host side of the .cu files: each function checks nothing, launches its kernels on `stream` and returns. Pointers
// in `args` are device memory, but for leaves.start, which the host reads. CUDA_NAME gives the functions their prefix:
// cuda_ on a GPU, sim_ in the simulator.
#ifndef KERNELS_CUDA_LAUNCHERS_H
#define KERNELS_CUDA_LAUNCHERS_H

#include "kernels/device.h"

#ifdef __cplusplus
extern "C" {
#endif
status_t CUDA_NAME(rmsnorm_launch)(const rmsnorm_args_t *args, void *stream) STATUS_CHECKED;
status_t CUDA_NAME(rmsnorm_backward_launch)(const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients,
                                            void *stream) STATUS_CHECKED;
status_t CUDA_NAME(embedding_launch)(const embedding_args_t *args, void *stream) STATUS_CHECKED;
status_t CUDA_NAME(embedding_backward_launch)(const embedding_args_t *args, const embedding_gradients_t *gradients,
                                              void *stream) STATUS_CHECKED;
status_t CUDA_NAME(add_launch)(const add_args_t *args, void *stream) STATUS_CHECKED;
// y = x W^T + bias; bf16 operands go through the tensor cores, the others through plain FMAs. K is summed in one order,
// k = 0 .. K-1, whatever the other rows and columns are.
status_t CUDA_NAME(linear_launch)(const linear_args_t *args, void *stream) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif
#endif
