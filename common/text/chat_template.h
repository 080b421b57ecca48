// Inside of common/text: a folder's chat template, for chat.c.
#ifndef COMMON_TEXT_CHAT_TEMPLATE_H
#define COMMON_TEXT_CHAT_TEMPLATE_H

#include "common/text/chat.h"
#include "common/text/template.h"

struct chat_template {
    char *place; // the file it is from
    template_t *parsed;
    json_t *tokens; // bos_token and its like, by their names
};

status_t chat_template_render(const chat_template_t *chat_template, const json_t *messages, bool generation_prompt,
                              template_text_t *out) STATUS_CHECKED;

#endif
