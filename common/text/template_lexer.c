// The lexer: source text -> tokens. White space around tags is settled here.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SOURCE_LIMIT = 4 << 20, NESTING = 500 };

typedef struct lexer {
    template_heap_t *heap;
    const char *source;
    size_t length, at;
    int line;
    bool fresh_line; // the last token ended with a line break, or there was none
    tokens_t *out;
} lexer_t;

#define LEX_FAIL(lexer, ...) return status_context(STATUS_NEW(STATUS_INVALID, __VA_ARGS__), "line %d", (lexer)->line)

static status_t add(lexer_t *x, token_kind_t kind, const char *bytes, size_t length, token_t **out) {
    tokens_t *t = x->out;
    if (t->count == t->capacity) {
        size_t capacity = t->capacity ? 2 * t->capacity : 64;
        token_t *grown;
        TRY(HEAP_NEW(x->heap, &grown, capacity));
        if (t->count) memcpy(grown, t->token, t->count * sizeof(*grown));
        t->token = grown;
        t->capacity = capacity;
    }
    t->token[t->count] = (token_t){.kind = kind, .line = x->line, .bytes = bytes, .length = length};
    if (out) *out = &t->token[t->count];
    t->count++;
    return STATUS_OK;
}

// Moves on, counting lines.
static void skip(lexer_t *x, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) x->line += x->source[x->at + i] == '\n';
    if (bytes) x->fresh_line = x->source[x->at + bytes - 1] == '\n';
    x->at += bytes;
}

static bool starts(const lexer_t *x, size_t at, const char *word) {
    size_t length = strlen(word);
    return at + length <= x->length && memcmp(x->source + at, word, length) == 0;
}

// Bytes of white space at `at`.
static size_t spaces(const lexer_t *x, size_t at) {
    size_t start = at;
    while (at < x->length) {
        uint32_t code = 0;
        size_t step = utf8_next(x->source + at, x->length - at, &code, NULL, NULL);
        if (!step || !code_is_space(code)) break;
        at += step;
    }
    return at - start;
}

// Length of text without the white space at its end; with `line`, only what follows the last line break, and only if
// that is nothing else.
static size_t stripped(const lexer_t *x, size_t start, size_t end) {
    while (end > start) {
        size_t before = end - 1;
        uint32_t code = 0;
        while (before > start && (x->source[before] & 0xc0) == 0x80) before--;
        if (!utf8_next(x->source + before, end - before, &code, NULL, NULL) || !code_is_space(code)) break;
        end = before;
    }
    return end;
}

static size_t line_stripped(const lexer_t *x, size_t start, size_t end) {
    size_t line = end;
    while (line > start && x->source[line - 1] != '\n') line--;
    if (line == start && !x->fresh_line) return end;
    return stripped(x, line, end) == line ? line : end;
}

// Text up to `end`, where a tag with this sign ('-', '+' or 0) begins.
static status_t add_text(lexer_t *x, size_t end, char sign, bool print) {
    size_t start = x->at, kept = end;
    if (sign == '-')
        kept = stripped(x, start, end);
    else if (sign != '+' && !print)
        kept = line_stripped(x, start, end);
    if (kept > start) {
        token_t *token;
        text_t *text;
        char *zero;
        TRY(add(x, TOKEN_TEXT, x->source + start, kept - start, &token));
        TRY(HEAP_NEW(x->heap, &text, 1));
        TRY(HEAP_NEW(x->heap, &zero, kept - start));
        *text = (text_t){.bytes = x->source + start, .given = zero, .length = kept - start};
        token->value = VALUE_OF(VALUE_STRING, text, text);
    }
    skip(x, end - start);
    return STATUS_OK;
}

// The end of a tag: bytes, with what white space goes with it; 0: there is none here.
static size_t tag_end(const lexer_t *x, size_t at, const char *end, bool trim) {
    size_t length = strlen(end);
    if (trim && starts(x, at, "+") && starts(x, at + 1, end)) return 1 + length;
    if (starts(x, at, "-") && starts(x, at + 1, end)) return 1 + length + spaces(x, at + 1 + length);
    if (!starts(x, at, end)) return 0;
    return length + (trim && starts(x, at + length, "\n"));
}

static char sign_at(const lexer_t *x, size_t at) {
    return at < x->length && (x->source[at] == '-' || x->source[at] == '+') ? x->source[at] : 0;
}

// ---- inside of tags ----

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80);
}

static status_t put_code(lexer_t *x, uint32_t code, char *out, size_t *used) {
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        LEX_FAIL(x, "a string's escape \\u%04x is no character", (unsigned)code);
    char *at = out + *used;
    if (code < 0x80) {
        *at++ = (char)code;
    } else {
        int extra = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
        *at++ = (char)(lead[extra] | code >> (6 * extra));
        while (extra--) *at++ = (char)(0x80 | (code >> (6 * extra) & 0x3f));
    }
    *used = (size_t)(at - out);
    return STATUS_OK;
}

// The digits of an escape: exactly `count` hexadecimal ones.
static status_t escape_code(lexer_t *x, const char *at, const char *end, int count, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < count; i++) {
        char c = at + i < end ? at[i] : 0;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) LEX_FAIL(x, "a string's escape needs %d hexadecimal digits", count);
        *code = *code << 4 | (uint32_t)digit;
    }
    return STATUS_OK;
}

// One escape; *at stands behind the backslash.
static status_t unescape_one(lexer_t *x, const char **at, const char *end, char *out, size_t *used) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    char c = **at;
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t code = 0;
    if (simple) {
        out[(*used)++] = to[simple - from];
    } else if (c >= '0' && c <= '7') {
        for (int i = 0; i < 3 && *at < end && **at >= '0' && **at <= '7'; i++)
            code = code * 8 + (uint32_t)(*(*at)++ - '0');
        return put_code(x, code, out, used);
    } else if (c == 'x' || c == 'u' || c == 'U') {
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        TRY(escape_code(x, *at + 1, end, digits, &code));
        *at += 1 + digits;
        return put_code(x, code, out, used);
    } else if (c == 'N') {
        LEX_FAIL(x, "the escape \\N{...} in a string is not supported");
    } else if (c != '\n') {
        out[(*used)++] = '\\'; // an escape that is none stays as it is
        return STATUS_OK;
    }
    (*at)++;
    return STATUS_OK;
}

static status_t lex_string(lexer_t *x) {
    char quote = x->source[x->at];
    size_t end = x->at + 1;
    while (end < x->length && x->source[end] != quote) end += x->source[end] == '\\' ? 2 : 1;
    if (end >= x->length) LEX_FAIL(x, "a string has no end");
    token_t *token;
    text_t *text;
    char *out, *zero;
    size_t used = 0;
    const char *at = x->source + x->at + 1, *over = x->source + end;
    TRY(add(x, TOKEN_STRING, at, (size_t)(over - at), &token));
    size_t place = (size_t)(token - x->out->token);
    TRY(HEAP_NEW(x->heap, &out, 2 * (size_t)(over - at) + 8));
    while (at < over) {
        if (*at != '\\') {
            out[used++] = *at++;
            continue;
        }
        at++;
        TRY(unescape_one(x, &at, over, out, &used));
    }
    TRY(HEAP_NEW(x->heap, &text, 1));
    TRY(HEAP_NEW(x->heap, &zero, used));
    *text = (text_t){.bytes = out, .given = zero, .length = used};
    x->out->token[place].value = VALUE_OF(VALUE_STRING, text, text);
    skip(x, end + 1 - x->at);
    return STATUS_OK;
}

// Digits with single underscores between them.
static size_t digits(const lexer_t *x, size_t at) {
    size_t start = at;
    while (at < x->length) {
        char c = x->source[at];
        bool digit = c >= '0' && c <= '9';
        bool joint =
            c == '_' && at > start && at + 1 < x->length && x->source[at + 1] >= '0' && x->source[at + 1] <= '9';
        if (!digit && !joint) break;
        at++;
    }
    return at - start;
}

// Bytes of a float at the lexer's place; 0: it is none.
static size_t float_length(const lexer_t *x) {
    size_t at = x->at + digits(x, x->at);
    bool real = false;
    if (starts(x, at, ".")) {
        size_t part = digits(x, at + 1);
        if (!part) return 0;
        at += 1 + part;
        real = true;
    }
    if (at < x->length && (x->source[at] | 32) == 'e') {
        size_t sign = at + 1 < x->length && (x->source[at + 1] == '+' || x->source[at + 1] == '-');
        size_t part = digits(x, at + 1 + sign);
        if (part) {
            at += 1 + sign + part;
            real = true;
        }
    }
    return real ? at - x->at : 0;
}

static size_t integer_length(const lexer_t *x, int *base) {
    static const struct {
        char letter;
        int base;
        const char *digits;
    } kinds[] = {{'b', 2, "01"}, {'o', 8, "01234567"}, {'x', 16, "0123456789abcdefABCDEF"}};
    *base = 10;
    if (x->source[x->at] != '0') return digits(x, x->at);
    for (size_t k = 0; k < 3; k++) {
        size_t at = x->at + 2;
        if (x->at + 1 >= x->length || (x->source[x->at + 1] | 32) != kinds[k].letter) continue;
        while (at < x->length && x->source[at] && (strchr(kinds[k].digits, x->source[at]) || x->source[at] == '_'))
            at++;
        *base = kinds[k].base;
        return at - x->at;
    }
    size_t at = x->at;
    while (at < x->length && (x->source[at] == '0' || x->source[at] == '_')) at++;
    return at - x->at;
}

static status_t lex_number(lexer_t *x) {
    char word[80], *end;
    size_t used = 0, length = x->at && x->source[x->at - 1] == '.' ? 0 : float_length(x);
    int base = 10;
    bool real = length;
    if (!real) length = integer_length(x, &base);
    if (length >= sizeof(word)) LEX_FAIL(x, "a number is too long");
    for (size_t i = 0; i < length; i++)
        if (x->source[x->at + i] != '_') word[used++] = x->source[x->at + i];
    word[used] = 0;
    token_t *token;
    TRY(add(x, real ? TOKEN_FLOAT : TOKEN_INTEGER, x->source + x->at, length, &token));
    errno = 0;
    if (real)
        token->value = value_float(strtod(word, &end));
    else
        token->value = value_int(strtoll(base == 10 ? word : word + 2, &end, base));
    if (*end || (!real && (errno || (base != 10 && used < 3)))) LEX_FAIL(x, "the number %s cannot be read", word);
    skip(x, length);
    return STATUS_OK;
}

static status_t lex_operator(lexer_t *x, char *open, int *nested) {
    static const char doubles[][3] = {"//", "**", "==", "!=", ">=", "<="};
    static const char singles[] = "+-/*%~[](){}><=.:|,;";
    char c = x->source[x->at];
    token_t *token;
    for (size_t i = 0; i < sizeof(doubles) / sizeof(doubles[0]); i++)
        if (starts(x, x->at, doubles[i])) {
            TRY(add(x, TOKEN_OPERATOR, x->source + x->at, 2, &token));
            token->operation = OPERATOR2(doubles[i][0], doubles[i][1]);
            skip(x, 2);
            return STATUS_OK;
        }
    if (!c || !strchr(singles, c)) LEX_FAIL(x, "the character '%c' has no meaning here", c >= ' ' && c < 127 ? c : '?');
    const char *opening = strchr("({[", c), *closing = strchr(")}]", c);
    if (opening) {
        if (*nested == NESTING) LEX_FAIL(x, "brackets are nested more than %d deep", NESTING);
        open[(*nested)++] = c;
    }
    if (closing) {
        if (!*nested) LEX_FAIL(x, "'%c' closes nothing", c);
        char wanted = open[*nested - 1] == '(' ? ')' : open[*nested - 1] == '{' ? '}' : ']';
        if (c != wanted) LEX_FAIL(x, "'%c' stands where '%c' is wanted", c, wanted);
        (*nested)--;
    }
    TRY(add(x, TOKEN_OPERATOR, x->source + x->at, 1, &token));
    token->operation = c;
    skip(x, 1);
    return STATUS_OK;
}

// From behind "{%" or "{{" to the end of the tag.
static status_t lex_tag(lexer_t *x, bool print) {
    char open[NESTING];
    int nested = 0;
    while (x->at < x->length) {
        size_t end = nested ? 0 : tag_end(x, x->at, print ? "}}" : "%}", !print);
        if (end) {
            TRY(add(x, print ? TOKEN_PRINT_END : TOKEN_END, x->source + x->at, end, NULL));
            skip(x, end);
            return STATUS_OK;
        }
        size_t blank = spaces(x, x->at);
        char c = x->source[x->at];
        if (blank) {
            skip(x, blank);
        } else if (c >= '0' && c <= '9') {
            TRY(lex_number(x));
        } else if (is_name(c)) {
            size_t length = 1;
            while (x->at + length < x->length && is_name(x->source[x->at + length]) && !spaces(x, x->at + length))
                length++;
            TRY(add(x, TOKEN_NAME, x->source + x->at, length, NULL));
            skip(x, length);
        } else if (c == '\'' || c == '"') {
            TRY(lex_string(x));
        } else {
            TRY(lex_operator(x, open, &nested));
        }
    }
    LEX_FAIL(x, "the tag has no end ('%s' is missing)", print ? "}}" : "%}");
}

static status_t lex_comment(lexer_t *x) {
    for (size_t at = x->at; at < x->length; at++) {
        size_t end = tag_end(x, at, "#}", true);
        if (!end) continue;
        skip(x, at + end - x->at);
        return STATUS_OK;
    }
    LEX_FAIL(x, "the comment has no end ('#}' is missing)");
}

// Bytes of "{% raw %}" at `at`; 0: there is none.
static size_t raw_begin(const lexer_t *x, size_t at) {
    size_t start = at;
    at += 2 + (sign_at(x, at + 2) != 0);
    at += spaces(x, at);
    if (!starts(x, at, "raw")) return 0;
    at += 3;
    at += spaces(x, at);
    if (starts(x, at, "-%}")) return at + 3 + spaces(x, at + 3) - start;
    return starts(x, at, "%}") ? at + 2 - start : 0;
}

static status_t lex_raw(lexer_t *x) {
    for (size_t at = x->at; at < x->length; at++) {
        if (!starts(x, at, "{%")) continue;
        char sign = sign_at(x, at + 2);
        size_t name = at + 2 + (sign != 0);
        name += spaces(x, name);
        if (!starts(x, name, "endraw")) continue;
        name += 6;
        name += spaces(x, name);
        size_t end = tag_end(x, name, "%}", true);
        if (!end) continue;
        TRY(add_text(x, at, sign, false));
        skip(x, name + end - at);
        return STATUS_OK;
    }
    LEX_FAIL(x, "'raw' has no 'endraw'");
}

static status_t lex_one(lexer_t *x) {
    size_t at = x->at;
    while (at < x->length &&
           !(x->source[at] == '{' && at + 1 < x->length && strchr("{%#", x->source[at + 1]) && x->source[at + 1]))
        at++;
    if (at >= x->length) return add_text(x, x->length, '+', false);
    char kind = x->source[at + 1], sign = sign_at(x, at + 2);
    size_t raw = kind == '%' ? raw_begin(x, at) : 0;
    TRY(add_text(x, at, sign, kind == '{'));
    if (raw) {
        skip(x, raw);
        return lex_raw(x);
    }
    if (kind == '#') {
        skip(x, 2 + (sign != 0));
        return lex_comment(x);
    }
    TRY(add(x, kind == '{' ? TOKEN_PRINT_BEGIN : TOKEN_BEGIN, x->source + at, 2, NULL));
    skip(x, 2 + (sign != 0));
    return lex_tag(x, kind == '{');
}

status_t template_lex(template_heap_t *heap, const char *source, size_t length, tokens_t *out) {
    char *copy;
    size_t used = 0;
    if (length > SOURCE_LIMIT) FAIL(STATUS_INVALID, "the template has more than %d bytes", SOURCE_LIMIT);
    size_t valid = utf8_valid(source, length);
    if (valid != length) FAIL(STATUS_INVALID, "the template is not UTF-8 at byte %zu", valid);
    TRY(template_heap_take(heap, length + 1, (void **)&copy));
    for (size_t i = 0; i < length; i++) { // all line breaks alike
        if (source[i] == '\r' && i + 1 < length && source[i + 1] == '\n') continue;
        copy[used++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (used && copy[used - 1] == '\n') used--; // the file's last line break is not part of the text
    lexer_t x = {.heap = heap, .source = copy, .length = used, .line = 1, .fresh_line = true, .out = out};
    while (x.at < x.length) TRY(lex_one(&x));
    return add(&x, TOKEN_OVER, copy + used, 0, NULL);
}
