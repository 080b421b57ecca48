// Memory of the engine's steps, by dry runs.
#include "rollout/engine_internal.h"

#include "common/data/packed.h"

#include <string.h>

enum { VISION_ROWS = 1024, SLACK_BYTES = 1 << 16 };

// A step of other shapes may lay its memory out less tightly than the one that was measured.
static size_t with_slack(size_t bytes) {
    return bytes + bytes / 16 + SLACK_BYTES;
}

static status_t reopen(engine_t *engine) {
    tape_memory_t memory = engine->text_memory;
    if (engine->vision_memory.values > memory.values) memory.values = engine->vision_memory.values;
    if (engine->vision_memory.workspace > memory.workspace) memory.workspace = engine->vision_memory.workspace;
    engine_graphs_close(engine);
    tape_close(engine->tape);
    engine->tape = NULL;
    ledger_plan(engine->device, LEDGER_STEP, 0);
    TRY(tape_open_as(engine->device, &memory, RECOMPUTE_NONE, LEDGER_STEP, &engine->tape));
    engine_adopt(engine, engine->tape);
    return STATUS_OK;
}

// The worst text step: every row a sequence of its own, an image token, and one that is drawn for.
static status_t text_step(engine_t *engine, tape_t *tape) {
    int rows = engine->step_rows;
    const model_config_t *config = &engine->model->config;
    leaves_t none = {0};
    tensor_t *hidden;
    for (int i = 0; i < rows; i++) {
        engine->query_start[i] = engine->key_start[i] = i;
        engine->cache_row[i] = engine->key_row[i] = i % engine->cache.rows;
        engine->feature_target[i] = i;
    }
    engine->query_start[rows] = engine->key_start[rows] = rows;
    text_input_t input = engine_text_input(engine, rows, rows);
    if (config->has_vision) {
        tensor_t *store;
        TRY(tape_input(tape, engine->picked, none, &store));
        TRY(tape_gather_rows(tape, store, engine_on_device(engine, engine->feature_source), rows, none,
                             &input.features));
        input.feature_index = engine_on_device(engine, engine->feature_target);
    }
    TRY(engine->model->family->text(engine->model, tape, &input, &hidden));
    token_sample_args_t draw = engine_sample_args(engine, engine->picked);
    TRY(engine->device->table->token_sample(engine->device, &draw));
    token_logprobs_args_t score = engine_score_args(engine, hidden, 1, rows);
    return engine->device->table->token_logprobs(engine->device, &score);
}

status_t engine_plan_text(engine_t *engine) {
    tape_t *tape;
    TRY(tape_open_measuring(engine->device, RECOMPUTE_NONE, &tape));
    engine_adopt(engine, tape);
    tape_reset(tape, false);
    status_t status = text_step(engine, tape);
    engine->text_memory = tape_memory(tape);
    engine->text_memory.values = with_slack(engine->text_memory.values);
    tape_close(tape);
    TRY(status);
    return reopen(engine);
}

// Of the pictures with as many tiles, one that becomes most features: it fills its tiles, and they stand in one column
// (LLaVA-NeXT: no padding to cut off, and most rows to end with a newline).
static image_shape_t fullest(image_shape_t shape) {
    if (shape.tiles[0] < 1) return shape;
    shape.tiles[0] = shape.size[0] = shape.grid[0] - 1;
    shape.tiles[1] = shape.size[1] = 1;
    return shape;
}

status_t engine_plan_vision(engine_t *engine, const image_patches_t *largest) {
    if (largest->rows <= engine->vision_rows) return STATUS_OK;
    int count = largest->rows < VISION_ROWS ? VISION_ROWS / largest->rows : 1;
    tape_t *tape;
    vision_image_t *images;
    tensor_t *features;
    TRY(tape_open_measuring(engine->device, RECOMPUTE_NONE, &tape));
    tape_reset(tape, false);
    status_t status = TAPE_HOST(tape, &images, count);
    for (int i = 0; !status && i < count; i++)
        images[i] = (vision_image_t){
            .shape = fullest(largest->shape), .patches = largest->patches, .patch_rows = largest->rows};
    if (!status) status = engine->model->family->vision(engine->model, tape, images, count, &features);
    tape_memory_t memory = tape_memory(tape);
    memory.values = with_slack(memory.values);
    tape_close(tape);
    TRY(status);
    engine->vision_memory = memory;
    engine->vision_rows = count * largest->rows;
    TRY(reopen(engine));
    return feature_store_plan(engine);
}

// Of a packed file: the image with most placeholder tokens (each run of them in a prompt stands for one image, in
// order), how many, and the longest prompt.
typedef struct extremes {
    int32_t image; // -1: there is none
    int most, longest;
} extremes_t;

static status_t find_extremes(packed_t *packed, int32_t image_token, extremes_t *out) {
    int64_t count = packed_count(packed);
    *out = (extremes_t){.image = -1};
    for (int64_t i = 0; i < count; i++) {
        packed_sample_t sample;
        TRY(packed_sample(packed, i, &sample));
        int image = -1, run = 0;
        if (sample.prompt_length > out->longest) out->longest = sample.prompt_length;
        for (int j = 0; j < sample.prompt_length; j++) {
            if (sample.tokens[j] != image_token) {
                run = 0;
                continue;
            }
            if (!run++) image++;
            if (run <= out->most || image >= sample.image_count) continue;
            out->most = run;
            out->image = sample.images[image];
        }
    }
    return STATUS_OK;
}

static status_t plan_image(engine_t *engine, packed_t *packed, int32_t image) {
    const void *bytes;
    size_t size;
    uint64_t hash;
    image_patches_t *patches;
    TRY(packed_image(packed, image, &bytes, &size, &hash));
    TRY(image_patches_make(&engine->model->config.image, bytes, size, &patches));
    status_t status = engine_plan_vision(engine, patches);
    image_patches_free(patches);
    return status;
}

status_t engine_plan_data(engine_t *engine, packed_t *packed, int new_tokens) {
    const model_config_t *config = &engine->model->config;
    extremes_t found;
    TRY(find_extremes(packed, config->has_vision ? config->image.image_token : -1, &found));
    // A sequence that is longer than the pool is refused anyway.
    int64_t longest = (int64_t)found.longest + new_tokens, most = (int64_t)engine->options.pages * ENGINE_PAGE;
    if (longest > most) longest = most;
    TRY(engine_grow_keys(engine, (size_t)longest * (size_t)engine->options.batch_rows));
    int rows = engine->options.batch_rows + found.most;
    if (config->image_groups && rows > engine->step_rows) {
        TRY(engine_set_rows(engine, (size_t)rows));
        TRY(engine_plan_text(engine));
    }
    return config->has_vision && found.image >= 0 ? plan_image(engine, packed, found.image) : STATUS_OK;
}
