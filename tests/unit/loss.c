// Losses over log-probs: goldens of TRL, finite differences, and the cases that users were bitten by elsewhere.
#include "learner/loss.h"

#include "common/text/answer.h"
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TOKENS = 64 };

static json_t *golden(const char *name) {
    char path[1024];
    snprintf(path, sizeof(path), "%s/tests/goldens/rl/%s", POISE_SOURCE_DIR, name);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root) fail_msg("%s: %s", path, error.text);
    return root;
}

static void assert_near(double value, double expected, double tolerance, const char *what) {
    if (!(fabs(value - expected) <= tolerance * fmax(1.0, fabs(expected)))) {
        fail_msg("%s: %.17g, expected %.17g", what, value, expected);
    }
}

// Row `row` of a padded list, without what the mask leaves out.
static int masked_row(const json_t *matrix, const json_t *mask, size_t row, float *out) {
    int count = 0;
    const json_t *values = json_array_get(matrix, row), *keep = json_array_get(mask, row);
    for (size_t i = 0; i < json_array_size(values); i++) {
        if (json_number_value(json_array_get(keep, i)) == 0.0) continue;
        assert_true(count < MAX_TOKENS);
        out[count++] = (float)json_number_value(json_array_get(values, i));
    }
    return count;
}

static double setting(const json_t *settings, const char *name) {
    return json_number_value(json_object_get(settings, name));
}

static bool aggregation_of(const json_t *settings, config_aggregation_t *out) {
    const char *name = json_string_value(json_object_get(settings, "loss_type"));
    for (const char *other = "delta|use_bias_correction_kl|sampling_cap|importance_sampling_level"; other && *other;) {
        char key[64];
        size_t length = strcspn(other, "|");
        snprintf(key, sizeof(key), "%.*s", (int)length, other);
        if (json_object_get(settings, key)) return false;
        other += length + (other[length] == '|');
    }
    if (!strcmp(name, "dapo") || !strcmp(name, "bnpo"))
        *out = AGGREGATION_TOKEN_MEAN;
    else if (!strcmp(name, "grpo"))
        *out = AGGREGATION_SEQUENCE_MEAN;
    else if (!strcmp(name, "dr_grpo"))
        *out = AGGREGATION_CONSTANT;
    else
        return false;
    return true;
}

static void check_case(const json_t *root, const json_t *entry, const json_t *settings, const grpo_options_t *options) {
    const json_t *batch =
        json_object_get(json_object_get(root, "batches"), json_string_value(json_object_get(entry, "batch")));
    const json_t *mask = json_object_get(batch, "mask"), *expected = json_object_get(entry, "gradient");
    size_t sequences = json_array_size(mask);
    grpo_sums_t sums = {0};
    float logp[MAX_TOKENS], old[MAX_TOKENS], ref[MAX_TOKENS], dlogp[16][MAX_TOKENS];
    int count[16];
    assert_true(sequences <= 16);
    for (size_t s = 0; s < sequences; s++) {
        count[s] = masked_row(json_object_get(batch, "logp"), mask, s, logp);
        masked_row(json_object_get(batch, "logp_old"), mask, s, old);
        masked_row(json_object_get(batch, "logp_ref"), mask, s, ref);
        double advantage = json_number_value(json_array_get(json_object_get(batch, "advantages"), s));
        grpo_completion_loss(options, advantage, logp, old, setting(settings, "beta") != 0.0 ? ref : NULL, count[s],
                             dlogp[s], NULL, &sums);
    }
    double divisor = grpo_normaliser(options->aggregation, sums.sequences, sums.tokens);
    assert_near((sums.policy_loss + sums.kl_loss) / divisor, setting(entry, "loss"), 1e-12, "loss");
    for (size_t s = 0; s < sequences; s++) {
        float gradient[MAX_TOKENS];
        masked_row(expected, mask, s, gradient);
        for (int i = 0; i < count[s]; i++) assert_near(dlogp[s][i] / divisor, gradient[i], 2e-7, "gradient");
    }
    const json_t *metrics = json_object_get(entry, "metrics");
    if (json_object_get(metrics, "clip_ratio/low_mean")) {
        assert_near((double)sums.clipped_low / (double)sums.tokens, setting(metrics, "clip_ratio/low_mean"), 1e-6,
                    "low");
        assert_near((double)sums.clipped_high / (double)sums.tokens, setting(metrics, "clip_ratio/high_mean"), 1e-6,
                    "high");
    }
}

static void test_grpo_goldens(void **state) {
    (void)state;
    json_t *root = golden("losses.json"), *entry;
    size_t index;
    int checked = 0;
    json_array_foreach(json_object_get(root, "cases"), index, entry) {
        const json_t *settings =
            json_object_get(json_object_get(root, "settings"), json_string_value(json_object_get(entry, "settings")));
        grpo_options_t options = {.clip_low = setting(settings, "epsilon_low"),
                                  .clip_high = setting(settings, "epsilon_high"),
                                  .kl = setting(settings, "beta"),
                                  .max_new_tokens = (int)setting(root, "max_completion_length")};
        if (!aggregation_of(settings, &options.aggregation)) continue;
        check_case(root, entry, settings, &options);
        checked++;
    }
    json_decref(root);
    assert_int_equal(checked, 8 * 4);
}

static void test_k3_goldens(void **state) {
    (void)state;
    json_t *root = golden("kl.json");
    const json_t *k3 = json_object_get(root, "k3");
    size_t count = json_array_size(json_object_get(root, "logp"));
    for (size_t i = 0; i < count; i++) {
        float logp = (float)json_number_value(json_array_get(json_object_get(root, "logp"), i));
        float ref = (float)json_number_value(json_array_get(json_object_get(root, "logp_ref"), i)), dlogp;
        grpo_options_t options = {.clip_low = 0.2, .clip_high = 0.2, .kl = 0.5};
        grpo_sums_t sums = {0};
        grpo_completion_loss(&options, 0.0, &logp, &logp, &ref, 1, &dlogp, NULL, &sums);
        assert_near(sums.kl_loss, 0.5 * json_number_value(json_array_get(json_object_get(k3, "value"), i)), 1e-13,
                    "k3");
        assert_near(dlogp, 0.5 * json_number_value(json_array_get(json_object_get(k3, "gradient"), i)), 1e-7, "dk3");
    }
    json_decref(root);
    assert_true(count > 0);
}

static double grpo_total(const grpo_options_t *options, double advantage, const float *logp, const float *old,
                         const float *ref, int count) {
    float dlogp[MAX_TOKENS];
    grpo_sums_t sums = {0};
    grpo_completion_loss(options, advantage, logp, old, ref, count, dlogp, NULL, &sums);
    return sums.policy_loss + sums.kl_loss;
}

static void test_grpo_finite_differences(void **state) {
    (void)state;
    // Ratios inside, above and below the clip range, away from its edges.
    const float logp[] = {-1.0f, -0.5f, -2.0f, -0.25f, -3.0f}, old[] = {-1.05f, -1.5f, -1.0f, -0.2f, -3.0f};
    const float ref[] = {-0.8f, -0.75f, -2.5f, -0.125f, -3.0f};
    for (int a = 0; a < 3; a++) {
        for (int advantage = -1; advantage <= 1; advantage++) {
            grpo_options_t options = {0.2, 0.28, 0.04, (config_aggregation_t)a, 7};
            float dlogp[5], moved[5];
            grpo_sums_t sums = {0};
            grpo_completion_loss(&options, 1.5 * advantage, logp, old, ref, 5, dlogp, NULL, &sums);
            for (int i = 0; i < 5; i++) {
                const float h = 0x1p-10f;
                memcpy(moved, logp, sizeof(logp));
                moved[i] = logp[i] + h;
                double up = grpo_total(&options, 1.5 * advantage, moved, old, ref, 5);
                moved[i] = logp[i] - h;
                double down = grpo_total(&options, 1.5 * advantage, moved, old, ref, 5);
                assert_near(dlogp[i], (up - down) / (2.0 * (double)h), 3e-6, "finite difference");
            }
        }
    }
}

static void test_zero_advantage_is_exactly_zero(void **state) {
    (void)state;
    const float logp[] = {-1.0f, -30.0f, -0.5f}, old[] = {-3.0f, -0.001f, -0.5f};
    grpo_options_t options = {0.2, 0.2, 0.0, AGGREGATION_SEQUENCE_MEAN, 8};
    float dlogp[3] = {1, 1, 1}, zero[3] = {0};
    grpo_sums_t sums = {0};
    grpo_completion_loss(&options, 0.0, logp, old, NULL, 3, dlogp, NULL, &sums);
    assert_memory_equal(dlogp, zero, sizeof(zero)); // no negative zeros either
    assert_true(sums.policy_loss == 0.0 && sums.kl_loss == 0.0);
    assert_int_equal(sums.clipped_low + sums.clipped_high, 0);
    // On-policy under KL to itself: the KL part is exactly zero too.
    options.kl = 0.1;
    grpo_completion_loss(&options, 0.0, logp, logp, logp, 3, dlogp, NULL, &sums);
    assert_memory_equal(dlogp, zero, sizeof(zero));
    // On-policy ratios are exactly one.
    float ratio[3];
    sums = (grpo_sums_t){0};
    grpo_completion_loss(&options, 1.0, logp, logp, logp, 3, dlogp, ratio, &sums);
    assert_true(ratio[0] == 1.0f && ratio[1] == 1.0f && ratio[2] == 1.0f && sums.ratio_max_deviation == 0.0);
}

// ---- SFT ----

static const float sft_logp[] = {-1.5f, -0.25f, -2.0f, -0.125f, -3.5f, -0.75f};
static const uint8_t sft_segment[] = {SEGMENT_THINK,  SEGMENT_THINK,  SEGMENT_THINK,
                                      SEGMENT_ANSWER, SEGMENT_ANSWER, SEGMENT_NONE};

static double sft_total(config_objective_t objective, sft_weights_t weights, const float *logp) {
    float dlogp[6];
    sft_sums_t sums = {0};
    sft_sample_loss(objective, weights, logp, sft_segment, 6, dlogp, &sums);
    return sums.loss;
}

static void test_sft_finite_differences(void **state) {
    (void)state;
    const sft_weights_t weights = {0.7, 1.3};
    for (int objective = OBJECTIVE_VANILLA; objective <= OBJECTIVE_FIXED; objective++) {
        float dlogp[6], moved[6];
        sft_sums_t sums = {0};
        sft_sample_loss((config_objective_t)objective, weights, sft_logp, sft_segment, 6, dlogp, &sums);
        for (int i = 0; i < 6; i++) {
            memcpy(moved, sft_logp, sizeof(moved));
            moved[i] += 0x1p-8f;
            double up = sft_total((config_objective_t)objective, weights, moved);
            moved[i] = sft_logp[i] - 0x1p-8f;
            double down = sft_total((config_objective_t)objective, weights, moved);
            assert_near(dlogp[i], (up - down) / 0x1p-7, 1e-6, "finite difference");
        }
        assert_true(dlogp[5] == 0.0f);
    }
}

static void test_sft_values(void **state) {
    (void)state;
    float dlogp[6];
    sft_sums_t sums = {0};
    sft_sample_loss(OBJECTIVE_SCALE, (sft_weights_t){0.5, 1.0}, sft_logp, sft_segment, 6, dlogp, &sums);
    assert_near(sums.think_loss, 3.75 / 3, 1e-15, "think");
    assert_near(sums.answer_loss, 3.625 / 2, 1e-15, "answer");
    assert_near(sums.loss, 0.5 * 3.75 / 3 + 3.625 / 2, 1e-15, "loss");
    assert_near(sft_normaliser(OBJECTIVE_SCALE, &sums), 1.0, 0, "samples");
    assert_near(sft_normaliser(OBJECTIVE_VANILLA, &sums), 5.0, 0, "tokens");
    sums = (sft_sums_t){0};
    sft_sample_loss(OBJECTIVE_VANILLA, (sft_weights_t){9, 9}, sft_logp, sft_segment, 6, dlogp, &sums);
    assert_near(sums.loss, 7.375, 1e-15, "vanilla loss");
    for (int i = 0; i < 5; i++) assert_true(dlogp[i] == -1.0f);
}

// Weights (0, 1) and (1, 0) must equal training on one segment alone.
static void test_sft_single_segments(void **state) {
    (void)state;
    for (int which = SEGMENT_THINK; which <= SEGMENT_ANSWER; which++) {
        sft_weights_t weights = {which == SEGMENT_THINK, which == SEGMENT_ANSWER};
        float both[6], alone[6], part[6];
        uint8_t segment[6];
        int count = 0;
        for (int i = 0; i < 6; i++) {
            if (sft_segment[i] != which) continue;
            part[count] = sft_logp[i];
            segment[count++] = (uint8_t)which;
        }
        sft_sums_t sums = {0}, other = {0};
        sft_sample_loss(OBJECTIVE_FIXED, weights, sft_logp, sft_segment, 6, both, &sums);
        sft_sample_loss(OBJECTIVE_FIXED, weights, part, segment, count, alone, &other);
        assert_true(sums.loss == other.loss);
        const float zero = 0.0f;
        for (int i = 0, j = 0; i < 6; i++) {
            const float *expected = sft_segment[i] == which ? &alone[j++] : &zero;
            assert_memory_equal(&both[i], expected, sizeof(float));
        }
    }
}

static void test_sft_empty_segments(void **state) {
    (void)state;
    const uint8_t all_answer[] = {SEGMENT_ANSWER, SEGMENT_ANSWER};
    const float logp[] = {-1.0f, -3.0f};
    float dlogp[2];
    sft_sums_t sums = {0};
    sft_sample_loss(OBJECTIVE_SCALE, (sft_weights_t){0.5, 1.0}, logp, all_answer, 2, dlogp, &sums);
    assert_int_equal(sums.empty_think, 1);
    assert_int_equal(sums.empty_answer, 0);
    assert_true(sums.loss == 2.0 && dlogp[0] == -0.5f && dlogp[1] == -0.5f);
    sft_sample_loss(OBJECTIVE_SCALE, (sft_weights_t){0.5, 1.0}, logp, all_answer, 0, dlogp, &sums);
    assert_int_equal(sums.empty_think, 2);
    assert_int_equal(sums.empty_answer, 1);
    assert_true(sums.loss == 2.0 && isfinite(sums.think_loss));
}

static void test_scale_weights(void **state) {
    (void)state;
    json_t *root = golden("scale_weights.json"), *run;
    size_t index;
    json_array_foreach(json_object_get(root, "runs"), index, run) {
        config_t config = {0};
        config.sft.objective = OBJECTIVE_SCALE;
        config.sft.think_start = setting(run, "start");
        config.sft.think_end = setting(run, "end");
        config.sft.answer_start = config.sft.answer_end = 1.0;
        config.optimizer.steps = (int)setting(run, "total_steps");
        const json_t *weights = json_object_get(run, "weights");
        for (size_t i = 0; i < json_array_size(weights); i++) {
            sft_weights_t weight = sft_weights_at(&config, (int64_t)i);
            assert_near(weight.think, json_number_value(json_array_get(weights, i)), 1e-14, "schedule");
            assert_true(weight.answer == 1.0);
        }
        // A run that ends early keeps its schedule.
        config.optimizer.stop_after = 2;
        assert_near(sft_weights_at(&config, 1).think, json_number_value(json_array_get(weights, 1)), 1e-14, "early");
        config.sft.objective = OBJECTIVE_FIXED;
        assert_true(sft_weights_at(&config, 3).think == config.sft.think_start);
    }
    assert_true(index > 0);
    json_decref(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grpo_goldens),
        cmocka_unit_test(test_k3_goldens),
        cmocka_unit_test(test_grpo_finite_differences),
        cmocka_unit_test(test_zero_advantage_is_exactly_zero),
        cmocka_unit_test(test_sft_finite_differences),
        cmocka_unit_test(test_sft_values),
        cmocka_unit_test(test_sft_single_segments),
        cmocka_unit_test(test_sft_empty_segments),
        cmocka_unit_test(test_scale_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
