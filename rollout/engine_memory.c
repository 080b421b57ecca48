// What a step of the engine reads and writes beside the model: arrays in blocks, of which the device has a copy where
// its memory is not the host's. A step uploads its block in one piece.
#include "rollout/engine_internal.h"

#include "common/model/decoder.h"

#include <stdlib.h>
#include <string.h>

enum { LANE = 16 }; // arrays begin at multiples of so many numbers

typedef struct place {
    void **array;
    size_t count;
} place_t;

static void block_free(const engine_t *engine, engine_block_t *block) {
    if (block->device != block->host) ledger_give(engine->device, block->device);
    if (engine->device->table->host_memory) ledger_note_host(engine->device, LEDGER_STEP, -(int64_t)block->bytes);
    free(block->host);
    *block = (engine_block_t){0};
}

// Arrays of 4-byte numbers, one behind the other.
static status_t block_open(const engine_t *engine, engine_block_t *block, const place_t *place, size_t places) {
    size_t numbers = 0;
    device_t *device = engine->device;
    block_free(engine, block);
    for (size_t i = 0; i < places; i++) numbers += (place[i].count + LANE - 1) / LANE * LANE;
    TRY(memory_allocate(numbers, sizeof(int32_t), (void **)&block->host));
    block->bytes = numbers * sizeof(int32_t);
    block->device = block->host;
    if (device->table->host_memory) {
        ledger_note_host(device, LEDGER_STEP, (int64_t)block->bytes);
    } else {
        block->device = NULL;
        TRY(ledger_take(device, LEDGER_STEP, block->bytes, (void **)&block->device));
    }
    int32_t *at = (int32_t *)(void *)block->host;
    for (size_t i = 0; i < places; i++) {
        *place[i].array = at;
        at += (place[i].count + LANE - 1) / LANE * LANE;
    }
    return STATUS_OK;
}

status_t engine_set_rows(engine_t *engine, size_t rows) {
    // What draws take comes last of what every step uploads; then what few steps do.
    const place_t tables[] = {
        {(void **)&engine->token, rows},
        {(void **)&engine->rope[0], rows},
        {(void **)&engine->rope[1], rows},
        {(void **)&engine->rope[2], rows},
        {(void **)&engine->cache_row, rows},
        {(void **)&engine->query_start, rows + 1},
        {(void **)&engine->query_position, rows},
        {(void **)&engine->key_start, rows + 1},
        {(void **)&engine->draw_row, rows},
        {(void **)&engine->draw_temperature, rows},
        {(void **)&engine->draw_uniform, rows},
        {(void **)&engine->draw_target, rows},
        {(void **)&engine->feature_source, rows},
        {(void **)&engine->feature_target, rows},
        {(void **)&engine->copy_from, rows * ENGINE_PAGE},
        {(void **)&engine->copy_to, rows * ENGINE_PAGE},
    };
    const place_t made[] = {{(void **)&engine->drawn, rows},
                            {(void **)&engine->drawn_logprob, rows},
                            {(void **)&engine->drawn_entropy, rows}};
    engine_graphs_close(engine);
    TRY(block_open(engine, &engine->tables, tables, sizeof(tables) / sizeof(*tables)));
    TRY(block_open(engine, &engine->draws_made, made, sizeof(made) / sizeof(*made)));
    ledger_give(engine->device, engine->device_lse);
    engine->device_lse = NULL;
    TRY(ledger_take(engine->device, LEDGER_STEP, rows * sizeof(float), (void **)&engine->device_lse));
    free(engine->draw_item);
    engine->draw_item = NULL;
    TRY(ALLOCATE(&engine->draw_item, rows));
    engine->step_rows = (int)rows;
    return engine_grow_keys(engine, rows);
}

status_t engine_grow_keys(engine_t *engine, size_t keys) {
    if (keys <= engine->key_capacity) return STATUS_OK;
    size_t most = keys > 2 * engine->key_capacity ? keys : 2 * engine->key_capacity;
    const place_t masks[] = {{(void **)&engine->key_row, most}, {(void **)&engine->key_group, most}};
    engine_graphs_close(engine);
    engine->key_capacity = 0;
    TRY(block_open(engine, &engine->masks, masks, engine->model->config.image_groups ? 2 : 1));
    engine->key_capacity = most;
    if (engine->tape) engine_adopt(engine, engine->tape);
    return STATUS_OK;
}

status_t engine_open_constants(engine_t *engine) {
    const model_config_t *config = &engine->model->config;
    device_t *device = engine->device;
    size_t half = (size_t)config->head_dim / 2;
    int32_t *axis;
    float *frequency[2];
    if (device->table->host_memory) return STATUS_OK;
    TRY(memory_allocate(3 * half, sizeof(float), (void **)&axis));
    frequency[0] = (float *)(void *)axis + half;
    frequency[1] = frequency[0] + half;
    decoder_rope_constants(config, axis, frequency);
    status_t status = ledger_take(device, LEDGER_STEP, 3 * half * sizeof(float), (void **)&engine->rope_axis);
    if (!status) {
        engine->rope_frequency[0] = (float *)(void *)engine->rope_axis + half;
        engine->rope_frequency[1] = engine->rope_frequency[0] + half;
        status = device->table->upload(device, engine->rope_axis, axis, 3 * half * sizeof(float));
    }
    free(axis);
    return status;
}

void engine_free_memory(engine_t *engine) {
    block_free(engine, &engine->tables);
    block_free(engine, &engine->masks);
    block_free(engine, &engine->draws_made);
    ledger_give(engine->device, engine->device_lse);
    ledger_give(engine->device, engine->rope_axis);
}

void engine_adopt(engine_t *engine, tape_t *tape) {
    tape_adopt(tape, NULL, 0);
    tape_adopt(tape, engine->tables.device, engine->tables.bytes);
    tape_adopt(tape, engine->masks.device, engine->masks.bytes);
}

void *engine_on_device(const engine_t *engine, const void *array) {
    const engine_block_t *const blocks[] = {&engine->tables, &engine->masks, &engine->draws_made};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks); i++) {
        size_t offset = (size_t)((uintptr_t)array - (uintptr_t)blocks[i]->host);
        if (array && offset < blocks[i]->bytes) return blocks[i]->device + offset;
    }
    return NULL;
}

status_t engine_send(engine_t *engine, const void *array, size_t count) {
    void *there = engine_on_device(engine, array);
    if (there == array || !count) return STATUS_OK;
    return engine->device->table->upload(engine->device, there, array, count * sizeof(int32_t));
}

status_t engine_send_step(engine_t *engine) {
    const int32_t *first = engine->token, *last = engine->draw_row;
    TRY(engine_send(engine, first, (size_t)(last - first)));
    TRY(engine_send(engine, engine->feature_source, (size_t)engine->feature_rows));
    TRY(engine_send(engine, engine->feature_target, (size_t)engine->feature_rows));
    TRY(engine_send(engine, engine->copy_from, (size_t)engine->copies));
    TRY(engine_send(engine, engine->copy_to, (size_t)engine->copies));
    TRY(engine_send(engine, engine->key_row, (size_t)engine->keys));
    return engine->key_group ? engine_send(engine, engine->key_group, (size_t)engine->keys) : STATUS_OK;
}
