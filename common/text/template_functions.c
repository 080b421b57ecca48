// The functions that every template may call.
#include "common/text/template_parts.h"

#include <string.h>
#include <time.h>

enum { RANGE_LIMIT = 100000 }; // as Jinja's sandbox has it

typedef status_t (*function_t)(run_t *run, const arguments_t *arguments, value_t *out);

status_t namespace_set(run_t *run, namespace_t *space, const char *name, value_t value) {
    if (name[0] == '_') RUN_FAIL(run, "the attribute '%s' of a namespace must not start with '_'", name);
    for (size_t i = 0; i < space->count; i++)
        if (value_is_word(space->pair[i].key, name)) {
            space->pair[i].value = value;
            return STATUS_OK;
        }
    if (space->count == space->capacity) {
        pair_t *grown;
        size_t capacity = space->capacity ? 2 * space->capacity : 8;
        TRY(HEAP_NEW(&run->heap, &grown, capacity));
        if (space->count) memcpy(grown, space->pair, space->count * sizeof(*grown));
        space->pair = grown;
        space->capacity = capacity;
    }
    pair_t *pair = &space->pair[space->count];
    TRY(value_word(run, name, &pair->key));
    pair->value = value;
    space->count++;
    return STATUS_OK;
}

// Pairs of a dict, or of a list of pairs.
static status_t pairs_of(run_t *run, value_t value, const pair_t **out, size_t *count) {
    const value_t *items, *two;
    pair_t *pairs;
    size_t size;
    if (value.type == VALUE_DICT) {
        *out = value.dict->pair;
        *count = value.dict->count;
        return STATUS_OK;
    }
    TRY(value_items(run, value, &items, count));
    TRY(HEAP_NEW(&run->heap, &pairs, *count));
    for (size_t i = 0; i < *count; i++) {
        TRY(value_items(run, items[i], &two, &size));
        if (size != 2) RUN_FAIL(run, "a dict is made of pairs, not of %zu values", size);
        pairs[i] = (pair_t){.key = two[0], .value = two[1]};
    }
    *out = pairs;
    return STATUS_OK;
}

static status_t make_namespace(run_t *run, const arguments_t *arguments, value_t *out) {
    namespace_t *space;
    const pair_t *pairs;
    size_t count;
    TRY(HEAP_NEW(&run->heap, &space, 1));
    if (arguments->count > 1) RUN_FAIL(run, "'namespace' takes one dict and named arguments");
    for (size_t a = 0; a < arguments->count; a++) {
        TRY(pairs_of(run, arguments->value[a], &pairs, &count));
        for (size_t i = 0; i < count; i++) {
            const text_t *key;
            char name[256];
            TRY(argument_text(run, pairs[i].key, "a namespace's attribute", &key));
            if (key->length >= sizeof(name)) RUN_FAIL(run, "a namespace's attribute has a long name");
            memcpy(name, key->bytes, key->length);
            name[key->length] = 0;
            TRY(namespace_set(run, space, name, pairs[i].value));
        }
    }
    for (size_t i = 0; i < arguments->keywords; i++)
        TRY(namespace_set(run, space, arguments->keyword[i].name, arguments->keyword[i].value));
    *out = VALUE_OF(VALUE_NAMESPACE, space, space);
    return STATUS_OK;
}

static status_t make_dict(run_t *run, const arguments_t *arguments, value_t *out) {
    const pair_t *given = NULL;
    size_t count = 0;
    pair_t *pairs;
    dict_t *dict;
    if (arguments->count > 1) RUN_FAIL(run, "'dict' takes one dict and named arguments");
    if (arguments->count) TRY(pairs_of(run, arguments->value[0], &given, &count));
    TRY(HEAP_NEW(&run->heap, &pairs, count + arguments->keywords));
    TRY(HEAP_NEW(&run->heap, &dict, 1));
    dict->pair = pairs;
    for (size_t i = 0; i < count + arguments->keywords; i++) {
        pair_t pair;
        bool same = false;
        size_t at = 0;
        if (i < count) {
            pair = given[i];
        } else {
            TRY(value_word(run, arguments->keyword[i - count].name, &pair.key));
            pair.value = arguments->keyword[i - count].value;
        }
        for (; at < dict->count; at++) {
            TRY(value_equal(run, pairs[at].key, pair.key, &same));
            if (same) break;
        }
        if (same)
            pairs[at].value = pair.value;
        else
            pairs[dict->count++] = pair;
    }
    *out = VALUE_OF(VALUE_DICT, dict, dict);
    return STATUS_OK;
}

static status_t make_range(run_t *run, const arguments_t *arguments, value_t *out) {
    int64_t bound[3] = {0, 0, 1};
    range_t *range;
    if (!arguments->count || arguments->count > 3 || arguments->keywords)
        RUN_FAIL(run, "'range' takes one to three integers");
    for (size_t i = 0; i < arguments->count; i++)
        TRY(argument_integer(run, arguments->value[i], "an argument of 'range'",
                             &bound[arguments->count == 1 ? 1 : i]));
    int64_t start = bound[0], stop = bound[1], step = bound[2];
    if (!step) RUN_FAIL(run, "the step of 'range' must not be 0");
    uint64_t span = step > 0 ? (stop > start ? (uint64_t)stop - (uint64_t)start : 0)
                             : (start > stop ? (uint64_t)start - (uint64_t)stop : 0);
    uint64_t size = step > 0 ? (uint64_t)step : -(uint64_t)step, count = span / size + (span % size != 0);
    if (count > RANGE_LIMIT) RUN_FAIL(run, "'range' makes at most %d numbers", RANGE_LIMIT);
    TRY(HEAP_NEW(&run->heap, &range, 1));
    *range = (range_t){.start = start, .stop = stop, .step = step, .count = (size_t)count};
    *out = VALUE_OF(VALUE_RANGE, range, range);
    return STATUS_OK;
}

static status_t raise_exception(run_t *run, const arguments_t *arguments, value_t *out) {
    value_t message;
    (void)out;
    TRY(arguments_bind(run, arguments, "raise_exception", "message", 1, &message));
    TRY(value_string(run, message, &message));
    RUN_FAIL(run, "the chat template refuses the messages: %.*s",
             (int)(message.text->length < 1000 ? message.text->length : 1000), message.text->bytes);
}

static status_t strftime_now(run_t *run, const arguments_t *arguments, value_t *out) {
    value_t value;
    const text_t *format;
    char text[256], pattern[128];
    struct tm now;
    time_t seconds = time(NULL);
    TRY(arguments_bind(run, arguments, "strftime_now", "format", 1, &value));
    TRY(argument_text(run, value, "the argument of 'strftime_now'", &format));
    if (format->length >= sizeof(pattern) || !localtime_r(&seconds, &now))
        RUN_FAIL(run, "'strftime_now' has an argument that is too long");
    memcpy(pattern, format->bytes, format->length);
    pattern[format->length] = 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t length = strftime(text, sizeof(text), pattern, &now);
#pragma GCC diagnostic pop
    text[length] = 0;
    return value_word(run, text, out);
}

static status_t unsupported(run_t *run, const arguments_t *arguments, value_t *out) {
    (void)arguments, (void)out;
    RUN_FAIL(run, "the functions 'cycler', 'joiner' and 'lipsum' are not supported");
}

static const struct {
    const char *name;
    function_t call;
} functions[] = {
    {"namespace", make_namespace},  {"dict", make_dict},
    {"range", make_range},          {"raise_exception", raise_exception},
    {"strftime_now", strftime_now}, {"cycler", unsupported},
    {"joiner", unsupported},        {"lipsum", unsupported},
};

bool function_find(const char *name, value_t *out) {
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        if (strcmp(functions[i].name, name) == 0) {
            *out = VALUE_OF(VALUE_FUNCTION, function, (int)i);
            return true;
        }
    return false;
}

status_t function_call(run_t *run, int function, const arguments_t *arguments, value_t *out) {
    return functions[function].call(run, arguments, out);
}
