// Models: opening, parameters, initialisation, publication. Files are model_load.c's.
#include "common/model/model.h"
#include "common/model/config_reader.h"
#include "common/model/model_families.h"
#include "common/model/model_files.h"
#include "common/model/model_processor.h"
#include "kernels/base/philox.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *model_part_name(model_part_t part) {
    static const char *const names[PART_COUNT] = {"vision", "projector", "language", "head"};
    return part >= 0 && part < PART_COUNT ? names[part] : "unknown";
}

static bool is_packed(const model_t *model, int index) {
    const parameter_spec_t *spec = &model->spec[index];
    // The patch embedding is a linear too, though it carries no adapter.
    return spec->is_linear || spec->transposed || spec->dimensions > 2 || index == model->head;
}

// The bytes that a model takes, as far as they are not taken yet.
static size_t wanted_bytes(const model_t *model) {
    size_t bytes = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const parameter_spec_t *spec = &model->spec[i];
        if (model->parameter[i].value.data) continue;
        dtype_t dtype = spec->dimensions > 1 ? model->dtype : DTYPE_F32;
        matrix_t value = matrix_view(NULL, dtype, spec->rows, spec->columns);
        bytes += (size_t)spec->elements * dtype_bytes(dtype);
        if (is_packed(model, i)) bytes += model->device->table->packed_bytes(model->device, value);
    }
    return bytes;
}

status_t model_allocate(model_t *model) {
    device_t *device = model->device;
    ledger_report_t before;
    ledger_read(device, &before);
    if (before.total) {
        ledger_plan(device, LEDGER_WEIGHTS, (size_t)before.row[LEDGER_WEIGHTS].device + wanted_bytes(model));
        TRY(ledger_check(device));
    }
    for (int i = 0; i < model->parameter_count; i++) {
        if (model->parameter[i].value.data) continue;
        const parameter_spec_t *spec = &model->spec[i];
        void *data;
        dtype_t dtype = spec->dimensions > 1 ? model->dtype : DTYPE_F32;
        status_t status = ledger_take(device, LEDGER_WEIGHTS, (size_t)spec->elements * dtype_bytes(dtype), &data);
        if (status) return status_context(status, "the parameter %s", spec->name);
        model->parameter[i].value = matrix_view(data, dtype, spec->rows, spec->columns);
        size_t packed = is_packed(model, i) ? device->table->packed_bytes(device, model->parameter[i].value) : 0;
        if (packed) status = ledger_take(device, LEDGER_WEIGHTS, packed, &model->parameter[i].packed);
        if (status) return status_context(status, "the packed form of the parameter %s", spec->name);
    }
    ledger_plan(device, LEDGER_WEIGHTS, 0); // all is taken
    return STATUS_OK;
}

static status_t open_config(model_t *model, const char *directory) {
    json_t *json;
    TRY(config_load(directory, "config.json", false, &json));
    const char *type = json_string_value(json_object_get(json, "model_type"));
    status_t status = STATUS_OK;
    if (!type) status = STATUS_NEW(STATUS_INVALID, "config.json has no 'model_type'");
    if (!status) status = model_family_find(type, &model->family);
    if (!status) {
        snprintf(model->config.family, sizeof(model->config.family), "%s", model->family->name);
        status = model->family->read_config(json, &model->config);
    }
    json_decref(json);
    if (!status) status = model_read_processor(directory, &model->config);
    return status;
}

status_t model_open(const char *directory, device_t *device, model_t **out) {
    return model_open_as(directory, device, DTYPE_F32, out);
}

status_t model_open_as(const char *directory, device_t *device, dtype_t dtype, model_t **out) {
    model_t *model;
    *out = NULL;
    TRY(folder_refuse_gguf(directory));
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        FAIL(STATUS_INVALID, "a model cannot compute in %s; use f32 or bf16", dtype_name(dtype));
    TRY(ALLOCATE(&model, 1));
    model->device = device;
    model->dtype = dtype;
    status_t status = open_config(model, directory);
    if (!status) status = model->family->add_parameters(model);
    if (status) {
        model_close(model);
        return status_context(status, "%s", directory);
    }
    *out = model;
    return STATUS_OK;
}

static void close_adapter(device_t *device, adapter_t *adapter) {
    if (!adapter) return;
    ledger_give(device, adapter->a.value.data);
    ledger_give(device, adapter->b.value.data);
    free(adapter);
}

void model_close(model_t *model) {
    if (!model) return;
    device_t *device = model->device;
    for (int i = 0; i < model->parameter_count; i++) {
        ledger_give(device, model->parameter[i].value.data);
        ledger_give(device, model->parameter[i].packed);
        close_adapter(device, model->adapter[i]);
        free(model->spec[i].name);
    }
    if (model->family && model->family->free_config) model->family->free_config(&model->config);
    free(model->spec);
    free(model->parameter);
    free(model->adapter);
    free(model);
}

static status_t grow_parameters(model_t *model) {
    size_t needed = (size_t)model->parameter_count + 1;
    if (needed <= model->parameter_capacity) return STATUS_OK;
    size_t capacity[3] = {model->parameter_capacity, model->parameter_capacity, model->parameter_capacity};
    TRY(memory_grow((void **)&model->spec, &capacity[0], needed, sizeof(*model->spec)));
    TRY(memory_grow((void **)&model->parameter, &capacity[1], needed, sizeof(*model->parameter)));
    TRY(memory_grow((void **)&model->adapter, &capacity[2], needed, sizeof(void *)));
    model->parameter_capacity = capacity[0];
    return STATUS_OK;
}

status_t model_add_parameter(model_t *model, model_part_t part, bool is_linear, int dimensions, const int64_t *shape,
                             const char *format, ...) {
    char name[192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof(name), format, arguments);
    va_end(arguments);
    parameter_spec_t spec = {.part = part, .dimensions = dimensions, .is_linear = is_linear, .elements = 1};
    if (dimensions < 1 || dimensions > MODEL_MAX_DIMENSIONS)
        FAIL(STATUS_INVALID, "the parameter %s has %d dimensions", name, dimensions);
    for (int i = 0; i < dimensions; i++) {
        spec.shape[i] = shape[i];
        if (shape[i] < 1 || spec.elements > ((int64_t)1 << 40) / shape[i])
            FAIL(STATUS_INVALID, "the parameter %s is too large", name);
        spec.elements *= shape[i];
    }
    int64_t rows = dimensions == 1 ? 1 : shape[0], columns = spec.elements / rows;
    if (rows > INT32_MAX || columns > INT32_MAX) FAIL(STATUS_INVALID, "the parameter %s is too large", name);
    spec.rows = (int)rows;
    spec.columns = (int)columns;
    TRY(grow_parameters(model));
    TRY(memory_copy_string(name, &spec.name));
    int at = model->parameter_count++;
    model->spec[at] = spec;
    model->parameter[at] = (parameter_t){0};
    model->adapter[at] = NULL;
    return STATUS_OK;
}

void model_transpose_last(model_t *model) {
    parameter_spec_t *spec = &model->spec[model->parameter_count - 1];
    int rows = spec->rows;
    spec->rows = spec->columns;
    spec->columns = rows;
    spec->transposed = true;
}

bool model_takes_token(const model_config_t *config, int32_t token) {
    bool is_image = config->has_vision && token == config->image.image_token;
    return token >= 0 && (token < config->vocabulary || is_image);
}

int32_t model_row_of_token(const model_config_t *config, int32_t token) {
    return token < config->vocabulary ? token : 0;
}

int model_find(const model_t *model, const char *name) {
    for (int i = 0; i < model->parameter_count; i++)
        if (!strcmp(model->spec[i].name, name)) return i;
    return -1;
}

bool model_map_prefix(const model_t *model, const char *const (*prefixes)[2], int count, const char *name, char *out,
                      size_t bytes) {
    for (int i = 0; i < count; i++) {
        size_t length = strlen(prefixes[i][0]);
        if (strncmp(name, prefixes[i][0], length) != 0) continue;
        int written = snprintf(out, bytes, "%s%s", prefixes[i][1], name + length);
        if (written > 0 && (size_t)written < bytes && model_find(model, out) >= 0) return true;
    }
    return false;
}

void model_count(const model_t *model, model_part_t part, int64_t *trainable, int64_t *total) {
    *trainable = *total = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        if (model->spec[i].part != part) continue;
        *total += model->spec[i].elements;
        if (model->parameter[i].sink.sum) *trainable += model->spec[i].elements;
        const adapter_t *adapter = model->adapter[i];
        for (int side = 0; adapter && side < 2; side++) {
            const parameter_t *p = side ? &adapter->b : &adapter->a;
            int64_t elements = (int64_t)p->value.rows * p->value.columns;
            *total += elements;
            if (p->sink.sum) *trainable += elements;
        }
    }
}

const parameter_t *model_head(const model_t *model) {
    return &model->parameter[model->head];
}

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

status_t model_initialise(model_t *model, uint64_t seed, float std) {
    TRY(model_allocate(model));
    for (int i = 0; i < model->parameter_count; i++) {
        const parameter_spec_t *spec = &model->spec[i];
        float *values;
        TRY(ALLOCATE(&values, spec->elements));
        // A norm starts as one that changes nothing. Towers have norms of their own kind; their projectors' are the
        // text's.
        bool offset = spec->part != PART_VISION && model->config.decoder.norm == NORM_ONE_PLUS_WEIGHT;
        bool zero = offset || ends_with(spec->name, "bias");
        bool row = ends_with(spec->name, "image_newline") || ends_with(spec->name, "class_embedding");
        for (int64_t e = 0; e < spec->elements; e++) {
            if (spec->dimensions == 1 && !row)
                values[e] = zero ? 0.0F : 1.0F;
            else
                values[e] = std * philox_normal(seed, PHILOX_INIT, (uint64_t)e, (uint32_t)i, 0);
        }
        status_t status = model_write_values(model, &model->parameter[i], 0, spec->elements, values);
        free(values);
        TRY(status);
    }
    return model_parameters_changed(model, NULL, 0);
}

status_t model_parameters_changed(model_t *model, const bool *changed, int64_t version) {
    device_t *device = model->device;
    bool sees_vision = !changed;
    for (int i = 0; i < model->parameter_count; i++) {
        if (changed && !changed[i]) continue;
        parameter_t *parameter = &model->parameter[i];
        model_part_t part = model->spec[i].part;
        sees_vision = sees_vision || part == PART_VISION || part == PART_PROJECTOR;
        if (parameter->packed) TRY(device->table->pack_weight(device, parameter->value, parameter->packed));
    }
    model->version = version;
    if (sees_vision) model->vision_version++;
    return STATUS_OK;
}

static void name_trained(trained_tensor_t *out, const char *name, const char *side, parameter_t *parameter,
                         model_part_t part) {
    *out = (trained_tensor_t){.parameter = parameter, .part = part};
    out->elements = (int64_t)parameter->value.rows * parameter->value.columns;
    size_t stem = strlen(name);
    if (!side) {
        snprintf(out->name, sizeof(out->name), "%s", name);
        return;
    }
    if (ends_with(name, ".weight")) stem -= strlen(".weight");
    snprintf(out->name, sizeof(out->name), "base_model.model.%.*s.%s.weight", (int)stem, name, side);
}

status_t model_trained_tensors(model_t *model, trained_tensor_t **out, int *count) {
    trained_tensor_t *list;
    *out = NULL;
    *count = 0;
    TRY(ALLOCATE(&list, 3 * (size_t)model->parameter_count));
    int n = 0;
    for (int i = 0; i < model->parameter_count; i++)
        if (model->parameter[i].sink.sum)
            name_trained(&list[n++], model->spec[i].name, NULL, &model->parameter[i], model->spec[i].part);
    for (int i = 0; i < model->parameter_count; i++) {
        adapter_t *adapter = model->adapter[i];
        if (!adapter) continue;
        if (adapter->a.sink.sum)
            name_trained(&list[n++], model->spec[i].name, "lora_A", &adapter->a, model->spec[i].part);
        if (adapter->b.sink.sum)
            name_trained(&list[n++], model->spec[i].name, "lora_B", &adapter->b, model->spec[i].part);
    }
    *out = list;
    *count = n;
    return STATUS_OK;
}
