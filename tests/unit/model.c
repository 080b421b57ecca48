// Models as folders: configurations of both generations, what is refused, initialisation, saving.
#include "tests/lib/parity.h"

#include <unistd.h>

enum { PATH = 1024 };

static char folder[PATH - 128];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "%s/model-test-XXXXXX", POISE_BINARY_DIR);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[PATH];
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static void write_text(const char *name, const char *text) {
    char path[PATH];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void remove_file(const char *name) {
    char path[PATH];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    unlink(path);
}

#define VISION                                                                                                         \
    "\"vision_config\":{\"depth\":2,\"hidden_size\":32,\"num_heads\":2,\"intermediate_size\":40,\"out_hidden_size\":"  \
    "64,"                                                                                                              \
    "\"window_size\":56,\"fullatt_block_indexes\":[1]}"
#define TEXT                                                                                                           \
    "\"vocab_size\":160,\"hidden_size\":64,\"intermediate_size\":80,\"num_hidden_layers\":2,"                          \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2"
#define MEDIA "\"image_token_id\":153,\"video_token_id\":154,\"vision_start_token_id\":151,\"vision_end_token_id\":152"
#define ROPE  "\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1,2,5]}"

static model_t *open_text(device_t *device, const char *config) {
    model_t *model;
    write_text("config.json", config);
    check(model_open(folder, device, &model));
    return model;
}

static void refuse(device_t *device, const char *config, const char *reason) {
    model_t *model = NULL;
    write_text("config.json", config);
    status_t status = model_open(folder, device, &model);
    if (!status) fail_msg("a configuration was taken that should be refused for: %s", reason);
    assert_null(model);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
}

static void test_spellings(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    model_t *flat = open_text(device, "{\"model_type\":\"qwen2_5_vl\"," TEXT "," MEDIA "," ROPE "," VISION
                                      ",\"rope_theta\":5e5,\"rms_norm_eps\":1e-6,\"eos_token_id\":155}");
    model_t *nested = open_text(
        device, "{\"model_type\":\"qwen2_5_vl\"," MEDIA "," VISION ",\"text_config\":{" TEXT
                ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000.0,\"mrope_section\":[1,2,5]},"
                "\"rms_norm_eps\":1e-6,\"eos_token_id\":[155]}}");
    const model_config_t *a = &flat->config, *b = &nested->config;
    assert_int_equal(a->hidden, b->hidden);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_dim, 16);
    assert_true(a->decoder.rope[0].theta == 500000.0 && b->decoder.rope[0].theta == 500000.0);
    assert_true(a->rms_eps == 1e-6F && b->rms_eps == 1e-6F);
    assert_memory_equal(a->decoder.rope_sections, b->decoder.rope_sections, sizeof(a->decoder.rope_sections));
    assert_int_equal(a->eos_token_count, 1);
    assert_int_equal(b->eos_tokens[0], 155);
    assert_false(a->tied_embeddings);
    assert_int_equal(a->image.media_token_count, 4);
    assert_int_equal(a->image.media_tokens[0], 151);
    assert_int_equal(flat->parameter_count, nested->parameter_count);
    for (int i = 0; i < flat->parameter_count; i++) assert_string_equal(flat->spec[i].name, nested->spec[i].name);
    // Without preprocessor_config.json the class defaults hold.
    assert_int_equal(a->image.min_pixels, 3136);
    assert_int_equal(a->image.max_pixels, 1003520);
    model_close(flat);
    model_close(nested);
    device_close(device);
}

static void test_side_files(void **state) {
    (void)state;
    const char *const config = "{\"model_type\":\"qwen2_5_vl\"," TEXT "," MEDIA "," ROPE "," VISION "}";
    device_t *device;
    check(device_open("cpu", 1, &device));
    write_text("preprocessor_config.json", "{\"min_pixels\":784,\"max_pixels\":12845056,\"patch_size\":14}");
    write_text("generation_config.json",
               "{\"eos_token_id\":[155,156],\"pad_token_id\":150,\"temperature\":0.1,\"top_p\":1.0,\"top_k\":20,"
               "\"do_sample\":true,\"repetition_penalty\":1.05,\"min_length\":0,\"max_length\":99,"
               "\"suppress_tokens\":[],\"forced_eos_token_id\":0,\"new_thing\":\"x\","
               "\"transformers_version\":\"4.49.0\",\"use_cache\":true,\"bad_words_ids\":null}");
    model_t *model = open_text(device, config);
    assert_int_equal(model->config.image.min_pixels, 784);
    assert_int_equal(model->config.image.max_pixels, 12845056);
    assert_int_equal(model->config.eos_token_count, 2);
    assert_int_equal(model->config.eos_tokens[1], 156);
    assert_int_equal(model->config.pad_token, 150);
    assert_string_equal(
        model->config.generation_ignored,
        "temperature, top_k, do_sample, repetition_penalty, max_length, forced_eos_token_id, new_thing");
    model_close(model);
    remove_file("preprocessor_config.json");
    remove_file("generation_config.json");
    write_text("processor_config.json", "{\"image_processor\":{\"size\":{\"shortest_edge\":1568,\"longest_edge\":50176}"
                                        ",\"image_mean\":[0.5,0.5,0.25]}}");
    model = open_text(device, config);
    assert_int_equal(model->config.image.min_pixels, 1568);
    assert_int_equal(model->config.image.max_pixels, 50176);
    assert_true(model->config.image.mean[2] == 0.25F);
    model_close(model);
    write_text("processor_config.json", "{\"image_processor\":{\"patch_size\":16}}");
    refuse(device, config, "'patch_size' is 16, but config.json says 14");
    write_text("processor_config.json", "{\"image_processor\":{\"min_pixels\":5000,\"max_pixels\":4000}}");
    refuse(device, config, "5000, is more than the most, 4000");
    remove_file("processor_config.json");
    device_close(device);
}

static void test_defaults(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    // Small widths; everything else by class default.
    model_t *model = open_text(device, "{\"model_type\":\"qwen2\",\"vocab_size\":32,\"hidden_size\":64,"
                                       "\"intermediate_size\":16,\"num_hidden_layers\":1}");
    assert_int_equal(model->config.heads, 32);
    assert_int_equal(model->config.kv_heads, 32);
    assert_int_equal(model->config.head_dim, 2);
    assert_true(model->config.rms_eps == 1e-6F);
    assert_true(model->config.decoder.rope[0].theta == 1e4);
    assert_int_equal(model->config.decoder.rope_sections[0], 1);
    assert_int_equal(model->config.eos_token_count, 0);
    assert_false(model->config.has_vision);
    assert_int_equal(model->config.image.image_token, -1);
    assert_int_equal(model_find(model, "lm_head.weight"), model->head);
    assert_int_equal(model_find(model, "visual.merger.ln_q.weight"), -1);
    model_close(model);
    device_close(device);
}

static void test_refusals(void **state) {
    (void)state;
    device_t *device;
    check(device_open("cpu", 1, &device));
    refuse(device, "{", "not valid JSON");
    refuse(device, "[]", "must hold a JSON object");
    refuse(device, "{\"a\":1,\"a\":2}", "duplicate");
    refuse(device, "{}", "model_type");
    refuse(device, "{\"model_type\":\"gpt2\"}", "the known ones are qwen2_5_vl, qwen2");
    refuse(device, "{\"model_type\":\"qwen2\",\"hidden_size\":100,\"num_attention_heads\":3}", "multiple");
    refuse(device, "{\"model_type\":\"qwen2\",\"hidden_size\":\"64\"}", "'hidden_size' must be a whole number");
    refuse(device, "{\"model_type\":\"qwen2\",\"hidden_size\":-4}", "'hidden_size' must be a whole number");
    refuse(device, "{\"model_type\":\"qwen2\",\"hidden_size\":64.5}", "'hidden_size' must be a whole number");
    refuse(device, "{\"model_type\":\"qwen2\",\"vocab_size\":1e15}", "'vocab_size' must be a whole number");
    refuse(device, "{\"model_type\":\"qwen2\",\"hidden_act\":\"relu\"}", "'hidden_act' is 'relu'");
    refuse(device, "{\"model_type\":\"qwen2\"," TEXT ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "'yarn'");
    refuse(device, "{\"model_type\":\"qwen2_5_vl\"," TEXT "," MEDIA "," VISION "}", "mrope_section");
    refuse(device, "{\"model_type\":\"qwen2_5_vl\"," TEXT "," VISION "," ROPE "}", "image_token_id 151655");
    refuse(device, "{\"model_type\":\"qwen2_5_vl\"," TEXT "," MEDIA "," ROPE ",\"vision_config\":{\"depth\":1}}",
           "out_hidden_size 3584");
    device_close(device);
}

// ---- weights ----

static const char *tiny(void) {
    static char path[PATH];
    snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/gqa6_window112_v5", POISE_SOURCE_DIR);
    return path;
}

static void test_save_and_load(void **state) {
    (void)state;
    char path[PATH], file[PATH + 64];
    device_t *device;
    model_t *saved, *again;
    check(device_open("cpu", 1, &device));
    check(model_open(tiny(), device, &saved));
    int64_t version = saved->vision_version;
    check(model_initialise(saved, 3, 0.25F));
    assert_true(saved->vision_version > version);
    snprintf(path, sizeof(path), "%s/saved", folder);
    check(model_save(saved, tiny(), path));
    check(model_save(saved, tiny(), path));
    check(model_open(path, device, &again));
    check(model_load(again, path));
    for (int i = 0; i < saved->parameter_count; i++) {
        size_t bytes = (size_t)saved->spec[i].elements * sizeof(float);
        assert_memory_equal(saved->parameter[i].value.data, again->parameter[i].value.data, bytes);
        size_t packed = saved->parameter[i].packed ? device->table->packed_bytes(device, saved->parameter[i].value) : 0;
        if (packed) assert_memory_equal(saved->parameter[i].packed, again->parameter[i].packed, packed);
    }
    snprintf(file, sizeof(file), "%s/preprocessor_config.json", path);
    assert_int_equal(access(file, R_OK), 0);
    // The weights of `from` were not copied beside ours, and no temporary folder stays.
    safetensors_t *tensors;
    check(safetensors_open_folder(path, &tensors));
    assert_int_equal(safetensors_count(tensors), saved->parameter_count);
    assert_non_null(safetensors_find(tensors, "visual.patch_embed.proj.weight"));
    assert_int_equal(safetensors_find(tensors, "visual.patch_embed.proj.weight")->dimensions, 5);
    safetensors_close(tensors);
    snprintf(file, sizeof(file), "ls '%s' | grep -q 'saved\\.'", folder);
    assert_int_not_equal(system(file), 0);
    model_close(saved);
    model_close(again);
    device_close(device);
}

// transformers rounds to the type that config.json tells: what is saved as f32 must not say that it is bf16.
static void test_saved_type(void **state) {
    (void)state;
    char from[PATH], to[PATH], path[PATH + 16];
    device_t *device;
    model_t *model;
    json_error_t error;
    check(device_open("cpu", 1, &device));
    check(model_open(tiny(), device, &model));
    check(model_initialise(model, 3, 0.25F));
    snprintf(from, sizeof(from), "%s/typed", folder);
    snprintf(to, sizeof(to), "%s/typed-saved", folder);
    check(model_save(model, tiny(), from));
    snprintf(path, sizeof(path), "%s/config.json", from);
    json_t *config = json_load_file(path, 0, &error);
    json_object_set_new(config, "torch_dtype", json_string("bfloat16"));
    json_object_set_new(config, "text_config", json_pack("{s:s,s:f}", "dtype", "float16", "kept", 1e-6));
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
    check(model_save(model, from, to));
    snprintf(path, sizeof(path), "%s/config.json", to);
    config = json_load_file(path, 0, &error);
    const json_t *text = json_object_get(config, "text_config");
    assert_string_equal(json_string_value(json_object_get(config, "torch_dtype")), "float32");
    assert_string_equal(json_string_value(json_object_get(text, "dtype")), "float32");
    assert_true(json_real_value(json_object_get(text, "kept")) == 1e-6);
    json_decref(config);
    model_close(model);
    device_close(device);
}

static double deviation(const model_t *model, const char *name, double *mean) {
    int index = model_find(model, name);
    const float *values = model->parameter[index].value.data;
    double sum = 0, square = 0, count = (double)model->spec[index].elements;
    for (int64_t e = 0; e < model->spec[index].elements; e++) {
        sum += (double)values[e];
        square += (double)values[e] * (double)values[e];
    }
    *mean = sum / count;
    return sqrt(square / count - *mean * *mean);
}

static void test_initialise(void **state) {
    (void)state;
    device_t *device;
    model_t *model, *other;
    double mean;
    check(device_open("cpu", 1, &device));
    check(model_open(tiny(), device, &model));
    check(model_open(tiny(), device, &other));
    check(model_initialise(model, 3, 0.25F));
    check(model_initialise(other, 4, 0.25F));
    assert_true(fabs(deviation(model, "model.embed_tokens.weight", &mean) - 0.25) < 0.01 && fabs(mean) < 0.01);
    assert_true(fabs(deviation(model, "visual.patch_embed.proj.weight", &mean) - 0.25) < 0.01);
    assert_true(deviation(model, "model.norm.weight", &mean) == 0 && mean == 1);
    assert_true(deviation(model, "visual.merger.ln_q.weight", &mean) == 0 && mean == 1);
    assert_true(deviation(model, "visual.blocks.0.norm1.weight", &mean) == 0 && mean == 1);
    assert_true(deviation(model, "model.layers.0.self_attn.q_proj.bias", &mean) == 0 && mean == 0);
    int table = model_find(model, "model.embed_tokens.weight");
    assert_memory_not_equal(model->parameter[table].value.data, other->parameter[table].value.data, 64);
    model_close(model);
    model_close(other);
    // Gemma's norms multiply by one plus their weight.
    check(model_open(POISE_SOURCE_DIR "/tests/goldens/families/gemma3_text_mha_defaults", device, &model));
    check(model_initialise(model, 3, 0.25F));
    assert_true(deviation(model, "model.norm.weight", &mean) == 0 && mean == 0);
    assert_true(deviation(model, "model.layers.1.self_attn.q_norm.weight", &mean) == 0 && mean == 0);
    model_close(model);
    device_close(device);
}

// A copy of the tiny model's weights with one item changed.
typedef enum damage {
    DAMAGE_NONE,
    DAMAGE_MISSING,
    DAMAGE_SHAPE,
    DAMAGE_SURPLUS,
    DAMAGE_TWICE,
    DAMAGE_EXTRAS,
    DAMAGE_HEAD,
    DAMAGE_HEAD_ONLY
} damage_t;

static status_t load_damaged(device_t *device, damage_t damage) {
    char path[PATH];
    safetensors_t *file;
    model_t *model;
    safetensors_item_t items[256];
    const int64_t shape[2] = {1, 1};
    int count = 0;
    const char *const target = "model.language_model.norm.weight", *const table =
                                                                       "model.language_model.embed_tokens.weight";
    check(safetensors_open_folder(tiny(), &file));
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        if (damage == DAMAGE_MISSING && !strcmp(tensor->name, target)) continue;
        if (damage == DAMAGE_HEAD_ONLY && !strcmp(tensor->name, table)) continue;
        items[count] = (safetensors_item_t){.name = tensor->name,
                                            .dtype = tensor->dtype,
                                            .dimensions = tensor->dimensions,
                                            .shape = tensor->shape,
                                            .data = tensor->data};
        if (damage == DAMAGE_SHAPE && !strcmp(tensor->name, target)) {
            items[count].dimensions = 2;
            items[count].shape = shape;
        }
        count++;
    }
    const safetensors_tensor_t *norm = safetensors_find(file, target), *embedding = safetensors_find(file, table);
    const char *extra[2] = {"model.surplus.weight", NULL};
    if (damage == DAMAGE_TWICE) extra[0] = "model.norm.weight";
    if (damage >= DAMAGE_EXTRAS) extra[0] = "model.rotary_emb.inv_freq", extra[1] = "lm_head.weight";
    char *changed = malloc(embedding->bytes);
    memcpy(changed, embedding->data, embedding->bytes);
    if (damage == DAMAGE_HEAD) changed[embedding->bytes - 2] ^= 1;
    for (int i = 0; damage >= DAMAGE_SURPLUS && i < 2 && extra[i]; i++) {
        const safetensors_tensor_t *like = i ? embedding : norm;
        items[count++] = (safetensors_item_t){.name = extra[i],
                                              .dtype = like->dtype,
                                              .dimensions = like->dimensions,
                                              .shape = like->shape,
                                              .data = i ? changed : like->data};
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    check(safetensors_write(path, items, count, "pt", NULL, NULL));
    check(model_open(tiny(), device, &model));
    status_t status = model_load(model, folder);
    // Nothing is allocated for what does not fit.
    for (int i = 0; status && i < model->parameter_count; i++) assert_null(model->parameter[i].value.data);
    if (damage == DAMAGE_HEAD_ONLY && !status) {
        float *wanted = calloc((size_t)embedding->elements, sizeof(float));
        check(safetensors_read_f32(embedding, wanted));
        assert_memory_equal(model->parameter[model->embedding].value.data, wanted,
                            (size_t)embedding->elements * sizeof(float));
        free(wanted);
    }
    model_close(model);
    safetensors_close(file);
    free(changed);
    return status;
}

static void test_damaged_weights(void **state) {
    (void)state;
    const struct {
        damage_t damage;
        const char *reason;
    } cases[] = {{DAMAGE_MISSING, "'model.norm.weight' is missing"},
                 {DAMAGE_SHAPE, "has the shape [1, 1], and config.json asks for [96]"},
                 {DAMAGE_SURPLUS, "'model.surplus.weight' is not part of a qwen2_5_vl model"},
                 {DAMAGE_HEAD, "'lm_head.weight' is the embedding, but the files hold it with other values"},
                 {DAMAGE_TWICE, "under two names"}};
    device_t *device;
    check(device_open("cpu", 1, &device));
    check(load_damaged(device, DAMAGE_NONE));
    // Rotary buffers, and the second copy of a tied head, are in many checkpoints.
    check(load_damaged(device, DAMAGE_EXTRAS));
    check(load_damaged(device, DAMAGE_HEAD_ONLY));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        status_t status = load_damaged(device, cases[i].damage);
        assert_non_null(status);
        assert_int_equal(status_kind(status), STATUS_INVALID);
        if (!strstr(status_message(status), cases[i].reason))
            fail_msg("'%s' lacks '%s'", status_message(status), cases[i].reason);
        status_free(status);
    }
    device_close(device);
}

static void test_versions(void **state) {
    (void)state;
    device_t *device;
    model_t *model;
    check(device_open("cpu", 1, &device));
    check(model_open(tiny(), device, &model));
    check(model_initialise(model, 1, 0.1F));
    bool *changed = calloc((size_t)model->parameter_count, sizeof(bool));
    int64_t vision = model->vision_version;
    changed[model_find(model, "model.layers.0.mlp.up_proj.weight")] = true;
    check(model_parameters_changed(model, changed, 5));
    assert_int_equal(model->version, 5);
    assert_int_equal(model->vision_version, vision);
    changed[model_find(model, "visual.merger.mlp.0.bias")] = true;
    check(model_parameters_changed(model, changed, 6));
    assert_true(model->vision_version > vision);
    free(changed);
    model_close(model);
    device_close(device);
}

// The same text weights as a text-only model give the same log-probs as inside the vision-language model.
static void test_text_only(void **state) {
    (void)state;
    char path[PATH], command[3 * PATH];
    device_t *device;
    safetensors_t *file;
    prompt_t prompt;
    batch_t batch;
    head_output_t *head;
    safetensors_item_t items[256];
    int count = 0, found = 0;
    const char *const base = "tests/goldens/qwen2_5_vl/gqa4_window56_hub";
    check(device_open("cpu", 2, &device));
    snprintf(path, sizeof(path), "%s/%s", POISE_SOURCE_DIR, base);
    check(safetensors_open_folder(path, &file));
    for (int i = 0; i < safetensors_count(file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(file, i);
        if (strncmp(tensor->name, "visual.", 7))
            items[count++] = (safetensors_item_t){.name = tensor->name,
                                                  .dtype = tensor->dtype,
                                                  .dimensions = tensor->dimensions,
                                                  .shape = tensor->shape,
                                                  .data = tensor->data};
    }
    snprintf(command, sizeof(command), "mkdir '%s/text'", folder);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "%s/text/model.safetensors", folder);
    check(safetensors_write(command, items, count, "pt", NULL, NULL));
    safetensors_close(file);
    write_text("text/config.json",
               "{\"model_type\":\"qwen2\"," TEXT ",\"rms_norm_eps\":0.01,\"rope_theta\":1000000.0}");
    snprintf(command, sizeof(command), "%s/text", folder);
    model_t *text = parity_model(command, device), *whole = parity_model(path, device);
    snprintf(command, sizeof(command), "%s/golden.safetensors", path);
    check(safetensors_open(command, &file));
    for (int p = 0; p < PARITY_MAX_PROMPTS && parity_prompt(whole, file, p, &prompt); p++) {
        batch_sequence_t sequence = parity_sequence(&prompt, 0);
        if (!prompt.image_count) {
            check(batch_build(text, &sequence, 1, &batch));
            tape_t *tape = parity_tape(text, &batch, RECOMPUTE_NONE, false);
            check(batch_forward(text, tape, &batch, 1.0F, false, &head));
            for (int i = 0; i < head->count; i++) assert_true(fabsf(head->logprob[i] - prompt.logprobs[i]) <= 1e-4F);
            found++;
            tape_close(tape);
            batch_free(&batch);
        } else {
            status_t status = batch_build(text, &sequence, 1, &batch);
            assert_non_null(status);
            assert_non_null(strstr(status_message(status), "no vision part"));
            status_free(status);
        }
        parity_free_prompt(&prompt);
    }
    assert_true(found > 0);
    safetensors_close(file);
    model_close(text);
    model_close(whole);
    device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spellings),  cmocka_unit_test(test_side_files),      cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_save_and_load),   cmocka_unit_test(test_saved_type),
        cmocka_unit_test(test_initialise), cmocka_unit_test(test_damaged_weights), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_text_only),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
