#include "common/model/gemma3_text.h"
#include "common/model/decoder.h"

static const decoder_class_t decoder = {
    .vocabulary = 262208,
    .hidden = 2304,
    .intermediate = 9216,
    .layers = 26,
    .heads = 8,
    .kv_heads = 4,
    .head_dim = 256,
    .max_positions = 131072,
    .rms_eps = 1e-6,
    .theta = 1e6,
    .local_theta = 1e4,
    .tied = true,
    .bos = 2,
    .eos = 1,
    .pad = 0,
    .window = 4096,
    .query_scalar = 256.0,
    .activation_key = "hidden_activation",
    .activation = ACTIVATION_GELU_TANH,
    .attention_bias_key = true,
    .head_norms = true,
    .four_norms = true,
    .scaled_embedding = true,
    .norm = NORM_ONE_PLUS_WEIGHT,
    .windows = DECODER_WINDOW_PATTERN,
    .two_ropes = true,
    .whole_heads = true,
};

static status_t read_config(const json_t *config, model_config_t *out) {
    return decoder_read_text_family(config, &decoder, out);
}

const model_family_t gemma3_text_family = {
    .name = "gemma3_text",
    .model_types = {"gemma3_text"},
    .decoder = &decoder,
    .read_config = read_config,
    .add_parameters = decoder_add_text_family,
    .map_name = decoder_map_name,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
};
