#include "common/model/compose_files.h"

#include "common/model/config_reader.h"
#include "common/model/model_files.h"
#include "common/store/store.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_LIMIT = 256 << 20, MOST_ID = 1 << 28 };

static status_t write_json(const char *folder, const char *name, const json_t *json, size_t flags) {
    char *text = json ? json_dumps(json, flags) : NULL;
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing %s", name);
    status_t status = folder_write_text(folder, name, text);
    free(text);
    return status;
}

static status_t set(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value)) FAIL(STATUS_MEMORY, "out of memory while composing a model");
    return STATUS_OK;
}

// ---- the tokenizer ----

static status_t read_tokenizer(const char *folder, json_t **out) {
    char path[MODEL_PATH_BYTES], *text;
    size_t size;
    json_error_t error;
    if (snprintf(path, sizeof(path), "%s/tokenizer.json", folder) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", folder);
    if (access(path, F_OK))
        FAIL(STATUS_INVALID, "the language model has no tokenizer.json; poise compose cannot add the image token to "
                             "another kind of tokenizer");
    TRY(file_read_whole(path, FILE_LIMIT, &text, &size));
    *out = json_loadb(text, size, JSON_ALLOW_NUL, &error);
    free(text);
    if (!*out) FAIL(STATUS_INVALID, "tokenizer.json is not valid JSON: line %d: %s", error.line, error.text);
    return STATUS_OK;
}

// The largest id of a vocabulary, which is an object {text: id} or a list whose places are ids.
static json_int_t largest_id(json_t *vocabulary) {
    json_int_t largest = json_is_array(vocabulary) ? (json_int_t)json_array_size(vocabulary) - 1 : -1;
    const char *key;
    json_t *value;
    json_object_foreach(vocabulary, key, value) if (json_integer_value(value) > largest) largest =
        json_integer_value(value);
    return largest;
}

// The id of the image token: that of an added token of this spelling, or a new one behind all others.
static status_t place_image_token(const char *folder, const char *spelling, int *out) {
    json_t *tokenizer, *item;
    size_t i;
    TRY(read_tokenizer(folder, &tokenizer));
    json_t *added = json_object_get(tokenizer, "added_tokens");
    json_t *vocabulary = json_object_get(json_object_get(tokenizer, "model"), "vocab");
    json_int_t id = -1, largest = largest_id(vocabulary);
    bool present = json_object_get(vocabulary, spelling) != NULL;
    json_array_foreach(added, i, item) {
        json_int_t number = json_integer_value(json_object_get(item, "id"));
        const char *content = json_string_value(json_object_get(item, "content"));
        if (content && !strcmp(content, spelling)) id = number;
        if (number > largest) largest = number;
    }
    status_t status = STATUS_OK;
    if (id < 0 && present)
        status =
            STATUS_NEW(STATUS_INVALID, "the vocabulary has '%s' as plain text; choose another --image-token", spelling);
    else if (!json_is_array(added) || largest < 0 || largest >= MOST_ID)
        status = STATUS_NEW(STATUS_INVALID, "tokenizer.json has no vocabulary with added tokens");
    else if (id < 0) {
        id = largest + 1;
        json_array_append_new(added,
                              json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", spelling,
                                        "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
        status = write_json(folder, "tokenizer.json", tokenizer, JSON_COMPACT);
    }
    *out = (int)id;
    json_decref(tokenizer);
    return status;
}

// ---- the chat template ----

// Templates of text models want content that is a string. This comes before one: content that is a list becomes a
// string, a picture being its token on a line of its own.
static const char flatten[] =
    "{%%- set flat = namespace(messages=[]) -%%}"
    "{%%- for message in messages -%%}"
    "{%%- if message['content'] is string -%%}"
    "{%%- set flat.messages = flat.messages + [message] -%%}"
    "{%%- else -%%}"
    "{%%- set content = namespace(text='') -%%}"
    "{%%- for part in message['content'] -%%}"
    "{%%- if part['type'] == 'image' -%%}{%%- set content.text = content.text + '%s\\n' -%%}"
    "{%%- else -%%}{%%- set content.text = content.text + part['text'] -%%}{%%- endif -%%}"
    "{%%- endfor -%%}"
    "{%%- set flat.messages = flat.messages + [{'role': message['role'], 'content': content.text}] -%%}"
    "{%%- endif -%%}"
    "{%%- endfor -%%}"
    "{%%- set messages = flat.messages -%%}";

static const char *template_of(const json_t *config) {
    json_t *value = json_object_get(config, "chat_template"), *item;
    size_t i;
    json_array_foreach(value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && !strcmp(name, "default")) return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(value);
}

static status_t write_template(const char *folder, const char *image_token) {
    char path[MODEL_PATH_BYTES], *file = NULL, *whole = NULL;
    json_t *config = NULL;
    size_t size;
    if (snprintf(path, sizeof(path), "%s/chat_template.jinja", folder) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", folder);
    if (!access(path, F_OK)) TRY(file_read_whole(path, FILE_LIMIT, &file, &size));
    status_t status = file ? STATUS_OK : config_load(folder, "tokenizer_config.json", true, &config);
    const char *source = file ? file : template_of(config);
    if (!status && !source)
        status = STATUS_NEW(STATUS_INVALID, "the language model's folder has no chat template; poise compose builds on "
                                            "it");
    if (!status) {
        size_t bytes = sizeof(flatten) + strlen(image_token) + strlen(source) + 1;
        status = ALLOCATE(&whole, bytes);
        if (!status) {
            int head = snprintf(whole, bytes, flatten, image_token);
            snprintf(whole + head, bytes - (size_t)head, "%s", source);
            status = folder_write_text(folder, "chat_template.jinja", whole);
        }
    }
    free(whole);
    free(file);
    json_decref(config);
    return status;
}

// ---- config.json and the processor's files ----

static status_t read_vision(const char *path, json_t **out) {
    const char *slash = strrchr(path, '/');
    char folder[MODEL_PATH_BYTES];
    if (snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path) + 1 : 2, slash ? path : "./") >=
        (int)sizeof(folder))
        FAIL(STATUS_INVALID, "the path %s is too long", path);
    TRY(config_load(folder, slash ? slash + 1 : path, false, out));
    const char *type = json_string_value(json_object_get(*out, "model_type"));
    const char *wrong = !json_is_object(json_object_get(*out, "vision_config")) ? "has no 'vision_config'"
                        : json_object_get(*out, "text_config")                  ? "has a 'text_config' of its own"
                        : type && strcmp(type, "llava_next") != 0               ? "is not of the model_type llava_next"
                                                                                : NULL;
    if (!wrong) return STATUS_OK;
    json_decref(*out);
    *out = NULL;
    FAIL(STATUS_INVALID, "%s %s; poise compose wants what config.json of a llava_next model says of pictures", path,
         wrong);
}

static status_t fill_config(json_t *config, json_t *text, int rows, int image_id) {
    static const char *const outside[] = {"architectures", "dtype", "torch_dtype", "transformers_version",
                                          "_name_or_path"};
    json_t *tied = json_object_get(text, "tie_word_embeddings");
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) json_object_del(text, outside[i]);
    TRY(set(text, "vocab_size", json_integer(image_id >= rows ? image_id + 1 : rows)));
    TRY(set(config, "model_type", json_string("llava_next")));
    TRY(set(config, "architectures", json_pack("[s]", "LlavaNextForConditionalGeneration")));
    TRY(set(config, "image_token_index", json_integer(image_id)));
    TRY(set(config, "tie_word_embeddings", tied ? json_incref(tied) : json_false()));
    TRY(set(config, "dtype", json_string("float32")));
    return set(config, "text_config", json_incref(text));
}

static status_t write_processor(const char *folder, const json_t *config, const char *image_token) {
    const json_t *vision = json_object_get(config, "vision_config");
    const char *type = json_string_value(json_object_get(vision, "model_type"));
    const char *strategy = json_string_value(json_object_get(config, "vision_feature_select_strategy"));
    bool siglip = type && !strcmp(type, "siglip_vision_model");
    json_int_t side = json_integer_value(json_object_get(vision, "image_size"));
    json_int_t patch = json_integer_value(json_object_get(vision, "patch_size"));
    json_t *points = json_object_get(config, "image_grid_pinpoints");
    if (side < 1 || patch < 1 || !points)
        FAIL(STATUS_INVALID,
             "the vision configuration must name vision_config.image_size, vision_config.patch_size and "
             "image_grid_pinpoints");
    json_t *mean =
        siglip ? json_pack("[f,f,f]", 0.5, 0.5, 0.5) : json_pack("[f,f,f]", 0.48145466, 0.4578275, 0.40821073);
    json_t *deviation =
        siglip ? json_pack("[f,f,f]", 0.5, 0.5, 0.5) : json_pack("[f,f,f]", 0.26862954, 0.26130258, 0.27577711);
    json_t *image = json_pack(
        "{s:s, s:s, s:b, s:b, s:b, s:b, s:b, s:b, s:o, s:o, s:i, s:f, s:{s:I}, s:{s:I, s:I}, s:O}",
        "image_processor_type", "LlavaNextImageProcessor", "processor_class", "LlavaNextProcessor", "do_convert_rgb", 1,
        "do_resize", 1, "do_center_crop", 1, "do_rescale", 1, "do_normalize", 1, "do_pad", 1, "image_mean", mean,
        "image_std", deviation, "resample", 3, "rescale_factor", 1.0 / 255, "size", "shortest_edge", side, "crop_size",
        "height", side, "width", side, "image_grid_pinpoints", points);
    json_t *processor = json_pack("{s:s, s:s, s:I, s:i, s:s}", "processor_class", "LlavaNextProcessor", "image_token",
                                  image_token, "patch_size", patch, "num_additional_image_tokens", siglip ? 0 : 1,
                                  "vision_feature_select_strategy", strategy ? strategy : "default");
    status_t status = write_json(folder, "preprocessor_config.json", image, JSON_INDENT(2));
    if (!status) status = write_json(folder, "processor_config.json", processor, JSON_INDENT(2));
    json_decref(image);
    json_decref(processor);
    return status;
}

status_t compose_write_files(const compose_options_t *options, int rows, const char *folder) {
    json_t *config = NULL, *text = NULL;
    int image_id = -1;
    TRY(place_image_token(folder, options->image_token, &image_id));
    TRY(write_template(folder, options->image_token));
    TRY(read_vision(options->vision, &config));
    status_t status = config_load(folder, "config.json", false, &text);
    if (!status) status = fill_config(config, text, rows, image_id);
    if (!status) status = write_json(folder, "config.json", config, JSON_INDENT(2));
    if (!status) status = write_processor(folder, config, options->image_token);
    json_decref(config);
    json_decref(text);
    return status;
}
