// Gemma-3 with pictures: a SigLIP tower, average pooling, a norm and one matrix in front of gemma3_text. A picture's
// tokens see each other (model_config_t.image_groups).
#include "common/model/gemma3.h"
#include "common/model/multimodal.h"
#include "common/model/vit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct gemma3_config {
    vit_config_t vit;
    int pool, side;       // patches of a side that become one row; rows of a side
    int norm, projection; // indices in the model's parameter list
} gemma3_config_t;

// ---- config.json ----

static status_t read_rules(config_reader_t *root, const gemma3_config_t *gemma, model_config_t *out) {
    int image = 262144, start = 255999, end = 256000;
    TRY(multimodal_read_token(root, "image_token_index", "image_token_id", &image));
    TRY(multimodal_read_token(root, "boi_token_index", "boi_token_id", &start));
    TRY(multimodal_read_token(root, "eoi_token_index", "eoi_token_id", &end));
    const int ids[3] = {image, start, end};
    out->image = (image_rules_t){.processor = PROCESSOR_GEMMA3,
                                 .filter = FILTER_BILINEAR,
                                 .patch = gemma->vit.patch,
                                 .merge = 1,
                                 .temporal = 1,
                                 .side_height = gemma->vit.image,
                                 .side_width = gemma->vit.image,
                                 .tokens = gemma->side * gemma->side,
                                 .image_token = image,
                                 .vision_start = start,
                                 .vision_end = end};
    multimodal_ban_tokens(out, ids, 3);
    return STATUS_OK;
}

static status_t gemma3_read_config(const json_t *config, model_config_t *out) {
    static const char *const ignored[] = {"initializer_range", "ignore_index", NULL};
    gemma3_config_t *gemma;
    const json_t *vision;
    int tokens = 256;
    TRY(ALLOCATE((gemma3_config_t **)&out->family_config, 1));
    gemma = out->family_config;
    config_reader_t root = config_reader(config, "config.json");
    TRY(multimodal_read_text(&root, "gemma3_text", true, true, out));
    TRY(config_object(&root, "vision_config", &vision));
    json_t *empty = json_object();
    status_t status = vit_read_config(vision ? vision : empty, VIT_SIGLIP, &gemma->vit);
    json_decref(empty);
    if (status) PASS_ON(status);
    if (gemma->vit.kind != VIT_SIGLIP) FAIL(STATUS_INVALID, "vision_config: a gemma3 model has a SigLIP tower");
    TRY(config_integer(&root, "mm_tokens_per_image", 1, 1 << 20, &tokens));
    int wanted = (int)sqrt((double)tokens), patches = gemma->vit.side;
    if (wanted > patches)
        FAIL(STATUS_INVALID, "config.json: mm_tokens_per_image is %d, and a picture has %d x %d patches", tokens,
             patches, patches);
    gemma->pool = patches / wanted;
    gemma->side = patches / gemma->pool;
    out->has_vision = true;
    out->image_groups = true;
    TRY(read_rules(&root, gemma, out));
    config_ignore(&root, ignored);
    config_finish(&root);
    return STATUS_OK;
}

static void gemma3_free_config(model_config_t *config) {
    free(config->family_config);
    config->family_config = NULL;
}

static status_t gemma3_add_parameters(model_t *model) {
    gemma3_config_t *gemma = model->config.family_config;
    int64_t width = gemma->vit.width, stored[2] = {width, model->config.hidden};
    TRY(vit_add_parameters(model, &gemma->vit));
    gemma->projection = model->parameter_count;
    TRY(model_add_parameter(model, PART_PROJECTOR, false, 2, stored,
                            "multi_modal_projector.mm_input_projection_weight"));
    model_transpose_last(model);
    gemma->norm = model->parameter_count;
    TRY(model_add_parameter(model, PART_PROJECTOR, false, 1, &width, "multi_modal_projector.mm_soft_emb_norm.weight"));
    return decoder_add_parameters(model, "language_model.");
}

// ---- pictures ----

static int gemma3_feature_rows(const model_config_t *config, const image_shape_t *shape) {
    const gemma3_config_t *gemma = config->family_config;
    int64_t rows = (int64_t)shape->grid[0] * gemma->side * gemma->side;
    return rows > INT32_MAX ? INT32_MAX : (int)rows;
}

// The mean of each pool x pool square of a tile's rows.
static status_t pool(tape_t *tape, const gemma3_config_t *gemma, const vision_image_t *images, int count, tensor_t *x,
                     tensor_t **out) {
    int side = gemma->vit.side, small = gemma->side, each = gemma->pool * gemma->pool, *rows_of;
    int tiles = x->value.rows / (side * side), rows = tiles * small * small;
    int32_t *index;
    const void *uploaded;
    leaves_t leaves;
    TRY(TAPE_HOST(tape, &rows_of, count));
    for (int i = 0; i < count; i++) rows_of[i] = images[i].shape.grid[0] * small * small;
    TRY(vit_leaves(tape, images, count, rows_of, &leaves));
    TRY(TAPE_HOST(tape, &index, (size_t)rows * (size_t)each));
    for (int i = 0; i < rows; i++) {
        int tile = i / (small * small), y = i / small % small * gemma->pool, x0 = i % small * gemma->pool;
        for (int j = 0; j < each; j++)
            index[i * each + j] = (tile * side + y + j / gemma->pool) * side + x0 + j % gemma->pool;
    }
    TRY(tape_upload(tape, index, (size_t)rows * (size_t)each * sizeof(*index), &uploaded));
    return tape_pool_rows(tape, x, uploaded, each, rows, leaves, out);
}

static status_t gemma3_vision(model_t *model, tape_t *tape, const vision_image_t *images, int count,
                              tensor_t **features) {
    *features = NULL;
    const gemma3_config_t *gemma = model->config.family_config;
    vit_choice_t choice = {.state = &gemma->vit.layers, .states = 1, .post_norm = true};
    tensor_t *x;
    TRY(vit_forward(model, tape, &gemma->vit, images, count, &choice, &x));
    TRY(pool(tape, gemma, images, count, x, &x));
    TRY(tape_rmsnorm(tape, x, &model->parameter[gemma->norm], (float)gemma->vit.eps, NORM_ONE_PLUS_WEIGHT, &x));
    return tape_linear(tape, x, &model->parameter[gemma->projection], NULL, NULL, features);
}

const model_family_t gemma3_family = {
    .name = "gemma3",
    .model_types = {"gemma3"},
    .read_config = gemma3_read_config,
    .free_config = gemma3_free_config,
    .add_parameters = gemma3_add_parameters,
    .map_name = multimodal_map_name,
    .module_name = multimodal_module_name,
    .vision = gemma3_vision,
    .text = decoder_text,
    .rope_positions = decoder_rope_positions,
    .feature_rows = gemma3_feature_rows,
};
