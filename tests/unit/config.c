#include "common/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static uint64_t training_hash(const config_t *config) {
    uint64_t hash;
    assert_null(config_training_hash(config, &hash));
    return hash;
}

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

// Reads `text` as a file and expects an error that contains `part` (NULL: success).
static config_t read_text(const char *text, const char *part) {
    char path[] = "/tmp/poise-config-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    write_file(path, text);
    config_t config;
    status_t status = config_read(path, NULL, 0, &config);
    unlink(path);
    if (part) {
        assert_non_null(status);
        if (!strstr(status_message(status), part)) fail_msg("'%s' lacks '%s'", status_message(status), part);
        assert_int_equal(status_exit_code(status), 2);
        status_free(status);
    } else if (status) {
        fail_msg("%s", status_message(status));
    }
    return config;
}

static void test_defaults_and_values(void **state) {
    (void)state;
    config_t config = read_text("model: m\nsft:\n  objective: fixed\n  batch: 7\nlora:\n  targets: [a, \"b\"]\n"
                                "grpo:\n  kl: 1e-3\n  strict_tags: true\n",
                                NULL);
    assert_string_equal(config.model, "m");
    assert_int_equal(config.sft.objective, OBJECTIVE_FIXED);
    assert_int_equal(config.sft.batch, 7);
    assert_int_equal(config.lora.targets.count, 2);
    assert_string_equal(config.lora.targets.item[1], "b");
    assert_true(config.grpo.kl == 1e-3 && config.grpo.strict_tags);
    assert_true(config.optimizer.beta1 == 0.9);
    assert_true(config.train.vision && config.resume && !config.roles.colocated);
    config_free(&config);
}

static void test_errors_name_place_and_remedy(void **state) {
    (void)state;
    read_text("model: m\noptimzer:\n  steps: 3\n", ":2: unknown key 'optimzer'; the nearest known one is 'optimizer'");
    read_text("", "nothing but white space and comments");
    read_text("# model: m\n\n  # more\n", "nothing but white space and comments");
    read_text("optimizer:\n  learning_rat: 3\n",
              ":2: unknown key 'optimizer.learning_rat'; the nearest known one is 'optimizer.learning_rate'");
    read_text("sft:\n  steps: 3\n", "the nearest known one is 'optimizer.steps'");
    read_text("sft:\n  batch: 3.5\n", "whole number");
    read_text("sft:\n  batch: 0\n", "between");
    read_text("sft:\n  batch: [1]\n", "single value");
    read_text("sft:\n  objective: scales\n", "vanilla|scale|fixed");
    read_text("sft: 3\n", "section");
    read_text("lora:\n  targets: q_proj\n", "list");
    read_text("model: [unclosed\n", "not valid YAML");
    read_text("a: 1\na: 2\n", "");
    read_text("- 1\n", "mapping");
    read_text("%%%%\xe1%%%model: x", "directives"); // libfyaml never returns from this one
    read_text("model: x\n%YAML 1.1\n", "directives");
    read_text("model: \xe1\n", "no UTF-8");
    read_text("model: a\x01z\n", "control character");
    config_t config;
    status_t status = config_read("/nonexistent.yaml", NULL, 0, &config);
    assert_non_null(status);
    status_free(status);
}

static void test_settings(void **state) {
    (void)state;
    const char *settings[] = {"optimizer.steps=12", "output=runs/a b", "lora.targets=[x, y, z]",
                              "grpo.aggregation=constant"};
    config_t config;
    assert_null(config_read(NULL, settings, 4, &config));
    assert_int_equal(config.optimizer.steps, 12);
    assert_string_equal(config.output, "runs/a b");
    assert_int_equal(config.lora.targets.count, 3);
    assert_int_equal(config.grpo.aggregation, AGGREGATION_CONSTANT);
    config_free(&config);
    const char *wrong[] = {"steps", "optimizer.step=1", "optimizer.steps=x", "optimizer=1"};
    for (int i = 0; i < 4; i++) {
        status_t status = config_read(NULL, &wrong[i], 1, &config);
        assert_non_null(status);
        status_free(status);
    }
}

// What config_print writes reads back as the same configuration.
static void test_print_round_trip(void **state) {
    (void)state;
    const char *settings[] = {"optimizer.learning_rate=0.1", "output=a\"b\\c",       "grpo.clip_high=0.28",
                              "sft.objective=vanilla",       "roles.colocated=true", "lora.targets=[\"a.*\", b]"};
    config_t config;
    assert_null(config_read(NULL, settings, 6, &config));
    char *text = NULL, *again = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    assert_null(config_print(&config, stream));
    fclose(stream);
    config_t copy = read_text(text, NULL);
    stream = open_memstream(&again, &length);
    assert_null(config_print(&copy, stream));
    fclose(stream);
    assert_string_equal(text, again);
    assert_true(training_hash(&config) == training_hash(&copy));
    config_free(&copy);
    config_free(&config);
    free(text);
    free(again);
}

static void test_training_hash(void **state) {
    (void)state;
    const char *threads = "threads=2", *rate = "optimizer.learning_rate=0.5";
    config_t base, other;
    assert_null(config_read(NULL, NULL, 0, &base));
    assert_null(config_read(NULL, &threads, 1, &other));
    assert_true(training_hash(&base) == training_hash(&other));
    config_free(&other);
    assert_null(config_read(NULL, &rate, 1, &other));
    assert_true(training_hash(&base) != training_hash(&other));
    config_free(&other);
    config_free(&base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_and_values),
        cmocka_unit_test(test_errors_name_place_and_remedy),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_print_round_trip),
        cmocka_unit_test(test_training_hash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
