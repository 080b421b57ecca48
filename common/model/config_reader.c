#include "common/model/config_reader.h"
#include "common/store/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CONFIG_FILE_BYTES = 64 << 20 };

status_t config_load(const char *directory, const char *name, bool missing_allowed, json_t **out) {
    char path[4096];
    *out = NULL;
    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s/%s is too long", directory, name);
    if (missing_allowed && access(path, F_OK) != 0 && errno == ENOENT) return STATUS_OK;
    char *text;
    size_t size;
    TRY(file_read_whole(path, CONFIG_FILE_BYTES, &text, &size));
    json_error_t error;
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!json) FAIL(STATUS_INVALID, "%s is not valid JSON: line %d: %s", path, error.line, error.text);
    if (!json_is_object(json)) {
        json_decref(json);
        FAIL(STATUS_INVALID, "%s must hold a JSON object", path);
    }
    *out = json;
    return STATUS_OK;
}

config_reader_t config_reader(const json_t *object, const char *where) {
    return (config_reader_t){.object = object, .where = where};
}

const json_t *config_get(config_reader_t *reader, const char *key) {
    bool known = false;
    for (int i = 0; !known && i < reader->asked_count; i++) known = !strcmp(reader->asked[i], key);
    if (!known && reader->asked_count < CONFIG_MAX_KEYS) reader->asked[reader->asked_count++] = key;
    const json_t *value = json_object_get(reader->object, key);
    return json_is_null(value) ? NULL : value;
}

void config_ignore(config_reader_t *reader, const char *const *keys) {
    for (; *keys; keys++) config_get(reader, *keys);
}

void config_ignore_common(config_reader_t *reader) {
    static const char *const keys[] = {"model_type",
                                       "architectures",
                                       "torch_dtype",
                                       "dtype",
                                       "transformers_version",
                                       "_name_or_path",
                                       "use_cache",
                                       "initializer_range",
                                       "attention_dropout",
                                       "max_position_embeddings",
                                       "return_dict",
                                       "output_hidden_states",
                                       "output_attentions",
                                       "chunk_size_feed_forward",
                                       "problem_type",
                                       "is_encoder_decoder",
                                       "id2label",
                                       "label2id",
                                       NULL};
    config_ignore(reader, keys);
}

status_t config_integer(config_reader_t *reader, const char *key, int64_t low, int64_t high, int *out) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    // Some files write whole numbers as 28.0.
    double real = json_number_value(value);
    if (!json_is_number(value) || !(real >= (double)low && real <= (double)high) || real != (double)(int64_t)real)
        FAIL(STATUS_INVALID, "%s: '%s' must be a whole number from %lld to %lld", reader->where, key, (long long)low,
             (long long)high);
    *out = (int)real;
    return STATUS_OK;
}

status_t config_number(config_reader_t *reader, const char *key, double low, double high, double *out) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    double real = json_number_value(value);
    if (!json_is_number(value) || !(real >= low && real <= high))
        FAIL(STATUS_INVALID, "%s: '%s' must be a number from %g to %g", reader->where, key, low, high);
    *out = real;
    return STATUS_OK;
}

status_t config_boolean(config_reader_t *reader, const char *key, bool *out) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    if (!json_is_boolean(value)) FAIL(STATUS_INVALID, "%s: '%s' must be true or false", reader->where, key);
    *out = json_is_true(value);
    return STATUS_OK;
}

status_t config_object(config_reader_t *reader, const char *key, const json_t **out) {
    *out = config_get(reader, key);
    if (*out && !json_is_object(*out)) FAIL(STATUS_INVALID, "%s: '%s' must be an object", reader->where, key);
    return STATUS_OK;
}

status_t config_integers(config_reader_t *reader, const char *key, int *out, int capacity, int *count) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    size_t items = json_is_array(value) ? json_array_size(value) : 1;
    if (items > (size_t)capacity)
        FAIL(STATUS_INVALID, "%s: '%s' has %zu entries, at most %d are supported", reader->where, key, items, capacity);
    for (size_t i = 0; i < items; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        json_int_t number = json_integer_value(item);
        if (!json_is_integer(item) || number < 0 || number > INT32_MAX)
            FAIL(STATUS_INVALID, "%s: '%s' must be a whole number or a list of them", reader->where, key);
        out[i] = (int)number;
    }
    *count = (int)items;
    return STATUS_OK;
}

status_t config_choice(config_reader_t *reader, const char *key, const char *const *choices) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    const char *text = json_string_value(value);
    for (const char *const *choice = choices; text && *choice; choice++)
        if (!strcmp(text, *choice)) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: '%s' is '%s', and Poise supports only '%s'", reader->where, key, text ? text : "no text",
         choices[0]);
}

void config_finish(const config_reader_t *reader) {
    const char *key;
    json_t *value;
    char line[1024];
    size_t used = 0;
    json_object_foreach((json_t *)(uintptr_t)reader->object, key, value) {
        bool asked = false;
        for (int i = 0; !asked && i < reader->asked_count; i++) asked = !strcmp(reader->asked[i], key);
        if (asked || used + strlen(key) + 3 > sizeof(line)) continue;
        used += (size_t)snprintf(line + used, sizeof(line) - used, "%s%s", used ? ", " : "", key);
    }
    if (used)
        fprintf(stderr, "poise: warning: %s has keys that Poise does not know and ignores: %s\n", reader->where, line);
}
