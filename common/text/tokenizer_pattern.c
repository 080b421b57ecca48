// Regular expressions of tokenizer.json are Oniguruma's; here PCRE2 runs them. What the two read differently is
// translated where the meaning is plain, and refused by name where it is not.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { PATTERN_LIMIT = 64 << 10 };

// What \w is: alphabetic characters, marks, decimal digits and connectors.
#define WORD_CLASS                                                                                                     \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{"    \
    "1F189}"

typedef struct translator {
    const char *pattern; // for messages
    const char *at, *end;
    buffer_t out;
    bool in_class;
} translator_t;

static status_t add(translator_t *t, const char *text) {
    return buffer_append(&t->out, text, strlen(text));
}

#define REFUSE(t, what) FAIL(STATUS_INVALID, "the pattern '%.200s' uses %s, which is not supported", (t)->pattern, what)

static status_t translate_unicode(translator_t *t, int digits) {
    char text[16] = "\\x{";
    for (int i = 0; i < digits; i++) {
        if (t->at + 2 + i >= t->end || !isxdigit((unsigned char)t->at[2 + i])) REFUSE(t, "a broken \\u or \\x");
        text[3 + i] = t->at[2 + i];
    }
    text[3 + digits] = '}';
    t->at += 2 + digits;
    return add(t, text);
}

static status_t translate_escape(translator_t *t) {
    char c = t->at[1], name[3] = {'\\', c, 0};
    if (c == 'u') return translate_unicode(t, 4);
    if (c == 'x' && t->at + 2 < t->end && t->at[2] != '{') {
        if (t->at + 2 < t->end && t->at[2] > '7') REFUSE(t, "'\\x' for a byte above 0x7f");
        return translate_unicode(t, 2);
    }
    const char *piece = c == 's'   ? "\\p{White_Space}"
                        : c == 'S' ? "\\P{White_Space}"
                        : c == 'w' ? (t->in_class ? WORD_CLASS : "[" WORD_CLASS "]")
                        : c == 'h' ? (t->in_class ? "0-9a-fA-F" : "[0-9a-fA-F]")
                                   : NULL;
    if (!t->in_class && c == 'W') piece = "[^" WORD_CLASS "]";
    if (!t->in_class && c == 'H') piece = "[^0-9a-fA-F]";
    if (!t->in_class && c == 'b')
        piece = "(?:(?<=[" WORD_CLASS "])(?![" WORD_CLASS "])|(?<![" WORD_CLASS "])(?=[" WORD_CLASS "]))";
    if (!t->in_class && c == 'B')
        piece = "(?:(?<=[" WORD_CLASS "])(?=[" WORD_CLASS "])|(?<![" WORD_CLASS "])(?![" WORD_CLASS "]))";
    if (!piece && strchr("wWbBhHRXKkgGCQENOyYcM", c)) {
        char what[16];
        snprintf(what, sizeof(what), "'%s'", name);
        REFUSE(t, what);
    }
    t->at += 2;
    return add(t, piece ? piece : name);
}

// "(?...": only kinds that both engines read alike.
static status_t translate_group(translator_t *t) {
    const char *c = t->at + 2;
    bool same = c < t->end && strchr(":=!>#", *c);
    bool behind = c + 1 < t->end && *c == '<' && (c[1] == '=' || c[1] == '!');
    bool caseless = c + 1 < t->end && ((c[0] == 'i' && (c[1] == ':' || c[1] == ')')) ||
                                       (c + 2 < t->end && c[0] == '-' && c[1] == 'i' && (c[2] == ':' || c[2] == ')')));
    if (!same && !behind && !caseless) REFUSE(t, "a group of the kind '(?' with other options than 'i', or a name");
    t->at += 2;
    return add(t, "(?");
}

static status_t translate_class_character(translator_t *t) {
    if (*t->at == '[') REFUSE(t, "a class within a class");
    if (*t->at == '&' && t->at + 1 < t->end && t->at[1] == '&') REFUSE(t, "'&&' in a class");
    t->in_class = *t->at != ']';
    return buffer_append(&t->out, t->at++, 1);
}

static status_t translate_class_start(translator_t *t) {
    t->in_class = true;
    TRY(buffer_append(&t->out, t->at++, 1));
    if (t->at < t->end && *t->at == '^') TRY(buffer_append(&t->out, t->at++, 1));
    if (t->at < t->end && *t->at == ']') REFUSE(t, "']' at the start of a class");
    return STATUS_OK;
}

// Behind {n,m} a '+' makes the repetition greedy once more there, and possessive here; {,m} is literal here.
static status_t translate_brace(translator_t *t) {
    const char *c = t->at + 1;
    if (c < t->end && *c == ',') REFUSE(t, "'{,'");
    while (c < t->end && (isdigit((unsigned char)*c) || *c == ',')) c++;
    if (c + 1 < t->end && c > t->at + 1 && *c == '}' && c[1] == '+') REFUSE(t, "'}+'");
    return buffer_append(&t->out, t->at++, 1);
}

static status_t translate(translator_t *t) {
    while (t->at < t->end) {
        if (t->out.length > PATTERN_LIMIT) FAIL(STATUS_INVALID, "a pattern is too long");
        if (*t->at == '\\' && t->at + 1 < t->end)
            TRY(translate_escape(t));
        else if (t->in_class)
            TRY(translate_class_character(t));
        else if (*t->at == '[')
            TRY(translate_class_start(t));
        else if (*t->at == '{')
            TRY(translate_brace(t));
        else if (*t->at == '(' && t->at + 1 < t->end && (t->at[1] == '*'))
            REFUSE(t, "'(*'");
        else if (*t->at == '(' && t->at + 1 < t->end && t->at[1] == '?')
            TRY(translate_group(t));
        else
            TRY(buffer_append(&t->out, t->at++, 1));
    }
    return STATUS_OK;
}

status_t pattern_compile(const char *regex, size_t length, pattern_t *out) {
    translator_t t = {.pattern = regex, .at = regex, .end = regex + length};
    *out = (pattern_t){0};
    if (length > PATTERN_LIMIT) FAIL(STATUS_INVALID, "a pattern is too long");
    status_t status = translate(&t);
    if (!status) status = buffer_append(&t.out, "", 0);
    if (!status) {
        int code = 0;
        PCRE2_SIZE offset = 0;
        pcre2_compile_context *context = pcre2_compile_context_create(NULL);
        if (context) pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        out->regex = context ? pcre2_compile((PCRE2_SPTR)t.out.data, t.out.length,
                                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &offset, context)
                             : NULL;
        pcre2_compile_context_free(context);
        if (!out->regex) {
            PCRE2_UCHAR why[128] = "";
            pcre2_get_error_message(code, why, sizeof(why));
            status = STATUS_NEW(STATUS_INVALID, "the pattern '%.200s' is not understood: %s", regex, (char *)why);
        }
    }
    free(t.out.data);
    // Where there is no JIT, matching is slower and the same.
    if (!status) pcre2_jit_compile(out->regex, PCRE2_JIT_COMPLETE);
    return status;
}

status_t pattern_read(const json_t *value, pattern_t *out) {
    const json_t *regex = json_object_get(value, "Regex"), *literal = json_object_get(value, "String");
    *out = (pattern_t){0};
    if (json_is_string(regex)) return pattern_compile(json_string_value(regex), json_string_length(regex), out);
    if (json_is_string(value)) literal = value;
    if (!json_is_string(literal) || !json_string_length(literal))
        FAIL(STATUS_INVALID, "a step of the tokenizer has no pattern");
    out->literal_length = json_string_length(literal);
    return memory_copy_bytes(json_string_value(literal), out->literal_length, &out->literal);
}

void pattern_free(pattern_t *pattern) {
    if (pattern->regex) pcre2_code_free(pattern->regex);
    free(pattern->literal);
    *pattern = (pattern_t){0};
}

static void find_literal(pattern_search_t *s, bool *found, size_t *start, size_t *end) {
    size_t wanted = s->pattern->literal_length;
    *found = false;
    while (s->length - s->from >= wanted) {
        const char *at = memchr(s->text + s->from, s->pattern->literal[0], s->length - s->from - wanted + 1);
        if (!at) return;
        s->from = (size_t)(at - s->text);
        if (memcmp(at, s->pattern->literal, wanted) == 0) {
            *found = true;
            *start = s->from;
            *end = s->from + wanted;
            return;
        }
        s->from++;
    }
}

static status_t find_regex(pattern_search_t *s, bool *found, size_t *start, size_t *end) {
    const pcre2_code *regex = s->pattern->regex;
    int code = pcre2_match(regex, (PCRE2_SPTR)s->text, s->length, s->from, PCRE2_NO_UTF_CHECK, s->match, s->limits);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(regex, (PCRE2_SPTR)s->text, s->length, s->from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->match,
                           s->limits);
    *found = code >= 0;
    if (code < 0 && code != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof(why));
        FAIL(STATUS_INVALID, "a pattern fails on this text near byte %zu: %s", s->from, (char *)why);
    }
    if (!*found) return STATUS_OK;
    const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(s->match);
    *start = vector[0];
    *end = vector[1] < vector[0] ? vector[0] : vector[1];
    return STATUS_OK;
}

status_t pattern_next(pattern_search_t *s, bool *found, size_t *start, size_t *end) {
    *found = false;
    while (s->from <= s->length) {
        if (s->pattern->regex)
            TRY(find_regex(s, found, start, end));
        else
            find_literal(s, found, start, end);
        if (!*found) return STATUS_OK;
        if (*start == *end && s->any && s->last == *end) {
            s->from =
                *end < s->length ? *end + utf8_next(s->text + *end, s->length - *end, NULL, NULL, NULL) : s->length + 1;
            *found = false;
            continue;
        }
        s->from = s->last = *end;
        s->any = true;
        return STATUS_OK;
    }
    return STATUS_OK;
}

status_t pattern_replace(pattern_search_t *search, const char *content, size_t length, buffer_t *out) {
    size_t done = 0;
    while (search->length) {
        bool found;
        size_t start, end;
        TRY(pattern_next(search, &found, &start, &end));
        if (!found) break;
        TRY(buffer_append(out, search->text + done, start - done));
        TRY(buffer_append(out, content, length));
        if (out->length > TOKENIZER_TEXT_LIMIT)
            FAIL(STATUS_INVALID, "the normalised text is longer than %d bytes", TOKENIZER_TEXT_LIMIT);
        done = end;
    }
    return buffer_append(out, search->text + done, search->length - done);
}
