// Checks of op arguments, shared by the members of the device seam: shapes, dtypes and the contents of index arrays.
// Errors: STATUS_INVALID names the op, the field and what was expected; STATUS_UNAVAILABLE a dtype without kernels.
// The functions named *_indices read index arrays; they are not called in a dry run.
#ifndef KERNELS_CHECK_H
#define KERNELS_CHECK_H

#include "kernels/device.h"

// An f32 or bf16 matrix of this shape with data (none is needed when it has no elements).
status_t check_values(const char *op, const char *field, const matrix_t *m, int rows, int columns) STATUS_CHECKED;
// An fp32 matrix of this shape with data (none is needed when it has no elements).
status_t check_matrix(const char *op, const char *field, const matrix_t *m, int rows, int columns) STATUS_CHECKED;
// start ascends from 0 or more to `rows` at most.
status_t check_leaves(const char *op, const leaves_t *leaves, int rows) STATUS_CHECKED;
status_t check_sink(const char *op, const char *field, const gradient_sink_t *sink) STATUS_CHECKED;
// Every index is in [low, bound).
status_t check_indices(const char *op, const char *field, const int32_t *index, int64_t count, int low,
                       int bound) STATUS_CHECKED;

status_t check_embedding(const embedding_args_t *args) STATUS_CHECKED;
status_t check_embedding_backward(const embedding_args_t *args, const embedding_gradients_t *gradients) STATUS_CHECKED;
status_t check_gather(const rows_args_t *args) STATUS_CHECKED;
status_t check_scatter(const rows_args_t *args) STATUS_CHECKED;
status_t check_rows_backward(const char *op, const rows_args_t *args, const rows_gradients_t *gradients) STATUS_CHECKED;
status_t check_pool(const pool_args_t *args) STATUS_CHECKED;
status_t check_pool_backward(const pool_args_t *args, const pool_gradients_t *gradients) STATUS_CHECKED;
status_t check_rmsnorm(const rmsnorm_args_t *args) STATUS_CHECKED;
status_t check_rmsnorm_backward(const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients) STATUS_CHECKED;
status_t check_layernorm(const layernorm_args_t *args) STATUS_CHECKED;
status_t check_layernorm_backward(const layernorm_args_t *args, const layernorm_gradients_t *gradients) STATUS_CHECKED;
status_t check_rope_table(const rope_table_args_t *args) STATUS_CHECKED;
status_t check_rope(const rope_args_t *args) STATUS_CHECKED;
status_t check_attention(const attention_args_t *args) STATUS_CHECKED;
status_t check_attention_indices(const attention_args_t *args) STATUS_CHECKED;
status_t check_attention_backward(const attention_args_t *args, const attention_gradients_t *gradients) STATUS_CHECKED;
status_t check_activation(const activation_args_t *args) STATUS_CHECKED;
status_t check_activation_backward(const activation_args_t *args,
                                   const activation_gradients_t *gradients) STATUS_CHECKED;
status_t check_add(const add_args_t *args) STATUS_CHECKED;
status_t check_gradient_norm(const gradient_norm_args_t *args) STATUS_CHECKED;
status_t check_adamw(const adamw_args_t *args) STATUS_CHECKED;

#endif
