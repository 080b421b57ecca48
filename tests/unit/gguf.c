// The GGUF reader against damaged files: refused with a sentence, whatever is wrong.
#include "common/model/gguf_convert.h"
#include "common/model/model.h"
#include "common/store/store.h"
#include "rollout/rollout.h"
#include "tests/lib/check.h"

#include <stdio.h>

enum { PATH = 1024, LIMIT = 1 << 20 };
#define MODEL POISE_SOURCE_DIR "/tests/goldens/gguf/qwen2/model.gguf"

static char folder[PATH];

static int make_folder(void **state) {
    (void)state;
    check_make_folder(folder, sizeof(folder));
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    check_remove_folder(folder);
    return 0;
}

// ---- files made bit by bit ----

typedef struct bytes {
    unsigned char data[4096];
    size_t size;
} bytes_t;

static void put(bytes_t *out, const void *data, size_t size) {
    assert_true(out->size + size <= sizeof(out->data));
    memcpy(out->data + out->size, data, size);
    out->size += size;
}

static void put_number(bytes_t *out, uint64_t value, int width) {
    put(out, &value, (size_t)width);
}

static void put_text(bytes_t *out, const char *text) {
    put_number(out, strlen(text), 8);
    put(out, text, strlen(text));
}

static void begin(bytes_t *out, int version, uint64_t tensors, uint64_t values) {
    out->size = 0;
    put(out, "GGUF", 4);
    put_number(out, (uint64_t)version, 4);
    put_number(out, tensors, 8);
    put_number(out, values, 8);
}

static void put_tensor(bytes_t *out, const char *name, uint64_t width, uint64_t rows, int type, uint64_t offset) {
    put_text(out, name);
    put_number(out, 2, 4);
    put_number(out, width, 8);
    put_number(out, rows, 8);
    put_number(out, (uint64_t)type, 4);
    put_number(out, offset, 8);
}

static void finish(bytes_t *out, size_t data) {
    while (out->size % 32) put_number(out, 0, 1);
    for (size_t i = 0; i < data; i++) put_number(out, i, 1);
}

static const char *save(const bytes_t *bytes) {
    static char path[PATH + 16];
    snprintf(path, sizeof(path), "%s/file.gguf", folder);
    CHECK_OK(file_write_whole(path, bytes->data, bytes->size));
    return path;
}

static void refused(const bytes_t *bytes, const char *part) {
    gguf_t *file;
    CHECK_FAILS(gguf_open(save(bytes), &file), part);
    assert_null(file);
}

static void versions_are_told_apart(void **state) {
    (void)state;
    bytes_t bytes;
    gguf_t *file;
    for (int version = 2; version <= 3; version++) {
        begin(&bytes, version, 1, 1);
        put_text(&bytes, "general.name");
        put_number(&bytes, GGUF_STRING, 4);
        put_text(&bytes, "x");
        put_tensor(&bytes, "a", 4, 2, GGUF_TYPE_F32, 0);
        finish(&bytes, 32);
        CHECK_OK(gguf_open(save(&bytes), &file));
        assert_int_equal(gguf_find(file, "a")->shape[0], 2);
        assert_int_equal(gguf_find(file, "a")->shape[1], 4);
        assert_null(gguf_find(file, "b"));
        gguf_close(file);
    }
    begin(&bytes, 1, 0, 0);
    refused(&bytes, "GGUF of version 1");
    begin(&bytes, 3 << 24, 0, 0);
    refused(&bytes, "big-endian");
    bytes.data[0] = 'g';
    refused(&bytes, "does not begin with 'GGUF'");
}

static void metadata_is_bounded(void **state) {
    (void)state;
    bytes_t bytes;
    begin(&bytes, 3, 0, UINT64_MAX);
    refused(&bytes, "ends within a metadata key");
    begin(&bytes, 3, 0, 1);
    put_text(&bytes, "a");
    put_number(&bytes, GGUF_ARRAY, 4);
    put_number(&bytes, GGUF_U64, 4);
    put_number(&bytes, (uint64_t)1 << 61, 8); // times 8 is nothing
    refused(&bytes, "ends within the value of 'a'");
    begin(&bytes, 3, 0, 1);
    put_text(&bytes, "a");
    put_number(&bytes, GGUF_ARRAY, 4);
    put_number(&bytes, GGUF_STRING, 4);
    put_number(&bytes, UINT64_MAX, 8);
    refused(&bytes, "ends within the value of 'a'");
    begin(&bytes, 3, 0, 1);
    put_text(&bytes, "a");
    put_number(&bytes, GGUF_ARRAY, 4);
    put_number(&bytes, GGUF_ARRAY, 4);
    put_number(&bytes, 1, 8);
    refused(&bytes, "unknown kind, 9");
    begin(&bytes, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_text(&bytes, "a");
        put_number(&bytes, GGUF_U8, 4);
        put_number(&bytes, 1, 1);
    }
    refused(&bytes, "'a' is there twice");
    begin(&bytes, 3, 0, 1);
    put_text(&bytes, "general.alignment");
    put_number(&bytes, GGUF_U32, 4);
    put_number(&bytes, 24, 4);
    refused(&bytes, "no power of two");
    begin(&bytes, 3, 0, 1);
    put_text(&bytes, "split.count");
    put_number(&bytes, GGUF_U16, 4);
    put_number(&bytes, 3, 2);
    refused(&bytes, "one of 3 parts");
}

static void tensors_lie_in_the_file(void **state) {
    (void)state;
    bytes_t bytes;
    static const struct {
        uint64_t width, rows, offset;
        int type;
        const char *part;
    } cases[] = {
        {4, 2, 32, GGUF_TYPE_F32, "lies outside of the file"},
        {4, 2, UINT64_MAX - 31, GGUF_TYPE_F32, "lies outside of the file"},
        {4, 3, 0, GGUF_TYPE_F32, "lies outside of the file"},
        {4, 2, 1, GGUF_TYPE_F32, "not aligned"},
        {4, 0, 0, GGUF_TYPE_F32, "impossible shape"},
        {(uint64_t)1 << 40, (uint64_t)1 << 40, 0, GGUF_TYPE_F32, "impossible shape"},
        {33, 1, 0, GGUF_TYPE_Q8_0, "no multiple of the 32 values"},
        {4, 2, 0, 10, "type 10, which is not read"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        begin(&bytes, 3, 1, 0);
        put_tensor(&bytes, "a", cases[i].width, cases[i].rows, cases[i].type, cases[i].offset);
        finish(&bytes, 32);
        refused(&bytes, cases[i].part);
    }
    for (int same = 0; same < 2; same++) {
        begin(&bytes, 3, 2, 0);
        put_tensor(&bytes, "a", 8, 1, GGUF_TYPE_F32, 0);
        put_tensor(&bytes, same ? "a" : "b", 8, 1, GGUF_TYPE_F32, same ? 32 : 0);
        finish(&bytes, 64);
        refused(&bytes, same ? "'a' is there twice" : "overlaps another");
    }
    begin(&bytes, 3, 1, 0);
    put_text(&bytes, "a");
    put_number(&bytes, 5, 4);
    refused(&bytes, "has 5 dimensions");
}

// ---- a real file, cut and damaged ----

static void every_cut_is_refused(void **state) {
    (void)state;
    char *data, path[PATH + 16], out[PATH + 16];
    size_t size;
    snprintf(path, sizeof(path), "%s/file.gguf", folder);
    snprintf(out, sizeof(out), "%s/out", folder);
    CHECK_OK(file_read_whole(MODEL, LIMIT, &data, &size));
    for (size_t cut = 0; cut < size; cut += 1 + cut / 16) {
        CHECK_OK(file_write_whole(path, data, cut));
        status_t status = gguf_convert(path, out);
        if (!status) fail_msg("the first %zu of %zu bytes were taken", cut, size);
        status_free(status);
        assert_int_not_equal(access(out, F_OK), 0);
    }
    free(data);
}

// Overwrites the value behind a key by other bytes of the same kind.
static void damage(char *data, size_t size, const char *key, uint64_t value, int width) {
    char *at = memmem(data, size, key, strlen(key));
    assert_non_null(at);
    memcpy(at + strlen(key) + 4, &value, (size_t)width);
}

static void contradictions_are_named(void **state) {
    (void)state;
    static const struct {
        const char *key;
        uint64_t value;
        const char *part;
    } cases[] = {
        {"qwen2.block_count", 3, "is missing"},
        {"qwen2.block_count", 1, "not part of a qwen2 model"},
        {"qwen2.block_count", 1000000000, "num_hidden_layers"},
        {"qwen2.embedding_length", 32, "config.json asks for"},
        {"qwen2.embedding_length", 1 << 19, "a head size of 131072"},
        {"qwen2.attention.head_count", 0, "has no 0 heads"},
        {"qwen2.feed_forward_length", 0xFFFFFFFF, "is not one whole number"},
        {"tokenizer.ggml.bos_token_id", 100000, "no token of its vocabulary"},
    };
    char *data, path[PATH + 16], out[PATH + 16];
    size_t size;
    snprintf(path, sizeof(path), "%s/file.gguf", folder);
    snprintf(out, sizeof(out), "%s/out", folder);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK_OK(file_read_whole(MODEL, LIMIT, &data, &size));
        damage(data, size, cases[i].key, cases[i].value, 4);
        CHECK_OK(file_write_whole(path, data, size));
        CHECK_FAILS(gguf_convert(path, out), cases[i].part);
        assert_int_not_equal(access(out, F_OK), 0);
        free(data);
    }
}

// Commands that want a folder say how to make one.
static void files_are_told_apart(void **state) {
    (void)state;
    char copy[PATH + 32], where[PATH + 16];
    model_t *model;
    CHECK_FAILS(model_open(MODEL, NULL, &model), "'poise convert " MODEL " DIR'");
    snprintf(where, sizeof(where), "%s/alone", folder);
    snprintf(copy, sizeof(copy), "%s/x.gguf", where);
    CHECK_OK(file_make_directory(where));
    CHECK_FAILS(model_open(where, NULL, &model), "config.json");
    assert_int_equal(symlink(MODEL, copy), 0);
    CHECK_FAILS(model_open(where, NULL, &model), "holds no config.json but the GGUF file x.gguf");
    tool_options_t options = {.model = where, .input = "-", .output = "-"};
    CHECK_FAILS(tool_tokenize(&options), "holds no config.json but the GGUF file x.gguf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_are_told_apart),  cmocka_unit_test(metadata_is_bounded),
        cmocka_unit_test(tensors_lie_in_the_file),  cmocka_unit_test(every_cut_is_refused),
        cmocka_unit_test(contradictions_are_named), cmocka_unit_test(files_are_told_apart),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
