#include "common/text/utf8.h"

#include <string.h>

// The range of the second byte depends on the first (Unicode table 3-7); all others are 80..BF.
static size_t utf8_lead(uint8_t lead, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) return 2;
    if (lead >= 0xe0 && lead <= 0xef) {
        if (lead == 0xe0) *low = 0xa0;
        if (lead == 0xed) *high = 0x9f;
        return 3;
    }
    if (lead >= 0xf0 && lead <= 0xf4) {
        if (lead == 0xf0) *low = 0x90;
        if (lead == 0xf4) *high = 0x8f;
        return 4;
    }
    return 0;
}

size_t utf8_next(const char *text, size_t left, uint32_t *code, size_t *bad, bool *cut) {
    const uint8_t *byte = (const uint8_t *)text;
    if (bad) *bad = 1;
    if (cut) *cut = false;
    if (byte[0] < 0x80) {
        if (code) *code = byte[0];
        return 1;
    }
    uint8_t low, high;
    size_t length = utf8_lead(byte[0], &low, &high);
    if (!length) return 0;
    uint32_t value = byte[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if (bad) *bad = i;
        if (i == left) {
            if (cut) *cut = true;
            return 0;
        }
        if (byte[i] < low || byte[i] > high) return 0;
        value = value << 6 | (byte[i] & 0x3f);
        low = 0x80;
        high = 0xbf;
    }
    if (code) *code = value;
    return length;
}

size_t utf8_valid(const char *text, size_t length) {
    size_t at = 0;
    while (at < length) {
        size_t step = utf8_next(text + at, length - at, NULL, NULL, NULL);
        if (!step) return at;
        at += step;
    }
    return length;
}

static bool is_control(uint32_t code) {
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x200e && code <= 0x200f) ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

void utf8_printable(const char *text, size_t length, char *out, size_t bytes) {
    size_t used = 0;
    for (size_t at = 0; at < length;) {
        uint32_t code = 0;
        size_t bad, step = utf8_next(text + at, length - at, &code, &bad, NULL);
        bool shown = step > 0 && !is_control(code), blank = step == 1 && code >= '\t' && code <= '\r';
        if (used + (shown ? step : 1) >= bytes) break;
        if (shown)
            memcpy(out + used, text + at, step);
        else
            out[used] = blank ? ' ' : '?';
        used += shown ? step : 1;
        at += step ? step : bad;
    }
    out[used] = 0;
}
