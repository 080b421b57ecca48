// Pillow's Image.resize for 8-bit RGB: two passes with rounded integer weights (src/libImaging/Resample.c).
#include "common/vision/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHT_BITS = 32 - 8 - 2 };

// For each output place: the first input place, how many, and their weights (`most` places apart).
typedef struct weights {
    int most;
    int *first, *count;
    int32_t *weight;
} weights_t;

static double filter_bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double filter_bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double filter_lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static double filter_box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

// Pillow writes the two factors as floats.
static double filter_hamming(double x) {
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= M_PI;
    return sin(x) / x * ((double)0.54F + (double)0.46F * cos(x));
}

static void weights_free(weights_t *weights) {
    free(weights->first);
    free(weights->count);
    free(weights->weight);
    *weights = (weights_t){0};
}

// One output place; `scratch` holds weights->most doubles.
static void weights_fill(weights_t *weights, int place, double centre, double support, double filter_scale, int in,
                         double (*filter)(double), double *scratch) {
    int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
    double sum = 0.0, scale = 1.0 / filter_scale;
    if (first < 0) first = 0;
    if (last > in) last = in;
    int count = last - first;
    for (int i = 0; i < count; i++) {
        scratch[i] = filter((i + first - centre + 0.5) * scale);
        sum += scratch[i];
    }
    int32_t *weight = weights->weight + (size_t)place * (size_t)weights->most;
    for (int i = 0; i < count; i++) {
        double share = sum != 0.0 ? scratch[i] / sum : scratch[i];
        weight[i] = (int32_t)(share < 0 ? -0.5 + share * (1 << WEIGHT_BITS) : 0.5 + share * (1 << WEIGHT_BITS));
    }
    weights->first[place] = first;
    weights->count[place] = count;
}

static status_t weights_make(int in, int out, image_filter_t filter, weights_t *weights) {
    static const double reach[] = {[FILTER_BILINEAR] = 1.0,
                                   [FILTER_BICUBIC] = 2.0,
                                   [FILTER_LANCZOS] = 3.0,
                                   [FILTER_BOX] = 0.5,
                                   [FILTER_HAMMING] = 1.0};
    static double (*const function[])(double) = {[FILTER_BILINEAR] = filter_bilinear,
                                                 [FILTER_BICUBIC] = filter_bicubic,
                                                 [FILTER_LANCZOS] = filter_lanczos,
                                                 [FILTER_BOX] = filter_box,
                                                 [FILTER_HAMMING] = filter_hamming};
    double scale = (double)in / out, filter_scale = scale < 1.0 ? 1.0 : scale, support = reach[filter] * filter_scale;
    double *scratch = NULL;
    *weights = (weights_t){.most = (int)ceil(support) * 2 + 1};
    status_t status = ALLOCATE(&weights->first, out);
    if (!status) status = ALLOCATE(&weights->count, out);
    if (!status) status = memory_allocate((size_t)out, (size_t)weights->most * 4, (void **)&weights->weight);
    if (!status) status = ALLOCATE(&scratch, weights->most);
    for (int i = 0; i < out && !status; i++)
        weights_fill(weights, i, (i + 0.5) * scale, support, filter_scale, in, function[filter], scratch);
    free(scratch);
    if (status) weights_free(weights);
    return status;
}

static uint8_t clip(int32_t sum) {
    int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Rows first_row .. first_row + rows - 1 of `image` to `width` pixels each.
static void pass_horizontal(const image_t *image, const weights_t *weights, int width, int first_row, int rows,
                            uint8_t *out) {
    for (int y = 0; y < rows; y++) {
        const uint8_t *row = image->pixels + 3 * (size_t)(y + first_row) * (size_t)image->width;
        for (int x = 0; x < width; x++, out += 3) {
            const int32_t *weight = weights->weight + (size_t)x * (size_t)weights->most;
            const uint8_t *from = row + 3 * (size_t)weights->first[x];
            int32_t sum[3] = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1)};
            for (int i = 0; i < weights->count[x]; i++, from += 3)
                for (int c = 0; c < 3; c++) sum[c] += from[c] * weight[i];
            for (int c = 0; c < 3; c++) out[c] = clip(sum[c]);
        }
    }
}

// `rows` are the input's rows from `first_row` on, `bytes` long each.
static void pass_vertical(const uint8_t *rows, const weights_t *weights, int height, int first_row, size_t bytes,
                          uint8_t *out) {
    for (int y = 0; y < height; y++) {
        const int32_t *weight = weights->weight + (size_t)y * (size_t)weights->most;
        const uint8_t *top = rows + (size_t)(weights->first[y] - first_row) * bytes;
        for (size_t x = 0; x < bytes; x++) {
            int32_t sum = 1 << (WEIGHT_BITS - 1);
            for (int i = 0; i < weights->count[y]; i++) sum += top[x + (size_t)i * bytes] * weight[i];
            *out++ = clip(sum);
        }
    }
}

// Two passes over a picture in between. Which comes first shows in the last bit; Pillow 13 begins with the rows when
// the height shrinks by more than twice what the width does (before 13 the columns always came first).
static status_t resize_both(const image_t *image, const weights_t *across, const weights_t *down, image_t *out) {
    bool down_first = image->height > out->height && image->height - out->height > 2 * (image->width - out->width);
    int first = down->first[0], rows = down->first[out->height - 1] + down->count[out->height - 1] - first;
    image_t between = {.width = down_first ? image->width : out->width, .height = down_first ? out->height : rows};
    TRY(memory_allocate((size_t)between.width * (size_t)between.height, 3, (void **)&between.pixels));
    size_t bytes = 3 * (size_t)between.width;
    if (down_first) {
        pass_vertical(image->pixels, down, out->height, 0, bytes, between.pixels);
        pass_horizontal(&between, across, out->width, 0, out->height, out->pixels);
    } else {
        pass_horizontal(image, across, out->width, first, rows, between.pixels);
        pass_vertical(between.pixels, down, out->height, first, bytes, out->pixels);
    }
    image_free(&between);
    return STATUS_OK;
}

static status_t resize_into(const image_t *image, const weights_t *across, const weights_t *down, image_t *out) {
    size_t bytes = 3 * (size_t)out->width;
    if (across && down) return resize_both(image, across, down, out);
    if (across)
        pass_horizontal(image, across, out->width, 0, out->height, out->pixels);
    else if (down)
        pass_vertical(image->pixels, down, out->height, 0, bytes, out->pixels);
    else
        memcpy(out->pixels, image->pixels, bytes * (size_t)out->height);
    return STATUS_OK;
}

status_t image_resize(const image_t *image, int width, int height, image_filter_t filter, image_t *out) {
    weights_t across = {0}, down = {0};
    *out = (image_t){0};
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS || image->width < 1 ||
        image->height < 1 || (unsigned)filter > FILTER_HAMMING)
        FAIL(STATUS_INVALID, "a picture of %d x %d pixels cannot be resized to %d x %d", image->width, image->height,
             width, height);
    status_t status = STATUS_OK;
    bool wide = width != image->width, tall = height != image->height;
    if (wide) status = weights_make(image->width, width, filter, &across);
    if (!status && tall) status = weights_make(image->height, height, filter, &down);
    if (!status) status = memory_allocate((size_t)width * (size_t)height, 3, (void **)&out->pixels);
    if (!status) {
        out->width = width;
        out->height = height;
        status = resize_into(image, wide ? &across : NULL, tall ? &down : NULL, out);
    }
    if (status) image_free(out);
    weights_free(&across);
    weights_free(&down);
    return status;
}
