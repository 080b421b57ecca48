#include "rollout/tool.h"

#include "common/model/model_files.h"
#include "common/store/store.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PICTURE_LIMIT = 1 << 30 };

status_t tool_need_rules(tool_t *tool) {
    if (tool->model) return STATUS_OK;
    dtype_t dtype;
    TRY(model_dtype_parse(tool->options->dtype ? tool->options->dtype : "fp32", &dtype));
    return model_open_as(tool->options->model, tool->device, dtype, &tool->model);
}

status_t tool_need_tokenizer(tool_t *tool) {
    return tool->tokenizer ? STATUS_OK : tokenizer_open(tool->options->model, &tool->tokenizer);
}

static status_t open_parts(const tool_options_t *options, bool weights, tool_t *tool) {
    if (!options->model || !*options->model) FAIL(STATUS_INVALID, "no model was named; use --model DIR");
    dtype_t dtype;
    TRY(folder_refuse_gguf(options->model));
    TRY(model_dtype_parse(options->dtype ? options->dtype : "fp32", &dtype));
    TRY(device_open(options->device ? options->device : "cpu", options->threads > 0 ? options->threads : 1,
                    &tool->device));
    if (!weights) return tool_need_tokenizer(tool);
    TRY(tool_need_rules(tool));
    TRY(model_load(tool->model, options->model));
    if (options->adapter && *options->adapter) TRY(model_load_adapter(tool->model, options->adapter));
    tool->loaded = true;
    return STATUS_OK;
}

status_t tool_open(const tool_options_t *options, bool weights, tool_t *out) {
    *out = (tool_t){.options = options};
    status_t status = open_parts(options, weights, out);
    if (status) tool_close(out);
    return status ? status_trace(status, __FILE__, __LINE__, __func__) : STATUS_OK;
}

void tool_close(tool_t *tool) {
    tokenizer_close(tool->tokenizer);
    chat_template_close(tool->chat_template);
    model_close(tool->model);
    device_close(tool->device);
    *tool = (tool_t){0};
}

void tool_item_free_images(tool_item_t *item) {
    for (int i = 0; i < item->image_count; i++) image_patches_free(item->images[i]);
    free(item->images);
    item->images = NULL;
    item->image_count = 0;
}

void tool_item_free(tool_item_t *item) {
    tool_item_free_images(item);
    json_decref(item->id);
    token_list_free(&item->prompt);
    token_list_free(&item->completion);
    *item = (tool_item_t){0};
}

// The file that a picture's path means.
static status_t find_picture(const tool_t *tool, const char *path, char **out) {
    const char *slash = strrchr(tool->options->input, '/');
    if (*path != '/' && slash) {
        size_t folder = (size_t)(slash - tool->options->input) + 1, bytes = folder + strlen(path) + 1;
        TRY(memory_allocate(bytes, 1, (void **)out));
        memcpy(*out, tool->options->input, folder);
        memcpy(*out + folder, path, strlen(path));
        if (access(*out, F_OK) == 0 || access(path, F_OK) != 0) return STATUS_OK;
        free(*out);
    }
    return memory_copy_string(path, out);
}

static status_t read_picture(tool_t *tool, const char *path, image_patches_t **out) {
    char *file, *bytes = NULL;
    size_t size;
    TRY(find_picture(tool, path, &file));
    status_t status = file_read_whole(file, PICTURE_LIMIT, &bytes, &size);
    if (!status) status = image_patches_make(&tool->model->config.image, bytes, size, out);
    if (status) status = status_context(status, "picture %s", file);
    free(file);
    free(bytes);
    return status;
}

static status_t read_pictures(tool_t *tool, const chat_t *chat, tool_item_t *item) {
    if (!chat->images) return STATUS_OK;
    TRY(tool_need_rules(tool));
    if (!tool->model->config.has_vision)
        FAIL(STATUS_INVALID, "the model (%s) takes no pictures", tool->model->config.family);
    TRY(ALLOCATE(&item->images, chat->images));
    for (int i = 0; i < chat->images; i++) {
        TRY(read_picture(tool, chat->image[i], &item->images[i]));
        item->image_count++;
    }
    return STATUS_OK;
}

static status_t encode_chat(tool_t *tool, const json_t *line, bool generation, tool_item_t *item, chat_t *chat,
                            image_shape_t **shapes) {
    TRY(tool_need_tokenizer(tool));
    TRY(chat_read_line(line, json_object_get(line, "messages"), chat));
    if (!tool->chat_template) TRY(chat_template_open(tool->options->model, &tool->chat_template));
    TRY(read_pictures(tool, chat, item));
    TRY(ALLOCATE(shapes, item->image_count));
    for (int i = 0; i < item->image_count; i++) (*shapes)[i] = item->images[i]->shape;
    return chat_encode(tool->chat_template, tool->tokenizer, chat, generation,
                       item->image_count ? &tool->model->config.image : NULL, *shapes, &item->prompt);
}

status_t tool_item_chat(tool_t *tool, const json_t *line, bool generation, tool_item_t *item) {
    chat_t chat = {0};
    image_shape_t *shapes = NULL;
    status_t status = encode_chat(tool, line, generation, item, &chat, &shapes);
    if (!status) chat_tell_dropped(&chat, &tool->told_dropped, stderr);
    chat_free(&chat);
    free(shapes);
    return status;
}

static status_t read_ids(const json_t *line, const char *key, token_list_t *out) {
    const json_t *ids = json_object_get(line, key);
    if (!json_is_array(ids)) FAIL(STATUS_INVALID, "'%s' must be a list of token ids", key);
    size_t count = json_array_size(ids);
    if (count > INT32_MAX / 4) FAIL(STATUS_INVALID, "'%s' is too long", key);
    TRY(memory_grow((void **)&out->id, &out->capacity, count, sizeof(*out->id)));
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value > INT32_MAX) FAIL(STATUS_INVALID, "element %zu of '%s' is no token id", i + 1, key);
        out->id[i] = (int32_t)value;
    }
    out->count = (int)count;
    return STATUS_OK;
}

static status_t read_text(tool_t *tool, const json_t *line, const char *key, token_list_t *out) {
    const json_t *text = json_object_get(line, key);
    if (!json_is_string(text)) FAIL(STATUS_INVALID, "'%s' must be a string", key);
    TRY(tool_need_tokenizer(tool));
    return tokenizer_encode(tool->tokenizer, json_string_value(text), json_string_length(text), true, out);
}

static status_t read_item(tool_t *tool, const json_t *line, bool with_completion, tool_item_t *item) {
    const json_t *messages = json_object_get(line, "messages"), *ids = json_object_get(line, "prompt_ids");
    json_t *id = json_object_get(line, "id");
    if (!id) FAIL(STATUS_INVALID, "the line has no 'id'");
    item->id = json_incref(id);
    if (!messages == !ids) FAIL(STATUS_INVALID, "the line must have either 'messages' or 'prompt_ids'");
    if (messages)
        TRY(tool_item_chat(tool, line, true, item));
    else
        TRY(read_ids(line, "prompt_ids", &item->prompt));
    if (!item->prompt.count) FAIL(STATUS_INVALID, "the prompt is empty");
    if (!with_completion) return STATUS_OK;
    const json_t *text = json_object_get(line, "completion"), *tokens = json_object_get(line, "completion_ids");
    if (!text == !tokens) FAIL(STATUS_INVALID, "the line must have either 'completion' or 'completion_ids'");
    return text ? read_text(tool, line, "completion", &item->completion)
                : read_ids(line, "completion_ids", &item->completion);
}

status_t tool_item_read(tool_t *tool, const json_t *line, bool with_completion, tool_item_t *out) {
    *out = (tool_item_t){0};
    status_t status = read_item(tool, line, with_completion, out);
    if (status) tool_item_free(out);
    return status ? status_trace(status, __FILE__, __LINE__, __func__) : STATUS_OK;
}
