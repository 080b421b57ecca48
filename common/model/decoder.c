// The decoder's forward, written once for training (keys of this forward) and for generation (keys in a paged cache).
#include "common/model/decoder.h"

#include <string.h>

// What all layers of a forward share; lives until tape_reset.
typedef struct text_run {
    model_t *model;
    const kv_cache_t *cache;
    const int32_t *cache_row; // device
    const float *cosine[2], *sine[2];
    attention_mask_t mask; // device
} text_run_t;

typedef struct text_layer {
    const text_run_t *run;
    int layer;
} text_layer_t;

// ---- parameters of a layer ----

static int layer_index(const text_layer_t *layer, decoder_parameter_t which) {
    const decoder_config_t *decoder = &layer->run->model->config.decoder;
    int place = decoder->place[which];
    return place < 0 ? -1 : decoder->first_layer + layer->layer * decoder->layer_parameters + place;
}

static const parameter_t *layer_parameter(const text_layer_t *layer, decoder_parameter_t which) {
    int index = layer_index(layer, which);
    return index < 0 ? NULL : &layer->run->model->parameter[index];
}

// A linear and its bias, which follows it.
static status_t layer_linear(tape_t *tape, const text_layer_t *layer, decoder_parameter_t which, tensor_t *x,
                             tensor_t **out) {
    const adapter_t *adapter = layer->run->model->adapter[layer_index(layer, which)];
    return tape_linear(tape, x, layer_parameter(layer, which), layer_parameter(layer, which + 1), adapter, out);
}

static status_t layer_norm(tape_t *tape, const text_layer_t *layer, decoder_parameter_t which, tensor_t *x,
                           tensor_t **out) {
    const model_config_t *config = &layer->run->model->config;
    return tape_rmsnorm(tape, x, layer_parameter(layer, which), config->rms_eps, config->decoder.norm, out);
}

// ---- what a forward uploads ----

static status_t upload_indices(tape_t *tape, const int32_t *host, int64_t count, const int32_t **out) {
    const void *device;
    TRY(tape_upload(tape, host, (size_t)count * sizeof(*host), &device));
    *out = device;
    return STATUS_OK;
}

static status_t upload_mask(tape_t *tape, const attention_mask_t *host, attention_mask_t *out) {
    *out = *host;
    if (tape_holds(tape, host->key_start)) return STATUS_OK;
    int sequences = host->sequences;
    int64_t keys = host->key_start[sequences];
    TRY(upload_indices(tape, host->query_start, sequences + 1, &out->query_start));
    TRY(upload_indices(tape, host->query_position, sequences, &out->query_position));
    TRY(upload_indices(tape, host->key_start, sequences + 1, &out->key_start));
    TRY(upload_indices(tape, host->key_row, keys, &out->key_row));
    return upload_indices(tape, host->group, keys, &out->group);
}

void decoder_rope_constants(const model_config_t *config, int32_t *axis, float *const frequency[2]) {
    const decoder_config_t *decoder = &config->decoder;
    for (int i = 0; i < config->head_dim / 2; i++) {
        int first = decoder->rope_sections[0], second = first + decoder->rope_sections[1];
        axis[i] = i < first ? 0 : i < second ? 1 : 2;
    }
    for (int i = 0; i < 1 + decoder->two_ropes; i++)
        decoder_inverse_frequencies(&decoder->rope[i], config->head_dim, frequency[i]);
}

static status_t upload_rope(tape_t *tape, const model_config_t *config, const int32_t **axis,
                            const float *frequency[2]) {
    size_t half = (size_t)config->head_dim / 2;
    int32_t *own_axis;
    float *own[2] = {NULL, NULL};
    TRY(TAPE_HOST(tape, &own_axis, half));
    for (int i = 0; i < 1 + config->decoder.two_ropes; i++) TRY(TAPE_HOST(tape, &own[i], half));
    decoder_rope_constants(config, own_axis, own);
    TRY(upload_indices(tape, own_axis, (int64_t)half, axis));
    for (int i = 0; i < 1 + config->decoder.two_ropes; i++)
        TRY(tape_upload(tape, own[i], half * sizeof(float), (const void **)&frequency[i]));
    return STATUS_OK;
}

static status_t make_rope(tape_t *tape, const model_config_t *config, const text_input_t *input, text_run_t *run) {
    const float *frequency[2] = {input->rope_frequency[0], input->rope_frequency[1]};
    rope_table_args_t args = {
        .rows = input->rows, .half = config->head_dim / 2, .axis = input->rope_axis, .precision = run->model->dtype};
    if (!args.axis) TRY(upload_rope(tape, config, &args.axis, frequency));
    for (int i = 0; i < 3; i++)
        if (input->rope_position[i]) TRY(upload_indices(tape, input->rope_position[i], input->rows, &args.position[i]));
    for (int i = 0; i < 1 + config->decoder.two_ropes; i++) {
        args.inverse_frequency = frequency[i];
        TRY(tape_rope_table(tape, &args, &run->cosine[i], &run->sine[i]));
    }
    return STATUS_OK;
}

// ---- a layer ----

// Keys and values go into the cache, and attention reads them there.
static status_t use_cache(tape_t *tape, const text_run_t *run, int layer, tensor_t **k, tensor_t **v) {
    tensor_t *keys, *values;
    TRY(tape_input(tape, run->cache->k[layer], (leaves_t){0}, &keys));
    TRY(tape_input(tape, run->cache->v[layer], (leaves_t){0}, &values));
    TRY(tape_scatter_rows(tape, keys, *k, run->cache_row));
    TRY(tape_scatter_rows(tape, values, *v, run->cache_row));
    *k = keys;
    *v = values;
    return STATUS_OK;
}

// The norm of every head by itself: heads become rows and rows again.
static status_t norm_heads(tape_t *tape, const text_layer_t *layer, decoder_parameter_t which, int heads,
                           tensor_t **x) {
    tensor_t *rows, *normed;
    if (!layer->run->model->config.decoder.head_norms) return STATUS_OK;
    TRY(tape_split_rows(tape, *x, heads, &rows));
    TRY(layer_norm(tape, layer, which, rows, &normed));
    return tape_fold_rows(tape, normed, heads, (*x)->leaves, x);
}

static status_t text_attention(tape_t *tape, const text_layer_t *layer, tensor_t *x, tensor_t **out) {
    const text_run_t *run = layer->run;
    const model_config_t *config = &run->model->config;
    const decoder_config_t *decoder = &config->decoder;
    bool sliding = decoder->sliding[layer->layer];
    int rope = decoder->two_ropes && sliding, half = config->head_dim / 2;
    tensor_t *q, *k, *v, *attended;
    TRY(layer_linear(tape, layer, DECODER_Q, x, &q));
    TRY(layer_linear(tape, layer, DECODER_K, x, &k));
    TRY(layer_linear(tape, layer, DECODER_V, x, &v));
    TRY(norm_heads(tape, layer, DECODER_Q_NORM, config->heads, &q));
    TRY(norm_heads(tape, layer, DECODER_K_NORM, config->kv_heads, &k));
    TRY(tape_rope(tape, q, config->heads, half, run->cosine[rope], run->sine[rope]));
    TRY(tape_rope(tape, k, config->kv_heads, half, run->cosine[rope], run->sine[rope]));
    if (run->cache) TRY(use_cache(tape, run, layer->layer, &k, &v));
    attention_mask_t mask = run->mask;
    if (sliding) mask.window = decoder->window;
    TRY(tape_attention(tape, q, k, v, config->heads, config->kv_heads, config->head_dim, decoder->attention_scale,
                       &mask, &attended));
    return layer_linear(tape, layer, DECODER_O, attended, out);
}

static status_t text_mlp(tape_t *tape, const text_layer_t *layer, tensor_t *x, tensor_t **out) {
    tensor_t *gate, *up;
    TRY(layer_linear(tape, layer, DECODER_GATE, x, &gate));
    TRY(layer_linear(tape, layer, DECODER_UP, x, &up));
    TRY(tape_activation(tape, layer->run->model->config.decoder.activation, gate, up, &gate));
    return layer_linear(tape, layer, DECODER_DOWN, gate, out);
}

static status_t text_layer(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const text_layer_t *layer = context;
    bool four = layer->run->model->config.decoder.four_norms;
    tensor_t *normed, *mixed, *middle;
    TRY(layer_norm(tape, layer, DECODER_INPUT_NORM, x, &normed));
    TRY(text_attention(tape, layer, normed, &mixed));
    if (four) TRY(layer_norm(tape, layer, DECODER_POST_ATTENTION_NORM, mixed, &mixed));
    TRY(tape_add(tape, x, mixed, &middle));
    TRY(layer_norm(tape, layer, four ? DECODER_PRE_MLP_NORM : DECODER_POST_ATTENTION_NORM, middle, &normed));
    TRY(text_mlp(tape, layer, normed, &mixed));
    if (four) TRY(layer_norm(tape, layer, DECODER_POST_MLP_NORM, mixed, &mixed));
    return tape_add(tape, middle, mixed, out);
}

// ---- the whole ----

// The factor of token rows, rounded as the reference does: to the type of the table.
static float embedding_scale(const decoder_config_t *decoder, dtype_t dtype) {
    uint32_t bits;
    float scale = decoder->embedding_scale > 0.0F ? decoder->embedding_scale : 1.0F;
    if (dtype != DTYPE_BF16) return scale;
    memcpy(&bits, &scale, sizeof(bits));
    bits = (bits + 0x7fffU + (bits >> 16 & 1U)) & 0xffff0000U;
    memcpy(&scale, &bits, sizeof(bits));
    return scale;
}

// As PyTorch's embedding with a padding id: as an input it teaches the table nothing.
static status_t stop_padding(tape_t *tape, const decoder_config_t *decoder, const text_input_t *input, tensor_t *x) {
    int32_t *rows;
    const int32_t *index = NULL;
    if (decoder->padding < 0 || !input->leaves.count) return STATUS_OK;
    TRY(TAPE_HOST(tape, &rows, input->rows));
    for (int i = 0; i < input->rows; i++) rows[i] = input->token[i] == decoder->padding ? i : -1;
    TRY(upload_indices(tape, rows, input->rows, &index));
    return tape_stop_rows(tape, x, index);
}

static status_t splice_features(tape_t *tape, const text_input_t *input, tensor_t *x) {
    if (!input->features) return STATUS_OK;
    const int32_t *index = NULL;
    TRY(upload_indices(tape, input->feature_index, input->features->value.rows, &index));
    return tape_scatter_rows(tape, x, input->features, index);
}

status_t decoder_text(model_t *model, tape_t *tape, const text_input_t *input, tensor_t **hidden) {
    *hidden = NULL;
    const model_config_t *config = &model->config;
    const decoder_config_t *decoder = &config->decoder;
    if (input->cache && input->cache->layers != config->layers)
        FAIL(STATUS_INVALID, "the KV cache has %d layers and the model %d", input->cache->layers, config->layers);
    text_run_t *run;
    TRY(TAPE_HOST(tape, &run, 1));
    *run = (text_run_t){.model = model, .cache = input->cache};
    TRY(upload_mask(tape, &input->mask, &run->mask));
    if (input->cache) TRY(upload_indices(tape, input->cache_row, input->rows, &run->cache_row));
    TRY(make_rope(tape, config, input, run));
    const parameter_t *table = &model->parameter[model->embedding];
    float scale = embedding_scale(decoder, table->value.dtype);
    tensor_t *x;
    TRY(tape_embedding(tape, input->token, input->rows, table, scale, input->leaves, &x));
    TRY(stop_padding(tape, decoder, input, x));
    TRY(splice_features(tape, input, x));
    for (int i = 0; i < config->layers; i++) {
        text_layer_t layer = {run, i};
        TRY(tape_block(tape, text_layer, &layer, sizeof(layer), x, &x));
    }
    return tape_rmsnorm(tape, x, &model->parameter[decoder->final_norm], config->rms_eps, decoder->norm, hidden);
}
