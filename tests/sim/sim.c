// The simulated GPU: what it must catch, with the source line, in every order of threads; and what it must compute.
#include "tests/sim/sim.h"
#include "kernels/device.h"
#include "kernels/sim/sim.h"
#include "tests/sim/faults.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { NUMBERS = 1024 };
typedef struct memory {
    float out[NUMBERS], in[NUMBERS];
    uint32_t bits[NUMBERS];
} memory_t;

static const struct {
    sim_order_t order;
    uint64_t seed;
} orders[] = {{SIM_FORWARD, 0}, {SIM_REVERSE, 0}, {SIM_SHUFFLED, 1}, {SIM_SHUFFLED, 2}, {SIM_SHUFFLED, 3}};
enum { ORDERS = sizeof(orders) / sizeof(orders[0]) };

static status_t run(const char *name, int order, memory_t *memory) {
    for (int i = 0; i < NUMBERS; i++) {
        memory->in[i] = (float)(i % 97) * 0.25f - 7.0f;
        memory->out[i] = -1.0f;
        memory->bits[i] = 0;
    }
    sim_set_order(orders[order].order, orders[order].seed);
    status_t status = fault_run(name, (fault_args_t){.out = memory->out, .bits = memory->bits, .in = memory->in});
    sim_set_order(SIM_FORWARD, 0);
    return status;
}

static void run_right(const char *name, int order, memory_t *memory) {
    status_t status = run(name, order, memory);
    if (status) fail_msg("%s: %s", name, status_message(status));
}

// The number of the line of faults.cu that is marked "LINE name".
int line_of(const char *name) {
    FILE *file = fopen(POISE_SOURCE_DIR "/tests/sim/faults.cu", "r");
    assert_non_null(file);
    char line[512], mark[64];
    int found = 0;
    snprintf(mark, sizeof(mark), "// LINE %s\n", name);
    for (int number = 1; fgets(line, sizeof(line), file); number++)
        if (strstr(line, mark)) found = number;
    fclose(file);
    assert_true(found > 0);
    return found;
}

// The launch fails, says `what`, and names the marked line, in every order.
static void caught(const char *name, const char *mark, const char *what) {
    memory_t *memory = malloc(sizeof(*memory));
    assert_non_null(memory);
    char place[64];
    snprintf(place, sizeof(place), "faults.cu:%d", line_of(mark));
    for (int order = 0; order < ORDERS; order++) {
        status_t status = run(name, order, memory);
        if (!status) fail_msg("%s: order %d does not show it", name, order);
        if (order == 0) printf("  %s\n", status_message(status));
        if (!strstr(status_message(status), what) || !strstr(status_message(status), place))
            fail_msg("%s: the message should say '%s' and '%s': %s", name, what, place, status_message(status));
        status_free(status);
    }
    free(memory);
}

static void test_races(void **state) {
    (void)state;
    caught("removed barrier", "removed barrier", "race");
    caught("write race", "write race", "race");
    caught("neighbour", "neighbour", "race");
    caught("reuse", "reuse", "race");
    caught("named", "named", "race");
}

static void test_barriers(void **state) {
    (void)state;
    caught("divergent", "divergent first", "divergent barrier");
    caught("divergent", "divergent second", "divergent barrier");
    caught("stuck", "stuck", "have ended");
}

static void test_masks(void **state) {
    (void)state;
    caught("own mask", "own mask", "lacks its own lane");
    caught("absent", "absent", " ended");
    caught("two masks", "two masks", "different masks");
    caught("unnamed", "unnamed", "reads lane 20, which the mask 0000ffff lacks");
}

static void test_bounds(void **state) {
    (void)state;
    caught("write bounds", "write bounds",
           "thread 3: out of bounds: it writes 4 bytes at byte 32 of the shared 'table'");
    caught("read bounds", "read bounds", "thread 3: out of bounds: it reads 4 bytes at byte -4 of the shared 'table'");
    caught("dynamic", "dynamic", "at byte 396 of the shared 'dynamic shared memory', which has 396");
    caught("misaligned", "misaligned", "no multiple");
#if defined(__SANITIZE_ADDRESS__)
    memory_t *memory = malloc(sizeof(*memory));
    float *out = malloc(NUMBERS * sizeof(*out));
    assert_true(memory && out);
    status_t status = fault_run("heap", (fault_args_t){.out = out, .bits = memory->bits, .in = memory->in});
    assert_non_null(status);
    char place[64];
    snprintf(place, sizeof(place), "faults.cu:%d", line_of("heap"));
    assert_non_null(strstr(status_message(status), place));
    status_free(status);
    free(out);
    free(memory);
#endif
}

static void test_launches(void **state) {
    (void)state;
    memory_t *memory = malloc(sizeof(*memory));
    assert_non_null(memory);
    status_t status = run("large block", 0, memory);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "(1025, 1, 1) threads"));
    status_free(status);
    status = run("copy", 0, memory);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "copies in flight"));
    status_free(status);
    run_right("granted", 0, memory);
    for (int i = 0; i < 64; i++) assert_true(memory->out[i] == 1.0f);
    status = run("not granted", 0, memory);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "49664 bytes of dynamic shared memory, and was not granted"));
    status_free(status);
    status = run("granted too much", 0, memory);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "a block has at most 166912"));
    status_free(status);
    free(memory);
}

// What is right stays right in every order, with the numbers it should have.
static void check_right(int order, memory_t *m) {
    run_right("sum", order, m);
    for (int i = 0; i < 128; i++) {
        float sum = 0.0f;
        for (int j = 0; j < 64; j++) sum += m->in[i / 64 * 64 + j];
        assert_true(m->out[i] == sum);
    }
    run_right("neighbour, right", order, m);
    for (int i = 0; i < 64; i++) assert_true(m->out[i] == m->in[i ^ 1]);
    run_right("reuse, right", order, m);
    for (int i = 0; i < 64; i++) assert_true(m->out[i] == 2 * m->in[63 - i] + 1);
    run_right("named, right", order, m);
    for (int i = 0; i < 32; i++) assert_true(m->out[i] == m->in[31 - i]);
    run_right("dynamic, right", order, m);
    for (int i = 0; i < 64; i++) assert_true(m->out[i] == (float)(99 - i));
    run_right("copy, right", order, m);
    for (int i = 0; i < 64; i++) assert_true(m->out[i] == (i < 62 ? m->in[i] : 0.0f));
    run_right("fresh", order, m);
    for (int i = 0; i < 128; i++) assert_true(isnan(m->out[i]));
}

static void check_warp(int order, memory_t *m) {
    run_right("warp", order, m);
    for (uint32_t t = 0; t < 64; t++) {
        uint32_t first = t / 32 * 32, lane = t % 32;
        assert_int_equal(m->bits[t], first + 3);
        assert_int_equal(m->bits[64 + t], lane < 2 ? t : t - 2);
        assert_int_equal(m->bits[128 + t], lane % 8 < 3 ? t + 5 : t);
        assert_int_equal(m->bits[192 + t], 0x49249249u);
        assert_int_equal(m->bits[256 + t], 1);
        assert_int_equal(m->bits[320 + t], 32 * first + 496);
        assert_int_equal(m->bits[384 + t], lane < 8 ? first + 7 : t ^ 1);
    }
    assert_int_equal(m->bits[448], 1 + 33);
    run_right("mma", order, m);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 0.0f;
            for (int k = 0; k < 16; k++)
                sum = fmaf(bf16_widen(bf16_round(m->in[i * 16 + k])), bf16_widen(bf16_round(m->in[(16 + j) * 16 + k])),
                           sum);
            assert_true(m->out[i * 8 + j] == sum);
        }
}

static void test_right(void **state) {
    (void)state;
    memory_t *memory = malloc(sizeof(*memory));
    assert_non_null(memory);
    for (int order = 0; order < ORDERS; order++) {
        check_right(order, memory);
        check_warp(order, memory);
    }
    // The orders are what they say: the last thread of the last block to write wins.
    run_right("order", 0, memory);
    assert_int_equal(memory->bits[0], 191);
    run_right("order", 1, memory);
    assert_int_equal(memory->bits[0], 0);
    run_right("order", 2, memory);
    uint32_t shuffled = memory->bits[0];
    run_right("order", 2, memory);
    assert_int_equal(memory->bits[0], shuffled);
    free(memory);
}

static void test_numbers(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        float x = fault_whole((uint16_t)i);
        if (isnan(x)) continue;
        assert_int_equal(fault_half(x), i);
        float wide = bf16_widen((uint16_t)i);
        if (!isnan(wide)) assert_int_equal(fault_bf16(wide), i);
    }
    assert_true(fault_whole(0x3c00) == 1.0f && fault_whole(1) == 0x1p-24f && fault_whole(0x7bff) == 65504.0f);
    assert_int_equal(fault_half(1.0f + 0x1p-11f), 0x3c00); // a tie, to even
    assert_int_equal(fault_half(1.0f + 0x1.8p-10f), 0x3c02);
    assert_int_equal(fault_half(65520.0f), 0x7c00);
    assert_int_equal(fault_bf16(1.0f + 0x1p-8f), 0x3f80);
    for (float x = -90.0f; x < 88.0f; x += 0.37f) {
        double want = x < -87.0f ? 0.0 : exp((double)x);
        assert_true(fabs((double)fault_exp(x) - want) <= want * 0x1p-22);
    }
    assert_true(isnan(fault_exp(NAN)));
}

// The parts that ctest runs one by one, and side by side.
static const struct {
    const char *name;
    CMUnitTestFunction test;
} parts[] = {
    {"simulator", test_races},
    {"simulator", test_barriers},
    {"simulator", test_masks},
    {"simulator", test_bounds},
    {"simulator", test_launches},
    {"simulator", test_right},
    {"runtime", test_runtime_deferred},
    {"runtime", test_runtime_pinned},
    {"runtime", test_runtime_events},
    {"runtime", test_runtime_event_times},
    {"runtime", test_runtime_kernels},
    {"runtime", test_runtime_copies},
    {"runtime", test_runtime_host_access},
    {"runtime", test_runtime_leaks},
    {"runtime", test_runtime_device},
    {"runtime", test_runtime_beside},
    {"runtime", test_runtime_capture},
    {"simulator", test_numbers},
    {"missing", test_ops_missing},
    {"reference", test_ops_reference},
    {"gradients", test_ops_gradients},
    {"rows", test_ops_rows},
    {"half", test_ops_half},
    {"bits", test_ops_cpu_bits},
    {"matrix", test_matrix_tiles},
    {"matrix", test_matrix_storage},
    {"matrix", test_matrix_leaves},
    {"sampled", test_matrix_sampled},
    {"matrix", test_matrix_shared},
    {"matrix", test_matrix_faults},
    {"backward", test_backward_rows},
    {"backward", test_backward_leaves},
    {"backward", test_backward_parts},
    {"backward", test_backward_attention},
    {"attention", test_attention_long},
    {"attention", test_attention_company},
    {"attention", test_attention_hidden},
    {"attention", test_attention_faults},
    {"attention", test_rope_angles},
    {"indices", test_indices},
    {"library", test_library_probe},
    {"library", test_library_results},
    {"library", test_library_memory},
    {"library", test_library_fingerprint},
};
enum { PARTS = sizeof(parts) / sizeof(parts[0]) };

// unit_sim [PART [WORD]]: PART "all" is each of them, "ops" those of the op list; rows of the op list whose name
// has WORD.
int main(int count, char **argument) {
    struct CMUnitTest tests[PARTS];
    size_t chosen = 0;
    const char *part = count > 1 ? argument[1] : "all";
    for (int i = 0; i < PARTS; i++)
        if (!strcmp(part, "all") || !strcmp(part, parts[i].name) ||
            (!strcmp(part, "ops") &&
             !strstr("simulator runtime indices matrix backward attention library", parts[i].name)))
            tests[chosen++] = (struct CMUnitTest){
                .name = parts[i].name, .test_func = parts[i].test, .initial_state = count > 2 ? argument[2] : NULL};
    if (!chosen) {
        fprintf(stderr, "unit_sim [PART [WORD]]: there is no part '%s'\n", part);
        return 2;
    }
    return _cmocka_run_group_tests("sim", tests, chosen, NULL, NULL);
}
