// Inside of common/text: a folder's chat template, for chat.c.
#ifndef COMMON_TEXT_CHAT_TEMPLATE_H
#define COMMON_TEXT_CHAT_TEMPLATE_H

#include "common/text/chat.h"
#include "common/text/template.h"

struct chat_template {
    char *place; // the file it is from
    template_t *parsed;
    char *tools;    // the source of the one for samples with tools, or NULL: the same
    json_t *tokens; // bos_token and its like, by their names
    bool processor; // the folder has one, for pictures
};

// variables: an object of what else the template is given, before the folder's special tokens where both have a name;
// may be NULL. Errors name the template's file.
status_t chat_template_render(const chat_template_t *chat_template, const json_t *messages, const json_t *variables,
                              bool generation_prompt, template_text_t *out) STATUS_CHECKED;

#endif
