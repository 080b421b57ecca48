// The text decoder of all families: reading its part of config.json, its parameters, its forward, its positions.
//
// A family brings a decoder_class_t: what its transformers class takes for absent keys, and which rules it follows.
// decoder_read_config then fills the model's sizes and model_config_t.decoder; decoder_text is the family's `text`.
//
//     config_reader_t reader = config_reader(text_config, "text_config");
//     TRY(decoder_read_config(&reader, &mistral_decoder, out));
//     config_finish(&reader);
//
// A vision family whose text_config may name several decoders finds the class by
// model_family_find(model_type)->decoder.
#ifndef COMMON_MODEL_DECODER_H
#define COMMON_MODEL_DECODER_H

#include "common/model/config_reader.h"
#include "common/model/model.h"

// Which layers see a window only, and from which keys that follows.
typedef enum decoder_windows {
    DECODER_WINDOW_NONE,
    DECODER_WINDOW_ALL,     // sliding_window (null: none) in every layer
    DECODER_WINDOW_FROM,    // use_sliding_window, sliding_window, max_window_layers or layer_types
    DECODER_WINDOW_PATTERN, // sliding_window, layer_types or sliding_window_pattern
} decoder_windows_t;

struct decoder_class {
    // Defaults of absent keys.
    int vocabulary, hidden, intermediate, layers, heads;
    int kv_heads; // 0: as many as heads
    int head_dim; // 0: hidden / heads
    int max_positions;
    double rms_eps;
    double theta, local_theta; // local_theta: of sliding layers, with two_ropes
    bool tied;
    int bos, eos, pad; // -1: none
    int window, first_window_layer;
    double
        query_scalar; // query_pre_attn_scalar: scores are scaled by its -0.5th power; 0: the head size's, no such key
    // Rules.
    const char *activation_key; // "hidden_act" with silu, "hidden_activation" with gelu_pytorch_tanh by default
    activation_t activation;
    bool qkv_bias;           // always
    bool attention_bias_key; // q, k, v and o by 'attention_bias'
    bool mlp_bias_key;       // gate, up and down by 'mlp_bias'
    bool head_norms, four_norms, scaled_embedding;
    norm_flavour_t norm;
    decoder_windows_t windows;
    bool two_ropes;             // rope_parameters by layer type; rope_local_base_freq
    bool sections;              // m-rope
    bool whole_heads;           // hidden_size must be a multiple of num_attention_heads
    bool fixed_head_dim;        // head_dim must be hidden_size / num_attention_heads
    const char *const *ignored; // keys of the class without effect, ending with NULL; or NULL
};

// Fills sizes, token ids, tied_embeddings and the decoder of `out`. Errors: what the forward does not do is refused by
// name. The caller reads further keys and calls config_finish.
status_t decoder_read_config(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) STATUS_CHECKED;
// A text-only family's read_config: everything lies at the root.
status_t decoder_read_text_family(const json_t *config, const decoder_class_t *class,
                                  model_config_t *out) STATUS_CHECKED;
// Adds the token table, the layers, the final norm and the head under PREFIXmodel.*, PREFIXlm_head.weight; prefix is ""
// or such as "language_model.". Sets model->embedding and model->head.
status_t decoder_add_parameters(model_t *model, const char *prefix) STATUS_CHECKED;
// A text-only family's add_parameters and map_name (names with and without "model.").
status_t decoder_add_text_family(model_t *model) STATUS_CHECKED;
bool decoder_map_name(const model_t *model, const char *name, char *out, size_t bytes);

// What a forward's rope tables are made of beside positions: [head_dim / 2] each; the second frequency only for models
// with two ropes.
void decoder_rope_constants(const model_config_t *config, int32_t *axis, float *const frequency[2]);
// A family's `text`.
status_t decoder_text(model_t *model, tape_t *tape, const text_input_t *input, tensor_t **hidden) STATUS_CHECKED;
// A family's `rope_positions` without m-rope: token i is at i on all axes, image tokens too. Every run of image tokens
// must have its image's feature_rows / runs.
status_t decoder_rope_positions(const model_config_t *config, const int32_t *tokens, int count,
                                const image_shape_t *shapes, int images, int32_t *position[3],
                                int32_t *next) STATUS_CHECKED;

// Rope's parts, for the decoder's own files and for tests.
status_t decoder_read_rope(config_reader_t *reader, const decoder_class_t *class, model_config_t *out) STATUS_CHECKED;
// out: [head_dim / 2].
void decoder_inverse_frequencies(const decoder_rope_t *rope, int head_dim, float *out);

#endif
