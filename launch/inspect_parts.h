// What the files of `poise inspect` share. Each prints what one kind of thing holds to standard output.
#ifndef LAUNCH_INSPECT_PARTS_H
#define LAUNCH_INSPECT_PARTS_H

#include "kernels/base/status.h"

#include <jansson.h>
#include <stdint.h>

enum { INSPECT_PATH_BYTES = 4096 };

// "  key   value": one line.
void inspect_line(const char *key, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The text in quotes, control characters and (unless it is UTF-8) bytes above 127 escaped.
void inspect_quoted(const char *bytes, size_t length);
// Whether DIRECTORY/name exists.
bool inspect_has(const char *directory, const char *name);
status_t inspect_join(const char *directory, const char *name, char out[INSPECT_PATH_BYTES]) STATUS_CHECKED;
// Reads a JSON object of at most 64 MiB.
status_t inspect_json(const char *directory, const char *name, json_t **out) STATUS_CHECKED;

status_t inspect_model(const char *directory) STATUS_CHECKED;
status_t inspect_adapter(const char *directory) STATUS_CHECKED;
status_t inspect_safetensors(const char *path) STATUS_CHECKED;
status_t inspect_run(const char *directory) STATUS_CHECKED;
status_t inspect_evaluation(const char *directory) STATUS_CHECKED;
// Any of Poise's HDF5 files. sample >= 0: that sample's tokens too, which packed data alone has; model: the folder
// whose tokenizer spells them.
status_t inspect_store(const char *path, const char *model, int64_t sample) STATUS_CHECKED;
status_t inspect_packed(const char *path, const char *model, int64_t sample) STATUS_CHECKED;

#endif
