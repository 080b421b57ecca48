// Tags, spans and normalised answers.
#include "common/text/answer.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

enum { TAG_COUNT = 4, TAG_THINK = 0, TAG_THINK_END, TAG_ANSWER, TAG_ANSWER_END };
// Brackets and dots are taken off this many times: enough for people, and no work for ((((((...
enum { STRIP_LAYERS = 16 };

static const char *const tag_text[TAG_COUNT] = {"<think>", "</think>", "<answer>", "</answer>"};

// The first `tag` in text[from .. length), or NULL.
static const char *find_tag(const char *text, size_t length, size_t from, int tag) {
    if (from > length) return NULL;
    return memmem(text + from, length - from, tag_text[tag], strlen(tag_text[tag]));
}

void answer_segments(const char *text, size_t length, const int32_t *offsets, int count, uint8_t *labels) {
    const char *tag = find_tag(text, length, 0, TAG_THINK_END);
    for (int i = 0; i < count; i++)
        labels[i] = tag && offsets[2 * i + 1] <= tag - text ? SEGMENT_THINK : SEGMENT_ANSWER;
}

// ---- tags ----

// Whether the tag at `at` has the newlines around it that open-r1's reward asks for.
static bool tag_has_newlines(const char *text, size_t length, int tag, size_t at) {
    size_t end = at + strlen(tag_text[tag]);
    bool before = at > 0 && text[at - 1] == '\n', after = end < length && text[end] == '\n';
    return (before || tag == TAG_THINK) && (after || tag == TAG_ANSWER_END);
}

double answer_tag_score(const char *text, size_t length, tag_style_t style) {
    int count[TAG_COUNT] = {0};
    size_t place[TAG_COUNT] = {0};
    for (int tag = 0; tag < TAG_COUNT; tag++) {
        const char *found = find_tag(text, length, 0, tag);
        for (; found && count[tag] < 2; found = find_tag(text, length, (size_t)(found - text) + 1, tag)) {
            if (!count[tag]) place[tag] = (size_t)(found - text);
            count[tag]++;
        }
    }
    double score = 0;
    for (int tag = 0; tag < TAG_COUNT; tag++) {
        bool good = count[tag] == 1;
        for (int later = tag + 1; later < TAG_COUNT; later++) good &= count[later] != 1 || place[later] > place[tag];
        if (good && style == TAG_STRICT_NEWLINE) good = tag_has_newlines(text, length, tag, place[tag]);
        if (good) score += 0.25;
    }
    return score;
}

static bool is_blank(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void trim(const char **start, size_t *span) {
    while (*span && is_blank(**start)) {
        (*start)++;
        (*span)--;
    }
    while (*span && is_blank((*start)[*span - 1])) (*span)--;
}

bool answer_extract(const char *text, size_t length, const char **start, size_t *span) {
    bool found = false;
    const char *open = NULL, *at = text, *end = text + length;
    *start = text;
    *span = 0;
    // One pass: a closing tag ends the nearest opening one, and the last such pair counts.
    while (at && at < end && (at = memchr(at, '<', (size_t)(end - at)))) {
        size_t left = (size_t)(end - at);
        if (left >= 8 && memcmp(at, "<answer>", 8) == 0) {
            open = at + 8;
        } else if (open && left >= 9 && memcmp(at, "</answer>", 9) == 0) {
            *start = open;
            *span = (size_t)(at - open);
            open = NULL;
            found = true;
        }
        at++;
    }
    if (found) trim(start, span);
    return found;
}

bool answer_think(const char *text, size_t length, const char **start, size_t *span) {
    const char *open = find_tag(text, length, 0, TAG_THINK);
    *start = text;
    *span = 0;
    if (!open) return false;
    size_t from = (size_t)(open - text) + strlen(tag_text[TAG_THINK]);
    const char *close = find_tag(text, length, from, TAG_THINK_END);
    if (!close) return false;
    *start = text + from;
    *span = (size_t)(close - *start);
    return true;
}

// ---- normalisation ----

static bool strip_prefix(const char **start, size_t *span, const char *prefix) {
    size_t length = strlen(prefix);
    if (*span < length || strncasecmp(*start, prefix, length) != 0) return false;
    *start += length;
    *span -= length;
    return true;
}

// Whether the bracket that opens the text closes at its end: "(a)" but not "(a) or (b)".
static bool is_bracketed(const char *start, size_t span) {
    size_t depth = 0;
    if (span < 2 || start[0] != '(' || start[span - 1] != ')') return false;
    for (size_t i = 0; i < span; i++) {
        if (start[i] == '(') depth++;
        if (start[i] == ')' && --depth == 0) return i == span - 1;
    }
    return false;
}

static void strip(const char **start, size_t *span) {
    do trim(start, span);
    while (strip_prefix(start, span, "final answer:") || strip_prefix(start, span, "answer:"));
    size_t before = *span + 1;
    for (int layer = 0; layer < STRIP_LAYERS && *span < before; layer++) {
        before = *span;
        trim(start, span);
        if (is_bracketed(*start, *span)) {
            (*start)++;
            *span -= 2;
        }
        while (*span && (*start)[*span - 1] == '.') (*span)--;
    }
}

// Lower case, every run of blanks one blank. A NUL becomes U+FFFD: it must not end the text early. `out` has 3 * span +
// 1 bytes (no character's lower case needs more than that).
static void fold(const char *start, size_t span, char *out) {
    size_t used = 0;
    bool blank = false;
    for (size_t at = 0; at < span;) {
        uint32_t code = 0;
        size_t step = utf8_next(start + at, span - at, &code, NULL, NULL);
        at += step ? step : 1;
        bool space =
            step && ((code >= 9 && code <= 13) || utf8proc_category((utf8proc_int32_t)code) == UTF8PROC_CATEGORY_ZS);
        if (space) {
            blank = true;
            continue;
        }
        if (blank && used) out[used++] = ' ';
        blank = false;
        utf8proc_int32_t lower = step && code ? utf8proc_tolower((utf8proc_int32_t)code) : 0xfffd;
        used += (size_t)utf8proc_encode_char(lower, (utf8proc_uint8_t *)out + used);
    }
    out[used] = 0;
}

// A decimal number as its significant digits and the power of ten of the last one.
typedef struct decimal {
    bool negative;
    const char *text; // the digits with points and commas among them
    size_t length;
    long exponent;
} decimal_t;

// Thousands are set off by commas in groups of three or not at all.
static const char *parse_whole(const char *text, bool *good) {
    const char *at = text;
    while (*at >= '0' && *at <= '9') at++;
    size_t first = (size_t)(at - text);
    while (first >= 1 && first <= 3 && at[0] == ',' && at[1] >= '0' && at[1] <= '9' && at[2] >= '0' && at[2] <= '9' &&
           at[3] >= '0' && at[3] <= '9' && !(at[4] >= '0' && at[4] <= '9'))
        at += 4;
    *good = *at != ',';
    return at;
}

static bool parse_decimal(const char *text, decimal_t *out) {
    const char *at = text;
    bool good;
    out->negative = *at == '-';
    if (*at == '-' || *at == '+') at++;
    out->text = at;
    at = parse_whole(at, &good);
    if (!good) return false;
    size_t digits = (size_t)(at - out->text), fraction = 0;
    if (*at == '.') {
        at++;
        while (*at >= '0' && *at <= '9') at++, fraction++;
    }
    if (!digits && !fraction) return false;
    out->length = (size_t)(at - out->text);
    out->exponent = -(long)fraction;
    if (*at == 'e') {
        at++;
        bool minus = *at == '-';
        if (*at == '-' || *at == '+') at++;
        if (!*at) return false;
        long value = 0;
        for (; *at >= '0' && *at <= '9'; at++) value = value > 100000000 ? value : 10 * value + (*at - '0');
        out->exponent += minus ? -value : value;
    }
    return *at == 0;
}

// Writes the one spelling that all numbers of this value share. `out` holds strlen(text) + 64 bytes.
static void write_decimal(const decimal_t *number, char *out) {
    size_t digits = 0, used = 0;
    char *digit = out + 1; // room for a sign
    long exponent = number->exponent;
    for (size_t i = 0; i < number->length; i++) {
        char c = number->text[i];
        if (c < '0' || c > '9' || (!digits && c == '0')) continue;
        digit[digits++] = c;
    }
    while (digits && digit[digits - 1] == '0') {
        digits--;
        exponent++;
    }
    if (!digits) {
        memcpy(out, "0", 2);
        return;
    }
    if (number->negative) {
        out[used++] = '-';
    } else {
        memmove(out, digit, digits);
        digit = out;
    }
    used += digits;
    if (exponent >= 0 && exponent <= 24) {
        memset(digit + digits, '0', (size_t)exponent);
        out[used + (size_t)exponent] = 0;
    } else if (exponent < 0 && exponent >= -24) {
        size_t places = (size_t)-exponent, whole = digits > places ? digits - places : 0;
        size_t zeros = digits > places ? 0 : places - digits;
        if (whole) {
            memmove(digit + whole + 1, digit + whole, places);
            digit[whole] = '.';
            out[used + 1] = 0;
        } else {
            memmove(digit + 2 + zeros, digit, digits);
            memset(digit, '0', 2 + zeros);
            digit[1] = '.';
            out[used + 2 + zeros] = 0;
        }
    } else {
        snprintf(out + used, 32, "e%ld", exponent);
    }
}

// Strips, folds and turns numbers into their value; malloc'd.
static status_t normalise_plain(const char *text, size_t length, char **out) {
    const char *start = text;
    size_t span = length;
    strip(&start, &span);
    TRY(memory_allocate(3 * span + 65, 1, (void **)out));
    fold(start, span, *out);
    decimal_t number;
    if (!parse_decimal(*out, &number)) return STATUS_OK;
    char *value;
    status_t status = memory_allocate(strlen(*out) + 65, 1, (void **)&value);
    if (status) {
        free(*out);
        *out = NULL;
        return status;
    }
    write_decimal(&number, value);
    free(*out);
    *out = value;
    return STATUS_OK;
}

// The option a folded answer names by its letter, alone ("b", "b)", "b:") or with its text ("b. dog"); -1: none.
static int option_by_letter(const char *text, const char *const *option, int count) {
    int index = text[0] >= 'a' && text[0] <= 'z' ? text[0] - 'a' : -1;
    if (index < 0 || index >= count) return -1;
    if (!text[1]) return index;
    if (text[1] != '.' && text[1] != ')' && text[1] != ':') return -1;
    const char *rest = text + 2;
    while (*rest == ' ') rest++;
    return !*rest || strcmp(rest, option[index]) == 0 ? index : -1;
}

// The only option whose text is the answer; -1: none, or several.
static int option_by_text(const char *text, const char *const *option, int count) {
    int found = -1;
    for (int i = 0; i < count; i++) {
        if (strcmp(text, option[i]) != 0) continue;
        if (found >= 0) return -1;
        found = i;
    }
    return found;
}

static status_t normalise_option(char **answer, const char *const *options, int count) {
    char **folded;
    TRY(ALLOCATE(&folded, count));
    status_t status = STATUS_OK;
    for (int i = 0; i < count && !status; i++) status = normalise_plain(options[i], strlen(options[i]), &folded[i]);
    if (!status) {
        int index = option_by_letter(*answer, (const char *const *)folded, count);
        if (index < 0) index = option_by_text(*answer, (const char *const *)folded, count);
        // The buffer has 65 bytes at least. Letters are capital, so that no text without options looks like one.
        if (index >= 0 && index < 26) snprintf(*answer, 32, "%c", 'A' + index);
        if (index >= 26) snprintf(*answer, 32, "Option %d", index + 1);
    }
    for (int i = 0; i < count; i++) free(folded[i]);
    free(folded);
    return status;
}

status_t answer_normalise(const char *text, size_t length, const char *const *options, int option_count, char **out) {
    *out = NULL;
    TRY(normalise_plain(text, length, out));
    if (option_count <= 0) return STATUS_OK;
    status_t status = normalise_option(out, options, option_count);
    if (status) {
        free(*out);
        *out = NULL;
    }
    return status;
}

status_t answer_equal(const char *text, size_t length, const char *expected, const char *const *options,
                      int option_count, bool *out) {
    char *left, *right;
    *out = false;
    TRY(answer_normalise(text, length, options, option_count, &left));
    status_t status = answer_normalise(expected, strlen(expected), options, option_count, &right);
    if (!status) *out = strcmp(left, right) == 0;
    free(left);
    if (!status) free(right);
    return status;
}
