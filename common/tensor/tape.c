// The tape's memory and records; tape_ops.c has the ops, tape_backward.c the walk back.
#include "common/tensor/tape_internal.h"
#include "kernels/streams.h"

#include <stdlib.h>
#include <string.h>

enum { HOST_CHUNK_BYTES = 1 << 18 };

static status_t tape_create(device_t *device, recompute_t recompute, bool measuring, tape_t **out) {
    tape_t *tape;
    *out = NULL;
    TRY(ALLOCATE(&tape, 1));
    tape->device = device;
    tape->recompute = recompute;
    tape->measuring = measuring;
    tape->host_memory = device->table->host_memory;
    tape->device_was_measuring = device->measuring;
    *out = tape;
    return STATUS_OK;
}

void tape_plan(device_t *device, const tape_memory_t *memory, ledger_part_t part) {
    ledger_plan(device, part, heap_bytes(memory->values));
    if (memory->gradients) ledger_plan(device, LEDGER_GRADIENTS, heap_bytes(memory->gradients));
    ledger_plan(device, LEDGER_WORKSPACE, device->workspace_bytes);
}

status_t tape_open(device_t *device, const tape_memory_t *memory, recompute_t recompute, tape_t **out) {
    return tape_open_as(device, memory, recompute, LEDGER_VALUES, out);
}

status_t tape_open_as(device_t *device, const tape_memory_t *memory, recompute_t recompute, ledger_part_t part,
                      tape_t **out) {
    tape_t *tape;
    *out = NULL;
    TRY(tape_create(device, recompute, false, &tape));
    void *workspace;
    status_t status = heap_open(&tape->values, device, part, "values", memory->values);
    if (!status) status = heap_open(&tape->gradients, device, LEDGER_GRADIENTS, "gradients", memory->gradients);
    if (!status && memory->workspace) status = device_workspace(device, memory->workspace, &workspace);
    if (status) {
        tape_close(tape);
        PASS_ON(status);
    }
    *out = tape;
    return STATUS_OK;
}

status_t tape_open_measuring(device_t *device, recompute_t recompute, tape_t **out) {
    tape_t *tape;
    *out = NULL;
    TRY(tape_create(device, recompute, true, &tape));
    status_t status = heap_open_measuring(&tape->values, "values");
    if (!status) status = heap_open_measuring(&tape->gradients, "gradients");
    if (status) {
        tape_close(tape);
        PASS_ON(status);
    }
    device->measuring = true;
    *out = tape;
    return STATUS_OK;
}

void tape_close(tape_t *tape) {
    if (!tape) return;
    if (tape->measuring) tape->device->measuring = tape->device_was_measuring;
    heap_close(&tape->values);
    heap_close(&tape->gradients);
    for (host_chunk_t *chunk = tape->chunks; chunk;) {
        host_chunk_t *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    free(tape->records);
    free(tape->taken);
    free(tape);
}

void tape_reset(tape_t *tape, bool recording) {
    heap_reset(&tape->values);
    heap_reset(&tape->gradients);
    for (host_chunk_t *chunk = tape->chunks; chunk; chunk = chunk->next) chunk->used = 0;
    tape->chunk = tape->chunks;
    tape->record_count = 0;
    tape->taken_count = 0;
    tape->in_block = false;
    tape->recording = recording;
}

tape_memory_t tape_memory(const tape_t *tape) {
    return (tape_memory_t){tape->values.arena.peak, tape->gradients.arena.peak, tape->device->workspace_bytes};
}

device_t *tape_device(const tape_t *tape) {
    return tape->device;
}

void tape_watch(tape_t *tape, tape_watch_t watch, void *context) {
    tape->watch = watch;
    tape->watch_context = context;
}

void tape_listen(tape_t *tape, const tape_listener_t *listener) {
    tape->listener = listener;
}

bool tape_is_measuring(const tape_t *tape) {
    return tape->measuring;
}

status_t tape_host_bytes(tape_t *tape, size_t bytes, void **out) {
    size_t unit = sizeof(max_align_t), rounded = (bytes + unit - 1) / unit * unit;
    *out = NULL;
    if (rounded < bytes) FAIL(STATUS_MEMORY, "cannot allocate %zu bytes: the size overflows", bytes);
    // Chunks are kept over resets, so that a step that repeats allocates nothing.
    while (tape->chunk && tape->chunk->capacity - tape->chunk->used < rounded) {
        if (!tape->chunk->next) break;
        tape->chunk = tape->chunk->next;
    }
    if (!tape->chunk || tape->chunk->capacity - tape->chunk->used < rounded) {
        size_t capacity = rounded > HOST_CHUNK_BYTES ? rounded : HOST_CHUNK_BYTES;
        host_chunk_t *chunk;
        TRY(memory_allocate(1, sizeof(*chunk) + capacity, (void **)&chunk));
        chunk->capacity = capacity;
        if (tape->chunk)
            tape->chunk->next = chunk;
        else
            tape->chunks = chunk;
        tape->chunk = chunk;
    }
    *out = (char *)tape->chunk->data + tape->chunk->used;
    tape->chunk->used += rounded;
    return STATUS_OK;
}

status_t tape_host(tape_t *tape, size_t count, size_t size, void **out) {
    *out = NULL;
    if (size && count > PTRDIFF_MAX / size) FAIL(STATUS_MEMORY, "cannot allocate %zu items of %zu bytes", count, size);
    return tape_host_bytes(tape, count * size, out);
}

void tape_adopt(tape_t *tape, const void *memory, size_t bytes) {
    if (!memory) tape->adopted_count = 0;
    if (!memory || tape->adopted_count == TAPE_ADOPTED) return;
    tape->adopted[tape->adopted_count].memory = memory;
    tape->adopted[tape->adopted_count++].bytes = bytes;
}

bool tape_holds(const tape_t *tape, const void *memory) {
    for (int i = 0; i < tape->adopted_count; i++)
        if ((uintptr_t)memory - (uintptr_t)tape->adopted[i].memory < tape->adopted[i].bytes) return true;
    return false;
}

// What is taken in a block goes back with it.
static status_t take_note(tape_t *tape, void *memory, size_t bytes, node_t *owner) {
    if (!tape->in_block) return STATUS_OK;
    TRY(memory_grow((void **)&tape->taken, &tape->taken_capacity, tape->taken_count + 1, sizeof(taken_t)));
    tape->taken[tape->taken_count++] = (taken_t){memory, bytes, owner};
    return STATUS_OK;
}

status_t tape_upload(tape_t *tape, const void *host, size_t bytes, const void **out) {
    *out = host;
    if (tape->host_memory || !host || !bytes || tape_holds(tape, host)) return STATUS_OK;
    void *memory;
    bool fresh;
    TRY(heap_take_fresh(&tape->values, bytes, &memory, &fresh));
    TRY(take_note(tape, memory, bytes, NULL));
    *out = memory;
    device_t *device = tape->device;
    if (tape->measuring) return STATUS_OK;
    // The next image's patches travel while this one's are computed on.
    if (fresh && device->table->streams) return device->table->streams->upload(device, memory, host, bytes);
    return device->table->upload(device, memory, host, bytes);
}

status_t tape_take(tape_t *tape, size_t bytes, node_t *owner, void **out) {
    TRY(heap_take(&tape->values, bytes, out));
    return take_note(tape, *out, bytes, owner);
}

status_t tape_release_taken(tape_t *tape, const node_t *keep, bool recorded) {
    for (size_t i = tape->taken_count; i-- > 0;) {
        const taken_t *taken = &tape->taken[i];
        const node_t *owner = taken->owner;
        if (keep && owner == keep) continue;
        if (recorded && (!owner || (owner->value_needed && !owner->cheap))) continue;
        TRY(heap_give(&tape->values, taken->memory, taken->bytes));
    }
    tape->taken_count = 0;
    return STATUS_OK;
}

static status_t matrix_bytes(int rows, int columns, dtype_t dtype, size_t *out) {
    if (rows < 0 || columns < 0) FAIL(STATUS_INVALID, "a tensor cannot be [%d, %d]", rows, columns);
    *out = tape_rows_bytes(rows, (size_t)columns * dtype_bytes(dtype));
    return STATUS_OK;
}

status_t tape_new_node(tape_t *tape, int rows, int columns, dtype_t dtype, leaves_t leaves, bool needs_gradient,
                       node_t **out) {
    node_t *node;
    size_t bytes = 0;
    *out = NULL;
    TRY(matrix_bytes(rows, columns, dtype, &bytes));
    TRY(TAPE_HOST(tape, &node, 1));
    *node = (node_t){.bytes = bytes};
    TRY(tape_take(tape, bytes, node, &node->memory));
    node->tensor.value = matrix_view(node->memory, dtype, rows, columns);
    node->tensor.leaves = leaves;
    node->tensor.needs_gradient = needs_gradient;
    *out = node;
    return STATUS_OK;
}

status_t tape_complete_leaves(tape_t *tape, leaves_t leaves, int rows, leaves_t *out) {
    *out = leaves;
    if (!leaves.count) {
        int32_t *start;
        TRY(TAPE_HOST(tape, &start, 2));
        start[0] = 0;
        start[1] = rows;
        *out = (leaves_t){1, start};
        return STATUS_OK;
    }
    bool whole = leaves.start[0] == 0 && leaves.start[leaves.count] == rows;
    for (int i = 0; whole && i < leaves.count; i++) whole = leaves.start[i] <= leaves.start[i + 1];
    if (!whole) FAIL(STATUS_INVALID, "the %d gradient leaves do not cover rows 0 to %d in order", leaves.count, rows);
    return STATUS_OK;
}

status_t tape_push(tape_t *tape, const record_t *record) {
    TRY(memory_grow((void **)&tape->records, &tape->record_capacity, tape->record_count + 1, sizeof(record_t)));
    tape->records[tape->record_count++] = *record;
    return STATUS_OK;
}

node_t *node_root(node_t *node) {
    while (node->parent) node = node->parent;
    return node;
}

static matrix_t view_of(const node_t *node, matrix_t parent) {
    if (node->view == VIEW_COLUMNS) return matrix_columns(parent, node->argument, node->tensor.value.columns);
    bool split = node->view == VIEW_SPLIT;
    matrix_t view = parent;
    view.rows = split ? parent.rows * node->argument : parent.rows / node->argument;
    view.columns = split ? parent.columns / node->argument : parent.columns * node->argument;
    view.stride = view.columns;
    return view;
}

matrix_t node_value(const node_t *node) {
    return node->parent ? view_of(node, node_value(node->parent)) : node->tensor.value;
}

status_t node_gradient(tape_t *tape, node_t *node, matrix_t *out) {
    if (node->parent) {
        matrix_t parent;
        TRY(node_gradient(tape, node->parent, &parent));
        *out = node->tensor.gradient = view_of(node, parent);
        return STATUS_OK;
    }
    const matrix_t *value = &node->tensor.value;
    if (!node->gradient) {
        TRY(matrix_bytes(value->rows, value->columns, DTYPE_F32, &node->gradient_bytes));
        TRY(heap_take(&tape->gradients, node->gradient_bytes, &node->gradient));
        if (!tape->measuring && node->gradient_bytes)
            TRY(tape->device->table->zero(tape->device, node->gradient, node->gradient_bytes));
    }
    *out = node->tensor.gradient = matrix_view(node->gradient, DTYPE_F32, value->rows, value->columns);
    return STATUS_OK;
}

bool node_has_gradient(node_t *node) {
    return node_root(node)->gradient != NULL;
}

status_t node_drop_gradient(tape_t *tape, node_t *node) {
    node = node_root(node);
    if (!node->gradient || node->input) return STATUS_OK;
    TRY(heap_give(&tape->gradients, node->gradient, node->gradient_bytes));
    node->gradient = NULL;
    node->tensor.gradient.data = NULL;
    return STATUS_OK;
}

status_t tape_input(tape_t *tape, matrix_t value, leaves_t leaves, tensor_t **out) {
    node_t *node;
    *out = NULL;
    if (leaves.count || tape->recording) TRY(tape_complete_leaves(tape, leaves, value.rows, &leaves));
    TRY(TAPE_HOST(tape, &node, 1));
    *node = (node_t){.input = true};
    node->tensor.value = value;
    node->tensor.leaves = leaves;
    *out = &node->tensor;
    return STATUS_OK;
}

static status_t tape_view(tape_t *tape, tensor_t *x, node_view_t view, int argument, matrix_t value, leaves_t leaves,
                          tensor_t **out) {
    node_t *node;
    TRY(TAPE_HOST(tape, &node, 1));
    *node = (node_t){.parent = node_of(x), .view = view, .argument = argument};
    node->tensor.value = value;
    node->tensor.leaves = leaves;
    node->tensor.needs_gradient = node_root(node)->tensor.needs_gradient;
    *out = &node->tensor;
    return STATUS_OK;
}

status_t tape_columns(tape_t *tape, tensor_t *x, int first, int count, tensor_t **out) {
    *out = NULL;
    if (first < 0 || count < 0 || first > x->value.columns - count)
        FAIL(STATUS_INVALID, "columns %d to %d of a tensor of %d columns", first, first + count, x->value.columns);
    return tape_view(tape, x, VIEW_COLUMNS, first, matrix_columns(x->value, first, count), x->leaves, out);
}

status_t tape_fold_rows(tape_t *tape, tensor_t *x, int factor, leaves_t leaves, tensor_t **out) {
    *out = NULL;
    matrix_t value = x->value;
    if (factor < 1 || value.rows % factor || value.stride != value.columns)
        FAIL(STATUS_INVALID, "[%d, %d] (stride %lld) cannot be folded by %d", value.rows, value.columns,
             (long long)value.stride, factor);
    value.rows /= factor;
    value.columns *= factor;
    value.stride = value.columns;
    if (leaves.count || tape->recording) TRY(tape_complete_leaves(tape, leaves, value.rows, &leaves));
    return tape_view(tape, x, VIEW_FOLD, factor, value, leaves, out);
}

status_t tape_split_rows(tape_t *tape, tensor_t *x, int factor, tensor_t **out) {
    *out = NULL;
    matrix_t value = x->value;
    leaves_t leaves = x->leaves;
    if (factor < 1 || value.columns % factor || value.stride != value.columns || value.rows > INT32_MAX / factor)
        FAIL(STATUS_INVALID, "[%d, %d] (stride %lld) cannot be split by %d", value.rows, value.columns,
             (long long)value.stride, factor);
    value.rows *= factor;
    value.columns /= factor;
    value.stride = value.columns;
    if (leaves.count) {
        int32_t *start;
        TRY(TAPE_HOST(tape, &start, leaves.count + 1));
        for (int i = 0; i <= leaves.count; i++) start[i] = leaves.start[i] * factor;
        leaves.start = start;
    }
    return tape_view(tape, x, VIEW_SPLIT, factor, value, leaves, out);
}
