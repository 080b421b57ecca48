// The decoder's parameters under their checkpoint names, and positions that plain rope counts.
#include "common/model/decoder.h"

#include <string.h>

// Where a parameter of the first layer came to lie; the other layers repeat it.
static void note_place(model_t *model, int layer, decoder_parameter_t which) {
    decoder_config_t *decoder = &model->config.decoder;
    if (!layer) decoder->place[which] = model->parameter_count - decoder->first_layer;
}

static status_t add_vector(model_t *model, int layer, decoder_parameter_t which, int64_t size, const char *name) {
    note_place(model, layer, which);
    return model_add_parameter(model, PART_LANGUAGE, false, 1, &size, "%smodel.layers.%d.%s",
                               model->config.decoder.prefix, layer, name);
}

static status_t add_linear(model_t *model, int layer, decoder_parameter_t which, bool bias, int64_t rows,
                           int64_t columns, const char *name) {
    const int64_t shape[2] = {rows, columns};
    const char *prefix = model->config.decoder.prefix;
    note_place(model, layer, which);
    TRY(model_add_parameter(model, PART_LANGUAGE, true, 2, shape, "%smodel.layers.%d.%s.weight", prefix, layer, name));
    if (!bias) return STATUS_OK;
    note_place(model, layer, which + 1);
    return model_add_parameter(model, PART_LANGUAGE, false, 1, shape, "%smodel.layers.%d.%s.bias", prefix, layer, name);
}

static status_t add_layer(model_t *model, int layer) {
    const model_config_t *config = &model->config;
    const decoder_config_t *decoder = &config->decoder;
    int64_t hidden = config->hidden, size = config->head_dim, middle = config->intermediate;
    int64_t q = config->heads * size, kv = config->kv_heads * size;
    bool qkv = decoder->qkv_bias, mlp = decoder->mlp_bias;
    TRY(add_vector(model, layer, DECODER_INPUT_NORM, hidden, "input_layernorm.weight"));
    TRY(add_linear(model, layer, DECODER_Q, qkv, q, hidden, "self_attn.q_proj"));
    TRY(add_linear(model, layer, DECODER_K, qkv, kv, hidden, "self_attn.k_proj"));
    TRY(add_linear(model, layer, DECODER_V, qkv, kv, hidden, "self_attn.v_proj"));
    TRY(add_linear(model, layer, DECODER_O, decoder->o_bias, hidden, q, "self_attn.o_proj"));
    if (decoder->head_norms) {
        TRY(add_vector(model, layer, DECODER_Q_NORM, size, "self_attn.q_norm.weight"));
        TRY(add_vector(model, layer, DECODER_K_NORM, size, "self_attn.k_norm.weight"));
    }
    TRY(add_vector(model, layer, DECODER_POST_ATTENTION_NORM, hidden, "post_attention_layernorm.weight"));
    if (decoder->four_norms) {
        TRY(add_vector(model, layer, DECODER_PRE_MLP_NORM, hidden, "pre_feedforward_layernorm.weight"));
        TRY(add_vector(model, layer, DECODER_POST_MLP_NORM, hidden, "post_feedforward_layernorm.weight"));
    }
    TRY(add_linear(model, layer, DECODER_GATE, mlp, middle, hidden, "mlp.gate_proj"));
    TRY(add_linear(model, layer, DECODER_UP, mlp, middle, hidden, "mlp.up_proj"));
    return add_linear(model, layer, DECODER_DOWN, mlp, hidden, middle, "mlp.down_proj");
}

status_t decoder_add_parameters(model_t *model, const char *prefix) {
    const model_config_t *config = &model->config;
    decoder_config_t *decoder = &model->config.decoder;
    int64_t hidden = config->hidden, table[2] = {config->vocabulary, config->hidden};
    if (snprintf(decoder->prefix, sizeof(decoder->prefix), "%s", prefix) >= (int)sizeof(decoder->prefix))
        FAIL(STATUS_INVALID, "the prefix '%s' of parameter names is too long", prefix);
    for (int i = 0; i < DECODER_LAYER_PARAMETERS; i++) decoder->place[i] = -1;
    model->embedding = model->parameter_count;
    TRY(model_add_parameter(model, PART_LANGUAGE, false, 2, table, "%smodel.embed_tokens.weight", prefix));
    decoder->first_layer = model->parameter_count;
    for (int i = 0; i < config->layers; i++) {
        TRY(add_layer(model, i));
        if (!i) decoder->layer_parameters = model->parameter_count - decoder->first_layer;
    }
    decoder->final_norm = model->parameter_count;
    TRY(model_add_parameter(model, PART_LANGUAGE, false, 1, &hidden, "%smodel.norm.weight", prefix));
    model->head = model->embedding;
    if (config->tied_embeddings) return STATUS_OK;
    model->head = model->parameter_count;
    return model_add_parameter(model, PART_HEAD, false, 2, table, "%slm_head.weight", prefix);
}

status_t decoder_add_text_family(model_t *model) {
    return decoder_add_parameters(model, "");
}

// A folder may hold the decoder without its head: then its names lack "model.".
bool decoder_map_name(const model_t *model, const char *name, char *out, size_t bytes) {
    static const char *const prefixes[][2] = {{"", ""}, {"", "model."}};
    return model_map_prefix(model, prefixes, 2, name, out, bytes);
}

// ---- positions ----

// Every run of image tokens stands for one of an image's runs of feature rows.
static status_t check_images(const model_config_t *config, const int32_t *tokens, int count,
                             const image_shape_t *shapes, int images) {
    int image = 0, run = 0;
    for (int at = 0; at < count;) {
        if (tokens[at] != config->image.image_token) {
            at++;
            continue;
        }
        if (image == images)
            FAIL(STATUS_INVALID, "the text has placeholders for more than the %d images given", images);
        int runs = shapes[image].runs > 0 ? shapes[image].runs : 1;
        int wanted = shapes[image].feature_rows / runs, found = 0;
        while (at + found < count && found < wanted && tokens[at + found] == config->image.image_token) found++;
        if (found < wanted || wanted < 1)
            FAIL(STATUS_INVALID, "image %d becomes %d tokens, and the text has %d placeholders for it", image + 1,
                 wanted, found);
        at += found;
        if (++run < runs) continue;
        run = 0;
        image++;
    }
    if (image != images || run)
        FAIL(STATUS_INVALID, "%d images were given, and the text has placeholders for %d", images, image);
    return STATUS_OK;
}

status_t decoder_rope_positions(const model_config_t *config, const int32_t *tokens, int count,
                                const image_shape_t *shapes, int images, int32_t *position[3], int32_t *next) {
    if (config->has_vision) TRY(check_images(config, tokens, count, shapes, images));
    for (int axis = 0; axis < 3; axis++)
        for (int i = 0; i < count; i++) position[axis][i] = i;
    *next = count;
    return STATUS_OK;
}
