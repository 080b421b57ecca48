// What the op list does not ask of linear and the head: large tiles, mixed storage, many leaves, chunks, entries that
// share a row, sampled tokens scored again, and what is out of range.
#include "kernels/cuda/head.h"
#include "kernels/device.h"
#include "tests/ops/parts/ops.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// linear: rows, K, N, rank of the adapter, bias. Enough tiles of the large, the medium and the gradients' large kind.
static const op_case_t large[] = {
    {&op_linear, "large tiles", {640, 24, 836, 0, 1}},
    {&op_linear, "large tiles, adapter", {650, 17, 772, 5, 1}},
    {&op_linear, "medium tiles, adapter", {200, 24, 584, 8, 1}},
    {&op_linear, "large tiles of gradients", {20, 300, 520, 8, 1}},
};
enum { LARGE = sizeof(large) / sizeof(large[0]), GRADIENTS = LARGE - 1 };

enum { PLACES = 40 };
// Memory of a device for one test: what lies there is a copy of the host's.
typedef struct bench {
    device_t *device;
    void *memory[PLACES];
    int count;
} bench_t;

static void pass(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

static bench_t bench_open(const char *name) {
    bench_t bench = {0};
    if (!strncmp(name, "cpu", 3))
        pass(device_open(name, 1, &bench.device));
    else
        pass(device_open_table(&device_sim_table, name, 1, &bench.device));
    return bench;
}

static void bench_close(bench_t *bench) {
    for (int i = 0; i < bench->count; i++) bench->device->table->release(bench->device, bench->memory[i]);
    device_close(bench->device);
}

static void *put(bench_t *bench, const void *from, size_t bytes) {
    assert_true(bench->count < PLACES);
    void **at = &bench->memory[bench->count++];
    pass(bench->device->table->allocate(bench->device, bytes, at));
    if (from) pass(bench->device->table->upload(bench->device, *at, from, bytes));
    return *at;
}

static void get(bench_t *bench, void *to, const void *from, size_t bytes) {
    pass(bench->device->table->download(bench->device, to, from, bytes));
}

static float number(int which, int64_t i) {
    uint32_t x = (uint32_t)i * 2654435761u + (uint32_t)which * 40503u;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    return bf16_widen((uint16_t)(0x3f80 | (x & 0x7f))) * (x >> 9 & 1 ? 0.5f : -0.5f);
}

// Numbers that bf16 holds, lying as either.
static matrix_t numbers(bench_t *bench, int which, int rows, int columns, bool half) {
    size_t count = (size_t)rows * (size_t)columns;
    float *whole = malloc(count * sizeof(*whole));
    uint16_t *cut = malloc(count * sizeof(*cut));
    assert_true(whole && cut);
    for (size_t i = 0; i < count; i++) whole[i] = number(which, (int64_t)i), cut[i] = bf16_round(whole[i]);
    void *data = half ? put(bench, cut, count * sizeof(*cut)) : put(bench, whole, count * sizeof(*whole));
    free(whole);
    free(cut);
    return matrix_view(data, half ? DTYPE_BF16 : DTYPE_F32, rows, columns);
}

static size_t matrix_bytes(matrix_t m) {
    return (size_t)m.rows * (size_t)m.columns * dtype_bytes(m.dtype);
}

static gradient_sink_t sink_open(bench_t *bench, size_t count) {
    return (gradient_sink_t){.sum = put(bench, NULL, count * sizeof(int64_t)),
                             .exponent = OP_EXPONENT,
                             .flags = put(bench, NULL, sizeof(uint32_t))};
}

// ---- large tiles ----

void test_matrix_tiles(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = op_linear;
    linear.run_backward = NULL;
    for (int i = 0; i < 2 * LARGE; i++) {
        op_case_t row = large[i / 2];
        row.shape[OP_HALF] = i % 2;
        if (i / 2 < GRADIENTS) row.op = &linear;
        bench_t cpu = bench_open("cpu"), sim = bench_open("shuffled:3");
        problem_t want, got;
        pass(problem_open(&want, &row, 8));
        pass(problem_open(&got, &row, 8));
        pass(problem_run(&want, cpu.device));
        pass(problem_run(&got, sim.device));
        failures += compare_bits(&row, "sim", &want, &got);
        problem_close(&want);
        problem_close(&got);
        bench_close(&cpu);
        bench_close(&sim);
    }
    assert_int_equal(failures, 0);
}

// ---- mixed storage, many leaves ----

typedef struct linear_shape {
    int rows, k, n, rank;
    unsigned halves; // bits: x, weight, y, a, b, xa
    leaves_t leaves;
} linear_shape_t;
enum { LINEAR_BYTES = 1 << 17 };
typedef struct linear_result {
    size_t bytes;
    unsigned char part[LINEAR_BYTES];
} linear_result_t;

static void linear_keep(bench_t *bench, linear_result_t *out, const void *from, size_t bytes) {
    assert_true(out->bytes + bytes <= LINEAR_BYTES);
    get(bench, out->part + out->bytes, from, bytes);
    out->bytes += bytes;
}

// y, x A^T, dx and all sums of one linear.
static void linear_all(const char *name, const linear_shape_t *shape, linear_result_t *out) {
    bench_t bench = bench_open(name);
    int m = shape->rows, k = shape->k, n = shape->n, r = shape->rank;
    unsigned halves = shape->halves;
    linear_args_t args = {.x = numbers(&bench, 1, m, k, halves & 1),
                          .weight = numbers(&bench, 2, n, k, halves & 2),
                          .bias = numbers(&bench, 3, 1, n, false).data,
                          .y = numbers(&bench, 4, m, n, halves & 4),
                          .lora_a = numbers(&bench, 5, r, k, halves & 8),
                          .lora_b = numbers(&bench, 6, n, r, halves & 16),
                          .lora_xa = numbers(&bench, 7, m, r, halves & 32),
                          .lora_scale = 0.75f};
    size_t counts[4] = {(size_t)n * (size_t)k, (size_t)n, (size_t)r * (size_t)k, (size_t)n * (size_t)r};
    gradient_sink_t sink[4];
    for (int i = 0; i < 4; i++) sink[i] = sink_open(&bench, counts[i]);
    linear_gradients_t gradients = {.dy = numbers(&bench, 8, m, n, false),
                                    .dx = numbers(&bench, 9, m, k, false),
                                    .weight = &sink[0],
                                    .bias = &sink[1],
                                    .lora_a = &sink[2],
                                    .lora_b = &sink[3],
                                    .leaves = shape->leaves};
    pass(bench.device->table->linear(bench.device, &args));
    pass(bench.device->table->linear_backward(bench.device, &args, &gradients));
    out->bytes = 0;
    linear_keep(&bench, out, args.y.data, matrix_bytes(args.y));
    linear_keep(&bench, out, args.lora_xa.data, matrix_bytes(args.lora_xa));
    linear_keep(&bench, out, gradients.dx.data, matrix_bytes(gradients.dx));
    for (int i = 0; i < 4; i++) linear_keep(&bench, out, sink[i].sum, counts[i] * sizeof(int64_t));
    bench_close(&bench);
}

static void linear_agrees(const linear_shape_t *shape, const char *order) {
    linear_result_t *want = malloc(sizeof(*want)), *got = malloc(sizeof(*got));
    assert_true(want && got);
    linear_all("cpu", shape, want);
    linear_all(order, shape, got);
    if (want->bytes != got->bytes || memcmp(want->part, got->part, want->bytes) != 0)
        fail_msg("linear with storage %02x and %d leaves: other bits than the CPU's", shape->halves,
                 shape->leaves.count);
    free(want);
    free(got);
}

void test_matrix_storage(void **state) {
    (void)state;
    static const int32_t start[] = {0, 4, 4, 11};
    for (unsigned halves = 0; halves < 64; halves++) {
        linear_shape_t shape = {11, 24, 20, 3, halves, {3, start}};
        linear_agrees(&shape, halves % 2 ? "shuffled:5" : "");
    }
}

// More leaves than one launch takes; some are empty.
void test_matrix_leaves(void **state) {
    (void)state;
    enum { LEAVES = 1100 };
    int32_t start[LEAVES + 1];
    for (int i = 0; i <= LEAVES; i++) start[i] = i * 3 / 5;
    linear_shape_t shape = {start[LEAVES], 6, 5, 2, 0, {LEAVES, start}};
    linear_agrees(&shape, "");
}

// ---- the head ----

enum { ENTRIES = 130, HIDDEN = 24, WORDS = 200 };
typedef struct head_result {
    int32_t token[ENTRIES];
    float logprob[ENTRIES], entropy[ENTRIES], extra[ENTRIES]; // extra: the gap, or lse
} head_result_t;

// Samples `count` rows from the first on; greedy where the temperature is 0.
static void sample_all(bool half, int first, int count, float temperature, int chunk, head_result_t *out) {
    bench_t bench = bench_open("");
    size_t bytes = sizeof(float) * (size_t)count;
    float each[ENTRIES], uniform[ENTRIES];
    static const int32_t banned[] = {0, 7, 8, 150};
    for (int i = 0; i < count; i++) {
        each[i] = temperature;
        uniform[i] = (float)((first + i) * 37 % 131) / 131.0f;
    }
    token_sample_args_t args = {.hidden = numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                .weight = numbers(&bench, 2, WORDS, HIDDEN, half),
                                .temperature = put(&bench, each, bytes),
                                .uniform = put(&bench, uniform, bytes),
                                .banned = put(&bench, banned, sizeof(banned)),
                                .banned_count = 4,
                                .token = put(&bench, NULL, bytes),
                                .logprob = put(&bench, NULL, bytes),
                                .entropy = put(&bench, NULL, bytes),
                                .top_gap = put(&bench, NULL, bytes)};
    args.hidden.data = (char *)args.hidden.data + (size_t)(first * HIDDEN) * dtype_bytes(args.hidden.dtype);
    args.hidden.rows = count;
    pass(sim_head_sample(bench.device, &args, chunk));
    get(&bench, out->token, args.token, bytes);
    get(&bench, out->logprob, args.logprob, bytes);
    get(&bench, out->entropy, args.entropy, bytes);
    get(&bench, out->extra, args.top_gap, bytes);
    bench_close(&bench);
}

// Scores all rows, last first.
static void score_all(bool half, const int32_t *token, float temperature, int chunk, head_result_t *out) {
    bench_t bench = bench_open("");
    size_t bytes = sizeof(float) * ENTRIES;
    int32_t rows[ENTRIES], targets[ENTRIES];
    head_result_t turned;
    for (int i = 0; i < ENTRIES; i++) {
        rows[i] = ENTRIES - 1 - i;
        targets[i] = token[rows[i]];
    }
    token_logprobs_args_t args = {.hidden = numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                  .weight = numbers(&bench, 2, WORDS, HIDDEN, half),
                                  .temperature = temperature,
                                  .count = ENTRIES,
                                  .rows = put(&bench, rows, bytes),
                                  .targets = put(&bench, targets, bytes),
                                  .logprob = put(&bench, NULL, bytes),
                                  .entropy = put(&bench, NULL, bytes),
                                  .lse = put(&bench, NULL, bytes)};
    pass(sim_head_score(bench.device, &args, chunk));
    get(&bench, turned.logprob, args.logprob, bytes);
    get(&bench, turned.entropy, args.entropy, bytes);
    get(&bench, turned.extra, args.lse, bytes);
    for (int i = 0; i < ENTRIES; i++) {
        out->token[rows[i]] = targets[i];
        out->logprob[rows[i]] = turned.logprob[i];
        out->entropy[rows[i]] = turned.entropy[i];
        out->extra[rows[i]] = turned.extra[i];
    }
    bench_close(&bench);
}

static bool same_entries(const head_result_t *a, int at, const head_result_t *b, int first, int count, bool extra) {
    size_t bytes = sizeof(float) * (size_t)count;
    return !memcmp(a->token + at, b->token + first, bytes) && !memcmp(a->logprob + at, b->logprob + first, bytes) &&
           !memcmp(a->entropy + at, b->entropy + first, bytes) &&
           (!extra || !memcmp(a->extra + at, b->extra + first, bytes));
}

// What is sampled, in batches of any size, has the log-prob and the entropy that its score has.
void test_matrix_sampled(void **state) {
    (void)state;
    static const int batches[] = {1, 17, 64};
    for (int round = 0; round < 3; round++) {
        bool half = round > 0, greedy = round == 2;
        float temperature = greedy ? 0.0f : 0.7f, scored = greedy ? 1.0f : temperature;
        head_result_t whole, part, score;
        sample_all(half, 0, ENTRIES, temperature, round == 1 ? 48 : 0, &whole);
        int other = 0;
        for (int i = 0; i < ENTRIES; i++) other += whole.token[i] != whole.token[0];
        assert_true(other > ENTRIES / 2);
        score_all(half, whole.token, scored, 0, &score);
        assert_true(same_entries(&score, 0, &whole, 0, ENTRIES, false));
        if (round == 0) score_all(half, whole.token, scored, 50, &part);
        if (round == 0) assert_true(same_entries(&score, 0, &part, 0, ENTRIES, true));
        for (size_t i = 0; i < (greedy ? 1 : sizeof(batches) / sizeof(batches[0])); i++) {
            int first = ENTRIES - batches[i];
            sample_all(half, first, batches[i], temperature, 0, &part);
            if (!same_entries(&whole, first, &part, 0, batches[i], true))
                fail_msg("a batch of %d has other bits", batches[i]);
        }
    }
}

// ---- backward: chunks of ids, and entries that share rows ----

typedef struct head_gradients {
    float dhidden[ENTRIES * HIDDEN];
    int64_t sum[WORDS * HIDDEN];
} head_gradients_t;

static void backward_all(const char *name, bool half, int chunk, head_gradients_t *out) {
    bench_t bench = bench_open(name);
    enum { COUNT = 70 };
    static const int32_t start[] = {0, 20, 21, COUNT};
    size_t bytes = sizeof(float) * COUNT;
    int32_t rows[COUNT], targets[COUNT];
    for (int i = 0; i < COUNT; i++) {
        rows[i] = i % 5 == 0 ? 3 : i % 7 == 0 ? 90 - i : i; // row 3 and others several times, apart
        targets[i] = i * 29 % WORDS;
    }
    token_logprobs_args_t args = {.hidden = numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                  .weight = numbers(&bench, 2, WORDS, HIDDEN, half),
                                  .temperature = 0.9f,
                                  .count = COUNT,
                                  .rows = put(&bench, rows, bytes),
                                  .targets = put(&bench, targets, bytes),
                                  .logprob = put(&bench, NULL, bytes),
                                  .lse = put(&bench, NULL, bytes)};
    gradient_sink_t sink = sink_open(&bench, (size_t)WORDS * HIDDEN);
    token_logprobs_gradients_t gradients = {.dlogprob = numbers(&bench, 5, 1, COUNT, false).data,
                                            .dhidden = numbers(&bench, 6, ENTRIES, HIDDEN, false),
                                            .weight = &sink,
                                            .leaves = {3, start}};
    pass(bench.device->table->token_logprobs(bench.device, &args));
    if (!strncmp(name, "cpu", 3))
        pass(bench.device->table->token_logprobs_backward(bench.device, &args, &gradients));
    else
        pass(sim_head_backward(bench.device, &args, &gradients, chunk));
    get(&bench, out->dhidden, gradients.dhidden.data, sizeof(out->dhidden));
    get(&bench, out->sum, sink.sum, sizeof(out->sum));
    bench_close(&bench);
}

void test_matrix_shared(void **state) {
    (void)state;
    head_gradients_t *want = malloc(sizeof(*want)), *whole = malloc(sizeof(*whole)), *part = malloc(sizeof(*part));
    assert_true(want && whole && part);
    for (int half = 0; half < 2; half++) {
        backward_all("cpu", half, 0, want);
        backward_all("", half, 0, whole);
        backward_all("reverse", half, 60, part);
        assert_memory_equal(whole, part, sizeof(*part));
        for (int i = 0; i < ENTRIES * HIDDEN; i++)
            assert_true(fabsf(want->dhidden[i] - whole->dhidden[i]) <= 1e-5f * (1.0f + fabsf(want->dhidden[i])));
        for (int i = 0; i < WORDS * HIDDEN; i++)
            assert_true(fabs(ldexp((double)(want->sum[i] - whole->sum[i]), -OP_EXPONENT)) <= 1e-5);
    }
    free(want);
    free(whole);
    free(part);
}

// ---- what is out of range ----

static void faulty(bench_t *bench, const char *what) {
    status_t status = bench->device->table->synchronize(bench->device);
    assert_non_null(status);
    if (!strstr(status_message(status), what)) fail_msg("'%s' should say '%s'", status_message(status), what);
    status_free(status);
    pass(bench->device->table->synchronize(bench->device)); // it is told once
}

// Entry 1 has the row and the target that are given; the others stay right.
static void fault_score(int row, int target) {
    bench_t bench = bench_open("");
    int32_t rows[3] = {0, row, 2}, targets[3] = {1, target, 3};
    float logprob[3] = {5, 5, 5}, lse[3], dhidden[4 * HIDDEN], want[4 * HIDDEN];
    token_logprobs_args_t args = {.hidden = numbers(&bench, 1, 4, HIDDEN, false),
                                  .weight = numbers(&bench, 2, WORDS, HIDDEN, false),
                                  .temperature = 1.0f,
                                  .count = 3,
                                  .rows = put(&bench, rows, sizeof(rows)),
                                  .targets = put(&bench, targets, sizeof(targets)),
                                  .logprob = put(&bench, logprob, sizeof(logprob)),
                                  .lse = put(&bench, logprob, sizeof(logprob))};
    token_logprobs_gradients_t gradients = {.dlogprob = numbers(&bench, 5, 1, 3, false).data,
                                            .dhidden = numbers(&bench, 6, 4, HIDDEN, false)};
    get(&bench, want, gradients.dhidden.data, sizeof(want));
    pass(bench.device->table->token_logprobs(bench.device, &args));
    faulty(&bench, "token_logprobs: an index");
    get(&bench, logprob, args.logprob, sizeof(logprob));
    get(&bench, lse, args.lse, sizeof(lse));
    assert_true(logprob[1] == 5 && lse[1] == 5 && logprob[0] < 0 && logprob[2] < 0);
    pass(bench.device->table->token_logprobs_backward(bench.device, &args, &gradients));
    faulty(&bench, "token_logprobs: an index");
    get(&bench, dhidden, gradients.dhidden.data, sizeof(dhidden));
    assert_memory_equal(dhidden + HIDDEN, want + HIDDEN, HIDDEN * sizeof(float));
    assert_memory_equal(dhidden + 3 * HIDDEN, want + 3 * HIDDEN, HIDDEN * sizeof(float));
    assert_memory_not_equal(dhidden, want, HIDDEN * sizeof(float));
    assert_memory_not_equal(dhidden + 2 * HIDDEN, want + 2 * HIDDEN, HIDDEN * sizeof(float));
    bench_close(&bench);
}

static void fault_sample(int banned, float temperature, float uniform, float first, const char *what) {
    bench_t bench = bench_open("");
    float hidden[HIDDEN] = {first};
    int32_t token = 5;
    token_sample_args_t args = {.hidden = matrix_view(put(&bench, hidden, sizeof(hidden)), DTYPE_F32, 1, HIDDEN),
                                .weight = numbers(&bench, 2, WORDS, HIDDEN, false),
                                .temperature = put(&bench, &temperature, sizeof(float)),
                                .uniform = put(&bench, &uniform, sizeof(float)),
                                .banned = put(&bench, &banned, sizeof(banned)),
                                .banned_count = 1,
                                .token = put(&bench, NULL, sizeof(int32_t)),
                                .logprob = put(&bench, NULL, sizeof(float))};
    pass(bench.device->table->token_sample(bench.device, &args));
    if (what)
        faulty(&bench, what);
    else
        get(&bench, &token, args.token, sizeof(token));
    assert_true(token >= 0 && token < WORDS);
    bench_close(&bench);
}

void test_matrix_faults(void **state) {
    (void)state;
    fault_score(4, 2);
    fault_score(-1, 2);
    fault_score(1, WORDS);
    fault_score(1, -1);
    fault_sample(3, 1.0f, 0.5f, 1.0f, NULL);
    fault_sample(WORDS, 1.0f, 0.5f, 1.0f, "token_sample: an index");
    fault_sample(-1, 0.0f, 0.5f, 1.0f, "token_sample: an index");
    fault_sample(3, -1.0f, 0.5f, 1.0f, "token_sample");
    fault_sample(3, 1.0f, 1.0f, 1.0f, "token_sample");
    fault_sample(3, 1.0f, 0.5f, NAN, "not finite");
    fault_sample(3, 0.0f, 0.5f, INFINITY, "not finite");
}
