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

// Until the device opens itself: what the kernels need of it.
size_t dtype_bytes(dtype_t dtype) {
    return dtype == DTYPE_F32 ? 4 : 0;
}
status_t device_workspace(device_t *device, size_t bytes, void **out) {
    *out = NULL;
    if (device->measuring) {
        if (bytes > device->workspace_bytes) device->workspace_bytes = bytes;
        return STATUS_OK;
    }
    free(device->workspace);
    device->workspace = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!device->workspace) FAIL(STATUS_MEMORY, "no workspace");
    if (bytes > device->workspace_bytes) device->workspace_bytes = bytes;
    *out = device->workspace;
    return STATUS_OK;
}

enum { SETS = 3 };
static const char *const set_names[SETS] = {"portable", "avx2", "avx512"};

static inline bool set_is_there(int set) {
    if (set == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == 2) return __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return true;
}

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

static inline device_t fixture_open(int set, int threads) {
    device_t device = {.kernels = set_names[set]};
    ok(threads_open(threads, &device.threads));
    return device;
}
static inline void fixture_close(device_t *device) {
    threads_close(device->threads);
    free(device->workspace);
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
