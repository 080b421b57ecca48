// WebP by libwebp.
#include "common/vision/image_parts.h"

#include <string.h>
#include <webp/decode.h>
#include <webp/demux.h>

enum { PIXELS_PER_BYTE = 16384 * 64 }; // lossless WebP can say "all alike" in a few bytes; the limit is on pixels then

// The picture, or the first one of an animation, on a canvas of black.
static status_t webp_run(WebPDemuxer *file, size_t size, image_t *out) {
    WebPIterator frame;
    TRY(image_new(WebPDemuxGetI(file, WEBP_FF_CANVAS_WIDTH), WebPDemuxGetI(file, WEBP_FF_CANVAS_HEIGHT), size,
                  PIXELS_PER_BYTE, out));
    size_t stride = 3 * (size_t)out->width, bytes = stride * (size_t)out->height;
    memset(out->pixels, 0, bytes);
    bool whole = WebPDemuxGetFrame(file, 1, &frame);
    whole = whole && frame.x_offset >= 0 && frame.y_offset >= 0 && frame.width > 0 && frame.height > 0 &&
            frame.x_offset + frame.width <= out->width && frame.y_offset + frame.height <= out->height;
    if (whole) {
        size_t start = (size_t)frame.y_offset * stride + 3 * (size_t)frame.x_offset;
        whole = WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, out->pixels + start, bytes - start,
                                  (int)stride) != NULL;
    }
    WebPDemuxReleaseIterator(&frame);
    if (!whole) FAIL(STATUS_INVALID, "the WebP picture is damaged or cut short");
    return STATUS_OK;
}

static int webp_orientation(WebPDemuxer *file) {
    WebPChunkIterator exif = {0}, xmp = {0};
    bool has_exif = WebPDemuxGetChunk(file, "EXIF", 1, &exif), has_xmp = WebPDemuxGetChunk(file, "XMP ", 1, &xmp);
    int orientation = image_orientation(has_exif ? exif.chunk.bytes : NULL, exif.chunk.size,
                                        has_xmp ? xmp.chunk.bytes : NULL, xmp.chunk.size);
    WebPDemuxReleaseChunkIterator(&exif);
    WebPDemuxReleaseChunkIterator(&xmp);
    return orientation;
}

status_t image_decode_webp(const uint8_t *bytes, size_t size, image_t *out, int *orientation) {
    WebPData data = {.bytes = bytes, .size = size};
    WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
    WebPDemuxer *file = WebPDemuxPartial(&data, &state);
    status_t status = STATUS_OK;
    if (!file || state != WEBP_DEMUX_DONE)
        status = STATUS_NEW(STATUS_INVALID, "the WebP picture is %s",
                            state == WEBP_DEMUX_PARSE_ERROR ? "damaged or not supported" : "cut short");
    if (!status) status = webp_run(file, size, out);
    if (!status) *orientation = webp_orientation(file);
    WebPDemuxDelete(file);
    if (status) image_free(out);
    return status;
}
