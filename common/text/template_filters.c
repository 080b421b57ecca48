// Filters: what stands after `|`.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef status_t (*filter_t)(run_t *run, value_t value, const value_t *argument, value_t *out);

static bool given(value_t value) {
    return value.type != VALUE_MISSING && value.type != VALUE_NONE;
}

// ---- text ----

static status_t cased(run_t *run, value_t value, letter_case_t how, value_t *out) {
    TRY(value_string(run, value, &value));
    return string_case(run, value.text, how, out);
}
static status_t do_upper(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    return cased(run, value, CASE_UPPER, out);
}
static status_t do_lower(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    return cased(run, value, CASE_LOWER, out);
}
static status_t do_capitalize(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    return cased(run, value, CASE_CAPITALIZE, out);
}
static status_t do_title(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    return cased(run, value, CASE_WORDS, out);
}

static status_t do_trim(run_t *run, value_t value, const value_t *argument, value_t *out) {
    TRY(value_string(run, value, &value));
    return string_strip(run, value.text, argument[0], true, true, out);
}

static status_t do_replace(run_t *run, value_t value, const value_t *argument, value_t *out) {
    value_t old, new;
    int64_t most = -1;
    TRY(value_string(run, value, &value));
    TRY(value_string(run, argument[0], &old));
    TRY(value_string(run, argument[1], &new));
    if (given(argument[2])) TRY(argument_integer(run, argument[2], "'replace': count", &most));
    return string_replace(run, value.text, old.text, new.text, most, out);
}

static status_t do_string(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    return value_string(run, value, out);
}

static status_t mark_safe(run_t *run, const text_t *text, value_t *out) {
    TRY(value_text(run, text->bytes, text->given, text->length, out));
    ((text_t *)out->text)->safe = true;
    return STATUS_OK;
}

static status_t do_safe(run_t *run, value_t value, const value_t *argument, value_t *out) {
    (void)argument;
    TRY(value_string(run, value, &value));
    return mark_safe(run, value.text, out);
}

static status_t do_escape(run_t *run, value_t value, const value_t *argument, value_t *out) {
    text_t empty = {.bytes = "", .given = "", .safe = true};
    (void)argument;
    TRY(value_string(run, value, &value));
    return value_binary(run, '+', VALUE_OF(VALUE_STRING, text, &empty), value, out);
}

static status_t do_join(run_t *run, value_t value, const value_t *argument, value_t *out);

static status_t do_indent(run_t *run, value_t value, const value_t *argument, value_t *out) {
    builder_t builder = {0}, blanks = {0};
    value_t lines, indent = argument[0];
    const text_t *text, *step;
    int64_t width = 4;
    bool first = value_truth(argument[1]), blank = value_truth(argument[2]);
    TRY(argument_text(run, value, "what 'indent' works on", &text));
    if (indent.type != VALUE_STRING) {
        if (given(indent)) TRY(argument_integer(run, indent, "'indent': width", &width));
        if (width > 1000) RUN_FAIL(run, "'indent' takes a width up to 1000");
        for (int64_t i = 0; i < width; i++) TRY(builder_word(run, &blanks, " "));
        TRY(builder_finish(run, &blanks, &indent));
    }
    step = indent.text;
    // A line break at the end leaves no empty line behind it; an empty text is one empty line.
    builder_t whole = {0};
    value_t all;
    TRY(builder_text(run, &whole, text));
    TRY(builder_word(run, &whole, "\n"));
    TRY(builder_finish(run, &whole, &all));
    TRY(string_lines(run, all.text, false, &lines));
    for (size_t i = 0; i < lines.list->count; i++) {
        const text_t *line = lines.list->item[i].text;
        if (i) TRY(builder_word(run, &builder, "\n"));
        if (i ? blank || line->length : first) TRY(builder_text(run, &builder, step));
        TRY(builder_text(run, &builder, line));
    }
    return builder_finish(run, &builder, out);
}

static status_t do_format(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    value_t values;
    if (arguments->keywords) RUN_FAIL(run, "'format' with named arguments is not supported");
    TRY(value_string(run, value, &value));
    TRY(value_list(run, VALUE_TUPLE, arguments->value, arguments->count, &values));
    return string_percent(run, value.text, values, out);
}

static status_t do_center(run_t *run, value_t value, const value_t *argument, value_t *out) {
    method_t method = {.name = "center"};
    value_t width = given(argument[0]) ? argument[0] : value_int(80);
    arguments_t arguments = {.value = &width, .count = 1};
    TRY(value_string(run, value, &method.self));
    return method_call(run, &method, &arguments, out);
}

static status_t do_wordcount(run_t *run, value_t value, const value_t *argument, value_t *out) {
    int64_t count = 0;
    bool inside = false;
    (void)argument;
    TRY(value_string(run, value, &value));
    for (size_t at = 0; at < value.text->length;) {
        text_t one = {.bytes = value.text->bytes + at};
        one.length = utf8_next(one.bytes, value.text->length - at, NULL, NULL, NULL);
        bool word = string_is(&one, "isalnum") || *one.bytes == '_';
        count += word && !inside;
        inside = word;
        at += one.length;
    }
    *out = value_int(count);
    return run_pay(run, value.text->length / 8);
}

// ---- numbers ----

// A string as a number, with blanks around it and underscores between digits as Python allows.
static bool read_number(const text_t *text, int base, bool real, value_t *out) {
    char word[80], *end;
    size_t used = 0, start = 0, stop = text->length;
    while (start < stop && code_is_space((unsigned char)text->bytes[start])) start++;
    while (stop > start && code_is_space((unsigned char)text->bytes[stop - 1])) stop--;
    if (stop == start || stop - start >= sizeof(word)) return false;
    for (size_t i = start; i < stop; i++) {
        char c = text->bytes[i];
        if (c == '_' && i > start && i + 1 < stop && text->bytes[i - 1] != '_') continue;
        if (!c || strchr("_ \t\n", c) || (!real && c == '.')) return false;
        word[used++] = c;
    }
    word[used] = 0;
    errno = 0;
    if (real) {
        if (strpbrk(word, "xXpP(")) return false;
        *out = value_float(strtod(word, &end));
    } else {
        char *digits = word + (*word == '-' || *word == '+');
        bool prefixed =
            digits[0] == '0' && ((base == 16 && (digits[1] | 32) == 'x') || (base == 2 && (digits[1] | 32) == 'b') ||
                                 (base == 8 && (digits[1] | 32) == 'o'));
        if (prefixed && base != 16) memmove(digits, digits + 2, strlen(digits + 2) + 1);
        *out = value_int(strtoll(word, &end, base));
    }
    return !*end && end != word && (real || !errno);
}

static status_t do_int(run_t *run, value_t value, const value_t *argument, value_t *out) {
    int64_t integer, base = 10;
    value_t real;
    *out = argument[0].type == VALUE_MISSING ? value_int(0) : argument[0];
    if (given(argument[1])) TRY(argument_integer(run, argument[1], "'int': base", &base));
    if (base < 2 || base > 36) RUN_FAIL(run, "'int' takes a base from 2 to 36");
    if (value.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", value.hint);
    if (value_integer(value, &integer)) {
        *out = value_int(integer);
        return STATUS_OK;
    }
    if (value.type == VALUE_STRING) {
        if (read_number(value.text, (int)base, false, &real)) {
            *out = real;
            return STATUS_OK;
        }
        if (!read_number(value.text, 10, true, &real)) return STATUS_OK;
        value = real;
    }
    if (value.type != VALUE_FLOAT || isnan(value.real) || isinf(value.real)) return STATUS_OK;
    if (fabs(value.real) >= 9e18) RUN_FAIL(run, "an integer does not fit in 64 bits");
    *out = value_int((int64_t)value.real);
    return STATUS_OK;
}

static status_t do_float(run_t *run, value_t value, const value_t *argument, value_t *out) {
    double real;
    *out = argument[0].type == VALUE_MISSING ? value_float(0) : argument[0];
    if (value.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", value.hint);
    if (value_number(value, &real))
        *out = value_float(real);
    else if (value.type == VALUE_STRING) {
        value_t read;
        if (read_number(value.text, 10, true, &read)) *out = read;
    }
    return STATUS_OK;
}

static status_t do_abs(run_t *run, value_t value, const value_t *argument, value_t *out) {
    int64_t integer;
    (void)argument;
    if (value_integer(value, &integer)) {
        if (integer == INT64_MIN) RUN_FAIL(run, "an integer does not fit in 64 bits");
        *out = value_int(integer < 0 ? -integer : integer);
    } else if (value.type == VALUE_FLOAT) {
        *out = value_float(fabs(value.real));
    } else {
        RUN_FAIL(run, "'abs' takes no %s", value_type_name(value));
    }
    return STATUS_OK;
}

static status_t do_round(run_t *run, value_t value, const value_t *argument, value_t *out) {
    double real;
    int64_t precision = 0, integer;
    if (given(argument[0])) TRY(argument_integer(run, argument[0], "'round': precision", &precision));
    if (!value_number(value, &real)) RUN_FAIL(run, "'round' takes no %s", value_type_name(value));
    bool common = argument[1].type == VALUE_MISSING || value_is_word(argument[1], "common");
    if (!common && !value_is_word(argument[1], "ceil") && !value_is_word(argument[1], "floor"))
        RUN_FAIL(run, "'round' takes the methods common, ceil and floor");
    if (precision < -15 || precision > 15) RUN_FAIL(run, "'round' takes a precision from -15 to 15");
    if (common && value_integer(value, &integer) && precision >= 0) {
        *out = value_int(integer);
        return STATUS_OK;
    }
    if (!isfinite(real)) {
        *out = value_float(real);
        return STATUS_OK;
    }
    if (common && precision >= 0) { // the nearest decimal of the exact value, ties to even
        char text[400];
        snprintf(text, sizeof(text), "%.*f", (int)precision, real);
        *out = value_float(strtod(text, NULL));
        return STATUS_OK;
    }
    double scale = pow(10, (double)precision);
    double scaled = real * scale;
    scaled = common ? rint(scaled) : value_is_word(argument[1], "ceil") ? ceil(scaled) : floor(scaled);
    *out = value_float(scaled / scale);
    if (common && value_integer(value, &integer)) *out = value_int((int64_t)out->real);
    return STATUS_OK;
}

// ---- attributes of items ----

// item.a.b.0, by item rather than by attribute, as Jinja's filters look attributes up.
static status_t item_attribute(run_t *run, value_t item, value_t path, value_t *out) {
    value_t parts;
    int64_t index;
    if (!given(path)) {
        *out = item;
        return STATUS_OK;
    }
    if (value_integer(path, &index)) return value_item(run, item, path, out);
    const text_t *text;
    value_t dot;
    TRY(argument_text(run, path, "an attribute's name", &text));
    TRY(value_word(run, ".", &dot));
    TRY(string_split(run, text, dot, -1, false, &parts));
    *out = item;
    for (size_t i = 0; i < parts.list->count; i++) {
        value_t part = parts.list->item[i];
        if (string_is(part.text, "isdigit") && part.text->length < 18) {
            value_t number;
            if (read_number(part.text, 10, false, &number)) part = number;
        }
        TRY(value_item(run, *out, part, out));
    }
    return STATUS_OK;
}

// The key that sort, unique, min and max compare: text without case unless asked for.
static status_t sort_key(run_t *run, value_t item, value_t path, bool with_case, value_t *out) {
    TRY(item_attribute(run, item, path, out));
    if (with_case || out->type != VALUE_STRING) return STATUS_OK;
    return string_case(run, out->text, CASE_LOWER, out);
}

// ---- sequences ----

static status_t do_length(run_t *run, value_t value, const value_t *argument, value_t *out) {
    size_t length;
    (void)argument;
    TRY(value_length(run, value, &length));
    *out = value_int((int64_t)length);
    return STATUS_OK;
}

static status_t do_list(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    size_t count;
    (void)argument;
    TRY(value_items(run, value, &items, &count));
    return value_list(run, VALUE_LIST, items, count, out);
}

static status_t do_first(run_t *run, value_t value, const value_t *argument, value_t *out) {
    cursor_t cursor;
    bool more;
    (void)argument;
    TRY(cursor_open(run, value, &cursor));
    TRY(cursor_next(run, &cursor, out, &more));
    if (!more) *out = value_undefined("there is no first item, the sequence was empty");
    return STATUS_OK;
}

static status_t do_last(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    size_t count;
    (void)argument;
    if (value.type == VALUE_STREAM && !value.stream->view)
        RUN_FAIL(run, "'last' takes no generator; use '| list' first");
    if (value.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", value.hint);
    TRY(value_items(run, value, &items, &count));
    *out = count ? items[count - 1] : value_undefined("there is no last item, the sequence was empty");
    return STATUS_OK;
}

static status_t do_join(run_t *run, value_t value, const value_t *argument, value_t *out) {
    builder_t builder = {0};
    cursor_t cursor;
    value_t item;
    bool more = true;
    TRY(cursor_open(run, value, &cursor));
    for (bool first = true;; first = false) {
        TRY(cursor_next(run, &cursor, &item, &more));
        if (!more) break;
        if (!first && argument[0].type != VALUE_MISSING) TRY(value_print(run, &builder, argument[0]));
        TRY(item_attribute(run, item, argument[1], &item));
        TRY(value_print(run, &builder, item));
    }
    return builder_finish(run, &builder, out);
}

static status_t do_reverse(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    value_t *turned, list;
    size_t count;
    value_t bound[3] = {value_none(), value_none(), value_int(-1)};
    (void)argument;
    if (value.type == VALUE_STRING) return value_slice(run, value, bound, out);
    TRY(value_items(run, value, &items, &count));
    TRY(HEAP_NEW(&run->heap, &turned, count));
    for (size_t i = 0; i < count; i++) turned[i] = items[count - 1 - i];
    TRY(value_list(run, VALUE_LIST, turned, count, &list));
    return value_stream(run, list, NULL, out);
}

static status_t do_items(run_t *run, value_t value, const value_t *argument, value_t *out) {
    method_t method = {.self = value, .name = "items"};
    arguments_t none = {0};
    value_t list;
    (void)argument;
    if (value.type == VALUE_UNDEFINED) {
        TRY(value_list(run, VALUE_LIST, NULL, 0, &list));
        return value_stream(run, list, NULL, out);
    }
    if (value.type != VALUE_DICT) RUN_FAIL(run, "'items' takes a dict, not a %s", value_type_name(value));
    TRY(method_call(run, &method, &none, out));
    return value_stream(run, out->stream->items, NULL, out);
}

typedef struct sorted {
    value_t item, key;
} sorted_t;

// A stable merge sort that can fail.
static status_t merge_sort(run_t *run, sorted_t *data, sorted_t *spare, size_t count, bool down) {
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t start = 0; start < count; start += 2 * width) {
            size_t left = start, middle = start + width < count ? start + width : count;
            size_t end = start + 2 * width < count ? start + 2 * width : count, right = middle, at = start;
            while (left < middle || right < end) {
                bool take_right = left == middle;
                if (!take_right && right < end) {
                    if (down)
                        TRY(value_order(run, data[left].key, data[right].key, '<', &take_right));
                    else
                        TRY(value_order(run, data[right].key, data[left].key, '<', &take_right));
                }
                spare[at++] = data[take_right ? right++ : left++];
            }
        }
        memcpy(data, spare, count * sizeof(*data));
    }
    return STATUS_OK;
}

static status_t sort_items(run_t *run, const value_t *items, const value_t *keys, size_t count, bool down,
                           value_t *out) {
    sorted_t *data, *spare;
    value_t *made;
    TRY(HEAP_NEW(&run->heap, &data, count));
    TRY(HEAP_NEW(&run->heap, &spare, count));
    TRY(HEAP_NEW(&run->heap, &made, count));
    for (size_t i = 0; i < count; i++) data[i] = (sorted_t){.item = items[i], .key = keys[i]};
    TRY(merge_sort(run, data, spare, count, down));
    for (size_t i = 0; i < count; i++) made[i] = data[i].item;
    return value_list(run, VALUE_LIST, made, count, out);
}

// argument: reverse, case_sensitive, attribute.
static status_t do_sort(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    value_t *keys, paths = {0}, comma;
    size_t count;
    TRY(value_items(run, value, &items, &count));
    TRY(HEAP_NEW(&run->heap, &keys, count));
    TRY(value_word(run, ",", &comma));
    if (argument[2].type == VALUE_STRING) TRY(string_split(run, argument[2].text, comma, -1, false, &paths));
    bool several = argument[2].type == VALUE_STRING && paths.list->count > 1;
    for (size_t i = 0; i < count; i++) {
        if (!several) {
            TRY(sort_key(run, items[i], argument[2], value_truth(argument[1]), &keys[i]));
            continue;
        }
        value_t *parts;
        TRY(HEAP_NEW(&run->heap, &parts, paths.list->count));
        for (size_t p = 0; p < paths.list->count; p++)
            TRY(sort_key(run, items[i], paths.list->item[p], value_truth(argument[1]), &parts[p]));
        TRY(value_list(run, VALUE_LIST, parts, paths.list->count, &keys[i]));
    }
    return sort_items(run, items, keys, count, value_truth(argument[0]), out);
}

// argument: case_sensitive, by, reverse.
static status_t do_dictsort(run_t *run, value_t value, const value_t *argument, value_t *out) {
    bool by_value = value_is_word(argument[1], "value");
    value_t *keys;
    method_t method = {.self = value, .name = "items"};
    arguments_t none = {0};
    if (argument[1].type != VALUE_MISSING && !by_value && !value_is_word(argument[1], "key"))
        RUN_FAIL(run, "'dictsort' sorts by 'key' or 'value'");
    if (value.type != VALUE_DICT) RUN_FAIL(run, "'dictsort' takes a dict, not a %s", value_type_name(value));
    TRY(method_call(run, &method, &none, out));
    const list_t *pairs = out->stream->items.list;
    TRY(HEAP_NEW(&run->heap, &keys, pairs->count));
    for (size_t i = 0; i < pairs->count; i++)
        TRY(sort_key(run, pairs->item[i].list->item[by_value], (value_t){0}, value_truth(argument[0]), &keys[i]));
    return sort_items(run, pairs->item, keys, pairs->count, value_truth(argument[2]), out);
}

// argument: case_sensitive, attribute.
static status_t do_unique(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    value_t *keys, *kept, list;
    size_t count, used = 0;
    TRY(value_items(run, value, &items, &count));
    TRY(HEAP_NEW(&run->heap, &keys, count));
    TRY(HEAP_NEW(&run->heap, &kept, count));
    for (size_t i = 0; i < count; i++) {
        bool seen = false;
        TRY(sort_key(run, items[i], argument[1], value_truth(argument[0]), &keys[used]));
        if (keys[used].type == VALUE_LIST || keys[used].type == VALUE_DICT)
            RUN_FAIL(run, "'unique' cannot tell a %s from another", value_type_name(keys[used]));
        for (size_t k = 0; k < used && !seen; k++) TRY(value_equal(run, keys[k], keys[used], &seen));
        if (!seen) kept[used++] = items[i];
    }
    TRY(value_list(run, VALUE_LIST, kept, used, &list));
    return value_stream(run, list, NULL, out);
}

static status_t extreme(run_t *run, value_t value, const value_t *argument, int operation, value_t *out) {
    const value_t *items;
    value_t best, key;
    size_t count;
    TRY(value_items(run, value, &items, &count));
    *out = value_undefined("there is no item, the sequence was empty");
    for (size_t i = 0; i < count; i++) {
        bool better = !i;
        TRY(sort_key(run, items[i], argument[1], value_truth(argument[0]), &key));
        if (i) TRY(value_order(run, key, best, operation, &better));
        if (!better) continue;
        best = key;
        *out = items[i];
    }
    return STATUS_OK;
}
static status_t do_min(run_t *run, value_t value, const value_t *argument, value_t *out) {
    return extreme(run, value, argument, '<', out);
}
static status_t do_max(run_t *run, value_t value, const value_t *argument, value_t *out) {
    return extreme(run, value, argument, '>', out);
}

static status_t do_sum(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    value_t item;
    size_t count;
    TRY(value_items(run, value, &items, &count));
    *out = argument[1].type == VALUE_MISSING ? value_int(0) : argument[1];
    if (out->type == VALUE_STRING) RUN_FAIL(run, "'sum' does not join strings; use 'join'");
    for (size_t i = 0; i < count; i++) {
        TRY(item_attribute(run, items[i], argument[0], &item));
        TRY(value_binary(run, '+', *out, item, out));
    }
    return STATUS_OK;
}

// argument: how many to a batch, what fills the last.
static status_t do_batch(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const value_t *items;
    value_t *batches, list;
    size_t count, made = 0;
    int64_t size;
    TRY(argument_integer(run, argument[0], "'batch': linecount", &size));
    TRY(value_items(run, value, &items, &count));
    if (size < 1 || size > 100000) RUN_FAIL(run, "'batch' takes from 1 to 100000 items a line");
    TRY(HEAP_NEW(&run->heap, &batches, count / (size_t)size + 1));
    for (size_t at = 0; at < count; at += (size_t)size) {
        size_t here = count - at < (size_t)size ? count - at : (size_t)size,
               filled = given(argument[1]) ? (size_t)size : here;
        value_t *batch;
        TRY(run_pay(run, filled));
        TRY(HEAP_NEW(&run->heap, &batch, filled));
        for (size_t i = 0; i < filled; i++) batch[i] = i < here ? items[at + i] : argument[1];
        TRY(value_list(run, VALUE_LIST, batch, filled, &batches[made++]));
    }
    TRY(value_list(run, VALUE_LIST, batches, made, &list));
    return value_stream(run, list, NULL, out);
}

// ---- what is given a name ----

static status_t do_default(run_t *run, value_t value, const value_t *argument, value_t *out) {
    bool missing = value.type == VALUE_UNDEFINED || (value_truth(argument[1]) && !value_truth(value));
    *out = value;
    if (!missing) return STATUS_OK;
    if (argument[0].type == VALUE_MISSING) return value_word(run, "", out);
    *out = argument[0];
    return STATUS_OK;
}

static status_t do_attr(run_t *run, value_t value, const value_t *argument, value_t *out) {
    const text_t *name;
    char word[128];
    TRY(argument_text(run, argument[0], "an attribute's name", &name));
    if (value.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", value.hint);
    if (name->length >= sizeof(word)) RUN_FAIL(run, "an attribute's name is too long");
    memcpy(word, name->bytes, name->length);
    word[name->length] = 0;
    if (value.type == VALUE_DICT) { // never an item
        bool usable;
        if (!method_exists(value, word, &usable)) {
            *out = value_undefined("a dict has no such attribute");
            return STATUS_OK;
        }
    }
    return value_attribute(run, value, word, out);
}

static status_t filter_named(run_t *run, const arguments_t *arguments, const char **name, arguments_t *rest) {
    const text_t *text;
    char *copy;
    TRY(argument_text(run, arguments->value[0], "the name of a filter or test", &text));
    TRY(template_heap_take(&run->heap, text->length + 1, (void **)&copy));
    memcpy(copy, text->bytes, text->length);
    *name = copy;
    *rest = *arguments;
    rest->value++;
    rest->count--;
    return STATUS_OK;
}

static value_t keyword(const arguments_t *arguments, const char *name) {
    for (size_t k = 0; k < arguments->keywords; k++)
        if (strcmp(arguments->keyword[k].name, name) == 0) return arguments->keyword[k].value;
    return (value_t){0};
}

static status_t do_map(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    const value_t *items;
    value_t *made, list, path = keyword(arguments, "attribute"), other = keyword(arguments, "default");
    size_t count;
    const char *name = NULL;
    arguments_t rest = {0};
    if (value_truth(value)) {
        if (arguments->count)
            TRY(filter_named(run, arguments, &name, &rest));
        else if (path.type == VALUE_MISSING)
            RUN_FAIL(run, "'map' needs the name of a filter, or attribute=");
    }
    if (!value_truth(value)) value = value_undefined(""); // as in Jinja, whatever it is
    TRY(value_items(run, value, &items, &count));
    TRY(HEAP_NEW(&run->heap, &made, count));
    for (size_t i = 0; i < count; i++) {
        TRY(run_pay(run, 1));
        if (name) {
            TRY(filter_apply(run, name, items[i], &rest, &made[i]));
            continue;
        }
        TRY(item_attribute(run, items[i], path, &made[i]));
        if (made[i].type == VALUE_UNDEFINED && given(other)) made[i] = other;
    }
    TRY(value_list(run, VALUE_LIST, made, count, &list));
    return value_stream(run, list, NULL, out);
}

// select, reject and, by an attribute, selectattr and rejectattr.
static status_t choose(run_t *run, value_t value, const arguments_t *arguments, bool by_attribute, bool wanted,
                       value_t *out) {
    const value_t *items;
    value_t *kept, list, path = {0};
    size_t count, used = 0;
    const char *name = NULL;
    arguments_t rest = *arguments;
    if (by_attribute && value_truth(value)) {
        if (!rest.count) RUN_FAIL(run, "'selectattr' and 'rejectattr' need the name of an attribute");
        path = rest.value[0];
        rest.value++;
        rest.count--;
    }
    if (rest.count && value_truth(value)) TRY(filter_named(run, &rest, &name, &rest));
    if (!value_truth(value)) value = value_undefined(""); // as in Jinja, whatever it is
    TRY(value_items(run, value, &items, &count));
    TRY(HEAP_NEW(&run->heap, &kept, count));
    for (size_t i = 0; i < count; i++) {
        value_t item;
        bool passes;
        TRY(run_pay(run, 1));
        TRY(item_attribute(run, items[i], path, &item));
        if (name)
            TRY(test_apply(run, name, item, &rest, &passes));
        else
            passes = value_truth(item);
        if (passes == wanted) kept[used++] = items[i];
    }
    TRY(value_list(run, VALUE_LIST, kept, used, &list));
    return value_stream(run, list, NULL, out);
}
static status_t do_select(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    return choose(run, value, arguments, false, true, out);
}
static status_t do_reject(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    return choose(run, value, arguments, false, false, out);
}
static status_t do_selectattr(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    return choose(run, value, arguments, true, true, out);
}
static status_t do_rejectattr(run_t *run, value_t value, const arguments_t *arguments, value_t *out) {
    return choose(run, value, arguments, true, false, out);
}

// ---- the table ----

static const struct {
    const char *name, *parameters;
    int needed;
    filter_t apply;
} filters[] = {
    {"trim", "chars", 0, do_trim},
    {"length", "", 0, do_length},
    {"count", "", 0, do_length},
    {"upper", "", 0, do_upper},
    {"lower", "", 0, do_lower},
    {"capitalize", "", 0, do_capitalize},
    {"title", "", 0, do_title},
    {"replace", "old,new,count", 2, do_replace},
    {"join", "d,attribute", 0, do_join},
    {"first", "", 0, do_first},
    {"last", "", 0, do_last},
    {"default", "default_value,boolean", 0, do_default},
    {"d", "default_value,boolean", 0, do_default},
    {"tojson", "ensure_ascii,indent,separators,sort_keys", 0, value_json},
    {"items", "", 0, do_items},
    {"list", "", 0, do_list},
    {"string", "", 0, do_string},
    {"safe", "", 0, do_safe},
    {"e", "", 0, do_escape},
    {"escape", "", 0, do_escape},
    {"int", "default,base", 0, do_int},
    {"float", "default", 0, do_float},
    {"abs", "", 0, do_abs},
    {"round", "precision,method", 0, do_round},
    {"indent", "width,first,blank", 0, do_indent},
    {"reverse", "", 0, do_reverse},
    {"sort", "reverse,case_sensitive,attribute", 0, do_sort},
    {"dictsort", "case_sensitive,by,reverse", 0, do_dictsort},
    {"unique", "case_sensitive,attribute", 0, do_unique},
    {"min", "case_sensitive,attribute", 0, do_min},
    {"max", "case_sensitive,attribute", 0, do_max},
    {"sum", "attribute,start", 0, do_sum},
    {"batch", "linecount,fill_with", 1, do_batch},
    {"attr", "name", 1, do_attr},
    {"center", "width", 0, do_center},
    {"wordcount", "", 0, do_wordcount},
};

// Filters that take any arguments.
static const struct {
    const char *name;
    status_t (*apply)(run_t *run, value_t value, const arguments_t *arguments, value_t *out);
} open_filters[] = {
    {"map", do_map},
    {"select", do_select},
    {"reject", do_reject},
    {"selectattr", do_selectattr},
    {"rejectattr", do_rejectattr},
    {"format", do_format},
};

bool filter_exists(const char *name) {
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++)
        if (strcmp(filters[i].name, name) == 0) return true;
    for (size_t i = 0; i < sizeof(open_filters) / sizeof(open_filters[0]); i++)
        if (strcmp(open_filters[i].name, name) == 0) return true;
    return false;
}

status_t filter_apply(run_t *run, const char *name, value_t value, const arguments_t *arguments, value_t *out) {
    value_t argument[MOST_PARAMETERS];
    for (size_t i = 0; i < sizeof(open_filters) / sizeof(open_filters[0]); i++)
        if (strcmp(open_filters[i].name, name) == 0) return open_filters[i].apply(run, value, arguments, out);
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
        if (strcmp(filters[i].name, name) != 0) continue;
        TRY(arguments_bind(run, arguments, name, filters[i].parameters, filters[i].needed, argument));
        return filters[i].apply(run, value, argument, out);
    }
    RUN_FAIL(run, "the filter '%s' is not supported", name);
}
