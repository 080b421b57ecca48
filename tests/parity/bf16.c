// bf16 against transformers: for every family golden with a bf16.safetensors, our deviation from transformers in fp32
// is no larger than twice transformers' own. And what bf16 promises by itself: equal bits on every kernel set, thread
// count and recompute level, for log-probs and gradients.
#include "tests/lib/parity.h"

#include <glob.h>

enum { EXPONENT = 34, PATH = 1024, LEAST_CASES = 18 };

typedef struct run {
    device_t *device;
    model_t *model;
    prompt_t prompts[PARITY_MAX_PROMPTS];
    int prompt_count;
    batch_t batch;
} run_t;

static safetensors_t *open_file(const char *folder, const char *name) {
    char path[PATH];
    safetensors_t *file;
    assert_true(snprintf(path, sizeof(path), "%s/%s", folder, name) < PATH);
    check(safetensors_open(path, &file));
    return file;
}

// False when this machine lacks the device.
static bool run_open(run_t *run, const char *folder, const char *device, int threads, dtype_t dtype) {
    *run = (run_t){0};
    status_t status = device_open(device, threads, &run->device);
    if (status && status_kind(status) == STATUS_UNAVAILABLE) {
        status_free(status);
        return false;
    }
    check(status);
    run->model = parity_model_as(folder, run->device, dtype);
    safetensors_t *file = open_file(folder, "golden.safetensors");
    batch_sequence_t sequences[PARITY_MAX_PROMPTS];
    while (run->prompt_count < PARITY_MAX_PROMPTS &&
           parity_prompt(run->model, file, run->prompt_count, &run->prompts[run->prompt_count])) {
        sequences[run->prompt_count] = parity_sequence(&run->prompts[run->prompt_count], run->prompt_count);
        run->prompt_count++;
    }
    safetensors_close(file);
    assert_true(run->prompt_count >= 1);
    check(batch_build(run->model, sequences, run->prompt_count, &run->batch));
    return true;
}

static void run_close(run_t *run) {
    batch_free(&run->batch);
    for (int i = 0; i < run->prompt_count; i++) parity_free_prompt(&run->prompts[i]);
    model_close(run->model);
    device_close(run->device);
}

// Every log-prob of the batch; to be freed.
static float *run_logprobs(run_t *run) {
    head_output_t *head;
    tape_t *tape = parity_tape(run->model, &run->batch, RECOMPUTE_NONE, false);
    check(batch_forward(run->model, tape, &run->batch, 1.0F, false, &head));
    float *out = calloc((size_t)head->count + 1, sizeof(float));
    memcpy(out, head->logprob, (size_t)head->count * sizeof(float));
    tape_close(tape);
    return out;
}

typedef struct deviation {
    double worst, mean;
    int count;
} deviation_t;

static void deviate(deviation_t *deviation, double value, double right) {
    double difference = fabs(value - right);
    if (!(difference <= deviation->worst)) deviation->worst = difference;
    deviation->mean = (deviation->mean * deviation->count + difference) / (deviation->count + 1);
    deviation->count++;
}

static void check_folder(const char *folder) {
    run_t run;
    assert_true(run_open(&run, folder, "cpu", 2, DTYPE_BF16));
    safetensors_t *file = open_file(folder, "bf16.safetensors");
    float *ours = run_logprobs(&run);
    deviation_t own = {0}, theirs = {0};
    for (int p = 0, at = 0; p < run.prompt_count; p++) {
        char name[64];
        int64_t count = 0;
        snprintf(name, sizeof(name), "prompt%d.logprobs", p);
        float *half = parity_floats(file, name, &count);
        assert_non_null(half);
        assert_int_equal(count, run.prompts[p].length - 1);
        for (int t = 0; t < count; t++, at++) {
            deviate(&own, (double)ours[at], (double)run.prompts[p].logprobs[t]);
            deviate(&theirs, (double)half[t], (double)run.prompts[p].logprobs[t]);
        }
        free(half);
    }
    print_message("%s: %d log-probs, deviation from fp32 at most %.4f (transformers %.4f), in the mean %.5f (%.5f)\n",
                  folder + strlen(POISE_SOURCE_DIR "/tests/goldens/"), own.count, own.worst, theirs.worst, own.mean,
                  theirs.mean);
    assert_true(own.worst > 0); // it is bf16
    assert_true(own.worst <= 2 * theirs.worst);
    assert_true(own.mean <= 2 * theirs.mean);
    free(ours);
    safetensors_close(file);
    run_close(&run);
}

static void each_folder(void (*body)(const char *folder)) {
    glob_t found;
    assert_int_equal(glob(POISE_SOURCE_DIR "/tests/goldens/*/*/bf16.safetensors", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char folder[PATH];
        snprintf(folder, sizeof(folder), "%s", found.gl_pathv[i]);
        *strrchr(folder, '/') = 0;
        body(folder);
    }
    assert_true(found.gl_pathc >= LEAST_CASES);
    globfree(&found);
}

static void test_deviation(void **state) {
    (void)state;
    each_folder(check_folder);
}

// ---- bits ----

typedef struct gradient {
    int64_t **sum;
    int64_t *elements;
    int count;
    float *logprob;
    int logprobs;
} gradient_t;

static void gradient_of(run_t *run, recompute_t recompute, gradient_t *out) {
    sinks_t sinks = parity_sinks(run->model, EXPONENT);
    tape_t *tape = parity_tape(run->model, &run->batch, recompute, true);
    head_output_t *head;
    check(batch_forward(run->model, tape, &run->batch, 1.0F, false, &head));
    for (int i = 0; i < head->count; i++) head->dlogprob[i] = -1.0F / (float)head->count;
    *out = (gradient_t){.count = run->model->parameter_count, .logprobs = head->count};
    out->logprob = calloc((size_t)head->count + 1, sizeof(float));
    memcpy(out->logprob, head->logprob, (size_t)head->count * sizeof(float));
    check(tape_backward(tape));
    assert_int_equal(*sinks.flags, 0);
    out->sum = calloc((size_t)out->count, sizeof(*out->sum));
    out->elements = calloc((size_t)out->count, sizeof(*out->elements));
    for (int i = 0; i < out->count; i++) {
        out->elements[i] = run->model->spec[i].elements;
        out->sum[i] = sinks.sum[3 * i];
        sinks.sum[3 * i] = NULL;
    }
    tape_close(tape);
    parity_free_sinks(&sinks);
}

static void gradient_free(gradient_t *gradient) {
    for (int i = 0; i < gradient->count; i++) free(gradient->sum[i]);
    free(gradient->sum);
    free(gradient->elements);
    free(gradient->logprob);
}

static void same_bits(const gradient_t *a, const gradient_t *b) {
    assert_memory_equal(a->logprob, b->logprob, (size_t)a->logprobs * sizeof(float));
    for (int i = 0; i < a->count; i++)
        assert_memory_equal(a->sum[i], b->sum[i], (size_t)a->elements[i] * sizeof(int64_t));
}

static void check_bits(const char *folder) {
    static const struct {
        const char *device;
        int threads;
        recompute_t recompute;
    } ways[] = {{"cpu:portable", 1, RECOMPUTE_NONE},
                {"cpu:avx2", 2, RECOMPUTE_CHEAP},
                {"cpu:avx512", 3, RECOMPUTE_BLOCK},
                {"cpu", 1, RECOMPUTE_CHEAP},
                {"cpu", 2, RECOMPUTE_BLOCK}};
    gradient_t first = {0}, other;
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        run_t run;
        if (!run_open(&run, folder, ways[i].device, ways[i].threads, DTYPE_BF16)) continue;
        gradient_of(&run, ways[i].recompute, i ? &other : &first);
        run_close(&run);
        if (!i) continue;
        same_bits(&first, &other);
        gradient_free(&other);
    }
    // And the gradient is that of fp32 up to what bf16 loses.
    run_t run;
    assert_true(run_open(&run, folder, "cpu", 1, DTYPE_F32));
    gradient_of(&run, RECOMPUTE_NONE, &other);
    run_close(&run);
    double square = 0, difference = 0;
    for (int i = 0; i < first.count; i++)
        for (int64_t e = 0; e < first.elements[i]; e++) {
            double right = ldexp((double)other.sum[i][e], -EXPONENT), have = ldexp((double)first.sum[i][e], -EXPONENT);
            square += right * right;
            difference += (have - right) * (have - right);
        }
    print_message("%s: the gradient deviates by %.4f of its norm\n",
                  folder + strlen(POISE_SOURCE_DIR "/tests/goldens/"), sqrt(difference / square));
    assert_true(difference > 0 && difference <= 0.1 * 0.1 * square);
    gradient_free(&first);
    gradient_free(&other);
}

static void test_bits(void **state) {
    (void)state;
    each_folder(check_bits);
}

// ---- memory ----

// What the longest text needs is enough for every shorter one: the engine reserves once, for its largest step.
static void check_memory(const char *folder) {
    run_t run;
    assert_true(run_open(&run, folder, "cpu", 1, DTYPE_BF16));
    size_t before = 0;
    enum { LONGEST = 150 };
    int32_t tokens[LONGEST] = {0};
    for (int length = 2; length <= LONGEST; length++) {
        batch_sequence_t sequence = {.tokens = tokens, .length = length, .shared_with = -1, .first_target = length};
        batch_t batch;
        tape_t *tape;
        head_output_t *head;
        check(batch_build(run.model, &sequence, 1, &batch));
        check(tape_open_measuring(run.device, RECOMPUTE_NONE, &tape));
        tape_reset(tape, false);
        check(batch_forward(run.model, tape, &batch, 1.0F, false, &head));
        size_t values = tape_memory(tape).values;
        tape_close(tape);
        batch_free(&batch);
        assert_true(values >= before);
        before = values;
    }
    run_close(&run);
}

static void test_memory(void **state) {
    (void)state;
    each_folder(check_memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_deviation), cmocka_unit_test(test_bits),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
