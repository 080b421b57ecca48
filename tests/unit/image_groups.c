// Gemma-3 with pictures: what the engine scores in small chunks is what the learner computes in one launch, to the bit,
// and what transformers says; in sliding layers too.
#include "rollout/engine.h"
#include "tests/lib/parity.h"

enum { MOST = 128 };

typedef struct scored {
    int length;
    float logprobs[MOST];
} scored_t;

static status_t keep(void *context, const engine_completion_t *completion) {
    scored_t *scored = context;
    assert_true(completion->length <= MOST);
    scored->length = completion->length;
    memcpy(scored->logprobs, completion->logprobs, (size_t)completion->length * sizeof(float));
    return STATUS_OK;
}

static void compare_prompt(model_t *model, const prompt_t *prompt, const engine_options_t *options) {
    int first = 1;
    for (int i = 0; i < prompt->length; i++)
        if (prompt->tokens[i] == model->config.image.image_token) first = i + 1;
    engine_request_t request = {.key = 1,
                                .tokens = prompt->tokens,
                                .prompt_length = first,
                                .images = prompt->image,
                                .image_count = prompt->image_count,
                                .completions = 1,
                                .temperature = 1,
                                .forced = prompt->tokens + first,
                                .forced_length = prompt->length - first};
    engine_t *engine;
    scored_t scored = {0};
    assert_true(request.forced_length > 0);
    check(engine_open(model, options, &engine));
    check(engine_submit(engine, &request));
    for (int steps = 0; engine_pending(engine) && steps < 1000; steps++) check(engine_step(engine, keep, &scored));
    engine_close(engine);
    assert_int_equal(scored.length, request.forced_length);
    batch_t batch;
    head_output_t *head;
    batch_sequence_t sequence = parity_sequence(prompt, 0);
    check(batch_build(model, &sequence, 1, &batch));
    tape_t *tape = parity_tape(model, &batch, RECOMPUTE_NONE, true);
    check(batch_forward(model, tape, &batch, 1.0F, false, &head));
    assert_memory_equal(scored.logprobs, head->logprob + first - 1, (size_t)scored.length * sizeof(float));
    for (int i = 0; i < scored.length; i++)
        assert_true(fabsf(scored.logprobs[i] - prompt->logprobs[first - 1 + i]) < 1e-4F);
    tape_close(tape);
    batch_free(&batch);
}

static void test_gemma3(void **state) {
    (void)state;
    static const char *const folders[] = {"gemma3_head72_crops_v5", "gemma3_pool2_hub"};
    const engine_options_t options[] = {
        {.pages = 64, .batch_rows = 1, .prefill_chunk = 1, .feature_cache_bytes = 1 << 20},
        {.pages = 64, .batch_rows = 7, .prefill_chunk = 3, .feature_cache_bytes = 0},
        {.pages = 64, .batch_rows = 200, .prefill_chunk = 200, .feature_cache_bytes = 1 << 20}};
    for (int f = 0; f < 2; f++) {
        char path[1024];
        device_t *device;
        safetensors_t *file;
        snprintf(path, sizeof(path), "%s/tests/goldens/families/%s", POISE_SOURCE_DIR, folders[f]);
        check(device_open("cpu", 1, &device));
        model_t *model = parity_model(path, device);
        assert_true(model->config.image_groups);
        snprintf(path, sizeof(path), "%s/tests/goldens/families/%s/golden.safetensors", POISE_SOURCE_DIR, folders[f]);
        check(safetensors_open(path, &file));
        int images = 0;
        prompt_t prompt;
        for (int p = 0; parity_prompt(model, file, p, &prompt); p++) {
            images += prompt.image_count;
            // The engine knows pictures by their hashes.
            for (int i = 0; i < prompt.image_count; i++) prompt.images[i].content_hash = (uint64_t)(p * 8 + i + 1);
            for (int o = 0; o < 3; o++) compare_prompt(model, &prompt, &options[o]);
            parity_free_prompt(&prompt);
        }
        assert_true(images >= 2);
        safetensors_close(file);
        model_close(model);
        device_close(device);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gemma3)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
