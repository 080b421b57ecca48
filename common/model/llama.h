// Llama alone, without pictures: one table over the common decoder.
#ifndef COMMON_MODEL_LLAMA_H
#define COMMON_MODEL_LLAMA_H

#include "common/model/model.h"

extern const model_family_t llama_family;

#endif
