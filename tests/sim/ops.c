// Rows of the op list on the simulator: against the double reference, finite differences, in other company, and against
// the CPU kernels.
#include "tests/ops/parts/ops.h"
#include "kernels/sim/sim_device.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const op_case_t cases[] = {
    {&op_embedding, "small", {70, 37, 19}},
    {&op_embedding, "wide", {20, 256, 50}},
    {&op_rmsnorm, "qwen", {67, 48, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "qwen, odd", {30, 83, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "gemma", {35, 256, NORM_ONE_PLUS_WEIGHT}},
    {&op_rmsnorm, "one column", {9, 1, NORM_ONE_PLUS_WEIGHT}},
    {&op_add, "odd", {40, 51}},
    {&op_rope_table, "three axes", {50, 20}},
    {&op_rope, "head 32", {40, 16, 6}},
    {&op_rope, "head 10", {33, 5, 3}},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };
// Forward alone: tiles and edges of both products.
static const op_case_t products[] = {
    {&op_linear, "plain", {33, 70, 41}},
    {&op_linear, "bias", {70, 48, 130, 0, 1}},
    {&op_linear, "one row", {1, 33, 65}},
    {&op_linear, "whole tiles", {64, 96, 64, 0, 1}},
};
enum { PRODUCTS = sizeof(products) / sizeof(products[0]) };
static const char *const orders[] = {"forward", "reverse", "shuffled:1"};
enum { ORDERS = sizeof(orders) / sizeof(orders[0]) };

static device_t *open_sim(const char *order) {
    device_t *device;
    status_t status = device_open_table(&device_sim_table, order, 1, &device);
    if (status) fail_msg("%s", status_message(status));
    return device;
}

static op_t forward_of(const op_t *op) {
    op_t forward = *op;
    forward.run_backward = NULL;
    return forward;
}

void test_ops_reference(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = forward_of(&op_linear);
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) failures += harness_compare_on(&cases[i], device);
    for (int i = 0; i < PRODUCTS; i++) {
        op_case_t row = products[i];
        row.op = &linear;
        failures += harness_compare_on(&row, device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

void test_ops_gradients(void **state) {
    (void)state;
    int failures = 0;
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) failures += harness_gradients_on(&cases[i], device);
    device_close(device);
    assert_int_equal(failures, 0);
}

// A row's bits are the same in every batch.
void test_ops_rows(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = forward_of(&op_linear);
    device_t *device = open_sim("");
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < PRODUCTS + CASES; i++) {
            op_case_t row = i < CASES ? cases[i] : products[i - CASES];
            if (i >= CASES) row.op = &linear;
            if (i >= CASES && row.shape[0] > 40) continue; // every batch size on each takes long
            row.shape[OP_HALF] = half;
            failures += harness_invariance_on(&row, device);
        }
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

static void run_on(const op_case_t *row, device_t *device, problem_t *out) {
    status_t status = problem_open(out, row, 8);
    if (!status) status = problem_run(out, device);
    if (status) fail_msg("%s/%s on %s: %s", row->op->name, row->name, device->table->name, status_message(status));
}

// The norms sum in another order than the CPU's: close, within the rounding of what is kept.
static int compare_close(const op_case_t *row, const problem_t *a, const problem_t *b) {
    double bound = row->shape[OP_HALF] ? 0x1p-7 : 1e-6;
    for (int i = 0; i < a->tensors; i++)
        for (int64_t e = 0; e < a->tensor[i].rows * a->tensor[i].stride; e++) {
            double x = (double)a->tensor[i].value[e], y = (double)b->tensor[i].value[e];
            double dx = (double)a->tensor[i].gradient[e], dy = (double)b->tensor[i].gradient[e];
            if (fabs(x - y) > bound * (1e-3 + fabs(x)) || fabs(dx - dy) > 1e-5 * (1 + fabs(dx)))
                return harness_fail(row, "the simulator is far from the CPU", NULL);
        }
    return 0;
}

// Every order gives the same bits; embedding, add and both products those of the CPU.
void test_ops_cpu_bits(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = forward_of(&op_linear);
    device_t *cpu;
    assert_null(device_open("cpu:portable", 1, &cpu));
    for (int i = 0; i < 2 * (CASES + PRODUCTS); i++) {
        op_case_t row = i / 2 < CASES ? cases[i / 2] : products[i / 2 - CASES];
        row.shape[OP_HALF] = i % 2;
        if (row.op == &op_linear) row.op = &linear;
        problem_t want, first, other;
        run_on(&row, cpu, &want);
        for (int order = 0; order < ORDERS; order++) {
            device_t *device = open_sim(orders[order]);
            run_on(&row, device, order ? &other : &first);
            device_close(device);
            if (!order) continue;
            failures += compare_bits(&row, orders[order], &first, &other);
            problem_close(&other);
        }
        failures +=
            row.op == &op_rmsnorm ? compare_close(&row, &want, &first) : compare_bits(&row, "sim", &want, &first);
        problem_close(&first);
        problem_close(&want);
    }
    device_close(cpu);
    assert_int_equal(failures, 0);
}
