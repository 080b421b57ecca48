// The device seam: opening by name, workspace and dry run, fingerprints, exact sums, and errors for wrong arguments.
#include "kernels/device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static device_t *open_device(const char *name, int threads) {
    device_t *device = NULL;
    status_t status = device_open(name, threads, &device);
    if (status && status_kind(status) == STATUS_UNAVAILABLE) {
        status_free(status);
        return NULL;
    }
    assert_null(status);
    return device;
}

static void expect(status_t status, status_kind_t kind, const char *text) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), kind);
    if (!strstr(status_message(status), text)) fail_msg("'%s' is not in '%s'", text, status_message(status));
    status_free(status);
}

static void test_open(void **state) {
    (void)state;
    device_t *device = open_device("cpu", 2);
    assert_string_equal(device->table->name, "cpu");
    assert_int_equal(threads_count(device->threads), 2);
    device_close(device);
    device = open_device("cpu:portable", 1);
    assert_string_equal(device->kernels, "portable");
    device_close(device);
    expect(device_open("gpu", 1, &device), STATUS_INVALID, "cpu:avx512");
    assert_null(device);
    expect(device_open("cpu:sse", 1, &device), STATUS_INVALID, "portable, avx2 and avx512");
    expect(device_open("cp", 1, &device), STATUS_INVALID, "'cp'");
    expect(device_open("cpu", 0, &device), STATUS_INVALID, "threads");
    device_close(NULL);
}

static void test_workspace(void **state) {
    (void)state;
    device_t *device = open_device("cpu", 1);
    void *first, *second;
    assert_null(device_workspace(device, 1000, &first));
    assert_non_null(first);
    assert_int_equal((uintptr_t)first % 64, 0);
    assert_null(device_workspace(device, 10, &second));
    assert_ptr_equal(first, second);
    device->measuring = true;
    assert_null(device_workspace(device, 100000, &second));
    assert_null(second);
    assert_true(device->workspace_bytes >= 100000);
    size_t measured = device->workspace_bytes;
    assert_null(device_workspace(device, 500, &second));
    assert_int_equal(device->workspace_bytes, measured);
    device->measuring = false;
    assert_null(device_workspace(device, 8, &first));
    assert_int_equal(device->workspace_bytes, measured); // the first real use takes the whole
    memset(first, 1, measured);
    assert_null(device_workspace(device, measured, &second));
    assert_ptr_equal(first, second);
    expect(device_workspace(device, SIZE_MAX, &second), STATUS_MEMORY, "workspace");
    device_close(device);
}

// A dry run touches no tensor: these point nowhere.
static void test_measuring(void **state) {
    (void)state;
    device_t *device = open_device("cpu", 2);
    float *nowhere = (float *)(uintptr_t)64;
    device->measuring = true;
    matrix_t m = matrix_view(nowhere, DTYPE_F32, 100, 64);
    attention_args_t attention = {
        .q = m, .k = m, .v = m, .heads = 2, .kv_heads = 2, .head_dim = 32, .scale = 1.0f, .out = m, .lse = nowhere};
    attention.mask.sequences = 4;
    attention_gradients_t back = {.dout = m, .dq = m, .dk = m, .dv = m};
    assert_null(device->table->attention(device, &attention));
    size_t forward = device->workspace_bytes;
    assert_true(forward > 0);
    assert_null(device->table->attention_backward(device, &attention, &back));
    assert_true(device->workspace_bytes > forward);
    rmsnorm_args_t norm = {.x = m, .weight = nowhere, .eps = 1e-6f, .y = m, .rstd = nowhere};
    assert_null(device->table->rmsnorm(device, &norm));
    embedding_args_t embedding = {.token = (int32_t *)(void *)nowhere, .table = m, .scale = 1.0f, .y = m};
    assert_null(device->table->embedding(device, &embedding));
    adamw_args_t adamw = {.count = 50,
                          .master = nowhere,
                          .first_moment = nowhere,
                          .second_moment = nowhere,
                          .sum = (int64_t *)(void *)nowhere,
                          .step = 1};
    assert_null(device->table->adamw(device, &adamw));
    device_close(device);
}

// Kernel sets agree to the bit in fp32, and so do thread counts.
static void test_fingerprint(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:portable", "cpu:avx2", "cpu:avx512", "cpu"};
    uint64_t first = 0, hash = 0;
    for (int i = 0; i < 8; i++) {
        device_t *device = open_device(names[i / 2], 1 + i % 2 * 2);
        if (!device) continue;
        assert_null(device_fingerprint(device, &hash));
        assert_int_not_equal(hash, 0);
        if (!first) first = hash;
        assert_true(hash == first);
        device_close(device);
    }
}

// bf16: to the nearest, ties to even, NaN stays NaN; every kernel set as bf16_round says.
static void test_bf16(void **state) {
    (void)state;
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81},
                 {0x3f817fff, 0x3f81}, {0x80000000, 0x8000}, {0x7f7fffff, 0x7f80}, {0xff7fffff, 0xff80},
                 {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7fc00000, 0x7fc0}, {0x7f800001, 0x7fc0},
                 {0xffffffff, 0xffff}, {0x00000001, 0x0000}, {0x00008001, 0x0001}, {0x807fffff, 0x8080},
                 {0x0000ffff, 0x0001}, {0x7f7f7fff, 0x7f7f}, {0xbf808000, 0xbf80}};
    enum { COUNT = sizeof(cases) / sizeof(cases[0]) };
    static const char *const names[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
    float value[COUNT], back[COUNT];
    uint16_t half[COUNT];
    int32_t index[1] = {0};
    for (int i = 0; i < COUNT; i++) {
        memcpy(&value[i], &cases[i].from, sizeof(value[i]));
        assert_int_equal(bf16_round(value[i]), cases[i].to);
    }
    for (int i = 0; i < 3; i++) {
        device_t *device = open_device(names[i], 1);
        if (!device) continue;
        rows_args_t narrow = {.x = matrix_view(value, DTYPE_F32, 1, COUNT), .index = index};
        narrow.y = matrix_view(half, DTYPE_BF16, 1, COUNT);
        assert_null(device->table->gather_rows(device, &narrow));
        rows_args_t widen = {.x = narrow.y, .index = index, .y = matrix_view(back, DTYPE_F32, 1, COUNT)};
        assert_null(device->table->scatter_rows(device, &widen));
        for (int j = 0; j < COUNT; j++) {
            uint32_t bits;
            memcpy(&bits, &back[j], sizeof(bits));
            assert_int_equal(half[j], cases[j].to);
            assert_int_equal(bits, (uint32_t)cases[j].to << 16);
        }
        device_close(device);
    }
}

static uint32_t sink_one(device_t *device, float value, int exponent, int64_t *sum) {
    uint32_t flags = 0;
    int32_t token = 0;
    float table[1] = {1}, y[1];
    gradient_sink_t sink = {.sum = sum, .exponent = exponent, .flags = &flags};
    embedding_args_t args = {.token = &token,
                             .table = matrix_view(table, DTYPE_F32, 1, 1),
                             .scale = 1.0f,
                             .y = matrix_view(y, DTYPE_F32, 1, 1)};
    embedding_gradients_t gradients = {.dy = matrix_view(&value, DTYPE_F32, 1, 1), .table = &sink};
    assert_null(device->table->embedding_backward(device, &args, &gradients));
    return flags;
}

static void test_exact_sum(void **state) {
    (void)state;
    static const char *const names[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
    for (int i = 0; i < 3; i++) {
        device_t *device = open_device(names[i], 1);
        if (!device) continue;
        int64_t sum = 0;
        assert_int_equal(sink_one(device, 0.5f, 0, &sum), 0); // ties go to even
        assert_true(sum == 0);
        assert_int_equal(sink_one(device, 1.5f, 0, &sum), 0);
        assert_true(sum == 2);
        assert_int_equal(sink_one(device, -2.5f, 0, &sum), 0);
        assert_true(sum == 0);
        assert_int_equal(sink_one(device, -0x1.fffffep46f, 0, &sum), 0);
        assert_true(sum == -(int64_t)0x1.fffffep46);
        sum = 5;
        assert_int_equal(sink_one(device, 0x1p46f, 1, &sum), GRADIENT_OVERFLOW);
        assert_int_equal(sink_one(device, -0x1p127f, 800, &sum), GRADIENT_OVERFLOW);
        assert_int_equal(sink_one(device, NAN, 3, &sum), GRADIENT_NOT_FINITE);
        assert_int_equal(sink_one(device, -INFINITY, -3, &sum), GRADIENT_NOT_FINITE);
        assert_int_equal(sink_one(device, 1e-30f, 20, &sum), 0);
        assert_true(sum == 5); // what raises a flag is left out
        device_close(device);
    }
}

static void test_refused(void **state) {
    (void)state;
    device_t *device = open_device("cpu", 1);
    float x[64] = {0};
    matrix_t m = matrix_view(x, DTYPE_F32, 4, 8), narrow = matrix_view(x, DTYPE_F32, 4, 4), half = m;
    half.dtype = DTYPE_F16;
    expect(device->table->add(device, &(add_args_t){.a = m, .b = narrow, .y = m}), STATUS_INVALID, "[4, 8]");
    expect(device->table->add(device, &(add_args_t){.a = m, .b = half, .y = m}), STATUS_UNAVAILABLE, "f16");
    int32_t token[4] = {0, 1, 4, 2}, twice[4] = {0, 1, 1, -1}, fine[4] = {3, -1, 0, 1};
    embedding_args_t embedding = {.token = token, .table = m, .scale = 1.0f, .y = m};
    expect(device->table->embedding(device, &embedding), STATUS_INVALID, "token[2] is 4");
    rows_args_t rows = {.x = m, .index = twice, .y = m};
    expect(device->table->scatter_rows(device, &rows), STATUS_INVALID, "index[2] writes row 1");
    rows.index = fine;
    assert_null(device->table->scatter_rows(device, &rows));
    rmsnorm_args_t norm = {.x = m, .weight = NULL, .y = m, .rstd = x};
    expect(device->table->rmsnorm(device, &norm), STATUS_INVALID, "weight");
    int32_t start[2] = {0, 4}, position = 0, key_row[4] = {0, 1, 2, 3}, bad_row[4] = {0, 1, 9, 3};
    attention_args_t attention = {
        .q = m, .k = m, .v = m, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 1, .out = m};
    attention.mask = (attention_mask_t){
        .sequences = 1, .query_start = start, .query_position = &position, .key_start = start, .key_row = bad_row};
    expect(device->table->attention(device, &attention), STATUS_INVALID, "key_row[2] is 9");
    attention.mask.key_row = key_row;
    attention.kv_heads = 3;
    expect(device->table->attention(device, &attention), STATUS_INVALID, "evenly");
    attention_gradients_t back = {.dout = m, .dq = m, .dk = m, .dv = m};
    attention.kv_heads = 2;
    expect(device->table->attention_backward(device, &attention, &back), STATUS_INVALID, "lse");
    attention.lse = x;
    bad_row[2] = 1;
    attention.mask.key_row = bad_row;
    expect(device->table->attention_backward(device, &attention, &back), STATUS_INVALID, "twice");
    adamw_args_t adamw = {.count = 0, .step = 0};
    expect(device->table->adamw(device, &adamw), STATUS_INVALID, "steps count from 1");
    device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),        cmocka_unit_test(test_workspace), cmocka_unit_test(test_measuring),
        cmocka_unit_test(test_fingerprint), cmocka_unit_test(test_bf16),      cmocka_unit_test(test_exact_sum),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
