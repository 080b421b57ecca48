// Gemma-3 with pictures.
#ifndef COMMON_MODEL_GEMMA3_H
#define COMMON_MODEL_GEMMA3_H

#include "common/model/model.h"

extern const model_family_t gemma3_family;

#endif
