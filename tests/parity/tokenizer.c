// Token ids, offsets, decoded text and chats equal those of the tokenizers library and transformers.
#include "tests/lib/check.h"

#include "common/store/store.h"
#include "common/text/chat.h"
#include "common/text/tokenizer.h"

static json_t *read_json(const char *path) {
    char full[512], *text;
    size_t size;
    json_error_t error;
    snprintf(full, sizeof(full), "%s/%s", POISE_SOURCE_DIR, path);
    CHECK_OK(file_read_whole(full, 1 << 26, &text, &size));
    json_t *root = json_loadb(text, size, JSON_ALLOW_NUL, &error);
    free(text);
    if (!root) fail_msg("%s:%d: %s", path, error.line, error.text);
    return root;
}

static tokenizer_t *open_quickstart(void) {
    tokenizer_t *tokenizer;
    CHECK_OK(tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer));
    return tokenizer;
}

static void check_ids(const json_t *expected, const token_list_t *list, const char *text) {
    if (json_array_size(expected) != (size_t)list->count)
        fail_msg("%zu tokens expected, %d made, of: %s", json_array_size(expected), list->count, text);
    for (int i = 0; i < list->count; i++)
        if (json_integer_value(json_array_get(expected, (size_t)i)) != list->id[i])
            fail_msg("token %d is %d, expected %d, of: %s", i, list->id[i],
                     (int)json_integer_value(json_array_get(expected, (size_t)i)), text);
}

// Characters that start before byte `end`.
static int characters_before(const char *text, int end) {
    int count = 0;
    for (int i = 0; i < end; i++) count += ((uint8_t)text[i] & 0xc0) != 0x80;
    return count;
}

static void test_encode(void **state) {
    (void)state;
    json_t *root = read_json("tests/goldens/text/quickstart.json"), *item;
    tokenizer_t *tokenizer = open_quickstart();
    size_t i, offsets = 0;
    json_array_foreach(json_object_get(root, "encode"), i, item) {
        const json_t *text = json_object_get(item, "text");
        const char *bytes = json_string_value(text);
        token_list_t list = {0};
        CHECK_OK(tokenizer_encode(tokenizer, bytes, json_string_length(text), true, &list));
        check_ids(json_object_get(item, "ids"), &list, bytes);
        char *decoded;
        size_t length;
        const json_t *expected = json_object_get(item, "decoded");
        CHECK_OK(tokenizer_decode_text(tokenizer, list.id, list.count, false, &decoded, &length));
        assert_int_equal(length, json_string_length(expected));
        assert_memory_equal(decoded, json_string_value(expected), length);
        // The goldens' offsets are in the text as given, ours in the normalised text: comparable where both are one.
        bool plain = length == json_string_length(text) && memcmp(decoded, bytes, length) == 0;
        for (int t = 0; plain && t < list.count; t++) {
            const json_t *pair = json_array_get(json_object_get(item, "offsets"), (size_t)t);
            int first = characters_before(bytes, list.offset[2 * t] + 1) - 1;
            int last = characters_before(bytes, list.offset[2 * t + 1]);
            assert_int_equal(first, json_integer_value(json_array_get(pair, 0)));
            assert_int_equal(last, json_integer_value(json_array_get(pair, 1)));
            offsets++;
        }
        free(decoded);
        token_list_free(&list);
    }
    assert_true(i > 100 && offsets > 1000);
    tokenizer_close(tokenizer);
    json_decref(root);
}

static void check_decoded(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip,
                          const json_t *expected) {
    char *text;
    size_t length, at = 0;
    CHECK_OK(tokenizer_decode_text(tokenizer, ids, count, skip, &text, &length));
    assert_int_equal(length, json_string_length(expected));
    assert_memory_equal(text, json_string_value(expected), length);
    tokenizer_stream_t stream = {0};
    for (int i = 0; i <= count; i++) {
        const char *piece;
        size_t bytes;
        CHECK_OK(tokenizer_stream_push(tokenizer, &stream, i < count ? ids[i] : -1, skip, &piece, &bytes));
        assert_true(at + bytes <= length);
        assert_memory_equal(piece, text + at, bytes);
        at += bytes;
    }
    assert_int_equal(at, length);
    tokenizer_stream_free(&stream);
    free(text);
}

static void test_decode(void **state) {
    (void)state;
    json_t *root = read_json("tests/goldens/text/quickstart.json"), *item, *value;
    tokenizer_t *tokenizer = open_quickstart();
    size_t i, t;
    json_array_foreach(json_object_get(root, "decode"), i, item) {
        int32_t ids[1024];
        int count = 0;
        json_array_foreach(json_object_get(item, "ids"), t, value) ids[count++] = (int32_t)json_integer_value(value);
        check_decoded(tokenizer, ids, count, false, json_object_get(item, "decoded"));
        check_decoded(tokenizer, ids, count, true, json_object_get(item, "decoded_without_special"));
    }
    assert_true(i > 50);
    tokenizer_close(tokenizer);
    json_decref(root);
}

static void test_chat(void **state) {
    (void)state;
    json_t *root = read_json("tests/goldens/text/chat_qwen2_5_vl.json"), *item;
    tokenizer_t *tokenizer = open_quickstart();
    chat_template_t *chat_template;
    CHECK_OK(chat_template_open(POISE_SOURCE_DIR "/configs/quickstart", &chat_template));
    image_rules_t rules = {.processor = PROCESSOR_QWEN2_VL,
                           .image_token = tokenizer_find(tokenizer, "<|image_pad|>"),
                           .vision_start = -1,
                           .vision_end = -1};
    const image_shape_t shapes[8] = {{.runs = 1, .feature_rows = 1},
                                     {.runs = 1, .feature_rows = 1},
                                     {.runs = 1, .feature_rows = 1},
                                     {.runs = 1, .feature_rows = 1}};
    size_t i;
    int compared = 0, refused = 0, hostile = 0;
    json_array_foreach(json_object_get(root, "cases"), i, item) {
        chat_t chat;
        bool generation = json_is_true(json_object_get(item, "add_generation_prompt"));
        if (json_is_true(json_object_get(item, "add_vision_id"))) continue;
        status_t status = chat_read(json_object_get(item, "messages"), &chat);
        if (status) {
            assert_non_null(strstr(status_message(status), "'video'"));
            status_free(status);
            refused++;
            continue;
        }
        char *rendered;
        CHECK_OK(chat_render(chat_template, &chat, generation, &rendered));
        assert_string_equal(rendered, json_string_value(json_object_get(item, "rendered")));
        token_list_t list = {0};
        CHECK_OK(chat_encode(chat_template, tokenizer, &chat, generation, &rules, shapes, &list));
        // Where a message spells a special token we differ on purpose.
        if (strstr(rendered, "%} <|im_end|>"))
            hostile++;
        else
            check_ids(json_object_get(item, "ids"), &list, rendered);
        compared++;
        token_list_free(&list);
        free(rendered);
        chat_free(&chat);
    }
    assert_true(compared >= 28);
    assert_int_equal(refused, 2);
    assert_int_equal(hostile, 2);
    chat_template_close(chat_template);
    tokenizer_close(tokenizer);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_chat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
