// Shared by adapter.c, adapter_peft.c and adapter_target.c; others use model.h.
#ifndef COMMON_MODEL_ADAPTER_H
#define COMMON_MODEL_ADAPTER_H

#include "common/model/config_reader.h"
#include "common/model/model.h"

enum { ADAPTER_MAX_RANK = 4096 };

// A parameter's module: the length of its name without ".weight".
size_t adapter_module_length(const char *name);
// PEFT's rule: the pattern matches the whole name, or what follows one of its dots up to the end. Calls `found` for the
// names that match. STATUS_INVALID: not a regular expression.
typedef struct adapter_pattern adapter_pattern_t;
status_t adapter_pattern_open(const char *pattern, adapter_pattern_t **out) STATUS_CHECKED;
bool adapter_pattern_matches(const adapter_pattern_t *pattern, const char *name, size_t length);
void adapter_pattern_close(adapter_pattern_t *pattern);
// The same for a pattern that must match the whole name (Python's fullmatch), and for one of layers' lists: the number
// behind the first "PATTERN." (NULL: behind the first name that a number follows).
status_t adapter_pattern_open_whole(const char *pattern, adapter_pattern_t **out) STATUS_CHECKED;
status_t adapter_pattern_open_layer(const char *pattern, adapter_pattern_t **out) STATUS_CHECKED;
// The layer's number, -1 when the pattern does not match.
int64_t adapter_pattern_layer(const adapter_pattern_t *pattern, const char *name, size_t length);
// Puts a zero adapter beside one linear.
status_t adapter_create(model_t *model, int index, int rank, float alpha, float scale) STATUS_CHECKED;
// Which modules an adapter_config.json targets (target_modules, exclude_modules, layers_to_transform, layers_pattern).
enum { ADAPTER_LAYER_PATTERNS = 16 };
typedef struct adapter_target {
    bool any; // no target_modules: not to be told
    bool all_linear;
    const json_t *modules, *excluded; // lists of names, or NULL
    adapter_pattern_t *module, *exclusion;
    const json_t *layers; // a number or a list of them, or NULL
    adapter_pattern_t *layer[ADAPTER_LAYER_PATTERNS];
    int layer_count;
} adapter_target_t;
// *out refers to the JSON, and can be given to adapter_target_free after an error, too.
status_t adapter_target_read(config_reader_t *reader, adapter_target_t *out) STATUS_CHECKED;
void adapter_target_free(adapter_target_t *target);
// Whether PEFT would adapt the linear layer of that name. The first `length` bytes of `name` count.
bool adapter_target_takes(const adapter_target_t *target, const char *name, size_t length);
status_t adapter_check(const model_t *model, int rank, double alpha) STATUS_CHECKED;

#endif
