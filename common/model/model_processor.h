#ifndef COMMON_MODEL_MODEL_PROCESSOR_H
#define COMMON_MODEL_MODEL_PROCESSOR_H

#include "common/model/model.h"

// Fills what lies beside config.json: eos, bos and pad ids of generation_config.json, and the image rules of
// preprocessor_config.json or (version 5) processor_config.json. Missing files leave the class defaults.
status_t model_read_processor(const char *directory, model_config_t *config) STATUS_CHECKED;
// One line that names the fields of generation_config.json that would change what is generated and are not applied;
// nothing where there are none. For those that generate.
void model_warn_generation(const model_t *model, FILE *stream);

#endif
