// Backward's products on the tensor cores: the bits of a row's and of a leaf's gradient in other company, whatever
// tiles they fall into; and how near they are to sums in double.
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

// One linear in bf16 with an adapter: all gradients of the rows first .. first + rows - 1 of a large problem.
typedef struct part {
    int rows, k, n, rank, first;
    leaves_t leaves; // over the part's rows
    float *dx;
    int64_t *sum[4]; // weight, bias, lora a, lora b
    size_t count[4];
} part_t;

static part_t part_open(int rows, int k, int n, int rank, int first) {
    part_t part = {.rows = rows,
                   .k = k,
                   .n = n,
                   .rank = rank,
                   .first = first,
                   .count = {(size_t)n * (size_t)k, (size_t)n, (size_t)rank * (size_t)k, (size_t)n * (size_t)rank}};
    part.dx = calloc((size_t)rows * (size_t)k, sizeof(*part.dx));
    assert_non_null(part.dx);
    for (int i = 0; i < 4; i++) assert_non_null(part.sum[i] = calloc(part.count[i], sizeof(int64_t)));
    return part;
}

static void part_close(part_t *part) {
    free(part->dx);
    for (int i = 0; i < 4; i++) free(part->sum[i]);
}

static matrix_t part_rows(matrix_t m, const part_t *part) {
    m.data = (char *)m.data + (size_t)(part->first * m.stride) * dtype_bytes(m.dtype);
    m.rows = part->rows;
    return m;
}

// Runs the part on the simulator; sums are added to what is there.
static void part_run(part_t *part, const char *order) {
    bench_t bench = bench_open(order);
    int rows = part->first + part->rows, k = part->k, n = part->n, r = part->rank;
    linear_args_t args = {.x = part_rows(bench_numbers(&bench, 1, rows, k, true), part),
                          .weight = bench_numbers(&bench, 2, n, k, true),
                          .y = bench_numbers(&bench, 4, part->rows, n, true),
                          .lora_a = bench_numbers(&bench, 5, r, k, true),
                          .lora_b = bench_numbers(&bench, 6, n, r, true),
                          .lora_xa = part_rows(bench_numbers(&bench, 7, rows, r, true), part),
                          .lora_scale = 0.75f};
    gradient_sink_t sink[4];
    for (int i = 0; i < 4; i++) sink[i] = bench_sink(&bench, part->count[i]);
    bool sums = part->leaves.count > 0;
    linear_gradients_t gradients = {.dy = part_rows(bench_long_numbers(&bench, 8, rows, n), part),
                                    .dx = bench_numbers(&bench, 9, part->rows, k, false),
                                    .weight = sums ? &sink[0] : NULL,
                                    .bias = sums ? &sink[1] : NULL,
                                    .lora_a = sums ? &sink[2] : NULL,
                                    .lora_b = sums ? &sink[3] : NULL,
                                    .leaves = part->leaves};
    bench_pass(bench.device->table->zero(bench.device, gradients.dx.data, (size_t)part->rows * (size_t)k * 4));
    bench_pass(bench.device->table->linear_backward(bench.device, &args, &gradients));
    bench_get(&bench, part->dx, gradients.dx.data, (size_t)part->rows * (size_t)k * sizeof(float));
    for (int i = 0; i < 4; i++) {
        int64_t *found = malloc(part->count[i] * sizeof(*found));
        assert_non_null(found);
        bench_get(&bench, found, sink[i].sum, part->count[i] * sizeof(*found));
        for (size_t e = 0; e < part->count[i]; e++) part->sum[i][e] += found[e];
        free(found);
    }
    bench_close(&bench);
}

// A row's dx: with 600 others in large tiles, with fewer in medium ones, alone in small ones.
void test_backward_rows(void **state) {
    (void)state;
    enum { ROWS = 600, K = 772, N = 40, R = 5 };
    static const int first[] = {0, 37, 100, 599}, count[] = {1, 17, 300, 1};
    part_t whole = part_open(ROWS, K, N, R, 0);
    part_run(&whole, "");
    for (size_t i = 0; i < sizeof(first) / sizeof(first[0]); i++) {
        part_t part = part_open(count[i], K, N, R, first[i]);
        part_run(&part, "shuffled:2");
        assert_memory_equal(part.dx, whole.dx + first[i] * K, (size_t)count[i] * K * sizeof(float));
        part_close(&part);
    }
    part_close(&whole);
}

// A leaf's contribution: among others (large tiles, some leaves empty or of one row) and by itself, with any tiles.
void test_backward_leaves(void **state) {
    (void)state;
    static const int32_t start[] = {0, 40, 40, 41, 100, 133};
    static const struct { int k, n, rank; } shapes[] = {{520, 200, 8}, {100, 70, 3}};
    enum { LEAVES = 5 };
    for (int shape = 0; shape < 2; shape++) {
        part_t whole = part_open(start[LEAVES], shapes[shape].k, shapes[shape].n, shapes[shape].rank, 0);
        whole.leaves = (leaves_t){LEAVES, start};
        part_run(&whole, "reverse");
        part_t sum = part_open(1, whole.k, whole.n, whole.rank, 0);
        for (int i = 0; i < LEAVES; i++) {
            int32_t alone[2] = {0, start[i + 1] - start[i]};
            if (!alone[1]) continue;
            part_t leaf = part_open(alone[1], whole.k, whole.n, whole.rank, start[i]);
            leaf.leaves = (leaves_t){1, alone};
            part_run(&leaf, "");
            for (int p = 0; p < 4; p++)
                for (size_t e = 0; e < leaf.count[p]; e++) sum.sum[p][e] += leaf.sum[p][e];
            part_close(&leaf);
        }
        for (int p = 0; p < 4; p++) assert_memory_equal(sum.sum[p], whole.sum[p], whole.count[p] * sizeof(int64_t));
        part_close(&sum);
        part_close(&whole);
    }
}

// ---- against sums in double ----

// The largest error of sums, in units of the sum of what their terms weigh; and the root mean square of both.
typedef struct error {
    double worst, square, total;
    int64_t count;
} error_t;
static void error_add(error_t *error, double got, double want, double weight) {
    error->worst = fmax(error->worst, fabs(got - want) / weight);
    error->square += (got - want) * (got - want);
    error->total += want * want;
    error->count++;
}

static double as_kept(double x) {
    return (double)bf16_widen(bf16_round((float)x));
}

// dx = dy W and dW = dy^T x of long numbers. parts: of the reference, 2 as the kernels should compute, 1 to show what
// the bound tells apart.
static void exact_products(const part_t *part, int parts, error_t *dx, error_t *dw) {
    int m = part->rows, k = part->k, n = part->n;
    double *dy = malloc(sizeof(double) * (size_t)m * (size_t)n), *used = malloc(sizeof(double) * (size_t)m * (size_t)n);
    assert_true(dy && used);
    for (int i = 0; i < m * n; i++) {
        dy[i] = (double)bench_long_number(8, i);
        used[i] = parts == 1 ? as_kept(dy[i]) : dy[i];
    }
    for (int i = 0; i < m; i++)
        for (int c = 0; c < k; c++) {
            double want = 0, weight = 0, cut = 0;
            for (int j = 0; j < n; j++) {
                double w = (double)bench_number(2, (int64_t)j * k + c);
                want += dy[i * n + j] * w, weight += fabs(dy[i * n + j] * w), cut += used[i * n + j] * w;
            }
            error_add(dx, parts == 1 ? cut : (double)part->dx[i * k + c], want, weight);
        }
    for (int j = 0; j < n; j++)
        for (int c = 0; c < k; c++) {
            double want = 0, weight = 0, cut = 0;
            for (int i = 0; i < m; i++) {
                double x = (double)bench_number(1, (int64_t)i * k + c);
                want += dy[i * n + j] * x, weight += fabs(dy[i * n + j] * x), cut += used[i * n + j] * x;
            }
            double got = ldexp((double)part->sum[0][j * k + c], -OP_EXPONENT);
            error_add(dw, parts == 1 ? cut : got, want, weight);
        }
    free(dy);
    free(used);
}

// Two bf16 parts: no sum is off by more than 2^-17 of its terms and what fp32 sums lose. One part is off by far more,
// so that this test tells them apart.
void test_backward_parts(void **state) {
    (void)state;
    static const int32_t start[] = {0, 256};
    part_t part = part_open(256, 24, 256, 1, 0);
    part.leaves = (leaves_t){1, start};
    bench_t bench = bench_open("");
    linear_args_t args = {.x = bench_numbers(&bench, 1, part.rows, part.k, true),
                          .weight = bench_numbers(&bench, 2, part.n, part.k, true),
                          .y = bench_numbers(&bench, 4, part.rows, part.n, true)};
    gradient_sink_t sink = bench_sink(&bench, part.count[0]);
    linear_gradients_t gradients = {.dy = bench_long_numbers(&bench, 8, part.rows, part.n),
                                    .dx = bench_numbers(&bench, 9, part.rows, part.k, false),
                                    .weight = &sink,
                                    .leaves = part.leaves};
    size_t bytes = (size_t)part.rows * (size_t)part.k * sizeof(float);
    bench_pass(bench.device->table->zero(bench.device, gradients.dx.data, bytes));
    bench_pass(bench.device->table->linear_backward(bench.device, &args, &gradients));
    bench_get(&bench, part.dx, gradients.dx.data, bytes);
    bench_get(&bench, part.sum[0], sink.sum, part.count[0] * sizeof(int64_t));
    bench_close(&bench);
    error_t error[2][2] = {0};
    for (int parts = 1; parts <= 2; parts++) {
        error_t *of = error[parts - 1];
        exact_products(&part, parts, &of[0], &of[1]);
        for (int i = 0; i < 2; i++)
            printf("  %s, %d bf16 part%s of dy: off by 2^%.1f of the terms at most, 2^%.1f of the sums (rms)\n",
                   i ? "dW" : "dx", parts, parts > 1 ? "s" : "", log2(of[i].worst),
                   log2(sqrt(of[i].square / of[i].total)));
    }
    for (int i = 0; i < 2; i++) {
        assert_true(error[1][i].worst <= 0x1p-17);
        assert_true(error[0][i].worst > 0x1p-13);
    }
    part_close(&part);
}

// ---- attention: a sequence's gradients alone and in other company ----

enum { TOKENS = 90, OTHERS = 75, HEADS = 2, SIZE = 40, WIDTH = HEADS * SIZE };
typedef struct attended {
    float dq[TOKENS * WIDTH], dk[TOKENS * SIZE], dv[TOKENS * SIZE];
} attended_t;

// The sequence's rows begin at `first` of all rows; before and behind it are those of others.
static void attended_run(bool half, int before, int behind, const char *order, attended_t *out) {
    bench_t bench = bench_open(order);
    int rows = before + TOKENS + behind, sequences = 0;
    int32_t start[4] = {0}, position[3] = {0}, row[2 * OTHERS + TOKENS];
    for (int i = 0; i < rows; i++) row[i] = i;
    if (before) start[++sequences] = before;
    int own = start[sequences];
    start[++sequences] = own + TOKENS;
    if (behind) start[++sequences] = rows;
    // Rows have the numbers of where they stand from the sequence's first one.
    matrix_t m[9];
    static const int columns[] = {WIDTH, SIZE, SIZE, WIDTH, WIDTH, WIDTH, SIZE, SIZE};
    for (int i = 0; i < 8; i++) {
        bool stored = i < 4, cut = stored && half;
        size_t count = (size_t)rows * (size_t)columns[i], each = cut ? 2 : 4;
        char *value = calloc(count, each);
        assert_non_null(value);
        for (size_t e = 0; i != 3 && i < 5 && e < count; e++) {
            float x = bench_long_number(i + 1, (int64_t)e - (int64_t)own * columns[i]);
            uint16_t bits = bf16_round(x);
            memcpy(value + e * each, cut ? (void *)&bits : (void *)&x, each);
        }
        m[i] = matrix_view(bench_put(&bench, value, count * each), cut ? DTYPE_BF16 : DTYPE_F32, rows, columns[i]);
        free(value);
    }
    int32_t *list = bench_put(&bench, start, sizeof(start));
    attention_args_t args = {.q = m[0],
                             .k = m[1],
                             .v = m[2],
                             .heads = HEADS,
                             .kv_heads = 1,
                             .head_dim = SIZE,
                             .scale = 0.2f,
                             .mask = {.sequences = sequences,
                                      .query_start = list,
                                      .query_position = bench_put(&bench, position, sizeof(position)),
                                      .key_start = list,
                                      .key_row = bench_put(&bench, row, sizeof(row)),
                                      .causal = true},
                             .out = m[3],
                             .lse = bench_put(&bench, NULL, (size_t)rows * HEADS * sizeof(float))};
    attention_gradients_t gradients = {m[4], m[5], m[6], m[7]};
    bench_pass(bench.device->table->attention(bench.device, &args));
    bench_pass(bench.device->table->attention_backward(bench.device, &args, &gradients));
    bench_get(&bench, out->dq, (float *)m[5].data + own * WIDTH, sizeof(out->dq));
    bench_get(&bench, out->dk, (float *)m[6].data + own * SIZE, sizeof(out->dk));
    bench_get(&bench, out->dv, (float *)m[7].data + own * SIZE, sizeof(out->dv));
    bench_close(&bench);
}

void test_backward_attention(void **state) {
    (void)state;
    static const int before[] = {0, 1, OTHERS}, behind[] = {OTHERS, 0, 30};
    attended_t *alone = malloc(sizeof(*alone)), *other = malloc(sizeof(*other));
    assert_true(alone && other);
    for (int half = 0; half < 2; half++) {
        attended_run(half, 0, 0, "", alone);
        for (int i = 0; i < 3; i++) {
            attended_run(half, before[i], behind[i], i % 2 ? "reverse" : "shuffled:4", other);
            assert_memory_equal(alone, other, sizeof(*alone));
        }
    }
    free(alone);
    free(other);
}
