#include "common/comm/watch_message.h"

#include "common/text/utf8.h"
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { LARGEST_CODE = 255 };

typedef struct text {
    const char *at, *end;
} text_t;

// A frame's text without its 0; false when it does not end where its first 0 is.
static bool frame_text(const void *bytes, size_t size, text_t *out) {
    if (!size || size > FRAME_BYTES || memchr(bytes, 0, size) != (const char *)bytes + size - 1) return false;
    *out = (text_t){.at = bytes, .end = (const char *)bytes + size - 1};
    return true;
}

// A number of 0..most, which a space (taken, too) or the end of the text follows.
static bool take_number(text_t *text, uint64_t most, uint64_t *out) {
    const char *begin = text->at;
    uint64_t value = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
        uint64_t digit = (uint64_t)(*text->at - '0');
        if (digit > most || value > (most - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    if (text->at == begin) return false;
    return text->at == text->end || *text->at++ == ' ';
}

static bool take_flag(text_t *text, bool *out) {
    uint64_t value;
    if (!take_number(text, 1, &value)) return false;
    *out = value != 0;
    return true;
}

static bool take_code(text_t *text, int *out) {
    uint64_t value;
    if (!take_number(text, LARGEST_CODE, &value)) return false;
    *out = (int)value;
    return true;
}

static void take_rest(text_t *text, char *out, size_t bytes) {
    utf8_printable(text->at, (size_t)(text->end - text->at), out, bytes);
    text->at = text->end;
}

static bool read_beat(text_t *text, watch_message_t *out) {
    if (!take_flag(text, &out->waiting) || !take_number(text, UINT64_MAX, &out->collectives)) return false;
    take_rest(text, out->phase, sizeof(out->phase));
    return true;
}

static bool read_failed(text_t *text, watch_message_t *out) {
    uint64_t weight;
    if (!take_number(text, FAILURE_CAUSE, &weight) || weight == FAILURE_NONE) return false;
    out->weight = (failure_weight_t)weight;
    if (!take_code(text, &out->code) || !take_flag(text, &out->overdue)) return false;
    take_rest(text, out->sentence, sizeof(out->sentence));
    return true;
}

bool watch_message_read(const void *bytes, size_t size, watch_message_t *out) {
    text_t text;
    memset(out, 0, sizeof(*out));
    if (!frame_text(bytes, size, &text) || text.at == text.end) return false;
    char kind = *text.at++;
    if (text.at < text.end && *text.at++ != ' ') return false;
    bool good = false;
    switch (kind) {
    case 'B':
        out->kind = WATCH_BEAT;
        good = read_beat(&text, out);
        break;
    case 'F':
        out->kind = WATCH_FAILED;
        good = read_failed(&text, out);
        break;
    case 'E':
        out->kind = WATCH_END;
        good = take_code(&text, &out->code);
        break;
    case 'S':
        out->kind = WATCH_STOP;
        good = size == sizeof("S");
        break;
    case 'D':
        out->kind = WATCH_DONE;
        good = take_flag(&text, &out->lost);
        break;
    default:
        break;
    }
    return good && text.at == text.end;
}

size_t watch_message_write(const watch_message_t *message, char out[FRAME_BYTES]) {
    int length = 0;
    switch (message->kind) {
    case WATCH_BEAT:
        length =
            snprintf(out, FRAME_BYTES, "B %d %" PRIu64 " %s", message->waiting, message->collectives, message->phase);
        break;
    case WATCH_FAILED:
        length = snprintf(out, FRAME_BYTES, "F %d %d %d %s", (int)message->weight, message->code, message->overdue,
                          message->sentence);
        break;
    case WATCH_END:
        length = snprintf(out, FRAME_BYTES, "E %d", message->code);
        break;
    case WATCH_STOP:
        length = snprintf(out, FRAME_BYTES, "S");
        break;
    case WATCH_DONE:
        length = snprintf(out, FRAME_BYTES, "D %d", message->lost);
        break;
    }
    return (size_t)length + 1;
}

bool watch_hello_read(const void *bytes, size_t size, int ranks, int host, watch_hello_t *out) {
    text_t text;
    uint64_t rank;
    memset(out, 0, sizeof(*out));
    if (ranks < 1 || !frame_text(bytes, size, &text) || !take_number(&text, (uint64_t)ranks - 1, &rank)) return false;
    out->rank = (int)rank;
    if (out->rank == host || !take_flag(&text, &out->essential)) return false;
    size_t length = (size_t)(text.end - text.at);
    if (!length || length >= sizeof(out->role)) return false;
    for (size_t i = 0; i < length; i++)
        if (text.at[i] < '!' || text.at[i] > '~') return false;
    memcpy(out->role, text.at, length);
    return true;
}

size_t watch_hello_write(const watch_hello_t *hello, char out[FRAME_BYTES]) {
    return (size_t)snprintf(out, FRAME_BYTES, "%d %d %s", hello->rank, hello->essential, hello->role) + 1;
}

bool watch_lost_read(const char *bytes, size_t size, int *rank, char sentence[SENTENCE_BYTES]) {
    size_t length = 0;
    uint64_t number;
    while (length < size && bytes[length] && bytes[length] != '\n') length++;
    text_t text = {.at = bytes, .end = bytes + length};
    if (!take_number(&text, INT_MAX, &number)) return false;
    *rank = (int)number;
    take_rest(&text, sentence, SENTENCE_BYTES);
    return true;
}

bool local_message_read(const void *bytes, size_t size, int ranks, int self, local_message_t *out) {
    local_message_t message;
    if (size != sizeof(message)) return false;
    memcpy(&message, bytes, sizeof(message));
    bool known = message.kind == LOCAL_ASK || message.kind == LOCAL_ANSWER || message.kind == LOCAL_SAID;
    if (!known || message.rank < 0 || message.rank >= ranks || message.rank == self) return false;
    *out = (local_message_t){.kind = message.kind, .rank = message.rank, .waits = message.waits != 0};
    utf8_printable(message.phase, strnlen(message.phase, sizeof(message.phase)), out->phase, sizeof(out->phase));
    return true;
}
