// Gemma-3's text decoder alone, without pictures: one table over the common decoder.
#ifndef COMMON_MODEL_GEMMA3_TEXT_H
#define COMMON_MODEL_GEMMA3_TEXT_H

#include "common/model/model.h"

extern const model_family_t gemma3_text_family;

#endif
