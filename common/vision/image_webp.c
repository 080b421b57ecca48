// WebP by libwebp. Animations are refused.
#include "common/vision/image_parts.h"

#include <string.h>
#include <webp/decode.h>

enum { PIXELS_PER_BYTE = 16384 * 64 }; // lossless WebP can say "all alike" in a few bytes; the limit is on pixels then

static uint32_t webp_word(const uint8_t *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

// The EXIF chunk among the chunks of the RIFF container.
static int webp_orientation(const uint8_t *bytes, size_t size) {
    for (size_t at = 12; at + 8 <= size;) {
        size_t length = webp_word(bytes + at + 4), left = size - at - 8;
        if (length > left) return 1;
        if (memcmp(bytes + at, "EXIF", 4) == 0) return image_exif_orientation(bytes + at + 8, length);
        at += 8 + length + (length & 1);
    }
    return 1;
}

status_t image_decode_webp(const uint8_t *bytes, size_t size, image_t *out, int *orientation) {
    WebPBitstreamFeatures features;
    VP8StatusCode code = WebPGetFeatures(bytes, size, &features);
    if (code != VP8_STATUS_OK)
        FAIL(STATUS_INVALID, "the WebP picture is %s",
             code == VP8_STATUS_NOT_ENOUGH_DATA ? "cut short" : "damaged or not supported");
    if (features.has_animation) FAIL(STATUS_INVALID, "the WebP picture is an animation, which is not supported");
    TRY(image_new((uint64_t)features.width, (uint64_t)features.height, size, PIXELS_PER_BYTE, out));
    size_t stride = 3 * (size_t)out->width;
    if (!WebPDecodeRGBInto(bytes, size, out->pixels, stride * (size_t)out->height, (int)stride)) {
        image_free(out);
        FAIL(STATUS_INVALID, "the WebP picture is damaged or cut short");
    }
    *orientation = webp_orientation(bytes, size);
    return STATUS_OK;
}
