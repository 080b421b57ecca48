// Learning-rate schedules against transformers.
#include "learner/optimizer.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void check_run(const json_t *run) {
    const char *kind = json_string_value(json_object_get(run, "kind"));
    config_t config = {0};
    config.optimizer.learning_rate = 0.5; // a power of two: the product is exact
    config.optimizer.warmup_steps = (int)json_integer_value(json_object_get(run, "warmup"));
    config.optimizer.steps = (int)json_integer_value(json_object_get(run, "total"));
    config.optimizer.schedule = !strncmp(kind, "cosine", 6) ? SCHEDULE_COSINE
                                : !strcmp(kind, "linear")   ? SCHEDULE_LINEAR
                                                            : SCHEDULE_CONSTANT;
    config.optimizer.final_fraction = !strcmp(kind, "cosine_min_0.1") ? 0.1 : 0.0;
    const json_t *rates = json_object_get(run, "rates");
    for (size_t i = 0; i < json_array_size(rates); i++) {
        double rate = optimizer_learning_rate(&config, (int64_t)i);
        double expected = 0.5 * json_number_value(json_array_get(rates, i));
        if (fabs(rate - expected) > 1e-15) fail_msg("%s after %zu steps: %.17g, not %.17g", kind, i, rate, expected);
    }
    assert_true(json_array_size(rates) > 0);
}

static void test_goldens(void **state) {
    (void)state;
    json_error_t error;
    json_t *root = json_load_file(POISE_SOURCE_DIR "/tests/goldens/optimizer/schedules.json", 0, &error), *run;
    if (!root) fail_msg("%s", error.text);
    size_t index;
    json_array_foreach(json_object_get(root, "runs"), index, run) check_run(run);
    assert_int_equal(index, 20);
    json_decref(root);
}

static void test_floor_and_beyond(void **state) {
    (void)state;
    config_t config = {0};
    config.optimizer.learning_rate = 1.0;
    config.optimizer.steps = 10;
    config.optimizer.final_fraction = 0.25;
    for (int schedule = SCHEDULE_COSINE; schedule <= SCHEDULE_LINEAR; schedule++) {
        config.optimizer.schedule = (config_schedule_t)schedule;
        assert_true(fabs(optimizer_learning_rate(&config, 0) - 1.0) < 1e-15);
        assert_true(fabs(optimizer_learning_rate(&config, 5) - 0.625) < 1e-15);
        assert_true(fabs(optimizer_learning_rate(&config, 10) - 0.25) < 1e-15);
        assert_true(fabs(optimizer_learning_rate(&config, 1000) - 0.25) < 1e-15);
    }
    config.optimizer.schedule = SCHEDULE_CONSTANT;
    config.optimizer.warmup_steps = 4;
    assert_true(optimizer_learning_rate(&config, 0) == 0.0 && optimizer_learning_rate(&config, 3) == 0.75);
    assert_true(optimizer_learning_rate(&config, 4) == 1.0 && optimizer_learning_rate(&config, 10) == 1.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens), cmocka_unit_test(test_floor_and_beyond)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
