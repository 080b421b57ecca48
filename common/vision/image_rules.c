// The files that describe a model folder's image processor, in the spellings of transformers 4 and 5.
#include "common/model/config_reader.h"
#include "common/vision/image.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

enum { MOST_SIDE = 1 << 15 };

// ---- values in their several spellings ----

// One number for all channels, or one for each.
static status_t read_channels(config_reader_t *reader, const char *key, bool positive, float out[3]) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    bool is_list = json_is_array(value);
    for (size_t i = 0; i < 3; i++) {
        const json_t *item = is_list ? json_array_get(value, i) : value;
        double number = json_number_value(item);
        if ((is_list && json_array_size(value) != 3) || !json_is_number(item) || !(fabs(number) < 1e6))
            FAIL(STATUS_INVALID, "%s: '%s' must be a number or a list of three numbers", reader->where, key);
        if (positive && !(number > 1e-6)) FAIL(STATUS_INVALID, "%s: '%s' must be positive", reader->where, key);
        out[i] = (float)number;
    }
    return STATUS_OK;
}

static status_t read_pixels(config_reader_t *reader, const char *key, int64_t *out) {
    double number = (double)*out;
    TRY(config_number(reader, key, 1, 1e12, &number));
    *out = (int64_t)number;
    return STATUS_OK;
}

// null is no default: transformers takes it for false.
static status_t read_flag(config_reader_t *reader, const char *key, bool *out) {
    if (json_is_null(json_object_get(reader->object, key))) *out = false;
    return config_boolean(reader, key, out);
}

// And for a value that the steps which are on cannot do without.
static status_t check_there(const config_reader_t *reader, const char *key) {
    if (!json_is_null(json_object_get(reader->object, key))) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: '%s' is null; leave it out for the default", reader->where, key);
}

// A size as transformers takes it: a number, [height, width], {height, width} or {shortest_edge}. Which it is shows in
// what is not 0 afterwards; `square`: a number means both sides.
typedef struct size_setting {
    int height, width, shortest;
} size_setting_t;

static status_t read_side(const config_reader_t *reader, const char *key, const json_t *value, int *out) {
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number >= 1 && number <= MOST_SIDE) || number != floor(number))
        FAIL(STATUS_INVALID, "%s: '%s' must hold whole numbers from 1 to %d", reader->where, key, MOST_SIDE);
    *out = (int)number;
    return STATUS_OK;
}

static status_t read_size(config_reader_t *reader, const char *key, bool square, size_setting_t *out) {
    const json_t *value = config_get(reader, key);
    if (!value) return STATUS_OK;
    *out = (size_setting_t){0};
    if (json_is_number(value)) {
        TRY(read_side(reader, key, value, square ? &out->height : &out->shortest));
        out->width = out->height;
        return STATUS_OK;
    }
    if (json_is_array(value) && json_array_size(value) == 2) {
        TRY(read_side(reader, key, json_array_get(value, 0), &out->height));
        return read_side(reader, key, json_array_get(value, 1), &out->width);
    }
    const json_t *height = json_object_get(value, "height"), *width = json_object_get(value, "width");
    const json_t *shortest = json_object_get(value, "shortest_edge");
    if (height && width && json_object_size(value) == 2) {
        TRY(read_side(reader, key, height, &out->height));
        return read_side(reader, key, width, &out->width);
    }
    if (shortest && json_object_size(value) == 1) return read_side(reader, key, shortest, &out->shortest);
    FAIL(STATUS_INVALID, "%s: '%s' must be a number, [height, width], {\"height\", \"width\"} or {\"shortest_edge\"}",
         reader->where, key);
}

// ---- what all processors have ----

static status_t read_filter(config_reader_t *reader, image_filter_t *out) {
    static const image_filter_t filters[] = {FILTER_LANCZOS, FILTER_BILINEAR, FILTER_BICUBIC, FILTER_BOX,
                                             FILTER_HAMMING};
    int number = -1;
    TRY(config_integer(reader, "resample", 0, 1000, &number));
    if (number < 0) return STATUS_OK;
    if (number < 1 || number > 5)
        FAIL(STATUS_INVALID,
             "%s: 'resample' is %d, which is not supported; it may be 1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) "
             "or "
             "5 (Hamming)",
             reader->where, number);
    *out = filters[number - 1];
    return STATUS_OK;
}

// "LlavaNextImageProcessorFast" and "...Pil" are other code for the same processor.
static status_t check_type(config_reader_t *reader, const char *const *names) {
    const json_t *value = config_get(reader, "image_processor_type");
    const char *type = json_string_value(value);
    if (!value) return STATUS_OK;
    for (const char *const *name = names; type && *name; name++) {
        size_t length = strlen(*name);
        const char *rest = type + length;
        if (!strncmp(type, *name, length) && (!*rest || !strcmp(rest, "Fast") || !strcmp(rest, "Pil")))
            return STATUS_OK;
    }
    FAIL(STATUS_INVALID, "%s: 'image_processor_type' is '%.64s'; this model needs '%s'", reader->where,
         type ? type : "no text", names[0]);
}

static status_t read_common(config_reader_t *reader, image_rules_t *rules) {
    // Batches are not padded; the rest describes calls, not pictures.
    static const char *const known[] = {"do_pad",
                                        "processor_class",
                                        "default_to_square",
                                        "data_format",
                                        "device",
                                        "input_data_format",
                                        "return_tensors",
                                        "pad_size",
                                        "auto_map",
                                        "disable_grouping",
                                        "feature_extractor_type",
                                        "size_divisor",
                                        "aspect_ratio_setting",
                                        "_processor_class",
                                        "image_seq_length",
                                        "image_seq_len",
                                        NULL};
    config_ignore(reader, known);
    TRY(read_flag(reader, "do_convert_rgb", &rules->whiten));
    TRY(read_flag(reader, "do_resize", &rules->resize));
    TRY(read_flag(reader, "do_rescale", &rules->rescale));
    TRY(read_flag(reader, "do_normalize", &rules->normalise));
    if (rules->resize) TRY(check_there(reader, "resample"));
    if (rules->rescale) TRY(check_there(reader, "rescale_factor"));
    if (rules->normalise) TRY(check_there(reader, "image_mean"));
    if (rules->normalise) TRY(check_there(reader, "image_std"));
    TRY(config_number(reader, "rescale_factor", -1e6, 1e6, &rules->rescale_factor));
    TRY(read_filter(reader, &rules->filter));
    TRY(read_channels(reader, "image_mean", false, rules->mean));
    return read_channels(reader, "image_std", true, rules->deviation);
}

static status_t check_same(config_reader_t *reader, const char *key, int expected) {
    int value = expected;
    TRY(config_integer(reader, key, 1, 1 << 20, &value));
    if (value != expected)
        FAIL(STATUS_INVALID, "%s: '%s' is %d, but config.json says %d; one of the two files belongs to another model",
             reader->where, key, value, expected);
    return STATUS_OK;
}

static status_t check_side(const config_reader_t *reader, const image_rules_t *rules, const char *key, int height,
                           int width) {
    if (height == rules->side_height && width == rules->side_width) return STATUS_OK;
    FAIL(STATUS_INVALID, "%s: '%s' gives pictures of %d x %d, but the vision part of config.json takes %d x %d",
         reader->where, key, height, width, rules->side_height, rules->side_width);
}

// ---- one processor each ----

static status_t read_qwen2_vl(config_reader_t *reader, image_rules_t *rules) {
    static const char *const types[] = {"Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor", NULL};
    TRY(check_type(reader, types));
    const json_t *size = config_get(reader, "size");
    int64_t limits[2] = {rules->min_pixels, rules->max_pixels};
    if (size) {
        config_reader_t edges = config_reader(size, "size");
        limits[0] = limits[1] = 0;
        // Some saved files carry the other spelling here.
        TRY(read_pixels(&edges, "min_pixels", &limits[0]));
        TRY(read_pixels(&edges, "max_pixels", &limits[1]));
        TRY(read_pixels(&edges, "shortest_edge", &limits[0]));
        TRY(read_pixels(&edges, "longest_edge", &limits[1]));
    }
    TRY(read_pixels(reader, "min_pixels", &limits[0]));
    TRY(read_pixels(reader, "max_pixels", &limits[1]));
    if (!limits[0] || !limits[1])
        FAIL(STATUS_INVALID,
             "%s: 'size' must hold numbers of pixels, \"shortest_edge\" and \"longest_edge\" (or 'min_pixels' and "
             "'max_pixels')",
             reader->where);
    if (limits[0] > limits[1])
        FAIL(STATUS_INVALID, "%s: the least number of pixels, %lld, is more than the most, %lld", reader->where,
             (long long)limits[0], (long long)limits[1]);
    rules->min_pixels = limits[0];
    rules->max_pixels = limits[1];
    TRY(check_same(reader, "patch_size", rules->patch));
    TRY(check_same(reader, "merge_size", rules->merge));
    return check_same(reader, "temporal_patch_size", rules->temporal);
}

static status_t read_pinpoints(config_reader_t *reader, image_rules_t *rules) {
    static const int usual[][2] = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
    const json_t *list = config_get(reader, "image_grid_pinpoints");
    size_t count = list ? json_array_size(list) : sizeof(usual) / sizeof(usual[0]);
    int found[IMAGE_MAX_PINPOINTS][2];
    if (count < 1 || count > IMAGE_MAX_PINPOINTS)
        FAIL(STATUS_INVALID, "%s: 'image_grid_pinpoints' must be a list of 1 to %d pairs [height, width]",
             reader->where, IMAGE_MAX_PINPOINTS);
    if (!list) memcpy(found, usual, sizeof(usual));
    for (size_t i = 0; list && i < count; i++) {
        const json_t *pair = json_array_get(list, i);
        if (json_array_size(pair) != 2)
            FAIL(STATUS_INVALID, "%s: 'image_grid_pinpoints' must be a list of pairs [height, width]", reader->where);
        for (size_t j = 0; j < 2; j++)
            TRY(read_side(reader, "image_grid_pinpoints", json_array_get(pair, j), &found[i][j]));
    }
    if (rules->pinpoints &&
        (rules->pinpoints != (int)count || memcmp(rules->pinpoint, found, count * sizeof(found[0])) != 0))
        FAIL(STATUS_INVALID,
             "%s: 'image_grid_pinpoints' is another list than config.json's; the model would misplace tiles",
             reader->where);
    memcpy(rules->pinpoint, found, count * sizeof(found[0]));
    rules->pinpoints = (int)count;
    return STATUS_OK;
}

static status_t read_llava_next(config_reader_t *reader, image_rules_t *rules) {
    static const char *const types[] = {"LlavaNextImageProcessor", NULL};
    size_setting_t size = {.shortest = 224}, crop = {.height = 224, .width = 224};
    TRY(check_type(reader, types));
    TRY(check_there(reader, "size"));
    TRY(check_there(reader, "crop_size"));
    TRY(read_size(reader, "size", false, &size));
    TRY(read_size(reader, "crop_size", true, &crop));
    TRY(read_flag(reader, "do_center_crop", &rules->center_crop));
    TRY(read_pinpoints(reader, rules));
    // Tiles are cut in the crop's size even where nothing is cropped.
    TRY(check_side(reader, rules, "crop_size", crop.height, crop.width));
    rules->resize_height = size.shortest ? size.shortest : size.height;
    rules->resize_width = size.shortest ? size.shortest : size.width;
    if (!rules->center_crop) TRY(check_side(reader, rules, "size", rules->resize_height, rules->resize_width));
    return STATUS_OK;
}

static status_t read_gemma3(config_reader_t *reader, image_rules_t *rules) {
    static const char *const types[] = {"Gemma3ImageProcessor", NULL};
    static const char *const unused[] = {"do_center_crop", "crop_size", NULL};
    size_setting_t size = {.height = 224, .width = 224};
    TRY(check_type(reader, types));
    config_ignore(reader, unused);
    TRY(check_there(reader, "size"));
    TRY(read_size(reader, "size", true, &size));
    rules->whiten = true; // Gemma3Processor asks for it in each call, whatever the file says
    if (size.shortest)
        FAIL(STATUS_INVALID, "%s: 'size' is a shortest edge; this model needs one fixed height and width",
             reader->where);
    TRY(check_side(reader, rules, "size", size.height, size.width));
    bool asked = false;
    TRY(read_flag(reader, "do_pan_and_scan", &asked));
    TRY(read_flag(reader, "always_pan_and_scan", &rules->pan_and_scan.on));
    if (asked && !rules->pan_and_scan.on)
        fprintf(
            stderr,
            "poise: warning: %s: 'do_pan_and_scan' is ignored, as transformers' Gemma3Processor ignores it there; add "
            "'always_pan_and_scan': true to have the crops\n",
            reader->where);
    TRY(config_integer(reader, "pan_and_scan_min_crop_size", 1, INT32_MAX, &rules->pan_and_scan.min_crop));
    TRY(config_integer(reader, "pan_and_scan_max_num_crops", 1, INT32_MAX, &rules->pan_and_scan.max_crops));
    return config_number(reader, "pan_and_scan_min_ratio_to_activate", -1e9, 1e9, &rules->pan_and_scan.min_ratio);
}

// ---- defaults and files ----

static void set_defaults(image_rules_t *rules) {
    const float mean[3] = {0.48145466F, 0.4578275F, 0.40821073F};
    const float deviation[3] = {0.26862954F, 0.26130258F, 0.27577711F};
    rules->whiten = rules->resize = rules->rescale = rules->normalise = true;
    rules->rescale_factor = 1.0 / 255;
    rules->filter = FILTER_BICUBIC;
    memcpy(rules->mean, mean, sizeof(mean));
    memcpy(rules->deviation, deviation, sizeof(deviation));
    rules->min_pixels = 56 * 56;
    rules->max_pixels = 28 * 28 * 1280;
    // Without a file of its own the processor is taken to fit the model.
    rules->resize_height = rules->side_height;
    rules->resize_width = rules->side_width;
    rules->center_crop = true;
    rules->pan_and_scan.on = false;
    rules->pan_and_scan.min_crop = 256;
    rules->pan_and_scan.max_crops = 4;
    rules->pan_and_scan.min_ratio = 1.2;
    if (rules->processor != PROCESSOR_GEMMA3) return;
    rules->filter = FILTER_BILINEAR;
    for (int i = 0; i < 3; i++) rules->mean[i] = rules->deviation[i] = 0.5F;
}

static status_t read_image_processor(const json_t *json, const char *where, image_rules_t *rules) {
    config_reader_t reader = config_reader(json, where);
    TRY(read_common(&reader, rules));
    switch (rules->processor) {
    case PROCESSOR_QWEN2_VL:
        TRY(read_qwen2_vl(&reader, rules));
        break;
    case PROCESSOR_LLAVA_NEXT:
        TRY(read_llava_next(&reader, rules));
        break;
    case PROCESSOR_GEMMA3:
        TRY(read_gemma3(&reader, rules));
        break;
    }
    config_finish(&reader);
    return STATUS_OK;
}

// What processor_config.json says beside the image processor must fit the model, or its texts would not.
static status_t check_processor(const json_t *json, const image_rules_t *rules) {
    config_reader_t reader = config_reader(json, "processor_config.json");
    if (rules->processor == PROCESSOR_LLAVA_NEXT) TRY(check_same(&reader, "patch_size", rules->patch));
    if (rules->processor == PROCESSOR_GEMMA3 && rules->tokens)
        TRY(check_same(&reader, "image_seq_length", rules->tokens));
    return STATUS_OK;
}

static status_t read_files(const char *directory, const json_t *processor, image_rules_t *rules) {
    const json_t *nested = json_object_get(processor, "image_processor");
    if (processor) TRY(check_processor(processor, rules));
    if (json_is_object(nested)) return read_image_processor(nested, "processor_config.json", rules);
    json_t *preprocessor;
    TRY(config_load(directory, "preprocessor_config.json", true, &preprocessor));
    if (!preprocessor) return STATUS_OK;
    status_t status = read_image_processor(preprocessor, "preprocessor_config.json", rules);
    json_decref(preprocessor);
    return status;
}

status_t image_rules_read(const char *directory, image_rules_t *rules) {
    json_t *processor;
    set_defaults(rules);
    TRY(config_load(directory, "processor_config.json", true, &processor));
    status_t status = read_files(directory, processor, rules);
    json_decref(processor);
    return status ? status_trace(status, __FILE__, __LINE__, __func__) : STATUS_OK;
}

uint64_t image_rules_hash(const image_rules_t *rules) {
    const double values[] = {
        rules->processor,
        rules->patch,
        rules->merge,
        rules->temporal,
        rules->side_height,
        rules->side_width,
        rules->tokens,
        rules->image_token,
        (double)rules->min_pixels,
        (double)rules->max_pixels,
        rules->whiten,
        rules->resize,
        rules->filter,
        rules->resize_height,
        rules->resize_width,
        rules->center_crop,
        rules->pan_and_scan.on,
        rules->pan_and_scan.min_crop,
        rules->pan_and_scan.max_crops,
        rules->pan_and_scan.min_ratio,
        rules->rescale,
        rules->normalise,
        rules->rescale_factor,
        (double)rules->mean[0],
        (double)rules->mean[1],
        (double)rules->mean[2],
        (double)rules->deviation[0],
        (double)rules->deviation[1],
        (double)rules->deviation[2],
        rules->pinpoints,
    };
    uint64_t hash = XXH3_64bits(values, sizeof(values));
    return XXH3_64bits_withSeed(rules->pinpoint, (size_t)rules->pinpoints * sizeof(rules->pinpoint[0]), hash);
}
