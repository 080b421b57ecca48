// Attention and rope on the simulator, beside the rows of the op list.
#include "tests/ops/parts/attention.h"
#include "kernels/base/philox.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

// Rows of the op list are shorter than one part of a split list (ATTENTION_SPLIT).
static const op_case_t cases[] = {
    {&op_attention, "long list", {530, 2, 1, 64, LAYOUT_ONE}},
    {&op_attention, "long list, window", {400, 1, 1, 20, LAYOUT_ONE, 290}},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };

static device_t *open_sim(const char *order) {
    device_t *device;
    status_t status = device_open_table(&device_sim_table, order, 1, &device);
    if (status) fail_msg("%s", status_message(status));
    return device;
}

// What a test has in the device's memory.
typedef struct lent {
    device_t *device;
    void *at[16];
    int count;
} lent_t;
static void *lend(lent_t *lent, const void *from, size_t bytes) {
    void *out;
    status_t status = lent->device->table->allocate(lent->device, bytes, &out);
    if (!status && from) status = lent->device->table->upload(lent->device, out, from, bytes);
    if (status) fail_msg("%s", status_message(status));
    assert_true(lent->count < 16);
    return lent->at[lent->count++] = out;
}
static void lent_close(lent_t *lent) {
    while (lent->count) lent->device->table->release(lent->device, lent->at[--lent->count]);
}

void test_attention_long(void **state) {
    (void)state;
    int failures = 0;
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) {
        failures += harness_compare_on(&cases[i], device);
        failures += harness_half_on(&cases[i], device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}

// ---- one sequence in every company: equal bits ----

enum { LENGTH = 560, CACHE = 1201, SPANS = 600 };
typedef struct company {
    int heads, kv_heads, size, window;
    dtype_t dtype;
    device_t *device;
    void *q, *k, *v;         // the sequence, in rows 0, 1, ...
    void *cache_k, *cache_v; // its keys, spread over a cache of NaNs
    float *want_lse;
    void *want; // from one prefill of all
} company_t;
typedef struct span {
    int position, count, beyond; // queries; and keys behind the last, which causality hides
} span_t;

static void *company_numbers(const company_t *c, int rows, int columns, uint32_t which) {
    int64_t count = (int64_t)rows * columns;
    char *out = malloc((size_t)count * dtype_bytes(c->dtype));
    assert_non_null(out);
    for (int64_t i = 0; i < count; i++) {
        float x = which ? philox_normal(5, PHILOX_TEST, (uint64_t)i, which, 0) * (which == 1 ? 2.0f : 1.0f) : NAN;
        uint16_t half = bf16_round(x);
        if (c->dtype == DTYPE_BF16)
            memcpy(out + i * 2, &half, 2);
        else
            memcpy(out + i * 4, &x, 4);
    }
    return out;
}

static int company_page(int position) {
    return position * 7 % CACHE;
}

static void company_run(const company_t *c, const span_t *spans, int count, bool pages, void *out, float *lse) {
    size_t width = (size_t)(c->heads * c->size) * dtype_bytes(c->dtype);
    int32_t *start = calloc(SPANS + 1, 4), *position = calloc(SPANS, 4), *key_start = calloc(SPANS + 1, 4);
    assert_true(start && position && key_start && count <= SPANS);
    for (int s = 0; s < count; s++) {
        int keys = spans[s].position + spans[s].count + spans[s].beyond;
        start[s + 1] = start[s] + spans[s].count;
        position[s] = spans[s].position;
        key_start[s + 1] = key_start[s] + (keys < LENGTH ? keys : LENGTH);
    }
    int32_t *row = calloc((size_t)key_start[count] + 1, 4);
    char *q = malloc((size_t)start[count] * width);
    assert_true(row && q);
    for (int s = 0; s < count; s++) {
        for (int j = key_start[s]; j < key_start[s + 1]; j++)
            row[j] = pages ? company_page(j - key_start[s]) : j - key_start[s];
        memcpy(q + (size_t)start[s] * width, (char *)c->q + (size_t)spans[s].position * width,
               (size_t)spans[s].count * width);
    }
    int rows = pages ? CACHE : LENGTH, columns = c->kv_heads * c->size;
    size_t keys_bytes = (size_t)rows * (size_t)columns * dtype_bytes(c->dtype), queries = (size_t)start[count];
    size_t lse_bytes = queries * (size_t)c->heads * sizeof(float), list = (size_t)count + 1;
    lent_t lent = {.device = c->device};
    void *far_out = lend(&lent, NULL, queries * width), *far_lse = lend(&lent, NULL, lse_bytes);
    attention_args_t args = {
        .q = matrix_view(lend(&lent, q, queries * width), c->dtype, start[count], c->heads * c->size),
        .k = matrix_view(lend(&lent, pages ? c->cache_k : c->k, keys_bytes), c->dtype, rows, columns),
        .v = matrix_view(lend(&lent, pages ? c->cache_v : c->v, keys_bytes), c->dtype, rows, columns),
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->size,
        .scale = 0.2f,
        .mask = {.sequences = count,
                 .query_start = lend(&lent, start, list * 4),
                 .query_position = lend(&lent, position, list * 4 - 4),
                 .key_start = lend(&lent, key_start, list * 4),
                 .key_row = lend(&lent, row, (size_t)key_start[count] * 4),
                 .causal = true,
                 .window = c->window},
        .out = matrix_view(far_out, c->dtype, start[count], c->heads * c->size),
        .lse = far_lse};
    status_t status = c->device->table->attention(c->device, &args);
    if (!status) status = c->device->table->download(c->device, out, far_out, queries * width);
    if (!status) status = c->device->table->download(c->device, lse, far_lse, lse_bytes);
    if (status) fail_msg("%s", status_message(status));
    lent_close(&lent);
    free(start), free(position), free(key_start), free(row), free(q);
}

static int company_check(const company_t *c, const char *what, const span_t *spans, int count) {
    size_t width = (size_t)(c->heads * c->size) * dtype_bytes(c->dtype), done = 0, rows = 0;
    int failures = 0;
    for (int s = 0; s < count; s++) rows += (size_t)spans[s].count;
    char *out = malloc(rows * width);
    float *lse = calloc(rows * (size_t)c->heads, sizeof(float));
    assert_true(out && lse);
    company_run(c, spans, count, true, out, lse);
    for (int s = 0; s < count; s++) {
        size_t at = (size_t)spans[s].position, n = (size_t)spans[s].count, heads = (size_t)c->heads;
        if (memcmp(out + done * width, (char *)c->want + at * width, n * width) ||
            memcmp(lse + done * heads, c->want_lse + at * heads, n * heads * sizeof(float))) {
            fprintf(stderr, "attention, %s: other bits of %d queries from %d (head size %d, %s)\n", what,
                    spans[s].count, spans[s].position, c->size, dtype_name(c->dtype));
            failures++;
        }
        done += n;
    }
    free(out), free(lse);
    return failures;
}

static int company_all(company_t c) {
    static const int places[] = {0, 1, 15, 63, 64, 255, 256, 257, 400, 511, 512, LENGTH - 1};
    enum { PLACES = sizeof(places) / sizeof(places[0]) };
    static const span_t chunks[] = {{0, 100, 0}, {100, 40, 30}, {140, 1, 0}, {141, 150, 0}, {291, LENGTH - 291, 0}};
    span_t many[SPANS];
    size_t each = dtype_bytes(c.dtype), width = (size_t)(c.kv_heads * c.size) * each;
    int failures = 0, columns = c.heads * c.size;
    c.device = open_sim("shuffled:3");
    c.q = company_numbers(&c, LENGTH, columns, 1);
    c.k = company_numbers(&c, LENGTH, c.kv_heads * c.size, 2);
    c.v = company_numbers(&c, LENGTH, c.kv_heads * c.size, 3);
    c.cache_k = company_numbers(&c, CACHE, c.kv_heads * c.size, 0);
    c.cache_v = company_numbers(&c, CACHE, c.kv_heads * c.size, 0);
    for (int j = 0; j < LENGTH; j++) {
        memcpy((char *)c.cache_k + (size_t)company_page(j) * width, (char *)c.k + (size_t)j * width, width);
        memcpy((char *)c.cache_v + (size_t)company_page(j) * width, (char *)c.v + (size_t)j * width, width);
    }
    c.want = malloc((size_t)LENGTH * (size_t)columns * each);
    c.want_lse = calloc((size_t)LENGTH * (size_t)c.heads, sizeof(float));
    assert_true(c.want && c.want_lse);
    company_run(&c, &(span_t){0, LENGTH, 0}, 1, false, c.want, c.want_lse);
    for (int i = 0; i < 5; i++) failures += company_check(&c, "a chunk", &chunks[i], 1);
    failures += company_check(&c, "chunks in a batch", chunks, 5);
    for (int i = 0; i < PLACES; i++) {
        many[i] = (span_t){places[i], 1, 0};
        failures += company_check(&c, "decode of one", &many[i], 1);
    }
    failures += company_check(&c, "decode in a batch", many, PLACES);
    // So many sequences that lists are not split.
    for (int i = PLACES; i < SPANS; i++) many[i] = (span_t){i % 5, 1, i % 3};
    failures += company_check(&c, "decode in a large batch", many, SPANS);
    void *all[] = {c.q, c.k, c.v, c.cache_k, c.cache_v, c.want, c.want_lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) free(all[i]);
    device_close(c.device);
    return failures;
}

void test_attention_company(void **state) {
    (void)state;
    int failures = company_all((company_t){.heads = 2, .kv_heads = 1, .size = 64, .dtype = DTYPE_BF16});
    failures += company_all((company_t){.heads = 3, .kv_heads = 1, .size = 40, .dtype = DTYPE_F32});
    failures += company_all((company_t){.heads = 1, .kv_heads = 1, .size = 80, .window = 300, .dtype = DTYPE_BF16});
    failures += company_all((company_t){.heads = 3, .kv_heads = 1, .size = 128, .dtype = DTYPE_BF16});
    failures += company_all((company_t){.heads = 2, .kv_heads = 1, .size = 256, .window = 300, .dtype = DTYPE_BF16});
    assert_int_equal(failures, 0);
}

// The CPU's own checks: hidden keys that hold NaN, queries that see nothing, image groups and windows in other company.
void test_attention_hidden(void **state) {
    (void)state;
    int failures = attention_hidden("sim") + attention_hidden("sim:reverse");
    failures += attention_invariance(4, 2, 32, 0, false, "sim");
    failures += attention_invariance(2, 1, 24, 19, true, "sim");
    assert_int_equal(failures, 0);
}

// ---- faults, and the table of angles ----

void test_attention_faults(void **state) {
    (void)state;
    enum { BYTES = 4 * 8 * sizeof(float) };
    float zeros[4 * 8] = {0};
    for (int fault = 0; fault < 6; fault++) {
        int32_t start[] = {0, 4}, position[] = {0}, key_start[] = {0, 4}, row[] = {0, 1, 2, 3};
        if (fault == 1) row[2] = 4;
        if (fault == 2) row[1] = -1;
        if (fault == 3) start[1] = 5;
        if (fault == 4) position[0] = -1;
        if (fault == 5) row[3] = 1; // listed twice: no place for its gradient
        lent_t lent = {.device = open_sim("")};
        device_t *device = lent.device;
        matrix_t m[8];
        for (int i = 0; i < 8; i++) m[i] = matrix_view(lend(&lent, zeros, BYTES), DTYPE_F32, 4, 8);
        attention_args_t args = {.q = m[0],
                                 .k = m[1],
                                 .v = m[2],
                                 .heads = 1,
                                 .kv_heads = 1,
                                 .head_dim = 8,
                                 .scale = 1.0f,
                                 .mask = {1, lend(&lent, start, 8), lend(&lent, position, 4), lend(&lent, key_start, 8),
                                          lend(&lent, row, 16), true, 0, NULL},
                                 .out = m[3],
                                 .lse = lend(&lent, NULL, 16)};
        attention_gradients_t gradients = {m[4], m[5], m[6], m[7]};
        assert_null(device->table->attention(device, &args));
        status_t status = device->table->synchronize(device);
        assert_int_equal(status != STATUS_OK, fault != 0 && fault != 5);
        status_free(status);
        status = device->table->attention_backward(device, &args, &gradients);
        if (status) fail_msg("%s", status_message(status));
        status = device->table->synchronize(device);
        assert_int_equal(status != STATUS_OK, fault != 0);
        if (status) assert_non_null(strstr(status_message(status), "attention"));
        status_free(status);
        lent_close(&lent);
        device_close(device);
    }
}

// A quarter of a million angles up to 131072 and some as large as they get: the CPU's bits.
void test_rope_angles(void **state) {
    (void)state;
    enum { ROWS = 4096, HALF = 64 };
    int32_t *position = calloc(ROWS, 4), axis[HALF] = {0};
    float frequency[HALF], *table[4];
    assert_non_null(position);
    for (int i = 0; i < ROWS; i++)
        position[i] = i < 4000 ? i * 131072 / 4000 : (int32_t)(2147483647u - (unsigned)i * 1000u);
    for (int j = 0; j < HALF; j++) frequency[j] = (float)pow(1e6, -(double)j / HALF);
    for (int i = 0; i < 4; i++) assert_non_null(table[i] = calloc(ROWS * HALF, 4));
    device_t *cpu, *sim = open_sim("");
    assert_null(device_open("cpu:portable", 1, &cpu));
    for (int half = 0; half < 2; half++) {
        rope_table_args_t args = {ROWS,     HALF,    {position}, axis, frequency, half ? DTYPE_BF16 : DTYPE_F32,
                                  table[0], table[1]};
        assert_null(cpu->table->rope_table(cpu, &args));
        lent_t lent = {.device = sim};
        args.position[0] = lend(&lent, position, ROWS * 4);
        args.axis = lend(&lent, axis, sizeof(axis));
        args.inverse_frequency = lend(&lent, frequency, sizeof(frequency));
        args.cosine = lend(&lent, NULL, ROWS * HALF * 4);
        args.sine = lend(&lent, NULL, ROWS * HALF * 4);
        assert_null(sim->table->rope_table(sim, &args));
        assert_null(sim->table->download(sim, table[2], args.cosine, ROWS * HALF * 4));
        assert_null(sim->table->download(sim, table[3], args.sine, ROWS * HALF * 4));
        lent_close(&lent);
        assert_memory_equal(table[0], table[2], ROWS * HALF * 4);
        assert_memory_equal(table[1], table[3], ROWS * HALF * 4);
    }
    device_close(sim);
    device_close(cpu);
    for (int i = 0; i < 4; i++) free(table[i]);
    free(position);
}
