#include "common/model/model_processor.h"
#include "common/model/config_reader.h"

#include <string.h>

// What of generation_config.json changes nothing in what is generated here: ids, caches, how results are handed over.
static const char *const harmless[] = {"bos_token_id",
                                       "eos_token_id",
                                       "pad_token_id",
                                       "decoder_start_token_id",
                                       "transformers_version",
                                       "_from_model_config",
                                       "use_cache",
                                       "cache_implementation",
                                       "cache_config",
                                       "max_cache_len",
                                       "return_dict_in_generate",
                                       "output_attentions",
                                       "output_hidden_states",
                                       "output_scores",
                                       "output_logits",
                                       "is_assistant",
                                       "num_assistant_tokens",
                                       "num_assistant_tokens_schedule",
                                       "assistant_confidence_threshold",
                                       "assistant_early_exit",
                                       "assistant_lookbehind",
                                       "target_lookbehind",
                                       "prompt_lookup_num_tokens",
                                       "max_matching_ngram_size",
                                       "use_mtp",
                                       "prefill_chunk_size",
                                       "compile_config",
                                       "disable_compile",
                                       "low_memory",
                                       "remove_invalid_values",
                                       "renormalize_logits",
                                       "early_stopping",
                                       "assistant_ensemble_weight",
                                       "speculation_type",
                                       "continuous_batching_config",
                                       "_commit_hash",
                                       NULL};
// Numbers that leave a field without effect; 0, false and null always do.
static const struct {
    const char *key;
    double value;
} neutral[] = {{"temperature", 1},          {"top_p", 1},          {"typical_p", 1},
               {"repetition_penalty", 1},   {"length_penalty", 1}, {"encoder_repetition_penalty", 1},
               {"guidance_scale", 1},       {"num_beams", 1},      {"num_beam_groups", 1},
               {"num_return_sequences", 1}, {"max_length", 20}};

static bool is_neutral(const char *key, const json_t *value) {
    for (const char *const *name = harmless; *name; name++)
        if (!strcmp(*name, key)) return true;
    if (json_is_null(value) || json_is_false(value)) return true;
    if ((json_is_array(value) && !json_array_size(value)) || (json_is_object(value) && !json_object_size(value)))
        return true;
    if (!json_is_number(value)) return false;
    for (size_t i = 0; i < sizeof(neutral) / sizeof(neutral[0]); i++)
        if (!strcmp(neutral[i].key, key) && json_number_value(value) == neutral[i].value) return true;
    // A temperature of 0 is greedy, and 0 is an id, too.
    return json_number_value(value) == 0 && strcmp(key, "temperature") != 0 && !strstr(key, "_token_id");
}

static void note_ignored(const json_t *json, model_config_t *config) {
    const char *key;
    json_t *value;
    char *out = config->generation_ignored;
    size_t used = 0, bytes = sizeof(config->generation_ignored);
    json_object_foreach((json_t *)(uintptr_t)json, key, value) {
        if (is_neutral(key, value) || used + strlen(key) + 3 > bytes) continue;
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", key);
    }
}

static status_t read_generation(const char *directory, model_config_t *config) {
    json_t *json;
    TRY(config_load(directory, "generation_config.json", true, &json));
    if (!json) return STATUS_OK;
    config_reader_t reader = config_reader(json, "generation_config.json");
    int count = 0;
    status_t status = config_integers(&reader, "eos_token_id", config->eos_tokens, 8, &config->eos_token_count);
    if (!status) status = config_integers(&reader, "bos_token_id", &config->bos_token, 1, &count);
    if (!status) status = config_integers(&reader, "pad_token_id", &config->pad_token, 1, &count);
    if (!status) note_ignored(json, config);
    json_decref(json);
    return status;
}

void model_warn_generation(const model_t *model, FILE *stream) {
    if (model->config.generation_ignored[0])
        fprintf(stream,
                "warning: generation_config.json sets what Poise does not apply: %s (temperature and length are this "
                "command's own)\n",
                model->config.generation_ignored);
}

status_t model_read_processor(const char *directory, model_config_t *config) {
    TRY(read_generation(directory, config));
    return config->has_vision ? image_rules_read(directory, &config->image) : STATUS_OK;
}
