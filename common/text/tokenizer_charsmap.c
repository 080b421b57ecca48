// SentencePiece's compiled normalization: a double array over UTF-8 that leads to replacements.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static status_t base64_read(const char *text, size_t length, buffer_t *out) {
    while (length && text[length - 1] == '=') length--;
    uint32_t bits = 0;
    int count = 0;
    for (size_t i = 0; i < length; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0) FAIL(STATUS_INVALID, "'precompiled_charsmap' is no base64");
        bits = bits << 6 | (uint32_t)digit;
        count += 6;
        if (count < 8) continue;
        count -= 8;
        char byte = (char)(bits >> count & 0xff);
        TRY(buffer_append(out, &byte, 1));
    }
    return STATUS_OK;
}

static uint32_t little_endian(const char *bytes) {
    const uint8_t *b = (const uint8_t *)bytes;
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static status_t charsmap_split(const buffer_t *raw, charsmap_t *out) {
    if (raw->length < 4) FAIL(STATUS_INVALID, "'precompiled_charsmap' is too short");
    size_t bytes = little_endian(raw->data);
    if (bytes % 4 || bytes < 4 || bytes > raw->length - 4)
        FAIL(STATUS_INVALID, "'precompiled_charsmap' claims a table of %zu bytes and has %zu", bytes, raw->length - 4);
    out->units = bytes / 4;
    TRY(ALLOCATE(&out->unit, out->units));
    for (size_t i = 0; i < out->units; i++) out->unit[i] = little_endian(raw->data + 4 + 4 * i);
    out->length = raw->length - 4 - bytes;
    return memory_copy_bytes(raw->data + 4 + bytes, out->length, &out->text);
}

status_t charsmap_read(const char *base64, size_t length, charsmap_t *out) {
    buffer_t raw = {0};
    *out = (charsmap_t){0};
    status_t status = base64_read(base64, length, &raw);
    if (!status) status = charsmap_split(&raw, out);
    free(raw.data);
    return status;
}

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

// The replacement of the shortest entry that `text` starts with; false: there is none.
static bool charsmap_find(const charsmap_t *map, const char *text, size_t length, const char **found, size_t *bytes) {
    size_t place = unit_offset(map->unit[0]);
    for (size_t i = 0; i < length; i++) {
        uint8_t byte = (uint8_t)text[i];
        place ^= byte;
        if (!byte || place >= map->units) return false;
        uint32_t unit = map->unit[place];
        if ((unit & (1u << 31 | 0xffu)) != byte) return false;
        place ^= unit_offset(unit);
        if (place >= map->units) return false;
        if (!(unit >> 8 & 1)) continue;
        size_t at = map->unit[place] & 0x7fffffffu;
        if (at >= map->length) return false;
        const char *end = memchr(map->text + at, 0, map->length - at);
        *found = map->text + at;
        *bytes = end ? (size_t)(end - *found) : map->length - at;
        return utf8_valid(*found, *bytes) == *bytes;
    }
    return false;
}

static status_t apply_grapheme(const charsmap_t *map, const char *text, size_t length, buffer_t *out) {
    const char *found;
    size_t bytes;
    if (length < 6 && charsmap_find(map, text, length, &found, &bytes)) return buffer_append(out, found, bytes);
    for (size_t at = 0; at < length;) {
        size_t step = utf8_next(text + at, length - at, NULL, NULL, NULL);
        if (charsmap_find(map, text + at, step, &found, &bytes))
            TRY(buffer_append(out, found, bytes));
        else
            TRY(buffer_append(out, text + at, step));
        at += step;
    }
    return STATUS_OK;
}

status_t charsmap_apply(const charsmap_t *map, const char *text, size_t length, buffer_t *out) {
    utf8proc_int32_t state = 0;
    uint32_t last = 0, code = 0;
    size_t start = 0, at = 0;
    while (at < length) {
        size_t step = utf8_next(text + at, length - at, &code, NULL, NULL);
        if (at && utf8proc_grapheme_break_stateful((utf8proc_int32_t)last, (utf8proc_int32_t)code, &state)) {
            TRY(apply_grapheme(map, text + start, at - start, out));
            start = at;
        }
        last = code;
        at += step;
    }
    return apply_grapheme(map, text + start, length - start, out);
}
