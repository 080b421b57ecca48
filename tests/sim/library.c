// Products by the library, over its stand-in: what the probe accepts and refuses, the same results with and without,
// padding and parts, no allocation in a step, and the fingerprint.
#include "kernels/cuda/cuda_library.h"
#include "kernels/sim/cublas.h"
#include "kernels/sim/sim_runtime.h"
#include "tests/sim/sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void pass(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

static device_t *open_with(sim_cublas_t kind) {
    device_t *device;
    sim_runtime_reset();
    sim_cublas_set(kind);
    pass(device_open_table(&device_sim_table, "", 1, &device));
    return device;
}

static void close_whole(device_t *device) {
    device_close(device);
    assert_int_equal(sim_runtime_leaks(), 0);
    assert_int_equal(sim_runtime_live(), 0);
    assert_int_equal(sim_cublas_count().live, 0);
}

// ---- the probe ----

void test_library_probe(void **state) {
    (void)state;
    static const struct {
        sim_cublas_t kind;
        bool used;
        const char *note;
    } cases[] = {
        {SIM_CUBLAS_ABSENT, false, "own kernels: cuBLASLt's stand-in is left out"},
        {SIM_CUBLAS_GOOD, true, "cuBLASLt 130002 (algorithm 41, tile 0, stages 0): a row's bits"},
        {SIM_CUBLAS_BACKWARDS, true, "(algorithm 41,"},
        {SIM_CUBLAS_COUNTS, false,
         "break the bit contract: row 0 of 64 by 72 has other bits among 1 rows than among 130"},
        {SIM_CUBLAS_PLACES, false, "break the bit contract: row 32 of 64 by 72"},
        {SIM_CUBLAS_SECOND, true, "(algorithm 42,"},
        {SIM_CUBLAS_TRUNCATES, true, "its bf16 results are not used"},
        {SIM_CUBLAS_WRONG, false, "cuBLASLt's product of 64 by 72 is wrong"},
        {SIM_CUBLAS_SPLITS, false, "each of the 3 algorithms that cuBLASLt proposes cuts the sums"},
        {SIM_CUBLAS_NO_HANDLE, false, "cuBLASLt cannot be opened: CUBLAS_STATUS_NOT_INITIALIZED"},
        {SIM_CUBLAS_FAILS, false, "cuBLASLt cannot multiply 192 rows of 64 by 72: CUBLAS_STATUS_EXECUTION_FAILED"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        device_t *device = open_with(cases[i].kind);
        cuda_state_t *own = device->state;
        printf("  %s\n", device->note);
        assert_int_equal(own->library != NULL, cases[i].used);
        assert_int_equal(device->identity != 0, cases[i].used);
        if (!strstr(device->note, cases[i].note)) fail_msg("the note should say '%s': %s", cases[i].note, device->note);
        assert_int_equal(device->workspace_bytes, 0); // a dry run begins with nothing
        close_whole(device);
    }
    sim_cublas_set(SIM_CUBLAS_COUNT);
    setenv("POISE_CUBLAS", "good", 1);
    device_t *device;
    pass(device_open_table(&device_sim_table, "", 1, &device));
    assert_true(device->identity != 0);
    close_whole(device);
    unsetenv("POISE_CUBLAS");
    sim_cublas_set(SIM_CUBLAS_ABSENT);
}

// ---- results ----

enum { MOST = 4096 };
typedef struct linear_case {
    const char *name;
    int rows, k, n, rank;
    bool bias, y_half, xa_half;
    int x_shift, y_shift, weight_shift; // elements by which the operands begin off an aligned place
    int x_more, y_more;                 // by which their rows are further apart
    bool library;                       // whether it takes the shape
} linear_case_t;

static const linear_case_t cases[] = {
    {"whole tiles", 128, 64, 72, 0, false, true, true, 0, 0, 0, 0, 0, true},
    {"one row", 1, 64, 72, 0, false, true, true, 0, 0, 0, 0, 0, true},
    {"fp32 y", 70, 64, 72, 0, false, false, true, 0, 0, 0, 0, 0, true},
    {"bias", 17, 40, 90, 0, true, true, true, 0, 0, 0, 0, 0, true},
    {"bias, fp32 y", 64, 40, 90, 0, true, false, true, 0, 0, 0, 0, 0, true},
    {"adapter, bias", 66, 40, 90, 5, true, true, true, 0, 0, 0, 0, 0, true},
    {"fp32 adapter", 66, 40, 88, 8, false, true, false, 0, 0, 0, 0, 0, true},
    {"x off its place", 64, 40, 88, 0, false, true, true, 3, 0, 0, 0, 0, true},
    {"rows of x apart", 64, 40, 88, 0, false, true, true, 0, 0, 0, 5, 0, true},
    {"y off its place", 64, 40, 88, 0, false, true, true, 0, 1, 0, 0, 3, true},
    {"y and x off, odd width", 65, 40, 77, 0, true, true, true, 1, 1, 0, 1, 1, true},
    {"weight off its place", 66, 40, 90, 5, true, true, true, 0, 0, 1, 0, 0, true},
    {"odd k", 66, 41, 90, 0, false, true, true, 0, 0, 0, 0, 0, false},
    {"small k", 66, 7, 90, 0, false, true, true, 0, 0, 0, 0, 0, false},
    {"several parts", 2048 + 70, 16, 24, 0, false, true, true, 0, 0, 0, 0, 0, true},
    {"several parts, adapter", 2048 + 70, 16, 24, 4, true, true, true, 0, 0, 0, 0, 0, true},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]), PLACES = 8 };

typedef struct bench {
    device_t *device;
    void *memory[PLACES];
    int count;
} bench_t;

// Of several magnitudes: sums in another order have other bits.
static float number(int which, int64_t i) {
    uint32_t x = (uint32_t)i * 2654435761u + (uint32_t)which * 40503u;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    return bf16_widen((uint16_t)((x & 0x8000u) | (123u + (x >> 16 & 7u)) << 7 | (x & 0x7fu)));
}

// A matrix of known numbers: element (r, c) is the same wherever it lies.
static matrix_t numbers(bench_t *bench, int which, int rows, int columns, bool half, int shift, int more) {
    size_t stride = (size_t)(columns + more), each = half ? 2 : 4,
           bytes = ((size_t)rows * stride + (size_t)shift) * each;
    char *host = calloc(1, bytes);
    assert_true(host && bench->count < PLACES);
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < (size_t)columns; c++) {
            float value = number(which, (int64_t)(r * 8192 + c));
            uint16_t cut = bf16_round(value);
            memcpy(host + ((size_t)shift + r * stride + c) * each, half ? (void *)&cut : (void *)&value, each);
        }
    void **at = &bench->memory[bench->count++];
    pass(bench->device->table->allocate(bench->device, bytes, at));
    pass(bench->device->table->upload(bench->device, *at, host, bytes));
    free(host);
    matrix_t out = matrix_view((char *)*at + (size_t)shift * each, half ? DTYPE_BF16 : DTYPE_F32, rows, columns);
    out.stride = (int64_t)stride;
    return out;
}

static linear_args_t open_case(bench_t *bench, const linear_case_t *c) {
    linear_args_t args = {.x = numbers(bench, 1, c->rows, c->k, true, c->x_shift, c->x_more),
                          .weight = numbers(bench, 2, c->n, c->k, true, c->weight_shift, 0),
                          .y = numbers(bench, 3, c->rows, c->n, c->y_half, c->y_shift, c->y_more)};
    if (c->bias) args.bias = numbers(bench, 4, 1, c->n, false, 0, 0).data;
    if (!c->rank) return args;
    args.lora_scale = 0.75f;
    args.lora_a = numbers(bench, 5, c->rank, c->k, true, 0, 0);
    args.lora_b = numbers(bench, 6, c->n, c->rank, c->xa_half, 0, 0);
    args.lora_xa = numbers(bench, 7, c->rows, c->rank, c->xa_half, 0, 0);
    return args;
}

static void release(bench_t *bench) {
    while (bench->count) bench->device->table->release(bench->device, bench->memory[--bench->count]);
}

// y of one case, all that lies in its memory between its rows too.
static void run_case(device_t *device, const linear_case_t *c, char *out, size_t *bytes, size_t *products) {
    bench_t bench = {.device = device};
    linear_args_t args = open_case(&bench, c);
    size_t before = sim_cublas_count().products;
    *bytes = (((size_t)c->rows - 1) * (size_t)args.y.stride + (size_t)c->n) * (c->y_half ? 2 : 4);
    pass(device->table->linear(device, &args));
    pass(device->table->download(device, out, args.y.data, *bytes));
    *products = sim_cublas_count().products - before;
    release(&bench);
}

// A library that sums in our order gives our bits in every form, and one that may not be used leaves them as they are.
void test_library_results(void **state) {
    (void)state;
    static const sim_cublas_t kinds[] = {SIM_CUBLAS_ABSENT, SIM_CUBLAS_GOOD, SIM_CUBLAS_TRUNCATES, SIM_CUBLAS_COUNTS};
    enum { BYTES = 1 << 18 };
    char *want = malloc((size_t)CASES * BYTES), *got = malloc(BYTES);
    assert_true(want && got);
    for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
        bool uses = kinds[kind] == SIM_CUBLAS_GOOD || kinds[kind] == SIM_CUBLAS_TRUNCATES;
        device_t *device = open_with(kinds[kind]);
        for (int i = 0; i < CASES; i++) {
            const linear_case_t *c = &cases[i];
            size_t bytes, products, parts = (size_t)(c->rows + 2047) / 2048;
            run_case(device, c, kind ? got : want + (size_t)i * BYTES, &bytes, &products);
            assert_true(bytes <= BYTES);
            assert_int_equal(products, uses && c->library ? parts : 0);
            if (kind && memcmp(want + (size_t)i * BYTES, got, bytes) != 0)
                fail_msg("%s: the library's results are others", c->name);
        }
        close_whole(device);
    }
    free(want);
    free(got);
    sim_cublas_set(SIM_CUBLAS_ABSENT);
}

// ---- allocations ----

// A dry run of the largest call sizes all scratch; then calls of every number of rows allocate nothing, and ask the
// library for nothing.
void test_library_memory(void **state) {
    (void)state;
    static const linear_case_t most = {"most", 192, 40, 90, 5, true, true, true, 0, 0, 0, 0, 0, true};
    device_t *device = open_with(SIM_CUBLAS_GOOD);
    bench_t bench = {.device = device};
    linear_args_t args = open_case(&bench, &most), plain = args;
    plain.bias = NULL;
    plain.lora_a.data = NULL;
    device->measuring = true;
    pass(device->table->linear(device, &args));
    pass(device->table->linear(device, &plain));
    device->measuring = false;
    size_t measured = device->workspace_bytes;
    pass(device->table->linear(device, &args)); // takes the workspace
    size_t before = sim_runtime_allocations(), made = sim_cublas_count().made, products = sim_cublas_count().products;
    for (int rows = 1; rows <= most.rows; rows += rows < 4 ? 1 : 31) {
        args.x.rows = args.y.rows = args.lora_xa.rows = plain.x.rows = plain.y.rows = rows;
        pass(device->table->linear(device, &args));
        pass(device->table->linear(device, &plain));
    }
    pass(device->table->synchronize(device));
    assert_true(sim_cublas_count().products > products);
    assert_int_equal(sim_runtime_allocations(), before);
    assert_int_equal(sim_cublas_count().made, made);
    assert_int_equal(device->workspace_bytes, measured);
    release(&bench);
    close_whole(device);
    sim_cublas_set(SIM_CUBLAS_ABSENT);
}

// ---- bits of the device ----

// The probes of the fingerprint are few and mostly rounded to bf16, so another order may not show in them: the library
// itself is part of it.
void test_library_fingerprint(void **state) {
    (void)state;
    static const sim_cublas_t kinds[] = {SIM_CUBLAS_ABSENT, SIM_CUBLAS_COUNTS, SIM_CUBLAS_GOOD, SIM_CUBLAS_BACKWARDS};
    static const linear_case_t plain = {"fp32", 40, 64, 72, 0, false, false, true, 0, 0, 0, 0, 0, true};
    enum { BYTES = 40 * 72 * 4 };
    static char y[4][BYTES];
    uint64_t hash[4];
    for (int i = 0; i < 4; i++) {
        size_t bytes, products;
        device_t *device = open_with(kinds[i]);
        run_case(device, &plain, y[i], &bytes, &products);
        assert_int_equal(bytes, BYTES);
        pass(device_fingerprint(device, &hash[i]));
        close_whole(device);
    }
    assert_true(hash[0] == hash[1] && !memcmp(y[0], y[1], BYTES)); // a library that is refused leaves no trace
    assert_true(!memcmp(y[0], y[2], BYTES) && memcmp(y[0], y[3], BYTES) != 0);
    assert_true(hash[0] != hash[2] && hash[0] != hash[3] && hash[2] != hash[3]);
    sim_cublas_set(SIM_CUBLAS_ABSENT);
}
