// Tiny random Qwen2.5-VL models against transformers: positions, features, log-probs and every gradient.
#include "tests/lib/parity.h"

enum { EXPONENT = 34, PATH = 1024 };

static const char *const cases[] = {"gqa4_window56_hub", "gqa6_window112_v5", "mqa4_head32_hub"};
enum { CASES = sizeof(cases) / sizeof(cases[0]) };

typedef struct golden {
    char folder[PATH];
    device_t *device;
    model_t *model;
    safetensors_t *file;
    prompt_t prompts[PARITY_MAX_PROMPTS];
    int prompt_count;
    batch_t batch;
} golden_t;

static void golden_open(golden_t *golden, const char *name) {
    char path[PATH + 64];
    *golden = (golden_t){0};
    snprintf(golden->folder, sizeof(golden->folder), "%s/tests/goldens/qwen2_5_vl/%s", POISE_SOURCE_DIR, name);
    check(device_open("cpu", 2, &golden->device));
    golden->model = parity_model(golden->folder, golden->device);
    snprintf(path, sizeof(path), "%s/golden.safetensors", golden->folder);
    check(safetensors_open(path, &golden->file));
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    while (golden->prompt_count < PARITY_MAX_PROMPTS &&
           parity_prompt(golden->model, golden->file, golden->prompt_count, &golden->prompts[golden->prompt_count])) {
        sequences[golden->prompt_count] = parity_sequence(&golden->prompts[golden->prompt_count], golden->prompt_count);
        golden->prompt_count++;
    }
    assert_true(golden->prompt_count >= 2);
    check(batch_build(golden->model, sequences, golden->prompt_count, &golden->batch));
}

static void golden_close(golden_t *golden) {
    batch_free(&golden->batch);
    for (int i = 0; i < golden->prompt_count; i++) parity_free_prompt(&golden->prompts[i]);
    safetensors_close(golden->file);
    model_close(golden->model);
    device_close(golden->device);
}

// ---- positions ----

static void check_positions(const golden_t *golden, int number) {
    const prompt_t *prompt = &golden->prompts[number];
    char name[64];
    int64_t count = 0, deltas = 0;
    snprintf(name, sizeof(name), "prompt%d.position_ids", number);
    int32_t *wanted = parity_integers(golden->file, name, &count);
    snprintf(name, sizeof(name), "prompt%d.rope_delta", number);
    int32_t *delta = parity_integers(golden->file, name, &deltas);
    image_shape_t shapes[PARITY_MAX_IMAGES];
    for (int i = 0; i < prompt->image_count; i++) shapes[i] = prompt->images[i].shape;
    int32_t *have = calloc((size_t)count, sizeof(int32_t)), next;
    int32_t *axes[3] = {have, have + prompt->length, have + 2 * prompt->length};
    assert_int_equal(count, 3 * prompt->length);
    check(golden->model->family->rope_positions(&golden->model->config, prompt->tokens, prompt->length, shapes,
                                                prompt->image_count, axes, &next));
    assert_memory_equal(have, wanted, (size_t)count * sizeof(int32_t));
    assert_int_equal(next - prompt->length, delta[0]);
    free(have);
    free(wanted);
    free(delta);
}

static void test_positions(void **state) {
    (void)state;
    for (int i = 0; i < CASES; i++) {
        golden_t golden;
        golden_open(&golden, cases[i]);
        for (int j = 0; j < golden.prompt_count; j++) check_positions(&golden, j);
        golden_close(&golden);
    }
}

// ---- features and log-probs ----

static double worst(const float *have, const float *wanted, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs((double)have[i] - (double)wanted[i]);
        if (!(difference <= most)) most = difference;
    }
    return most;
}

static double check_features(const golden_t *golden, tape_t *tape, int number) {
    const prompt_t *prompt = &golden->prompts[number];
    char name[64];
    int64_t count = 0;
    snprintf(name, sizeof(name), "prompt%d.image_features", number);
    float *wanted = parity_floats(golden->file, name, &count);
    if (!wanted) return 0;
    vision_image_t images[PARITY_MAX_IMAGES];
    for (int i = 0; i < prompt->image_count; i++) {
        const image_patches_t *image = prompt->image[i];
        images[i] = (vision_image_t){.shape = image->shape, .patches = image->patches, .patch_rows = image->rows};
    }
    tensor_t *features;
    tape_reset(tape, false);
    check(golden->model->family->vision(golden->model, tape, images, prompt->image_count, &features));
    assert_int_equal((int64_t)features->value.rows * features->value.columns, count);
    double most = worst(features->value.data, wanted, count);
    free(wanted);
    return most;
}

static void test_logprobs(void **state) {
    (void)state;
    for (int i = 0; i < CASES; i++) {
        golden_t golden;
        head_output_t *head;
        golden_open(&golden, cases[i]);
        tape_t *tape = parity_tape(golden.model, &golden.batch, RECOMPUTE_NONE, false);
        check(batch_forward(golden.model, tape, &golden.batch, 1.0F, true, &head));
        double most = 0;
        int at = 0;
        for (int j = 0; j < golden.prompt_count; j++) {
            int count = golden.prompts[j].length - 1;
            double difference = worst(head->logprob + at, golden.prompts[j].logprobs, count);
            if (!(difference <= most)) most = difference;
            at += count;
        }
        assert_int_equal(at, head->count);
        double features = 0;
        for (int j = 0; j < golden.prompt_count; j++) {
            double difference = check_features(&golden, tape, j);
            if (!(difference <= features)) features = difference;
        }
        print_message("%-20s worst log-prob %.2e, worst feature %.2e\n", cases[i], most, features);
        assert_true(most <= 1e-4);
        assert_true(features <= 1e-4);
        tape_close(tape);
        golden_close(&golden);
    }
}

// ---- gradients ----

// dL/dlogp of SCALe: per prompt, w_think / n_think and w_answer / n_answer. Returns the loss.
static double scale_loss(const golden_t *golden, head_output_t *head) {
    float *weights = parity_floats(golden->file, "loss.weights", NULL);
    double loss = 0;
    for (int p = 0, at = 0; p < golden->prompt_count; p++) {
        const prompt_t *prompt = &golden->prompts[p];
        int tokens[3] = {0};
        for (int t = 1; t < prompt->length; t++) tokens[prompt->segments[t]]++;
        for (int t = 1; t < prompt->length; t++, at++) {
            int segment = prompt->segments[t];
            if (!segment) continue;
            double weight = (double)weights[segment - 1] / tokens[segment];
            head->dlogprob[at] = (float)-weight;
            loss -= weight * (double)head->logprob[at];
        }
    }
    free(weights);
    return loss;
}

static double vanilla_loss(const golden_t *golden, head_output_t *head) {
    double loss = 0;
    int tokens = 0;
    for (int p = 0; p < golden->prompt_count; p++)
        for (int t = 1; t < golden->prompts[p].length; t++) tokens += golden->prompts[p].segments[t] > 0;
    for (int p = 0, at = 0; p < golden->prompt_count; p++)
        for (int t = 1; t < golden->prompts[p].length; t++, at++) {
            if (!golden->prompts[p].segments[t]) continue;
            head->dlogprob[at] = (float)(-1.0 / tokens);
            loss -= (double)head->logprob[at] / tokens;
        }
    return loss;
}

static void run_backward(golden_t *golden, tape_t *tape, sinks_t *sinks, bool scale) {
    head_output_t *head;
    int64_t count = 0;
    parity_clear(golden->model, sinks);
    tape_reset(tape, true);
    check(batch_forward(golden->model, tape, &golden->batch, 1.0F, false, &head));
    double loss = scale ? scale_loss(golden, head) : vanilla_loss(golden, head);
    float *wanted = parity_floats(golden->file, scale ? "loss.scale" : "loss.vanilla", &count);
    assert_true(fabs(loss - (double)*wanted) <= 1e-4);
    free(wanted);
    check(tape_backward(tape));
    assert_int_equal(*sinks->flags, 0);
}

// The golden names tensors as the case's own files do; the model knows its map.
static const safetensors_tensor_t *find_golden(const golden_t *golden, const char *prefix, int parameter) {
    size_t length = strlen(prefix);
    char mapped[512];
    for (int i = 0; i < safetensors_count(golden->file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(golden->file, i);
        if (strncmp(tensor->name, prefix, length)) continue;
        if (!golden->model->family->map_name(golden->model, tensor->name + length, mapped, sizeof(mapped))) continue;
        if (!strcmp(mapped, golden->model->spec[parameter].name)) return tensor;
    }
    fail_msg("no golden %s%s", prefix, golden->model->spec[parameter].name);
    return NULL;
}

static double norm_of(const float *values, const int64_t *sum, int64_t count) {
    double square = 0;
    for (int64_t i = 0; i < count; i++) {
        double value = (sum ? ldexp((double)sum[i], -EXPONENT) : 0) - (values ? (double)values[i] : 0);
        square += value * value;
    }
    return sqrt(square);
}

static void check_scale_gradients(const golden_t *golden, const sinks_t *sinks, const char *name) {
    const model_t *model = golden->model;
    double *difference = calloc((size_t)model->parameter_count, sizeof(double));
    double *norm = calloc((size_t)model->parameter_count, sizeof(double)), all = 0, most = 0;
    int at = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const safetensors_tensor_t *tensor = find_golden(golden, "grad.scale.", i);
        float *wanted = calloc((size_t)tensor->elements, sizeof(float));
        assert_int_equal(tensor->elements, model->spec[i].elements);
        check(safetensors_read_f32(tensor, wanted));
        difference[i] = norm_of(wanted, sinks->sum[3 * i], tensor->elements);
        norm[i] = norm_of(wanted, NULL, tensor->elements);
        all += norm[i] * norm[i];
        free(wanted);
    }
    all = sqrt(all);
    for (int i = 0; i < model->parameter_count; i++) {
        double share = difference[i] / (1e-3 * norm[i] + 1e-6 * all);
        if (share > most) at = i;
        if (!(share <= most)) most = share;
        if (share > 1)
            print_message("%s: gradient of %s: |difference| %.3e of %.3e\n", name, model->spec[i].name, difference[i],
                          norm[i]);
    }
    print_message("%-20s worst gradient %s: %.4f of the tolerance (relative %.2e)\n", name, model->spec[at].name, most,
                  difference[at] / norm[at]);
    assert_true(most <= 1);
    free(difference);
    free(norm);
}

static void check_vanilla_norms(const golden_t *golden, const sinks_t *sinks, const char *name) {
    const model_t *model = golden->model;
    double all = 0, most = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < model->parameter_count; i++) {
            float wanted;
            check(safetensors_read_f32(find_golden(golden, "norm.vanilla.", i), &wanted));
            if (!pass) {
                all += (double)wanted * (double)wanted;
                continue;
            }
            double have = norm_of(NULL, sinks->sum[3 * i], model->spec[i].elements);
            double share = fabs(have - (double)wanted) / (1e-3 * (double)wanted + 1e-6 * sqrt(all));
            if (!(share <= most)) most = share;
        }
    }
    print_message("%-20s worst gradient norm of the vanilla loss: %.4f of the tolerance\n", name, most);
    assert_true(most <= 1);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < CASES; i++) {
        golden_t golden;
        golden_open(&golden, cases[i]);
        sinks_t sinks = parity_sinks(golden.model, EXPONENT);
        tape_t *tape = parity_tape(golden.model, &golden.batch, RECOMPUTE_NONE, true);
        run_backward(&golden, tape, &sinks, true);
        check_scale_gradients(&golden, &sinks, cases[i]);
        run_backward(&golden, tape, &sinks, false);
        check_vanilla_norms(&golden, &sinks, cases[i]);
        tape_close(tape);
        parity_free_sinks(&sinks);
        golden_close(&golden);
    }
}

// ---- sensitivity: each feature of the model must be visible in some case ----

static void test_sensitivity(void **state) {
    (void)state;
    json_t *best = json_object();
    for (int i = 0; i < CASES; i++) {
        char path[PATH];
        const char *rule;
        json_t *move;
        snprintf(path, sizeof(path), "%s/tests/goldens/qwen2_5_vl/%s/sensitivity.json", POISE_SOURCE_DIR, cases[i]);
        json_t *report = json_load_file(path, 0, NULL);
        assert_true(json_number_value(json_object_get(report, "mean_distance_from_uniform")) > 0.5);
        json_object_foreach(json_object_get(report, "largest_move_of_a_logprob"), rule, move) {
            double have = json_number_value(json_object_get(best, rule));
            if (json_number_value(move) >= have) json_object_set(best, rule, move);
        }
        json_decref(report);
    }
    const char *rule;
    json_t *move;
    int weak = 0;
    json_object_foreach(best, rule, move) {
        if (json_number_value(move) >= 100 * 1e-4) continue;
        print_message("no case moves by 100 tolerances without: %s (%.1e)\n", rule, json_number_value(move));
        // The two forms of GELU differ by 5e-4 at most.
        if (!strstr(rule, "gelu by tanh")) weak++;
        assert_true(json_number_value(move) > 1e-3);
    }
    assert_true(json_object_size(best) >= 30);
    assert_int_equal(weak, 0);
    json_decref(best);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_positions),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_sensitivity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
