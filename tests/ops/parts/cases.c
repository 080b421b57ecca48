// The op list's rows.
#include "tests/ops/parts/attention.h"

#include <stddef.h>
#include <string.h>

const op_case_t op_cases[] = {
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
    {&op_rmsnorm, "long leaf", {200, 40, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "wide", {5, 4520, NORM_CAST_THEN_WEIGHT}},
    {&op_rmsnorm, "one column", {9, 1, NORM_ONE_PLUS_WEIGHT}},
    {&op_layernorm, "clip", {67, 48, 1}},
    {&op_layernorm, "odd", {31, 83, 1}},
    {&op_layernorm, "long leaf", {200, 41, 1}},
    {&op_layernorm, "wide", {4, 4101, 1}},
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
    {&op_linear, "one row", {1, 33, 65}},
    {&op_linear, "whole tiles, bias", {64, 96, 64, 0, 1}},
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
    {&op_adamw, "a probe that finds nothing", {1, 1100, 3, 1}},
    {&op_adamw, "a probe that finds one", {1, 1100, 3, 1, 1050}},
};
const int op_cases_count = sizeof(op_cases) / sizeof(op_cases[0]);

// Too long for finite differences: these are compared with the reference alone.
const op_case_t op_long_cases[] = {
    {&op_attention, "a clip image, head 64", {577, 2, 2, 64, LAYOUT_FULL}},
    {&op_attention, "a siglip image, head 72", {729, 1, 1, 72, LAYOUT_FULL}},
    {&op_attention, "three smaller images", {577, 1, 1, 64, LAYOUT_IMAGES}},
    {&op_attention, "image groups, long", {400, 2, 1, 64, LAYOUT_GROUPS}},
    {&op_attention, "image groups, long, window", {400, 2, 1, 64, LAYOUT_GROUPS_LONG, 50}},
};
const int op_long_cases_count = sizeof(op_long_cases) / sizeof(op_long_cases[0]);

// Large enough that every op shares its work out.
const op_case_t op_shared_cases[] = {
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
const int op_shared_cases_count = sizeof(op_shared_cases) / sizeof(op_shared_cases[0]);

// Every op of device_table_t, and where it stands there.
#define MEMBER(name)                                                                                                   \
    { #name, offsetof(device_table_t, name) }
static const struct {
    const char *name;
    size_t at;
} members[] = {
    MEMBER(packed_bytes),
    MEMBER(pack_weight),
    MEMBER(linear),
    MEMBER(linear_backward),
    MEMBER(embedding),
    MEMBER(embedding_backward),
    MEMBER(gather_rows),
    MEMBER(gather_rows_backward),
    MEMBER(scatter_rows),
    MEMBER(scatter_rows_backward),
    MEMBER(pool_rows),
    MEMBER(pool_rows_backward),
    MEMBER(rmsnorm),
    MEMBER(rmsnorm_backward),
    MEMBER(layernorm),
    MEMBER(layernorm_backward),
    MEMBER(rope_table),
    MEMBER(rope),
    MEMBER(attention),
    MEMBER(attention_backward),
    MEMBER(activation),
    MEMBER(activation_backward),
    MEMBER(add),
    MEMBER(token_logprobs),
    MEMBER(token_logprobs_backward),
    MEMBER(token_sample),
    MEMBER(gradient_norm),
    MEMBER(adamw),
};

bool op_member(const device_table_t *table, const char *name) {
    void (*function)(void) = NULL;
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
        if (!strcmp(members[i].name, name)) memcpy(&function, (const char *)table + members[i].at, sizeof(function));
    return function != NULL;
}
