// What the parts of the tape share. Nothing outside common/tensor includes this.
#ifndef COMMON_TENSOR_TAPE_INTERNAL_H
#define COMMON_TENSOR_TAPE_INTERNAL_H

#include "common/tensor/tape.h"
#include "common/tensor/tape_heap.h"

typedef enum node_view { VIEW_NONE, VIEW_COLUMNS, VIEW_FOLD, VIEW_SPLIT } node_view_t;

// A tensor as the tape sees it. A node either has memory of its own (a root), or is a view of its parent's.
typedef struct node {
    tensor_t tensor; // first, so that a tensor_t pointer is a node pointer
    struct node *parent;
    node_view_t view;
    int argument; // VIEW_COLUMNS: first column; VIEW_FOLD, VIEW_SPLIT: factor
    void *memory; // from the values heap; NULL for inputs
    size_t bytes;
    void *gradient; // from the gradients heap, or NULL
    size_t gradient_bytes;
    bool value_needed; // some record reads its value in backward
    bool cheap;        // made again in backward (RECOMPUTE_CHEAP)
    bool input;
    bool adopted; // the output of a block that left no records: may be given back by the next block
} node_t;

typedef enum record_kind {
    RECORD_LINEAR,
    RECORD_EMBEDDING,
    RECORD_GATHER,
    RECORD_POOL,
    RECORD_SCATTER,
    RECORD_STOP_ROWS,
    RECORD_RMSNORM,
    RECORD_LAYERNORM,
    RECORD_ROPE,
    RECORD_ATTENTION,
    RECORD_ACTIVATION,
    RECORD_ADD,
    RECORD_HEAD,
    RECORD_BLOCK,       // RECOMPUTE_BLOCK: the whole body runs again
    RECORD_BLOCK_BEGIN, // RECOMPUTE_CHEAP: the block's records lie between these two
    RECORD_BLOCK_END,
} record_kind_t;

// Values are named by node, not by address: they may have moved when backward reads them.
typedef struct record {
    record_kind_t kind;
    node_t *out, *x, *second, *third;
    const parameter_t *weight, *bias;
    const adapter_t *adapter;
    leaves_t leaves;
    union {
        struct {
            matrix_t xa;
        } linear;
        struct {
            const int32_t *tokens;
            float scale;
        } embedding;
        struct {
            const int32_t *index;
            int each; // pooling
        } rows;
        struct {
            float eps;
            norm_flavour_t flavour;
            float *mean, *rstd; // mean: of a layernorm
        } norm;
        struct {
            int heads, half;
            const float *cosine, *sine;
        } rope;
        struct {
            int heads, kv_heads, head_dim;
            float scale;
            attention_mask_t mask;
            float *lse;
        } attention;
        struct {
            activation_t kind;
        } activation;
        struct {
            float temperature;
            const int32_t *rows, *targets;
            float *lse;
            head_output_t *output;
        } head;
        struct {
            tape_block_t body;
            const void *context;
            size_t begin; // RECORD_BLOCK_END: index of its begin
        } block;
    } u;
} record_t;

typedef struct host_chunk {
    struct host_chunk *next;
    size_t capacity, used;
    max_align_t data[];
} host_chunk_t;

// Memory of the values heap taken since the running block began.
typedef struct taken {
    void *memory;
    size_t bytes;
    node_t *owner; // NULL: saved for a record
} taken_t;

struct tape {
    device_t *device;
    recompute_t recompute;
    bool measuring, recording, in_block;
    bool device_was_measuring;
    bool host_memory; // kernels can read host pointers
    heap_t values, gradients;
    host_chunk_t *chunks, *chunk; // all, and the one in use
    record_t *records;
    size_t record_count, record_capacity;
    taken_t *taken; // of the running block; in CHEAP backward: what was made again
    size_t taken_count, taken_capacity;
    struct {
        const char *memory;
        size_t bytes;
    } adopted[TAPE_ADOPTED];
    int adopted_count;
    tape_watch_t watch;
    void *watch_context;
    const tape_listener_t *listener;
};

// Shows a value to the watch, if there is one.
static inline status_t tape_show(const tape_t *tape, const char *op, const parameter_t *weight, matrix_t value,
                                 bool backward) {
    if (!tape->watch || tape->measuring || !value.data) return STATUS_OK;
    return tape->watch(tape->watch_context, op, weight, value, backward);
}

static inline node_t *node_of(tensor_t *tensor) {
    return (node_t *)tensor;
}
node_t *node_root(node_t *node);
// The node's values where they lie now.
matrix_t node_value(const node_t *node);
// Its gradient, made and zeroed when there is none yet.
status_t node_gradient(tape_t *tape, node_t *node, matrix_t *out) STATUS_CHECKED;
bool node_has_gradient(node_t *node);
status_t node_drop_gradient(tape_t *tape, node_t *node) STATUS_CHECKED;

// Memory is counted in units of so many rows, each a multiple of the heap's alignment whatever the dtype: the layout of
// a small forward is then that of a large one to scale, and what fits the largest fits all.
enum { TAPE_ROW_UNIT = 32 };
static inline size_t tape_rows_bytes(int rows, size_t row_bytes) {
    return ((size_t)rows + TAPE_ROW_UNIT - 1) / TAPE_ROW_UNIT * TAPE_ROW_UNIT * row_bytes;
}

status_t tape_host_bytes(tape_t *tape, size_t bytes, void **out) STATUS_CHECKED;
// Values memory. owner: the node it belongs to, or NULL for what a record saves.
status_t tape_take(tape_t *tape, size_t bytes, node_t *owner, void **out) STATUS_CHECKED;
status_t tape_new_node(tape_t *tape, int rows, int columns, dtype_t dtype, leaves_t leaves, bool needs_gradient,
                       node_t **out) STATUS_CHECKED;
// Leaves that cover `rows` rows: as given, or one leaf when none were; checked.
status_t tape_complete_leaves(tape_t *tape, leaves_t leaves, int rows, leaves_t *out) STATUS_CHECKED;
status_t tape_push(tape_t *tape, const record_t *record) STATUS_CHECKED;
// Runs one op forward again into the memory its output has now (RECOMPUTE_CHEAP).
status_t tape_run_norm(tape_t *tape, const record_t *record) STATUS_CHECKED;
status_t tape_run_activation(tape_t *tape, const record_t *record) STATUS_CHECKED;
status_t tape_run_rope(tape_t *tape, const record_t *record, bool inverse, matrix_t x) STATUS_CHECKED;
status_t tape_run_scatter(tape_t *tape, const record_t *record) STATUS_CHECKED;
// Backward of the records from `first` on, last to first; they are dropped.
status_t tape_walk(tape_t *tape, size_t first) STATUS_CHECKED;
// Gives back what the running block took, but for `keep` (may be NULL) and, when `recorded`, what records read.
status_t tape_release_taken(tape_t *tape, const node_t *keep, bool recorded) STATUS_CHECKED;

#endif
