// The engine's door: opening, requests, the step around schedule and forward.
#include "rollout/engine_internal.h"

#include "common/comm/clock.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COPY_ROWS = 1024 };

// ---- opening ----

static status_t device_matrix(engine_t *engine, ledger_part_t part, dtype_t dtype, int rows, int columns,
                              matrix_t *out) {
    void *memory;
    TRY(ledger_take(engine->device, part, (size_t)rows * (size_t)columns * dtype_bytes(dtype), &memory));
    *out = matrix_view(memory, dtype, rows, columns);
    return STATUS_OK;
}

static status_t open_cache(engine_t *engine) {
    const model_config_t *config = &engine->model->config;
    dtype_t dtype = model_head(engine->model)->value.dtype;
    int width = config->kv_heads * config->head_dim, pages = engine->options.pages;
    engine->cache.layers = config->layers;
    engine->cache.rows = pages * ENGINE_PAGE;
    engine->cache_bytes = 2 * (size_t)config->layers * (size_t)engine->cache.rows * (size_t)width * dtype_bytes(dtype);
    ledger_plan(engine->device, LEDGER_CACHE, engine->cache_bytes);
    TRY(ledger_check(engine->device));
    TRY(ALLOCATE(&engine->cache.k, config->layers));
    TRY(ALLOCATE(&engine->cache.v, config->layers));
    for (int layer = 0; layer < config->layers; layer++) {
        TRY(device_matrix(engine, LEDGER_CACHE, dtype, engine->cache.rows, width, &engine->cache.k[layer]));
        TRY(device_matrix(engine, LEDGER_CACHE, dtype, engine->cache.rows, width, &engine->cache.v[layer]));
    }
    ledger_plan(engine->device, LEDGER_CACHE, 0); // all is taken
    int rows = engine->options.batch_rows, most = rows < COPY_ROWS / ENGINE_PAGE ? rows * ENGINE_PAGE : COPY_ROWS;
    TRY(device_matrix(engine, LEDGER_STEP, dtype, most, width, &engine->copied));
    TRY(device_matrix(engine, LEDGER_STEP, dtype, rows, config->hidden, &engine->picked));
    TRY(ALLOCATE(&engine->reference, pages));
    TRY(ALLOCATE(&engine->free_page, pages));
    for (int i = 0; i < pages; i++) engine->free_page[i] = pages - 1 - i;
    engine->free_pages = pages;
    return STATUS_OK;
}

static status_t open_banned(engine_t *engine) {
    const image_rules_t *rules = &engine->model->config.image;
    for (int i = 0; i < rules->media_token_count; i++)
        if (rules->media_tokens[i] < engine->model->config.vocabulary)
            engine->banned[engine->banned_count++] = rules->media_tokens[i];
    TRY(ledger_take(engine->device, LEDGER_STEP, sizeof(engine->banned), (void **)&engine->device_banned));
    return engine->device->table->upload(engine->device, engine->device_banned, engine->banned, sizeof(engine->banned));
}

engine_options_t engine_options_of(const config_t *config) {
    return (engine_options_t){.pages = config->rollout.pages,
                              .batch_rows = config->rollout.batch_rows,
                              .prefill_chunk = config->rollout.prefill_chunk,
                              .feature_cache_bytes = (size_t)config->rollout.feature_cache_mb << 20};
}

status_t engine_open(model_t *model, const engine_options_t *options, engine_t **out) {
    engine_t *engine;
    *out = NULL;
    if (options->pages < 1 || options->pages > INT32_MAX / ENGINE_PAGE || options->batch_rows < 1 ||
        options->batch_rows > INT32_MAX / (2 * ENGINE_PAGE) || options->prefill_chunk < 1)
        FAIL(STATUS_INVALID, "the engine needs at least one page, batch row and prefill row; got %d, %d and %d",
             options->pages, options->batch_rows, options->prefill_chunk);
    TRY(ALLOCATE(&engine, 1));
    engine->model = model;
    engine->device = model->device;
    engine->options = *options;
    const char *graphs = getenv("POISE_GRAPHS");
    engine->graphs.off = graphs && !strcmp(graphs, "none");
    status_t status = open_cache(engine);
    if (!status) status = engine_set_rows(engine, (size_t)options->batch_rows);
    if (!status) status = engine_open_constants(engine);
    if (!status) status = open_banned(engine);
    if (!status) status = feature_store_open(engine);
    if (!status) status = engine_plan_text(engine);
    if (status) {
        engine_close(engine);
        PASS_ON(status);
    }
    *out = engine;
    return STATUS_OK;
}

static void group_free(group_t *group) {
    if (!group) return;
    free(group->owned);
    free(group->sequence);
    free(group);
}

void engine_close(engine_t *engine) {
    if (!engine) return;
    while (engine->first) {
        group_t *next = engine->first->next;
        group_free(engine->first);
        engine->first = next;
    }
    for (int layer = 0; engine->cache.k && layer < engine->cache.layers; layer++)
        ledger_give(engine->device, engine->cache.k[layer].data);
    for (int layer = 0; engine->cache.v && layer < engine->cache.layers; layer++)
        ledger_give(engine->device, engine->cache.v[layer].data);
    void *device[] = {engine->copied.data, engine->picked.data, engine->device_banned};
    for (size_t i = 0; i < sizeof(device) / sizeof(*device); i++) ledger_give(engine->device, device[i]);
    engine_graphs_close(engine);
    engine_free_memory(engine);
    ledger_plan(engine->device, LEDGER_FEATURES, 0);
    feature_store_close(engine);
    tape_close(engine->tape);
    void *host[] = {engine->cache.k, engine->cache.v, engine->reference, engine->free_page,
                    engine->image,   engine->draw,    engine->draw_item};
    for (size_t i = 0; i < sizeof(host) / sizeof(*host); i++) free(host[i]);
    free(engine);
}

void engine_print_memory(const engine_t *engine, FILE *stream) {
    ledger_report_t report;
    ledger_read(engine->device, &report);
    fprintf(stream, "engine memory: %d pages of %d tokens, at most %d rows a step\n", engine->options.pages,
            ENGINE_PAGE, engine->options.batch_rows);
    ledger_print(&report, stream);
    fprintf(stream, "  values of a step of the engine, in one arena:\n");
    fprintf(stream, "    %-32s %10.2f MiB\n", "text step", (double)engine->text_memory.values / 1048576);
    fprintf(stream, "    %-32s %10.2f MiB\n", "vision launch", (double)engine->vision_memory.values / 1048576);
}

// ---- requests ----

static status_t check_request(const engine_t *engine, const engine_request_t *request) {
    const model_config_t *config = &engine->model->config;
    int budget = request->forced ? request->forced_length : request->max_new_tokens;
    if (request->prompt_length < 1) FAIL(STATUS_INVALID, "the prompt is empty");
    if (request->completions < 1) FAIL(STATUS_INVALID, "%d completions were asked for", request->completions);
    if (request->forced && request->completions != 1)
        FAIL(STATUS_INVALID, "given tokens are scored as one completion, not %d", request->completions);
    if (budget < 1)
        FAIL(STATUS_INVALID, request->forced ? "there is no token to score" : "the budget is %d new tokens", budget);
    if (!(request->temperature >= 0) || !isfinite(request->temperature))
        FAIL(STATUS_INVALID, "the temperature must be 0 or a positive number, not %g", (double)request->temperature);
    for (int i = 0; i < request->prompt_length; i++)
        if (!model_takes_token(config, request->tokens[i]))
            FAIL(STATUS_INVALID, "prompt token %d is %d; the vocabulary has ids 0 to %d", i, request->tokens[i],
                 config->vocabulary - 1);
    for (int i = 0; request->forced && i < budget; i++) {
        if (request->forced[i] < 0 || request->forced[i] >= config->vocabulary)
            FAIL(STATUS_INVALID, "completion token %d is %d; the vocabulary has ids 0 to %d", i, request->forced[i],
                 config->vocabulary - 1);
        if (config->has_vision && request->forced[i] == config->image.image_token)
            FAIL(STATUS_INVALID, "completion token %d is an image placeholder; only prompts have images", i);
    }
    if (request->image_count && !config->has_vision)
        FAIL(STATUS_INVALID, "the model (%s) takes no images", config->family);
    int64_t longest = (int64_t)request->prompt_length + budget - 1;
    int64_t needed = (longest + ENGINE_PAGE - 1) / ENGINE_PAGE;
    // The group keeps its own copy of a partly filled page.
    if (request->completions > 1 && budget > 1 && request->prompt_length % ENGINE_PAGE) needed++;
    if (needed > engine->options.pages)
        FAIL(STATUS_INVALID,
             "%d prompt tokens and %d new ones need %lld KV pages of %d tokens, the pool has %d: raise rollout.pages",
             request->prompt_length, budget, (long long)needed, ENGINE_PAGE, engine->options.pages);
    return STATUS_OK;
}

static void place_groups(const engine_t *engine, group_t *group) {
    batch_image_groups(&engine->model->config, group->tokens, group->prompt_length, group->image_group);
    int run = 0;
    for (int i = 0; i < group->prompt_length; i++) {
        run = group->image_group[i] >= 0 ? run + 1 : 0;
        if (run > group->longest_image) group->longest_image = run;
    }
}

// Which image group and feature row each prompt token takes, and the rope positions.
static status_t place_images(const engine_t *engine, group_t *group) {
    const model_config_t *config = &engine->model->config;
    place_groups(engine, group);
    image_shape_t *shapes;
    int placeholders = 0;
    for (int i = 0; i < group->prompt_length; i++) {
        bool is_image = config->has_vision && group->tokens[i] == config->image.image_token;
        group->image_row[i] = is_image ? placeholders++ : -1;
    }
    status_t checked =
        batch_check_images(config, group->tokens, group->prompt_length, group->images, group->image_count);
    if (checked) return status_context(checked, "the prompt");
    TRY(ALLOCATE(&shapes, group->image_count));
    for (int i = 0; i < group->image_count; i++) shapes[i] = group->images[i]->shape;
    status_t status = engine->model->family->rope_positions(config, group->tokens, group->prompt_length, shapes,
                                                            group->image_count, group->rope, &group->rope_next);
    free(shapes);
    return status ? status_trace(status, __FILE__, __LINE__, __func__) : STATUS_OK;
}

static void *carve(char **cursor, size_t count, size_t size) {
    void *out = *cursor;
    *cursor += (count * size + 7) / 8 * 8;
    return out;
}

static status_t group_make(const engine_request_t *request, group_t **out) {
    group_t *group;
    size_t prompt = (size_t)request->prompt_length, images = (size_t)request->image_count;
    size_t budget = (size_t)(request->forced ? request->forced_length : request->max_new_tokens);
    size_t completions = (size_t)request->completions, pages = (size_t)pages_for(request->prompt_length);
    size_t sequence_pages = (prompt + budget + ENGINE_PAGE - 1) / ENGINE_PAGE;
    size_t bytes = 6 * (prompt * 4 + 8) + 2 * (images * 8) + pages * 4 + 8 +
                   completions * (3 * (budget * 4 + 8) + sequence_pages * 4 + 8);
    *out = NULL;
    TRY(ALLOCATE(&group, 1));
    status_t status = memory_allocate(1, bytes, &group->owned);
    if (!status) status = ALLOCATE(&group->sequence, completions);
    if (status) group_free(group);
    TRY(status);
    char *cursor = group->owned;
    group->key = request->key;
    group->tag = request->tag;
    group->seed = request->seed;
    group->temperature = request->temperature;
    group->forced = request->forced != NULL;
    group->budget = (int)budget;
    group->prompt_length = request->prompt_length;
    group->image_count = request->image_count;
    group->completions = group->unfinished = request->completions;
    group->tokens = carve(&cursor, prompt, 4);
    for (int axis = 0; axis < 3; axis++) group->rope[axis] = carve(&cursor, prompt, 4);
    group->image_group = carve(&cursor, prompt, 4);
    group->image_row = carve(&cursor, prompt, 4);
    group->images = carve(&cursor, images, sizeof(void *));
    group->features = carve(&cursor, images, sizeof(void *));
    group->page = carve(&cursor, pages, 4);
    memcpy(group->tokens, request->tokens, prompt * 4);
    if (images) memcpy(group->images, request->images, images * sizeof(void *));
    for (int i = 0; i < request->completions; i++) {
        sequence_t *sequence = &group->sequence[i];
        sequence->group = group;
        sequence->index = i;
        sequence->tokens = carve(&cursor, budget, 4);
        sequence->logprobs = carve(&cursor, budget, 4);
        sequence->entropy = carve(&cursor, budget, 4);
        sequence->page = carve(&cursor, sequence_pages, 4);
        if (!request->forced) continue;
        memcpy(sequence->tokens, request->forced, budget * 4);
        sequence->length = (int)budget;
    }
    *out = group;
    return STATUS_OK;
}

// Grows what a step's tables need for this request, so that steps allocate nothing.
static status_t reserve(engine_t *engine, const group_t *group) {
    int images = group->image_count, rows = 0;
    size_t longest = (size_t)group->prompt_length + (size_t)group->budget;
    for (const group_t *other = engine->first; other; other = other->next) images += other->image_count;
    TRY(memory_grow((void **)&engine->image, &engine->image_capacity, (size_t)images, sizeof(*engine->image)));
    TRY(engine_grow_keys(engine, longest * (size_t)engine->options.batch_rows));
    size_t step_rows = (size_t)engine->options.batch_rows + (size_t)group->longest_image;
    if (group->longest_image && step_rows > (size_t)engine->step_rows) {
        TRY(engine_set_rows(engine, step_rows));
        TRY(engine_plan_text(engine));
    }
    // A row is drawn from once for each completion that waits for its first token, and once otherwise.
    size_t draws = (size_t)engine->pending + (size_t)group->completions + (size_t)engine->options.batch_rows;
    TRY(memory_grow((void **)&engine->draw, &engine->draw_capacity, draws, sizeof(*engine->draw)));
    for (int i = 0; i < group->image_count; i++) {
        rows += group->images[i]->shape.feature_rows;
        TRY(engine_plan_vision(engine, group->images[i]));
    }
    return rows ? feature_store_reserve(engine, rows) : STATUS_OK;
}

status_t engine_submit(engine_t *engine, const engine_request_t *request) {
    group_t *group;
    TRY(check_request(engine, request));
    TRY(group_make(request, &group));
    status_t status = place_images(engine, group);
    if (!status) status = reserve(engine, group);
    if (status) {
        group_free(group);
        PASS_ON(status);
    }
    *(engine->last ? &engine->last->next : &engine->first) = group;
    engine->last = group;
    engine->pending += group->completions;
    return STATUS_OK;
}

int engine_pending(const engine_t *engine) {
    return engine->pending;
}

static void remove_group(engine_t *engine, group_t *group) {
    for (int i = 0; i < group->completions; i++) engine_sequence_release(engine, &group->sequence[i]);
    engine_group_reset(engine, group);
    engine->pending -= group->unfinished;
    group_t **link = &engine->first, *before = NULL;
    while (*link != group) {
        before = *link;
        link = &before->next;
    }
    *link = group->next;
    if (engine->last == group) engine->last = before;
    group_free(group);
}

void engine_cancel(engine_t *engine, uint64_t key) {
    for (group_t *group = engine->first; group;) {
        group_t *next = group->next;
        if (group->key == key) remove_group(engine, group);
        group = next;
    }
}

// ---- the step ----

static bool is_end(const engine_t *engine, int32_t token) {
    const model_config_t *config = &engine->model->config;
    for (int i = 0; i < config->eos_token_count; i++)
        if (token == config->eos_tokens[i]) return true;
    return false;
}

static status_t finish(engine_t *engine, sequence_t *sequence, engine_sink_t sink, void *context) {
    group_t *group = sequence->group;
    engine_completion_t completion = {.key = group->key,
                                      .tag = group->tag,
                                      .index = sequence->index,
                                      .length = sequence->length,
                                      .tokens = sequence->tokens,
                                      .logprobs = sequence->logprobs,
                                      .entropy = sequence->entropy,
                                      .stopped = is_end(engine, sequence->tokens[sequence->length - 1]),
                                      .seconds = clock_seconds() - group->admitted_s};
    engine_sequence_release(engine, sequence);
    sequence->state = SEQUENCE_FINISHED;
    group->unfinished--;
    engine->pending--;
    return sink(context, &completion);
}

status_t engine_step(engine_t *engine, engine_sink_t sink, void *context) {
    if (!engine->pending) return STATUS_OK;
    engine->step_started = clock_seconds();
    TRY(engine_schedule(engine));
    TRY(engine_forward(engine));
    for (int i = 0; i < engine->draws; i++) {
        sequence_t *sequence = engine->draw[i].sequence;
        if (sequence->state == SEQUENCE_FINISHED) continue;
        const group_t *group = sequence->group;
        bool done = group->forced
                        ? sequence->scored == sequence->length
                        : sequence->length == group->budget || is_end(engine, sequence->tokens[sequence->length - 1]);
        if (done) TRY(finish(engine, sequence, sink, context));
    }
    for (group_t *group = engine->first; group;) {
        group_t *next = group->next;
        if (!group->unfinished) remove_group(engine, group);
        group = next;
    }
    engine->statistics = engine_get_statistics(engine);
    engine->step_started = 0;
    return STATUS_OK;
}

status_t engine_weights_changed(engine_t *engine) {
    if (engine->pending)
        FAIL(STATUS_FAILED, "the weights changed while %d completions were being made", engine->pending);
    if (engine->features.vision_version != engine->model->vision_version) feature_store_clear(engine);
    return STATUS_OK;
}

engine_statistics_t engine_get_statistics(const engine_t *engine) {
    engine_statistics_t statistics = engine->statistics;
    if (engine->step_started > 0) statistics.busy_s += clock_seconds() - engine->step_started;
    return statistics;
}
