// An index that is out of range, of every op here that has indices in device memory: nothing is read or written for it,
// the rest is as ever, and the next synchronisation fails and names the op.
#include "kernels/cuda/cuda_device.h"
#include "tests/sim/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { ROWS = 4, COLUMNS = 8, NUMBERS = ROWS * COLUMNS, ENTRY = 1 };

// Device memory. x is read and y written, but by the embedding's backward, which adds to sum.
typedef struct trial {
    device_t *device;
    float *x, *y;
    int32_t *index;
    int64_t *sum;
    uint32_t *flags;
} trial_t;

static matrix_t rows_at(float *data, int rows) {
    return matrix_view(data, DTYPE_F32, rows, COLUMNS);
}
static status_t run_gather(trial_t *t) {
    rows_args_t args = {.x = rows_at(t->x, ROWS), .index = t->index, .y = rows_at(t->y, ROWS)};
    return t->device->table->gather_rows(t->device, &args);
}
static status_t run_gather_backward(trial_t *t) {
    rows_args_t args = {.x = rows_at(t->y, ROWS), .index = t->index, .y = rows_at(t->x, ROWS)};
    rows_gradients_t gradients = {.dy = args.y, .dx = args.x};
    return t->device->table->gather_rows_backward(t->device, &args, &gradients);
}
static status_t run_scatter(trial_t *t) {
    rows_args_t args = {.x = rows_at(t->x, ROWS), .index = t->index, .y = rows_at(t->y, ROWS)};
    return t->device->table->scatter_rows(t->device, &args);
}
static status_t run_scatter_backward(trial_t *t) {
    rows_args_t args = {.x = rows_at(t->y, ROWS), .index = t->index, .y = rows_at(t->x, ROWS)};
    rows_gradients_t gradients = {.dy = args.y, .dx = args.x};
    return t->device->table->scatter_rows_backward(t->device, &args, &gradients);
}
static status_t run_pool(trial_t *t) {
    pool_args_t args = {.x = rows_at(t->x, ROWS), .index = t->index, .count = 2, .y = rows_at(t->y, 2)};
    return t->device->table->pool_rows(t->device, &args);
}
static status_t run_pool_backward(trial_t *t) {
    pool_args_t args = {.x = rows_at(t->y, ROWS), .index = t->index, .count = 2, .y = rows_at(t->x, 2)};
    pool_gradients_t gradients = {.dy = args.y, .dx = args.x};
    return t->device->table->pool_rows_backward(t->device, &args, &gradients);
}
static status_t run_embedding(trial_t *t) {
    embedding_args_t args = {.token = t->index, .table = rows_at(t->x, ROWS), .scale = 2.0f, .y = rows_at(t->y, ROWS)};
    return t->device->table->embedding(t->device, &args);
}
static status_t run_embedding_backward(trial_t *t) {
    embedding_args_t args = {.token = t->index, .table = rows_at(t->y, ROWS), .scale = 2.0f, .y = rows_at(t->x, ROWS)};
    gradient_sink_t sink = {.sum = t->sum, .exponent = 10, .flags = t->flags};
    embedding_gradients_t gradients = {.dy = args.y, .table = &sink};
    return t->device->table->embedding_backward(t->device, &args, &gradients);
}

static const struct {
    const char *op; // what the message says
    status_t (*run)(trial_t *trial);
    int row;   // the row of the result that index[ENTRY] decides on
    bool gaps; // -1 is allowed
} ops[] = {
    {"gather_rows", run_gather, ENTRY, true},   {"gather_rows", run_gather_backward, 0, true},
    {"scatter_rows", run_scatter, 0, true},     {"scatter_rows", run_scatter_backward, ENTRY, true},
    {"pool_rows", run_pool, 0, false},          {"pool_rows", run_pool_backward, 0, false},
    {"embedding", run_embedding, ENTRY, false}, {"embedding", run_embedding_backward, 0, false},
};
enum { OPS = sizeof(ops) / sizeof(ops[0]) };

typedef struct result {
    float y[ROWS][COLUMNS];
    int64_t sum[ROWS][COLUMNS];
} result_t;

static void take(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

// Runs one op; returns what the synchronisation said.
static status_t trial(trial_t *t, int op, const int32_t *index, result_t *out) {
    float x[NUMBERS], y[NUMBERS];
    const device_table_t *table = t->device->table;
    for (int i = 0; i < NUMBERS; i++) {
        x[i] = (float)(i + 1);
        y[i] = 1000.0f;
    }
    take(table->upload(t->device, t->x, x, sizeof(x)));
    take(table->upload(t->device, t->y, y, sizeof(y)));
    take(table->upload(t->device, t->index, index, ROWS * sizeof(*index)));
    take(table->zero(t->device, t->sum, sizeof(out->sum)));
    take(ops[op].run(t));
    status_t said = table->synchronize(t->device);
    take(table->download(t->device, out->y, t->y, sizeof(out->y)));
    take(table->download(t->device, out->sum, t->sum, sizeof(out->sum)));
    return said;
}

static void check_op(trial_t *t, int op) {
    static const int32_t bad[] = {ROWS, ROWS + 100, INT32_MAX, INT32_MIN, -2, -1};
    int32_t index[ROWS] = {2, 0, 3, 1};
    result_t right, wrong;
    take(trial(t, op, index, &right));
    for (int i = 0; i < (ops[op].gaps ? 5 : 6); i++) {
        index[ENTRY] = bad[i];
        status_t said = trial(t, op, index, &wrong);
        if (!said) fail_msg("op %d (%s) takes the index %d", op, ops[op].op, bad[i]);
        assert_int_equal(status_kind(said), STATUS_INVALID);
        if (!strstr(status_message(said), ops[op].op)) fail_msg("op %d: %s", op, status_message(said));
        status_free(said);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLUMNS; c++) {
                bool decided = r == ops[op].row;
                if (wrong.y[r][c] != (decided ? 1000.0f : right.y[r][c]) ||
                    wrong.sum[r][c] != (decided ? 0 : right.sum[r][c]))
                    fail_msg("op %d (%s), index %d: [%d, %d] is %g and %lld", op, ops[op].op, bad[i], r, c,
                             (double)wrong.y[r][c], (long long)wrong.sum[r][c]);
            }
        // The pool's backward loses one of the two rows that a mean is spread to; the other one has its share.
        if (ops[op].run == run_pool_backward) assert_true(wrong.y[2][0] != 1000.0f);
    }
}

void test_indices(void **state) {
    (void)state;
    trial_t t;
    take(device_open_table(&device_sim_table, "shuffled:3", 1, &t.device));
    const device_table_t *table = t.device->table;
    void *memory;
    take(table->allocate(t.device, 4096, &memory));
    t.x = memory;
    t.y = t.x + NUMBERS;
    t.sum = (int64_t *)(void *)(t.y + NUMBERS);
    t.index = (int32_t *)(void *)(t.sum + NUMBERS);
    t.flags = (uint32_t *)(void *)(t.index + ROWS);
    for (int op = 0; op < OPS; op++) check_op(&t, op);
    // Two rows for one place.
    static const int32_t repeated[ROWS] = {2, 0, 3, 2};
    for (int op = 0; op < OPS; op++) {
        if (strcmp(ops[op].op, "scatter_rows") != 0) continue;
        result_t result;
        status_t said = trial(&t, op, repeated, &result);
        assert_non_null(said);
        assert_non_null(strstr(status_message(said), "scatter_rows"));
        status_free(said);
    }
    table->release(t.device, memory);
    device_close(t.device);
}
