// Ops with matrix products: linear, token_logprobs, token_sample; and packing, which they exercise.
#include "tests/ops/parts/ops.h"

#include <math.h>
#include <stdlib.h>

// Packs a tensor for the device, once a problem. Devices without a packed form leave problem->packed NULL.
static status_t pack(problem_t *p, device_t *device, int tensor) {
    matrix_t weight = problem_matrix(p, tensor);
    size_t bytes = device->table->packed_bytes(device, weight);
    if (!bytes || p->packed) return STATUS_OK;
    if (p->origin) {
        TRY(device->table->allocate(device, bytes, &p->packed));
        return device->table->pack_weight(device, weight, p->packed);
    }
    p->packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p->packed) FAIL(STATUS_MEMORY, "no memory for a packed weight of %zu bytes", bytes);
    return device->table->pack_weight(device, weight, p->packed);
}

// ---- linear: shape M, K, N, rank of the adapter, bias, packed ----
enum { LINEAR_X, LINEAR_W, LINEAR_BIAS, LINEAR_A, LINEAR_B, LINEAR_Y, LINEAR_XA };
static const float lora_scale = 0.5f;
static status_t linear_setup(problem_t *p) {
    int m = p->shape[0], k = p->shape[1], n = p->shape[2], r = p->shape[3];
    TRY(problem_tensor(p, "x", TENSOR_INPUT, true, m, k, 3, 1.0f));
    TRY(problem_tensor(p, "weight", TENSOR_PARAM, false, n, k, 0, 1.0f));
    TRY(problem_tensor(p, "bias", p->shape[4] ? TENSOR_PARAM : TENSOR_CONST, false, 1, n, 0, 1.0f));
    TRY(problem_tensor(p, "lora a", TENSOR_PARAM, false, r, k, 0, 1.0f));
    TRY(problem_tensor(p, "lora b", TENSOR_PARAM, false, n, r, 0, 1.0f));
    TRY(problem_tensor(p, "y", TENSOR_OUTPUT, true, m, n, 2, 1.0f));
    return problem_tensor(p, "x a", TENSOR_SAVED, true, m, r, 0, 0.0f);
}
static linear_args_t linear_args(problem_t *p) {
    linear_args_t args = {.x = problem_matrix(p, LINEAR_X),
                          .weight = problem_matrix(p, LINEAR_W),
                          .packed = p->packed,
                          .bias = p->shape[4] ? p->tensor[LINEAR_BIAS].value : NULL,
                          .y = problem_matrix(p, LINEAR_Y)};
    if (!p->shape[3]) return args;
    args.lora_a = problem_matrix(p, LINEAR_A);
    args.lora_b = problem_matrix(p, LINEAR_B);
    args.lora_xa = problem_matrix(p, LINEAR_XA);
    args.lora_scale = lora_scale;
    return args;
}
static status_t linear_run(problem_t *p, device_t *device) {
    if (p->shape[5]) TRY(pack(p, device, LINEAR_W));
    linear_args_t args = linear_args(p);
    return device->table->linear(device, &args);
}
static status_t linear_run_backward(problem_t *p, device_t *device) {
    linear_args_t args = linear_args(p);
    gradient_sink_t weight = problem_sink(p, LINEAR_W), bias = problem_sink(p, LINEAR_BIAS);
    gradient_sink_t a = problem_sink(p, LINEAR_A), b = problem_sink(p, LINEAR_B);
    linear_gradients_t gradients = {.dy = problem_gradient(p, LINEAR_Y),
                                    .dx = problem_gradient(p, LINEAR_X),
                                    .weight = &weight,
                                    .bias = p->shape[4] ? &bias : NULL,
                                    .lora_a = p->shape[3] ? &a : NULL,
                                    .lora_b = p->shape[3] ? &b : NULL,
                                    .leaves = p->leaves};
    return device->table->linear_backward(device, &args, &gradients);
}
static void linear_reference(const problem_t *p, double *const *value) {
    int m = p->shape[0], k = p->shape[1], n = p->shape[2], rank = p->shape[3];
    for (int i = 0; i < m; i++) {
        for (int r = 0; r < rank; r++) {
            double sum = 0;
            for (int c = 0; c < k; c++) sum += value[LINEAR_X][i * k + c] * value[LINEAR_A][r * k + c];
            value[LINEAR_XA][i * rank + r] = sum;
        }
        for (int j = 0; j < n; j++) {
            double y = p->shape[4] ? value[LINEAR_BIAS][j] : 0;
            for (int c = 0; c < k; c++) y += value[LINEAR_X][i * k + c] * value[LINEAR_W][j * k + c];
            for (int r = 0; r < rank; r++)
                y += (double)lora_scale * value[LINEAR_XA][i * rank + r] * value[LINEAR_B][j * rank + r];
            value[LINEAR_Y][i * n + j] = y;
        }
    }
}
static double linear_flops(const int *shape, bool backward) {
    double one = 2.0 * shape[0] * shape[1] * shape[2] + 2.0 * shape[0] * shape[3] * (shape[1] + shape[2]);
    return backward ? 2 * one : one;
}
// What an adapter's B meets is rounded.
static int linear_inexact(const int *shape) {
    return HALF_SPLIT | (shape[3] ? HALF_FORWARD | HALF_BACKWARD : 0);
}
const op_t op_linear = {.name = "linear",
                        .inexact = linear_inexact,
                        .backward = "linear_backward",
                        .setup = linear_setup,
                        .run = linear_run,
                        .run_backward = linear_run_backward,
                        .reference = linear_reference,
                        .tolerance = 1e-5,
                        .flops = linear_flops};

// ---- token_logprobs: shape M entries, K, V, every second row only, tenths of the temperature, packed ----
enum { HEAD_HIDDEN, HEAD_W, HEAD_LOGPROB, HEAD_ENTROPY, HEAD_LSE };
static status_t logprobs_setup(problem_t *p) {
    int m = p->shape[0], k = p->shape[1], v = p->shape[2], step = p->shape[3] ? 2 : 1;
    TRY(problem_tensor(p, "hidden", TENSOR_INPUT, true, m * step, k, 3, 1.0f));
    TRY(problem_tensor(p, "weight", TENSOR_PARAM, false, v, k, 0, 1.0f));
    TRY(problem_tensor(p, "logprob", TENSOR_OUTPUT, true, m, 1, 0, 1.0f));
    TRY(problem_tensor(p, "entropy", TENSOR_SAVED, true, m, 1, 0, 1.0f));
    TRY(problem_tensor(p, "lse", TENSOR_SAVED, true, m, 1, 0, 1.0f));
    TRY(problem_array(p, true, m, 1, 0, v));
    TRY(problem_array(p, false, m, 1, 0, 1));
    p->array[1].own = true;
    for (int i = 0; i < m; i++) p->array[1].value[i] = i * step + step - 1;
    return STATUS_OK;
}
static token_logprobs_args_t logprobs_args(problem_t *p) {
    return (token_logprobs_args_t){.hidden = problem_matrix(p, HEAD_HIDDEN),
                                   .weight = problem_matrix(p, HEAD_W),
                                   .packed = p->packed,
                                   .temperature = (float)p->shape[4] * 0.1f,
                                   .count = p->shape[0],
                                   .rows = p->array[1].value,
                                   .targets = p->array[0].value,
                                   .logprob = p->tensor[HEAD_LOGPROB].value,
                                   .entropy = p->tensor[HEAD_ENTROPY].value,
                                   .lse = p->tensor[HEAD_LSE].value};
}
static status_t logprobs_run(problem_t *p, device_t *device) {
    if (p->shape[5]) TRY(pack(p, device, HEAD_W));
    token_logprobs_args_t args = logprobs_args(p);
    return device->table->token_logprobs(device, &args);
}
static status_t logprobs_run_backward(problem_t *p, device_t *device) {
    token_logprobs_args_t args = logprobs_args(p);
    gradient_sink_t weight = problem_sink(p, HEAD_W);
    token_logprobs_gradients_t gradients = {.dlogprob = p->tensor[HEAD_LOGPROB].gradient,
                                            .dhidden = problem_gradient(p, HEAD_HIDDEN),
                                            .weight = &weight,
                                            .leaves = p->leaves};
    return device->table->token_logprobs_backward(device, &args, &gradients);
}
// Logits of one row over a temperature; returns their log-sum-exp.
static double head_logits(const double *hidden, const double *weight, int k, int v, double temperature, double *y) {
    double largest = -INFINITY, sum = 0;
    for (int j = 0; j < v; j++) {
        y[j] = 0;
        for (int c = 0; c < k; c++) y[j] += hidden[c] * weight[j * k + c];
        y[j] /= temperature;
        if (y[j] > largest) largest = y[j];
    }
    for (int j = 0; j < v; j++) sum += exp(y[j] - largest);
    return largest + log(sum);
}
static double head_entropy(const double *y, int v, double lse) {
    double entropy = 0;
    for (int j = 0; j < v; j++) entropy -= exp(y[j] - lse) * (y[j] - lse);
    return entropy;
}
enum { MAX_VOCABULARY = 1024 };
static void logprobs_reference(const problem_t *p, double *const *value) {
    int k = p->shape[1], v = p->shape[2];
    double y[MAX_VOCABULARY];
    for (int i = 0; i < p->shape[0]; i++) {
        const double *hidden = value[HEAD_HIDDEN] + (int64_t)p->array[1].value[i] * k;
        double lse = head_logits(hidden, value[HEAD_W], k, v, (double)((float)p->shape[4] * 0.1f), y);
        value[HEAD_LOGPROB][i] = y[p->array[0].value[i]] - lse;
        value[HEAD_ENTROPY][i] = head_entropy(y, v, lse);
        value[HEAD_LSE][i] = lse;
    }
}
static double head_flops(const int *shape, bool backward) {
    return 2.0 * shape[0] * shape[1] * shape[2] * (backward ? 3 : 1);
}
static int logprobs_inexact(const int *shape) {
    (void)shape;
    return HALF_SPLIT;
}
const op_t op_token_logprobs = {.name = "token_logprobs",
                                .inexact = logprobs_inexact,
                                .backward = "token_logprobs_backward",
                                .setup = logprobs_setup,
                                .run = logprobs_run,
                                .run_backward = logprobs_run_backward,
                                .reference = logprobs_reference,
                                .tolerance = 5e-6,
                                .flops = head_flops};

// ---- token_sample: shape M, K, V, banned ids, -, packed. Every third row is greedy ----
enum {
    SAMPLE_HIDDEN,
    SAMPLE_W,
    SAMPLE_TEMPERATURE,
    SAMPLE_UNIFORM,
    SAMPLE_TOKEN,
    SAMPLE_LOGPROB,
    SAMPLE_ENTROPY,
    SAMPLE_GAP
};
static status_t sample_setup(problem_t *p) {
    int m = p->shape[0], banned = p->shape[3];
    TRY(problem_tensor(p, "hidden", TENSOR_CONST, true, m, p->shape[1], 1, 1.0f));
    TRY(problem_tensor(p, "weight", TENSOR_CONST, false, p->shape[2], p->shape[1], 0, 1.0f));
    TRY(problem_tensor(p, "temperature", TENSOR_CONST, true, m, 1, 0, 1.0f));
    TRY(problem_tensor(p, "uniform", TENSOR_CONST, true, m, 1, 0, 1.0f));
    TRY(problem_tensor(p, "token", TENSOR_SAVED, true, m, 1, 0, 0.0f));
    TRY(problem_tensor(p, "logprob", TENSOR_SAVED, true, m, 1, 0, 0.0f));
    TRY(problem_tensor(p, "entropy", TENSOR_SAVED, true, m, 1, 0, 0.0f));
    TRY(problem_tensor(p, "top gap", TENSOR_SAVED, true, m, 1, 0, 0.0f));
    for (int i = 0; i < m; i++) {
        p->tensor[SAMPLE_TEMPERATURE].value[i] = i % 3 == 0 ? 0.0f : 0.4f * (float)(i % 5 + 1);
        p->tensor[SAMPLE_UNIFORM].value[i] = 0.5f + 0.5f * p->tensor[SAMPLE_UNIFORM].value[i];
    }
    TRY(problem_array(p, false, banned, 1, 0, 1));
    for (int i = 0; i < banned; i++) p->array[0].value[i] = i * 3 + 1;
    TRY(problem_array(p, false, m, 1, 0, 1));
    p->array[1].own = true;
    return STATUS_OK;
}
static status_t sample_run(problem_t *p, device_t *device) {
    if (p->shape[5]) TRY(pack(p, device, SAMPLE_W));
    token_sample_args_t args = {.hidden = problem_matrix(p, SAMPLE_HIDDEN),
                                .weight = problem_matrix(p, SAMPLE_W),
                                .packed = p->packed,
                                .temperature = p->tensor[SAMPLE_TEMPERATURE].value,
                                .uniform = p->tensor[SAMPLE_UNIFORM].value,
                                .banned = p->array[0].value,
                                .banned_count = p->shape[3],
                                .token = p->array[1].value,
                                .logprob = p->tensor[SAMPLE_LOGPROB].value,
                                .entropy = p->tensor[SAMPLE_ENTROPY].value,
                                .top_gap = p->tensor[SAMPLE_GAP].value};
    return device->table->token_sample(device, &args);
}
static void sample_finish(problem_t *p) {
    for (int i = 0; i < p->shape[0]; i++) p->tensor[SAMPLE_TOKEN].value[i] = (float)p->array[1].value[i];
}
static void sample_row(const problem_t *p, double *const *value, int i) {
    int k = p->shape[1], v = p->shape[2];
    double y[MAX_VOCABULARY], x[MAX_VOCABULARY], total = 0, sum = 0;
    bool banned[MAX_VOCABULARY] = {false};
    for (int b = 0; b < p->shape[3]; b++) banned[p->array[0].value[b]] = true;
    double temperature = value[SAMPLE_TEMPERATURE][i], scale = temperature == 0 ? 1 : temperature;
    const double *hidden = value[SAMPLE_HIDDEN] + (int64_t)i * k;
    double lse = head_logits(hidden, value[SAMPLE_W], k, v, scale, y);
    head_logits(hidden, value[SAMPLE_W], k, v, 1.0, x);
    int best = -1, second = -1, token = -1;
    for (int j = 0; j < v; j++) {
        if (banned[j]) continue;
        if (best < 0 || x[j] > x[best]) {
            second = best;
            best = j;
        } else if (second < 0 || x[j] > x[second])
            second = j;
        total += exp(y[j] - lse);
    }
    for (int j = 0; j < v && token < 0; j++) {
        if (banned[j]) continue;
        sum += exp(y[j] - lse);
        if (sum > value[SAMPLE_UNIFORM][i] * total) token = j;
    }
    if (temperature == 0) token = best;
    value[SAMPLE_TOKEN][i] = token;
    value[SAMPLE_LOGPROB][i] = y[token] - lse;
    value[SAMPLE_ENTROPY][i] = head_entropy(y, v, lse);
    value[SAMPLE_GAP][i] = x[best] - x[second];
}
static void sample_reference(const problem_t *p, double *const *value) {
    for (int i = 0; i < p->shape[0]; i++) sample_row(p, value, i);
}
const op_t op_token_sample = {.name = "token_sample",
                              .setup = sample_setup,
                              .run = sample_run,
                              .finish = sample_finish,
                              .reference = sample_reference,
                              .tolerance = 5e-6,
                              .flops = head_flops};
