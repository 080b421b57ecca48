#include "common/data/packed_messages.h"

#include <stdlib.h>
#include <string.h>

static const char mark[] = "<image>";

// ShareGPT's names of the speakers.
static const char *role_of(const char *from) {
    if (!strcmp(from, "human")) return "user";
    if (!strcmp(from, "gpt")) return "assistant";
    return from;
}

// The pictures named beside a conversation: a string or a list of strings. *out is a new list.
static status_t read_images(const json_t *line, json_t **out) {
    const json_t *images = json_object_get(line, "images");
    if (!images) images = json_object_get(line, "image");
    *out = json_array();
    if (json_is_string(images)) json_array_append(*out, (json_t *)images);
    size_t i;
    json_t *image;
    json_array_foreach((json_t *)images, i, image) {
        if (!json_is_string(image)) FAIL(STATUS_INVALID, "'images' must be a list of file names");
        json_array_append(*out, image);
    }
    return STATUS_OK;
}

static void append_text(json_t *parts, const char *text, size_t length) {
    if (length)
        json_array_append_new(parts, json_pack("{s:s, s:o}", "type", "text", "text", json_stringn(text, length)));
}

// Text with marks -> parts; *used counts the pictures taken so far.
static status_t split_marks(const char *text, const json_t *images, size_t *used, json_t **out) {
    json_t *parts = json_array();
    const char *at = text;
    for (const char *next; (next = strstr(at, mark)); at = next + strlen(mark)) {
        json_t *image = json_array_get(images, (*used)++);
        append_text(parts, at, (size_t)(next - at));
        if (!image) {
            json_decref(parts);
            FAIL(STATUS_INVALID, "the text has more %s marks than the %zu pictures given", mark,
                 json_array_size(images));
        }
        json_array_append_new(parts, json_pack("{s:s, s:O}", "type", "image", "image", image));
        // The mark stands on a line of its own; that line break is part of the mark.
        if (next[strlen(mark)] == '\n') next++;
    }
    append_text(parts, at, strlen(at));
    *out = parts;
    return STATUS_OK;
}

// Parts as given, but an image part that names no file takes the next picture listed beside the conversation.
static status_t fill_parts(const json_t *content, const json_t *images, size_t *used, json_t **out) {
    json_t *parts = json_array();
    for (size_t i = 0; i < json_array_size(content); i++) {
        json_t *part = json_array_get(content, i), *image = NULL;
        const char *type = json_string_value(json_object_get(part, "type"));
        bool nameless = type && !strcmp(type, "image") && !json_is_string(json_object_get(part, "image"));
        if (nameless) image = json_array_get(images, (*used)++);
        if (nameless && !image) {
            json_decref(parts);
            FAIL(STATUS_INVALID, "the sample has more image parts than the %zu pictures given",
                 json_array_size(images));
        }
        json_array_append_new(parts,
                              nameless ? json_pack("{s:s, s:O}", "type", "image", "image", image) : json_incref(part));
    }
    *out = parts;
    return STATUS_OK;
}

static status_t convert_one(const json_t *message, bool conversation, const json_t *images, size_t *used,
                            json_t **out) {
    const char *role = json_string_value(json_object_get(message, "role"));
    json_t *content = json_object_get(message, "content");
    if (!role) role = json_string_value(json_object_get(message, "from"));
    if (!content) content = json_object_get(message, "value");
    if (!role || !content) FAIL(STATUS_INVALID, "a message has no role (or 'from') or no content (or 'value')");
    json_t *parts = NULL;
    if (json_is_string(content) && (conversation || json_array_size(images)))
        TRY(split_marks(json_string_value(content), images, used, &parts));
    else if (json_is_array(content))
        TRY(fill_parts(content, images, used, &parts));
    else
        parts = json_incref(content);
    *out = json_pack("{s:s, s:o}", "role", role_of(role), "content", parts);
    if (!*out) FAIL(STATUS_MEMORY, "out of memory while reading a message");
    return STATUS_OK;
}

static status_t convert_all(const json_t *line, const json_t *images, json_t *out) {
    const json_t *list = json_object_get(line, "messages");
    bool conversation = !list;
    if (conversation) list = json_object_get(line, "conversations");
    if (!json_is_array(list) || !json_array_size(list))
        FAIL(STATUS_INVALID, "the line has no 'messages' (or 'conversations')");
    size_t used = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *message;
        TRY(convert_one(json_array_get(list, i), conversation, images, &used, &message));
        json_array_append_new(out, message);
    }
    if (used != json_array_size(images))
        FAIL(STATUS_INVALID, "the text has %zu places for %zu pictures", used, json_array_size(images));
    return STATUS_OK;
}

// Takes the assistant's last turn off the messages.
static status_t take_response(json_t *messages, char **response) {
    size_t last = json_array_size(messages) - 1;
    const json_t *message = json_array_get(messages, last);
    if (strcmp(json_string_value(json_object_get(message, "role")), "assistant")) return STATUS_OK;
    const json_t *content = json_object_get(message, "content");
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    if (!stream) FAIL(STATUS_MEMORY, "out of memory while reading a response");
    bool good = json_is_string(content) || json_is_array(content);
    if (json_is_string(content)) fwrite(json_string_value(content), 1, json_string_length(content), stream);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_object_get(json_array_get(content, i), "text");
        good = good && json_is_string(part);
        if (good) fwrite(json_string_value(part), 1, json_string_length(part), stream);
    }
    bool failed = ferror(stream) != 0;
    failed |= fclose(stream) != 0;
    if (failed) {
        free(text);
        FAIL(STATUS_MEMORY, "out of memory while reading a response");
    }
    if (!good) {
        free(text);
        FAIL(STATUS_INVALID, "the assistant's last turn must be text");
    }
    *response = text;
    json_array_remove(messages, last);
    if (!json_array_size(messages)) FAIL(STATUS_INVALID, "the assistant's turn has nothing before it");
    return STATUS_OK;
}

status_t packed_messages(const json_t *line, json_t **messages, char **response) {
    json_t *images = NULL;
    *response = NULL;
    *messages = json_array();
    status_t status = read_images(line, &images);
    if (!status) status = convert_all(line, images, *messages);
    if (!status) status = take_response(*messages, response);
    json_decref(images);
    if (status) {
        json_decref(*messages);
        free(*response);
        *messages = NULL;
        *response = NULL;
    }
    return status;
}
