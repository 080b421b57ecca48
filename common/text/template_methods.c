// Methods of strings, lists, tuples, dicts and numbers, as Python has them.
#include "common/text/template_parts.h"

#include <string.h>

typedef status_t (*method_call_t)(run_t *run, value_t self, const value_t *argument, value_t *out);

// ---- strings ----

static status_t text_argument(run_t *run, value_t value, const text_t **out) {
    return argument_text(run, value, "the argument of a string's method", out);
}

static status_t str_upper(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return string_case(run, self.text, CASE_UPPER, out);
}
static status_t str_lower(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return string_case(run, self.text, CASE_LOWER, out);
}
static status_t str_capitalize(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return string_case(run, self.text, CASE_CAPITALIZE, out);
}
static status_t str_title(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return string_case(run, self.text, CASE_TITLE, out);
}
static status_t str_swapcase(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return string_case(run, self.text, CASE_SWAP, out);
}
static status_t str_strip(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return string_strip(run, self.text, argument[0], true, true, out);
}
static status_t str_lstrip(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return string_strip(run, self.text, argument[0], true, false, out);
}
static status_t str_rstrip(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return string_strip(run, self.text, argument[0], false, true, out);
}

static status_t split(run_t *run, value_t self, const value_t *argument, bool from_right, value_t *out) {
    int64_t most = -1;
    if (argument[1].type != VALUE_MISSING) TRY(argument_integer(run, argument[1], "maxsplit", &most));
    return string_split(run, self.text, argument[0], most, from_right, out);
}
static status_t str_split(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return split(run, self, argument, false, out);
}
static status_t str_rsplit(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return split(run, self, argument, true, out);
}
static status_t str_splitlines(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return string_lines(run, self.text, value_truth(argument[0]), out);
}

static status_t str_replace(run_t *run, value_t self, const value_t *argument, value_t *out) {
    const text_t *old, *new;
    int64_t most = -1;
    TRY(text_argument(run, argument[0], &old));
    TRY(text_argument(run, argument[1], &new));
    if (argument[2].type != VALUE_MISSING) TRY(argument_integer(run, argument[2], "count", &most));
    return string_replace(run, self.text, old, new, most, out);
}

static status_t str_join(run_t *run, value_t self, const value_t *argument, value_t *out) {
    builder_t builder = {0};
    const value_t *items;
    size_t count;
    TRY(value_items(run, argument[0], &items, &count));
    for (size_t i = 0; i < count; i++) {
        const text_t *text;
        TRY(argument_text(run, items[i], "what is joined", &text));
        if (i) TRY(builder_text(run, &builder, self.text));
        TRY(builder_text(run, &builder, text));
    }
    return builder_finish(run, &builder, out);
}

// The stretch of a string that the arguments start and end name, in bytes; false: there is none.
static status_t stretch(run_t *run, const text_t *text, const value_t *bound, size_t *start, size_t *end, bool *some) {
    int64_t count = (int64_t)text_count(text), at[2] = {0, count};
    TRY(run_pay(run, text->length / 32));
    for (int i = 0; i < 2; i++) {
        if (bound[i].type == VALUE_MISSING || bound[i].type == VALUE_NONE) continue;
        TRY(argument_integer(run, bound[i], "a place in a string", &at[i]));
        if (at[i] < 0) at[i] = at[i] < -count ? 0 : at[i] + count;
    }
    if (at[1] > count) at[1] = count;
    *some = at[0] <= at[1];
    *start = *some ? text_offset(text, (size_t)at[0]) : 0;
    *end = *some ? text_offset(text, (size_t)at[1]) : 0;
    return STATUS_OK;
}

static status_t find(run_t *run, value_t self, const value_t *argument, bool last, bool must, value_t *out) {
    const text_t *wanted;
    size_t start, end, at = SIZE_MAX;
    bool some;
    TRY(text_argument(run, argument[0], &wanted));
    TRY(stretch(run, self.text, argument + 1, &start, &end, &some));
    text_t cut = {.bytes = self.text->bytes, .length = end};
    if (some) at = last ? text_find_last(&cut, wanted, end) : text_find(&cut, wanted, start);
    if (at != SIZE_MAX && at < start) at = SIZE_MAX;
    if (at == SIZE_MAX && must) RUN_FAIL(run, "a string does not hold what 'index' looks for");
    text_t head = {.bytes = self.text->bytes, .length = at == SIZE_MAX ? 0 : at};
    *out = value_int(at == SIZE_MAX ? -1 : (int64_t)text_count(&head));
    return STATUS_OK;
}
static status_t str_find(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return find(run, self, argument, false, false, out);
}
static status_t str_rfind(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return find(run, self, argument, true, false, out);
}
static status_t str_index(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return find(run, self, argument, false, true, out);
}
static status_t str_rindex(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return find(run, self, argument, true, true, out);
}

static status_t str_count(run_t *run, value_t self, const value_t *argument, value_t *out) {
    const text_t *wanted;
    size_t start, end, at;
    bool some;
    int64_t count = 0;
    TRY(text_argument(run, argument[0], &wanted));
    TRY(stretch(run, self.text, argument + 1, &start, &end, &some));
    text_t cut = {.bytes = self.text->bytes + start, .length = end - start};
    if (!wanted->length)
        count = some ? (int64_t)text_count(&cut) + 1 : 0;
    else
        for (start = 0; some && (at = text_find(&cut, wanted, start)) != SIZE_MAX; start = at + wanted->length) count++;
    *out = value_int(count);
    return STATUS_OK;
}

static status_t has_edge(run_t *run, value_t self, const value_t *argument, bool at_end, value_t *out) {
    const value_t *choice = argument;
    size_t choices = 1, start, end;
    bool some, found = false;
    if (argument[0].type == VALUE_TUPLE) {
        choice = argument[0].list->item;
        choices = argument[0].list->count;
    }
    TRY(stretch(run, self.text, argument + 1, &start, &end, &some));
    for (size_t i = 0; i < choices && !found; i++) {
        const text_t *edge;
        TRY(text_argument(run, choice[i], &edge));
        found = some && edge->length <= end - start &&
                memcmp(self.text->bytes + (at_end ? end - edge->length : start), edge->bytes, edge->length) == 0;
    }
    *out = value_bool(found);
    return STATUS_OK;
}
static status_t str_startswith(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return has_edge(run, self, argument, false, out);
}
static status_t str_endswith(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return has_edge(run, self, argument, true, out);
}

static status_t cut_edge(run_t *run, value_t self, const value_t *argument, bool at_end, value_t *out) {
    value_t bound[3] = {argument[0]}, has;
    const text_t *edge;
    TRY(text_argument(run, argument[0], &edge));
    TRY(has_edge(run, self, bound, at_end, &has));
    size_t cut = has.truth ? edge->length : 0;
    return value_text(run, self.text->bytes + (at_end ? 0 : cut), self.text->given + (at_end ? 0 : cut),
                      self.text->length - cut, out);
}
static status_t str_removeprefix(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return cut_edge(run, self, argument, false, out);
}
static status_t str_removesuffix(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return cut_edge(run, self, argument, true, out);
}

static status_t partition(run_t *run, value_t self, const value_t *argument, bool last, value_t *out) {
    const text_t *by, *text = self.text;
    value_t *parts;
    TRY(text_argument(run, argument[0], &by));
    if (!by->length) RUN_FAIL(run, "a separator must not be empty");
    TRY(run_pay(run, text->length / 16));
    size_t at = last ? text_find_last(text, by, text->length) : text_find(text, by, 0);
    bool found = at != SIZE_MAX;
    size_t end = found ? at + by->length : last ? 0 : text->length;
    if (!found) at = last ? 0 : text->length;
    TRY(HEAP_NEW(&run->heap, &parts, 3));
    TRY(value_text(run, text->bytes, text->given, at, &parts[0]));
    TRY(value_text(run, text->bytes + at, text->given + at, end - at, &parts[1]));
    TRY(value_text(run, text->bytes + end, text->given + end, text->length - end, &parts[2]));
    return value_list(run, VALUE_TUPLE, parts, 3, out);
}
static status_t str_partition(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return partition(run, self, argument, false, out);
}
static status_t str_rpartition(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return partition(run, self, argument, true, out);
}

static status_t pad(run_t *run, value_t self, const value_t *argument, char side, value_t *out) {
    builder_t builder = {0};
    int64_t width;
    const text_t *fill = NULL;
    static const text_t blank = {.bytes = " ", .given = "", .length = 1};
    TRY(argument_integer(run, argument[0], "a width", &width));
    if (argument[1].type != VALUE_MISSING) TRY(text_argument(run, argument[1], &fill));
    if (!fill) fill = &blank;
    if (text_count(fill) != 1) RUN_FAIL(run, "strings are filled up with one character");
    int64_t missing = width - (int64_t)text_count(self.text);
    if (missing > 100000) RUN_FAIL(run, "a width is too large");
    if (missing < 0) missing = 0;
    int64_t left = side == '<' ? 0 : side == '>' ? missing : missing / 2 + (missing & width & 1);
    for (int64_t i = 0; i < left; i++) TRY(builder_text(run, &builder, fill));
    TRY(builder_text(run, &builder, self.text));
    for (int64_t i = left; i < missing; i++) TRY(builder_text(run, &builder, fill));
    return builder_finish(run, &builder, out);
}
static status_t str_ljust(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return pad(run, self, argument, '<', out);
}
static status_t str_rjust(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return pad(run, self, argument, '>', out);
}
static status_t str_center(run_t *run, value_t self, const value_t *argument, value_t *out) {
    return pad(run, self, argument, '^', out);
}
static status_t str_zfill(run_t *run, value_t self, const value_t *argument, value_t *out) {
    text_t zero = {.bytes = "0", .given = "", .length = 1}, rest = *self.text;
    builder_t builder = {0};
    int64_t width;
    value_t filled, bound[2];
    TRY(argument_integer(run, argument[0], "a width", &width));
    if (rest.length && strchr("+-", rest.bytes[0]) && rest.bytes[0]) {
        TRY(builder_add(run, &builder, rest.bytes, rest.given, 1));
        rest.bytes++;
        rest.given++;
        rest.length--;
        width--;
    }
    bound[0] = value_int(width);
    bound[1] = VALUE_OF(VALUE_STRING, text, &zero);
    TRY(pad(run, VALUE_OF(VALUE_STRING, text, &rest), bound, '>', &filled));
    TRY(builder_text(run, &builder, filled.text));
    return builder_finish(run, &builder, out);
}

// ---- lists and dicts ----

static status_t list_index(run_t *run, value_t self, const value_t *argument, value_t *out) {
    bool same = false;
    for (size_t i = 0; i < self.list->count; i++) {
        TRY(value_equal(run, self.list->item[i], argument[0], &same));
        if (!same) continue;
        *out = value_int((int64_t)i);
        return STATUS_OK;
    }
    RUN_FAIL(run, "a list does not hold what 'index' looks for");
}

static status_t list_count(run_t *run, value_t self, const value_t *argument, value_t *out) {
    int64_t count = 0;
    bool same;
    for (size_t i = 0; i < self.list->count; i++) {
        TRY(value_equal(run, self.list->item[i], argument[0], &same));
        count += same;
    }
    *out = value_int(count);
    return STATUS_OK;
}

static status_t copy_self(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)run, (void)argument;
    *out = self;
    return STATUS_OK;
}

static status_t dict_get(run_t *run, value_t self, const value_t *argument, value_t *out) {
    TRY(run_pay(run, self.dict->count / 8 + 1));
    if (argument[0].type == VALUE_LIST || argument[0].type == VALUE_DICT)
        RUN_FAIL(run, "a %s cannot be a key", value_type_name(argument[0]));
    if (!value_find(self.dict, argument[0], out)) *out = argument[1].type == VALUE_MISSING ? value_none() : argument[1];
    return STATUS_OK;
}

static status_t dict_view(run_t *run, const dict_t *dict, int which, const char *name, value_t *out) {
    value_t *items, *two, list;
    TRY(run_pay(run, dict->count));
    TRY(HEAP_NEW(&run->heap, &items, dict->count));
    for (size_t i = 0; i < dict->count; i++) {
        items[i] = which == 0 ? dict->pair[i].key : dict->pair[i].value;
        if (which != 2) continue;
        TRY(HEAP_NEW(&run->heap, &two, 2));
        two[0] = dict->pair[i].key;
        two[1] = dict->pair[i].value;
        TRY(value_list(run, VALUE_TUPLE, two, 2, &items[i]));
    }
    TRY(value_list(run, VALUE_LIST, items, dict->count, &list));
    return value_stream(run, list, name, out);
}
static status_t dict_keys(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return dict_view(run, self.dict, 0, "dict_keys", out);
}
static status_t dict_values(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return dict_view(run, self.dict, 1, "dict_values", out);
}
static status_t dict_items(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)argument;
    return dict_view(run, self.dict, 2, "dict_items", out);
}

static status_t float_is_integer(run_t *run, value_t self, const value_t *argument, value_t *out) {
    (void)run, (void)argument;
    *out = value_bool(self.real == (double)(int64_t)self.real);
    return STATUS_OK;
}

// ---- the table ----

typedef struct method_entry {
    value_type_t type; // tuples share the lists' entries
    const char *name;
    const char *parameters;
    int needed;
    method_call_t call; // NULL: Python has it, and it is refused
    bool named;         // takes its arguments by name too
} method_entry_t;

static const method_entry_t methods[] = {
    {VALUE_STRING, "strip", "chars", 0, str_strip, false},
    {VALUE_STRING, "lstrip", "chars", 0, str_lstrip, false},
    {VALUE_STRING, "rstrip", "chars", 0, str_rstrip, false},
    {VALUE_STRING, "split", "sep,maxsplit", 0, str_split, true},
    {VALUE_STRING, "rsplit", "sep,maxsplit", 0, str_rsplit, true},
    {VALUE_STRING, "splitlines", "keepends", 0, str_splitlines, true},
    {VALUE_STRING, "startswith", "prefix,start,end", 1, str_startswith, false},
    {VALUE_STRING, "endswith", "suffix,start,end", 1, str_endswith, false},
    {VALUE_STRING, "replace", "old,new,count", 2, str_replace, false},
    {VALUE_STRING, "upper", "", 0, str_upper, false},
    {VALUE_STRING, "lower", "", 0, str_lower, false},
    {VALUE_STRING, "casefold", "", 0, str_lower, false},
    {VALUE_STRING, "title", "", 0, str_title, false},
    {VALUE_STRING, "capitalize", "", 0, str_capitalize, false},
    {VALUE_STRING, "swapcase", "", 0, str_swapcase, false},
    {VALUE_STRING, "find", "sub,start,end", 1, str_find, false},
    {VALUE_STRING, "rfind", "sub,start,end", 1, str_rfind, false},
    {VALUE_STRING, "index", "sub,start,end", 1, str_index, false},
    {VALUE_STRING, "rindex", "sub,start,end", 1, str_rindex, false},
    {VALUE_STRING, "count", "sub,start,end", 1, str_count, false},
    {VALUE_STRING, "join", "iterable", 1, str_join, false},
    {VALUE_STRING, "partition", "sep", 1, str_partition, false},
    {VALUE_STRING, "rpartition", "sep", 1, str_rpartition, false},
    {VALUE_STRING, "removeprefix", "prefix", 1, str_removeprefix, false},
    {VALUE_STRING, "removesuffix", "suffix", 1, str_removesuffix, false},
    {VALUE_STRING, "ljust", "width,fillchar", 1, str_ljust, false},
    {VALUE_STRING, "rjust", "width,fillchar", 1, str_rjust, false},
    {VALUE_STRING, "center", "width,fillchar", 1, str_center, false},
    {VALUE_STRING, "zfill", "width", 1, str_zfill, false},
    {VALUE_STRING, "encode", "", 0, NULL, false},
    {VALUE_STRING, "expandtabs", "", 0, NULL, false},
    {VALUE_STRING, "format_map", "", 0, NULL, false},
    {VALUE_STRING, "isascii", "", 0, NULL, false},
    {VALUE_STRING, "isidentifier", "", 0, NULL, false},
    {VALUE_STRING, "isprintable", "", 0, NULL, false},
    {VALUE_STRING, "maketrans", "", 0, NULL, false},
    {VALUE_STRING, "translate", "", 0, NULL, false},
    {VALUE_LIST, "index", "value", 1, list_index, false},
    {VALUE_LIST, "count", "value", 1, list_count, false},
    {VALUE_LIST, "copy", "", 0, copy_self, false},
    {VALUE_LIST, "append", "", 0, NULL, false},
    {VALUE_LIST, "clear", "", 0, NULL, false},
    {VALUE_LIST, "extend", "", 0, NULL, false},
    {VALUE_LIST, "insert", "", 0, NULL, false},
    {VALUE_LIST, "pop", "", 0, NULL, false},
    {VALUE_LIST, "remove", "", 0, NULL, false},
    {VALUE_LIST, "reverse", "", 0, NULL, false},
    {VALUE_LIST, "sort", "", 0, NULL, false},
    {VALUE_DICT, "get", "key,default", 1, dict_get, false},
    {VALUE_DICT, "keys", "", 0, dict_keys, false},
    {VALUE_DICT, "values", "", 0, dict_values, false},
    {VALUE_DICT, "items", "", 0, dict_items, false},
    {VALUE_DICT, "copy", "", 0, copy_self, false},
    {VALUE_DICT, "fromkeys", "", 0, NULL, false},
    {VALUE_DICT, "clear", "", 0, NULL, false},
    {VALUE_DICT, "pop", "", 0, NULL, false},
    {VALUE_DICT, "popitem", "", 0, NULL, false},
    {VALUE_DICT, "setdefault", "", 0, NULL, false},
    {VALUE_DICT, "update", "", 0, NULL, false},
    {VALUE_FLOAT, "is_integer", "", 0, float_is_integer, false},
};

static const char *const questions[] = {"isdigit", "isdecimal", "isnumeric", "isalpha", "isalnum",
                                        "isspace", "islower",   "isupper",   "istitle"};

static bool is_question(const char *name) {
    for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++)
        if (strcmp(questions[i], name) == 0) return true;
    return false;
}

static const method_entry_t *find_method(value_type_t type, const char *name) {
    if (type == VALUE_TUPLE && (strcmp(name, "index") == 0 || strcmp(name, "count") == 0)) type = VALUE_LIST;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
        if (methods[i].type == type && strcmp(methods[i].name, name) == 0) return &methods[i];
    return NULL;
}

bool method_exists(value_t of, const char *name, bool *usable) {
    *usable = true;
    if (of.type == VALUE_STRING && (is_question(name) || strcmp(name, "format") == 0)) return true;
    const method_entry_t *method = find_method(of.type, name);
    *usable = method && method->call;
    return method;
}

status_t method_call(run_t *run, const method_t *method, const arguments_t *arguments, value_t *out) {
    value_t argument[MOST_PARAMETERS];
    value_t self = method->self;
    if (self.type == VALUE_STRING && strcmp(method->name, "format") == 0)
        return string_format(run, self.text, arguments, out);
    if (self.type == VALUE_STRING && is_question(method->name)) {
        TRY(arguments_bind(run, arguments, method->name, "", 0, argument));
        TRY(run_pay(run, self.text->length / 16));
        *out = value_bool(string_is(self.text, method->name));
        return STATUS_OK;
    }
    const method_entry_t *entry = find_method(self.type, method->name);
    if (arguments->keywords && !entry->named) RUN_FAIL(run, "'%s' takes no named arguments", method->name);
    TRY(arguments_bind(run, arguments, method->name, entry->parameters, entry->needed, argument));
    return entry->call(run, self, argument, out);
}
