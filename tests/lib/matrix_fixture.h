// Devices, random matrices and comparisons for the tests of the matrix kernels.
#ifndef TESTS_LIB_MATRIX_FIXTURE_H
#define TESTS_LIB_MATRIX_FIXTURE_H

// cmocka needs these before itself.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/philox.h"
#include "kernels/cpu/head.h"
#include "kernels/cpu/linear.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SETS = 3 };
static const char *const set_names[SETS] = {"portable", "avx2", "avx512"};

static inline void ok(status_t status) {
    if (!status) return;
    status_print(status, stderr, -1, true);
    status_free(status);
    fail();
}
// Expects an error of a kind whose message has `text` in it.
static inline void refused(status_t status, status_kind_t kind, const char *text) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), kind);
    if (!strstr(status_message(status), text)) fail_msg("'%s' is not in '%s'", text, status_message(status));
    status_free(status);
}

static inline device_t *fixture_open(int set, int threads) {
    char name[32];
    device_t *device;
    snprintf(name, sizeof(name), "cpu:%s", set_names[set]);
    ok(device_open(name, threads, &device));
    return device;
}
// Whether this CPU has the set; without it the set's part of a test is left out.
static inline bool set_is_there(int set) {
    char name[32];
    device_t *device;
    snprintf(name, sizeof(name), "cpu:%s", set_names[set]);
    status_t status = device_open(name, 1, &device);
    if (!status)
        device_close(device);
    else if (status_kind(status) != STATUS_UNAVAILABLE)
        ok(status);
    bool there = !status;
    status_free(status);
    return there;
}

static inline float *floats(int64_t count) {
    float *out;
    ok(ALLOCATE(&out, count));
    return out;
}
static inline int64_t *integers(int64_t count) {
    int64_t *out;
    ok(ALLOCATE(&out, count));
    return out;
}
// Normal numbers times `size`, keyed by `key`.
static inline float *random_floats(uint64_t key, int64_t count, float size) {
    float *out = floats(count);
    for (int64_t i = 0; i < count; i++) out[i] = size * philox_normal(key, PHILOX_TEST, (uint64_t)i, 0, 0);
    return out;
}
static inline matrix_t matrix_of(float *data, int rows, int columns) {
    return matrix_view(data, DTYPE_F32, rows, columns);
}
static inline void same_floats(const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof(float)))
            fail_msg("element %lld: %.9g and %.9g", (long long)i, (double)a[i], (double)b[i]);
}
static inline void same_integers(const int64_t *a, const int64_t *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (a[i] != b[i]) fail_msg("element %lld: %lld and %lld", (long long)i, (long long)a[i], (long long)b[i]);
}
static inline void near(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance)) fail_msg("%.9g is not within %g of %.9g", got, tolerance, expected);
}

#endif
