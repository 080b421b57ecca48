// Images: bytes -> pixels -> the patch rows a model family's processor makes.
//
// One function serves packing, learner and rollout. Decoding is by libjpeg-turbo, libpng and libwebp; resizing is
// Pillow's arithmetic to the bit; normalisation is the processors' ("Image arithmetic" in docs/architecture.md).
#ifndef COMMON_VISION_IMAGE_H
#define COMMON_VISION_IMAGE_H

#include "common/vision/image_rules.h"
#include "kernels/base/status.h"
#include <stddef.h>
#include <stdint.h>

// 8-bit RGB, rows top to bottom, 3 * width bytes each. Owns `pixels` (free by image_free).
typedef struct image {
    int width, height;
    uint8_t *pixels;
    bool keyed; // `key` is a colour that the file calls transparent
    uint8_t key[3];
} image_t;

enum {
    IMAGE_MAX_PIXELS = 178956970, // Pillow's decompression-bomb limit: larger images are refused
    IMAGE_MAX_ENLARGED =
        1 << 24, // what a picture may be enlarged to, over all its tiles; larger ones may keep their size
};

// Decodes JPEG (incl. progressive, grey, CMYK), PNG (all colour types and depths) or WebP by content. The EXIF
// orientation is applied; transparency is dropped as Pillow's convert("RGB") does (image_whiten). Errors
// (STATUS_INVALID): unknown format, broken data, too large; they name what is wrong, not the file (the caller adds that
// by status_context).
status_t image_decode(const void *bytes, size_t size, image_t *out) STATUS_CHECKED;
void image_free(image_t *image);
// Paints what has the transparent colour white. transformers' processors do so with 'do_convert_rgb', because Pillow's
// convert("RGB") keeps a note of such a colour (PNG: grey, RGB, or one entry of a palette; an alpha channel is
// forgotten).
void image_whiten(image_t *image);
// Writes PNG (zlib level 6). *out is malloc'd.
status_t image_encode_png(const image_t *image, uint8_t **out, size_t *size) STATUS_CHECKED;
// Pillow's Image.resize, bit for bit.
status_t image_resize(const image_t *image, int width, int height, image_filter_t filter, image_t *out) STATUS_CHECKED;

// The patch rows of one image, host memory, owned (free by image_patches_free).
typedef struct image_patches {
    uint64_t content_hash; // XXH3-64 of the encoded bytes
    image_shape_t shape;
    int rows, columns; // rows = product of shape.grid; columns = 3 * temporal * patch * patch
    float *patches;    // [rows, columns]
} image_patches_t;

// Qwen2-VL's smart_resize: the height and width an image of this size is resized to. Errors: aspect ratio over 200.
status_t image_smart_resize(const image_rules_t *rules, int height, int width, int *out_height,
                            int *out_width) STATUS_CHECKED;
// Decode, resize, normalise, cut into patches as the family's processor does. `bytes` is an encoded image file. Rows:
// tile by tile (crop by crop), the whole picture first, each row-major, but in blocks of merge x merge where merge is
// over 1; columns: channel, frame (`temporal` of them), y, x. Errors (STATUS_INVALID): what image_decode refuses; a
// shape the processor refuses; a result of more pixels than the picture or IMAGE_MAX_ENLARGED can justify.
status_t image_patches_make(const image_rules_t *rules, const void *bytes, size_t size,
                            image_patches_t **out) STATUS_CHECKED;
void image_patches_free(image_patches_t *patches);

#endif
