// Inside of common/vision: one decoder a format.
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
// Orientation of an Exif block with or without its "Exif\0\0"; 1 when it says nothing usable.
int image_exif_orientation(const uint8_t *bytes, size_t size);

#endif
