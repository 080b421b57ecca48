// poise tokenize: text or messages to ids and back.
#include "rollout/tool.h"

#include <stdlib.h>
#include <string.h>

// A conversation that ends with the assistant's turn is whole; any other waits for one.
static bool wants_reply(const json_t *messages) {
    size_t count = json_array_size(messages);
    const json_t *last = count ? json_array_get(messages, count - 1) : NULL;
    const char *role = json_string_value(json_object_get(last, "role"));
    return !role || strcmp(role, "assistant") != 0;
}

static status_t encode(tool_t *tool, const json_t *line, tool_item_t *item) {
    const json_t *messages = json_object_get(line, "messages"), *text = json_object_get(line, "text");
    json_t *id = json_object_get(line, "id");
    if (!id) FAIL(STATUS_INVALID, "the line has no 'id'");
    item->id = json_incref(id);
    if (!messages == !text) FAIL(STATUS_INVALID, "the line must have either 'text' or 'messages'");
    if (messages) return tool_item_chat(tool, line, wants_reply(messages), item);
    if (!json_is_string(text)) FAIL(STATUS_INVALID, "'text' must be a string");
    return tokenizer_encode_whole(tool->tokenizer, json_string_value(text), NULL, json_string_length(text),
                                  &item->prompt);
}

static status_t write_line(tool_t *tool, const tool_item_t *item, tool_text_t *out) {
    char *decoded;
    TRY(tokenizer_decode(tool->tokenizer, item->prompt.id, item->prompt.count, false, &decoded));
    status_t status = tool_text_add(out, "{\"id\":");
    if (!status) status = tool_text_json(out, item->id);
    if (!status) status = tool_text_add(out, ",\"ids\":");
    if (!status) status = tool_text_ids(out, item->prompt.id, item->prompt.count);
    if (!status) status = tool_text_add(out, ",\"decoded\":");
    if (!status) status = tool_text_string(out, decoded);
    if (!status) status = tool_text_add(out, "}\n");
    free(decoded);
    return status;
}

static status_t tokenize_all(tool_t *tool, tool_reader_t *reader, tool_writer_t *writer, tool_text_t *text) {
    for (;;) {
        json_t *line;
        tool_item_t item = {0};
        TRY(tool_reader_next(reader, &line));
        if (!line) return STATUS_OK;
        text->length = 0;
        status_t status = encode(tool, line, &item);
        if (!status) status = write_line(tool, &item, text);
        tool_item_free(&item);
        json_decref(line);
        TRY(tool_reader_blame(reader, reader->number, status));
        if (fwrite(text->data, 1, text->length, writer->file) != text->length)
            FAIL(STATUS_IO, "cannot write the output; is the disk full?");
    }
}

status_t tool_tokenize(const tool_options_t *options) {
    tool_t tool = {0};
    tool_reader_t reader = {0};
    tool_writer_t writer = {0};
    tool_text_t text = {0};
    status_t status = tool_reader_open(options->input, &reader);
    if (!status) status = tool_open(options, false, &tool);
    if (!status) status = tool_writer_open(options->output, &writer);
    if (!status) status = tokenize_all(&tool, &reader, &writer, &text);
    if (!status) status = tool_writer_finish(&writer);
    free(text.data);
    tool_writer_close(&writer);
    tool_reader_close(&reader);
    tool_close(&tool);
    return status;
}
