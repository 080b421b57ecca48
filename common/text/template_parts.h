// Inside of the template evaluator: what its files share.
//
// Everything that parsing or rendering makes lives in one heap and goes with it. Values are immutable except
// namespaces, so they may be shared freely.
#ifndef COMMON_TEXT_TEMPLATE_PARTS_H
#define COMMON_TEXT_TEMPLATE_PARTS_H

#include "common/text/template.h"
#include <stdbool.h>
#include <stdint.h>

// ---- memory ----

typedef struct template_block template_block_t;
typedef struct heap {
    template_block_t *block;
    size_t used, limit; // bytes over all blocks
} template_heap_t;
status_t template_heap_take(template_heap_t *heap, size_t size, void **out) STATUS_CHECKED; // zeroed, aligned
void template_heap_free(template_heap_t *heap);
#define HEAP_NEW(heap, pointer, count)                                                                                 \
    template_heap_take((heap), (size_t)(count) * sizeof(**(pointer)), (void **)(pointer))

// ---- values ----

typedef enum value_type {
    VALUE_MISSING, // an argument that was not given
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_RANGE,
    VALUE_DICT,
    VALUE_STREAM, // generators, which are used up by reading, and views of dicts, which are not
    VALUE_NAMESPACE,
    VALUE_LOOP,
    VALUE_MACRO,
    VALUE_FUNCTION,
    VALUE_METHOD,
} value_type_t;

typedef struct text text_t;
typedef struct list list_t;
typedef struct dict dict_t;
typedef struct range range_t;
typedef struct stream stream_t;
typedef struct namespace_value namespace_t;
typedef struct loop loop_t;
typedef struct macro macro_t;
typedef struct method method_t;
typedef struct value value_t;

struct value {
    value_type_t type;
    union {
        const char *hint; // VALUE_UNDEFINED: why
        bool truth;
        int64_t integer;
        double real;
        const text_t *text;
        const list_t *list; // lists and tuples
        const range_t *range;
        const dict_t *dict;
        stream_t *stream;
        namespace_t *space;
        loop_t *loop;
        const macro_t *macro;
        int function;
        const method_t *method;
    };
};

struct text {
    const char *bytes; // valid UTF-8, not 0-terminated
    const char *given; // a mark a byte: from the variables
    size_t length;
    bool safe; // went through `safe` or `escape`
};
struct list {
    const value_t *item;
    size_t count;
};
typedef struct pair {
    value_t key, value;
} pair_t;
struct dict {
    const pair_t *pair;
    size_t count;
};
struct range {
    int64_t start, stop, step;
    size_t count;
};
struct stream {
    value_t items; // a list
    size_t at;
    const char *view; // the Python name of a view; NULL: a generator
};
struct namespace_value {
    pair_t *pair;
    size_t count, capacity;
};
struct method {
    value_t self;
    const char *name;
};

#define VALUE_OF(kind, member, content) ((value_t){.type = (kind), .member = (content)})
static inline value_t value_none(void) {
    return (value_t){.type = VALUE_NONE};
}
static inline value_t value_bool(bool truth) {
    return VALUE_OF(VALUE_BOOL, truth, truth);
}
static inline value_t value_int(int64_t integer) {
    return VALUE_OF(VALUE_INT, integer, integer);
}
static inline value_t value_float(double real) {
    return VALUE_OF(VALUE_FLOAT, real, real);
}
static inline value_t value_undefined(const char *hint) {
    return VALUE_OF(VALUE_UNDEFINED, hint, hint);
}

// ---- the parsed template ----

typedef enum node_kind {
    // statements
    NODE_TEXT,  // value
    NODE_PRINT, // first
    NODE_IF,    // first: test; second: body; third: the rest (statements, or another NODE_IF)
    NODE_FOR,   // first: target; second: iterable; third: body; fourth: else; filter
    NODE_SET,   // first: target; second: value
    NODE_SET_BLOCK,
    NODE_MACRO,
    NODE_CALL_BLOCK,
    NODE_FILTER_BLOCK,
    NODE_WITH,
    NODE_SCOPE,
    NODE_BREAK,
    NODE_CONTINUE,
    // expressions
    NODE_CONSTANT,
    NODE_NAME,
    NODE_NAMESPACE_NAME, // a target: name, attribute in value
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT, // first: keys and values in turn
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_BINARY,  // operation
    NODE_COMPARE, // first; second: list of NODE_OPERAND
    NODE_OPERAND, // operation, first
    NODE_CONCAT,
    NODE_CONDITION, // first: test; second: yes; third: no or NULL
    NODE_ATTRIBUTE, // first, name
    NODE_ITEM,      // first, second
    NODE_SLICE,     // first: of what; second, third, fourth: start, stop, step or NULL
    NODE_CALL,      // first; arguments: second
    NODE_FILTER,    // first (NULL in a filter block), name, arguments: second
    NODE_TEST,      // the same
    NODE_ARGUMENT,  // first; name for keywords; operation: 1 for *x, 2 for **x
} node_kind_t;

typedef struct node node_t;
struct node {
    node_kind_t kind;
    int line, operation;
    const char *name; // interned: equal names are equal pointers
    node_t *first, *second, *third, *fourth;
    node_t *next; // in a list
    value_t value;
};

typedef enum token_kind {
    TOKEN_TEXT,
    TOKEN_BEGIN, // {%
    TOKEN_END,
    TOKEN_PRINT_BEGIN, // {{
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_STRING,
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_OPERATOR,
    TOKEN_OVER,
} token_kind_t;

// Operators as tokens: their characters packed, '*' << 8 | '*' for "**".
#define OPERATOR2(first, second) ((first) << 8 | (second))

typedef struct token {
    token_kind_t kind;
    int line;
    int operation;
    const char *bytes;
    size_t length;
    value_t value; // of texts, strings and numbers
} token_t;
typedef struct tokens {
    token_t *token;
    size_t count, capacity;
} tokens_t;

struct template {
    template_heap_t heap;
    node_t *body;
    size_t source_length;
};
status_t template_lex(template_heap_t *heap, const char *source, size_t length, tokens_t *out) STATUS_CHECKED;

// ---- rendering ----

typedef struct variable variable_t;
struct variable {
    const char *name; // interned, or of the given variables
    value_t value;
    variable_t *next;
};
typedef struct scope scope_t;
struct scope {
    scope_t *parent;
    variable_t *variable;
};

typedef struct builder {
    char *bytes, *given;
    size_t length, capacity;
} builder_t;

enum { TEMPLATE_DEPTH = 2000, TEMPLATE_CALLS = 100 }; // nested expressions and statements; macros in macros

typedef struct run {
    template_heap_t heap;
    int64_t steps; // left
    int depth, calls;
    int line;
    builder_t *out;
    scope_t *scope;
    enum { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } flow;
} run_t;

struct macro {
    const node_t *node; // NODE_MACRO: name, first: parameters; NODE_CALL_BLOCK: second: parameters; third: body
    scope_t *scope;
};

// Every step of work is paid for; a template that takes too many ends.
status_t run_pay(run_t *run, size_t steps) STATUS_CHECKED;
// An error with the line at hand.
#define RUN_FAIL(run, ...) return run_error((run), STATUS_NEW(STATUS_INVALID, __VA_ARGS__))
status_t run_error(const run_t *run, status_t status) STATUS_CHECKED;

// template_value.c
status_t builder_add(run_t *run, builder_t *builder, const char *bytes, const char *given,
                     size_t length) STATUS_CHECKED; // given NULL: from the template
status_t builder_word(run_t *run, builder_t *builder, const char *word) STATUS_CHECKED;
status_t builder_text(run_t *run, builder_t *builder, const text_t *text) STATUS_CHECKED;
status_t builder_finish(run_t *run, const builder_t *builder, value_t *out) STATUS_CHECKED;
status_t value_text(run_t *run, const char *bytes, const char *given, size_t length, value_t *out) STATUS_CHECKED;
status_t value_word(run_t *run, const char *word, value_t *out) STATUS_CHECKED; // from the template
status_t value_list(run_t *run, value_type_t type, const value_t *items, size_t count, value_t *out) STATUS_CHECKED;
status_t value_stream(run_t *run, value_t list, const char *view, value_t *out) STATUS_CHECKED;
status_t value_from_json(run_t *run, const json_t *json, bool given, value_t *out) STATUS_CHECKED;
const char *value_type_name(value_t value);
bool value_truth(value_t value);
bool value_number(value_t value, double *real); // ints, floats and bools
bool value_integer(value_t value, int64_t *integer);
bool value_is_word(value_t value, const char *word);
status_t value_equal(run_t *run, value_t a, value_t b, bool *out) STATUS_CHECKED;
// operation: '<', '>', OPERATOR2('<', '=') or OPERATOR2('>', '=').
status_t value_order(run_t *run, value_t a, value_t b, int operation, bool *out) STATUS_CHECKED;
status_t value_contains(run_t *run, value_t whole, value_t part, bool *out) STATUS_CHECKED;
status_t value_length(run_t *run, value_t value, size_t *out) STATUS_CHECKED;
bool value_find(const dict_t *dict, value_t key, value_t *out); // strings and numbers
size_t text_count(const text_t *text);                          // characters
size_t text_offset(const text_t *text, size_t character);       // of a character, in bytes

// What can be looped over, item by item.
typedef struct cursor {
    value_t of;
    size_t at; // bytes for strings
} cursor_t;
status_t cursor_open(run_t *run, value_t value, cursor_t *out) STATUS_CHECKED;
status_t cursor_next(run_t *run, cursor_t *cursor, value_t *item, bool *more) STATUS_CHECKED;
// All items as an array.
status_t value_items(run_t *run, value_t value, const value_t **items, size_t *count) STATUS_CHECKED;
value_t list_item(value_t value, size_t at); // of lists, tuples and ranges

// template_print.c
status_t value_print(run_t *run, builder_t *builder, value_t value) STATUS_CHECKED; // as str()
status_t value_repr(run_t *run, builder_t *builder, value_t value) STATUS_CHECKED;  // as repr()
status_t value_string(run_t *run, value_t value, value_t *out) STATUS_CHECKED;      // str()
status_t value_json(run_t *run, value_t value, const value_t *argument, value_t *out) STATUS_CHECKED;
void number_print(double real, char *out, size_t bytes); // repr of a float

typedef struct arguments arguments_t;
// template_eval.c
status_t eval(run_t *run, const node_t *node, value_t *out) STATUS_CHECKED;
status_t eval_call(run_t *run, value_t callee, const arguments_t *arguments, value_t *out) STATUS_CHECKED;
status_t value_attribute(run_t *run, value_t of, const char *name, value_t *out) STATUS_CHECKED; // of.name
status_t value_item(run_t *run, value_t of, value_t key, value_t *out) STATUS_CHECKED;           // of[key]
status_t value_slice(run_t *run, value_t of, const value_t bound[3], value_t *out) STATUS_CHECKED;
status_t value_binary(run_t *run, int operation, value_t a, value_t b, value_t *out) STATUS_CHECKED;

typedef struct keyword {
    const char *name;
    value_t value;
} keyword_t;
struct arguments {
    const value_t *value;
    size_t count;
    const keyword_t *keyword;
    size_t keywords;
};
enum { MOST_PARAMETERS = 8 };
// Sorts arguments by `names` ("old,new,count"; the first `needed` must be given) into `out`, VALUE_MISSING where none
// is given. `what` names the callee in errors.
status_t arguments_bind(run_t *run, const arguments_t *arguments, const char *what, const char *names, int needed,
                        value_t *out) STATUS_CHECKED;
status_t argument_text(run_t *run, value_t value, const char *what, const text_t **out) STATUS_CHECKED;
status_t argument_integer(run_t *run, value_t value, const char *what, int64_t *out) STATUS_CHECKED;

// template_run.c
status_t run_statements(run_t *run, const node_t *node) STATUS_CHECKED;
status_t run_macro(run_t *run, const macro_t *macro, const arguments_t *arguments, value_t *out) STATUS_CHECKED;
status_t loop_attribute(run_t *run, loop_t *loop, const char *name, value_t *out) STATUS_CHECKED;
status_t loop_call(run_t *run, loop_t *loop, const char *name, const arguments_t *arguments,
                   value_t *out) STATUS_CHECKED;
status_t scope_set(run_t *run, scope_t *scope, const char *name, value_t value) STATUS_CHECKED;
bool scope_get(const scope_t *scope, const char *name, value_t *out);

// template_functions.c
bool function_find(const char *name, value_t *out);
status_t function_call(run_t *run, int function, const arguments_t *arguments, value_t *out) STATUS_CHECKED;
status_t namespace_set(run_t *run, namespace_t *space, const char *name, value_t value) STATUS_CHECKED;

// template_filters.c, template_tests.c, template_methods.c
status_t filter_apply(run_t *run, const char *name, value_t value, const arguments_t *arguments,
                      value_t *out) STATUS_CHECKED;
status_t test_apply(run_t *run, const char *name, value_t value, const arguments_t *arguments,
                    bool *out) STATUS_CHECKED;
bool filter_exists(const char *name);
bool test_exists(const char *name);
// Whether values of this type have a method of this name in Python; *usable: the sandbox allows it.
bool method_exists(value_t of, const char *name, bool *usable);
status_t method_call(run_t *run, const method_t *method, const arguments_t *arguments, value_t *out) STATUS_CHECKED;

// template_strings.c: strings as Python has them.
bool code_is_space(uint32_t code);
status_t string_strip(run_t *run, const text_t *text, value_t characters, bool left, bool right,
                      value_t *out) STATUS_CHECKED;
status_t string_split(run_t *run, const text_t *text, value_t separator, int64_t most, bool from_right,
                      value_t *out) STATUS_CHECKED;
status_t string_lines(run_t *run, const text_t *text, bool keep, value_t *out) STATUS_CHECKED;
status_t string_replace(run_t *run, const text_t *text, const text_t *old, const text_t *new, int64_t most,
                        value_t *out) STATUS_CHECKED;
typedef enum letter_case { CASE_UPPER, CASE_LOWER, CASE_CAPITALIZE, CASE_TITLE, CASE_WORDS, CASE_SWAP } letter_case_t;
status_t string_case(run_t *run, const text_t *text, letter_case_t how, value_t *out) STATUS_CHECKED;
// The upper or title case of a character that becomes several: up to 3, ended by 0 where fewer. NULL: it does not.
const uint32_t *code_special_case(uint32_t code, bool title);
bool string_is(const text_t *text, const char *method); // isdigit and its like
// Byte offset of the first (or last) occurrence at or after `from`; SIZE_MAX when there is none.
size_t text_find(const text_t *text, const text_t *part, size_t from);
size_t text_find_last(const text_t *text, const text_t *part, size_t until);

// template_format.c
status_t string_percent(run_t *run, const text_t *format, value_t values, value_t *out) STATUS_CHECKED;
status_t string_format(run_t *run, const text_t *format, const arguments_t *arguments, value_t *out) STATUS_CHECKED;

#endif
