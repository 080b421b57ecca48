// What the parts of the Qwen2.5-VL family share.
#ifndef COMMON_MODEL_QWEN2_5_VL_H
#define COMMON_MODEL_QWEN2_5_VL_H

#include "common/model/model.h"

enum { QWEN_MAX_LAYERS = 1024 };

enum qwen_vision_parameter {
    VISION_NORM1,
    VISION_QKV,
    VISION_QKV_BIAS,
    VISION_PROJ,
    VISION_PROJ_BIAS,
    VISION_NORM2,
    VISION_GATE,
    VISION_GATE_BIAS,
    VISION_UP,
    VISION_UP_BIAS,
    VISION_DOWN,
    VISION_DOWN_BIAS,
    VISION_BLOCK_PARAMETERS
};
enum qwen_merger_parameter {
    MERGER_NORM,
    MERGER_FIRST,
    MERGER_FIRST_BIAS,
    MERGER_SECOND,
    MERGER_SECOND_BIAS,
    MERGER_PARAMETERS
};

typedef struct qwen_config {
    int depth, vision_hidden, vision_heads, vision_intermediate, channels;
    int window_cells; // side of an attention window, in merged cells
    double vision_theta;
    bool full_attention[QWEN_MAX_LAYERS]; // vision blocks that attend over the whole frame
    // First indices in the model's parameter list.
    int patch_embed, blocks, merger;
} qwen_config_t;

static inline const qwen_config_t *qwen_config(const model_t *model) {
    return model->config.family_config;
}

status_t qwen_read_config(const json_t *config, model_config_t *out) STATUS_CHECKED;
void qwen_free_config(model_config_t *config);
status_t qwen_vision(model_t *model, tape_t *tape, const vision_image_t *images, int count,
                     tensor_t **features) STATUS_CHECKED;
status_t qwen_rope_positions(const model_config_t *config, const int32_t *tokens, int count,
                             const image_shape_t *shapes, int images, int32_t *position[3],
                             int32_t *next) STATUS_CHECKED;
int qwen_feature_rows(const model_config_t *config, const image_shape_t *shape);

extern const model_family_t qwen2_5_vl_family;

#endif
