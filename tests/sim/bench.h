// Memory of a device for one test: what lies there is a copy of the host's.
#ifndef TESTS_SIM_BENCH_H
#define TESTS_SIM_BENCH_H
#include "kernels/device.h"

enum { BENCH_PLACES = 40 };
typedef struct bench {
    device_t *device;
    void *memory[BENCH_PLACES];
    int count;
} bench_t;

// Fails the test where there is an error.
void bench_pass(status_t status);
// "cpu", "cpu:...", or an order of the simulator: "", "reverse", ...
bench_t bench_open(const char *name);
void bench_close(bench_t *bench);
// from NULL: zeros.
void *bench_put(bench_t *bench, const void *from, size_t bytes);
void bench_get(bench_t *bench, void *to, const void *from, size_t bytes);
// A number between 1/2 and 1, or its negative, that bf16 holds; and one of 24 bits near it.
float bench_number(int which, int64_t i);
float bench_long_number(int which, int64_t i);
// Numbers that bf16 holds, lying as either.
matrix_t bench_numbers(bench_t *bench, int which, int rows, int columns, bool half);
// fp32 numbers of 24 bits.
matrix_t bench_long_numbers(bench_t *bench, int which, int rows, int columns);
gradient_sink_t bench_sink(bench_t *bench, size_t count);
#endif
