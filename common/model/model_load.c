// Weights in and out.
#include "common/model/model_files.h"

#include <stdlib.h>
#include <string.h>

status_t model_upload_tensor(const model_t *model, const safetensors_tensor_t *tensor, parameter_t *parameter) {
    float *values;
    TRY(ALLOCATE(&values, tensor->elements));
    status_t status = safetensors_read_f32(tensor, values);
    size_t bytes = (size_t)tensor->elements * sizeof(float);
    if (!status) status = model->device->table->upload(model->device, parameter->value.data, values, bytes);
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
        status = model->device->table->upload(model->device, model->parameter[index].value.data, values,
                                              (size_t)tensor->elements * sizeof(float));
    }
    free(stored);
    free(values);
    return status;
}

static bool is_ignored(const model_t *model, const char *name) {
    static const char *const buffers[] = {"inv_freq", ".embeddings.position_ids"};
    const char *const head = "lm_head.weight";
    size_t length = strlen(name), end;
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        end = strlen(buffers[i]);
        if (length >= end && !strcmp(name + length - end, buffers[i])) return true;
    }
    // A tied head may be stored twice.
    end = strlen(head);
    return model->config.tied_embeddings && length >= end && !strcmp(name + length - end, head);
}

static void shape_text(int dimensions, const int64_t *shape, char *out, size_t bytes) {
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (int i = 0; i < dimensions && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < bytes) snprintf(out + used, bytes - used, "]");
}

static status_t load_tensor(model_t *model, const safetensors_tensor_t *tensor, bool *loaded) {
    char name[512], have[256], want[256];
    if (!model->family->map_name(model, tensor->name, name, sizeof(name))) {
        if (is_ignored(model, tensor->name)) return STATUS_OK;
        FAIL(STATUS_INVALID, "the tensor '%.160s' is not part of a %s model with this config.json", tensor->name,
             model->config.family);
    }
    int index = model_find(model, name);
    const parameter_spec_t *spec = &model->spec[index];
    bool same = tensor->dimensions == spec->dimensions;
    for (int i = 0; same && i < spec->dimensions; i++) same = tensor->shape[i] == spec->shape[i];
    if (!same) {
        shape_text(tensor->dimensions, tensor->shape, have, sizeof(have));
        shape_text(spec->dimensions, spec->shape, want, sizeof(want));
        FAIL(STATUS_INVALID, "the tensor '%.160s' has the shape %s, and config.json asks for %s", tensor->name, have,
             want);
    }
    if (loaded[index]) FAIL(STATUS_INVALID, "the tensor '%.160s' is there under two names", tensor->name);
    loaded[index] = true;
    if (spec->transposed) return upload_transposed(model, tensor, index);
    return model_upload_tensor(model, tensor, &model->parameter[index]);
}

static status_t load_all(model_t *model, const safetensors_t *file, bool *loaded) {
    for (int i = 0; i < safetensors_count(file); i++) TRY(load_tensor(model, safetensors_at(file, i), loaded));
    for (int i = 0; i < model->parameter_count; i++)
        if (!loaded[i]) FAIL(STATUS_INVALID, "the tensor '%s' is missing", model->spec[i].name);
    return STATUS_OK;
}

status_t model_load(model_t *model, const char *directory) {
    safetensors_t *file;
    bool *loaded;
    TRY(safetensors_open_folder(directory, &file));
    status_t status = ALLOCATE(&loaded, model->parameter_count);
    if (!status) status = load_all(model, file, loaded);
    free(loaded);
    safetensors_close(file);
    if (status) return status_context(status, "%s", directory);
    return model_parameters_changed(model, NULL, model->version);
}

static status_t download_parameter(void *context, int index, void *buffer, size_t bytes) {
    const model_t *model = context;
    const parameter_spec_t *spec = &model->spec[index];
    const void *data = model->parameter[index].value.data;
    if (!spec->transposed) return model->device->table->download(model->device, buffer, data, bytes);
    float *values;
    TRY(ALLOCATE(&values, spec->elements));
    status_t status = model->device->table->download(model->device, values, data, bytes);
    if (!status) transpose(values, spec->rows, spec->columns, buffer);
    free(values);
    return status;
}

static status_t save_weights(const model_t *model, const char *directory) {
    char path[MODEL_PATH_BYTES];
    safetensors_item_t *items;
    if (snprintf(path, sizeof(path), "%s/model.safetensors", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    TRY(ALLOCATE(&items, model->parameter_count));
    for (int i = 0; i < model->parameter_count; i++)
        items[i] = (safetensors_item_t){.name = model->spec[i].name,
                                        .dtype = DTYPE_F32,
                                        .dimensions = model->spec[i].dimensions,
                                        .shape = model->spec[i].shape};
    status_t status =
        safetensors_write(path, items, model->parameter_count, "pt", download_parameter, (void *)(uintptr_t)model);
    free(items);
    return status;
}

status_t model_save(const model_t *model, const char *from, const char *directory) {
    char temporary[MODEL_PATH_BYTES];
    TRY(folder_begin(directory, temporary));
    status_t status = folder_copy_settings(from, temporary);
    if (!status) status = save_weights(model, temporary);
    if (!status) status = folder_finish(temporary, directory);
    if (status) folder_discard(temporary);
    return status;
}
