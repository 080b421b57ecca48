// Inside of composing: the files of the folder, and what it takes from the language model's.
#ifndef COMMON_MODEL_COMPOSE_FILES_H
#define COMMON_MODEL_COMPOSE_FILES_H

#include "common/model/compose.h"

// Writes into `folder`, which has copies of the language model's files, those of the composed model but its weights.
// rows: of the language model's token table.
status_t compose_write_files(const compose_options_t *options, int rows, const char *folder) STATUS_CHECKED;

#endif
