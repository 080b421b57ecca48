// config.json of Qwen2.5-VL and Qwen2: both spellings, class defaults where a key is absent.
#include "common/model/config_reader.h"
#include "common/model/qwen2_5_vl.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 14, MAX_VOCABULARY = 1 << 24 };

static const char *const silu[] = {"silu", NULL};

// Keys every transformers config may carry that change nothing here.
static const char *const common_keys[] = {"model_type",
                                          "architectures",
                                          "torch_dtype",
                                          "dtype",
                                          "transformers_version",
                                          "_name_or_path",
                                          "use_cache",
                                          "initializer_range",
                                          "attention_dropout",
                                          "max_position_embeddings",
                                          "return_dict",
                                          "output_hidden_states",
                                          "output_attentions",
                                          "chunk_size_feed_forward",
                                          "problem_type",
                                          "is_encoder_decoder",
                                          "id2label",
                                          "label2id",
                                          NULL};

// rope_theta, rope_scaling (4.x) and rope_parameters (5.x), wherever the text keys are.
static status_t read_rope(config_reader_t *reader, bool sections, model_config_t *out) {
    const char *const types[] = {"default", "mrope", NULL};
    const json_t *old, *new;
    double theta = 1e6;
    TRY(config_number(reader, "rope_theta", 1.0, 1e12, &theta));
    TRY(config_object(reader, "rope_scaling", &old));
    TRY(config_object(reader, "rope_parameters", &new));
    const json_t *objects[2] = {old, new};
    int section[3] = {16, 24, 24}, count = 3;
    bool given = false;
    for (int i = 0; i < 2; i++) {
        if (!objects[i]) continue;
        config_reader_t rope = config_reader(objects[i], i ? "rope_parameters" : "rope_scaling");
        TRY(config_choice(&rope, "rope_type", types));
        TRY(config_choice(&rope, "type", types));
        TRY(config_number(&rope, "rope_theta", 1.0, 1e12, &theta));
        given = given || config_get(&rope, "mrope_section");
        TRY(config_integers(&rope, "mrope_section", section, 3, &count));
        config_finish(&rope);
    }
    out->rope_theta = (float)theta;
    int half = out->head_dim / 2;
    if (!sections) {
        out->rope_sections[0] = half;
        return STATUS_OK;
    }
    if (count != 3 || section[0] + section[1] + section[2] != half)
        FAIL(STATUS_INVALID,
             "%s: mrope_section (%d, %d, %d%s) must have three entries that sum to half the head size, %d",
             reader->where, section[0], section[1], section[2], given ? "" : ", the default", half);
    memcpy(out->rope_sections, section, sizeof(section));
    return STATUS_OK;
}

static status_t read_sliding(config_reader_t *reader, model_config_t *out, qwen_config_t *qwen) {
    const char *const kinds[] = {"full_attention", "sliding_attention"};
    bool use = false;
    int window = 4096, first = out->has_vision ? 80 : 28;
    TRY(config_boolean(reader, "use_sliding_window", &use));
    TRY(config_integer(reader, "sliding_window", 1, INT32_MAX, &window));
    TRY(config_integer(reader, "max_window_layers", 0, INT32_MAX, &first));
    const json_t *types = config_get(reader, "layer_types");
    if (!use) return STATUS_OK;
    qwen->sliding_window = window;
    if (types && (!json_is_array(types) || json_array_size(types) != (size_t)out->layers))
        FAIL(STATUS_INVALID, "%s: 'layer_types' must be a list of %d entries", reader->where, out->layers);
    for (int i = 0; i < out->layers; i++) {
        qwen->sliding[i] = i >= first;
        if (!types) continue;
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        if (!type || (strcmp(type, kinds[0]) != 0 && strcmp(type, kinds[1]) != 0))
            FAIL(STATUS_INVALID, "%s: 'layer_types' may hold '%s' and '%s'", reader->where, kinds[0], kinds[1]);
        qwen->sliding[i] = !strcmp(type, kinds[1]);
    }
    return STATUS_OK;
}

// The decoder's keys. `out` holds the class defaults.
static status_t read_text(config_reader_t *reader, bool sections, model_config_t *out) {
    double eps = (double)out->rms_eps;
    out->kv_heads = out->kv_heads ? out->kv_heads : out->heads;
    TRY(config_integer(reader, "vocab_size", 2, MAX_VOCABULARY, &out->vocabulary));
    TRY(config_integer(reader, "hidden_size", 1, MAX_WIDTH, &out->hidden));
    TRY(config_integer(reader, "intermediate_size", 1, MAX_WIDTH, &out->intermediate));
    TRY(config_integer(reader, "num_hidden_layers", 1, QWEN_MAX_LAYERS, &out->layers));
    TRY(config_integer(reader, "num_attention_heads", 1, MAX_HEADS, &out->heads));
    TRY(config_integer(reader, "num_key_value_heads", 1, MAX_HEADS, &out->kv_heads));
    if (json_is_null(json_object_get(reader->object, "num_key_value_heads"))) out->kv_heads = out->heads;
    TRY(config_choice(reader, "hidden_act", silu));
    TRY(config_number(reader, "rms_norm_eps", 0.0, 1.0, &eps));
    TRY(config_boolean(reader, "tie_word_embeddings", &out->tied_embeddings));
    int count = out->bos_token >= 0;
    TRY(config_integers(reader, "bos_token_id", &out->bos_token, 1, &count));
    TRY(config_integers(reader, "pad_token_id", &out->pad_token, 1, &count));
    TRY(config_integers(reader, "eos_token_id", out->eos_tokens, 8, &out->eos_token_count));
    out->rms_eps = (float)eps;
    if (out->hidden % out->heads || out->heads % out->kv_heads)
        FAIL(STATUS_INVALID,
             "%s: hidden_size %d must be a multiple of num_attention_heads %d, and that of num_key_value_heads %d",
             reader->where, out->hidden, out->heads, out->kv_heads);
    out->head_dim = out->hidden / out->heads;
    int stated = out->head_dim;
    TRY(config_integer(reader, "head_dim", 1, ATTENTION_MAX_HEAD_DIM, &stated));
    if (stated != out->head_dim || out->head_dim % 2 || out->head_dim > ATTENTION_MAX_HEAD_DIM)
        FAIL(STATUS_INVALID,
             "%s: a head size of %d (hidden_size %d over %d heads) is not possible here: it must be %s%d",
             reader->where, stated, out->hidden, out->heads, stated != out->head_dim ? "" : "even and at most ",
             stated != out->head_dim ? out->head_dim : (int)ATTENTION_MAX_HEAD_DIM);
    TRY(read_rope(reader, sections, out));
    TRY(read_sliding(reader, out, out->family_config));
    config_ignore(reader, common_keys);
    return STATUS_OK;
}

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
    config_ignore(&vision, common_keys);
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

static void text_defaults(model_config_t *out) {
    out->bos_token = out->pad_token = -1;
    out->image = (image_rules_t){.image_token = -1, .vision_start = -1, .vision_end = -1};
}

// text_config of a nested file; it may repeat the tie and the ids of the media tokens.
static status_t read_nested_text(const json_t *nested, model_config_t *out) {
    const char *const repeated[] = {"image_token_id",      "video_token_id",  "vision_start_token_id",
                                    "vision_end_token_id", "vision_token_id", NULL};
    config_reader_t reader = config_reader(nested, "text_config");
    bool tied = out->tied_embeddings;
    TRY(read_text(&reader, true, out));
    out->tied_embeddings = out->tied_embeddings || tied;
    config_ignore(&reader, repeated);
    config_finish(&reader);
    return STATUS_OK;
}

status_t qwen_read_config(const json_t *config, model_config_t *out) {
    TRY(ALLOCATE((qwen_config_t **)&out->family_config, 1));
    text_defaults(out);
    out->vocabulary = 152064;
    out->hidden = 8192;
    out->intermediate = 29568;
    out->layers = 80;
    out->heads = 64;
    out->kv_heads = 8;
    out->rms_eps = 1e-5F;
    out->bos_token = 151643;
    out->eos_tokens[0] = 151645;
    out->eos_token_count = 1;
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
        config_ignore(&root, common_keys);
        TRY(config_integers(&root, "eos_token_id", out->eos_tokens, 8, &out->eos_token_count));
    } else {
        TRY(read_text(&root, true, out));
    }
    json_t *empty = json_object();
    status_t status = read_vision(vision ? vision : empty, out);
    json_decref(empty);
    if (status) PASS_ON(status);
    TRY(read_media(&root, out));
    config_finish(&root);
    return STATUS_OK;
}

status_t qwen2_read_config(const json_t *config, model_config_t *out) {
    TRY(ALLOCATE((qwen_config_t **)&out->family_config, 1));
    text_defaults(out);
    out->vocabulary = 151936;
    out->hidden = 4096;
    out->intermediate = 22016;
    out->layers = out->heads = out->kv_heads = 32;
    out->rms_eps = 1e-6F;
    config_reader_t root = config_reader(config, "config.json");
    TRY(read_text(&root, false, out));
    config_finish(&root);
    return STATUS_OK;
}

void qwen_free_config(model_config_t *config) {
    free(config->family_config);
    config->family_config = NULL;
}
