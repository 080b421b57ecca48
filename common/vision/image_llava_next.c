// LLaVA-NeXT's image processor: the whole picture, and tiles of it in the best of several resolutions.
#include "common/vision/image_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TILES = 1 << 16 };

// The resolution in which most of the picture's pixels survive; among equals the one that wastes least, the first one
// of those. -1 when none is listed.
static int best_resolution(const image_rules_t *rules, int own_height, int own_width) {
    double height = own_height, width = own_width;
    int64_t most = 0, least_waste = INT64_MAX, own = (int64_t)own_height * own_width;
    int best = -1;
    for (int i = 0; i < rules->pinpoints; i++) {
        int to_height = rules->pinpoint[i][0], to_width = rules->pinpoint[i][1];
        double across = to_width / width, down = to_height / height, scale = across < down ? across : down;
        int64_t effective = (int64_t)(width * scale) * (int64_t)(height * scale);
        if (effective > own) effective = own;
        int64_t waste = (int64_t)to_height * to_width - effective;
        if (effective < most || (effective == most && waste >= least_waste)) continue;
        most = effective;
        least_waste = waste;
        best = i;
    }
    return best;
}

status_t image_plan_llava_next(const image_rules_t *rules, int height, int width, image_shape_t *out) {
    int best = best_resolution(rules, height, width), side_height = rules->side_height, side_width = rules->side_width;
    if (best < 0) FAIL(STATUS_INVALID, "the image processor's 'image_grid_pinpoints' lists no resolution");
    int to_height = rules->pinpoint[best][0], to_width = rules->pinpoint[best][1];
    if (to_height % side_height || to_width % side_width)
        FAIL(STATUS_INVALID, "the resolution [%d, %d] of 'image_grid_pinpoints' cannot be cut into tiles of %d x %d",
             to_height, to_width, side_height, side_width);
    int64_t tiles = 1 + (int64_t)(to_height / side_height) * (to_width / side_width);
    int64_t area = (int64_t)rules->resize_height * rules->resize_width;
    if (tiles > MOST_TILES || area > IMAGE_MAX_ENLARGED || tiles * area > IMAGE_MAX_PIXELS ||
        tiles * side_height * side_width > IMAGE_MAX_PIXELS)
        FAIL(STATUS_INVALID, "the picture would become %lld tiles of %d x %d pixels, which is too much",
             (long long)tiles, side_height > rules->resize_height ? side_height : rules->resize_height,
             side_width > rules->resize_width ? side_width : rules->resize_width);
    *out = (image_shape_t){.grid = {(int)tiles, side_height / rules->patch, side_width / rules->patch},
                           .tiles = {to_height / side_height, to_width / side_width},
                           .size = {height, width},
                           .runs = 1};
    out->feature_rows = image_feature_rows(rules, out);
    return STATUS_OK;
}

// Resized into height x width with its aspect kept, in the middle of black.
static status_t fit(const image_t *image, image_filter_t filter, int height, int width, image_t *out) {
    double across = (double)width / image->width, down = (double)height / image->height;
    int new_height = height, new_width = width;
    if (across < down)
        new_height = (int)fmin(ceil(image->height * across), height);
    else
        new_width = (int)fmin(ceil(image->width * down), width);
    image_t resized;
    TRY(image_resize(image, new_width, new_height, filter, &resized));
    status_t status = image_cut(&resized, -((height - new_height) / 2), -((width - new_width) / 2), height, width, out);
    image_free(&resized);
    return status;
}

// Half of what is left over; Python's // rounds down, also below 0.
static int half(int difference) {
    return difference >= 0 ? difference / 2 : -((1 - difference) / 2);
}

// A tile (or the whole picture, in a tile's size) resized, cropped and written.
static status_t put_tile(const image_rules_t *rules, const image_t *tile, int number, image_patches_t *patches) {
    image_t resized, cropped;
    int height = rules->resize ? rules->resize_height : tile->height;
    int width = rules->resize ? rules->resize_width : tile->width;
    TRY(image_resize(tile, width, height, rules->filter, &resized));
    status_t status = image_cut(&resized, half(height - rules->side_height), half(width - rules->side_width),
                                rules->side_height, rules->side_width, &cropped);
    image_free(&resized);
    if (status) return status;
    image_patches_put(rules, &cropped, number, patches);
    image_free(&cropped);
    return STATUS_OK;
}

static status_t put_tiles(const image_rules_t *rules, const image_t *sheet, image_patches_t *patches) {
    int rows = patches->shape.tiles[0], columns = patches->shape.tiles[1];
    for (int i = 0; i < rows * columns; i++) {
        image_t tile;
        TRY(image_cut(sheet, i / columns * rules->side_height, i % columns * rules->side_width, rules->side_height,
                      rules->side_width, &tile));
        status_t status = put_tile(rules, &tile, 1 + i, patches);
        image_free(&tile);
        if (status) return status;
    }
    return STATUS_OK;
}

status_t image_prepare_llava_next(const image_rules_t *rules, const image_t *image, image_patches_t **out) {
    image_shape_t shape;
    image_t whole, sheet;
    TRY(image_plan_llava_next(rules, image->height, image->width, &shape));
    TRY(image_patches_new(rules, image, shape.grid[0], rules->side_height, rules->side_width, out));
    (*out)->shape = shape;
    TRY(image_resize(image, rules->resize_width, rules->resize_height, rules->filter, &whole));
    status_t status = put_tile(rules, &whole, 0, *out);
    image_free(&whole);
    if (status) return status;
    TRY(fit(image, rules->filter, shape.tiles[0] * rules->side_height, shape.tiles[1] * rules->side_width, &sheet));
    status = put_tiles(rules, &sheet, *out);
    image_free(&sheet);
    return status;
}

// Python's int(round(value, 7)): to seven decimals, exactly rounded, then cut.
static int rounded(double value) {
    char text[64];
    snprintf(text, sizeof(text), "%.7f", value);
    return (int)strtod(text, NULL);
}

void image_unpad(const image_shape_t *shape, int out[4]) {
    int rows = shape->tiles[0] * shape->grid[1], columns = shape->tiles[1] * shape->grid[2];
    int height = shape->size[0], width = shape->size[1];
    int top = 0, left = 0;
    if (height < 1 || width < 1 || rows < 1 || columns < 1) {
        memset(out, 0, 4 * sizeof(*out));
        return;
    }
    if ((double)width / height > (double)columns / rows)
        top = (rows - rounded(height * ((double)columns / width))) / 2;
    else
        left = (columns - rounded(width * ((double)rows / height))) / 2;
    out[0] = top;
    out[1] = left;
    out[2] = rows - 2 * top;
    out[3] = columns - 2 * left;
}
