// Folders that appear whole or not at all. Shared by models and adapters.
#ifndef COMMON_MODEL_MODEL_FILES_H
#define COMMON_MODEL_MODEL_FILES_H

#include "common/model/model.h"
#include "common/model/safetensors.h"

enum { MODEL_PATH_BYTES = 4096 };

// Refuses what is no Hugging Face folder, with the command that makes one: a GGUF file, or a folder that holds one
// instead of config.json.
status_t folder_refuse_gguf(const char *directory) STATUS_CHECKED;
// Makes an empty folder beside `directory`; its name goes to `out` [MODEL_PATH_BYTES].
status_t folder_begin(const char *directory, char *out) STATUS_CHECKED;
// Flushes it and gives it the final name, replacing an older folder.
status_t folder_finish(const char *temporary, const char *directory) STATUS_CHECKED;
// Removes an unfinished folder and the files in it.
void folder_discard(const char *temporary);
// Copies the plain files of `from` that are not weights.
status_t folder_copy_settings(const char *from, const char *to) STATUS_CHECKED;
// Writes text to DIRECTORY/name and flushes it.
status_t folder_write_text(const char *directory, const char *name, const char *text) STATUS_CHECKED;
// Reads a tensor into a parameter, in the model's dtype.
status_t model_upload_tensor(const model_t *model, const safetensors_tensor_t *tensor,
                             parameter_t *parameter) STATUS_CHECKED;

#endif
