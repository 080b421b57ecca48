// Generation with the pictures of LLaVA-NeXT and Gemma-3: transformers' greedy continuations, the learner's log-probs
// to the bit, whatever the engine's layout, and ids of image tokens behind the vocabulary.
#include "tests/lib/engine_fixture.h"

static const char *const folders[] = {"llava_next_mistral_hub", "llava_next_llama_layers", "llava_next_qwen2_siglip_v5",
                                      "gemma3_pool2_hub", "gemma3_head72_crops_v5"};
enum { FOLDERS = sizeof(folders) / sizeof(folders[0]), GREEDY = 6 };

static const engine_options_t layouts[] = {
    {.pages = 400, .batch_rows = 512, .prefill_chunk = 512, .feature_cache_bytes = 1 << 20},
    {.pages = 60, .batch_rows = 24, .prefill_chunk = 7, .feature_cache_bytes = 0},
};
enum { LAYOUTS = sizeof(layouts) / sizeof(layouts[0]) };

static void open_fixture(fixture_t *f, int folder) {
    char name[128];
    snprintf(name, sizeof(name), "families/%s", folders[folder]);
    fixture_open(f, name);
    f->model->config.eos_token_count = 0;
}

// The maker of the goldens saw to it that the two best logits differ by more than 1e-3.
static void test_greedy(void **state) {
    (void)state;
    for (int folder = 0; folder < FOLDERS; folder++) {
        fixture_t f;
        engine_t *engine;
        int images = 0;
        open_fixture(&f, folder);
        CHECK_OK(engine_open(f.model, &layouts[folder % LAYOUTS], &engine));
        fixture_results_t *results = calloc(1, sizeof(*results));
        for (int i = 0; i < f.prompts; i++) {
            engine_request_t request = fixture_request(&f, i);
            request.completions = 1;
            request.max_new_tokens = GREEDY;
            request.temperature = 0;
            images += request.image_count;
            CHECK_OK(engine_submit(engine, &request));
        }
        assert_true(images >= 3);
        fixture_run(engine, results);
        for (int i = 0; i < f.prompts; i++) {
            int32_t ids[GREEDY];
            float wanted[GREEDY];
            CHECK_OK(safetensors_read_i32(fixture_tensor(&f, i, "greedy_ids"), ids));
            CHECK_OK(safetensors_read_f32(fixture_tensor(&f, i, "greedy_logprobs"), wanted));
            assert_int_equal(results->result[i][0].length, GREEDY);
            for (int j = 0; j < GREEDY; j++) {
                // An id that the engine bans ends the comparison.
                bool banned = false;
                for (int k = 0; k < f.model->config.image.media_token_count; k++)
                    banned = banned || ids[j] == f.model->config.image.media_tokens[k];
                if (banned) break;
                assert_int_equal(results->result[i][0].tokens[j], ids[j]);
                assert_true(fabsf(results->result[i][0].logprobs[j] - wanted[j]) < 1e-4F);
            }
        }
        engine_close(engine);
        free(results);
        fixture_close(&f);
    }
}

static void run_sampled(fixture_t *f, const engine_options_t *options, float temperature, fixture_results_t *results) {
    engine_t *engine;
    CHECK_OK(engine_open(f->model, options, &engine));
    for (int i = 0; i < f->prompts; i++) {
        engine_request_t request = fixture_request(f, i);
        request.temperature = temperature;
        CHECK_OK(engine_submit(engine, &request));
    }
    fixture_run(engine, results);
    engine_close(engine);
}

static void test_learner(void **state) {
    (void)state;
    for (int folder = 0; folder < FOLDERS; folder++) {
        fixture_t f;
        open_fixture(&f, folder);
        fixture_results_t *results[LAYOUTS];
        float temperature = folder % 2 ? 0.8F : 1;
        for (int i = 0; i < LAYOUTS; i++) {
            results[i] = calloc(1, sizeof(*results[i]));
            run_sampled(&f, &layouts[i], temperature, results[i]);
            assert_memory_equal(results[i], results[0], sizeof(*results[0]));
        }
        assert_true(fixture_check_learner(&f, results[0], temperature, true, true) > 200);
        assert_true(fixture_check_learner(&f, results[0], temperature, false, false) > 200);
        for (int i = 0; i < LAYOUTS; i++) free(results[i]);
        fixture_close(&f);
    }
}

// Gemma-3's text-only vocabularies end before the image token. Its rows are the pictures', so the result is the same
// under any such id; only as a completion it is refused.
static void test_id_behind_vocabulary(void **state) {
    (void)state;
    fixture_t f;
    open_fixture(&f, 3);
    fixture_results_t *right = calloc(1, sizeof(*right)), *moved = calloc(1, sizeof(*moved));
    run_sampled(&f, &layouts[0], 1, right);
    int32_t old = f.model->config.image.image_token, new = f.model->config.vocabulary + 7;
    f.model->config.image.image_token = new;
    for (int i = 0; i < f.prompts; i++)
        for (int j = 0; j < f.prompt[i].length; j++)
            if (f.prompt[i].tokens[j] == old) f.prompt[i].tokens[j] = new;
    run_sampled(&f, &layouts[1], 1, moved);
    assert_memory_equal(right, moved, sizeof(*right));
    assert_true(fixture_check_learner(&f, moved, 1, true, true) > 200);
    batch_t batch;
    batch_sequence_t sequence = {.tokens = f.prompt[1].tokens,
                                 .length = f.prompt[1].length,
                                 .shared_with = -1,
                                 .images = f.prompt[1].images,
                                 .image_count = f.prompt[1].image_count,
                                 .first_target = 1};
    status_t status = batch_build(f.model, &sequence, 1, &batch);
    assert_non_null(status);
    status_free(status);
    free(right);
    free(moved);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_learner),
        cmocka_unit_test(test_id_behind_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
