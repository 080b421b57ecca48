// Shared by adapter.c and adapter_peft.c; others use model.h.
#ifndef COMMON_MODEL_ADAPTER_H
#define COMMON_MODEL_ADAPTER_H

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
// Puts a zero adapter beside one linear.
status_t adapter_create(model_t *model, int index, int rank, float alpha, float scale) STATUS_CHECKED;
status_t adapter_check(const model_t *model, int rank, double alpha) STATUS_CHECKED;

#endif
