// Chat: messages -> the text (or tokens) a model was trained to read, by the folder's own chat template.
//
// Text and ids are those of transformers' apply_chat_template, with one difference: text of the messages that spells a
// special token is plain text. Users never make special tokens.
#ifndef COMMON_TEXT_CHAT_H
#define COMMON_TEXT_CHAT_H

#include "common/text/tokenizer.h"
#include "common/vision/image_rules.h"
#include <jansson.h>

typedef struct chat_template chat_template_t;

// Reads the template of a model folder: processor_config.json, chat_template.json, chat_template.jinja or
// tokenizer_config.json, in the order of transformers, and the folder's special tokens, which templates name. Errors:
// there is none; the template is no valid Jinja, or uses what is not supported.
status_t chat_template_open(const char *directory, chat_template_t **out) STATUS_CHECKED;
void chat_template_close(chat_template_t *chat_template);

typedef struct chat {
    json_t *messages; // as the template sees them
    char **image;     // [images] paths as given, in order ("" where a part names none)
    int images;
} chat_t;

// "messages" as in docs/file-formats.md: content is a string or a list of {"type":"text","text"} /
// {"type":"image","image"} (or "image_url"); other members of a message are handed to the template. Errors say which
// message and part; video and audio are refused.
status_t chat_read(const json_t *messages, chat_t *out) STATUS_CHECKED;
void chat_free(chat_t *chat);
// Rendered text with one mark a picture; malloc'd, 0-terminated. generation_prompt adds the assistant's opening.
status_t chat_render(const chat_template_t *chat_template, const chat_t *chat, bool generation_prompt,
                     char **out) STATUS_CHECKED;
// Appends the ids. The processor's text of every picture is put in place of its mark before the text is tokenised.
// rules, shapes [chat->images]: not read without pictures (may be NULL). Errors: the template writes another number of
// marks than there are pictures; a picture does not become as many image tokens as its shape says.
status_t chat_encode(const chat_template_t *chat_template, const tokenizer_t *tokenizer, const chat_t *chat,
                     bool generation_prompt, const image_rules_t *rules, const image_shape_t *shapes,
                     token_list_t *out) STATUS_CHECKED;
// The token that ends an assistant's turn: what the template writes behind the text, if that is a special token, or
// else the folder's eos_token; -1 where there is neither.
status_t chat_end_of_turn(const chat_template_t *chat_template, const tokenizer_t *tokenizer,
                          int32_t *out) STATUS_CHECKED;

#endif
