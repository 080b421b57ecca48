// Messages: every type there and back, and frames that must be refused.
#include "common/wire/message_fields.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include <cmocka.h>

static void check(status_t status) {
    if (status) status_print(status, stderr, -1, true);
    assert_null(status);
}

static void refused(const void *data, size_t size, const char *part) {
    message_t message;
    status_t status = message_unpack(data, size, &message);
    if (!status) fail_msg("accepted where \"%s\" was expected", part);
    if (status_kind(status) != STATUS_PEER || !strstr(status_message(status), part))
        fail_msg("said \"%s\" where \"%s\" was expected", status_message(status), part);
    status_free(status);
    message_free(&message); // harmless after a failure
}

// ---- one message of every type ----

static int32_t tokens[] = {5, -1, INT32_MAX, 0, 77};
static float logprobs[] = {-0.25f, -1e-30f, -103.5f, -0.0f, -INFINITY};
static float entropy[] = {0.5f, 1, 2, 3, 4};
static uint64_t serials[] = {0, UINT64_MAX, 12};
static int32_t owners[] = {0, 3, 1};
static int64_t lengths[] = {100, 1LL << 40, 0};
static uint8_t bytes[] = {0, 1, 2, 255, 0, 7};
static char settings_text[] = "model: \"/a b\"\nseed: 3\n";
static char text[] = "<think>a\n\"\xff\xc3</think>";
static message_group_item_t items[] = {
    {.index = 0,
     .length = 5,
     .tokens = tokens,
     .logprobs = logprobs,
     .reward = 1.25,
     .reward_tag = 1,
     .advantage = -1e-300},
    {.index = 1023, .length = 0, .tokens = tokens, .logprobs = logprobs, .excluded = true, .truncated = true},
};

static message_t example(message_type_t type) {
    message_t m = {.type = type};
    switch (type) {
    case MESSAGE_HELLO:
        m.hello = (message_hello_t){"rollout", 3, 1, UINT64_MAX, 42, 2, 1LL << 40};
        break;
    case MESSAGE_WORK:
        m.work = (message_work_t){9, 1LL << 40, UINT64_MAX - 1, 3, 8, 64, 0.7f};
        break;
    case MESSAGE_COMPLETION:
        m.completion = (message_completion_t){.serial = 1,
                                              .index = 7,
                                              .version = 2,
                                              .checksum = 0xfedcba9876543210u,
                                              .length = 5,
                                              .tokens = tokens,
                                              .logprobs = logprobs,
                                              .entropy = entropy,
                                              .text = text,
                                              .truncated = true,
                                              .seconds = 0.1};
        break;
    case MESSAGE_PLAN:
        m.plan = (message_plan_t){4, 3, serials, owners, lengths, 24, 1LL << 33, 1, 3, 2, 1.5, 0.1};
        break;
    case MESSAGE_FETCH:
        m.fetch.count = 3;
        m.fetch.serial = serials;
        break;
    case MESSAGE_GROUP:
        m.group = (message_group_t){8, 5, 1, 2, items};
        break;
    case MESSAGE_WEIGHTS:
        m.weights = (message_weights_t){7, 1, 2, 3, 4, 5, "tcp://127.0.0.1:1"};
        break;
    case MESSAGE_READY:
        m.ready.version = 6;
        m.ready.checksum = 66;
        break;
    case MESSAGE_PULL:
        m.pull.version = 6;
        m.pull.chunk = 12;
        break;
    case MESSAGE_CHUNK:
        m.chunk = (message_chunk_t){6, 12, bytes, sizeof(bytes)};
        break;
    case MESSAGE_STATISTICS:
        m.statistics = (message_statistics_t){1, 2, 3, 4, 5, 6, 7, 0.5, 0.25, 1e9};
        break;
    case MESSAGE_ERROR:
        strcpy(m.error.sentence, "the disk is full");
        m.error.world_rank = -1;
        break;
    case MESSAGE_SETTINGS:
        m.settings.config = settings_text;
        m.settings.data_hash = UINT64_MAX;
        m.settings.world_rank = 4;
        m.settings.role_index = 2;
        break;
    case MESSAGE_REFUSED:
        strcpy(m.refused.reason, "another data file");
        break;
    default:
        strcpy(m.stop.reason, "done");
    }
    return m;
}

static void same_fields(const fields_t *fields, const void *a, const void *b) {
    for (int f = 0; f < fields->count; f++) {
        const field_t *field = &fields->field[f];
        const char *x = (const char *)a + field->offset, *y = (const char *)b + field->offset;
        const char *const *px = (const char *const *)x, *const *py = (const char *const *)y;
        int32_t n = 0;
        if (field->kind == FIELD_ARRAY || field->kind == FIELD_ITEMS) memcpy(&n, (const char *)a + field->count, 4);
        switch (field->kind) {
        case FIELD_I32:
        case FIELD_F32:
            assert_memory_equal(x, y, 4);
            break;
        case FIELD_I64:
        case FIELD_U64:
        case FIELD_F64:
            assert_memory_equal(x, y, 8);
            break;
        case FIELD_BOOL:
            assert_int_equal(*x, *y);
            break;
        case FIELD_TEXT:
            assert_string_equal(x, y);
            break;
        case FIELD_STRING:
            assert_string_equal(*px, *py);
            break;
        case FIELD_BYTES:
            assert_memory_equal((const char *)a + field->count, (const char *)b + field->count, 8);
            assert_memory_equal(*px, *py, sizeof(bytes));
            break;
        case FIELD_ARRAY:
            if (n) assert_memory_equal(*px, *py, (size_t)n * field->extra);
            break;
        default:
            for (int i = 0; i < n; i++)
                same_fields(field->items, *px + (size_t)i * field->extra, *py + (size_t)i * field->extra);
        }
    }
}

static void test_round_trip(void **state) {
    (void)state;
    for (int type = MESSAGE_HELLO; type <= MESSAGE_STOP; type++) {
        message_t message = example((message_type_t)type), back;
        link_buffer_t buffer, again;
        check(message_pack(&message, &buffer));
        check(message_unpack(buffer.data, buffer.size, &back));
        assert_int_equal(back.type, type);
        same_fields(message_fields((message_type_t)type), &message, &back);
        check(message_pack(&back, &again)); // and the bytes are the same
        assert_int_equal(buffer.size, again.size);
        assert_memory_equal(buffer.data, again.data, buffer.size);
        link_buffer_free(&buffer);
        link_buffer_free(&again);
        message_free(&back);
    }
    assert_null(message_fields((message_type_t)0));
    assert_null(message_fields((message_type_t)(MESSAGE_STOP + 1)));
    assert_string_equal(message_type_name(MESSAGE_COMPLETION), "completion");
    message_t none = {0};
    link_buffer_t buffer;
    status_t status = message_pack(&none, &buffer);
    assert_non_null(status);
    status_free(status);
}

// A completion with no tokens, a group of the largest count, a long text.
static void test_extremes(void **state) {
    (void)state;
    message_t message = example(MESSAGE_COMPLETION), back;
    link_buffer_t buffer;
    message.completion.length = 0;
    message.completion.tokens = NULL;
    message.completion.logprobs = message.completion.entropy = NULL;
    message.completion.text = NULL;
    check(message_pack(&message, &buffer));
    check(message_unpack(buffer.data, buffer.size, &back));
    assert_int_equal(back.completion.length, 0);
    assert_non_null(back.completion.tokens);
    assert_string_equal(back.completion.text, "");
    message_free(&back);
    link_buffer_free(&buffer);

    message_group_item_t *many = calloc(MESSAGE_MAX_COMPLETIONS + 1, sizeof(*many));
    int32_t *long_tokens = calloc(20000, sizeof(*long_tokens));
    float *long_logprobs = calloc(20000, sizeof(*long_logprobs));
    for (int i = 0; i < 20000; i++) long_tokens[i] = i;
    for (int i = 0; i <= MESSAGE_MAX_COMPLETIONS; i++) many[i].index = i % MESSAGE_MAX_COMPLETIONS;
    many[3] = (message_group_item_t){.length = 20000, .tokens = long_tokens, .logprobs = long_logprobs};
    message = (message_t){.type = MESSAGE_GROUP};
    message.group.count = MESSAGE_MAX_COMPLETIONS;
    message.group.item = many;
    check(message_pack(&message, &buffer));
    check(message_unpack(buffer.data, buffer.size, &back));
    assert_int_equal(back.group.count, MESSAGE_MAX_COMPLETIONS);
    assert_int_equal(back.group.item[1023].index, 1023);
    assert_memory_equal(back.group.item[3].tokens, long_tokens, 80000);
    message_free(&back);
    link_buffer_free(&buffer);
    message.group.count++;
    check(message_pack(&message, &buffer));
    refused(buffer.data, buffer.size, "1024");
    link_buffer_free(&buffer);
    free(many);
    free(long_tokens);
    free(long_logprobs);
}

// ---- hostile bytes ----

#define BYTES(...) ((const uint8_t[]){__VA_ARGS__}), sizeof((const uint8_t[]){__VA_ARGS__})

static void test_hostile_scan(void **state) {
    (void)state;
    refused(BYTES(0), "not a map");
    refused("", 0, "ends early");
    refused(BYTES(0xc1), "0xc1");
    refused(BYTES(0xdd, 0x10, 0, 0, 0), "268435456 entries");
    refused(BYTES(0xdf, 0xff, 0xff, 0xff, 0xff), "4294967295 entries");
    refused(BYTES(0xdc, 0x04, 0x00, 0xc0), "only 1 bytes are left");
    refused(BYTES(0xde, 0x00, 0x21), "33 entries");
    refused(BYTES(0xc6, 0xff, 0xff, 0xff, 0xff, 1), "4294967295 bytes");
    refused(BYTES(0xdb, 0, 0, 0, 2, 'a'), "declares 2 bytes");
    refused(BYTES(0xc9, 0xff, 0xff, 0xff, 0xff, 1), "declares 4294967296 bytes");
    refused(BYTES(0xd8, 1, 2), "declares 17 bytes");
    refused(BYTES(0xcf, 1, 2), "declares 8 bytes");
    refused(BYTES(0xcb), "declares 8 bytes");
    refused(BYTES(0xa5, 'a'), "declares 5 bytes");
    refused(BYTES(0xdd, 1), "within a count");
    refused(BYTES(0xc5, 1), "within a size");
    refused(BYTES(0x91, 0x91, 0x91, 0x91, 0x91, 0xc0), "deeper");
    refused(BYTES(0x80, 0xc0), "do not belong");
    refused(BYTES(0x80), "\"schema\" is missing");
    // 1,024 arrays of 1,024 nils: within every single limit, not within the sum.
    size_t size = 0;
    uint8_t *wide = malloc(3 + 1024 * (3 + 1024));
    wide[size++] = 0xdc, wide[size++] = 4, wide[size++] = 0;
    for (int i = 0; i < 1024; i++) {
        wide[size++] = 0xdc, wide[size++] = 4, wide[size++] = 0;
        memset(wide + size, 0xc0, 1024);
        size += 1024;
    }
    refused(wide, size, "more than 65536 objects");
    free(wide);
    check(message_scan(BYTES(0x94, 0xc0, 0x91, 0x91, 0x91, 0x01, 0xcc, 0xff, 0xd4, 1, 2)));
}

// Builds a message of type READY whose parts are changed one at a time.
typedef struct odd {
    int schema;
    const char *type, *extra, *version_key;
    int64_t version;
    bool text_version, twice, real_checksum, negative_checksum;
} odd_t;

static void pack_string(msgpack_packer *packer, const char *string) {
    msgpack_pack_str(packer, strlen(string));
    msgpack_pack_str_body(packer, string, strlen(string));
}

static void odd_message(odd_t odd, const char *part) {
    msgpack_sbuffer buffer;
    msgpack_packer packer;
    message_t message;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    msgpack_pack_map(&packer, 4 + (odd.extra != NULL) + odd.twice);
    pack_string(&packer, "checksum"); // any order of keys is fine
    if (odd.real_checksum)
        msgpack_pack_double(&packer, 1);
    else if (odd.negative_checksum)
        msgpack_pack_int64(&packer, -5);
    else
        msgpack_pack_uint64(&packer, 77);
    pack_string(&packer, "type");
    pack_string(&packer, odd.type ? odd.type : "ready");
    for (int i = 0; i <= odd.twice; i++) {
        pack_string(&packer, odd.version_key ? odd.version_key : "version");
        if (odd.text_version)
            pack_string(&packer, "1");
        else
            msgpack_pack_int64(&packer, odd.version);
    }
    pack_string(&packer, "schema");
    msgpack_pack_int(&packer, odd.schema ? odd.schema : MESSAGE_SCHEMA);
    if (odd.extra) {
        pack_string(&packer, odd.extra);
        msgpack_pack_nil(&packer);
    }
    if (part) {
        refused(buffer.data, buffer.size, part);
    } else {
        check(message_unpack(buffer.data, buffer.size, &message));
        assert_int_equal(message.ready.checksum, 77);
        message_free(&message);
    }
    msgpack_sbuffer_destroy(&buffer);
}

static void test_strict(void **state) {
    (void)state;
    odd_message((odd_t){0}, NULL);
    odd_message((odd_t){.schema = 2}, "schema");
    odd_message((odd_t){.type = "reads"}, "unknown type");
    odd_message((odd_t){.type = "pull"}, "\"chunk\" is missing");
    odd_message((odd_t){.extra = "more"}, "5 keys where 4");
    odd_message((odd_t){.version_key = "Version"}, "\"version\" is missing");
    odd_message((odd_t){.version = -1}, "not in 0 ..");
    odd_message((odd_t){.text_version = true}, "not an integer");
    odd_message((odd_t){.twice = true}, "twice");
    odd_message((odd_t){.real_checksum = true}, "not an integer");
    odd_message((odd_t){.negative_checksum = true}, "negative");
}

// Changes what is packed so that only unpacking can notice.
static void test_lies(void **state) {
    (void)state;
    link_buffer_t buffer;
    message_t message = example(MESSAGE_WORK);
    message.work.completions = MESSAGE_MAX_COMPLETIONS + 1;
    check(message_pack(&message, &buffer));
    refused(buffer.data, buffer.size, "\"completions\" is not in");
    link_buffer_free(&buffer);
    message = example(MESSAGE_WORK);
    message.work.temperature = NAN;
    check(message_pack(&message, &buffer));
    refused(buffer.data, buffer.size, "\"temperature\" is not a finite");
    link_buffer_free(&buffer);
    message = example(MESSAGE_COMPLETION);
    message.completion.length = 4; // all arrays agree: fine
    check(message_pack(&message, &buffer));
    uint8_t *at = memmem(buffer.data, buffer.size, "length", 6);
    assert_non_null(at);
    assert_int_equal(at[6], 4);
    at[6] = 5; // now the count lies about the arrays
    refused(buffer.data, buffer.size, "\"tokens\" holds 16 bytes where 20");
    at[6] = 0xff; // -1
    refused(buffer.data, buffer.size, "\"length\" is not in");
    at[6] = 4;
    at = memmem(buffer.data, buffer.size, "<think>", 7);
    at[0] = 0;
    refused(buffer.data, buffer.size, "0 byte");
    link_buffer_free(&buffer);
    message = example(MESSAGE_GROUP);
    check(message_pack(&message, &buffer));
    at = memmem(buffer.data, buffer.size, "advantage", 9);
    at[0] = 'A';
    refused(buffer.data, buffer.size, "item 0: key \"advantage\" is missing");
    link_buffer_free(&buffer);
    message = example(MESSAGE_ERROR);
    memset(message.error.sentence, 'x', sizeof(message.error.sentence)); // not terminated: cut, not overrun
    check(message_pack(&message, &buffer));
    message_t back;
    check(message_unpack(buffer.data, buffer.size, &back));
    assert_int_equal(strlen(back.error.sentence), sizeof(back.error.sentence) - 1);
    message_free(&back);
    link_buffer_free(&buffer);
}

// Every cut of every message is refused; bytes changed at random are refused or read, and never crash.
static void test_cut_and_flipped(void **state) {
    (void)state;
    uint64_t random = 1, accepted = 0;
    for (int type = MESSAGE_HELLO; type <= MESSAGE_STOP; type++) {
        message_t message = example((message_type_t)type), back;
        link_buffer_t buffer;
        check(message_pack(&message, &buffer));
        for (size_t size = 0; size < buffer.size; size++) {
            uint8_t *cut = malloc(size + 1);
            memcpy(cut, buffer.data, size);
            status_t status = message_unpack(cut, size, &back);
            assert_non_null(status);
            status_free(status);
            free(cut);
        }
        for (int round = 0; round < 3000; round++) {
            uint8_t *flipped = malloc(buffer.size);
            memcpy(flipped, buffer.data, buffer.size);
            for (int flips = 0; flips < 1 + round % 3; flips++) {
                random = random * 6364136223846793005u + 1442695040888963407u;
                flipped[(random >> 33) % buffer.size] = (uint8_t)(random >> 20);
            }
            status_t status = message_unpack(flipped, buffer.size, &back);
            accepted += !status;
            if (!status) message_free(&back);
            status_free(status);
            free(flipped);
        }
        link_buffer_free(&buffer);
    }
    assert_true(accepted > 100); // numbers inside may change unnoticed: the check is not vacuous
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_extremes), cmocka_unit_test(test_hostile_scan),
        cmocka_unit_test(test_strict),     cmocka_unit_test(test_lies),     cmocka_unit_test(test_cut_and_flipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
