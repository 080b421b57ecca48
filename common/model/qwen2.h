// Qwen2 alone, without pictures: one table over the common decoder.
#ifndef COMMON_MODEL_QWEN2_H
#define COMMON_MODEL_QWEN2_H

#include "common/model/model.h"

extern const model_family_t qwen2_family;

#endif
