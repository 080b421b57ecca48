// Attention and rope on the simulator.
#include "tests/ops/parts/attention.h"
#include "tests/sim/sim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const op_case_t cases[] = {
    {&op_attention, "causal", {70, 4, 2, 32, LAYOUT_ONE}},
    {&op_attention, "packed, head 40", {60, 6, 2, 40, LAYOUT_PACKED}},
    {&op_attention, "windows", {75, 2, 2, 32, LAYOUT_WINDOWS}},
    {&op_attention, "shared prefix", {66, 4, 2, 24, LAYOUT_SHARED}},
    {&op_attention, "pages, 7 to 1", {45, 7, 1, 64, LAYOUT_PAGED}},
    {&op_attention, "window of 9", {90, 2, 1, 17, LAYOUT_ONE, 9}},
    {&op_attention, "window of 40, packed", {150, 3, 3, 8, LAYOUT_PACKED, 40}},
    {&op_attention, "image groups", {90, 2, 1, 36, LAYOUT_GROUPS}},
    {&op_attention, "image groups, window", {90, 2, 2, 20, LAYOUT_GROUPS, 7}},
    {&op_attention, "image groups, long, window", {130, 2, 1, 40, LAYOUT_GROUPS_LONG, 33}},
    {&op_attention, "image groups, window of 1", {130, 2, 1, 16, LAYOUT_GROUPS_LONG, 1}},
    {&op_attention, "image groups, shared prefix", {129, 4, 1, 32, LAYOUT_GROUPS_SHARED}},
    {&op_attention, "image groups, pages", {90, 3, 1, 20, LAYOUT_GROUPS_PAGED}},
    {&op_attention, "all see all, head 72", {81, 2, 2, 72, LAYOUT_FULL}},
    {&op_attention, "all see all, head 80", {49, 1, 1, 80, LAYOUT_FULL}},
    {&op_attention, "all see all, head 88", {65, 2, 2, 88, LAYOUT_FULL}},
    {&op_attention, "all see all, head 128", {40, 2, 2, 128, LAYOUT_FULL}},
    {&op_attention, "three images, head 72", {111, 2, 2, 72, LAYOUT_IMAGES}},
    {&op_attention, "head 256", {20, 2, 1, 256, LAYOUT_ONE}},
    {&op_attention, "long list", {530, 2, 1, 64, LAYOUT_ONE}},
};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };

static device_t *open_sim(const char *order) {
    device_t *device;
    status_t status = device_open_table(&device_sim_table, order, 1, &device);
    if (status) fail_msg("%s", status_message(status));
    return device;
}

void test_attention_reference(void **state) {
    (void)state;
    int failures = 0;
    op_t forward = op_attention;
    forward.run_backward = NULL;
    device_t *device = open_sim("");
    for (int i = 0; i < CASES; i++) {
        op_case_t row = cases[i];
        row.op = &forward;
        failures += harness_compare_on(&row, device);
    }
    device_close(device);
    assert_int_equal(failures, 0);
}
