// The Qwen2 decoder, with m-rope for Qwen2.5-VL. One forward for training (keys of this forward) and for generation
// (keys in a paged cache).
#include "common/model/qwen2_5_vl.h"

#include <math.h>

// What all layers of a forward share; lives until tape_reset.
typedef struct text_run {
    model_t *model;
    const kv_cache_t *cache;
    const int32_t *cache_row; // device
    const float *cosine, *sine;
    attention_mask_t mask; // device
} text_run_t;

typedef struct text_layer {
    const text_run_t *run;
    int layer;
} text_layer_t;

static status_t upload_indices(tape_t *tape, const int32_t *host, int64_t count, const int32_t **out) {
    const void *device;
    TRY(tape_upload(tape, host, (size_t)count * sizeof(*host), &device));
    *out = device;
    return STATUS_OK;
}

static status_t upload_mask(tape_t *tape, const attention_mask_t *host, attention_mask_t *out) {
    *out = *host;
    int sequences = host->sequences;
    int64_t keys = host->key_start[sequences];
    TRY(upload_indices(tape, host->query_start, sequences + 1, &out->query_start));
    TRY(upload_indices(tape, host->query_position, sequences, &out->query_position));
    TRY(upload_indices(tape, host->key_start, sequences + 1, &out->key_start));
    TRY(upload_indices(tape, host->key_row, keys, &out->key_row));
    return upload_indices(tape, host->group, keys, &out->group);
}

static status_t make_rope(tape_t *tape, const model_config_t *config, const text_input_t *input, text_run_t *run) {
    int half = config->head_dim / 2;
    float *frequency;
    int32_t *axis;
    TRY(TAPE_HOST(tape, &frequency, half));
    TRY(TAPE_HOST(tape, &axis, half));
    for (int i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)config->head_dim;
        frequency[i] = 1.0F / (float)pow((double)config->rope_theta, (double)exponent);
        int first = config->rope_sections[0], second = first + config->rope_sections[1];
        axis[i] = i < first ? 0 : i < second ? 1 : 2;
    }
    rope_table_args_t args = {.rows = input->rows, .half = half};
    for (int i = 0; i < 3; i++)
        if (input->rope_position[i]) TRY(upload_indices(tape, input->rope_position[i], input->rows, &args.position[i]));
    TRY(upload_indices(tape, axis, half, &args.axis));
    TRY(tape_upload(tape, frequency, (size_t)half * sizeof(*frequency), (const void **)&args.inverse_frequency));
    return tape_rope_table(tape, &args, &run->cosine, &run->sine);
}

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

static status_t text_attention(tape_t *tape, const text_layer_t *layer, int first, tensor_t *x, tensor_t **out) {
    const text_run_t *run = layer->run;
    const model_config_t *config = &run->model->config;
    const qwen_config_t *qwen = qwen_config(run->model);
    const parameter_t *p = run->model->parameter + first;
    adapter_t *const *adapter = run->model->adapter + first;
    tensor_t *q, *k, *v, *attended;
    TRY(tape_linear(tape, x, &p[TEXT_Q], &p[TEXT_Q_BIAS], adapter[TEXT_Q], &q));
    TRY(tape_linear(tape, x, &p[TEXT_K], &p[TEXT_K_BIAS], adapter[TEXT_K], &k));
    TRY(tape_linear(tape, x, &p[TEXT_V], &p[TEXT_V_BIAS], adapter[TEXT_V], &v));
    TRY(tape_rope(tape, q, config->heads, config->head_dim / 2, run->cosine, run->sine));
    TRY(tape_rope(tape, k, config->kv_heads, config->head_dim / 2, run->cosine, run->sine));
    if (run->cache) TRY(use_cache(tape, run, layer->layer, &k, &v));
    attention_mask_t mask = run->mask;
    if (qwen->sliding[layer->layer]) mask.window = qwen->sliding_window;
    float scale = (float)(1.0 / sqrt((double)config->head_dim));
    TRY(tape_attention(tape, q, k, v, config->heads, config->kv_heads, config->head_dim, scale, &mask, &attended));
    return tape_linear(tape, attended, &p[TEXT_O], NULL, adapter[TEXT_O], out);
}

static status_t text_layer(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const text_layer_t *layer = context;
    model_t *model = layer->run->model;
    int first = qwen_config(model)->text_layers + layer->layer * TEXT_LAYER_PARAMETERS;
    const parameter_t *p = model->parameter + first;
    adapter_t *const *adapter = model->adapter + first;
    float eps = model->config.rms_eps;
    tensor_t *normed, *mixed, *middle, *gate, *up;
    TRY(tape_rmsnorm(tape, x, &p[TEXT_INPUT_NORM], eps, NORM_CAST_THEN_WEIGHT, &normed));
    TRY(text_attention(tape, layer, first, normed, &mixed));
    TRY(tape_add(tape, x, mixed, &middle));
    TRY(tape_rmsnorm(tape, middle, &p[TEXT_POST_NORM], eps, NORM_CAST_THEN_WEIGHT, &normed));
    TRY(tape_linear(tape, normed, &p[TEXT_GATE], NULL, adapter[TEXT_GATE], &gate));
    TRY(tape_linear(tape, normed, &p[TEXT_UP], NULL, adapter[TEXT_UP], &up));
    TRY(tape_activation(tape, ACTIVATION_SILU, gate, up, &gate));
    TRY(tape_linear(tape, gate, &p[TEXT_DOWN], NULL, adapter[TEXT_DOWN], &mixed));
    return tape_add(tape, middle, mixed, out);
}

static status_t splice_features(tape_t *tape, const text_input_t *input, tensor_t *x) {
    if (!input->features) return STATUS_OK;
    const int32_t *index = NULL;
    TRY(upload_indices(tape, input->feature_index, input->features->value.rows, &index));
    return tape_scatter_rows(tape, x, input->features, index);
}

status_t qwen_text(model_t *model, tape_t *tape, const text_input_t *input, tensor_t **hidden) {
    *hidden = NULL;
    const qwen_config_t *qwen = qwen_config(model);
    const model_config_t *config = &model->config;
    if (input->cache && input->cache->layers != config->layers)
        FAIL(STATUS_INVALID, "the KV cache has %d layers and the model %d", input->cache->layers, config->layers);
    text_run_t *run;
    TRY(TAPE_HOST(tape, &run, 1));
    *run = (text_run_t){.model = model, .cache = input->cache};
    TRY(upload_mask(tape, &input->mask, &run->mask));
    if (input->cache) TRY(upload_indices(tape, input->cache_row, input->rows, &run->cache_row));
    TRY(make_rope(tape, config, input, run));
    tensor_t *x;
    TRY(tape_embedding(tape, input->token, input->rows, &model->parameter[model->embedding], 1.0F, input->leaves, &x));
    TRY(splice_features(tape, input, x));
    for (int i = 0; i < config->layers; i++) {
        text_layer_t layer = {run, i};
        TRY(tape_block(tape, text_layer, &layer, sizeof(layer), x, &x));
    }
    return tape_rmsnorm(tape, x, &model->parameter[qwen->final_norm], config->rms_eps, NORM_CAST_THEN_WEIGHT, hidden);
}
