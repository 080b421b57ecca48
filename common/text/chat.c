// Qwen2.5-VL's template: <|im_start|>ROLE\n PARTS <|im_end|>\n a message, and a default system message.
//
// A chat is written as a run of pieces, plain text and special tokens in turn. Rendering joins their spellings;
// encoding tokenises each stretch of plain text by itself with special tokens switched off. That gives the tokens of
// the rendered text, because special tokens cut the text anyway, except where a message spells a special token.
#include "common/text/chat.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

// ---- reading messages ----

static status_t read_image_part(const json_t *part, size_t message, size_t place, chat_part_t *out) {
    const json_t *image = json_object_get(part, "image");
    const json_t *url = json_object_get(part, "image_url");
    if (json_is_object(url)) url = json_object_get(url, "url");
    if (!image || json_is_null(image)) image = url;
    if (image && !json_is_null(image) && !json_is_string(image))
        FAIL(STATUS_INVALID, "part %zu of message %zu: 'image' must be the path of a picture", place + 1, message + 1);
    const char *path = json_is_string(image) ? json_string_value(image) : "";
    if (strncmp(path, "file://", 7) == 0) path += 7;
    out->is_image = true;
    return memory_copy_string(path, &out->text);
}

static status_t read_part(const json_t *part, size_t message, size_t place, chat_part_t *out) {
    if (!json_is_object(part)) FAIL(STATUS_INVALID, "part %zu of message %zu is no object", place + 1, message + 1);
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = json_object_get(part, "text");
    bool image = type ? strcmp(type, "image") == 0 || strcmp(type, "image_url") == 0
                      : json_object_get(part, "image") || json_object_get(part, "image_url");
    if (image) return read_image_part(part, message, place, out);
    if (type && strcmp(type, "text") != 0)
        FAIL(STATUS_INVALID, "part %zu of message %zu has the type '%s'; 'text' and 'image' are supported", place + 1,
             message + 1, type);
    if (!json_is_string(text)) FAIL(STATUS_INVALID, "part %zu of message %zu has no 'text'", place + 1, message + 1);
    return memory_copy_string(json_string_value(text), &out->text);
}

static status_t read_message(const json_t *message, size_t place, chat_t *chat) {
    chat_message_t *out = &chat->message[place];
    const char *role = json_string_value(json_object_get(message, "role"));
    const json_t *content = json_object_get(message, "content"), *part;
    size_t i;
    if (!role || !*role) FAIL(STATUS_INVALID, "message %zu has no 'role'", place + 1);
    if (!json_is_string(content) && !json_is_array(content))
        FAIL(STATUS_INVALID, "message %zu has no 'content' (a string or a list of parts)", place + 1);
    TRY(memory_copy_string(role, &out->role));
    if (json_is_string(content)) {
        TRY(ALLOCATE(&out->part, 1));
        out->parts = 1;
        return memory_copy_string(json_string_value(content), &out->part[0].text);
    }
    if (json_array_size(content) > INT_MAX) FAIL(STATUS_INVALID, "message %zu has too many parts", place + 1);
    TRY(ALLOCATE(&out->part, json_array_size(content)));
    json_array_foreach(content, i, part) {
        out->parts = (int)i + 1;
        TRY(read_part(part, place, i, &out->part[i]));
        chat->images += out->part[i].is_image;
    }
    return STATUS_OK;
}

status_t chat_read(const json_t *messages, chat_t *out) {
    size_t i;
    const json_t *message;
    *out = (chat_t){0};
    if (!json_is_array(messages) || json_array_size(messages) == 0 || json_array_size(messages) > INT_MAX)
        FAIL(STATUS_INVALID, "'messages' must be a list of one message or more");
    TRY(ALLOCATE(&out->message, json_array_size(messages)));
    json_array_foreach(messages, i, message) {
        out->messages = (int)i + 1;
        status_t status = read_message(message, i, out);
        if (status) {
            chat_free(out);
            return status;
        }
    }
    return STATUS_OK;
}

void chat_free(chat_t *chat) {
    for (int i = 0; i < chat->messages; i++) {
        for (int p = 0; p < chat->message[i].parts; p++) free(chat->message[i].part[p].text);
        free(chat->message[i].part);
        free(chat->message[i].role);
    }
    free(chat->message);
    *chat = (chat_t){0};
}

// ---- writing ----

typedef struct writer {
    const tokenizer_t *tokenizer; // NULL: special tokens are spelled into the text
    int32_t image_token;
    token_list_t *out;
    char *text; // the plain text that waits (or all text when rendering)
    size_t used, capacity;
} writer_t;

static status_t write_text(writer_t *writer, const char *text) {
    size_t length = strlen(text);
    TRY(memory_grow((void **)&writer->text, &writer->capacity, writer->used + length + 1, 1));
    memcpy(writer->text + writer->used, text, length + 1);
    writer->used += length;
    return STATUS_OK;
}

static status_t flush_text(writer_t *writer) {
    if (!writer->tokenizer || !writer->used) return STATUS_OK;
    TRY(tokenizer_encode(writer->tokenizer, writer->text, writer->used, false, writer->out));
    writer->used = 0;
    return STATUS_OK;
}

static status_t write_special(writer_t *writer, const char *token) {
    if (!writer->tokenizer) return write_text(writer, token);
    TRY(flush_text(writer));
    int32_t id = tokenizer_find(writer->tokenizer, token);
    if (id < 0)
        FAIL(STATUS_INVALID,
             "the tokenizer has no token '%s', which the chat template needs; is this a Qwen2.5-VL model?", token);
    return token_list_add(writer->out, id, 0, 0);
}

static status_t write_image(writer_t *writer) {
    static const char marker[] = "<|image_pad|>";
    TRY(write_special(writer, "<|vision_start|>"));
    if (writer->tokenizer && tokenizer_find(writer->tokenizer, marker) != writer->image_token)
        FAIL(STATUS_INVALID,
             "the tokenizer's '%s' has the id %d and the model's image token is %d; they must be the same", marker,
             (int)tokenizer_find(writer->tokenizer, marker), (int)writer->image_token);
    TRY(write_special(writer, marker));
    return write_special(writer, "<|vision_end|>");
}

static status_t write_opening(writer_t *writer, const char *role) {
    TRY(write_special(writer, "<|im_start|>"));
    TRY(write_text(writer, role));
    return write_text(writer, "\n");
}

static status_t write_closing(writer_t *writer) {
    TRY(write_special(writer, "<|im_end|>"));
    return write_text(writer, "\n");
}

static status_t write_chat(writer_t *writer, const chat_t *chat, bool generation_prompt) {
    if (chat->messages && strcmp(chat->message[0].role, "system") != 0) {
        TRY(write_opening(writer, "system"));
        TRY(write_text(writer, "You are a helpful assistant."));
        TRY(write_closing(writer));
    }
    for (int i = 0; i < chat->messages; i++) {
        const chat_message_t *message = &chat->message[i];
        TRY(write_opening(writer, message->role));
        for (int p = 0; p < message->parts; p++) {
            if (message->part[p].is_image)
                TRY(write_image(writer));
            else
                TRY(write_text(writer, message->part[p].text));
        }
        TRY(write_closing(writer));
    }
    if (generation_prompt) TRY(write_opening(writer, "assistant"));
    return flush_text(writer);
}

status_t chat_render(const chat_t *chat, bool generation_prompt, char **out) {
    writer_t writer = {0};
    *out = NULL;
    TRY(write_text(&writer, ""));
    status_t status = write_chat(&writer, chat, generation_prompt);
    if (status)
        free(writer.text);
    else
        *out = writer.text;
    return status;
}

status_t chat_encode_markers(const tokenizer_t *tokenizer, const chat_t *chat, bool generation_prompt,
                             int32_t image_token, token_list_t *out) {
    writer_t writer = {.tokenizer = tokenizer, .image_token = image_token, .out = out};
    int count = out->count;
    status_t status = write_chat(&writer, chat, generation_prompt);
    free(writer.text);
    if (status) out->count = count;
    return status;
}

status_t chat_expand_images(const token_list_t *tokens, int32_t image_token, const int *feature_rows, int images,
                            token_list_t *out) {
    int markers = 0, at = 0;
    for (int i = 0; i < tokens->count; i++) markers += tokens->id[i] == image_token;
    if (markers != images)
        FAIL(STATUS_INVALID, "the text has %d image markers and there are %d images", markers, images);
    for (int i = 0; i < tokens->count; i++) {
        int32_t id = tokens->id[i];
        int copies = id == image_token ? feature_rows[at++] : 1;
        if (copies < 1) FAIL(STATUS_INVALID, "image %d becomes %d tokens", at, copies);
        for (int c = 0; c < copies; c++) TRY(token_list_add(out, id, tokens->offset[2 * i], tokens->offset[2 * i + 1]));
    }
    return STATUS_OK;
}

status_t chat_encode(const tokenizer_t *tokenizer, const chat_t *chat, bool generation_prompt, int32_t image_token,
                     const int *feature_rows, token_list_t *out) {
    token_list_t markers = {0};
    int count = out->count;
    status_t status = chat_encode_markers(tokenizer, chat, generation_prompt, image_token, &markers);
    if (!status) status = chat_expand_images(&markers, image_token, feature_rows, chat->images, out);
    token_list_free(&markers);
    if (status) out->count = count;
    return status;
}
