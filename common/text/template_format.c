// `%` and format() of strings.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>

// Adds text, filled up to a width of characters.
static status_t add_padded(run_t *run, builder_t *b, const text_t *text, int64_t width, char side, const char *fill,
                           size_t fill_length) {
    size_t count = text_count(text);
    size_t missing = width > 0 && (size_t)width > count ? (size_t)width - count : 0;
    if (missing > 100000) RUN_FAIL(run, "a format's width is too large");
    size_t left = side == '<' ? 0 : side == '^' ? missing / 2 : missing;
    for (size_t i = 0; i < left; i++) TRY(builder_add(run, b, fill, NULL, fill_length));
    TRY(builder_text(run, b, text));
    for (size_t i = left; i < missing; i++) TRY(builder_add(run, b, fill, NULL, fill_length));
    return STATUS_OK;
}

// A number in C's own format: the conversions that both languages share.
static status_t print_number(run_t *run, value_t value, char kind, const char *flags, int precision, value_t *out) {
    char format[32], text[512];
    int64_t integer;
    double real;
    bool whole = strchr("dxXo", kind);
    if (whole && value.type == VALUE_FLOAT && kind == 'd') value = value_int((int64_t)value.real);
    if (whole ? !value_integer(value, &integer) : !value_number(value, &real))
        RUN_FAIL(run, "a format wants a number, not a %s", value_type_name(value));
    if (precision > 100) RUN_FAIL(run, "a format's precision is too large");
    if (precision >= 0)
        snprintf(format, sizeof(format), "%%%.6s.%d%s%c", flags, precision, whole ? "ll" : "", kind);
    else
        snprintf(format, sizeof(format), "%%%.6s%s%c", flags, whole ? "ll" : "", kind);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (whole)
        snprintf(text, sizeof(text), format, (long long)integer);
    else
        snprintf(text, sizeof(text), format, real);
#pragma GCC diagnostic pop
    return value_word(run, text, out);
}

typedef struct percent {
    char flags[8];
    int width, precision;
    char kind;
} percent_t;

static int read_digits(const text_t *format, size_t *at) {
    int number = 0;
    while (*at < format->length && format->bytes[*at] >= '0' && format->bytes[*at] <= '9' && number < 100000000)
        number = 10 * number + format->bytes[(*at)++] - '0';
    return number;
}

static status_t read_percent(run_t *run, const text_t *format, size_t *at, percent_t *out) {
    size_t used = 0;
    *out = (percent_t){.precision = -1};
    while (*at < format->length && format->bytes[*at] && strchr("-+ #0", format->bytes[*at])) {
        if (used < 6) out->flags[used++] = format->bytes[*at];
        ++*at;
    }
    out->width = read_digits(format, at);
    if (*at < format->length && format->bytes[*at] == '.') {
        ++*at;
        out->precision = read_digits(format, at);
    }
    if (*at >= format->length) RUN_FAIL(run, "a format ends after '%%'");
    out->kind = format->bytes[(*at)++];
    if (out->kind == 'i' || out->kind == 'u') out->kind = 'd';
    if (!out->kind || !strchr("sradxXofFeEgG", out->kind))
        RUN_FAIL(run, "the format '%%%c' is not supported", out->kind > ' ' && out->kind < 127 ? out->kind : '?');
    return STATUS_OK;
}

static status_t add_percent(run_t *run, builder_t *b, const percent_t *p, value_t value) {
    value_t text;
    builder_t repr = {0};
    bool left = strchr(p->flags, '-'), zero = strchr(p->flags, '0') && !left;
    if (strchr("ra", p->kind)) {
        TRY(value_repr(run, &repr, value));
        TRY(builder_finish(run, &repr, &text));
    } else if (p->kind == 's') {
        TRY(value_string(run, value, &text));
    } else {
        char flags[8] = "";
        size_t used = 0;
        for (const char *f = p->flags; *f; f++)
            if (*f != '0' && *f != '-') flags[used++] = *f;
        flags[used] = 0;
        TRY(print_number(run, value, p->kind, flags, p->precision, &text));
        if (zero && p->width > 0) { // zeros go between sign and digits
            text_t sign = *text.text, digits = *text.text;
            sign.length = text.text->length && strchr("+- ", text.text->bytes[0]) ? 1 : 0;
            digits.bytes += sign.length;
            digits.given += sign.length;
            digits.length -= sign.length;
            TRY(builder_text(run, b, &sign));
            return add_padded(run, b, &digits, p->width - (int)sign.length, '>', "0", 1);
        }
    }
    if (strchr("sra", p->kind) && p->precision >= 0) {
        text_t cut = *text.text;
        cut.length = text_offset(text.text, (size_t)p->precision);
        return add_padded(run, b, &cut, p->width, left ? '<' : '>', " ", 1);
    }
    return add_padded(run, b, text.text, p->width, left ? '<' : '>', " ", 1);
}

// The value for the next conversion: by name from a dict, or the next of a tuple.
static status_t percent_value(run_t *run, const text_t *format, size_t *at, value_t values, size_t *used,
                              value_t *out) {
    if (*at < format->length && format->bytes[*at] == '(') {
        const char *close = memchr(format->bytes + *at, ')', format->length - *at);
        if (!close || values.type != VALUE_DICT) RUN_FAIL(run, "a format with names needs a dict");
        size_t end = (size_t)(close - format->bytes);
        text_t key = {.bytes = format->bytes + *at + 1, .length = end - *at - 1};
        if (!value_find(values.dict, VALUE_OF(VALUE_STRING, text, &key), out))
            RUN_FAIL(run, "a format's name is not in its dict");
        *at = end + 1;
        *used = SIZE_MAX;
        return STATUS_OK;
    }
    bool tuple = values.type == VALUE_TUPLE;
    if (*used >= (tuple ? values.list->count : 1)) RUN_FAIL(run, "a format has more conversions than values");
    *out = tuple ? values.list->item[*used] : values;
    ++*used;
    return STATUS_OK;
}

status_t string_percent(run_t *run, const text_t *format, value_t values, value_t *out) {
    builder_t builder = {0};
    size_t used = 0, at = 0;
    while (at < format->length) {
        size_t start = at;
        while (at < format->length && format->bytes[at] != '%') at++;
        TRY(builder_add(run, &builder, format->bytes + start, format->given + start, at - start));
        if (at == format->length) break;
        at++;
        TRY(run_pay(run, 1));
        if (at < format->length && format->bytes[at] == '%') {
            TRY(builder_add(run, &builder, format->bytes + at, format->given + at, 1));
            at++;
            continue;
        }
        value_t value;
        percent_t percent;
        bool named = at < format->length && format->bytes[at] == '(';
        if (named) TRY(percent_value(run, format, &at, values, &used, &value));
        TRY(read_percent(run, format, &at, &percent));
        size_t place = at;
        if (!named) TRY(percent_value(run, &(text_t){0}, &(size_t){0}, values, &used, &value));
        at = place;
        TRY(add_percent(run, &builder, &percent, value));
    }
    bool mapping = values.type == VALUE_DICT || values.type == VALUE_LIST || values.type == VALUE_RANGE ||
                   values.type == VALUE_UNDEFINED;
    if (used < (values.type == VALUE_TUPLE ? values.list->count : 1) && !mapping)
        RUN_FAIL(run, "a format has fewer conversions than values");
    return builder_finish(run, &builder, out);
}

// ---- format() ----

typedef struct field {
    text_t name, spec;
    char conversion;
} field_t;

// `{name!r:spec}`; *at stands behind the brace.
static status_t read_field(run_t *run, const text_t *format, size_t *at, field_t *out) {
    size_t start = *at, end = start;
    *out = (field_t){0};
    while (end < format->length && format->bytes[end] != '}') {
        if (format->bytes[end] == '{') RUN_FAIL(run, "fields within fields of 'format' are not supported");
        end++;
    }
    if (end == format->length) RUN_FAIL(run, "a field of 'format' has no end");
    size_t name = start;
    while (name < end && format->bytes[name] != '!' && format->bytes[name] != ':') name++;
    out->name = (text_t){.bytes = format->bytes + start, .given = format->given + start, .length = name - start};
    if (name < end && format->bytes[name] == '!') {
        out->conversion = name + 1 < end ? format->bytes[name + 1] : '?';
        name += 2;
    }
    if (name < end && format->bytes[name] == ':') name++;
    if (name < end)
        out->spec = (text_t){.bytes = format->bytes + name, .given = format->given + name, .length = end - name};
    *at = end + 1;
    return STATUS_OK;
}

// `.attribute` and `[key]` after a field's first name.
static status_t field_parts(run_t *run, const text_t *name, size_t at, value_t *value) {
    char part[128];
    while (at < name->length) {
        bool item = name->bytes[at] == '[';
        size_t start = ++at, length;
        while (at < name->length && (item ? name->bytes[at] != ']' : name->bytes[at] != '.' && name->bytes[at] != '['))
            at++;
        length = at - start;
        if (length >= sizeof(part) || (item && at == name->length)) RUN_FAIL(run, "a field of 'format' is wrong");
        memcpy(part, name->bytes + start, length);
        part[length] = 0;
        if (!item) {
            TRY(value_attribute(run, *value, part, value));
            continue;
        }
        at++;
        value_t key;
        if (length && strspn(part, "0123456789") == length && length < 10)
            key = value_int(atoi(part));
        else
            TRY(value_word(run, part, &key));
        TRY(value_item(run, *value, key, value));
    }
    return STATUS_OK;
}

static status_t field_value(run_t *run, const field_t *field, const arguments_t *arguments, size_t *next,
                            value_t *out) {
    const text_t *name = &field->name;
    size_t length = 0, place = 0;
    bool number = true;
    while (length < name->length && name->bytes[length] != '.' && name->bytes[length] != '[') {
        number &= name->bytes[length] >= '0' && name->bytes[length] <= '9';
        if (number && place < 1000000) place = 10 * place + (size_t)(name->bytes[length] - '0');
        length++;
    }
    if (!length || number) {
        if (!length) place = (*next)++;
        if (place >= arguments->count) RUN_FAIL(run, "'format' has more fields than values");
        *out = arguments->value[place];
        return field_parts(run, name, length, out);
    }
    for (size_t k = 0; k < arguments->keywords; k++)
        if (strlen(arguments->keyword[k].name) == length &&
            memcmp(arguments->keyword[k].name, name->bytes, length) == 0) {
            *out = arguments->keyword[k].value;
            return field_parts(run, name, length, out);
        }
    RUN_FAIL(run, "'format' is not given '%.*s'", (int)(length < 60 ? length : 60), name->bytes);
}

// [[fill]align][sign][0][width][.precision][type]
static status_t add_field(run_t *run, builder_t *b, const text_t *spec, value_t value) {
    size_t at = 0, fill_length = 1, first = spec->length ? utf8_next(spec->bytes, spec->length, NULL, NULL, NULL) : 0;
    const char *fill = " ";
    char side = 0, flags[8] = "";
    value_t text;
    if (first && first < spec->length && strchr("<>^", spec->bytes[first]) && spec->bytes[first]) {
        fill = spec->bytes;
        fill_length = first;
        side = spec->bytes[first];
        at = first + 1;
    } else if (spec->length && spec->bytes[0] && strchr("<>^", spec->bytes[0])) {
        side = spec->bytes[at++];
    }
    if (at < spec->length && spec->bytes[at] && strchr("+- ", spec->bytes[at])) {
        if (spec->bytes[at] != '-') flags[0] = spec->bytes[at];
        at++;
    }
    if (!side && at < spec->length && spec->bytes[at] == '0' && value.type != VALUE_STRING) fill = "0";
    int width = read_digits(spec, &at), precision = -1;
    if (at < spec->length && spec->bytes[at] == '.') {
        at++;
        precision = read_digits(spec, &at);
    }
    char kind = at < spec->length ? spec->bytes[at++] : 0;
    if (at < spec->length || (kind && !strchr("sdxXofFeEgG", kind)))
        RUN_FAIL(run, "a field of 'format' asks for what is not supported");
    bool number =
        value.type == VALUE_INT || value.type == VALUE_FLOAT || (value.type == VALUE_BOOL && kind && kind != 's');
    if (!spec->length || !number || kind == 's') {
        if (kind && kind != 's') RUN_FAIL(run, "a field of 'format' wants a number, not a %s", value_type_name(value));
        TRY(value_string(run, value, &text));
        text_t cut = *text.text;
        if (precision >= 0) cut.length = text_offset(text.text, (size_t)precision);
        return add_padded(run, b, &cut, width, side ? side : '<', fill, fill_length);
    }
    if (!kind && precision < 0 && !*flags)
        TRY(value_string(run, value, &text));
    else
        TRY(print_number(run, value, kind ? kind : value.type == VALUE_FLOAT ? 'g' : 'd', flags, precision, &text));
    if (*fill == '0' && !side && text.text->length && text.text->bytes[0] == '-') {
        text_t digits = {.bytes = text.text->bytes + 1, .given = text.text->given + 1, .length = text.text->length - 1};
        TRY(builder_word(run, b, "-"));
        return add_padded(run, b, &digits, width - 1, '>', fill, fill_length);
    }
    return add_padded(run, b, text.text, width, side ? side : '>', fill, fill_length);
}

status_t string_format(run_t *run, const text_t *format, const arguments_t *arguments, value_t *out) {
    builder_t builder = {0};
    size_t at = 0, next = 0;
    while (at < format->length) {
        char c = format->bytes[at];
        if (c != '{' && c != '}') {
            TRY(builder_add(run, &builder, format->bytes + at, format->given + at, 1));
            at++;
            continue;
        }
        TRY(run_pay(run, 1));
        at++;
        if (at < format->length && format->bytes[at] == c) {
            TRY(builder_add(run, &builder, format->bytes + at, format->given + at, 1));
            at++;
            continue;
        }
        if (c == '}') RUN_FAIL(run, "a '}' in 'format' closes nothing");
        field_t field;
        value_t value;
        TRY(read_field(run, format, &at, &field));
        TRY(field_value(run, &field, arguments, &next, &value));
        if (field.conversion == 'r' || field.conversion == 'a') {
            builder_t repr = {0};
            TRY(value_repr(run, &repr, value));
            TRY(builder_finish(run, &repr, &value));
        } else if (field.conversion == 's') {
            TRY(value_string(run, value, &value));
        } else if (field.conversion) {
            RUN_FAIL(run, "a field of 'format' has a wrong conversion");
        }
        TRY(add_field(run, &builder, &field.spec, value));
    }
    return builder_finish(run, &builder, out);
}
