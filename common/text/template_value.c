// Values: making, comparing, looping over them.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <math.h>
#include <string.h>

status_t run_error(const run_t *run, status_t status) {
    return status_context(status, "line %d", run->line);
}

status_t run_pay(run_t *run, size_t steps) {
    if (steps > INT64_MAX / 2 || (run->steps -= (int64_t)steps) < 0)
        RUN_FAIL(run, "the template takes too many steps for what it is given; does it loop without end?");
    return STATUS_OK;
}

// ---- text ----

status_t builder_add(run_t *run, builder_t *b, const char *bytes, const char *given, size_t length) {
    if (!length) return STATUS_OK;
    TRY(run_pay(run, length / 64));
    if (length > b->capacity - b->length) {
        size_t capacity = 2 * b->capacity + length + 64;
        char *grown, *marks;
        TRY(template_heap_take(&run->heap, capacity, (void **)&grown));
        TRY(template_heap_take(&run->heap, capacity, (void **)&marks));
        if (b->length) {
            memcpy(grown, b->bytes, b->length);
            memcpy(marks, b->given, b->length);
        }
        b->bytes = grown;
        b->given = marks;
        b->capacity = capacity;
    }
    memcpy(b->bytes + b->length, bytes, length);
    if (given)
        memcpy(b->given + b->length, given, length);
    else
        memset(b->given + b->length, 0, length);
    b->length += length;
    return STATUS_OK;
}

status_t builder_word(run_t *run, builder_t *builder, const char *word) {
    return builder_add(run, builder, word, NULL, strlen(word));
}

status_t builder_text(run_t *run, builder_t *builder, const text_t *text) {
    return builder_add(run, builder, text->bytes, text->given, text->length);
}

// A text over bytes and marks that stay.
status_t value_text(run_t *run, const char *bytes, const char *given, size_t length, value_t *out) {
    text_t *text;
    TRY(HEAP_NEW(&run->heap, &text, 1));
    *text = (text_t){.bytes = bytes, .given = given, .length = length};
    *out = VALUE_OF(VALUE_STRING, text, text);
    return STATUS_OK;
}

status_t builder_finish(run_t *run, const builder_t *builder, value_t *out) {
    return value_text(run, builder->bytes ? builder->bytes : "", builder->given ? builder->given : "", builder->length,
                      out);
}

status_t value_word(run_t *run, const char *word, value_t *out) {
    builder_t builder = {0};
    TRY(builder_word(run, &builder, word));
    return builder_finish(run, &builder, out);
}

size_t text_count(const text_t *text) {
    size_t count = 0;
    for (size_t i = 0; i < text->length; i++) count += (text->bytes[i] & 0xc0) != 0x80;
    return count;
}

size_t text_offset(const text_t *text, size_t character) {
    size_t at = 0;
    for (; at < text->length; at++)
        if ((text->bytes[at] & 0xc0) != 0x80 && !character--) break;
    return at;
}

// ---- lists, dicts, streams ----

status_t value_list(run_t *run, value_type_t type, const value_t *items, size_t count, value_t *out) {
    list_t *list;
    TRY(HEAP_NEW(&run->heap, &list, 1));
    *list = (list_t){.item = items, .count = count};
    *out = VALUE_OF(type, list, list);
    return STATUS_OK;
}

status_t value_stream(run_t *run, value_t list, const char *view, value_t *out) {
    stream_t *stream;
    TRY(HEAP_NEW(&run->heap, &stream, 1));
    *stream = (stream_t){.items = list, .view = view};
    *out = VALUE_OF(VALUE_STREAM, stream, stream);
    return STATUS_OK;
}

static status_t string_from_json(run_t *run, const char *bytes, size_t length, bool given, value_t *out) {
    char *copy, *marks;
    TRY(template_heap_take(&run->heap, length, (void **)&copy));
    TRY(template_heap_take(&run->heap, length, (void **)&marks));
    memcpy(copy, bytes, length);
    memset(marks, given, length);
    return value_text(run, copy, marks, length, out);
}

static status_t list_from_json(run_t *run, const json_t *json, bool given, value_t *out) {
    size_t count = json_array_size(json);
    value_t *items;
    TRY(HEAP_NEW(&run->heap, &items, count));
    for (size_t i = 0; i < count; i++) TRY(value_from_json(run, json_array_get(json, i), given, &items[i]));
    return value_list(run, VALUE_LIST, items, count, out);
}

static status_t dict_from_json(run_t *run, const json_t *json, bool given, value_t *out) {
    size_t at = 0;
    pair_t *pairs;
    dict_t *dict;
    const char *key;
    json_t *member;
    TRY(HEAP_NEW(&run->heap, &pairs, json_object_size(json)));
    json_object_foreach((json_t *)json, key, member) {
        TRY(string_from_json(run, key, strlen(key), given, &pairs[at].key));
        TRY(value_from_json(run, member, given, &pairs[at].value));
        at++;
    }
    TRY(HEAP_NEW(&run->heap, &dict, 1));
    *dict = (dict_t){.pair = pairs, .count = at};
    *out = VALUE_OF(VALUE_DICT, dict, dict);
    return STATUS_OK;
}

status_t value_from_json(run_t *run, const json_t *json, bool given, value_t *out) {
    if (++run->depth > TEMPLATE_DEPTH) FAIL(STATUS_INVALID, "lists and objects are nested too deep");
    status_t status = STATUS_OK;
    *out = value_none();
    if (json_is_string(json))
        status = string_from_json(run, json_string_value(json), json_string_length(json), given, out);
    else if (json_is_array(json))
        status = list_from_json(run, json, given, out);
    else if (json_is_object(json))
        status = dict_from_json(run, json, given, out);
    else if (json_is_boolean(json))
        *out = value_bool(json_is_true(json));
    else if (json_is_integer(json))
        *out = value_int(json_integer_value(json));
    else if (json_is_real(json))
        *out = value_float(json_real_value(json));
    run->depth--;
    return status;
}

const char *value_type_name(value_t value) {
    static const char *const names[] = {
        [VALUE_MISSING] = "nothing",
        [VALUE_UNDEFINED] = "Undefined",
        [VALUE_NONE] = "NoneType",
        [VALUE_BOOL] = "bool",
        [VALUE_INT] = "int",
        [VALUE_FLOAT] = "float",
        [VALUE_STRING] = "str",
        [VALUE_LIST] = "list",
        [VALUE_TUPLE] = "tuple",
        [VALUE_RANGE] = "range",
        [VALUE_DICT] = "dict",
        [VALUE_STREAM] = "generator",
        [VALUE_NAMESPACE] = "Namespace",
        [VALUE_LOOP] = "LoopContext",
        [VALUE_MACRO] = "Macro",
        [VALUE_FUNCTION] = "function",
        [VALUE_METHOD] = "method",
    };
    return value.type == VALUE_STREAM && value.stream->view ? value.stream->view : names[value.type];
}

bool value_truth(value_t value) {
    switch (value.type) {
    case VALUE_MISSING:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return value.truth;
    case VALUE_INT:
        return value.integer != 0;
    case VALUE_FLOAT:
        return value.real != 0;
    case VALUE_STRING:
        return value.text->length != 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
        return value.list->count != 0;
    case VALUE_RANGE:
        return value.range->count != 0;
    case VALUE_DICT:
        return value.dict->count != 0;
    case VALUE_STREAM: // a generator is true even when it yields nothing
        return !value.stream->view || value.stream->items.list->count != 0;
    default:
        return true;
    }
}

bool value_integer(value_t value, int64_t *integer) {
    if (value.type != VALUE_INT && value.type != VALUE_BOOL) return false;
    *integer = value.type == VALUE_BOOL ? value.truth : value.integer;
    return true;
}

bool value_number(value_t value, double *real) {
    int64_t integer;
    if (value_integer(value, &integer))
        *real = (double)integer;
    else if (value.type == VALUE_FLOAT)
        *real = value.real;
    else
        return false;
    return true;
}

bool value_is_word(value_t value, const char *word) {
    return value.type == VALUE_STRING && value.text->length == strlen(word) &&
           memcmp(value.text->bytes, word, value.text->length) == 0;
}

static bool is_sequence(value_t value) {
    return value.type == VALUE_LIST || value.type == VALUE_TUPLE;
}

status_t value_length(run_t *run, value_t value, size_t *out) {
    if (value.type == VALUE_UNDEFINED)
        *out = 0;
    else if (value.type == VALUE_STRING)
        *out = text_count(value.text);
    else if (is_sequence(value))
        *out = value.list->count;
    else if (value.type == VALUE_RANGE)
        *out = value.range->count;
    else if (value.type == VALUE_DICT)
        *out = value.dict->count;
    else if (value.type == VALUE_STREAM && value.stream->view)
        *out = value.stream->items.list->count;
    else
        RUN_FAIL(run, "a %s has no length", value_type_name(value));
    return value.type == VALUE_STRING ? run_pay(run, value.text->length / 64) : STATUS_OK;
}

value_t list_item(value_t value, size_t at) {
    if (value.type == VALUE_RANGE) return value_int(value.range->start + (int64_t)at * value.range->step);
    return value.list->item[at];
}

// ---- comparing ----

static bool texts_equal(const text_t *a, const text_t *b) {
    return a->length == b->length && memcmp(a->bytes, b->bytes, a->length) == 0;
}

// Numbers are compared exactly, also a large integer with a float.
static int compare_numbers(value_t a, value_t b, bool *ordered) {
    int64_t left = 0, right = 0;
    double x = 0, y = 0;
    *ordered = true;
    if (value_integer(a, &left) && value_integer(b, &right)) return left < right ? -1 : left > right;
    value_number(a, &x);
    value_number(b, &y);
    *ordered = !isnan(x) && !isnan(y);
    return x < y ? -1 : x > y;
}

static bool is_number(value_t value) {
    return value.type == VALUE_BOOL || value.type == VALUE_INT || value.type == VALUE_FLOAT;
}

static status_t equal_lists(run_t *run, value_t a, value_t b, bool *out) {
    size_t count = a.list->count;
    *out = b.list->count == count;
    for (size_t i = 0; i < count && *out; i++) TRY(value_equal(run, a.list->item[i], b.list->item[i], out));
    return STATUS_OK;
}

static status_t equal_dicts(run_t *run, const dict_t *a, const dict_t *b, bool *out) {
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) {
        value_t other;
        TRY(run_pay(run, b->count / 4 + 1));
        *out = value_find(b, a->pair[i].key, &other);
        if (*out) TRY(value_equal(run, a->pair[i].value, other, out));
    }
    return STATUS_OK;
}

status_t value_equal(run_t *run, value_t a, value_t b, bool *out) {
    bool ordered;
    TRY(run_pay(run, 1));
    *out = false;
    if (is_number(a) && is_number(b)) {
        *out = compare_numbers(a, b, &ordered) == 0 && ordered;
        return STATUS_OK;
    }
    if (a.type != b.type) return STATUS_OK;
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "values are nested too deep to be compared");
    status_t status = STATUS_OK;
    switch (a.type) {
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        *out = true;
        break;
    case VALUE_STRING:
        status = run_pay(run, a.text->length / 256);
        *out = texts_equal(a.text, b.text);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
        status = equal_lists(run, a, b, out);
        break;
    case VALUE_RANGE:
        *out = a.range->count == b.range->count &&
               (!a.range->count ||
                (a.range->start == b.range->start && (a.range->count == 1 || a.range->step == b.range->step)));
        break;
    case VALUE_DICT:
        status = equal_dicts(run, a.dict, b.dict, out);
        break;
    case VALUE_FUNCTION:
        *out = a.function == b.function;
        break;
    case VALUE_METHOD:
        *out = strcmp(a.method->name, b.method->name) == 0 && a.method->self.dict == b.method->self.dict;
        break;
    default:
        *out = a.dict == b.dict; // the same object
    }
    run->depth--;
    return status;
}

static int compare_texts(const text_t *a, const text_t *b) {
    size_t length = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->bytes, b->bytes, length); // UTF-8 sorts as its characters do
    return order ? order : a->length < b->length ? -1 : a->length > b->length;
}

static bool order_holds(int order, int operation) {
    switch (operation) {
    case '<':
        return order < 0;
    case '>':
        return order > 0;
    case OPERATOR2('<', '='):
        return order <= 0;
    default:
        return order >= 0;
    }
}

status_t value_order(run_t *run, value_t a, value_t b, int operation, bool *out) {
    bool ordered = true;
    TRY(run_pay(run, 1));
    if (is_number(a) && is_number(b)) {
        int order = compare_numbers(a, b, &ordered);
        *out = ordered && order_holds(order, operation);
        return STATUS_OK;
    }
    if (a.type == VALUE_STRING && b.type == VALUE_STRING) {
        TRY(run_pay(run, a.text->length / 256));
        *out = order_holds(compare_texts(a.text, b.text), operation);
        return STATUS_OK;
    }
    if (a.type == VALUE_UNDEFINED || b.type == VALUE_UNDEFINED)
        RUN_FAIL(run, "%s", a.type == VALUE_UNDEFINED ? a.hint : b.hint);
    if (!is_sequence(a) || a.type != b.type)
        RUN_FAIL(run, "a %s and a %s have no order", value_type_name(a), value_type_name(b));
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "values are nested too deep to be compared");
    for (size_t i = 0; i < a.list->count && i < b.list->count; i++) {
        bool same;
        TRY(value_equal(run, a.list->item[i], b.list->item[i], &same));
        if (same) continue;
        run->depth--;
        return value_order(run, a.list->item[i], b.list->item[i], operation, out);
    }
    run->depth--;
    *out = order_holds(a.list->count < b.list->count ? -1 : a.list->count > b.list->count, operation);
    return STATUS_OK;
}

// Keys are looked up by equality; what cannot be a key is in no dict.
bool value_find(const dict_t *dict, value_t key, value_t *out) {
    for (size_t i = 0; i < dict->count; i++) {
        value_t other = dict->pair[i].key;
        bool same = false, ordered;
        if (key.type == VALUE_STRING)
            same = other.type == VALUE_STRING && texts_equal(key.text, other.text);
        else if (is_number(key))
            same = is_number(other) && compare_numbers(key, other, &ordered) == 0;
        else
            same = key.type == VALUE_NONE && other.type == VALUE_NONE;
        if (!same) continue;
        *out = dict->pair[i].value;
        return true;
    }
    return false;
}

status_t value_contains(run_t *run, value_t whole, value_t part, bool *out) {
    cursor_t cursor;
    value_t item;
    *out = false;
    if (whole.type == VALUE_STRING) {
        if (part.type != VALUE_STRING) RUN_FAIL(run, "a %s cannot be in a string", value_type_name(part));
        TRY(run_pay(run, whole.text->length / 16));
        *out = text_find(whole.text, part.text, 0) != SIZE_MAX;
        return STATUS_OK;
    }
    if (whole.type == VALUE_DICT) {
        TRY(run_pay(run, whole.dict->count / 4));
        if (is_sequence(part) || part.type == VALUE_DICT) RUN_FAIL(run, "a %s cannot be a key", value_type_name(part));
        *out = value_find(whole.dict, part, &item);
        return STATUS_OK;
    }
    TRY(cursor_open(run, whole, &cursor));
    for (bool more = true; more && !*out;) {
        TRY(cursor_next(run, &cursor, &item, &more));
        if (more) TRY(value_equal(run, item, part, out));
    }
    return STATUS_OK;
}

// ---- looping ----

status_t cursor_open(run_t *run, value_t value, cursor_t *out) {
    *out = (cursor_t){.of = value};
    switch (value.type) {
    case VALUE_UNDEFINED:
    case VALUE_STRING:
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_DICT:
    case VALUE_STREAM:
        return STATUS_OK;
    default:
        RUN_FAIL(run, "a %s cannot be looped over", value_type_name(value));
    }
}

status_t cursor_next(run_t *run, cursor_t *cursor, value_t *item, bool *more) {
    value_t of = cursor->of;
    TRY(run_pay(run, 1));
    *more = false;
    if (of.type == VALUE_STRING) {
        const text_t *text = of.text;
        if (cursor->at >= text->length) return STATUS_OK;
        size_t step = utf8_next(text->bytes + cursor->at, text->length - cursor->at, NULL, NULL, NULL);
        TRY(value_text(run, text->bytes + cursor->at, text->given + cursor->at, step, item));
        cursor->at += step;
        *more = true;
        return STATUS_OK;
    }
    size_t *at = &cursor->at;
    if (of.type == VALUE_STREAM) {
        if (!of.stream->view) at = &of.stream->at;
        of = of.stream->items;
    }
    size_t count = of.type == VALUE_UNDEFINED ? 0 : of.type == VALUE_RANGE ? of.range->count : of.list->count;
    if (of.type == VALUE_DICT) count = of.dict->count;
    if (*at >= count) return STATUS_OK;
    *item = of.type == VALUE_DICT ? of.dict->pair[*at].key : list_item(of, *at);
    ++*at;
    *more = true;
    return STATUS_OK;
}

status_t value_items(run_t *run, value_t value, const value_t **items, size_t *count) {
    cursor_t cursor;
    value_t *made = NULL, item;
    size_t capacity = 0;
    *count = 0;
    if (is_sequence(value)) {
        *items = value.list->item;
        *count = value.list->count;
        return STATUS_OK;
    }
    TRY(cursor_open(run, value, &cursor));
    for (bool more = true;;) {
        TRY(cursor_next(run, &cursor, &item, &more));
        if (!more) break;
        if (*count == capacity) {
            value_t *grown;
            capacity = capacity ? 2 * capacity : 16;
            TRY(HEAP_NEW(&run->heap, &grown, capacity));
            if (*count) memcpy(grown, made, *count * sizeof(*made));
            made = grown;
        }
        made[(*count)++] = item;
    }
    *items = made;
    return STATUS_OK;
}
