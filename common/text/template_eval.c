// Expressions.
#include "common/text/template_parts.h"
#include "common/text/utf8.h"

#include <math.h>
#include <string.h>

// ---- arithmetic ----

static status_t no_operator(run_t *run, int operation, value_t a, value_t b) {
    char word[3] = {(char)(operation >= 256 ? operation >> 8 : operation), (char)(operation >= 256 ? operation : 0), 0};
    if (a.type == VALUE_UNDEFINED || b.type == VALUE_UNDEFINED)
        RUN_FAIL(run, "%s", a.type == VALUE_UNDEFINED ? a.hint : b.hint);
    RUN_FAIL(run, "'%s' does not work on a %s and a %s", word, value_type_name(a), value_type_name(b));
}

static status_t too_large(run_t *run) {
    RUN_FAIL(run, "an integer does not fit in 64 bits");
}

static status_t power(run_t *run, int64_t base, int64_t exponent, value_t *out) {
    int64_t result = 1;
    if (exponent < 0) {
        if (!base) RUN_FAIL(run, "0 has no negative power");
        *out = value_float(pow((double)base, (double)exponent));
        return STATUS_OK;
    }
    if (base == 0 || base == 1 || base == -1) {
        *out = value_int(!exponent ? 1 : base == -1 && exponent % 2 == 0 ? 1 : base);
        return STATUS_OK;
    }
    for (int64_t i = 0; i < exponent; i++)
        if (__builtin_mul_overflow(result, base, &result)) return too_large(run);
    *out = value_int(result);
    return STATUS_OK;
}

static status_t binary_integers(run_t *run, int operation, int64_t a, int64_t b, value_t *out) {
    int64_t result = 0;
    bool over = false;
    bool division = operation == '/' || operation == '%' || operation == OPERATOR2('/', '/');
    if (division && !b) RUN_FAIL(run, "division by zero");
    switch (operation) {
    case '+':
        over = __builtin_add_overflow(a, b, &result);
        break;
    case '-':
        over = __builtin_sub_overflow(a, b, &result);
        break;
    case '*':
        over = __builtin_mul_overflow(a, b, &result);
        break;
    case '/':
        *out = value_float((double)a / (double)b);
        return STATUS_OK;
    case OPERATOR2('*', '*'):
        return power(run, a, b, out);
    default: // // and %: towards minus infinity
        over = a == INT64_MIN && b == -1;
        if (over) break;
        bool down = a % b && (a < 0) != (b < 0);
        result = operation == '%' ? a % b + (down ? b : 0) : a / b - down;
    }
    if (over) return too_large(run);
    *out = value_int(result);
    return STATUS_OK;
}

static double modulo(double a, double b) {
    double rest = fmod(a, b);
    if (rest == 0) return copysign(0, b);
    return (b < 0) != (rest < 0) ? rest + b : rest;
}

static double floor_divide(double a, double b) {
    double rest = fmod(a, b), result = (a - rest) / b;
    if (rest != 0 && (b < 0) != (rest < 0)) result -= 1;
    if (result == 0) return copysign(0, a / b);
    double down = floor(result);
    return result - down > 0.5 ? down + 1 : down;
}

static status_t binary_reals(run_t *run, int operation, double a, double b, value_t *out) {
    if ((operation == '/' || operation == '%' || operation == OPERATOR2('/', '/')) && b == 0)
        RUN_FAIL(run, "division by zero");
    switch (operation) {
    case '+':
        *out = value_float(a + b);
        break;
    case '-':
        *out = value_float(a - b);
        break;
    case '*':
        *out = value_float(a * b);
        break;
    case '/':
        *out = value_float(a / b);
        break;
    case '%':
        *out = value_float(modulo(a, b));
        break;
    case OPERATOR2('/', '/'):
        *out = value_float(floor_divide(a, b));
        break;
    default:
        if (a < 0 && b != floor(b)) RUN_FAIL(run, "a negative number has no such power");
        *out = value_float(pow(a, b));
        if (isinf(out->real) && isfinite(a) && isfinite(b)) RUN_FAIL(run, "a power is too large");
    }
    return STATUS_OK;
}

// Text with & < > ' " spelled out, as `safe` text joins with other text.
static status_t add_escaped(run_t *run, builder_t *b, const text_t *text) {
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    for (size_t i = 0; i < text->length; i++) {
        const char *special = text->bytes[i] ? strchr(from, text->bytes[i]) : NULL;
        if (special) {
            char given[8];
            memset(given, text->given[i], sizeof(given));
            TRY(builder_add(run, b, to[special - from], given, strlen(to[special - from])));
        } else {
            TRY(builder_add(run, b, text->bytes + i, text->given + i, 1));
        }
    }
    return STATUS_OK;
}

static status_t join_texts(run_t *run, const text_t *a, const text_t *b, value_t *out) {
    builder_t builder = {0};
    TRY(!a->safe && b->safe ? add_escaped(run, &builder, a) : builder_text(run, &builder, a));
    TRY(a->safe && !b->safe ? add_escaped(run, &builder, b) : builder_text(run, &builder, b));
    TRY(builder_finish(run, &builder, out));
    ((text_t *)out->text)->safe = a->safe || b->safe;
    return STATUS_OK;
}

static status_t join_lists(run_t *run, value_t a, value_t b, value_t *out) {
    value_t *items;
    size_t left = a.list->count, right = b.list->count;
    TRY(run_pay(run, (left + right) / 4));
    TRY(HEAP_NEW(&run->heap, &items, left + right));
    for (size_t i = 0; i < left; i++) items[i] = a.list->item[i];
    for (size_t i = 0; i < right; i++) items[left + i] = b.list->item[i];
    return value_list(run, a.type, items, left + right, out);
}

static status_t repeat(run_t *run, value_t value, int64_t times, value_t *out) {
    size_t size = value.type == VALUE_STRING ? value.text->length : value.list->count;
    if (times < 0 || !size) times = 0;
    if (size && (uint64_t)times > run->heap.limit / size)
        RUN_FAIL(run, "a repetition makes more than the template is allowed");
    if (value.type == VALUE_STRING) {
        builder_t builder = {0};
        for (int64_t i = 0; i < times; i++) {
            TRY(run_pay(run, 1));
            TRY(builder_text(run, &builder, value.text));
        }
        return builder_finish(run, &builder, out);
    }
    value_t *items;
    TRY(run_pay(run, size * (size_t)times));
    TRY(HEAP_NEW(&run->heap, &items, size * (size_t)times));
    for (size_t i = 0; i < size * (size_t)times; i++) items[i] = value.list->item[i % size];
    return value_list(run, value.type, items, size * (size_t)times, out);
}

static bool repeats(value_t a, value_t b, int64_t *times) {
    return (a.type == VALUE_STRING || a.type == VALUE_LIST || a.type == VALUE_TUPLE) && value_integer(b, times);
}

status_t value_binary(run_t *run, int operation, value_t a, value_t b, value_t *out) {
    int64_t left, right;
    double x, y;
    if (value_integer(a, &left) && value_integer(b, &right)) return binary_integers(run, operation, left, right, out);
    if (value_number(a, &x) && value_number(b, &y)) return binary_reals(run, operation, x, y, out);
    if (operation == '%' && a.type == VALUE_STRING) return string_percent(run, a.text, b, out);
    if (operation == '+' && a.type == VALUE_STRING && b.type == VALUE_STRING)
        return join_texts(run, a.text, b.text, out);
    if (operation == '+' && a.type == b.type && (a.type == VALUE_LIST || a.type == VALUE_TUPLE))
        return join_lists(run, a, b, out);
    if (operation == '*' && repeats(a, b, &right)) return repeat(run, a, right, out);
    if (operation == '*' && repeats(b, a, &left)) return repeat(run, b, left, out);
    return no_operator(run, operation, a, b);
}

// ---- attributes and items ----

// An error text that lives as long as the run.
static status_t lacking(run_t *run, value_t of, const char *what, const char *name, value_t *out) {
    char words[200], *copy;
    snprintf(words, sizeof(words), "a %s has no %s '%.100s'", value_type_name(of), what, name);
    TRY(template_heap_take(&run->heap, strlen(words) + 1, (void **)&copy));
    memcpy(copy, words, strlen(words));
    *out = value_undefined(copy);
    return STATUS_OK;
}

// A text as a C string for names and errors.
static status_t key_name(run_t *run, value_t key, const char **out) {
    builder_t builder = {0};
    TRY(value_print(run, &builder, key));
    TRY(builder_add(run, &builder, "", NULL, 1));
    *out = builder.bytes;
    return STATUS_OK;
}

static status_t method_value(run_t *run, value_t self, const char *name, value_t *out) {
    method_t *method;
    TRY(HEAP_NEW(&run->heap, &method, 1));
    *method = (method_t){.self = self, .name = name};
    *out = VALUE_OF(VALUE_METHOD, method, method);
    return STATUS_OK;
}

// The attribute as Python has it; false: there is none.
static status_t python_attribute(run_t *run, value_t of, const char *name, value_t *out, bool *found) {
    bool usable = false;
    *found = true;
    if (of.type == VALUE_LOOP) {
        TRY(loop_attribute(run, of.loop, name, out));
        *found = out->type != VALUE_MISSING;
        return STATUS_OK;
    }
    if (of.type == VALUE_NAMESPACE) {
        for (size_t i = 0; i < of.space->count; i++)
            if (value_is_word(of.space->pair[i].key, name)) {
                *out = of.space->pair[i].value;
                return STATUS_OK;
            }
        *found = false;
        return STATUS_OK;
    }
    if (of.type == VALUE_MACRO && strcmp(name, "name") == 0)
        return value_word(run, of.macro->node->name ? of.macro->node->name : "", out);
    *found = method_exists(of, name, &usable);
    if (!*found) return STATUS_OK;
    return usable ? method_value(run, of, name, out) : lacking(run, of, "usable attribute", name, out);
}

status_t value_attribute(run_t *run, value_t of, const char *name, value_t *out) {
    bool found;
    if (of.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", of.hint);
    if (name[0] == '_' && name[1] == '_') return lacking(run, of, "usable attribute", name, out);
    TRY(python_attribute(run, of, name, out, &found));
    if (found) return STATUS_OK;
    if (of.type == VALUE_DICT) {
        text_t key = {.bytes = name, .length = strlen(name)};
        TRY(run_pay(run, of.dict->count / 8 + 1));
        if (value_find(of.dict, VALUE_OF(VALUE_STRING, text, &key), out)) return STATUS_OK;
    }
    return lacking(run, of, "attribute", name, out);
}

static bool place(size_t count, int64_t index, size_t *out) {
    if (index < 0) index += (int64_t)count;
    if (index < 0 || index >= (int64_t)count) return false;
    *out = (size_t)index;
    return true;
}

static status_t character_item(run_t *run, const text_t *text, size_t index, value_t *out) {
    size_t at = text_offset(text, index);
    TRY(run_pay(run, text->length / 64));
    return value_text(run, text->bytes + at, text->given + at,
                      utf8_next(text->bytes + at, text->length - at, NULL, NULL, NULL), out);
}

status_t value_item(run_t *run, value_t of, value_t key, value_t *out) {
    int64_t index;
    size_t at, count;
    const char *name = "";
    if (of.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", of.hint);
    if (of.type == VALUE_DICT) {
        TRY(run_pay(run, of.dict->count / 8 + 1));
        if (value_find(of.dict, key, out)) return STATUS_OK;
    }
    bool sequence =
        of.type == VALUE_STRING || of.type == VALUE_LIST || of.type == VALUE_TUPLE || of.type == VALUE_RANGE;
    if (sequence && value_integer(key, &index)) {
        TRY(value_length(run, of, &count));
        if (place(count, index, &at)) {
            if (of.type == VALUE_STRING) return character_item(run, of.text, at, out);
            *out = list_item(of, at);
            return STATUS_OK;
        }
    }
    TRY(key_name(run, key, &name));
    if (key.type == VALUE_STRING) {
        bool found = false;
        if (name[0] != '_') TRY(python_attribute(run, of, name, out, &found));
        if (found) return STATUS_OK;
    }
    return lacking(run, of, key.type == VALUE_STRING ? "attribute" : "element", name, out);
}

// A slice's bounds as Python computes them; *count is the number of items.
static status_t slice_bounds(run_t *run, const value_t bound[3], size_t length, int64_t *start, int64_t *step,
                             size_t *count) {
    int64_t given[3] = {0}, n = (int64_t)length;
    bool has[3];
    for (int i = 0; i < 3; i++) {
        has[i] = bound[i].type != VALUE_MISSING && bound[i].type != VALUE_NONE;
        if (has[i] && !value_integer(bound[i], &given[i]))
            RUN_FAIL(run, "a slice's bounds must be integers, not a %s", value_type_name(bound[i]));
    }
    *step = has[2] ? given[2] : 1;
    if (!*step) RUN_FAIL(run, "a slice's step must not be 0");
    int64_t low = *step < 0 ? -1 : 0, high = *step < 0 ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        if (given[i] < 0) given[i] = given[i] < -n ? low - n : given[i];
        if (given[i] < 0) given[i] += n;
        given[i] = given[i] < low ? low : given[i] > high ? high : given[i];
        if (!has[i]) given[i] = (i == 0) == (*step > 0) ? low : high;
    }
    *start = given[0];
    uint64_t span = *step > 0 ? (given[1] > given[0] ? (uint64_t)(given[1] - given[0]) : 0)
                              : (given[0] > given[1] ? (uint64_t)(given[0] - given[1]) : 0);
    uint64_t size = *step > 0 ? (uint64_t)*step : -(uint64_t)*step;
    *count = (size_t)(span / size + (span % size != 0));
    return STATUS_OK;
}

static status_t slice_text(run_t *run, const text_t *text, int64_t start, int64_t step, size_t count, value_t *out) {
    builder_t builder = {0};
    value_t item;
    TRY(run_pay(run, text->length / 64));
    if (!count) return builder_finish(run, &builder, out);
    if (step == 1) {
        size_t first = text_offset(text, (size_t)start);
        text_t rest = {.bytes = text->bytes + first, .given = text->given + first, .length = text->length - first};
        return value_text(run, rest.bytes, rest.given, text_offset(&rest, count), out);
    }
    const value_t *characters;
    size_t all;
    text_t copy = *text;
    TRY(value_items(run, VALUE_OF(VALUE_STRING, text, &copy), &characters, &all));
    for (size_t i = 0; i < count; i++) {
        item = characters[start + (int64_t)i * step];
        TRY(builder_text(run, &builder, item.text));
    }
    return builder_finish(run, &builder, out);
}

status_t value_slice(run_t *run, value_t of, const value_t bound[3], value_t *out) {
    int64_t start = 0, step = 1;
    size_t length = 0, count = 0;
    if (of.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", of.hint);
    bool list = of.type == VALUE_LIST || of.type == VALUE_TUPLE;
    if (!list && of.type != VALUE_STRING && of.type != VALUE_RANGE)
        RUN_FAIL(run, "a %s cannot be sliced", value_type_name(of));
    TRY(value_length(run, of, &length));
    TRY(slice_bounds(run, bound, length, &start, &step, &count));
    if (of.type == VALUE_STRING) return slice_text(run, of.text, start, step, count, out);
    if (of.type == VALUE_RANGE) {
        range_t *range;
        TRY(HEAP_NEW(&run->heap, &range, 1));
        int64_t width;
        if (__builtin_mul_overflow(of.range->step, step, &width)) return too_large(run);
        range->start = of.range->start + start * of.range->step;
        range->step = width;
        range->count = count;
        range->stop = range->start + (int64_t)count * width;
        *out = VALUE_OF(VALUE_RANGE, range, range);
        return STATUS_OK;
    }
    value_t *items;
    TRY(run_pay(run, count / 4));
    TRY(HEAP_NEW(&run->heap, &items, count));
    for (size_t i = 0; i < count; i++) items[i] = of.list->item[start + (int64_t)i * step];
    return value_list(run, of.type, items, count, out);
}

// ---- calls ----

static status_t eval_arguments(run_t *run, const node_t *node, arguments_t *out) {
    size_t values = 0, keywords = 0;
    for (const node_t *n = node; n; n = n->next) {
        values++;
        keywords++;
    }
    value_t *value, item;
    keyword_t *keyword;
    *out = (arguments_t){0};
    TRY(HEAP_NEW(&run->heap, &value, values));
    TRY(HEAP_NEW(&run->heap, &keyword, keywords));
    out->value = value;
    out->keyword = keyword;
    for (const node_t *n = node; n; n = n->next) {
        TRY(eval(run, n->first, &item));
        if (n->operation) {
            // *list alone is supported, and only as the first argument: nothing known needs more.
            if (n->operation == 1 && !out->count) {
                TRY(value_items(run, item, &out->value, &out->count));
                if (n->next && !n->next->name) RUN_FAIL(run, "arguments after '*' must be named");
                continue;
            }
            RUN_FAIL(run, "arguments given by '%s' are not supported here", n->operation == 1 ? "*" : "**");
        }
        if (n->name) {
            keyword[out->keywords++] = (keyword_t){.name = n->name, .value = item};
        } else {
            if (out->keywords) RUN_FAIL(run, "an argument without a name follows one that has one");
            value[out->count++] = item;
        }
    }
    return STATUS_OK;
}

status_t arguments_bind(run_t *run, const arguments_t *arguments, const char *what, const char *names, int needed,
                        value_t *out) {
    int count = 0;
    const char *start[MOST_PARAMETERS];
    size_t length[MOST_PARAMETERS];
    for (const char *at = names; *at && count < MOST_PARAMETERS; count++) {
        start[count] = at;
        length[count] = strcspn(at, ",");
        at += length[count] + (at[length[count]] == ',');
        out[count] = (value_t){0};
    }
    if (arguments->count > (size_t)count)
        RUN_FAIL(run, "'%s' takes at most %d arguments, not %zu", what, count, arguments->count);
    for (size_t i = 0; i < arguments->count; i++) out[i] = arguments->value[i];
    for (size_t k = 0; k < arguments->keywords; k++) {
        int at = 0;
        const char *name = arguments->keyword[k].name;
        while (at < count && (strlen(name) != length[at] || memcmp(name, start[at], length[at]) != 0)) at++;
        if (at == count) RUN_FAIL(run, "'%s' has no argument named '%s'", what, name);
        if (out[at].type != VALUE_MISSING) RUN_FAIL(run, "'%s' is given its argument '%s' twice", what, name);
        out[at] = arguments->keyword[k].value;
    }
    for (int i = 0; i < needed; i++)
        if (out[i].type == VALUE_MISSING)
            RUN_FAIL(run, "'%s' needs its argument '%.*s'", what, (int)length[i], start[i]);
    return STATUS_OK;
}

status_t argument_text(run_t *run, value_t value, const char *what, const text_t **out) {
    if (value.type != VALUE_STRING) RUN_FAIL(run, "%s must be a string, not a %s", what, value_type_name(value));
    *out = value.text;
    return STATUS_OK;
}

status_t argument_integer(run_t *run, value_t value, const char *what, int64_t *out) {
    if (!value_integer(value, out)) RUN_FAIL(run, "%s must be an integer, not a %s", what, value_type_name(value));
    return STATUS_OK;
}

status_t eval_call(run_t *run, value_t callee, const arguments_t *arguments, value_t *out) {
    if (++run->calls > TEMPLATE_CALLS) RUN_FAIL(run, "calls are nested more than %d deep", TEMPLATE_CALLS);
    status_t status;
    switch (callee.type) {
    case VALUE_MACRO:
        status = run_macro(run, callee.macro, arguments, out);
        break;
    case VALUE_FUNCTION:
        status = function_call(run, callee.function, arguments, out);
        break;
    case VALUE_METHOD:
        status = callee.method->self.type == VALUE_LOOP
                     ? loop_call(run, callee.method->self.loop, callee.method->name, arguments, out)
                     : method_call(run, callee.method, arguments, out);
        break;
    case VALUE_UNDEFINED:
        status = run_error(run, STATUS_NEW(STATUS_INVALID, "%s", callee.hint));
        break;
    default:
        status = run_error(run, STATUS_NEW(STATUS_INVALID, "a %s cannot be called", value_type_name(callee)));
    }
    run->calls--;
    return status;
}

// ---- nodes ----

static status_t eval_name(run_t *run, const node_t *node, value_t *out) {
    if (scope_get(run->scope, node->name, out) || function_find(node->name, out)) return STATUS_OK;
    char *hint;
    size_t bytes = strlen(node->name) + 32;
    TRY(template_heap_take(&run->heap, bytes, (void **)&hint));
    snprintf(hint, bytes, "'%s' is undefined", node->name);
    *out = value_undefined(hint);
    return STATUS_OK;
}

static status_t eval_list(run_t *run, const node_t *node, value_t *out) {
    size_t count = 0;
    value_t *items;
    for (const node_t *n = node->first; n; n = n->next) count++;
    TRY(HEAP_NEW(&run->heap, &items, count));
    count = 0;
    for (const node_t *n = node->first; n; n = n->next) TRY(eval(run, n, &items[count++]));
    return value_list(run, node->kind == NODE_TUPLE ? VALUE_TUPLE : VALUE_LIST, items, count, out);
}

static bool is_key(value_t value) {
    switch (value.type) {
    case VALUE_LIST:
    case VALUE_DICT:
    case VALUE_NAMESPACE:
    case VALUE_TUPLE: // Python takes them; no template is known to
        return false;
    default:
        return true;
    }
}

static status_t eval_dict(run_t *run, const node_t *node, value_t *out) {
    size_t count = 0, known;
    pair_t *pairs;
    dict_t *dict;
    for (const node_t *n = node->first; n; n = n->next->next) count++;
    TRY(HEAP_NEW(&run->heap, &pairs, count));
    TRY(HEAP_NEW(&run->heap, &dict, 1));
    dict->pair = pairs;
    for (const node_t *n = node->first; n; n = n->next->next) {
        pair_t pair;
        bool same = false;
        TRY(eval(run, n, &pair.key));
        TRY(eval(run, n->next, &pair.value));
        if (!is_key(pair.key)) RUN_FAIL(run, "a %s cannot be a key", value_type_name(pair.key));
        for (known = 0; known < dict->count; known++) {
            TRY(value_equal(run, pairs[known].key, pair.key, &same));
            if (same) break;
        }
        if (same)
            pairs[known].value = pair.value;
        else
            pairs[dict->count++] = pair;
    }
    *out = VALUE_OF(VALUE_DICT, dict, dict);
    return STATUS_OK;
}

static status_t eval_compare(run_t *run, const node_t *node, value_t *out) {
    value_t left, right;
    bool truth = true;
    TRY(eval(run, node->first, &left));
    for (const node_t *n = node->second; n && truth; n = n->next) {
        TRY(eval(run, n->first, &right));
        if (n->operation == 'i' || n->operation == 'n') {
            TRY(value_contains(run, right, left, &truth));
            truth ^= n->operation == 'n';
        } else if (n->operation == OPERATOR2('=', '=') || n->operation == OPERATOR2('!', '=')) {
            TRY(value_equal(run, left, right, &truth));
            truth ^= n->operation == OPERATOR2('!', '=');
        } else {
            TRY(value_order(run, left, right, n->operation, &truth));
        }
        left = right;
    }
    *out = value_bool(truth);
    return STATUS_OK;
}

static status_t eval_concat(run_t *run, const node_t *node, value_t *out) {
    builder_t builder = {0};
    value_t part;
    for (const node_t *n = node->first; n; n = n->next) {
        TRY(eval(run, n, &part));
        TRY(value_print(run, &builder, part));
    }
    return builder_finish(run, &builder, out);
}

static status_t eval_sign(run_t *run, const node_t *node, value_t *out) {
    value_t value;
    int64_t integer;
    TRY(eval(run, node->first, &value));
    if (value_integer(value, &integer)) {
        if (node->kind == NODE_NEGATE && integer == INT64_MIN) return too_large(run);
        *out = value_int(node->kind == NODE_NEGATE ? -integer : integer);
        return STATUS_OK;
    }
    if (value.type == VALUE_UNDEFINED) RUN_FAIL(run, "%s", value.hint);
    if (value.type != VALUE_FLOAT) RUN_FAIL(run, "a %s has no sign", value_type_name(value));
    *out = value_float(node->kind == NODE_NEGATE ? -value.real : value.real);
    return STATUS_OK;
}

static status_t eval_slice(run_t *run, const node_t *node, value_t *out) {
    value_t of, bound[3] = {{0}};
    const node_t *part[3] = {node->second, node->third, node->fourth};
    TRY(eval(run, node->first, &of));
    for (int i = 0; i < 3; i++)
        if (part[i]) TRY(eval(run, part[i], &bound[i]));
    return value_slice(run, of, bound, out);
}

static status_t eval_filter(run_t *run, const node_t *node, value_t *out) {
    value_t value;
    arguments_t arguments;
    TRY(eval(run, node->first, &value));
    TRY(eval_arguments(run, node->second, &arguments));
    run->line = node->line;
    return filter_apply(run, node->name, value, &arguments, out);
}

static status_t eval_test(run_t *run, const node_t *node, value_t *out) {
    value_t value;
    arguments_t arguments;
    bool truth;
    TRY(eval(run, node->first, &value));
    TRY(eval_arguments(run, node->second, &arguments));
    run->line = node->line;
    TRY(test_apply(run, node->name, value, &arguments, &truth));
    *out = value_bool(truth);
    return STATUS_OK;
}

static status_t eval_pair(run_t *run, const node_t *node, value_t *out) {
    value_t left, right;
    TRY(eval(run, node->first, &left));
    if (node->kind == NODE_AND || node->kind == NODE_OR) {
        *out = left;
        if (value_truth(left) != (node->kind == NODE_AND)) return STATUS_OK;
        return eval(run, node->second, out);
    }
    TRY(eval(run, node->second, &right));
    run->line = node->line;
    if (node->kind == NODE_ITEM) return value_item(run, left, right, out);
    return value_binary(run, node->operation, left, right, out);
}

static status_t eval_condition(run_t *run, const node_t *node, value_t *out) {
    value_t test;
    TRY(eval(run, node->first, &test));
    if (value_truth(test)) return eval(run, node->second, out);
    if (node->third) return eval(run, node->third, out);
    *out = value_undefined("an 'if' in an expression has no 'else' and was false");
    return STATUS_OK;
}

static status_t eval_call_node(run_t *run, const node_t *node, value_t *out) {
    value_t callee;
    arguments_t arguments;
    TRY(eval(run, node->first, &callee));
    TRY(eval_arguments(run, node->second, &arguments));
    run->line = node->line;
    return eval_call(run, callee, &arguments, out);
}

static status_t eval_one(run_t *run, const node_t *node, value_t *out) {
    value_t value;
    switch (node->kind) {
    case NODE_CONSTANT:
        *out = node->value;
        return STATUS_OK;
    case NODE_NAME:
        return eval_name(run, node, out);
    case NODE_LIST:
    case NODE_TUPLE:
        return eval_list(run, node, out);
    case NODE_DICT:
        return eval_dict(run, node, out);
    case NODE_AND:
    case NODE_OR:
    case NODE_BINARY:
    case NODE_ITEM:
        return eval_pair(run, node, out);
    case NODE_NOT:
        TRY(eval(run, node->first, &value));
        *out = value_bool(!value_truth(value));
        return STATUS_OK;
    case NODE_NEGATE:
    case NODE_PLUS:
        return eval_sign(run, node, out);
    case NODE_COMPARE:
        return eval_compare(run, node, out);
    case NODE_CONCAT:
        return eval_concat(run, node, out);
    case NODE_CONDITION:
        return eval_condition(run, node, out);
    case NODE_ATTRIBUTE:
        TRY(eval(run, node->first, &value));
        run->line = node->line;
        return value_attribute(run, value, node->name, out);
    case NODE_SLICE:
        return eval_slice(run, node, out);
    case NODE_CALL:
        return eval_call_node(run, node, out);
    case NODE_FILTER:
        return eval_filter(run, node, out);
    case NODE_TEST:
        return eval_test(run, node, out);
    default:
        RUN_FAIL(run, "a statement stands where an expression is wanted");
    }
}

status_t eval(run_t *run, const node_t *node, value_t *out) {
    run->line = node->line;
    TRY(run_pay(run, 1));
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "expressions are nested too deep");
    status_t status = eval_one(run, node, out);
    run->depth--;
    return status;
}
