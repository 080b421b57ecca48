// Strings as Python has them, marks kept.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <string.h>
#include <utf8proc.h>

bool code_is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

static bool is_line_break(uint32_t code) {
    return (code >= 10 && code <= 13) || (code >= 28 && code <= 30) || code == 0x85 || code == 0x2028 || code == 0x2029;
}

static size_t character(const text_t *text, size_t at, uint32_t *code) {
    return utf8_next(text->bytes + at, text->length - at, code, NULL, NULL);
}

// Where the character that ends at `at` starts.
static size_t before(const text_t *text, size_t at) {
    do at--;
    while (at && (text->bytes[at] & 0xc0) == 0x80);
    return at;
}

static status_t part(run_t *run, const text_t *text, size_t start, size_t end, value_t *out) {
    return value_text(run, text->bytes + start, text->given + start, end - start, out);
}

size_t text_find(const text_t *text, const text_t *wanted, size_t from) {
    if (from > text->length || wanted->length > text->length - from) return SIZE_MAX;
    if (!wanted->length) return from;
    const char *found = memmem(text->bytes + from, text->length - from, wanted->bytes, wanted->length);
    return found ? (size_t)(found - text->bytes) : SIZE_MAX;
}

size_t text_find_last(const text_t *text, const text_t *wanted, size_t until) {
    if (wanted->length > until) return SIZE_MAX;
    for (size_t at = until - wanted->length + 1; at-- > 0;)
        if (memcmp(text->bytes + at, wanted->bytes, wanted->length) == 0) return at;
    return SIZE_MAX;
}

static bool strips(const text_t *set, const text_t *text, size_t at, size_t step, uint32_t code) {
    if (!set) return code_is_space(code);
    text_t one = {.bytes = text->bytes + at, .length = step};
    return text_find(set, &one, 0) != SIZE_MAX;
}

status_t string_strip(run_t *run, const text_t *text, value_t characters, bool left, bool right, value_t *out) {
    size_t start = 0, end = text->length;
    const text_t *set = NULL;
    uint32_t code = 0;
    if (characters.type != VALUE_MISSING && characters.type != VALUE_NONE)
        TRY(argument_text(run, characters, "what to strip", &set));
    TRY(run_pay(run, text->length / 64 * (set ? set->length / 16 + 1 : 1)));
    while (left && start < end) {
        size_t step = character(text, start, &code);
        if (!strips(set, text, start, step, code)) break;
        start += step;
    }
    while (right && end > start) {
        size_t at = before(text, end), step = character(text, at, &code);
        if (!strips(set, text, at, step, code)) break;
        end = at;
    }
    return part(run, text, start, end, out);
}

// A list that grows.
typedef struct pieces {
    value_t *item;
    size_t count, capacity;
} pieces_t;

static status_t add_piece(run_t *run, pieces_t *pieces, const text_t *text, size_t start, size_t end) {
    if (pieces->count == pieces->capacity) {
        value_t *grown;
        size_t capacity = pieces->capacity ? 2 * pieces->capacity : 8;
        TRY(HEAP_NEW(&run->heap, &grown, capacity));
        if (pieces->count) memcpy(grown, pieces->item, pieces->count * sizeof(*grown));
        pieces->item = grown;
        pieces->capacity = capacity;
    }
    TRY(run_pay(run, 1));
    return part(run, text, start, end, &pieces->item[pieces->count++]);
}

static status_t split_spaces(run_t *run, const text_t *text, int64_t most, pieces_t *pieces) {
    uint32_t code = 0;
    for (size_t at = 0; at < text->length;) {
        size_t step = character(text, at, &code);
        if (code_is_space(code)) {
            at += step;
            continue;
        }
        size_t end = at;
        // What trails stays in the rest.
        if (most >= 0 && (int64_t)pieces->count == most) return add_piece(run, pieces, text, at, text->length);
        while (end < text->length) {
            step = character(text, end, &code);
            if (code_is_space(code)) break;
            end += step;
        }
        TRY(add_piece(run, pieces, text, at, end));
        at = end;
    }
    return STATUS_OK;
}

static status_t split_spaces_from_right(run_t *run, const text_t *text, int64_t most, pieces_t *pieces) {
    uint32_t code = 0;
    for (size_t end = text->length; end > 0;) {
        size_t at = before(text, end);
        character(text, at, &code);
        if (code_is_space(code)) {
            end = at;
            continue;
        }
        if (most >= 0 && (int64_t)pieces->count == most) return add_piece(run, pieces, text, 0, end);
        for (at = end; at > 0; at = before(text, at)) {
            character(text, before(text, at), &code);
            if (code_is_space(code)) break;
        }
        TRY(add_piece(run, pieces, text, at, end));
        end = at;
    }
    return STATUS_OK;
}

static void reverse(pieces_t *pieces) {
    for (size_t i = 0; i < pieces->count / 2; i++) {
        value_t swap = pieces->item[i];
        pieces->item[i] = pieces->item[pieces->count - 1 - i];
        pieces->item[pieces->count - 1 - i] = swap;
    }
}

status_t string_split(run_t *run, const text_t *text, value_t separator, int64_t most, bool from_right, value_t *out) {
    pieces_t pieces = {0};
    const text_t *by = NULL;
    TRY(run_pay(run, text->length / 16));
    if (separator.type != VALUE_MISSING && separator.type != VALUE_NONE)
        TRY(argument_text(run, separator, "a separator", &by));
    if (by && !by->length) RUN_FAIL(run, "a separator must not be empty");
    if (!by) {
        TRY(from_right ? split_spaces_from_right(run, text, most, &pieces) : split_spaces(run, text, most, &pieces));
    } else if (from_right) {
        size_t end = text->length, at;
        while ((most < 0 || (int64_t)pieces.count < most) && (at = text_find_last(text, by, end)) != SIZE_MAX) {
            TRY(add_piece(run, &pieces, text, at + by->length, end));
            end = at;
        }
        TRY(add_piece(run, &pieces, text, 0, end));
    } else {
        size_t start = 0, at;
        while ((most < 0 || (int64_t)pieces.count < most) && (at = text_find(text, by, start)) != SIZE_MAX) {
            TRY(add_piece(run, &pieces, text, start, at));
            start = at + by->length;
        }
        TRY(add_piece(run, &pieces, text, start, text->length));
    }
    if (from_right) reverse(&pieces);
    return value_list(run, VALUE_LIST, pieces.item, pieces.count, out);
}

status_t string_lines(run_t *run, const text_t *text, bool keep, value_t *out) {
    pieces_t pieces = {0};
    uint32_t code = 0;
    for (size_t start = 0; start < text->length;) {
        size_t end = start, step = 0;
        while (end < text->length) {
            step = character(text, end, &code);
            if (is_line_break(code)) break;
            end += step;
        }
        size_t next = end;
        if (end < text->length) next += step;
        if (end < text->length && code == '\r' && next < text->length && text->bytes[next] == '\n') next++;
        TRY(add_piece(run, &pieces, text, start, keep ? next : end));
        start = next;
    }
    return value_list(run, VALUE_LIST, pieces.item, pieces.count, out);
}

status_t string_replace(run_t *run, const text_t *text, const text_t *old, const text_t *new, int64_t most,
                        value_t *out) {
    builder_t builder = {0};
    size_t start = 0;
    TRY(run_pay(run, text->length / 16));
    for (int64_t done = 0; most < 0 || done < most; done++) {
        size_t at = text_find(text, old, start);
        if (at == SIZE_MAX) break;
        size_t rest = at + old->length;
        TRY(run_pay(run, 1));
        TRY(builder_add(run, &builder, text->bytes + start, text->given + start, at - start));
        TRY(builder_text(run, &builder, new));
        if (!old->length) { // an empty string is between all characters
            if (at == text->length) {
                start = at;
                break;
            }
            rest = at + character(text, at, NULL);
            TRY(builder_add(run, &builder, text->bytes + at, text->given + at, rest - at));
        }
        start = rest;
    }
    TRY(builder_add(run, &builder, text->bytes + start, text->given + start, text->length - start));
    return builder_finish(run, &builder, out);
}

// ---- letters ----

static bool is_cased(uint32_t code) {
    utf8proc_category_t kind = utf8proc_category((utf8proc_int32_t)code);
    return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT;
}

static bool is_letter(uint32_t code) {
    utf8proc_category_t kind = utf8proc_category((utf8proc_int32_t)code);
    return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

static bool is_digit(uint32_t code) {
    return utf8proc_category((utf8proc_int32_t)code) == UTF8PROC_CATEGORY_ND;
}

bool string_is(const text_t *text, const char *method) {
    bool all = text->length, cased = false, word = false;
    uint32_t code = 0;
    for (size_t at = 0; at < text->length && all;) {
        at += character(text, at, &code);
        int32_t c = (int32_t)code;
        utf8proc_category_t kind = utf8proc_category(c);
        bool upper = kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LT, lower = kind == UTF8PROC_CATEGORY_LL;
        cased |= upper || lower;
        if (strcmp(method, "isdigit") == 0 || strcmp(method, "isdecimal") == 0 || strcmp(method, "isnumeric") == 0)
            all = is_digit(code);
        else if (strcmp(method, "isalpha") == 0)
            all = is_letter(code);
        else if (strcmp(method, "isalnum") == 0)
            all = is_letter(code) || is_digit(code);
        else if (strcmp(method, "isspace") == 0)
            all = code_is_space(code);
        else if (strcmp(method, "islower") == 0)
            all = !upper;
        else if (strcmp(method, "isupper") == 0)
            all = !lower;
        else // istitle
            all = upper ? !word : lower ? word : true;
        word = is_cased(code);
    }
    bool needs_case =
        strcmp(method, "islower") == 0 || strcmp(method, "isupper") == 0 || strcmp(method, "istitle") == 0;
    return all && (cased || !needs_case);
}

// Where a word begins for the filter `title`.
static bool parts_words(uint32_t code) {
    return code_is_space(code) || (code < 128 && code && strchr("-({[<", (int)code));
}

// Which case a character takes: 'u', 't' or 'l'.
static char wanted_case(uint32_t code, letter_case_t how, bool first, bool after_letter) {
    switch (how) {
    case CASE_UPPER:
        return 'u';
    case CASE_LOWER:
        return 'l';
    case CASE_CAPITALIZE:
        return first ? 't' : 'l';
    case CASE_TITLE:
        return after_letter ? 'l' : 't';
    case CASE_WORDS:
        return first ? 'u' : 'l';
    default: // swap
        return utf8proc_category((utf8proc_int32_t)code) == UTF8PROC_CATEGORY_LU ? 'l' : 'u';
    }
}

// Whether what is cased stands before (or after) a place, with what has no case of its own between.
static bool cased_neighbour(const text_t *text, size_t at, bool after) {
    uint32_t code = 0;
    while (after ? at < text->length : at > 0) {
        size_t here = after ? at : before(text, at), step = character(text, here, &code);
        utf8proc_category_t kind = utf8proc_category((utf8proc_int32_t)code);
        bool ignored = kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_ME || kind == UTF8PROC_CATEGORY_CF ||
                       kind == UTF8PROC_CATEGORY_LM || kind == UTF8PROC_CATEGORY_SK || code == '\'' || code == '.' ||
                       code == ':' || code == 0xb7 || code == 0x2019;
        if (!ignored) return is_cased(code);
        at = after ? at + step : here;
    }
    return false;
}

static int lower_case(const text_t *text, size_t at, size_t step, uint32_t code, uint32_t *out) {
    if (code == 0x130) { // a capital I with a dot keeps it
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    bool last_sigma = code == 0x3a3 && cased_neighbour(text, at, false) && !cased_neighbour(text, at + step, true);
    out[0] = last_sigma ? 0x3c2 : (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    return 1;
}

static int change_case(char wanted, uint32_t code, uint32_t *out) {
    const uint32_t *special = code_special_case(code, wanted == 't');
    if (!special) {
        out[0] = (uint32_t)(wanted == 't' ? utf8proc_totitle((utf8proc_int32_t)code)
                                          : utf8proc_toupper((utf8proc_int32_t)code));
        return 1;
    }
    int count = 0;
    for (; count < 3 && special[count]; count++) out[count] = special[count];
    return count;
}

status_t string_case(run_t *run, const text_t *text, letter_case_t how, value_t *out) {
    builder_t builder = {0};
    bool first = true, after_letter = false;
    uint32_t code = 0, made[3];
    TRY(run_pay(run, text->length / 16));
    for (size_t at = 0; at < text->length;) {
        size_t step = character(text, at, &code);
        char wanted = wanted_case(code, how, first, after_letter), given[4];
        int count = wanted == 'l' ? lower_case(text, at, step, code, made) : change_case(wanted, code, made);
        memset(given, text->given[at], sizeof(given));
        for (int i = 0; i < count; i++) {
            utf8proc_uint8_t bytes[4];
            utf8proc_ssize_t length = utf8proc_encode_char((utf8proc_int32_t)made[i], bytes);
            TRY(builder_add(run, &builder, (const char *)bytes, given, (size_t)length));
        }
        first = how == CASE_WORDS && parts_words(code);
        after_letter = is_cased(code);
        at += step;
    }
    return builder_finish(run, &builder, out);
}
