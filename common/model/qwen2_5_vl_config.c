// config.json of Qwen2.5-VL: both spellings, class defaults where a key is absent.
#include "common/model/decoder.h"
#include "common/model/qwen2_5_vl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 14 };

static const decoder_class_t qwen2_5_vl_decoder = {
    .vocabulary = 152064,
    .hidden = 8192,
    .intermediate = 29568,
    .layers = 80,
    .heads = 64,
    .kv_heads = 8,
    .max_positions = 32768,
    .rms_eps = 1e-5,
    .theta = 1e6,
    .bos = 151643,
    .eos = 151645,
    .pad = -1,
    .window = 4096,
    .first_window_layer = 80,
    .activation_key = "hidden_act",
    .activation = ACTIVATION_SILU,
    .qkv_bias = true,
    .norm = NORM_CAST_THEN_WEIGHT,
    .windows = DECODER_WINDOW_FROM,
    .sections = true,
    .whole_heads = true,
    .fixed_head_dim = true,
};

static const char *const silu[] = {"silu", NULL};

static status_t read_full_attention(config_reader_t *reader, qwen_config_t *qwen) {
    const json_t *list = config_get(reader, "fullatt_block_indexes");
    const int defaults[4] = {7, 15, 23, 31};
    for (int i = 0; !list && i < 4; i++) qwen->full_attention[defaults[i]] = true;
    size_t index;
    json_t *item;
    if (list && !json_is_array(list)) FAIL(STATUS_INVALID, "%s: 'fullatt_block_indexes' must be a list", reader->where);
    json_array_foreach((json_t *)(uintptr_t)list, index, item) {
        json_int_t block = json_integer_value(item);
        if (!json_is_integer(item) || block < 0 || block >= QWEN_MAX_LAYERS)
            FAIL(STATUS_INVALID, "%s: 'fullatt_block_indexes' must hold numbers of blocks", reader->where);
        qwen->full_attention[block] = true;
    }
    return STATUS_OK;
}

// patch sizes may be a number or, in version 5, a list of equal numbers.
static status_t read_side(config_reader_t *reader, const char *key, int *out) {
    int sides[2] = {*out, *out}, count = 2;
    TRY(config_integers(reader, key, sides, 2, &count));
    if (count == 0 || (count == 2 && sides[0] != sides[1]) || sides[0] < 1 || sides[0] > 1024)
        FAIL(STATUS_INVALID, "%s: '%s' must be one number from 1 to 1024", reader->where, key);
    *out = sides[0];
    return STATUS_OK;
}

static status_t read_vision(const json_t *object, model_config_t *out) {
    const char *const ignored[] = {
        "in_chans", "spatial_patch_size", "tokens_per_second", "num_attention_heads", "num_hidden_layers", NULL};
    qwen_config_t *qwen = out->family_config;
    config_reader_t vision = config_reader(object, "vision_config");
    int window = 112, out_hidden = 3584;
    qwen->depth = 32;
    qwen->vision_hidden = 3584;
    qwen->vision_heads = 16;
    qwen->vision_intermediate = 3420;
    qwen->channels = 3;
    qwen->vision_theta = 10000.0;
    TRY(config_integer(&vision, "depth", 1, QWEN_MAX_LAYERS, &qwen->depth));
    TRY(config_integer(&vision, "hidden_size", 1, MAX_WIDTH, &qwen->vision_hidden));
    TRY(config_integer(&vision, "num_heads", 1, MAX_HEADS, &qwen->vision_heads));
    TRY(config_integer(&vision, "intermediate_size", 1, MAX_WIDTH, &qwen->vision_intermediate));
    TRY(config_integer(&vision, "in_channels", 1, 16, &qwen->channels));
    TRY(config_integer(&vision, "out_hidden_size", 1, MAX_WIDTH, &out_hidden));
    TRY(config_integer(&vision, "window_size", 1, MAX_WIDTH, &window));
    TRY(config_integer(&vision, "spatial_merge_size", 1, 16, &out->image.merge));
    TRY(read_side(&vision, "patch_size", &out->image.patch));
    TRY(read_side(&vision, "temporal_patch_size", &out->image.temporal));
    TRY(config_choice(&vision, "hidden_act", silu));
    TRY(read_full_attention(&vision, qwen));
    const json_t *rope;
    TRY(config_object(&vision, "rope_parameters", &rope));
    if (rope) {
        const char *const axial[] = {"axial", "default", NULL};
        config_reader_t reader = config_reader(rope, "vision_config.rope_parameters");
        TRY(config_choice(&reader, "rope_type", axial));
        TRY(config_number(&reader, "rope_theta", 1.0, 1e12, &qwen->vision_theta));
        config_finish(&reader);
    }
    config_ignore(&vision, ignored);
    config_ignore_common(&vision);
    config_finish(&vision);
    qwen->window_cells = window / out->image.merge / out->image.patch;
    if (qwen->vision_hidden % qwen->vision_heads || qwen->vision_hidden / qwen->vision_heads % 4 ||
        qwen->vision_hidden / qwen->vision_heads > ATTENTION_MAX_HEAD_DIM)
        FAIL(STATUS_INVALID,
             "vision_config: hidden_size %d over %d heads must give heads whose size is a multiple of 4 up to %d",
             qwen->vision_hidden, qwen->vision_heads, ATTENTION_MAX_HEAD_DIM);
    if (qwen->window_cells < 1)
        FAIL(STATUS_INVALID, "vision_config: window_size %d is smaller than one merged cell of %d pixels", window,
             out->image.merge * out->image.patch);
    if (out_hidden != out->hidden)
        FAIL(STATUS_INVALID, "vision_config: out_hidden_size %d differs from the text model's hidden_size %d",
             out_hidden, out->hidden);
    return STATUS_OK;
}

static status_t read_media(config_reader_t *root, model_config_t *out) {
    int ids[5] = {151655, 151656, 151652, 151653, 151654};
    const char *const keys[5] = {"image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
                                 "vision_token_id"};
    for (int i = 0; i < 5; i++) TRY(config_integer(root, keys[i], 0, INT32_MAX, &ids[i]));
    if (ids[0] >= out->vocabulary)
        FAIL(STATUS_INVALID, "config.json: image_token_id %d is not in a vocabulary of %d", ids[0], out->vocabulary);
    out->image.image_token = ids[0];
    out->image.vision_start = ids[2];
    out->image.vision_end = ids[3];
    for (int i = 0; i < 5; i++) {
        int *list = out->image.media_tokens, at = out->image.media_token_count;
        bool known = ids[i] >= out->vocabulary;
        for (int j = 0; !known && j < at; j++) known = list[j] == ids[i];
        if (known) continue;
        for (; at > 0 && list[at - 1] > ids[i]; at--) list[at] = list[at - 1];
        list[at] = ids[i];
        out->image.media_token_count++;
    }
    return STATUS_OK;
}

// text_config of a nested file; it may repeat the tie and the ids of the media tokens.
static status_t read_nested_text(const json_t *nested, model_config_t *out) {
    const char *const repeated[] = {"image_token_id",      "video_token_id",  "vision_start_token_id",
                                    "vision_end_token_id", "vision_token_id", NULL};
    config_reader_t reader = config_reader(nested, "text_config");
    bool tied = out->tied_embeddings;
    TRY(decoder_read_config(&reader, &qwen2_5_vl_decoder, out));
    out->tied_embeddings = out->tied_embeddings || tied;
    config_ignore(&reader, repeated);
    config_finish(&reader);
    return STATUS_OK;
}

status_t qwen_read_config(const json_t *config, model_config_t *out) {
    TRY(ALLOCATE((qwen_config_t **)&out->family_config, 1));
    out->image = (image_rules_t){.image_token = -1, .vision_start = -1, .vision_end = -1};
    out->has_vision = true;
    out->image.patch = 14;
    out->image.merge = 2;
    out->image.temporal = 2;
    config_reader_t root = config_reader(config, "config.json");
    const json_t *nested, *vision;
    TRY(config_object(&root, "text_config", &nested));
    TRY(config_object(&root, "vision_config", &vision));
    TRY(config_boolean(&root, "tie_word_embeddings", &out->tied_embeddings));
    if (nested) {
        TRY(read_nested_text(nested, out));
        // What 5.x repeats beside text_config.
        const char *const repeated[] = {"bos_token_id", "pad_token_id", NULL};
        config_ignore(&root, repeated);
        config_ignore_common(&root);
        TRY(config_integers(&root, "eos_token_id", out->eos_tokens, 8, &out->eos_token_count));
    } else {
        TRY(decoder_read_config(&root, &qwen2_5_vl_decoder, out));
    }
    json_t *empty = json_object();
    status_t status = read_vision(vision ? vision : empty, out);
    json_decref(empty);
    if (status) PASS_ON(status);
    TRY(read_media(&root, out));
    config_finish(&root);
    return STATUS_OK;
}

void qwen_free_config(model_config_t *config) {
    free(config->family_config);
    config->family_config = NULL;
}
