#include "common/model/model_processor.h"
#include "common/model/config_reader.h"

#include <string.h>

static status_t read_generation(const char *directory, model_config_t *config) {
    json_t *json;
    TRY(config_load(directory, "generation_config.json", true, &json));
    if (!json) return STATUS_OK;
    config_reader_t reader = config_reader(json, "generation_config.json");
    int count = 0;
    status_t status = config_integers(&reader, "eos_token_id", config->eos_tokens, 8, &config->eos_token_count);
    if (!status) status = config_integers(&reader, "bos_token_id", &config->bos_token, 1, &count);
    if (!status) status = config_integers(&reader, "pad_token_id", &config->pad_token, 1, &count);
    json_decref(json);
    return status;
}

static status_t read_triple(config_reader_t *reader, const char *key, float out[3]) {
    const json_t *list = config_get(reader, key);
    if (!list) return STATUS_OK;
    for (size_t i = 0; i < 3; i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_number(item) || json_array_size(list) != 3)
            FAIL(STATUS_INVALID, "%s: '%s' must be a list of three numbers", reader->where, key);
        out[i] = (float)json_number_value(item);
    }
    return STATUS_OK;
}

static status_t read_pixels(config_reader_t *reader, const char *key, int64_t *out) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= 1 && number <= 1e12))
        FAIL(STATUS_INVALID, "%s: '%s' must be a number of pixels", reader->where, key);
    *out = (int64_t)number;
    return STATUS_OK;
}

static status_t check_same(config_reader_t *reader, const char *key, int expected) {
    int value = expected;
    TRY(config_integer(reader, key, 1, 1 << 20, &value));
    if (value != expected)
        FAIL(STATUS_INVALID, "%s: '%s' is %d, but config.json says %d; one of the two files belongs to another model",
             reader->where, key, value, expected);
    return STATUS_OK;
}

static status_t read_image(const json_t *json, const char *where, image_rules_t *rules) {
    config_reader_t reader = config_reader(json, where);
    const json_t *size;
    TRY(config_object(&reader, "size", &size));
    if (size) {
        config_reader_t edges = config_reader(size, "size");
        TRY(read_pixels(&edges, "shortest_edge", &rules->min_pixels));
        TRY(read_pixels(&edges, "longest_edge", &rules->max_pixels));
        // Some saved files carry the other spelling here.
        TRY(read_pixels(&edges, "min_pixels", &rules->min_pixels));
        TRY(read_pixels(&edges, "max_pixels", &rules->max_pixels));
    }
    TRY(read_pixels(&reader, "min_pixels", &rules->min_pixels));
    TRY(read_pixels(&reader, "max_pixels", &rules->max_pixels));
    TRY(read_triple(&reader, "image_mean", rules->mean));
    TRY(read_triple(&reader, "image_std", rules->deviation));
    TRY(check_same(&reader, "patch_size", rules->patch));
    TRY(check_same(&reader, "merge_size", rules->merge));
    TRY(check_same(&reader, "temporal_patch_size", rules->temporal));
    for (int i = 0; i < 3; i++)
        if (!(rules->deviation[i] > 0)) FAIL(STATUS_INVALID, "%s: 'image_std' must be positive", where);
    if (rules->min_pixels > rules->max_pixels)
        FAIL(STATUS_INVALID, "%s: the least number of pixels, %lld, is more than the most, %lld", where,
             (long long)rules->min_pixels, (long long)rules->max_pixels);
    return STATUS_OK;
}

status_t model_read_processor(const char *directory, model_config_t *config) {
    TRY(read_generation(directory, config));
    if (!config->has_vision) return STATUS_OK;
    image_rules_t *rules = &config->image;
    const float mean[3] = {0.48145466F, 0.4578275F, 0.40821073F};
    const float deviation[3] = {0.26862954F, 0.26130258F, 0.27577711F};
    memcpy(rules->mean, mean, sizeof(mean));
    memcpy(rules->deviation, deviation, sizeof(deviation));
    rules->min_pixels = 56 * 56;
    rules->max_pixels = 28 * 28 * 1280;
    const char *const names[] = {"preprocessor_config.json", "processor_config.json"};
    for (int i = 0; i < 2; i++) {
        json_t *json;
        TRY(config_load(directory, names[i], true, &json));
        if (!json) continue;
        const json_t *nested = json_object_get(json, "image_processor");
        // A processor_config.json of version 4 has no image rules.
        bool has_rules = json_is_object(nested) || i == 0;
        status_t status = STATUS_OK;
        if (has_rules) status = read_image(json_is_object(nested) ? nested : json, names[i], rules);
        json_decref(json);
        if (status || has_rules) return status;
    }
    return STATUS_OK;
}
