// Decoding and resizing equal Pillow's, patches equal those of transformers' image processor: to the bit.
#include "tests/lib/check.h"

#include "common/model/model.h"
#include "common/store/store.h"
#include "common/vision/image.h"
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
    assert_true(i > 30 && refused >= 5);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_smart_resize),
        cmocka_unit_test(test_patches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
