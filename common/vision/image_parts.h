// Inside of common/vision: one decoder a format, one preparation a processor.
#ifndef COMMON_VISION_IMAGE_PARTS_H
#define COMMON_VISION_IMAGE_PARTS_H

#include "common/vision/image.h"

// Each decodes one format into 8-bit RGB, not turned yet, and gives the file's Exif orientation (1 where there is
// none).
status_t image_decode_jpeg(const uint8_t *bytes, size_t size, image_t *out, int *orientation) STATUS_CHECKED;
status_t image_decode_png(const uint8_t *bytes, size_t size, image_t *out, int *orientation) STATUS_CHECKED;
status_t image_decode_webp(const uint8_t *bytes, size_t size, image_t *out, int *orientation) STATUS_CHECKED;

// Checks the size that a header claims and allocates. pixels_per_byte: the most that the format can hold in a byte.
status_t image_new(uint64_t width, uint64_t height, size_t size, uint64_t pixels_per_byte, image_t *out) STATUS_CHECKED;
// Orientation in an Exif block with or without its "Exif\0\0", or in XMP text; 0 when it says nothing. What is said but
// means nothing is 1 in Exif (it hides XMP's), 0 or 9 in XMP.
int image_exif_orientation(const uint8_t *bytes, size_t size);
int image_xmp_orientation(const void *text, size_t size);
// Both, as Pillow puts them together: 1 to 8. Either may be NULL.
int image_orientation(const uint8_t *exif, size_t exif_size, const void *xmp, size_t xmp_size);

// One processor each: the patches of a decoded picture, all but feature_rows and content_hash. On an error *out may
// hold what is there so far.
status_t image_prepare_qwen2_vl(const image_rules_t *rules, const image_t *image, image_patches_t **out) STATUS_CHECKED;
status_t image_prepare_llava_next(const image_rules_t *rules, const image_t *image,
                                  image_patches_t **out) STATUS_CHECKED;
status_t image_prepare_gemma3(const image_rules_t *rules, const image_t *image, image_patches_t **out) STATUS_CHECKED;
// The shape of a picture of height x width pixels, and how many crops of which length lie along its longer side (0: it
// stays whole).
status_t image_plan_llava_next(const image_rules_t *rules, int height, int width, image_shape_t *out) STATUS_CHECKED;
void image_plan_gemma3(const image_rules_t *rules, int longer, int shorter, int *crops, int *length);
// Room for `tiles` tiles of height x width of a picture, with its shape set but for tiles and feature_rows (1 run). A
// rest that makes no whole patch is left out. Errors: more pixels than the picture can justify.
status_t image_patches_new(const image_rules_t *rules, const image_t *picture, int tiles, int height, int width,
                           image_patches_t **out) STATUS_CHECKED;
// Normalises a tile and writes its patches.
void image_patches_put(const image_rules_t *rules, const image_t *image, int tile, image_patches_t *patches);
// The part of a picture from (top, left) on; what lies outside of the picture is black.
status_t image_cut(const image_t *image, int top, int left, int height, int width, image_t *out) STATUS_CHECKED;

#endif
