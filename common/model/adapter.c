// LoRA adapters beside linears, and PEFT folders.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/config_reader.h"
#include "common/model/model_files.h"
#include "kernels/base/philox.h"

#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4096, MAX_PATTERNS = 256 };

// A parameter's module: its name without ".weight".
static size_t module_length(const parameter_spec_t *spec) {
    size_t length = strlen(spec->name), end = strlen(".weight");
    return length > end && !strcmp(spec->name + length - end, ".weight") ? length - end : length;
}

static status_t compile_pattern(const char *pattern, pcre2_code **out) {
    // PEFT: the whole name, or a part of it that follows a dot, up to the end.
    char text[1024], message[256];
    if (snprintf(text, sizeof(text), "^(?:.*\\.)?(?:%s)$", pattern) >= (int)sizeof(text))
        FAIL(STATUS_INVALID, "the module pattern '%.64s...' is too long", pattern);
    int error;
    PCRE2_SIZE offset;
    *out = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_NO_AUTO_CAPTURE, &error, &offset, NULL);
    if (*out) return STATUS_OK;
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
    FAIL(STATUS_INVALID, "the module pattern '%s' is not a regular expression: %s", pattern, message);
}

// Marks the linears that a pattern matches.
static status_t match_pattern(const model_t *model, const char *pattern, bool *marked) {
    pcre2_code *code;
    TRY(compile_pattern(pattern, &code));
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    int found = 0;
    for (int i = 0; match && i < model->parameter_count; i++) {
        const parameter_spec_t *spec = &model->spec[i];
        if (!spec->is_linear) continue;
        if (pcre2_match(code, (PCRE2_SPTR)spec->name, module_length(spec), 0, 0, match, NULL) < 0) continue;
        marked[i] = true;
        found++;
    }
    pcre2_match_data_free(match);
    pcre2_code_free(code);
    if (!match) FAIL(STATUS_MEMORY, "out of memory while matching module names");
    if (!found)
        FAIL(STATUS_INVALID, "the module pattern '%s' matches no linear layer of this model (for example '%s' would)",
             pattern, "q_proj");
    return STATUS_OK;
}

static status_t allocate_side(const model_t *model, parameter_t *side, int rows, int columns) {
    void *data;
    size_t bytes = (size_t)rows * (size_t)columns * sizeof(float);
    TRY(model->device->table->allocate(model->device, bytes, &data));
    side->value = matrix_view(data, DTYPE_F32, rows, columns);
    return STATUS_OK;
}

static status_t fill_a(const model_t *model, int index, adapter_t *adapter, uint64_t seed) {
    int64_t count = (int64_t)adapter->a.value.rows * adapter->a.value.columns;
    float *values, std = 1.0F / (float)adapter->a.value.rows;
    TRY(ALLOCATE(&values, count));
    for (int64_t e = 0; e < count; e++)
        values[e] = std * philox_normal(seed, PHILOX_INIT, (uint64_t)e, (uint32_t)index, 1);
    status_t status =
        model->device->table->upload(model->device, adapter->a.value.data, values, (size_t)count * sizeof(float));
    free(values);
    return status;
}

static status_t add_adapter(model_t *model, int index, int rank, float scale) {
    const parameter_spec_t *spec = &model->spec[index];
    TRY(ALLOCATE(&model->adapter[index], 1));
    model->adapter[index]->scale = scale;
    TRY(allocate_side(model, &model->adapter[index]->a, rank, spec->columns));
    return allocate_side(model, &model->adapter[index]->b, spec->rows, rank);
}

static status_t add_marked(model_t *model, const char *const *patterns, int pattern_count, int rank, float scale,
                           bool *marked) {
    for (int i = 0; i < pattern_count; i++) TRY(match_pattern(model, patterns[i], marked));
    for (int i = 0; i < model->parameter_count; i++)
        if (marked[i]) TRY(add_adapter(model, i, rank, scale));
    return STATUS_OK;
}

static status_t add_adapters(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                             float scale) {
    if (model->adapter_rank) FAIL(STATUS_INVALID, "the model has adapters already");
    if (rank < 1 || rank > MAX_RANK) FAIL(STATUS_INVALID, "the adapter rank must be 1 to %d, not %d", MAX_RANK, rank);
    if (!(alpha > 0) || !isfinite(alpha))
        FAIL(STATUS_INVALID, "the adapter's alpha must be above 0, not %g", (double)alpha);
    if (pattern_count < 1) FAIL(STATUS_INVALID, "adapters need one module pattern or more, such as 'q_proj'");
    bool *marked;
    TRY(ALLOCATE(&marked, model->parameter_count));
    status_t status = add_marked(model, patterns, pattern_count, rank, scale, marked);
    free(marked);
    if (status) return status_trace(status, __FILE__, __LINE__, __func__);
    model->adapter_rank = rank;
    model->adapter_alpha = alpha;
    return STATUS_OK;
}

status_t model_add_adapters(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                            uint64_t seed) {
    TRY(add_adapters(model, patterns, pattern_count, rank, alpha, alpha / (float)rank));
    for (int i = 0; i < model->parameter_count; i++)
        if (model->adapter[i]) TRY(fill_a(model, i, model->adapter[i], seed));
    model->vision_version++;
    return STATUS_OK;
}

// One side of one adapter, from its PEFT name; tells which it filled.
static status_t load_side(model_t *model, const safetensors_tensor_t *tensor, int *filled) {
    static const char prefix[] = "base_model.model.";
    static const char *const ends[2][2] = {{".lora_A.weight", ".lora_A.default.weight"},
                                           {".lora_B.weight", ".lora_B.default.weight"}};
    char name[512], mapped[512];
    size_t length = strlen(tensor->name);
    for (int i = 0; i < 4; i++) {
        const char *end = ends[i / 2][i % 2];
        size_t stem = length - strlen(end);
        if (length < strlen(end) + strlen(prefix) || strcmp(tensor->name + stem, end)) continue;
        if (strncmp(tensor->name, prefix, strlen(prefix))) break;
        int module = (int)(stem - strlen(prefix));
        if (snprintf(name, sizeof(name), "%.*s.weight", module, tensor->name + strlen(prefix)) >= (int)sizeof(name))
            break;
        if (!model->family->map_name(model, name, mapped, sizeof(mapped))) break;
        int index = model_find(model, mapped);
        if (!model->adapter[index]) break;
        parameter_t *side = i / 2 ? &model->adapter[index]->b : &model->adapter[index]->a;
        if (tensor->dimensions != 2 || tensor->shape[0] != side->value.rows || tensor->shape[1] != side->value.columns)
            FAIL(STATUS_INVALID, "the adapter tensor '%.160s' does not have the shape [%d, %d]", tensor->name,
                 side->value.rows, side->value.columns);
        filled[index] |= 1 << (i / 2);
        return model_upload_tensor(model, tensor, side);
    }
    FAIL(STATUS_INVALID, "the adapter tensor '%.160s' fits no adapted layer of this model", tensor->name);
}

static status_t load_sides(model_t *model, const char *directory, int *filled) {
    char path[MODEL_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/adapter_model.safetensors", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    safetensors_t *file;
    TRY(safetensors_open(path, &file));
    status_t status = STATUS_OK;
    for (int i = 0; i < safetensors_count(file) && !status; i++)
        status = load_side(model, safetensors_at(file, i), filled);
    safetensors_close(file);
    for (int i = 0; i < model->parameter_count && !status; i++)
        if (model->adapter[i] && filled[i] != 3)
            status = STATUS_NEW(STATUS_INVALID, "%s lacks the adapter of %s", path, model->spec[i].name);
    return status;
}

typedef struct peft_config {
    char *patterns[MAX_PATTERNS];
    int pattern_count, rank;
    double alpha;
    bool rank_stabilised;
} peft_config_t;

static status_t read_targets(config_reader_t *reader, peft_config_t *out) {
    const json_t *targets = config_get(reader, "target_modules");
    if (json_is_string(targets)) {
        // One string is a regular expression for the whole name.
        out->pattern_count = 1;
        return memory_copy_string(json_string_value(targets), &out->patterns[0]);
    }
    size_t count = json_array_size(targets);
    if (!count || count > MAX_PATTERNS)
        FAIL(STATUS_INVALID, "adapter_config.json: 'target_modules' must be a list of 1 to %d names", MAX_PATTERNS);
    for (size_t i = 0; i < count; i++) {
        const char *text = json_string_value(json_array_get(targets, i));
        if (!text) FAIL(STATUS_INVALID, "adapter_config.json: 'target_modules' must hold names");
        // Names are literal here: a dot is a dot.
        char quoted[1024];
        if (snprintf(quoted, sizeof(quoted), "\\Q%s\\E", text) >= (int)sizeof(quoted) || strstr(text, "\\E"))
            FAIL(STATUS_INVALID, "adapter_config.json: '%.64s' is not the name of a module", text);
        TRY(memory_copy_string(quoted, &out->patterns[out->pattern_count]));
        out->pattern_count++;
    }
    return STATUS_OK;
}

static status_t read_peft(const json_t *json, peft_config_t *out) {
    static const char *const lora[] = {"LORA", NULL}, *const none[] = {"none", NULL};
    config_reader_t reader = config_reader(json, "adapter_config.json");
    bool dora = false, fan = false;
    out->rank = 8;
    out->alpha = 8;
    TRY(config_choice(&reader, "peft_type", lora));
    TRY(config_choice(&reader, "bias", none));
    TRY(config_integer(&reader, "r", 1, MAX_RANK, &out->rank));
    TRY(config_number(&reader, "lora_alpha", 1e-9, 1e9, &out->alpha));
    TRY(config_boolean(&reader, "use_rslora", &out->rank_stabilised));
    TRY(config_boolean(&reader, "use_dora", &dora));
    TRY(config_boolean(&reader, "fan_in_fan_out", &fan));
    const json_t *ranks = config_get(&reader, "rank_pattern"), *alphas = config_get(&reader, "alpha_pattern");
    const json_t *saved = config_get(&reader, "modules_to_save");
    if (dora || fan || json_object_size(ranks) || json_object_size(alphas) || json_array_size(saved))
        FAIL(STATUS_INVALID, "adapter_config.json: use_dora, fan_in_fan_out, rank_pattern, alpha_pattern and "
                             "modules_to_save are not supported");
    return read_targets(&reader, out);
}

status_t model_load_adapter(model_t *model, const char *directory) {
    json_t *json;
    peft_config_t config = {0};
    TRY(config_load(directory, "adapter_config.json", false, &json));
    status_t status = read_peft(json, &config);
    json_decref(json);
    double scale = config.alpha / (config.rank_stabilised ? sqrt((double)config.rank) : (double)config.rank);
    if (!status)
        status = add_adapters(model, (const char *const *)config.patterns, config.pattern_count, config.rank,
                              (float)config.alpha, (float)scale);
    for (int i = 0; i < config.pattern_count; i++) free(config.patterns[i]);
    int *filled = NULL;
    if (!status) status = ALLOCATE(&filled, model->parameter_count);
    if (!status) status = load_sides(model, directory, filled);
    free(filled);
    if (status) return status_context(status, "%s", directory);
    model->vision_version++;
    return STATUS_OK;
}

typedef struct adapter_file {
    const model_t *model;
    const parameter_t **side;
} adapter_file_t;

static status_t download_side(void *context, int index, void *buffer, size_t bytes) {
    const adapter_file_t *file = context;
    const device_t *device = file->model->device;
    return device->table->download((device_t *)(uintptr_t)device, buffer, file->side[index]->value.data, bytes);
}

static status_t save_sides(const model_t *model, const char *directory) {
    typedef struct entry {
        char name[256];
        int64_t shape[2];
    } entry_t;
    char path[MODEL_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/adapter_model.safetensors", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    entry_t *entries = NULL;
    safetensors_item_t *items = NULL;
    adapter_file_t file = {.model = model};
    int count = 0;
    status_t status = ALLOCATE(&entries, 2 * (size_t)model->parameter_count);
    if (!status) status = ALLOCATE(&items, 2 * (size_t)model->parameter_count);
    if (!status) status = ALLOCATE(&file.side, 2 * (size_t)model->parameter_count);
    for (int i = 0; i < 2 * model->parameter_count && !status; i++) {
        const adapter_t *adapter = model->adapter[i / 2];
        if (!adapter) continue;
        const parameter_t *side = i % 2 ? &adapter->b : &adapter->a;
        entry_t *entry = &entries[count];
        snprintf(entry->name, sizeof(entry->name), "base_model.model.%.*s.lora_%c.weight",
                 (int)module_length(&model->spec[i / 2]), model->spec[i / 2].name, i % 2 ? 'B' : 'A');
        entry->shape[0] = side->value.rows;
        entry->shape[1] = side->value.columns;
        items[count] =
            (safetensors_item_t){.name = entry->name, .dtype = DTYPE_F32, .dimensions = 2, .shape = entry->shape};
        file.side[count++] = side;
    }
    if (!status) status = safetensors_write(path, items, count, "pt", download_side, &file);
    free(entries);
    free(items);
    free((void *)file.side);
    return status;
}

static status_t save_peft_config(const model_t *model, const char *base, const char *directory) {
    json_t *targets = json_array();
    float scale = 1;
    for (int i = 0; i < model->parameter_count; i++) {
        if (!model->adapter[i]) continue;
        scale = model->adapter[i]->scale;
        json_array_append_new(targets, json_stringn(model->spec[i].name, module_length(&model->spec[i])));
    }
    int rank = model->adapter_rank;
    bool stabilised = rank > 1 && scale != model->adapter_alpha / (float)rank;
    json_t *json = json_pack("{s:s,s:s,s:i,s:f,s:f,s:s,s:b,s:b,s:b,s:o}", "peft_type", "LORA",
                             "base_model_name_or_path", base ? base : "", "r", rank, "lora_alpha",
                             (double)model->adapter_alpha, "lora_dropout", 0.0, "bias", "none", "use_rslora",
                             stabilised, "fan_in_fan_out", 0, "inference_mode", 1, "target_modules", targets);
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(json);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing adapter_config.json");
    status_t status = folder_write_text(directory, "adapter_config.json", text);
    free(text);
    return status;
}

status_t model_save_adapter(const model_t *model, const char *base, const char *directory) {
    char temporary[MODEL_PATH_BYTES];
    if (!model->adapter_rank) FAIL(STATUS_INVALID, "the model has no adapters to save");
    TRY(folder_begin(directory, temporary));
    status_t status = save_sides(model, temporary);
    if (!status) status = save_peft_config(model, base, temporary);
    if (!status) status = folder_finish(temporary, directory);
    if (status) folder_discard(temporary);
    return status;
}
