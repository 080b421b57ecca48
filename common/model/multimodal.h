// What families made of a vision tower, a projector and a text decoder share: the names that generations of checkpoints
// give the same parts, and the reading of config.json around the parts.
#ifndef COMMON_MODEL_MULTIMODAL_H
#define COMMON_MODEL_MULTIMODAL_H

#include "common/model/decoder.h"

// config.json of such a family: text_config by its model_type (`type` where it names none, or whatever it names when
// `fixed`), then what the root says of ids and of a tied head (`tied`: where it says nothing).
status_t multimodal_read_text(config_reader_t *root, const char *type, bool fixed, bool tied,
                              model_config_t *out) STATUS_CHECKED;
// A token id under either of two keys; absent: *out stays.
status_t multimodal_read_token(config_reader_t *root, const char *key, const char *other, int *out) STATUS_CHECKED;
// Notes the ids in [0, vocabulary) among the tokens that are never sampled.
void multimodal_ban_tokens(model_config_t *config, const int *ids, int count);
// A family's map_name and module_name. Ours are the names of released checkpoints: language_model.model.*,
// language_model.lm_head.*, vision_tower.vision_model.*, multi_modal_projector.*, image_newline.
bool multimodal_map_name(const model_t *model, const char *name, char *out, size_t bytes);
void multimodal_module_name(const char *name, char *out, size_t bytes);

#endif
