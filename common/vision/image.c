// Decoding by content, and turning as Exif says.
#include "common/vision/image_parts.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void image_free(image_t *image) {
    free(image->pixels);
    *image = (image_t){0};
}

status_t image_new(uint64_t width, uint64_t height, size_t size, uint64_t pixels_per_byte, image_t *out) {
    *out = (image_t){0};
    if (!width || !height) FAIL(STATUS_INVALID, "the picture is empty");
    if (width > INT_MAX / 4 || height > INT_MAX / 4 || width * height > IMAGE_MAX_PIXELS)
        FAIL(STATUS_INVALID, "the picture has %llu x %llu pixels, more than the %d allowed", (unsigned long long)width,
             (unsigned long long)height, IMAGE_MAX_PIXELS);
    if (width * height > pixels_per_byte * size + 65536)
        FAIL(STATUS_INVALID, "the picture claims %llu x %llu pixels, which %zu bytes cannot hold: it is cut or damaged",
             (unsigned long long)width, (unsigned long long)height, size);
    TRY(memory_allocate(width * height, 3, (void **)&out->pixels));
    out->width = (int)width;
    out->height = (int)height;
    return STATUS_OK;
}

// Exif's eight ways to hold a camera, undone.
static status_t image_turn(image_t *image, int orientation) {
    if (orientation <= 1) return STATUS_OK;
    int width = image->width, height = image->height;
    bool swap = orientation >= 5;
    image_t turned = {.width = swap ? height : width, .height = swap ? width : height};
    TRY(memory_allocate((size_t)width * (size_t)height, 3, (void **)&turned.pixels));
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (int y = 0; y < turned.height; y++) {
        for (int x = 0; x < turned.width; x++) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (flip_x) from_x = width - 1 - from_x;
            if (flip_y) from_y = height - 1 - from_y;
            memcpy(turned.pixels + 3 * ((size_t)y * (size_t)turned.width + (size_t)x),
                   image->pixels + 3 * ((size_t)from_y * (size_t)width + (size_t)from_x), 3);
        }
    }
    turned.keyed = image->keyed;
    memcpy(turned.key, image->key, sizeof(turned.key));
    image_free(image);
    *image = turned;
    return STATUS_OK;
}

void image_whiten(image_t *image) {
    size_t count = image->keyed ? (size_t)image->width * (size_t)image->height : 0;
    for (uint8_t *pixel = image->pixels; count; count--, pixel += 3)
        if (!memcmp(pixel, image->key, 3)) memset(pixel, 255, 3);
    image->keyed = false;
}

status_t image_decode(const void *bytes, size_t size, image_t *out) {
    const uint8_t *data = bytes;
    int orientation = 1;
    *out = (image_t){0};
    status_t status;
    if (size >= 3 && memcmp(data, "\xff\xd8\xff", 3) == 0)
        status = image_decode_jpeg(data, size, out, &orientation);
    else if (size >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0)
        status = image_decode_png(data, size, out, &orientation);
    else if (size >= 12 && memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0)
        status = image_decode_webp(data, size, out, &orientation);
    else if (!size)
        FAIL(STATUS_INVALID, "the picture is an empty file");
    else
        FAIL(STATUS_INVALID, "the picture is no JPEG, PNG or WebP file");
    if (!status) status = image_turn(out, orientation);
    if (status) image_free(out);
    return status;
}
