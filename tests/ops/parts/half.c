// bf16: an op on bf16 matrices gives what fp32 gives for the same values, rounded once where it is kept.
#include "tests/ops/parts/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const sets[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
enum { SETS = 3, PRINTED = 4 };

static status_t half_run_on(const op_case_t *row, bool half, device_t *device, problem_t *out) {
    op_case_t half_row = *row;
    half_row.shape[OP_HALF] = 1; // so that the values are cut to bf16
    TRY(problem_open(out, &half_row, 6));
    out->half = half;
    status_t status = problem_run(out, device);
    if (status) problem_close(out);
    return status;
}

static status_t half_run(const op_case_t *row, bool half, const char *set, int threads, problem_t *out) {
    device_t *device;
    TRY(device_open(set, threads, &device));
    status_t status = half_run_on(row, half, device, out);
    device_close(device);
    return status;
}

static double half_gradient(const op_tensor_t *t, int64_t row, int64_t column) {
    if (t->role == TENSOR_PARAM) return ldexp((double)t->sum[row * t->columns + column], -OP_EXPONENT);
    return (double)t->gradient[row * t->stride + column];
}

// Largest deviation of one tensor's values (or gradients), and the root mean square and the largest of what they should
// be.
static void half_deviation(const op_tensor_t *want, const op_tensor_t *got, bool gradient, double *worst, double *mean,
                           double *largest) {
    *worst = *mean = *largest = 0;
    for (int64_t r = 0; r < want->rows; r++)
        for (int64_t c = 0; c < want->columns; c++) {
            int64_t at = r * want->stride + c;
            double a = gradient    ? half_gradient(want, r, c)
                       : got->half ? (double)bf16_widen(bf16_round(want->value[at]))
                                   : (double)want->value[at];
            double b = gradient ? half_gradient(got, r, c) : (double)got->value[at];
            if (a == b || (isnan(a) && isnan(b))) continue;
            *worst = fmax(*worst, isfinite(a - b) ? fabs(a - b) : INFINITY);
        }
    for (int64_t r = 0; r < want->rows; r++)
        for (int64_t c = 0; c < want->columns; c++) {
            double a = gradient ? half_gradient(want, r, c) : (double)want->value[r * want->stride + c];
            if (!isfinite(a)) continue;
            *mean += a * a;
            *largest = fmax(*largest, fabs(a));
        }
    *mean = sqrt(*mean / fmax(1.0, (double)want->rows * want->columns));
}

static int half_check(const op_case_t *row, const problem_t *whole, const problem_t *half, bool tensor) {
    int failures = 0, inexact = row->op->inexact ? row->op->inexact(row->shape) : 0;
    if (tensor && inexact & HALF_TENSOR) inexact |= HALF_FORWARD;
    for (int i = 0; i < whole->tensors; i++) {
        const op_tensor_t *want = &whole->tensor[i], *got = &half->tensor[i];
        bool result = want->role == TENSOR_OUTPUT || want->role == TENSOR_SAVED;
        bool gradient = want->role == TENSOR_INPUT || want->role == TENSOR_PARAM;
        double worst, mean, largest;
        if (!result && !gradient) continue;
        half_deviation(want, got, gradient, &worst, &mean, &largest);
        double bound = inexact & (gradient ? HALF_BACKWARD : HALF_FORWARD) ? mean * 0x1p-4 : 0;
        if (gradient && tensor && inexact & HALF_SPLIT) bound = fmax(bound, largest * HALF_SPLIT_BOUND);
        if (worst <= bound) continue;
        failures++;
        fprintf(stderr, "%s/%s in bf16: %s%s is off by %g, with a root mean square of %g\n", row->op->name, row->name,
                gradient ? "d" : "", want->name, worst, mean);
    }
    return failures;
}

int harness_half_on(const op_case_t *row, device_t *device) {
    problem_t whole = {0}, half = {0};
    status_t status = half_run_on(row, false, device, &whole);
    if (!status) status = half_run_on(row, true, device, &half);
    int failures = status ? harness_fail(row, "bf16", status) : half_check(row, &whole, &half, mirror_wanted(device));
    problem_close(&whole);
    problem_close(&half);
    return failures;
}

int harness_half(const op_case_t *row) {
    problem_t whole = {0}, first = {0};
    status_t status = half_run(row, false, "cpu:portable", 1, &whole);
    if (!status) status = half_run(row, true, "cpu:portable", 1, &first);
    int failures = status ? harness_fail(row, "bf16", status) : half_check(row, &whole, &first, false);
    for (int set = 0; !status && set < 2 * SETS; set++) {
        problem_t other;
        status_t run = half_run(row, true, sets[set / 2], 1 + set % 2 * 2, &other);
        if (run && status_kind(run) == STATUS_UNAVAILABLE && !strstr(status_message(run), "f32")) {
            status_free(run);
            continue;
        }
        if (run) {
            failures += harness_fail(row, sets[set / 2], run);
            continue;
        }
        failures += compare_bits(row, sets[set / 2], &first, &other);
        problem_close(&other);
    }
    problem_close(&whole);
    problem_close(&first);
    return failures;
}
