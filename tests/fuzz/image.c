// Any bytes as a picture: decoded, and made into patches.
#include "common/vision/image.h"
#include "common/model/model.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const image_rules_t rules = {
        .patch = 14, .merge = 2, .temporal = 2, .min_pixels = 784, .max_pixels = 28 * 28 * 16, .deviation = {1, 1, 1}};
    image_patches_t *patches;
    status_t status = image_patches_make(&rules, data, size, &patches);
    if (!status && patches->feature_rows * 4 != patches->rows) abort();
    status_free(status);
    image_patches_free(patches);
    return 0;
}
