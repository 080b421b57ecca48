// Datagrams that another process of the machine sends while ranks start: each the rest of the input from some place, of
// some length. Answers make the view from which the speaker and the sentence are taken.
#include "common/comm/watch_internal.h"
#include "common/text/utf8.h"
#include "tests/fuzz/fuzz.h"

enum { MOST_RANKS = 64 };

static void check_printable(const char *text, size_t bytes) {
    size_t length = strnlen(text, bytes);
    FUZZ_CHECK(length < bytes);
    FUZZ_CHECK(utf8_valid(text, length) == length);
    for (size_t i = 0; i < length; i++) FUZZ_CHECK((unsigned char)text[i] >= ' ' && text[i] != 0x7f);
}

static void check_view(const local_view_t *view, int ranks) {
    char sentence[SENTENCE_BYTES / 2];
    int speaker = watch_local_speaker(view, ranks);
    FUZZ_CHECK(speaker >= 0 && speaker < ranks); // the one that asks waits or hangs itself
    for (int rank = 0; rank < ranks; rank++) {
        FUZZ_CHECK(view[rank].state <= view[speaker].state);
        FUZZ_CHECK(rank >= speaker || view[rank].state < view[speaker].state);
    }
    watch_local_sentence(view, ranks, "starting MPI", sentence, sizeof(sentence));
    FUZZ_CHECK(sentence[0]);
    check_printable(sentence, sizeof(sentence));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_bytes_t bytes = {data, data + size};
    local_view_t view[MOST_RANKS] = {0};
    int ranks = (int)(fuzz_take(&bytes, 1) % MOST_RANKS) + 1, self = (int)(fuzz_take(&bytes, 1) % (uint64_t)ranks);
    bool waits = fuzz_take(&bytes, 1) & 1;
    view[self].state = waits ? LOCAL_WAITS : LOCAL_HANGS;
    memcpy(view[self].phase, "starting MPI", sizeof("starting MPI"));
    while (bytes.at < bytes.end) {
        // A length of 0 means the right one.
        size_t length = (size_t)fuzz_take(&bytes, 1), left = (size_t)(bytes.end - bytes.at);
        if (!length) length = sizeof(local_message_t);
        if (length > left) length = left;
        uint8_t *exact = malloc(length ? length : 1);
        FUZZ_CHECK(exact);
        if (length) memcpy(exact, bytes.at, length);
        bytes.at += length;
        local_message_t message;
        bool good = local_message_read(exact, length, ranks, self, &message);
        free(exact);
        if (!good) continue;
        FUZZ_CHECK(length == sizeof(message));
        FUZZ_CHECK(message.kind == LOCAL_ASK || message.kind == LOCAL_ANSWER || message.kind == LOCAL_SAID);
        FUZZ_CHECK(message.rank >= 0 && message.rank < ranks && message.rank != self);
        FUZZ_CHECK(message.waits == 0 || message.waits == 1);
        check_printable(message.phase, sizeof(message.phase));
        if (message.kind == LOCAL_SAID) continue;
        view[message.rank].state = message.kind == LOCAL_ASK ? LOCAL_SILENT : message.waits ? LOCAL_WAITS : LOCAL_HANGS;
        memcpy(view[message.rank].phase, message.phase, sizeof(message.phase));
    }
    check_view(view, ranks);
    return 0;
}
