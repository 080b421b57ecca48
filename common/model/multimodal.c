#include "common/model/multimodal.h"
#include "common/model/model_families.h"

#include <string.h>

static const char *const vision_ids[] = {"image_token_index", "image_token_id", "vision_config", NULL};

status_t multimodal_read_text(config_reader_t *root, const char *type, bool fixed, bool tied, model_config_t *out) {
    const model_family_t *family;
    const json_t *text;
    TRY(config_object(root, "text_config", &text));
    const char *named = json_string_value(json_object_get(text, "model_type"));
    TRY(model_family_find(named && !fixed ? named : type, &family));
    if (!family->decoder) FAIL(STATUS_INVALID, "text_config: the model_type '%.64s' is not that of a decoder", named);
    json_t *empty = json_object();
    config_reader_t reader = config_reader(text ? text : empty, "text_config");
    status_t status = decoder_read_config(&reader, family->decoder, out);
    config_ignore(&reader, vision_ids);
    if (!status) config_finish(&reader);
    json_decref(empty);
    if (status) PASS_ON(status);
    // Newer files repeat ids beside text_config; whether the head is tied is the root's to say.
    int count = 0;
    TRY(config_integers(root, "eos_token_id", out->eos_tokens, 8, &out->eos_token_count));
    TRY(config_integers(root, "bos_token_id", &out->bos_token, 1, &count));
    TRY(config_integers(root, "pad_token_id", &out->pad_token, 1, &count));
    out->tied_embeddings = tied;
    TRY(config_boolean(root, "tie_word_embeddings", &out->tied_embeddings));
    config_ignore_common(root);
    return STATUS_OK;
}

status_t multimodal_read_token(config_reader_t *root, const char *key, const char *other, int *out) {
    TRY(config_integer(root, key, 0, INT32_MAX, out));
    return config_integer(root, other, 0, INT32_MAX, out);
}

void multimodal_ban_tokens(model_config_t *config, const int *ids, int count) {
    int *list = config->image.media_tokens, capacity = sizeof(config->image.media_tokens) / sizeof(int);
    for (int i = 0; i < count; i++) {
        int at = config->image.media_token_count;
        bool left_out = ids[i] < 0 || ids[i] >= config->vocabulary || at == capacity;
        for (int j = 0; !left_out && j < at; j++) left_out = list[j] == ids[i];
        if (left_out) continue;
        for (; at > 0 && list[at - 1] > ids[i]; at--) list[at] = list[at - 1];
        list[at] = ids[i];
        config->image.media_token_count++;
    }
}

// ---- names ----

static bool starts(const char **name, const char *prefix) {
    size_t length = strlen(prefix);
    if (strncmp(*name, prefix, length) != 0) return false;
    *name += length;
    return true;
}

bool multimodal_map_name(const model_t *model, const char *name, char *out, size_t bytes) {
    const char *ours = "";
    starts(&name, "model.");
    if (starts(&name, "language_model.lm_head.") || starts(&name, "lm_head.")) {
        ours = "language_model.lm_head.";
    } else if (starts(&name, "language_model.")) {
        starts(&name, "model.");
        ours = "language_model.model.";
    } else if (starts(&name, "vision_tower.")) {
        starts(&name, "vision_model.");
        ours = "vision_tower.vision_model.";
    }
    int written = snprintf(out, bytes, "%s%s", ours, name);
    return written > 0 && (size_t)written < bytes && model_find(model, out) >= 0;
}

void multimodal_module_name(const char *name, char *out, size_t bytes) {
    const char *newest = "model.";
    if (starts(&name, "language_model.model."))
        newest = "model.language_model.";
    else if (starts(&name, "language_model.lm_head."))
        newest = "lm_head.";
    else if (starts(&name, "vision_tower.vision_model."))
        newest = "model.vision_tower.";
    snprintf(out, bytes, "%s%s", newest, name);
}
