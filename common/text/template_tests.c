// Tests: what stands after `is`.
#include "common/text/template_parts.h"

#include <string.h>

typedef status_t (*test_t)(run_t *run, value_t value, value_t other, bool *out);

static status_t remainder_is(run_t *run, value_t value, value_t divisor, int64_t wanted, bool *out) {
    value_t rest;
    TRY(value_binary(run, '%', value, divisor, &rest));
    return value_equal(run, rest, value_int(wanted), out);
}

static status_t test_odd(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return remainder_is(run, value, value_int(2), 1, out);
}

static status_t test_even(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return remainder_is(run, value, value_int(2), 0, out);
}

static status_t test_divisible(run_t *run, value_t value, value_t other, bool *out) {
    return remainder_is(run, value, other, 0, out);
}

static status_t test_equal(run_t *run, value_t value, value_t other, bool *out) {
    return value_equal(run, value, other, out);
}

static status_t test_unequal(run_t *run, value_t value, value_t other, bool *out) {
    TRY(value_equal(run, value, other, out));
    *out = !*out;
    return STATUS_OK;
}

static status_t test_less(run_t *run, value_t value, value_t other, bool *out) {
    return value_order(run, value, other, '<', out);
}
static status_t test_greater(run_t *run, value_t value, value_t other, bool *out) {
    return value_order(run, value, other, '>', out);
}
static status_t test_at_most(run_t *run, value_t value, value_t other, bool *out) {
    return value_order(run, value, other, OPERATOR2('<', '='), out);
}
static status_t test_at_least(run_t *run, value_t value, value_t other, bool *out) {
    return value_order(run, value, other, OPERATOR2('>', '='), out);
}

static status_t test_in(run_t *run, value_t value, value_t other, bool *out) {
    return value_contains(run, other, value, out);
}

static status_t test_same(run_t *run, value_t value, value_t other, bool *out) {
    *out = value.type == other.type;
    if (!*out || value.type == VALUE_NONE) return STATUS_OK;
    if (value.type == VALUE_BOOL)
        *out = value.truth == other.truth;
    else if (value.type == VALUE_INT)
        *out = value.integer == other.integer && value.integer >= -5 && value.integer <= 256;
    else if (value.type == VALUE_FLOAT || value.type == VALUE_UNDEFINED)
        *out = false;
    else
        *out = value.dict == other.dict;
    (void)run;
    return STATUS_OK;
}

static status_t test_cased(run_t *run, value_t value, const char *method, bool *out) {
    TRY(value_string(run, value, &value));
    TRY(run_pay(run, value.text->length / 16));
    *out = string_is(value.text, method);
    return STATUS_OK;
}

static status_t test_lower(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return test_cased(run, value, "islower", out);
}

static status_t test_upper(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return test_cased(run, value, "isupper", out);
}

static status_t named(run_t *run, value_t value, bool (*exists)(const char *), bool *out) {
    char name[64];
    const text_t *text;
    TRY(argument_text(run, value, "the name of a filter or test", &text));
    *out = text->length < sizeof(name);
    if (!*out) return STATUS_OK;
    memcpy(name, text->bytes, text->length);
    name[text->length] = 0;
    *out = exists(name);
    return STATUS_OK;
}

static status_t test_filter(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return named(run, value, filter_exists, out);
}

static status_t test_test(run_t *run, value_t value, value_t other, bool *out) {
    (void)other;
    return named(run, value, test_exists, out);
}

static const struct {
    const char *name;
    test_t apply;
    bool second; // takes an argument
} compared[] = {
    {"odd", test_odd, false},
    {"even", test_even, false},
    {"divisibleby", test_divisible, true},
    {"==", test_equal, true},
    {"eq", test_equal, true},
    {"equalto", test_equal, true},
    {"!=", test_unequal, true},
    {"ne", test_unequal, true},
    {"<", test_less, true},
    {"lt", test_less, true},
    {"lessthan", test_less, true},
    {">", test_greater, true},
    {"gt", test_greater, true},
    {"greaterthan", test_greater, true},
    {"<=", test_at_most, true},
    {"le", test_at_most, true},
    {">=", test_at_least, true},
    {"ge", test_at_least, true},
    {"in", test_in, true},
    {"sameas", test_same, true},
    {"lower", test_lower, false},
    {"upper", test_upper, false},
    {"filter", test_filter, false},
    {"test", test_test, false},
};

#define TYPE(type) (1u << (type))
#define CALLABLE                                                                                                       \
    (TYPE(VALUE_MACRO) | TYPE(VALUE_FUNCTION) | TYPE(VALUE_METHOD) | TYPE(VALUE_LOOP) | TYPE(VALUE_UNDEFINED))
#define SEQUENCE (TYPE(VALUE_STRING) | TYPE(VALUE_LIST) | TYPE(VALUE_TUPLE) | TYPE(VALUE_RANGE) | TYPE(VALUE_DICT))
#define NUMBER   (TYPE(VALUE_BOOL) | TYPE(VALUE_INT) | TYPE(VALUE_FLOAT))

// Tests that only ask for the type.
static const struct {
    const char *name;
    unsigned types;
    bool without; // any type but these
} typed[] = {
    {"defined", TYPE(VALUE_UNDEFINED), true},
    {"undefined", TYPE(VALUE_UNDEFINED), false},
    {"none", TYPE(VALUE_NONE), false},
    {"boolean", TYPE(VALUE_BOOL), false},
    {"integer", TYPE(VALUE_INT), false},
    {"float", TYPE(VALUE_FLOAT), false},
    {"number", NUMBER, false},
    {"string", TYPE(VALUE_STRING), false},
    {"mapping", TYPE(VALUE_DICT), false},
    {"sequence", SEQUENCE | TYPE(VALUE_UNDEFINED), false},
    {"iterable", SEQUENCE | TYPE(VALUE_UNDEFINED) | TYPE(VALUE_STREAM) | TYPE(VALUE_LOOP), false},
    {"callable", CALLABLE, false},
};

bool test_exists(const char *name) {
    if (strcmp(name, "true") == 0 || strcmp(name, "false") == 0 || strcmp(name, "escaped") == 0) return true;
    for (size_t i = 0; i < sizeof(typed) / sizeof(typed[0]); i++)
        if (strcmp(typed[i].name, name) == 0) return true;
    for (size_t i = 0; i < sizeof(compared) / sizeof(compared[0]); i++)
        if (strcmp(compared[i].name, name) == 0) return true;
    return false;
}

static status_t test_simple(run_t *run, const char *name, value_t value, const arguments_t *arguments, bool *out) {
    if (arguments->count || arguments->keywords) RUN_FAIL(run, "the test '%s' takes no argument", name);
    for (size_t i = 0; i < sizeof(typed) / sizeof(typed[0]); i++)
        if (strcmp(typed[i].name, name) == 0) {
            *out = ((TYPE(value.type) & typed[i].types) != 0) != typed[i].without;
            return STATUS_OK;
        }
    if (strcmp(name, "escaped") == 0) {
        *out = value.type == VALUE_STRING && value.text->safe;
        return STATUS_OK;
    }
    if (strcmp(name, "true") != 0 && strcmp(name, "false") != 0) RUN_FAIL(run, "the test '%s' is not supported", name);
    *out = value.type == VALUE_BOOL && value.truth == (name[0] == 't');
    return STATUS_OK;
}

status_t test_apply(run_t *run, const char *name, value_t value, const arguments_t *arguments, bool *out) {
    *out = false;
    for (size_t i = 0; i < sizeof(compared) / sizeof(compared[0]); i++) {
        if (strcmp(compared[i].name, name) != 0) continue;
        if (arguments->keywords || arguments->count != compared[i].second)
            RUN_FAIL(run, "the test '%s' takes %s", name, compared[i].second ? "one argument" : "no argument");
        return compared[i].apply(run, value, compared[i].second ? arguments->value[0] : (value_t){0}, out);
    }
    return test_simple(run, name, value, arguments, out);
}
