// A world of one process, started without mpirun: every collective is the short way.
#include "common/comm/comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void check(status_t status) {
    if (status) status_print(status, stderr, -1, true);
    assert_null(status);
}

static void test_alone(void **state) {
    (void)state;
    comm_t *world = NULL, *part = NULL;
    int64_t numbers[3] = {1, -2, 3}, offset[2] = {0, 3};
    double reals[1] = {0.5};
    char **strings = NULL;
    check(comm_open_world(10, NULL, &world));
    assert_int_equal(comm_size(world), 1);
    assert_int_equal(comm_rank(world), 0);
    assert_int_equal(comm_local_rank(world), 0);
    assert_int_equal(comm_hosts(world), 1);
    check(comm_barrier(world, "alone"));
    check(comm_broadcast(world, numbers, sizeof(numbers), 0, "alone"));
    check(comm_all_reduce_i64(world, numbers, 3, COMM_SUM, "alone"));
    check(comm_all_reduce_f64(world, reals, 1, COMM_MAX, "alone"));
    check(comm_reduce_scatter_i64(world, numbers, offset, "alone"));
    check(comm_all_gather(world, numbers, offset, "alone"));
    assert_true(numbers[0] == 1 && numbers[1] == -2 && numbers[2] == 3 && reals[0] == 0.5);
    check(comm_gather_strings(world, "me", &strings, "alone"));
    assert_string_equal(strings[0], "me");
    free(strings[0]);
    free(strings);
    check(comm_split(world, 3, &part));
    assert_int_equal(comm_size(part), 1);
    comm_close(part);
    check(comm_split(world, -1, &part));
    assert_null(part);
    check(comm_close_world(world));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
