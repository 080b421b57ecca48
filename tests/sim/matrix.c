// linear and the head on the simulator: every row of the op list that they have, against the double reference, finite
// differences, the CPU kernels, other orders of threads and other company.
#include "kernels/device.h"
#include "tests/ops/parts/ops.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

// linear: rows, K, N, rank of the adapter, bias.
static const op_case_t cases[] = {
    {&op_linear, "plain", {33, 70, 41}},
    {&op_linear, "one row", {1, 33, 65}},
    {&op_linear, "bias", {70, 48, 130, 0, 1}},
    {&op_linear, "adapter", {29, 96, 50, 4}},
    {&op_linear, "adapter, bias", {40, 33, 64, 8, 1}},
    {&op_linear, "aligned, adapter", {64, 40, 64, 16, 1}},
    {&op_token_logprobs, "all rows", {33, 24, 150, 0, 10}},
    {&op_token_logprobs, "half the rows", {20, 40, 333, 1, 7}},
    {&op_token_logprobs, "one id", {5, 7, 1, 0, 10}},
    {&op_token_sample, "plain", {40, 24, 150}},
    {&op_token_sample, "banned ids", {35, 33, 600, 20}},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };
// Large enough for the large tiles; forward alone.
static const op_case_t large[] = {
    {&op_linear, "large tiles", {640, 40, 836, 0, 1}},
    {&op_linear, "large tiles, adapter", {650, 33, 772, 5, 1}},
    {&op_linear, "medium tiles, adapter", {260, 72, 520, 8, 1}},
};
enum { LARGE = sizeof(large) / sizeof(large[0]) };
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

void test_matrix_reference(void **state) {
    (void)state;
    int failures = 0;
    op_t linear = forward_of(&op_linear);
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) failures += harness_compare_on(&cases[i], device);
    for (int i = 0; i < LARGE; i++) {
        op_case_t row = large[i];
        row.op = &linear;
        failures += harness_compare_on(&row, device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

void test_matrix_gradients(void **state) {
    (void)state;
    int failures = 0;
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) failures += harness_gradients_on(&cases[i], device);
    device_close(device);
    assert_int_equal(failures, 0);
}

// A row's bits are the same in every batch.
void test_matrix_rows(void **state) {
    (void)state;
    int failures = 0;
    device_t *device = open_sim("");
    for (int i = 0; i < 2 * CASES; i++) {
        op_case_t row = cases[i / 2];
        row.shape[OP_HALF] = i % 2;
        failures += harness_invariance_on(&row, device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

static void run_on(const op_case_t *row, device_t *device, problem_t *out) {
    status_t status = problem_open(out, row, 8);
    if (!status) status = problem_run(out, device);
    if (status) fail_msg("%s/%s on %s: %s", row->op->name, row->name, device->table->name, status_message(status));
}

// Every order of threads gives the same bits, those of the CPU: outputs, gradients and exact sums.
void test_matrix_bits(void **state) {
    (void)state;
    int failures = 0;
    device_t *cpu;
    assert_null(device_open("cpu:portable", 1, &cpu));
    for (int i = 0; i < 2 * (CASES + LARGE); i++) {
        op_case_t row = i / 2 < CASES ? cases[i / 2] : large[i / 2 - CASES];
        row.shape[OP_HALF] = i % 2;
        problem_t want, got;
        run_on(&row, cpu, &want);
        for (int order = 0; order < (i / 2 < CASES ? ORDERS : 1); order++) {
            device_t *device = open_sim(orders[order]);
            run_on(&row, device, &got);
            device_close(device);
            failures += compare_bits(&row, orders[order], &want, &got);
            problem_close(&got);
        }
        problem_close(&want);
    }
    device_close(cpu);
    assert_int_equal(failures, 0);
}
