// Mistral alone, without pictures: one table over the common decoder.
#ifndef COMMON_MODEL_MISTRAL_H
#define COMMON_MODEL_MISTRAL_H

#include "common/model/model.h"

extern const model_family_t mistral_family;

#endif
