// Real vocabularies: ids, decoded text and streams of generated strings are transformers', by hashes of a thousand at a
// time. The vocabularies are fetched by tests/oracle/vocabularies and are not in the repository.
#include "tests/lib/check.h"

#include "common/store/store.h"
#include "common/text/answer.h"
#include "common/text/tokenizer.h"
#include <jansson.h>
#include <sodium.h>
#include <sys/stat.h>

static json_t *read_json(const char *path) {
    char *text;
    size_t size;
    json_error_t error;
    CHECK_OK(file_read_whole(path, 1 << 26, &text, &size));
    json_t *root = json_loadb(text, size, 0, &error);
    free(text);
    if (!root) fail_msg("%s:%d: %s", path, error.line, error.text);
    return root;
}

// ---- the strings of tests/oracle/vocabulary_text.py ----

static uint64_t draw(uint64_t *state, uint64_t count) {
    uint64_t value = *state += 0x9E3779B97F4A7C15u;
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return (value ^ value >> 31) % count;
}

typedef struct text {
    char *data;
    size_t length, capacity;
} text_t;

static void add(text_t *text, const void *data, size_t length) {
    CHECK_OK(memory_grow((void **)&text->data, &text->capacity, text->length + length + 1, 1));
    memcpy(text->data + text->length, data, length);
    text->length += length;
    text->data[text->length] = 0;
}

static size_t make_item(const json_t *group, uint64_t *state, char *out) {
    const json_t *pieces = json_object_get(group, "pieces"), *ranges = json_object_get(group, "ranges");
    if (pieces) {
        const json_t *piece = json_array_get(pieces, draw(state, json_array_size(pieces)));
        memcpy(out, json_string_value(piece), json_string_length(piece));
        return json_string_length(piece);
    }
    const json_t *range = json_array_get(ranges, draw(state, json_array_size(ranges)));
    uint64_t first = (uint64_t)json_integer_value(json_array_get(range, 0));
    uint32_t code = (uint32_t)(first + draw(state, (uint64_t)json_integer_value(json_array_get(range, 1)) - first + 1));
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length; i-- > 1; code >>= 6) out[i] = (char)(0x80 | (code & 0x3f));
    out[0] = (char)((0xf00u >> length & 0xff) | code);
    return length;
}

static const json_t *choose_group(const json_t *groups, uint64_t *state) {
    uint64_t total = 0;
    size_t i;
    const json_t *group;
    json_array_foreach(groups, i, group) total += (uint64_t)json_integer_value(json_object_get(group, "weight"));
    uint64_t place = draw(state, total);
    json_array_foreach(groups, i, group) {
        uint64_t weight = (uint64_t)json_integer_value(json_object_get(group, "weight"));
        if (place < weight) return group;
        place -= weight;
    }
    return NULL;
}

static void make_string(const json_t *groups, uint64_t number, text_t *out) {
    uint64_t state = (number + 1) * 0x9E3779B97F4A7C15u;
    char item[256];
    out->length = 0;
    for (uint64_t runs = 1 + draw(&state, 8); runs; runs--) {
        const json_t *group = choose_group(groups, &state);
        if (draw(&state, 40) == 0) {
            size_t length = make_item(group, &state, item);
            for (uint64_t times = 20 + draw(&state, 100); times; times--) add(out, item, length);
            continue;
        }
        uint64_t most = (uint64_t)json_integer_value(json_object_get(group, "most"));
        for (uint64_t times = 1 + draw(&state, most); times; times--) add(out, item, make_item(group, &state, item));
    }
}

// ---- one vocabulary ----

static void add_number(text_t *record, size_t number) {
    uint8_t bytes[4] = {(uint8_t)number, (uint8_t)(number >> 8), (uint8_t)(number >> 16), (uint8_t)(number >> 24)};
    add(record, bytes, 4);
}

// Decoded text goes into the record; the pieces of a stream must be the same text, and spans must cover it.
static void add_decoded(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip, text_t *record) {
    char *text;
    size_t length, at = 0;
    int32_t *span = calloc(2 * (size_t)count + 2, sizeof(*span));
    CHECK_OK(tokenizer_decode_offsets(tokenizer, ids, count, skip, &text, &length, span));
    tokenizer_stream_t stream = {0};
    for (int i = 0; i <= count; i++) {
        const char *piece;
        size_t bytes;
        CHECK_OK(tokenizer_stream_push(tokenizer, &stream, i < count ? ids[i] : -1, skip, &piece, &bytes));
        if (at + bytes > length || memcmp(piece, text + at, bytes) != 0) fail_msg("a stream differs from: %s", text);
        at += bytes;
        assert_int_equal(span[2 * i], i == count ? 0 : i ? span[2 * i - 1] : 0);
    }
    assert_int_equal(at, length);
    if (count) assert_int_equal(span[2 * count - 1], length);
    tokenizer_stream_free(&stream);
    add_number(record, length);
    add(record, text, length);
    free(text);
    free(span);
}

static void add_record(const tokenizer_t *tokenizer, const int32_t *ids, int count, text_t *record) {
    add_number(record, (size_t)count);
    for (int i = 0; i < count; i++) add_number(record, (size_t)ids[i]);
    add_decoded(tokenizer, ids, count, false, record);
    add_decoded(tokenizer, ids, count, true, record);
}

static void check_blocks(const tokenizer_t *tokenizer, const char *name, const json_t *golden, const json_t *groups,
                         uint64_t block) {
    const json_t *hashes = json_object_get(golden, "blocks");
    uint64_t size = (uint64_t)json_integer_value(json_object_get(golden, "size"));
    text_t string = {0}, record = {0};
    assert_true(json_array_size(hashes) >= 20);
    for (size_t b = 0; b < json_array_size(hashes); b++) {
        record.length = 0;
        for (uint64_t number = b * block; number < (b + 1) * block; number++) {
            token_list_t list = {0};
            int32_t ids[12];
            make_string(groups, number, &string);
            CHECK_OK(tokenizer_encode_whole(tokenizer, string.data, NULL, string.length, &list));
            add_record(tokenizer, list.id, list.count, &record);
            token_list_free(&list);
            uint64_t state = ((UINT64_C(1) << 32) + number) * 0x9E3779B97F4A7C15u;
            int count = 1 + (int)draw(&state, 12);
            for (int i = 0; i < count; i++) ids[i] = (int32_t)draw(&state, size);
            add_record(tokenizer, ids, count, &record);
        }
        unsigned char hash[crypto_hash_sha256_BYTES];
        char hex[2 * sizeof(hash) + 1];
        crypto_hash_sha256(hash, (const unsigned char *)record.data, record.length);
        sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
        if (strcmp(hex, json_string_value(json_array_get(hashes, b))) != 0)
            fail_msg("%s: strings %d to %d differ", name, (int)(b * block), (int)((b + 1) * block - 1));
    }
    free(string.data);
    free(record.data);
}

// The tokens of a response fall into segments at the character where </think> starts.
static void check_segments(const tokenizer_t *tokenizer, const char *name) {
    static const char *const responses[] = {
        "<think>row 1: bag. \xc3\xa9\xe4\xb8\xad\xf0\x9f\x99\x82</think><answer>2</answer>",
        "<think>\na  b\n</think>\n<answer>\n\xf0\x9f\x91\xa8\xe2\x80\x8d\n</answer>",
        "  <think>.</think>.<answer>x</answer>",
    };
    for (size_t r = 0; r < sizeof(responses) / sizeof(responses[0]); r++) {
        token_list_t list = {0};
        char *text;
        size_t length;
        int32_t span[400];
        uint8_t label[200];
        CHECK_OK(tokenizer_encode(tokenizer, responses[r], strlen(responses[r]), false, &list));
        assert_true(list.count < 200);
        CHECK_OK(tokenizer_decode_offsets(tokenizer, list.id, list.count, true, &text, &length, span));
        answer_segments(text, length, span, list.count, label);
        const char *end = strstr(text, "</think>");
        assert_non_null(end);
        for (int i = 0; i < list.count; i++) {
            segment_t expected = span[2 * i + 1] <= end - text ? SEGMENT_THINK : SEGMENT_ANSWER;
            if (label[i] != expected) fail_msg("%s: token %d of '%s' has segment %d", name, i, responses[r], label[i]);
        }
        assert_int_equal(label[0], SEGMENT_THINK);
        assert_int_equal(label[list.count - 1], SEGMENT_ANSWER);
        free(text);
        token_list_free(&list);
    }
}

int main(void) {
    const char *folder = getenv("POISE_VOCABULARIES");
    struct stat info;
    if (!folder || !*folder) folder = POISE_SOURCE_DIR "/build/vocabularies";
    if (stat(folder, &info) != 0) {
        printf("there are no vocabularies in %s: tests/oracle/vocabularies fetches them\n", folder);
        return 77;
    }
    json_t *root = read_json(POISE_SOURCE_DIR "/tests/goldens/vocabularies/hashes.json");
    json_t *alphabets = read_json(POISE_SOURCE_DIR "/tests/goldens/vocabularies/alphabets.json");
    const char *name;
    json_t *golden;
    int failed = 0, seen = 0;
    json_object_foreach(json_object_get(root, "vocabularies"), name, golden) {
        char path[4096];
        tokenizer_t *tokenizer;
        snprintf(path, sizeof(path), "%s/%s", folder, name);
        if (stat(path, &info) != 0) {
            printf("%s is not there\n", path);
            failed++;
            continue;
        }
        CHECK_OK(tokenizer_open(path, &tokenizer));
        check_blocks(tokenizer, name, golden, json_object_get(alphabets, "groups"),
                     (uint64_t)json_integer_value(json_object_get(root, "block")));
        check_segments(tokenizer, name);
        printf("%s: all the same\n", name);
        tokenizer_close(tokenizer);
        seen++;
    }
    json_decref(root);
    json_decref(alphabets);
    return failed || !seen;
}
