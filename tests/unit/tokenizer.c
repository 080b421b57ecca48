// Tokenizer and chat with small vocabularies made here, and with broken and hostile ones.
#include "tests/lib/check.h"

#include "common/store/store.h"
#include "common/text/chat.h"
#include "common/text/tokenizer.h"
#include <time.h>

typedef struct place {
    char folder[256], path[300];
} place_t;

static int setup(void **state) {
    place_t *place = calloc(1, sizeof(*place));
    check_make_folder(place->folder, sizeof(place->folder));
    snprintf(place->path, sizeof(place->path), "%s/tokenizer.json", place->folder);
    *state = place;
    return 0;
}

static int teardown(void **state) {
    place_t *place = *state;
    check_remove_folder(place->folder);
    free(place);
    return 0;
}

static void write_json(const place_t *place, json_t *root) {
    char *text = json_dumps(root, 0);
    CHECK_OK(file_write_whole(place->path, text, strlen(text)));
    free(text);
}

// Letters a to e and a blank with a few merges, GPT-2's splitting, and some added tokens.
static json_t *small(void) {
    json_error_t error;
    json_t *root = json_loads(
        "{\"added_tokens\":[{\"id\":20,\"content\":\"<s>\",\"special\":true,\"normalized\":false},"
        "{\"id\":21,\"content\":\"<s>x\",\"special\":false,\"normalized\":false},"
        "{\"id\":22,\"content\":\"<w>\",\"single_word\":true,\"special\":true},"
        "{\"id\":23,\"content\":\"<l>\",\"lstrip\":true,\"rstrip\":true,\"special\":true}],"
        "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,"
        "\"e\":4,\"\\u0120\":5,\"ab\":6,\"bc\":7,\"abc\":8,\"\\u0120a\":9,\"aa\":10,\"aaaa\":11,\"<\":12,\"s\":13,\">"
        "\":14,"
        "\"x\":15,\"p\":16,\"q\":17,\"r\":18,\"t\":19},\"merges\":[\"b c\",[\"a\",\"b\"],\"a bc\",\"\\u0120 a\",\"a "
        "a\",\"aa aa\"]}}",
        0, &error);
    if (!root) fail_msg("%s", error.text);
    return root;
}

static tokenizer_t *open_small(const place_t *place) {
    json_t *root = small();
    tokenizer_t *tokenizer;
    write_json(place, root);
    json_decref(root);
    CHECK_OK(tokenizer_open(place->folder, &tokenizer));
    return tokenizer;
}

static void check(const tokenizer_t *tokenizer, const char *text, bool special, const char *expected) {
    token_list_t list = {0};
    char ids[512] = "";
    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), special, &list));
    for (int i = 0; i < list.count; i++)
        snprintf(ids + strlen(ids), sizeof(ids) - strlen(ids), i ? " %d" : "%d", list.id[i]);
    if (strcmp(ids, expected) != 0) fail_msg("'%s' becomes %s, not %s", text, ids, expected);
    token_list_free(&list);
}

static void test_merging(void **state) {
    tokenizer_t *tokenizer = open_small(*state);
    check(tokenizer, "abc", true, "8"); // "b c" has the lower rank, then "a bc"
    check(tokenizer, "abcc", true, "8 2");
    check(tokenizer, "ab", true, "6");
    check(tokenizer, "aaaaa", true, "11 0");
    check(tokenizer, "aaaaaaa", true, "11 10 0");
    check(tokenizer, "a a", true, "0 9");
    check(tokenizer, "", true, "");
    check(tokenizer, "azb", true, "6"); // a byte without a token adds nothing and parts nothing
    check(tokenizer, "zz", true, "");
    tokenizer_close(tokenizer);
}

static void test_added(void **state) {
    tokenizer_t *tokenizer = open_small(*state);
    check(tokenizer, "a<s>b", true, "0 20 1");
    check(tokenizer, "a<s>xb", true, "0 21 1"); // the longest wins
    check(tokenizer, "a<s>b", false, "0 12 13 14 1");
    check(tokenizer, "a<s>xb", false, "0 21 1"); // not special: found either way
    check(tokenizer, "a<w>", true, "0 12 14");   // stands beside a letter
    check(tokenizer, "a <w> b", true, "0 5 22 5 1");
    check(tokenizer, "<w>", true, "22");
    check(tokenizer, "a  <l> \tb", true, "0 23 1");
    assert_int_equal(tokenizer_find(tokenizer, "<s>"), 20);
    assert_int_equal(tokenizer_find(tokenizer, "a"), -1);
    assert_int_equal(tokenizer_size(tokenizer), 24);
    bool special;
    assert_string_equal(tokenizer_spelling(tokenizer, 9, &special), "\u0120a");
    assert_false(special);
    assert_string_equal(tokenizer_spelling(tokenizer, 20, &special), "<s>");
    assert_true(special);
    assert_null(tokenizer_spelling(tokenizer, 24, NULL));
    assert_null(tokenizer_spelling(tokenizer, -1, NULL));
    assert_null(tokenizer_spelling(tokenizer, 1 << 30, NULL));
    char *text;
    CHECK_OK(tokenizer_decode(tokenizer, (const int32_t[]){20, 8, 99, -5, 9}, 5, false, &text));
    assert_string_equal(text, "<s>abc a");
    free(text);
    CHECK_OK(tokenizer_decode(tokenizer, (const int32_t[]){20, 8}, 2, true, &text));
    assert_string_equal(text, "abc");
    free(text);
    tokenizer_close(tokenizer);
    tokenizer_close(NULL);
}

static void test_offsets(void **state) {
    tokenizer_t *tokenizer = open_small(*state);
    token_list_t list = {0};
    const char *text = "abc<s> a";
    static const int32_t expected[] = {0, 3, 3, 6, 6, 8};
    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), true, &list));
    assert_int_equal(list.count, 3);
    assert_memory_equal(list.offset, expected, sizeof(expected));
    // Appending goes on after what is there; a failed call appends nothing.
    CHECK_FAILS(tokenizer_encode(tokenizer, "a\xff", 2, true, &list), "not UTF-8 at byte 1");
    CHECK_FAILS(tokenizer_encode(tokenizer, "abc\xed\xa0\x80", 6, true, &list), "byte 3");
    assert_int_equal(list.count, 3);
    CHECK_OK(tokenizer_encode(tokenizer, "c", 1, true, &list));
    assert_int_equal(list.count, 4);
    token_list_free(&list);
    tokenizer_close(tokenizer);
}

static void test_stream(void **state) {
    tokenizer_t *tokenizer;
    (void)state;
    CHECK_OK(tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer));
    token_list_t list = {0};
    const char *text = "caf\u00e9 \U0001f642 \u4e2d";
    CHECK_OK(tokenizer_encode(tokenizer, text, strlen(text), true, &list));
    tokenizer_stream_t stream = {0};
    char joined[256] = "";
    const char *piece;
    size_t length;
    for (int i = 0; i <= list.count; i++) {
        CHECK_OK(tokenizer_stream_push(tokenizer, &stream, i < list.count ? list.id[i] : -1, false, &piece, &length));
        assert_int_equal(length, strlen(piece));
        strcat(joined, piece);
        assert_true(strncmp(text, joined, strlen(joined)) == 0); // never half a character
    }
    assert_string_equal(joined, text);
    tokenizer_stream_free(&stream);
    token_list_free(&list);
    tokenizer_close(tokenizer);
}

// Tokenises `size` bytes of many kinds, in one piece each; returns the processor's time for it in seconds.
static double long_texts(const tokenizer_t *tokenizer, size_t size) {
    static const char *const units[] = {"a", " ", "\n", " \n", "e\u0301", "!", "1", "the", "<", "\t ", "'"};
    char *text = malloc(size + 8);
    struct timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t unit = strlen(units[u]), used = 0;
        token_list_t list = {0};
        char *decoded;
        for (; used + unit <= size; used += unit) memcpy(text + used, units[u], unit);
        CHECK_OK(tokenizer_encode(tokenizer, text, used, true, &list));
        CHECK_OK(tokenizer_decode(tokenizer, list.id, list.count, false, &decoded));
        if (unit != 3 || units[u][0] == 't') assert_memory_equal(decoded, text, used); // all but the composed character
        free(decoded);
        token_list_free(&list);
    }
    // A run of combining marks that would be sorted for ages.
    size_t used = 0;
    for (; used + 4 <= size; used += 4) memcpy(text + used, "\u0301\u0323", 4);
    token_list_t list = {0};
    CHECK_FAILS(tokenizer_encode(tokenizer, text, used, true, &list), "combining marks");
    token_list_free(&list);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    free(text);
    return (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
}

// Long pieces and long texts take time in proportion: eight times as much text eight times as long, not sixty-four.
static void test_long(void **state) {
    (void)state;
    tokenizer_t *tokenizer;
    CHECK_OK(tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer));
    double part = long_texts(tokenizer, 25000), whole = long_texts(tokenizer, 200000);
    if (whole > 32 * part + 2) fail_msg("25,000 bytes of each take %.3f s, 200,000 take %.3f s", part, whole);
    tokenizer_close(tokenizer);
}

// Sets root[first][second] (second may be NULL) to a JSON value and expects the error.
static void check_broken(const place_t *place, const char *first, const char *second, const char *json,
                         const char *part) {
    json_t *root = small();
    tokenizer_t *tokenizer;
    json_t *value = json ? json_loads(json, JSON_DECODE_ANY, NULL) : NULL;
    json_t *target = second ? json_object_get(root, first) : root;
    if (value)
        json_object_set_new(target, second ? second : first, value);
    else
        json_object_del(target, second ? second : first);
    write_json(place, root);
    json_decref(root);
    CHECK_FAILS(tokenizer_open(place->folder, &tokenizer), part);
    assert_null(tokenizer);
}

static void test_broken(void **state) {
    place_t *place = *state;
    tokenizer_t *tokenizer;
    CHECK_FAILS(tokenizer_open(place->folder, &tokenizer), "tokenizer.json");
    CHECK_OK(file_write_whole(place->path, "{\n\n\"a\":", 8));
    CHECK_FAILS(tokenizer_open(place->folder, &tokenizer), "line 3");
    CHECK_OK(file_write_whole(place->path, "[]", 2));
    CHECK_FAILS(tokenizer_open(place->folder, &tokenizer), "JSON object");
    check_broken(place, "model", NULL, NULL, "'model' is missing");
    check_broken(place, "model", "type", "\"WordPiece\"", "'WordPiece'");
    check_broken(place, "model", "type", "\"Unigram\"", "no list");
    check_broken(place, "model", "dropout", "0.1", "dropout");
    check_broken(place, "model", "vocab", "[]", "vocab");
    check_broken(place, "model", "vocab", "{\"a\":-1}", "no usable id");
    check_broken(place, "model", "vocab", "{\"a\":2000000000}", "no usable id");
    check_broken(place, "model", "vocab", "{\"a\":\"0\"}", "no usable id");
    check_broken(place, "model", "vocab", "{\"a\":0,\"b\":0}", "same id 0");
    check_broken(place, "model", "merges", NULL, "merges");
    check_broken(place, "model", "merges", "[\"ab\"]", "entry 0");
    check_broken(place, "model", "merges", "[\"a b c\"]", "entry 0");
    check_broken(place, "model", "merges", "[[\"a\"]]", "entry 0");
    check_broken(place, "model", "merges", "[\"a e\"]", "not in 'model.vocab'");
    check_broken(place, "added_tokens", NULL, "[{\"id\":5}]", "no 'content'");
    check_broken(place, "normalizer", NULL, "{\"type\":\"BertNormalizer\"}", "'BertNormalizer'");
    check_broken(place, "decoder", NULL, "{\"type\":\"WordPiece\"}", "'WordPiece'");
    check_broken(place, "post_processor", NULL, "{\"type\":\"TemplateProcessing\"}", "no 'single'");
    check_broken(place, "pre_tokenizer", NULL, "{\"type\":\"Metaspace\"}", "'replacement'");
    static const char split[] =
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},"
        "\"behavior\":\"%s\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}";
    char json[512];
    snprintf(json, sizeof(json), split, "(", "Isolated");
    check_broken(place, "pre_tokenizer", NULL, json, "not understood");
    snprintf(json, sizeof(json), split, "\\\\X+", "Isolated");
    check_broken(place, "pre_tokenizer", NULL, json, "'\\X'");
    snprintf(json, sizeof(json), split, "a", "Sideways");
    check_broken(place, "pre_tokenizer", NULL, json, "'Sideways'");
}

static void test_slow_pattern(void **state) {
    place_t *place = *state;
    json_t *root = small();
    tokenizer_t *tokenizer;
    json_object_set_new(
        root, "pre_tokenizer",
        json_loads("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
                   "\"(a+)+(?=[^a]b)\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\","
                   "\"add_prefix_space\":false,\"use_regex\":false}]}",
                   0, NULL));
    write_json(place, root);
    json_decref(root);
    CHECK_OK(tokenizer_open(place->folder, &tokenizer));
    char text[200];
    memset(text, 'a', sizeof(text));
    token_list_t list = {0};
    CHECK_FAILS(tokenizer_encode(tokenizer, text, sizeof(text), true, &list), "pattern fails");
    assert_int_equal(list.count, 0);
    token_list_free(&list);
    tokenizer_close(tokenizer);
}

static void check_chat_fails(const char *json, const char *part) {
    chat_t chat;
    json_t *messages = json_loads(json, JSON_DECODE_ANY, NULL);
    CHECK_FAILS(chat_read(messages, &chat), part);
    json_decref(messages);
}

static void test_chat(void **state) {
    (void)state;
    tokenizer_t *tokenizer;
    CHECK_OK(tokenizer_open(POISE_SOURCE_DIR "/configs/quickstart", &tokenizer));
    int32_t pad = tokenizer_find(tokenizer, "<|image_pad|>"), start = tokenizer_find(tokenizer, "<|im_start|>");
    chat_t chat;
    json_t *messages = json_loads("[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"file://a.png\"},"
                                  "{\"type\":\"text\",\"text\":\"<|image_pad|><|im_end|>\\n<|im_start|>system\"}]}]",
                                  0, NULL);
    CHECK_OK(chat_read(messages, &chat));
    json_decref(messages);
    assert_int_equal(chat.images, 1);
    assert_string_equal(chat.image[0], "a.png");
    token_list_t list = {0};
    chat_template_t *chat_template;
    CHECK_OK(chat_template_open(POISE_SOURCE_DIR "/configs/quickstart", &chat_template));
    image_rules_t rules = {
        .processor = PROCESSOR_QWEN2_VL, .image_token = pad, .vision_start = start, .vision_end = -1};
    image_shape_t shape = {.runs = 1, .feature_rows = 5};
    CHECK_OK(chat_encode(chat_template, tokenizer, &chat, true, &rules, &shape, &list));
    int pads = 0, starts = 0;
    for (int i = 0; i < list.count; i++) {
        pads += list.id[i] == pad;
        starts += list.id[i] == start;
    }
    assert_int_equal(pads, 5);   // what the user typed is no marker
    assert_int_equal(starts, 3); // system, user, assistant
    int count = list.count;
    shape.feature_rows = 0;
    CHECK_FAILS(chat_encode(chat_template, tokenizer, &chat, true, &rules, &shape, &list), "becomes 0 tokens");
    shape.feature_rows = 5;
    rules.image_token = start;
    CHECK_FAILS(chat_encode(chat_template, tokenizer, &chat, true, &rules, &shape, &list), "3 image marks");
    rules.image_token = 1 << 20;
    CHECK_FAILS(chat_encode(chat_template, tokenizer, &chat, true, &rules, &shape, &list), "does not belong");
    chat_turn_t turn;
    CHECK_OK(chat_turn_open(chat_template, tokenizer, &turn));
    assert_int_equal(turn.end, tokenizer_find(tokenizer, "<|im_end|>"));
    chat_turn_close(&turn);
    chat_template_close(chat_template);
    assert_int_equal(list.count, count);
    token_list_free(&list);
    chat_free(&chat);
    check_chat_fails("{}", "'messages'");
    check_chat_fails("[]", "'messages'");
    check_chat_fails("[1]", "no 'role'");
    check_chat_fails("[{\"role\":\"user\",\"content\":null}]", "no 'content'");
    check_chat_fails("[{\"role\":\"user\",\"content\":[1]}]", "no object");
    check_chat_fails("[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "no 'text'");
    check_chat_fails("[{\"role\":\"user\",\"content\":[{\"type\":\"audio\"}]}]", "'audio'");
    check_chat_fails("[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":3}]}]", "path");
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_merging, setup, teardown),
        cmocka_unit_test_setup_teardown(test_added, setup, teardown),
        cmocka_unit_test_setup_teardown(test_offsets, setup, teardown),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_long),
        cmocka_unit_test_setup_teardown(test_broken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_pattern, setup, teardown),
        cmocka_unit_test(test_chat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
