// What a text decoder does: the part of a model's configuration that the one decoder forward (decoder.h) is driven by.
#ifndef COMMON_MODEL_DECODER_CONFIG_H
#define COMMON_MODEL_DECODER_CONFIG_H

#include "kernels/device.h"

enum { DECODER_MAX_LAYERS = 1024, DECODER_MAX_PREFIX = 64 };

typedef enum decoder_rope_type { DECODER_ROPE_DEFAULT, DECODER_ROPE_LINEAR, DECODER_ROPE_LLAMA3 } decoder_rope_type_t;

// How the inverse frequencies of a rope table come about: theta^(-2i / head_dim), then scaled by the type's rule.
typedef struct decoder_rope {
    decoder_rope_type_t type;
    double theta;
    double factor;             // linear, llama3
    double low, high;          // llama3: low_freq_factor, high_freq_factor
    double original_positions; // llama3: original_max_position_embeddings
} decoder_rope_t;

// Parameters of a layer, in the order in which a model has them; a decoder without one has no place for it.
typedef enum decoder_parameter {
    DECODER_INPUT_NORM,
    DECODER_Q,
    DECODER_Q_BIAS,
    DECODER_K,
    DECODER_K_BIAS,
    DECODER_V,
    DECODER_V_BIAS,
    DECODER_O,
    DECODER_O_BIAS,
    DECODER_Q_NORM,
    DECODER_K_NORM,
    DECODER_POST_ATTENTION_NORM, // with four norms: of the attention's output; else: of the MLP's input
    DECODER_PRE_MLP_NORM,        // four norms only, as is the next
    DECODER_POST_MLP_NORM,
    DECODER_GATE,
    DECODER_GATE_BIAS,
    DECODER_UP,
    DECODER_UP_BIAS,
    DECODER_DOWN,
    DECODER_DOWN_BIAS,
    DECODER_LAYER_PARAMETERS
} decoder_parameter_t;

typedef struct decoder_config {
    bool qkv_bias, o_bias, mlp_bias;
    bool head_norms; // rmsnorm of every query and key head before rope
    bool four_norms; // attention's and MLP's outputs are normed, too, before they are added
    norm_flavour_t norm;
    activation_t activation;
    float attention_scale; // of the scores
    float embedding_scale; // of token rows (image rows stay as they are); 0: none. Rounded to the table's dtype
    int padding;           // id whose row of the token table gets no gradient as input; -1: none
    int window;            // of the sliding layers
    bool sliding[DECODER_MAX_LAYERS];
    bool two_ropes;         // sliding layers use rope[1]
    decoder_rope_t rope[2]; // of all layers, or of full and of sliding ones
    int rope_sections[3];   // m-rope's (in half-dims: they sum to head_dim / 2); {half, 0, 0} for plain rope
    // Where the parameters are, set by decoder_add_parameters.
    char prefix[DECODER_MAX_PREFIX];
    int first_layer, layer_parameters;   // index of layer 0's first, and how many a layer has
    int place[DECODER_LAYER_PARAMETERS]; // after the layer's first; -1: this decoder has none
    int final_norm;
} decoder_config_t;

#endif
