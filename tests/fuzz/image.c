// Any bytes as a picture: decoded, made into patches, resized to sizes that the bytes choose; and as EXIF data.
#include "common/model/model.h"
#include "common/vision/image_parts.h"
#include "tests/fuzz/fuzz.h"

static void resize(const image_t *image, const uint8_t *data, size_t size) {
    fuzz_bytes_t bytes = {.at = size > 8 ? data + size - 8 : data, .end = data + size};
    int width = 1 + (int)(fuzz_take(&bytes, 2) % 2000), height = 1 + (int)(fuzz_take(&bytes, 2) % 2000);
    image_filter_t filter = (image_filter_t)(fuzz_take(&bytes, 1) % 3);
    image_t resized;
    if ((int64_t)width * height > 200000) height = 200000 / width + 1;
    if ((int64_t)image->width * image->height > 2000000) return; // long, and no other code
    status_t status = image_resize(image, width, height, filter, &resized);
    if (!status) {
        FUZZ_CHECK(resized.width == width && resized.height == height);
        image_free(&resized);
    }
    status_free(status);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const image_rules_t rules = {.patch = 14,
                                 .merge = 2,
                                 .temporal = 2,
                                 .min_pixels = 784,
                                 .max_pixels = 28 * 28 * 16,
                                 .resize = true,
                                 .filter = FILTER_BICUBIC,
                                 .rescale = true,
                                 .rescale_factor = 1 / 255.0};
    image_patches_t *patches;
    image_t image;
    int orientation = image_exif_orientation(data, size);
    FUZZ_CHECK(orientation >= 0 && orientation <= 8);
    fuzz_allow(16 << 20, 4096, size); // what a picture's bytes can stand for: image_new
    // A flat WebP picture of any size has a few bytes.
    if (size > 4 && !memcmp(data, "RIFF", 4)) fuzz_allow(3 * (size_t)IMAGE_MAX_PIXELS, 1, 0);
    status_t status = image_patches_make(&rules, data, size, &patches);
    FUZZ_CHECK(status || patches->shape.feature_rows * 4 == patches->rows);
    if (!status) {
        image_patches_free(patches);
        status = image_decode(data, size, &image);
        FUZZ_CHECK(!status);
        fuzz_allow(64 << 20, 4096, size);
        resize(&image, data, size);
        image_free(&image);
    }
    status_free(status);
    return 0;
}
