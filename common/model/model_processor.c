#include "common/model/model_processor.h"
#include "common/model/config_reader.h"

static status_t read_generation(const char *directory, model_config_t *config) {
    json_t *json;
    TRY(config_load(directory, "generation_config.json", true, &json));
    if (!json) return STATUS_OK;
    config_reader_t reader = config_reader(json, "generation_config.json");
    int count = 0;
    status_t status = config_integers(&reader, "eos_token_id", config->eos_tokens, 8, &config->eos_token_count);
    if (!status) status = config_integers(&reader, "bos_token_id", &config->bos_token, 1, &count);
    if (!status) status = config_integers(&reader, "pad_token_id", &config->pad_token, 1, &count);
    json_decref(json);
    return status;
}

status_t model_read_processor(const char *directory, model_config_t *config) {
    TRY(read_generation(directory, config));
    return config->has_vision ? image_rules_read(directory, &config->image) : STATUS_OK;
}
