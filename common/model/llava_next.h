// LLaVA-NeXT: a CLIP (or SigLIP) tower over the whole picture and its tiles, a projector of two linears, and rows of
// features laid out as the picture's, each ended by a newline row.
#ifndef COMMON_MODEL_LLAVA_NEXT_H
#define COMMON_MODEL_LLAVA_NEXT_H

#include "common/model/multimodal.h"
#include "common/model/vit.h"

enum { LLAVA_MAX_STATES = 64 };

typedef struct llava_config {
    vit_config_t vit;
    int state[LLAVA_MAX_STATES]; // the tower's hidden states that make features
    int states;
    activation_t activation;
    bool bias;
    int first_linear, second_linear, newline; // indices in the model's parameter list
} llava_config_t;

static inline const llava_config_t *llava_config(const model_t *model) {
    return model->config.family_config;
}

// What is left of a picture's grid of features when the padding to its best resolution is cut off: rows top ..
// top + rows - 1 and columns left .. left + columns - 1. No grid for a picture of a single tile.
typedef struct llava_grid {
    int top, rows, left, columns;
} llava_grid_t;
llava_grid_t llava_unpadded(const image_shape_t *shape);

status_t llava_read_config(const json_t *config, model_config_t *out) STATUS_CHECKED;
status_t llava_vision(model_t *model, tape_t *tape, const vision_image_t *images, int count,
                      tensor_t **features) STATUS_CHECKED;
int llava_feature_rows(const model_config_t *config, const image_shape_t *shape);

extern const model_family_t llava_next_family;

#endif
