// Templates: Jinja as chat templates use it, with the settings that transformers gives its sandbox (trim_blocks,
// lstrip_blocks, break and continue, an immutable sandbox).
//
// What is there: text, comments, raw, for (with its loop variable, filter and else), if, set, macro, call, filter,
// with, generation, break, continue; every operator; the filters, tests, functions and methods of strings, lists and
// dicts that templates use. What is not is an error that names the construct and the line, when it is reached.
//
// Templates come from strangers: parsing and rendering are bounded in depth, steps and memory, in proportion to what
// was given to them.
//
// Every byte of rendered text knows where it came from: from the template, or from a string of the variables.
#ifndef COMMON_TEXT_TEMPLATE_H
#define COMMON_TEXT_TEMPLATE_H

#include "kernels/base/status.h"
#include <jansson.h>
#include <stddef.h>

typedef struct template template_t;

// Parses; the source need not stay. Errors name the line. Sources above 4 MiB are refused.
status_t template_parse(const char *source, size_t length, template_t **out) STATUS_CHECKED;
void template_free(template_t *parsed);

// Rendered text: malloc'd, 0-terminated.
typedef struct template_text {
    char *text;
    char *given; // [length]: not 0 where the byte is from the variables
    size_t length;
} template_text_t;
void template_text_free(template_text_t *text);

// Renders with the members of `given` (a JSON object: what users wrote) and of `own` (the same, but its strings count
// as the template's; may be NULL) as variables. A template may be rendered by several threads at once.
// Errors: what the template raises, what is wrong in it (with its line), and STATUS_INVALID beyond its bounds.
status_t template_render(const template_t *parsed, const json_t *given, const json_t *own,
                         template_text_t *out) STATUS_CHECKED;

#endif
