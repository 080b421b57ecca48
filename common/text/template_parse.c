// The parser: tokens -> the tree that template_run.c walks.
#include "common/text/template_parts.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH = 150, NAME_SLOTS = 256 };

// Names are kept once each.
typedef struct name_entry name_entry_t;
struct name_entry {
    const char *name;
    name_entry_t *next;
};

typedef struct parser {
    template_heap_t *heap;
    const token_t *token; // the next one
    name_entry_t *slot[NAME_SLOTS];
    int depth;
    int loops;
    int uses; // of caller, varargs, kwargs in the macro at hand: bits 1, 2, 4
} parser_t;

static status_t parse_error(const parser_t *p, status_t status) {
    return status_context(status, "line %d", p->token->line);
}
#define PARSE_FAIL(p, ...) return parse_error((p), STATUS_NEW(STATUS_INVALID, __VA_ARGS__))

static status_t intern(parser_t *p, const char *bytes, size_t length, const char **out) {
    unsigned hash = 5381;
    for (size_t i = 0; i < length; i++) hash = hash * 33 + (unsigned char)bytes[i];
    name_entry_t **slot = &p->slot[hash % NAME_SLOTS], *entry;
    for (entry = *slot; entry; entry = entry->next)
        if (strncmp(entry->name, bytes, length) == 0 && !entry->name[length]) {
            *out = entry->name;
            return STATUS_OK;
        }
    char *copy;
    TRY(template_heap_take(p->heap, length + 1, (void **)&copy));
    memcpy(copy, bytes, length);
    TRY(HEAP_NEW(p->heap, &entry, 1));
    *entry = (name_entry_t){.name = copy, .next = *slot};
    *slot = entry;
    *out = copy;
    return STATUS_OK;
}

static bool at_name(const parser_t *p, const char *name) {
    return p->token->kind == TOKEN_NAME && strlen(name) == p->token->length &&
           memcmp(p->token->bytes, name, p->token->length) == 0;
}

static bool at_operator(const parser_t *p, int operation) {
    return p->token->kind == TOKEN_OPERATOR && p->token->operation == operation;
}

static bool take_name(parser_t *p, const char *name) {
    if (!at_name(p, name)) return false;
    p->token++;
    return true;
}

static bool take_operator(parser_t *p, int operation) {
    if (!at_operator(p, operation)) return false;
    p->token++;
    return true;
}

// What a user sees of a token.
static void describe(const token_t *token, char *out, size_t bytes) {
    static const char *const words[] = {[TOKEN_TEXT] = "text",
                                        [TOKEN_END] = "the end of the tag ('%}')",
                                        [TOKEN_PRINT_END] = "the end of the tag ('}}')",
                                        [TOKEN_OVER] = "the end of the template"};
    if (token->kind < sizeof(words) / sizeof(words[0]) && words[token->kind])
        snprintf(out, bytes, "%s", words[token->kind]);
    else
        snprintf(out, bytes, "'%.*s'", (int)(token->length < 60 ? token->length : 60), token->bytes);
}

static status_t unexpected(const parser_t *p, const char *wanted) {
    char found[128];
    describe(p->token, found, sizeof(found));
    PARSE_FAIL(p, "%s is wanted where %s stands", wanted, found);
}

static status_t expect_operator(parser_t *p, int operation) {
    char wanted[8];
    snprintf(wanted, sizeof(wanted), "'%c'", operation);
    return take_operator(p, operation) ? STATUS_OK : unexpected(p, wanted);
}

static status_t expect_kind(parser_t *p, token_kind_t kind, const char *wanted) {
    if (p->token->kind != kind) return unexpected(p, wanted);
    p->token++;
    return STATUS_OK;
}

static status_t expect_any_name(parser_t *p, const char **name) {
    if (p->token->kind != TOKEN_NAME) return unexpected(p, "a name");
    TRY(intern(p, p->token->bytes, p->token->length, name));
    p->token++;
    return STATUS_OK;
}

static status_t make_at(parser_t *p, node_kind_t kind, int line, node_t **out) {
    TRY(HEAP_NEW(p->heap, out, 1));
    (*out)->kind = kind;
    (*out)->line = line;
    return STATUS_OK;
}

static status_t make(parser_t *p, node_kind_t kind, node_t **out) {
    return make_at(p, kind, p->token->line, out);
}

// Wraps *node as the first child of a new node.
static status_t wrap(parser_t *p, node_kind_t kind, node_t **node) {
    node_t *outer;
    TRY(make(p, kind, &outer));
    outer->first = *node;
    *node = outer;
    return STATUS_OK;
}

static status_t deeper(parser_t *p) {
    if (++p->depth > DEPTH) PARSE_FAIL(p, "the template is nested more than %d deep", DEPTH);
    return STATUS_OK;
}

// ---- expressions ----

static status_t parse_expression(parser_t *p, bool with_condition, node_t **out);
static status_t parse_tuple(parser_t *p, bool with_condition, bool in_parentheses, const char *end_name, node_t **out);
static status_t parse_unary(parser_t *p, bool with_filter, node_t **out);

// `a, b, key=c, *d, **e)`; the opening is taken already.
static status_t parse_arguments(parser_t *p, node_t **out) {
    node_t **end = out;
    *out = NULL;
    while (!at_operator(p, ')')) {
        node_t *argument;
        if (*out) {
            TRY(expect_operator(p, ','));
            if (at_operator(p, ')')) break;
        }
        TRY(make(p, NODE_ARGUMENT, &argument));
        if (take_operator(p, '*'))
            argument->operation = 1;
        else if (take_operator(p, OPERATOR2('*', '*')))
            argument->operation = 2;
        else if (p->token->kind == TOKEN_NAME && p->token[1].kind == TOKEN_OPERATOR && p->token[1].operation == '=') {
            TRY(expect_any_name(p, &argument->name));
            p->token++;
        }
        TRY(parse_expression(p, true, &argument->first));
        *end = argument;
        end = &argument->next;
    }
    p->token++;
    return STATUS_OK;
}

// A list of expressions up to `close`; pairs: `key: value`.
static status_t parse_items(parser_t *p, int close, bool pairs, node_t **out) {
    node_t **end = out;
    *out = NULL;
    while (!at_operator(p, close)) {
        if (*out) {
            TRY(expect_operator(p, ','));
            if (at_operator(p, close)) break;
        }
        TRY(parse_expression(p, true, end));
        end = &(*end)->next;
        if (!pairs) continue;
        TRY(expect_operator(p, ':'));
        TRY(parse_expression(p, true, end));
        end = &(*end)->next;
    }
    p->token++;
    return STATUS_OK;
}

static status_t parse_strings(parser_t *p, node_t **out) {
    TRY(make(p, NODE_CONSTANT, out));
    (*out)->value = p->token->value;
    p->token++;
    while (p->token->kind == TOKEN_STRING) { // strings side by side are one
        const text_t *a = (*out)->value.text, *b = p->token->value.text;
        char *bytes, *given;
        text_t *both;
        TRY(template_heap_take(p->heap, a->length + b->length, (void **)&bytes));
        TRY(template_heap_take(p->heap, a->length + b->length, (void **)&given));
        memcpy(bytes, a->bytes, a->length);
        memcpy(bytes + a->length, b->bytes, b->length);
        TRY(HEAP_NEW(p->heap, &both, 1));
        *both = (text_t){.bytes = bytes, .given = given, .length = a->length + b->length};
        (*out)->value = VALUE_OF(VALUE_STRING, text, both);
        p->token++;
    }
    return STATUS_OK;
}

static status_t parse_named(parser_t *p, node_t **out) {
    bool yes = at_name(p, "true") || at_name(p, "True"), no = at_name(p, "false") || at_name(p, "False");
    if (yes || no || at_name(p, "none") || at_name(p, "None")) {
        TRY(make(p, NODE_CONSTANT, out));
        (*out)->value = yes || no ? value_bool(yes) : value_none();
        p->token++;
        return STATUS_OK;
    }
    TRY(make(p, NODE_NAME, out));
    p->uses |= at_name(p, "caller") ? 1 : at_name(p, "varargs") ? 2 : at_name(p, "kwargs") ? 4 : 0;
    return expect_any_name(p, &(*out)->name);
}

static status_t parse_primary(parser_t *p, node_t **out) {
    switch (p->token->kind) {
    case TOKEN_NAME:
        return parse_named(p, out);
    case TOKEN_STRING:
        return parse_strings(p, out);
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        TRY(make(p, NODE_CONSTANT, out));
        (*out)->value = p->token->value;
        p->token++;
        return STATUS_OK;
    default:
        break;
    }
    if (take_operator(p, '(')) {
        TRY(parse_tuple(p, true, true, NULL, out));
        return expect_operator(p, ')');
    }
    TRY(make(p, at_operator(p, '{') ? NODE_DICT : NODE_LIST, out));
    if (take_operator(p, '[')) return parse_items(p, ']', false, &(*out)->first);
    if (take_operator(p, '{')) return parse_items(p, '}', true, &(*out)->first);
    return unexpected(p, "an expression");
}

static status_t parse_bound(parser_t *p, node_t **out) {
    if (at_operator(p, ':') || at_operator(p, ']')) return STATUS_OK;
    return parse_expression(p, true, out);
}

// `[key]`, `[a:b:c]`; the bracket is taken already.
static status_t parse_subscript(parser_t *p, node_t **node) {
    node_t *start = NULL;
    if (!at_operator(p, ':')) TRY(parse_expression(p, true, &start));
    if (!at_operator(p, ':')) {
        TRY(wrap(p, NODE_ITEM, node));
        (*node)->second = start;
        if (at_operator(p, ',')) PARSE_FAIL(p, "subscripts with a comma are not supported");
        return expect_operator(p, ']');
    }
    p->token++;
    TRY(wrap(p, NODE_SLICE, node));
    (*node)->second = start;
    TRY(parse_bound(p, &(*node)->third));
    if (take_operator(p, ':')) TRY(parse_bound(p, &(*node)->fourth));
    return expect_operator(p, ']');
}

static status_t parse_dot(parser_t *p, node_t **node) {
    if (p->token->kind == TOKEN_INTEGER) {
        TRY(wrap(p, NODE_ITEM, node));
        TRY(make(p, NODE_CONSTANT, &(*node)->second));
        (*node)->second->value = p->token->value;
        p->token++;
        return STATUS_OK;
    }
    TRY(wrap(p, NODE_ATTRIBUTE, node));
    return expect_any_name(p, &(*node)->name);
}

static status_t parse_postfix(parser_t *p, node_t **node) {
    for (int length = 0;; length++) {
        if (length == 2 * DEPTH) PARSE_FAIL(p, "an expression has too many parts");
        if (take_operator(p, '.')) {
            TRY(parse_dot(p, node));
        } else if (take_operator(p, '[')) {
            TRY(parse_subscript(p, node));
        } else if (take_operator(p, '(')) {
            TRY(wrap(p, NODE_CALL, node));
            TRY(parse_arguments(p, &(*node)->second));
        } else {
            return STATUS_OK;
        }
    }
}

// A filter's or test's name, which may have dots in it.
static status_t parse_dotted(parser_t *p, const char **name) {
    char whole[128];
    TRY(expect_any_name(p, name));
    while (take_operator(p, '.')) {
        const char *part;
        TRY(expect_any_name(p, &part));
        if (snprintf(whole, sizeof(whole), "%s.%s", *name, part) >= (int)sizeof(whole))
            PARSE_FAIL(p, "a filter's or test's name is too long");
        TRY(intern(p, whole, strlen(whole), name));
    }
    return STATUS_OK;
}

// `| name(arguments)`; *node may be NULL in a filter block.
static status_t parse_filter(parser_t *p, node_t **node) {
    TRY(wrap(p, NODE_FILTER, node));
    TRY(parse_dotted(p, &(*node)->name));
    return take_operator(p, '(') ? parse_arguments(p, &(*node)->second) : STATUS_OK;
}

static bool starts_argument(const parser_t *p) {
    switch (p->token->kind) {
    case TOKEN_NAME:
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    case TOKEN_STRING:
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        return true;
    default:
        return at_operator(p, '[') || at_operator(p, '{');
    }
}

static status_t parse_test(parser_t *p, node_t **node) {
    bool negated = take_name(p, "not");
    TRY(wrap(p, NODE_TEST, node));
    node_t *test = *node;
    TRY(parse_dotted(p, &test->name));
    if (take_operator(p, '(')) {
        TRY(parse_arguments(p, &test->second));
    } else if (starts_argument(p)) {
        if (at_name(p, "is")) PARSE_FAIL(p, "tests cannot be chained with 'is'");
        TRY(make(p, NODE_ARGUMENT, &test->second));
        TRY(parse_primary(p, &test->second->first));
        TRY(parse_postfix(p, &test->second->first));
    }
    return negated ? wrap(p, NODE_NOT, node) : STATUS_OK;
}

static status_t parse_filters(parser_t *p, node_t **node) {
    for (int length = 0;; length++) {
        if (length == 2 * DEPTH) PARSE_FAIL(p, "an expression has too many filters");
        if (take_operator(p, '|')) {
            TRY(parse_filter(p, node));
        } else if (take_name(p, "is")) {
            TRY(parse_test(p, node));
        } else if (take_operator(p, '(')) {
            TRY(wrap(p, NODE_CALL, node));
            TRY(parse_arguments(p, &(*node)->second));
        } else {
            return STATUS_OK;
        }
    }
}

static status_t parse_unary(parser_t *p, bool with_filter, node_t **out) {
    TRY(deeper(p));
    bool minus = at_operator(p, '-');
    if (minus || at_operator(p, '+')) {
        TRY(make(p, minus ? NODE_NEGATE : NODE_PLUS, out));
        p->token++;
        TRY(parse_unary(p, false, &(*out)->first));
    } else {
        TRY(parse_primary(p, out));
    }
    TRY(parse_postfix(p, out));
    if (with_filter) TRY(parse_filters(p, out));
    p->depth--;
    return STATUS_OK;
}

// Joins *left and what `next` reads by the operator that stands here.
static status_t join(parser_t *p, node_kind_t kind, status_t (*next)(parser_t *, node_t **), node_t **left,
                     int *count) {
    if (++*count > 6 * DEPTH) PARSE_FAIL(p, "an expression has too many operators");
    TRY(wrap(p, kind, left));
    (*left)->operation = p->token->operation;
    p->token++;
    return next(p, &(*left)->second);
}

static status_t parse_power_part(parser_t *p, node_t **out) {
    return parse_unary(p, true, out);
}

static status_t parse_power(parser_t *p, node_t **out) {
    int count = 0;
    TRY(parse_power_part(p, out));
    while (at_operator(p, OPERATOR2('*', '*'))) TRY(join(p, NODE_BINARY, parse_power_part, out, &count));
    return STATUS_OK;
}

static status_t parse_product(parser_t *p, node_t **out) {
    int count = 0;
    TRY(parse_power(p, out));
    while (at_operator(p, '*') || at_operator(p, '/') || at_operator(p, OPERATOR2('/', '/')) || at_operator(p, '%'))
        TRY(join(p, NODE_BINARY, parse_power, out, &count));
    return STATUS_OK;
}

static status_t parse_concat(parser_t *p, node_t **out) {
    TRY(parse_product(p, out));
    if (!at_operator(p, '~')) return STATUS_OK;
    TRY(wrap(p, NODE_CONCAT, out));
    node_t **end = &(*out)->first->next;
    while (take_operator(p, '~')) {
        TRY(parse_product(p, end));
        end = &(*end)->next;
    }
    return STATUS_OK;
}

static status_t parse_sum(parser_t *p, node_t **out) {
    int count = 0;
    TRY(parse_concat(p, out));
    while (at_operator(p, '+') || at_operator(p, '-')) TRY(join(p, NODE_BINARY, parse_concat, out, &count));
    return STATUS_OK;
}

// The comparison that stands here; 0: there is none. 'i' is in, 'n' is not in.
static int take_comparison(parser_t *p) {
    static const int operations[] = {
        OPERATOR2('=', '='), OPERATOR2('!', '='), OPERATOR2('<', '='), OPERATOR2('>', '='), '<', '>'};
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++)
        if (take_operator(p, operations[i])) return operations[i];
    if (take_name(p, "in")) return 'i';
    const token_t *start = p->token;
    if (take_name(p, "not") && take_name(p, "in")) return 'n';
    p->token = start;
    return 0;
}

static status_t parse_compare(parser_t *p, node_t **out) {
    TRY(parse_sum(p, out));
    node_t **end = NULL;
    for (int operation; (operation = take_comparison(p));) {
        if (!end) {
            TRY(wrap(p, NODE_COMPARE, out));
            end = &(*out)->second;
        }
        TRY(make(p, NODE_OPERAND, end));
        (*end)->operation = operation;
        TRY(parse_sum(p, &(*end)->first));
        end = &(*end)->next;
    }
    return STATUS_OK;
}

static status_t parse_not(parser_t *p, node_t **out) {
    if (!at_name(p, "not")) return parse_compare(p, out);
    TRY(deeper(p));
    TRY(make(p, NODE_NOT, out));
    p->token++;
    TRY(parse_not(p, &(*out)->first));
    p->depth--;
    return STATUS_OK;
}

static status_t parse_and(parser_t *p, node_t **out) {
    int count = 0;
    TRY(parse_not(p, out));
    while (at_name(p, "and")) TRY(join(p, NODE_AND, parse_not, out, &count));
    return STATUS_OK;
}

static status_t parse_or(parser_t *p, node_t **out) {
    int count = 0;
    TRY(parse_and(p, out));
    while (at_name(p, "or")) TRY(join(p, NODE_OR, parse_and, out, &count));
    return STATUS_OK;
}

static status_t parse_expression(parser_t *p, bool with_condition, node_t **out) {
    TRY(deeper(p));
    TRY(parse_or(p, out));
    while (with_condition && take_name(p, "if")) {
        node_t *yes = *out;
        TRY(make(p, NODE_CONDITION, out));
        (*out)->second = yes;
        TRY(parse_or(p, &(*out)->first));
        if (take_name(p, "else")) TRY(parse_expression(p, true, &(*out)->third));
    }
    p->depth--;
    return STATUS_OK;
}

static bool at_tuple_end(const parser_t *p, const char *end_name) {
    return p->token->kind == TOKEN_END || p->token->kind == TOKEN_PRINT_END || at_operator(p, ')') ||
           (end_name && at_name(p, end_name));
}

// An expression, or several with commas between them as a tuple.
static status_t parse_tuple(parser_t *p, bool with_condition, bool in_parentheses, const char *end_name, node_t **out) {
    node_t *first = NULL, **end = &first;
    bool tuple = false;
    int line = p->token->line;
    while (!at_tuple_end(p, end_name)) {
        TRY(parse_expression(p, with_condition, end));
        end = &(*end)->next;
        if (!at_operator(p, ',')) break;
        tuple = true;
        p->token++;
    }
    if (!tuple && first) {
        *out = first;
        return STATUS_OK;
    }
    if (!tuple && !in_parentheses) return unexpected(p, "an expression");
    TRY(make_at(p, NODE_TUPLE, line, out));
    (*out)->first = first;
    return STATUS_OK;
}

// ---- statements ----

static status_t parse_body(parser_t *p, const char *const *ends, node_t **out);
static status_t parse_statement(parser_t *p, node_t **out);

static status_t parse_target(parser_t *p, const char *end_name, bool with_namespace, node_t **out);

static status_t parse_target_part(parser_t *p, bool with_namespace, node_t **out) {
    TRY(deeper(p));
    if (take_operator(p, '(')) {
        TRY(parse_target(p, NULL, with_namespace, out));
        p->depth--;
        return expect_operator(p, ')');
    }
    TRY(make(p, NODE_NAME, out));
    if (p->token->kind != TOKEN_NAME) return unexpected(p, "the name of a variable");
    if (at_name(p, "true") || at_name(p, "false") || at_name(p, "none") || at_name(p, "True") || at_name(p, "False") ||
        at_name(p, "None"))
        return unexpected(p, "the name of a variable");
    TRY(expect_any_name(p, &(*out)->name));
    if (with_namespace && take_operator(p, '.')) {
        const char *attribute;
        TRY(expect_any_name(p, &attribute));
        (*out)->kind = NODE_NAMESPACE_NAME;
        (*out)->value = value_undefined(attribute);
    }
    p->depth--;
    return STATUS_OK;
}

static status_t parse_target(parser_t *p, const char *end_name, bool with_namespace, node_t **out) {
    node_t *first = NULL, **end = &first;
    bool tuple = false;
    int line = p->token->line;
    while (!at_tuple_end(p, end_name)) {
        TRY(parse_target_part(p, with_namespace, end));
        end = &(*end)->next;
        if (!take_operator(p, ',')) break;
        tuple = true;
    }
    if (!first) return unexpected(p, "the name of a variable");
    *out = first;
    if (!tuple) return STATUS_OK;
    TRY(make_at(p, NODE_TUPLE, line, out));
    (*out)->first = first;
    return STATUS_OK;
}

static status_t end_tag(parser_t *p) {
    return expect_kind(p, TOKEN_END, "the end of the tag ('%}')");
}

// The body of a statement: from the end of its tag to a tag that begins with one of `ends`, whose name is next.
static status_t parse_inside(parser_t *p, const char *const *ends, node_t **out) {
    (void)take_operator(p, ':');
    TRY(end_tag(p));
    TRY(parse_body(p, ends, out));
    if (p->token->kind == TOKEN_OVER) PARSE_FAIL(p, "'%s' is missing", ends[0]);
    return STATUS_OK;
}

// The same, and takes the closing name, the only one.
static status_t parse_block(parser_t *p, const char *end, node_t **out) {
    TRY(parse_inside(p, (const char *const[]){end, NULL}, out));
    p->token++;
    return STATUS_OK;
}

static status_t parse_set(parser_t *p, node_t **out) {
    node_t *node;
    TRY(make(p, NODE_SET, out));
    node = *out;
    TRY(parse_target(p, NULL, true, &node->first));
    if (take_operator(p, '=')) return parse_tuple(p, true, false, NULL, &node->second);
    node->kind = NODE_SET_BLOCK;
    while (take_operator(p, '|')) TRY(parse_filter(p, &node->third));
    return parse_block(p, "endset", &node->second);
}

static status_t parse_for(parser_t *p, node_t **out) {
    static const char *const ends[] = {"endfor", "else", NULL};
    node_t *node, *filter;
    TRY(make(p, NODE_FOR, out));
    node = *out;
    TRY(parse_target(p, "in", false, &node->first));
    if (!take_name(p, "in")) return unexpected(p, "'in'");
    TRY(parse_tuple(p, false, false, "recursive", &node->second));
    if (take_name(p, "if")) {
        TRY(parse_expression(p, true, &filter));
        // The filter hangs on the iterable, so that a loop has four children only.
        TRY(wrap(p, NODE_ARGUMENT, &node->second));
        node->second->second = filter;
    }
    if (at_name(p, "recursive")) PARSE_FAIL(p, "recursive loops are not supported");
    p->loops++;
    TRY(parse_inside(p, ends, &node->third));
    p->loops--;
    if (take_name(p, "endfor")) return STATUS_OK;
    p->token++;
    return parse_block(p, "endfor", &node->fourth);
}

static status_t parse_if(parser_t *p, node_t **out) {
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    node_t *node;
    for (int count = 0;; count++) {
        TRY(make(p, NODE_IF, out));
        node = *out;
        TRY(parse_tuple(p, false, false, NULL, &node->first));
        TRY(parse_inside(p, ends, &node->second));
        if (!take_name(p, "elif")) break;
        out = &node->third;
    }
    if (take_name(p, "endif")) return STATUS_OK;
    p->token++;
    return parse_block(p, "endif", &node->third);
}

// `(a, b=1)`: parameters as NODE_NAME with their default in `first`.
static status_t parse_parameters(parser_t *p, node_t **out) {
    node_t **end = out;
    bool defaults = false;
    if (!take_operator(p, '(')) return unexpected(p, "'('");
    while (!at_operator(p, ')')) {
        if (*out) TRY(expect_operator(p, ','));
        TRY(make(p, NODE_NAME, end));
        TRY(expect_any_name(p, &(*end)->name));
        if (take_operator(p, '=')) {
            TRY(parse_expression(p, true, &(*end)->first));
            defaults = true;
        } else if (defaults) {
            PARSE_FAIL(p, "a parameter without a default follows one that has one");
        }
        end = &(*end)->next;
    }
    p->token++;
    return STATUS_OK;
}

static status_t parse_macro(parser_t *p, node_t **out) {
    TRY(make(p, NODE_MACRO, out));
    TRY(expect_any_name(p, &(*out)->name));
    TRY(parse_parameters(p, &(*out)->first));
    int loops = p->loops, uses = p->uses;
    p->loops = p->uses = 0;
    TRY(parse_block(p, "endmacro", &(*out)->third));
    (*out)->operation = p->uses;
    p->loops = loops;
    p->uses = uses;
    return STATUS_OK;
}

static status_t parse_call_block(parser_t *p, node_t **out) {
    node_t *node;
    TRY(make(p, NODE_CALL_BLOCK, out));
    node = *out;
    if (at_operator(p, '(')) TRY(parse_parameters(p, &node->first));
    TRY(parse_expression(p, true, &node->second));
    if (node->second->kind != NODE_CALL) PARSE_FAIL(p, "'call' needs a call");
    return parse_block(p, "endcall", &node->third);
}

static status_t parse_with(parser_t *p, node_t **out) {
    TRY(make(p, NODE_WITH, out));
    node_t **end = &(*out)->first;
    while (p->token->kind != TOKEN_END) {
        if ((*out)->first) TRY(expect_operator(p, ','));
        TRY(make(p, NODE_SET, end));
        TRY(parse_target_part(p, false, &(*end)->first));
        TRY(expect_operator(p, '='));
        TRY(parse_expression(p, true, &(*end)->second));
        end = &(*end)->next;
    }
    return parse_block(p, "endwith", &(*out)->third);
}

static status_t parse_filter_block(parser_t *p, node_t **out) {
    TRY(make(p, NODE_FILTER_BLOCK, out));
    node_t **filter = &(*out)->first;
    TRY(parse_filter(p, filter));
    while (take_operator(p, '|')) TRY(parse_filter(p, filter));
    return parse_block(p, "endfilter", &(*out)->third);
}

static status_t parse_generation(parser_t *p, node_t **out) {
    TRY(make(p, NODE_SCOPE, out));
    return parse_block(p, "endgeneration", &(*out)->third);
}

static status_t parse_break(parser_t *p, node_t **out) {
    if (!p->loops) PARSE_FAIL(p, "'break' or 'continue' stands outside of a loop");
    return make(p, NODE_BREAK, out);
}

static status_t parse_continue(parser_t *p, node_t **out) {
    TRY(parse_break(p, out));
    (*out)->kind = NODE_CONTINUE;
    return STATUS_OK;
}

static status_t parse_print(parser_t *p, node_t **out) {
    while (p->token->kind != TOKEN_END) {
        TRY(make(p, NODE_PRINT, out));
        TRY(parse_expression(p, true, &(*out)->first));
        out = &(*out)->next;
        if (p->token->kind != TOKEN_END) TRY(expect_operator(p, ','));
    }
    return STATUS_OK;
}

static status_t parse_statement(parser_t *p, node_t **out) {
    static const struct {
        const char *name;
        status_t (*parse)(parser_t *, node_t **);
    } statements[] = {
        {"for", parse_for},
        {"if", parse_if},
        {"set", parse_set},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"filter", parse_filter_block},
        {"with", parse_with},
        {"break", parse_break},
        {"continue", parse_continue},
        {"print", parse_print},
        {"generation", parse_generation},
    };
    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++)
        if (take_name(p, statements[i].name)) return statements[i].parse(p, out);
    if (p->token->kind != TOKEN_NAME) return unexpected(p, "a statement");
    static const char *const refused[] = {"block", "extends", "include", "import", "from", "autoescape"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if (at_name(p, refused[i])) PARSE_FAIL(p, "the statement '%s' is not supported", refused[i]);
    PARSE_FAIL(p, "the statement '%.*s' is unknown or stands in a wrong place",
               (int)(p->token->length < 60 ? p->token->length : 60), p->token->bytes);
}

// Statements and text up to the end, or to a tag that begins with one of `ends`: its name is next then.
static status_t parse_body(parser_t *p, const char *const *ends, node_t **out) {
    TRY(deeper(p));
    while (p->token->kind != TOKEN_OVER) {
        while (*out) out = &(*out)->next;
        if (p->token->kind == TOKEN_TEXT) {
            TRY(make(p, NODE_TEXT, out));
            (*out)->value = p->token->value;
            p->token++;
        } else if (p->token->kind == TOKEN_PRINT_BEGIN) {
            TRY(make(p, NODE_PRINT, out));
            p->token++;
            TRY(parse_tuple(p, true, false, NULL, &(*out)->first));
            TRY(expect_kind(p, TOKEN_PRINT_END, "the end of the tag ('}}')"));
        } else {
            p->token++;
            for (const char *const *end = ends; end && *end; end++)
                if (at_name(p, *end)) {
                    p->depth--;
                    return STATUS_OK;
                }
            TRY(parse_statement(p, out));
            TRY(end_tag(p));
        }
    }
    p->depth--;
    return STATUS_OK;
}

status_t template_parse(const char *source, size_t length, template_t **out) {
    template_t *made;
    tokens_t tokens = {0};
    TRY(ALLOCATE(&made, 1));
    // Tokens and nodes: a few hundred bytes for each byte at the very most.
    made->heap.limit = ((size_t)1 << 20) + 1024 * length;
    made->source_length = length;
    parser_t parser = {.heap = &made->heap};
    status_t status = template_lex(&made->heap, source, length, &tokens);
    parser.token = tokens.token;
    if (!status) status = parse_body(&parser, NULL, &made->body);
    if (status)
        template_free(made);
    else
        *out = made;
    return status;
}

void template_free(template_t *parsed) {
    if (!parsed) return;
    template_heap_free(&parsed->heap);
    free(parsed);
}
