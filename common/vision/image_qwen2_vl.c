// Qwen2-VL's image processor: both sides become multiples of a merged patch, within limits of pixels.
#include "common/vision/image_parts.h"

#include <math.h>

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
    if (!(new_h * new_w <= IMAGE_MAX_PIXELS))
        FAIL(STATUS_INVALID, "the picture would be resized to more than %d pixels; lower 'max_pixels' or 'min_pixels'",
             IMAGE_MAX_PIXELS);
    *out_height = (int)new_h;
    *out_width = (int)new_w;
    return STATUS_OK;
}

status_t image_prepare_qwen2_vl(const image_rules_t *rules, const image_t *image, image_patches_t **out) {
    int height = image->height, width = image->width, factor = rules->patch * rules->merge;
    if (rules->resize)
        TRY(image_smart_resize(rules, image->height, image->width, &height, &width));
    else if (height % factor || width % factor)
        FAIL(STATUS_INVALID,
             "the picture is %d x %d pixels; without resizing ('do_resize') its sides must be multiples of %d", width,
             height, factor);
    TRY(image_patches_new(rules, image, 1, height, width, out));
    image_t resized;
    TRY(image_resize(image, width, height, rules->filter, &resized));
    image_patches_put(rules, &resized, 0, *out);
    image_free(&resized);
    return STATUS_OK;
}
