// The table of configuration keys; private to common/config.
#ifndef COMMON_CONFIG_CONFIG_SCHEMA_H
#define COMMON_CONFIG_CONFIG_SCHEMA_H

#include "common/config/config.h"
#include <stddef.h>

typedef enum config_kind {
    KIND_STRING,
    KIND_INT,
    KIND_INT64,
    KIND_REAL,
    KIND_BOOL,
    KIND_ENUM,
    KIND_LIST
} config_kind_t;

typedef struct config_key {
    const char *path; // "optimizer.learning_rate"
    config_kind_t kind;
    size_t offset;        // in config_t
    const char *initial;  // the default, spelled as in YAML
    double least, most;   // numbers only
    const char *choices;  // enums and strings with a fixed set: names separated by '|', in enum order
    bool shapes_training; // part of config_training_hash
    const char *help;
} config_key_t;

extern const config_key_t config_schema[];
extern const int config_schema_count;

#endif
