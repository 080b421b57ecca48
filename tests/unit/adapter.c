// Adapters: which layers a pattern takes, what an adapter computes, PEFT folders out and in.
#include "tests/lib/parity.h"

#include <unistd.h>

enum { PATH = 1024 };

static char folder[PATH - 128];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "%s/adapter-test-XXXXXX", POISE_BINARY_DIR);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[PATH];
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static model_t *tiny_model(device_t *device) {
    char path[PATH];
    snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/gqa4_window56_hub", POISE_SOURCE_DIR);
    return parity_model(path, device);
}

static int adapted(const model_t *model, const char *part) {
    int count = 0;
    for (int i = 0; i < model->parameter_count; i++)
        count += model->adapter[i] && (!part || strstr(model->spec[i].name, part));
    return count;
}

static int adapt(device_t *device, const char *pattern, const char *part) {
    model_t *model = tiny_model(device);
    check(model_add_adapters(model, &pattern, 1, 2, 4.0F, 7));
    int all = adapted(model, NULL);
    assert_int_equal(adapted(model, part), all);
    model_close(model);
    return all;
}

static void test_patterns(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    assert_int_equal(adapt(device, "q_proj", "self_attn.q_proj"), 2);
    assert_int_equal(adapt(device, "gate_proj", "mlp.gate_proj"), 2 + 3);
    assert_int_equal(adapt(device, "visual\\..*", "visual."), 3 * 5 + 2);
    assert_int_equal(adapt(device, "layers.1.self_attn.(q|v)_proj", "model.layers.1.self_attn"), 2);
    assert_int_equal(adapt(device, "language_model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"), 1);
    assert_int_equal(adapt(device, "merger.mlp.[02]", "merger"), 2);
    device_close(device);
}

static void refuse(status_t status, const char *reason) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
}

static void test_refusals(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    model_t *model = tiny_model(device);
    const char *const nothing[] = {"q_proj", "q_prj"}, *const broken[] = {"q_(proj"}, *const head[] = {"lm_head"};
    const char *const inside[] = {"proj"};
    refuse(model_add_adapters(model, nothing, 2, 2, 4.0F, 7), "'q_prj' matches no linear layer");
    refuse(model_add_adapters(model, broken, 1, 2, 4.0F, 7), "not a regular expression");
    refuse(model_add_adapters(model, head, 1, 2, 4.0F, 7), "matches no linear layer");
    refuse(model_add_adapters(model, nothing, 0, 2, 4.0F, 7), "one module pattern");
    refuse(model_add_adapters(model, nothing, 1, 0, 4.0F, 7), "rank");
    refuse(model_add_adapters(model, nothing, 1, 2, NAN, 7), "alpha");
    assert_int_equal(adapted(model, NULL), 0);
    // A suffix counts after a dot only: attn.proj is meant, q_proj is not.
    check(model_add_adapters(model, inside, 1, 2, 4.0F, 7));
    assert_int_equal(adapted(model, "attn.proj"), adapted(model, NULL));
    refuse(model_add_adapters(model, nothing, 1, 2, 4.0F, 7), "already");
    refuse(model_load_adapter(model, folder), "adapter_config.json");
    model_close(model);
    device_close(device);
}

static float *logprobs(model_t *model, int *count) {
    char path[PATH];
    safetensors_t *file;
    prompt_t prompt;
    batch_t batch;
    head_output_t *head;
    snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/gqa4_window56_hub/golden.safetensors", POISE_SOURCE_DIR);
    check(safetensors_open(path, &file));
    assert_true(parity_prompt(model, file, 0, &prompt));
    batch_sequence_t sequence = parity_sequence(&prompt, 0);
    check(batch_build(model, &sequence, 1, &batch));
    tape_t *tape = parity_tape(model, &batch, RECOMPUTE_NONE, false);
    check(batch_forward(model, tape, &batch, 1.0F, false, &head));
    float *out = malloc((size_t)head->count * sizeof(float));
    memcpy(out, head->logprob, (size_t)head->count * sizeof(float));
    *count = head->count;
    tape_close(tape);
    batch_free(&batch);
    parity_free_prompt(&prompt);
    safetensors_close(file);
    return out;
}

// A fresh adapter changes nothing (B is zero); one with another rank and alpha for a layer survives its files.
static void test_round_trip(void **state) {
    (void)state;
    char path[PATH];
    const char *const patterns[] = {"q_proj", "down_proj", "merger.mlp.0"};
    int count;
    device_t *device;
    check(device_open("cpu", 2, &device));
    model_t *model = tiny_model(device);
    float *plain = logprobs(model, &count);
    check(model_add_adapters(model, patterns, 3, 4, 8.0F, 5));
    float *fresh = logprobs(model, &count);
    for (int i = 0; i < count; i++) assert_true(fresh[i] == plain[i]);
    for (int i = 0, n = 0; i < model->parameter_count; i++) {
        adapter_t *adapter = model->adapter[i];
        if (!adapter) continue;
        for (int e = 0; e < adapter->b.value.rows * adapter->b.value.columns; e++)
            ((float *)adapter->b.value.data)[e] = (float)((e + n) % 13 - 6) / 32.0F;
        if (n++ == 1) {
            adapter->alpha = 3.0F;
            adapter->scale = 0.75F;
        }
    }
    float *changed = logprobs(model, &count);
    double most = 0;
    for (int i = 0; i < count; i++) most = fmax(most, fabs((double)(changed[i] - plain[i])));
    assert_true(most > 0.05);
    snprintf(path, sizeof(path), "%s/saved", folder);
    check(model_save_adapter(model, "a/base", path));
    check(model_save_adapter(model, "a/base", path)); // replaces the first
    model_t *other = tiny_model(device);
    int64_t version = other->vision_version;
    check(model_load_adapter(other, path));
    assert_true(other->vision_version > version);
    assert_int_equal(adapted(other, NULL), adapted(model, NULL));
    float *again = logprobs(other, &count);
    assert_memory_equal(again, changed, (size_t)count * sizeof(float));
    free(plain);
    free(fresh);
    free(changed);
    free(again);
    model_close(other);
    model_close(model);
    device_close(device);
}

static void test_trained_tensors(void **state) {
    (void)state;
    const char *const pattern = "v_proj";
    device_t *device;
    trained_tensor_t *list;
    int count;
    uint32_t flags = 0;
    int64_t sum[4096] = {0}, trainable, total, whole;
    check(device_open("cpu", 1, &device));
    model_t *model = tiny_model(device);
    model_count(model, PART_LANGUAGE, &trainable, &whole);
    assert_int_equal(trainable, 0);
    check(model_add_adapters(model, &pattern, 1, 2, 4.0F, 7));
    for (int i = 0; i < model->parameter_count; i++) {
        if (!model->adapter[i]) continue;
        model->adapter[i]->a.sink = (gradient_sink_t){sum, 30, &flags};
        model->adapter[i]->b.sink = (gradient_sink_t){sum, 30, &flags};
    }
    int norm = model_find(model, "model.norm.weight");
    model->parameter[norm].sink = (gradient_sink_t){sum, 30, &flags};
    check(model_trained_tensors(model, &list, &count));
    assert_int_equal(count, 5);
    assert_string_equal(list[0].name, "model.norm.weight");
    assert_string_equal(list[1].name, "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight");
    assert_string_equal(list[2].name, "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight");
    assert_string_equal(list[4].name, "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight");
    int64_t wanted = 0;
    for (int i = 0; i < count; i++) wanted += list[i].elements;
    model_count(model, PART_LANGUAGE, &trainable, &total);
    assert_int_equal(trainable, wanted);
    assert_int_equal(total, whole + wanted - list[0].elements);
    free(list);
    model_close(model);
    device_close(device);
}

static void write_text(const char *name, const char *text) {
    char path[PATH];
    snprintf(path, sizeof(path), "%s/broken/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void write_tensor(const char *name, int64_t rows, int64_t columns) {
    char path[PATH];
    float *values = calloc((size_t)(rows * columns), sizeof(float));
    int64_t shape[2] = {rows, columns};
    safetensors_item_t item = {.name = name, .dtype = DTYPE_F32, .dimensions = 2, .shape = shape, .data = values};
    snprintf(path, sizeof(path), "%s/broken/adapter_model.safetensors", folder);
    check(safetensors_write(path, &item, 1, "pt", NULL, NULL));
    free(values);
}

static void refuse_load(device_t *device, const char *reason) {
    char path[PATH];
    model_t *model = tiny_model(device);
    snprintf(path, sizeof(path), "%s/broken", folder);
    refuse(model_load_adapter(model, path), reason);
    model_close(model);
}

static void test_broken_folders(void **state) {
    (void)state;
    char path[PATH];
    device_t *device;
    const char *const module = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    char name[256];
    check(device_open("cpu", 1, &device));
    snprintf(path, sizeof(path), "mkdir '%s/broken'", folder);
    assert_int_equal(system(path), 0);
    write_text("adapter_config.json", "{\"peft_type\":\"IA3\"}");
    refuse_load(device, "peft_type");
    write_text("adapter_config.json", "{\"peft_type\":\"LORA\",\"use_dora\":true}");
    refuse_load(device, "use_dora");
    static const char *const refused[] = {"use_dora\":true",
                                          "fan_in_fan_out\":true",
                                          "lora_bias\":true",
                                          "modules_to_save\":[\"lm_head\"]",
                                          "trainable_token_indices\":[1]",
                                          "target_parameters\":[\"x\"]",
                                          "layer_replication\":[[0,1]]",
                                          "use_qalora\":true",
                                          "alora_invocation_tokens\":[3]",
                                          "use_bdlora\":{\"a\":1}",
                                          "bias\":\"all\"",
                                          "init_lora_weights\":\"pissa_niter_4\"",
                                          "init_lora_weights\":\"olora\"",
                                          "target_modules\":3",
                                          "target_modules\":[3]",
                                          "target_modules\":\"(\"",
                                          "layers_to_transform\":[1]",
                                          "rank_pattern\":3"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        char text[256], key[64];
        snprintf(text, sizeof(text), "{\"peft_type\":\"LORA\",\"%s}", refused[i]);
        snprintf(key, sizeof(key), "%.*s", (int)strcspn(refused[i], "\""), refused[i]);
        write_text("adapter_config.json", text);
        refuse_load(device, strstr(refused[i], "\"(") ? "not a regular expression" : key);
    }
    // What PEFT writes where nothing of the kind is used is no reason to refuse.
    write_text("adapter_model.bin", "x");
    write_text("adapter_config.json",
               "{\"peft_type\":\"LORA\",\"modules_to_save\":[],\"use_dora\":false,\"lora_bias\":false,"
               "\"trainable_token_indices\":null,\"init_lora_weights\":\"gaussian\",\"use_bdlora\":null,"
               "\"layer_replication\":null,\"exclude_modules\":null,\"loftq_config\":{}}");
    refuse_load(device, "adapter_model.bin, which can run code");
    snprintf(path, sizeof(path), "%s/broken/adapter_model.bin", folder);
    assert_int_equal(unlink(path), 0);
    write_text("adapter_config.json", "{\"peft_type\":\"LORA\",\"r\":0}");
    refuse_load(device, "'r'");
    write_text("adapter_config.json", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}");
    refuse_load(device, "cannot open");
    write_tensor("something", 2, 64);
    refuse_load(device, "fits no linear layer");
    write_tensor("base_model.model.lm_head.lora_A.weight", 2, 64);
    refuse_load(device, "fits no linear layer");
    snprintf(name, sizeof(name), "%s.lora_A.weight", module);
    write_tensor(name, 3, 64);
    refuse_load(device, "shape [2, 64]");
    write_tensor(name, 2, 64);
    refuse_load(device, "is missing");
    // A rank that the tensors do not have is refused before it is paid for.
    write_text("adapter_config.json", "{\"peft_type\":\"LORA\",\"r\":4096,\"lora_alpha\":4}");
    refuse_load(device, "shape [4096, 64]");
    device_close(device);
}

// Whether the tensor of layer 1's q_proj passes the target rules: it lacks its other side, which is looked for last.
static void target(device_t *device, const char *rules, bool taken) {
    char text[512];
    snprintf(text, sizeof(text), "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,%s}", rules);
    write_text("adapter_config.json", text);
    refuse_load(device, taken ? "one of the two" : "does not target");
}

static void test_targets(void **state) {
    (void)state;
    device_t *device;
    char path[PATH];
    check(device_open("cpu", 1, &device));
    snprintf(path, sizeof(path), "mkdir -p '%s/broken'", folder);
    assert_int_equal(system(path), 0);
    write_tensor("base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight", 2, 64);
    target(device, "\"target_modules\":null", true);
    target(device, "\"target_modules\":[\"k_proj\",\"q_proj\"]", true);
    target(device, "\"target_modules\":[\"k_proj\"]", false);
    target(device, "\"target_modules\":[\"_proj\"]", false);
    target(device, "\"target_modules\":[\"attn.q_proj\"]", false);
    target(device, "\"target_modules\":[\"model.language_model.layers.1.self_attn.q_proj\"]", true);
    target(device, "\"target_modules\":\".*q_proj\"", true);
    target(device, "\"target_modules\":\"q_proj\"", false);
    target(device, "\"target_modules\":\"all-linear\"", true);
    target(device, "\"target_modules\":\"All-Linear\",\"exclude_modules\":[\"q_proj\"]", false);
    target(device, "\"target_modules\":[\"q_proj\"],\"exclude_modules\":\".*layers\\\\.1\\\\..*\"", false);
    target(device, "\"target_modules\":[\"q_proj\"],\"exclude_modules\":\"layers\"", true);
    target(device, "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":1", true);
    target(device, "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0,2]", false);
    target(device, "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0,1],\"layers_pattern\":\"layers\"", true);
    target(device, "\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[1],\"layers_pattern\":[\"h\",\"blocks\"]",
           false);
    device_close(device);
}

static void test_requests(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    const char *const all[] = {"all-linear"}, *const excluded[] = {"visual\\..*", "layers.0.*"};
    model_t *model = tiny_model(device);
    adapter_request_t request = {.patterns = all,
                                 .pattern_count = 1,
                                 .excluded = excluded,
                                 .excluded_count = 2,
                                 .rank = 4,
                                 .alpha = 6,
                                 .rank_stabilised = true};
    check(model_request_adapters(model, &request));
    assert_int_equal(adapted(model, NULL), 7);
    assert_int_equal(adapted(model, "model.layers.1."), 7);
    assert_true(model->adapter[model_find(model, "model.layers.1.mlp.up_proj.weight")]->scale == 3.0F);
    model_close(model);
    model = tiny_model(device);
    request.excluded = all;
    request.excluded_count = 1;
    refuse(model_request_adapters(model, &request), "is excluded");
    model_close(model);
    device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_trained_tensors),
        cmocka_unit_test(test_broken_folders), cmocka_unit_test(test_targets),
        cmocka_unit_test(test_requests),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
