// Templates on standard input, one JSON object a line: "template", "given" (variables) and "own" (variables that are
// the template's). Answers a line each: {"text", "given"} (a run length a change of origin, the template's first) or
// {"error"}. tests/oracle/compare_templates.py drives it.
#include "common/text/template.h"

#include <stdlib.h>
#include <string.h>

static status_t answer(const json_t *line, json_t *out) {
    const json_t *source = json_object_get(line, "template");
    template_t *template;
    template_text_t text;
    TRY(template_parse(json_string_value(source), json_string_length(source), &template));
    status_t status = template_render(template, json_object_get(line, "given"), json_object_get(line, "own"), &text);
    template_free(template);
    TRY(status);
    json_t *runs = json_array();
    char now = 0;
    json_int_t length = 0;
    for (size_t i = 0; i < text.length; i++) {
        if (!text.given[i] != !now) {
            json_array_append_new(runs, json_integer(length));
            length = 0;
            now = text.given[i];
        }
        length++;
    }
    json_object_set_new(out, "given", runs);
    json_object_set_new(out, "text", json_stringn(text.text, text.length));
    template_text_free(&text);
    return STATUS_OK;
}

int main(void) {
    char *text = NULL;
    size_t capacity = 0;
    for (ssize_t length; (length = getline(&text, &capacity, stdin)) >= 0;) {
        json_t *line = json_loadb(text, (size_t)length, JSON_ALLOW_NUL, NULL), *out = json_object();
        status_t status = line ? answer(line, out) : STATUS_NEW(STATUS_INVALID, "no JSON");
        if (status) json_object_set_new(out, "error", json_string(status_message(status)));
        status_free(status);
        char *printed = json_dumps(out, JSON_COMPACT);
        puts(printed ? printed : "{\"error\":\"the text is no UTF-8\"}");
        fflush(stdout);
        free(printed);
        json_decref(out);
        json_decref(line);
    }
    free(text);
    return 0;
}
