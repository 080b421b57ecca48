// Models, adapters and safetensors files.
#include "common/model/model.h"
#include "common/model/safetensors.h"
#include "common/text/tokenizer.h"
#include "launch/inspect_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct tally {
    int64_t tensors, elements, bytes;
    int64_t of[DTYPE_COUNT]; // elements by type
} tally_t;

static tally_t count_tensors(const safetensors_t *file) {
    tally_t tally = {.tensors = safetensors_count(file)};
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        tally.elements += tensor->elements;
        tally.bytes += (int64_t)tensor->bytes;
        tally.of[tensor->dtype] += tensor->elements;
    }
    return tally;
}

static void print_tally(const char *key, const tally_t *tally) {
    char types[256] = "";
    size_t used = 0;
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (tally->of[d])
            used += (size_t)snprintf(types + used, sizeof(types) - used, "%s%s %" PRId64, used ? ", " : "",
                                     dtype_name((dtype_t)d), tally->of[d]);
    inspect_line(key, "%" PRId64 " tensors, %.1f MB; elements by type: %s", tally->tensors, (double)tally->bytes / 1e6,
                 types);
}

static void print_rope(const char *key, const decoder_rope_t *rope, const int *sections) {
    static const char *const types[] = {"default", "linear", "llama3"};
    char scaling[64] = "", split[64] = "";
    if (rope->type != DECODER_ROPE_DEFAULT)
        snprintf(scaling, sizeof(scaling), ", %s scaling by %g", types[rope->type], rope->factor);
    if (sections[1]) snprintf(split, sizeof(split), ", sections %d %d %d", sections[0], sections[1], sections[2]);
    inspect_line(key, "theta %g%s%s", rope->theta, scaling, split);
}

static void print_attention(const decoder_config_t *decoder, int layers) {
    int sliding = 0;
    for (int i = 0; i < layers; i++) sliding += decoder->sliding[i];
    print_rope("rope", &decoder->rope[0], decoder->rope_sections);
    if (decoder->two_ropes) print_rope("rope of sliding layers", &decoder->rope[1], decoder->rope_sections);
    if (sliding) inspect_line("window", "%d tokens, in %d of %d layers", decoder->window, sliding, layers);
}

static void print_sizes(const model_config_t *config) {
    inspect_line("family", "%s", config->family);
    inspect_line("hidden, layers", "%d, %d", config->hidden, config->layers);
    inspect_line("heads", "%d, of them keys and values %d, each %d wide", config->heads, config->kv_heads,
                 config->head_dim);
    inspect_line("mlp", "%d", config->intermediate);
    inspect_line("vocabulary", "%d%s", config->vocabulary, config->tied_embeddings ? ", head tied to it" : "");
    print_attention(&config->decoder, config->layers);
    char ends[128] = "none";
    size_t used = 0;
    for (int i = 0; i < config->eos_token_count; i++)
        used += (size_t)snprintf(ends + used, sizeof(ends) - used, "%s%d", i ? ", " : "", config->eos_tokens[i]);
    inspect_line("end tokens", "%s", ends);
}

// What cannot be read is said in the table, and the rest still told; without memory there is no saying anything.
static status_t note_unreadable(const char *key, status_t status) {
    if (!status || status_kind(status) == STATUS_MEMORY) return status;
    inspect_line(key, "cannot be read: %s", status_message(status));
    status_free(status);
    return STATUS_OK;
}

static void print_processor(const image_rules_t *image) {
    switch (image->processor) {
    case PROCESSOR_QWEN2_VL:
        inspect_line("image", "patches of %d, %d x %d merged, %" PRId64 " to %" PRId64 " pixels, placeholder %d",
                     image->patch, image->merge, image->merge, image->min_pixels, image->max_pixels,
                     image->image_token);
        break;
    case PROCESSOR_LLAVA_NEXT:
        inspect_line("image", "patches of %d, tiles of %d x %d in %d resolutions, placeholder %d", image->patch,
                     image->side_height, image->side_width, image->pinpoints, image->image_token);
        break;
    case PROCESSOR_GEMMA3:
        inspect_line("image", "patches of %d, %d x %d pixels as %d tokens, pan and scan %s, placeholder %d",
                     image->patch, image->side_height, image->side_width, image->tokens,
                     image->pan_and_scan.on ? "on" : "off", image->image_token);
        break;
    }
}

static status_t print_vision(const char *directory, const model_config_t *config) {
    json_t *json;
    const image_rules_t *image = &config->image;
    if (!config->has_vision) {
        inspect_line("vision", "none: text only");
        return STATUS_OK;
    }
    print_processor(image);
    TRY(inspect_json(directory, "config.json", &json));
    const char *key;
    const json_t *value;
    json_object_foreach(json_object_get(json, "vision_config"), key, value) {
        char name[80];
        snprintf(name, sizeof(name), "vision %s", key);
        if (json_is_integer(value)) inspect_line(name, "%lld", (long long)json_integer_value(value));
    }
    json_decref(json);
    return STATUS_OK;
}

static void print_parameters(const model_t *model) {
    int64_t sum = 0;
    for (int part = 0; part < PART_COUNT; part++) {
        int64_t trainable, total;
        model_count(model, (model_part_t)part, &trainable, &total);
        sum += total;
        if (total) inspect_line(model_part_name((model_part_t)part), "%" PRId64 " parameters", total);
    }
    inspect_line("all parts", "%" PRId64 " parameters in %d tensors", sum, model->parameter_count);
}

// Names the tensors that the architecture has and the files lack, up to three.
static status_t print_missing(const model_t *model, const safetensors_t *file) {
    int missing = 0;
    bool *seen;
    TRY(ALLOCATE(&seen, model->parameter_count));
    for (int i = 0; i < safetensors_count(file); i++) {
        char name[512];
        const char *found = safetensors_at(file, i)->name;
        int index = model->family->map_name(model, found, name, sizeof(name)) ? model_find(model, name) : -1;
        if (index >= 0) seen[index] = true;
    }
    for (int i = 0; i < model->parameter_count; i++)
        if (!seen[i] && missing++ < 3) inspect_line("lacking", "%s", model->spec[i].name);
    if (missing > 3) inspect_line("lacking", "and %d more", missing - 3);
    free(seen);
    return STATUS_OK;
}

static status_t print_weights(const char *directory, const model_t *model) {
    safetensors_t *file;
    if (!inspect_has(directory, "model.safetensors") && !inspect_has(directory, "model.safetensors.index.json")) {
        inspect_line("weights", "none in this folder (init_std starts from random ones)");
        return STATUS_OK;
    }
    status_t status = safetensors_open_folder(directory, &file);
    if (status) return note_unreadable("weights", status);
    tally_t tally = count_tensors(file);
    print_tally("weights", &tally);
    status = print_missing(model, file);
    safetensors_close(file);
    return status;
}

static status_t print_tokenizer(const char *directory) {
    tokenizer_t *tokenizer;
    status_t status = tokenizer_open(directory, &tokenizer);
    if (status) return note_unreadable("tokenizer", status);
    inspect_line("tokenizer", "%d ids", tokenizer_size(tokenizer));
    tokenizer_close(tokenizer);
    return STATUS_OK;
}

status_t inspect_model(const char *directory) {
    model_t *model;
    TRY(model_open(directory, NULL, &model));
    printf("%s: a model\n", directory);
    print_sizes(&model->config);
    status_t status = print_vision(directory, &model->config);
    print_parameters(model);
    if (!status) status = print_weights(directory, model);
    if (!status) status = print_tokenizer(directory);
    model_close(model);
    return status;
}

// ---- adapters ----

static void print_targets(const json_t *targets) {
    char text[1024] = "";
    size_t used = 0, i;
    const json_t *value;
    if (json_is_string(targets)) snprintf(text, sizeof(text), "%.1000s", json_string_value(targets));
    json_array_foreach(targets, i, value) {
        const char *name = json_string_value(value);
        if (!name || used + strlen(name) + 3 > sizeof(text)) continue;
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s", used ? ", " : "", name);
    }
    inspect_line("modules", "%s", text);
}

static status_t print_adapter(const char *directory, const json_t *config) {
    char path[INSPECT_PATH_BYTES];
    safetensors_t *file;
    const char *kind = json_string_value(json_object_get(config, "peft_type"));
    const char *base = json_string_value(json_object_get(config, "base_model_name_or_path"));
    inspect_line("kind", "%s", kind ? kind : "not said");
    inspect_line("for the model", "%s", base ? base : "not said");
    double rank = json_number_value(json_object_get(config, "r"));
    inspect_line("rank, alpha", "%g, %g%s", rank, json_number_value(json_object_get(config, "lora_alpha")),
                 json_is_true(json_object_get(config, "use_rslora")) ? " (rank-stabilised)" : "");
    print_targets(json_object_get(config, "target_modules"));
    TRY(inspect_join(directory, "adapter_model.safetensors", path));
    TRY(safetensors_open(path, &file));
    tally_t tally = count_tensors(file);
    print_tally("weights", &tally);
    inspect_line("parameters", "%" PRId64, tally.elements);
    safetensors_close(file);
    return STATUS_OK;
}

status_t inspect_adapter(const char *directory) {
    json_t *config;
    TRY(inspect_json(directory, "adapter_config.json", &config));
    printf("%s: an adapter (PEFT)\n", directory);
    status_t status = print_adapter(directory, config);
    json_decref(config);
    return status;
}

status_t inspect_safetensors(const char *path) {
    safetensors_t *file;
    TRY(safetensors_open(path, &file));
    tally_t tally = count_tensors(file);
    printf("%s: tensors\n", path);
    print_tally("all", &tally);
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        printf("  %s %s [", tensor->name, dtype_name(tensor->dtype));
        for (int d = 0; d < tensor->dimensions; d++) printf("%s%" PRId64, d ? ", " : "", tensor->shape[d]);
        puts("]");
    }
    safetensors_close(file);
    return STATUS_OK;
}
