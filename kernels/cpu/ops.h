// The CPU's ops apart from matrix products: members of device_cpu_table, with the meaning kernels/device.h gives them.
#ifndef KERNELS_CPU_OPS_H
#define KERNELS_CPU_OPS_H

#include "kernels/device.h"

status_t cpu_embedding(device_t *device, const embedding_args_t *args) STATUS_CHECKED;
status_t cpu_embedding_backward(device_t *device, const embedding_args_t *args,
                                const embedding_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_gather_rows(device_t *device, const rows_args_t *args) STATUS_CHECKED;
status_t cpu_gather_rows_backward(device_t *device, const rows_args_t *args,
                                  const rows_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_scatter_rows(device_t *device, const rows_args_t *args) STATUS_CHECKED;
status_t cpu_scatter_rows_backward(device_t *device, const rows_args_t *args,
                                   const rows_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_pool_rows(device_t *device, const pool_args_t *args) STATUS_CHECKED;
status_t cpu_pool_rows_backward(device_t *device, const pool_args_t *args,
                                const pool_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_rmsnorm(device_t *device, const rmsnorm_args_t *args) STATUS_CHECKED;
status_t cpu_rmsnorm_backward(device_t *device, const rmsnorm_args_t *args,
                              const rmsnorm_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_layernorm(device_t *device, const layernorm_args_t *args) STATUS_CHECKED;
status_t cpu_layernorm_backward(device_t *device, const layernorm_args_t *args,
                                const layernorm_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_rope_table(device_t *device, const rope_table_args_t *args) STATUS_CHECKED;
status_t cpu_rope(device_t *device, const rope_args_t *args) STATUS_CHECKED;
status_t cpu_attention(device_t *device, const attention_args_t *args) STATUS_CHECKED;
status_t cpu_attention_backward(device_t *device, const attention_args_t *args,
                                const attention_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_activation(device_t *device, const activation_args_t *args) STATUS_CHECKED;
status_t cpu_activation_backward(device_t *device, const activation_args_t *args,
                                 const activation_gradients_t *gradients) STATUS_CHECKED;
status_t cpu_add(device_t *device, const add_args_t *args) STATUS_CHECKED;
status_t cpu_gradient_norm(device_t *device, const gradient_norm_args_t *args) STATUS_CHECKED;
status_t cpu_adamw(device_t *device, const adamw_args_t *args) STATUS_CHECKED;

#endif
