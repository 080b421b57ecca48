// Values as text: str(), repr() and json.dumps() of Python.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

// The shortest decimal that reads back, in Python's spelling.
void number_print(double real, char *out, size_t bytes) {
    char digits[40];
    if (isnan(real) || isinf(real)) {
        snprintf(out, bytes, "%s", isnan(real) ? "nan" : real < 0 ? "-inf" : "inf");
        return;
    }
    int precision = 1;
    do snprintf(digits, sizeof(digits), "%.*e", precision - 1, real);
    while (strtod(digits, NULL) != real && ++precision <= 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        snprintf(out, bytes, "%.*f", precision - 1 - exponent > 1 ? precision - 1 - exponent : 1, real);
        return;
    }
    *strchr(digits, 'e') = 0;
    snprintf(out, bytes, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
}

static bool is_printable(uint32_t code) {
    if (code == ' ') return true;
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

// The escape of a character in repr() of a string; empty: it stands for itself.
static void repr_escape(uint32_t code, char quote, char *out, size_t bytes) {
    *out = 0;
    if (code == (uint32_t)quote || code == '\\')
        snprintf(out, bytes, "\\%c", (char)code);
    else if (code == '\n' || code == '\r' || code == '\t')
        snprintf(out, bytes, "\\%c", code == '\n' ? 'n' : code == '\r' ? 'r' : 't');
    else if (!is_printable(code))
        snprintf(out, bytes, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)code);
}

// An escape is from where the character it stands for is from.
static status_t add_escape(run_t *run, builder_t *b, const char *escape, char given) {
    char marks[16];
    memset(marks, given, sizeof(marks));
    return builder_add(run, b, escape, marks, strlen(escape));
}

static status_t repr_text(run_t *run, builder_t *b, const text_t *text) {
    bool single = text->length && memchr(text->bytes, '\'', text->length);
    bool both = single && memchr(text->bytes, '"', text->length);
    char quote[2] = {single && !both ? '"' : '\'', 0}, escape[16];
    if (text->safe) TRY(builder_word(run, b, "Markup("));
    TRY(builder_word(run, b, quote));
    for (size_t at = 0; at < text->length;) {
        uint32_t code = 0;
        size_t step = utf8_next(text->bytes + at, text->length - at, &code, NULL, NULL);
        repr_escape(code, quote[0], escape, sizeof(escape));
        if (*escape)
            TRY(add_escape(run, b, escape, text->given[at]));
        else
            TRY(builder_add(run, b, text->bytes + at, text->given + at, step));
        at += step;
    }
    TRY(builder_word(run, b, quote));
    return text->safe ? builder_word(run, b, ")") : STATUS_OK;
}

static status_t repr_list(run_t *run, builder_t *b, const value_t *items, size_t count, const char *open,
                          const char *close) {
    TRY(builder_word(run, b, open));
    for (size_t i = 0; i < count; i++) {
        if (i) TRY(builder_word(run, b, ", "));
        TRY(value_repr(run, b, items[i]));
    }
    return builder_word(run, b, close);
}

static status_t repr_pairs(run_t *run, builder_t *b, const pair_t *pairs, size_t count) {
    TRY(builder_word(run, b, "{"));
    for (size_t i = 0; i < count; i++) {
        if (i) TRY(builder_word(run, b, ", "));
        TRY(value_repr(run, b, pairs[i].key));
        TRY(builder_word(run, b, ": "));
        TRY(value_repr(run, b, pairs[i].value));
    }
    return builder_word(run, b, "}");
}

static status_t repr_object(run_t *run, builder_t *b, value_t value) {
    char word[128];
    switch (value.type) {
    case VALUE_RANGE:
        snprintf(word, sizeof(word), value.range->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)",
                 (long long)value.range->start, (long long)value.range->stop, (long long)value.range->step);
        return builder_word(run, b, word);
    case VALUE_STREAM:
        if (!value.stream->view)
            RUN_FAIL(run, "a generator is printed, which has no text of its own; is '| list' or '| join' missing?");
        TRY(builder_word(run, b, value.stream->view));
        return repr_list(run, b, value.stream->items.list->item, value.stream->items.list->count, "([", "])");
    case VALUE_NAMESPACE:
        TRY(builder_word(run, b, "<Namespace "));
        TRY(repr_pairs(run, b, value.space->pair, value.space->count));
        return builder_word(run, b, ">");
    case VALUE_MACRO:
        snprintf(word, sizeof(word), value.macro->node->name ? "<Macro '%.100s'>" : "<Macro anonymous>",
                 value.macro->node->name);
        return builder_word(run, b, word);
    default:
        RUN_FAIL(run, "a %s is printed, which has no text of its own", value_type_name(value));
    }
}

static status_t repr_plain(run_t *run, builder_t *b, value_t value) {
    char word[64];
    switch (value.type) {
    case VALUE_UNDEFINED:
        return builder_word(run, b, "Undefined");
    case VALUE_NONE:
        return builder_word(run, b, "None");
    case VALUE_BOOL:
        return builder_word(run, b, value.truth ? "True" : "False");
    case VALUE_INT:
        snprintf(word, sizeof(word), "%lld", (long long)value.integer);
        return builder_word(run, b, word);
    case VALUE_FLOAT:
        number_print(value.real, word, sizeof(word));
        return builder_word(run, b, word);
    case VALUE_STRING:
        return repr_text(run, b, value.text);
    case VALUE_LIST:
        return repr_list(run, b, value.list->item, value.list->count, "[", "]");
    case VALUE_TUPLE:
        return repr_list(run, b, value.list->item, value.list->count, "(", value.list->count == 1 ? ",)" : ")");
    case VALUE_DICT:
        return repr_pairs(run, b, value.dict->pair, value.dict->count);
    default:
        return repr_object(run, b, value);
    }
}

status_t value_repr(run_t *run, builder_t *builder, value_t value) {
    TRY(run_pay(run, 1));
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "a value is nested too deep to be printed");
    status_t status = repr_plain(run, builder, value);
    run->depth--;
    return status;
}

status_t value_print(run_t *run, builder_t *builder, value_t value) {
    if (value.type == VALUE_UNDEFINED || value.type == VALUE_MISSING) return STATUS_OK;
    if (value.type == VALUE_STRING) return builder_text(run, builder, value.text);
    return value_repr(run, builder, value);
}

status_t value_string(run_t *run, value_t value, value_t *out) {
    builder_t builder = {0};
    *out = value;
    if (value.type == VALUE_STRING) return STATUS_OK;
    TRY(value_print(run, &builder, value));
    return builder_finish(run, &builder, out);
}

// ---- JSON ----

typedef struct json_style {
    bool ascii, sort;
    const text_t *indent; // one level; NULL: on one line
    const text_t *item, *key;
} json_style_t;

static status_t json_write(run_t *run, builder_t *b, const json_style_t *style, value_t value, int level);

static void json_escape(uint32_t code, bool ascii, char *out, size_t bytes) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *simple = code && code < 128 ? strchr(from, (int)code) : NULL;
    *out = 0;
    if (simple)
        snprintf(out, bytes, "\\%c", to[simple - from]);
    else if (code < 32 || (ascii && code > 126 && code < 0x10000))
        snprintf(out, bytes, "\\u%04x", (unsigned)code);
    else if (ascii && code > 126)
        snprintf(out, bytes, "\\u%04x\\u%04x", (unsigned)(0xd800 + ((code - 0x10000) >> 10)),
                 (unsigned)(0xdc00 + (code & 0x3ff)));
    if (ascii && code == 127) snprintf(out, bytes, "\x7f");
}

static status_t json_text(run_t *run, builder_t *b, const json_style_t *style, const text_t *text) {
    char escape[16];
    TRY(builder_word(run, b, "\""));
    for (size_t at = 0; at < text->length;) {
        uint32_t code = 0;
        size_t step = utf8_next(text->bytes + at, text->length - at, &code, NULL, NULL);
        json_escape(code, style->ascii, escape, sizeof(escape));
        if (*escape)
            TRY(add_escape(run, b, escape, text->given[at]));
        else
            TRY(builder_add(run, b, text->bytes + at, text->given + at, step));
        at += step;
    }
    return builder_word(run, b, "\"");
}

static status_t json_break(run_t *run, builder_t *b, const json_style_t *style, int level) {
    if (!style->indent) return STATUS_OK;
    TRY(builder_word(run, b, "\n"));
    for (int i = 0; i < level; i++) TRY(builder_text(run, b, style->indent));
    return STATUS_OK;
}

static status_t json_list(run_t *run, builder_t *b, const json_style_t *style, value_t value, int level) {
    if (!value.list->count) return builder_word(run, b, "[]");
    TRY(builder_word(run, b, "["));
    for (size_t i = 0; i < value.list->count; i++) {
        if (i) TRY(builder_text(run, b, style->item));
        TRY(json_break(run, b, style, level + 1));
        TRY(json_write(run, b, style, value.list->item[i], level + 1));
    }
    TRY(json_break(run, b, style, level));
    return builder_word(run, b, "]");
}

static status_t json_key(run_t *run, builder_t *b, const json_style_t *style, value_t key) {
    if (key.type == VALUE_STRING) return json_text(run, b, style, key.text);
    if (key.type != VALUE_INT && key.type != VALUE_FLOAT && key.type != VALUE_BOOL && key.type != VALUE_NONE)
        RUN_FAIL(run, "'tojson' takes no %s as a key", value_type_name(key));
    TRY(builder_word(run, b, "\""));
    TRY(json_write(run, b, style, key, 0));
    return builder_word(run, b, "\"");
}

static status_t json_dict(run_t *run, builder_t *b, const json_style_t *style, value_t value, int level) {
    const dict_t *dict = value.dict;
    if (!dict->count) return builder_word(run, b, "{}");
    const pair_t **order;
    TRY(HEAP_NEW(&run->heap, &order, dict->count));
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        for (; style->sort && at; at--) {
            bool before;
            TRY(value_order(run, dict->pair[i].key, order[at - 1]->key, '<', &before));
            if (!before) break;
            order[at] = order[at - 1];
        }
        order[at] = &dict->pair[i];
    }
    TRY(builder_word(run, b, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) TRY(builder_text(run, b, style->item));
        TRY(json_break(run, b, style, level + 1));
        TRY(json_key(run, b, style, order[i]->key));
        TRY(builder_text(run, b, style->key));
        TRY(json_write(run, b, style, order[i]->value, level + 1));
    }
    TRY(json_break(run, b, style, level));
    return builder_word(run, b, "}");
}

static status_t json_plain(run_t *run, builder_t *b, const json_style_t *style, value_t value, int level) {
    switch (value.type) {
    case VALUE_NONE:
        return builder_word(run, b, "null");
    case VALUE_BOOL:
        return builder_word(run, b, value.truth ? "true" : "false");
    case VALUE_FLOAT:
        if (isfinite(value.real)) return value_repr(run, b, value);
        return builder_word(run, b, isnan(value.real) ? "NaN" : value.real < 0 ? "-Infinity" : "Infinity");
    case VALUE_INT:
        return value_repr(run, b, value);
    case VALUE_STRING:
        return json_text(run, b, style, value.text);
    case VALUE_LIST:
    case VALUE_TUPLE:
        return json_list(run, b, style, value, level);
    case VALUE_DICT:
        return json_dict(run, b, style, value, level);
    default:
        RUN_FAIL(run, "'tojson' takes no %s", value_type_name(value));
    }
}

static status_t json_write(run_t *run, builder_t *b, const json_style_t *style, value_t value, int level) {
    TRY(run_pay(run, 1));
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "a value is nested too deep for 'tojson'");
    status_t status = json_plain(run, b, style, value, level);
    run->depth--;
    return status;
}

// argument: ensure_ascii, indent, separators, sort_keys.
status_t value_json(run_t *run, value_t value, const value_t *argument, value_t *out) {
    builder_t builder = {0};
    value_t item, key, indent = argument[1];
    int64_t width;
    bool indented = indent.type != VALUE_MISSING && indent.type != VALUE_NONE;
    json_style_t style = {.ascii = value_truth(argument[0]), .sort = value_truth(argument[3])};
    TRY(value_word(run, indented ? "," : ", ", &item));
    TRY(value_word(run, ": ", &key));
    if (value_integer(indent, &width)) {
        char blanks[65];
        if (width > 64) RUN_FAIL(run, "'tojson' indents by at most 64 blanks");
        width = width < 0 ? 0 : width;
        memset(blanks, ' ', (size_t)width);
        blanks[width] = 0;
        TRY(value_word(run, blanks, &indent));
    }
    if (indented) TRY(argument_text(run, indent, "'tojson': indent", &style.indent));
    if (value_truth(argument[2])) {
        const value_t *pair;
        size_t count;
        TRY(value_items(run, argument[2], &pair, &count));
        if (count != 2) RUN_FAIL(run, "'tojson' takes two separators");
        item = pair[0];
        key = pair[1];
    }
    TRY(argument_text(run, item, "'tojson': separators", &style.item));
    TRY(argument_text(run, key, "'tojson': separators", &style.key));
    TRY(json_write(run, &builder, &style, value, 0));
    return builder_finish(run, &builder, out);
}
