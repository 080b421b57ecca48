#include "tests/sim/bench.h"
#include "tests/ops/parts/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void bench_pass(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

bench_t bench_open(const char *name) {
    bench_t bench = {0};
    if (!strncmp(name, "cpu", 3))
        bench_pass(device_open(name, 1, &bench.device));
    else
        bench_pass(device_open_table(&device_sim_table, name, 1, &bench.device));
    return bench;
}

void bench_close(bench_t *bench) {
    for (int i = 0; i < bench->count; i++) bench->device->table->release(bench->device, bench->memory[i]);
    device_close(bench->device);
}

void *bench_put(bench_t *bench, const void *from, size_t bytes) {
    assert_true(bench->count < BENCH_PLACES);
    void **at = &bench->memory[bench->count++];
    bench_pass(bench->device->table->allocate(bench->device, bytes, at));
    if (from) bench_pass(bench->device->table->upload(bench->device, *at, from, bytes));
    return *at;
}

void bench_get(bench_t *bench, void *to, const void *from, size_t bytes) {
    bench_pass(bench->device->table->download(bench->device, to, from, bytes));
}

float bench_number(int which, int64_t i) {
    uint32_t x = (uint32_t)i * 2654435761u + (uint32_t)which * 40503u;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    return bf16_widen((uint16_t)(0x3f80 | (x & 0x7f))) * (x >> 9 & 1 ? 0.5f : -0.5f);
}

float bench_long_number(int which, int64_t i) {
    return bench_number(which, i) * (1.0f + 0x1p-7f * bench_number(which + 1000, i) * bench_number(which + 2000, i));
}

matrix_t bench_numbers(bench_t *bench, int which, int rows, int columns, bool half) {
    size_t count = (size_t)rows * (size_t)columns;
    float *whole = malloc(count * sizeof(*whole));
    uint16_t *cut = malloc(count * sizeof(*cut));
    assert_true(whole && cut);
    for (size_t i = 0; i < count; i++) whole[i] = bench_number(which, (int64_t)i), cut[i] = bf16_round(whole[i]);
    void *data = half ? bench_put(bench, cut, count * sizeof(*cut)) : bench_put(bench, whole, count * sizeof(*whole));
    free(whole);
    free(cut);
    return matrix_view(data, half ? DTYPE_BF16 : DTYPE_F32, rows, columns);
}

matrix_t bench_long_numbers(bench_t *bench, int which, int rows, int columns) {
    size_t count = (size_t)rows * (size_t)columns;
    float *whole = malloc(count * sizeof(*whole));
    assert_non_null(whole);
    for (size_t i = 0; i < count; i++) whole[i] = bench_long_number(which, (int64_t)i);
    void *data = bench_put(bench, whole, count * sizeof(*whole));
    free(whole);
    return matrix_view(data, DTYPE_F32, rows, columns);
}

gradient_sink_t bench_sink(bench_t *bench, size_t count) {
    return (gradient_sink_t){.sum = bench_put(bench, NULL, count * sizeof(int64_t)),
                             .exponent = OP_EXPONENT,
                             .flags = bench_put(bench, NULL, sizeof(uint32_t))};
}
