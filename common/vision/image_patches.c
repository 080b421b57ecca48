// From an encoded picture to rows of patches: what the processors share. Each has a file of its own.
#include "common/vision/image_parts.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// What each of the 256 values of a channel becomes: the product in double, the rest in float.
static void patches_table(const image_rules_t *rules, float table[3][256]) {
    for (int c = 0; c < 3; c++)
        for (int value = 0; value < 256; value++) {
            float level = rules->rescale ? (float)(value * rules->rescale_factor) : (float)value;
            table[c][value] = rules->normalise ? (level - rules->mean[c]) / rules->deviation[c] : level;
        }
}

// One row: channel, frame (a still picture's frames are alike), y, x.
static float *patches_row(const image_rules_t *rules, const image_t *image, float table[3][256], int top, int left,
                          float *out) {
    for (int c = 0; c < 3; c++)
        for (int frame = 0; frame < rules->temporal; frame++)
            for (int y = 0; y < rules->patch; y++) {
                const uint8_t *from = image->pixels + 3 * ((size_t)(top + y) * (size_t)image->width + (size_t)left) + c;
                for (int x = 0; x < rules->patch; x++) *out++ = table[c][from[3 * x]];
            }
    return out;
}

status_t image_patches_new(const image_rules_t *rules, const image_t *picture, int tiles, int height, int width,
                           image_patches_t **out) {
    int64_t pixels = (int64_t)tiles * height * width, own = (int64_t)picture->width * picture->height;
    int64_t most = 2 * own > IMAGE_MAX_ENLARGED ? 2 * own : IMAGE_MAX_ENLARGED;
    image_patches_t *patches;
    *out = NULL;
    if (pixels * (rules->temporal > 2 ? rules->temporal : 2) > 2 * most || pixels > IMAGE_MAX_PIXELS)
        FAIL(
            STATUS_INVALID,
            "the picture of %d x %d would become %lld pixels, %d of %d x %d, which is too much; check the sizes in the "
            "image processor's settings",
            picture->width, picture->height, (long long)pixels, tiles, width, height);
    if (height < rules->patch || width < rules->patch)
        FAIL(STATUS_INVALID, "the picture is resized to %d x %d, less than one patch of %d", width, height,
             rules->patch);
    TRY(ALLOCATE(&patches, 1));
    image_shape_t *shape = &patches->shape;
    shape->grid[0] = tiles;
    shape->grid[1] = height / rules->patch;
    shape->grid[2] = width / rules->patch;
    shape->size[0] = picture->height;
    shape->size[1] = picture->width;
    shape->runs = 1;
    patches->rows = tiles * shape->grid[1] * shape->grid[2];
    patches->columns = 3 * rules->temporal * rules->patch * rules->patch;
    status_t status =
        memory_allocate((size_t)patches->rows, (size_t)patches->columns * sizeof(float), (void **)&patches->patches);
    if (status) {
        free(patches);
        return status_trace(status, __FILE__, __LINE__, __func__);
    }
    *out = patches;
    return STATUS_OK;
}

// Rows go through blocks of merge x merge patches.
void image_patches_put(const image_rules_t *rules, const image_t *image, int tile, image_patches_t *patches) {
    float table[3][256];
    int merge = rules->merge, patch = rules->patch, rows = patches->shape.grid[1], columns = patches->shape.grid[2];
    float *out = patches->patches + (size_t)tile * (size_t)rows * (size_t)columns * (size_t)patches->columns;
    patches_table(rules, table);
    for (int block_y = 0; block_y < rows; block_y += merge)
        for (int block_x = 0; block_x < columns; block_x += merge)
            for (int y = block_y; y < block_y + merge; y++)
                for (int x = block_x; x < block_x + merge; x++)
                    out = patches_row(rules, image, table, y * patch, x * patch, out);
}

status_t image_cut(const image_t *image, int top, int left, int height, int width, image_t *out) {
    *out = (image_t){.width = width, .height = height};
    TRY(memory_allocate((size_t)width * (size_t)height, 3, (void **)&out->pixels));
    memset(out->pixels, 0, 3 * (size_t)width * (size_t)height);
    int from_x = left < 0 ? 0 : left, to_x = left + width < image->width ? left + width : image->width;
    for (int y = 0; y < height; y++) {
        if (top + y < 0 || top + y >= image->height || from_x >= to_x) continue;
        memcpy(out->pixels + 3 * ((size_t)y * (size_t)width + (size_t)(from_x - left)),
               image->pixels + 3 * ((size_t)(top + y) * (size_t)image->width + (size_t)from_x),
               3 * (size_t)(to_x - from_x));
    }
    return STATUS_OK;
}

static status_t check_rules(const image_rules_t *rules) {
    bool sized = rules->processor == PROCESSOR_QWEN2_VL
                     ? rules->min_pixels >= 1 && rules->max_pixels >= rules->min_pixels
                     : rules->merge == 1 && rules->side_height >= 1 && rules->side_width >= 1;
    if (rules->patch < 1 || rules->patch > 1024 || rules->merge < 1 || rules->merge > 16 || rules->temporal < 1 ||
        rules->temporal > 16 || !sized)
        FAIL(STATUS_INVALID,
             "the image rules are not usable (patch %d, merge %d, frames %d, %lld to %lld pixels, sides of %d x %d)",
             rules->patch, rules->merge, rules->temporal, (long long)rules->min_pixels, (long long)rules->max_pixels,
             rules->side_height, rules->side_width);
    return STATUS_OK;
}

static status_t prepare(const image_rules_t *rules, const image_t *image, image_patches_t **out) {
    switch (rules->processor) {
    case PROCESSOR_QWEN2_VL:
        return image_prepare_qwen2_vl(rules, image, out);
    case PROCESSOR_LLAVA_NEXT:
        return image_prepare_llava_next(rules, image, out);
    case PROCESSOR_GEMMA3:
        return image_prepare_gemma3(rules, image, out);
    }
    FAIL(STATUS_INVALID, "there is no image processor number %d", (int)rules->processor);
}

status_t image_patches_make(const image_rules_t *rules, const void *bytes, size_t size, image_patches_t **out) {
    image_t image = {0};
    *out = NULL;
    TRY(check_rules(rules));
    TRY(image_decode(bytes, size, &image));
    if (rules->whiten) image_whiten(&image);
    status_t status = prepare(rules, &image, out);
    image_free(&image);
    if (status) {
        image_patches_free(*out);
        *out = NULL;
        return status_trace(status, __FILE__, __LINE__, __func__);
    }
    (*out)->shape.feature_rows = image_feature_rows(rules, &(*out)->shape);
    (*out)->content_hash = XXH3_64bits(bytes, size);
    return STATUS_OK;
}

int image_feature_rows(const image_rules_t *rules, const image_shape_t *shape) {
    int box[4], patches = shape->grid[1] * shape->grid[2];
    switch (rules->processor) {
    case PROCESSOR_QWEN2_VL:
        return shape->grid[0] * patches / (rules->merge * rules->merge);
    case PROCESSOR_LLAVA_NEXT:
        image_unpad(shape, box);
        return patches + box[2] * box[3] + box[2];
    case PROCESSOR_GEMMA3:
        return shape->grid[0] * rules->tokens;
    }
    return 0;
}

void image_patches_free(image_patches_t *patches) {
    if (!patches) return;
    free(patches->patches);
    free(patches);
}
