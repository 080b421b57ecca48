// A start for models with pictures: a vision tower and a projector of random weights put before a text decoder, as one
// LLaVA-NeXT folder that Poise and transformers load.
#ifndef COMMON_MODEL_COMPOSE_H
#define COMMON_MODEL_COMPOSE_H

#include "common/model/model.h"

typedef struct compose_options {
    const char *language;    // folder of a text decoder, with a tokenizer.json
    const char *vision;      // JSON file: what config.json says of pictures (vision_config, image_grid_pinpoints, ...)
    const char *output;      // folder to make
    const char *image_token; // spelling of the token that stands for a picture; it is added where it is not there
    uint64_t seed;           // keys the random weights
    float std;               // their deviation
} compose_options_t;

// Tower, projector and newline row are normal(0, std) (model_initialise); the language model's weights are kept to the
// bit. A token that is new to the vocabulary gets the mean of all rows, so that the others' probabilities hardly move.
// The folder appears whole or not at all.
status_t compose_model(const compose_options_t *options) STATUS_CHECKED;

#endif
