// Module names against the patterns of adapters, by PEFT's rules.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/adapter.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH_STEPS = 100000 }; // a pattern that takes longer on a module's name matches nothing

struct adapter_pattern {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

// ---- patterns ----

static status_t open_pattern(const char *before, const char *pattern, const char *after, adapter_pattern_t **out) {
    char text[4096], message[256];
    int error;
    PCRE2_SIZE offset;
    *out = NULL;
    if (snprintf(text, sizeof(text), "%s%s%s", before, pattern, after) >= (int)sizeof(text))
        FAIL(STATUS_INVALID, "the module pattern '%.64s...' is too long", pattern);
    TRY(ALLOCATE(out, 1));
    adapter_pattern_t *made = *out;
    made->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_NO_AUTO_CAPTURE, &error, &offset, NULL);
    if (made->code) made->match = pcre2_match_data_create_from_pattern(made->code, NULL);
    if (made->match) made->limits = pcre2_match_context_create(NULL);
    if (made->limits) {
        pcre2_set_match_limit(made->limits, MATCH_STEPS);
        pcre2_set_depth_limit(made->limits, MATCH_STEPS);
        return STATUS_OK;
    }
    bool compiled = made->code;
    adapter_pattern_close(made);
    *out = NULL;
    if (compiled) FAIL(STATUS_MEMORY, "out of memory while matching module names");
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
    FAIL(STATUS_INVALID, "the module pattern '%s' is not a regular expression: %s", pattern, message);
}

status_t adapter_pattern_open(const char *pattern, adapter_pattern_t **out) {
    return open_pattern("^(?:.*\\.)?(?:", pattern, ")$", out);
}

status_t adapter_pattern_open_whole(const char *pattern, adapter_pattern_t **out) {
    return open_pattern("^(?:", pattern, ")$", out);
}

status_t adapter_pattern_open_layer(const char *pattern, adapter_pattern_t **out) {
    const char *number = ")\\.(?<poise_layer>[0-9]+)\\.";
    return pattern ? open_pattern("^(?:.*?\\.)?(?:", pattern, number, out)
                   : open_pattern("^(?:.*?\\.", "[^.]*", number, out);
}

bool adapter_pattern_matches(const adapter_pattern_t *pattern, const char *name, size_t length) {
    return pcre2_match(pattern->code, (PCRE2_SPTR)name, length, 0, 0, pattern->match, pattern->limits) >= 0;
}

int64_t adapter_pattern_layer(const adapter_pattern_t *pattern, const char *name, size_t length) {
    if (!adapter_pattern_matches(pattern, name, length)) return -1;
    int group = pcre2_substring_number_from_name(pattern->code, (PCRE2_SPTR) "poise_layer");
    if (group < 0) return -1;
    const PCRE2_SIZE *places = pcre2_get_ovector_pointer(pattern->match);
    int64_t layer = 0;
    for (PCRE2_SIZE at = places[2 * group]; at < places[2 * group + 1] && layer <= INT32_MAX; at++)
        layer = 10 * layer + (name[at] - '0');
    return layer;
}

void adapter_pattern_close(adapter_pattern_t *pattern) {
    if (!pattern) return;
    pcre2_match_context_free(pattern->limits);
    pcre2_match_data_free(pattern->match);
    pcre2_code_free(pattern->code);
    free(pattern);
}

// ---- targets ----

static bool is_empty(const json_t *value) {
    return !value || (json_is_array(value) && !json_array_size(value)) ||
           (json_is_string(value) && !json_string_length(value));
}

// A list of names, or one text.
static status_t read_names(config_reader_t *reader, const char *key, const json_t **list, const char **text) {
    const json_t *value = config_get(reader, key), *item;
    size_t i;
    *list = NULL;
    *text = NULL;
    if (is_empty(value)) return STATUS_OK;
    *text = json_string_value(value);
    if (*text) return STATUS_OK;
    if (!json_is_array(value)) FAIL(STATUS_INVALID, "%s: '%s' must be a text or a list", reader->where, key);
    json_array_foreach((json_t *)(uintptr_t)value, i, item) {
        if (!json_is_string(item)) FAIL(STATUS_INVALID, "%s: '%s' must hold names of modules", reader->where, key);
    }
    *list = value;
    return STATUS_OK;
}

static status_t read_layers(config_reader_t *reader, adapter_target_t *out) {
    const json_t *layers = config_get(reader, "layers_to_transform"), *list;
    const char *text;
    TRY(read_names(reader, "layers_pattern", &list, &text));
    if (is_empty(layers)) return STATUS_OK;
    if (!out->modules)
        FAIL(STATUS_INVALID, "%s: 'layers_to_transform' needs 'target_modules' to be a list, as in PEFT",
             reader->where);
    size_t count = json_is_array(layers) ? json_array_size(layers) : 1;
    for (size_t i = 0; i < count; i++)
        if (!json_is_integer(json_is_array(layers) ? json_array_get(layers, i) : layers))
            FAIL(STATUS_INVALID, "%s: 'layers_to_transform' must hold whole numbers", reader->where);
    out->layers = layers;
    size_t patterns = list ? json_array_size(list) : 1;
    if (patterns > ADAPTER_LAYER_PATTERNS)
        FAIL(STATUS_INVALID, "%s: 'layers_pattern' has more than %d patterns", reader->where, ADAPTER_LAYER_PATTERNS);
    for (size_t i = 0; i < patterns; i++) {
        TRY(adapter_pattern_open_layer(list ? json_string_value(json_array_get(list, i)) : text,
                                       &out->layer[out->layer_count]));
        out->layer_count++;
    }
    return STATUS_OK;
}

static bool is_all_linear(const char *text) {
    static const char word[] = "all-linear";
    for (size_t i = 0; i < sizeof(word); i++)
        if ((text[i] >= 'A' && text[i] <= 'Z' ? text[i] + 32 : text[i]) != word[i]) return false;
    return true;
}

status_t adapter_target_read(config_reader_t *reader, adapter_target_t *out) {
    const char *text, *excluded;
    *out = (adapter_target_t){0};
    TRY(read_names(reader, "target_modules", &out->modules, &text));
    TRY(read_names(reader, "exclude_modules", &out->excluded, &excluded));
    out->any = !text && !out->modules;
    out->all_linear = text && is_all_linear(text);
    if (text && !out->all_linear) TRY(adapter_pattern_open_whole(text, &out->module));
    if (excluded) TRY(adapter_pattern_open_whole(excluded, &out->exclusion));
    return read_layers(reader, out);
}

void adapter_target_free(adapter_target_t *target) {
    adapter_pattern_close(target->module);
    adapter_pattern_close(target->exclusion);
    for (int i = 0; i < target->layer_count; i++) adapter_pattern_close(target->layer[i]);
}

// A name of the list is the whole of it, or what follows one of its dots.
static bool is_listed(const json_t *list, const char *name, size_t length) {
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)(uintptr_t)list, i, item) {
        size_t end = json_string_length(item);
        if (end > length || memcmp(name + length - end, json_string_value(item), end) != 0) continue;
        if (end == length || name[length - end - 1] == '.') return true;
    }
    return false;
}

static bool is_layer(const adapter_target_t *target, const char *name, size_t length) {
    int64_t layer = -1;
    for (int i = 0; layer < 0 && i < target->layer_count; i++)
        layer = adapter_pattern_layer(target->layer[i], name, length);
    if (layer < 0) return false;
    if (json_is_integer(target->layers)) return json_integer_value(target->layers) == layer;
    for (size_t i = 0; i < json_array_size(target->layers); i++)
        if (json_integer_value(json_array_get(target->layers, i)) == layer) return true;
    return false;
}

static bool is_whole_name(const json_t *list, const char *name, size_t length) {
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (json_string_length(item) == length && !memcmp(json_string_value(item), name, length)) return true;
    }
    return false;
}

bool adapter_target_takes(const adapter_target_t *target, const char *name, size_t length) {
    if (target->exclusion && adapter_pattern_matches(target->exclusion, name, length)) return false;
    if (target->excluded && is_listed(target->excluded, name, length)) return false;
    if (target->any || target->all_linear) return true;
    if (target->module) return adapter_pattern_matches(target->module, name, length);
    // Layers are asked for only where a name is no whole one.
    if (is_whole_name(target->modules, name, length)) return true;
    return is_listed(target->modules, name, length) && (!target->layers || is_layer(target, name, length));
}
