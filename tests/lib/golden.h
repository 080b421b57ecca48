// A golden folder of tests/goldens (families/, qwen2_5_vl/): a model folder with golden.safetensors beside it.
#ifndef TESTS_LIB_GOLDEN_H
#define TESTS_LIB_GOLDEN_H

#include "tests/lib/parity.h"

#include <dirent.h>

enum { GOLDEN_EXPONENT = 34, GOLDEN_PATH = 1024, GOLDEN_MAX_CASES = 128 };

typedef struct golden {
    char name[128]; // "families/llama_gqa3_llama3"
    char folder[GOLDEN_PATH];
    device_t *device;
    model_t *model;
    safetensors_t *file;
    prompt_t prompts[PARITY_MAX_PROMPTS];
    int prompt_count;
    batch_t batch;
} golden_t;

typedef struct golden_list {
    char name[GOLDEN_MAX_CASES][128];
    int count;
} golden_list_t;

static inline int golden_compare(const void *a, const void *b) {
    return strcmp(a, b);
}

// Every folder with a golden.safetensors below tests/goldens/GROUP, in order of name.
static inline void golden_find(const char *group, golden_list_t *list) {
    char path[GOLDEN_PATH + 512];
    snprintf(path, sizeof(path), "%s/tests/goldens/%s", POISE_SOURCE_DIR, group);
    DIR *listing = opendir(path);
    int first = list->count;
    assert_non_null(listing);
    for (const struct dirent *entry; (entry = readdir(listing));) {
        snprintf(path, sizeof(path), "%s/tests/goldens/%s/%s/golden.safetensors", POISE_SOURCE_DIR, group,
                 entry->d_name);
        FILE *file = fopen(path, "rb");
        if (!file) continue;
        fclose(file);
        assert_true(list->count < GOLDEN_MAX_CASES);
        snprintf(list->name[list->count++], sizeof(list->name[0]), "%s/%.100s", group, entry->d_name);
    }
    closedir(listing);
    qsort(list->name[first], (size_t)(list->count - first), sizeof(list->name[0]), golden_compare);
}

static inline golden_list_t golden_all(void) {
    golden_list_t list = {.count = 0};
    golden_find("families", &list);
    golden_find("qwen2_5_vl", &list);
    assert_true(list.count >= 10);
    return list;
}

static inline void golden_batch(const golden_t *golden, int first, int count, batch_t *out) {
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    for (int i = 0; i < count; i++) sequences[i] = parity_sequence(&golden->prompts[first + i], i);
    check(batch_build(golden->model, sequences, count, out));
}

static inline void golden_open(golden_t *golden, const char *name) {
    char path[GOLDEN_PATH + 64];
    *golden = (golden_t){0};
    snprintf(golden->name, sizeof(golden->name), "%s", name);
    snprintf(golden->folder, sizeof(golden->folder), "%s/tests/goldens/%s", POISE_SOURCE_DIR, name);
    check(device_open("cpu", 2, &golden->device));
    golden->model = parity_model(golden->folder, golden->device);
    snprintf(path, sizeof(path), "%s/golden.safetensors", golden->folder);
    check(safetensors_open(path, &golden->file));
    while (golden->prompt_count < PARITY_MAX_PROMPTS &&
           parity_prompt(golden->model, golden->file, golden->prompt_count, &golden->prompts[golden->prompt_count]))
        golden->prompt_count++;
    assert_true(golden->prompt_count >= 2);
    golden_batch(golden, 0, golden->prompt_count, &golden->batch);
}

static inline void golden_close(golden_t *golden) {
    batch_free(&golden->batch);
    for (int i = 0; i < golden->prompt_count; i++) parity_free_prompt(&golden->prompts[i]);
    safetensors_close(golden->file);
    model_close(golden->model);
    device_close(golden->device);
}

static inline double golden_worst(const float *have, const float *wanted, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs((double)have[i] - (double)wanted[i]);
        if (!(difference <= most)) most = difference;
    }
    return most;
}

// Largest distance of the batch's log-probs from the golden's.
static inline double golden_distance(const golden_t *golden, const head_output_t *head) {
    double most = 0;
    int at = 0;
    for (int j = 0; j < golden->prompt_count; j++) {
        int count = golden->prompts[j].length - 1;
        double difference = golden_worst(head->logprob + at, golden->prompts[j].logprobs, count);
        if (!(difference <= most)) most = difference;
        at += count;
    }
    assert_int_equal(at, head->count);
    return most;
}

// dL/dlogp of SCALe: per prompt, w_think / n_think and w_answer / n_answer. Returns the loss.
static inline double golden_scale_loss(const golden_t *golden, int first, int count, head_output_t *head) {
    float *weights = parity_floats(golden->file, "loss.weights", NULL);
    double loss = 0;
    for (int p = first, at = 0; p < first + count; p++) {
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

static inline double golden_vanilla_loss(const golden_t *golden, head_output_t *head) {
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

// The golden names tensors as the case's own files do; the model knows its map.
static inline const safetensors_tensor_t *golden_tensor(const golden_t *golden, const char *prefix, int parameter) {
    size_t length = strlen(prefix);
    char mapped[512];
    for (int i = 0; i < safetensors_count(golden->file); i++) {
        const safetensors_tensor_t *tensor = safetensors_at(golden->file, i);
        if (strncmp(tensor->name, prefix, length) != 0) continue;
        if (!golden->model->family->map_name(golden->model, tensor->name + length, mapped, sizeof(mapped))) continue;
        if (!strcmp(mapped, golden->model->spec[parameter].name)) return tensor;
    }
    fail_msg("no golden %s%s", prefix, golden->model->spec[parameter].name);
    return NULL;
}

// |values - sum|; either may be NULL (zero).
static inline double golden_norm(const float *values, const int64_t *sum, int64_t count) {
    double square = 0;
    for (int64_t i = 0; i < count; i++) {
        double value = (sum ? ldexp((double)sum[i], -GOLDEN_EXPONENT) : 0) - (values ? (double)values[i] : 0);
        square += value * value;
    }
    return sqrt(square);
}

// [columns, rows], as the checkpoint has it -> [rows, columns], as the ops have it.
static inline void golden_turn(const parameter_spec_t *spec, float *values) {
    float *copy = calloc((size_t)spec->elements, sizeof(float));
    memcpy(copy, values, (size_t)spec->elements * sizeof(float));
    for (int64_t i = 0; i < spec->elements; i++) values[i] = copy[i % spec->columns * spec->rows + i / spec->columns];
    free(copy);
}

// The largest distance of a parameter's gradient from the golden's, as a share of 1e-3 |g| + 1e-6 |all g|; *at is
// whose.
static inline double golden_gradients(const golden_t *golden, const sinks_t *sinks, int *at) {
    const model_t *model = golden->model;
    double *difference = calloc((size_t)model->parameter_count, sizeof(double));
    double *norm = calloc((size_t)model->parameter_count, sizeof(double)), all = 0, most = 0;
    *at = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const safetensors_tensor_t *tensor = golden_tensor(golden, "grad.scale.", i);
        float *wanted = calloc((size_t)tensor->elements, sizeof(float));
        assert_int_equal(tensor->elements, model->spec[i].elements);
        check(safetensors_read_f32(tensor, wanted));
        if (model->spec[i].transposed) golden_turn(&model->spec[i], wanted);
        difference[i] = golden_norm(wanted, sinks->sum[3 * i], tensor->elements);
        norm[i] = golden_norm(wanted, NULL, tensor->elements);
        all += norm[i] * norm[i];
        free(wanted);
    }
    for (int i = 0; i < model->parameter_count; i++) {
        double share = difference[i] / (1e-3 * norm[i] + 1e-6 * sqrt(all));
        if (share > most) *at = i;
        if (!(share <= most)) most = share;
    }
    free(difference);
    free(norm);
    return most;
}

// The same of the norms of the vanilla loss's gradients.
static inline double golden_vanilla_norms(const golden_t *golden, const sinks_t *sinks) {
    const model_t *model = golden->model;
    double all = 0, most = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < model->parameter_count; i++) {
            float wanted;
            check(safetensors_read_f32(golden_tensor(golden, "norm.vanilla.", i), &wanted));
            if (!pass) {
                all += (double)wanted * (double)wanted;
                continue;
            }
            double have = golden_norm(NULL, sinks->sum[3 * i], model->spec[i].elements);
            double share = fabs(have - (double)wanted) / (1e-3 * (double)wanted + 1e-6 * sqrt(all));
            if (!(share <= most)) most = share;
        }
    }
    return most;
}

#endif
