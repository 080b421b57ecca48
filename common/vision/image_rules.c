// Image rules of a model folder, without opening the model.
#include "common/model/model.h"
#include "common/store/store.h"
#include "common/vision/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_LIMIT = 16 << 20 };

// DIRECTORY/NAME as a JSON object; *out is NULL when the file is absent and `optional`.
static status_t load(const char *directory, const char *name, bool optional, json_t **out) {
    size_t bytes = strlen(directory) + strlen(name) + 2, size;
    char *path, *text = NULL;
    json_error_t error;
    *out = NULL;
    TRY(memory_allocate(bytes, 1, (void **)&path));
    snprintf(path, bytes, "%s/%s", directory, name);
    status_t status = STATUS_OK;
    if (!optional || access(path, F_OK) == 0) {
        status = file_read_whole(path, FILE_LIMIT, &text, &size);
        if (!status) *out = json_loadb(text, size, 0, &error);
        if (!status && !*out)
            status = STATUS_NEW(STATUS_INVALID, "%s, line %d: %s", path, error.line, error.text);
        else if (!status && !json_is_object(*out))
            status = STATUS_NEW(STATUS_INVALID, "%s holds no JSON object", path);
    }
    if (status && *out) {
        json_decref(*out);
        *out = NULL;
    }
    free(text);
    free(path);
    return status;
}

static status_t read_number(const json_t *object, const char *key, double low, double high, double *out) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return STATUS_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= low && number <= high))
        FAIL(STATUS_INVALID, "'%s' must be a number from %g to %g", key, low, high);
    *out = number;
    return STATUS_OK;
}

static status_t read_int(const json_t *object, const char *key, int low, int high, int *out) {
    double number = *out;
    TRY(read_number(object, key, low, high, &number));
    *out = (int)number;
    return STATUS_OK;
}

static status_t read_pixels(const json_t *object, const char *key, int64_t *out) {
    double number = (double)*out;
    TRY(read_number(object, key, 1, 1e12, &number));
    *out = (int64_t)number;
    return STATUS_OK;
}

static status_t read_triple(const json_t *object, const char *key, bool positive, float out[3]) {
    const json_t *list = json_object_get(object, key);
    if (!list || json_is_null(list)) return STATUS_OK;
    for (size_t i = 0; i < 3; i++) {
        const json_t *item = json_array_get(list, i);
        double value = json_number_value(item);
        if (json_array_size(list) != 3 || !json_is_number(item) || !(fabs(value) < 1e6) ||
            (positive && !(value > 1e-6)))
            FAIL(STATUS_INVALID, "'%s' must be a list of three numbers", key);
        out[i] = (float)value;
    }
    return STATUS_OK;
}

static status_t check_setting(const json_t *processor) {
    static const char *const steps[] = {"do_resize", "do_rescale", "do_normalize"};
    double resample = 3, factor = 1.0 / 255;
    for (int i = 0; i < 3; i++)
        if (json_is_false(json_object_get(processor, steps[i])))
            FAIL(STATUS_INVALID, "'%s' is false, which is not supported", steps[i]);
    TRY(read_number(processor, "resample", 0, 5, &resample));
    TRY(read_number(processor, "rescale_factor", 0, 1e6, &factor));
    if (resample != 3) FAIL(STATUS_INVALID, "'resample' is %g; only 3 (bicubic) is supported", resample);
    if (fabs(factor * 255 - 1) > 1e-9) FAIL(STATUS_INVALID, "'rescale_factor' is %g; only 1/255 is supported", factor);
    return STATUS_OK;
}

static status_t read_processor(const json_t *processor, image_rules_t *rules) {
    const json_t *size = json_object_get(processor, "size");
    TRY(check_setting(processor));
    TRY(read_int(processor, "patch_size", 1, 64, &rules->patch));
    TRY(read_int(processor, "merge_size", 1, 16, &rules->merge));
    TRY(read_int(processor, "temporal_patch_size", 1, 16, &rules->temporal));
    TRY(read_pixels(size, "shortest_edge", &rules->min_pixels));
    TRY(read_pixels(size, "longest_edge", &rules->max_pixels));
    TRY(read_pixels(size, "min_pixels", &rules->min_pixels));
    TRY(read_pixels(size, "max_pixels", &rules->max_pixels));
    TRY(read_pixels(processor, "min_pixels", &rules->min_pixels));
    TRY(read_pixels(processor, "max_pixels", &rules->max_pixels));
    TRY(read_triple(processor, "image_mean", false, rules->mean));
    TRY(read_triple(processor, "image_std", true, rules->deviation));
    if (rules->min_pixels > rules->max_pixels)
        FAIL(STATUS_INVALID, "the least number of pixels, %lld, is more than the most, %lld",
             (long long)rules->min_pixels, (long long)rules->max_pixels);
    return STATUS_OK;
}

static int compare_ids(const void *left, const void *right) {
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

static status_t read_tokens(const json_t *config, image_rules_t *rules) {
    int video = 151656, pad = 151654;
    rules->image_token = 151655;
    rules->vision_start = 151652;
    rules->vision_end = 151653;
    TRY(read_int(config, "image_token_id", 0, INT32_MAX, &rules->image_token));
    TRY(read_int(config, "video_token_id", 0, INT32_MAX, &video));
    TRY(read_int(config, "vision_start_token_id", 0, INT32_MAX, &rules->vision_start));
    TRY(read_int(config, "vision_end_token_id", 0, INT32_MAX, &rules->vision_end));
    TRY(read_int(config, "vision_token_id", 0, INT32_MAX, &pad));
    const json_t *text = json_object_get(config, "text_config");
    double vocabulary = INT32_MAX;
    TRY(read_number(text && json_object_get(text, "vocab_size") ? text : config, "vocab_size", 1, INT32_MAX,
                    &vocabulary));
    const int ids[5] = {rules->image_token, video, rules->vision_start, rules->vision_end, pad};
    for (int i = 0; i < 5; i++) {
        bool known = ids[i] >= vocabulary;
        for (int j = 0; j < rules->media_token_count; j++) known |= rules->media_tokens[j] == ids[i];
        if (!known) rules->media_tokens[rules->media_token_count++] = ids[i];
    }
    qsort(rules->media_tokens, (size_t)rules->media_token_count, sizeof(int), compare_ids);
    return STATUS_OK;
}

// The image rules of preprocessor_config.json, else those nested in version 5's processor_config.json.
static status_t read_files(const char *directory, image_rules_t *rules) {
    static const char *const name[] = {"preprocessor_config.json", "processor_config.json"};
    for (int i = 0; i < 2; i++) {
        json_t *file;
        TRY(load(directory, name[i], true, &file));
        if (!file) continue;
        const json_t *nested = json_object_get(file, "image_processor");
        bool has_rules = i == 0 || json_is_object(nested);
        status_t status = has_rules ? read_processor(json_is_object(nested) ? nested : file, rules) : STATUS_OK;
        json_decref(file);
        if (status) return status_context(status, "%s/%s", directory, name[i]);
        if (has_rules) break;
    }
    return STATUS_OK;
}

status_t image_rules_read(const char *directory, image_rules_t *out) {
    json_t *config;
    image_rules_t rules = {
        .patch = 14,
        .merge = 2,
        .temporal = 2,
        .min_pixels = 56 * 56,
        .max_pixels = 28 * 28 * 1280,
        .mean = {0.48145466F, 0.4578275F, 0.40821073F},
        .deviation = {0.26862954F, 0.26130258F, 0.27577711F},
    };
    TRY(load(directory, "config.json", false, &config));
    const json_t *vision = json_object_get(config, "vision_config");
    status_t status = read_int(vision, "patch_size", 1, 64, &rules.patch);
    if (!status) status = read_int(vision, "spatial_merge_size", 1, 16, &rules.merge);
    if (!status) status = read_int(vision, "temporal_patch_size", 1, 16, &rules.temporal);
    if (!status) status = read_tokens(config, &rules);
    json_decref(config);
    if (status) return status_context(status, "%s/config.json", directory);
    int patch = rules.patch, merge = rules.merge, temporal = rules.temporal;
    TRY(read_files(directory, &rules));
    if (rules.patch != patch || rules.merge != merge || rules.temporal != temporal)
        FAIL(STATUS_INVALID,
             "%s: patch_size, merge_size or temporal_patch_size of the image processor differ from config.json; one of "
             "the two files belongs to another model",
             directory);
    *out = rules;
    return STATUS_OK;
}
