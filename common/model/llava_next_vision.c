// Tower, projector, and the packing of a picture's rows.
#include "common/model/llava_next.h"

#include <string.h>

static bool fits(const image_shape_t *shape) {
    return shape->tiles[0] > 0 && shape->tiles[1] > 0 &&
           (int64_t)shape->tiles[0] * shape->tiles[1] == (int64_t)shape->grid[0] - 1;
}

llava_grid_t llava_unpadded(const image_shape_t *shape) {
    int box[4];
    if (!fits(shape)) return (llava_grid_t){0};
    image_unpad(shape, box);
    return (llava_grid_t){.top = box[0], .rows = box[2], .left = box[1], .columns = box[3]};
}

int llava_feature_rows(const model_config_t *config, const image_shape_t *shape) {
    const llava_config_t *llava = config->family_config;
    llava_grid_t grid = llava_unpadded(shape);
    return llava->vit.side * llava->vit.side + (shape->grid[0] == 1 ? 1 : grid.rows * (grid.columns + 1));
}

static status_t check_shape(const image_shape_t *shape, int number) {
    if (shape->grid[0] != 1 && (!fits(shape) || shape->size[0] < 1 || shape->size[1] < 1))
        FAIL(STATUS_INVALID, "image %d of %d x %d pixels has %d tiles, which are not %d x %d and the whole picture",
             number + 1, shape->size[0], shape->size[1], shape->grid[0], shape->tiles[0], shape->tiles[1]);
    return STATUS_OK;
}

// Where each row of a picture's tiles goes: the whole picture first, then the grid's rows without padding, a newline
// after each. target: [grid[0] * side * side]; -1: it is padding.
static void place_rows(int side, const image_shape_t *shape, int32_t first, int32_t *target) {
    llava_grid_t grid = llava_unpadded(shape);
    int area = side * side;
    for (int i = 0; i < area; i++) target[i] = first + i;
    for (int tile = 1; tile < shape->grid[0]; tile++) {
        int top = (tile - 1) / shape->tiles[1] * side - grid.top,
            left = (tile - 1) % shape->tiles[1] * side - grid.left;
        for (int i = 0; i < area; i++) {
            int y = top + i / side, x = left + i % side;
            bool kept = y >= 0 && y < grid.rows && x >= 0 && x < grid.columns;
            target[tile * area + i] = kept ? first + area + y * (grid.columns + 1) + x : -1;
        }
    }
}

// All features: newlines everywhere, then the projected rows over all places but the ends of rows.
static status_t pack(model_t *model, tape_t *tape, const vision_image_t *images, int count, tensor_t *rows,
                     tensor_t **out) {
    const llava_config_t *llava = llava_config(model);
    int side = llava->vit.side, all = 0, *rows_of;
    int32_t *target, *zero;
    const void *index;
    leaves_t leaves;
    TRY(TAPE_HOST(tape, &rows_of, count));
    TRY(TAPE_HOST(tape, &target, rows->value.rows));
    for (int i = 0, at = 0; i < count; i++) {
        place_rows(side, &images[i].shape, all, target + at);
        rows_of[i] = llava_feature_rows(&model->config, &images[i].shape);
        all += rows_of[i];
        at += images[i].shape.grid[0] * side * side;
    }
    TRY(TAPE_HOST(tape, &zero, all));
    memset(zero, 0, (size_t)all * sizeof(*zero));
    TRY(vit_leaves(tape, images, count, rows_of, &leaves));
    TRY(tape_upload(tape, target, (size_t)rows->value.rows * sizeof(*target), &index));
    TRY(tape_embedding(tape, zero, all, &model->parameter[llava->newline], 1.0F, leaves, out));
    return tape_scatter_rows(tape, *out, rows, index);
}

status_t llava_vision(model_t *model, tape_t *tape, const vision_image_t *images, int count, tensor_t **features) {
    *features = NULL;
    const llava_config_t *llava = llava_config(model);
    const parameter_t *first = &model->parameter[llava->first_linear],
                      *second = &model->parameter[llava->second_linear];
    vit_choice_t choice = {.state = llava->state, .states = llava->states};
    tensor_t *x;
    for (int i = 0; i < count; i++) TRY(check_shape(&images[i].shape, i));
    TRY(vit_forward(model, tape, &llava->vit, images, count, &choice, &x));
    TRY(tape_linear(tape, x, first, llava->bias ? first + 1 : NULL, model->adapter[llava->first_linear], &x));
    TRY(tape_activation(tape, llava->activation, x, NULL, &x));
    TRY(tape_linear(tape, x, second, llava->bias ? second + 1 : NULL, model->adapter[llava->second_linear], &x));
    return pack(model, tape, images, count, x, features);
}
