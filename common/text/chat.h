// Chat: messages -> the text (or tokens) a model was trained to read. The template is the family's; Qwen2.5's is built
// in.
#ifndef COMMON_TEXT_CHAT_H
#define COMMON_TEXT_CHAT_H

#include "common/text/tokenizer.h"
#include <jansson.h>

typedef struct chat_part {
    bool is_image;
    char *text; // text, or the image's path as given ("" when the part names none)
} chat_part_t;
typedef struct chat_message {
    char *role;
    chat_part_t *part;
    int parts;
} chat_message_t;
typedef struct chat {
    chat_message_t *message;
    int messages;
    int images; // total
} chat_t;

// "messages" as in docs/file-formats.md: content is a string or a list of {"type":"text","text"} /
// {"type":"image","image"} (or "image_url"). Errors say which message and part; video is refused.
status_t chat_read(const json_t *messages, chat_t *out) STATUS_CHECKED;
void chat_free(chat_t *chat);
// Rendered text with one image marker a picture (`<|vision_start|><|image_pad|><|vision_end|>`); malloc'd. `system` as
// the template adds it when the first message is none. generation_prompt adds the assistant's opening.
status_t chat_render(const chat_t *chat, bool generation_prompt, char **out) STATUS_CHECKED;
// Appends `tokens` to `out` with every image marker replaced by feature_rows[i] copies of it; the marker count must
// equal `images`.
status_t chat_expand_images(const token_list_t *tokens, int32_t image_token, const int *feature_rows, int images,
                            token_list_t *out) STATUS_CHECKED;
// chat_render + tokenizer_encode + chat_expand_images, appended to `out`; but text of the messages that spells a
// special token is plain text: users never make special tokens. Offsets count the bytes of the rendered (normalised)
// text between two special tokens.
status_t chat_encode(const tokenizer_t *tokenizer, const chat_t *chat, bool generation_prompt, int32_t image_token,
                     const int *feature_rows, token_list_t *out) STATUS_CHECKED;
// The same without the expansion: one image token a picture.
status_t chat_encode_markers(const tokenizer_t *tokenizer, const chat_t *chat, bool generation_prompt,
                             int32_t image_token, token_list_t *out) STATUS_CHECKED;

#endif
