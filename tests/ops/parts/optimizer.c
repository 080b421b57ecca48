// Ops over exact sums: gradient_norm and adamw. The sums are an input of theirs, kept in the array of 32-bit numbers.
#include "tests/ops/parts/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SUM_EXPONENT = 20 };

// Fills the 64-bit sums of a tensor from random numbers of very different sizes.
static void fill_sums(problem_t *p, int tensor) {
    op_tensor_t *t = &p->tensor[tensor];
    for (int64_t i = 0; i < t->columns; i++) {
        double size = ldexp((double)problem_random(p, 30, i), (int)(i % 37));
        t->sum[i] = (int64_t)(size * 1000.0);
    }
}

// ---- gradient_norm: shape 1, count. Results are kept where sums are; doubles travel as two floats: value and rest
// ----
enum { NORM_SUM, NORM_SQUARES, NORM_REST, NORM_ABSMAX };
static int norm_blocks(const problem_t *p) {
    return (p->shape[1] + GRADIENT_BLOCK - 1) / GRADIENT_BLOCK;
}
static status_t norm_setup(problem_t *p) {
    TRY(problem_tensor(p, "sum", TENSOR_CONST, false, 1, p->shape[1], 0, 1.0f));
    TRY(problem_tensor(p, "square sum", TENSOR_SAVED, false, 1, norm_blocks(p), 0, 0.0f));
    TRY(problem_tensor(p, "its rest", TENSOR_CONST, false, 1, norm_blocks(p), 0, 0.0f));
    TRY(problem_tensor(p, "absmax", TENSOR_SAVED, false, 1, 1, 0, 0.0f));
    fill_sums(p, NORM_SUM);
    p->tensor[NORM_ABSMAX].sum[0] = -1;
    return STATUS_OK;
}
static status_t norm_run(problem_t *p, device_t *device) {
    gradient_norm_args_t args = {.count = p->shape[1],
                                 .sum = p->tensor[NORM_SUM].sum,
                                 .exponent = SUM_EXPONENT,
                                 .square_sum = (double *)(void *)p->tensor[NORM_SQUARES].sum,
                                 .absmax = p->tensor[NORM_ABSMAX].sum};
    return device->table->gradient_norm(device, &args);
}
static void norm_finish(problem_t *p) {
    for (int b = 0; b < norm_blocks(p); b++) {
        double square;
        memcpy(&square, &p->tensor[NORM_SQUARES].sum[b], sizeof(square));
        p->tensor[NORM_SQUARES].value[b] = (float)square;
        p->tensor[NORM_REST].value[b] = (float)(square - (double)(float)square);
    }
    p->tensor[NORM_ABSMAX].value[0] = (float)p->tensor[NORM_ABSMAX].sum[0];
}
static void norm_reference(const problem_t *p, double *const *value) {
    const int64_t *sum = p->tensor[NORM_SUM].sum;
    int64_t largest = 0;
    for (int b = 0; b < norm_blocks(p); b++) value[NORM_SQUARES][b] = 0;
    for (int i = 0; i < p->shape[1]; i++) {
        double g = ldexp((double)sum[i], -SUM_EXPONENT);
        value[NORM_SQUARES][i / GRADIENT_BLOCK] += g * g;
        if (llabs(sum[i]) > largest) largest = llabs(sum[i]);
    }
    value[NORM_ABSMAX][0] = (double)largest;
}
static double norm_bytes(const int *shape, bool backward) {
    (void)backward;
    return 8.0 * shape[1];
}
const op_t op_gradient_norm = {.name = "gradient_norm",
                               .setup = norm_setup,
                               .run = norm_run,
                               .finish = norm_finish,
                               .reference = norm_reference,
                               .tolerance = 1e-6,
                               .bytes = norm_bytes};

// ---- adamw: shape 1, count, step, a probe, 1 + the element whose master is infinite. Inputs are copied first ----
enum { ADAMW_MASTER, ADAMW_FIRST, ADAMW_SECOND, ADAMW_SUM, ADAMW_OUT, ADAMW_FOUND };
static const float rate = 1e-2f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, decay = 0.1f;
static const double gradient_scale = 1.0 / 3.0;
static status_t adamw_setup(problem_t *p) {
    int count = p->shape[1];
    TRY(problem_tensor(p, "master", TENSOR_CONST, false, 1, count, 0, 1.0f));
    TRY(problem_tensor(p, "first moment", TENSOR_CONST, false, 1, count, 0, 0.1f));
    TRY(problem_tensor(p, "second moment", TENSOR_CONST, false, 1, count, 0, 0.1f));
    TRY(problem_tensor(p, "sum", TENSOR_CONST, false, 1, count, 0, 1.0f));
    TRY(problem_tensor(p, "updated", TENSOR_SAVED, false, 3, count, 0, 1.0f));
    TRY(problem_tensor(p, "found", TENSOR_SAVED, false, 1, 1, 0, 1.0f));
    for (int i = 0; i < count; i++) p->tensor[ADAMW_SECOND].value[i] = fabsf(p->tensor[ADAMW_SECOND].value[i]);
    for (int i = 0; i < count; i++)
        p->tensor[ADAMW_SUM].sum[i] = (int64_t)(ldexp((double)problem_random(p, 30, i), 20));
    if (p->shape[4]) p->tensor[ADAMW_MASTER].value[p->shape[4] - 1] = INFINITY;
    return STATUS_OK;
}
static void adamw_prepare(problem_t *p) {
    int64_t count = p->shape[1];
    float *out = p->tensor[ADAMW_OUT].value;
    for (int i = 0; i < 3; i++) memcpy(out + i * count, p->tensor[i].value, (size_t)count * sizeof(float));
}
static status_t adamw_run(problem_t *p, device_t *device) {
    int64_t count = p->shape[1];
    float *out = p->tensor[ADAMW_OUT].value;
    adamw_args_t args = {.count = count,
                         .master = out,
                         .first_moment = out + count,
                         .second_moment = out + 2 * count,
                         .sum = p->tensor[ADAMW_SUM].sum,
                         .exponent = SUM_EXPONENT,
                         .gradient_scale = gradient_scale,
                         .learning_rate = rate,
                         .beta1 = beta1,
                         .beta2 = beta2,
                         .eps = eps,
                         .weight_decay = decay,
                         .step = p->shape[2],
                         .probe = p->shape[3] ? p->tensor[ADAMW_FOUND].flags : NULL};
    return device->table->adamw(device, &args);
}
static void adamw_finish(problem_t *p) {
    p->tensor[ADAMW_FOUND].value[0] = (float)*p->tensor[ADAMW_FOUND].flags;
}
static void adamw_reference(const problem_t *p, double *const *value) {
    int count = p->shape[1], step = p->shape[2];
    double b1 = (double)beta1, b2 = (double)beta2;
    for (int i = 0; i < count; i++) {
        double g = ldexp((double)p->tensor[ADAMW_SUM].sum[i], -SUM_EXPONENT) * gradient_scale;
        double m = b1 * value[ADAMW_FIRST][i] + (1 - b1) * g, v = b2 * value[ADAMW_SECOND][i] + (1 - b2) * g * g;
        double w = value[ADAMW_MASTER][i] * (1 - (double)rate * (double)decay);
        w -= (double)rate * (m / (1 - pow(b1, step))) / (sqrt(v / (1 - pow(b2, step))) + (double)eps);
        if (p->shape[3]) {
            w = value[ADAMW_MASTER][i];
            m = value[ADAMW_FIRST][i];
            v = value[ADAMW_SECOND][i];
        }
        value[ADAMW_OUT][i] = w;
        value[ADAMW_OUT][count + i] = m;
        value[ADAMW_OUT][2 * count + i] = v;
    }
    value[ADAMW_FOUND][0] = p->shape[4] ? GRADIENT_NOT_FINITE : 0;
}
static double adamw_bytes(const int *shape, bool backward) {
    (void)backward;
    return 32.0 * shape[1];
}
const op_t op_adamw = {.name = "adamw",
                       .setup = adamw_setup,
                       .prepare = adamw_prepare,
                       .run = adamw_run,
                       .finish = adamw_finish,
                       .reference = adamw_reference,
                       .tolerance = 2e-6,
                       .bytes = adamw_bytes};
