#include "common/model/llama.h"
#include "common/model/decoder.h"

static const char *const ignored[] = {"pretraining_tp", NULL};

static const decoder_class_t decoder = {
    .vocabulary = 32000,
    .hidden = 4096,
    .intermediate = 11008,
    .layers = 32,
    .heads = 32,
    .max_positions = 2048,
    .rms_eps = 1e-6,
    .theta = 1e4,
    .bos = 1,
    .eos = 2,
    .pad = -1,
    .activation_key = "hidden_act",
    .activation = ACTIVATION_SILU,
    .attention_bias_key = true,
    .mlp_bias_key = true,
    .norm = NORM_CAST_THEN_WEIGHT,
    .whole_heads = true,
    .ignored = ignored,
};

static status_t read_config(const json_t *config, model_config_t *out) {
    return decoder_read_text_family(config, &decoder, out);
}

const model_family_t llama_family = {
    .name = "llama",
    .model_types = {"llama"},
    .decoder = &decoder,
    .read_config = read_config,
    .add_parameters = decoder_add_text_family,
    .map_name = decoder_map_name,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
};
