// Packing, opening, order, pack plan and patch cache; damaged and hostile inputs.
#include "tests/lib/check.h"

#include "common/data/packed.h"
#include "common/store/store.h"
#include <sys/stat.h>

#define MODEL POISE_SOURCE_DIR "/tests/goldens/score/model"

typedef struct place {
    char folder[256], input[512], output[512];
} place_t;

static void write_picture(const place_t *place, const char *name, int width, int height, int seed) {
    char path[600];
    image_t image = {.width = width, .height = height, .pixels = malloc(3 * (size_t)width * (size_t)height)};
    for (int i = 0; i < 3 * width * height; i++) image.pixels[i] = (uint8_t)(i * seed + i / 7);
    uint8_t *bytes;
    size_t size;
    CHECK_OK(image_encode_png(&image, &bytes, &size));
    snprintf(path, sizeof(path), "%s/%s", place->folder, name);
    CHECK_OK(file_write_whole(path, bytes, size));
    free(bytes);
    image_free(&image);
}

static int setup(void **state) {
    place_t *place = calloc(1, sizeof(*place));
    check_make_folder(place->folder, sizeof(place->folder));
    snprintf(place->input, sizeof(place->input), "%s/data.jsonl", place->folder);
    snprintf(place->output, sizeof(place->output), "%s/data.h5", place->folder);
    write_picture(place, "a.png", 56, 56, 3);
    write_picture(place, "b.png", 84, 56, 5);
    write_picture(place, "same_as_a.png", 56, 56, 3);
    *state = place;
    return 0;
}

static int teardown(void **state) {
    place_t *place = *state;
    check_remove_folder(place->folder);
    free(place);
    return 0;
}

static status_t pack(const place_t *place, const char *text, int max_length, bool require, char *report, size_t bytes,
                     packed_counts_t *counts) {
    status_t status = file_write_whole(place->input, text, strlen(text));
    if (status) return status;
    FILE *stream = fmemopen(report, bytes, "w");
    packed_options_t options = {.input = place->input,
                                .output = place->output,
                                .model = MODEL,
                                .max_length = max_length,
                                .require_response = require};
    status = packed_make(&options, stream, counts);
    fclose(stream);
    return status;
}

static const char two_samples[] =
    "{\"id\": \"one\", \"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"a.png\"}, "
    "{\"type\": \"text\", \"text\": \"How many <|im_end|>?\"}, {\"type\": \"image\", \"image\": \"b.png\"}]}, "
    "{\"role\": "
    "\"assistant\", \"content\": \"<think>row 1: bag.</think><answer>1</answer>\"}], \"answer\": 1, \"kind\": "
    "\"fill\", "
    "\"options\": [\"bag\", \"boot\"], \"listing\": \"bag\"}\n"
    "\n"
    "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"same_as_a.png\"}]}, "
    "{\"role\": \"assistant\", \"content\": \"no tags\"}], \"answer\": \"x\"}\n";

static void test_round_trip(void **state) {
    place_t *place = *state;
    char report[4096] = "";
    packed_counts_t counts;
    packed_t *packed;
    packed_sample_t sample;
    tokenizer_t *tokenizer;
    CHECK_OK(pack(place, two_samples, 500, true, report, sizeof(report), &counts));
    assert_string_equal(report, "");
    assert_int_equal(counts.samples, 2);
    assert_int_equal(counts.images, 2); // equal content is stored once
    assert_int_equal(counts.empty_think, 1);
    CHECK_OK(packed_open(place->output, &packed));
    CHECK_OK(tokenizer_open(MODEL, &tokenizer));
    assert_int_equal(packed_count(packed), 2);
    CHECK_OK(packed_sample(packed, 0, &sample));
    assert_string_equal(sample.id, "one");
    assert_string_equal(sample.answer, "1");
    assert_string_equal(sample.kind, "fill");
    assert_string_equal(sample.listing, "bag");
    assert_int_equal(sample.option_count, 2);
    assert_string_equal(sample.options[1], "boot");
    assert_int_equal(sample.image_count, 2);
    char *prompt, *response;
    CHECK_OK(tokenizer_decode(tokenizer, sample.tokens, sample.prompt_length, false, &prompt));
    CHECK_OK(tokenizer_decode(tokenizer, sample.tokens + sample.prompt_length, sample.length - sample.prompt_length,
                              false, &response));
    // a.png is resized to 56 x 56 = 4 tokens, b.png to 56 x 84 = 6.
    assert_string_equal(
        prompt,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>How many <|im_end|>?<|vision_start|>"
        "<|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n");
    assert_string_equal(response, "<think>row 1: bag.</think><answer>1</answer><|im_end|>");
    int32_t end = tokenizer_find(tokenizer, "<|im_end|>");
    int ends = 0, think = 0;
    for (int i = 0; i < sample.length; i++) {
        ends += sample.tokens[i] == end;
        think += sample.segments[i] == SEGMENT_THINK;
        if (i < sample.prompt_length) assert_int_equal(sample.segments[i], SEGMENT_NONE);
    }
    assert_int_equal(ends, 3); // the user's own "<|im_end|>" is plain text
    assert_true(think > 3 && sample.segments[sample.prompt_length] == SEGMENT_THINK);
    assert_int_equal(sample.segments[sample.length - 1], SEGMENT_ANSWER);
    assert_int_equal(counts.think_tokens, think);
    free(prompt);
    free(response);
    CHECK_OK(packed_sample(packed, 1, &sample));
    assert_string_equal(sample.id, "3"); // the line
    assert_int_equal(sample.images[0], 0);
    CHECK_FAILS(packed_sample(packed, 2, &sample), "no number 2");
    CHECK_OK(packed_check_model(packed, MODEL));
    tokenizer_close(tokenizer);
    packed_close(packed);
}

static void test_pictures(void **state) {
    place_t *place = *state;
    char report[4096], path[600];
    packed_counts_t counts;
    packed_t *packed;
    image_rules_t rules = {.patch = 14, .merge = 2, .temporal = 2};
    patch_cache_t *cache;
    CHECK_OK(pack(place, two_samples, 500, true, report, sizeof(report), &counts));
    CHECK_OK(packed_open(place->output, &packed));
    CHECK_OK(image_rules_read(MODEL, &rules));
    for (int32_t i = 0; i < 2; i++) {
        char *expected;
        const void *bytes;
        size_t size, stored;
        uint64_t hash;
        snprintf(path, sizeof(path), "%s/%c.png", place->folder, 'a' + i);
        CHECK_OK(file_read_whole(path, 1 << 20, &expected, &size));
        CHECK_OK(packed_image(packed, i, &bytes, &stored, &hash));
        assert_int_equal(stored, size);
        assert_memory_equal(bytes, expected, size);
        assert_true(hash == packed_image_hash(packed, i));
        free(expected);
    }
    // A budget of nothing still serves a step, and forgets after it.
    CHECK_OK(patch_cache_open(&rules, 0, &cache));
    const image_patches_t *a, *b, *again;
    CHECK_OK(patch_cache_get(cache, packed, 0, &a));
    CHECK_OK(patch_cache_get(cache, packed, 1, &b));
    CHECK_OK(patch_cache_get(cache, packed, 0, &again));
    assert_ptr_equal(a, again);
    assert_int_equal(a->rows, 16);
    assert_int_equal(b->rows, 24);
    assert_true(a->content_hash == packed_image_hash(packed, 0));
    patch_cache_release_all(cache);
    CHECK_FAILS(patch_cache_get(cache, packed, 2, &a), "no picture 2");
    CHECK_FAILS(patch_cache_get(cache, packed, -1, &a), "no picture -1");
    patch_cache_close(cache);
    // A budget for one of them keeps the one used last.
    CHECK_OK(patch_cache_open(&rules, 24 * 1176 * 4 + 1000, &cache));
    CHECK_OK(patch_cache_get(cache, packed, 0, &a));
    CHECK_OK(patch_cache_get(cache, packed, 1, &b));
    patch_cache_release_all(cache);
    CHECK_OK(patch_cache_get(cache, packed, 1, &again));
    assert_ptr_equal(b, again);
    patch_cache_close(cache);
    patch_cache_close(NULL);
    packed_close(packed);
}

// The same sample in five spellings gives the same tokens; the line break after a mark is part of the mark.
static void test_spellings(void **state) {
    place_t *place = *state;
    static const char *const spellings[] = {
        "{\"id\":\"q\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"a.png\"},{"
        "\"type\":"
        "\"text\",\"text\":\"Which?\"}]},{\"role\":\"assistant\",\"content\":\"bag\"}]}",
        "{\"id\":\"q\",\"conversations\":[{\"from\":\"human\",\"value\":\"<image>\\nWhich?\"},{\"from\":\"gpt\","
        "\"value\":"
        "\"bag\"}],\"image\":\"a.png\"}",
        "[{\"id\":\"q\",\"conversations\":[{\"from\":\"human\",\"value\":\"<image>\\nWhich?\"},{\"from\":\"gpt\","
        "\"value\":\"bag\"}],\n\"image\":[\"a.png\"]}]",
        "{\"id\":\"q\",\"messages\":[{\"role\":\"user\",\"content\":\"<image>\\nWhich?\"},{\"role\":\"assistant\","
        "\"content\":\"bag\"}],\"images\":[\"a.png\"]}",
        "{\"id\":\"q\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"},{\"type\":\"text\",\"text\":"
        "\"Which?\"}]},{\"role\":\"assistant\",\"content\":\"bag\"}],\"images\":[\"a.png\"]}",
    };
    char first[64] = "", report[4096] = "";
    for (size_t i = 0; i < sizeof(spellings) / sizeof(spellings[0]); i++) {
        packed_counts_t counts;
        packed_t *packed;
        CHECK_OK(pack(place, spellings[i], 500, true, report, sizeof(report), &counts));
        CHECK_OK(packed_open(place->output, &packed));
        if (i == 0) snprintf(first, sizeof(first), "%s", packed_hash(packed));
        assert_string_equal(packed_hash(packed), first);
        packed_close(packed);
    }
}

static void test_bad_lines(void **state) {
    place_t *place = *state;
    static const char good[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
                               "\"content\":\"<answer>x</answer>\"}]}\n";
    static const char *const bad[][2] = {
        {"{\"messages\":", "not valid JSON"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "not valid JSON"},
        {"[1]", "JSON object"},
        {"{\"id\":1}", "no 'messages'"},
        {"{\"messages\":[]}", "no 'messages'"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "no content"},
        {"{\"messages\":[{\"content\":\"x\"}]}", "no role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "no assistant's turn"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", "nothing before it"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"no.png\"}]},"
         "{\"role\":\"assistant\",\"content\":\"x\"}]}",
         "no.png"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"data.jsonl\"}]},"
         "{\"role\":\"assistant\",\"content\":\"x\"}]}",
         "no JPEG, PNG or WebP"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"http://x/y.png\"}]},"
         "{\"role\":\"assistant\",\"content\":\"x\"}]}",
         "is no file"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"video\",\"video\":\"v\"}]},"
         "{\"role\":\"assistant\",\"content\":\"x\"}]}",
         "'video'"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":\"<image><image>\"},{\"from\":\"gpt\",\"value\":\"x\"}],"
         "\"image\":\"a.png\"}",
         "more <image> marks than the 1 pictures"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":\"x\"},{\"from\":\"gpt\",\"value\":\"x\"}],"
         "\"image\":\"a.png\"}",
         "0 places for 1 pictures"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"x\"}],"
         "\"options\":\"a\"}",
         "'options'"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"x\"}],"
         "\"images\":[1]}",
         "'images'"},
    };
    char *text = calloc(1, 64 << 10), report[4096];
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        packed_counts_t counts;
        packed_t *packed;
        text[0] = 0;
        memset(report, 0, sizeof(report));
        for (int copies = 0; copies < 99; copies++) strcat(text, good);
        strcat(strcat(text, bad[i][0]), "\n");
        // One in a hundred is let pass and reported, two are not.
        status_t status = pack(place, text, 500, true, report, sizeof(report), &counts);
        if (status) print_error("%s\n", bad[i][0]);
        CHECK_OK(status);
        assert_int_equal(counts.dropped_bad, 1);
        assert_int_equal(counts.samples, 99);
        if (!strstr(report, bad[i][1]) || !strstr(report, ":100: ")) fail_msg("report '%s' of %s", report, bad[i][0]);
        CHECK_OK(packed_open(place->output, &packed));
        packed_close(packed);
        unlink(place->output);
        strcat(strcat(text, bad[i][0]), "\n");
        CHECK_FAILS(pack(place, text, 500, true, report, sizeof(report), &counts), "2 of 101 lines");
        assert_int_equal(access(place->output, F_OK), -1);
    }
    free(text);
}

static void test_lengths(void **state) {
    place_t *place = *state;
    char report[4096];
    packed_counts_t counts;
    packed_t *packed;
    packed_sample_t sample;
    CHECK_OK(pack(place, two_samples, 500, true, report, sizeof(report), &counts));
    CHECK_OK(packed_open(place->output, &packed));
    CHECK_OK(packed_sample(packed, 1, &sample));
    int length = sample.length;
    packed_close(packed);
    CHECK_OK(pack(place, two_samples, length, true, report, sizeof(report), &counts));
    assert_int_equal(counts.dropped_long, 1);
    assert_int_equal(counts.samples, 1);
    assert_int_equal(counts.images, 1); // b.png is not stored: only the dropped sample used it
    CHECK_FAILS(pack(place, two_samples, length - 1, true, report, sizeof(report), &counts), "no usable sample");
    CHECK_FAILS(pack(place, two_samples, 0, true, report, sizeof(report), &counts), "1 or more");
    CHECK_FAILS(pack(place, "", 100, true, report, sizeof(report), &counts), "no usable sample");
    // Without a response: a prompt alone.
    CHECK_OK(pack(place, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"answer\":\"y\"}", 100, false, report,
                  sizeof(report), &counts));
    CHECK_OK(packed_open(place->output, &packed));
    CHECK_OK(packed_sample(packed, 0, &sample));
    assert_int_equal(sample.length, sample.prompt_length);
    packed_close(packed);
}

static void test_other_model(void **state) {
    place_t *place = *state;
    char report[4096], model[512], command[1200];
    packed_counts_t counts;
    packed_t *packed;
    CHECK_OK(pack(place, two_samples, 500, true, report, sizeof(report), &counts));
    CHECK_OK(packed_open(place->output, &packed));
    snprintf(model, sizeof(model), "%s/model", place->folder);
    snprintf(command, sizeof(command), "mkdir %s && cp %s/*.json %s", model, MODEL, model);
    assert_int_equal(system(command), 0);
    CHECK_OK(packed_check_model(packed, model));
    char path[600];
    snprintf(path, sizeof(path), "%s/preprocessor_config.json", model);
    CHECK_OK(file_write_whole(path, "{\"max_pixels\": 9000}", 20));
    CHECK_FAILS(packed_check_model(packed, model), "another tokenizer or other image rules");
    snprintf(path, sizeof(path), "%s/tokenizer.json", model);
    CHECK_OK(file_write_whole(path, "{}", 2));
    CHECK_FAILS(packed_check_model(packed, model), "another tokenizer or");
    packed_close(packed);
}

// Copies a packed file with one value of one dataset changed.
static void change(const place_t *place, const char *name, int64_t at, int64_t value) {
    static const struct {
        const char *name;
        dtype_t dtype;
    } all[] = {{"tokens", DTYPE_I32},        {"segments", DTYPE_U8},      {"sample_start", DTYPE_I64},
               {"prompt_length", DTYPE_I32}, {"image_use", DTYPE_I32},    {"image_use_start", DTYPE_I64},
               {"option_start", DTYPE_I64},  {"string_start", DTYPE_I64}, {"string_data", DTYPE_U8},
               {"image_start", DTYPE_I64},   {"image_hash", DTYPE_I64},   {"image_data", DTYPE_U8}};
    static const char *const texts[] = {"content_hash", "model_hash"};
    char copy[600];
    store_t *from, *to;
    snprintf(copy, sizeof(copy), "%s.copy", place->output);
    CHECK_OK(store_open(place->output, &from));
    CHECK_OK(store_create(copy, &to));
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        void *data;
        int64_t count;
        CHECK_OK(store_read_all(from, all[i].name, all[i].dtype, &data, &count));
        if (strcmp(all[i].name, name) == 0) {
            assert_true(at < count);
            if (all[i].dtype == DTYPE_I64) ((int64_t *)data)[at] = value;
            if (all[i].dtype == DTYPE_I32) ((int32_t *)data)[at] = (int32_t)value;
            if (all[i].dtype == DTYPE_U8) ((uint8_t *)data)[at] = (uint8_t)value;
        }
        CHECK_OK(store_write(to, all[i].name, all[i].dtype, data, count, false));
        free(data);
    }
    for (size_t i = 0; i < 2; i++) {
        char *text;
        CHECK_OK(store_read_string(from, texts[i], &text));
        CHECK_OK(store_write_string(to, texts[i], text));
        free(text);
    }
    CHECK_OK(store_write_number(to, "schema", strcmp(name, "schema") == 0 ? value : 1));
    CHECK_OK(store_commit(to));
    store_close(to);
    store_close(from);
}

static void test_damaged(void **state) {
    place_t *place = *state;
    char report[4096], copy[600];
    packed_counts_t counts;
    packed_t *packed;
    static const struct {
        const char *name;
        int64_t at, value;
        const char *part;
    } cases[] = {
        {"sample_start", 1, INT64_MAX, "offsets"},
        {"sample_start", 1, -5, "offsets"},
        {"prompt_length", 0, 1 << 30, "prompt"},
        {"prompt_length", 1, 0, "prompt"},
        {"image_use_start", 1, 1000, "offsets"},
        {"option_start", 2, 1, "option_start"},
        {"image_use", 0, 7, "image 7 of 2"},
        {"image_use", 0, -1, "image -1"},
        {"tokens", 3, -1, "token 3"},
        {"tokens", 3, 5, "content hash"},
        {"segments", 0, 1, "has a segment"},
        {"segments", 0, 77, "damaged"},
        {"image_start", 1, 1 << 30, "offsets"},
        {"image_hash", 0, 1, "content hash"},
        {"string_data", 3, 'x', "string 0"},
        {"string_start", 1, 0, "string 0"},
        {"schema", 0, 99, "schema 99"},
    };
    snprintf(copy, sizeof(copy), "%s.copy", place->output);
    CHECK_OK(pack(place, two_samples, 500, true, report, sizeof(report), &counts));
    change(place, "nothing", 0, 0);
    CHECK_OK(packed_open(copy, &packed));
    packed_close(packed);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        change(place, cases[i].name, cases[i].at, cases[i].value);
        CHECK_FAILS(packed_open(copy, &packed), cases[i].part);
    }
    // A damaged picture shows when it is read.
    change(place, "image_data", 50, 1);
    CHECK_OK(packed_open(copy, &packed));
    const void *bytes;
    size_t size;
    CHECK_FAILS(packed_image(packed, 0, &bytes, &size, NULL), "damaged");
    CHECK_OK(packed_image(packed, 1, &bytes, &size, NULL));
    packed_close(packed);
    CHECK_OK(file_write_whole(copy, "x", 1));
    CHECK_FAILS(packed_open(copy, &packed), "no HDF5");
    store_t *store;
    CHECK_OK(store_create(copy, &store));
    CHECK_OK(store_write_number(store, "x", 1));
    CHECK_OK(store_commit(store));
    store_close(store);
    CHECK_FAILS(packed_open(copy, &packed), "schema");
}

static void test_order(void **state) {
    place_t *place = *state;
    char report[4096];
    char *text = calloc(1, 64 << 10);
    packed_counts_t counts;
    packed_t *packed;
    for (int i = 0; i < 37; i++) strcat(text, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n");
    CHECK_OK(pack(place, text, 100, false, report, sizeof(report), &counts));
    free(text);
    CHECK_OK(packed_open(place->output, &packed));
    bool differs = false;
    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[37] = {0};
        for (int i = 0; i < 37; i++) {
            int64_t at = packed_order(packed, 9, epoch * 37 + i);
            assert_true(at >= 0 && at < 37);
            seen[at]++;
            differs |= at != packed_order(packed, 9, i);
        }
        for (int i = 0; i < 37; i++) assert_int_equal(seen[i], 1);
    }
    assert_true(differs);
    packed_close(packed);
}

static void test_plan(void **state) {
    (void)state;
    static const int lengths[] = {3, 9, 4, 6, 1, 10, 5};
    pack_plan_t plan;
    CHECK_OK(pack_plan_make(lengths, 7, 10, &plan));
    // By length: 10 | 9 | 6 | 5 | 4 with 6 | 3 with 5 | 1 with 9.
    static const int start[] = {0, 1, 3, 5, 7}, item[] = {5, 1, 4, 2, 3, 0, 6};
    static const int64_t tokens[] = {10, 10, 10, 8};
    assert_int_equal(plan.packs, 4);
    assert_memory_equal(plan.pack_start, start, sizeof(start));
    assert_memory_equal(plan.item, item, sizeof(item));
    assert_memory_equal(plan.tokens, tokens, sizeof(tokens));
    pack_plan_free(&plan);
    CHECK_FAILS(pack_plan_make(lengths, 7, 9, &plan), "a sample of 10 tokens does not fit a pack of 9");
    CHECK_FAILS(pack_plan_make((const int[]){0}, 1, 9, &plan), "0 tokens");
    CHECK_OK(pack_plan_make(NULL, 0, 9, &plan));
    assert_int_equal(plan.packs, 0);
    assert_int_equal(plan.pack_start[0], 0);
    pack_plan_free(&plan);
    int many[500];
    for (int i = 0; i < 500; i++) many[i] = 1 + i * 7919 % 100;
    CHECK_OK(pack_plan_make(many, 500, 128, &plan));
    bool seen[500] = {0};
    int64_t total = 0;
    for (int p = 0; p < plan.packs; p++) {
        int64_t sum = 0;
        for (int i = plan.pack_start[p]; i < plan.pack_start[p + 1]; i++) {
            assert_false(seen[plan.item[i]]);
            seen[plan.item[i]] = true;
            sum += many[plan.item[i]];
        }
        assert_true(sum == plan.tokens[p] && sum <= 128 && sum > 0);
        total += sum;
    }
    assert_int_equal(plan.pack_start[plan.packs], 500);
    assert_true(plan.packs <= total / 128 + 3); // hardly any room is wasted
    pack_plan_free(&plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pictures, setup, teardown),
        cmocka_unit_test_setup_teardown(test_spellings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lengths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
