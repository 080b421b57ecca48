// PEFT adapters over tiny models: log-probs and the gradients of A and B against PEFT.
#include "tests/lib/parity.h"

enum { EXPONENT = 34, PATH = 1024 };

static const struct {
    const char *name, *base;
} adapters[] = {{"attention", "qwen2_5_vl/gqa4_window56_hub"},
                {"all_rslora", "qwen2_5_vl/gqa4_window56_hub"},
                {"llava_next", "families/llava_next_mistral_hub"},
                {"gemma3", "families/gemma3_pool2_hub"}};
enum { ADAPTERS = sizeof(adapters) / sizeof(adapters[0]) };

typedef struct golden {
    device_t *device;
    model_t *model;
    safetensors_t *base, *file;
    prompt_t prompts[PARITY_MAX_PROMPTS];
    int prompt_count;
    batch_t batch;
} golden_t;

static void golden_open(golden_t *golden, const char *name, const char *base) {
    char path[PATH];
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    *golden = (golden_t){0};
    check(device_open("cpu", 2, &golden->device));
    snprintf(path, sizeof(path), "%s/tests/goldens/%s", POISE_SOURCE_DIR, base);
    golden->model = parity_model(path, golden->device);
    snprintf(path, sizeof(path), "%s/tests/goldens/%s/golden.safetensors", POISE_SOURCE_DIR, base);
    check(safetensors_open(path, &golden->base));
    snprintf(path, sizeof(path), "%s/tests/goldens/lora/%s", POISE_SOURCE_DIR, name);
    check(model_load_adapter(golden->model, path));
    snprintf(path, sizeof(path), "%s/tests/goldens/lora/%s/golden.safetensors", POISE_SOURCE_DIR, name);
    check(safetensors_open(path, &golden->file));
    while (golden->prompt_count < PARITY_MAX_PROMPTS &&
           parity_prompt(golden->model, golden->base, golden->prompt_count, &golden->prompts[golden->prompt_count])) {
        sequences[golden->prompt_count] = parity_sequence(&golden->prompts[golden->prompt_count], golden->prompt_count);
        golden->prompt_count++;
    }
    check(batch_build(golden->model, sequences, golden->prompt_count, &golden->batch));
}

static void golden_close(golden_t *golden) {
    batch_free(&golden->batch);
    for (int i = 0; i < golden->prompt_count; i++) parity_free_prompt(&golden->prompts[i]);
    safetensors_close(golden->base);
    safetensors_close(golden->file);
    model_close(golden->model);
    device_close(golden->device);
}

static void check_logprobs(const golden_t *golden, const head_output_t *head, const char *name) {
    double most = 0;
    for (int p = 0, at = 0; p < golden->prompt_count; p++) {
        char key[64];
        int64_t count = 0;
        snprintf(key, sizeof(key), "prompt%d.logprobs", p);
        float *wanted = parity_floats(golden->file, key, &count);
        for (int64_t i = 0; i < count; i++, at++) {
            double difference = fabs((double)wanted[i] - (double)head->logprob[at]);
            if (!(difference <= most)) most = difference;
        }
        free(wanted);
    }
    print_message("%-12s worst log-prob %.2e\n", name, most);
    assert_true(most <= 1e-4);
}

static double scale_loss(const golden_t *golden, head_output_t *head) {
    float *weights = parity_floats(golden->base, "loss.weights", NULL);
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

static const safetensors_tensor_t *find_gradient(const golden_t *golden, int parameter, char side) {
    char module[256], name[512];
    golden->model->family->module_name(golden->model->spec[parameter].name, module, sizeof(module));
    module[strlen(module) - strlen(".weight")] = 0;
    snprintf(name, sizeof(name), "grad.scale.base_model.model.%s.lora_%c.weight", module, side);
    const safetensors_tensor_t *tensor = safetensors_find(golden->file, name);
    if (!tensor) fail_msg("no golden %s", name);
    return tensor;
}

// Two passes over all A and B: the norm of everything, then each difference against it.
static void check_gradients(const golden_t *golden, const sinks_t *sinks, const char *name) {
    double all = 0, most = 0;
    int found = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 2 * golden->model->parameter_count; i++) {
            if (!golden->model->adapter[i / 2]) continue;
            const safetensors_tensor_t *tensor = find_gradient(golden, i / 2, i % 2 ? 'B' : 'A');
            const int64_t *sum = sinks->sum[3 * (i / 2) + 1 + i % 2];
            float *wanted = calloc((size_t)tensor->elements, sizeof(float));
            double difference = 0, norm = 0;
            check(safetensors_read_f32(tensor, wanted));
            for (int64_t e = 0; e < tensor->elements; e++) {
                double delta = ldexp((double)sum[e], -EXPONENT) - (double)wanted[e];
                difference += delta * delta;
                norm += (double)wanted[e] * (double)wanted[e];
            }
            free(wanted);
            found += pass;
            if (!pass) all += norm;
            double share = sqrt(difference) / (1e-3 * sqrt(norm) + 1e-6 * sqrt(all));
            if (pass && !(share <= most)) most = share;
        }
    }
    print_message("%-12s %d tensors, worst gradient %.4f of the tolerance\n", name, found, most);
    assert_true(most <= 1);
    int total = 0;
    for (int i = 0; i < safetensors_count(golden->file); i++)
        total += !strncmp(safetensors_at(golden->file, i)->name, "grad.", 5);
    assert_int_equal(found, total);
}

static void test_adapters(void **state) {
    (void)state;
    for (int i = 0; i < ADAPTERS; i++) {
        golden_t golden;
        head_output_t *head;
        golden_open(&golden, adapters[i].name, adapters[i].base);
        sinks_t sinks = parity_sinks(golden.model, EXPONENT);
        // As LoRA trains: the base is frozen.
        for (int p = 0; p < golden.model->parameter_count; p++) golden.model->parameter[p].sink = (gradient_sink_t){0};
        tape_t *tape = parity_tape(golden.model, &golden.batch, RECOMPUTE_CHEAP, true);
        check(batch_forward(golden.model, tape, &golden.batch, 1.0F, false, &head));
        check_logprobs(&golden, head, adapters[i].name);
        float *wanted = parity_floats(golden.file, "loss.scale", NULL);
        assert_true(fabs(scale_loss(&golden, head) - (double)*wanted) <= 1e-4);
        free(wanted);
        check(tape_backward(tape));
        assert_int_equal(*sinks.flags, 0);
        check_gradients(&golden, &sinks, adapters[i].name);
        tape_close(tape);
        parity_free_sinks(&sinks);
        golden_close(&golden);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adapters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
