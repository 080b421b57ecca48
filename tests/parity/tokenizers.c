// Small tokenizers of every kind: each component of tokenizer.json, the classes that build anew, tokenizer.model. Ids
// and decoded text of all strings are transformers', and streams and spans fit the decoded text.
#include "tests/lib/check.h"

#include "common/store/store.h"
#include "common/text/tokenizer.h"
#include <jansson.h>

#define FOLDER POISE_SOURCE_DIR "/tests/goldens/tokenizers"

static void check_decoded(const tokenizer_t *tokenizer, const char *name, const token_list_t *list, bool skip,
                          const json_t *expected) {
    char *text;
    size_t length, at = 0;
    int32_t *span = calloc(2 * (size_t)list->count + 2, sizeof(*span));
    CHECK_OK(tokenizer_decode_offsets(tokenizer, list->id, list->count, skip, &text, &length, span));
    if (length != json_string_length(expected) || memcmp(text, json_string_value(expected), length) != 0)
        fail_msg("%s: decoded is '%s', expected '%s'", name, text, json_string_value(expected));
    tokenizer_stream_t stream = {0};
    for (int i = 0; i <= list->count; i++) {
        const char *piece;
        size_t bytes;
        CHECK_OK(tokenizer_stream_push(tokenizer, &stream, i < list->count ? list->id[i] : -1, skip, &piece, &bytes));
        if (at + bytes > length || memcmp(piece, text + at, bytes) != 0)
            fail_msg("%s: the stream differs from '%s'", name, text);
        at += bytes;
        if (i < list->count) assert_int_equal(span[2 * i], i ? span[2 * i - 1] : 0);
    }
    assert_int_equal(at, length);
    if (list->count) assert_int_equal(span[2 * list->count - 1], length);
    tokenizer_stream_free(&stream);
    free(text);
    free(span);
}

static void check_ids(const char *name, const char *text, const json_t *expected, const token_list_t *list) {
    bool same = json_array_size(expected) == (size_t)list->count;
    for (int i = 0; i < list->count && same; i++)
        same = json_integer_value(json_array_get(expected, (size_t)i)) == list->id[i];
    if (same) return;
    char *wanted = json_dumps(expected, JSON_COMPACT);
    print_error("%s: '%s' becomes", name, text);
    for (int i = 0; i < list->count; i++) print_error(" %d", list->id[i]);
    print_error(", expected %s\n", wanted);
    fail();
}

static void check_tokenizer(const char *name, const json_t *golden, const json_t *texts) {
    char path[512];
    tokenizer_t *tokenizer;
    const json_t *item;
    size_t i, t;
    snprintf(path, sizeof(path), "%s/%s", FOLDER, name);
    CHECK_OK(tokenizer_open(path, &tokenizer));
    json_array_foreach(json_object_get(golden, "encode"), i, item) {
        const json_t *text = json_array_get(texts, i);
        token_list_t list = {0};
        CHECK_OK(tokenizer_encode_whole(tokenizer, json_string_value(text), NULL, json_string_length(text), &list));
        check_ids(name, json_string_value(text), json_array_get(item, 0), &list);
        for (int k = 1; k < list.count; k++) assert_true(list.offset[2 * k] >= list.offset[2 * k - 2]);
        check_decoded(tokenizer, name, &list, false, json_array_get(item, 1));
        check_decoded(tokenizer, name, &list, true, json_array_get(item, 2));
        token_list_free(&list);
    }
    assert_true(i > 100);
    json_array_foreach(json_object_get(golden, "decode"), i, item) {
        token_list_t list = {0};
        const json_t *id;
        json_array_foreach(json_array_get(item, 0), t, id)
            CHECK_OK(token_list_add(&list, (int32_t)json_integer_value(id), 0, 0));
        check_decoded(tokenizer, name, &list, false, json_array_get(item, 1));
        check_decoded(tokenizer, name, &list, true, json_array_get(item, 2));
        token_list_free(&list);
    }
    tokenizer_close(tokenizer);
}

static void test_all(void **state) {
    (void)state;
    char *text;
    size_t size;
    json_error_t error;
    const char *name;
    json_t *golden;
    CHECK_OK(file_read_whole(FOLDER "/cases.json", 1 << 26, &text, &size));
    json_t *root = json_loadb(text, size, JSON_ALLOW_NUL, &error);
    free(text);
    if (!root) fail_msg("line %d: %s", error.line, error.text);
    assert_true(json_object_size(json_object_get(root, "tokenizers")) >= 35);
    json_object_foreach(json_object_get(root, "tokenizers"), name, golden)
        check_tokenizer(name, golden, json_object_get(root, "texts"));
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
