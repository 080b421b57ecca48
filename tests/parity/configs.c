// config.json of the text families as transformers resolves it: absent keys, nulls, both spellings of rope and windows;
// and what Poise does not do is refused by name.
#include "tests/lib/parity.h"

#include "common/model/decoder.h"

#include <unistd.h>

static char folder[] = "/tmp/poise-configs.XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    char path[128];
    (void)state;
    snprintf(path, sizeof(path), "%s/config.json", folder);
    unlink(path);
    return rmdir(folder);
}

static status_t open_config(const json_t *config, model_t **out) {
    char path[128];
    snprintf(path, sizeof(path), "%s/config.json", folder);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    return model_open(folder, NULL, out);
}

static int wanted_int(const json_t *wanted, const char *key) {
    const json_t *value = json_object_get(wanted, key);
    assert_true(json_is_integer(value) || json_is_boolean(value));
    return json_is_boolean(value) ? json_is_true(value) : (int)json_integer_value(value);
}

static bool near(double have, double wanted) {
    return fabs(have - wanted) <= 1e-6 * fabs(wanted);
}

static activation_t activation_of(const char *name) {
    if (!strcmp(name, "SiLUActivation") || !strcmp(name, "SiLU")) return ACTIVATION_SILU;
    if (!strcmp(name, "QuickGELUActivation")) return ACTIVATION_QUICK_GELU;
    if (!strcmp(name, "GELUActivation")) return ACTIVATION_GELU_ERF;
    if (!strcmp(name, "GELUTanh") || !strcmp(name, "NewGELUActivation")) return ACTIVATION_GELU_TANH;
    fail_msg("no activation %s", name);
    return ACTIVATION_SILU;
}

static bool check_frequencies(const model_config_t *config, const json_t *wanted) {
    float have[ATTENTION_MAX_HEAD_DIM / 2];
    for (int kind = 0; kind < 2; kind++) {
        const json_t *points = json_array_get(wanted, (size_t)kind);
        decoder_inverse_frequencies(&config->decoder.rope[kind && config->decoder.two_ropes], config->head_dim, have);
        for (size_t i = 0; i < json_array_size(points); i++) {
            const json_t *point = json_array_get(points, i);
            json_int_t at = json_integer_value(json_array_get(point, 0));
            double value = json_number_value(json_array_get(point, 1));
            assert_true(at < config->head_dim / 2);
            if (!near((double)have[at], value)) {
                print_message("frequency %d of rope %d: %.9g, and it should be %.9g\n", (int)at, kind, (double)have[at],
                              value);
                return false;
            }
        }
    }
    return true;
}

static bool check_windows(const model_config_t *config, const json_t *wanted) {
    for (int i = 0; i < config->layers; i++) {
        int have = config->decoder.sliding[i] ? config->decoder.window : 0;
        if (have != (int)json_integer_value(json_array_get(wanted, (size_t)i))) return false;
    }
    return json_array_size(wanted) == (size_t)config->layers;
}

static bool check_ids(const model_config_t *config, const json_t *wanted) {
    const json_t *eos = json_object_get(wanted, "eos");
    bool same =
        config->bos_token == wanted_int(wanted, "bos") && config->decoder.padding == wanted_int(wanted, "padding");
    same = same && json_array_size(eos) == (size_t)config->eos_token_count;
    for (int i = 0; same && i < config->eos_token_count; i++)
        same = config->eos_tokens[i] == (int)json_integer_value(json_array_get(eos, (size_t)i));
    return same;
}

static void check_resolved(const model_t *model, const json_t *wanted, const char *text) {
    const model_config_t *config = &model->config;
    const decoder_config_t *decoder = &config->decoder;
    const struct {
        const char *key;
        int have;
    } numbers[] = {
        {"vocabulary", config->vocabulary}, {"hidden", config->hidden},        {"intermediate", config->intermediate},
        {"layers", config->layers},         {"heads", config->heads},          {"kv_heads", config->kv_heads},
        {"head_dim", config->head_dim},     {"tied", config->tied_embeddings}, {"parameters", model->parameter_count}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (numbers[i].have != wanted_int(wanted, numbers[i].key))
            fail_msg("%s: %s is %d, and it should be %d", text, numbers[i].key, numbers[i].have,
                     wanted_int(wanted, numbers[i].key));
    int64_t elements = 0;
    for (int i = 0; i < model->parameter_count; i++) elements += model->spec[i].elements;
    if (elements != json_integer_value(json_object_get(wanted, "elements"))) fail_msg("%s: elements", text);
    if (!near((double)config->rms_eps, json_number_value(json_object_get(wanted, "eps")))) fail_msg("%s: eps", text);
    if (!near((double)decoder->attention_scale, json_number_value(json_object_get(wanted, "scale"))))
        fail_msg("%s: scale %g", text, (double)decoder->attention_scale);
    double scale = decoder->embedding_scale > 0 ? (double)decoder->embedding_scale : 1;
    if (!near(scale, json_number_value(json_object_get(wanted, "embedding_scale")))) fail_msg("%s: embeddings", text);
    if (decoder->activation != activation_of(json_string_value(json_object_get(wanted, "activation"))))
        fail_msg("%s: activation", text);
    if (!check_ids(config, wanted)) fail_msg("%s: ids", text);
    if (!check_windows(config, json_object_get(wanted, "windows"))) fail_msg("%s: windows", text);
    if (!check_frequencies(config, json_object_get(wanted, "frequencies"))) fail_msg("%s: rope", text);
}

static void test_resolved(void **state) {
    (void)state;
    json_t *golden = json_load_file(POISE_SOURCE_DIR "/tests/goldens/families/configs.json", 0, NULL);
    const json_t *cases = json_object_get(golden, "cases");
    assert_true(json_array_size(cases) >= 250);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *item = json_array_get(cases, i), *config = json_object_get(item, "config");
        char *text = json_dumps(config, JSON_COMPACT);
        model_t *model;
        check(open_config(config, &model));
        check_resolved(model, json_object_get(item, "resolved"), text);
        model_close(model);
        free(text);
    }
    json_decref(golden);
}

// ---- what is refused ----

static const struct {
    const char *config, *reason;
} refusals[] = {
    {"{'model_type':'llama','rope_scaling':{'rope_type':'dynamic','factor':2.0}}", "the rope type 'dynamic' is not"},
    {"{'model_type':'qwen2','rope_scaling':{'type':'yarn','factor':4.0}}", "the rope type 'yarn' is not"},
    {"{'model_type':'mistral','rope_parameters':{'rope_type':'longrope'}}", "the rope type 'longrope' is not"},
    {"{'model_type':'llama','rope_scaling':{'type':'mrope'}}", "the rope type 'mrope' is not"},
    {"{'model_type':'llama','rope_scaling':{'rope_type':7}}", "the rope type 'no text' is not"},
    {"{'model_type':'llama','rope_scaling':{'rope_type':'linear'}}", "needs the number 'factor'"},
    {"{'model_type':'llama','rope_scaling':{'rope_type':'linear','factor':0}}", "'factor' must be a number"},
    {"{'model_type':'llama','rope_scaling':{'rope_type':'llama3','factor':8}}", "needs the number 'low_freq_factor'"},
    {"{'model_type':'llama','rope_scaling':{'rope_type':'llama3','factor':8,'low_freq_factor':1}}",
     "needs the number 'high_freq_factor'"},
    {"{'model_type':'llama','rope_scaling':8}", "'rope_scaling' must be an object"},
    {"{'model_type':'llama','partial_rotary_factor':0.5}", "'partial_rotary_factor' is 0.5"},
    {"{'model_type':'llama','rope_parameters':{'partial_rotary_factor':0.25}}", "'partial_rotary_factor' is 0.25"},
    {"{'model_type':'qwen2','rope_parameters':{'full_attention':{'rope_type':'default'}}}",
     "rope_parameters by layer type"},
    {"{'model_type':'gemma3_text','rope_parameters':{'sliding_attention':{'rope_type':'yarn'}}}",
     "sliding_attention: the rope type 'yarn'"},
    {"{'model_type':'gemma3_text','final_logit_softcapping':30.0}", "'final_logit_softcapping' is set"},
    {"{'model_type':'gemma3_text','use_bidirectional_attention':true}", "'use_bidirectional_attention' is set"},
    {"{'model_type':'gemma3_text','sliding_window':null}", "'sliding_window' is null"},
    {"{'model_type':'gemma3_text','layer_types':['full_attention']}", "'layer_types' must be a list of 26"},
    {"{'model_type':'gemma3_text','num_hidden_layers':1,'layer_types':['chunked_attention']}",
     "'layer_types' may hold"},
    {"{'model_type':'gemma3_text','head_dim':512}", "'head_dim' must be a whole number from 1 to 256"},
    {"{'model_type':'gemma3_text','query_pre_attn_scalar':0}", "'query_pre_attn_scalar' must be"},
    {"{'model_type':'gemma3_text','sliding_window_pattern':0}", "'sliding_window_pattern' must be"},
    {"{'model_type':'mistral','sliding_window':0}", "'sliding_window' must be"},
    {"{'model_type':'mistral','head_dim':15}", "a head size of 15"},
    {"{'model_type':'mistral','num_attention_heads':6}", "num_attention_heads 6"},
    {"{'model_type':'llama','num_attention_heads':7}", "must be a multiple of num_attention_heads 7"},
    {"{'model_type':'llama','hidden_act':'relu'}", "'hidden_act' is 'relu'"},
    {"{'model_type':'llama','num_hidden_layers':100000}", "'num_hidden_layers' must be"},
    {"{'model_type':'llama','vocab_size':1e300}", "'vocab_size' must be"},
    {"{'model_type':'gemma2'}", "the known ones are qwen2_5_vl, qwen2, llama, mistral, gemma3_text"},
};

static void test_refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
        char text[512];
        model_t *model = NULL;
        snprintf(text, sizeof(text), "%s", refusals[i].config);
        for (char *at = text; *at; at++)
            if (*at == '\'') *at = '"';
        json_t *config = json_loads(text, 0, NULL);
        assert_non_null(config);
        status_t status = open_config(config, &model);
        if (!status) fail_msg("%s was taken", text);
        assert_null(model);
        assert_int_equal(status_kind(status), STATUS_INVALID);
        if (!strstr(status_message(status), refusals[i].reason))
            fail_msg("%s: '%s' lacks '%s'", text, status_message(status), refusals[i].reason);
        status_free(status);
        json_decref(config);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resolved), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
