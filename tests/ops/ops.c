// The op list: a row per op and case. `ops_ops` checks every row; `ops_ops --bench [DEVICE [WORD]]` measures the
// large ones (whose name has the word).
#include "tests/ops/parts/attention.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const op_case_t cases[] = {
    {&op_embedding, "small", {70, 37, 19}},
    {&op_embedding, "wide", {20, 256, 50}},
    {&op_gather, "with gaps", {60, 33, 17}},
    {&op_gather, "wide", {30, 192, 90}},
    {&op_scatter, "with gaps", {40, 33, 53}},
    {&op_scatter, "all", {16, 130, 17}},
    {&op_pool, "4 x 4 of a grid", {16, 50, 256, 16, 16}},
    {&op_pool, "repeated rows", {40, 33, 13, 7}},
    {&op_pool, "mean of one", {9, 20, 15, 1}},
    {&op_rmsnorm, "qwen", {67, 48, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "qwen, odd", {30, 83, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "gemma", {35, 256, NORM_ONE_PLUS_WEIGHT}},
    {&op_rmsnorm, "one column", {9, 1, NORM_ONE_PLUS_WEIGHT}},
    {&op_layernorm, "clip", {67, 48, 1}},
    {&op_layernorm, "odd", {31, 83, 1}},
    {&op_layernorm, "no bias", {18, 130, 0}},
    {&op_layernorm, "far from 0", {13, 96, 1, 300}},
    {&op_layernorm, "under a vector", {9, 7, 1}},
    {&op_layernorm, "one column", {6, 1, 1}},
    {&op_rope_table, "three axes", {50, 20}},
    {&op_rope, "head 32", {40, 16, 6}},
    {&op_rope, "head 80", {21, 40, 2}},
    {&op_rope, "head 10", {33, 5, 3}},
    {&op_activation, "silu", {31, 50, ACTIVATION_SILU, 0, 60}},
    {&op_activation, "silu, gated", {64, 40, ACTIVATION_SILU, 1, 60}},
    {&op_activation, "gelu erf", {31, 50, ACTIVATION_GELU_ERF, 0, 60}},
    {&op_activation, "gelu erf, gated", {9, 129, ACTIVATION_GELU_ERF, 1, 150}},
    {&op_activation, "gelu erf, near 0", {31, 50, ACTIVATION_GELU_ERF, 0, 12}},
    {&op_activation, "gelu tanh", {31, 50, ACTIVATION_GELU_TANH, 0, 60}},
    {&op_activation, "gelu tanh, gated", {17, 64, ACTIVATION_GELU_TANH, 1, 40}},
    {&op_activation, "quick gelu", {31, 50, ACTIVATION_QUICK_GELU, 0, 60}},
    {&op_activation, "quick gelu, gated", {17, 64, ACTIVATION_QUICK_GELU, 1, 1500}},
    {&op_add, "odd", {40, 51}},
    {&op_attention, "causal", {70, 4, 2, 32, LAYOUT_ONE}},
    {&op_attention, "causal, long, 1 head", {150, 1, 1, 16, LAYOUT_ONE}},
    {&op_attention, "packed, head 40", {60, 6, 2, 40, LAYOUT_PACKED}},
    {&op_attention, "windows", {75, 2, 2, 32, LAYOUT_WINDOWS}},
    {&op_attention, "shared prefix", {66, 4, 2, 24, LAYOUT_SHARED}},
    {&op_attention, "pages, 7 to 1", {45, 7, 1, 64, LAYOUT_PAGED}},
    {&op_attention, "window of 9", {90, 2, 1, 17, LAYOUT_ONE, 9}},
    {&op_attention, "window of 40, packed", {150, 3, 3, 8, LAYOUT_PACKED, 40}},
    {&op_attention, "image groups", {90, 2, 1, 36, LAYOUT_GROUPS}},
    {&op_attention, "image groups, window", {90, 2, 2, 20, LAYOUT_GROUPS, 7}},
    {&op_attention, "image groups, long", {130, 4, 2, 24, LAYOUT_GROUPS_LONG}},
    {&op_attention, "image groups, long, window", {130, 2, 1, 40, LAYOUT_GROUPS_LONG, 33}},
    {&op_attention, "image groups, window of 1", {130, 2, 1, 16, LAYOUT_GROUPS_LONG, 1}},
    {&op_attention, "image groups, wide window", {130, 1, 1, 16, LAYOUT_GROUPS_LONG, 100}},
    {&op_attention, "image groups, shared prefix", {129, 4, 1, 32, LAYOUT_GROUPS_SHARED}},
    {&op_attention, "image groups, shared prefix, window", {129, 2, 2, 16, LAYOUT_GROUPS_SHARED, 11}},
    {&op_attention, "image groups, pages", {90, 3, 1, 20, LAYOUT_GROUPS_PAGED}},
    {&op_attention, "image groups, pages, window", {90, 2, 1, 256, LAYOUT_GROUPS_PAGED, 6}},
    {&op_attention, "all see all, head 64", {50, 2, 2, 64, LAYOUT_FULL}},
    {&op_attention, "all see all, head 72", {81, 2, 2, 72, LAYOUT_FULL}},
    {&op_attention, "all see all, head 80", {49, 1, 1, 80, LAYOUT_FULL}},
    {&op_attention, "all see all, head 88", {65, 2, 2, 88, LAYOUT_FULL}},
    {&op_attention, "all see all, head 128", {40, 2, 2, 128, LAYOUT_FULL}},
    {&op_attention, "all see all, head 256", {33, 1, 1, 256, LAYOUT_FULL}},
    {&op_attention, "three images, head 72", {111, 2, 2, 72, LAYOUT_IMAGES}},
    {&op_attention, "head 256", {20, 2, 1, 256, LAYOUT_ONE}},
    {&op_linear, "plain", {33, 70, 41}},
    {&op_linear, "bias, packed", {70, 48, 130, 0, 1, 1}},
    {&op_linear, "adapter", {29, 96, 50, 4}},
    {&op_linear, "adapter, bias, packed", {40, 33, 64, 8, 1, 1}},
    {&op_token_logprobs, "all rows", {33, 24, 150, 0, 10}},
    {&op_token_logprobs, "half the rows, packed", {20, 40, 333, 1, 7, 1}},
    {&op_token_sample, "plain", {40, 24, 150}},
    {&op_token_sample, "banned ids, packed", {35, 33, 600, 20, 0, 1}},
    {&op_gradient_norm, "two blocks and a bit", {1, 8 + 2 * GRADIENT_BLOCK}},
    {&op_adamw, "first step", {1, 203, 1}},
    {&op_adamw, "step 7", {1, 1000, 7}},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };

// Too long for finite differences: these are compared with the reference alone.
static const op_case_t long_ones[] = {
    {&op_attention, "a clip image, head 64", {577, 2, 2, 64, LAYOUT_FULL}},
    {&op_attention, "a siglip image, head 72", {729, 1, 1, 72, LAYOUT_FULL}},
    {&op_attention, "three smaller images", {577, 1, 1, 64, LAYOUT_IMAGES}},
    {&op_attention, "image groups, long", {400, 2, 1, 64, LAYOUT_GROUPS}},
    {&op_attention, "image groups, long, window", {400, 2, 1, 64, LAYOUT_GROUPS_LONG, 50}},
};
enum { LONG_ONES = sizeof(long_ones) / sizeof(long_ones[0]) };

// Large enough that every op shares its work out.
static const op_case_t shared[] = {
    {&op_embedding, "repeated tokens", {400, 512, 30}},
    {&op_gather, "repeated rows", {400, 512, 50}},
    {&op_scatter, "all", {400, 512, 401}},
    {&op_pool, "repeated rows", {300, 257, 200, 4}},
    {&op_rmsnorm, "qwen", {301, 515, NORM_CAST_THEN_WEIGHT}},
    {&op_layernorm, "odd", {301, 515, 1}},
    {&op_rope_table, "long", {400, 64}},
    {&op_rope, "head 64", {300, 32, 9}},
    {&op_activation, "silu, gated", {300, 257, ACTIVATION_SILU, 1, 60}},
    {&op_add, "odd", {300, 501}},
    {&op_attention, "one long sequence, 1 key head", {330, 3, 1, 32, LAYOUT_ONE}},
    {&op_attention, "shared prefix, 2 key heads", {300, 4, 2, 40, LAYOUT_SHARED}},
    {&op_attention, "windows", {400, 3, 3, 32, LAYOUT_WINDOWS}},
    {&op_attention, "packed, window of 50", {300, 2, 1, 64, LAYOUT_PACKED, 50}},
    {&op_attention, "groups", {300, 2, 2, 24, LAYOUT_GROUPS}},
    {&op_attention, "groups, long, window", {300, 2, 1, 24, LAYOUT_GROUPS_LONG, 30}},
    {&op_attention, "groups, shared prefix", {300, 2, 1, 24, LAYOUT_GROUPS_SHARED}},
    {&op_attention, "all see all", {300, 3, 3, 72, LAYOUT_FULL}},
    {&op_linear, "adapter, bias, packed", {200, 100, 190, 8, 1, 1}},
    {&op_token_logprobs, "half the rows, packed", {90, 64, 700, 1, 7, 1}},
    {&op_token_sample, "banned ids, packed", {90, 64, 700, 20, 0, 1}},
    {&op_gradient_norm, "many blocks", {1, 20 * GRADIENT_BLOCK + 5}},
    {&op_adamw, "step 3", {1, 50001, 3}},
};
enum { SHARED = sizeof(shared) / sizeof(shared[0]) };

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
    for (int i = 0; i < CASES; i++) failures += harness_compare(&cases[i]);
    for (int i = 0; i < LONG_ONES; i++) failures += harness_compare(&long_ones[i]);
    assert_int_equal(failures, 0);
}

// Every row again in bf16.
static void test_half(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < CASES; i++) {
        op_case_t half = cases[i];
        half.shape[OP_HALF] = 1;
        failures += harness_half(&half);
        failures += harness_invariance(&half);
    }
    for (int i = 0; i < SHARED; i++) {
        op_case_t half = shared[i];
        half.shape[OP_HALF] = 1;
        failures += harness_threads(&half);
    }
    assert_int_equal(failures, 0);
}

static void test_threads(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < SHARED; i++) failures += harness_threads(&shared[i]);
    assert_int_equal(failures, 0);
}

static void test_gradients(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < CASES; i++) failures += harness_gradients(&cases[i]);
    assert_int_equal(failures, 0);
}

static void test_invariance(void **state) {
    (void)state;
    int failures = 0;
    for (int i = 0; i < CASES; i++) failures += harness_invariance(&cases[i]);
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
    for (int i = 0; i < CASES; i++) {
        bool product = cases[i].op == &op_linear || cases[i].op == &op_token_logprobs;
        count += product && cases[i].shape[5] != 0;
    }
    return count;
}

// House rule: every op of the device table has a row here.
static bool has_row(const char *name) {
    for (int i = 0; i < CASES; i++) {
        if (!strcmp(cases[i].op->name, name)) return true;
        if (cases[i].op->backward && !strcmp(cases[i].op->backward, name)) return true;
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
        if (!counted || has_row(name)) continue;
        missing++;
        fprintf(stderr, "the op %s of device_table_t has no row in tests/ops/ops.c\n", name);
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
