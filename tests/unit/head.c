// The head: equal bits on every kernel set and in any batch, sampling and scoring alike; right by a double-precision
// reference and by finite differences; bans, temperatures and the ends of the distribution.
#include "tests/lib/matrix_fixture.h"

enum { ROWS = 70, K = 33, V = 1100, EXPONENT = 28 };

typedef struct head {
    int vocabulary, columns;
    float *hidden, *weight;
    void *packed;
    device_t *device;
} head_t;

static head_t head_open(int set, int threads, int vocabulary, int columns, bool packed) {
    head_t head = {.vocabulary = vocabulary, .columns = columns, .device = fixture_open(set, threads)};
    head.hidden = random_floats(1, (int64_t)ROWS * columns, 1.0f);
    head.weight = random_floats(2, (int64_t)vocabulary * columns, 0.3f);
    matrix_t weight = matrix_of(head.weight, vocabulary, columns);
    size_t bytes = cpu_packed_bytes(head.device, weight);
    if (packed && bytes) {
        head.packed = malloc(bytes);
        assert_non_null(head.packed);
        ok(cpu_pack_weight(head.device, weight, head.packed));
    }
    return head;
}

static void head_close(head_t *head) {
    free(head->hidden), free(head->weight), free(head->packed);
    device_close(head->device);
}

typedef struct scores {
    int32_t rows[ROWS], targets[ROWS];
    float logprob[ROWS], entropy[ROWS], lse[ROWS];
} scores_t;

static token_logprobs_args_t score_args(const head_t *head, scores_t *scores, int count, float temperature) {
    return (token_logprobs_args_t){.hidden = matrix_of(head->hidden, ROWS, head->columns),
                                   .weight = matrix_of(head->weight, head->vocabulary, head->columns),
                                   .packed = head->packed,
                                   .temperature = temperature,
                                   .count = count,
                                   .rows = scores->rows,
                                   .targets = scores->targets,
                                   .logprob = scores->logprob,
                                   .entropy = scores->entropy,
                                   .lse = scores->lse};
}

typedef struct samples {
    float temperature[ROWS], uniform[ROWS], logprob[ROWS], entropy[ROWS], gap[ROWS];
    int32_t token[ROWS], banned[V];
    int banned_count;
} samples_t;

static void sample(head_t *head, samples_t *samples, int first, int count) {
    token_sample_args_t args = {.hidden =
                                    matrix_of(head->hidden + (int64_t)first * head->columns, count, head->columns),
                                .weight = matrix_of(head->weight, head->vocabulary, head->columns),
                                .packed = head->packed,
                                .temperature = samples->temperature + first,
                                .uniform = samples->uniform + first,
                                .banned = samples->banned,
                                .banned_count = samples->banned_count,
                                .token = samples->token + first,
                                .logprob = samples->logprob + first,
                                .entropy = samples->entropy + first,
                                .top_gap = samples->gap + first};
    ok(cpu_token_sample(head->device, &args));
}

static void samples_fill(samples_t *samples, float temperature) {
    memset(samples, 0, sizeof(*samples));
    for (int i = 0; i < ROWS; i++) {
        samples->temperature[i] = temperature;
        samples->uniform[i] = philox_uniform(philox_draw(9, PHILOX_TEST, (uint64_t)i, 0, 0).word[0]);
    }
}

static void logits_in_double(const head_t *head, int row, double temperature, double *logit) {
    for (int v = 0; v < head->vocabulary; v++) {
        logit[v] = 0;
        for (int k = 0; k < head->columns; k++)
            logit[v] += (double)head->hidden[row * head->columns + k] * head->weight[v * head->columns + k];
        logit[v] /= temperature;
    }
}
static double lse_in_double(const double *logit, int count) {
    double max = -INFINITY, sum = 0;
    for (int v = 0; v < count; v++) max = logit[v] > max ? logit[v] : max;
    for (int v = 0; v < count; v++) sum += exp(logit[v] - max);
    return max + log(sum);
}

// ---- scores ----

static void test_scores_against_double(void **state) {
    static const float temperatures[] = {1.0f, 0.7f, 3.0f};
    double *logit = malloc(V * sizeof(double));
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        head_t head = head_open(set, 2, V, K, true);
        for (int t = 0; t < 3; t++) {
            scores_t scores;
            int count = 0;
            for (int row = 0; row < ROWS; row += 3) {
                scores.rows[count] = row;
                scores.targets[count++] = (row * 37 + 5) % V;
            }
            token_logprobs_args_t args = score_args(&head, &scores, count, temperatures[t]);
            ok(cpu_token_logprobs(head.device, &args));
            for (int i = 0; i < count; i++) {
                double entropy = 0;
                logits_in_double(&head, scores.rows[i], (double)temperatures[t], logit);
                double lse = lse_in_double(logit, V);
                for (int v = 0; v < V; v++) entropy += exp(logit[v] - lse) * (lse - logit[v]);
                near(scores.lse[i], lse, 1e-5);
                near(scores.logprob[i], logit[scores.targets[i]] - lse, 1e-5);
                near(scores.entropy[i], entropy, 1e-5);
            }
        }
        head_close(&head);
    }
    free(logit);
}

// The same rows scored in batches of any size, on any set, packed or not, with any threads.
static void test_scores_are_alike(void **state) {
    static const int vocabularies[] = {1, 5, 16, 250, V};
    (void)state;
    for (int i = 0; i < 5; i++) {
        scores_t expected, got;
        memset(&expected, 0, sizeof(expected));
        for (int row = 0; row < ROWS; row++) {
            expected.rows[row] = row;
            expected.targets[row] = row * 31 % vocabularies[i];
        }
        head_t head = head_open(0, 1, vocabularies[i], K, false);
        token_logprobs_args_t args = score_args(&head, &expected, ROWS, 0.8f);
        ok(cpu_token_logprobs(head.device, &args));
        head_close(&head);
        for (int set = 0; set < SETS; set++)
            for (int threads = 1; set_is_there(set) && threads <= 3; threads++) {
                head = head_open(set, threads, vocabularies[i], K, threads != 2);
                got = expected;
                memset(got.logprob, 0, sizeof(got.logprob));
                int step = set == 0 ? 41 : 1 + 12 * (threads - 1);
                for (int first = 0; first < ROWS; first += step) {
                    args = score_args(&head, &got, ROWS - first < step ? ROWS - first : step, 0.8f);
                    args.rows += first, args.targets += first;
                    args.logprob += first, args.entropy += first, args.lse += first;
                    ok(cpu_token_logprobs(head.device, &args));
                }
                same_floats(expected.logprob, got.logprob, ROWS);
                same_floats(expected.entropy, got.entropy, ROWS);
                same_floats(expected.lse, got.lse, ROWS);
                head_close(&head);
            }
    }
}

// A broken row says so, whichever id holds the NaN, and leaves the others alone.
static void test_broken_rows(void **state) {
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        head_t head = head_open(set, 1, V, K, false);
        scores_t scores = {.rows = {0, 1, 2}, .targets = {3, 3, 3}}, before = scores;
        token_logprobs_args_t args = score_args(&head, &before, 3, 1.0f);
        ok(cpu_token_logprobs(head.device, &args));
        head.hidden[K] = INFINITY;
        args = score_args(&head, &scores, 3, 1.0f);
        ok(cpu_token_logprobs(head.device, &args));
        assert_true(isnan(scores.logprob[1]) && isnan(scores.lse[1]) && isnan(scores.entropy[1]));
        assert_true(scores.logprob[0] == before.logprob[0] && scores.logprob[2] == before.logprob[2]);
        samples_t samples;
        samples_fill(&samples, 1.0f);
        token_sample_args_t sampling = {.hidden = matrix_of(head.hidden, 3, K),
                                        .weight = matrix_of(head.weight, V, K),
                                        .temperature = samples.temperature,
                                        .uniform = samples.uniform,
                                        .token = samples.token,
                                        .logprob = samples.logprob};
        refused(cpu_token_sample(head.device, &sampling), STATUS_FAILED, "row 1");
        head_close(&head);
    }
}

// ---- gradients ----

typedef struct slopes {
    float *dhidden;
    int64_t *sum;
    uint32_t flags;
    gradient_sink_t sink;
} slopes_t;

static slopes_t slopes_make(int vocabulary, int columns) {
    return (slopes_t){.dhidden = floats((int64_t)ROWS * columns), .sum = integers((int64_t)vocabulary * columns)};
}
static void slopes_free(slopes_t *slopes) {
    free(slopes->dhidden), free(slopes->sum);
}
static void slope(head_t *head, scores_t *scores, slopes_t *slopes, const float *dlogprob, int first, leaves_t leaves) {
    token_logprobs_args_t args = score_args(head, scores, leaves.start[leaves.count], 0.9f);
    args.rows += first, args.targets += first;
    args.logprob += first, args.entropy += first, args.lse += first;
    ok(cpu_token_logprobs(head->device, &args));
    slopes->sink = (gradient_sink_t){.sum = slopes->sum, .exponent = EXPONENT, .flags = &slopes->flags};
    token_logprobs_gradients_t gradients = {.dlogprob = dlogprob + first,
                                            .dhidden = matrix_of(slopes->dhidden, ROWS, head->columns),
                                            .weight = &slopes->sink,
                                            .leaves = leaves};
    ok(cpu_token_logprobs_backward(head->device, &args, &gradients));
    assert_int_equal(slopes->flags, 0);
}

static void scores_fill(scores_t *scores, int vocabulary) {
    memset(scores, 0, sizeof(*scores));
    for (int i = 0; i < ROWS / 2; i++) {
        scores->rows[i] = 2 * i + (i > 5);
        scores->targets[i] = (i * 613 + 7) % vocabulary;
    }
}

// The gradient of entry i's hidden row, over all ids at once in double precision.
static void near_slope(const head_t *head, const scores_t *scores, int i, double dlogprob, const float *dhidden) {
    double *logit = malloc(V * sizeof(double));
    logits_in_double(head, scores->rows[i], (double)0.9f, logit);
    double lse = lse_in_double(logit, V);
    for (int k = 0; k < K; k++) {
        double expected = 0;
        for (int v = 0; v < V; v++)
            expected += dlogprob * ((v == scores->targets[i]) - exp(logit[v] - lse)) / (double)0.9f *
                        (double)head->weight[v * K + k];
        near((double)dhidden[scores->rows[i] * K + k], expected, 1e-5);
    }
    free(logit);
}

// The gradient of one id's weight row.
static void near_weight_slope(const head_t *head, const scores_t *scores, int id, const float *dlogprob, int count,
                              const int64_t *sum) {
    double *logit = malloc(V * sizeof(double)), expected[K] = {0};
    for (int i = 0; i < count; i++) {
        logits_in_double(head, scores->rows[i], (double)0.9f, logit);
        double p = exp(logit[id] - lse_in_double(logit, V));
        for (int k = 0; k < K; k++)
            expected[k] += (double)dlogprob[i] * ((id == scores->targets[i]) - p) / (double)0.9f *
                           (double)head->hidden[scores->rows[i] * K + k];
    }
    for (int k = 0; k < K; k++) near(ldexp((double)sum[id * K + k], -EXPONENT), expected[k], 1e-5);
    free(logit);
}

// All kernel sets, thread counts and layouts of the same leaves give the same bits; V spans two blocks of ids.
static void test_gradients_are_alike(void **state) {
    enum { COUNT = ROWS / 2 };
    static const int32_t cut[] = {0, 9, 10, COUNT};
    float *dlogprob = random_floats(5, COUNT, 1.0f);
    scores_t scores;
    (void)state;
    scores_fill(&scores, V);
    slopes_t expected = slopes_make(V, K);
    head_t head = head_open(0, 1, V, K, false);
    slope(&head, &scores, &expected, dlogprob, 0, (leaves_t){.count = 3, .start = cut});
    for (int i = 0; i < COUNT; i++) near_slope(&head, &scores, i, (double)dlogprob[i], expected.dhidden);
    for (int id = 7; id < V; id += 156) near_weight_slope(&head, &scores, id, dlogprob, COUNT, expected.sum);
    near_weight_slope(&head, &scores, V - 1, dlogprob, COUNT, expected.sum);
    head_close(&head);
    for (int set = 0; set < SETS; set++)
        for (int threads = 1; set_is_there(set) && threads <= 3; threads++) {
            slopes_t got = slopes_make(V, K);
            head = head_open(set, threads, V, K, threads != 2);
            if (threads == 3) // three calls of one leaf each
                for (int leaf = 0; leaf < 3; leaf++) {
                    int32_t start[2] = {0, cut[leaf + 1] - cut[leaf]};
                    slope(&head, &scores, &got, dlogprob, cut[leaf], (leaves_t){.count = 1, .start = start});
                }
            else
                slope(&head, &scores, &got, dlogprob, 0, (leaves_t){.count = 3, .start = cut});
            same_floats(expected.dhidden, got.dhidden, ROWS * K);
            same_integers(expected.sum, got.sum, V * K);
            head_close(&head);
            slopes_free(&got);
        }
    slopes_free(&expected);
    free(dlogprob);
}

// L = sum of dlogprob * logprob in double precision; its slope by central differences is the gradient.
static double loss_in_double(const head_t *head, const scores_t *scores, const float *dlogprob, int count) {
    double loss = 0, *logit = malloc((size_t)head->vocabulary * sizeof(double));
    for (int i = 0; i < count; i++) {
        logits_in_double(head, scores->rows[i], (double)0.9f, logit);
        loss += (double)dlogprob[i] * (logit[scores->targets[i]] - lse_in_double(logit, head->vocabulary));
    }
    free(logit);
    return loss;
}

static void test_gradients_by_differences(void **state) {
    enum { SMALL_V = 41, SMALL_K = 7, COUNT = ROWS / 2 };
    const float step = 0x1p-10f;
    static const int32_t cut[] = {0, 4, COUNT};
    float *dlogprob = random_floats(5, COUNT, 1.0f);
    scores_t scores;
    (void)state;
    scores_fill(&scores, SMALL_V);
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        slopes_t slopes = slopes_make(SMALL_V, SMALL_K);
        head_t head = head_open(set, 1, SMALL_V, SMALL_K, true);
        slope(&head, &scores, &slopes, dlogprob, 0, (leaves_t){.count = 2, .start = cut});
        for (int i = 0; i < SMALL_V * SMALL_K + 2 * SMALL_K; i++) {
            bool weight = i < SMALL_V * SMALL_K;
            float *at = weight ? &head.weight[i] : &head.hidden[(scores.rows[3] - 1) * SMALL_K + i - SMALL_V * SMALL_K];
            float old = *at, up = old + step, down = old - step;
            *at = up;
            double high = loss_in_double(&head, &scores, dlogprob, COUNT);
            *at = down;
            double low = loss_in_double(&head, &scores, dlogprob, COUNT);
            *at = old;
            double got = weight ? ldexp((double)slopes.sum[i], -EXPONENT) : (double)slopes.dhidden[at - head.hidden];
            near(got, (high - low) / ((double)up - (double)down), 2e-5);
        }
        head_close(&head);
        slopes_free(&slopes);
    }
    free(dlogprob);
}

// ---- sampling ----

// What sampling records is what scoring finds, bit for bit, at any temperature and beside any rows.
static void test_sampling_equals_scoring(void **state) {
    static const float temperatures[] = {0.0f, 1.0f, 0.6f, 1.9f};
    (void)state;
    for (int set = 0; set < SETS; set++)
        for (int t = 0; set_is_there(set) && t < 4; t++) {
            head_t head = head_open(set, 2, V, K, true);
            samples_t samples;
            scores_t scores;
            samples_fill(&samples, temperatures[t]);
            samples.banned[0] = 3, samples.banned[1] = 700, samples.banned_count = 2;
            for (int first = 0, step = 1; first < ROWS; first += step, step = step * 3 % 17) {
                if (step > ROWS - first) step = ROWS - first;
                sample(&head, &samples, first, step);
            }
            for (int i = 0; i < ROWS; i++) scores.rows[i] = i, scores.targets[i] = samples.token[i];
            token_logprobs_args_t args = score_args(&head, &scores, ROWS, t == 0 ? 1.0f : temperatures[t]);
            ok(cpu_token_logprobs(head.device, &args));
            same_floats(scores.logprob, samples.logprob, ROWS);
            same_floats(scores.entropy, samples.entropy, ROWS);
            head_close(&head);
        }
}

static void test_sampling_is_alike(void **state) {
    samples_t expected, got;
    (void)state;
    for (int set = 0; set < SETS; set++)
        for (int threads = 1; set_is_there(set) && threads <= 3; threads++) {
            head_t head = head_open(set, threads, V, K, threads != 2);
            samples_fill(&got, 0.8f);
            for (int i = 0; i < ROWS; i += 5) got.temperature[i] = 0.0f;
            for (int i = 0; i < 100; i++) got.banned[i] = 11 * i;
            got.banned_count = 100;
            sample(&head, &got, 0, ROWS);
            if (set == 0 && threads == 1) expected = got;
            assert_memory_equal(expected.token, got.token, sizeof(got.token));
            same_floats(expected.logprob, got.logprob, ROWS);
            same_floats(expected.gap, got.gap, ROWS);
            head_close(&head);
        }
}

// The draw against cumulated probabilities in double: the token's interval must hold the uniform number.
static void test_draws(void **state) {
    double *logit = malloc(V * sizeof(double));
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        head_t head = head_open(set, 1, V, K, true);
        samples_t samples;
        samples_fill(&samples, 1.3f);
        for (int i = 0; i < 300; i++) samples.banned[i] = 3 * i + 100;
        samples.banned_count = 300;
        samples.uniform[0] = 0.0f;
        samples.uniform[1] = 1.0f - 0x1p-24f;
        sample(&head, &samples, 0, ROWS);
        for (int row = 0; row < ROWS; row++) {
            double total = 0, below = 0;
            int token = samples.token[row];
            logits_in_double(&head, row, (double)1.3f, logit);
            for (int i = 0; i < 300; i++) {
                assert_int_not_equal(token, samples.banned[i]);
                logit[samples.banned[i]] = -INFINITY;
            }
            double lse = lse_in_double(logit, V);
            for (int v = 0; v < V; v++) total += exp(logit[v] - lse);
            near(total, 1, 1e-9);
            for (int v = 0; v < token; v++) below += exp(logit[v] - lse);
            assert_true(below <= (double)samples.uniform[row] + 1e-6);
            assert_true(below + exp(logit[token] - lse) >= (double)samples.uniform[row] - 1e-6);
        }
        assert_int_equal(samples.token[0], 0);
        head_close(&head);
    }
    free(logit);
}

// One column makes the logits what we like: logit[v] = weight[v] * hidden.
static head_t head_of_logits(int set, const float *logit, int count) {
    head_t head = head_open(set, 1, count, 1, false);
    memcpy(head.weight, logit, (size_t)count * sizeof(float));
    for (int i = 0; i < ROWS; i++) head.hidden[i] = 1.0f;
    return head;
}

static void test_greedy(void **state) {
    enum { COUNT = 530 };
    float logit[COUNT];
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        for (int i = 0; i < COUNT; i++) logit[i] = (float)(i % 7) - 20.0f;
        logit[40] = logit[39] = logit[529] = 5.0f; // ties: the lowest id wins
        logit[7] = 6.5f;
        head_t head = head_of_logits(set, logit, COUNT);
        samples_t samples;
        samples_fill(&samples, 0.0f);
        sample(&head, &samples, 0, 1);
        assert_int_equal(samples.token[0], 7);
        assert_true(samples.gap[0] == 1.5f);
        samples.banned[0] = 7, samples.banned_count = 1;
        sample(&head, &samples, 0, 1);
        assert_int_equal(samples.token[0], 39);
        assert_true(samples.gap[0] == 0.0f);
        samples.banned[1] = 39, samples.banned[2] = 40, samples.banned_count = 3;
        sample(&head, &samples, 0, 1);
        assert_int_equal(samples.token[0], 529);
        assert_true(samples.gap[0] == 19.0f); // the best of the rest is 6 - 20
        near(samples.logprob[0], -log(1.0 + exp(0.0) * 2 + exp(1.5)), 1e-5);
        head_close(&head);
    }
}

// Bans may take all the mass there is; tokens without mass are never drawn, whatever the uniform number.
static void test_ends_of_the_distribution(void **state) {
    enum { COUNT = 600 };
    float logit[COUNT];
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        for (int i = 0; i < COUNT; i++) logit[i] = -300.0f;
        logit[5] = 200.0f, logit[300] = 0.0f, logit[301] = 0.0f;
        head_t head = head_of_logits(set, logit, COUNT);
        samples_t samples;
        samples_fill(&samples, 1.0f);
        samples.uniform[0] = 0.0f, samples.uniform[1] = 1.0f - 0x1p-24f;
        sample(&head, &samples, 0, 2);
        assert_int_equal(samples.token[0], 5);
        assert_int_equal(samples.token[1], 5);
        assert_true(samples.logprob[0] == 0.0f && samples.entropy[0] == 0.0f);
        samples.banned[0] = 5, samples.banned_count = 1;
        sample(&head, &samples, 0, 2);
        assert_int_equal(samples.token[0], 300);
        assert_int_equal(samples.token[1], 301);
        near(samples.logprob[0], -200, 1e-4); // the ban does not show in the log-prob
        for (int i = 0; i < COUNT - 1; i++) samples.banned[i] = i;
        samples.banned_count = COUNT - 1;
        sample(&head, &samples, 0, 2);
        assert_int_equal(samples.token[0], COUNT - 1);
        assert_true(isinf(samples.gap[0]));
        head_close(&head);
    }
}

// ---- refusals and the dry run ----

static void test_refusals(void **state) {
    (void)state;
    head_t head = head_open(0, 1, 20, 3, false);
    scores_t scores = {.rows = {0, 4}, .targets = {1, 19}};
    token_logprobs_args_t args = score_args(&head, &scores, 2, 1.0f);
    scores.targets[1] = 20;
    refused(cpu_token_logprobs(head.device, &args), STATUS_INVALID, "target 20");
    scores.targets[1] = -1;
    refused(cpu_token_logprobs(head.device, &args), STATUS_INVALID, "target -1");
    scores.targets[1] = 0, scores.rows[1] = ROWS;
    refused(cpu_token_logprobs(head.device, &args), STATUS_INVALID, "row 70");
    scores.rows[1] = 1, args.temperature = 0.0f;
    refused(cpu_token_logprobs(head.device, &args), STATUS_INVALID, "temperature");
    args.temperature = 1.0f, args.weight.dtype = DTYPE_F16;
    refused(cpu_token_logprobs(head.device, &args), STATUS_UNAVAILABLE, "f32");
    args.weight.dtype = DTYPE_F32, args.hidden.columns = 2;
    refused(cpu_token_logprobs(head.device, &args), STATUS_INVALID, "hidden");
    samples_t samples;
    samples_fill(&samples, 1.0f);
    token_sample_args_t sampling = {.hidden = matrix_of(head.hidden, 2, 3),
                                    .weight = matrix_of(head.weight, 20, 3),
                                    .temperature = samples.temperature,
                                    .uniform = samples.uniform,
                                    .banned = samples.banned,
                                    .token = samples.token,
                                    .logprob = samples.logprob};
    sampling.banned_count = 20;
    refused(cpu_token_sample(head.device, &sampling), STATUS_INVALID, "at least one");
    sampling.banned_count = 2; // both are id 0
    refused(cpu_token_sample(head.device, &sampling), STATUS_INVALID, "ascend");
    sampling.banned_count = 0, samples.uniform[1] = 1.0f;
    refused(cpu_token_sample(head.device, &sampling), STATUS_INVALID, "uniform");
    samples.uniform[1] = 0.5f, samples.temperature[0] = -1.0f;
    refused(cpu_token_sample(head.device, &sampling), STATUS_INVALID, "temperature");
    head_close(&head);
}

static void test_measuring(void **state) {
    (void)state;
    for (int set = 0; set < SETS; set++) {
        if (!set_is_there(set)) continue;
        head_t wet = head_open(set, 2, V, K, false);
        device_t *dry = fixture_open(set, 2);
        dry->measuring = true;
        scores_t scores;
        slopes_t slopes = slopes_make(V, K);
        samples_t samples;
        float *dlogprob = random_floats(5, ROWS / 2, 1.0f);
        int32_t start[2] = {0, ROWS / 2};
        scores_fill(&scores, V);
        samples_fill(&samples, 1.0f);
        slope(&wet, &scores, &slopes, dlogprob, 0, (leaves_t){.count = 1, .start = start});
        sample(&wet, &samples, 0, ROWS);
        token_logprobs_args_t args = {.hidden = matrix_of(NULL, ROWS, K),
                                      .weight = matrix_of(NULL, V, K),
                                      .temperature = 1.0f,
                                      .count = ROWS / 2};
        token_logprobs_gradients_t gradients = {
            .dhidden = matrix_of(slopes.dhidden, ROWS, K), .weight = &slopes.sink, .leaves = {.count = 1}};
        token_sample_args_t sampling = {.hidden = matrix_of(NULL, ROWS, K), .weight = matrix_of(NULL, V, K)};
        ok(cpu_token_logprobs(dry, &args));
        ok(cpu_token_logprobs_backward(dry, &args, &gradients));
        ok(cpu_token_sample(dry, &sampling));
        assert_true(dry->workspace_bytes >= wet.device->workspace_bytes);
        assert_null(dry->workspace);
        slopes_free(&slopes);
        free(dlogprob);
        head_close(&wet);
        device_close(dry);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores_against_double),
        cmocka_unit_test(test_scores_are_alike),
        cmocka_unit_test(test_broken_rows),
        cmocka_unit_test(test_gradients_are_alike),
        cmocka_unit_test(test_gradients_by_differences),
        cmocka_unit_test(test_sampling_equals_scoring),
        cmocka_unit_test(test_sampling_is_alike),
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_ends_of_the_distribution),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_measuring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
