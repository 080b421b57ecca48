// Tape: the ops a model calls, with or without recording them for backward.
//
// A model's forward is written once, over these ops. The learner runs it with recording on and then calls
// tape_backward; the rollout engine runs the same code with recording off and a KV cache. Same ops, same kernels, same
// order: that is why the sampler's and the trainer's log-probs have equal bits.
//
// Dtypes: an op's output is bf16 where one of the matrices it computes from is, f32 otherwise; a gather keeps its
// rows' dtype. Gradients of activations are f32 whatever the values are: sums over an activation's uses then lose
// nothing to rounding, and backward runs the same kernels for both. They live no longer than a block or two.
//
// Memory: values, saved tensors and activation gradients come from the tape's arenas; tape_reset gives everything back.
// A tape opened with tape_open_measuring runs dry (device->measuring, until it is closed) and only counts: nothing it
// hands out, a head's dlogprob included, may be touched. The same calls on the same shapes need what it counted.
// Parameters' gradients go into their sinks, leaf by leaf; see kernels/device.h. None of this is collective.
#ifndef COMMON_TENSOR_TAPE_H
#define COMMON_TENSOR_TAPE_H

#include "kernels/base/arena.h"
#include "kernels/ledger.h"

// A value of the forward. Owned by the tape, valid until tape_reset.
typedef struct tensor {
    matrix_t value;
    matrix_t gradient;   // data NULL until backward has reached it, or when nothing upstream can be trained
    leaves_t leaves;     // the gradient leaves of its rows; inherited from the first input unless said otherwise
    bool needs_gradient; // some parameter or input before it is trained
} tensor_t;

// One parameter as the ops see it: the published value, the device's packed form, and where its gradient goes.
typedef struct parameter {
    matrix_t value;       // [rows, columns]; norms and biases are [1, n]
    void *packed;         // device_table.pack_weight's form, or NULL
    gradient_sink_t sink; // sum == NULL: frozen
} parameter_t;

// A low-rank adapter beside a linear: y += scale * (x A^T) B^T. Never merged while training or sampling.
typedef struct adapter {
    parameter_t a; // [rank, in]
    parameter_t b; // [out, rank]
    float scale;   // alpha / rank (alpha / sqrt(rank) for rank-stabilised LoRA)
    float alpha;
} adapter_t;

typedef enum recompute {
    RECOMPUTE_NONE,  // keep everything
    RECOMPUTE_CHEAP, // recompute norms and activations in backward
    RECOMPUTE_BLOCK, // keep a block's input, run the block again in backward
} recompute_t;

typedef struct tape tape_t;

// What a tape's memory came to: bytes, at their peaks since tape_open.
typedef struct tape_memory {
    size_t values;    // outputs and what backward needs of them
    size_t gradients; // gradients of activations
    size_t workspace; // the device's scratch
} tape_memory_t;

// `memory` gives the arena sizes (values, gradients). Use tape_open_measuring first to learn them.
status_t tape_open(device_t *device, const tape_memory_t *memory, recompute_t recompute, tape_t **out) STATUS_CHECKED;
// The same, with values that are counted as `part` of the device's memory (tape_open: LEDGER_VALUES).
status_t tape_open_as(device_t *device, const tape_memory_t *memory, recompute_t recompute, ledger_part_t part,
                      tape_t **out) STATUS_CHECKED;
// Notes in the device's ledger what a tape of that much memory will take.
void tape_plan(device_t *device, const tape_memory_t *memory, ledger_part_t part);
status_t tape_open_measuring(device_t *device, recompute_t recompute, tape_t **out) STATUS_CHECKED;
void tape_close(tape_t *tape);
// Forgets all tensors and records, keeps the memory. Recording is as given until the next reset.
void tape_reset(tape_t *tape, bool recording);
tape_memory_t tape_memory(const tape_t *tape);
device_t *tape_device(const tape_t *tape);
bool tape_is_measuring(const tape_t *tape);

// What looks at every value that an op makes, right after it: in forward its output, in backward the gradients of its
// inputs. For finding where a NaN begins; NULL (the default) costs nothing. op: a static name, such as "linear";
// weight: the op's parameter, or NULL. The value is device memory. An error ends the op.
typedef status_t (*tape_watch_t)(void *context, const char *op, const parameter_t *weight, matrix_t value,
                                 bool backward);
void tape_watch(tape_t *tape, tape_watch_t watch, void *context);

// Who wants to know when parameters' gradients are final. In forward `uses` is called for every trained parameter that
// an op reads, with the op's number (numbers rise); in backward `added` is called when the ops from number `op` on have
// added to the sinks all that they will (on a device with streams: those calls were made). With RECOMPUTE_BLOCK a block
// counts as one op. Borrowed; NULL (the default): nobody.
typedef struct tape_listener {
    void (*uses)(void *context, const parameter_t *parameter, size_t op);
    status_t (*added)(void *context, size_t op);
    void *context;
} tape_listener_t;
void tape_listen(tape_t *tape, const tape_listener_t *listener);

// A tensor over values already on the device (patches, cached image features); not copied. `leaves` may be {0}.
status_t tape_input(tape_t *tape, matrix_t value, leaves_t leaves, tensor_t **out) STATUS_CHECKED;
// Host bytes made visible to kernels until tape_reset (index arrays, masks). On the CPU this is the pointer itself.
status_t tape_upload(tape_t *tape, const void *host, size_t bytes, const void **out) STATUS_CHECKED;
// Device memory that the caller fills by itself and that outlives the tape: tape_upload gives what lies in it back as
// it is. At most TAPE_ADOPTED; nothing where host and device are one.
enum { TAPE_ADOPTED = 4 };
// memory NULL: forgets all.
void tape_adopt(tape_t *tape, const void *memory, size_t bytes);
bool tape_holds(const tape_t *tape, const void *memory);
// Host memory of the tape, not zeroed, valid until tape_reset (index arrays, contexts of blocks).
status_t tape_host(tape_t *tape, size_t count, size_t size, void **out) STATUS_CHECKED;
#define TAPE_HOST(tape, pointer, count) tape_host((tape), (size_t)(count), sizeof(**(pointer)), (void **)(pointer))

// y = x W^T + bias (+ adapter). bias and adapter may be NULL. x [M, K], W [N, K] -> y [M, N].
status_t tape_linear(tape_t *tape, tensor_t *x, const parameter_t *weight, const parameter_t *bias,
                     const adapter_t *adapter, tensor_t **out) STATUS_CHECKED;
// Columns first .. first + count - 1 of x, sharing its memory and gradient (for fused qkv).
status_t tape_columns(tape_t *tape, tensor_t *x, int first, int count, tensor_t **out) STATUS_CHECKED;
// The same memory seen with another row length: [rows, columns] -> [rows / factor, columns * factor] (Qwen's 2x2
// merger). `leaves` are those of the new rows.
status_t tape_fold_rows(tape_t *tape, tensor_t *x, int factor, leaves_t leaves, tensor_t **out) STATUS_CHECKED;
// The other way round: [rows, columns] -> [rows * factor, columns / factor], with `factor` times x's leaf boundaries (a
// norm over each head's columns: split by heads, norm, tape_fold_rows by heads with the leaves of x).
status_t tape_split_rows(tape_t *tape, tensor_t *x, int factor, tensor_t **out) STATUS_CHECKED;
// Token ids (host or uploaded; checked against the table) -> rows of the table times scale. A learned position table is
// an embedding by position and a class row an embedding of row 0: add the one to patch rows, scatter patch rows into
// the other.
status_t tape_embedding(tape_t *tape, const int32_t *tokens, int count, const parameter_t *table, float scale,
                        leaves_t leaves, tensor_t **out) STATUS_CHECKED;
// y[i] = x[index[i]], count rows, with the leaves of the new order.
status_t tape_gather_rows(tape_t *tape, tensor_t *x, const int32_t *index, int count, leaves_t leaves,
                          tensor_t **out) STATUS_CHECKED;
// y[i] = the mean of x's rows index[i * each] .. index[i * each + each - 1], `count` rows, with the leaves of the new
// order (average pooling of a grid of rows).
status_t tape_pool_rows(tape_t *tape, tensor_t *x, const int32_t *index, int each, int count, leaves_t leaves,
                        tensor_t **out) STATUS_CHECKED;
// In place: base[index[i]] = rows[i]. The result is `base` itself (image features spliced into embeddings).
status_t tape_scatter_rows(tape_t *tape, tensor_t *base, tensor_t *rows, const int32_t *index) STATUS_CHECKED;
// No gradient goes through rows index[i] of x (device memory, [rows of x] without repeats; -1: none). Values stay.
status_t tape_stop_rows(tape_t *tape, tensor_t *x, const int32_t *index) STATUS_CHECKED;
status_t tape_rmsnorm(tape_t *tape, tensor_t *x, const parameter_t *weight, float eps, norm_flavour_t flavour,
                      tensor_t **out) STATUS_CHECKED;
// weight [K]; bias [K] or NULL.
status_t tape_layernorm(tape_t *tape, tensor_t *x, const parameter_t *weight, const parameter_t *bias, float eps,
                        tensor_t **out) STATUS_CHECKED;
// In place on x; the table (cosine, sine: [rows, half]) is device memory and must live until tape_reset.
status_t tape_rope(tape_t *tape, tensor_t *x, int heads, int half, const float *cosine,
                   const float *sine) STATUS_CHECKED;
// Fills a rope table in the tape's memory, once a forward. See rope_table_args_t.
status_t tape_rope_table(tape_t *tape, const rope_table_args_t *args, const float **cosine,
                         const float **sine) STATUS_CHECKED;
// k and v are tensors of this forward, or (recording off) tensors over a KV cache. The mask's arrays are device memory.
status_t tape_attention(tape_t *tape, tensor_t *q, tensor_t *k, tensor_t *v, int heads, int kv_heads, int head_dim,
                        float scale, const attention_mask_t *mask, tensor_t **out) STATUS_CHECKED;
// up == NULL: y = f(x); else y = f(x) * up.
status_t tape_activation(tape_t *tape, activation_t kind, tensor_t *x, tensor_t *up, tensor_t **out) STATUS_CHECKED;
status_t tape_add(tape_t *tape, tensor_t *a, tensor_t *b, tensor_t **out) STATUS_CHECKED;

// Runs one block of a model under the recompute policy: body(context, x) -> y. With RECOMPUTE_BLOCK only x is kept and
// the body runs again in backward; with recording off the block's temporary memory is given back at once. The context
// is copied (context_bytes; what it points to must live until tape_reset). The body depends on nothing but its context
// and x, does not change x in place, and calls no other block. x belongs to the block from now on: when nothing that
// was recorded reads it, its memory is given back, so callers must not use it after the call. Of the body's tensors
// only the output outlives it.
typedef status_t (*tape_block_t)(tape_t *tape, const void *context, tensor_t *x, tensor_t **out);
status_t tape_block(tape_t *tape, tape_block_t body, const void *context, size_t context_bytes, tensor_t *x,
                    tensor_t **out) STATUS_CHECKED;

// The training head (kernels/device.h, token_logprobs). rows, targets: [count], device memory. The outputs are the
// tape's, [count] each, valid until tape_reset; entropy may be NULL (not wanted). `leaves` are over the count entries.
typedef struct head_output {
    int count;
    float *logprob;  // device memory
    float *entropy;  // device memory, or NULL
    float *dlogprob; // device memory, zeroed: the loss writes dL/dlogprob here before tape_backward
} head_output_t;
status_t tape_token_logprobs(tape_t *tape, tensor_t *hidden, const parameter_t *weight, float temperature, int count,
                             const int32_t *rows, const int32_t *targets, leaves_t leaves, bool entropy,
                             head_output_t **out) STATUS_CHECKED;

// Walks the records backward from the heads' dlogprob. Adds parameter gradients into their sinks; afterwards
// tensor->gradient of inputs that need one is filled.
status_t tape_backward(tape_t *tape) STATUS_CHECKED;

#endif
