// Qwen2-VL's image processor: from an encoded picture to rows of patches.
#include "common/model/model.h"
#include "common/vision/image.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

status_t image_smart_resize(const image_rules_t *rules, int height, int width, int *out_height, int *out_width) {
    int factor = rules->patch * rules->merge;
    if (height < 1 || width < 1 || factor < 1)
        FAIL(STATUS_INVALID, "a picture of %d x %d pixels cannot be resized", width, height);
    double h = height, w = width, f = factor;
    if (fmax(h, w) / fmin(h, w) > 200)
        FAIL(STATUS_INVALID, "the picture is %d x %d pixels; one side may be at most 200 times the other", width,
             height);
    // rint rounds halves to even, as Python does.
    double new_h = rint(h / f) * f, new_w = rint(w / f) * f;
    if (new_h * new_w > (double)rules->max_pixels) {
        double beta = sqrt(h * w / (double)rules->max_pixels);
        new_h = fmax(f, floor(h / beta / f) * f);
        new_w = fmax(f, floor(w / beta / f) * f);
    } else if (new_h * new_w < (double)rules->min_pixels) {
        double beta = sqrt((double)rules->min_pixels / (h * w));
        new_h = ceil(h * beta / f) * f;
        new_w = ceil(w * beta / f) * f;
    }
    if (!(new_h * new_w <= IMAGE_MAX_PIXELS) || new_h > INT_MAX || new_w > INT_MAX)
        FAIL(STATUS_INVALID, "the picture would be resized to more than %d pixels; lower 'max_pixels' or 'min_pixels'",
             IMAGE_MAX_PIXELS);
    *out_height = (int)new_h;
    *out_width = (int)new_w;
    return STATUS_OK;
}

// What each of the 256 values of a channel becomes: the product in double, the rest in float.
static void patches_table(const image_rules_t *rules, float table[3][256]) {
    for (int c = 0; c < 3; c++)
        for (int value = 0; value < 256; value++)
            table[c][value] = ((float)(value * 0.00392156862745098) - rules->mean[c]) / rules->deviation[c];
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

// Rows go through blocks of merge x merge patches.
static void patches_fill(const image_rules_t *rules, const image_t *image, image_patches_t *patches) {
    float table[3][256], *out = patches->patches;
    int merge = rules->merge, patch = rules->patch;
    patches_table(rules, table);
    for (int block_y = 0; block_y < patches->shape.grid[1]; block_y += merge)
        for (int block_x = 0; block_x < patches->shape.grid[2]; block_x += merge)
            for (int y = block_y; y < block_y + merge; y++)
                for (int x = block_x; x < block_x + merge; x++)
                    out = patches_row(rules, image, table, y * patch, x * patch, out);
}

static status_t patches_from(const image_rules_t *rules, const image_t *image, image_patches_t **out) {
    image_patches_t *patches;
    TRY(ALLOCATE(&patches, 1));
    patches->shape.grid[0] = 1;
    patches->shape.grid[1] = image->height / rules->patch;
    patches->shape.grid[2] = image->width / rules->patch;
    patches->rows = patches->shape.grid[1] * patches->shape.grid[2];
    patches->columns = 3 * rules->temporal * rules->patch * rules->patch;
    patches->shape.runs = 1;
    patches->shape.feature_rows = patches->rows / (rules->merge * rules->merge);
    status_t status =
        memory_allocate((size_t)patches->rows, (size_t)patches->columns * sizeof(float), (void **)&patches->patches);
    if (status) {
        free(patches);
        return status;
    }
    patches_fill(rules, image, patches);
    *out = patches;
    return STATUS_OK;
}

static status_t check_rules(const image_rules_t *rules) {
    if (rules->patch < 1 || rules->patch > 64 || rules->merge < 1 || rules->merge > 16 || rules->temporal < 1 ||
        rules->temporal > 16 || rules->min_pixels < 1 || rules->max_pixels < rules->min_pixels)
        FAIL(STATUS_INVALID, "the image rules are not usable (patch %d, merge %d, frames %d, %lld to %lld pixels)",
             rules->patch, rules->merge, rules->temporal, (long long)rules->min_pixels, (long long)rules->max_pixels);
    return STATUS_OK;
}

status_t image_patches_make(const image_rules_t *rules, const void *bytes, size_t size, image_patches_t **out) {
    image_t image = {0}, resized = {0};
    int height, width, original[2];
    *out = NULL;
    TRY(check_rules(rules));
    TRY(image_decode(bytes, size, &image));
    status_t status = image_smart_resize(rules, image.height, image.width, &height, &width);
    if (!status) status = image_resize(&image, width, height, FILTER_BICUBIC, &resized);
    original[0] = image.height;
    original[1] = image.width;
    image_free(&image);
    if (!status) status = patches_from(rules, &resized, out);
    image_free(&resized);
    TRY(status);
    memcpy((*out)->shape.size, original, sizeof(original));
    (*out)->content_hash = XXH3_64bits(bytes, size);
    return STATUS_OK;
}

void image_patches_free(image_patches_t *patches) {
    if (!patches) return;
    free(patches->patches);
    free(patches);
}
