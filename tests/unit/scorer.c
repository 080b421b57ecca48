// Scorers as the reward rank uses them: real children, their parts and weights, and what a child cannot score.
#include "rollout/reward/scorer.h"
#include "common/comm/clock.h"
#include "tests/lib/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static scorer_pool_t *open_program(const char *program, int scorers, double timeout_s, int64_t memory_mb) {
    scorer_options_t options = {.program = program,
                                .scorers = scorers,
                                .timeout_s = timeout_s,
                                .memory_mb = memory_mb,
                                .tag_weight = 1,
                                .answer_weight = 2};
    scorer_pool_t *pool;
    CHECK_OK(scorer_pool_open(&options, &pool));
    return pool;
}

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

// ---- scorers that misbehave: tests/faults/scorer.c ----

static const char faulty[] = POISE_BINARY_DIR "/tests/poise_faults";
enum { MEMORY_MB = 512, ALL_OF_IT = 1 << 26 };

// Processes that have this test's mark in their environment: all that scorers have started, wherever they are.
static int marked_processes(void) {
    char mark[64], path[300];
    static char text[1 << 16];
    int count = 0;
    snprintf(mark, sizeof(mark), "POISE_SCORER_MARK=%d", (int)getpid());
    DIR *folder = opendir("/proc");
    for (const struct dirent *entry; (entry = readdir(folder));) {
        snprintf(path, sizeof(path), "/proc/%s/environ", entry->d_name);
        int file = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        ssize_t size = file < 0 ? 0 : read(file, text, sizeof(text));
        if (file >= 0) close(file);
        count += size > 0 && memmem(text, (size_t)size, mark, strlen(mark) + 1) != NULL;
    }
    closedir(folder);
    return count;
}

static int open_faults(void **state) {
    (void)state;
    char mark[32];
    snprintf(mark, sizeof(mark), "%d", (int)getpid());
    setenv("POISE_SCORER_MARK", mark, 1);
    setenv("POISE_SCORER_FAULT", "text", 1);
    return access(faulty, X_OK);
}
static int close_faults(void **state) {
    (void)state;
    unsetenv("POISE_SCORER_FAULT");
    return 0;
}

static reward_input_t with_fault(const char *kind, char text[128]) {
    snprintf(text, 128, "<think>x [fault %s]</think><answer>3</answer>", kind);
    return (reward_input_t){.completion = text, .answer = "3", .kind = "", .tokens = 9, .budget = 12};
}

static void submit(scorer_pool_t *pool, uint64_t serial, const char *kind) {
    char text[128];
    reward_input_t input = with_fault(kind, text);
    CHECK_OK(scorer_submit(pool, serial, 0, &input));
}

static scorer_result_t take(scorer_pool_t *pool) {
    scorer_result_t result;
    bool have;
    CHECK_OK(scorer_take(pool, 90, &result, &have));
    assert_true(have);
    return result;
}

// Every kind that fails at once, with a scorer that has scored before (so each is tried on a fresh one, too): an error
// that says what happened, and whoever comes next is scored.
static void test_failing_scorers(void **state) {
    (void)state;
    static const struct {
        const char *kind, *why;
    } cases[] = {{"crash", "was ended by signal 11"},
                 {"exit", "ended with code 3"},
                 {"garbage", "its answer makes no sense"},
                 {"flood", "its answer has no end"},
                 {"memory", "ended with code 4; it said: out of memory"},
                 {"close", "it has closed its connection"},
                 {"stale", "its answer makes no sense"}};
    // Sanitizers reserve more address space than any limit that a test could fill.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const bool limited = false;
#else
    const bool limited = true;
#endif
    scorer_pool_t *pool = open_program(faulty, 1, 60, limited ? MEMORY_MB : ALL_OF_IT);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (!limited && !strcmp(cases[i].kind, "memory")) continue;
        submit(pool, 2 * i, "none");
        assert_int_equal(take(pool).outcome, REWARD_OK);
        submit(pool, 2 * i + 1, cases[i].kind);
        scorer_result_t result = take(pool);
        assert_int_equal(result.outcome, REWARD_ERROR);
        assert_int_equal(result.serial, 2 * i + 1);
        assert_true(result.reward == 0 && result.tag == 0 && result.answer == 0);
        if (!strstr(result.why, cases[i].why)) fail_msg("%s: '%s' lacks '%s'", cases[i].kind, result.why, cases[i].why);
        assert_int_equal(marked_processes(), 0);
    }
    scorer_pool_close(pool);
}

// Every kind that never answers, all at once: late by no more than it takes to look, and nothing of them is left, be it
// deaf to signals, stopped, or in a session of its own.
static void test_hanging_scorers(void **state) {
    (void)state;
    static const char *const kinds[] = {"hang", "deaf", "half", "fork", "stop"};
    enum { COUNT = sizeof(kinds) / sizeof(kinds[0]) };
    scorer_pool_t *pool = open_program(faulty, COUNT, 2, ALL_OF_IT);
    double started = clock_seconds();
    for (uint64_t i = 0; i < COUNT; i++) submit(pool, i, kinds[i]);
    assert_false(scorer_pool_free(pool));
    for (int i = 0; i < COUNT; i++) {
        scorer_result_t result = take(pool);
        assert_int_equal(result.outcome, REWARD_TIMEOUT);
        assert_non_null(strstr(result.why, "not scored within 2 s"));
    }
    double seconds = clock_seconds() - started;
    print_message("five scorers that hang: %.2f s\n", seconds);
    assert_true(seconds >= 2);
    assert_int_equal(marked_processes(), 0);
    scorer_pool_close(pool);
}

// Answers that count, from scorers that leave processes behind or talk without end: the score stands.
static void test_scorers_with_company(void **state) {
    (void)state;
    scorer_pool_t *pool = open_program(faulty, 1, 60, ALL_OF_IT);
    for (uint64_t i = 0; i < 3; i++) {
        submit(pool, i, i == 1 ? "chatter" : "daemon");
        scorer_result_t result = take(pool);
        assert_int_equal(result.outcome, REWARD_OK);
        assert_true(result.reward == 3);
        assert_int_equal(marked_processes(), i == 1); // the scorer itself stays where there was no company
    }
    scorer_pool_close(pool);
    assert_int_equal(marked_processes(), 0);
}

// A pool that is closed while its scorers hang, with children, leaves nothing; one whose scorers end at every start
// asks twice at most and says how they ended.
static void test_ends_and_starts(void **state) {
    (void)state;
    scorer_pool_t *pool = open_program(faulty, 2, 60, ALL_OF_IT);
    submit(pool, 0, "fork");
    submit(pool, 1, "stop");
    scorer_result_t result;
    bool have;
    CHECK_OK(scorer_take(pool, 1, &result, &have));
    assert_false(have);
    scorer_pool_close(pool);
    assert_int_equal(marked_processes(), 0);
    setenv("POISE_SCORER_FAULT", "start", 1);
    pool = open_program(faulty, 2, 60, ALL_OF_IT);
    for (uint64_t i = 0; i < 10; i++) {
        submit(pool, i, "none");
        result = take(pool);
        assert_int_equal(result.outcome, REWARD_ERROR);
        if (!strstr(result.why, "ended with code 7")) fail_msg("'%s'", result.why);
    }
    scorer_pool_close(pool);
    setenv("POISE_SCORER_FAULT", "text", 1);
    assert_int_equal(marked_processes(), 0);
}

// Huge, deeply nested, torn and invalid texts are scored, in time that grows with their length.
static void test_text_bombs(void **state) {
    (void)state;
    enum { BYTES = 4 << 20 };
    static const char *const pattern[] = {
        "<think>", "</think><answer>", "<answer><answer>", "</answer>", "<answer>(", "((((",
        "1,000,",  "\xff\xfe\xc0",     "\xf0\x9f\x98",     "\"\\\x01",  "Answer: ",  "\n \t"};
    scorer_pool_t *pool = open_pool(1, 2, 0);
    char *text = malloc(BYTES + 64);
    assert_non_null(text);
    for (size_t p = 0; p < sizeof(pattern) / sizeof(pattern[0]); p++) {
        size_t used = 0, length = strlen(pattern[p]);
        while (used + length <= BYTES) {
            memcpy(text + used, pattern[p], length);
            used += length;
        }
        snprintf(text + used, 64, "%s", p % 2 ? "</think><answer>3</answer>" : "");
        reward_input_t input = {.completion = text, .answer = "3", .kind = "", .tokens = 9, .budget = 12};
        double started = clock_seconds();
        scorer_result_t result = score(pool, &input);
        double seconds = clock_seconds() - started;
        print_message("4 MiB of pattern %zu: %.3f s\n", p, seconds);
        assert_int_equal(result.outcome, REWARD_OK);
        assert_true(seconds < 30); // 0.1 s on a quiet machine; quadratic time would be hours
        assert_true(result.tag >= 0 && result.tag <= 1);
    }
    free(text);
    // Bytes that are not UTF-8 do not cost the completion its score.
    reward_input_t input = {.completion = "<think>\xff</think><answer>3</answer>\xc3", .answer = "3", .kind = ""};
    input.tokens = input.budget = 9;
    scorer_result_t result = score(pool, &input);
    assert_true(result.outcome == REWARD_OK && result.reward == 3);
    // A sample whose own texts are broken has no reward; the scorer lives on.
    input.kind = "\xff";
    result = score(pool, &input);
    assert_int_equal(result.outcome, REWARD_ERROR);
    assert_non_null(strstr(result.why, "not valid UTF-8"));
    input.kind = "";
    assert_int_equal(score(pool, &input).outcome, REWARD_OK);
    scorer_pool_close(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_most_options),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_text_bombs),
        cmocka_unit_test_setup_teardown(test_failing_scorers, open_faults, close_faults),
        cmocka_unit_test_setup_teardown(test_hanging_scorers, open_faults, close_faults),
        cmocka_unit_test_setup_teardown(test_scorers_with_company, open_faults, close_faults),
        cmocka_unit_test_setup_teardown(test_ends_and_starts, open_faults, close_faults)};
    return cmocka_run_group_tests_name("scorer", tests, NULL, NULL);
}
