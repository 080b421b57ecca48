// Everything that is compiled once per kernel set, and the table of it.
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/vector.h"

#include "kernels/cpu/activation_impl.h"
#include "kernels/cpu/attention_impl.h"
#include "kernels/cpu/layernorm_impl.h"
#include "kernels/cpu/norm_impl.h"
#include "kernels/cpu/optimizer_impl.h"
#include "kernels/cpu/rows_impl.h"

const cpu_kernels_t VECTOR_NAME(cpu_kernels) = {
    .embedding = embedding_rows,
    .embedding_backward = embedding_backward_columns,
    .gather_backward = gather_backward_columns,
    .scatter_backward = scatter_backward_rows,
    .pool = pool_rows,
    .pool_backward = pool_backward_columns,
    .convert = convert_rows,
    .rmsnorm = rmsnorm_rows,
    .rmsnorm_dx = rmsnorm_dx_rows,
    .rmsnorm_dweight = rmsnorm_dweight_columns,
    .layernorm = layernorm_rows,
    .layernorm_dx = layernorm_dx_rows,
    .layernorm_dweight = layernorm_dweight_columns,
    .rope = rope_rows,
    .activation = activation_rows,
    .activation_backward = activation_backward_rows,
    .add = add_rows,
    .gradient_norm = gradient_norm_blocks,
    .adamw = adamw_elements,
    .attention_scratch = attention_scratch,
    .attention = attention_forward_piece,
    .attention_backward = attention_backward_piece,
    .attention_delta = attention_delta_rows,
};
