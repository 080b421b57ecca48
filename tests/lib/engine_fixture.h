// Requests made of the golden prompts of a folder of tests/goldens (of qwen2_5_vl/ where no other is named), and what
// an engine made of them.
#ifndef TESTS_LIB_ENGINE_FIXTURE_H
#define TESTS_LIB_ENGINE_FIXTURE_H

#include "common/model/batch.h"
#include "common/model/safetensors.h"
#include "rollout/engine.h"
#include "tests/lib/check.h"

#include <math.h>

enum { FIXTURE_PROMPTS = 4, FIXTURE_IMAGES = 3, FIXTURE_COMPLETIONS = 8, FIXTURE_BUDGET = 40 };

typedef struct fixture_prompt {
    int32_t *tokens;
    int length;
    image_patches_t image[FIXTURE_IMAGES];
    const image_patches_t *images[FIXTURE_IMAGES];
    int image_count;
} fixture_prompt_t;

typedef struct fixture {
    device_t *device;
    model_t *model;
    safetensors_t *golden;
    fixture_prompt_t prompt[FIXTURE_PROMPTS];
    int prompts;
} fixture_t;

static inline const safetensors_tensor_t *fixture_tensor(const fixture_t *f, int prompt, const char *name) {
    char full[64];
    snprintf(full, sizeof(full), "prompt%d.%s", prompt, name);
    return safetensors_find(f->golden, full);
}

static inline void fixture_images(fixture_t *f, int index) {
    fixture_prompt_t *prompt = &f->prompt[index];
    // Nine numbers a picture, in the order of image_shape_t, or its grid alone.
    const safetensors_tensor_t *grid = fixture_tensor(f, index, "image_grid_thw");
    const safetensors_tensor_t *shapes = fixture_tensor(f, index, "image_shapes");
    int each = shapes ? 9 : 3;
    grid = shapes ? shapes : grid;
    if (!grid) return;
    const safetensors_tensor_t *pixels = fixture_tensor(f, index, "pixel_values");
    int32_t grids[FIXTURE_IMAGES * 9];
    float *values = malloc((size_t)pixels->elements * sizeof(float));
    prompt->image_count = (int)grid->shape[0];
    assert_true(prompt->image_count <= FIXTURE_IMAGES);
    CHECK_OK(safetensors_read_i32(grid, grids));
    CHECK_OK(safetensors_read_f32(pixels, values));
    int row = 0, columns = (int)pixels->shape[1];
    for (int i = 0; i < prompt->image_count; i++) {
        image_patches_t *image = &prompt->image[i];
        const int32_t *shape = &grids[i * each];
        for (int axis = 0; axis < 3; axis++) image->shape.grid[axis] = shape[axis];
        for (int axis = 0; axis < 2 && each == 9; axis++) {
            image->shape.tiles[axis] = shape[3 + axis];
            image->shape.size[axis] = shape[5 + axis];
        }
        image->shape.runs = each == 9 ? shape[7] : 1;
        image->rows = image->shape.grid[0] * image->shape.grid[1] * image->shape.grid[2];
        image->columns = columns;
        image->content_hash = (uint64_t)(index * FIXTURE_IMAGES + i + 1) * 0x9E3779B97F4A7C15;
        image->shape.feature_rows = f->model->family->feature_rows(&f->model->config, &image->shape);
        image->patches = malloc((size_t)image->rows * (size_t)columns * sizeof(float));
        memcpy(image->patches, values + (size_t)row * (size_t)columns,
               (size_t)image->rows * (size_t)columns * sizeof(float));
        row += image->rows;
        prompt->images[i] = image;
    }
    free(values);
}

static inline void fixture_open_on(fixture_t *f, const char *device, int threads, const char *name) {
    char folder[512], path[600];
    *f = (fixture_t){0};
    const char *group = strchr(name, '/') ? "" : "qwen2_5_vl/";
    snprintf(folder, sizeof(folder), "%s/tests/goldens/%s%s", POISE_SOURCE_DIR, group, name);
    snprintf(path, sizeof(path), "%s/golden.safetensors", folder);
    CHECK_OK(device_open(device, threads, &f->device));
    CHECK_OK(model_open(folder, f->device, &f->model));
    CHECK_OK(model_load(f->model, folder));
    CHECK_OK(safetensors_open(path, &f->golden));
    for (int i = 0; i < FIXTURE_PROMPTS; i++) {
        const safetensors_tensor_t *ids = fixture_tensor(f, i, "input_ids");
        if (!ids) break;
        f->prompts++;
        f->prompt[i].length = (int)ids->elements;
        f->prompt[i].tokens = malloc((size_t)ids->elements * sizeof(int32_t));
        CHECK_OK(safetensors_read_i32(ids, f->prompt[i].tokens));
        fixture_images(f, i);
    }
}

static inline void fixture_open(fixture_t *f, const char *name) {
    fixture_open_on(f, "cpu", 2, name);
}

static inline void fixture_close(fixture_t *f) {
    for (int i = 0; i < FIXTURE_PROMPTS; i++) {
        free(f->prompt[i].tokens);
        for (int j = 0; j < f->prompt[i].image_count; j++) free(f->prompt[i].image[j].patches);
    }
    safetensors_close(f->golden);
    model_close(f->model);
    device_close(f->device);
}

// What came out, by (tag, index).
typedef struct fixture_result {
    int length;
    bool stopped;
    int32_t tokens[FIXTURE_BUDGET];
    float logprobs[FIXTURE_BUDGET], entropy[FIXTURE_BUDGET];
} fixture_result_t;
typedef struct fixture_results {
    fixture_result_t result[16][FIXTURE_COMPLETIONS];
    int finished;
} fixture_results_t;

static inline status_t fixture_sink(void *context, const engine_completion_t *completion) {
    fixture_results_t *results = context;
    fixture_result_t *result = &results->result[completion->tag][completion->index];
    size_t count = (size_t)completion->length;
    if (result->length) FAIL(STATUS_FAILED, "completion %d finished twice", completion->index);
    if (completion->length > FIXTURE_BUDGET) FAIL(STATUS_FAILED, "%d tokens are too many", completion->length);
    result->length = completion->length;
    result->stopped = completion->stopped;
    memcpy(result->tokens, completion->tokens, count * sizeof(int32_t));
    memcpy(result->logprobs, completion->logprobs, count * sizeof(float));
    memcpy(result->entropy, completion->entropy, count * sizeof(float));
    results->finished++;
    return STATUS_OK;
}

static inline engine_request_t fixture_request(const fixture_t *f, int prompt) {
    const fixture_prompt_t *p = &f->prompt[prompt];
    return (engine_request_t){.key = 100 + (uint64_t)prompt,
                              .tag = prompt,
                              .seed = 7,
                              .tokens = p->tokens,
                              .prompt_length = p->length,
                              .images = p->images,
                              .image_count = p->image_count,
                              .completions = FIXTURE_COMPLETIONS,
                              .max_new_tokens = FIXTURE_BUDGET,
                              .temperature = 1};
}

static inline void fixture_run(engine_t *engine, fixture_results_t *results) {
    for (int steps = 0; engine_pending(engine); steps++) {
        assert_true(steps < 100000);
        CHECK_OK(engine_step(engine, fixture_sink, results));
    }
}

// Rows of one learner launch over all completions, and how its log-probs compare.
// Returns how many log-probs were compared, to the bit.
static inline int fixture_check_learner(const fixture_t *f, const fixture_results_t *results, float temperature,
                                        bool recording, bool share) {
    enum { MOST = FIXTURE_PROMPTS * FIXTURE_COMPLETIONS };
    batch_sequence_t sequences[MOST];
    int32_t *tokens[MOST];
    int count = 0;
    for (int p = 0; p < f->prompts; p++) {
        for (int i = 0; i < FIXTURE_COMPLETIONS; i++, count++) {
            const fixture_prompt_t *prompt = &f->prompt[p];
            const fixture_result_t *result = &results->result[p][i];
            int length = prompt->length + result->length;
            tokens[count] = malloc((size_t)length * sizeof(int32_t));
            memcpy(tokens[count], prompt->tokens, (size_t)prompt->length * sizeof(int32_t));
            memcpy(tokens[count] + prompt->length, result->tokens, (size_t)result->length * sizeof(int32_t));
            bool first = i == 0 || !share;
            sequences[count] = (batch_sequence_t){.tokens = tokens[count],
                                                  .length = length,
                                                  .shared_with = first ? -1 : count - i,
                                                  .shared_length = first ? 0 : prompt->length,
                                                  .images = prompt->images,
                                                  .image_count = first ? prompt->image_count : 0,
                                                  .leaf = p,
                                                  .first_target = prompt->length};
        }
    }
    batch_t batch;
    tape_t *tape;
    head_output_t *head;
    CHECK_OK(batch_build(f->model, sequences, count, &batch));
    assert_true(batch.text.rows >= 64);
    CHECK_OK(tape_open_measuring(f->device, RECOMPUTE_NONE, &tape));
    tape_reset(tape, recording);
    CHECK_OK(batch_forward(f->model, tape, &batch, temperature, true, &head));
    tape_memory_t memory = tape_memory(tape);
    tape_close(tape);
    CHECK_OK(tape_open(f->device, &memory, RECOMPUTE_NONE, &tape));
    tape_reset(tape, recording);
    CHECK_OK(batch_forward(f->model, tape, &batch, temperature, true, &head));
    float *logprob = malloc((size_t)head->count * sizeof(float)),
          *entropy = malloc((size_t)head->count * sizeof(float));
    size_t bytes = (size_t)head->count * sizeof(float);
    CHECK_OK(f->device->table->download(f->device, logprob, head->logprob, bytes));
    CHECK_OK(f->device->table->download(f->device, entropy, head->entropy, bytes));
    int compared = 0;
    float difference = 0;
    for (int e = 0; e < batch.entry_count; e++, compared++) {
        int sequence = batch.entry_sequence[e], p = sequence / FIXTURE_COMPLETIONS;
        int position = batch.entry_position[e] - f->prompt[p].length;
        const fixture_result_t *result = &results->result[p][sequence % FIXTURE_COMPLETIONS];
        difference = fmaxf(difference, fabsf(result->logprobs[position] - logprob[e]));
        assert_memory_equal(&result->logprobs[position], &logprob[e], sizeof(float));
        assert_memory_equal(&result->entropy[position], &entropy[e], sizeof(float));
    }
    assert_true(difference == 0);
    free(logprob);
    free(entropy);
    tape_close(tape);
    batch_free(&batch);
    for (int i = 0; i < count; i++) free(tokens[i]);
    return compared;
}

#endif
