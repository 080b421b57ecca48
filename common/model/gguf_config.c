// config.json out of a GGUF file's metadata.
#include "common/model/gguf_convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct decoder_rules {
    const char *architecture; // general.architecture, and the prefix of its keys
    const char *model_type, *class_name;
} decoder_rules_t;

static const decoder_rules_t rules[] = {
    [GGUF_LLAMA] = {"llama", "llama", "LlamaForCausalLM"},
    [GGUF_QWEN2] = {"qwen2", "qwen2", "Qwen2ForCausalLM"},
    [GGUF_GEMMA3] = {"gemma3", "gemma3_text", "Gemma3ForCausalLM"},
};

static bool text_is(const gguf_text_t *text, const char *wanted) {
    return text->length == strlen(wanted) && !memcmp(text->bytes, wanted, text->length);
}

// The text of a key; {0} when the key is absent or no text.
static status_t text_value(const gguf_t *file, const char *key, gguf_text_t *out) {
    gguf_text_t *texts;
    const gguf_value_t *value = gguf_value(file, key);
    *out = (gguf_text_t){0};
    if (!value || value->is_array || value->kind != GGUF_STRING) return STATUS_OK;
    TRY(gguf_texts(value, &texts));
    *out = texts[0];
    free(texts);
    return STATUS_OK;
}

status_t gguf_find_decoder(const gguf_t *file, gguf_decoder_t *out) {
    gguf_text_t text;
    TRY(text_value(file, "general.architecture", &text));
    if (!text.bytes) FAIL(STATUS_INVALID, "it has no text 'general.architecture'; it is no model");
    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
        if (text_is(&text, rules[i].architecture)) {
            *out = (gguf_decoder_t)i;
            return STATUS_OK;
        }
    FAIL(STATUS_INVALID, "its architecture is '%.*s'; those read are llama, qwen2 and gemma3",
         text.length < 64 ? (int)text.length : 64, text.bytes);
}

// What reads keys of one architecture.
typedef struct keys {
    const gguf_t *file;
    const char *prefix;
} keys_t;

static const gguf_value_t *find(const keys_t *keys, const char *name, char *key, size_t bytes) {
    snprintf(key, bytes, "%s.%s", keys->prefix, name);
    return gguf_value(keys->file, key);
}

// A whole number; a list of equal ones counts as one. An absent key leaves *out, which < 0 makes an error.
static status_t read_integer(const keys_t *keys, const char *name, int64_t *out) {
    char key[128];
    const gguf_value_t *value = find(keys, name, key, sizeof(key));
    if (!value && *out < 0) FAIL(STATUS_INVALID, "the metadata key '%s' is missing", key);
    if (!value) return STATUS_OK;
    int64_t first = 0, other;
    bool fits = gguf_integer(value, 0, &first) && first >= 0 && first <= INT32_MAX;
    for (uint64_t i = 1; fits && i < value->count; i++) fits = gguf_integer(value, i, &other) && other == first;
    if (!fits) FAIL(STATUS_INVALID, "the value of '%s' is not one whole number for all layers", key);
    *out = first;
    return STATUS_OK;
}

static status_t read_number(const keys_t *keys, const char *name, double *out) {
    char key[128];
    const gguf_value_t *value = find(keys, name, key, sizeof(key));
    if (value && (!gguf_number(value, 0, out) || !isfinite(*out)))
        FAIL(STATUS_INVALID, "the value of '%s' is no number", key);
    return STATUS_OK;
}

static status_t set(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value)) FAIL(STATUS_MEMORY, "out of memory while writing config.json");
    return STATUS_OK;
}

// ---- rope ----

// Llama 3's scaling is stored as the factor of each frequency; the four numbers it comes from are not, and all released
// models share three of them. They are taken if they give the stored factors.
static status_t read_llama3(const gguf_t *file, int64_t head_dim, double theta, json_t *rope) {
    const double low = 1, high = 4, original = 8192;
    const gguf_tensor_t *tensor = gguf_find(file, "rope_freqs.weight");
    if (!tensor) return STATUS_OK;
    if (tensor->type != GGUF_TYPE_F32 || tensor->elements != head_dim / 2 || tensor->elements > 1 << 16)
        FAIL(STATUS_INVALID, "the tensor 'rope_freqs.weight' does not hold one F32 for each of %lld frequencies",
             (long long)(head_dim / 2));
    float *factors;
    TRY(ALLOCATE(&factors, tensor->elements));
    status_t status = gguf_dequantise(tensor, 0, tensor->elements, factors);
    double factor = status ? 1 : (double)factors[tensor->elements - 1];
    for (int64_t i = 0; !status && i < tensor->elements; i++) {
        double wavelength = 2 * M_PI * pow(theta, 2 * (double)i / (double)head_dim), wanted = 1;
        if (wavelength > original / low) {
            wanted = factor;
        } else if (wavelength >= original / high) {
            double smooth = (original / wavelength - low) / (high - low);
            wanted = 1 / ((1 - smooth) / factor + smooth);
        }
        if (!(fabs((double)factors[i] - wanted) <= 1e-4 * wanted))
            status = STATUS_NEW(STATUS_INVALID, "the factors in 'rope_freqs.weight' are not those of a Llama 3 model");
    }
    free(factors);
    TRY(status);
    TRY(set(rope, "rope_type", json_string("llama3")));
    TRY(set(rope, "factor", json_real(factor)));
    TRY(set(rope, "low_freq_factor", json_real(low)));
    TRY(set(rope, "high_freq_factor", json_real(high)));
    return set(rope, "original_max_position_embeddings", json_integer((json_int_t)original));
}

static status_t make_rope(const keys_t *keys, double theta, json_t **out) {
    gguf_text_t type;
    double factor = 0;
    char key[128];
    (void)find(keys, "rope.scaling.type", key, sizeof(key));
    TRY(text_value(keys->file, key, &type));
    TRY(read_number(keys, "rope.scale_linear", &factor));
    bool linear = factor != 0 || (type.bytes && text_is(&type, "linear"));
    if (type.bytes && !linear && !text_is(&type, "none"))
        FAIL(STATUS_INVALID, "its rope scaling is of the type '%.*s'; those read are none and linear",
             type.length < 64 ? (int)type.length : 64, type.bytes);
    TRY(read_number(keys, "rope.scaling.factor", &factor));
    if (linear && !(factor > 0)) FAIL(STATUS_INVALID, "its linear rope scaling has no factor above 0");
    *out = json_pack("{s:s,s:f}", "rope_type", linear && factor != 1 ? "linear" : "default", "rope_theta", theta);
    if (!*out) FAIL(STATUS_MEMORY, "out of memory while writing config.json");
    return linear && factor != 1 ? set(*out, "factor", json_real(factor)) : STATUS_OK;
}

// ---- what differs between the decoders ----

typedef struct sizes {
    int64_t layers, context, hidden, intermediate, heads, kv_heads, head_dim;
    double eps, theta;
} sizes_t;

static status_t read_sizes(const keys_t *keys, gguf_decoder_t decoder, sizes_t *out) {
    *out = (sizes_t){-1, -1, -1, -1, -1, -1, -1, 1e-6, decoder == GGUF_GEMMA3 ? 1e6 : 1e4};
    int64_t experts = 0, key_length = -1, rope_length = -1;
    TRY(read_integer(keys, "block_count", &out->layers));
    TRY(read_integer(keys, "context_length", &out->context));
    TRY(read_integer(keys, "embedding_length", &out->hidden));
    TRY(read_integer(keys, "feed_forward_length", &out->intermediate));
    TRY(read_integer(keys, "attention.head_count", &out->heads));
    out->kv_heads = out->heads;
    TRY(read_integer(keys, "attention.head_count_kv", &out->kv_heads));
    TRY(read_integer(keys, "expert_count", &experts));
    TRY(read_number(keys, "attention.layer_norm_rms_epsilon", &out->eps));
    TRY(read_number(keys, "rope.freq_base", &out->theta));
    if (experts) FAIL(STATUS_INVALID, "it is a mixture of %lld experts, which is not supported", (long long)experts);
    if (!out->heads || !out->kv_heads || out->hidden < out->heads)
        FAIL(STATUS_INVALID, "a model of width %lld has no %lld heads", (long long)out->hidden, (long long)out->heads);
    key_length = rope_length = 0;
    TRY(read_integer(keys, "attention.key_length", &key_length));
    TRY(read_integer(keys, "rope.dimension_count", &rope_length));
    out->head_dim = key_length ? key_length : rope_length ? rope_length : out->hidden / out->heads;
    if (rope_length && rope_length != out->head_dim)
        FAIL(STATUS_INVALID, "its rope turns %lld of each head's %lld values, which is not supported",
             (long long)rope_length, (long long)out->head_dim);
    return STATUS_OK;
}

static status_t add_gemma(const keys_t *keys, const sizes_t *sizes, json_t *rope, json_t *config) {
    int64_t window = 4096, pattern = 6;
    double local = 1e4, cap = 0;
    TRY(read_integer(keys, "attention.sliding_window", &window));
    TRY(read_integer(keys, "attention.sliding_window_pattern", &pattern));
    TRY(read_number(keys, "rope.freq_base_swa", &local));
    TRY(read_number(keys, "final_logit_softcapping", &cap));
    json_t *types = json_array();
    status_t status = set(config, "layer_types", types);
    for (int64_t i = 0; !status && i < sizes->layers && i < 1 << 16; i++) {
        bool full = pattern < 1 || (i + 1) % pattern == 0;
        json_array_append_new(types, json_string(full ? "full_attention" : "sliding_attention"));
    }
    TRY(status);
    TRY(set(config, "sliding_window", json_integer(window)));
    TRY(set(config, "hidden_activation", json_string("gelu_pytorch_tanh")));
    // The file does not say what scores are scaled by: 256 but in the 27B model, which has 62 layers.
    TRY(set(config, "query_pre_attn_scalar", json_integer(sizes->layers == 62 ? sizes->hidden / sizes->heads : 256)));
    if (cap != 0) TRY(set(config, "final_logit_softcapping", json_real(cap)));
    return set(config, "rope_parameters",
               json_pack("{s:O,s:{s:s,s:f}}", "full_attention", rope, "sliding_attention", "rope_type", "default",
                         "rope_theta", local));
}

static status_t add_decoder(const keys_t *keys, gguf_decoder_t decoder, const sizes_t *sizes, json_t *config) {
    json_t *rope = NULL;
    status_t status = make_rope(keys, sizes->theta, &rope);
    if (!status && decoder == GGUF_LLAMA) status = read_llama3(keys->file, sizes->head_dim, sizes->theta, rope);
    if (!status && decoder == GGUF_GEMMA3) {
        status = add_gemma(keys, sizes, rope, config);
    } else if (!status) {
        status = set(config, "rope_parameters", json_incref(rope));
        if (!status) status = set(config, "hidden_act", json_string("silu"));
    }
    json_decref(rope);
    TRY(status);
    if (decoder != GGUF_LLAMA) return STATUS_OK;
    TRY(set(config, "attention_bias", json_boolean(gguf_find(keys->file, "blk.0.attn_q.bias") != NULL)));
    return set(config, "mlp_bias", json_boolean(gguf_find(keys->file, "blk.0.ffn_up.bias") != NULL));
}

// ---- the whole ----

static const char *const id_keys[][2] = {{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                         {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                         {"pad_token_id", "tokenizer.ggml.padding_token_id"}};

static status_t add_ids(const gguf_t *file, json_t *config) {
    for (size_t i = 0; i < sizeof(id_keys) / sizeof(id_keys[0]); i++) {
        int64_t id;
        if (gguf_integer(gguf_value(file, id_keys[i][1]), 0, &id) && id >= 0 && id <= INT32_MAX)
            TRY(set(config, id_keys[i][0], json_integer(id)));
    }
    return STATUS_OK;
}

static status_t fill_config(const gguf_t *file, gguf_decoder_t decoder, json_t *config) {
    keys_t keys = {file, rules[decoder].architecture};
    gguf_text_t name;
    sizes_t sizes;
    TRY(read_sizes(&keys, decoder, &sizes));
    TRY(text_value(file, "general.name", &name));
    // llama.cpp has one architecture for both; transformers tells them apart by this name.
    bool mistral = decoder == GGUF_LLAMA && name.bytes && text_is(&name, "mistral");
    const gguf_tensor_t *table = gguf_find(file, "token_embd.weight");
    if (!table || table->dimensions != 2) FAIL(STATUS_INVALID, "the tensor 'token_embd.weight' is missing or no table");
    TRY(set(config, "architectures", json_pack("[s]", mistral ? "MistralForCausalLM" : rules[decoder].class_name)));
    TRY(set(config, "model_type", json_string(mistral ? "mistral" : rules[decoder].model_type)));
    TRY(set(config, "vocab_size", json_integer(table->shape[0])));
    TRY(set(config, "hidden_size", json_integer(sizes.hidden)));
    TRY(set(config, "intermediate_size", json_integer(sizes.intermediate)));
    TRY(set(config, "num_hidden_layers", json_integer(sizes.layers)));
    TRY(set(config, "num_attention_heads", json_integer(sizes.heads)));
    TRY(set(config, "num_key_value_heads", json_integer(sizes.kv_heads)));
    if (decoder != GGUF_QWEN2) TRY(set(config, "head_dim", json_integer(sizes.head_dim)));
    TRY(set(config, "max_position_embeddings", json_integer(sizes.context)));
    TRY(set(config, "rms_norm_eps", json_real(sizes.eps)));
    TRY(add_decoder(&keys, decoder, &sizes, config));
    // The head is written only where it is not the embedding.
    TRY(set(config, "tie_word_embeddings", json_boolean(!gguf_find(file, "output.weight"))));
    TRY(add_ids(file, config));
    return set(config, "dtype", json_string("float32"));
}

status_t gguf_make_config(const gguf_t *file, gguf_decoder_t decoder, json_t **out) {
    json_t *config = json_object();
    *out = NULL;
    if (!config) FAIL(STATUS_MEMORY, "out of memory while writing config.json");
    status_t status = fill_config(file, decoder, config);
    if (status) {
        json_decref(config);
        PASS_ON(status);
    }
    *out = config;
    return STATUS_OK;
}

static status_t fill_generation(const gguf_t *file, json_t *config) {
    int64_t eos, turn;
    TRY(add_ids(file, config));
    bool has_turn = gguf_integer(gguf_value(file, "tokenizer.ggml.eot_token_id"), 0, &turn) && turn >= 0;
    // Chats end at the end of a turn, too.
    if (has_turn && gguf_integer(gguf_value(file, id_keys[1][1]), 0, &eos) && eos >= 0 && turn != eos)
        TRY(set(config, "eos_token_id", json_pack("[I,I]", (json_int_t)eos, (json_int_t)turn)));
    return STATUS_OK;
}

status_t gguf_make_generation(const gguf_t *file, json_t **out) {
    *out = json_object();
    if (!*out) FAIL(STATUS_MEMORY, "out of memory while writing generation_config.json");
    status_t status = fill_generation(file, *out);
    if (!status) return STATUS_OK;
    json_decref(*out);
    *out = NULL;
    PASS_ON(status);
}
