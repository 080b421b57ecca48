// The family's parameter list (checkpoint names and order), the names of other generations, and the table.
#include "common/model/qwen2_5_vl.h"
#include "common/model/decoder.h"

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

static status_t qwen_add_parameters(model_t *model) {
    TRY(add_vision(model));
    return decoder_add_parameters(model, "");
}

// Newer module names -> checkpoint names; names that are ours already stay.
static bool qwen_map_name(const model_t *model, const char *name, char *out, size_t bytes) {
    static const char *const prefixes[][2] = {
        {"model.visual.", "visual."}, {"model.language_model.", "model."}, {"", ""}};
    return model_map_prefix(model, prefixes, 3, name, out, bytes);
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
    .text = decoder_text,
    .rope_positions = qwen_rope_positions,
    .feature_rows = qwen_feature_rows,
};
