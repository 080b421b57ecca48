// The device seam: one table of kernels a device. Members: cpu (this folder's cpu/), cuda, sim (the cuda sources run on
// a CPU). Model code and optimizers call kernels only through this table: device->table->rmsnorm(device, &args).
//
// Conventions, for every op:
//  - Matrices are row-major; a row is a token (or an image patch). `stride` is in elements, so a column slice of a
//    wider matrix is a matrix too. Shapes are written [rows, columns] beside each field.
//  - Forward kernels write their outputs. Backward kernels ADD into activation gradients (dx += ...), which the tape
//    has zeroed, and add parameter gradients into exact sums (gradient_sink_t), leaf by leaf.
//  - Storage: the matrices of a forward (x, y, weight, table, hidden, q, k, v, out, up, a, b) are f32 or bf16, each by
//    itself: a bf16 input is widened, computing is fp32, and a bf16 output is rounded once from the fp32 result.
//    Gradients, statistics (rstd, lse), rope tables, biases, norm weights and log-probs are f32 always. lora_xa is read
//    again by the product with B, so that product sees it as it was kept.
//  - The bit contract: a row of an output, and of an activation's gradient, is a function of its own inputs alone (and
//    of the keys, tokens or entries that belong to it). Its reduction runs in one fixed order that depends on nothing
//    beside it: not on the number of rows, threads, pages or packs. A leaf's gradient is one of that leaf's rows alone.
//    CPU: dot products over K go in order k = 0 .. K-1 with one fused multiply-add a step, starting from +0; other sums
//    use 16 virtual lanes (element i in lane i mod 16, in order) folded 8-4-2-1. The portable, AVX2 and AVX-512 kernels
//    agree to the bit, in f32 and in bf16.
//    GPU: the CPU's order wherever a product has an f32 matrix in it (gradients apart) and in most other sums
//    (docs/gpu.md). Products of two bf16 matrices, and of a gradient with a bf16 matrix, are the tensor cores': k by
//    steps of 16 in order, summed in fp32; what a step rounds is the hardware's. The gradient goes in as two bf16
//    parts, off by 2^-17 at most.
//  - Errors: wrong shapes or an unsupported dtype give STATUS_INVALID or STATUS_UNAVAILABLE; nothing is written then.
//    An index out of range gives STATUS_INVALID: on the CPU at once, with nothing written; on a GPU, where the host
//    cannot look, the kernel reads and writes nothing for that index and the next download or synchronize fails.
//  - Order: ops, uploads and zeros happen in the order of the calls. On a GPU they may still be under way when the call
//    returns; an upload's source may be used again at once, and a download has ended when it returns.
//  - Memory: kernels take scratch from the device's workspace only. With `measuring` set they record what they would
//    take and return without touching a tensor; that is how the dry run works.
//  - None is collective. One thread at a time may use a device; kernels use the device's own thread pool.
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/base/status.h"
#include "kernels/base/threads.h"
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum dtype { DTYPE_F32 = 0, DTYPE_BF16, DTYPE_F16, DTYPE_I32, DTYPE_I64, DTYPE_U8, DTYPE_COUNT } dtype_t;
size_t dtype_bytes(dtype_t dtype);
// bf16 is the upper half of an f32. Rounding: to nearest, ties to even; a NaN stays one.
static inline float bf16_widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}
static inline uint16_t bf16_round(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (value != value) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
const char *dtype_name(dtype_t dtype); // "f32", "bf16", ...

// A view of device memory; owns nothing. data == NULL means "absent" where an op allows it.
typedef struct matrix {
    void *data;
    dtype_t dtype;
    int rows;
    int columns;
    int64_t stride; // elements from one row to the next, >= columns
} matrix_t;

static inline matrix_t matrix_view(void *data, dtype_t dtype, int rows, int columns) {
    return (matrix_t){.data = data, .dtype = dtype, .rows = rows, .columns = columns, .stride = columns};
}
// Columns first .. first + columns - 1 of a matrix.
static inline matrix_t matrix_columns(matrix_t m, int first, int columns) {
    if (m.data) m.data = (char *)m.data + (size_t)first * dtype_bytes(m.dtype);
    m.columns = columns;
    return m;
}

// Gradient leaves: leaf i owns rows start[i] .. start[i+1]-1 of the op's rows; start has count + 1 entries.
// The parameter gradient of a leaf is computed by itself, in a fixed order within the leaf, then added exactly.
typedef struct leaves {
    int count;
    const int32_t *start;
} leaves_t;

enum { GRADIENT_LIMIT_BITS = 47, GRADIENT_OVERFLOW = 1, GRADIENT_NOT_FINITE = 2 };

// The exact sum of one parameter's gradient. A contribution c is added as the integer nearest to c * 2^exponent (ties
// to even). When that integer reaches 2^47 in magnitude it is left out and GRADIENT_OVERFLOW is set in *flags (so up to
// 2^15 contributions of any sign never overflow the sum); NaN and Inf set GRADIENT_NOT_FINITE. Whether a flag is set
// does not depend on layout, so all ranks can redo the step with another exponent and agree.
typedef struct gradient_sink {
    int64_t *sum; // [elements]
    int exponent;
    uint32_t *flags;
} gradient_sink_t;

// ---- linear: y = x W^T + bias + scale * (x A^T) B^T ----
typedef struct linear_args {
    matrix_t x;         // [M, K]
    matrix_t weight;    // [N, K] (Hugging Face orientation)
    const void *packed; // the device's packed form of weight (device_pack_weight), or NULL: packed on the fly
    const float *bias;  // [N] or NULL
    matrix_t lora_a;    // [R, K], or data NULL: no adapter
    matrix_t lora_b;    // [N, R]
    float lora_scale;   // alpha / R
    matrix_t lora_xa;   // [M, R]: x A^T, written by forward, read by backward
    matrix_t y;         // [M, N]
} linear_args_t;
typedef struct linear_gradients {
    matrix_t dy;                                            // [M, N]
    matrix_t dx;                                            // [M, K], added to; data NULL: not wanted
    const gradient_sink_t *weight, *bias, *lora_a, *lora_b; // NULL: frozen
    leaves_t leaves;                                        // over the M rows
} linear_gradients_t;

// ---- embedding: y[i] = table[token[i]] ----
typedef struct embedding_args {
    const int32_t *token; // [M], each in [0, table.rows); checked
    matrix_t table;       // [V, K]
    float scale;          // 1 unless the family scales its embeddings; a bf16 table rounds it first
    matrix_t y;           // [M, K]
} embedding_args_t;
typedef struct embedding_gradients {
    matrix_t dy;
    const gradient_sink_t *table; // NULL: frozen. Rows add one by one: exact sums need no order
} embedding_gradients_t;

// ---- rows: gather y[i] = x[index[i]]; scatter y[index[i]] = x[i] (index without repeats; other rows of y stay) ----
typedef struct rows_args {
    matrix_t x;
    const int32_t *index; // gather: [y.rows] into x; scatter: [x.rows] into y; -1 skips the row (gather writes zeros)
    matrix_t y;
} rows_args_t;
// gather backward: dx[index[i]] += dy[i], in order of i. scatter backward: dx[i] += dy[index[i]], then that row of dy
// becomes 0 (what y held there before the scatter got no gradient).
typedef struct rows_gradients {
    matrix_t dy; // written by scatter's backward
    matrix_t dx; // data NULL: not wanted
} rows_gradients_t;

// ---- pool_rows: y[i] = the mean of `count` rows of x, summed in the order of their indices, then divided ----
typedef struct pool_args {
    matrix_t x;
    const int32_t *index; // [y.rows * count] into x; rows may repeat
    int count;            // >= 1
    matrix_t y;
} pool_args_t;
// dx[index[i * count + j]] += dy[i] / count, in order of i, then j.
typedef struct pool_gradients {
    matrix_t dy;
    matrix_t dx; // data NULL: not wanted
} pool_gradients_t;

// ---- rmsnorm: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps) ----
typedef enum norm_flavour {
    NORM_CAST_THEN_WEIGHT, // Qwen, Llama, Mistral: normalise, round to the dtype, multiply by w
    NORM_ONE_PLUS_WEIGHT,  // Gemma: normalise, multiply by (1 + w), round
} norm_flavour_t;
typedef struct rmsnorm_args {
    matrix_t x;          // [M, K]
    const float *weight; // [K]
    float eps;
    norm_flavour_t flavour;
    matrix_t y;  // [M, K]
    float *rstd; // [M], for backward
} rmsnorm_args_t;
typedef struct rmsnorm_gradients {
    matrix_t dy, dx;
    const gradient_sink_t *weight;
    leaves_t leaves;
} rmsnorm_gradients_t;

// ---- layernorm: y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps) (PyTorch's) ----
typedef struct layernorm_args {
    matrix_t x;          // [M, K]
    const float *weight; // [K]
    const float *bias;   // [K], or NULL: none
    float eps;
    matrix_t y;         // [M, K]
    float *mean, *rstd; // [M] each, for backward
} layernorm_args_t;
typedef struct layernorm_gradients {
    matrix_t dy;
    matrix_t dx;                          // added to; data NULL: not wanted
    const gradient_sink_t *weight, *bias; // NULL: frozen
    leaves_t leaves;                      // over the M rows
} layernorm_gradients_t;

// ---- rope ----
// Table: angle[i][j] = position[axis[j]][i] * inverse_frequency[j] in fp32; cos and sin computed in double, rounded
// once, and once more to bf16 values where `precision` says so (text models turn with a table in their own dtype).
typedef struct rope_table_args {
    int rows, half;                 // half = head_dim / 2
    const int32_t *position[3];     // each [rows]; unused axes may be NULL
    const int32_t *axis;            // [half], 0 .. 2
    const float *inverse_frequency; // [half]
    dtype_t precision;              // DTYPE_F32 or DTYPE_BF16
    float *cosine, *sine;           // [rows, half]
} rope_table_args_t;
// Rotates each head in place, rotate-half form: (a, b) -> (a c - b s, b c + a s), a in the first half of the head's
// columns and b in the second. inverse == true turns the other way: it is its own backward.
typedef struct rope_args {
    matrix_t x; // [M, heads * 2 * half]
    int heads, half;
    const float *cosine, *sine; // [M, half]
    bool inverse;
} rope_args_t;

// ---- attention ----
// Which keys a query sees. Queries are rows of q, grouped by sequence. A sequence is a list of keys in order of their
// position; key_row says in which row of k and v each lies, so that contiguous rows, pages and shared prefixes are one
// case. Two indices a token: the position in the sequence is used here, the rope position only in rope.
typedef struct attention_mask {
    int sequences;
    const int32_t *query_start;    // [sequences + 1] rows of q
    const int32_t *query_position; // [sequences] position of the sequence's first query; the next ones follow
    const int32_t *key_start;      // [sequences + 1] into key_row
    const int32_t *key_row;        // [key_start[sequences]] rows of k and v, by position
    bool causal;                   // key position <= query position, or one image group; else all keys of the sequence
    int window;                    // > 0: and key position > query position - window, whatever the group
    const int32_t *group;          // NULL, or per key (as key_row): tokens of one group >= 0 see each other
} attention_mask_t;
// Scores s_j = scale * (q . k_j). Keys go in blocks of positions, counted from position 0 of the sequence: a running
// maximum and sum in fp32, rescaled once a block; masked keys of a block are left out. out = sum(p v) / sum(p), where
// p = e^(s - maximum). Identical for prefill, decode, packing and sharing. The backward makes p again from lse, and
// ds = p (dout . v - dout . out) scale. The devices differ in blocks and rounding, and so in bits:
//  - CPU: blocks of ATTENTION_BLOCK positions; dots in order of d, sums in order of keys (dk and dv: of queries), with
//    FMA; p, ds and dout stay fp32, whatever q, k and v are stored as.
//  - GPU, q, k and v all bf16: tensor cores, in blocks of 64 positions (32 above head size 128; 32 positions or rows of
//    queries in the backward). Scores and sums are fp32. p is rounded to bf16 once, for its product with v, after the
//    maximum has been taken off; sum(p), and with it lse, is of p before it is rounded. In the backward p, ds and dout
//    are rounded to bf16 once each for the products; dout . out takes dout as it is given.
//  - GPU, else: blocks of 32 positions, FMA in the CPU's orders of d, keys and queries; p, ds and dout stay fp32.
//  - GPU, forward: lists of more than 256 keys go in parts of 256 positions, each with a maximum and a sum of its own,
//    which are put together in order: in prefill as in decode, whether one block of threads has the list or several.
enum { ATTENTION_BLOCK = 16, ATTENTION_MAX_HEAD_DIM = 256 };
typedef struct attention_args {
    matrix_t q;    // [M, heads * head_dim]
    matrix_t k, v; // [*, kv_heads * head_dim]
    int heads, kv_heads, head_dim;
    float scale;
    attention_mask_t mask;
    matrix_t out; // [M, heads * head_dim]
    float *lse;   // [M, heads] log-sum-exp of the scaled scores, for backward; may be NULL
} attention_args_t;
typedef struct attention_gradients {
    matrix_t dout;
    matrix_t dq, dk, dv; // added to; rows of k and v shared by several sequences: in order of sequence, then query
} attention_gradients_t;

// ---- activations ----
typedef enum activation {
    ACTIVATION_SILU,
    ACTIVATION_GELU_ERF,
    ACTIVATION_GELU_TANH,
    ACTIVATION_QUICK_GELU
} activation_t;
typedef struct activation_args {
    activation_t kind;
    matrix_t x;  // [M, K]
    matrix_t up; // data NULL: y = f(x), else the gated form y = f(x) * up
    matrix_t y;
} activation_args_t;
typedef struct activation_gradients {
    matrix_t dy, dx, dup;
} activation_gradients_t;

// ---- add: y = a + b; backward adds dy to both (the tape does it with this op) ----
typedef struct add_args {
    matrix_t a, b, y; // y may be a
} add_args_t;

// ---- token_logprobs: the only training head ----
// logits = hidden[rows[i]] W^T / temperature, made chunk by chunk of rows; they never exist whole.
typedef struct token_logprobs_args {
    matrix_t hidden;        // [M, K]
    matrix_t weight;        // [V, K]
    const void *packed;     // as in linear
    float temperature;      // > 0
    int count;              // rows with a loss; the others cost nothing
    const int32_t *rows;    // [count] rows of hidden, in any order; a row may repeat (one prompt, many completions)
    const int32_t *targets; // [count] token ids, checked against V
    float *logprob;         // [count] log softmax at the target, over the whole vocabulary
    float *entropy;         // [count] in nats, or NULL
    float *lse;             // [count] for backward
} token_logprobs_args_t;
typedef struct token_logprobs_gradients {
    const float *dlogprob; // [count]
    matrix_t dhidden;      // added to; data NULL: not wanted
    const gradient_sink_t *weight;
    leaves_t leaves; // over the `count` entries
} token_logprobs_gradients_t;

// ---- token_sample: the twin of token_logprobs, on the same logits kernel ----
// temperature[i] > 0: the first token in vocabulary order whose cumulated probability, over the ids that are not
// banned, exceeds uniform[i]. temperature[i] == 0: the allowed id with the largest logit (lowest id wins), log-prob
// at 1. logprob is over the full vocabulary: banning changes the draw, never the log-prob.
typedef struct token_sample_args {
    matrix_t hidden; // [M, K]
    matrix_t weight;
    const void *packed;
    const float *temperature; // [M]
    const float *uniform;     // [M] in [0, 1)
    const int32_t *banned;    // [banned_count] ascending ids
    int banned_count;
    int32_t *token; // [M]
    float *logprob; // [M]
    float *entropy; // [M] or NULL
    float *top_gap; // [M] best minus second-best logit (at temperature 1), or NULL
} token_sample_args_t;

// ---- optimizer ----
enum { GRADIENT_BLOCK = 4096 };
// square_sum[b] = sum over block b (4,096 elements) of (sum * 2^-exponent)^2 in double, 16 lanes, fixed fold; absmax =
// the largest |sum| as an integer.
typedef struct gradient_norm_args {
    int64_t count;
    const int64_t *sum;
    int exponent;
    double *square_sum; // [(count + 4095) / 4096]
    int64_t *absmax;    // [1]
} gradient_norm_args_t;
// AdamW (Loshchilov and Hutter 2019, as PyTorch orders it): g = float(sum * 2^-exponent * gradient_scale);
// p *= 1 - lr wd; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g g; p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) +
// eps).
typedef struct adamw_args {
    int64_t count;
    float *master, *first_moment, *second_moment; // [count]
    const int64_t *sum;
    int exponent;
    double gradient_scale; // 1 / normaliser, times the clipping factor
    float learning_rate, beta1, beta2, eps, weight_decay;
    int64_t step;    // t, from 1
    uint32_t *probe; // device memory: nothing is written but GRADIENT_NOT_FINITE, where a result would be NaN or Inf
} adamw_args_t;

typedef struct device device_t;

typedef struct device_table {
    const char *name; // "cpu", "cuda", "sim"
    bool
        host_memory; // the device's memory is the host's: kernels may be given host pointers and the host reads results
    const struct device_streams *streams; // kernels/streams.h; NULL: the device has no queues
    status_t (*open)(device_t *device);
    void (*close)(device_t *device);
    status_t (*allocate)(device_t *device, size_t bytes, void **out); // zeroed
    void (*release)(device_t *device, void *memory);
    status_t (*upload)(device_t *device, void *to, const void *from, size_t bytes);
    status_t (*download)(device_t *device, void *to, const void *from, size_t bytes);
    status_t (*zero)(device_t *device, void *memory, size_t bytes);
    status_t (*synchronize)(device_t *device);
    size_t (*packed_bytes)(device_t *device, matrix_t weight); // 0: this device has no packed form
    status_t (*pack_weight)(device_t *device, matrix_t weight, void *packed);
    status_t (*linear)(device_t *device, const linear_args_t *args);
    status_t (*linear_backward)(device_t *device, const linear_args_t *args, const linear_gradients_t *gradients);
    status_t (*embedding)(device_t *device, const embedding_args_t *args);
    status_t (*embedding_backward)(device_t *device, const embedding_args_t *args,
                                   const embedding_gradients_t *gradients);
    status_t (*gather_rows)(device_t *device, const rows_args_t *args);
    status_t (*gather_rows_backward)(device_t *device, const rows_args_t *args, const rows_gradients_t *gradients);
    status_t (*scatter_rows)(device_t *device, const rows_args_t *args);
    status_t (*scatter_rows_backward)(device_t *device, const rows_args_t *args, const rows_gradients_t *gradients);
    status_t (*pool_rows)(device_t *device, const pool_args_t *args);
    status_t (*pool_rows_backward)(device_t *device, const pool_args_t *args, const pool_gradients_t *gradients);
    status_t (*rmsnorm)(device_t *device, const rmsnorm_args_t *args);
    status_t (*rmsnorm_backward)(device_t *device, const rmsnorm_args_t *args, const rmsnorm_gradients_t *gradients);
    status_t (*layernorm)(device_t *device, const layernorm_args_t *args);
    status_t (*layernorm_backward)(device_t *device, const layernorm_args_t *args,
                                   const layernorm_gradients_t *gradients);
    status_t (*rope_table)(device_t *device, const rope_table_args_t *args);
    status_t (*rope)(device_t *device, const rope_args_t *args);
    status_t (*attention)(device_t *device, const attention_args_t *args);
    status_t (*attention_backward)(device_t *device, const attention_args_t *args,
                                   const attention_gradients_t *gradients);
    status_t (*activation)(device_t *device, const activation_args_t *args);
    status_t (*activation_backward)(device_t *device, const activation_args_t *args,
                                    const activation_gradients_t *gradients);
    status_t (*add)(device_t *device, const add_args_t *args);
    status_t (*token_logprobs)(device_t *device, const token_logprobs_args_t *args);
    status_t (*token_logprobs_backward)(device_t *device, const token_logprobs_args_t *args,
                                        const token_logprobs_gradients_t *gradients);
    status_t (*token_sample)(device_t *device, const token_sample_args_t *args);
    status_t (*gradient_norm)(device_t *device, const gradient_norm_args_t *args);
    status_t (*adamw)(device_t *device, const adamw_args_t *args);
} device_table_t;

struct device {
    const device_table_t *table;
    const char *kernels; // which kernel set runs: "portable", "avx2", "avx512", "sm_90", ...
    const char *note;    // what a run's log should say of the device, once; NULL: nothing
    uint64_t identity;   // of a library that makes some of its results, for the fingerprint; 0: there is none
    threads_t *threads;
    void *state;            // the member's own
    bool measuring;         // dry run: see above
    void *workspace;        // grown by device_workspace, shared by all ops of this device
    size_t workspace_bytes; // its size; the largest need so far while measuring
    struct ledger *ledger;  // what its memory is taken for (kernels/ledger.h)
};

// Opens a device. name: "cpu", "cpu:portable", "cpu:avx2", "cpu:avx512" (the plain name picks the best this CPU has),
// "cuda" or "cuda:N" (GPU number N), "sim", "sim:reverse" or "sim:shuffled:SEED". threads: the size of its pool.
// Errors: STATUS_INVALID for an unknown name (names the known ones), STATUS_UNAVAILABLE for a kernel set or a GPU this
// machine lacks. Sets flush-to-zero and denormals-are-zero OFF in the calling thread and its pool, so every rank rounds
// alike.
status_t device_open(const char *name, int threads, device_t **out) STATUS_CHECKED;
// The same for a table that is at hand; kernels: what follows the colon of a name, or "". Must outlive the device.
status_t device_open_table(const device_table_t *table, const char *kernels, int threads,
                           device_t **out) STATUS_CHECKED;
void device_close(device_t *device);
// At least `bytes` of scratch, 64-byte aligned, valid until the next op. In measuring mode *out is NULL.
status_t device_workspace(device_t *device, size_t bytes, void **out) STATUS_CHECKED;
// A hash of the outputs of every op on fixed probe inputs, and of the library that makes some of them. Two processes
// with equal fingerprints compute equal bits.
status_t device_fingerprint(device_t *device, uint64_t *out) STATUS_CHECKED;

// The members; a program has cuda and sim where it is linked with them (poise_devices in cmake/poise_cuda.cmake).
extern const device_table_t device_cpu_table, device_cuda_table, device_sim_table;
// Whether this program has the device "cpu", "cuda" or "sim"; a GPU need not be there.
bool device_known(const char *name);
// Names of the GPUs that this process sees, by their numbers, a blank behind each (kernels/streams.h); empty for "cpu".
status_t device_list(const char *name, char *out, size_t bytes) STATUS_CHECKED;

#endif
