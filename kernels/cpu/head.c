#include "kernels/cpu/head.h"

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_kernels.h"
#include <math.h>
#include <string.h>

#define ROW_COST 16.0 // multiply-adds a logit of the row reductions

enum {
    CHUNK_ROWS = 48,         // rows whose logits exist at once in forward and sampling
    VOCABULARY_BLOCK = 1024, // columns whose logits exist at once in backward; whole panels
    MOST_IDS = 1 << 24
};

static const head_kernels_t *head_kernels_for(const device_t *device) {
    if (!strcmp(device->kernels, "avx512")) return &head_kernels_avx512;
    if (!strcmp(device->kernels, "avx2")) return &head_kernels_avx2;
    return &head_kernels_portable;
}

// ln x for x >= 1 (a sum with e^0 in it), from basic operations in double only, so that every machine has its bits:
// x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)). Rounded once.
static float head_log(float x) {
    int exponent;
    double m = frexp((double)x, &exponent);
    if (!isfinite(x)) return x;
    if (m < 0.70710678118654752) {
        m = m * 2.0;
        exponent--;
    }
    double u = (m - 1.0) / (m + 1.0), square = u * u, series = 0.0;
    for (int n = 23; n >= 1; n -= 2) series = series * square + 1.0 / n;
    return (float)((double)exponent * 0.69314718055994531 + 2.0 * u * series);
}

static inline size_t padded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static status_t check_head(const device_t *device, const char *op, matrix_t hidden, matrix_t weight) {
    TRY(status_context(gemm_check_values(device, "hidden", hidden, hidden.rows, weight.columns), "%s", op));
    TRY(status_context(gemm_check_values(device, "the weight", weight, weight.rows, weight.columns), "%s", op));
    if (weight.rows < 1 || weight.rows > MOST_IDS)
        FAIL(STATUS_INVALID, "%s: a vocabulary of %d ids is not in 1 .. %d", op, weight.rows, (int)MOST_IDS);
    return STATUS_OK;
}

// logits = rows of hidden by the vocabulary ids [first, first + count).
static gemm_job_t logits_job(const float *hidden, int64_t stride, int rows, matrix_t weight, const void *packed,
                             int first, int count, float *logits) {
    gemm_job_t job = {.m = rows,
                      .n = count,
                      .k = weight.columns,
                      .a = hidden,
                      .a_row = stride,
                      .a_step = 1,
                      .b = weight.data,
                      .b_half = weight.dtype == DTYPE_BF16,
                      .b_step = 1,
                      .b_column = weight.stride,
                      .packed = packed,
                      .output = GEMM_STORE,
                      .c = logits,
                      .c_stride = count,
                      .alpha = 1.0f};
    if (first > 0) {
        job.b = gemm_at(weight.data, job.b_half, first * weight.stride);
        if (packed) job.packed = (const float *)packed + (int64_t)first * weight.columns;
    }
    return job;
}

// Hidden rows in fp32. rows: NULL for the first `count`.
static void gather_rows(const device_t *device, matrix_t from, const int32_t *rows, int count, float *to) {
    convert_job_t job = {.from = from, .to = matrix_view(to, DTYPE_F32, count, from.columns), .from_row = rows};
    cpu_device_kernels(device)->convert(&job, 0, count, 0);
}

// ---- token_logprobs, forward ----

static status_t check_logprobs(const device_t *device, const token_logprobs_args_t *args) {
    TRY(check_head(device, "token_logprobs", args->hidden, args->weight));
    if (!(args->temperature > 0.0f) || !isfinite(args->temperature))
        FAIL(STATUS_INVALID, "token_logprobs: the temperature must be a number above 0, not %g",
             (double)args->temperature);
    if (args->count < 0) FAIL(STATUS_INVALID, "token_logprobs: the number of rows is %d", args->count);
    if (device->measuring || args->count == 0) return STATUS_OK;
    if (!args->rows || !args->targets || !args->logprob || !args->lse)
        FAIL(STATUS_INVALID, "token_logprobs: rows, targets, logprob and lse are all needed");
    for (int i = 0; i < args->count; i++) {
        if (args->rows[i] < 0 || args->rows[i] >= args->hidden.rows)
            FAIL(STATUS_INVALID, "token_logprobs: entry %d names row %d of rows 0 .. %d", i, (int)args->rows[i],
                 args->hidden.rows - 1);
        if (args->targets[i] < 0 || args->targets[i] >= args->weight.rows)
            FAIL(STATUS_INVALID, "token_logprobs: entry %d has the target %d, but the vocabulary has ids 0 .. %d", i,
                 (int)args->targets[i], args->weight.rows - 1);
    }
    return STATUS_OK;
}

typedef struct score_context {
    const head_kernels_t *kernels;
    const token_logprobs_args_t *args;
    const float *logits;
    int first; // entry of the chunk's first row
} score_context_t;

static void score_task(void *argument, int task, int worker) {
    const score_context_t *context = argument;
    const token_logprobs_args_t *args = context->args;
    (void)worker;
    int vocabulary = args->weight.rows, entry = context->first + task;
    const float *logit = context->logits + (int64_t)task * vocabulary;
    head_row_sums_t sums = context->kernels->row_sums(logit, vocabulary, args->temperature);
    float log_sum = head_log(sums.sum);
    args->logprob[entry] = sums.finite ? (logit[args->targets[entry]] / args->temperature - sums.max) - log_sum : NAN;
    args->lse[entry] = sums.finite ? sums.max + log_sum : NAN;
    if (args->entropy) args->entropy[entry] = sums.finite ? log_sum - sums.product / sums.sum : NAN;
}

status_t cpu_token_logprobs(device_t *device, const token_logprobs_args_t *args) {
    TRY(check_logprobs(device, args));
    if (args->count == 0) return STATUS_OK;
    const gemm_kernels_t *gemm = gemm_kernels_for(device);
    int most = args->count < CHUNK_ROWS ? args->count : CHUNK_ROWS;
    int vocabulary = args->weight.rows, columns = args->weight.columns;
    size_t hidden_bytes = padded((size_t)most * (size_t)columns * sizeof(float));
    size_t logits_bytes = padded((size_t)most * (size_t)vocabulary * sizeof(float));
    gemm_job_t job = logits_job(NULL, columns, most, args->weight, args->packed, 0, vocabulary, NULL);
    void *workspace;
    TRY(device_workspace(device, hidden_bytes + logits_bytes + gemm_scratch_bytes(gemm, device->threads, &job),
                         &workspace));
    if (device->measuring) return STATUS_OK;
    float *hidden = workspace, *logits = (float *)((char *)workspace + hidden_bytes);
    void *scratch = (char *)workspace + hidden_bytes + logits_bytes;
    for (int first = 0; first < args->count; first += most) {
        int rows = args->count - first < most ? args->count - first : most;
        gather_rows(device, args->hidden, args->rows + first, rows, hidden);
        job = logits_job(hidden, columns, rows, args->weight, args->packed, 0, vocabulary, logits);
        gemm_run(gemm, device->threads, &job, scratch);
        score_context_t context = {.kernels = head_kernels_for(device), .args = args, .logits = logits, .first = first};
        gemm_share(device->threads, rows, ROW_COST * rows * vocabulary, score_task, &context);
    }
    return STATUS_OK;
}

// ---- token_logprobs, backward ----

static status_t check_logprobs_backward(const device_t *device, const token_logprobs_args_t *args,
                                        const token_logprobs_gradients_t *gradients) {
    TRY(check_logprobs(device, args));
    if (gradients->dhidden.data)
        TRY(gemm_check_matrix(device, "token_logprobs_backward: dhidden", gradients->dhidden, args->hidden.rows,
                              args->hidden.columns));
    if (!gradients->dlogprob && args->count > 0 && !device->measuring)
        FAIL(STATUS_INVALID, "token_logprobs_backward: dlogprob is missing");
    if (gradients->weight) TRY(gemm_check_leaves(device, "token_logprobs_backward", gradients->leaves, args->count));
    return STATUS_OK;
}

// The parts of backward's workspace: hidden rows of the entries, their gradient, one block of logits, and for the
// weight gradient the hidden rows again as panels.
typedef struct backward_plan {
    int entries, columns, block; // block: ids at once
    int stride;                  // of the logits; not a multiple of a page, which would crowd few sets of the cache
    bool packs;
    float *hidden, *dhidden, *logits, *panels;
    void *scratch;
    size_t bytes;
} backward_plan_t;

static gemm_job_t dhidden_job(const token_logprobs_args_t *args, const backward_plan_t *plan, int first, int count) {
    bool half = args->weight.dtype == DTYPE_BF16;
    return (gemm_job_t){.m = plan->entries,
                        .n = plan->columns,
                        .k = count,
                        .a = plan->logits,
                        .a_row = plan->stride,
                        .a_step = 1,
                        .b = args->weight.data ? gemm_at(args->weight.data, half, first * args->weight.stride) : NULL,
                        .b_half = half,
                        .b_step = args->weight.stride,
                        .b_column = 1,
                        .output = GEMM_STORE,
                        .c = plan->dhidden,
                        .c_stride = plan->columns,
                        .resume = first > 0,
                        .alpha = 1.0f};
}

static gemm_job_t dweight_job(const backward_plan_t *plan, int count, const gradient_sink_t *sink,
                              const leaves_t *leaves) {
    return (gemm_job_t){.m = count,
                        .n = plan->columns,
                        .k = plan->entries,
                        .a = plan->logits,
                        .a_row = 1,
                        .a_step = plan->stride,
                        .b = plan->hidden,
                        .b_step = plan->columns,
                        .b_column = 1,
                        .packed = plan->packs ? plan->panels : NULL,
                        .output = GEMM_SINK,
                        .alpha = 1.0f,
                        .sink = sink,
                        .leaves = leaves};
}

static backward_plan_t plan_backward(device_t *device, const token_logprobs_args_t *args,
                                     const token_logprobs_gradients_t *gradients) {
    const gemm_kernels_t *gemm = gemm_kernels_for(device);
    backward_plan_t plan = {.entries = args->count, .columns = args->weight.columns};
    plan.block = args->weight.rows < VOCABULARY_BLOCK ? args->weight.rows : VOCABULARY_BLOCK;
    plan.stride = (plan.block + 15) / 16 * 16 + 16;
    plan.packs = gradients->weight && gemm->packs;
    gemm_job_t logits = logits_job(NULL, plan.columns, plan.entries, args->weight, args->packed, 0, plan.block, NULL);
    gemm_job_t dhidden = dhidden_job(args, &plan, 0, plan.block);
    size_t scratch = gemm_scratch_bytes(gemm, device->threads, &logits);
    size_t other = gradients->dhidden.data ? gemm_scratch_bytes(gemm, device->threads, &dhidden) : 0;
    size_t rows_bytes = padded((size_t)plan.entries * (size_t)plan.columns * sizeof(float));
    size_t logits_bytes = padded((size_t)plan.entries * (size_t)plan.stride * sizeof(float));
    size_t panel_bytes = plan.packs ? padded(gemm_packed_bytes(plan.entries, plan.columns)) : 0;
    plan.bytes = 2 * rows_bytes + logits_bytes + panel_bytes + (scratch > other ? scratch : other);
    return plan;
}

static void plan_place(backward_plan_t *plan, void *workspace) {
    size_t rows_bytes = padded((size_t)plan->entries * (size_t)plan->columns * sizeof(float));
    char *at = workspace;
    plan->hidden = (float *)at;
    plan->dhidden = (float *)(at + rows_bytes);
    plan->logits = (float *)(at + 2 * rows_bytes);
    at += 2 * rows_bytes + padded((size_t)plan->entries * (size_t)plan->stride * sizeof(float));
    plan->panels = (float *)at;
    plan->scratch = at + (plan->packs ? padded(gemm_packed_bytes(plan->entries, plan->columns)) : 0);
}

typedef struct gradient_context {
    const head_kernels_t *kernels;
    const token_logprobs_args_t *args;
    const token_logprobs_gradients_t *gradients;
    float *logits;
    int stride;
    int first, count; // ids of the block
} gradient_context_t;

static void gradient_task(void *argument, int task, int worker) {
    const gradient_context_t *context = argument;
    const token_logprobs_args_t *args = context->args;
    (void)worker;
    // The exponential does not carry NaN on; the factor does.
    float scale = isfinite(args->lse[task]) ? context->gradients->dlogprob[task] : NAN;
    context->kernels->row_gradient(context->logits + (int64_t)task * context->stride, context->count, args->temperature,
                                   args->lse[task], scale, args->targets[task] - context->first);
}

static void add_dhidden(const token_logprobs_args_t *args, const backward_plan_t *plan, matrix_t dhidden) {
    for (int i = 0; i < plan->entries; i++) {
        float *to = (float *)dhidden.data + args->rows[i] * dhidden.stride;
        const float *from = plan->dhidden + (int64_t)i * plan->columns;
        for (int j = 0; j < plan->columns; j++) to[j] = to[j] + from[j];
    }
}

status_t cpu_token_logprobs_backward(device_t *device, const token_logprobs_args_t *args,
                                     const token_logprobs_gradients_t *gradients) {
    TRY(check_logprobs_backward(device, args, gradients));
    if (args->count == 0 || (!gradients->dhidden.data && !gradients->weight)) return STATUS_OK;
    const gemm_kernels_t *gemm = gemm_kernels_for(device);
    backward_plan_t plan = plan_backward(device, args, gradients);
    void *workspace;
    TRY(device_workspace(device, plan.bytes, &workspace));
    if (device->measuring) return STATUS_OK;
    plan_place(&plan, workspace);
    gather_rows(device, args->hidden, args->rows, plan.entries, plan.hidden);
    if (plan.packs)
        gemm_pack(gemm, device->threads, plan.hidden, plan.columns, 1, plan.entries, plan.columns, plan.panels);
    for (int first = 0; first < args->weight.rows; first += plan.block) {
        int count = args->weight.rows - first < plan.block ? args->weight.rows - first : plan.block;
        gemm_job_t job =
            logits_job(plan.hidden, plan.columns, plan.entries, args->weight, args->packed, first, count, plan.logits);
        job.c_stride = plan.stride;
        gemm_run(gemm, device->threads, &job, plan.scratch);
        gradient_context_t context = {.kernels = head_kernels_for(device),
                                      .args = args,
                                      .gradients = gradients,
                                      .logits = plan.logits,
                                      .stride = plan.stride,
                                      .first = first,
                                      .count = count};
        gemm_share(device->threads, plan.entries, ROW_COST * plan.entries * count, gradient_task, &context);
        if (gradients->weight) {
            gradient_sink_t sink = *gradients->weight;
            sink.sum += (int64_t)first * plan.columns;
            job = dweight_job(&plan, count, &sink, &gradients->leaves);
            gemm_run(gemm, device->threads, &job, plan.scratch);
        }
        if (gradients->dhidden.data) {
            job = dhidden_job(args, &plan, first, count);
            gemm_run(gemm, device->threads, &job, plan.scratch);
        }
    }
    if (gradients->dhidden.data) add_dhidden(args, &plan, gradients->dhidden);
    return STATUS_OK;
}

// ---- token_sample ----

static status_t check_sample(const device_t *device, const token_sample_args_t *args) {
    TRY(check_head(device, "token_sample", args->hidden, args->weight));
    if (args->banned_count < 0 || args->banned_count >= args->weight.rows)
        FAIL(STATUS_INVALID, "token_sample: %d of %d ids are banned; at least one must be allowed", args->banned_count,
             args->weight.rows);
    if (device->measuring || args->hidden.rows == 0) return STATUS_OK;
    if (!args->temperature || !args->uniform || !args->token || !args->logprob)
        FAIL(STATUS_INVALID, "token_sample: temperature, uniform, token and logprob are all needed");
    if (args->banned_count && !args->banned) FAIL(STATUS_INVALID, "token_sample: the banned ids are missing");
    for (int i = 0; i < args->banned_count; i++)
        if (args->banned[i] < 0 || args->banned[i] >= args->weight.rows ||
            (i && args->banned[i] <= args->banned[i - 1]))
            FAIL(STATUS_INVALID, "token_sample: banned id %d at place %d; they must ascend within 0 .. %d",
                 (int)args->banned[i], i, args->weight.rows - 1);
    for (int i = 0; i < args->hidden.rows; i++) {
        if (!(args->temperature[i] >= 0.0f) || !isfinite(args->temperature[i]))
            FAIL(STATUS_INVALID, "token_sample: row %d has the temperature %g; it must be 0 or more", i,
                 (double)args->temperature[i]);
        if (!(args->uniform[i] >= 0.0f && args->uniform[i] < 1.0f))
            FAIL(STATUS_INVALID, "token_sample: row %d has the uniform number %g; it must be in [0, 1)", i,
                 (double)args->uniform[i]);
    }
    return STATUS_OK;
}

// The inverse of the cumulated masses (head.h says in which order). Banned logits are -infinity here.
static int draw(const head_kernels_t *kernels, const float *logit, int vocabulary, float temperature, float max,
                float uniform) {
    float mass[HEAD_MASS_BLOCK];
    double total = 0.0, passed = 0.0, target;
    for (int first = 0; first < vocabulary; first += HEAD_MASS_BLOCK) {
        int count = vocabulary - first < HEAD_MASS_BLOCK ? vocabulary - first : HEAD_MASS_BLOCK;
        total += (double)kernels->masses(logit + first, count, temperature, max, mass);
    }
    if (!(total > 0.0)) return -1;
    target = (double)uniform * total; // below total, as uniform is at most 1 - 2^-24
    for (int first = 0; first < vocabulary; first += HEAD_MASS_BLOCK) {
        int count = vocabulary - first < HEAD_MASS_BLOCK ? vocabulary - first : HEAD_MASS_BLOCK;
        double next = passed + (double)kernels->masses(logit + first, count, temperature, max, mass);
        if (next > target) {
            int last = -1;
            for (int i = 0; i < count; i++) {
                passed += (double)mass[i];
                if (mass[i] > 0.0f) last = first + i;
                if (passed > target) break;
            }
            return last;
        }
        passed = next;
    }
    return -1;
}

typedef struct sample_context {
    const head_kernels_t *kernels;
    const token_sample_args_t *args;
    float *logits;
    int first;
} sample_context_t;

static void sample_task(void *argument, int task, int worker) {
    const sample_context_t *context = argument;
    const token_sample_args_t *args = context->args;
    (void)worker;
    int vocabulary = args->weight.rows, row = context->first + task;
    float *logit = context->logits + (int64_t)task * vocabulary;
    bool greedy = args->temperature[row] == 0.0f;
    float temperature = greedy ? 1.0f : args->temperature[row];
    // The log-prob is over the whole vocabulary, so it is summed before the banned ids go.
    head_row_sums_t sums = context->kernels->row_sums(logit, vocabulary, temperature);
    args->token[row] = -1;
    if (!sums.finite) return;
    for (int i = 0; i < args->banned_count; i++) logit[args->banned[i]] = -INFINITY;
    head_row_best_t best = {0};
    if (greedy || args->top_gap) best = context->kernels->row_best(logit, vocabulary);
    float max = sums.max;
    if (!greedy) {
        int token = draw(context->kernels, logit, vocabulary, temperature, max, args->uniform[row]);
        if (token < 0) { // everything allowed is e^87 below the best banned id: measure from the best allowed one
            max = context->kernels->row_best(logit, vocabulary).value / temperature;
            token = draw(context->kernels, logit, vocabulary, temperature, max, args->uniform[row]);
        }
        args->token[row] = token;
    } else {
        args->token[row] = best.index;
    }
    float log_sum = head_log(sums.sum);
    args->logprob[row] = (logit[args->token[row]] / temperature - sums.max) - log_sum;
    if (args->entropy) args->entropy[row] = log_sum - sums.product / sums.sum;
    if (args->top_gap) args->top_gap[row] = best.value - best.second;
}

status_t cpu_token_sample(device_t *device, const token_sample_args_t *args) {
    TRY(check_sample(device, args));
    int count = args->hidden.rows, most = count < CHUNK_ROWS ? count : CHUNK_ROWS;
    if (count == 0) return STATUS_OK;
    const gemm_kernels_t *gemm = gemm_kernels_for(device);
    int vocabulary = args->weight.rows;
    size_t logits_bytes = padded((size_t)most * (size_t)vocabulary * sizeof(float));
    size_t hidden_bytes = padded((size_t)most * (size_t)args->hidden.columns * sizeof(float));
    gemm_job_t job = logits_job(NULL, args->hidden.columns, most, args->weight, args->packed, 0, vocabulary, NULL);
    char *workspace;
    TRY(device_workspace(device, logits_bytes + hidden_bytes + gemm_scratch_bytes(gemm, device->threads, &job),
                         (void **)&workspace));
    if (device->measuring) return STATUS_OK;
    float *logits = (float *)(void *)workspace, *hidden = (float *)(void *)(workspace + logits_bytes);
    void *scratch = workspace + logits_bytes + hidden_bytes;
    for (int first = 0; first < count; first += most) {
        int rows = count - first < most ? count - first : most;
        matrix_t from = args->hidden;
        from.data = (char *)from.data + (size_t)(first * from.stride) * dtype_bytes(from.dtype);
        gather_rows(device, from, NULL, rows, hidden);
        job = logits_job(hidden, from.columns, rows, args->weight, args->packed, 0, vocabulary, logits);
        gemm_run(gemm, device->threads, &job, scratch);
        sample_context_t context = {
            .kernels = head_kernels_for(device), .args = args, .logits = logits, .first = first};
        gemm_share(device->threads, rows, 2 * ROW_COST * rows * vocabulary, sample_task, &context);
    }
    for (int i = 0; i < count; i++)
        if (args->token[i] < 0)
            FAIL(STATUS_FAILED,
                 "token_sample: the logits of row %d are not finite, so no token can be drawn; the weights or the "
                 "hidden states are broken (a learning rate that is too large does this)",
                 i);
    return STATUS_OK;
}
