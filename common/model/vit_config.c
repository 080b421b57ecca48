// vision_config of CLIP and SigLIP, and the tower's parameter list.
#include "common/model/vit.h"

#include <string.h>

enum { MAX_WIDTH = 1 << 16, MAX_HEADS = 1 << 12, MAX_SIDE = 1 << 14, MAX_ROWS = 1 << 20 };

status_t vit_read_activation(config_reader_t *reader, const char *key, activation_t *out) {
    static const struct {
        const char *name;
        activation_t kind;
    } known[] = {{"quick_gelu", ACTIVATION_QUICK_GELU},
                 {"gelu", ACTIVATION_GELU_ERF},
                 {"gelu_python", ACTIVATION_GELU_ERF},
                 {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
                 {"gelu_python_tanh", ACTIVATION_GELU_TANH},
                 {"gelu_new", ACTIVATION_GELU_TANH},
                 {"gelu_accurate", ACTIVATION_GELU_TANH},
                 {"gelu_fast", ACTIVATION_GELU_TANH},
                 {"silu", ACTIVATION_SILU},
                 {"swish", ACTIVATION_SILU}};
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    const char *name = json_string_value(value);
    for (size_t i = 0; name && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        *out = known[i].kind;
        return STATUS_OK;
    }
    FAIL(STATUS_INVALID, "%s: '%s' is '%.64s', and Poise knows quick_gelu, gelu, gelu_pytorch_tanh and silu there",
         reader->where, key, name ? name : "no text");
}

// A number, or a list of two equal ones.
static status_t read_side(config_reader_t *reader, const char *key, int *out) {
    int sides[2] = {*out, *out}, count = 2;
    TRY(config_integers(reader, key, sides, 2, &count));
    if (count == 0 || (count == 2 && sides[0] != sides[1]) || sides[0] < 1 || sides[0] > MAX_SIDE)
        FAIL(STATUS_INVALID, "%s: '%s' must be one number from 1 to %d", reader->where, key, MAX_SIDE);
    *out = sides[0];
    return STATUS_OK;
}

static status_t read_kind(config_reader_t *reader, vit_kind_t *kind) {
    const json_t *value = config_get(reader, "model_type");
    const char *type = json_string_value(value);
    if (!value) return STATUS_OK;
    bool clip = type && !strcmp(type, "clip_vision_model"), siglip = type && !strcmp(type, "siglip_vision_model");
    if (!clip && !siglip)
        FAIL(STATUS_INVALID,
             "%s: 'model_type' is '%.64s'; the vision towers that Poise knows are clip_vision_model and "
             "siglip_vision_model",
             reader->where, type ? type : "no text");
    *kind = clip ? VIT_CLIP : VIT_SIGLIP;
    return STATUS_OK;
}

static status_t check_sizes(const config_reader_t *reader, vit_config_t *vit) {
    vit->side = vit->image / vit->patch;
    if (vit->side < 1)
        FAIL(STATUS_INVALID, "%s: a patch_size of %d is larger than the image_size %d", reader->where, vit->patch,
             vit->image);
    if (vit->side * vit->side > MAX_ROWS)
        FAIL(STATUS_INVALID, "%s: %d x %d patches a picture are more than %d", reader->where, vit->side, vit->side,
             MAX_ROWS);
    if (vit->width % vit->heads || vit->width / vit->heads > ATTENTION_MAX_HEAD_DIM)
        FAIL(STATUS_INVALID, "%s: hidden_size %d over %d heads must give whole heads of at most %d", reader->where,
             vit->width, vit->heads, ATTENTION_MAX_HEAD_DIM);
    return STATUS_OK;
}

status_t vit_read_config(const json_t *object, vit_kind_t kind, vit_config_t *out) {
    static const char *const ignored[] = {
        "projection_dim",     "vocab_size",           "attention_dropout", "dropout", "initializer_range",
        "initializer_factor", "architectures",        "torch_dtype",       "dtype",   "transformers_version",
        "_name_or_path",      "projector_hidden_act", "projection_size",   NULL};
    config_reader_t reader = config_reader(object, "vision_config");
    TRY(read_kind(&reader, &kind));
    bool clip = kind == VIT_CLIP;
    *out = (vit_config_t){.kind = kind,
                          .width = 768,
                          .layers = 12,
                          .heads = 12,
                          .intermediate = 3072,
                          .image = 224,
                          .patch = clip ? 32 : 16,
                          .eps = clip ? 1e-5 : 1e-6,
                          .activation = clip ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU_TANH,
                          .pooling_head = !clip};
    int channels = 3;
    TRY(config_integer(&reader, "hidden_size", 1, MAX_WIDTH, &out->width));
    TRY(config_integer(&reader, "num_hidden_layers", 1, VIT_MAX_LAYERS, &out->layers));
    TRY(config_integer(&reader, "num_attention_heads", 1, MAX_HEADS, &out->heads));
    TRY(config_integer(&reader, "intermediate_size", 1, MAX_WIDTH, &out->intermediate));
    TRY(config_integer(&reader, "num_channels", 1, 64, &channels));
    TRY(read_side(&reader, "image_size", &out->image));
    TRY(read_side(&reader, "patch_size", &out->patch));
    TRY(config_number(&reader, "layer_norm_eps", 0.0, 1.0, &out->eps));
    TRY(vit_read_activation(&reader, "hidden_act", &out->activation));
    if (!clip) TRY(config_boolean(&reader, "vision_use_head", &out->pooling_head));
    if (channels != 3) FAIL(STATUS_INVALID, "vision_config: 'num_channels' is %d; pictures have 3 here", channels);
    config_ignore(&reader, ignored);
    config_finish(&reader);
    return check_sizes(&reader, out);
}

// ---- parameters ----

#define TOWER "vision_tower.vision_model."

static status_t add_vector(model_t *model, int64_t size, const char *name) {
    return model_add_parameter(model, PART_VISION, false, 1, &size, TOWER "%s", name);
}

static status_t add_pair(model_t *model, bool is_linear, int64_t rows, int64_t columns, const char *module) {
    int64_t shape[2] = {rows, columns};
    TRY(model_add_parameter(model, PART_VISION, is_linear, columns ? 2 : 1, shape, TOWER "%s.weight", module));
    return model_add_parameter(model, PART_VISION, false, 1, &rows, TOWER "%s.bias", module);
}

static status_t add_layer(model_t *model, const vit_config_t *vit, int layer) {
    const struct {
        const char *name;
        bool is_linear;
        int rows, columns;
    } modules[] = {{"layer_norm1", false, vit->width, 0},
                   {"self_attn.q_proj", true, vit->width, vit->width},
                   {"self_attn.k_proj", true, vit->width, vit->width},
                   {"self_attn.v_proj", true, vit->width, vit->width},
                   {"self_attn.out_proj", true, vit->width, vit->width},
                   {"layer_norm2", false, vit->width, 0},
                   {"mlp.fc1", true, vit->intermediate, vit->width},
                   {"mlp.fc2", true, vit->width, vit->intermediate}};
    char name[96];
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        snprintf(name, sizeof(name), "encoder.layers.%d.%s", layer, modules[i].name);
        TRY(add_pair(model, modules[i].is_linear, modules[i].rows, modules[i].columns, name));
    }
    return STATUS_OK;
}

static status_t add_pooling_head(model_t *model, const vit_config_t *vit) {
    int64_t probe[3] = {1, 1, vit->width}, in[2] = {3 * (int64_t)vit->width, vit->width};
    TRY(model_add_parameter(model, PART_VISION, false, 3, probe, TOWER "head.probe"));
    TRY(model_add_parameter(model, PART_VISION, false, 2, in, TOWER "head.attention.in_proj_weight"));
    TRY(add_vector(model, in[0], "head.attention.in_proj_bias"));
    TRY(add_pair(model, false, vit->width, vit->width, "head.attention.out_proj"));
    TRY(add_pair(model, false, vit->width, 0, "head.layernorm"));
    TRY(add_pair(model, false, vit->intermediate, vit->width, "head.mlp.fc1"));
    return add_pair(model, false, vit->width, vit->intermediate, "head.mlp.fc2");
}

status_t vit_add_parameters(model_t *model, vit_config_t *vit) {
    bool clip = vit->kind == VIT_CLIP;
    int64_t width = vit->width, patch[4] = {width, 3, vit->patch, vit->patch};
    int64_t positions[2] = {(int64_t)vit->side * vit->side + clip, width};
    vit->class_embedding = model->parameter_count;
    if (clip) TRY(add_vector(model, width, "embeddings.class_embedding"));
    vit->patches = model->parameter_count;
    TRY(model_add_parameter(model, PART_VISION, false, 4, patch, TOWER "embeddings.patch_embedding.weight"));
    if (!clip) TRY(add_vector(model, width, "embeddings.patch_embedding.bias"));
    vit->positions = model->parameter_count;
    TRY(model_add_parameter(model, PART_VISION, false, 2, positions, TOWER "embeddings.position_embedding.weight"));
    vit->pre_norm = model->parameter_count;
    if (clip) TRY(add_pair(model, false, width, 0, "pre_layrnorm")); // so it is spelt
    vit->encoder = model->parameter_count;
    for (int i = 0; i < vit->layers; i++) TRY(add_layer(model, vit, i));
    vit->post_norm = model->parameter_count;
    TRY(add_pair(model, false, width, 0, "post_layernorm"));
    return vit->pooling_head ? add_pooling_head(model, vit) : STATUS_OK;
}
