#ifndef COMMON_MODEL_MODEL_FAMILIES_H
#define COMMON_MODEL_MODEL_FAMILIES_H

#include "common/model/model.h"

// The family of a config.json's "model_type". STATUS_INVALID names the known ones.
status_t model_family_find(const char *model_type, const model_family_t **out) STATUS_CHECKED;

#endif
