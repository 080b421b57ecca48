// Rope positions: text counts on all axes, an image spreads over (frame, row, column) of its merged grid.
#include "common/model/qwen2_5_vl.h"

int qwen_feature_rows(const model_config_t *config, const image_shape_t *shape) {
    int merge = config->image.merge;
    return shape->grid[0] * (shape->grid[1] / merge) * (shape->grid[2] / merge);
}

static status_t image_positions(const model_config_t *config, const int32_t *tokens, int count,
                                const image_shape_t *shape, int image, int32_t start, int at, int32_t *position[3]) {
    int merge = config->image.merge, rows = shape->grid[1] / merge, columns = shape->grid[2] / merge;
    int wanted = qwen_feature_rows(config, shape), found = 0;
    while (at + found < count && found < wanted && tokens[at + found] == config->image.image_token) found++;
    if (found < wanted || wanted < 1)
        FAIL(STATUS_INVALID, "image %d becomes %d tokens, and the text has %d placeholders for it", image + 1, wanted,
             found);
    for (int i = 0; i < wanted; i++) {
        position[0][at + i] = start; // a still image has one point in time
        position[1][at + i] = start + i / columns % rows;
        position[2][at + i] = start + i % columns;
    }
    return STATUS_OK;
}

status_t qwen_rope_positions(const model_config_t *config, const int32_t *tokens, int count,
                             const image_shape_t *shapes, int images, int32_t *position[3], int32_t *next) {
    int32_t start = 0;
    int image = 0;
    for (int at = 0; at < count;) {
        if (!config->has_vision || tokens[at] != config->image.image_token) {
            for (int axis = 0; axis < 3; axis++) position[axis][at] = start;
            start++;
            at++;
            continue;
        }
        if (image == images)
            FAIL(STATUS_INVALID, "the text has placeholders for more than the %d images given", images);
        const image_shape_t *shape = &shapes[image];
        TRY(image_positions(config, tokens, count, shape, image, start, at, position));
        int longest = shape->grid[1] > shape->grid[2] ? shape->grid[1] : shape->grid[2];
        start += longest / config->image.merge;
        at += qwen_feature_rows(config, shape);
        image++;
    }
    if (image != images)
        FAIL(STATUS_INVALID, "%d images were given, and the text has placeholders for %d", images, image);
    *next = start;
    return STATUS_OK;
}
