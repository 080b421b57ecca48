// Decoding and resizing equal Pillow's, patches equal those of transformers' image processor: to the bit.
#include "tests/lib/check.h"

#include "common/model/model.h"
#include "common/store/store.h"
#include "common/vision/image_parts.h"
#include <jansson.h>
#include <sodium.h>

#define GOLDENS POISE_SOURCE_DIR "/tests/goldens/image/"

static char *read_bytes(const char *folder, const char *name, size_t *size) {
    char path[512], *bytes;
    snprintf(path, sizeof(path), "%s%s", folder, name);
    CHECK_OK(file_read_whole(path, 1 << 26, &bytes, size));
    return bytes;
}

static json_t *read_json(const char *name) {
    size_t size;
    json_error_t error;
    char *text = read_bytes(GOLDENS, name, &size);
    json_t *root = json_loadb(text, size, 0, &error);
    free(text);
    assert_non_null(root);
    return root;
}

static int number(const json_t *object, const char *key) {
    return (int)json_integer_value(json_object_get(object, key));
}

static void check_pixels(const json_t *item, const image_t *image) {
    const char *file = json_string_value(json_object_get(item, "file"));
    unsigned char hash[crypto_hash_sha256_BYTES];
    char hex[2 * crypto_hash_sha256_BYTES + 1];
    assert_int_equal(image->width, number(item, "width"));
    assert_int_equal(image->height, number(item, "height"));
    size_t i;
    const json_t *value;
    json_array_foreach(json_object_get(item, "first_pixels"), i, value) {
        if (image->pixels[i] != json_integer_value(value))
            fail_msg("%s: byte %zu is %d, expected %d", file, i, image->pixels[i], (int)json_integer_value(value));
    }
    crypto_hash_sha256(hash, image->pixels, 3 * (size_t)image->width * (size_t)image->height);
    sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
    if (strcmp(hex, json_string_value(json_object_get(item, "sha256"))) != 0) fail_msg("%s: other pixels", file);
}

static void test_decode(void **state) {
    (void)state;
    json_t *root = read_json("decode.json"), *item;
    size_t i, refused = 0;
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        const char *file = json_string_value(json_object_get(item, "file"));
        size_t size;
        char *bytes = read_bytes(GOLDENS "files/", file, &size);
        image_t image;
        status_t status = image_decode(bytes, size, &image);
        free(bytes);
        if (json_object_get(item, "error")) {
            assert_non_null(status);
            assert_int_equal(status_kind(status), STATUS_INVALID);
            status_free(status);
            refused++;
            continue;
        }
        if (status) print_error("%s: ", file);
        CHECK_OK(status);
        check_pixels(item, &image);
        image_free(&image);
    }
    assert_true(i > 90 && refused >= 5);
    json_decref(root);
}

static void test_resize(void **state) {
    (void)state;
    json_t *root = read_json("resize.json"), *item;
    size_t i;
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        const char *name = json_string_value(json_object_get(item, "filter"));
        image_filter_t filter = strcmp(name, "bicubic") == 0    ? FILTER_BICUBIC
                                : strcmp(name, "bilinear") == 0 ? FILTER_BILINEAR
                                                                : FILTER_LANCZOS;
        size_t size;
        image_t image, resized;
        char *bytes = read_bytes(GOLDENS "files/", json_string_value(json_object_get(item, "file")), &size);
        CHECK_OK(image_decode(bytes, size, &image));
        CHECK_OK(image_resize(&image, number(item, "width"), number(item, "height"), filter, &resized));
        check_pixels(item, &resized);
        image_free(&image);
        image_free(&resized);
        free(bytes);
    }
    assert_true(i > 20);
    json_decref(root);
}

static void test_smart_resize(void **state) {
    (void)state;
    json_t *root = read_json("smart_resize.json"), *item;
    size_t i;
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        image_rules_t rules = {.patch = 14, .merge = 2, .temporal = 2};
        int height = (int)json_integer_value(json_array_get(item, 0)), new_height = 0;
        int width = (int)json_integer_value(json_array_get(item, 1)), new_width = 0;
        rules.min_pixels = json_integer_value(json_array_get(item, 2));
        rules.max_pixels = json_integer_value(json_array_get(item, 3));
        const json_t *expected = json_array_get(item, 4);
        status_t status = image_smart_resize(&rules, height, width, &new_height, &new_width);
        if (json_is_null(expected)) {
            assert_non_null(status);
            status_free(status);
            continue;
        }
        CHECK_OK(status);
        if (new_height != json_integer_value(json_array_get(expected, 0)) ||
            new_width != json_integer_value(json_array_get(expected, 1)))
            fail_msg("%d x %d becomes %d x %d", height, width, new_height, new_width);
    }
    assert_true(i > 20);
    json_decref(root);
}

static void test_patches(void **state) {
    (void)state;
    size_t size, i;
    char *tensors = read_bytes(GOLDENS, "qwen_pixels.safetensors", &size);
    uint64_t header;
    memcpy(&header, tensors, 8);
    json_error_t error;
    json_t *index = json_loadb(tensors + 8, header, 0, &error), *root = read_json("qwen_pixels.json"), *item;
    assert_non_null(index);
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        image_rules_t rules = {.patch = 14, .merge = 2, .temporal = 2};
        CHECK_OK(image_rules_read(POISE_SOURCE_DIR "/tests/goldens/score/model", &rules));
        rules.min_pixels = number(item, "min_pixels");
        rules.max_pixels = number(item, "max_pixels");
        char name[64];
        snprintf(name, sizeof(name), "%zu.pixel_values", i);
        const json_t *tensor = json_object_get(index, name);
        assert_string_equal(json_string_value(json_object_get(tensor, "dtype")), "F32");
        size_t first = (size_t)json_integer_value(json_array_get(json_object_get(tensor, "data_offsets"), 0));
        const float *expected = (const float *)(const void *)(tensors + 8 + header + first);
        size_t bytes_size;
        char *bytes = read_bytes(GOLDENS "files/", json_string_value(json_object_get(item, "file")), &bytes_size);
        image_patches_t *patches;
        CHECK_OK(image_patches_make(&rules, bytes, bytes_size, &patches));
        for (int g = 0; g < 3; g++)
            assert_int_equal(patches->shape.grid[g],
                             json_integer_value(json_array_get(json_object_get(item, "grid"), (size_t)g)));
        assert_int_equal(patches->rows, json_integer_value(json_array_get(json_object_get(tensor, "shape"), 0)));
        assert_int_equal(patches->columns, json_integer_value(json_array_get(json_object_get(tensor, "shape"), 1)));
        assert_int_equal(patches->shape.feature_rows, patches->rows / 4);
        assert_memory_equal(patches->patches, expected, 4 * (size_t)patches->rows * (size_t)patches->columns);
        image_patches_free(patches);
        free(bytes);
    }
    assert_true(i > 4);
    json_decref(root);
    json_decref(index);
    free(tensors);
}

static void write_settings(const char *folder, const json_t *settings) {
    char path[512];
    snprintf(path, sizeof(path), "%s/preprocessor_config.json", folder);
    assert_int_equal(json_dump_file(settings, path, 0), 0);
}

static void check_list(const json_t *expected, const int *values, const char *what) {
    for (size_t i = 0; i < json_array_size(expected); i++)
        if (values[i] != json_integer_value(json_array_get(expected, i))) fail_msg("%s[%zu] is %d", what, i, values[i]);
}

static void check_patches(const json_t *item, const image_patches_t *patches) {
    unsigned char hash[crypto_hash_sha256_BYTES];
    char hex[2 * crypto_hash_sha256_BYTES + 1];
    const json_t *value;
    size_t i;
    check_list(json_object_get(item, "grid"), patches->shape.grid, "grid");
    check_list(json_object_get(item, "size"), patches->shape.size, "size");
    assert_int_equal(patches->shape.runs, number(item, "runs"));
    assert_int_equal(patches->shape.feature_rows, number(item, "feature_rows"));
    json_array_foreach(json_object_get(item, "first"), i, value)
        assert_true(patches->patches[i] == (float)json_real_value(value));
    crypto_hash_sha256(hash, (const unsigned char *)patches->patches,
                       sizeof(float) * (size_t)patches->rows * (size_t)patches->columns);
    sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
    if (strcmp(hex, json_string_value(json_object_get(item, "sha256"))) != 0) fail_msg("other patches");
}

static void test_processors(void **state) {
    (void)state;
    static const char *const names[] = {"qwen2_vl", "llava_next", "gemma3"};
    char folder[256];
    json_t *root = read_json("processors.json"), *item;
    size_t i;
    int seen[3] = {0};
    check_make_folder(folder, sizeof(folder));
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        const char *name = json_string_value(json_object_get(item, "processor"));
        int kind = 0;
        while (strcmp(name, names[kind]) != 0) kind++;
        image_rules_t rules = {
            .processor = (image_processor_t)kind, .patch = 14, .merge = 1, .temporal = 1, .tokens = 4};
        if (kind == PROCESSOR_QWEN2_VL) rules.merge = rules.temporal = 2;
        rules.side_height = rules.side_width = kind == PROCESSOR_LLAVA_NEXT ? 28 : 56;
        const json_t *settings = json_object_get(item, "settings");
        if (json_is_array(json_object_get(settings, "size"))) rules.side_height = rules.side_width = 57;
        // The goldens are of the image processor by itself, which follows the key.
        if (json_is_true(json_object_get(settings, "do_pan_and_scan")))
            json_object_set_new((json_t *)(uintptr_t)settings, "always_pan_and_scan", json_true());
        write_settings(folder, settings);
        size_t size;
        char *bytes = read_bytes(GOLDENS "files/", json_string_value(json_object_get(item, "file")), &size);
        image_patches_t *patches;
        CHECK_OK(image_rules_read(folder, &rules));
        CHECK_OK(image_patches_make(&rules, bytes, size, &patches));
        check_patches(item, patches);
        image_patches_free(patches);
        free(bytes);
        seen[kind]++;
    }
    assert_true(seen[0] >= 10 && seen[1] >= 20 && seen[2] >= 20);
    check_remove_folder(folder);
    json_decref(root);
}

static void check_llava_counts(const json_t *item) {
    image_rules_t rules = {.processor = PROCESSOR_LLAVA_NEXT,
                           .patch = 14,
                           .merge = 1,
                           .temporal = 1,
                           .side_height = 336,
                           .side_width = 336,
                           .resize_height = 336,
                           .resize_width = 336};
    const json_t *value;
    size_t i;
    json_array_foreach(json_object_get(item, "pinpoints"), i, value) {
        for (size_t j = 0; j < 2; j++) rules.pinpoint[i][j] = (int)json_integer_value(json_array_get(value, j));
        rules.pinpoints++;
    }
    json_array_foreach(json_object_get(item, "counts"), i, value) {
        int height = (int)json_integer_value(json_array_get(value, 0)),
            width = (int)json_integer_value(json_array_get(value, 1));
        image_shape_t shape;
        CHECK_OK(image_plan_llava_next(&rules, height, width, &shape));
        if (shape.feature_rows != json_integer_value(json_array_get(value, 2)))
            fail_msg("a picture of %d x %d becomes %d tokens", height, width, shape.feature_rows);
    }
    assert_true(i > 250);
}

static void check_gemma_crops(const json_t *item) {
    image_rules_t rules = {.processor = PROCESSOR_GEMMA3};
    rules.pan_and_scan.on = true;
    rules.pan_and_scan.min_crop = number(item, "min_crop");
    rules.pan_and_scan.max_crops = number(item, "max_crops");
    rules.pan_and_scan.min_ratio = json_number_value(json_object_get(item, "min_ratio"));
    const json_t *value;
    size_t i;
    int64_t all = 0;
    json_array_foreach(json_object_get(item, "counts"), i, value) {
        int height = (int)json_integer_value(json_array_get(value, 0)),
            width = (int)json_integer_value(json_array_get(value, 1));
        int crops, length;
        image_plan_gemma3(&rules, height > width ? height : width, height > width ? width : height, &crops, &length);
        if (crops != json_integer_value(json_array_get(value, 2)))
            fail_msg("a picture of %d x %d is cropped %d times", height, width, crops);
        all += crops;
    }
    assert_true(i > 250 && all > 50);
}

static void test_token_counts(void **state) {
    (void)state;
    json_t *root = read_json("token_counts.json"), *item;
    size_t i;
    json_array_foreach(json_object_get(root, "llava_next"), i, item) check_llava_counts(item);
    assert_int_equal(i, 3);
    json_array_foreach(json_object_get(root, "gemma3"), i, item) check_gemma_crops(item);
    assert_int_equal(i, 3);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),  cmocka_unit_test(test_resize),     cmocka_unit_test(test_smart_resize),
        cmocka_unit_test(test_patches), cmocka_unit_test(test_processors), cmocka_unit_test(test_token_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
