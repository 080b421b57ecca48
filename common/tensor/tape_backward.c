// The walk back over the records, and the blocks with their recompute policies.
#include "common/tensor/tape_internal.h"

static const gradient_sink_t *sink_of(const parameter_t *parameter) {
    return parameter && parameter->sink.sum ? &parameter->sink : NULL;
}

// The gradient of an input of an op, or a matrix without data when nobody wants it.
static status_t wanted_gradient(tape_t *tape, node_t *node, matrix_t *out) {
    *out = (matrix_t){0};
    if (!node || !node_root(node)->tensor.needs_gradient) return STATUS_OK;
    return node_gradient(tape, node, out);
}

static status_t back_linear(tape_t *tape, const record_t *record) {
    const adapter_t *adapter = record->adapter;
    linear_args_t args = {.x = node_value(record->x),
                          .weight = record->weight->value,
                          .packed = record->weight->packed,
                          .bias = record->bias ? record->bias->value.data : NULL,
                          .lora_xa = record->u.linear.xa,
                          .y = node_value(record->out)};
    linear_gradients_t gradients = {
        .weight = sink_of(record->weight), .bias = sink_of(record->bias), .leaves = record->leaves};
    if (adapter) {
        args.lora_a = adapter->a.value;
        args.lora_b = adapter->b.value;
        args.lora_scale = adapter->scale;
        gradients.lora_a = sink_of(&adapter->a);
        gradients.lora_b = sink_of(&adapter->b);
    }
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    return tape->device->table->linear_backward(tape->device, &args, &gradients);
}

static status_t back_embedding(tape_t *tape, const record_t *record) {
    embedding_args_t args = {.token = record->u.embedding.tokens,
                             .table = record->weight->value,
                             .scale = record->u.embedding.scale,
                             .y = node_value(record->out)};
    embedding_gradients_t gradients = {.table = sink_of(record->weight)};
    TRY(node_gradient(tape, record->out, &gradients.dy));
    return tape->device->table->embedding_backward(tape->device, &args, &gradients);
}

// A scatter of rows that nobody wants the gradient of.
static status_t back_stop_rows(tape_t *tape, const record_t *record) {
    matrix_t value = node_value(record->out);
    rows_args_t args = {.x = value, .index = record->u.rows.index, .y = value};
    rows_gradients_t gradients = {0};
    TRY(node_gradient(tape, record->out, &gradients.dy));
    return tape->device->table->scatter_rows_backward(tape->device, &args, &gradients);
}

static status_t back_rows(tape_t *tape, const record_t *record) {
    rows_args_t args = {.x = node_value(record->x), .index = record->u.rows.index, .y = node_value(record->out)};
    rows_gradients_t gradients;
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    if (record->kind == RECORD_GATHER)
        return tape->device->table->gather_rows_backward(tape->device, &args, &gradients);
    return tape->device->table->scatter_rows_backward(tape->device, &args, &gradients);
}

static status_t back_pool(tape_t *tape, const record_t *record) {
    pool_args_t args = {.x = node_value(record->x),
                        .index = record->u.rows.index,
                        .count = record->u.rows.each,
                        .y = node_value(record->out)};
    pool_gradients_t gradients;
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    return tape->device->table->pool_rows_backward(tape->device, &args, &gradients);
}

static status_t back_rmsnorm(tape_t *tape, const record_t *record) {
    rmsnorm_args_t args = {.x = node_value(record->x),
                           .weight = record->weight->value.data,
                           .eps = record->u.norm.eps,
                           .flavour = record->u.norm.flavour,
                           .y = node_value(record->out),
                           .rstd = record->u.norm.rstd};
    rmsnorm_gradients_t gradients = {.weight = sink_of(record->weight), .leaves = record->leaves};
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    return tape->device->table->rmsnorm_backward(tape->device, &args, &gradients);
}

static status_t back_layernorm(tape_t *tape, const record_t *record) {
    layernorm_args_t args = {.x = node_value(record->x),
                             .weight = record->weight->value.data,
                             .bias = record->bias ? record->bias->value.data : NULL,
                             .eps = record->u.norm.eps,
                             .y = node_value(record->out),
                             .mean = record->u.norm.mean,
                             .rstd = record->u.norm.rstd};
    layernorm_gradients_t gradients = {
        .weight = sink_of(record->weight), .bias = sink_of(record->bias), .leaves = record->leaves};
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    return tape->device->table->layernorm_backward(tape->device, &args, &gradients);
}

static status_t back_attention(tape_t *tape, const record_t *record) {
    node_t *inputs[3] = {record->x, record->second, record->third};
    attention_args_t args = {.q = node_value(inputs[0]),
                             .k = node_value(inputs[1]),
                             .v = node_value(inputs[2]),
                             .heads = record->u.attention.heads,
                             .kv_heads = record->u.attention.kv_heads,
                             .head_dim = record->u.attention.head_dim,
                             .scale = record->u.attention.scale,
                             .mask = record->u.attention.mask,
                             .out = node_value(record->out),
                             .lse = record->u.attention.lse};
    attention_gradients_t gradients;
    TRY(node_gradient(tape, record->out, &gradients.dout));
    // The kernel makes all three together; what nobody wants is dropped again.
    TRY(node_gradient(tape, inputs[0], &gradients.dq));
    TRY(node_gradient(tape, inputs[1], &gradients.dk));
    TRY(node_gradient(tape, inputs[2], &gradients.dv));
    TRY(tape->device->table->attention_backward(tape->device, &args, &gradients));
    for (int i = 0; i < 3; i++)
        if (!node_root(inputs[i])->tensor.needs_gradient) TRY(node_drop_gradient(tape, inputs[i]));
    return STATUS_OK;
}

static status_t back_activation(tape_t *tape, const record_t *record) {
    activation_args_t args = {
        .kind = record->u.activation.kind, .x = node_value(record->x), .y = node_value(record->out)};
    if (record->second) args.up = node_value(record->second);
    activation_gradients_t gradients;
    TRY(node_gradient(tape, record->out, &gradients.dy));
    TRY(wanted_gradient(tape, record->x, &gradients.dx));
    TRY(wanted_gradient(tape, record->second, &gradients.dup));
    return tape->device->table->activation_backward(tape->device, &args, &gradients);
}

// dy is complete when its producer's record is reached, so the first input that has no gradient yet takes it over.
static bool take_over(node_t *from, node_t *to) {
    const matrix_t *a = &from->tensor.value, *b = &to->tensor.value;
    if (!from || from->parent || to->parent || to->gradient || !from->gradient) return false;
    if (a->rows != b->rows || a->columns != b->columns) return false;
    to->gradient = from->gradient;
    to->gradient_bytes = from->gradient_bytes;
    to->tensor.gradient = matrix_view(to->gradient, DTYPE_F32, b->rows, b->columns);
    from->gradient = NULL;
    from->tensor.gradient.data = NULL;
    return true;
}

static status_t back_add(tape_t *tape, const record_t *record) {
    matrix_t dy;
    TRY(node_gradient(tape, record->out, &dy));
    node_t *inputs[2] = {record->x, record->second};
    for (int i = 0; i < 2; i++) {
        matrix_t dx;
        if (!node_root(inputs[i])->tensor.needs_gradient || take_over(record->out, inputs[i])) continue;
        TRY(node_gradient(tape, inputs[i], &dx));
        TRY(tape->device->table->add(tape->device, &(add_args_t){.a = dx, .b = dy, .y = dx}));
    }
    return STATUS_OK;
}

static status_t back_head(tape_t *tape, const record_t *record) {
    token_logprobs_args_t args = {.hidden = node_value(record->x),
                                  .weight = record->weight->value,
                                  .packed = record->weight->packed,
                                  .temperature = record->u.head.temperature,
                                  .count = record->u.head.output->count,
                                  .rows = record->u.head.rows,
                                  .targets = record->u.head.targets,
                                  .logprob = record->u.head.output->logprob,
                                  .entropy = record->u.head.output->entropy,
                                  .lse = record->u.head.lse};
    token_logprobs_gradients_t gradients = {
        .dlogprob = record->u.head.output->dlogprob, .weight = sink_of(record->weight), .leaves = record->leaves};
    TRY(wanted_gradient(tape, record->x, &gradients.dhidden));
    return tape->device->table->token_logprobs_backward(tape->device, &args, &gradients);
}

// RECOMPUTE_BLOCK: the body again, recorded, and its records at once.
static status_t back_block(tape_t *tape, const record_t *record) {
    size_t first = tape->record_count;
    tensor_t *again;
    tape->in_block = true;
    TRY(record->u.block.body(tape, record->u.block.context, &record->x->tensor, &again));
    if (!take_over(record->out, node_root(node_of(again))))
        FAIL(STATUS_FAILED, "a block's second run gave another shape than its first");
    TRY(tape_walk(tape, first));
    tape->in_block = false;
    return tape_release_taken(tape, NULL, false);
}

// RECOMPUTE_CHEAP, at the end of a block: norms and activations that backward reads are made again, in order.
static status_t remake_cheap(tape_t *tape, size_t begin, size_t end) {
    tape->in_block = true;
    for (size_t i = begin; i < end; i++) {
        const record_t *record = &tape->records[i];
        node_t *root = record->out ? node_root(record->out) : NULL;
        if (!root || !root->cheap || !root->value_needed) continue;
        bool norm = record->kind == RECORD_RMSNORM || record->kind == RECORD_LAYERNORM;
        if (norm || record->kind == RECORD_ACTIVATION) {
            TRY(tape_take(tape, root->bytes, root, &root->memory));
            root->tensor.value.data = root->memory;
        }
        if (norm) TRY(tape_run_norm(tape, record));
        if (record->kind == RECORD_ACTIVATION) TRY(tape_run_activation(tape, record));
        if (record->kind == RECORD_ROPE) TRY(tape_run_rope(tape, record, false, node_value(record->out)));
        if (record->kind == RECORD_SCATTER) TRY(tape_run_scatter(tape, record));
    }
    tape->in_block = false;
    return STATUS_OK;
}

static status_t back_one(tape_t *tape, const record_t *record) {
    switch (record->kind) {
    case RECORD_LINEAR:
        return back_linear(tape, record);
    case RECORD_EMBEDDING:
        return back_embedding(tape, record);
    case RECORD_GATHER:
    case RECORD_SCATTER:
        return back_rows(tape, record);
    case RECORD_POOL:
        return back_pool(tape, record);
    case RECORD_STOP_ROWS:
        return back_stop_rows(tape, record);
    case RECORD_RMSNORM:
        return back_rmsnorm(tape, record);
    case RECORD_LAYERNORM:
        return back_layernorm(tape, record);
    case RECORD_ROPE: {
        matrix_t dx;
        TRY(node_gradient(tape, record->out, &dx));
        return tape_run_rope(tape, record, true, dx);
    }
    case RECORD_ATTENTION:
        return back_attention(tape, record);
    case RECORD_ACTIVATION:
        return back_activation(tape, record);
    case RECORD_ADD:
        return back_add(tape, record);
    case RECORD_HEAD:
        return back_head(tape, record);
    case RECORD_BLOCK:
        return back_block(tape, record);
    case RECORD_BLOCK_BEGIN:
        return tape_release_taken(tape, NULL, false);
    case RECORD_BLOCK_END:
        return remake_cheap(tape, record->u.block.begin, tape->record_count);
    }
    return STATUS_OK;
}

static const char *record_name(record_kind_t kind) {
    static const char *const names[] = {
        [RECORD_LINEAR] = "linear",
        [RECORD_EMBEDDING] = "embedding",
        [RECORD_GATHER] = "gather of rows",
        [RECORD_POOL] = "pooling of rows",
        [RECORD_SCATTER] = "scatter of rows",
        [RECORD_STOP_ROWS] = "stop of rows",
        [RECORD_RMSNORM] = "rmsnorm",
        [RECORD_LAYERNORM] = "layernorm",
        [RECORD_ROPE] = "rope",
        [RECORD_ATTENTION] = "attention",
        [RECORD_ACTIVATION] = "activation",
        [RECORD_ADD] = "add",
        [RECORD_HEAD] = "log-probs of the head",
        [RECORD_BLOCK] = "block",
        [RECORD_BLOCK_BEGIN] = "block",
        [RECORD_BLOCK_END] = "block",
    };
    return names[kind];
}

// The gradients that a record has just made or added to.
static status_t show_gradients(tape_t *tape, const record_t *record) {
    node_t *const inputs[] = {record->x, record->second, record->third,
                              record->kind == RECORD_ROPE ? record->out : NULL};
    for (size_t i = 0; i < sizeof(inputs) / sizeof(*inputs) && tape->watch; i++) {
        matrix_t gradient;
        if (!inputs[i] || !node_has_gradient(inputs[i])) continue;
        TRY(node_gradient(tape, inputs[i], &gradient));
        TRY(tape_show(tape, record_name(record->kind), record->weight, gradient, true));
    }
    return STATUS_OK;
}

static bool creates_output(record_kind_t kind) {
    return kind != RECORD_SCATTER && kind != RECORD_STOP_ROWS && kind != RECORD_ROPE && kind != RECORD_BLOCK_BEGIN &&
           kind != RECORD_BLOCK_END;
}

status_t tape_walk(tape_t *tape, size_t first) {
    while (tape->record_count > first) {
        // A copy: a block's second run appends records here.
        record_t record = tape->records[--tape->record_count];
        size_t op = tape->record_count;
        // Nothing reached this output: it has no say in the loss.
        if (record.out && !node_has_gradient(record.out)) continue;
        TRY(back_one(tape, &record));
        TRY(show_gradients(tape, &record));
        if (record.out && creates_output(record.kind)) TRY(node_drop_gradient(tape, record.out));
        // (Inside of a block's second run other numbers count.)
        if (tape->listener && !tape->in_block) TRY(tape->listener->added(tape->listener->context, op));
    }
    return STATUS_OK;
}

status_t tape_backward(tape_t *tape) {
    if (!tape->recording) FAIL(STATUS_INVALID, "backward needs a forward that was recorded");
    return tape_walk(tape, 0);
}

// What a finished block leaves: its output, and what its records read.
static status_t block_finish(tape_t *tape, node_t *x, node_t *root, size_t first_record) {
    bool recorded = tape->record_count > first_record;
    tape->in_block = false;
    root->cheap = false; // the output outlives the block, so it is kept
    TRY(tape_release_taken(tape, root, recorded));
    if (recorded) return STATUS_OK;
    root->adopted = true;
    bool mine = !x->parent && x->memory && (!tape->recording || x->adopted);
    if (!mine || x->value_needed || x == root || (tape->recording && x->tensor.needs_gradient)) return STATUS_OK;
    TRY(heap_give(&tape->values, x->memory, x->bytes));
    x->memory = NULL;
    return STATUS_OK;
}

// RECOMPUTE_BLOCK's forward: unrecorded; one record stands for the block when something in it is trained.
static status_t block_forward_silent(tape_t *tape, tape_block_t body, const void *context, tensor_t *x,
                                     tensor_t **out) {
    tape->recording = false;
    status_t status = body(tape, context, x, out);
    tape->recording = true;
    if (status) PASS_ON(status);
    node_t *root = node_root(node_of(*out));
    if (root->tensor.needs_gradient) {
        node_root(node_of(x))->value_needed = true;
        record_t record = {.kind = RECORD_BLOCK, .out = root, .x = node_of(x), .u.block = {body, context, 0}};
        tape->in_block = false;
        TRY(tape_release_taken(tape, root, false));
        return tape_push(tape, &record);
    }
    return block_finish(tape, node_of(x), root, tape->record_count);
}

status_t tape_block(tape_t *tape, tape_block_t body, const void *context, size_t context_bytes, tensor_t *x,
                    tensor_t **out) {
    *out = NULL;
    if (tape->in_block) FAIL(STATUS_INVALID, "blocks of a model cannot contain blocks");
    void *copy;
    TRY(tape_host_bytes(tape, context_bytes, &copy));
    for (size_t i = 0; i < context_bytes; i++) ((char *)copy)[i] = ((const char *)context)[i];
    size_t first = tape->record_count;
    bool cheap = tape->recording && tape->recompute == RECOMPUTE_CHEAP;
    tape->in_block = true;
    tape->taken_count = 0;
    if (tape->recording && tape->recompute == RECOMPUTE_BLOCK) return block_forward_silent(tape, body, copy, x, out);
    if (cheap) TRY(tape_push(tape, &(record_t){.kind = RECORD_BLOCK_BEGIN}));
    TRY(body(tape, copy, x, out));
    if (cheap && tape->record_count == first + 1) tape->record_count = first;
    if (cheap && tape->record_count > first)
        TRY(tape_push(tape, &(record_t){.kind = RECORD_BLOCK_END, .u.block.begin = first + 1}));
    return block_finish(tape, node_of(x), node_root(node_of(*out)), first);
}
