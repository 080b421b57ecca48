// A row's result does not depend on its neighbours: every batch size from 1 to 130, any packing order, page layout,
// prefill chunk and preemption, on every kernel set of this CPU, with pictures among the sequences; forward and
// gradients.
#include "rollout/engine_internal.h"
#include "tests/lib/engine_fixture.h"
#include "tests/lib/parity.h"

#include <stdio.h>

enum { MOST = 130, EXPONENT = 34, LONGEST = 200, SEQUENCES = 3, REQUESTS = 16, BUDGET = 4 };

// Sanitizers see the same code in every tenth size.
#ifdef POISE_SANITIZED
enum { STRIDE = 9 };
#else
enum { STRIDE = 1 };
#endif

static const char *const sets[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
enum { SETS = sizeof(sets) / sizeof(*sets) };

static uint64_t random_state;
static int draw(int bound) {
    random_state = random_state * 6364136223846793005U + 1442695040888963407U;
    return (int)((random_state >> 33) % (uint64_t)bound);
}
static void shuffle(int *order, int count) {
    for (int i = count - 1; i > 0; i--) {
        int j = draw(i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}
static bool device_is_here(const char *name) {
    device_t *device;
    status_t status = device_open(name, 1, &device);
    if (!status) device_close(device);
    status_free(status);
    return !status;
}
// A token that is no image's.
static int32_t text_token(const model_t *model) {
    int32_t token;
    bool media;
    do {
        token = draw(model->config.vocabulary);
        media = token == model->config.image.image_token;
        for (int i = 0; i < model->config.image.media_token_count; i++)
            media = media || token == model->config.image.media_tokens[i];
    } while (media);
    return token;
}

// ---- the learner: leaves beside each other ----

// A leaf: some sequences; every thirteenth has a picture and completions that share it, as a group of GRPO has.
typedef struct pool_leaf {
    int32_t tokens[SEQUENCES][LONGEST];
    batch_sequence_t sequence[SEQUENCES];
    int count, entries;
    float logprob[SEQUENCES * LONGEST], entropy[SEQUENCES * LONGEST];
} pool_leaf_t;

static void make_leaf(const fixture_t *f, int number, pool_leaf_t *leaf) {
    bool picture = number % 13 == 3;
    int which = 0;
    while (picture && !f->prompt[which].image_count) which++;
    if (picture && number % 2 && f->prompt[which + 1].image_count) which++;
    const fixture_prompt_t *prompt = &f->prompt[which];
    leaf->count = picture ? SEQUENCES : 1 + draw(10) / 7;
    for (int s = 0; s < leaf->count; s++) {
        int own = picture ? s * 3 : 2 + draw(5), shared = picture ? prompt->length : 0;
        if (picture) memcpy(leaf->tokens[s], prompt->tokens, (size_t)prompt->length * sizeof(int32_t));
        for (int i = 0; i < own; i++) leaf->tokens[s][shared + i] = text_token(f->model);
        leaf->sequence[s] = (batch_sequence_t){.tokens = leaf->tokens[s],
                                               .length = shared + own,
                                               .shared_with = picture && s ? 0 : -1,
                                               .shared_length = picture && s ? shared : 0,
                                               .images = prompt->images,
                                               .image_count = picture && !s ? prompt->image_count : 0,
                                               .first_target = picture ? shared : 1};
        assert_true(shared + own <= LONGEST);
    }
}

// dL/dlogp of an entry, by what it is and not by where it lies.
static float slope(int leaf, int sequence, int position) {
    return (float)((leaf * 5 + sequence * 7 + position * 3) % 11 - 5) / 8.0F;
}

// One launch of the leaves pool[order[0 .. count - 1]]. alone: their log-probs are kept; else compared.
static void launch(const fixture_t *f, pool_leaf_t *pool, const int *order, int count, bool alone, bool backward) {
    batch_sequence_t sequence[MOST * SEQUENCES];
    int owner[MOST * SEQUENCES], within[MOST * SEQUENCES], total = 0, base;
    for (int l = 0; l < count; l++) {
        base = total;
        for (int s = 0; s < pool[order[l]].count; s++, total++) {
            sequence[total] = pool[order[l]].sequence[s];
            sequence[total].leaf = l;
            if (sequence[total].shared_with >= 0) sequence[total].shared_with += base;
            owner[total] = order[l];
            within[total] = s;
        }
    }
    batch_t batch;
    head_output_t *head;
    check(batch_build(f->model, sequence, total, &batch));
    tape_t *tape = parity_tape(f->model, &batch, (recompute_t)draw(3), backward);
    check(batch_forward(f->model, tape, &batch, 1.0F, true, &head));
    int at[MOST] = {0};
    for (int e = 0; e < batch.entry_count; e++) {
        int who = owner[batch.entry_sequence[e]];
        pool_leaf_t *leaf = &pool[who];
        int i = at[who]++;
        if (alone) {
            leaf->logprob[i] = head->logprob[e];
            leaf->entropy[i] = head->entropy[e];
        } else if (memcmp(&leaf->logprob[i], &head->logprob[e], sizeof(float)) != 0 ||
                   memcmp(&leaf->entropy[i], &head->entropy[e], sizeof(float)) != 0) {
            fail_msg("leaf %d among %d: entry %d is %a (entropy %a), alone %a (%a)", who, count, i,
                     (double)head->logprob[e], (double)head->entropy[e], (double)leaf->logprob[i],
                     (double)leaf->entropy[i]);
        }
        if (backward) head->dlogprob[e] = slope(who, within[batch.entry_sequence[e]], batch.entry_position[e]);
    }
    for (int l = 0; l < count; l++) {
        if (alone) pool[order[l]].entries = at[order[l]];
        assert_int_equal(at[order[l]], pool[order[l]].entries);
        assert_true(pool[order[l]].entries > 0);
    }
    if (backward) check(tape_backward(tape));
    tape_close(tape);
    batch_free(&batch);
}

static void point_sinks(const model_t *model, const sinks_t *sinks) {
    for (int i = 0; i < model->parameter_count; i++)
        model->parameter[i].sink = (gradient_sink_t){sinks->sum[3 * i], EXPONENT, sinks->flags};
}

static void compare_sums(const model_t *model, const sinks_t *apart, const sinks_t *together, int count) {
    assert_int_equal(*apart->flags, 0);
    assert_int_equal(*together->flags, 0);
    for (int i = 0; i < model->parameter_count; i++) {
        size_t bytes = (size_t)model->spec[i].elements * sizeof(int64_t);
        if (memcmp(apart->sum[3 * i], together->sum[3 * i], bytes) != 0)
            fail_msg("the gradient of %s in a launch of %d leaves is not the sum of the leaves' own",
                     model->spec[i].name, count);
    }
}

// Leaves 0 .. n - 1 in one launch, in a random order, for every n: log-probs of each, and the sum of their gradients
// (which is exact, so a leaf whose gradient moved by one bit shows). Gradients of all n on the CPU's own set.
static void test_leaves(void **state) {
    (void)state;
    pool_leaf_t *pool = calloc(MOST, sizeof(*pool));
    float *first = NULL;
    for (int set = 0; set < SETS; set++) {
        if (!device_is_here(sets[set])) {
            print_message("%s: not on this CPU\n", sets[set]);
            continue;
        }
        bool last = set + 1 == SETS || !device_is_here(sets[set + 1]);
        fixture_t f;
        fixture_open_on(&f, sets[set], 1 + set % 2, "gqa4_window56_hub");
        random_state = 20;
        for (int i = 0; i < MOST; i++) make_leaf(&f, i, &pool[i]);
        sinks_t apart = parity_sinks(f.model, EXPONENT), together = parity_sinks(f.model, EXPONENT);
        int order[MOST], compared = 0, entries = 0;
        for (int n = 1; n <= MOST; n++) {
            int own = n - 1;
            point_sinks(f.model, &apart);
            launch(&f, pool, &own, 1, true, true);
            entries += pool[own].entries;
            if (n % STRIDE != 0 && n >= 5) continue;
            for (int i = 0; i < n; i++) order[i] = i;
            shuffle(order, n);
            bool backward = last || n % 13 == 0 || n < 5;
            parity_clear(f.model, &together);
            point_sinks(f.model, &together);
            launch(&f, pool, order, n, false, backward);
            if (backward) compare_sums(f.model, &apart, &together, n);
            compared += backward;
        }
        // One set gives what the next gives.
        float *all = malloc((size_t)entries * sizeof(float));
        for (int i = 0, at = 0; i < MOST; at += pool[i++].entries)
            memcpy(all + at, pool[i].logprob, (size_t)pool[i].entries * sizeof(float));
        if (first) assert_memory_equal(first, all, (size_t)entries * sizeof(float));
        free(first);
        first = all;
        print_message("%s: launches of 1 to %d leaves, %d with gradients\n", sets[set], MOST, compared);
        parity_free_sinks(&apart);
        parity_free_sinks(&together);
        fixture_close(&f);
    }
    free(first);
    free(pool);
}

// ---- the engine: rows beside each other ----

typedef struct requests {
    int32_t tokens[REQUESTS][LONGEST];
    engine_request_t request[REQUESTS];
} requests_t;

// Three in sixteen have pictures, the others are short, so that many completions decode side by side.
static void make_requests(const fixture_t *f, requests_t *out) {
    for (int i = 0; i < REQUESTS; i++) {
        bool picture = i % 5 == 2;
        int which = 0;
        while (picture && !f->prompt[which].image_count) which++;
        engine_request_t *request = &out->request[i];
        *request = fixture_request(f, which);
        if (!picture) {
            request->images = NULL;
            request->image_count = 0;
            request->tokens = out->tokens[i];
            request->prompt_length = 1 + draw(9) + (i % 4 == 1 ? 16 : 0);
            for (int t = 0; t < request->prompt_length; t++) out->tokens[i][t] = text_token(f->model);
        }
        request->key = 500 + (uint64_t)i;
        request->tag = i;
        request->max_new_tokens = BUDGET;
        request->completions = i % 4 ? FIXTURE_COMPLETIONS : i % 8 ? 1 : 7;
    }
}

static sequence_t *some_running(engine_t *engine) {
    for (group_t *group = engine->first; group; group = group->next)
        for (int i = 0; group->running && i < group->completions; i++)
            if (group->sequence[i].state == SEQUENCE_RUNNING) return &group->sequence[i];
    return NULL;
}

// Runs all requests in the given order. rough: between steps the free pages are dealt anew, and now and then the
// youngest sequence has to give its pages back although there are enough. Returns the largest step's rows.
static int run_requests(const fixture_t *f, const requests_t *requests, const engine_options_t *options,
                        const int *order, bool rough, fixture_results_t *out, int64_t *preemptions) {
    engine_t *engine;
    int rows = 0, running = 0;
    memset(out, 0, sizeof(*out));
    CHECK_OK(engine_open(f->model, options, &engine));
    for (int i = 0; i < REQUESTS; i++) CHECK_OK(engine_submit(engine, &requests->request[order[i]]));
    for (int steps = 0; engine_pending(engine); steps++) {
        assert_true(steps < 100000);
        if (rough) shuffle(engine->free_page, engine->free_pages);
        if (rough && draw(options->batch_rows < 12 ? 60 : 2) == 0) {
            sequence_t *sequence = some_running(engine);
            if (sequence) engine_reclaim(engine, sequence);
        }
        CHECK_OK(engine_step(engine, fixture_sink, out));
        if (engine->rows > rows) rows = engine->rows;
        if (engine->running > running) running = engine->running;
    }
    *preemptions += engine_get_statistics(engine).preemptions;
    assert_int_equal(engine->free_pages, engine->options.pages);
    engine_close(engine);
    return rows;
}

static int compare_results(const requests_t *requests, const fixture_results_t *a, const fixture_results_t *b) {
    int compared = 0;
    for (int r = 0; r < REQUESTS; r++) {
        for (int i = 0; i < requests->request[r].completions; i++) {
            const fixture_result_t *x = &a->result[r][i], *y = &b->result[r][i];
            assert_true(x->length > 0);
            assert_int_equal(x->length, y->length);
            assert_int_equal(x->stopped, y->stopped);
            assert_memory_equal(x->tokens, y->tokens, (size_t)x->length * sizeof(int32_t));
            assert_memory_equal(x->logprobs, y->logprobs, (size_t)x->length * sizeof(float));
            assert_memory_equal(x->entropy, y->entropy, (size_t)x->length * sizeof(float));
            compared++;
        }
    }
    return compared;
}

// What the learner computes for one request's completions, laid out as its leaf.
static int compare_learner(const fixture_t *f, const engine_request_t *request, const fixture_result_t *results) {
    enum { COUNT = FIXTURE_COMPLETIONS + 1 };
    int32_t tokens[COUNT][LONGEST];
    batch_sequence_t sequence[COUNT];
    int prompt = request->prompt_length;
    for (int s = 0; s <= request->completions; s++) {
        const fixture_result_t *result = s ? &results[s - 1] : NULL;
        int length = prompt + (s ? result->length : 0);
        memcpy(tokens[s], request->tokens, (size_t)prompt * sizeof(int32_t));
        if (s) memcpy(tokens[s] + prompt, result->tokens, (size_t)result->length * sizeof(int32_t));
        sequence[s] = (batch_sequence_t){.tokens = tokens[s],
                                         .length = length,
                                         .shared_with = s ? 0 : -1,
                                         .shared_length = s ? prompt : 0,
                                         .images = s ? NULL : request->images,
                                         .image_count = s ? 0 : request->image_count,
                                         .first_target = prompt};
    }
    batch_t batch;
    head_output_t *head;
    check(batch_build(f->model, sequence, request->completions + 1, &batch));
    tape_t *tape = parity_tape(f->model, &batch, RECOMPUTE_NONE, false);
    check(batch_forward(f->model, tape, &batch, 1.0F, true, &head));
    for (int e = 0; e < batch.entry_count; e++) {
        const fixture_result_t *result = &results[batch.entry_sequence[e] - 1];
        int position = batch.entry_position[e] - prompt;
        assert_memory_equal(&result->logprobs[position], &head->logprob[e], sizeof(float));
        assert_memory_equal(&result->entropy[position], &head->entropy[e], sizeof(float));
    }
    int compared = batch.entry_count;
    tape_close(tape);
    batch_free(&batch);
    return compared;
}

static void test_engine(void **state) {
    (void)state;
    fixture_results_t *expected = calloc(1, sizeof(*expected)), *have = calloc(1, sizeof(*have)), *before = NULL;
    for (int set = 0; set < SETS; set++) {
        if (!device_is_here(sets[set])) continue;
        fixture_t f;
        requests_t requests;
        int order[REQUESTS], compared = 0, filled = 0, largest = 0;
        int64_t none = 0, preemptions = 0;
        fixture_open_on(&f, sets[set], 1 + set % 2, "gqa4_window56_hub");
        random_state = 40;
        make_requests(&f, &requests);
        for (int i = 0; i < REQUESTS; i++) order[i] = i;
        const engine_options_t wide = {512, 256, 256, 1 << 20};
        run_requests(&f, &requests, &wide, order, false, expected, &none);
        assert_int_equal(none, 0);
        for (int r = 0; r < REQUESTS; r++) compared += compare_learner(&f, &requests.request[r], expected->result[r]);
        assert_true(compared > 200);
        if (before) compare_results(&requests, before, expected);
        for (int rows = 1; rows <= MOST; rows += STRIDE) {
            engine_options_t options = {.pages = rows % 3 ? 12 + draw(30) : 200,
                                        .batch_rows = rows,
                                        .prefill_chunk = 1 + draw(rows % 4 ? rows : 3),
                                        .feature_cache_bytes = rows % 2 ? 1 << 20 : 0};
            shuffle(order, REQUESTS);
            int most = run_requests(&f, &requests, &options, order, true, have, &preemptions);
            assert_true(most <= rows);
            filled += most == rows;
            if (most > largest) largest = most;
            compare_results(&requests, expected, have);
        }
        print_message("%s: steps of up to 1 .. %d rows (%d sizes filled, largest %d), %lld sequences gave way, %d "
                      "log-probs are the learner's\n",
                      sets[set], MOST, filled, largest, (long long)preemptions, compared);
        assert_true(preemptions > 150 / STRIDE && filled > MOST / STRIDE * 2 / 3 && largest > MOST - 10);
        if (!before) before = malloc(sizeof(*before));
        memcpy(before, expected, sizeof(*before));
        fixture_close(&f);
    }
    free(expected);
    free(have);
    free(before);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_leaves), cmocka_unit_test(test_engine)};
    return cmocka_run_group_tests_name("neighbours", tests, NULL, NULL);
}
