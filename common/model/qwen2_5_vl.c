// The family's parameter list (checkpoint names and order), the names of other generations, and the two tables.
#include "common/model/qwen2_5_vl.h"

#include <string.h>

static status_t add_linear(model_t *model, model_part_t part, bool bias, int rows, int columns, const char *prefix,
                           int layer, const char *name) {
    int64_t shape[2] = {rows, columns};
    TRY(model_add_parameter(model, part, true, 2, shape, "%s.%d%s.weight", prefix, layer, name));
    if (!bias) return STATUS_OK;
    return model_add_parameter(model, part, false, 1, shape, "%s.%d%s.bias", prefix, layer, name);
}

static status_t add_vision(model_t *model) {
    qwen_config_t *qwen = model->config.family_config;
    const image_rules_t *image = &model->config.image;
    int64_t width = qwen->vision_hidden, merged = width * image->merge * image->merge, hidden = model->config.hidden;
    int64_t patch[5] = {width, qwen->channels, image->temporal, image->patch, image->patch};
    int wide = (int)width, middle = qwen->vision_intermediate;
    const char *blocks = "visual.blocks";
    qwen->patch_embed = model->parameter_count;
    TRY(model_add_parameter(model, PART_VISION, false, 5, patch, "visual.patch_embed.proj.weight"));
    qwen->blocks = model->parameter_count;
    for (int i = 0; i < qwen->depth; i++) {
        TRY(model_add_parameter(model, PART_VISION, false, 1, &width, "%s.%d.norm1.weight", blocks, i));
        TRY(add_linear(model, PART_VISION, true, 3 * wide, wide, blocks, i, ".attn.qkv"));
        TRY(add_linear(model, PART_VISION, true, wide, wide, blocks, i, ".attn.proj"));
        TRY(model_add_parameter(model, PART_VISION, false, 1, &width, "%s.%d.norm2.weight", blocks, i));
        TRY(add_linear(model, PART_VISION, true, middle, wide, blocks, i, ".mlp.gate_proj"));
        TRY(add_linear(model, PART_VISION, true, middle, wide, blocks, i, ".mlp.up_proj"));
        TRY(add_linear(model, PART_VISION, true, wide, middle, blocks, i, ".mlp.down_proj"));
    }
    if (merged > INT32_MAX) FAIL(STATUS_INVALID, "vision_config: the merger would be %lld wide", (long long)merged);
    qwen->merger = model->parameter_count;
    TRY(model_add_parameter(model, PART_PROJECTOR, false, 1, &width, "visual.merger.ln_q.weight"));
    TRY(add_linear(model, PART_PROJECTOR, true, (int)merged, (int)merged, "visual.merger.mlp", 0, ""));
    return add_linear(model, PART_PROJECTOR, true, (int)hidden, (int)merged, "visual.merger.mlp", 2, "");
}

static status_t add_text(model_t *model) {
    const model_config_t *config = &model->config;
    qwen_config_t *qwen = config->family_config;
    const char *layers = "model.layers";
    int64_t hidden = config->hidden, table[2] = {config->vocabulary, config->hidden};
    int wide = config->hidden, kv = config->kv_heads * config->head_dim, middle = config->intermediate;
    model->embedding = model->parameter_count;
    TRY(model_add_parameter(model, PART_LANGUAGE, false, 2, table, "model.embed_tokens.weight"));
    qwen->text_layers = model->parameter_count;
    for (int i = 0; i < config->layers; i++) {
        TRY(model_add_parameter(model, PART_LANGUAGE, false, 1, &hidden, "%s.%d.input_layernorm.weight", layers, i));
        TRY(add_linear(model, PART_LANGUAGE, true, wide, wide, layers, i, ".self_attn.q_proj"));
        TRY(add_linear(model, PART_LANGUAGE, true, kv, wide, layers, i, ".self_attn.k_proj"));
        TRY(add_linear(model, PART_LANGUAGE, true, kv, wide, layers, i, ".self_attn.v_proj"));
        TRY(add_linear(model, PART_LANGUAGE, false, wide, wide, layers, i, ".self_attn.o_proj"));
        TRY(model_add_parameter(model, PART_LANGUAGE, false, 1, &hidden, "%s.%d.post_attention_layernorm.weight",
                                layers, i));
        TRY(add_linear(model, PART_LANGUAGE, false, middle, wide, layers, i, ".mlp.gate_proj"));
        TRY(add_linear(model, PART_LANGUAGE, false, middle, wide, layers, i, ".mlp.up_proj"));
        TRY(add_linear(model, PART_LANGUAGE, false, wide, middle, layers, i, ".mlp.down_proj"));
    }
    qwen->final_norm = model->parameter_count;
    TRY(model_add_parameter(model, PART_LANGUAGE, false, 1, &hidden, "model.norm.weight"));
    model->head = model->embedding;
    if (config->tied_embeddings) return STATUS_OK;
    model->head = model->parameter_count;
    return model_add_parameter(model, PART_HEAD, false, 2, table, "lm_head.weight");
}

static status_t qwen_add_parameters(model_t *model) {
    if (model->config.has_vision) TRY(add_vision(model));
    return add_text(model);
}

// Newer module names -> checkpoint names; names that are ours already stay.
static bool qwen_map_name(const model_t *model, const char *name, char *out, size_t bytes) {
    static const char *const prefixes[][2] = {{"model.visual.", "visual."}, {"model.language_model.", "model."}};
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        size_t length = strlen(prefixes[i][0]);
        if (strncmp(name, prefixes[i][0], length) != 0) continue;
        int written = snprintf(out, bytes, "%s%s", prefixes[i][1], name + length);
        return written > 0 && (size_t)written < bytes && model_find(model, out) >= 0;
    }
    int written = snprintf(out, bytes, "%s", name);
    return written > 0 && (size_t)written < bytes && model_find(model, out) >= 0;
}

static void qwen_module_name(const char *name, char *out, size_t bytes) {
    bool text = !strncmp(name, "model.", strlen("model."));
    bool vision = !strncmp(name, "visual.", strlen("visual."));
    if (text) name += strlen("model.");
    snprintf(out, bytes, "%s%s", text ? "model.language_model." : vision ? "model." : "", name);
}

const model_family_t qwen2_5_vl_family = {
    .name = "qwen2_5_vl",
    .model_types = {"qwen2_5_vl"},
    .read_config = qwen_read_config,
    .free_config = qwen_free_config,
    .add_parameters = qwen_add_parameters,
    .map_name = qwen_map_name,
    .module_name = qwen_module_name,
    .vision = qwen_vision,
    .text = qwen_text,
    .rope_positions = qwen_rope_positions,
    .feature_rows = qwen_feature_rows,
};

// The text part alone.
const model_family_t qwen2_family = {
    .name = "qwen2",
    .model_types = {"qwen2"},
    .read_config = qwen2_read_config,
    .free_config = qwen_free_config,
    .add_parameters = qwen_add_parameters,
    .map_name = qwen_map_name,
    .text = qwen_text,
    .rope_positions = qwen_rope_positions,
};
