// The tower's forward.
#include "common/model/vit.h"

#include <math.h>
#include <string.h>

// Places of a layer's parameters after the layer's first.
enum vit_parameter {
    VIT_NORM1,
    VIT_NORM1_BIAS,
    VIT_Q,
    VIT_Q_BIAS,
    VIT_K,
    VIT_K_BIAS,
    VIT_V,
    VIT_V_BIAS,
    VIT_OUT,
    VIT_OUT_BIAS,
    VIT_NORM2,
    VIT_NORM2_BIAS,
    VIT_FC1,
    VIT_FC1_BIAS,
    VIT_FC2,
    VIT_FC2_BIAS,
    VIT_LAYER_PARAMETERS
};

// The rows of one call. Arrays live until tape_reset.
typedef struct vit_plan {
    int tiles, patches, rows; // patches and rows of a tile: the class row makes the difference
    leaves_t patch_leaves, row_leaves, out_leaves;
} vit_plan_t;

typedef struct vit_layer {
    model_t *model;
    const vit_config_t *vit;
    int first; // index of the layer's first parameter
    attention_mask_t mask;
} vit_layer_t;

int vit_rows(const vit_config_t *vit, const vit_choice_t *choice) {
    return vit->side * vit->side + (vit->kind == VIT_CLIP && choice->class_row);
}

status_t vit_leaves(tape_t *tape, const vision_image_t *images, int count, const int *rows_of, leaves_t *out) {
    int32_t *start;
    TRY(TAPE_HOST(tape, &start, count + 1));
    int leaf = 0, rows = 0;
    start[0] = 0;
    for (int i = 0; i < count; i++) {
        if (i && images[i].leaf != images[i - 1].leaf) start[++leaf] = rows;
        rows += rows_of[i];
    }
    start[leaf + 1] = rows;
    *out = (leaves_t){leaf + 1, start};
    return STATUS_OK;
}

static status_t scaled_leaves(tape_t *tape, leaves_t tiles, int rows, leaves_t *out) {
    int32_t *start;
    TRY(TAPE_HOST(tape, &start, tiles.count + 1));
    for (int i = 0; i <= tiles.count; i++) start[i] = tiles.start[i] * rows;
    *out = (leaves_t){tiles.count, start};
    return STATUS_OK;
}

static status_t make_plan(tape_t *tape, const vit_config_t *vit, const vision_image_t *images, int count,
                          const vit_choice_t *choice, vit_plan_t *plan) {
    int side = vit->side, *tiles;
    int64_t all = 0;
    leaves_t leaves;
    *plan = (vit_plan_t){.patches = side * side, .rows = side * side + (vit->kind == VIT_CLIP)};
    TRY(TAPE_HOST(tape, &tiles, count));
    for (int i = 0; i < count; i++) {
        const int *grid = images[i].shape.grid;
        bool fits = grid[0] > 0 && grid[1] == side && grid[2] == side &&
                    (int64_t)grid[0] * plan->patches == images[i].patch_rows;
        if (!fits)
            FAIL(STATUS_INVALID,
                 "image %d has %d tiles of %d x %d patches and %d patches, and this model takes tiles of %d x %d",
                 i + 1, grid[0], grid[1], grid[2], images[i].patch_rows, side, side);
        tiles[i] = grid[0];
        all += grid[0];
    }
    if (all * plan->rows * choice->states > INT32_MAX)
        FAIL(STATUS_INVALID, "the images of one batch have too many patches: use a smaller batch");
    plan->tiles = (int)all;
    TRY(vit_leaves(tape, images, count, tiles, &leaves));
    TRY(scaled_leaves(tape, leaves, plan->patches, &plan->patch_leaves));
    TRY(scaled_leaves(tape, leaves, plan->rows, &plan->row_leaves));
    return scaled_leaves(tape, leaves, vit_rows(vit, choice), &plan->out_leaves);
}

// The patches of all images on the device. A dry run needs none.
static status_t upload_patches(tape_t *tape, const vit_plan_t *plan, const vision_image_t *images, int count,
                               int columns, matrix_t *out) {
    float *patches;
    size_t rows = (size_t)plan->tiles * (size_t)plan->patches, at = 0;
    TRY(TAPE_HOST(tape, &patches, rows * (size_t)columns));
    for (int i = 0; i < count && !tape_is_measuring(tape); i++) {
        size_t floats = (size_t)images[i].patch_rows * (size_t)columns;
        memcpy(patches + at, images[i].patches, floats * sizeof(float));
        at += floats;
    }
    const void *device;
    TRY(tape_upload(tape, patches, rows * (size_t)columns * sizeof(float), &device));
    *out = matrix_view((void *)(uintptr_t)device, DTYPE_F32, (int)rows, columns);
    return STATUS_OK;
}

static status_t make_mask(tape_t *tape, const vit_plan_t *plan, attention_mask_t *mask) {
    int rows = plan->tiles * plan->rows;
    int32_t *start, *zero, *identity;
    TRY(TAPE_HOST(tape, &start, plan->tiles + 1));
    TRY(TAPE_HOST(tape, &zero, plan->tiles));
    TRY(TAPE_HOST(tape, &identity, rows));
    for (int i = 0; i <= plan->tiles; i++) start[i] = i * plan->rows;
    for (int i = 0; i < plan->tiles; i++) zero[i] = 0;
    for (int i = 0; i < rows; i++) identity[i] = i;
    *mask = (attention_mask_t){.sequences = plan->tiles};
    size_t bytes = sizeof(int32_t);
    TRY(tape_upload(tape, start, (size_t)(plan->tiles + 1) * bytes, (const void **)&mask->query_start));
    TRY(tape_upload(tape, zero, (size_t)plan->tiles * bytes, (const void **)&mask->query_position));
    mask->key_start = mask->query_start;
    return tape_upload(tape, identity, (size_t)rows * bytes, (const void **)&mask->key_row);
}

// Patches through their linear, the class row before each tile's, plus positions.
static status_t embed(model_t *model, tape_t *tape, const vit_config_t *vit, const vit_plan_t *plan,
                      const vision_image_t *images, int count, tensor_t **out) {
    const parameter_t *weight = &model->parameter[vit->patches];
    bool clip = vit->kind == VIT_CLIP;
    int rows = plan->tiles * plan->rows, patches = plan->tiles * plan->patches;
    matrix_t pixels;
    tensor_t *x, *positions;
    int32_t *position;
    TRY(upload_patches(tape, plan, images, count, weight->value.columns, &pixels));
    TRY(tape_input(tape, pixels, plan->patch_leaves, &x));
    TRY(tape_linear(tape, x, weight, clip ? NULL : weight + 1, NULL, &x));
    if (clip) {
        tensor_t *base;
        int32_t *zero, *target;
        const void *index;
        TRY(TAPE_HOST(tape, &zero, rows));
        TRY(TAPE_HOST(tape, &target, patches));
        memset(zero, 0, (size_t)rows * sizeof(*zero));
        for (int i = 0; i < patches; i++) target[i] = i / plan->patches * plan->rows + 1 + i % plan->patches;
        TRY(tape_embedding(tape, zero, rows, &model->parameter[vit->class_embedding], 1.0F, plan->row_leaves, &base));
        TRY(tape_upload(tape, target, (size_t)patches * sizeof(*target), &index));
        TRY(tape_scatter_rows(tape, base, x, index));
        x = base;
    }
    TRY(TAPE_HOST(tape, &position, rows));
    for (int i = 0; i < rows; i++) position[i] = i % plan->rows;
    TRY(tape_embedding(tape, position, rows, &model->parameter[vit->positions], 1.0F, plan->row_leaves, &positions));
    TRY(tape_add(tape, x, positions, &x));
    if (!clip) {
        *out = x;
        return STATUS_OK;
    }
    const parameter_t *norm = &model->parameter[vit->pre_norm];
    return tape_layernorm(tape, x, norm, norm + 1, (float)vit->eps, out);
}

static status_t vit_attention(tape_t *tape, const vit_layer_t *layer, tensor_t *x, tensor_t **out) {
    const vit_config_t *vit = layer->vit;
    const parameter_t *p = layer->model->parameter + layer->first;
    adapter_t *const *adapter = layer->model->adapter + layer->first;
    int size = vit->width / vit->heads;
    float scale = (float)(1.0 / sqrt((double)size));
    tensor_t *q, *k, *v, *attended;
    TRY(tape_linear(tape, x, &p[VIT_Q], &p[VIT_Q_BIAS], adapter[VIT_Q], &q));
    TRY(tape_linear(tape, x, &p[VIT_K], &p[VIT_K_BIAS], adapter[VIT_K], &k));
    TRY(tape_linear(tape, x, &p[VIT_V], &p[VIT_V_BIAS], adapter[VIT_V], &v));
    TRY(tape_attention(tape, q, k, v, vit->heads, vit->heads, size, scale, &layer->mask, &attended));
    return tape_linear(tape, attended, &p[VIT_OUT], &p[VIT_OUT_BIAS], adapter[VIT_OUT], out);
}

static status_t vit_layer(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const vit_layer_t *layer = context;
    const vit_config_t *vit = layer->vit;
    const parameter_t *p = layer->model->parameter + layer->first;
    adapter_t *const *adapter = layer->model->adapter + layer->first;
    float eps = (float)vit->eps;
    tensor_t *normed, *mixed, *middle, *hidden;
    TRY(tape_layernorm(tape, x, &p[VIT_NORM1], &p[VIT_NORM1_BIAS], eps, &normed));
    TRY(vit_attention(tape, layer, normed, &mixed));
    TRY(tape_add(tape, x, mixed, &middle));
    TRY(tape_layernorm(tape, middle, &p[VIT_NORM2], &p[VIT_NORM2_BIAS], eps, &normed));
    TRY(tape_linear(tape, normed, &p[VIT_FC1], &p[VIT_FC1_BIAS], adapter[VIT_FC1], &hidden));
    TRY(tape_activation(tape, vit->activation, hidden, NULL, &hidden));
    TRY(tape_linear(tape, hidden, &p[VIT_FC2], &p[VIT_FC2_BIAS], adapter[VIT_FC2], &mixed));
    return tape_add(tape, middle, mixed, out);
}

// Puts hidden state number `state` where the choice wants it: into columns [slot * width, ..) of *all. Rows of several
// states lie interleaved until they are folded.
static status_t collect(tape_t *tape, const vit_config_t *vit, const vit_plan_t *plan, const vit_choice_t *choice,
                        int state, tensor_t *x, tensor_t **all) {
    int wanted = vit_rows(vit, choice), skip = plan->rows - wanted, states = choice->states;
    int rows = plan->tiles * plan->rows, kept = plan->tiles * wanted;
    leaves_t leaves;
    TRY(scaled_leaves(tape, plan->out_leaves, states, &leaves));
    for (int slot = 0; slot < states; slot++) {
        if (choice->state[slot] != state) continue;
        bool first = !*all;
        int count = first ? kept * states : rows;
        int32_t *index;
        const void *uploaded;
        TRY(TAPE_HOST(tape, &index, count));
        for (int i = 0; i < count; i++) index[i] = -1;
        for (int i = 0; i < kept; i++) {
            int from = i / wanted * plan->rows + skip + i % wanted, to = i * states + slot;
            index[first ? to : from] = first ? from : to;
        }
        TRY(tape_upload(tape, index, (size_t)count * sizeof(*index), &uploaded));
        if (first)
            TRY(tape_gather_rows(tape, x, uploaded, count, leaves, all));
        else
            TRY(tape_scatter_rows(tape, *all, x, uploaded));
    }
    return STATUS_OK;
}

status_t vit_forward(model_t *model, tape_t *tape, const vit_config_t *vit, const vision_image_t *images, int count,
                     const vit_choice_t *choice, tensor_t **out) {
    *out = NULL;
    if (count < 1) FAIL(STATUS_INVALID, "the vision part needs one image or more");
    int last = 0;
    for (int i = 0; i < choice->states; i++) last = choice->state[i] > last ? choice->state[i] : last;
    vit_plan_t plan;
    vit_layer_t layer = {.model = model, .vit = vit};
    tensor_t *x, *all = NULL;
    TRY(make_plan(tape, vit, images, count, choice, &plan));
    TRY(make_mask(tape, &plan, &layer.mask));
    TRY(embed(model, tape, vit, &plan, images, count, &x));
    // Layers behind the last state that is wanted need not run.
    bool plain = choice->states == 1 && vit_rows(vit, choice) == plan.rows;
    for (int i = 0; i < last; i++) {
        if (!plain) TRY(collect(tape, vit, &plan, choice, i, x, &all));
        layer.first = vit->encoder + i * VIT_LAYER_PARAMETERS;
        TRY(tape_block(tape, vit_layer, &layer, sizeof(layer), x, &x));
    }
    if (!plain) TRY(collect(tape, vit, &plan, choice, last, x, &all));
    x = plain ? x : all;
    if (choice->states > 1) TRY(tape_fold_rows(tape, x, choice->states, plan.out_leaves, &x));
    const parameter_t *norm = &model->parameter[vit->post_norm];
    if (choice->post_norm) TRY(tape_layernorm(tape, x, norm, norm + 1, (float)vit->eps, &x));
    *out = x;
    return STATUS_OK;
}
