// The model that a run starts from, made the same way by every rank of every role: what is trained (and so moves at a
// weight sync) must not depend on who asks.
#ifndef COMMON_MODEL_MODEL_START_H
#define COMMON_MODEL_MODEL_START_H

#include "common/config/config.h"
#include "common/model/model.h"

// Opens config->model on the device: its weights, or random ones keyed by the seed when init_std > 0; the adapter of
// config->adapter, or fresh ones when lora.rank > 0. Then marks what is trained by a non-NULL sink.sum: with adapters
// their A and B only, else the parameters, less what train.* freezes. The mark is not a place to write to:
// optimizer_open puts the real sums there, and ranks that do not learn never run backward. Not collective.
status_t model_start(const config_t *config, device_t *device, model_t **out) STATUS_CHECKED;
// Takes all marks away (a KL reference trains nothing).
void model_freeze_all(model_t *model);
// A line per part: trainable and frozen parameters.
void model_print_counts(const model_t *model, FILE *stream);

#endif
