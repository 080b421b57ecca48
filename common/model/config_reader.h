// Reading a Hugging Face config.json: typed keys with class defaults, and a note of what nobody asked for.
#ifndef COMMON_MODEL_CONFIG_READER_H
#define COMMON_MODEL_CONFIG_READER_H

#include "kernels/base/status.h"
#include <jansson.h>
#include <stdint.h>

enum { CONFIG_MAX_KEYS = 128 };

// One JSON object being read. Keys asked for (read or ignored) are remembered; config_finish warns of the others.
typedef struct config_reader {
    const json_t *object;
    const char *where; // "config.json", "vision_config"; for messages
    const char *asked[CONFIG_MAX_KEYS];
    int asked_count;
} config_reader_t;

// Reads a JSON object from a file of at most 64 MiB; *out is NULL when the file does not exist and that is `allowed`.
status_t config_load(const char *directory, const char *name, bool missing_allowed, json_t **out) STATUS_CHECKED;
config_reader_t config_reader(const json_t *object, const char *where);
// The value of a key, NULL when absent or null.
const json_t *config_get(config_reader_t *reader, const char *key);
// Keys that are known and without effect here; the list ends with NULL.
void config_ignore(config_reader_t *reader, const char *const *keys);
// The keys that every transformers configuration may carry and that change nothing here.
void config_ignore_common(config_reader_t *reader);
// Absent: *out keeps what it holds (the default). Wrong type or out of [low, high]: STATUS_INVALID, naming the key.
status_t config_integer(config_reader_t *reader, const char *key, int64_t low, int64_t high, int *out) STATUS_CHECKED;
status_t config_number(config_reader_t *reader, const char *key, double low, double high, double *out) STATUS_CHECKED;
status_t config_boolean(config_reader_t *reader, const char *key, bool *out) STATUS_CHECKED;
// A nested object, NULL when absent.
status_t config_object(config_reader_t *reader, const char *key, const json_t **out) STATUS_CHECKED;
// One integer or a list of them (ids of tokens); *count keeps its value when the key is absent.
status_t config_integers(config_reader_t *reader, const char *key, int *out, int capacity, int *count) STATUS_CHECKED;
// A string that must be one of the given (ends with NULL) when present.
status_t config_choice(config_reader_t *reader, const char *key, const char *const *choices) STATUS_CHECKED;
// One line on stderr when keys remain that nobody asked for.
void config_finish(const config_reader_t *reader);

#endif
