// The engine against the goldens, against itself under other layouts, and its bookkeeping.
#include "rollout/engine_internal.h"
#include "tests/lib/engine_fixture.h"

#include <malloc.h>
#include <math.h>

static const engine_options_t wide = {
    .pages = 512, .batch_rows = 160, .prefill_chunk = 160, .feature_cache_bytes = 1 << 20};

static void check_all_returned(const engine_t *engine) {
    assert_int_equal(engine->free_pages, engine->options.pages);
    for (int i = 0; i < engine->options.pages; i++) assert_int_equal(engine->reference[i], 0);
    assert_null(engine->first);
    assert_null(engine->last);
    assert_int_equal(engine->running, 0);
    for (const feature_entry_t *entry = engine->features.newest; entry; entry = entry->older)
        assert_int_equal(entry->pins, 0);
}

static void run_prompts(fixture_t *f, const engine_options_t *options, const int *order, fixture_results_t *out,
                        engine_statistics_t *statistics) {
    engine_t *engine;
    CHECK_OK(engine_open(f->model, options, &engine));
    for (int i = 0; i < f->prompts; i++) {
        engine_request_t request = fixture_request(f, order ? order[i] : i);
        CHECK_OK(engine_submit(engine, &request));
    }
    assert_int_equal(engine_pending(engine), f->prompts * FIXTURE_COMPLETIONS);
    fixture_run(engine, out);
    assert_int_equal(out->finished, f->prompts * FIXTURE_COMPLETIONS);
    *statistics = engine_get_statistics(engine);
    check_all_returned(engine);
    engine_close(engine);
}

static void check_equal(const fixture_results_t *a, const fixture_results_t *b) {
    for (int p = 0; p < FIXTURE_PROMPTS; p++) {
        for (int i = 0; i < FIXTURE_COMPLETIONS; i++) {
            const fixture_result_t *x = &a->result[p][i], *y = &b->result[p][i];
            assert_int_equal(x->length, y->length);
            assert_int_equal(x->stopped, y->stopped);
            assert_memory_equal(x->tokens, y->tokens, (size_t)x->length * sizeof(int32_t));
            assert_memory_equal(x->logprobs, y->logprobs, (size_t)x->length * sizeof(float));
            assert_memory_equal(x->entropy, y->entropy, (size_t)x->length * sizeof(float));
        }
    }
}

static const char *const folders[] = {"gqa4_window56_hub",
                                      "gqa6_window112_v5",
                                      "mqa4_head32_hub",
                                      "families/llama_gqa3_llama3",
                                      "families/mistral_gqa4_window7",
                                      "families/qwen2_gqa3_window5",
                                      "families/gemma3_text_gqa2_pattern3"};
enum { FOLDERS = sizeof(folders) / sizeof(*folders) };

static void test_goldens(void **state) {
    (void)state;
    for (int folder = 0; folder < FOLDERS; folder++) {
        fixture_t f;
        engine_t *engine;
        fixture_open(&f, folders[folder]);
        CHECK_OK(engine_open(f.model, &wide, &engine));
        f.model->config.eos_token_count = 0;
        engine->banned_count = 0; // transformers' greedy search bans nothing
        fixture_results_t *results = calloc(1, sizeof(*results));
        for (int i = 0; i < f.prompts; i++) {
            engine_request_t request = fixture_request(&f, i);
            request.completions = 1;
            request.max_new_tokens = 6;
            request.temperature = 0;
            CHECK_OK(engine_submit(engine, &request));
            // The second half of the prompt, scored; where images fill it, what comes after them.
            int first = f.prompt[i].length / 2;
            for (int j = first; j < f.prompt[i].length; j++)
                if (f.prompt[i].tokens[j] == f.model->config.image.image_token) first = j + 1;
            if (f.prompt[i].length - first > FIXTURE_BUDGET) first = f.prompt[i].length - FIXTURE_BUDGET;
            request = fixture_request(&f, i);
            request.tag = FIXTURE_PROMPTS + i;
            request.completions = 1;
            request.prompt_length = first;
            request.forced = f.prompt[i].tokens + first;
            request.forced_length = f.prompt[i].length - first;
            CHECK_OK(engine_submit(engine, &request));
        }
        fixture_run(engine, results);
        for (int i = 0; i < f.prompts; i++) {
            int32_t ids[6];
            float greedy[6], given[128];
            CHECK_OK(safetensors_read_i32(fixture_tensor(&f, i, "greedy_ids"), ids));
            CHECK_OK(safetensors_read_f32(fixture_tensor(&f, i, "greedy_logprobs"), greedy));
            CHECK_OK(safetensors_read_f32(fixture_tensor(&f, i, "logprobs"), given));
            assert_memory_equal(results->result[i][0].tokens, ids, sizeof(ids));
            for (int j = 0; j < 6; j++) assert_true(fabsf(results->result[i][0].logprobs[j] - greedy[j]) < 1e-4F);
            const fixture_result_t *forced = &results->result[FIXTURE_PROMPTS + i][0];
            int first = f.prompt[i].length - forced->length;
            assert_true(forced->length > 0);
            for (int j = 0; j < forced->length; j++)
                assert_true(fabsf(forced->logprobs[j] - given[first + j - 1]) < 1e-4F);
        }
        check_all_returned(engine);
        engine_close(engine);
        free(results);
        fixture_close(&f);
    }
}

// With a state the model has image groups, which its own family has not: an image's tokens see each other, so it goes
// into one step, however small chunks and steps are.
static void test_layouts(void **state) {
    const engine_options_t layouts[] = {
        {.pages = 512, .batch_rows = 1, .prefill_chunk = 1, .feature_cache_bytes = 1 << 20},
        {.pages = 512, .batch_rows = 7, .prefill_chunk = 3, .feature_cache_bytes = 0},
        {.pages = 9, .batch_rows = 64, .prefill_chunk = 16, .feature_cache_bytes = 1 << 20},
        {.pages = 17, .batch_rows = 33, .prefill_chunk = 100, .feature_cache_bytes = 4096},
        {.pages = 30, .batch_rows = 200, .prefill_chunk = 5, .feature_cache_bytes = 1 << 20},
        {.pages = 64, .batch_rows = 24, .prefill_chunk = 24, .feature_cache_bytes = 10000},
    };
    for (int folder = 0; folder < 2; folder++) {
        fixture_t f;
        int backwards[FIXTURE_PROMPTS];
        fixture_open(&f, folders[folder]);
        f.model->config.image_groups = *state != NULL;
        for (int i = 0; i < f.prompts; i++) backwards[i] = f.prompts - 1 - i;
        fixture_results_t *expected = calloc(1, sizeof(*expected));
        engine_statistics_t statistics;
        run_prompts(&f, &wide, NULL, expected, &statistics);
        assert_int_equal(statistics.preemptions, 0);
        assert_int_equal(statistics.features_computed, 3);
        assert_true(statistics.pages_saved > 0);
        int64_t preemptions = 0;
        for (size_t i = 0; i < sizeof(layouts) / sizeof(*layouts); i++) {
            fixture_results_t *results = calloc(1, sizeof(*results));
            engine_statistics_t other;
            run_prompts(&f, &layouts[i], i % 2 ? backwards : NULL, results, &other);
            check_equal(expected, results);
            assert_int_equal(other.generated_tokens, statistics.generated_tokens);
            assert_true(other.peak_pages <= layouts[i].pages);
            preemptions += other.preemptions;
            free(results);
        }
        assert_true(preemptions > 10);
        free(expected);
        fixture_close(&f);
    }
}

// What was sampled, given back as forced tokens, has the log-probs it was sampled with.
static void test_forced_equals_sampled(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    fixture_results_t *sampled = calloc(1, sizeof(*sampled)), *scored = calloc(1, sizeof(*scored));
    engine_t *engine;
    const engine_options_t small = {.pages = 40, .batch_rows = 50, .prefill_chunk = 11, .feature_cache_bytes = 0};
    CHECK_OK(engine_open(f.model, &small, &engine));
    for (int i = 0; i < f.prompts; i++) {
        engine_request_t request = fixture_request(&f, i);
        request.temperature = i % 2 ? 0.7F : 1.3F;
        CHECK_OK(engine_submit(engine, &request));
    }
    fixture_run(engine, sampled);
    for (int i = 0; i < f.prompts; i++) {
        const fixture_result_t *result = &sampled->result[i][i];
        engine_request_t request = fixture_request(&f, i);
        request.temperature = i % 2 ? 0.7F : 1.3F;
        request.completions = 1;
        request.forced = result->tokens;
        request.forced_length = result->length;
        CHECK_OK(engine_submit(engine, &request));
    }
    fixture_run(engine, scored);
    for (int i = 0; i < f.prompts; i++) {
        const fixture_result_t *a = &sampled->result[i][i], *b = &scored->result[i][0];
        assert_int_equal(a->length, b->length);
        assert_int_equal(a->stopped, b->stopped);
        assert_memory_equal(a->logprobs, b->logprobs, (size_t)a->length * sizeof(float));
        assert_memory_equal(a->entropy, b->entropy, (size_t)a->length * sizeof(float));
    }
    check_all_returned(engine);
    engine_close(engine);
    free(sampled);
    free(scored);
    fixture_close(&f);
}

// What the engine records is what the learner computes, to the bit.
static void test_learner(void **state) {
    const engine_options_t small = {.pages = 40, .batch_rows = 37, .prefill_chunk = 9, .feature_cache_bytes = 0};
    for (int folder = 0; folder < FOLDERS; folder++) {
        fixture_t f;
        engine_t *engine;
        fixture_open(&f, folders[folder]);
        f.model->config.image_groups = *state != NULL;
        fixture_results_t *results = calloc(1, sizeof(*results));
        float temperature = folder == 1 ? 0.8F : 1;
        CHECK_OK(engine_open(f.model, &small, &engine));
        for (int i = 0; i < f.prompts; i++) {
            engine_request_t request = fixture_request(&f, i);
            request.temperature = temperature;
            CHECK_OK(engine_submit(engine, &request));
        }
        fixture_run(engine, results);
        assert_true(engine_get_statistics(engine).preemptions > 0);
        engine_close(engine);
        assert_true(fixture_check_learner(&f, results, temperature, true, true) > 200);
        assert_true(fixture_check_learner(&f, results, temperature, false, false) > 200);
        free(results);
        fixture_close(&f);
    }
}

static void test_end_of_turn(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    model_config_t *config = &f.model->config;
    fixture_results_t *endless = calloc(1, sizeof(*endless)), *ended = calloc(1, sizeof(*ended));
    engine_statistics_t statistics;
    config->eos_token_count = 0;
    run_prompts(&f, &wide, NULL, endless, &statistics);
    config->eos_token_count = 2;
    config->eos_tokens[0] = endless->result[1][2].tokens[10];
    config->eos_tokens[1] = endless->result[3][0].tokens[0];
    run_prompts(&f, &wide, NULL, ended, &statistics);
    int stopped = 0;
    for (int p = 0; p < f.prompts; p++) {
        for (int i = 0; i < FIXTURE_COMPLETIONS; i++) {
            const fixture_result_t *a = &endless->result[p][i], *b = &ended->result[p][i];
            int length = 0;
            bool end = false;
            assert_int_equal(a->length, FIXTURE_BUDGET);
            assert_false(a->stopped);
            while (length < a->length && !end) {
                end = a->tokens[length] == config->eos_tokens[0] || a->tokens[length] == config->eos_tokens[1];
                length++;
            }
            assert_int_equal(b->length, length);
            assert_int_equal(b->stopped, end);
            stopped += end;
            assert_memory_equal(a->tokens, b->tokens, (size_t)length * sizeof(int32_t));
            assert_memory_equal(a->logprobs, b->logprobs, (size_t)length * sizeof(float));
        }
    }
    assert_int_equal(ended->result[3][0].length, 1);
    assert_true(stopped >= 2);
    free(endless);
    free(ended);
    fixture_close(&f);
}

static void test_media_tokens(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    const image_rules_t *rules = &f.model->config.image;
    assert_true(rules->media_token_count > 0);
    engine_t *engine;
    CHECK_OK(engine_open(f.model, &wide, &engine));
    int allowed = 0, banned = 0;
    // Hot enough that every id would be drawn now and then; the first round shows that the count can fail.
    for (int round = 0; round < 2; round++) {
        fixture_results_t *results = calloc(1, sizeof(*results));
        int bans = engine->banned_count;
        if (!round) engine->banned_count = 0;
        for (int i = 0; i < f.prompts; i++) {
            engine_request_t request = fixture_request(&f, i);
            request.temperature = 50;
            CHECK_OK(engine_submit(engine, &request));
        }
        fixture_run(engine, results);
        engine->banned_count = bans;
        for (int p = 0; p < f.prompts; p++)
            for (int i = 0; i < FIXTURE_COMPLETIONS; i++)
                for (int j = 0; j < results->result[p][i].length; j++)
                    for (int m = 0; m < rules->media_token_count; m++)
                        *(round ? &banned : &allowed) += results->result[p][i].tokens[j] == rules->media_tokens[m];
        free(results);
    }
    assert_true(allowed > 0);
    assert_int_equal(banned, 0);
    engine_close(engine);
    fixture_close(&f);
}

static void test_features(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    engine_t *engine;
    fixture_results_t *first = calloc(1, sizeof(*first)), *second = calloc(1, sizeof(*second)),
                      *third = calloc(1, sizeof(*third));
    CHECK_OK(engine_open(f.model, &wide, &engine));
    engine_request_t request = fixture_request(&f, 2);
    CHECK_OK(engine_submit(engine, &request));
    fixture_run(engine, first);
    assert_int_equal(engine_get_statistics(engine).features_computed, 2);
    CHECK_OK(engine_weights_changed(engine));
    CHECK_OK(engine_submit(engine, &request));
    CHECK_FAILS(engine_weights_changed(engine), "while");
    fixture_run(engine, second);
    assert_int_equal(engine_get_statistics(engine).features_computed, 2);
    assert_int_equal(engine_get_statistics(engine).features_reused, 2);
    f.model->vision_version++;
    CHECK_OK(engine_weights_changed(engine));
    CHECK_OK(engine_submit(engine, &request));
    fixture_run(engine, third);
    assert_int_equal(engine_get_statistics(engine).features_computed, 4);
    assert_memory_equal(first->result, second->result, sizeof(first->result));
    assert_memory_equal(first->result, third->result, sizeof(first->result));
    check_all_returned(engine);
    engine_close(engine);
    free(first);
    free(second);
    free(third);
    fixture_close(&f);
}

static void test_refusals(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    engine_t *engine;
    engine_options_t options = wide;
    options.batch_rows = 0;
    CHECK_FAILS(engine_open(f.model, &options, &engine), "at least one");
    options = wide;
    options.pages = 8; // 67 + 40 - 1 tokens: 7 pages, and the group's own copy of the last prompt page
    CHECK_OK(engine_open(f.model, &options, &engine));
    engine_request_t request = fixture_request(&f, 2);
    CHECK_OK(engine_submit(engine, &request));
    engine_cancel(engine, 12345);
    engine_cancel(engine, request.key);
    assert_int_equal(engine_pending(engine), 0);
    request.max_new_tokens += 16;
    CHECK_FAILS(engine_submit(engine, &request), "rollout.pages");
    request = fixture_request(&f, 2);
    request.image_count = 1;
    CHECK_FAILS(engine_submit(engine, &request), "placeholders");
    request = fixture_request(&f, 0);
    request.prompt_length = 0;
    CHECK_FAILS(engine_submit(engine, &request), "empty");
    request = fixture_request(&f, 0);
    request.temperature = NAN;
    CHECK_FAILS(engine_submit(engine, &request), "temperature");
    request = fixture_request(&f, 0);
    int32_t wrong[] = {1, f.model->config.vocabulary};
    request.tokens = wrong;
    request.prompt_length = 2;
    CHECK_FAILS(engine_submit(engine, &request), "vocabulary");
    request = fixture_request(&f, 0);
    request.completions = 1;
    wrong[1] = f.model->config.image.image_token;
    request.forced = wrong;
    request.forced_length = 2;
    CHECK_FAILS(engine_submit(engine, &request), "placeholder");
    check_all_returned(engine);
    engine_close(engine);
    fixture_close(&f);
}

// Cancelling one group in the middle changes nothing for the others.
static void test_cancel(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    fixture_results_t *expected = calloc(1, sizeof(*expected)), *results = calloc(1, sizeof(*results));
    engine_statistics_t statistics;
    run_prompts(&f, &wide, NULL, expected, &statistics);
    for (int cancel = 0; cancel < 20; cancel += 3) {
        const engine_options_t options = {.pages = 20, .batch_rows = 30, .prefill_chunk = 20};
        engine_t *engine;
        memset(results, 0, sizeof(*results));
        CHECK_OK(engine_open(f.model, &options, &engine));
        for (int i = 0; i < f.prompts; i++) {
            engine_request_t request = fixture_request(&f, i);
            CHECK_OK(engine_submit(engine, &request));
        }
        for (int i = 0; i < cancel; i++) CHECK_OK(engine_step(engine, fixture_sink, results));
        engine_cancel(engine, 101);
        fixture_run(engine, results);
        memcpy(results->result[1], expected->result[1], sizeof(results->result[1]));
        check_equal(expected, results);
        check_all_returned(engine);
        engine_close(engine);
    }
    free(expected);
    free(results);
    fixture_close(&f);
}

static void test_steps_allocate_nothing(void **state) {
    (void)state;
    fixture_t f;
    fixture_open(&f, folders[0]);
    f.model->config.eos_token_count = 0;
    engine_t *engine;
    fixture_results_t *results = calloc(1, sizeof(*results));
    CHECK_OK(engine_open(f.model, &wide, &engine));
    for (int i = 0; i < f.prompts; i++) {
        engine_request_t request = fixture_request(&f, i);
        CHECK_OK(engine_submit(engine, &request));
    }
    for (int i = 0; i < 10; i++) CHECK_OK(engine_step(engine, fixture_sink, results));
    size_t used = mallinfo2().uordblks;
    for (int i = 0; i < 20; i++) {
        CHECK_OK(engine_step(engine, fixture_sink, results));
        assert_int_equal(mallinfo2().uordblks, used);
    }
    fixture_run(engine, results);
    FILE *sheet = tmpfile();
    engine_print_memory(engine, sheet);
    assert_true(ftell(sheet) > 200);
    fclose(sheet);
    engine_close(engine);
    free(results);
    fixture_close(&f);
}

// Every step of a model with image groups: the keys of a query's group are all there, and no step is larger than it
// must be. Without groups, the same prompts have other log-probs.
static void test_image_groups(void **state) {
    (void)state;
    const engine_options_t narrow = {.pages = 200, .batch_rows = 5, .prefill_chunk = 2, .feature_cache_bytes = 1 << 20};
    fixture_t f;
    fixture_open(&f, folders[0]);
    f.model->config.eos_token_count = 0;
    fixture_results_t *with = calloc(1, sizeof(*with)), *without = calloc(1, sizeof(*without));
    engine_statistics_t statistics;
    run_prompts(&f, &wide, NULL, without, &statistics);
    f.model->config.image_groups = true;
    engine_t *engine;
    CHECK_OK(engine_open(f.model, &narrow, &engine));
    int longest = 0, whole = 0;
    for (int i = 0; i < f.prompts; i++) {
        engine_request_t request = fixture_request(&f, i);
        CHECK_OK(engine_submit(engine, &request));
        for (int j = 0; j < f.prompt[i].image_count; j++)
            if (f.prompt[i].image[j].shape.feature_rows > longest) longest = f.prompt[i].image[j].shape.feature_rows;
    }
    assert_true(longest > narrow.batch_rows);
    assert_int_equal(engine->step_rows, narrow.batch_rows + longest);
    for (int steps = 0; engine_pending(engine); steps++) {
        assert_true(steps < 10000);
        CHECK_OK(engine_step(engine, fixture_sink, with));
        assert_true(engine->rows <= engine->step_rows);
        for (int s = 0; s < engine->sequences; s++) {
            int queries = engine->query_start[s + 1] - engine->query_start[s];
            int keys = engine->key_start[s + 1] - engine->key_start[s], end = engine->query_position[s] + queries;
            const int32_t *group = engine->key_group + engine->key_start[s];
            assert_int_equal(keys, end);
            if (queries == 1 || group[end - 1] < 0) continue;
            // An image is the whole chunk, or its end: it has all its tokens.
            int run = 0;
            while (run < end && group[end - 1 - run] == group[end - 1]) run++;
            bool found = false;
            for (int p = 0; p < f.prompts; p++)
                for (int j = 0; j < f.prompt[p].image_count; j++)
                    found = found || f.prompt[p].image[j].shape.feature_rows == run;
            assert_true(found);
            whole++;
        }
    }
    assert_true(whole >= 3);
    check_all_returned(engine);
    engine_close(engine);
    for (int p = 0; p < f.prompts; p++) {
        bool same = with->result[p][0].logprobs[0] == without->result[p][0].logprobs[0];
        assert_int_equal(same, f.prompt[p].image_count == 0);
    }
    free(with);
    free(without);
    fixture_close(&f);
}

int main(void) {
    bool groups = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test_prestate(test_layouts, &groups),
        cmocka_unit_test(test_forced_equals_sampled),
        cmocka_unit_test(test_learner),
        cmocka_unit_test_prestate(test_learner, &groups),
        cmocka_unit_test(test_image_groups),
        cmocka_unit_test(test_end_of_turn),
        cmocka_unit_test(test_media_tokens),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_steps_allocate_nothing),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
