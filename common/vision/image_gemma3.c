// Gemma-3's image processor: one fixed size that ignores the aspect; with pan-and-scan also crops of long pictures.
#include "common/vision/image_parts.h"

#include <math.h>

// How many crops lie side by side along the longer side, and how long each is; 0 crops when the picture stays whole.
void image_plan_gemma3(const image_rules_t *rules, int longer, int shorter, int *crops, int *length) {
    double ratio = (double)longer / shorter;
    *crops = *length = 0;
    if (!rules->pan_and_scan.on || ratio < rules->pan_and_scan.min_ratio) return;
    int count = (int)fmin(floor(ratio + 0.5), floor((double)longer / rules->pan_and_scan.min_crop));
    if (count < 2) count = 2;
    if (count > rules->pan_and_scan.max_crops) count = rules->pan_and_scan.max_crops;
    *length = (int)ceil((double)longer / count);
    if ((*length < shorter ? *length : shorter) < rules->pan_and_scan.min_crop) return;
    *crops = count;
}

static status_t put_crop(const image_rules_t *rules, const image_t *crop, int number, image_patches_t *patches) {
    image_t resized;
    if (!rules->resize && (crop->height != rules->side_height || crop->width != rules->side_width))
        FAIL(STATUS_INVALID, "the picture is %d x %d pixels; without resizing ('do_resize') it must have %d x %d",
             crop->width, crop->height, rules->side_width, rules->side_height);
    TRY(image_resize(crop, rules->side_width, rules->side_height, rules->filter, &resized));
    image_patches_put(rules, &resized, number, patches);
    image_free(&resized);
    return STATUS_OK;
}

status_t image_prepare_gemma3(const image_rules_t *rules, const image_t *image, image_patches_t **out) {
    bool wide = image->width >= image->height;
    int longer = wide ? image->width : image->height, shorter = wide ? image->height : image->width;
    int crops, length;
    image_plan_gemma3(rules, longer, shorter, &crops, &length);
    // Rounding the length up can leave nothing for the last crops.
    if (crops && (int64_t)(crops - 1) * length >= longer)
        FAIL(STATUS_INVALID, "the picture of %d x %d pixels is too small for %d crops of %d (pan and scan)",
             image->width, image->height, crops, length);
    TRY(image_patches_new(rules, image, 1 + crops, rules->side_height, rules->side_width, out));
    (*out)->shape.runs = 1 + crops;
    TRY(put_crop(rules, image, 0, *out));
    for (int i = 0; i < crops; i++) {
        int from = i * length, rest = longer - from < length ? longer - from : length;
        image_t crop;
        TRY(image_cut(image, wide ? 0 : from, wide ? from : 0, wide ? shorter : rest, wide ? rest : shorter, &crop));
        status_t status = put_crop(rules, &crop, 1 + i, *out);
        image_free(&crop);
        if (status) return status;
    }
    return STATUS_OK;
}
