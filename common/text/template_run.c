// Statements: the tree -> text.
#include "common/text/template_parts.h"

#include <stdlib.h>
#include <string.h>

// ---- variables ----

status_t scope_set(run_t *run, scope_t *scope, const char *name, value_t value) {
    for (variable_t *v = scope->variable; v; v = v->next)
        if (v->name == name || strcmp(v->name, name) == 0) {
            v->value = value;
            return STATUS_OK;
        }
    variable_t *variable;
    TRY(HEAP_NEW(&run->heap, &variable, 1));
    *variable = (variable_t){.name = name, .value = value, .next = scope->variable};
    scope->variable = variable;
    return STATUS_OK;
}

bool scope_get(const scope_t *scope, const char *name, value_t *out) {
    for (; scope; scope = scope->parent)
        for (const variable_t *v = scope->variable; v; v = v->next)
            if (v->name == name || strcmp(v->name, name) == 0) {
                *out = v->value;
                return v->value.type != VALUE_MISSING;
            }
    return false;
}

static status_t scope_open(run_t *run, scope_t *parent, scope_t **out) {
    TRY(HEAP_NEW(&run->heap, out, 1));
    (*out)->parent = parent;
    return STATUS_OK;
}

static status_t assign(run_t *run, scope_t *scope, const node_t *target, value_t value) {
    if (target->kind == NODE_NAME) return scope_set(run, scope, target->name, value);
    if (target->kind == NODE_NAMESPACE_NAME) {
        value_t space;
        if (!scope_get(run->scope, target->name, &space) || space.type != VALUE_NAMESPACE)
            RUN_FAIL(run, "'%s' is no namespace, so that its attribute cannot be set", target->name);
        return namespace_set(run, space.space, target->value.hint, value);
    }
    const value_t *items;
    size_t count, at = 0;
    TRY(value_items(run, value, &items, &count));
    for (const node_t *n = target->first; n; n = n->next) at++;
    if (at != count) RUN_FAIL(run, "%zu values are given to %zu variables", count, at);
    at = 0;
    for (const node_t *n = target->first; n; n = n->next) TRY(assign(run, scope, n, items[at++]));
    return STATUS_OK;
}

// ---- loops ----

struct loop {
    cursor_t cursor;
    const node_t *target, *filter;
    scope_t *outer;
    int64_t index0;
    value_t before, current, after; // VALUE_MISSING where there is none
    bool over;                      // no more in the cursor
    value_t changed;
    bool counted;
    size_t length;
};

// The next item that passes the filter; VALUE_MISSING at the end.
static status_t loop_pull(run_t *run, loop_t *loop, value_t *out) {
    for (bool more = true; !loop->over;) {
        TRY(cursor_next(run, &loop->cursor, out, &more));
        if (!more) loop->over = true;
        if (!more) break;
        if (!loop->filter) return STATUS_OK;
        value_t passes;
        scope_t *saved = run->scope, *scope;
        TRY(scope_open(run, loop->outer, &scope));
        TRY(assign(run, scope, loop->target, *out));
        run->scope = scope;
        status_t status = eval(run, loop->filter, &passes);
        run->scope = saved;
        TRY(status);
        if (value_truth(passes)) return STATUS_OK;
    }
    *out = (value_t){0};
    return STATUS_OK;
}

static status_t loop_peek(run_t *run, loop_t *loop) {
    return loop->after.type == VALUE_MISSING ? loop_pull(run, loop, &loop->after) : STATUS_OK;
}

static status_t loop_count(run_t *run, loop_t *loop) {
    if (loop->counted) return STATUS_OK;
    value_t of = loop->cursor.of;
    if (!loop->filter && (of.type != VALUE_STREAM || of.stream->view)) {
        TRY(value_length(run, of, &loop->length));
    } else {
        // What has no length is read to its end.
        value_t *items = NULL, item;
        size_t count = 0, capacity = 0;
        for (;;) {
            TRY(loop_pull(run, loop, &item));
            if (item.type == VALUE_MISSING) break;
            if (count == capacity) {
                value_t *grown;
                capacity = capacity ? 2 * capacity : 16;
                TRY(HEAP_NEW(&run->heap, &grown, capacity));
                if (count) memcpy(grown, items, count * sizeof(*items));
                items = grown;
            }
            items[count++] = item;
        }
        value_t rest;
        TRY(value_list(run, VALUE_LIST, items, count, &rest));
        TRY(cursor_open(run, rest, &loop->cursor));
        loop->filter = NULL;
        loop->over = false;
        loop->length = count + (size_t)loop->index0 + 1 + (loop->after.type != VALUE_MISSING);
    }
    loop->counted = true;
    return STATUS_OK;
}

status_t loop_attribute(run_t *run, loop_t *loop, const char *name, value_t *out) {
    static const char *const names[] = {"index", "index0", "first",    "last",     "length", "revindex", "revindex0",
                                        "depth", "depth0", "previtem", "nextitem", "cycle",  "changed"};
    size_t which = 0;
    while (which < sizeof(names) / sizeof(names[0]) && strcmp(names[which], name) != 0) which++;
    *out = (value_t){0};
    if (which >= 4 && which <= 6) TRY(loop_count(run, loop));
    if (which == 3 || which == 10) TRY(loop_peek(run, loop));
    int64_t length = (int64_t)loop->length;
    method_t *method;
    switch (which) {
    case 0:
    case 1:
        *out = value_int(loop->index0 + (which == 0));
        break;
    case 2:
        *out = value_bool(loop->index0 == 0);
        break;
    case 3:
        *out = value_bool(loop->after.type == VALUE_MISSING);
        break;
    case 4:
        *out = value_int(length);
        break;
    case 5:
    case 6:
        *out = value_int(length - loop->index0 - (which == 6));
        break;
    case 7:
    case 8:
        *out = value_int(which == 7);
        break;
    case 9:
        *out = loop->index0 ? loop->before : value_undefined("there is no previous item");
        break;
    case 10:
        *out = loop->after.type == VALUE_MISSING ? value_undefined("there is no next item") : loop->after;
        break;
    case 11:
    case 12:
        TRY(HEAP_NEW(&run->heap, &method, 1));
        *method = (method_t){.self = VALUE_OF(VALUE_LOOP, loop, loop), .name = names[which]};
        *out = VALUE_OF(VALUE_METHOD, method, method);
        break;
    default:
        break;
    }
    return STATUS_OK;
}

status_t loop_call(run_t *run, loop_t *loop, const char *name, const arguments_t *arguments, value_t *out) {
    if (arguments->keywords) RUN_FAIL(run, "'loop.%s' takes no named arguments", name);
    if (strcmp(name, "cycle") == 0) {
        if (!arguments->count) RUN_FAIL(run, "'loop.cycle' needs values");
        *out = arguments->value[(size_t)loop->index0 % arguments->count];
        return STATUS_OK;
    }
    value_t values;
    bool same = false;
    TRY(value_list(run, VALUE_TUPLE, arguments->value, arguments->count, &values));
    if (loop->changed.type != VALUE_MISSING) TRY(value_equal(run, loop->changed, values, &same));
    loop->changed = values;
    *out = value_bool(!same);
    return STATUS_OK;
}

// One round; *whole tells that the body ran to its end.
static status_t loop_round(run_t *run, const node_t *node, loop_t *loop, const char *loop_name, bool *whole) {
    scope_t *saved = run->scope, *scope;
    loop->index0++;
    TRY(scope_open(run, loop->outer, &scope));
    TRY(scope_set(run, scope, loop_name, VALUE_OF(VALUE_LOOP, loop, loop)));
    TRY(assign(run, scope, node->first, loop->current));
    run->scope = scope;
    status_t status = run_statements(run, node->third);
    run->scope = saved;
    *whole = run->flow == FLOW_ON;
    return status;
}

static status_t run_for(run_t *run, const node_t *node) {
    loop_t *loop;
    value_t iterable;
    bool none = true, whole = false;
    bool filtered = node->second->kind == NODE_ARGUMENT;
    TRY(eval(run, filtered ? node->second->first : node->second, &iterable));
    TRY(HEAP_NEW(&run->heap, &loop, 1));
    *loop = (loop_t){
        .target = node->first, .filter = filtered ? node->second->second : NULL, .outer = run->scope, .index0 = -1};
    TRY(cursor_open(run, iterable, &loop->cursor));
    for (;;) {
        value_t next = loop->after;
        loop->after = (value_t){0};
        if (next.type == VALUE_MISSING) TRY(loop_pull(run, loop, &next));
        if (next.type == VALUE_MISSING) break;
        loop->before = loop->current;
        loop->current = next;
        TRY(loop_round(run, node, loop, "loop", &whole));
        // As in Python's own code for it, a round that is left early does not count against 'else'.
        if (whole) none = false;
        bool broken = run->flow == FLOW_BREAK;
        run->flow = FLOW_ON;
        if (broken) break;
    }
    if (!none || !node->fourth) return STATUS_OK;
    scope_t *saved = run->scope, *scope;
    TRY(scope_open(run, saved, &scope));
    run->scope = scope;
    status_t status = run_statements(run, node->fourth);
    run->scope = saved;
    return status;
}

// ---- macros ----

// Statements in a scope of their own, their text into a value.
static status_t capture(run_t *run, scope_t *scope, const node_t *body, value_t *out) {
    builder_t builder = {0}, *saved_out = run->out;
    scope_t *saved = run->scope;
    run->out = &builder;
    run->scope = scope;
    status_t status = run_statements(run, body);
    run->out = saved_out;
    run->scope = saved;
    TRY(status);
    return builder_finish(run, &builder, out);
}

static status_t macro_parameters(run_t *run, const macro_t *macro, const arguments_t *arguments, scope_t *scope,
                                 bool *used) {
    size_t at = 0;
    scope_t *saved = run->scope;
    for (const node_t *n = macro->node->first; n; n = n->next, at++) {
        value_t value = {0};
        if (at < arguments->count) value = arguments->value[at];
        for (size_t k = 0; k < arguments->keywords && at >= arguments->count; k++)
            if (strcmp(arguments->keyword[k].name, n->name) == 0) {
                value = arguments->keyword[k].value;
                used[k] = true;
            }
        if (value.type == VALUE_MISSING && n->first) {
            run->scope = scope; // defaults see the parameters before them
            status_t status = eval(run, n->first, &value);
            run->scope = saved;
            TRY(status);
        }
        if (value.type == VALUE_MISSING) value = value_undefined("a parameter of the macro was not given");
        TRY(scope_set(run, scope, n->name, value));
    }
    return STATUS_OK;
}

// What the parameters did not take: caller, varargs, kwargs.
static status_t macro_rest(run_t *run, const macro_t *macro, const arguments_t *arguments, scope_t *scope,
                           const bool *used) {
    size_t parameters = 0, left = 0;
    const char *name = macro->node->kind == NODE_MACRO ? macro->node->name : "caller";
    int uses = macro->node->kind == NODE_MACRO ? macro->node->operation : 0;
    value_t caller = value_undefined("there is no caller"), rest;
    pair_t *pairs;
    dict_t *dict;
    for (const node_t *n = macro->node->first; n; n = n->next) parameters++;
    TRY(HEAP_NEW(&run->heap, &pairs, arguments->keywords));
    TRY(HEAP_NEW(&run->heap, &dict, 1));
    for (size_t k = 0; k < arguments->keywords; k++) {
        const keyword_t *keyword = &arguments->keyword[k];
        if (used[k]) continue;
        if (uses & 1 && strcmp(keyword->name, "caller") == 0) {
            caller = keyword->value;
            continue;
        }
        if (!(uses & 4)) RUN_FAIL(run, "the macro '%s' takes no argument named '%s'", name, keyword->name);
        TRY(value_word(run, keyword->name, &pairs[left].key));
        pairs[left++].value = keyword->value;
    }
    if (arguments->count > parameters && !(uses & 2))
        RUN_FAIL(run, "the macro '%s' takes at most %zu arguments, not %zu", name, parameters, arguments->count);
    *dict = (dict_t){.pair = pairs, .count = left};
    if (uses & 1) TRY(scope_set(run, scope, "caller", caller));
    if (uses & 4) TRY(scope_set(run, scope, "kwargs", VALUE_OF(VALUE_DICT, dict, dict)));
    if (!(uses & 2)) return STATUS_OK;
    bool more = arguments->count > parameters;
    TRY(value_list(run, VALUE_TUPLE, more ? arguments->value + parameters : arguments->value,
                   more ? arguments->count - parameters : 0, &rest));
    return scope_set(run, scope, "varargs", rest);
}

status_t run_macro(run_t *run, const macro_t *macro, const arguments_t *arguments, value_t *out) {
    scope_t *scope;
    bool *used;
    TRY(scope_open(run, macro->scope, &scope));
    TRY(HEAP_NEW(&run->heap, &used, arguments->keywords));
    TRY(macro_parameters(run, macro, arguments, scope, used));
    TRY(macro_rest(run, macro, arguments, scope, used));
    return capture(run, scope, macro->node->third, out);
}

static status_t make_macro(run_t *run, const node_t *node, value_t *out) {
    macro_t *macro;
    TRY(HEAP_NEW(&run->heap, &macro, 1));
    *macro = (macro_t){.node = node, .scope = run->scope};
    *out = VALUE_OF(VALUE_MACRO, macro, macro);
    return STATUS_OK;
}

static status_t run_call_block(run_t *run, const node_t *node) {
    node_t call = *node->second, caller = {.kind = NODE_CONSTANT, .line = node->line};
    node_t argument = {.kind = NODE_ARGUMENT, .line = node->line, .name = "caller", .first = &caller};
    node_t *copies;
    size_t count = 0;
    value_t text;
    TRY(make_macro(run, node, &caller.value));
    // The call's own arguments, and the caller after them.
    for (const node_t *n = call.second; n; n = n->next) count++;
    TRY(HEAP_NEW(&run->heap, &copies, count + 1));
    count = 0;
    for (const node_t *n = call.second; n; n = n->next) {
        copies[count] = *n;
        copies[count].next = &copies[count + 1];
        count++;
    }
    copies[count] = argument;
    call.second = copies;
    TRY(eval(run, &call, &text));
    return value_print(run, run->out, text);
}

// ---- the rest ----

// A chain of filters whose innermost has no subject: it gets `value`.
static status_t apply_filters(run_t *run, const node_t *filter, value_t value, value_t *out) {
    node_t constant = {.kind = NODE_CONSTANT, .line = filter->line, .value = value};
    node_t copy = *filter;
    if (filter->first) {
        TRY(apply_filters(run, filter->first, value, &constant.value));
    }
    copy.first = &constant;
    return eval(run, &copy, out);
}

static status_t run_set_block(run_t *run, const node_t *node) {
    scope_t *scope;
    value_t value;
    TRY(scope_open(run, run->scope, &scope));
    TRY(capture(run, scope, node->second, &value));
    if (node->third) TRY(apply_filters(run, node->third, value, &value));
    return assign(run, run->scope, node->first, value);
}

static status_t run_inner(run_t *run, const node_t *node) {
    scope_t *scope, *saved = run->scope;
    TRY(scope_open(run, saved, &scope));
    if (node->kind == NODE_FILTER_BLOCK) {
        value_t value;
        TRY(capture(run, scope, node->third, &value));
        TRY(apply_filters(run, node->first, value, &value));
        return value_print(run, run->out, value);
    }
    for (const node_t *n = node->first; n; n = n->next) { // with: values are computed outside
        value_t value;
        TRY(eval(run, n->second, &value));
        TRY(assign(run, scope, n->first, value));
    }
    run->scope = scope;
    status_t status = run_statements(run, node->third);
    run->scope = saved;
    return status;
}

static status_t run_if(run_t *run, const node_t *node) {
    for (;;) {
        value_t test;
        TRY(eval(run, node->first, &test));
        if (value_truth(test)) return run_statements(run, node->second);
        if (!node->third || node->third->kind != NODE_IF || node->third->next) return run_statements(run, node->third);
        node = node->third;
    }
}

static status_t run_one(run_t *run, const node_t *node) {
    value_t value;
    switch (node->kind) {
    case NODE_TEXT:
        return builder_text(run, run->out, node->value.text);
    case NODE_PRINT:
        TRY(eval(run, node->first, &value));
        return value_print(run, run->out, value);
    case NODE_IF:
        return run_if(run, node);
    case NODE_FOR:
        return run_for(run, node);
    case NODE_SET:
        TRY(eval(run, node->second, &value));
        return assign(run, run->scope, node->first, value);
    case NODE_SET_BLOCK:
        return run_set_block(run, node);
    case NODE_MACRO:
        TRY(make_macro(run, node, &value));
        return scope_set(run, run->scope, node->name, value);
    case NODE_CALL_BLOCK:
        return run_call_block(run, node);
    case NODE_FILTER_BLOCK:
    case NODE_WITH:
    case NODE_SCOPE:
        return run_inner(run, node);
    case NODE_BREAK:
    case NODE_CONTINUE:
        run->flow = node->kind == NODE_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
        return STATUS_OK;
    default:
        RUN_FAIL(run, "an expression stands where a statement is wanted");
    }
}

status_t run_statements(run_t *run, const node_t *node) {
    if (++run->depth > TEMPLATE_DEPTH) RUN_FAIL(run, "statements are nested too deep");
    status_t status = STATUS_OK;
    for (; node && !status && run->flow == FLOW_ON; node = node->next) {
        run->line = node->line;
        status = run_pay(run, 1);
        if (!status) status = run_one(run, node);
    }
    run->depth--;
    return status;
}

static size_t json_size(const json_t *json, int depth) {
    size_t size = 32, at;
    const char *key;
    json_t *member;
    if (json_is_string(json)) return size + json_string_length(json);
    if (depth > 100) return size; // too deep is refused later
    json_array_foreach((json_t *)json, at, member) size += json_size(member, depth + 1);
    json_object_foreach((json_t *)json, key, member) size += strlen(key) + json_size(member, depth + 1);
    return size;
}

static status_t set_variables(run_t *run, scope_t *scope, const json_t *variables, bool given) {
    const char *key;
    json_t *member;
    value_t value;
    json_object_foreach((json_t *)variables, key, member) {
        TRY(value_from_json(run, member, given, &value));
        TRY(scope_set(run, scope, key, value));
    }
    return STATUS_OK;
}

static status_t render(run_t *run, const template_t *parsed, const json_t *given, const json_t *own,
                       template_text_t *out) {
    scope_t global = {0}, top = {.parent = &global};
    builder_t builder = {0};
    TRY(set_variables(run, &global, given, true));
    if (own) TRY(set_variables(run, &global, own, false));
    run->scope = &top;
    run->out = &builder;
    TRY(run_statements(run, parsed->body));
    TRY(memory_copy_bytes(builder.bytes ? builder.bytes : "", builder.length, &out->text));
    status_t status = memory_copy_bytes(builder.given ? builder.given : "", builder.length, &out->given);
    if (status) template_text_free(out);
    out->length = builder.length;
    return status;
}

status_t template_render(const template_t *parsed, const json_t *given, const json_t *own, template_text_t *out) {
    size_t size = parsed->source_length + json_size(given, 0) + (own ? json_size(own, 0) : 0);
    run_t run = {.heap.limit = ((size_t)16 << 20) + 256 * size, .steps = 4000000 + 64 * (int64_t)size};
    *out = (template_text_t){0};
    status_t status = render(&run, parsed, given, own, out);
    template_heap_free(&run.heap);
    return status;
}

void template_text_free(template_text_t *text) {
    free(text->text);
    free(text->given);
    *text = (template_text_t){0};
}
