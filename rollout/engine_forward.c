// One step on the device: copies of shared pages, the text forward over all rows, draws and log-probs.
#include "rollout/engine_internal.h"

#include "kernels/base/philox.h"
#include <math.h>

text_input_t engine_text_input(engine_t *engine, int rows, int sequences) {
    return (text_input_t){.rows = rows,
                          .token = engine_on_device(engine, engine->token),
                          .rope_position = {engine_on_device(engine, engine->rope[0]),
                                            engine_on_device(engine, engine->rope[1]),
                                            engine_on_device(engine, engine->rope[2])},
                          .mask = {.sequences = sequences,
                                   .query_start = engine_on_device(engine, engine->query_start),
                                   .query_position = engine_on_device(engine, engine->query_position),
                                   .key_start = engine_on_device(engine, engine->key_start),
                                   .key_row = engine_on_device(engine, engine->key_row),
                                   .causal = true,
                                   .group = engine_on_device(engine, engine->key_group)},
                          .cache = &engine->cache,
                          .cache_row = engine_on_device(engine, engine->cache_row),
                          .rope_axis = engine->rope_axis,
                          .rope_frequency = {engine->rope_frequency[0], engine->rope_frequency[1]}};
}

token_sample_args_t engine_sample_args(engine_t *engine, matrix_t picked) {
    const parameter_t *head = model_head(engine->model);
    return (token_sample_args_t){.hidden = picked,
                                 .weight = head->value,
                                 .packed = head->packed,
                                 .temperature = engine_on_device(engine, engine->draw_temperature),
                                 .uniform = engine_on_device(engine, engine->draw_uniform),
                                 .banned = engine->device_banned,
                                 .banned_count = engine->banned_count,
                                 .token = engine_on_device(engine, engine->drawn),
                                 .logprob = engine_on_device(engine, engine->drawn_logprob),
                                 .entropy = engine_on_device(engine, engine->drawn_entropy)};
}

token_logprobs_args_t engine_score_args(engine_t *engine, const tensor_t *hidden, float temperature, int count) {
    const parameter_t *head = model_head(engine->model);
    return (token_logprobs_args_t){.hidden = hidden->value,
                                   .weight = head->value,
                                   .packed = head->packed,
                                   .temperature = temperature,
                                   .count = count,
                                   .rows = engine_on_device(engine, engine->draw_row),
                                   .targets = engine_on_device(engine, engine->draw_target),
                                   .logprob = engine_on_device(engine, engine->drawn_logprob),
                                   .entropy = engine_on_device(engine, engine->drawn_entropy),
                                   .lse = engine->device_lse};
}

// Rows of pages that are about to be written and are shared.
static status_t copy_pages(engine_t *engine) {
    const device_table_t *table = engine->device->table;
    for (int first = 0; first < engine->copies; first += engine->copied.rows) {
        int count = engine->copies - first < engine->copied.rows ? engine->copies - first : engine->copied.rows;
        const int32_t *from = engine_on_device(engine, engine->copy_from + first);
        const int32_t *to = engine_on_device(engine, engine->copy_to + first);
        matrix_t copied = engine->copied;
        copied.rows = count;
        for (int i = 0; i < 2 * engine->cache.layers; i++) {
            matrix_t store = i % 2 ? engine->cache.v[i / 2] : engine->cache.k[i / 2];
            rows_args_t out = {.x = store, .index = from, .y = copied}, in = {.x = copied, .index = to, .y = store};
            TRY(table->gather_rows(engine->device, &out));
            TRY(table->scatter_rows(engine->device, &in));
        }
    }
    return STATUS_OK;
}

static status_t run_text(engine_t *engine, tensor_t **hidden) {
    text_input_t input = engine_text_input(engine, engine->rows, engine->sequences);
    if (engine->feature_rows) {
        tensor_t *store;
        leaves_t none = {0};
        TRY(tape_input(engine->tape, engine->features.rows, none, &store));
        TRY(tape_gather_rows(engine->tape, store, engine_on_device(engine, engine->feature_source),
                             engine->feature_rows, none, &input.features));
        input.feature_index = engine_on_device(engine, engine->feature_target);
    }
    return engine->model->family->text(engine->model, engine->tape, &input, hidden);
}

static status_t record(engine_t *engine, const engine_draw_t *draw, int32_t token, float logprob, float entropy) {
    sequence_t *sequence = draw->sequence;
    if (!isfinite(logprob))
        FAIL(STATUS_FAILED, "a token's log-prob is NaN or infinite: the weights (version %lld) are damaged",
             (long long)engine->model->version);
    if (!draw->forced) {
        sequence->tokens[draw->position] = token;
        sequence->length = draw->position + 1;
        engine->statistics.generated_tokens++;
    }
    sequence->logprobs[draw->position] = logprob;
    sequence->entropy[draw->position] = entropy;
    sequence->scored = draw->position + 1;
    return STATUS_OK;
}

// What draws have given, in one piece: it also waits for them.
static status_t download(engine_t *engine, int count) {
    const device_table_t *table = engine->device->table;
    size_t bytes = (size_t)((const char *)(engine->drawn_entropy + count) - (const char *)engine->drawn);
    if (table->host_memory) return table->synchronize(engine->device);
    return table->download(engine->device, engine->drawn, engine->draws_made.device, bytes);
}

status_t engine_draw_ops(engine_t *engine, const tensor_t *hidden, int count) {
    const device_table_t *table = engine->device->table;
    matrix_t picked = engine->picked;
    picked.rows = count;
    rows_args_t pick = {.x = hidden->value, .index = engine_on_device(engine, engine->draw_row), .y = picked};
    TRY(table->gather_rows(engine->device, &pick));
    token_sample_args_t args = engine_sample_args(engine, picked);
    status_t status = table->token_sample(engine->device, &args);
    return status ? status_context(status, "weights version %lld", (long long)engine->model->version) : STATUS_OK;
}

void engine_fill_draws(engine_t *engine, int count) {
    for (int i = 0; i < count; i++) {
        const engine_draw_t *draw = &engine->draw[engine->draw_item[i]];
        const group_t *group = draw->sequence->group;
        philox_block_t block = philox_draw(group->seed, PHILOX_SAMPLING, group->key, (uint32_t)draw->sequence->index,
                                           (uint32_t)draw->position);
        engine->draw_row[i] = draw->row;
        engine->draw_temperature[i] = group->temperature;
        engine->draw_uniform[i] = philox_uniform(block.word[0]);
    }
}

status_t engine_take_draws(engine_t *engine, int count) {
    TRY(download(engine, count));
    for (int i = 0; i < count; i++)
        TRY(record(engine, &engine->draw[engine->draw_item[i]], engine->drawn[i], engine->drawn_logprob[i],
                   engine->drawn_entropy[i]));
    return STATUS_OK;
}

// Draws the tokens of draw[draw_item[0 .. count - 1]].
static status_t draw_tokens(engine_t *engine, const tensor_t *hidden, int count) {
    engine_fill_draws(engine, count);
    TRY(engine_send(engine, engine->draw_row, (size_t)count));
    TRY(engine_send(engine, engine->draw_temperature, (size_t)count));
    TRY(engine_send(engine, engine->draw_uniform, (size_t)count));
    TRY(engine_draw_ops(engine, hidden, count));
    return engine_take_draws(engine, count);
}

// Scores the given tokens of draw[draw_item[0 .. count - 1]], all at one temperature.
static status_t score_tokens(engine_t *engine, tensor_t *hidden, float temperature, int count) {
    for (int i = 0; i < count; i++) {
        engine->draw_row[i] = engine->draw[engine->draw_item[i]].row;
        engine->draw_target[i] = engine->draw[engine->draw_item[i]].target;
    }
    TRY(engine_send(engine, engine->draw_row, (size_t)count));
    TRY(engine_send(engine, engine->draw_target, (size_t)count));
    token_logprobs_args_t args = engine_score_args(engine, hidden, temperature > 0 ? temperature : 1, count);
    TRY(engine->device->table->token_logprobs(engine->device, &args));
    TRY(download(engine, count));
    for (int i = 0; i < count; i++)
        TRY(record(engine, &engine->draw[engine->draw_item[i]], 0, engine->drawn_logprob[i], engine->drawn_entropy[i]));
    return STATUS_OK;
}

static status_t score_all(engine_t *engine, tensor_t *hidden) {
    float last = -1;
    // One launch a temperature, in ascending order of temperatures (usually there is one).
    for (;;) {
        float next = INFINITY;
        int count = 0;
        for (int i = 0; i < engine->draws; i++) {
            float temperature = engine->draw[i].sequence->group->temperature;
            if (!engine->draw[i].forced || temperature <= last || temperature > next) continue;
            if (temperature < next) count = 0;
            next = temperature;
            engine->draw_item[count++] = i;
        }
        if (!count) return STATUS_OK;
        TRY(score_tokens(engine, hidden, next, count));
        last = next;
    }
}

status_t engine_forward(engine_t *engine) {
    tensor_t *hidden;
    if (engine_graph_fits(engine)) return engine_graph_decode(engine);
    TRY(feature_store_compute(engine));
    TRY(engine_send_step(engine));
    tape_reset(engine->tape, false);
    TRY(copy_pages(engine));
    TRY(run_text(engine, &hidden));
    TRY(score_all(engine, hidden));
    int count = 0;
    for (int i = 0; i < engine->draws; i++) {
        if (engine->draw[i].forced) continue;
        engine->draw_item[count++] = i;
        if (count < engine->options.batch_rows) continue;
        TRY(draw_tokens(engine, hidden, count));
        count = 0;
    }
    return count ? draw_tokens(engine, hidden, count) : STATUS_OK;
}
