// Scorers as the reward rank uses them: real children, their parts and weights, and what a child cannot score.
#include "rollout/reward/scorer.h"
#include "tests/lib/check.h"

#include <stdlib.h>

static scorer_pool_t *open_pool(double tag, double answer, double length) {
    scorer_options_t options = {.program = POISE_BINARY_DIR "/poise",
                                .scorers = 1,
                                .timeout_s = 60,
                                .memory_mb = 1 << 26, // sanitizers reserve far more than they use
                                .tag_weight = tag,
                                .answer_weight = answer,
                                .length_weight = length};
    scorer_pool_t *pool;
    CHECK_OK(scorer_pool_open(&options, &pool));
    return pool;
}

static scorer_result_t score(scorer_pool_t *pool, const reward_input_t *input) {
    scorer_result_t result;
    bool have;
    CHECK_OK(scorer_submit(pool, 7, 3, input));
    CHECK_OK(scorer_take(pool, 90, &result, &have));
    assert_true(have);
    assert_int_equal(result.serial, 7);
    assert_int_equal(result.index, 3);
    return result;
}

static void test_most_options(void **state) {
    (void)state;
    scorer_pool_t *pool = open_pool(1, 2, 0);
    char text[ANSWER_MOST_OPTIONS][32];
    const char *options[ANSWER_MOST_OPTIONS];
    for (int i = 0; i < ANSWER_MOST_OPTIONS; i++) {
        snprintf(text[i], sizeof(text[i]), "choice number %d", i);
        options[i] = text[i];
    }
    reward_input_t input = {.completion = "<think>x</think><answer>choice number 255</answer>",
                            .answer = "choice number 255",
                            .kind = "",
                            .options = options,
                            .option_count = ANSWER_MOST_OPTIONS,
                            .tokens = 9,
                            .budget = 12};
    scorer_result_t result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_OK);
    assert_true(result.tag == 1 && result.answer == 1 && result.reward == 3);
    input.answer = "choice number 254";
    result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_OK);
    assert_true(result.answer == 0 && result.reward == 1);
    scorer_pool_close(pool);
}

static void test_parts(void **state) {
    (void)state;
    scorer_pool_t *pool = open_pool(1, 2, -4);
    reward_input_t input = {
        .completion = "<think>x</think><answer>3</answer>", .answer = "3.0", .kind = "", .tokens = 9, .budget = 12};
    scorer_result_t result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_OK);
    assert_true(result.tag == 1 && result.answer == 1 && result.reward == 1 + 2 - 4 * 0.75);
    input.tokens = 3;
    result = score(pool, &input);
    assert_true(result.reward == 1 + 2 - 4 * 0.25);
    // Without a gold answer there is no reward where the answer is paid, and a part less where it is not.
    input.answer = "";
    result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_ERROR);
    assert_non_null(strstr(result.why, "no gold answer"));
    input.answer = NULL;
    result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_OK);
    assert_true(result.answer == 0 && result.reward == 1 - 4 * 0.25);
    scorer_pool_close(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_most_options), cmocka_unit_test(test_parts)};
    return cmocka_run_group_tests_name("scorer", tests, NULL, NULL);
}
