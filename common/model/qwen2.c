#include "common/model/qwen2.h"
#include "common/model/decoder.h"

static const decoder_class_t decoder = {
    .vocabulary = 151936,
    .hidden = 4096,
    .intermediate = 22016,
    .layers = 32,
    .heads = 32,
    .kv_heads = 32,
    .max_positions = 32768,
    .rms_eps = 1e-6,
    .theta = 1e4,
    .bos = -1,
    .eos = -1,
    .pad = -1,
    .window = 4096,
    .first_window_layer = 28,
    .activation_key = "hidden_act",
    .activation = ACTIVATION_SILU,
    .qkv_bias = true,
    .norm = NORM_CAST_THEN_WEIGHT,
    .windows = DECODER_WINDOW_FROM,
};

static status_t read_config(const json_t *config, model_config_t *out) {
    return decoder_read_text_family(config, &decoder, out);
}

const model_family_t qwen2_family = {
    .name = "qwen2",
    .model_types = {"qwen2"},
    .decoder = &decoder,
    .read_config = read_config,
    .add_parameters = decoder_add_text_family,
    .map_name = decoder_map_name,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
};
