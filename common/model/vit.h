// The vision transformers of CLIP and SigLIP: square tiles of patches -> hidden rows.
//
// Both are patches through one linear, learned positions, and pre-norm layers of full attention within a tile. CLIP has
// a class row in front of each tile's patches and a norm before the first layer; SigLIP has a bias on the patches and,
// where config.json says so, a pooling head that features never pass: it is read and written back only.
#ifndef COMMON_MODEL_VIT_H
#define COMMON_MODEL_VIT_H

#include "common/model/config_reader.h"
#include "common/model/model.h"

enum { VIT_MAX_LAYERS = 1024 };

typedef enum vit_kind { VIT_CLIP, VIT_SIGLIP } vit_kind_t;

typedef struct vit_config {
    vit_kind_t kind;
    int width, layers, heads, intermediate;
    int image, patch, side; // pixels of a tile's side, of a patch's side; patches of a tile's side
    double eps;
    activation_t activation;
    bool pooling_head;
    // Indices in the model's parameter list.
    int class_embedding, patches, positions, pre_norm, encoder, post_norm;
} vit_config_t;

// What of a tower's hidden states is wanted. hidden_states[0] is what the first layer is given, [i] what layer i gives.
typedef struct vit_choice {
    const int *state; // [states], each 0 .. layers; side by side in the result
    int states;
    bool class_row; // CLIP: keep it
    bool post_norm; // over the result; only with one state
} vit_choice_t;

// Reads a vision_config. kind: of a config without a model_type. Errors: another model_type, sizes that do not fit.
status_t vit_read_config(const json_t *object, vit_kind_t kind, vit_config_t *out) STATUS_CHECKED;
// An activation by its name in transformers; absent: *out stays.
status_t vit_read_activation(config_reader_t *reader, const char *key, activation_t *out) STATUS_CHECKED;
// Adds "vision_tower.vision_model.*" and notes the places in `vit`.
status_t vit_add_parameters(model_t *model, vit_config_t *vit) STATUS_CHECKED;
// Rows of a tile in the result of vit_forward.
int vit_rows(const vit_config_t *vit, const vit_choice_t *choice);
// Gradient leaves of rows_of[i] rows an image, in the tape's memory.
status_t vit_leaves(tape_t *tape, const vision_image_t *images, int count, const int *rows_of,
                    leaves_t *out) STATUS_CHECKED;
// images: tiles of side x side patches, columns ordered (channel, y, x) -> [tiles * vit_rows, states * width], tile
// after tile. Errors: an image of another grid.
status_t vit_forward(model_t *model, tape_t *tape, const vit_config_t *vit, const vision_image_t *images, int count,
                     const vit_choice_t *choice, tensor_t **out) STATUS_CHECKED;

#endif
