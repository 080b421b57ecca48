// The op list on the simulator: every row whose op the member has, under every check that the CPU's kernels pass, and
// against the CPU's kernels. Here rows are computed in other company in fewer sizes of batches.
#include "tests/ops/parts/ops.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const orders[] = {"forward", "reverse", "shuffled:1"};
enum { ORDERS = sizeof(orders) / sizeof(orders[0]) };

// Ops that sum in another order than the CPU's kernels; all others have their bits, but for gradients of bf16 matrices
// that the tensor cores make (HALF_SPLIT).
static const op_t *const close_ops[] = {&op_attention, &op_token_logprobs, &op_token_sample};
enum { CLOSE_OPS = sizeof(close_ops) / sizeof(close_ops[0]) };

static device_t *open_sim(const char *order) {
    device_t *device;
    status_t status = device_open_table(&device_sim_table, order, 1, &device);
    if (status) fail_msg("%s", status_message(status));
    return device;
}

// Row i of the op list for the simulator; false: its op is missing there, or it is not asked for (`word`: a part of
// the op's name or the row's). *op is the row's op, without its backward where that is missing.
static bool sim_row(int i, const char *word, op_case_t *row, op_t *op) {
    *row = op_cases[i];
    *op = *row->op;
    row->op = op;
    if (word && !strstr(op->name, word) && !strstr(row->name, word)) return false;
    if (!op_member(&device_sim_table, op->name)) return false;
    if (op->backward && !op_member(&device_sim_table, op->backward)) {
        op->run_backward = NULL;
        op->finish_backward = NULL;
        if (op_cases[i].op == &op_linear && row->shape[3]) return false; // adapters come with the backward
    }
    return true;
}

// One check over all rows; aligned: as those of a model lie.
static void check_rows(const char *word, bool half, bool aligned,
                       int (*check)(const op_case_t *row, device_t *device)) {
    int failures = 0;
    device_t *device = open_sim("");
    for (int i = 0; i < op_cases_count; i++) {
        op_case_t row;
        op_t op;
        if (!sim_row(i, word, &row, &op)) continue;
        row.shape[OP_HALF] = half;
        row.shape[OP_ALIGNED] = aligned;
        failures += check(&row, device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

void test_ops_reference(void **state) {
    check_rows(*state, false, false, harness_compare_on);
    check_rows(*state, false, true, harness_compare_on);
}

// In bf16 where only the tensor cores' two parts stand between gradients and finite differences.
static int half_gradients_on(const op_case_t *row, device_t *device) {
    int inexact = row->op->inexact ? row->op->inexact(row->shape) : 0;
    return inexact == HALF_SPLIT ? harness_gradients_on(row, device) : 0;
}

void test_ops_gradients(void **state) {
    check_rows(*state, false, false, harness_gradients_on);
    check_rows(*state, true, true, half_gradients_on);
}

// A row's bits are the same in every batch.
void test_ops_rows(void **state) {
    check_rows(*state, false, false, harness_invariance_on);
    check_rows(*state, true, true, harness_invariance_on);
}

void test_ops_half(void **state) {
    check_rows(*state, true, false, harness_half_on);
    check_rows(*state, true, true, harness_half_on);
}

static void run_on(const op_case_t *row, device_t *device, problem_t *out) {
    status_t status = problem_open(out, row, 8);
    if (!status) status = problem_run(out, device);
    if (status) fail_msg("%s/%s on %s: %s", row->op->name, row->name, device->table->name, status_message(status));
}

enum { CLOSE_VALUE, CLOSE_GRADIENT, CLOSE_SUM, CLOSE_PARTS };

static double close_element(const op_tensor_t *t, int part, int64_t row, int64_t column) {
    if (part == CLOSE_SUM) return (double)t->sum[row * t->columns + column];
    return (double)(part == CLOSE_VALUE ? t->value : t->gradient)[row * t->stride + column];
}

static bool close_part(const op_tensor_t *a, const op_tensor_t *b, int part, double bound) {
    double squares = 0, count = fmax(1.0, (double)a->rows * a->columns);
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t c = 0; c < a->columns; c++) squares += pow(close_element(a, part, r, c), 2);
    double mean = sqrt(squares / count);
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t c = 0; c < a->columns; c++) {
            double x = close_element(a, part, r, c), y = close_element(b, part, r, c);
            if (x != y && !(fabs(x - y) <= bound * (fabs(x) + mean))) return false;
        }
    return true;
}

static bool row_close(const op_case_t *row) {
    for (int i = 0; i < CLOSE_OPS; i++)
        if (!strcmp(close_ops[i]->name, row->op->name)) return true;
    return false;
}

// How far one tensor's part may be from the CPU's; 0: no bit.
static double close_bound(const op_case_t *row, const op_tensor_t *t, int part) {
    int inexact = row->shape[OP_HALF] && row->op->inexact ? row->op->inexact(row->shape) : 0;
    bool close = row_close(row);
    if (part == CLOSE_VALUE) return !close ? 0 : t->half ? 0x1p-7 : 4e-6;
    if (part == CLOSE_GRADIENT && inexact & HALF_TENSOR) return 0x1p-4;
    return inexact & HALF_SPLIT ? HALF_SPLIT_BOUND : close ? 4e-6 : 0;
}

// Within the rounding of sums and of what is kept.
static int compare_close(const op_case_t *row, const problem_t *a, const problem_t *b) {
    int failures = 0;
    for (int i = 0; i < a->tensors; i++)
        for (int part = 0; part < CLOSE_PARTS; part++) {
            if (close_part(&a->tensor[i], &b->tensor[i], part, close_bound(row, &a->tensor[i], part))) continue;
            fprintf(stderr, "%s of %s: ", a->tensor[i].name, row->op->name);
            failures += harness_fail(row, "the simulator is far from the CPU", NULL);
        }
    return failures;
}

// Whether all bits are the CPU's.
static bool row_exact(const op_case_t *row) {
    int inexact = row->shape[OP_HALF] && row->op->inexact ? row->op->inexact(row->shape) : 0;
    return !row_close(row) && !(inexact & HALF_SPLIT);
}

// Every order gives the same bits: those of the CPU, or close to them.
static int check_orders(const op_case_t *row, device_t *cpu) {
    problem_t want, first, other;
    int failures = 0;
    run_on(row, cpu, &want);
    for (int order = 0; order < ORDERS; order++) {
        device_t *device = open_sim(orders[order]);
        run_on(row, device, order ? &other : &first);
        device_close(device);
        if (!order) continue;
        failures += compare_bits(row, orders[order], &first, &other);
        problem_close(&other);
    }
    failures += row_exact(row) ? compare_bits(row, "sim", &want, &first) : compare_close(row, &want, &first);
    problem_close(&first);
    problem_close(&want);
    return failures;
}

void test_ops_cpu_bits(void **state) {
    int failures = 0;
    device_t *cpu;
    assert_null(device_open("cpu:portable", 1, &cpu));
    for (int i = 0; i < 2 * op_cases_count; i++) {
        op_case_t row;
        op_t op;
        if (!sim_row(i / 2, *state, &row, &op)) continue;
        row.shape[OP_HALF] = i % 2;
        failures += check_orders(&row, cpu);
    }
    device_close(cpu);
    assert_int_equal(failures, 0);
}

// Says what is missing, once an op.
void test_ops_missing(void **state) {
    (void)state;
    for (int i = 0; i < op_cases_count; i++) {
        const op_t *op = op_cases[i].op;
        if (i && op_cases[i - 1].op == op) continue;
        if (!op_member(&device_sim_table, op->name)) printf("  the simulator has no %s\n", op->name);
        if (op->backward && !op_member(&device_sim_table, op->backward))
            printf("  the simulator has no %s\n", op->backward);
    }
}
