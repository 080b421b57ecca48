// What score, generate and tokenize share; private to rollout/tool*.c.
#ifndef ROLLOUT_TOOL_H
#define ROLLOUT_TOOL_H

#include "common/store/store.h"
#include "common/text/chat.h"
#include "common/vision/image.h"
#include "rollout/engine.h"
#include "rollout/rollout.h"

// ---- lines in, lines out (tool_lines.c) ----

// JSON Lines of a file, one object a line; blank lines are passed over. "-" is standard input.
typedef struct tool_reader {
    const char *path;
    FILE *file;
    char *line;
    size_t capacity;
    int64_t number; // of the line last read, from 1
} tool_reader_t;
status_t tool_reader_open(const char *path, tool_reader_t *out) STATUS_CHECKED;
void tool_reader_close(tool_reader_t *reader);
// The next object; *out NULL at the end. Errors name the file and line.
status_t tool_reader_next(tool_reader_t *reader, json_t **out) STATUS_CHECKED;
// Puts "FILE, line N" before an error's message.
status_t tool_reader_blame(const tool_reader_t *reader, int64_t line, status_t status) STATUS_CHECKED;

// Output that appears under its name when it is whole. "-" or NULL is standard output, written as it comes.
typedef struct tool_writer {
    FILE *file; // stdout, or that of `whole`
    file_writer_t whole;
} tool_writer_t;
status_t tool_writer_open(const char *path, tool_writer_t *out) STATUS_CHECKED;
status_t tool_writer_finish(tool_writer_t *writer) STATUS_CHECKED;
void tool_writer_close(tool_writer_t *writer); // drops what was not finished

// A growing line of JSON. Start from {0}.
typedef struct tool_text {
    char *data;
    size_t length, capacity;
} tool_text_t;
status_t tool_text_add(tool_text_t *text, const char *format, ...) __attribute__((format(printf, 2, 3))) STATUS_CHECKED;
status_t tool_text_json(tool_text_t *text, const json_t *value) STATUS_CHECKED;
status_t tool_text_string(tool_text_t *text, const char *string) STATUS_CHECKED; // quoted
status_t tool_text_ids(tool_text_t *text, const int32_t *ids, int count) STATUS_CHECKED;
// Each reads back to the same float.
status_t tool_text_floats(tool_text_t *text, const float *values, int count) STATUS_CHECKED;

// ---- what a line asks for (tool_item.c) ----

typedef struct tool {
    const tool_options_t *options;
    device_t *device;
    model_t *model; // tokenize: NULL until a line has an image
    tokenizer_t *tokenizer;
    chat_template_t *chat_template; // NULL until a line has messages
    bool loaded;                    // the model has its weights
    bool told_dropped;              // the warning of chat_tell_dropped was written
} tool_t;
// Opens the device and either the tokenizer or, with `weights`, the model and its adapter.
status_t tool_open(const tool_options_t *options, bool weights, tool_t *out) STATUS_CHECKED;
void tool_close(tool_t *tool);
// Opens the model without its weights when it is not open: its image rules are wanted.
status_t tool_need_rules(tool_t *tool) STATUS_CHECKED;
// Opens the tokenizer when it is not open: there is text. Lines of ids do without.
status_t tool_need_tokenizer(tool_t *tool) STATUS_CHECKED;

typedef struct tool_item {
    int64_t line;
    json_t *id;
    token_list_t prompt, completion;
    image_patches_t **images; // [image_count]
    int image_count;
} tool_item_t;
// Reads `id` and `messages` or `prompt_ids`; with_completion also `completion` or `completion_ids`. Picture paths that
// are relative start at the input file's folder, or, where there is no such file, at the working folder.
status_t tool_item_read(tool_t *tool, const json_t *line, bool with_completion, tool_item_t *out) STATUS_CHECKED;
// Tokens of a line's chat (`messages` and what goes with them) with its pictures; `generation` adds the assistant's
// opening.
status_t tool_item_chat(tool_t *tool, const json_t *line, bool generation, tool_item_t *item) STATUS_CHECKED;
void tool_item_free(tool_item_t *item);
void tool_item_free_images(tool_item_t *item);

#endif
