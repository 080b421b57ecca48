// What the model tests share: a model of a golden folder, its prompts as sequences, gradient sinks.
#ifndef TESTS_LIB_PARITY_H
#define TESTS_LIB_PARITY_H

#include "common/model/batch.h"
#include "common/model/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PARITY_MAX_PROMPTS = 8, PARITY_MAX_IMAGES = 8 };

typedef struct prompt {
    int32_t *tokens;
    int length;
    int32_t *segments; // [length], zeros where the golden has none
    image_patches_t images[PARITY_MAX_IMAGES];
    const image_patches_t *image[PARITY_MAX_IMAGES];
    int image_count;
    float *logprobs; // [length - 1]
} prompt_t;

typedef struct sinks {
    int count;
    int64_t **sum;
    uint32_t *flags;
} sinks_t;

static inline void check(status_t status) {
    if (!status) return;
    status_print(status, stderr, -1, true);
    status_free(status);
    fail();
}

static inline model_t *parity_model_as(const char *folder, device_t *device, dtype_t dtype) {
    model_t *model;
    check(model_open_as(folder, device, dtype, &model));
    check(model_load(model, folder));
    return model;
}

static inline model_t *parity_model(const char *folder, device_t *device) {
    return parity_model_as(folder, device, DTYPE_F32);
}

static inline float *parity_floats(const safetensors_t *file, const char *name, int64_t *count) {
    const safetensors_tensor_t *tensor = safetensors_find(file, name);
    if (!tensor) return NULL;
    float *values = calloc((size_t)tensor->elements + 1, sizeof(float));
    check(safetensors_read_f32(tensor, values));
    if (count) *count = tensor->elements;
    return values;
}

static inline int32_t *parity_integers(const safetensors_t *file, const char *name, int64_t *count) {
    const safetensors_tensor_t *tensor = safetensors_find(file, name);
    if (!tensor) return NULL;
    int32_t *values = calloc((size_t)tensor->elements + 1, sizeof(int32_t));
    check(safetensors_read_i32(tensor, values));
    if (count) *count = tensor->elements;
    return values;
}

// promptN of a golden file; false when there is none.
static inline bool parity_prompt(const model_t *model, const safetensors_t *file, int number, prompt_t *out) {
    char name[64];
    int64_t count = 0, pixels = 0, grids = 0;
    *out = (prompt_t){0};
    snprintf(name, sizeof(name), "prompt%d.input_ids", number);
    out->tokens = parity_integers(file, name, &count);
    if (!out->tokens) return false;
    out->length = (int)count;
    snprintf(name, sizeof(name), "prompt%d.segments", number);
    out->segments = parity_integers(file, name, NULL);
    if (!out->segments) out->segments = calloc((size_t)count, sizeof(int32_t));
    snprintf(name, sizeof(name), "prompt%d.logprobs", number);
    out->logprobs = parity_floats(file, name, NULL);
    snprintf(name, sizeof(name), "prompt%d.pixel_values", number);
    float *patches = parity_floats(file, name, &pixels);
    snprintf(name, sizeof(name), "prompt%d.image_grid_thw", number);
    int32_t *grid = parity_integers(file, name, &grids);
    // Nine numbers a picture, in the order of image_shape_t, or its grid alone.
    snprintf(name, sizeof(name), "prompt%d.image_shapes", number);
    int each = safetensors_find(file, name) ? 9 : 3;
    if (each == 9) grid = parity_integers(file, name, &grids);
    int columns = 3 * model->config.image.temporal * model->config.image.patch * model->config.image.patch;
    int64_t row = 0;
    for (int i = 0; i < (int)(grids / each); i++) {
        image_patches_t *image = &out->images[i];
        image_shape_t *shape = &image->shape;
        const int32_t *at = grid + (ptrdiff_t)i * each;
        for (int axis = 0; axis < 3; axis++) shape->grid[axis] = at[axis];
        for (int axis = 0; axis < 2 && each == 9; axis++) {
            shape->tiles[axis] = at[3 + axis];
            shape->size[axis] = at[5 + axis];
        }
        shape->runs = each == 9 ? at[7] : 1;
        image->rows = shape->grid[0] * shape->grid[1] * shape->grid[2];
        image->columns = columns;
        shape->feature_rows = model->family->feature_rows(&model->config, shape);
        if (each == 9) assert_int_equal(shape->feature_rows, at[8]);
        size_t size = (size_t)image->rows * (size_t)columns;
        image->patches = malloc(size * sizeof(float));
        memcpy(image->patches, patches + row * columns, size * sizeof(float));
        row += image->rows;
        out->image[i] = image;
    }
    out->image_count = (int)(grids / each);
    assert_int_equal(row * columns, pixels);
    free(patches);
    free(grid);
    return true;
}

static inline void parity_free_prompt(prompt_t *prompt) {
    for (int i = 0; i < prompt->image_count; i++) free(prompt->images[i].patches);
    free(prompt->tokens);
    free(prompt->segments);
    free(prompt->logprobs);
}

static inline batch_sequence_t parity_sequence(const prompt_t *prompt, int leaf) {
    return (batch_sequence_t){.tokens = prompt->tokens,
                              .length = prompt->length,
                              .shared_with = -1,
                              .images = prompt->image,
                              .image_count = prompt->image_count,
                              .leaf = leaf,
                              .first_target = 1};
}

// Trains every parameter (and adapter) of the model into fresh sinks.
static inline sinks_t parity_sinks(model_t *model, int exponent) {
    sinks_t sinks = {.count = 3 * model->parameter_count};
    sinks.sum = calloc((size_t)sinks.count, sizeof(*sinks.sum));
    sinks.flags = calloc(1, sizeof(*sinks.flags));
    for (int i = 0; i < sinks.count; i++) {
        adapter_t *adapter = model->adapter[i / 3];
        parameter_t *parameter = i % 3 == 0   ? &model->parameter[i / 3]
                                 : !adapter   ? NULL
                                 : i % 3 == 1 ? &adapter->a
                                              : &adapter->b;
        if (!parameter) continue;
        size_t elements = (size_t)parameter->value.rows * (size_t)parameter->value.columns;
        sinks.sum[i] = calloc(elements, sizeof(int64_t));
        parameter->sink = (gradient_sink_t){sinks.sum[i], exponent, sinks.flags};
    }
    return sinks;
}

static inline void parity_clear(const model_t *model, sinks_t *sinks) {
    for (int i = 0; i < sinks->count; i++) {
        const adapter_t *adapter = model->adapter[i / 3];
        const parameter_t *parameter = i % 3 == 0              ? &model->parameter[i / 3]
                                       : i % 3 == 1 && adapter ? &adapter->a
                                       : adapter               ? &adapter->b
                                                               : NULL;
        if (sinks->sum[i])
            memset(sinks->sum[i], 0,
                   (size_t)parameter->value.rows * (size_t)parameter->value.columns * sizeof(int64_t));
    }
    *sinks->flags = 0;
}

static inline void parity_free_sinks(sinks_t *sinks) {
    for (int i = 0; i < sinks->count; i++) free(sinks->sum[i]);
    free(sinks->sum);
    free(sinks->flags);
}

// A tape with memory for this batch, measured by a dry run as the learner does it.
static inline tape_t *parity_tape(model_t *model, batch_t *batch, recompute_t recompute, bool recording) {
    tape_t *dry, *tape;
    head_output_t *head;
    check(tape_open_measuring(model->device, recompute, &dry));
    tape_reset(dry, recording);
    check(batch_forward(model, dry, batch, 1.0F, true, &head));
    if (recording) check(tape_backward(dry));
    tape_memory_t memory = tape_memory(dry);
    tape_close(dry);
    check(tape_open(model->device, &memory, recompute, &tape));
    tape_reset(tape, recording);
    return tape;
}

#endif
