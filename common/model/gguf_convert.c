#include "common/model/gguf_convert.h"
#include "common/model/model_files.h"

#include <stdlib.h>
#include <string.h>

typedef struct leaf {
    const char *stored, *name; // "attn_q" -> "self_attn.q_proj"
} leaf_t;

static const leaf_t common_leaves[] = {
    {"attn_norm", "input_layernorm"}, {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},        {"ffn_down", "mlp.down_proj"},       {NULL, NULL},
};
static const leaf_t plain_leaves[] = {{"ffn_norm", "post_attention_layernorm"}, {NULL, NULL}};
static const leaf_t gemma_leaves[] = {{"attn_q_norm", "self_attn.q_norm"},
                                      {"attn_k_norm", "self_attn.k_norm"},
                                      {"post_attention_norm", "post_attention_layernorm"},
                                      {"ffn_norm", "pre_feedforward_layernorm"},
                                      {"post_ffw_norm", "post_feedforward_layernorm"},
                                      {NULL, NULL}};
static const leaf_t outer_leaves[] = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}, {NULL, NULL}};

// A tensor on its way: how its rows are turned back into what Hugging Face keeps.
typedef struct entry {
    const gguf_tensor_t *tensor;
    char name[192];
    int heads;       // > 0: rows of each head are put back in rope's order
    bool offset;     // stored as w + 1
    bool keeps_type; // F16 and BF16 that are only copied
} entry_t;

typedef struct conversion {
    const gguf_t *file;
    gguf_decoder_t decoder;
    entry_t *entries;
    int count;
    int heads, kv_heads;
} conversion_t;

static const char *find_leaf(const leaf_t *leaves, const char *stored, size_t length) {
    for (; leaves->stored; leaves++)
        if (strlen(leaves->stored) == length && !memcmp(leaves->stored, stored, length)) return leaves->name;
    return NULL;
}

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; false: not a tensor of this decoder.
static bool map_name(gguf_decoder_t decoder, const char *stored, char *out, size_t bytes) {
    const char *dot = strrchr(stored, '.');
    if (!dot || (strcmp(dot, ".weight") != 0 && strcmp(dot, ".bias") != 0)) return false;
    if (strncmp(stored, "blk.", 4) != 0) {
        const char *name = find_leaf(outer_leaves, stored, (size_t)(dot - stored));
        return name && snprintf(out, bytes, "%s%s", name, dot) < (int)bytes;
    }
    char *end;
    unsigned long layer = strtoul(stored + 4, &end, 10);
    if (end == stored + 4 || *end != '.' || end >= dot) return false;
    const char *leaf = end + 1;
    size_t length = (size_t)(dot - leaf);
    const char *name = find_leaf(common_leaves, leaf, length);
    if (!name) name = find_leaf(decoder == GGUF_GEMMA3 ? gemma_leaves : plain_leaves, leaf, length);
    return name && snprintf(out, bytes, "model.layers.%lu.%s%s", layer, name, dot) < (int)bytes;
}

static bool contains(const char *text, const char *part) {
    return strstr(text, part) != NULL;
}

static status_t add_entry(conversion_t *work, const gguf_tensor_t *tensor) {
    entry_t *entry = &work->entries[work->count];
    if (!strcmp(tensor->name, "rope_freqs.weight")) return STATUS_OK; // config.json has it
    *entry = (entry_t){.tensor = tensor};
    if (!map_name(work->decoder, tensor->name, entry->name, sizeof(entry->name)))
        FAIL(STATUS_INVALID, "the tensor '%.160s' is none of a model of this architecture", tensor->name);
    // llama.cpp rotates neighbouring pairs of a head's rows, Hugging Face the two halves.
    if (work->decoder == GGUF_LLAMA && contains(tensor->name, ".attn_q.")) entry->heads = work->heads;
    if (work->decoder == GGUF_LLAMA && contains(tensor->name, ".attn_k.")) entry->heads = work->kv_heads;
    if (entry->heads && tensor->shape[0] % (2 * entry->heads))
        FAIL(STATUS_INVALID, "the %lld rows of the tensor '%.160s' are not those of %d heads",
             (long long)tensor->shape[0], tensor->name, entry->heads);
    entry->offset = work->decoder == GGUF_GEMMA3 && contains(tensor->name, "norm.weight");
    entry->keeps_type = !entry->offset && (tensor->type == GGUF_TYPE_F16 || tensor->type == GGUF_TYPE_BF16);
    work->count++;
    return STATUS_OK;
}

// Row 2 i + j of a head goes to row j * (rows of the head / 2) + i: the two neighbours into the two halves.
static int64_t source_row(const entry_t *entry, int64_t row) {
    if (!entry->heads) return row;
    int64_t size = entry->tensor->shape[0] / entry->heads, half = size / 2, at = row % size;
    return row - at + at % half * 2 + at / half;
}

static status_t load_entry(void *context, int index, void *buffer, size_t bytes) {
    const conversion_t *work = context;
    const entry_t *entry = &work->entries[index];
    const gguf_tensor_t *tensor = entry->tensor;
    int64_t rows = tensor->shape[0], columns = tensor->elements / rows;
    size_t width = bytes / (size_t)rows;
    float *values = buffer;
    if (entry->keeps_type || tensor->dimensions == 1) {
        for (int64_t i = 0; entry->keeps_type && i < rows; i++)
            memcpy((char *)buffer + (size_t)i * width,
                   (const char *)tensor->data + (size_t)source_row(entry, i) * width, width);
        if (entry->keeps_type) return STATUS_OK;
        // The values of a vector are its rows, and may lie in blocks of many.
        float *stored;
        TRY(ALLOCATE(&stored, rows));
        status_t status = gguf_dequantise(tensor, 0, rows, stored);
        for (int64_t i = 0; i < rows; i++) values[i] = stored[source_row(entry, i)] - (entry->offset ? 1.0F : 0.0F);
        free(stored);
        return status;
    }
    for (int64_t i = 0; i < rows; i++)
        TRY(gguf_dequantise(tensor, source_row(entry, i) * columns, columns, values + i * columns));
    for (int64_t i = 0; entry->offset && i < tensor->elements; i++) values[i] -= 1.0F;
    return STATUS_OK;
}

static status_t write_weights(conversion_t *work, const char *directory) {
    safetensors_item_t *items;
    TRY(ALLOCATE(&items, work->count));
    for (int i = 0; i < work->count; i++) {
        const entry_t *entry = &work->entries[i];
        dtype_t type = !entry->keeps_type ? DTYPE_F32 : entry->tensor->type == GGUF_TYPE_F16 ? DTYPE_F16 : DTYPE_BF16;
        items[i] = (safetensors_item_t){
            .name = entry->name, .dtype = type, .dimensions = entry->tensor->dimensions, .shape = entry->tensor->shape};
    }
    status_t status =
        safetensors_write_folder(directory, items, work->count, "pt", load_entry, work, SAFETENSORS_SHARD_BYTES);
    free(items);
    return status;
}

static status_t write_json(const char *directory, const char *name, json_t *json) {
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing %s", name);
    status_t status = folder_write_text(directory, name, text);
    free(text);
    return status;
}

static status_t read_heads(conversion_t *work, const json_t *config) {
    work->heads = (int)json_integer_value(json_object_get(config, "num_attention_heads"));
    work->kv_heads = (int)json_integer_value(json_object_get(config, "num_key_value_heads"));
    TRY(ALLOCATE(&work->entries, gguf_count(work->file)));
    for (int i = 0; i < gguf_count(work->file); i++) TRY(add_entry(work, gguf_at(work->file, i)));
    return STATUS_OK;
}

// Everything but the tokenizer: the model that the folder describes must be the one it holds.
static status_t write_model(conversion_t *work, const char *directory) {
    json_t *config = NULL, *generation = NULL;
    model_t *model = NULL;
    status_t status = gguf_make_config(work->file, work->decoder, &config);
    if (!status) status = read_heads(work, config);
    if (!status) status = gguf_make_generation(work->file, &generation);
    if (!status) status = write_json(directory, "config.json", config);
    if (!status) status = write_json(directory, "generation_config.json", generation);
    if (!status) status = write_weights(work, directory);
    if (!status) status = model_open(directory, NULL, &model);
    if (!status) status = model_check_weights(model, directory);
    model_close(model);
    json_decref(config);
    json_decref(generation);
    return status;
}

status_t gguf_convert(const char *path, const char *directory) {
    char temporary[MODEL_PATH_BYTES];
    gguf_t *file;
    TRY(gguf_open(path, &file));
    conversion_t work = {.file = file};
    status_t status = gguf_find_decoder(file, &work.decoder);
    if (!status) status = folder_begin(directory, temporary);
    if (status) {
        gguf_close(file);
        return status_context(status, "%s", path);
    }
    status = write_model(&work, temporary);
    if (!status) status = gguf_write_tokenizer(file, work.decoder, temporary);
    if (status) status = status_context(status, "%s", path);
    if (!status) status = folder_finish(temporary, directory);
    if (status) folder_discard(temporary);
    free(work.entries);
    gguf_close(file);
    return status;
}
