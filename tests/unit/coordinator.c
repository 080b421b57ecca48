#include "rollout/reward/coordinator.h"
#include "rollout/reward/reward.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const coordinator_options_t defaults = {.prompts = 3,
                                               .completions = 2,
                                               .learners = 2,
                                               .last_step = 4,
                                               .seed = 7,
                                               .max_new_tokens = 8,
                                               .temperature = 1,
                                               .advantage_eps = 1e-4,
                                               .excluded_limit = 0.5};

static void ok(status_t status) {
    if (status) fail_msg("%s", status_message(status));
}

static void refused(status_t status, const char *part) {
    assert_non_null(status);
    if (!strstr(status_message(status), part)) fail_msg("'%s' lacks '%s'", status_message(status), part);
    status_free(status);
}

// A completion whose content follows from its place, as a worker's does.
static message_completion_t completion_of(uint64_t serial, int index, int64_t version, int length) {
    message_completion_t c = {
        .serial = serial, .index = index, .version = version, .checksum = 100 + (uint64_t)version, .length = length};
    ok(ALLOCATE(&c.tokens, length));
    ok(ALLOCATE(&c.logprobs, length));
    ok(ALLOCATE(&c.entropy, length));
    ok(memory_copy_string("text", &c.text));
    return c;
}

static status_t deliver(coordinator_t *c, uint32_t worker, uint64_t serial, int index, int64_t version, int length) {
    message_completion_t completion = completion_of(serial, index, version, length);
    bool fresh;
    status_t status = coordinator_completion(c, worker, &completion, &fresh);
    if (status) {
        free(completion.tokens);
        free(completion.logprobs);
        free(completion.entropy);
        free(completion.text);
    }
    return status;
}

// Answers every action until there is none: workers deliver at once, rewards are 1 for index 0 and 0 for the rest.
// Returns the number of plans; `assigned[serial]` gets the worker.
static int play(coordinator_t *c, uint32_t *assigned) {
    int plans = 0;
    for (;;) {
        coordinator_action_t action;
        ok(coordinator_next(c, &action));
        if (action.kind == ACTION_NONE) return plans;
        if (action.kind == ACTION_SEND_WORK) {
            if (assigned) assigned[action.work.serial] = action.worker;
            for (int i = 0; i < action.work.completions; i++)
                ok(deliver(c, action.worker, action.work.serial, i, action.work.version,
                           1 + (int)(action.work.serial % 5)));
        }
        if (action.kind == ACTION_SCORE)
            ok(coordinator_scored(c, action.serial, action.index, REWARD_OK, "", action.index == 0, 0.5,
                                  action.index == 0));
        if (action.kind == ACTION_SEND_PLAN) plans++;
    }
}

static void test_steps_in_order_without_staleness(void **state) {
    (void)state;
    coordinator_t *c;
    uint32_t assigned[16] = {0};
    ok(coordinator_open(&defaults, &c));
    ok(coordinator_worker_joined(c, 1, 2));
    ok(coordinator_worker_joined(c, 2, 2));
    assert_int_equal(play(c, assigned), 0); // no weights yet: no work
    for (int64_t step = 0; step < 4; step++) {
        ok(coordinator_weights(c, step, 100 + (uint64_t)step));
        assert_int_equal(play(c, assigned), 1);
        message_plan_t plan;
        ok(coordinator_plan(c, step, &plan));
        assert_int_equal(plan.groups, 3);
        for (int g = 0; g < 3; g++) assert_int_equal(plan.serial[g], step * 3 + g);
        message_group_t group;
        ok(coordinator_group(c, plan.serial[1], &group));
        assert_int_equal(group.version, step);
        assert_true(group.item[0].advantage > 0 && group.item[0].advantage == -group.item[1].advantage);
        coordinator_release(c, step);
    }
    ok(coordinator_weights(c, 4, 104));
    assert_int_equal(play(c, NULL), 0); // last_step: nothing more is issued
    coordinator_close(c);
}

static void test_strict_staleness_asks_for_the_older_version(void **state) {
    (void)state;
    coordinator_options_t options = defaults;
    options.staleness = 1;
    coordinator_t *c;
    ok(coordinator_open(&options, &c));
    ok(coordinator_worker_joined(c, 1, 64));
    ok(coordinator_weights(c, 0, 100));
    // Steps 0 and 1 both sample from version 0.
    assert_int_equal(play(c, NULL), 2);
    ok(coordinator_weights(c, 1, 101));
    coordinator_release(c, 0);
    coordinator_action_t action;
    ok(coordinator_next(c, &action));
    assert_int_equal(action.kind, ACTION_SEND_WEIGHTS);
    assert_int_equal(action.version, 1);
    ok(coordinator_next(c, &action));
    assert_int_equal(action.kind, ACTION_SEND_WORK);
    assert_int_equal(action.work.serial, 6);
    assert_int_equal(action.work.version, 1);
    coordinator_close(c);
}

static void test_dead_worker_loses_nothing_and_doubles_nothing(void **state) {
    (void)state;
    coordinator_t *c;
    ok(coordinator_open(&defaults, &c));
    ok(coordinator_worker_joined(c, 1, 8));
    ok(coordinator_weights(c, 0, 100));
    coordinator_action_t action;
    ok(coordinator_next(c, &action)); // weights
    for (int g = 0; g < 3; g++) ok(coordinator_next(c, &action));
    ok(deliver(c, 1, 0, 0, 0, 3)); // half of group 0, and the worker dies
    coordinator_worker_gone(c, 1);
    assert_int_equal(coordinator_get_statistics(c).reissued, 3);
    ok(coordinator_worker_joined(c, 2, 8));
    uint32_t assigned[16] = {0};
    assert_int_equal(play(c, assigned), 1);
    for (int g = 0; g < 3; g++) assert_int_equal(assigned[g], 2);
    assert_int_equal(coordinator_get_statistics(c).duplicates, 1); // completion 0 of group 0 came twice
    ok(deliver(c, 1, 0, 1, 0, 3));                                 // and a late one from the dead
    assert_int_equal(coordinator_get_statistics(c).duplicates, 2);
    coordinator_release(c, 0);
    ok(deliver(c, 1, 2, 1, 0, 3)); // even after the step is gone
    assert_int_equal(coordinator_get_statistics(c).duplicates, 3);
    coordinator_close(c);
}

static void test_wrong_completions_are_refused(void **state) {
    (void)state;
    coordinator_t *c;
    ok(coordinator_open(&defaults, &c));
    ok(coordinator_worker_joined(c, 1, 8));
    refused(coordinator_worker_joined(c, 1, 8), "twice");
    refused(coordinator_worker_joined(c, 2, 0), "credits");
    ok(coordinator_weights(c, 0, 100));
    refused(coordinator_weights(c, 0, 100), "twice");
    refused(coordinator_worker_ready(c, 1, 0, 99), "checksum");
    ok(coordinator_worker_ready(c, 1, 0, 100));
    refused(deliver(c, 1, 0, 0, 1, 3), "version 1");
    refused(deliver(c, 1, 99, 0, 0, 3), "not open");
    refused(deliver(c, 1, 0, 2, 0, 3), "out of range");
    refused(deliver(c, 1, 0, -1, 0, 3), "out of range");
    refused(deliver(c, 1, 0, 0, 0, 3), "does not hold"); // nobody was given the group yet
    refused(deliver(c, 1, UINT64_MAX, 0, 0, 3), "not open");
    refused(deliver(c, 1, 0, 0, 0, 9), "out of range");
    message_group_t group;
    message_plan_t plan;
    refused(coordinator_group(c, 0, &group), "not closed");
    refused(coordinator_plan(c, 0, &plan), "not closed");
    refused(coordinator_scored(c, 0, 0, REWARD_OK, "", 1, 1, 1), "waits for none");
    coordinator_close(c);
}

// Plays until the step is planned or refused. Completions whose place has a bit in `timeouts` or `errors` have no
// reward; the others' reward is their place.
static status_t play_excluding(coordinator_t *c, unsigned timeouts, unsigned errors) {
    for (;;) {
        coordinator_action_t action;
        TRY(coordinator_next(c, &action));
        if (action.kind == ACTION_SEND_PLAN) return STATUS_OK;
        assert_int_not_equal(action.kind, ACTION_NONE);
        if (action.kind == ACTION_SEND_WORK)
            for (int i = 0; i < action.work.completions; i++) ok(deliver(c, 1, action.work.serial, i, 0, 2));
        if (action.kind != ACTION_SCORE) continue;
        int place = (int)action.serial * 4 + action.index;
        reward_outcome_t outcome = timeouts >> place & 1 ? REWARD_TIMEOUT
                                   : errors >> place & 1 ? REWARD_ERROR
                                                         : REWARD_OK;
        const char *why = outcome == REWARD_TIMEOUT ? "too slow" : place % 2 ? "odd" : "even";
        TRY(coordinator_scored(c, action.serial, action.index, outcome, outcome ? why : "", place, 0, 0));
    }
}

static coordinator_t *open_four(double limit) {
    coordinator_options_t options = defaults;
    options.completions = 4;
    options.excluded_limit = limit;
    coordinator_t *c;
    ok(coordinator_open(&options, &c));
    ok(coordinator_worker_joined(c, 1, 8));
    ok(coordinator_weights(c, 0, 100));
    return c;
}

static void test_excluded_share_stops_the_run(void **state) {
    (void)state;
    // Five of twelve may have none, six of twelve at a limit of a half, seven not.
    coordinator_t *c = open_four(0.5);
    ok(play_excluding(c, 0x00f, 0x030));
    message_plan_t plan;
    ok(coordinator_plan(c, 0, &plan));
    assert_true(plan.excluded == 6 && plan.timeouts == 4 && plan.sequences == 6 && plan.completion_tokens == 12);
    coordinator_close(c);
    c = open_four(0.5);
    status_t status = play_excluding(c, 0x003, 0x2a7c);
    assert_non_null(strstr(status_message(status), "7 of the 12 completions of step 0 have no reward (2 ran out of "
                                                   "time, 5 failed), which is more than grpo.excluded_limit (0.5)"));
    refused(status, "the most frequent reason, 3 times: even;");
    coordinator_close(c);
    c = open_four(0); // not one
    refused(play_excluding(c, 0x800, 0), "reason, 1 times: too slow;");
    coordinator_close(c);
}

// Advantages are those of a group in which the excluded were never there.
static void test_excluded_completions_do_not_count(void **state) {
    (void)state;
    coordinator_t *c = open_four(0.9);
    ok(play_excluding(c, 0x002, 0xe10)); // group 0: place 1; group 1: place 4; group 2: all but place 8
    for (uint64_t serial = 0; serial < 3; serial++) {
        message_group_t group;
        ok(coordinator_group(c, serial, &group));
        double reward[4], expected[4];
        int counted = 0, place[4];
        for (int i = 0; i < 4; i++) {
            int bit = (int)serial * 4 + i;
            bool out = (0x002 | 0xe10) >> bit & 1;
            assert_int_equal(group.item[i].excluded, out);
            if (out) {
                assert_true(group.item[i].advantage == 0 && group.item[i].reward == 0);
                continue;
            }
            place[counted] = i;
            reward[counted++] = bit;
        }
        bool none[4] = {false}, spread;
        reward_group_advantages(reward, none, counted, defaults.advantage_eps, expected, &spread);
        assert_int_equal(spread, counted > 1);
        for (int k = 0; k < counted; k++) {
            assert_true(group.item[place[k]].advantage == expected[k]);
            assert_true((expected[k] != 0) == spread || reward[k] == (reward[0] + reward[counted - 1]) / 2);
        }
    }
    message_plan_t plan;
    ok(coordinator_plan(c, 0, &plan));
    assert_int_equal(plan.spreadless, 1);
    coordinator_close(c);
}

static void test_plan_is_balanced_by_tokens(void **state) {
    (void)state;
    coordinator_options_t options = defaults;
    options.prompts = 64;
    coordinator_t *c;
    ok(coordinator_open(&options, &c));
    ok(coordinator_worker_joined(c, 1, 100));
    ok(coordinator_weights(c, 0, 100));
    assert_int_equal(play(c, NULL), 1);
    message_plan_t plan;
    ok(coordinator_plan(c, 0, &plan));
    int64_t total[2] = {0};
    for (int g = 0; g < 64; g++) total[plan.owner[g]] += plan.tokens[g];
    assert_int_equal(total[0] + total[1], plan.completion_tokens);
    int64_t difference = total[0] - total[1];
    assert_true(difference <= 2 && difference >= -2);
    coordinator_close(c);
}

static void test_advantages(void **state) {
    (void)state;
    double advantage[8], rewards[8] = {0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9};
    bool excluded[8] = {false}, spread;
    reward_group_advantages(rewards, excluded, 8, 1e-4, advantage, &spread);
    assert_false(spread);
    for (int i = 0; i < 8; i++) assert_true(advantage[i] == 0);
    double mixed[4] = {1, 2, 3, 100};
    bool out[4] = {false, false, false, true};
    reward_group_advantages(mixed, out, 4, 0, advantage, &spread);
    assert_true(spread && advantage[0] == -1 && advantage[1] == 0 && advantage[2] == 1 && advantage[3] == 0);
    bool most[4] = {true, true, false, true};
    reward_group_advantages(mixed, most, 4, 1e-4, advantage, &spread);
    assert_false(spread);
    for (int i = 0; i < 4; i++) assert_true(advantage[i] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_in_order_without_staleness),
        cmocka_unit_test(test_strict_staleness_asks_for_the_older_version),
        cmocka_unit_test(test_dead_worker_loses_nothing_and_doubles_nothing),
        cmocka_unit_test(test_wrong_completions_are_refused),
        cmocka_unit_test(test_excluded_share_stops_the_run),
        cmocka_unit_test(test_excluded_completions_do_not_count),
        cmocka_unit_test(test_plan_is_balanced_by_tokens),
        cmocka_unit_test(test_advantages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
