#include "rollout/tool.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

status_t tool_reader_open(const char *path, tool_reader_t *out) {
    *out = (tool_reader_t){.path = path};
    if (!path || !*path) FAIL(STATUS_INVALID, "no input file was named; use --input FILE");
    out->file = strcmp(path, "-") ? fopen(path, "r") : stdin;
    if (!out->file) FAIL(STATUS_INVALID, "cannot open %s: %s", path, strerror(errno));
    return STATUS_OK;
}

void tool_reader_close(tool_reader_t *reader) {
    if (reader->file && reader->file != stdin) fclose(reader->file);
    free(reader->line);
    *reader = (tool_reader_t){0};
}

status_t tool_reader_blame(const tool_reader_t *reader, int64_t line, status_t status) {
    return status ? status_context(status, "%s, line %lld", reader->path, (long long)line) : STATUS_OK;
}

static bool is_blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!strchr(" \t\r\n", text[i]) || !text[i]) return false;
    return true;
}

status_t tool_reader_next(tool_reader_t *reader, json_t **out) {
    *out = NULL;
    for (;;) {
        errno = 0;
        ssize_t length = getline(&reader->line, &reader->capacity, reader->file);
        if (length < 0) {
            if (errno || ferror(reader->file)) FAIL(STATUS_IO, "cannot read %s: %s", reader->path, strerror(errno));
            return STATUS_OK;
        }
        reader->number++;
        if (is_blank(reader->line, (size_t)length)) continue;
        json_error_t error;
        json_t *value = json_loadb(reader->line, (size_t)length, JSON_REJECT_DUPLICATES, &error);
        if (json_is_object(value)) {
            *out = value;
            return STATUS_OK;
        }
        json_decref(value);
        if (value) FAIL(STATUS_INVALID, "%s, line %lld is no JSON object", reader->path, (long long)reader->number);
        if (json_error_code(&error) == json_error_invalid_utf8)
            FAIL(STATUS_INVALID, "%s, line %lld is no UTF-8: %s (byte %d)", reader->path, (long long)reader->number,
                 error.text, error.position);
        FAIL(STATUS_INVALID, "%s, line %lld is no JSON: %s (column %d)", reader->path, (long long)reader->number,
             error.text, error.column);
    }
}

status_t tool_writer_open(const char *path, tool_writer_t *out) {
    *out = (tool_writer_t){.file = stdout};
    if (!path || !strcmp(path, "-")) return STATUS_OK;
    status_t status = file_writer_open(path, &out->whole);
    out->file = out->whole.stream;
    return status;
}

status_t tool_writer_finish(tool_writer_t *writer) {
    if (writer->whole.stream) {
        writer->file = NULL;
        return file_writer_finish(&writer->whole);
    }
    if (fflush(writer->file) != 0 || ferror(writer->file))
        FAIL(STATUS_IO, "cannot write to standard output: %s", strerror(errno));
    return STATUS_OK;
}

void tool_writer_close(tool_writer_t *writer) {
    file_writer_close(&writer->whole);
    *writer = (tool_writer_t){0};
}

static status_t add_bytes(tool_text_t *text, const char *bytes, size_t length) {
    TRY(memory_grow((void **)&text->data, &text->capacity, text->length + length + 1, 1));
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = 0;
    return STATUS_OK;
}

status_t tool_text_add(tool_text_t *text, const char *format, ...) {
    char piece[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(piece, sizeof(piece), format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof(piece)) FAIL(STATUS_FAILED, "a piece of output is too long");
    return add_bytes(text, piece, (size_t)length);
}

status_t tool_text_json(tool_text_t *text, const json_t *value) {
    char *dumped = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!dumped) FAIL(STATUS_MEMORY, "cannot write a JSON value");
    status_t status = add_bytes(text, dumped, strlen(dumped));
    free(dumped);
    return status;
}

status_t tool_text_string(tool_text_t *text, const char *string) {
    json_t *value = json_string(string);
    if (!value) FAIL(STATUS_FAILED, "a string of the output is no UTF-8");
    status_t status = tool_text_json(text, value);
    json_decref(value);
    return status;
}

status_t tool_text_ids(tool_text_t *text, const int32_t *ids, int count) {
    TRY(add_bytes(text, "[", 1));
    for (int i = 0; i < count; i++) TRY(tool_text_add(text, "%s%d", i ? "," : "", ids[i]));
    return add_bytes(text, "]", 1);
}

status_t tool_text_floats(tool_text_t *text, const float *values, int count) {
    TRY(add_bytes(text, "[", 1));
    for (int i = 0; i < count; i++) {
        char number[32];
        if (!isfinite(values[i])) FAIL(STATUS_FAILED, "a value of the output is not finite");
        snprintf(number, sizeof(number), "%.9g", (double)values[i]);
        bool whole = strspn(number, "-0123456789") == strlen(number);
        TRY(tool_text_add(text, "%s%s%s", i ? "," : "", number, whole ? ".0" : ""));
    }
    return add_bytes(text, "]", 1);
}
