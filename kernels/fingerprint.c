// device_fingerprint: every op runs once on fixed inputs; the hash covers inputs, outputs, gradients and sums.
//
// One block of device memory holds everything. It starts as random floats, ops take regions of it in order, and the
// hash reads the whole block at the end. Shapes are odd on purpose: full vectors, tails and several blocks all occur.
#include "kernels/base/philox.h"
#include "kernels/device.h"
#include "kernels/ledger.h"

#include <stdlib.h>
#include <string.h>

enum {
    PROBE_BYTES = LEDGER_PROBE_BYTES,
    PROBE_ROWS = 37,
    PROBE_COLUMNS = 72,
    PROBE_WIDTH = 90,
    PROBE_VOCABULARY = 300,
    PROBE_EXPONENT = 24,
    PROBE_INTS = 256,
};

typedef struct probe {
    device_t *device;
    dtype_t dtype; // of the forwards' matrices
    char *memory;  // on the device
    size_t used;
    void *packed;   // NULL until probe_pack
    uint32_t draws; // numbers the arrays of whole numbers
} probe_t;

static status_t probe_take(probe_t *probe, size_t bytes, void *out) {
    size_t rounded = (bytes + 63) / 64 * 64;
    memset(out, 0, sizeof(void *));
    if (rounded > PROBE_BYTES - probe->used)
        FAIL(STATUS_FAILED, "the probes of the kernel fingerprint need more than %d bytes", (int)PROBE_BYTES);
    char *place = probe->memory + probe->used;
    memcpy(out, &place, sizeof(place)); // out points to a pointer of any type
    probe->used += rounded;
    return STATUS_OK;
}

static status_t probe_gradient(probe_t *probe, int rows, int columns, matrix_t *out) {
    float *data;
    TRY(probe_take(probe, (size_t)rows * (size_t)columns * sizeof(float), &data));
    *out = matrix_view(data, DTYPE_F32, rows, columns);
    return STATUS_OK;
}

// A matrix of a forward, in the dtype that is probed. The block's own bits would not do as bf16: half of them have no
// sensible exponent.
static status_t probe_matrix(probe_t *probe, int rows, int columns, matrix_t *out) {
    if (probe->dtype == DTYPE_F32) return probe_gradient(probe, rows, columns, out);
    size_t count = (size_t)rows * (size_t)columns, bytes = count * sizeof(uint16_t);
    uint16_t *data, *host;
    uint32_t number = probe->draws++;
    TRY(probe_take(probe, bytes, &data));
    TRY(ALLOCATE(&host, count));
    for (size_t i = 0; i < count; i++) {
        philox_block_t block = philox_draw(1, PHILOX_TEST, i / 4, number, 1);
        host[i] = bf16_round(philox_uniform(block.word[i % 4]) * 2.0f - 1.0f);
    }
    status_t status = probe->device->table->upload(probe->device, data, host, bytes);
    free(host);
    *out = matrix_view(data, DTYPE_BF16, rows, columns);
    return status;
}

static status_t probe_floats(probe_t *probe, int count, float **out) {
    return probe_take(probe, (size_t)count * sizeof(float), out);
}

// Sums start at 0: what lies in the block are no whole numbers.
static status_t probe_sink(probe_t *probe, int count, gradient_sink_t *out) {
    *out = (gradient_sink_t){.exponent = PROBE_EXPONENT};
    TRY(probe_take(probe, (size_t)count * sizeof(int64_t), &out->sum));
    TRY(probe_take(probe, sizeof(uint32_t), &out->flags));
    TRY(probe->device->table->zero(probe->device, out->sum, (size_t)count * sizeof(int64_t)));
    return probe->device->table->zero(probe->device, out->flags, sizeof(uint32_t));
}

static status_t probe_upload(probe_t *probe, const int32_t *value, int count, int32_t **out) {
    TRY(probe_take(probe, (size_t)count * sizeof(int32_t), out));
    return probe->device->table->upload(probe->device, *out, value, (size_t)count * sizeof(int32_t));
}

// Random whole numbers in [0, bound).
static status_t probe_ints(probe_t *probe, int count, int bound, int32_t **out) {
    int32_t value[PROBE_INTS];
    uint32_t number = probe->draws++;
    for (int i = 0; i < count; i++)
        value[i] = (int32_t)philox_below(2, PHILOX_TEST, (uint64_t)i, number, 0, (uint32_t)bound);
    return probe_upload(probe, value, count, out);
}

// 0, step, 2 step, ...
static status_t probe_steps(probe_t *probe, int count, int step, int32_t **out) {
    int32_t value[PROBE_INTS];
    for (int i = 0; i < count; i++) value[i] = i * step;
    return probe_upload(probe, value, count, out);
}

static status_t probe_rows(probe_t *probe) {
    const device_table_t *table = probe->device->table;
    embedding_args_t embedding = {.scale = 1.25f};
    embedding_gradients_t embedding_back;
    gradient_sink_t sink;
    int32_t *token;
    TRY(probe_ints(probe, PROBE_ROWS, 20, &token));
    embedding.token = token;
    TRY(probe_matrix(probe, 20, PROBE_COLUMNS, &embedding.table));
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &embedding.y));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &embedding_back.dy));
    TRY(probe_sink(probe, 20 * PROBE_COLUMNS, &sink));
    embedding_back.table = &sink;
    TRY(table->embedding(probe->device, &embedding));
    TRY(table->embedding_backward(probe->device, &embedding, &embedding_back));
    rows_args_t gather = {.x = embedding.table, .index = token};
    rows_gradients_t gather_back = {.dy = embedding_back.dy};
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &gather.y));
    TRY(probe_gradient(probe, 20, PROBE_COLUMNS, &gather_back.dx));
    TRY(table->gather_rows(probe->device, &gather));
    TRY(table->gather_rows_backward(probe->device, &gather, &gather_back));
    rows_args_t scatter = {.x = embedding.table};
    rows_gradients_t scatter_back = {.dx = gather_back.dx};
    int32_t *index;
    TRY(probe_steps(probe, 20, 1, &index));
    scatter.index = index;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &scatter.y));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &scatter_back.dy));
    TRY(table->scatter_rows(probe->device, &scatter));
    TRY(table->scatter_rows_backward(probe->device, &scatter, &scatter_back));
    add_args_t add = {.a = gather.y, .b = embedding.y};
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &add.y));
    return table->add(probe->device, &add);
}

static status_t probe_pool(probe_t *probe) {
    const device_table_t *table = probe->device->table;
    enum { POOLED = 9, COUNT = 5 };
    pool_args_t args = {.count = COUNT};
    pool_gradients_t back;
    int32_t *index;
    TRY(probe_ints(probe, POOLED * COUNT, PROBE_ROWS, &index));
    args.index = index;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.x));
    TRY(probe_matrix(probe, POOLED, PROBE_COLUMNS, &args.y));
    TRY(probe_gradient(probe, POOLED, PROBE_COLUMNS, &back.dy));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dx));
    TRY(table->pool_rows(probe->device, &args));
    return table->pool_rows_backward(probe->device, &args, &back);
}

static status_t probe_norm(probe_t *probe, norm_flavour_t flavour, const int32_t *leaf) {
    const device_table_t *table = probe->device->table;
    rmsnorm_args_t args = {.eps = 1e-6f, .flavour = flavour};
    rmsnorm_gradients_t back = {.leaves = {.count = 2, .start = leaf}};
    gradient_sink_t sink;
    float *weight;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.x));
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.y));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dy));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dx));
    TRY(probe_floats(probe, PROBE_COLUMNS, &weight));
    TRY(probe_floats(probe, PROBE_ROWS, &args.rstd));
    TRY(probe_sink(probe, PROBE_COLUMNS, &sink));
    args.weight = weight;
    back.weight = &sink;
    TRY(table->rmsnorm(probe->device, &args));
    return table->rmsnorm_backward(probe->device, &args, &back);
}

static status_t probe_layernorm(probe_t *probe, const int32_t *leaf) {
    const device_table_t *table = probe->device->table;
    layernorm_args_t args = {.eps = 1e-5f};
    layernorm_gradients_t back = {.leaves = {.count = 2, .start = leaf}};
    gradient_sink_t weight_sink, bias_sink;
    float *weight, *bias;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.x));
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.y));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dy));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dx));
    TRY(probe_floats(probe, PROBE_COLUMNS, &weight));
    TRY(probe_floats(probe, PROBE_COLUMNS, &bias));
    TRY(probe_floats(probe, PROBE_ROWS, &args.mean));
    TRY(probe_floats(probe, PROBE_ROWS, &args.rstd));
    TRY(probe_sink(probe, PROBE_COLUMNS, &weight_sink));
    TRY(probe_sink(probe, PROBE_COLUMNS, &bias_sink));
    args.weight = weight;
    args.bias = bias;
    back.weight = &weight_sink;
    back.bias = &bias_sink;
    TRY(table->layernorm(probe->device, &args));
    return table->layernorm_backward(probe->device, &args, &back);
}

static status_t probe_activation(probe_t *probe, activation_t kind, bool gated) {
    const device_table_t *table = probe->device->table;
    activation_args_t args = {.kind = kind};
    activation_gradients_t back = {0};
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.x));
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.y));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dy));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dx));
    if (gated) {
        TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.up));
        TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dup));
    }
    TRY(table->activation(probe->device, &args));
    return table->activation_backward(probe->device, &args, &back);
}

static status_t probe_rope(probe_t *probe) {
    const device_table_t *table = probe->device->table;
    enum { HALF = PROBE_COLUMNS / 4 };
    rope_table_args_t angles = {.rows = PROBE_ROWS, .half = HALF};
    rope_args_t rope = {.heads = 2, .half = HALF};
    int32_t *position, *axis;
    float *frequency;
    TRY(probe_ints(probe, PROBE_ROWS, 40000, &position));
    TRY(probe_ints(probe, HALF, 3, &axis));
    TRY(probe_floats(probe, HALF, &frequency));
    TRY(probe_floats(probe, PROBE_ROWS * HALF, &angles.cosine));
    TRY(probe_floats(probe, PROBE_ROWS * HALF, &angles.sine));
    for (int i = 0; i < 3; i++) angles.position[i] = position;
    angles.axis = axis;
    angles.inverse_frequency = frequency;
    angles.precision = probe->dtype;
    TRY(table->rope_table(probe->device, &angles));
    rope.cosine = angles.cosine;
    rope.sine = angles.sine;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &rope.x));
    return table->rope(probe->device, &rope);
}

// Two sequences of half the rows each.
static status_t probe_attention(probe_t *probe, int heads, int kv_heads, bool causal) {
    const device_table_t *table = probe->device->table;
    int size = PROBE_COLUMNS / heads;
    static const int32_t start[3] = {0, 17, PROBE_ROWS}, first[2] = {0, 0};
    int32_t *starts, *firsts, *rows;
    TRY(probe_upload(probe, start, 3, &starts));
    TRY(probe_upload(probe, first, 2, &firsts));
    TRY(probe_steps(probe, PROBE_ROWS, 1, &rows));
    attention_args_t args = {.heads = heads,
                             .kv_heads = kv_heads,
                             .head_dim = size,
                             .scale = 0.25f,
                             .mask = {.sequences = 2,
                                      .query_start = starts,
                                      .query_position = firsts,
                                      .key_start = starts,
                                      .key_row = rows,
                                      .causal = causal}};
    attention_gradients_t back;
    TRY(probe_matrix(probe, PROBE_ROWS, heads * size, &args.q));
    TRY(probe_matrix(probe, PROBE_ROWS, kv_heads * size, &args.k));
    TRY(probe_matrix(probe, PROBE_ROWS, kv_heads * size, &args.v));
    TRY(probe_matrix(probe, PROBE_ROWS, heads * size, &args.out));
    TRY(probe_floats(probe, PROBE_ROWS * heads, &args.lse));
    TRY(probe_gradient(probe, PROBE_ROWS, heads * size, &back.dout));
    TRY(probe_gradient(probe, PROBE_ROWS, heads * size, &back.dq));
    TRY(probe_gradient(probe, PROBE_ROWS, kv_heads * size, &back.dk));
    TRY(probe_gradient(probe, PROBE_ROWS, kv_heads * size, &back.dv));
    TRY(table->attention(probe->device, &args));
    return table->attention_backward(probe->device, &args, &back);
}

// The packed form is the device's own affair and no part of the hash, so it lies outside the block.
static status_t probe_pack(probe_t *probe, matrix_t weight) {
    const device_table_t *table = probe->device->table;
    size_t bytes = table->packed_bytes(probe->device, weight);
    ledger_give(probe->device, probe->packed);
    probe->packed = NULL;
    if (!bytes) return STATUS_OK;
    TRY(ledger_take(probe->device, LEDGER_OTHER, bytes, &probe->packed));
    return table->pack_weight(probe->device, weight, probe->packed);
}

static status_t probe_linear(probe_t *probe, const int32_t *leaf) {
    const device_table_t *table = probe->device->table;
    enum { RANK = 4 };
    linear_args_t args = {.lora_scale = 2.0f};
    linear_gradients_t back = {.leaves = {.count = 2, .start = leaf}};
    gradient_sink_t weight, bias, lora_a, lora_b;
    float *bias_values;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.x));
    TRY(probe_matrix(probe, PROBE_WIDTH, PROBE_COLUMNS, &args.weight));
    TRY(probe_matrix(probe, RANK, PROBE_COLUMNS, &args.lora_a));
    TRY(probe_matrix(probe, PROBE_WIDTH, RANK, &args.lora_b));
    TRY(probe_matrix(probe, PROBE_ROWS, RANK, &args.lora_xa));
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_WIDTH, &args.y));
    TRY(probe_floats(probe, PROBE_WIDTH, &bias_values));
    args.bias = bias_values;
    TRY(probe_pack(probe, args.weight));
    args.packed = probe->packed;
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_WIDTH, &back.dy));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dx));
    TRY(probe_sink(probe, PROBE_WIDTH * PROBE_COLUMNS, &weight));
    TRY(probe_sink(probe, PROBE_WIDTH, &bias));
    TRY(probe_sink(probe, RANK * PROBE_COLUMNS, &lora_a));
    TRY(probe_sink(probe, PROBE_WIDTH * RANK, &lora_b));
    back.weight = &weight;
    back.bias = &bias;
    back.lora_a = &lora_a;
    back.lora_b = &lora_b;
    TRY(table->linear(probe->device, &args));
    return table->linear_backward(probe->device, &args, &back);
}

static status_t probe_head(probe_t *probe, const int32_t *leaf) {
    const device_table_t *table = probe->device->table;
    token_logprobs_args_t args = {.temperature = 0.75f, .count = PROBE_ROWS};
    token_logprobs_gradients_t back = {.leaves = {.count = 2, .start = leaf}};
    gradient_sink_t sink;
    int32_t *rows, *targets, *token;
    float *dlogprob, *temperature, *uniform;
    TRY(probe_matrix(probe, PROBE_ROWS, PROBE_COLUMNS, &args.hidden));
    TRY(probe_matrix(probe, PROBE_VOCABULARY, PROBE_COLUMNS, &args.weight));
    TRY(probe_steps(probe, PROBE_ROWS, 1, &rows));
    TRY(probe_ints(probe, PROBE_ROWS, PROBE_VOCABULARY, &targets));
    TRY(probe_floats(probe, PROBE_ROWS, &args.logprob));
    TRY(probe_floats(probe, PROBE_ROWS, &args.entropy));
    TRY(probe_floats(probe, PROBE_ROWS, &args.lse));
    TRY(probe_floats(probe, PROBE_ROWS, &dlogprob));
    TRY(probe_gradient(probe, PROBE_ROWS, PROBE_COLUMNS, &back.dhidden));
    TRY(probe_sink(probe, PROBE_VOCABULARY * PROBE_COLUMNS, &sink));
    args.rows = rows;
    args.targets = targets;
    back.dlogprob = dlogprob;
    back.weight = &sink;
    TRY(table->token_logprobs(probe->device, &args));
    TRY(table->token_logprobs_backward(probe->device, &args, &back));
    token_sample_args_t sample = {.hidden = args.hidden, .weight = args.weight};
    float temperatures[PROBE_ROWS], uniforms[PROBE_ROWS];
    for (int i = 0; i < PROBE_ROWS; i++) {
        temperatures[i] = 0.5f * (float)(i % 3);
        uniforms[i] = (float)i / PROBE_ROWS;
    }
    TRY(probe_floats(probe, PROBE_ROWS, &temperature));
    TRY(probe_floats(probe, PROBE_ROWS, &uniform));
    TRY(table->upload(probe->device, temperature, temperatures, sizeof(temperatures)));
    TRY(table->upload(probe->device, uniform, uniforms, sizeof(uniforms)));
    TRY(probe_ints(probe, PROBE_ROWS, 1, &token));
    TRY(probe_floats(probe, PROBE_ROWS, &sample.logprob));
    TRY(probe_floats(probe, PROBE_ROWS, &sample.entropy));
    TRY(probe_floats(probe, PROBE_ROWS, &sample.top_gap));
    sample.temperature = temperature;
    sample.uniform = uniform;
    sample.token = token;
    return table->token_sample(probe->device, &sample);
}

static status_t probe_optimizer(probe_t *probe) {
    const device_table_t *table = probe->device->table;
    enum { COUNT = GRADIENT_BLOCK + 77 };
    gradient_norm_args_t norm = {.count = COUNT, .exponent = PROBE_EXPONENT};
    adamw_args_t adamw = {.count = COUNT,
                          .exponent = PROBE_EXPONENT,
                          .gradient_scale = 0.37,
                          .learning_rate = 1e-2f,
                          .beta1 = 0.9f,
                          .beta2 = 0.95f,
                          .eps = 1e-8f,
                          .weight_decay = 0.1f,
                          .step = 3};
    int64_t *sums = NULL, *device_sums;
    TRY(probe_take(probe, COUNT * sizeof(int64_t), &device_sums));
    TRY(ALLOCATE(&sums, COUNT));
    for (int i = 0; i < COUNT; i++)
        sums[i] = (int64_t)philox_below(2, PHILOX_TEST, (uint64_t)i, 0, 9, 1u << 30) - (1 << 29);
    status_t status = table->upload(probe->device, device_sums, sums, COUNT * sizeof(int64_t));
    free(sums);
    if (status) return status;
    TRY(probe_take(probe, 2 * sizeof(double), &norm.square_sum));
    TRY(probe_take(probe, sizeof(int64_t), &norm.absmax));
    TRY(probe_floats(probe, COUNT, &adamw.master));
    TRY(probe_floats(probe, COUNT, &adamw.first_moment));
    TRY(probe_floats(probe, COUNT, &adamw.second_moment));
    TRY(table->zero(probe->device, adamw.second_moment, COUNT * sizeof(float)));
    norm.sum = adamw.sum = device_sums;
    TRY(table->gradient_norm(probe->device, &norm));
    return table->adamw(probe->device, &adamw);
}

static status_t probe_models(probe_t *probe, dtype_t dtype) {
    static const int32_t leaf[3] = {0, 20, PROBE_ROWS};
    probe->dtype = dtype;
    TRY(probe_rows(probe));
    TRY(probe_pool(probe));
    TRY(probe_norm(probe, NORM_CAST_THEN_WEIGHT, leaf));
    TRY(probe_norm(probe, NORM_ONE_PLUS_WEIGHT, leaf));
    TRY(probe_layernorm(probe, leaf));
    TRY(probe_activation(probe, ACTIVATION_SILU, true));
    TRY(probe_activation(probe, ACTIVATION_GELU_ERF, false));
    TRY(probe_activation(probe, ACTIVATION_GELU_TANH, true));
    TRY(probe_activation(probe, ACTIVATION_QUICK_GELU, false));
    TRY(probe_rope(probe));
    TRY(probe_attention(probe, 4, 2, true));
    TRY(probe_attention(probe, 3, 3, false));
    TRY(probe_linear(probe, leaf));
    return probe_head(probe, leaf);
}

static status_t probe_all(probe_t *probe) {
    TRY(probe_models(probe, DTYPE_F32));
    TRY(probe_models(probe, DTYPE_BF16));
    return probe_optimizer(probe);
}

// 64 bits from a block: FNV-1a over whole words, with a last stirring so that every bit counts.
static uint64_t probe_hash(const char *bytes, size_t count) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i + 8 <= count; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof(word));
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    hash *= 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
}

static status_t probe_run(probe_t *probe, char *host, uint64_t *out) {
    const device_table_t *table = probe->device->table;
    for (size_t i = 0; i < PROBE_BYTES / sizeof(float); i += 4) {
        philox_block_t block = philox_draw(1, PHILOX_TEST, i, 0, 0);
        float value[4];
        for (int j = 0; j < 4; j++) value[j] = philox_uniform(block.word[j]) * 2.0f - 1.0f;
        memcpy(host + i * sizeof(float), value, sizeof(value));
    }
    TRY(table->upload(probe->device, probe->memory, host, PROBE_BYTES));
    TRY(probe_all(probe));
    TRY(table->synchronize(probe->device));
    TRY(table->download(probe->device, host, probe->memory, PROBE_BYTES));
    *out = probe_hash(host, PROBE_BYTES);
    if (probe->device->identity)
        *out = (*out ^ probe->device->identity) * 0x100000001b3u; // it has not shown all it does
    return STATUS_OK;
}

status_t device_fingerprint(device_t *device, uint64_t *out) {
    probe_t probe = {.device = device};
    char *host = NULL;
    void *memory = NULL;
    bool measuring = device->measuring;
    device->measuring = false;
    *out = 0;
    status_t status = ALLOCATE(&host, PROBE_BYTES);
    if (!status) status = ledger_take(device, LEDGER_OTHER, PROBE_BYTES, &memory);
    probe.memory = memory;
    if (!status) status = probe_run(&probe, host, out);
    ledger_give(device, probe.packed);
    ledger_give(device, memory);
    free(host);
    device->measuring = measuring;
    return status ? status_context(status, "fingerprint of the device '%s'", device->table->name) : STATUS_OK;
}
