// PEFT folders: adapter_config.json and adapter_model.safetensors.
//
// Which layers are adapted is read from the tensors; the configuration gives scales, and must agree about ranks.
#include "common/model/adapter.h"
#include "common/model/config_reader.h"
#include "common/model/model_files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static const char prefix[] = "base_model.model.";

typedef struct peft_config {
    const json_t *ranks, *alphas; // by module pattern; may be NULL
    int rank;
    double alpha;
    bool rank_stabilised;
    adapter_target_t target;
} peft_config_t;

// ---- reading ----

// What changes the forward in ways that are not built: refused when set. `what` tells why.
static const struct {
    const char *key, *what;
} refused_keys[] = {
    {"use_dora", "DoRA is not supported"},
    {"fan_in_fan_out", "it is of models whose linears are transposed"},
    {"lora_bias", "a bias of B is not supported"},
    {"modules_to_save", "modules that were trained whole are not supported; merge them into the model with PEFT"},
    {"trainable_token_indices", "trained rows of the embedding are not supported"},
    {"target_parameters", "adapters of bare parameters are not supported"},
    {"layer_replication", "repeated layers are not supported"},
    {"alora_invocation_tokens", "activated LoRA is not supported"},
    {"use_qalora", "QALoRA is not supported"},
    {"use_bdlora", "block-diagonal LoRA is not supported"},
    {"velora_config", "VeLoRA is not supported"},
    {"monteclora_config", "MonteCLoRA is not supported"},
    {"kasa_config", "KaSA is not supported"},
    {"arrow_config", "Arrow routing is not supported"},
};

static bool is_set(const json_t *value) {
    if (json_is_array(value)) return json_array_size(value);
    if (json_is_object(value)) return json_object_size(value);
    return value && !json_is_false(value);
}

// Some ways to start an adapter change the weights beside it, too, and those are not in the folder.
static status_t check_start(config_reader_t *reader) {
    static const char *const changing[] = {"pissa", "corda", "olora", "loftq", "lora_ga", "mica"};
    const char *start = json_string_value(config_get(reader, "init_lora_weights"));
    for (size_t i = 0; start && i < sizeof(changing) / sizeof(changing[0]); i++)
        if (!strncasecmp(start, changing[i], strlen(changing[i])))
            FAIL(STATUS_INVALID,
                 "%s: 'init_lora_weights' is '%.32s', which changed the model's own weights; save the adapter with "
                 "PEFT's "
                 "path_initial_model_for_weight_conversion",
                 reader->where, start);
    return STATUS_OK;
}

static status_t read_peft(const json_t *json, peft_config_t *out) {
    static const char *const lora[] = {"LORA", NULL}, *const none[] = {"none", NULL};
    config_reader_t reader = config_reader(json, "adapter_config.json");
    *out = (peft_config_t){.rank = 8, .alpha = 8};
    TRY(config_choice(&reader, "peft_type", lora));
    TRY(config_choice(&reader, "bias", none));
    for (size_t i = 0; i < sizeof(refused_keys) / sizeof(refused_keys[0]); i++)
        if (is_set(config_get(&reader, refused_keys[i].key)))
            FAIL(STATUS_INVALID, "%s: '%s' is set: %s", reader.where, refused_keys[i].key, refused_keys[i].what);
    TRY(check_start(&reader));
    TRY(config_integer(&reader, "r", 1, ADAPTER_MAX_RANK, &out->rank));
    TRY(config_number(&reader, "lora_alpha", 1e-9, 1e9, &out->alpha));
    TRY(config_boolean(&reader, "use_rslora", &out->rank_stabilised));
    TRY(config_object(&reader, "rank_pattern", &out->ranks));
    TRY(config_object(&reader, "alpha_pattern", &out->alphas));
    return adapter_target_read(&reader, &out->target);
}

// The value of the first pattern that matches the module, as PEFT looks it up.
static status_t look_up(const json_t *patterns, const char *name, size_t length, double *value) {
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)(uintptr_t)patterns, key, item) {
        adapter_pattern_t *pattern;
        TRY(adapter_pattern_open(key, &pattern));
        bool matches = adapter_pattern_matches(pattern, name, length);
        adapter_pattern_close(pattern);
        if (!matches) continue;
        if (!json_is_number(item)) FAIL(STATUS_INVALID, "adapter_config.json: '%.64s' must have a number", key);
        *value = json_number_value(item);
        return STATUS_OK;
    }
    return STATUS_OK;
}

// "base_model.model.MODULE.lora_A.weight" -> the parameter MODULE.weight and the side; false: not such a name.
static bool parse_name(const model_t *model, const char *name, int *index, int *side, size_t *module_length) {
    static const char *const ends[2][2] = {{".lora_A.weight", ".lora_A.default.weight"},
                                           {".lora_B.weight", ".lora_B.default.weight"}};
    char ours[512], mapped[512];
    size_t length = strlen(name);
    if (strncmp(name, prefix, strlen(prefix)) != 0) return false;
    for (int i = 0; i < 4; i++) {
        const char *end = ends[i / 2][i % 2];
        if (length <= strlen(end) + strlen(prefix) || strcmp(name + length - strlen(end), end) != 0) continue;
        *module_length = length - strlen(end) - strlen(prefix);
        int written = snprintf(ours, sizeof(ours), "%.*s.weight", (int)*module_length, name + strlen(prefix));
        if (written >= (int)sizeof(ours) || !model->family->map_name(model, ours, mapped, sizeof(mapped))) return false;
        *index = model_find(model, mapped);
        *side = i / 2;
        return model->spec[*index].is_linear;
    }
    return false;
}

// The name that PEFT gives a layer.
static void module_name(const model_t *model, int index, char *out, size_t bytes) {
    snprintf(out, bytes, "%s", model->spec[index].name);
    if (model->family->module_name) model->family->module_name(model->spec[index].name, out, bytes);
    out[adapter_module_length(out)] = 0;
}

// By the name that the file has, or that older and newer transformers give the module.
static bool is_targeted(const model_t *model, const adapter_target_t *target, int index, const char *module,
                        size_t length) {
    char name[512];
    const char *ours = model->spec[index].name;
    if (module && adapter_target_takes(target, module, length)) return true;
    if (adapter_target_takes(target, ours, adapter_module_length(ours))) return true;
    module_name(model, index, name, sizeof(name));
    return adapter_target_takes(target, name, strlen(name));
}

static status_t side_scale(const peft_config_t *config, const char *name, size_t length, int *rank, double *alpha) {
    double wanted = config->rank;
    *alpha = config->alpha;
    TRY(look_up(config->ranks, name, length, &wanted));
    TRY(look_up(config->alphas, name, length, alpha));
    if (!(wanted >= 1 && wanted <= ADAPTER_MAX_RANK) || !(*alpha > 0) || !isfinite(*alpha))
        FAIL(STATUS_INVALID, "adapter_config.json: rank %g and alpha %g of '%.*s' are not possible", wanted, *alpha,
             length < 160 ? (int)length : 160, name);
    *rank = (int)wanted;
    return STATUS_OK;
}

static status_t load_side(model_t *model, const peft_config_t *config, const safetensors_tensor_t *tensor,
                          int *filled) {
    int index, side, rank = 0;
    size_t length;
    double alpha = 0;
    if (!parse_name(model, tensor->name, &index, &side, &length))
        FAIL(STATUS_INVALID,
             "the adapter tensor '%.160s' fits no linear layer of this model (its head and its embedding take no "
             "adapters)",
             tensor->name);
    const char *module = tensor->name + strlen(prefix);
    if (!is_targeted(model, &config->target, index, module, length))
        FAIL(STATUS_INVALID,
             "the adapter tensor '%.160s' is of a layer that adapter_config.json does not target, and PEFT would leave "
             "it out",
             tensor->name);
    TRY(side_scale(config, module, length, &rank, &alpha));
    const parameter_spec_t *spec = &model->spec[index];
    int64_t rows = side ? spec->rows : rank, columns = side ? rank : spec->columns;
    if (tensor->dimensions != 2 || tensor->shape[0] != rows || tensor->shape[1] != columns)
        FAIL(STATUS_INVALID,
             "the adapter tensor '%.160s' does not have the shape [%lld, %lld] that its layer and rank need",
             tensor->name, (long long)rows, (long long)columns);
    if (filled[index] & 1 << side)
        FAIL(STATUS_INVALID, "the adapter tensor '%.160s' is there under two names", tensor->name);
    if (!model->adapter[index])
        TRY(adapter_create(model, index, rank, (float)alpha,
                           (float)(alpha / (config->rank_stabilised ? sqrt((double)rank) : (double)rank))));
    filled[index] |= 1 << side;
    return model_upload_tensor(model, tensor, side ? &model->adapter[index]->b : &model->adapter[index]->a);
}

// Layers that the configuration targets and the file leaves out: PEFT starts them, with B of zero, which changes
// nothing.
static void tell_missing(const model_t *model, const peft_config_t *config, const int *filled) {
    int first = -1, count = 0;
    for (int i = 0; i < model->parameter_count && !config->target.any; i++) {
        if (!model->spec[i].is_linear || filled[i] || !is_targeted(model, &config->target, i, NULL, 0)) continue;
        if (first < 0) first = i;
        count++;
    }
    if (count)
        fprintf(stderr,
                "warning: adapter_config.json targets %d layers that the adapter has no tensors for (%s is the "
                "first); they stay as they are\n",
                count, model->spec[first].name);
}

static status_t adapter_file(const char *directory, char *path, size_t bytes) {
    if (snprintf(path, bytes, "%s/adapter_model.bin", directory) >= (int)bytes - 16)
        FAIL(STATUS_INVALID, "the path is too long");
    bool pickled = !access(path, F_OK);
    snprintf(path, bytes, "%s/adapter_model.safetensors", directory);
    if (pickled && access(path, F_OK))
        FAIL(STATUS_INVALID,
             "its tensors are in adapter_model.bin, which can run code when it is read; let PEFT load the adapter and "
             "save_pretrained it, which writes adapter_model.safetensors");
    return STATUS_OK;
}

static status_t load_sides(model_t *model, const peft_config_t *config, const char *directory, int *filled) {
    char path[MODEL_PATH_BYTES];
    safetensors_t *file;
    TRY(adapter_file(directory, path, sizeof(path)));
    TRY(safetensors_open(path, &file));
    status_t status = STATUS_OK;
    int found = safetensors_count(file);
    for (int i = 0; i < found && !status; i++) status = load_side(model, config, safetensors_at(file, i), filled);
    safetensors_close(file);
    if (!status && !found) status = STATUS_NEW(STATUS_INVALID, "adapter_model.safetensors holds no tensors");
    for (int i = 0; i < model->parameter_count && !status; i++)
        if (model->adapter[i] && filled[i] != 3)
            status = STATUS_NEW(STATUS_INVALID, "one of the two adapter tensors of %s is missing", model->spec[i].name);
    if (!status) tell_missing(model, config, filled);
    return status;
}

status_t model_load_adapter(model_t *model, const char *directory) {
    json_t *json;
    peft_config_t config = {0};
    int *filled = NULL;
    TRY(config_load(directory, "adapter_config.json", false, &json));
    status_t status = read_peft(json, &config);
    if (!status) status = adapter_check(model, config.rank, config.alpha);
    if (!status) status = ALLOCATE(&filled, model->parameter_count);
    if (!status) {
        // Set first: what a failed load leaves is still the model's to free, and no second load may follow.
        model->adapter_rank = config.rank;
        model->adapter_alpha = (float)config.alpha;
        model->adapter_rank_stabilised = config.rank_stabilised;
        status = load_sides(model, &config, directory, filled);
    }
    free(filled);
    adapter_target_free(&config.target);
    json_decref(json);
    if (status) return status_context(status, "the adapter %s", directory);
    model->vision_version++;
    return STATUS_OK;
}

// ---- writing ----

typedef struct peft_entry {
    char name[512];
    int64_t shape[2];
    const parameter_t *side;
} peft_entry_t;

typedef struct peft_file {
    const model_t *model;
    const peft_entry_t *entries;
} peft_file_t;

static status_t download_side(void *context, int index, void *buffer, size_t bytes) {
    const peft_file_t *file = context;
    return model_read_values(file->model, file->entries[index].side, 0, (int64_t)(bytes / sizeof(float)), buffer);
}

static status_t save_sides(const model_t *model, const char *directory) {
    char path[MODEL_PATH_BYTES], module[256];
    if (snprintf(path, sizeof(path), "%s/adapter_model.safetensors", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    peft_entry_t *entries = NULL;
    safetensors_item_t *items = NULL;
    int count = 0;
    status_t status = ALLOCATE(&entries, 2 * (size_t)model->parameter_count);
    if (!status) status = ALLOCATE(&items, 2 * (size_t)model->parameter_count);
    for (int i = 0; i < 2 * model->parameter_count && !status; i++) {
        const adapter_t *adapter = model->adapter[i / 2];
        if (!adapter) continue;
        peft_entry_t *entry = &entries[count];
        module_name(model, i / 2, module, sizeof(module));
        snprintf(entry->name, sizeof(entry->name), "%s%s.lora_%c.weight", prefix, module, i % 2 ? 'B' : 'A');
        entry->side = i % 2 ? &adapter->b : &adapter->a;
        entry->shape[0] = entry->side->value.rows;
        entry->shape[1] = entry->side->value.columns;
        items[count++] =
            (safetensors_item_t){.name = entry->name, .dtype = DTYPE_F32, .dimensions = 2, .shape = entry->shape};
    }
    peft_file_t file = {model, entries};
    if (!status) status = safetensors_write(path, items, count, "pt", download_side, &file);
    free(entries);
    free(items);
    return status;
}

static status_t save_config(const model_t *model, const char *base, const char *directory) {
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    char module[256];
    for (int i = 0; i < model->parameter_count; i++) {
        const adapter_t *adapter = model->adapter[i];
        if (!adapter) continue;
        module_name(model, i, module, sizeof(module));
        json_array_append_new(targets, json_string(module));
        if (adapter->a.value.rows != model->adapter_rank)
            json_object_set_new(ranks, module, json_integer(adapter->a.value.rows));
        if (adapter->alpha != model->adapter_alpha)
            json_object_set_new(alphas, module, json_real((double)adapter->alpha));
    }
    json_t *json =
        json_pack("{s:s,s:s,s:i,s:f,s:f,s:s,s:b,s:b,s:b,s:o,s:o,s:o}", "peft_type", "LORA", "base_model_name_or_path",
                  base ? base : "", "r", model->adapter_rank, "lora_alpha", (double)model->adapter_alpha,
                  "lora_dropout", 0.0, "bias", "none", "use_rslora", model->adapter_rank_stabilised, "fan_in_fan_out",
                  0, "inference_mode", 1, "target_modules", targets, "rank_pattern", ranks, "alpha_pattern", alphas);
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
    if (!status) status = save_config(model, base, temporary);
    if (!status) status = folder_finish(temporary, directory);
    if (status) folder_discard(temporary);
    return status;
}
