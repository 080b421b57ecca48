// Decode steps as graphs: on a GPU a step of few rows is hundreds of launches that take longer to ask for than to run.
//
// A decode step's ops depend on the number of rows alone: tokens, positions, pages and draws are read from the step's
// blocks on the device, whose addresses stay. So rows are filled up to one of a few numbers with rows that see no key
// and are drawn for nobody (no row's bits depend on the rows beside it), the ops of each number are captured once, and
// every later step of that number uploads its block and launches one graph. The first step of a number runs as it is:
// what a kernel's first launch loads cannot be captured.
#include "rollout/engine_internal.h"

#include "kernels/streams.h"
#include <stdlib.h>
#include <string.h>

enum { FEW_ROWS = 8, SOME_ROWS = 64, MANY_STEP = 32 };

// The number of rows that a step of `rows` is filled up to.
static int filled_rows(const engine_t *engine, int rows) {
    int out = 1;
    while (out < rows && out < FEW_ROWS) out *= 2;
    if (rows > out) out = (rows + FEW_ROWS - 1) / FEW_ROWS * FEW_ROWS;
    if (rows > SOME_ROWS) out = (rows + MANY_STEP - 1) / MANY_STEP * MANY_STEP;
    return out < engine->options.batch_rows ? out : engine->options.batch_rows;
}

bool engine_graph_fits(const engine_t *engine) {
    const device_streams_t *streams = engine->device->table->streams;
    bool plain = !engine->images && !engine->feature_rows && !engine->copies && engine->rows == engine->draws &&
                 engine->rows == engine->sequences && engine->rows <= engine->options.batch_rows;
    if (!plain || engine->graphs.off || !streams || !streams->capture_begin) return false;
    for (int i = 0; i < engine->draws; i++)
        if (engine->draw[i].forced || engine->draw[i].row != i) return false;
    return true;
}

void engine_graphs_close(engine_t *engine) {
    engine_graphs_t *graphs = &engine->graphs;
    for (int i = 0; i < graphs->count; i++)
        if (graphs->one[i].graph) engine->device->table->streams->graph_close(engine->device, graphs->one[i].graph);
    graphs->count = 0;
}

// Its entry, made where there is none. NULL: there is no room for another.
static engine_graph_t *graph_of(engine_t *engine, int rows) {
    engine_graphs_t *graphs = &engine->graphs;
    for (int i = 0; i < graphs->count; i++)
        if (graphs->one[i].rows == rows) return &graphs->one[i];
    if (graphs->count == ENGINE_GRAPHS) return NULL;
    graphs->one[graphs->count] = (engine_graph_t){.rows = rows};
    return &graphs->one[graphs->count++];
}

// Rows without keys: they write no key or value, and what is drawn for them nobody takes.
static void fill_up(engine_t *engine, int rows) {
    for (int i = engine->rows; i < rows; i++) {
        engine->token[i] = 0;
        for (int axis = 0; axis < 3; axis++) engine->rope[axis][i] = 0;
        engine->cache_row[i] = -1;
        engine->query_start[i + 1] = i + 1;
        engine->query_position[i] = 0;
        engine->key_start[i + 1] = engine->keys;
        engine->draw_row[i] = i;
        engine->draw_temperature[i] = engine->draw_uniform[i] = 0;
    }
}

// The whole step, from inputs to draws: ops alone.
static status_t ops(engine_t *engine, int rows) {
    tensor_t *hidden;
    text_input_t input = engine_text_input(engine, rows, rows);
    tape_reset(engine->tape, false);
    TRY(engine->model->family->text(engine->model, engine->tape, &input, &hidden));
    return engine_draw_ops(engine, hidden, rows);
}

static status_t capture(engine_t *engine, engine_graph_t *one) {
    device_t *device = engine->device;
    const device_streams_t *streams = device->table->streams;
    TRY(streams->capture_begin(device));
    status_t status = ops(engine, one->rows), ended = streams->capture_end(device, &one->graph);
    if (status && one->graph) streams->graph_close(device, one->graph);
    if (status) one->graph = NULL;
    return status_first(status, ended);
}

// Memory that graphs name may have moved since they were captured.
static void drop_old(engine_t *engine) {
    engine_graphs_t *graphs = &engine->graphs;
    if (graphs->workspace != engine->device->workspace || graphs->tape != engine->tape) engine_graphs_close(engine);
    graphs->workspace = engine->device->workspace;
    graphs->tape = engine->tape;
}

status_t engine_graph_decode(engine_t *engine) {
    device_t *device = engine->device;
    int count = engine->rows, rows = filled_rows(engine, count);
    for (int i = 0; i < count; i++) engine->draw_item[i] = i;
    engine_fill_draws(engine, count);
    fill_up(engine, rows);
    TRY(engine_send(engine, engine->token, (size_t)(engine->draw_target - engine->token)));
    TRY(engine_send(engine, engine->key_row, (size_t)engine->keys));
    if (engine->key_group) TRY(engine_send(engine, engine->key_group, (size_t)engine->keys));
    drop_old(engine);
    engine_graph_t *one = graph_of(engine, rows);
    if (one && one->tried && !one->graph) {
        status_t status = capture(engine, one);
        if (status) { // the step runs without, and so do all that follow
            fprintf(stderr, "poise: decode steps are not captured as graphs: %s\n", status_message(status));
            engine->graphs.off = true;
        }
        status_free(status);
        engine->graphs.captured += !engine->graphs.off;
    }
    if (one && one->graph) {
        TRY(device->table->streams->graph_run(device, one->graph));
        engine->graphs.run++;
    } else {
        TRY(ops(engine, rows));
    }
    if (one) one->tried = true;
    return engine_take_draws(engine, count);
}
