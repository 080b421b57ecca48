// Frames between ranks, as the host or another rank gets them, and the launcher's line. The first byte says which, and
// of how many ranks. What is accepted is within range and can be printed; written again it is read as the same.
#include "common/comm/watch_message.h"
#include "common/text/utf8.h"
#include "tests/fuzz/fuzz.h"

static void check_printable(const char *text, size_t bytes) {
    char again[SENTENCE_BYTES];
    size_t length = strnlen(text, bytes);
    FUZZ_CHECK(length < bytes);
    utf8_printable(text, length, again, sizeof(again));
    FUZZ_CHECK(strcmp(text, again) == 0);
    FUZZ_CHECK(utf8_valid(text, length) == length);
    for (size_t i = 0; i < length; i++) FUZZ_CHECK((unsigned char)text[i] >= ' ' && text[i] != 0x7f);
}

static void use_message(const uint8_t *data, size_t size) {
    watch_message_t message, again;
    char frame[FRAME_BYTES];
    if (!watch_message_read(data, size, &message)) return;
    FUZZ_CHECK(message.kind >= WATCH_BEAT && message.kind <= WATCH_DONE);
    FUZZ_CHECK(message.code >= 0 && message.code <= 255);
    FUZZ_CHECK((message.kind == WATCH_FAILED) == (message.weight != FAILURE_NONE));
    FUZZ_CHECK(message.weight >= FAILURE_NONE && message.weight <= FAILURE_CAUSE);
    check_printable(message.phase, sizeof(message.phase));
    check_printable(message.sentence, sizeof(message.sentence));
    size_t length = watch_message_write(&message, frame);
    FUZZ_CHECK(length <= sizeof(frame));
    FUZZ_CHECK(watch_message_read(frame, length, &again));
    FUZZ_CHECK(memcmp(&message, &again, sizeof(message)) == 0);
}

static void use_hello(const uint8_t *data, size_t size, int ranks, int host) {
    watch_hello_t hello, again;
    char frame[FRAME_BYTES];
    if (!watch_hello_read(data, size, ranks, host, &hello)) return;
    FUZZ_CHECK(hello.rank >= 0 && hello.rank < ranks && hello.rank != host);
    FUZZ_CHECK(hello.role[0]);
    check_printable(hello.role, sizeof(hello.role));
    size_t length = watch_hello_write(&hello, frame);
    FUZZ_CHECK(watch_hello_read(frame, length, ranks, host, &again));
    FUZZ_CHECK(memcmp(&hello, &again, sizeof(hello)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int rank = 0, ranks = size ? data[0] & 63 : 0;
    char sentence[SENTENCE_BYTES];
    if (!size) return 0;
    // As large as the frame and no larger, so that reads beyond it are seen.
    uint8_t *frame = malloc(size);
    FUZZ_CHECK(frame);
    memcpy(frame, data + 1, size - 1);
    uint8_t *exact = realloc(frame, size - 1 ? size - 1 : 1);
    FUZZ_CHECK(exact);
    switch (data[0] >> 6) {
    case 0:
        use_hello(exact, size - 1, ranks, ranks - 1);
        break;
    case 1:
        if (!watch_lost_read((const char *)exact, size - 1, &rank, sentence)) break;
        FUZZ_CHECK(rank >= 0);
        check_printable(sentence, sizeof(sentence));
        break;
    default:
        use_message(exact, size - 1);
    }
    free(exact);
    return 0;
}
