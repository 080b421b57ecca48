// Word problems: every trace follows from its story and ends in its answer, no two splits share a problem, and a
// problem does not depend on how many others are made.
#include "launch/word_problems/problem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PROBLEMS = 3000 };

static problem_t problem_of(uint64_t seed, problem_split_t split, uint64_t item) {
    problem_t problem;
    draws_t draws = {.seed = seed, .item = item, .split = (uint32_t)split};
    problem_make(&draws, split, &problem);
    return problem;
}

// Calculates the "a sign b = c" of a text, and returns how many there are; the last c goes to *last.
static int calculate(const char *text, int *last) {
    int found = 0, left, right, result;
    char sign;
    for (const char *at = text; *at; at++) {
        bool begins = *at >= '0' && *at <= '9' && (at == text || at[-1] < '0' || at[-1] > '9');
        if (!begins || sscanf(at, "%d %c %d = %d", &left, &sign, &right, &result) != 4) continue;
        int right_result = sign == '+' ? left + right : sign == '-' ? left - right : sign == '*' ? left * right : -1;
        if (sign == '/') {
            assert_int_equal(left % right, 0);
            right_result = left / right;
        }
        assert_int_equal(result, right_result);
        *last = result;
        found++;
    }
    return found;
}

static int numbers_in(const char *text, int *out, int most) {
    int count = 0;
    for (char *end; *text && count < most; text = end) {
        if (*text < '0' || *text > '9') {
            end = (char *)text + 1;
            continue;
        }
        out[count++] = (int)strtol(text, &end, 10);
    }
    return count;
}

static void test_traces_follow(void **state) {
    (void)state;
    int steps[PROBLEM_STEPS + 1] = {0}, events[PROBLEM_EVENTS] = {0};
    for (uint64_t i = 0; i < PROBLEMS; i++) {
        problem_t p = problem_of(3, PROBLEM_SFT, i);
        int last = -1, told[16];
        assert_int_equal(calculate(p.trace, &last), p.steps);
        assert_int_equal(last, p.answer);
        assert_in_range(p.steps, 2, 3);
        assert_in_range(p.answer, 1, PROBLEM_LARGEST);
        assert_null(strchr(p.text, '$'));
        assert_null(strchr(p.trace, '$'));
        assert_true(strlen(p.text) < 300 && strlen(p.trace) < 200);
        assert_int_equal(p.text[strlen(p.text) - 1], '?');
        // The story tells the numbers that were drawn, in their order, and no other.
        assert_int_equal(numbers_in(p.text, told, 16), p.numbers);
        for (int n = 0; n < p.numbers; n++) assert_int_equal(told[n], p.number[n]);
        steps[p.steps]++;
        for (int e = 0; e < 4; e++) events[p.event[e]]++;
    }
    assert_true(steps[2] > PROBLEMS / 4 && steps[3] > PROBLEMS / 4);
    for (int e = OPEN_HAVE; e < PROBLEM_EVENTS; e++) assert_true(events[e] > PROBLEMS / 100);
}

static void key_of(const problem_t *p, char out[80]) {
    int at = snprintf(out, 80, "%d %d %d %d:", p->event[0], p->event[1], p->event[2], p->event[3]);
    for (int i = 0; i < p->numbers; i++) at += snprintf(out + at, 80 - (size_t)at, " %d", p->number[i]);
}

typedef struct entry {
    char text[80];
    problem_split_t split;
} entry_t;

static int by_text(const void *a, const void *b) {
    return strcmp(((const entry_t *)a)->text, ((const entry_t *)b)->text);
}

// Over several seeds, so that a model trained on one seed's data may be tested on another's.
static void test_splits_are_disjoint(void **state) {
    (void)state;
    int count = PROBLEM_SPLITS * PROBLEMS, repeated = 0;
    entry_t *keys = calloc((size_t)count, sizeof(*keys));
    assert_non_null(keys);
    for (int i = 0; i < count; i++) {
        keys[i].split = (problem_split_t)(i % PROBLEM_SPLITS);
        problem_t p = problem_of((uint64_t)(i % 3), keys[i].split, (uint64_t)i);
        key_of(&p, keys[i].text);
    }
    qsort(keys, (size_t)count, sizeof(*keys), by_text);
    for (int i = 1; i < count; i++) {
        if (strcmp(keys[i].text, keys[i - 1].text) != 0) continue;
        assert_int_equal(keys[i].split, keys[i - 1].split);
        repeated++;
    }
    assert_true(repeated > 0); // or nothing was compared
    free(keys);
}

static void test_items_stand_alone(void **state) {
    (void)state;
    problem_t late = problem_of(5, PROBLEM_TEST, 70), again = problem_of(5, PROBLEM_TEST, 70),
              other = problem_of(6, PROBLEM_TEST, 70);
    assert_string_equal(late.text, again.text);
    assert_string_equal(late.trace, again.trace);
    assert_string_not_equal(late.text, other.text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_traces_follow), cmocka_unit_test(test_splits_are_disjoint),
                                       cmocka_unit_test(test_items_stand_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
