// The inner loops of the CPU's ops, one table per kernel set. The tables hold the same functions compiled from the same
// sources (*_impl.h) for another instruction set, and agree to the bit (kernels/cpu/vector.h).
//
// A kernel works on a share [first, last) of its op's independent items and may run on any thread; `context` is the
// job named beside it. Arguments have been checked.
#ifndef KERNELS_CPU_CPU_KERNELS_H
#define KERNELS_CPU_CPU_KERNELS_H

#include "kernels/cpu/cpu_device.h"
#include "kernels/optimizer.h"

typedef struct embedding_job {
    const embedding_args_t *args;
    const embedding_gradients_t *gradients;
} embedding_job_t;
typedef struct rows_job {
    const rows_args_t *args;
    const rows_gradients_t *gradients;
} rows_job_t;
typedef struct pool_job {
    const pool_args_t *args;
    const pool_gradients_t *gradients;
} pool_job_t;
typedef struct convert_job {
    matrix_t from, to;                // of equal columns, each f32 or bf16
    const int32_t *from_row, *to_row; // NULL: row i; -1: zeros are read, nothing is written
} convert_job_t;
typedef struct rmsnorm_job {
    const rmsnorm_args_t *args;
    const rmsnorm_gradients_t *gradients;
} rmsnorm_job_t;
typedef struct layernorm_job {
    const layernorm_args_t *args;
    const layernorm_gradients_t *gradients;
} layernorm_job_t;
typedef struct activation_job {
    const activation_args_t *args;
    const activation_gradients_t *gradients;
} activation_job_t;
typedef struct gradient_norm_job {
    const gradient_norm_args_t *args;
    int64_t *absmax; // one a block
} gradient_norm_job_t;
typedef struct adamw_job {
    const adamw_args_t *args;
    adamw_factors_t by;
} adamw_job_t;

// Attention: row r of a sequence and key head is query r / group of the sequence, head r % group of the heads that
// share the key head. A piece of work is a range of its rows and, in the backward, of its keys.
enum {
    ATTENTION_ROWS = 64,                                 // rows of a tile
    ATTENTION_BLOCKS = 4,                                // key blocks of a chunk
    ATTENTION_KEYS = ATTENTION_BLOCKS * ATTENTION_BLOCK, // keys of a chunk
};
typedef struct attention_piece {
    const attention_args_t *args;
    int sequence, kv_head;
    int first_row, rows; // forward: at most ATTENTION_ROWS; backward: first_row is a multiple of ATTENTION_ROWS
    // The backward alone:
    const attention_gradients_t *gradients;
    const float *delta;   // [M, heads] sum of dout * out
    int first_key, keys;  // first_key is a multiple of ATTENTION_KEYS
    bool want_q, want_kv; // which gradients this piece adds to
} attention_piece_t;

typedef struct cpu_kernels {
    cpu_range_t embedding;          // embedding_job_t, rows
    cpu_range_t embedding_backward; // columns
    cpu_range_t gather_backward;    // rows_job_t, columns
    cpu_range_t scatter_backward;   // rows of x
    cpu_range_t pool;               // pool_job_t, rows
    cpu_range_t pool_backward;      // columns
    cpu_range_t convert;            // convert_job_t, rows
    cpu_range_t rmsnorm;            // rmsnorm_job_t, rows
    cpu_range_t rmsnorm_dx;         // rows
    cpu_range_t rmsnorm_dweight;    // columns
    cpu_range_t layernorm;          // layernorm_job_t, rows
    cpu_range_t layernorm_dx;       // rows
    cpu_range_t layernorm_dweight;  // columns: weight and bias
    cpu_range_t rope;               // rope_args_t, rows
    cpu_range_t activation;         // activation_job_t, rows
    cpu_range_t activation_backward;
    cpu_range_t add;           // add_args_t, rows
    cpu_range_t gradient_norm; // gradient_norm_job_t, blocks of GRADIENT_BLOCK
    cpu_range_t adamw;         // adamw_job_t, elements
    // Bytes of scratch that one thread needs; a multiple of 64.
    size_t (*attention_scratch)(int head_dim, bool backward);
    void (*attention)(const attention_piece_t *piece, void *scratch);
    void (*attention_backward)(const attention_piece_t *piece, void *scratch);
    cpu_range_t attention_delta; // attention_piece_t, rows of q: fills delta
} cpu_kernels_t;

extern const cpu_kernels_t cpu_kernels_portable, cpu_kernels_avx2, cpu_kernels_avx512;
// The table of an open CPU device.
const cpu_kernels_t *cpu_device_kernels(const device_t *device);

#endif
