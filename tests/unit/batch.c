// Batches of a real (tiny) model: nothing that lies beside a sequence changes a bit of it.
#include "tests/lib/parity.h"

enum { EXPONENT = 34, PATH = 1024 };

typedef struct fixture {
    device_t *device;
    model_t *model;
    safetensors_t *file;
    prompt_t prompts[PARITY_MAX_PROMPTS];
    int count;
} fixture_t;

static void fixture_open(fixture_t *fixture, const char *device, int threads, const char *name) {
    char path[PATH];
    *fixture = (fixture_t){0};
    check(device_open(device, threads, &fixture->device));
    snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/%s", POISE_SOURCE_DIR, name);
    fixture->model = parity_model(path, fixture->device);
    snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/%s/golden.safetensors", POISE_SOURCE_DIR, name);
    check(safetensors_open(path, &fixture->file));
    while (fixture->count < PARITY_MAX_PROMPTS &&
           parity_prompt(fixture->model, fixture->file, fixture->count, &fixture->prompts[fixture->count]))
        fixture->count++;
    assert_true(fixture->count >= 3);
}

// With a state the model has image groups, which its own family has not: tokens of one image see each other.
static void use_groups(fixture_t *fixture, void **state) {
    fixture->model->config.image_groups = *state != NULL;
}

static void fixture_close(fixture_t *fixture) {
    for (int i = 0; i < fixture->count; i++) parity_free_prompt(&fixture->prompts[i]);
    safetensors_close(fixture->file);
    model_close(fixture->model);
    device_close(fixture->device);
}

// Log-probs of a batch in entry order; to be freed.
static float *score(model_t *model, batch_t *batch) {
    head_output_t *head;
    tape_t *tape = parity_tape(model, batch, RECOMPUTE_NONE, false);
    check(batch_forward(model, tape, batch, 1.0F, false, &head));
    float *out = malloc((size_t)head->count * sizeof(float) + 1);
    memcpy(out, head->logprob, (size_t)head->count * sizeof(float));
    tape_close(tape);
    return out;
}

static float *score_sequences(model_t *model, const batch_sequence_t *sequences, int count, batch_t *batch) {
    check(batch_build(model, sequences, count, batch));
    return score(model, batch);
}

static void assert_bits(const void *a, const void *b, size_t bytes) {
    assert_memory_equal(a, b, bytes);
}

static void test_packed(void **state) {
    fixture_t fixture;
    fixture_open(&fixture, "cpu", 2, "gqa4_window56_hub");
    use_groups(&fixture, state);
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    batch_t packed, single;
    for (int i = 0; i < fixture.count; i++) sequences[i] = parity_sequence(&fixture.prompts[i], 0);
    float *together = score_sequences(fixture.model, sequences, fixture.count, &packed), *at = together;
    for (int i = 0; i < fixture.count; i++) {
        float *alone = score_sequences(fixture.model, &sequences[i], 1, &single);
        assert_int_equal(single.entry_count, fixture.prompts[i].length - 1);
        assert_bits(alone, at, (size_t)single.entry_count * sizeof(float));
        at += single.entry_count;
        free(alone);
        batch_free(&single);
    }
    assert_int_equal(at - together, packed.entry_count);
    free(together);
    batch_free(&packed);
    fixture_close(&fixture);
}

// ---- shared prefixes ----

enum { COMPLETIONS = 4 };

static void make_completions(const prompt_t *prompt, int32_t *tokens[COMPLETIONS], int lengths[COMPLETIONS]) {
    const int extra[COMPLETIONS] = {5, 1, 17, 3};
    for (int i = 0; i < COMPLETIONS; i++) {
        lengths[i] = prompt->length + extra[i];
        tokens[i] = malloc((size_t)lengths[i] * sizeof(int32_t));
        memcpy(tokens[i], prompt->tokens, (size_t)prompt->length * sizeof(int32_t));
        for (int j = 0; j < extra[i]; j++) tokens[i][prompt->length + j] = (i * 37 + j * 11) % 140;
    }
}

static void test_shared(void **state) {
    fixture_t fixture;
    fixture_open(&fixture, "cpu", 2, "gqa4_window56_hub");
    use_groups(&fixture, state);
    int with_image = 0;
    for (int p = 0; p < fixture.count; p++) {
        const prompt_t *prompt = &fixture.prompts[p];
        int32_t *tokens[COMPLETIONS];
        int lengths[COMPLETIONS];
        batch_sequence_t sequences[COMPLETIONS + 2];
        batch_t shared, plain;
        make_completions(prompt, tokens, lengths);
        sequences[0] = parity_sequence(prompt, 0);
        sequences[0].first_target = prompt->length;
        for (int i = 0; i < COMPLETIONS; i++)
            sequences[i + 1] = (batch_sequence_t){.tokens = tokens[i],
                                                  .length = lengths[i],
                                                  .shared_with = 0,
                                                  .shared_length = prompt->length,
                                                  .first_target = prompt->length};
        // The last one shares more than the prompt: also some rows of the third completion.
        memcpy(tokens[3] + prompt->length, tokens[2] + prompt->length, 2 * sizeof(int32_t));
        sequences[4].shared_with = 3;
        sequences[4].shared_length = prompt->length + 2;
        // And one that has no row of its own.
        sequences[COMPLETIONS + 1] = sequences[1];
        sequences[COMPLETIONS + 1].length = prompt->length;
        float *have = score_sequences(fixture.model, sequences, COMPLETIONS + 2, &shared);
        for (int i = 1; i <= COMPLETIONS; i++) {
            sequences[i].shared_with = -1;
            sequences[i].shared_length = 0;
            sequences[i].images = prompt->image;
            sequences[i].image_count = prompt->image_count;
        }
        float *want = score_sequences(fixture.model, sequences + 1, COMPLETIONS, &plain);
        assert_int_equal(shared.entry_count, plain.entry_count);
        assert_true(shared.text.rows < plain.text.rows);
        assert_bits(have, want, (size_t)plain.entry_count * sizeof(float));
        for (int i = 0; i < plain.entry_count; i++) {
            assert_int_equal(shared.entry_sequence[i], plain.entry_sequence[i] + 1);
            assert_int_equal(shared.entry_position[i], plain.entry_position[i]);
            if (shared.entry_position[i] == prompt->length) assert_int_equal(shared.entry_row[i], prompt->length - 1);
        }
        with_image += prompt->image_count > 0;
        for (int i = 0; i < COMPLETIONS; i++) free(tokens[i]);
        free(have);
        free(want);
        batch_free(&shared);
        batch_free(&plain);
    }
    assert_true(with_image > 0);
    fixture_close(&fixture);
}

// ---- gradients: leaves, policies, threads, kernel sets ----

// A loss whose dL/dlogp differs from entry to entry, keyed by sequence and position.
static void set_loss(const batch_t *batch, head_output_t *head, int first_sequence) {
    for (int i = 0; i < head->count; i++) {
        int sequence = batch->entry_sequence[i] + first_sequence, position = batch->entry_position[i];
        head->dlogprob[i] = (float)((sequence * 7 + position * 3) % 11 - 5) / 8.0F;
    }
}

// Forward and backward of some sequences into the sinks; log-probs go to `logprobs` (may be NULL).
static tape_memory_t train(model_t *model, const batch_sequence_t *sequences, int count, int first_sequence,
                           recompute_t recompute, float *logprobs) {
    batch_t batch;
    head_output_t *head;
    check(batch_build(model, sequences, count, &batch));
    tape_t *tape = parity_tape(model, &batch, recompute, true);
    // Twice: a reset tape must do the same again.
    for (int run = 0; run < 2; run++) {
        tape_reset(tape, true);
        check(batch_forward(model, tape, &batch, 1.0F, true, &head));
        set_loss(&batch, head, first_sequence);
    }
    if (logprobs) memcpy(logprobs, head->logprob, (size_t)head->count * sizeof(float));
    check(tape_backward(tape));
    tape_memory_t memory = tape_memory(tape);
    tape_close(tape);
    batch_free(&batch);
    return memory;
}

static void assert_same_sums(const model_t *model, const sinks_t *a, const sinks_t *b) {
    assert_int_equal(*a->flags, 0);
    assert_int_equal(*b->flags, 0);
    for (int i = 0; i < a->count; i++) {
        if (!a->sum[i]) continue;
        const adapter_t *adapter = model->adapter[i / 3];
        matrix_t value = i % 3 == 0 ? model->parameter[i / 3].value : i % 3 == 1 ? adapter->a.value : adapter->b.value;
        bool some = false;
        for (int64_t e = 0; e < (int64_t)value.rows * value.columns; e++) {
            some = some || a->sum[i][e];
            if (a->sum[i][e] != b->sum[i][e])
                fail_msg("the gradient of %s differs at %lld", model->spec[i / 3].name, (long long)e);
        }
        assert_true(some);
    }
}

static int fill_sequences(const fixture_t *fixture, batch_sequence_t *sequences, int *entries) {
    *entries = 0;
    for (int i = 0; i < fixture->count; i++) {
        sequences[i] = parity_sequence(&fixture->prompts[i], i);
        *entries += fixture->prompts[i].length - 1;
    }
    return fixture->count;
}

static void test_leaves(void **state) {
    const char *const names[] = {"gqa4_window56_hub", "gqa6_window112_v5"};
    for (int n = 0; n < 2; n++) {
        fixture_t fixture;
        batch_sequence_t sequences[PARITY_MAX_PROMPTS];
        int entries;
        fixture_open(&fixture, "cpu", 2, names[n]);
        use_groups(&fixture, state);
        int count = fill_sequences(&fixture, sequences, &entries);
        float *together = calloc((size_t)entries, sizeof(float)), *apart = calloc((size_t)entries, sizeof(float));
        sinks_t one = parity_sinks(fixture.model, EXPONENT);
        train(fixture.model, sequences, count, 0, RECOMPUTE_NONE, together);
        sinks_t many = parity_sinks(fixture.model, EXPONENT);
        // The last leaf first: exact sums have no order.
        for (int i = count - 1, at = entries; i >= 0; i--) {
            batch_sequence_t single = sequences[i];
            single.leaf = 0;
            at -= single.length - 1;
            train(fixture.model, &single, 1, i, RECOMPUTE_NONE, apart + at);
        }
        assert_bits(together, apart, (size_t)entries * sizeof(float));
        assert_same_sums(fixture.model, &one, &many);
        free(together);
        free(apart);
        parity_free_sinks(&one);
        parity_free_sinks(&many);
        fixture_close(&fixture);
    }
}

static void test_recompute(void **state) {
    const char *const patterns[] = {"q_proj", "v_proj", "attn.qkv", "mlp\\.0", "down_proj"};
    for (int adapted = 0; adapted < 2; adapted++) {
        fixture_t fixture;
        batch_sequence_t sequences[PARITY_MAX_PROMPTS];
        int entries;
        fixture_open(&fixture, "cpu", 2, "gqa4_window56_hub");
        use_groups(&fixture, state);
        if (adapted) {
            check(model_add_adapters(fixture.model, patterns, 5, 3, 6.0F, 11));
            // B starts at zero, where A has no gradient: fill it.
            for (int i = 0; i < fixture.model->parameter_count; i++) {
                const adapter_t *adapter = fixture.model->adapter[i];
                for (int e = 0; adapter && e < adapter->b.value.rows * adapter->b.value.columns; e++)
                    ((float *)adapter->b.value.data)[e] = (float)(e % 7 - 3) / 16.0F;
            }
        }
        int count = fill_sequences(&fixture, sequences, &entries);
        float *logprobs[3];
        sinks_t sinks[3];
        tape_memory_t memory[3];
        for (int policy = 0; policy < 3; policy++) {
            logprobs[policy] = calloc((size_t)entries, sizeof(float));
            sinks[policy] = parity_sinks(fixture.model, EXPONENT);
            memory[policy] = train(fixture.model, sequences, count, 0, (recompute_t)policy, logprobs[policy]);
            assert_bits(logprobs[0], logprobs[policy], (size_t)entries * sizeof(float));
            assert_same_sums(fixture.model, &sinks[0], &sinks[policy]);
        }
        print_message("values: none %zu, cheap %zu, block %zu; gradients %zu, %zu, %zu\n", memory[0].values,
                      memory[1].values, memory[2].values, memory[0].gradients, memory[1].gradients,
                      memory[2].gradients);
        assert_true(memory[1].values < memory[0].values);
        assert_true(memory[2].values < memory[1].values);
        for (int policy = 0; policy < 3; policy++) {
            free(logprobs[policy]);
            parity_free_sinks(&sinks[policy]);
        }
        fixture_close(&fixture);
    }
}

static void test_threads_and_kernels(void **state) {
    const char *const devices[] = {"cpu", "cpu", "cpu:portable", "cpu:avx2"};
    const int threads[] = {1, 3, 2, 1};
    sinks_t sinks[4] = {0};
    float *logprobs[4] = {0};
    fixture_t fixture[4];
    for (int i = 0; i < 4; i++) {
        device_t *device;
        status_t status = device_open(devices[i], 1, &device);
        if (status) {
            status_free(status);
            continue;
        }
        device_close(device);
        batch_sequence_t sequences[PARITY_MAX_PROMPTS];
        int entries;
        fixture_open(&fixture[i], devices[i], threads[i], "mqa4_head32_hub");
        use_groups(&fixture[i], state);
        int count = fill_sequences(&fixture[i], sequences, &entries);
        logprobs[i] = calloc((size_t)entries, sizeof(float));
        sinks[i] = parity_sinks(fixture[i].model, EXPONENT);
        train(fixture[i].model, sequences, count, 0, RECOMPUTE_NONE, logprobs[i]);
        assert_bits(logprobs[0], logprobs[i], (size_t)entries * sizeof(float));
        assert_same_sums(fixture[i].model, &sinks[0], &sinks[i]);
    }
    for (int i = 0; i < 4; i++) {
        if (!logprobs[i]) continue;
        free(logprobs[i]);
        parity_free_sinks(&sinks[i]);
        fixture_close(&fixture[i]);
    }
}

// ---- frozen parts ----

static void freeze(model_t *model, model_part_t first, model_part_t last) {
    for (int i = 0; i < model->parameter_count; i++)
        if (model->spec[i].part >= first && model->spec[i].part <= last)
            model->parameter[i].sink = (gradient_sink_t){0};
}

static void test_frozen(void **state) {
    (void)state;
    fixture_t fixture;
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    int entries;
    fixture_open(&fixture, "cpu", 2, "gqa4_window56_hub");
    int count = fill_sequences(&fixture, sequences, &entries);
    sinks_t all = parity_sinks(fixture.model, EXPONENT);
    tape_memory_t trained = train(fixture.model, sequences, count, 0, RECOMPUTE_NONE, NULL);
    sinks_t some = parity_sinks(fixture.model, EXPONENT);
    freeze(fixture.model, PART_VISION, PART_PROJECTOR);
    tape_memory_t frozen = train(fixture.model, sequences, count, 0, RECOMPUTE_NONE, NULL);
    assert_true(frozen.values < trained.values);
    for (int i = 0; i < fixture.model->parameter_count; i++) {
        const parameter_spec_t *spec = &fixture.model->spec[i];
        bool language = spec->part >= PART_LANGUAGE;
        for (int64_t e = 0; e < spec->elements; e++)
            assert_int_equal(some.sum[3 * i][e], language ? all.sum[3 * i][e] : 0);
    }
    parity_free_sinks(&some);
    // The other way round: the language model frozen, its gradient still reaches the tower.
    some = parity_sinks(fixture.model, EXPONENT);
    freeze(fixture.model, PART_LANGUAGE, PART_HEAD);
    train(fixture.model, sequences, count, 0, RECOMPUTE_BLOCK, NULL);
    for (int i = 0; i < fixture.model->parameter_count; i++) {
        const parameter_spec_t *spec = &fixture.model->spec[i];
        bool vision = spec->part < PART_LANGUAGE;
        for (int64_t e = 0; e < spec->elements; e++)
            assert_int_equal(some.sum[3 * i][e], vision ? all.sum[3 * i][e] : 0);
    }
    parity_free_sinks(&some);
    // Nothing trained at all: backward is a walk over nothing, and blocks keep nothing.
    freeze(fixture.model, PART_VISION, PART_HEAD);
    tape_memory_t nothing = train(fixture.model, sequences, count, 0, RECOMPUTE_NONE, NULL);
    assert_true(nothing.values < frozen.values);
    assert_int_equal(nothing.gradients, 0);
    parity_free_sinks(&all);
    fixture_close(&fixture);
}

// ---- the KV cache ----

enum { CACHE_ROWS = 400 };

static kv_cache_t make_cache(model_t *model) {
    const model_config_t *config = &model->config;
    kv_cache_t cache = {.layers = config->layers, .rows = CACHE_ROWS};
    int columns = config->kv_heads * config->head_dim;
    cache.k = calloc((size_t)config->layers, sizeof(matrix_t));
    cache.v = calloc((size_t)config->layers, sizeof(matrix_t));
    for (int i = 0; i < config->layers; i++) {
        float *k = malloc(CACHE_ROWS * (size_t)columns * sizeof(float));
        float *v = malloc(CACHE_ROWS * (size_t)columns * sizeof(float));
        // What other sequences left there must not matter.
        for (int e = 0; e < CACHE_ROWS * columns; e++) k[e] = v[e] = NAN;
        cache.k[i] = matrix_view(k, DTYPE_F32, CACHE_ROWS, columns);
        cache.v[i] = matrix_view(v, DTYPE_F32, CACHE_ROWS, columns);
    }
    return cache;
}

static void free_cache(kv_cache_t *cache) {
    for (int i = 0; i < cache->layers; i++) {
        free(cache->k[i].data);
        free(cache->v[i].data);
    }
    free(cache->k);
    free(cache->v);
}

// Rows first .. first + rows - 1 of a sequence through the cache; log-probs of their next tokens.
static void run_chunk(model_t *model, tape_t *tape, const batch_t *whole, const kv_cache_t *cache,
                      const float *features, const int32_t *slot, int first, int rows, float *logprobs) {
    const text_input_t *text = &whole->text;
    int length = text->rows, columns = model->config.hidden, feature_count = 0;
    int32_t query_start[2] = {0, rows}, key_start[2] = {0, first + rows}, entry[CACHE_ROWS], target[CACHE_ROWS];
    int32_t feature_index[CACHE_ROWS];
    for (int i = 0; i < whole->image_count; i++) feature_count += whole->images[i].shape.feature_rows;
    text_input_t input = {.rows = rows, .token = text->token + first, .cache = cache, .cache_row = slot + first};
    for (int axis = 0; axis < 3; axis++) input.rope_position[axis] = text->rope_position[axis] + first;
    input.mask = (attention_mask_t){.sequences = 1,
                                    .query_start = query_start,
                                    .query_position = &(int32_t){first},
                                    .key_start = key_start,
                                    .key_row = slot,
                                    .causal = true};
    tensor_t *hidden;
    head_output_t *head;
    tape_reset(tape, false);
    for (int i = 0; i < feature_count; i++) {
        int row = text->feature_index[i] - first;
        feature_index[i] = row >= 0 && row < rows ? row : -1;
    }
    if (feature_count) {
        matrix_t view = matrix_view((void *)(uintptr_t)features, DTYPE_F32, feature_count, columns);
        check(tape_input(tape, view, (leaves_t){0}, &input.features));
        input.feature_index = feature_index;
    }
    check(model->family->text(model, tape, &input, &hidden));
    int count = 0;
    for (int i = 0; i < rows && first + i + 1 < length; i++) {
        entry[count] = i;
        target[count++] = text->token[first + i + 1];
    }
    check(
        tape_token_logprobs(tape, hidden, model_head(model), 1.0F, count, entry, target, (leaves_t){0}, false, &head));
    memcpy(logprobs + first, head->logprob, (size_t)count * sizeof(float));
}

static float *copy_features(model_t *model, tape_t *tape, const batch_t *batch) {
    tensor_t *features;
    if (!batch->image_count) return NULL;
    tape_reset(tape, false);
    check(model->family->vision(model, tape, batch->images, batch->image_count, &features));
    size_t bytes = (size_t)features->value.rows * (size_t)features->value.columns * sizeof(float);
    float *copy = malloc(bytes);
    memcpy(copy, features->value.data, bytes);
    return copy;
}

static void test_cache(void **state) {
    (void)state;
    const int chunks[][4] = {{1, 1, 1, 1}, {7, 7, 7, 7}, {17, 1, 3, 16}, {33, 5, 1, 1}};
    fixture_t fixture;
    fixture_open(&fixture, "cpu", 2, "gqa6_window112_v5");
    for (int p = 0; p < fixture.count; p++) {
        batch_t whole;
        batch_sequence_t sequence = parity_sequence(&fixture.prompts[p], 0);
        float *want = score_sequences(fixture.model, &sequence, 1, &whole), have[CACHE_ROWS];
        int32_t slot[CACHE_ROWS];
        int length = sequence.length, pages = CACHE_ROWS / 16;
        assert_true(length <= CACHE_ROWS);
        tape_t *tape = parity_tape(fixture.model, &whole, RECOMPUTE_NONE, false);
        float *features = copy_features(fixture.model, tape, &whole);
        for (int c = 0; c < 4; c++) {
            kv_cache_t cache = make_cache(fixture.model);
            // Pages of 16 rows in an order of their own.
            for (int i = 0; i < length; i++) slot[i] = (i / 16 * 7 + c) % pages * 16 + i % 16;
            for (int first = 0, turn = 0; first < length; turn++) {
                int rows = chunks[c][turn % 4] < length - first ? chunks[c][turn % 4] : length - first;
                run_chunk(fixture.model, tape, &whole, &cache, features, slot, first, rows, have);
                first += rows;
            }
            assert_bits(have, want, (size_t)(length - 1) * sizeof(float));
            free_cache(&cache);
        }
        tape_close(tape);
        free(features);
        free(want);
        batch_free(&whole);
    }
    fixture_close(&fixture);
}

// ---- image groups ----

// Runs of image tokens are groups, numbered in each sequence; what is shared keeps its numbers.
static void test_groups(void **state) {
    (void)state;
    fixture_t fixture;
    fixture_open(&fixture, "cpu", 1, "gqa4_window56_hub");
    model_config_t *config = &fixture.model->config;
    const int32_t image = config->image.image_token, tokens[] = {image, image, 5, image, 6, 6, image, image, image};
    const int32_t want[] = {0, 0, -1, 1, -1, -1, 2, 2, 2};
    int32_t group[9];
    batch_image_groups(config, tokens, 9, group);
    for (int i = 0; i < 9; i++) assert_int_equal(group[i], -1);
    config->image_groups = true;
    batch_image_groups(config, tokens, 9, group);
    assert_memory_equal(group, want, sizeof(want));
    for (int p = 0; p < fixture.count; p++) {
        const prompt_t *prompt = &fixture.prompts[p];
        batch_sequence_t two[2] = {parity_sequence(prompt, 0), parity_sequence(prompt, 0)};
        two[1].image_count = 0;
        two[1].shared_with = 0;
        two[1].shared_length = prompt->length - 1;
        batch_t batch;
        float *with = score_sequences(fixture.model, two, 2, &batch);
        const attention_mask_t *mask = &batch.text.mask;
        int images = 0;
        for (int i = 0; i < prompt->length; i++) {
            bool is_image = prompt->tokens[i] == image;
            if (is_image && (i == 0 || prompt->tokens[i - 1] != image)) images++;
            assert_int_equal(mask->group[i], is_image ? images - 1 : -1);
            assert_int_equal(mask->group[prompt->length + i], mask->group[i]);
        }
        batch_free(&batch);
        config->image_groups = false;
        float *without = score_sequences(fixture.model, two, 2, &batch);
        assert_null(batch.text.mask.group);
        bool same = !memcmp(with, without, (size_t)batch.entry_count * sizeof(float));
        assert_int_equal(same, prompt->image_count == 0);
        batch_free(&batch);
        config->image_groups = true;
        free(with);
        free(without);
    }
    fixture_close(&fixture);
}

// ---- what is refused ----

static void refuse(const model_t *model, const batch_sequence_t *sequences, int count, const char *reason) {
    batch_t batch;
    status_t status = batch_build(model, sequences, count, &batch);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
    assert_null(batch.owned);
}

static void test_refusals(void **state) {
    (void)state;
    fixture_t fixture;
    fixture_open(&fixture, "cpu", 1, "gqa4_window56_hub");
    int with_image = 0;
    while (!fixture.prompts[with_image].image_count) with_image++;
    const prompt_t *prompt = &fixture.prompts[with_image];
    batch_sequence_t good = parity_sequence(prompt, 0), two[2] = {good, good};
    int32_t *tokens = malloc((size_t)prompt->length * sizeof(int32_t));
    memcpy(tokens, prompt->tokens, (size_t)prompt->length * sizeof(int32_t));
    refuse(fixture.model, &good, 0, "one sequence");
    two[1].length = 0;
    refuse(fixture.model, two, 2, "sequence 1 of the batch: it is empty");
    two[1] = good, two[1].image_count--;
    refuse(fixture.model, two, 2, "sequence 1 of the batch");
    two[1] = good, two[1].leaf = 2;
    refuse(fixture.model, two, 2, "leaf is 2");
    two[1] = (batch_sequence_t){.tokens = tokens, .length = prompt->length, .shared_length = 4, .shared_with = 1};
    refuse(fixture.model, two, 2, "not an earlier one");
    two[1].shared_with = 0;
    tokens[1]++;
    refuse(fixture.model, two, 2, "differ");
    tokens[1]--;
    refuse(fixture.model, two, 2, "images behind");
    two[1].shared_length = prompt->length + 1;
    refuse(fixture.model, two, 2, "shares");
    for (int i = 1; i < prompt->length && two[1].shared_length > prompt->length; i++)
        if (tokens[i - 1] == fixture.model->config.image.image_token && tokens[i] == tokens[i - 1])
            two[1].shared_length = two[1].length = i;
    fixture.model->config.image_groups = true;
    refuse(fixture.model, two, 2, "end within an image");
    fixture.model->config.image_groups = false;
    two[1] = good, two[1].tokens = tokens;
    tokens[prompt->length - 1] = fixture.model->config.vocabulary;
    refuse(fixture.model, two, 2, "vocabulary");
    tokens[prompt->length - 1] = fixture.model->config.image.image_token;
    refuse(fixture.model, two, 2, "placeholders");
    free(tokens);
    fixture_close(&fixture);
}

int main(void) {
    bool groups = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed),
        cmocka_unit_test_prestate(test_packed, &groups),
        cmocka_unit_test(test_shared),
        cmocka_unit_test_prestate(test_shared, &groups),
        cmocka_unit_test(test_leaves),
        cmocka_unit_test_prestate(test_leaves, &groups),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test_prestate(test_recompute, &groups),
        cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_threads_and_kernels),
        cmocka_unit_test_prestate(test_threads_and_kernels, &groups),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
