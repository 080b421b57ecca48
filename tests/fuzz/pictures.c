// Parts: five bytes that choose a processor and what config.json says of it; preprocessor_config.json;
// processor_config.json; a picture. The settings are read, and the picture is prepared as they say.
#include "common/vision/image.h"
#include "tests/fuzz/fuzz.h"

enum { MOST_PIXELS = 1 << 18 };

// Longer inputs find no other code: what they ask for beyond this is looked at by unit.image.
static bool is_quick(const image_rules_t *rules) {
    if (rules->processor == PROCESSOR_QWEN2_VL) return rules->max_pixels <= MOST_PIXELS;
    if ((int64_t)rules->resize_height * rules->resize_width > MOST_PIXELS / 16) return false;
    for (int i = 0; i < rules->pinpoints; i++)
        if ((int64_t)rules->pinpoint[i][0] * rules->pinpoint[i][1] > MOST_PIXELS / 4) return false;
    return true;
}

static void check_shape(const image_rules_t *rules, const image_patches_t *made) {
    const image_shape_t *shape = &made->shape;
    FUZZ_CHECK(made->rows == shape->grid[0] * shape->grid[1] * shape->grid[2] && made->rows > 0);
    FUZZ_CHECK(made->columns == 3 * rules->temporal * rules->patch * rules->patch);
    FUZZ_CHECK(shape->runs >= 1 && shape->feature_rows >= 0 && shape->feature_rows % shape->runs == 0);
    if (rules->processor == PROCESSOR_LLAVA_NEXT) {
        int box[4];
        image_unpad(shape, box);
        FUZZ_CHECK(shape->grid[0] == 1 + shape->tiles[0] * shape->tiles[1]);
        FUZZ_CHECK(box[0] >= 0 && box[1] >= 0 && box[2] >= 0 && box[3] >= 0);
        FUZZ_CHECK(2 * box[0] + box[2] == shape->tiles[0] * shape->grid[1]);
        FUZZ_CHECK(2 * box[1] + box[3] == shape->tiles[1] * shape->grid[2]);
    }
    float sum = 0;
    for (size_t i = 0; i < (size_t)made->rows * (size_t)made->columns; i++) sum += made->patches[i];
    FUZZ_CHECK(sum == sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"preprocessor_config.json", "processor_config.json"};
    fuzz_parts_t parts = fuzz_parts(data, size);
    const uint8_t *part = NULL;
    size_t length = 0;
    fuzz_allow(64 << 20, 4096, size); // what a picture's bytes can stand for, and what MOST_PIXELS become
    FUZZ_CHECK(fuzz_next(&parts, &part, &length));
    fuzz_bytes_t bytes = {.at = part, .end = part + length};
    image_rules_t rules = {.processor = (image_processor_t)(fuzz_take(&bytes, 1) % 3)};
    bool is_qwen = rules.processor == PROCESSOR_QWEN2_VL;
    rules.patch = 1 + (int)(fuzz_take(&bytes, 1) % 32);
    rules.merge = is_qwen ? 1 + (int)(fuzz_take(&bytes, 1) % 3) : 1;
    rules.temporal = is_qwen ? 1 + (int)(fuzz_take(&bytes, 1) % 3) : 1;
    rules.side_height = rules.side_width = 1 + (int)(fuzz_take(&bytes, 1) % 64);
    rules.tokens = 7;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        bool there = fuzz_next(&parts, &part, &length) && length;
        fuzz_file(names[i], there ? part : NULL, length);
    }
    image_patches_t *made;
    status_t status = image_rules_read(fuzz_folder(), &rules);
    // A flat WebP picture of any size has a few bytes.
    if (!parts.over && parts.end - parts.at > 4 && !memcmp(parts.at, "RIFF", 4))
        fuzz_allow(3 * (size_t)IMAGE_MAX_PIXELS, 1, 0);
    // The picture is the rest, and may hold the byte that separates parts.
    if (!status && !parts.over && is_quick(&rules)) {
        status = image_patches_make(&rules, parts.at, (size_t)(parts.end - parts.at), &made);
        if (!status) {
            check_shape(&rules, made);
            image_patches_free(made);
        }
    }
    status_free(status);
    return 0;
}
