#include "common/model/mistral.h"
#include "common/model/decoder.h"

static const decoder_class_t decoder = {
    .vocabulary = 32000,
    .hidden = 4096,
    .intermediate = 14336,
    .layers = 32,
    .heads = 32,
    .kv_heads = 8,
    .max_positions = 131072,
    .rms_eps = 1e-6,
    .theta = 1e4,
    .bos = 1,
    .eos = 2,
    .pad = -1,
    .window = 4096,
    .activation_key = "hidden_act",
    .activation = ACTIVATION_SILU,
    .norm = NORM_CAST_THEN_WEIGHT,
    .windows = DECODER_WINDOW_ALL,
};

static status_t read_config(const json_t *config, model_config_t *out) {
    return decoder_read_text_family(config, &decoder, out);
}

const model_family_t mistral_family = {
    .name = "mistral",
    .model_types = {"mistral"},
    .decoder = &decoder,
    .read_config = read_config,
    .add_parameters = decoder_add_text_family,
    .map_name = decoder_map_name,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
};
