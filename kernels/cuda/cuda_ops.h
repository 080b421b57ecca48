// The ops of the CUDA member, as kernels/device.h describes them. Each checks its arguments, takes scratch by
// device_workspace, returns there in a dry run, and launches its kernels on the device's stream. Pointers in arguments
// are device memory, but for leaves.start, which the host reads.
#ifndef KERNELS_CUDA_CUDA_OPS_H
#define KERNELS_CUDA_CUDA_OPS_H

#include "kernels/cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif
status_t CUDA_NAME(linear)(device_t *device, const linear_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(linear_backward)(device_t *device, const linear_args_t *args,
                                    const linear_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(embedding)(device_t *device, const embedding_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(embedding_backward)(device_t *device, const embedding_args_t *args,
                                       const embedding_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(gather_rows)(device_t *device, const rows_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(gather_rows_backward)(device_t *device, const rows_args_t *args,
                                         const rows_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(scatter_rows)(device_t *device, const rows_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(scatter_rows_backward)(device_t *device, const rows_args_t *args,
                                          const rows_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(pool_rows)(device_t *device, const pool_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(pool_rows_backward)(device_t *device, const pool_args_t *args,
                                       const pool_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(rmsnorm)(device_t *device, const rmsnorm_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(rmsnorm_backward)(device_t *device, const rmsnorm_args_t *args,
                                     const rmsnorm_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(layernorm)(device_t *device, const layernorm_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(layernorm_backward)(device_t *device, const layernorm_args_t *args,
                                       const layernorm_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(rope_table)(device_t *device, const rope_table_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(rope)(device_t *device, const rope_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(attention)(device_t *device, const attention_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(attention_backward)(device_t *device, const attention_args_t *args,
                                       const attention_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(activation)(device_t *device, const activation_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(activation_backward)(device_t *device, const activation_args_t *args,
                                        const activation_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(add)(device_t *device, const add_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(token_logprobs)(device_t *device, const token_logprobs_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(token_logprobs_backward)(device_t *device, const token_logprobs_args_t *args,
                                            const token_logprobs_gradients_t *gradients) STATUS_CHECKED;
status_t CUDA_NAME(token_sample)(device_t *device, const token_sample_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(gradient_norm)(device_t *device, const gradient_norm_args_t *args) STATUS_CHECKED;
status_t CUDA_NAME(adamw)(device_t *device, const adamw_args_t *args) STATUS_CHECKED;
#ifdef __cplusplus
}
#endif
#endif
