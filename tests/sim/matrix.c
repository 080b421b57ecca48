// What the op list does not ask of linear and the head: large tiles, mixed storage, many leaves, chunks, entries that
// share a row, sampled tokens scored again, and what is out of range.
#include "kernels/cuda/head.h"
#include "kernels/device.h"
#include "tests/ops/parts/ops.h"
#include "tests/sim/bench.h"
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
    {&op_linear, "large tiles of the input's gradient", {650, 776, 12, 5, 1}},
    {&op_linear, "medium tiles of gradients", {200, 520, 70, 8, 1}},
};
enum { LARGE = sizeof(large) / sizeof(large[0]), GRADIENTS = 3 };

static size_t matrix_bytes(matrix_t m) {
    return (size_t)m.rows * (size_t)m.columns * dtype_bytes(m.dtype);
}

// ---- large tiles ----

// The CPU's bits; where the tensor cores make the gradients, near them.
static int compare_cpu(const op_case_t *row, const problem_t *want, problem_t *got) {
    int failures = 0;
    for (int i = 0; row->shape[OP_HALF] && row->op->run_backward && i < want->tensors; i++) {
        const op_tensor_t *a = &want->tensor[i];
        op_tensor_t *b = &got->tensor[i];
        double squares[2] = {0}, worst[2] = {0}, count = (double)a->rows * a->columns + 1e-9;
        for (int64_t e = 0; e < (int64_t)a->rows * a->columns; e++) {
            int64_t at = e / a->columns * a->stride + e % a->columns;
            squares[0] += pow((double)a->gradient[at], 2), squares[1] += pow((double)a->sum[e], 2);
            worst[0] = fmax(worst[0], fabs((double)a->gradient[at] - (double)b->gradient[at]));
            worst[1] = fmax(worst[1], fabs((double)(a->sum[e] - b->sum[e])));
            b->gradient[at] = a->gradient[at], b->sum[e] = a->sum[e]; // the rest is compared to the bit
        }
        for (int part = 0; part < 2; part++)
            if (!(worst[part] <= HALF_SPLIT_BOUND * sqrt(squares[part] / count)))
                failures += harness_fail(row, "a gradient is far from the CPU's", NULL);
    }
    return failures + compare_bits(row, "sim", want, got);
}

void test_matrix_tiles(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = op_linear;
    linear.run_backward = NULL;
    for (int i = 0; i < 2 * LARGE; i++) {
        op_case_t row = large[i / 2];
        row.shape[OP_HALF] = i % 2;
        if (i / 2 < GRADIENTS) row.op = &linear; // forward alone
        bench_t cpu = bench_open("cpu"), sim = bench_open("shuffled:3");
        problem_t want, got;
        bench_pass(problem_open(&want, &row, 8));
        bench_pass(problem_open(&got, &row, 8));
        bench_pass(problem_run(&want, cpu.device));
        bench_pass(problem_run(&got, sim.device));
        failures += compare_cpu(&row, &want, &got);
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
    size_t bytes, dx, lora_a; // where these two begin
    unsigned char part[LINEAR_BYTES];
} linear_result_t;

static void linear_keep(bench_t *bench, linear_result_t *out, const void *from, size_t bytes) {
    assert_true(out->bytes + bytes <= LINEAR_BYTES);
    bench_get(bench, out->part + out->bytes, from, bytes);
    out->bytes += bytes;
}

// y, x A^T, dx and all sums of one linear.
static void linear_all(const char *name, const linear_shape_t *shape, linear_result_t *out) {
    bench_t bench = bench_open(name);
    int m = shape->rows, k = shape->k, n = shape->n, r = shape->rank;
    unsigned halves = shape->halves;
    linear_args_t args = {.x = bench_numbers(&bench, 1, m, k, halves & 1),
                          .weight = bench_numbers(&bench, 2, n, k, halves & 2),
                          .bias = bench_numbers(&bench, 3, 1, n, false).data,
                          .y = bench_numbers(&bench, 4, m, n, halves & 4),
                          .lora_a = bench_numbers(&bench, 5, r, k, halves & 8),
                          .lora_b = bench_numbers(&bench, 6, n, r, halves & 16),
                          .lora_xa = bench_numbers(&bench, 7, m, r, halves & 32),
                          .lora_scale = 0.75f};
    size_t counts[4] = {(size_t)n * (size_t)k, (size_t)n, (size_t)r * (size_t)k, (size_t)n * (size_t)r};
    gradient_sink_t sink[4];
    for (int i = 0; i < 4; i++) sink[i] = bench_sink(&bench, counts[i]);
    linear_gradients_t gradients = {.dy = bench_numbers(&bench, 8, m, n, false),
                                    .dx = bench_numbers(&bench, 9, m, k, false),
                                    .weight = &sink[0],
                                    .bias = &sink[1],
                                    .lora_a = &sink[2],
                                    .lora_b = &sink[3],
                                    .leaves = shape->leaves};
    bench_pass(bench.device->table->linear(bench.device, &args));
    bench_pass(bench.device->table->linear_backward(bench.device, &args, &gradients));
    out->bytes = 0;
    linear_keep(&bench, out, args.y.data, matrix_bytes(args.y));
    linear_keep(&bench, out, args.lora_xa.data, matrix_bytes(args.lora_xa));
    out->dx = out->bytes;
    linear_keep(&bench, out, gradients.dx.data, matrix_bytes(gradients.dx));
    for (int i = 0; i < 4; i++) {
        if (i == 2) out->lora_a = out->bytes;
        linear_keep(&bench, out, sink[i].sum, counts[i] * sizeof(int64_t));
    }
    bench_close(&bench);
}

// dy is of numbers that bf16 holds: its second part is zero, and what it makes has the CPU's bits in either engine. The
// adapter's gradient, dy B, is of longer ones: near the CPU's where it meets bf16. Makes those equal.
static void linear_near(const linear_shape_t *shape, const linear_result_t *want, linear_result_t *got) {
    for (int i = 0; shape->halves & 8 && i < shape->rows * shape->k; i++) {
        float x, y;
        memcpy(&x, want->part + want->dx + (size_t)i * sizeof(x), sizeof(x));
        memcpy(&y, got->part + got->dx + (size_t)i * sizeof(y), sizeof(y));
        assert_true(fabsf(x - y) <= 0x1p-13f);
        memcpy(got->part + got->dx + (size_t)i * sizeof(x), &x, sizeof(x));
    }
    for (int i = 0; shape->halves & 1 && i < shape->rank * shape->k; i++) {
        int64_t x, y;
        memcpy(&x, want->part + want->lora_a + (size_t)i * sizeof(x), sizeof(x));
        memcpy(&y, got->part + got->lora_a + (size_t)i * sizeof(y), sizeof(y));
        assert_true(fabs(ldexp((double)(x - y), -OP_EXPONENT)) <= 0x1p-13);
        memcpy(got->part + got->lora_a + (size_t)i * sizeof(x), &x, sizeof(x));
    }
}

static void linear_agrees(const linear_shape_t *shape, const char *order) {
    linear_result_t *want = malloc(sizeof(*want)), *got = malloc(sizeof(*got));
    assert_true(want && got);
    linear_all("cpu", shape, want);
    linear_all(order, shape, got);
    linear_near(shape, want, got);
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
    token_sample_args_t args = {.hidden = bench_numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                .weight = bench_numbers(&bench, 2, WORDS, HIDDEN, half),
                                .temperature = bench_put(&bench, each, bytes),
                                .uniform = bench_put(&bench, uniform, bytes),
                                .banned = bench_put(&bench, banned, sizeof(banned)),
                                .banned_count = 4,
                                .token = bench_put(&bench, NULL, bytes),
                                .logprob = bench_put(&bench, NULL, bytes),
                                .entropy = bench_put(&bench, NULL, bytes),
                                .top_gap = bench_put(&bench, NULL, bytes)};
    args.hidden.data = (char *)args.hidden.data + (size_t)(first * HIDDEN) * dtype_bytes(args.hidden.dtype);
    args.hidden.rows = count;
    bench_pass(sim_head_sample(bench.device, &args, chunk));
    bench_get(&bench, out->token, args.token, bytes);
    bench_get(&bench, out->logprob, args.logprob, bytes);
    bench_get(&bench, out->entropy, args.entropy, bytes);
    bench_get(&bench, out->extra, args.top_gap, bytes);
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
    token_logprobs_args_t args = {.hidden = bench_numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                  .weight = bench_numbers(&bench, 2, WORDS, HIDDEN, half),
                                  .temperature = temperature,
                                  .count = ENTRIES,
                                  .rows = bench_put(&bench, rows, bytes),
                                  .targets = bench_put(&bench, targets, bytes),
                                  .logprob = bench_put(&bench, NULL, bytes),
                                  .entropy = bench_put(&bench, NULL, bytes),
                                  .lse = bench_put(&bench, NULL, bytes)};
    bench_pass(sim_head_score(bench.device, &args, chunk));
    bench_get(&bench, turned.logprob, args.logprob, bytes);
    bench_get(&bench, turned.entropy, args.entropy, bytes);
    bench_get(&bench, turned.extra, args.lse, bytes);
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
    token_logprobs_args_t args = {.hidden = bench_numbers(&bench, 1, ENTRIES, HIDDEN, half),
                                  .weight = bench_numbers(&bench, 2, WORDS, HIDDEN, half),
                                  .temperature = 0.9f,
                                  .count = COUNT,
                                  .rows = bench_put(&bench, rows, bytes),
                                  .targets = bench_put(&bench, targets, bytes),
                                  .logprob = bench_put(&bench, NULL, bytes),
                                  .lse = bench_put(&bench, NULL, bytes)};
    gradient_sink_t sink = bench_sink(&bench, (size_t)WORDS * HIDDEN);
    token_logprobs_gradients_t gradients = {.dlogprob = bench_numbers(&bench, 5, 1, COUNT, false).data,
                                            .dhidden = bench_numbers(&bench, 6, ENTRIES, HIDDEN, false),
                                            .weight = &sink,
                                            .leaves = {3, start}};
    bench_pass(bench.device->table->token_logprobs(bench.device, &args));
    if (!strncmp(name, "cpu", 3))
        bench_pass(bench.device->table->token_logprobs_backward(bench.device, &args, &gradients));
    else
        bench_pass(sim_head_backward(bench.device, &args, &gradients, chunk));
    bench_get(&bench, out->dhidden, gradients.dhidden.data, sizeof(out->dhidden));
    bench_get(&bench, out->sum, sink.sum, sizeof(out->sum));
    bench_close(&bench);
}

void test_matrix_shared(void **state) {
    (void)state;
    head_gradients_t *want = malloc(sizeof(*want)), *whole = malloc(sizeof(*whole)), *part = malloc(sizeof(*part));
    assert_true(want && whole && part);
    for (int half = 0; half < 2; half++) {
        float bound = half ? 0x1p-14f : 1e-5f; // in bf16 the gradients go in two parts
        backward_all("cpu", half, 0, want);
        backward_all("", half, 0, whole);
        backward_all("reverse", half, 60, part);
        assert_memory_equal(whole, part, sizeof(*part));
        for (int i = 0; i < ENTRIES * HIDDEN; i++)
            assert_true(fabsf(want->dhidden[i] - whole->dhidden[i]) <= bound * (1.0f + fabsf(want->dhidden[i])));
        for (int i = 0; i < WORDS * HIDDEN; i++)
            assert_true(fabs(ldexp((double)(want->sum[i] - whole->sum[i]), -OP_EXPONENT)) <= (double)bound);
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
    bench_pass(bench->device->table->synchronize(bench->device)); // it is told once
}

// Entry 1 has the row and the target that are given; the others stay right.
static void fault_score(int row, int target) {
    bench_t bench = bench_open("");
    int32_t rows[3] = {0, row, 2}, targets[3] = {1, target, 3};
    float logprob[3] = {5, 5, 5}, lse[3], dhidden[4 * HIDDEN], want[4 * HIDDEN];
    token_logprobs_args_t args = {.hidden = bench_numbers(&bench, 1, 4, HIDDEN, false),
                                  .weight = bench_numbers(&bench, 2, WORDS, HIDDEN, false),
                                  .temperature = 1.0f,
                                  .count = 3,
                                  .rows = bench_put(&bench, rows, sizeof(rows)),
                                  .targets = bench_put(&bench, targets, sizeof(targets)),
                                  .logprob = bench_put(&bench, logprob, sizeof(logprob)),
                                  .lse = bench_put(&bench, logprob, sizeof(logprob))};
    token_logprobs_gradients_t gradients = {.dlogprob = bench_numbers(&bench, 5, 1, 3, false).data,
                                            .dhidden = bench_numbers(&bench, 6, 4, HIDDEN, false)};
    bench_get(&bench, want, gradients.dhidden.data, sizeof(want));
    bench_pass(bench.device->table->token_logprobs(bench.device, &args));
    faulty(&bench, "token_logprobs: an index");
    bench_get(&bench, logprob, args.logprob, sizeof(logprob));
    bench_get(&bench, lse, args.lse, sizeof(lse));
    assert_true(logprob[1] == 5 && lse[1] == 5 && logprob[0] < 0 && logprob[2] < 0);
    bench_pass(bench.device->table->token_logprobs_backward(bench.device, &args, &gradients));
    faulty(&bench, "token_logprobs: an index");
    bench_get(&bench, dhidden, gradients.dhidden.data, sizeof(dhidden));
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
    token_sample_args_t args = {.hidden = matrix_view(bench_put(&bench, hidden, sizeof(hidden)), DTYPE_F32, 1, HIDDEN),
                                .weight = bench_numbers(&bench, 2, WORDS, HIDDEN, false),
                                .temperature = bench_put(&bench, &temperature, sizeof(float)),
                                .uniform = bench_put(&bench, &uniform, sizeof(float)),
                                .banned = bench_put(&bench, &banned, sizeof(banned)),
                                .banned_count = 1,
                                .token = bench_put(&bench, NULL, sizeof(int32_t)),
                                .logprob = bench_put(&bench, NULL, sizeof(float))};
    bench_pass(bench.device->table->token_sample(bench.device, &args));
    if (what)
        faulty(&bench, what);
    else
        bench_get(&bench, &token, args.token, sizeof(token));
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
