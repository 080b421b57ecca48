// The family: config.json, parameters, table.
#include "common/model/llava_next.h"

#include <stdlib.h>
#include <string.h>

static status_t read_tower(config_reader_t *root, vit_config_t *vit) {
    const json_t *vision;
    TRY(config_object(root, "vision_config", &vision));
    // What the class builds where there is no vision_config at all.
    json_t *absent = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "hidden_size", 1024, "intermediate_size", 4096,
                               "num_hidden_layers", 24, "num_attention_heads", 16, "image_size", 336, "patch_size", 14);
    status_t status = vit_read_config(vision ? vision : absent, VIT_CLIP, vit);
    json_decref(absent);
    return status;
}

// hidden_states[i] of a tower with `layers` layers; negative ones count from the end.
static status_t read_state(const json_t *item, int layers, int *out) {
    json_int_t number = json_integer_value(item);
    if (!json_is_integer(item) || number < -layers - 1 || number > layers)
        FAIL(STATUS_INVALID, "config.json: 'vision_feature_layer' must be a number from %d to %d or a list of them",
             -layers - 1, layers);
    *out = (int)(number < 0 ? number + layers + 1 : number);
    return STATUS_OK;
}

static status_t read_states(config_reader_t *root, llava_config_t *llava) {
    const json_t *value = config_get(root, "vision_feature_layer");
    int layers = llava->vit.layers;
    llava->states = 1;
    llava->state[0] = layers - 1;
    if (value && !json_is_array(value)) return read_state(value, layers, &llava->state[0]);
    size_t count = value ? json_array_size(value) : 1;
    if (!value && layers < 1) FAIL(STATUS_INVALID, "config.json: the vision tower has no layers");
    if (count < 1 || count > LLAVA_MAX_STATES)
        FAIL(STATUS_INVALID, "config.json: 'vision_feature_layer' must have 1 to %d entries", LLAVA_MAX_STATES);
    llava->states = (int)count;
    for (size_t i = 0; value && i < count; i++) TRY(read_state(json_array_get(value, i), layers, &llava->state[i]));
    return STATUS_OK;
}

// Rows of features must be square tiles: with CLIP without the class row, with SigLIP as they are.
static status_t read_strategy(config_reader_t *root, const llava_config_t *llava) {
    static const char *const choices[] = {"default", "full", NULL};
    TRY(config_choice(root, "vision_feature_select_strategy", choices));
    const char *name = json_string_value(config_get(root, "vision_feature_select_strategy"));
    bool full = name && !strcmp(name, "full"), clip = llava->vit.kind == VIT_CLIP;
    if (full == clip)
        FAIL(STATUS_INVALID,
             "config.json: 'vision_feature_select_strategy' is '%s'; with a tower %s class row only '%s' leaves whole "
             "tiles",
             full ? "full" : "default", clip ? "that has a" : "without a", clip ? "default" : "full");
    return STATUS_OK;
}

static status_t read_pinpoints(config_reader_t *root, int image, image_rules_t *rules) {
    static const int defaults[5][2] = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
    const json_t *list = config_get(root, "image_grid_pinpoints");
    size_t count = list ? json_array_size(list) : 5;
    if (count < 1 || count > IMAGE_MAX_PINPOINTS)
        FAIL(STATUS_INVALID, "config.json: 'image_grid_pinpoints' must be a list of 1 to %d resolutions",
             IMAGE_MAX_PINPOINTS);
    for (size_t i = 0; i < count; i++) {
        const json_t *pair = json_array_get(list, i);
        for (size_t side = 0; side < 2; side++) {
            const json_t *item = json_array_get(pair, side);
            json_int_t pixels = list ? json_integer_value(item) : defaults[i][side];
            bool is_pair = !list || (json_array_size(pair) == 2 && json_is_integer(item));
            if (!is_pair || pixels < image || pixels % image || pixels > 1 << 20)
                FAIL(STATUS_INVALID,
                     "config.json: each of 'image_grid_pinpoints' must be a height and a width that are multiples of "
                     "the tower's image_size, %d",
                     image);
            rules->pinpoint[i][side] = (int)pixels;
        }
    }
    rules->pinpoints = (int)count;
    return STATUS_OK;
}

static status_t read_rules(config_reader_t *root, const vit_config_t *vit, model_config_t *out) {
    int image_token = 32000;
    TRY(multimodal_read_token(root, "image_token_index", "image_token_id", &image_token));
    if (image_token >= out->vocabulary)
        FAIL(STATUS_INVALID, "config.json: image_token_index %d is not in a vocabulary of %d", image_token,
             out->vocabulary);
    out->image = (image_rules_t){.processor = PROCESSOR_LLAVA_NEXT,
                                 .filter = FILTER_BICUBIC,
                                 .patch = vit->patch,
                                 .merge = 1,
                                 .temporal = 1,
                                 .side_height = vit->image,
                                 .side_width = vit->image,
                                 .image_token = image_token,
                                 .vision_start = -1,
                                 .vision_end = -1};
    multimodal_ban_tokens(out, &image_token, 1);
    return read_pinpoints(root, vit->image, &out->image);
}

status_t llava_read_config(const json_t *config, model_config_t *out) {
    static const char *const ignored[] = {"image_seq_length", "use_image_newline_parameter", "ignore_index",
                                          "vocab_size", NULL};
    llava_config_t *llava;
    TRY(ALLOCATE((llava_config_t **)&out->family_config, 1));
    llava = out->family_config;
    llava->activation = ACTIVATION_GELU_ERF;
    llava->bias = true;
    out->has_vision = true;
    config_reader_t root = config_reader(config, "config.json");
    TRY(multimodal_read_text(&root, "llama", false, false, out));
    TRY(read_tower(&root, &llava->vit));
    TRY(read_states(&root, llava));
    TRY(read_strategy(&root, llava));
    TRY(vit_read_activation(&root, "projector_hidden_act", &llava->activation));
    TRY(config_boolean(&root, "multimodal_projector_bias", &llava->bias));
    TRY(read_rules(&root, &llava->vit, out));
    config_ignore(&root, ignored);
    config_finish(&root);
    return STATUS_OK;
}

static void llava_free_config(model_config_t *config) {
    free(config->family_config);
    config->family_config = NULL;
}

static status_t add_projector(model_t *model, bool bias, int64_t rows, int64_t columns, const char *name) {
    int64_t shape[2] = {rows, columns};
    TRY(model_add_parameter(model, PART_PROJECTOR, true, 2, shape, "multi_modal_projector.%s.weight", name));
    if (!bias) return STATUS_OK;
    return model_add_parameter(model, PART_PROJECTOR, false, 1, shape, "multi_modal_projector.%s.bias", name);
}

static status_t llava_add_parameters(model_t *model) {
    llava_config_t *llava = model->config.family_config;
    int64_t hidden = model->config.hidden;
    TRY(vit_add_parameters(model, &llava->vit));
    llava->newline = model->parameter_count;
    TRY(model_add_parameter(model, PART_PROJECTOR, false, 1, &hidden, "image_newline"));
    llava->first_linear = model->parameter_count;
    TRY(add_projector(model, llava->bias, hidden, (int64_t)llava->vit.width * llava->states, "linear_1"));
    llava->second_linear = model->parameter_count;
    TRY(add_projector(model, llava->bias, hidden, hidden, "linear_2"));
    return decoder_add_parameters(model, "language_model.");
}

const model_family_t llava_next_family = {
    .name = "llava_next",
    .model_types = {"llava_next"},
    .read_config = llava_read_config,
    .free_config = llava_free_config,
    .add_parameters = llava_add_parameters,
    .map_name = multimodal_map_name,
    .module_name = multimodal_module_name,
    .vision = llava_vision,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
    .feature_rows = llava_feature_rows,
};
