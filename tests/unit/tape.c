// The tape: its heap, gradients of views and in-place ops, blocks under every policy, dry runs.
#include "common/tensor/tape_heap.h"
#include "kernels/streams.h"
#include "tests/lib/parity.h"

enum { ROWS = 6, WIDTH = 8, EXPONENT = 30, PARAMETERS = 6 };

// ---- the heap ----

static void test_heap(void **state) {
    (void)state;
    device_t *device;
    heap_t heap, dry;
    char *real[64];
    void *fake[64];
    size_t bytes[64];
    check(device_open("cpu", 1, &device));
    check(heap_open_measuring(&dry, "dry"));
    uint32_t random = 7;
    // The same calls in both; the dry one tells how much the real one needs, to the byte.
    for (int pass = 0; pass < 2; pass++) {
        if (pass) check(heap_open(&heap, device, LEDGER_OTHER, "real", dry.arena.peak));
        memset(bytes, 0, sizeof(bytes));
        random = 7;
        for (int turn = 0; turn < 3000; turn++) {
            random = random * 1664525U + 1013904223U;
            int at = (int)(random >> 10) % 64;
            heap_t *used = pass ? &heap : &dry;
            void **place = pass ? (void **)&real[at] : &fake[at];
            if (bytes[at]) {
                for (size_t i = 0; pass && i < bytes[at]; i++) assert_int_equal(real[at][i], (char)at);
                check(heap_give(used, *place, bytes[at]));
                bytes[at] = 0;
                continue;
            }
            bytes[at] = 1 + (random >> 18) % 700;
            check(heap_take(used, bytes[at], place));
            assert_int_equal((uintptr_t)*place % ARENA_ALIGNMENT, 0);
            // Nobody else's bytes: each block is filled with its number and checked when it goes.
            if (pass) memset(real[at], at, bytes[at]);
        }
        for (int at = 0; at < 64; at++)
            if (bytes[at]) check(heap_give(pass ? &heap : &dry, pass ? (void *)real[at] : fake[at], bytes[at]));
        assert_int_equal((pass ? &heap : &dry)->hole_count, 0);
        assert_int_equal((pass ? &heap : &dry)->arena.used, 0);
    }
    assert_int_equal(heap.arena.peak, dry.arena.peak);
    void *out;
    status_t status = heap_take(&heap, dry.arena.peak + 1, &out);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_MEMORY);
    status_free(status);
    heap_close(&heap);
    heap_close(&dry);
    device_close(device);
}

// A device with queues, as far as the heap knows.
typedef struct queue_table {
    device_table_t table; // first
    device_streams_t streams;
    bool idle;
} queue_table_t;

static bool queue_idle(const device_t *device) {
    return ((const queue_table_t *)device->table)->idle;
}

static char *take(heap_t *heap, size_t bytes, bool fresh) {
    void *out;
    bool is_fresh;
    check(heap_take_fresh(heap, bytes, &out, &is_fresh));
    assert_int_equal(is_fresh, fresh);
    return out;
}

// Memory is fresh where no op under way can use it: above all that was taken since the device was last idle.
static void test_fresh(void **state) {
    (void)state;
    queue_table_t queue = {.table = device_cpu_table, .streams = {.idle = queue_idle}, .idle = true};
    queue.table.streams = &queue.streams;
    device_t *device;
    heap_t heap;
    check(device_open_table(&queue.table, "", 1, &device));
    check(heap_open(&heap, device, LEDGER_OTHER, "values", 4096));
    char *first = take(&heap, 256, true), *second = take(&heap, 256, true);
    queue.idle = false; // an op on either
    char *third = take(&heap, 256, true);
    check(heap_give(&heap, third, 256)); // an op may have used it before it was given back
    third = take(&heap, 256, false);
    char *fourth = take(&heap, 512, true);
    check(heap_give(&heap, second, 256));
    assert_ptr_equal(take(&heap, 256, false), second); // a hole
    heap_reset(&heap);
    assert_ptr_equal(take(&heap, 1024, false), first); // a reset ends nothing
    queue.idle = true;
    second = take(&heap, 256, true);
    queue.idle = false; // an op on it
    check(heap_give(&heap, second, 256));
    assert_ptr_equal(take(&heap, 256, false), second);
    queue.idle = true;
    heap_reset(&heap);
    assert_ptr_equal(take(&heap, 1024, true), first);
    queue.idle = false; // an op, and it ends
    queue.idle = true;
    second = take(&heap, 256, true);
    queue.idle = false;
    heap_reset(&heap);
    take(&heap, 1024 + 256, false);
    take(&heap, 256, true);
    assert_true(third && fourth);
    heap_close(&heap);
    device_close(device);
}

// ---- a small net with every kind of sharing ----

typedef struct net {
    device_t *device;
    float weights[3][WIDTH * WIDTH], norm[WIDTH], shift[WIDTH], table[4 * WIDTH];
    parameter_t linear[3], scale, embedding, bias, head_scale;
    int64_t sum[PARAMETERS][WIDTH * WIDTH];
    uint32_t flags;
    float input[ROWS * WIDTH];
} net_t;

static float noise(uint32_t *random) {
    *random = *random * 1664525U + 1013904223U;
    return (float)(*random >> 8) * 0x1p-23F - 1.0F;
}

static void net_open(net_t *net) {
    uint32_t random = 99;
    *net = (net_t){0};
    check(device_open("cpu", 1, &net->device));
    for (int i = 0; i < 3; i++) {
        for (int e = 0; e < WIDTH * WIDTH; e++) net->weights[i][e] = 0.5F * noise(&random);
        net->linear[i].value = matrix_view(net->weights[i], DTYPE_F32, WIDTH, WIDTH);
        net->linear[i].sink = (gradient_sink_t){net->sum[i], EXPONENT, &net->flags};
    }
    for (int e = 0; e < WIDTH; e++) net->norm[e] = 1.0F + 0.2F * noise(&random);
    for (int e = 0; e < WIDTH; e++) net->shift[e] = noise(&random);
    for (int e = 0; e < 4 * WIDTH; e++) net->table[e] = noise(&random);
    for (int e = 0; e < ROWS * WIDTH; e++) net->input[e] = noise(&random);
    net->scale.value = matrix_view(net->norm, DTYPE_F32, 1, WIDTH);
    net->scale.sink = (gradient_sink_t){net->sum[3], EXPONENT, &net->flags};
    net->head_scale = net->scale;
    net->head_scale.value.columns = WIDTH / 2;
    net->embedding.value = matrix_view(net->table, DTYPE_F32, 4, WIDTH);
    net->embedding.sink = (gradient_sink_t){net->sum[4], EXPONENT, &net->flags};
    net->bias.value = matrix_view(net->shift, DTYPE_F32, 1, WIDTH);
    net->bias.sink = (gradient_sink_t){net->sum[5], EXPONENT, &net->flags};
}

// Norms in a row, rope on a norm's output, a view as an op's input: what recomputing cheap ops must get right.
static status_t net_block(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const net_t *net = *(const net_t *const *)context;
    static const int32_t axis[2] = {0, 0}, position[ROWS] = {0, 1, 2, 3, 4, 5};
    static const float frequency[2] = {1.0F, 0.25F};
    rope_table_args_t args = {
        .rows = ROWS, .half = 2, .position = {position}, .axis = axis, .inverse_frequency = frequency};
    const float *cosine, *sine;
    tensor_t *a, *b, *left, *right, *gated;
    TRY(tape_rope_table(tape, &args, &cosine, &sine));
    TRY(tape_rmsnorm(tape, x, &net->scale, 1e-5F, NORM_CAST_THEN_WEIGHT, &a));
    TRY(tape_rope(tape, a, 2, 2, cosine, sine));
    TRY(tape_rmsnorm(tape, a, &net->scale, 1e-5F, NORM_ONE_PLUS_WEIGHT, &b));
    TRY(tape_linear(tape, b, &net->linear[0], NULL, NULL, &b));
    TRY(tape_split_rows(tape, b, 2, &left));
    TRY(tape_rmsnorm(tape, left, &net->head_scale, 1e-5F, NORM_ONE_PLUS_WEIGHT, &left));
    TRY(tape_fold_rows(tape, left, 2, b->leaves, &b));
    TRY(tape_rope(tape, b, 2, 2, cosine, sine));
    TRY(tape_columns(tape, b, 0, WIDTH / 2, &left));
    TRY(tape_columns(tape, b, WIDTH / 2, WIDTH / 2, &right));
    TRY(tape_activation(tape, ACTIVATION_SILU, left, right, &gated));
    TRY(tape_fold_rows(tape, gated, 2, (leaves_t){0}, &gated));
    static const int32_t index[ROWS] = {0, 1, 2, 0, 2, 1};
    TRY(tape_gather_rows(tape, gated, index, ROWS, (leaves_t){0}, &gated));
    TRY(tape_linear(tape, gated, &net->linear[1], NULL, NULL, &gated));
    TRY(tape_layernorm(tape, gated, &net->scale, &net->bias, 1e-4F, &gated));
    TRY(tape_linear(tape, gated, &net->linear[0], NULL, NULL, &gated));
    TRY(tape_add(tape, gated, gated, &gated));
    return tape_add(tape, x, gated, out);
}

// One forward and backward; log-probs and the input's gradient come back. *memory: what it took.
static void net_run(net_t *net, tape_t *tape, bool recording, float *logprob, float *dinput) {
    static const int32_t tokens[2] = {3, 1}, places[2] = {4, 1}, rows[3] = {5, 1, 5}, targets[3] = {0, 7, 3};
    const net_t *context = net;
    static const int32_t class[ROWS] = {0}, position[ROWS] = {0, 1, 2, 0, 1, 2}, patch[ROWS] = {1, 2, -1, 4, 5, -1};
    static const int32_t pooled[2 * ROWS] = {0, 1, 2, 3, 1, 5, 4, 4, 5, 3, 0, 2};
    tensor_t *x, *first, *rope, *spliced, *with_class, *places_of;
    head_output_t *head;
    tape_reset(tape, recording);
    check(tape_input(tape, matrix_view(net->input, DTYPE_F32, ROWS, WIDTH), (leaves_t){0}, &first));
    first->needs_gradient = true;
    check(tape_linear(tape, first, &net->linear[2], NULL, NULL, &x));
    check(tape_embedding(tape, tokens, 2, &net->embedding, 0.5F, (leaves_t){0}, &spliced));
    check(tape_scatter_rows(tape, x, spliced, places));
    // A vision tower's start: a class row and patch rows, and a learned position table added to them.
    check(tape_embedding(tape, class, ROWS, &net->bias, 1, (leaves_t){0}, &with_class));
    check(tape_scatter_rows(tape, with_class, x, patch));
    check(tape_embedding(tape, position, ROWS, &net->embedding, 1, (leaves_t){0}, &places_of));
    check(tape_add(tape, with_class, places_of, &x));
    check(tape_block(tape, net_block, &context, sizeof(context), x, &x));
    check(tape_pool_rows(tape, x, pooled, 2, ROWS, (leaves_t){0}, &x));
    check(tape_block(tape, net_block, &context, sizeof(context), x, &rope));
    check(tape_token_logprobs(tape, rope, &net->linear[2], 0.7F, 3, rows, targets, (leaves_t){0}, true, &head));
    if (tape_is_measuring(tape)) {
        if (recording) check(tape_backward(tape));
        return;
    }
    memcpy(logprob, head->logprob, 3 * sizeof(float));
    if (!recording) return;
    for (int i = 0; i < 3; i++) {
        assert_true(head->dlogprob[i] == 0.0F);
        head->dlogprob[i] = 1.0F + (float)i;
    }
    check(tape_backward(tape));
    assert_non_null(first->gradient.data);
    memcpy(dinput, first->gradient.data, ROWS * WIDTH * sizeof(float));
}

static tape_t *net_tape(net_t *net, recompute_t recompute, bool recording, tape_memory_t *memory) {
    tape_t *dry, *tape;
    check(tape_open_measuring(net->device, recompute, &dry));
    net_run(net, dry, recording, NULL, NULL);
    *memory = tape_memory(dry);
    tape_close(dry);
    assert_false(net->device->measuring);
    check(tape_open(net->device, memory, recompute, &tape));
    return tape;
}

static double net_loss(net_t *net, tape_t *tape) {
    float logprob[3];
    net_run(net, tape, false, logprob, NULL);
    return (double)logprob[0] + 2 * (double)logprob[1] + 3 * (double)logprob[2];
}

// Central differences at two steps, extrapolated: the error goes with the fourth power of the step.
static double slope(net_t *net, tape_t *tape, float *value) {
    double slopes[2];
    for (int i = 0; i < 2; i++) {
        float step = i ? 0x1p-8F : 0x1p-7F, kept = *value;
        *value = kept + step;
        double above = net_loss(net, tape), to = (double)*value;
        *value = kept - step;
        double below = net_loss(net, tape), from = (double)*value;
        *value = kept;
        slopes[i] = (above - below) / (to - from);
    }
    return (4 * slopes[1] - slopes[0]) / 3;
}

static void close_to(double have, double want, const char *what, int element) {
    if (fabs(have - want) > 4e-3 * (1 + fabs(want)))
        fail_msg("%s[%d]: %.6g instead of %.6g", what, element, have, want);
}

static void test_gradients(void **state) {
    (void)state;
    const char *const names[] = {"linear 0", "linear 1", "linear 2 (also the head)", "norm", "table", "shift"};
    net_t net;
    tape_memory_t memory;
    float logprob[3], dinput[ROWS * WIDTH];
    net_open(&net);
    tape_t *tape = net_tape(&net, RECOMPUTE_NONE, true, &memory);
    net_run(&net, tape, true, logprob, dinput);
    assert_int_equal(net.flags, 0);
    assert_int_equal(tape_memory(tape).values, memory.values);
    assert_int_equal(tape_memory(tape).gradients, memory.gradients);
    float *values[] = {net.weights[0], net.weights[1], net.weights[2], net.norm, net.table, net.shift};
    const int counts[] = {WIDTH * WIDTH, WIDTH * WIDTH, WIDTH * WIDTH, WIDTH, 4 * WIDTH, WIDTH};
    for (int p = 0; p < PARAMETERS; p++)
        for (int e = 0; e < counts[p]; e++)
            close_to(ldexp((double)net.sum[p][e], -EXPONENT), slope(&net, tape, &values[p][e]), names[p], e);
    for (int e = 0; e < ROWS * WIDTH; e++) close_to((double)dinput[e], slope(&net, tape, &net.input[e]), "input", e);
    // Rows 1 and 4 were overwritten: what they held had no effect.
    for (int e = 0; e < WIDTH; e++) assert_true(dinput[WIDTH + e] == 0.0F && dinput[4 * WIDTH + e] == 0.0F);
    tape_close(tape);
    device_close(net.device);
}

static void test_policies(void **state) {
    (void)state;
    float logprob[3][3], dinput[3][ROWS * WIDTH], silent[3];
    int64_t sums[3][PARAMETERS][WIDTH * WIDTH];
    net_t net;
    tape_memory_t memory[3];
    for (int policy = 0; policy < 3; policy++) {
        net_open(&net);
        tape_t *tape = net_tape(&net, (recompute_t)policy, true, &memory[policy]);
        for (int run = 0; run < 2; run++) {
            memset(net.sum, 0, sizeof(net.sum));
            net_run(&net, tape, true, logprob[policy], dinput[policy]);
        }
        net_run(&net, tape, false, silent, NULL);
        assert_memory_equal(silent, logprob[policy], sizeof(silent));
        // What the dry run measured is what it took, so the next tape of this size is enough.
        assert_int_equal(tape_memory(tape).values, memory[policy].values);
        assert_int_equal(tape_memory(tape).gradients, memory[policy].gradients);
        memcpy(sums[policy], net.sum, sizeof(net.sum));
        assert_memory_equal(logprob[0], logprob[policy], sizeof(logprob[0]));
        assert_memory_equal(dinput[0], dinput[policy], sizeof(dinput[0]));
        assert_memory_equal(sums[0], sums[policy], sizeof(sums[0]));
        tape_close(tape);
        device_close(net.device);
    }
    assert_true(memory[2].values < memory[0].values);
    assert_true(memory[1].values < memory[0].values);
}

static void refuse(status_t status, status_kind_t kind, const char *reason) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), kind);
    if (!strstr(status_message(status), reason)) fail_msg("'%s' lacks '%s'", status_message(status), reason);
    status_free(status);
}

static status_t nested_block(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    return tape_block(tape, net_block, context, sizeof(net_t *), x, out);
}

static void test_refusals(void **state) {
    (void)state;
    net_t net;
    tape_t *tape;
    tensor_t *x, *out;
    const int32_t bad[3] = {0, 4, 3};
    net_open(&net);
    const net_t *context = &net;
    check(tape_open(net.device, &(tape_memory_t){.values = 1 << 16}, RECOMPUTE_NONE, &tape));
    tape_reset(tape, true);
    matrix_t value = matrix_view(net.input, DTYPE_F32, ROWS, WIDTH);
    refuse(tape_input(tape, value, (leaves_t){2, bad}, &x), STATUS_INVALID, "leaves do not cover");
    check(tape_input(tape, value, (leaves_t){0}, &x));
    assert_int_equal(x->leaves.count, 1);
    refuse(tape_columns(tape, x, 5, 4, &out), STATUS_INVALID, "columns 5 to 9");
    refuse(tape_fold_rows(tape, x, 4, (leaves_t){0}, &out), STATUS_INVALID, "folded by 4");
    refuse(tape_split_rows(tape, x, 3, &out), STATUS_INVALID, "split by 3");
    refuse(tape_block(tape, nested_block, &context, sizeof(context), x, &out), STATUS_INVALID, "cannot contain blocks");
    tape_reset(tape, false);
    refuse(tape_backward(tape), STATUS_INVALID, "recorded");
    check(tape_input(tape, matrix_columns(value, 0, 4), (leaves_t){0}, &x));
    refuse(tape_linear(tape, x, &net.linear[0], NULL, NULL, &out), STATUS_INVALID, "rows of 4 columns");
    refuse(tape_fold_rows(tape, x, 2, (leaves_t){0}, &out), STATUS_INVALID, "cannot be folded");
    refuse(tape_split_rows(tape, x, 2, &out), STATUS_INVALID, "cannot be split");
    tape_close(tape);
    check(tape_open(net.device, &(tape_memory_t){.values = 128}, RECOMPUTE_NONE, &tape));
    tape_reset(tape, false);
    check(tape_input(tape, value, (leaves_t){0}, &x));
    refuse(tape_linear(tape, x, &net.linear[0], NULL, NULL, &out), STATUS_MEMORY, "the arena 'values'");
    tape_close(tape);
    device_close(net.device);
}

// Leaves of a view are those of its rows, and of split rows the same rows' pieces.
static void test_views(void **state) {
    (void)state;
    net_t net;
    tape_t *tape;
    tensor_t *x, *split, *folded;
    const int32_t start[4] = {0, 1, 1, ROWS};
    net_open(&net);
    check(tape_open(net.device, &(tape_memory_t){.values = 1 << 16}, RECOMPUTE_NONE, &tape));
    tape_reset(tape, true);
    check(tape_input(tape, matrix_view(net.input, DTYPE_F32, ROWS, WIDTH), (leaves_t){3, start}, &x));
    check(tape_split_rows(tape, x, 4, &split));
    assert_int_equal(split->value.rows, 4 * ROWS);
    assert_int_equal(split->value.columns, WIDTH / 4);
    assert_int_equal(split->leaves.count, 3);
    for (int i = 0; i < 4; i++) assert_int_equal(split->leaves.start[i], 4 * start[i]);
    assert_ptr_equal(split->value.data, x->value.data);
    check(tape_fold_rows(tape, split, 4, x->leaves, &folded));
    assert_int_equal(folded->value.rows, ROWS);
    assert_int_equal(folded->value.stride, WIDTH);
    tape_close(tape);
    device_close(net.device);
}

// ---- one reservation for every size ----

typedef struct chain {
    const parameter_t *weight; // of one block: three linears
} chain_t;

static status_t chain_block(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const parameter_t *weight = ((const chain_t *)context)->weight;
    tensor_t *left, *right;
    TRY(tape_linear(tape, x, &weight[0], NULL, NULL, &left));
    TRY(tape_linear(tape, left, &weight[1], NULL, NULL, &right));
    return tape_linear(tape, right, &weight[2], NULL, NULL, out);
}

static size_t chain_peak(device_t *device, const parameter_t *weight, int blocks, int rows) {
    tape_t *tape;
    tensor_t *x;
    check(tape_open_measuring(device, RECOMPUTE_NONE, &tape));
    tape_reset(tape, false);
    matrix_t input = matrix_view((void *)(uintptr_t)64, DTYPE_BF16, rows, weight[0].value.columns);
    check(tape_input(tape, input, (leaves_t){0}, &x));
    for (int i = 0; i < blocks; i++) {
        chain_t chain = {weight + (ptrdiff_t)3 * i};
        check(tape_block(tape, chain_block, &chain, sizeof(chain), x, &x));
    }
    size_t peak = tape_memory(tape).values;
    tape_close(tape);
    return peak;
}

// An engine reserves for its largest step: no smaller one may need more, however its tensors and holes round.
static void test_scale(void **state) {
    (void)state;
    enum { CHAINS = 40, BLOCKS = 5, MOST = 70 };
    device_t *device;
    check(device_open("cpu", 1, &device));
    for (int number = 0; number < CHAINS; number++) {
        parameter_t weight[3 * BLOCKS] = {0};
        uint32_t random = (uint32_t)number;
        for (int i = 0, columns = 3; i < 3 * BLOCKS; i++) {
            random = random * 1664525U + 1013904223U;
            int next = 1 + (int)(random >> 24) % 9;
            weight[i].value = matrix_view((void *)(uintptr_t)64, DTYPE_BF16, next, columns);
            columns = next;
        }
        size_t before = 0;
        for (int rows = 1; rows <= MOST; rows++) {
            size_t peak = chain_peak(device, weight, BLOCKS, rows);
            if (peak < before) fail_msg("chain %d: %d rows need less than %d do", number, rows, rows - 1);
            before = peak;
        }
    }
    device_close(device);
}

// Stopped rows keep their values, and nothing before them learns from them.
static void test_stopped_rows(void **state) {
    (void)state;
    static const int32_t stopped[ROWS] = {-1, 1, -1, -1, 4, -1}, rows[ROWS] = {0, 1, 2, 3, 4, 5}, targets[ROWS] = {0};
    const tape_memory_t memory = {.values = 1 << 16, .gradients = 1 << 16};
    float kept[ROWS];
    net_t net;
    tape_t *tape;
    tensor_t *x, *y;
    head_output_t *head;
    net_open(&net);
    check(tape_open(net.device, &memory, RECOMPUTE_NONE, &tape));
    for (int stop = 0; stop < 2; stop++) {
        tape_reset(tape, true);
        check(tape_input(tape, matrix_view(net.input, DTYPE_F32, ROWS, WIDTH), (leaves_t){0}, &x));
        x->needs_gradient = true;
        check(tape_linear(tape, x, &net.linear[0], NULL, NULL, &y));
        if (stop) check(tape_stop_rows(tape, y, stopped));
        check(tape_token_logprobs(tape, y, &net.linear[1], 1.0F, ROWS, rows, targets, (leaves_t){0}, false, &head));
        if (stop) assert_memory_equal(head->logprob, kept, sizeof(kept));
        memcpy(kept, head->logprob, sizeof(kept));
        for (int i = 0; i < ROWS; i++) head->dlogprob[i] = 1;
        check(tape_backward(tape));
        const float *gradient = x->gradient.data;
        for (int i = 0; i < ROWS; i++) {
            double size = 0;
            for (int e = 0; e < WIDTH; e++) size += fabs((double)gradient[i * WIDTH + e]);
            assert_true(stop && stopped[i] >= 0 ? size == 0 : size > 1e-3);
        }
    }
    tape_close(tape);
    device_close(net.device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heap),     cmocka_unit_test(test_fresh),        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_policies), cmocka_unit_test(test_refusals),     cmocka_unit_test(test_views),
        cmocka_unit_test(test_scale),    cmocka_unit_test(test_stopped_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
