// Chat: messages -> the text (or tokens) a model was trained to read, by the folder's own chat template.
//
// Text and ids are those of transformers' apply_chat_template, with one difference: text of the messages that spells a
// special token is plain text. Users never make special tokens.
#ifndef COMMON_TEXT_CHAT_H
#define COMMON_TEXT_CHAT_H

#include "common/text/tokenizer.h"
#include "common/vision/image_rules.h"
#include <jansson.h>
#include <stdio.h>

typedef struct chat_template chat_template_t;

// Reads the template of a model folder: processor_config.json, chat_template.json, chat_template.jinja or
// tokenizer_config.json, in the order of transformers, and the folder's special tokens, which templates name. Errors:
// there is none; the template is no valid Jinja, or uses what is not supported.
status_t chat_template_open(const char *directory, chat_template_t **out) STATUS_CHECKED;
void chat_template_close(chat_template_t *chat_template);

typedef struct chat {
    json_t *messages;  // as the template sees them
    json_t *variables; // what else the template is given, by name; may be NULL
    char **image;      // [images] paths as given, in order ("" where a part names none)
    int images;
    int dropped; // set by chat_encode: the first message of a user, counted from 1, whose text the template left out; 0
} chat_t;

// "messages" as in docs/file-formats.md: content is a string or a list of {"type":"text","text"} /
// {"type":"image","image"} (or "image_url"); other members of a message are handed to the template. Errors say which
// message and part; video and audio are refused.
status_t chat_read(const json_t *messages, chat_t *out) STATUS_CHECKED;
// The same with what the line has beside its messages for the template: "tools" (a list of objects, or that as a string
// of JSON) and "chat_template_kwargs" (an object of variables by their names). Other members are not looked at.
status_t chat_read_line(const json_t *line, const json_t *messages, chat_t *out) STATUS_CHECKED;
void chat_free(chat_t *chat);
// Rendered text with one mark a picture; malloc'd, 0-terminated. generation_prompt adds the assistant's opening.
status_t chat_render(const chat_template_t *chat_template, const chat_t *chat, bool generation_prompt,
                     char **out) STATUS_CHECKED;
// Appends the ids. In folders with a processor the tokenizer's beginning-of-text token comes first, as processors have
// it, unless the template's text begins with it. The processor's text of every picture is put in place of its mark
// before the text is tokenised. rules, shapes [chat->images]: not read without pictures (may be NULL). Errors: the
// template writes another number of marks than there are pictures; a picture does not become as many image tokens as
// its shape says.
status_t chat_encode(const chat_template_t *chat_template, const tokenizer_t *tokenizer, chat_t *chat,
                     bool generation_prompt, const image_rules_t *rules, const image_shape_t *shapes,
                     token_list_t *out) STATUS_CHECKED;
// A warning about `dropped` in one line, once: *told is set, and nothing is written where it was or nothing is left
// out.
void chat_tell_dropped(const chat_t *chat, bool *told, FILE *out);
// How the template writes an assistant's turn.
typedef struct chat_turn {
    int32_t end; // the token behind the text, if the template puts a special one there, or else the folder's eos_token;
                 // -1 where there is neither
    // What stands before the text, by the example of a short question: the generation prompt and the blanks that the
    // template adds to it. NULL: the template cannot be asked.
    char *opening, *given; // [length] text, and marks as tokenizer_encode_marked has them
    size_t length;
    token_list_t prompt; // ids of the generation prompt alone
} chat_turn_t;
// `out` needs chat_turn_close. Errors: memory.
status_t chat_turn_open(const chat_template_t *chat_template, const tokenizer_t *tokenizer,
                        chat_turn_t *out) STATUS_CHECKED;
void chat_turn_close(chat_turn_t *turn);
// Appends the ids of a response as they follow the generation prompt's, which generation samples behind: Llama's
// tokenizer puts a blank before a text, but not before one in the middle of a line. Where text and prompt would share a
// token, the text is encoded by itself. Special tokens in it are plain text. Offsets count from the opening's start.
// Errors: those of tokenizer_encode.
status_t chat_encode_response(const chat_turn_t *turn, const tokenizer_t *tokenizer, const char *text, size_t length,
                              token_list_t *out) STATUS_CHECKED;

#endif
