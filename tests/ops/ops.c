// The op list: a row per op and case. `ops_ops` checks every row; `ops_ops --bench [DEVICE [WORD]]` measures the
// large ones (whose name has the word).
#include "tests/ops/parts/attention.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const op_case_t large[] = {
    {&op_embedding, "4096 x 1024", {4096, 1024, 8192}},
    {&op_gather, "4096 x 1024", {4096, 1024, 4096}},
    {&op_scatter, "4096 x 1024", {4096, 1024, 4099}},
    {&op_pool, "64 x 64 by 4 x 4, 1152", {256, 1152, 4096, 16, 64}},
    {&op_rmsnorm, "4096 x 192", {4096, 192, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "2048 x 2048", {2048, 2048, NORM_CAST_THEN_WEIGHT}},
    {&op_layernorm, "4096 x 192", {4096, 192, 1}},
    {&op_layernorm, "577 x 1024", {577, 1024, 1}},
    {&op_layernorm, "2048 x 2048", {2048, 2048, 1}},
    {&op_rope_table, "4096 x 64", {4096, 64}},
    {&op_rope, "4096, 16 heads of 128", {4096, 64, 16}},
    {&op_activation, "silu gated 2048 x 4096", {2048, 4096, ACTIVATION_SILU, 1, 30}},
    {&op_activation, "gelu erf 2048 x 4096", {2048, 4096, ACTIVATION_GELU_ERF, 0, 30}},
    {&op_activation, "silu gated 256 x 512", {256, 512, ACTIVATION_SILU, 1, 30}},
    {&op_add, "4096 x 1024", {4096, 1024}},
    {&op_attention, "windows of 16, head 32", {1024, 4, 4, 32, LAYOUT_WINDOWS}},
    {&op_attention, "3 x 100 tokens, head 32", {300, 6, 2, 32, LAYOUT_PACKED}},
    {&op_attention, "577 of an image, head 64", {577, 16, 16, 64, LAYOUT_FULL}},
    {&op_attention, "1024 of an image, head 72", {1024, 4, 4, 72, LAYOUT_FULL}},
    {&op_attention, "512 tokens, head 64", {512, 8, 2, 64, LAYOUT_ONE}},
    {&op_attention, "2048 tokens, head 128", {2048, 8, 2, 128, LAYOUT_ONE}},
    {&op_linear, "512 x 1024 x 1024, packed", {512, 1024, 1024, 0, 0, 1}},
    {&op_linear, "300 x 192 x 512, packed", {300, 192, 512, 0, 1, 1}},
    {&op_linear, "adapter of rank 16, packed", {512, 1024, 1024, 16, 0, 1}},
    {&op_token_logprobs, "256 x 192 x 2048, packed", {256, 192, 2048, 0, 10, 1}},
    {&op_token_sample, "16 x 192 x 2048, packed", {16, 192, 2048, 0, 0, 1}},
    {&op_gradient_norm, "8 Mi", {1, 8 << 20}},
    {&op_adamw, "4 Mi", {1, 4 << 20, 3}},
};
enum { LARGE = sizeof(large) / sizeof(large[0]) };

static void test_compare(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < op_cases_count; i++) failures += harness_compare(&op_cases[i]);
    for (int i = 0; i < op_long_cases_count; i++) failures += harness_compare(&op_long_cases[i]);
    assert_int_equal(failures, 0);
}

// Every row again in bf16.
static void test_half(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < op_cases_count; i++) {
        op_case_t half = op_cases[i];
        half.shape[OP_HALF] = 1;
        failures += harness_half(&half);
        failures += harness_invariance(&half);
    }
    for (int i = 0; i < op_shared_cases_count; i++) {
        op_case_t half = op_shared_cases[i];
        half.shape[OP_HALF] = 1;
        failures += harness_threads(&half);
    }
    assert_int_equal(failures, 0);
}

static void test_threads(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < op_shared_cases_count; i++) failures += harness_threads(&op_shared_cases[i]);
    assert_int_equal(failures, 0);
}

static void test_gradients(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < op_cases_count; i++) failures += harness_gradients(&op_cases[i]);
    assert_int_equal(failures, 0);
}

static void test_invariance(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < op_cases_count; i++) failures += harness_invariance(&op_cases[i]);
    failures += attention_invariance(4, 2, 32, 0, false, "cpu");
    failures += attention_invariance(3, 1, 40, 0, false, "cpu");
    failures += attention_invariance(1, 1, 64, 21, false, "cpu");
    failures += attention_invariance(4, 2, 72, 0, true, "cpu");
    failures += attention_invariance(2, 1, 24, 19, true, "cpu");
    failures += attention_invariance(2, 1, 24, 19, true, "cpu:portable");
    assert_int_equal(failures, 0);
}

static void test_hidden_keys(void **state) {
    (void)state;
    assert_int_equal(attention_hidden("cpu"), 0);
    assert_int_equal(attention_hidden("cpu:portable"), 0);
}

static int packed_rows(void) {
    int count = 0;
    for (int i = 0; i < op_cases_count; i++) {
        bool product = op_cases[i].op == &op_linear || op_cases[i].op == &op_token_logprobs;
        count += product && op_cases[i].shape[5] != 0;
    }
    return count;
}

// House rule: every op of the device table has a row here.
static bool has_row(const char *name) {
    for (int i = 0; i < op_cases_count; i++) {
        if (!strcmp(op_cases[i].op->name, name)) return true;
        if (op_cases[i].op->backward && !strcmp(op_cases[i].op->backward, name)) return true;
    }
    // Packing shows in the rows that use a packed weight.
    return !strcmp(name, "packed_bytes") || !strcmp(name, "pack_weight") ? packed_rows() >= 2 : false;
}

static void test_every_op_has_a_row(void **state) {
    (void)state;
    static const char *const plain[] = {"open",     "close", "allocate",    "release", "upload",
                                        "download", "zero",  "synchronize", NULL};
    FILE *file = fopen(POISE_SOURCE_DIR "/kernels/device.h", "r");
    assert_non_null(file);
    char line[512];
    bool inside = false;
    int members = 0, missing = 0;
    while (fgets(line, sizeof(line), file)) {
        if (strstr(line, "typedef struct device_table {")) inside = true;
        if (strstr(line, "} device_table_t;")) break;
        char *star = inside ? strstr(line, "(*") : NULL;
        if (!star) continue;
        char name[64] = {0};
        for (int i = 0; i < 63 && (isalnum((unsigned char)star[2 + i]) || star[2 + i] == '_'); i++)
            name[i] = star[2 + i];
        bool counted = true;
        for (int i = 0; plain[i]; i++) counted = counted && strcmp(plain[i], name) != 0;
        members += counted;
        if (counted) assert_true(op_member(&device_cpu_table, name));
        if (!counted || has_row(name)) continue;
        missing++;
        fprintf(stderr, "the op %s of device_table_t has no row in tests/ops/parts/cases.c\n", name);
    }
    fclose(file);
    assert_true(members >= 24);
    assert_int_equal(missing, 0);
}

static int bench(const char *device, const char *only) {
    roofline_t roofline = harness_roofline();
    printf("roofline of one thread: %.1f GFLOP/s in FMAs, %.1f GB/s copying\n", roofline.flops * 1e-9,
           roofline.bytes * 1e-9);
    for (int i = 0; i < LARGE; i++)
        if (strstr(large[i].name, only) || strstr(large[i].op->name, only)) harness_bench(&large[i], device, roofline);
    return 0;
}

int main(int count, char **argument) {
    if (count > 1 && !strcmp(argument[1], "--bench"))
        return bench(count > 2 ? argument[2] : "cpu", count > 3 ? argument[3] : "");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_has_a_row),
        cmocka_unit_test(test_compare),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_invariance),
        cmocka_unit_test(test_hidden_keys),
        cmocka_unit_test(test_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
