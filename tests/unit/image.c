// Pictures that are hostile, cut or damaged give errors; what is written reads back.
#include "tests/lib/check.h"

#include "common/model/model.h"
#include "common/store/store.h"
#include "common/vision/image_parts.h"
#include <dirent.h>

#define FILES POISE_SOURCE_DIR "/tests/goldens/image/files"

static image_t sample(int width, int height) {
    image_t image = {.width = width, .height = height, .pixels = malloc(3 * (size_t)width * (size_t)height)};
    for (int i = 0; i < 3 * width * height; i++) image.pixels[i] = (uint8_t)(i * 37 + i / 11);
    return image;
}

static void test_png_round_trip(void **state) {
    (void)state;
    static const int sizes[][2] = {{1, 1}, {28, 28}, {3, 200}, {300, 1}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        image_t image = sample(sizes[i][0], sizes[i][1]), back;
        uint8_t *bytes;
        size_t size;
        CHECK_OK(image_encode_png(&image, &bytes, &size));
        CHECK_OK(image_decode(bytes, size, &back));
        assert_int_equal(back.width, image.width);
        assert_int_equal(back.height, image.height);
        assert_memory_equal(back.pixels, image.pixels, 3 * (size_t)image.width * (size_t)image.height);
        free(bytes);
        image_free(&image);
        image_free(&back);
    }
}

// Every cut and many flipped bytes of every golden file: an error or a picture, never a crash, a leak or a wait.
static void test_damaged(void **state) {
    (void)state;
    DIR *folder = opendir(FILES);
    assert_non_null(folder);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char path[512], *bytes;
        size_t size;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof(path), "%s/%s", FILES, entry->d_name);
        CHECK_OK(file_read_whole(path, 1 << 20, &bytes, &size));
        uint8_t *copy = malloc(size + 1);
        for (size_t cut = 0; cut < size; cut += 1 + size / 60) {
            image_t image;
            uint8_t *exact = malloc(cut + !cut); // so that a read past the end is seen
            memcpy(exact, bytes, cut);
            status_t status = image_decode(exact, cut, &image);
            if (cut < size / 2 && !status) fail_msg("%s cut at %zu of %zu was taken", entry->d_name, cut, size);
            status_free(status);
            image_free(&image);
            free(exact);
        }
        for (size_t at = 0; at < size; at += 1 + size / 120) {
            image_t image;
            memcpy(copy, bytes, size);
            copy[at] ^= (uint8_t)(1 << at % 8 | 0x20);
            status_free(image_decode(copy, size, &image));
            image_free(&image);
        }
        free(copy);
        free(bytes);
        files++;
    }
    closedir(folder);
    assert_true(files > 30);
}

static void test_hostile(void **state) {
    (void)state;
    image_t image;
    CHECK_FAILS(image_decode("", 0, &image), "empty file");
    CHECK_FAILS(image_decode("GIF89a..", 8, &image), "no JPEG, PNG or WebP");
    // A PNG header that claims 60000 x 60000 pixels, and one that its bytes cannot hold.
    static const uint8_t header[] = {0x89, 'P',  'N',  'G', 13, 10,   26,   10, 0, 0, 0, 13, 'I', 'H', 'D', 'R', 0,
                                     0,    0xea, 0x60, 0,   0,  0xea, 0x60, 8,  2, 0, 0, 0,  0,   0,   0,   0};
    status_t status = image_decode(header, sizeof(header), &image);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    status_free(status);
    char *jpeg;
    size_t size;
    CHECK_OK(file_read_whole(FILES "/quality75.jpg", 1 << 20, &jpeg, &size));
    for (size_t i = 0; i + 8 < size; i++) {
        if ((uint8_t)jpeg[i] != 0xff || (uint8_t)jpeg[i + 1] != 0xc0) continue;
        memcpy(jpeg + i + 5, "\x2e\xe0\x2e\xe0", 4); // 12000 x 12000
        break;
    }
    CHECK_FAILS(image_decode(jpeg, size, &image), "cannot hold");
    free(jpeg);
    image_t small = sample(4, 4), out;
    CHECK_FAILS(image_resize(&small, 0, 4, FILTER_BICUBIC, &out), "cannot be resized");
    CHECK_FAILS(image_resize(&small, 1 << 20, 1 << 20, FILTER_BICUBIC, &out), "cannot be resized");
    CHECK_OK(image_resize(&small, 4, 4, FILTER_BICUBIC, &out));
    assert_memory_equal(out.pixels, small.pixels, 48);
    image_free(&out);
    image_free(&small);
}

static void test_patch_order(void **state) {
    (void)state;
    // A picture whose pixels tell where they are: red = y, green = x, over 56 x 84 pixels.
    image_rules_t rules = {.patch = 14,
                           .merge = 2,
                           .temporal = 2,
                           .min_pixels = 56 * 84,
                           .max_pixels = 56 * 84,
                           .resize = true,
                           .rescale = true,
                           .rescale_factor = 0.00392156862745098};
    image_t image = sample(84, 56);
    for (int y = 0; y < 56; y++)
        for (int x = 0; x < 84; x++) {
            image.pixels[3 * (y * 84 + x)] = (uint8_t)y;
            image.pixels[3 * (y * 84 + x) + 1] = (uint8_t)x;
        }
    uint8_t *bytes;
    size_t size;
    image_patches_t *patches;
    CHECK_OK(image_encode_png(&image, &bytes, &size));
    CHECK_OK(image_patches_make(&rules, bytes, size, &patches));
    assert_int_equal(patches->rows, 24);
    assert_int_equal(patches->columns, 1176);
    assert_int_equal(patches->shape.feature_rows, 6);
    // Row 5 is in the second 2 x 2 block: patch (0, 3). Row 14 in the block below: patch (3, 0).
    const int row[] = {0, 1, 2, 3, 5, 14}, top[] = {0, 0, 14, 14, 0, 42}, left[] = {0, 14, 0, 14, 42, 0};
    for (int i = 0; i < 6; i++)
        for (int frame = 0; frame < 2; frame++) {
            const float *red = patches->patches + row[i] * 1176 + frame * 196, *green = red + 2 * 196;
            assert_true(red[14 * 3 + 5] == (float)((top[i] + 3) * 0.00392156862745098));
            assert_true(green[14 * 3 + 5] == (float)((left[i] + 5) * 0.00392156862745098));
        }
    image_patches_free(patches);
    free(bytes);
    image_free(&image);
}

static void write_rules(const char *folder, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    CHECK_OK(file_write_whole(path, text, strlen(text)));
}

static image_rules_t qwen(void) {
    return (image_rules_t){.processor = PROCESSOR_QWEN2_VL, .patch = 14, .merge = 2, .temporal = 2};
}

static image_rules_t llava(void) {
    return (image_rules_t){
        .processor = PROCESSOR_LLAVA_NEXT, .patch = 14, .merge = 1, .temporal = 1, .side_height = 28, .side_width = 28};
}

static image_rules_t gemma(void) {
    return (image_rules_t){.processor = PROCESSOR_GEMMA3,
                           .patch = 14,
                           .merge = 1,
                           .temporal = 1,
                           .side_height = 56,
                           .side_width = 56,
                           .tokens = 4};
}

typedef struct bad_rules {
    image_rules_t (*base)(void);
    const char *text, *message;
} bad_rules_t;

static void test_bad_rules(void **state) {
    (void)state;
    static const bad_rules_t bad[] = {
        {qwen, "{\"min_pixels\": 0}", "min_pixels"},
        {qwen, "{\"min_pixels\": 9999, \"max_pixels\": 100}", "more than the most"},
        {qwen, "{\"size\": {\"shortest_edge\": 784}}", "longest_edge"},
        {qwen, "{\"size\": {\"height\": 784, \"width\": 784}}", "longest_edge"},
        {qwen, "{\"image_std\": [1, 1]}", "image_std"},
        {qwen, "{\"image_std\": [1, 0, 1]}", "image_std"},
        {qwen, "{\"resample\": 0}", "'resample' is 0"},
        {qwen, "{\"resample\": 7}", "'resample' is 7"},
        {qwen, "{\"rescale_factor\": true}", "rescale_factor"},
        {qwen, "{\"do_normalize\": 1}", "do_normalize"},
        {qwen, "{\"patch_size\": 16}", "another model"},
        {qwen, "{\"image_processor_type\": \"CLIPImageProcessor\"}", "CLIPImageProcessor"},
        {qwen, "[]", "JSON object"},
        {qwen, "{", "line 1"},
        {llava, "{}", "gives pictures of 224 x 224"},
        {llava, "{\"crop_size\": 28, \"image_grid_pinpoints\": []}", "1 to 64 pairs"},
        {llava, "{\"crop_size\": 28, \"image_grid_pinpoints\": [[28, 28, 28]]}", "pairs"},
        {llava, "{\"crop_size\": 28, \"image_grid_pinpoints\": [[28, 100000000000]]}", "whole numbers"},
        {llava, "{\"crop_size\": {\"shortest_edge\": 28}}", "gives pictures of"},
        {llava, "{\"crop_size\": 28, \"size\": {\"longest_edge\": 28}}", "'size' must be"},
        {llava, "{\"crop_size\": 28, \"size\": 30, \"do_center_crop\": false}", "30 x 30"},
        {gemma, "{}", "224 x 224"},
        {gemma, "{\"size\": {\"shortest_edge\": 56}}", "shortest edge"},
        {gemma, "{\"size\": 56, \"pan_and_scan_min_crop_size\": 0}", "pan_and_scan_min_crop_size"},
        {gemma, "{\"size\": 56, \"do_pan_and_scan\": \"yes\"}", "do_pan_and_scan"},
    };
    char folder[256];
    check_make_folder(folder, sizeof(folder));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        image_rules_t rules = bad[i].base();
        write_rules(folder, "preprocessor_config.json", bad[i].text);
        CHECK_FAILS(image_rules_read(folder, &rules), bad[i].message);
    }
    image_rules_t rules = gemma();
    write_rules(folder, "preprocessor_config.json", "{\"size\": 56}");
    write_rules(folder, "processor_config.json", "{\"image_seq_length\": 256}");
    CHECK_FAILS(image_rules_read(folder, &rules), "image_seq_length");
    rules = llava();
    rules.pinpoints = 1;
    rules.pinpoint[0][0] = rules.pinpoint[0][1] = 28;
    write_rules(folder, "processor_config.json", "{\"patch_size\": 14}");
    write_rules(folder, "preprocessor_config.json", "{\"crop_size\": 28, \"image_grid_pinpoints\": [[28, 56]]}");
    CHECK_FAILS(image_rules_read(folder, &rules), "another list");
    check_remove_folder(folder);
}

// Settings that ask for absurd amounts are refused before anything is allocated for them.
static void test_absurd_rules(void **state) {
    (void)state;
    static const struct {
        image_rules_t (*base)(void);
        int height, width, side; // side 0: as base has it
        const char *text, *message;
    } cases[] = {
        {qwen, 3, 4, 0, "{\"min_pixels\": 100000000, \"max_pixels\": 200000000}", "too much"},
        {qwen, 3, 4, 0, "{\"min_pixels\": 100000000000, \"max_pixels\": 200000000000}", "resized to more than"},
        {llava, 3, 4, 0, "{\"crop_size\": 28, \"image_grid_pinpoints\": [[32760, 32760]]}", "too much"},
        {llava, 3, 4, 0, "{\"crop_size\": 28, \"size\": 30000, \"image_grid_pinpoints\": [[28, 28]]}", "too much"},
        {llava, 3, 4, 1, "{\"crop_size\": 1, \"size\": 1, \"image_grid_pinpoints\": [[4000, 4000]]}", "too much"},
        {llava, 3, 4, 30000, "{\"crop_size\": 30000, \"image_grid_pinpoints\": [[30000, 30000]]}", "too much"},
        {llava, 3, 4, 0, "{\"crop_size\": 28, \"image_grid_pinpoints\": [[28, 29]]}", "cannot be cut"},
        {gemma, 3, 4, 30000, "{\"size\": 30000}", "too much"},
        {gemma, 1, 9000, 0,
         "{\"size\": 56, \"always_pan_and_scan\": true, \"pan_and_scan_min_crop_size\": 1, "
         "\"pan_and_scan_max_num_crops\": 1000000000}",
         "too much"},
        {gemma, 1, 5, 0, "{\"size\": 56, \"always_pan_and_scan\": true, \"pan_and_scan_min_crop_size\": 1}",
         "too small for 4 crops"},
    };
    char folder[256];
    check_make_folder(folder, sizeof(folder));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        image_rules_t rules = cases[i].base();
        if (cases[i].side) rules.side_height = rules.side_width = cases[i].side;
        if (cases[i].side == 1) rules.patch = 1;
        image_t picture = sample(cases[i].width, cases[i].height);
        uint8_t *bytes;
        size_t size;
        image_patches_t *patches;
        write_rules(folder, "preprocessor_config.json", cases[i].text);
        CHECK_OK(image_encode_png(&picture, &bytes, &size));
        CHECK_OK(image_rules_read(folder, &rules));
        CHECK_FAILS(image_patches_make(&rules, bytes, size, &patches), cases[i].message);
        assert_null(patches);
        free(bytes);
        image_free(&picture);
    }
    check_remove_folder(folder);
}

static void test_rules(void **state) {
    (void)state;
    char folder[256];
    check_make_folder(folder, sizeof(folder));
    image_rules_t rules = qwen();
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.min_pixels, 3136);
    assert_int_equal(rules.max_pixels, 1003520);
    write_rules(folder, "preprocessor_config.json",
                "{\"size\": {\"shortest_edge\": 784, \"longest_edge\": 5000}, \"image_mean\": [0.5, 0.5, 0.5]}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.min_pixels, 784);
    assert_int_equal(rules.max_pixels, 5000);
    assert_true(rules.mean[1] == 0.5f);
    // A processor_config.json of version 4 says nothing of pictures; one of version 5 comes first.
    write_rules(folder, "processor_config.json", "{\"processor_class\": \"Qwen2_5_VLProcessor\"}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.max_pixels, 5000);
    write_rules(
        folder, "processor_config.json",
        "{\"image_processor\": {\"max_pixels\": 9000, \"resample\": 1, \"image_std\": 0.25, \"do_resize\": false}}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.min_pixels, 3136);
    assert_int_equal(rules.max_pixels, 9000);
    assert_int_equal(rules.filter, FILTER_LANCZOS);
    assert_true(rules.deviation[2] == 0.25f && rules.mean[0] != 0.5f && !rules.resize);
    rules = llava();
    write_rules(folder, "processor_config.json", "{}");
    write_rules(folder, "preprocessor_config.json",
                "{\"size\": 32, \"crop_size\": 28, \"image_processor_type\": \"LlavaNextImageProcessorFast\"}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.resize_height, 32);
    assert_int_equal(rules.resize_width, 32);
    assert_int_equal(rules.pinpoints, 5);
    assert_int_equal(rules.pinpoint[4][1], 1008);
    rules = gemma();
    write_rules(folder, "preprocessor_config.json",
                "{\"size\": {\"height\": 56, \"width\": 56}, \"do_pan_and_scan\": true, \"do_convert_rgb\": null}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_int_equal(rules.filter, FILTER_BILINEAR);
    assert_true(rules.mean[2] == 0.5f && rules.whiten);
    assert_false(rules.pan_and_scan.on); // Gemma3Processor does not follow its file there
    write_rules(folder, "preprocessor_config.json", "{\"size\": 56, \"always_pan_and_scan\": true}");
    CHECK_OK(image_rules_read(folder, &rules));
    assert_true(rules.pan_and_scan.on && rules.pan_and_scan.min_ratio == 1.2);
    check_remove_folder(folder);
}

static void test_orientation(void **state) {
    (void)state;
    // One entry behind the header: the kind of number (3: 16 bits, 4: 32 bits, 1: bytes), then its value.
    static const struct {
        const char *tiff;
        int expected;
    } cases[] = {
        {"II*\0\10\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0", 6}, {"MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0", 6},
        {"II*\0\10\0\0\0\1\0\x12\1\4\0\1\0\0\0\5\0\0\0", 5}, {"MM\0*\0\0\0\10\0\1\1\x12\0\4\0\0\0\1\0\0\0\5", 5},
        {"II*\0\10\0\0\0\1\0\x12\1\1\0\1\0\0\0\6\0\0\0", 1}, {"II*\0\10\0\0\0\1\0\x12\1\3\0\1\0\0\0\11\0\0\0", 1},
        {"II*\0\10\0\0\0\1\0\x13\1\3\0\1\0\0\0\6\0\0\0", 0}, {"XX*\0\10\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(image_exif_orientation((const uint8_t *)cases[i].tiff, 22), cases[i].expected);
    static const char xmp[] = "<a tiff:Orientation=\"8\"/>", tag[] = "<tiff:Orientation>3</tiff:Orientation>";
    assert_int_equal(image_orientation(NULL, 0, xmp, strlen(xmp)), 8);
    assert_int_equal(image_orientation(NULL, 0, tag, strlen(tag)), 3);
    // Exif comes first, also with an orientation that means nothing.
    assert_int_equal(image_orientation((const uint8_t *)cases[0].tiff, 22, xmp, strlen(xmp)), 6);
    assert_int_equal(image_orientation((const uint8_t *)cases[5].tiff, 22, xmp, strlen(xmp)), 1);
    assert_int_equal(image_orientation((const uint8_t *)cases[6].tiff, 22, xmp, strlen(xmp)), 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png_round_trip), cmocka_unit_test(test_damaged),      cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_patch_order),    cmocka_unit_test(test_rules),        cmocka_unit_test(test_bad_rules),
        cmocka_unit_test(test_orientation),    cmocka_unit_test(test_absurd_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
