// Weights in and out.
#include "common/model/config_reader.h"
#include "common/model/model_files.h"

#include <stdlib.h>
#include <string.h>

status_t model_upload_tensor(const model_t *model, const safetensors_tensor_t *tensor, parameter_t *parameter) {
    float *values;
    TRY(ALLOCATE(&values, tensor->elements));
    status_t status = safetensors_read_f32(tensor, values);
    if (!status) status = model_write_values(model, parameter, 0, tensor->elements, values);
    free(values);
    return status;
}

// [rows, columns] -> [columns, rows].
static void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) to[column * rows + row] = from[row * columns + column];
}

static status_t upload_transposed(const model_t *model, const safetensors_tensor_t *tensor, int index) {
    const parameter_spec_t *spec = &model->spec[index];
    float *stored, *values = NULL;
    TRY(ALLOCATE(&stored, tensor->elements));
    status_t status = safetensors_read_f32(tensor, stored);
    if (!status) status = ALLOCATE(&values, tensor->elements);
    if (!status) {
        transpose(stored, spec->columns, spec->rows, values);
        status = model_write_values(model, &model->parameter[index], 0, tensor->elements, values);
    }
    free(stored);
    free(values);
    return status;
}

static status_t load_tensor(const model_t *model, const safetensors_tensor_t *tensor, int index) {
    if (model->spec[index].transposed) return upload_transposed(model, tensor, index);
    return model_upload_tensor(model, tensor, &model->parameter[index]);
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

static bool is_tied_head(const model_t *model, const char *name) {
    return model->config.tied_embeddings && ends_with(name, "lm_head.weight");
}

static bool is_ignored(const model_t *model, const char *name) {
    return ends_with(name, "inv_freq") || ends_with(name, ".embeddings.position_ids") || is_tied_head(model, name);
}

static void shape_text(int dimensions, const int64_t *shape, char *out, size_t bytes) {
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (int i = 0; i < dimensions && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < bytes) snprintf(out + used, bytes - used, "]");
}

static bool is_shaped(const safetensors_tensor_t *tensor, const parameter_spec_t *spec) {
    bool same = tensor->dimensions == spec->dimensions;
    for (int i = 0; same && i < spec->dimensions; i++) same = tensor->shape[i] == spec->shape[i];
    return same;
}

// What a file's tensor is to the model: the number of its parameter, or -1 when it is to be passed over.
static status_t match_tensor(const model_t *model, const safetensors_tensor_t *tensor, int *index) {
    char name[512], have[256], want[256];
    *index = -1;
    if (!model->family->map_name(model, tensor->name, name, sizeof(name))) {
        if (is_ignored(model, tensor->name)) return STATUS_OK;
        FAIL(STATUS_INVALID, "the tensor '%.160s' is not part of a %s model with this config.json", tensor->name,
             model->config.family);
    }
    *index = model_find(model, name);
    const parameter_spec_t *spec = &model->spec[*index];
    bool same = is_shaped(tensor, spec);
    if (same && (tensor->dtype == DTYPE_F32 || tensor->dtype == DTYPE_BF16 || tensor->dtype == DTYPE_F16))
        return STATUS_OK;
    if (same)
        FAIL(STATUS_INVALID, "the tensor '%.160s' is %s, not floating point", tensor->name, dtype_name(tensor->dtype));
    shape_text(tensor->dimensions, tensor->shape, have, sizeof(have));
    shape_text(spec->dimensions, spec->shape, want, sizeof(want));
    FAIL(STATUS_INVALID, "the tensor '%.160s' has the shape %s, and config.json asks for %s", tensor->name, have, want);
}

static status_t same_values(const safetensors_tensor_t *left, const safetensors_tensor_t *right, bool *out) {
    float *values[2] = {NULL, NULL};
    *out = left->dtype == right->dtype && left->bytes == right->bytes && !memcmp(left->data, right->data, left->bytes);
    if (*out || left->elements != right->elements) return STATUS_OK;
    status_t status = ALLOCATE(&values[0], left->elements);
    if (!status) status = ALLOCATE(&values[1], right->elements);
    if (!status) status = safetensors_read_f32(left, values[0]);
    if (!status) status = safetensors_read_f32(right, values[1]);
    // -0 and 0 are the same weight.
    bool same = !status;
    for (int64_t i = 0; same && i < left->elements; i++) same = values[0][i] == values[1][i];
    *out = same;
    free(values[0]);
    free(values[1]);
    return status;
}

// A tied head may be stored instead of the embedding, or beside it with the same values. transformers does not tie
// what is stored with others, whatever config.json says.
static status_t match_tied_head(const model_t *model, const safetensors_t *file, int *place, bool *there) {
    const safetensors_tensor_t *head = NULL, *table = NULL;
    int at = 0;
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        if (place[i] < 0 && is_tied_head(model, tensor->name)) head = tensor, at = i;
        if (place[i] == model->embedding) table = tensor;
    }
    if (!head) return STATUS_OK;
    if (!table && is_shaped(head, &model->spec[model->embedding])) {
        place[at] = model->embedding;
        there[model->embedding] = true;
        return STATUS_OK;
    }
    bool same = !table;
    if (table) TRY(same_values(head, table, &same));
    if (!same)
        FAIL(STATUS_INVALID,
             "'tie_word_embeddings' says that '%.160s' is the embedding, but the files hold it with other values; set "
             "it to false in config.json to use both",
             head->name);
    return STATUS_OK;
}

// place [tensors of the file]: the number of each one's parameter, or -1. Every parameter is there exactly once.
static status_t match_all(const model_t *model, const safetensors_t *file, int *place, bool *there) {
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        TRY(match_tensor(model, tensor, &place[i]));
        if (place[i] < 0) continue;
        if (there[place[i]]) FAIL(STATUS_INVALID, "the tensor '%.160s' is there under two names", tensor->name);
        there[place[i]] = true;
    }
    if (model->config.tied_embeddings) TRY(match_tied_head(model, file, place, there));
    for (int i = 0; i < model->parameter_count; i++) {
        if (there[i]) continue;
        if (i == model->head && i != model->embedding)
            FAIL(STATUS_INVALID,
                 "the tensor '%s' is missing; if the model's head is its embedding, set 'tie_word_embeddings' to true "
                 "in "
                 "config.json",
                 model->spec[i].name);
        FAIL(STATUS_INVALID, "the tensor '%s' is missing", model->spec[i].name);
    }
    return STATUS_OK;
}

// Opens the folder's files and finds each tensor's parameter.
static status_t open_weights(const model_t *model, const char *directory, safetensors_t **file, int **place) {
    bool *there = NULL;
    *place = NULL;
    TRY(safetensors_open_folder(directory, file));
    status_t status = ALLOCATE(place, safetensors_count(*file));
    if (!status) status = ALLOCATE(&there, model->parameter_count);
    if (!status) status = match_all(model, *file, *place, there);
    free(there);
    if (!status) return STATUS_OK;
    free(*place);
    safetensors_close(*file);
    *file = NULL;
    return status;
}

status_t model_check_weights(const model_t *model, const char *directory) {
    safetensors_t *file;
    int *place;
    status_t status = open_weights(model, directory, &file, &place);
    if (status) return status_context(status, "%s", directory);
    free(place);
    safetensors_close(file);
    return STATUS_OK;
}

status_t model_load(model_t *model, const char *directory) {
    safetensors_t *file;
    int *place;
    // Before anything is allocated: config.json may ask for more than the files hold.
    status_t status = open_weights(model, directory, &file, &place);
    if (status) return status_context(status, "%s", directory);
    status = model_allocate(model);
    for (int i = 0; !status && i < safetensors_count(file); i++)
        if (place[i] >= 0) status = load_tensor(model, safetensors_at(file, i), place[i]);
    free(place);
    safetensors_close(file);
    if (status) return status_context(status, "%s", directory);
    return model_parameters_changed(model, NULL, model->version);
}

// One parameter as its file shall hold it: in the checkpoint's orientation and the model's dtype.
static status_t download_parameter(void *context, int index, void *buffer, size_t bytes) {
    const model_t *model = context;
    const parameter_spec_t *spec = &model->spec[index];
    const parameter_t *parameter = &model->parameter[index];
    if (!spec->transposed && model->dtype == parameter->value.dtype)
        return model->device->table->download(model->device, buffer, parameter->value.data, bytes);
    float *values, *turned = NULL;
    TRY(ALLOCATE(&values, spec->elements));
    status_t status = model_read_values(model, parameter, 0, spec->elements, values);
    if (!status && spec->transposed) status = ALLOCATE(&turned, spec->elements);
    if (!status && spec->transposed) transpose(values, spec->rows, spec->columns, turned);
    const float *from = turned ? turned : values;
    if (!status && model->dtype == DTYPE_F32) memcpy(buffer, from, bytes);
    // What a bf16 model holds is rounded already, in vectors too.
    for (int64_t i = 0; i < spec->elements && !status && model->dtype == DTYPE_BF16; i++)
        ((uint16_t *)buffer)[i] = bf16_round(from[i]);
    free(turned);
    free(values);
    return status;
}

static status_t save_weights(const model_t *model, const char *directory) {
    safetensors_item_t *items;
    TRY(ALLOCATE(&items, model->parameter_count));
    for (int i = 0; i < model->parameter_count; i++)
        items[i] = (safetensors_item_t){.name = model->spec[i].name,
                                        .dtype = model->dtype,
                                        .dimensions = model->spec[i].dimensions,
                                        .shape = model->spec[i].shape};
    status_t status = safetensors_write_folder(directory, items, model->parameter_count, "pt", download_parameter,
                                               (void *)(uintptr_t)model, SAFETENSORS_SHARD_BYTES);
    free(items);
    return status;
}

// Sets the keys that tell the weights' type, where they are there. Returns whether one changed.
static bool set_dtype(json_t *object, const char *dtype) {
    static const char *const keys[] = {"dtype", "torch_dtype"};
    bool changed = false;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const char *value = json_string_value(json_object_get(object, keys[i]));
        if (!value || !strcmp(value, dtype)) continue;
        json_object_set_new(object, keys[i], json_string(dtype));
        changed = true;
    }
    const char *key;
    json_t *part;
    json_object_foreach(object, key, part) {
        size_t length = strlen(key), end = strlen("_config");
        if (length > end && !strcmp(key + length - end, "_config") && json_is_object(part))
            changed = set_dtype(part, dtype) || changed;
    }
    return changed;
}

// transformers rounds weights to the type that config.json tells: a file of f32 must not say that it is bf16.
static status_t save_dtype(const char *directory, dtype_t dtype) {
    json_t *json;
    TRY(config_load(directory, "config.json", false, &json));
    bool changed = set_dtype(json, dtype == DTYPE_BF16 ? "bfloat16" : "float32");
    char *text = changed ? json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(json);
    if (!changed) return STATUS_OK;
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing config.json");
    status_t status = folder_write_text(directory, "config.json", text);
    free(text);
    return status;
}

status_t model_save(const model_t *model, const char *from, const char *directory) {
    char temporary[MODEL_PATH_BYTES];
    TRY(folder_begin(directory, temporary));
    status_t status = folder_copy_settings(from, temporary);
    if (!status) status = save_dtype(temporary, model->dtype);
    if (!status) status = save_weights(model, temporary);
    if (!status) status = folder_finish(temporary, directory);
    if (status) folder_discard(temporary);
    return status;
}
