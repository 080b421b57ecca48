// Every rule of the text decoders counts: with any one of them switched off in our forward, the log-probs of some
// golden of each family that has the rule move by at least 100 tolerances. So a forward that lacks it would be caught.
//
// Without effect by mathematics, and therefore not listed: a key bias where there is no rope (here there always is, and
// it is listed); the order of rounding in the two norm flavours (fp32 rounds neither).
#include "tests/lib/golden.h"

enum { MOVE_TOLERANCES = 100 };

// Switches a rule off; false: this model does not have it.
typedef bool (*switch_t)(model_t *model);

// ---- rules of attention ----

static bool some_sliding(const model_t *model) {
    bool some = false;
    for (int i = 0; i < model->config.layers; i++) some = some || model->config.decoder.sliding[i];
    return some;
}

static bool window_off(model_t *model) {
    if (!some_sliding(model)) return false;
    model->config.decoder.window = 1 << 30;
    return true;
}

static bool window_longer(model_t *model) {
    if (!some_sliding(model)) return false;
    model->config.decoder.window++;
    return true;
}

static bool layer_types_turned(model_t *model) {
    bool some = some_sliding(model), all = true;
    for (int i = 0; i < model->config.layers; i++) all = all && model->config.decoder.sliding[i];
    if (!some || all) return false;
    for (int i = 0; i < model->config.layers; i++) model->config.decoder.sliding[i] = !model->config.decoder.sliding[i];
    return true;
}

static bool attention_scale_by_hidden(model_t *model) {
    const model_config_t *config = &model->config;
    float other = (float)(1.0 / sqrt((double)config->hidden / config->heads));
    if (fabsf(other - config->decoder.attention_scale) < 1e-6F) return false;
    model->config.decoder.attention_scale = other;
    return true;
}

static bool query_scalar_off(model_t *model) {
    float other = (float)(1.0 / sqrt((double)model->config.head_dim));
    if (fabsf(other - model->config.decoder.attention_scale) < 1e-6F) return false;
    model->config.decoder.attention_scale = other;
    return true;
}

// Query head h reads key head h mod kv_heads, not h / (heads / kv_heads): the same as query heads in another order.
static bool groups_dealt(model_t *model) {
    const model_config_t *config = &model->config;
    const decoder_config_t *decoder = &config->decoder;
    int heads = config->heads, kv = config->kv_heads, size = config->head_dim, group = heads / kv;
    if (kv == 1 || group == 1) return false;
    for (int layer = 0; layer < config->layers; layer++) {
        int first = decoder->first_layer + layer * decoder->layer_parameters;
        matrix_t *q = &model->parameter[first + decoder->place[DECODER_Q]].value;
        matrix_t *o = &model->parameter[first + decoder->place[DECODER_O]].value;
        int bias = decoder->place[DECODER_Q_BIAS];
        float *from[3] = {q->data, o->data, bias < 0 ? NULL : model->parameter[first + bias].value.data};
        size_t count[3] = {(size_t)q->rows * (size_t)q->columns, (size_t)o->rows * (size_t)o->columns, (size_t)q->rows};
        for (int part = 0; part < 3; part++) {
            if (!from[part]) continue;
            float *old = malloc(count[part] * sizeof(float));
            memcpy(old, from[part], count[part] * sizeof(float));
            for (int h = 0; h < heads; h++) {
                int source = h % group * kv + h / group;
                for (int e = 0; e < size; e++) {
                    int to = h * size + e, at = source * size + e;
                    if (part == 0) memcpy(from[0] + to * q->columns, old + at * q->columns, (size_t)q->columns * 4);
                    for (int row = 0; part == 1 && row < o->rows; row++)
                        from[1][row * o->columns + to] = old[row * o->columns + at];
                    if (part == 2) from[2][to] = old[at];
                }
            }
            free(old);
        }
    }
    check(model_parameters_changed(model, NULL, 1));
    return true;
}

// ---- rope ----

static bool rope_off(model_t *model) {
    for (int i = 0; i < 2; i++)
        model->config.decoder.rope[i] = (decoder_rope_t){.type = DECODER_ROPE_LINEAR, .theta = 1e4, .factor = 1e30};
    return true;
}

static bool rope_theta(model_t *model) {
    model->config.decoder.rope[0].theta *= 4;
    return true;
}

static bool rope_scaling_off(model_t *model, int which, decoder_rope_type_t type) {
    decoder_rope_t *rope = &model->config.decoder.rope[which];
    if ((which && !model->config.decoder.two_ropes) || rope->type != type) return false;
    rope->type = DECODER_ROPE_DEFAULT;
    return true;
}

static bool linear_off(model_t *model) {
    return rope_scaling_off(model, 0, DECODER_ROPE_LINEAR);
}

static bool llama3_off(model_t *model) {
    return rope_scaling_off(model, 0, DECODER_ROPE_LLAMA3);
}

static bool local_linear_off(model_t *model) {
    return rope_scaling_off(model, 1, DECODER_ROPE_LINEAR);
}

static bool llama3_as_linear(model_t *model) {
    decoder_rope_t *rope = &model->config.decoder.rope[0];
    if (rope->type != DECODER_ROPE_LLAMA3) return false;
    rope->type = DECODER_ROPE_LINEAR;
    return true;
}

static bool local_rope_off(model_t *model) {
    if (!model->config.decoder.two_ropes || !some_sliding(model)) return false;
    model->config.decoder.two_ropes = false;
    return true;
}

static bool sections_off(model_t *model) {
    decoder_config_t *decoder = &model->config.decoder;
    if (!decoder->rope_sections[1]) return false;
    decoder->rope_sections[0] = model->config.head_dim / 2;
    decoder->rope_sections[1] = decoder->rope_sections[2] = 0;
    return true;
}

// ---- norms, embedding, activation, head ----

static bool head_norms_off(model_t *model) {
    bool had = model->config.decoder.head_norms;
    model->config.decoder.head_norms = false;
    return had;
}

static bool two_norms(model_t *model) {
    bool had = model->config.decoder.four_norms;
    model->config.decoder.four_norms = false;
    return had;
}

static bool other_flavour(model_t *model) {
    norm_flavour_t *norm = &model->config.decoder.norm;
    *norm = *norm == NORM_ONE_PLUS_WEIGHT ? NORM_CAST_THEN_WEIGHT : NORM_ONE_PLUS_WEIGHT;
    return true;
}

static bool eps_off(model_t *model) {
    if (model->config.rms_eps < 1e-3F) return false;
    model->config.rms_eps = 0;
    return true;
}

// Fills the vectors at a place of every layer (or the final norm) with the value that leaves rows as they are.
static bool plain_weight(model_t *model, int which) {
    const decoder_config_t *decoder = &model->config.decoder;
    float value = decoder->norm == NORM_ONE_PLUS_WEIGHT ? 0.0F : 1.0F;
    if (which >= 0 && decoder->place[which] < 0) return false;
    for (int layer = 0; layer < (which < 0 ? 1 : model->config.layers); layer++) {
        int at = which < 0 ? decoder->final_norm
                           : decoder->first_layer + layer * decoder->layer_parameters + decoder->place[which];
        float *weight = model->parameter[at].value.data;
        for (int i = 0; i < model->parameter[at].value.columns; i++) weight[i] = value;
    }
    return true;
}

#define PLAIN(name, which)                                                                                             \
    static bool name(model_t *model) {                                                                                 \
        return plain_weight(model, which);                                                                             \
    }
PLAIN(input_norm, DECODER_INPUT_NORM)
PLAIN(post_attention_norm, DECODER_POST_ATTENTION_NORM)
PLAIN(pre_mlp_norm, DECODER_PRE_MLP_NORM)
PLAIN(post_mlp_norm, DECODER_POST_MLP_NORM)
PLAIN(q_norm, DECODER_Q_NORM)
PLAIN(k_norm, DECODER_K_NORM)
PLAIN(final_norm, -1)

static bool bias_off(model_t *model, decoder_parameter_t which) {
    int *place = &model->config.decoder.place[which];
    if (*place < 0) return false;
    *place = -1;
    return true;
}

#define BIAS(name, which)                                                                                              \
    static bool name(model_t *model) {                                                                                 \
        return bias_off(model, which);                                                                                 \
    }
BIAS(q_bias, DECODER_Q_BIAS)
BIAS(k_bias, DECODER_K_BIAS)
BIAS(v_bias, DECODER_V_BIAS)
BIAS(o_bias, DECODER_O_BIAS)
BIAS(gate_bias, DECODER_GATE_BIAS)
BIAS(up_bias, DECODER_UP_BIAS)
BIAS(down_bias, DECODER_DOWN_BIAS)

static bool embedding_scale_off(model_t *model) {
    bool had = model->config.decoder.embedding_scale > 0;
    model->config.decoder.embedding_scale = 0;
    return had;
}

static bool other_activation(model_t *model) {
    activation_t *kind = &model->config.decoder.activation;
    *kind = *kind == ACTIVATION_SILU ? ACTIVATION_GELU_ERF : ACTIVATION_SILU;
    return true;
}

static bool head_tied(model_t *model) {
    bool had = model->head != model->embedding;
    model->head = model->embedding;
    return had;
}

static const struct {
    const char *name;
    switch_t off;
} rules[] = {
    {"window", window_off},
    {"window's length", window_longer},
    {"order of layer types", layer_types_turned},
    {"attention scale (of hidden / heads)", attention_scale_by_hidden},
    {"query_pre_attn_scalar", query_scalar_off},
    {"grouping of heads", groups_dealt},
    {"rope", rope_off},
    {"rope theta", rope_theta},
    {"rope linear", linear_off},
    {"rope llama3", llama3_off},
    {"rope llama3, not linear", llama3_as_linear},
    {"local rope", local_rope_off},
    {"local rope linear", local_linear_off},
    {"m-rope sections", sections_off},
    {"q and k norms", head_norms_off},
    {"four norms", two_norms},
    {"norm flavour", other_flavour},
    {"norm eps", eps_off},
    {"weight of input norm", input_norm},
    {"weight of post-attention norm", post_attention_norm},
    {"weight of pre-MLP norm", pre_mlp_norm},
    {"weight of post-MLP norm", post_mlp_norm},
    {"weight of q norm", q_norm},
    {"weight of k norm", k_norm},
    {"weight of final norm", final_norm},
    {"q bias", q_bias},
    {"k bias", k_bias},
    {"v bias", v_bias},
    {"o bias", o_bias},
    {"gate bias", gate_bias},
    {"up bias", up_bias},
    {"down bias", down_bias},
    {"embedding scale", embedding_scale_off},
    {"activation", other_activation},
    {"untied head", head_tied},
};
enum { RULES = sizeof(rules) / sizeof(rules[0]) };

// What must be there to be switched off, by family; all of them have the rest of `common`.
static const char *const common[] = {"attention scale (of hidden / heads)",
                                     "grouping of heads",
                                     "rope",
                                     "rope theta",
                                     "norm flavour",
                                     "norm eps",
                                     "weight of input norm",
                                     "weight of post-attention norm",
                                     "weight of final norm",
                                     "activation",
                                     "untied head",
                                     NULL};
static const char *const qkv[] = {"q bias", "k bias", "v bias", NULL};
static const struct {
    const char *family, *rule[24]; // ending with NULL
} expected[] = {
    {"llama",
     {"rope linear", "rope llama3", "rope llama3, not linear", "q bias", "k bias", "v bias", "o bias", "gate bias",
      "up bias", "down bias"}},
    {"mistral", {"window", "window's length", "rope linear"}},
    {"qwen2",
     {"window", "window's length", "order of layer types", "rope llama3", "rope llama3, not linear", "q bias", "k bias",
      "v bias"}},
    {"gemma3_text",
     {"window", "window's length", "order of layer types", "query_pre_attn_scalar", "rope linear", "rope llama3",
      "local rope", "local rope linear", "q and k norms", "four norms", "weight of pre-MLP norm",
      "weight of post-MLP norm", "weight of q norm", "weight of k norm", "embedding scale", "o bias"}},
    {"qwen2_5_vl", {"m-rope sections"}},
};

// The largest move of a log-prob with a rule switched off; below 0 where the model does not have it.
static double move_without(const char *name, switch_t off, char *family, size_t bytes) {
    golden_t golden;
    head_output_t *head;
    double move = -1;
    golden_open(&golden, name);
    snprintf(family, bytes, "%s", golden.model->family->name);
    if (off(golden.model)) {
        tape_t *tape = parity_tape(golden.model, &golden.batch, RECOMPUTE_NONE, false);
        check(batch_forward(golden.model, tape, &golden.batch, 1.0F, false, &head));
        move = golden_distance(&golden, head);
        tape_close(tape);
    }
    golden_close(&golden);
    return move;
}

static void test_rules(void **state) {
    (void)state;
    golden_list_t list = golden_all();
    json_t *families = json_object();
    for (int rule = 0; rule < RULES; rule++) {
        for (int i = 0; i < list.count; i++) {
            char family[64];
            double move = move_without(list.name[i], rules[rule].off, family, sizeof(family));
            if (move < 0) continue;
            json_t *moves = json_object_get(families, family);
            if (!moves) json_object_set_new(families, family, moves = json_object());
            if (move >= json_number_value(json_object_get(moves, rules[rule].name)))
                json_object_set_new(moves, rules[rule].name, json_real(move));
        }
    }
    const char *family, *rule;
    json_t *moves, *move;
    int weak = 0, seen = 0;
    json_object_foreach(families, family, moves) {
        json_object_foreach(moves, rule, move) {
            seen++;
            if (json_number_value(move) >= MOVE_TOLERANCES * 1e-4) continue;
            print_message("%s: no golden moves by 100 tolerances without: %s (%.1e)\n", family, rule,
                          json_number_value(move));
            weak++;
        }
        print_message("%-12s %d rules switched off\n", family, (int)json_object_size(moves));
    }
    assert_int_equal(weak, 0);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        moves = json_object_get(families, expected[i].family);
        assert_non_null(moves);
        const char *const *lists[2] = {expected[i].rule, strcmp(expected[i].family, "qwen2_5_vl") ? common : qkv};
        for (int l = 0; l < 2; l++)
            for (const char *const *name = lists[l]; *name; name++)
                if (!json_object_get(moves, *name)) fail_msg("no golden of %s has: %s", expected[i].family, *name);
    }
    print_message("%d switches in all\n", seen);
    json_decref(families);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rules)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
