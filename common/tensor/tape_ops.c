// The ops: each runs its kernel and, when something before it is trained, leaves a record.
#include "common/tensor/tape_internal.h"

#include <string.h>

static bool needs(const tensor_t *tensor) {
    return tensor && node_root((node_t *)(uintptr_t)tensor)->tensor.needs_gradient;
}

static bool trained(const parameter_t *parameter) {
    return parameter && parameter->sink.sum;
}

// The op that is about to be recorded reads the parameter. A block that is recorded as one op has this number too.
static void listen(const tape_t *tape, const parameter_t *parameter) {
    if (tape->listener && trained(parameter))
        tape->listener->uses(tape->listener->context, parameter, tape->record_count);
}

static void need_value(tensor_t *tensor) {
    if (tensor) node_root(node_of(tensor))->value_needed = true;
}

// The dtype of what is computed from these.
static dtype_t dtype_of(const matrix_t *a, const matrix_t *b) {
    return b && b->dtype == DTYPE_BF16 ? DTYPE_BF16 : a->dtype;
}

// Memory that only backward reads: given back at once when there will be none.
static status_t take_saved(tape_t *tape, size_t bytes, bool recorded, void **out) {
    if (recorded) return tape_take(tape, bytes, NULL, out);
    return heap_take(&tape->values, bytes, out);
}

static status_t give_saved(tape_t *tape, size_t bytes, bool recorded, void *memory) {
    return recorded ? STATUS_OK : heap_give(&tape->values, memory, bytes);
}

static bool makes_cheap(const tape_t *tape) {
    return tape->recording && tape->in_block && tape->recompute == RECOMPUTE_CHEAP;
}

status_t tape_linear(tape_t *tape, tensor_t *x, const parameter_t *weight, const parameter_t *bias,
                     const adapter_t *adapter, tensor_t **out) {
    *out = NULL;
    if (x->value.columns != weight->value.columns)
        FAIL(STATUS_INVALID, "a linear of [%d, %d] got rows of %d columns", weight->value.rows, weight->value.columns,
             x->value.columns);
    bool adapts = adapter && (trained(&adapter->a) || trained(&adapter->b));
    listen(tape, weight);
    listen(tape, bias);
    listen(tape, adapter ? &adapter->a : NULL);
    listen(tape, adapter ? &adapter->b : NULL);
    bool need = needs(x) || trained(weight) || trained(bias) || adapts, recorded = need && tape->recording;
    node_t *node;
    dtype_t dtype = dtype_of(&x->value, &weight->value);
    TRY(tape_new_node(tape, x->value.rows, weight->value.rows, dtype, x->leaves, need, &node));
    linear_args_t args = {.x = node_value(node_of(x)),
                          .weight = weight->value,
                          .packed = weight->packed,
                          .bias = bias ? bias->value.data : NULL,
                          .y = node->tensor.value};
    size_t saved = 0;
    if (adapter) {
        args.lora_a = adapter->a.value;
        args.lora_b = adapter->b.value;
        args.lora_scale = adapter->scale;
        int rank = adapter->a.value.rows;
        void *xa;
        saved = tape_rows_bytes(x->value.rows, (size_t)rank * dtype_bytes(dtype));
        TRY(take_saved(tape, saved, recorded, &xa));
        args.lora_xa = matrix_view(xa, dtype, x->value.rows, rank);
    }
    TRY(tape->device->table->linear(tape->device, &args));
    TRY(tape_show(tape, "linear", weight, args.y, false));
    if (adapter) TRY(give_saved(tape, saved, recorded, args.lora_xa.data));
    *out = &node->tensor;
    if (!recorded) return STATUS_OK;
    if (trained(weight) || (adapter && trained(&adapter->a))) need_value(x);
    record_t record = {.kind = RECORD_LINEAR,
                       .out = node,
                       .x = node_of(x),
                       .weight = weight,
                       .bias = bias,
                       .adapter = adapter,
                       .leaves = x->leaves,
                       .u.linear.xa = args.lora_xa};
    return tape_push(tape, &record);
}

status_t tape_embedding(tape_t *tape, const int32_t *tokens, int count, const parameter_t *table, float scale,
                        leaves_t leaves, tensor_t **out) {
    *out = NULL;
    if (leaves.count || tape->recording) TRY(tape_complete_leaves(tape, leaves, count, &leaves));
    node_t *node;
    listen(tape, table);
    TRY(tape_new_node(tape, count, table->value.columns, table->value.dtype, leaves, trained(table), &node));
    const void *uploaded;
    TRY(tape_upload(tape, tokens, (size_t)count * sizeof(*tokens), &uploaded));
    embedding_args_t args = {.token = uploaded, .table = table->value, .scale = scale, .y = node->tensor.value};
    TRY(tape->device->table->embedding(tape->device, &args));
    TRY(tape_show(tape, "embedding", table, args.y, false));
    *out = &node->tensor;
    if (!tape->recording || !trained(table)) return STATUS_OK;
    record_t record = {
        .kind = RECORD_EMBEDDING, .out = node, .weight = table, .leaves = leaves, .u.embedding = {uploaded, scale}};
    return tape_push(tape, &record);
}

status_t tape_gather_rows(tape_t *tape, tensor_t *x, const int32_t *index, int count, leaves_t leaves, tensor_t **out) {
    *out = NULL;
    if (leaves.count || tape->recording) TRY(tape_complete_leaves(tape, leaves, count, &leaves));
    node_t *node;
    TRY(tape_new_node(tape, count, x->value.columns, x->value.dtype, leaves, needs(x), &node));
    rows_args_t args = {.x = node_value(node_of(x)), .index = index, .y = node->tensor.value};
    TRY(tape->device->table->gather_rows(tape->device, &args));
    TRY(tape_show(tape, "gather of rows", NULL, args.y, false));
    *out = &node->tensor;
    if (!tape->recording || !needs(x)) return STATUS_OK;
    record_t record = {.kind = RECORD_GATHER, .out = node, .x = node_of(x), .u.rows.index = index};
    return tape_push(tape, &record);
}

status_t tape_pool_rows(tape_t *tape, tensor_t *x, const int32_t *index, int each, int count, leaves_t leaves,
                        tensor_t **out) {
    *out = NULL;
    if (leaves.count || tape->recording) TRY(tape_complete_leaves(tape, leaves, count, &leaves));
    node_t *node;
    TRY(tape_new_node(tape, count, x->value.columns, x->value.dtype, leaves, needs(x), &node));
    pool_args_t args = {.x = node_value(node_of(x)), .index = index, .count = each, .y = node->tensor.value};
    TRY(tape->device->table->pool_rows(tape->device, &args));
    TRY(tape_show(tape, "pooling of rows", NULL, args.y, false));
    *out = &node->tensor;
    if (!tape->recording || !needs(x)) return STATUS_OK;
    record_t record = {.kind = RECORD_POOL, .out = node, .x = node_of(x), .u.rows = {index, each}};
    return tape_push(tape, &record);
}

status_t tape_run_scatter(tape_t *tape, const record_t *record) {
    rows_args_t args = {.x = node_value(record->x), .index = record->u.rows.index, .y = node_value(record->out)};
    return tape->device->table->scatter_rows(tape->device, &args);
}

status_t tape_scatter_rows(tape_t *tape, tensor_t *base, tensor_t *rows, const int32_t *index) {
    if (base->value.columns != rows->value.columns)
        FAIL(STATUS_INVALID, "rows of %d columns cannot be put into a tensor of %d", rows->value.columns,
             base->value.columns);
    record_t record = {.kind = RECORD_SCATTER, .out = node_of(base), .x = node_of(rows), .u.rows.index = index};
    TRY(tape_run_scatter(tape, &record));
    node_t *root = node_root(node_of(base));
    bool need = needs(base) || needs(rows);
    root->tensor.needs_gradient = base->needs_gradient = need;
    if (!tape->recording || !need) return STATUS_OK;
    if (root->cheap) need_value(rows);
    return tape_push(tape, &record);
}

static status_t run_layernorm(tape_t *tape, const record_t *record) {
    layernorm_args_t args = {.x = node_value(record->x),
                             .weight = record->weight->value.data,
                             .bias = record->bias ? record->bias->value.data : NULL,
                             .eps = record->u.norm.eps,
                             .y = node_value(record->out),
                             .mean = record->u.norm.mean,
                             .rstd = record->u.norm.rstd};
    return tape->device->table->layernorm(tape->device, &args);
}

status_t tape_stop_rows(tape_t *tape, tensor_t *x, const int32_t *index) {
    if (!tape->recording || !needs(x)) return STATUS_OK;
    record_t record = {.kind = RECORD_STOP_ROWS, .out = node_of(x), .u.rows.index = index};
    return tape_push(tape, &record);
}

status_t tape_run_norm(tape_t *tape, const record_t *record) {
    if (record->kind == RECORD_LAYERNORM) return run_layernorm(tape, record);
    rmsnorm_args_t args = {.x = node_value(record->x),
                           .weight = record->weight->value.data,
                           .eps = record->u.norm.eps,
                           .flavour = record->u.norm.flavour,
                           .y = node_value(record->out),
                           .rstd = record->u.norm.rstd};
    return tape->device->table->rmsnorm(tape->device, &args);
}

// Either norm: `record` has its kind, weight, bias and settings.
static status_t push_norm(tape_t *tape, tensor_t *x, const char *name, record_t record, tensor_t **out) {
    const parameter_t *weight = record.weight, *bias = record.bias;
    int columns = x->value.columns;
    *out = NULL;
    if ((int64_t)weight->value.rows * weight->value.columns != columns)
        FAIL(STATUS_INVALID, "a norm of %d weights got rows of %d columns", weight->value.columns, columns);
    if (bias && (int64_t)bias->value.rows * bias->value.columns != columns)
        FAIL(STATUS_INVALID, "a norm with a bias of %d got rows of %d columns", bias->value.columns, columns);
    bool need = needs(x) || trained(weight) || trained(bias), recorded = need && tape->recording;
    node_t *node;
    listen(tape, weight);
    listen(tape, bias);
    TRY(tape_new_node(tape, x->value.rows, columns, x->value.dtype, x->leaves, need, &node));
    record.out = node;
    record.x = node_of(x);
    record.leaves = x->leaves;
    size_t rows = (size_t)x->value.rows, each = (record.kind == RECORD_LAYERNORM ? 2 : 1) * sizeof(float);
    size_t saved = tape_rows_bytes(x->value.rows, each);
    TRY(take_saved(tape, saved, recorded, (void **)&record.u.norm.rstd));
    record.u.norm.mean = record.u.norm.rstd + rows;
    TRY(tape_run_norm(tape, &record));
    TRY(tape_show(tape, name, weight, node->tensor.value, false));
    TRY(give_saved(tape, saved, recorded, record.u.norm.rstd));
    *out = &node->tensor;
    if (!recorded) return STATUS_OK;
    need_value(x);
    node->cheap = makes_cheap(tape);
    return tape_push(tape, &record);
}

status_t tape_rmsnorm(tape_t *tape, tensor_t *x, const parameter_t *weight, float eps, norm_flavour_t flavour,
                      tensor_t **out) {
    record_t record = {.kind = RECORD_RMSNORM, .weight = weight, .u.norm = {.eps = eps, .flavour = flavour}};
    return push_norm(tape, x, "rmsnorm", record, out);
}

status_t tape_layernorm(tape_t *tape, tensor_t *x, const parameter_t *weight, const parameter_t *bias, float eps,
                        tensor_t **out) {
    record_t record = {.kind = RECORD_LAYERNORM, .weight = weight, .bias = bias, .u.norm.eps = eps};
    return push_norm(tape, x, "layernorm", record, out);
}

status_t tape_run_rope(tape_t *tape, const record_t *record, bool inverse, matrix_t x) {
    rope_args_t args = {.x = x,
                        .heads = record->u.rope.heads,
                        .half = record->u.rope.half,
                        .cosine = record->u.rope.cosine,
                        .sine = record->u.rope.sine,
                        .inverse = inverse};
    return tape->device->table->rope(tape->device, &args);
}

status_t tape_rope(tape_t *tape, tensor_t *x, int heads, int half, const float *cosine, const float *sine) {
    if (x->value.columns != heads * 2 * half)
        FAIL(STATUS_INVALID, "rope of %d heads of %d got rows of %d columns", heads, 2 * half, x->value.columns);
    record_t record = {.kind = RECORD_ROPE, .out = node_of(x), .u.rope = {heads, half, cosine, sine}};
    TRY(tape_run_rope(tape, &record, false, node_value(node_of(x))));
    TRY(tape_show(tape, "rope", NULL, node_value(node_of(x)), false));
    return tape->recording && needs(x) ? tape_push(tape, &record) : STATUS_OK;
}

status_t tape_rope_table(tape_t *tape, const rope_table_args_t *args, const float **cosine, const float **sine) {
    rope_table_args_t call = *args;
    size_t bytes = tape_rows_bytes(args->rows, (size_t)args->half * sizeof(float));
    TRY(tape_take(tape, bytes, NULL, (void **)&call.cosine));
    TRY(tape_take(tape, bytes, NULL, (void **)&call.sine));
    *cosine = call.cosine;
    *sine = call.sine;
    return tape->device->table->rope_table(tape->device, &call);
}

status_t tape_attention(tape_t *tape, tensor_t *q, tensor_t *k, tensor_t *v, int heads, int kv_heads, int head_dim,
                        float scale, const attention_mask_t *mask, tensor_t **out) {
    *out = NULL;
    bool need = needs(q) || needs(k) || needs(v), recorded = need && tape->recording;
    node_t *node;
    TRY(tape_new_node(tape, q->value.rows, q->value.columns, q->value.dtype, q->leaves, need, &node));
    attention_args_t args = {.q = node_value(node_of(q)),
                             .k = node_value(node_of(k)),
                             .v = node_value(node_of(v)),
                             .heads = heads,
                             .kv_heads = kv_heads,
                             .head_dim = head_dim,
                             .scale = scale,
                             .mask = *mask,
                             .out = node->tensor.value};
    size_t saved = tape_rows_bytes(q->value.rows, (size_t)heads * sizeof(float));
    if (recorded) TRY(tape_take(tape, saved, NULL, (void **)&args.lse));
    TRY(tape->device->table->attention(tape->device, &args));
    TRY(tape_show(tape, "attention", NULL, args.out, false));
    *out = &node->tensor;
    if (!recorded) return STATUS_OK;
    need_value(q);
    need_value(k);
    need_value(v);
    node->value_needed = true;
    record_t record = {.kind = RECORD_ATTENTION,
                       .out = node,
                       .x = node_of(q),
                       .second = node_of(k),
                       .third = node_of(v),
                       .u.attention = {heads, kv_heads, head_dim, scale, *mask, args.lse}};
    return tape_push(tape, &record);
}

status_t tape_run_activation(tape_t *tape, const record_t *record) {
    activation_args_t args = {
        .kind = record->u.activation.kind, .x = node_value(record->x), .y = node_value(record->out)};
    if (record->second) args.up = node_value(record->second);
    return tape->device->table->activation(tape->device, &args);
}

status_t tape_activation(tape_t *tape, activation_t kind, tensor_t *x, tensor_t *up, tensor_t **out) {
    *out = NULL;
    if (up && (up->value.rows != x->value.rows || up->value.columns != x->value.columns))
        FAIL(STATUS_INVALID, "a gate of %d columns does not fit its %d values", x->value.columns, up->value.columns);
    bool need = needs(x) || needs(up);
    node_t *node;
    TRY(tape_new_node(tape, x->value.rows, x->value.columns, x->value.dtype, x->leaves, need, &node));
    record_t record = {.kind = RECORD_ACTIVATION,
                       .out = node,
                       .x = node_of(x),
                       .second = up ? node_of(up) : NULL,
                       .u.activation.kind = kind};
    TRY(tape_run_activation(tape, &record));
    TRY(tape_show(tape, "activation", NULL, node->tensor.value, false));
    *out = &node->tensor;
    if (!tape->recording || !need) return STATUS_OK;
    need_value(x);
    need_value(up);
    node->cheap = makes_cheap(tape);
    return tape_push(tape, &record);
}

status_t tape_add(tape_t *tape, tensor_t *a, tensor_t *b, tensor_t **out) {
    *out = NULL;
    if (a->value.rows != b->value.rows || a->value.columns != b->value.columns)
        FAIL(STATUS_INVALID, "[%d, %d] and [%d, %d] cannot be added", a->value.rows, a->value.columns, b->value.rows,
             b->value.columns);
    bool need = needs(a) || needs(b);
    node_t *node;
    TRY(tape_new_node(tape, a->value.rows, a->value.columns, dtype_of(&a->value, &b->value), a->leaves, need, &node));
    add_args_t args = {.a = node_value(node_of(a)), .b = node_value(node_of(b)), .y = node->tensor.value};
    TRY(tape->device->table->add(tape->device, &args));
    TRY(tape_show(tape, "add", NULL, args.y, false));
    *out = &node->tensor;
    if (!tape->recording || !need) return STATUS_OK;
    record_t record = {.kind = RECORD_ADD, .out = node, .x = node_of(a), .second = node_of(b)};
    return tape_push(tape, &record);
}

status_t tape_token_logprobs(tape_t *tape, tensor_t *hidden, const parameter_t *weight, float temperature, int count,
                             const int32_t *rows, const int32_t *targets, leaves_t leaves, bool entropy,
                             head_output_t **out) {
    *out = NULL;
    if (hidden->value.columns != weight->value.columns)
        FAIL(STATUS_INVALID, "a head of [%d, %d] got rows of %d columns", weight->value.rows, weight->value.columns,
             hidden->value.columns);
    bool recorded = tape->recording && (needs(hidden) || trained(weight));
    listen(tape, weight);
    head_output_t *output;
    float *lse;
    size_t bytes = (size_t)count * sizeof(float);
    TRY(TAPE_HOST(tape, &output, 1));
    *output = (head_output_t){.count = count};
    TRY(tape_take(tape, bytes, NULL, (void **)&output->logprob));
    TRY(tape_take(tape, bytes, NULL, (void **)&output->dlogprob));
    if (entropy) TRY(tape_take(tape, bytes, NULL, (void **)&output->entropy));
    TRY(tape_take(tape, bytes, NULL, (void **)&lse));
    if (!tape->measuring && bytes) TRY(tape->device->table->zero(tape->device, output->dlogprob, bytes));
    token_logprobs_args_t args = {.hidden = node_value(node_of(hidden)),
                                  .weight = weight->value,
                                  .packed = weight->packed,
                                  .temperature = temperature,
                                  .count = count,
                                  .rows = rows,
                                  .targets = targets,
                                  .logprob = output->logprob,
                                  .entropy = output->entropy,
                                  .lse = lse};
    TRY(tape->device->table->token_logprobs(tape->device, &args));
    TRY(tape_show(tape, "log-probs of the head", weight, matrix_view(output->logprob, DTYPE_F32, 1, count), false));
    *out = output;
    if (!recorded) return STATUS_OK;
    TRY(tape_complete_leaves(tape, leaves, count, &leaves));
    need_value(hidden);
    record_t record = {.kind = RECORD_HEAD,
                       .x = node_of(hidden),
                       .weight = weight,
                       .leaves = leaves,
                       .u.head = {temperature, rows, targets, lse, output}};
    return tape_push(tape, &record);
}
