// Logits and what is made of them on the spot; token_logprobs and its backward.
#include "kernels/cuda/gemm_split.h"
#include "kernels/cuda/head_tiles.h"

enum {
    SCORE_BYTES = 32 << 20,    // what the groups of one chunk of rows may take
    GRADIENT_BYTES = 64 << 20, // what one block of dlogits may take
    LEAST_CHUNK = 128,         // rows, or ids: a whole tile
    ADD_WARPS = 4
};

// ---- logits: what becomes of a tile ----

static __device__ __forceinline__ float row_temperature(const head_job_t &job, int row) {
    if (!job.temperatures) return job.temperature;
    float given = job.temperatures[row];
    return given == 0.0f ? 1.0f : given;
}

// Sums over the HEAD_GROUP ids of a group, in one order for both engines, so that they agree wherever their logits do:
// ids 8 apart, then 16, then neighbours, then 2 apart, then 4. The fma engine has four neighbours in each of 8 threads,
// the mma engine two neighbours at 0, 8, 16 and 24 in each of 4.
static __device__ __forceinline__ float fold_group(const float (&v)[4]) {
    float four[4];
    CUDA_UNROLL
    for (int e = 0; e < 4; e++) {
        four[e] = __fadd_rn(v[e], __shfl_xor_sync(0xffffffffu, v[e], 2));
        four[e] = __fadd_rn(four[e], __shfl_xor_sync(0xffffffffu, four[e], 4));
    }
    float sum = __fadd_rn(__fadd_rn(four[0], four[1]), __fadd_rn(four[2], four[3]));
    return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
}
static __device__ __forceinline__ float fold_group(const float (&v)[8]) {
    float low = __fadd_rn(__fadd_rn(v[0], v[2]), __fadd_rn(v[4], v[6]));
    float high = __fadd_rn(__fadd_rn(v[1], v[3]), __fadd_rn(v[5], v[7]));
    float sum = __fadd_rn(low, high);
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
}

// `count` logits of one row from `column` on, `run` of them together, each run `step` after the one before. `lanes`
// threads, neighbours, hold a group of HEAD_GROUP ids between them; threads of rows outside only shuffle.
template <int count, int run, int step, int lanes>
static __device__ __forceinline__ void score_logits(const head_job_t &job, int row, int column,
                                                    const float (&x)[count]) {
    bool here = row < job.rows;
    float divisor = here ? row_temperature(job, row) : 1.0f, max = -INFINITY, check = 0.0f;
    float y[count], product[count];
    int target = here && job.targets ? job.targets[row] - job.first : -1;
    CUDA_UNROLL
    for (int e = 0; e < count; e++) {
        int id = column + e / run * step + e % run;
        y[e] = __fdiv_rn(x[e], divisor);
        if (id >= job.ids) continue;
        max = head_larger(max, y[e]);
        check = __fmaf_rn(x[e], 0.0f, check); // NaN as soon as one logit is NaN or infinite
        if (id == target) job.target_logit[row] = x[e];
        if (here && job.logits) job.logits[row * job.stride + id] = x[e];
    }
    for (int bits = 1; bits < lanes; bits *= 2) max = head_larger(max, __shfl_xor_sync(0xffffffffu, max, bits));
    CUDA_UNROLL
    for (int e = 0; e < count; e++) {
        bool inside = column + e / run * step + e % run < job.ids;
        float away = __fadd_rn(y[e], -max);
        y[e] = inside ? cuda_exp(away) : 0.0f;
        product[e] = inside ? __fmul_rn(y[e], away) : 0.0f;
    }
    y[0] = __fadd_rn(y[0], check);
    float sum = fold_group(y), moment = fold_group(product);
    int group = column / HEAD_GROUP;
    if ((int)threadIdx.x % lanes || !here || group >= job.groups) return;
    int64_t at = (int64_t)row * job.groups + group;
    job.max[at] = max;
    job.sum[at] = sum;
    job.product[at] = moment;
}

// The same logits become dlogits. An entry whose row or target is out of range has none.
template <int count, int run, int step>
static __device__ __forceinline__ void turn_logits(const head_job_t &job, int row, int column,
                                                   const float (&x)[count]) {
    if (row >= job.rows) return;
    int target = job.targets[row] - job.first, stored = job.hidden.index[row];
    float lse = job.lse[row], divisor = job.temperature;
    // The exponential does not carry NaN on; the factor does.
    float scale = lse - lse == 0.0f ? job.dlogprob[row] : NAN;
    bool good = stored >= 0 && stored < job.hidden.bound && job.targets[row] >= 0;
    CUDA_UNROLL
    for (int e = 0; e < count; e++) {
        int id = column + e / run * step + e % run;
        if (id >= job.ids) continue;
        float p = cuda_exp(__fadd_rn(__fdiv_rn(x[e], divisor), -lse));
        float away = __fadd_rn(id == target ? 1.0f : 0.0f, -p);
        job.logits[row * job.stride + id] = good ? __fdiv_rn(__fmul_rn(scale, away), divisor) : 0.0f;
    }
}

template <typename tile_t, bool aligned, bool gradient>
static __global__ void __launch_bounds__(tile_t::threads) mma_head_kernel(head_job_t job) {
    CUDA_SHARED(mma_shared<tile_t>, tile, [1]);
    int row, column;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, job.rows, job.ids, &row, &column);
    float sum[tile_t::high][tile_t::wide][4] = {};
    mma_sum<tile_t, aligned>(sum, tile[0], job.hidden, job.weight, row, column);
    CUDA_UNROLL
    for (int i = 0; i < tile_t::high; i++) {
        CUDA_UNROLL
        for (int half = 0; half < 2; half++) {
            int r = row + mma_row<tile_t>(i, half), c = column + mma_column<tile_t>(0);
            float x[tile_t::wide * 2];
            CUDA_UNROLL
            for (int e = 0; e < tile_t::wide * 2; e++) x[e] = sum[i][e / 2][half * 2 + e % 2];
            if constexpr (gradient)
                turn_logits<tile_t::wide * 2, 2, 8>(job, r, c, x);
            else
                score_logits<tile_t::wide * 2, 2, 8, 4>(job, r, c, x);
        }
    }
}

template <typename tile_t, bool gradient>
static __global__ void __launch_bounds__(tile_t::threads) fma_head_kernel(head_job_t job) {
    CUDA_SHARED(fma_shared<tile_t>, tile, [1]);
    int row, column;
    gemm_place((int)blockIdx.x, tile_t::rows, tile_t::columns, job.rows, job.ids, &row, &column);
    float sum[tile_t::side][tile_t::side] = {};
    fma_sum<tile_t, false, false>(sum, tile[0], job.hidden, job.weight, row, column, 0, job.hidden.columns);
    CUDA_UNROLL
    for (int i = 0; i < tile_t::side; i++) {
        CUDA_UNROLL
        for (int g = 0; g < tile_t::groups; g++) {
            int r = row + fma_row<tile_t>(i / 4, i % 4), c = column + fma_column<tile_t>(g);
            float x[4] = {sum[i][g * 4], sum[i][g * 4 + 1], sum[i][g * 4 + 2], sum[i][g * 4 + 3]};
            if constexpr (gradient)
                turn_logits<4, 4, 4>(job, r, c, x);
            else
                score_logits<4, 4, 4, 8>(job, r, c, x);
        }
    }
}

template <typename tile_t, bool aligned> static status_t mma_head(const head_job_t *given, void *stream) {
    head_job_t job = *given;
    auto kernel = job.dlogprob ? mma_head_kernel<tile_t, aligned, true> : mma_head_kernel<tile_t, aligned, false>;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.rows, job.ids)), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, stream, job);
}

template <typename tile_t> static status_t fma_head(const head_job_t *given, void *stream) {
    head_job_t job = *given;
    auto kernel = job.dlogprob ? fma_head_kernel<tile_t, true> : fma_head_kernel<tile_t, false>;
    dim3 grid((unsigned)gemm_blocks<tile_t>(job.rows, job.ids)), block(tile_t::threads);
    return CUDA_LAUNCH(kernel, grid, block, 0, stream, job);
}

extern "C" status_t CUDA_NAME(head_logits)(device_t *device, const head_job_t *job) {
    void *stream = cuda_stream(device);
    if (job->hidden.half && job->weight.half) {
        bool aligned = job->hidden.eight && job->weight.eight;
        // A few rows stream the weight by: more, smaller blocks ask for more of it at a time.
        if (job->rows > 64 && gemm_blocks<mma_large_t>(job->rows, job->ids) >= GEMM_ENOUGH)
            return aligned ? mma_head<mma_large_t, true>(job, stream) : mma_head<mma_large_t, false>(job, stream);
        return aligned ? mma_head<mma_medium_t, true>(job, stream) : mma_head<mma_medium_t, false>(job, stream);
    }
    if (job->rows > 64 && gemm_blocks<fma_large_t>(job->rows, job->ids) >= GEMM_ENOUGH)
        return fma_head<fma_large_t>(job, stream);
    return fma_head<fma_small_t>(job, stream);
}

// ---- token_logprobs ----

static __global__ void __launch_bounds__(HEAD_THREADS)
    score_kernel(head_job_t job, uint32_t *fault, float *logprob, float *entropy, float *lse) {
    int row = (int)blockIdx.x;
    if (!cuda_index(job.hidden.index[row], job.hidden.bound, fault, CUDA_FAULT_LOGPROBS)) return;
    if (!cuda_index(job.targets[row], job.ids, fault, CUDA_FAULT_LOGPROBS)) return;
    head_sums_t sums = head_combine(job, row);
    if (threadIdx.x != 0) return;
    bool finite = sums.sum - sums.sum == 0.0f;
    float log_sum = head_log(sums.sum), y = __fdiv_rn(job.target_logit[row], job.temperature);
    logprob[row] = finite ? __fadd_rn(__fadd_rn(y, -sums.max), -log_sum) : NAN;
    lse[row] = finite ? __fadd_rn(sums.max, log_sum) : NAN;
    if (entropy) entropy[row] = finite ? __fadd_rn(log_sum, -__fdiv_rn(sums.product, sums.sum)) : NAN;
}

static status_t check_logprobs(const device_t *device, const token_logprobs_args_t *args) {
    const char *op = "token_logprobs";
    TRY(head_check(op, &args->hidden, &args->weight));
    if (!(args->temperature > 0.0f) || !(args->temperature - args->temperature == 0.0f))
        FAIL(STATUS_INVALID, "%s: the temperature must be a number above 0, not %g", op, (double)args->temperature);
    if (args->count < 0) FAIL(STATUS_INVALID, "%s: the number of rows is %d", op, args->count);
    if (device->measuring || args->count == 0) return STATUS_OK;
    if (!args->rows || !args->targets || !args->logprob || !args->lse)
        FAIL(STATUS_INVALID, "%s: rows, targets, logprob and lse are all needed", op);
    return STATUS_OK;
}

// The entries first .. first + count - 1 as a job.
static head_job_t entries_job(const token_logprobs_args_t *args, int first, int count) {
    head_job_t job = {};
    job.hidden = gemm_operand_of(args->hidden);
    job.hidden.bound = args->hidden.rows;
    job.hidden.rows = count;
    job.hidden.index = args->rows + first;
    job.weight = gemm_operand_of(args->weight);
    job.rows = count;
    job.ids = args->weight.rows;
    job.temperature = args->temperature;
    job.targets = args->targets + first;
    return job;
}

static int chunk_of(int count, size_t budget, size_t each) {
    size_t fit = budget / each / LEAST_CHUNK * LEAST_CHUNK;
    if (fit < LEAST_CHUNK) fit = LEAST_CHUNK;
    return (size_t)count < fit ? count : (int)fit;
}

extern "C" status_t CUDA_NAME(head_score)(device_t *device, const token_logprobs_args_t *args, int chunk) {
    void *workspace, *stream;
    TRY(check_logprobs(device, args));
    if (args->count == 0) return STATUS_OK;
    int groups = head_groups(args->weight.rows);
    int most = chunk ? chunk : chunk_of(args->count, SCORE_BYTES, 3 * sizeof(float) * (size_t)groups);
    size_t part = head_padded((size_t)most * (size_t)groups * sizeof(float));
    TRY(device_workspace(device, 3 * part + (size_t)most * sizeof(float), &workspace));
    if (device->measuring) return STATUS_OK;
    stream = cuda_stream(device);
    for (int first = 0; first < args->count; first += most) {
        int count = args->count - first < most ? args->count - first : most;
        head_job_t job = entries_job(args, first, count);
        job.groups = groups;
        job.max = (float *)workspace;
        job.sum = (float *)(void *)((char *)workspace + part);
        job.product = (float *)(void *)((char *)workspace + 2 * part);
        job.target_logit = (float *)(void *)((char *)workspace + 3 * part);
        TRY(CUDA_NAME(head_logits)(device, &job));
        uint32_t *fault = cuda_fault(device);
        float *logprob = args->logprob + first, *entropy = args->entropy ? args->entropy + first : NULL;
        float *lse = args->lse + first;
        TRY(CUDA_LAUNCH(score_kernel, dim3((unsigned)count), dim3(HEAD_THREADS), 0, stream, job, fault, logprob,
                        entropy, lse));
    }
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(token_logprobs)(device_t *device, const token_logprobs_args_t *args) {
    return CUDA_NAME(head_score)(device, args, 0);
}

// ---- token_logprobs, backward ----

// Who adds the gradients of a hidden row that several entries name: the first of them, for all, in their order. Of each
// hidden row: how many entries name it, and ~0u minus the first (0: none).
typedef struct owners {
    unsigned *count, *first;
} owners_t;

static __global__ void __launch_bounds__(HEAD_THREADS) clear_kernel(owners_t owners, int rows) {
    int row = (int)(blockIdx.x * HEAD_THREADS + threadIdx.x);
    if (row < rows) owners.count[row] = owners.first[row] = 0;
}

static __global__ void __launch_bounds__(HEAD_THREADS)
    own_kernel(owners_t owners, const int32_t *rows, const int32_t *targets, int count, int bound, int ids,
               uint32_t *fault) {
    int entry = (int)(blockIdx.x * HEAD_THREADS + threadIdx.x);
    if (entry >= count || !cuda_index(rows[entry], bound, fault, CUDA_FAULT_LOGPROBS)) return;
    if (!cuda_index(targets[entry], ids, fault, CUDA_FAULT_LOGPROBS)) return;
    atomicAdd(&owners.count[rows[entry]], 1u);
    atomicMax(&owners.first[rows[entry]], ~0u - (unsigned)entry);
}

// A warp an entry; those that own no row are done at once.
static __global__ void __launch_bounds__(32 * ADD_WARPS)
    add_dhidden_kernel(owners_t owners, const int32_t *rows, int count, int bound, const float *from, float *dhidden,
                       int64_t stride, int columns) {
    int entry = (int)(blockIdx.x * ADD_WARPS + threadIdx.x / 32), lane = (int)threadIdx.x % 32;
    if (entry >= count || rows[entry] < 0 || rows[entry] >= bound) return;
    int row = rows[entry];
    if (owners.first[row] != ~0u - (unsigned)entry) return;
    float *to = dhidden + row * stride;
    unsigned left = owners.count[row];
    for (int first = entry; left && first < count; first += 32) {
        unsigned same = __ballot_sync(0xffffffffu, first + lane < count && rows[first + lane] == row);
        for (int i = 0; i < 32; i++) {
            if (!(same >> i & 1u)) continue;
            const float *add = from + (int64_t)(first + i) * columns;
            for (int c = lane; c < columns; c += 32) to[c] = __fadd_rn(to[c], add[c]);
            left--;
        }
    }
}

// The parts of backward's workspace.
typedef struct backward_plan {
    int ids; // at once
    int64_t stride;
    float *logits, *dhidden;
    owners_t owners;
    size_t bytes;
} backward_plan_t;

static backward_plan_t plan_backward(const token_logprobs_args_t *args, const token_logprobs_gradients_t *gradients,
                                     int chunk, void *workspace) {
    backward_plan_t plan = {};
    char *at = (char *)workspace;
    size_t rows = (size_t)args->hidden.rows, entries = (size_t)args->count;
    bool adds = gradients->dhidden.data != NULL;
    plan.ids = chunk ? (chunk + SPLIT_STEP - 1) / SPLIT_STEP * SPLIT_STEP // sums go on from block to block
                     : chunk_of(args->weight.rows, GRADIENT_BYTES, entries * sizeof(float));
    plan.stride = (plan.ids + 3) / 4 * 4;
    size_t logits = head_padded(entries * (size_t)plan.stride * sizeof(float));
    size_t dhidden = adds ? head_padded(entries * (size_t)args->hidden.columns * sizeof(float)) : 0;
    plan.bytes = logits + dhidden + (adds ? 2 * rows * sizeof(unsigned) : 0);
    if (!workspace) return plan;
    plan.logits = (float *)(void *)at;
    plan.dhidden = (float *)(void *)(at + logits);
    plan.owners.count = (unsigned *)(void *)(at + logits + dhidden);
    plan.owners.first = plan.owners.count + rows;
    return plan;
}

// One block of ids: dlogits, then what they are good for.
static status_t backward_block(device_t *device, const token_logprobs_args_t *args,
                               const token_logprobs_gradients_t *gradients, const backward_plan_t *plan, int first) {
    int ids = args->weight.rows - first < plan->ids ? args->weight.rows - first : plan->ids;
    matrix_t weight = args->weight;
    weight.data = (char *)weight.data + (size_t)(first * weight.stride) * dtype_bytes(weight.dtype);
    weight.rows = ids;
    matrix_t dlogits = matrix_view(plan->logits, DTYPE_F32, args->count, ids);
    dlogits.stride = plan->stride;
    head_job_t job = entries_job(args, 0, args->count);
    job.weight = gemm_operand_of(weight);
    job.first = first;
    job.ids = ids;
    job.logits = plan->logits;
    job.stride = plan->stride;
    job.lse = args->lse;
    job.dlogprob = gradients->dlogprob;
    TRY(CUDA_NAME(head_logits)(device, &job));
    gemm_operand_t left = gemm_operand_of(dlogits);
    if (gradients->weight) {
        gradient_sink_t sink = *gradients->weight;
        sink.sum += (int64_t)first * args->weight.columns;
        TRY(CUDA_NAME(gemm_sink)(device, &left, &job.hidden, 1.0f, &sink, &gradients->leaves));
    }
    if (!gradients->dhidden.data) return STATUS_OK;
    gemm_job_t product = {};
    product.a = left;
    product.b = job.weight;
    product.b_across = true;
    product.rows = args->count;
    product.columns = args->weight.columns;
    product.out = gemm_output_to(matrix_view(plan->dhidden, DTYPE_F32, args->count, args->weight.columns),
                                 first ? GEMM_RESUME : GEMM_STORE, 1.0f);
    return CUDA_NAME(gemm_product)(device, &product);
}

static status_t add_dhidden(device_t *device, const token_logprobs_args_t *args, matrix_t dhidden,
                            const backward_plan_t *plan) {
    void *stream = cuda_stream(device);
    owners_t owners = plan->owners;
    const int32_t *rows = args->rows, *targets = args->targets;
    int count = args->count, bound = args->hidden.rows, ids = args->weight.rows, columns = args->hidden.columns;
    uint32_t *fault = cuda_fault(device);
    const float *from = plan->dhidden;
    float *to = (float *)dhidden.data;
    int64_t stride = dhidden.stride;
    dim3 clears((unsigned)(bound + HEAD_THREADS - 1) / HEAD_THREADS);
    dim3 owns((unsigned)(count + HEAD_THREADS - 1) / HEAD_THREADS);
    dim3 adds((unsigned)(count + ADD_WARPS - 1) / ADD_WARPS);
    if (bound == 0) return STATUS_OK;
    TRY(CUDA_LAUNCH(clear_kernel, clears, dim3(HEAD_THREADS), 0, stream, owners, bound));
    TRY(CUDA_LAUNCH(own_kernel, owns, dim3(HEAD_THREADS), 0, stream, owners, rows, targets, count, bound, ids, fault));
    return CUDA_LAUNCH(add_dhidden_kernel, adds, dim3(32 * ADD_WARPS), 0, stream, owners, rows, count, bound, from, to,
                       stride, columns);
}

static status_t check_backward(const device_t *device, const token_logprobs_args_t *args,
                               const token_logprobs_gradients_t *gradients) {
    const char *op = "token_logprobs_backward";
    TRY(check_logprobs(device, args));
    if (gradients->dhidden.data)
        TRY(check_matrix(op, "dhidden", &gradients->dhidden, args->hidden.rows, args->hidden.columns));
    if (!gradients->dlogprob && args->count > 0 && !device->measuring)
        FAIL(STATUS_INVALID, "%s: dlogprob is missing", op);
    if (!gradients->weight) return STATUS_OK;
    TRY(check_sink(op, "the weight", gradients->weight));
    return cuda_check_leaves(device, op, &gradients->leaves, args->count);
}

extern "C" status_t CUDA_NAME(head_backward)(device_t *device, const token_logprobs_args_t *args,
                                             const token_logprobs_gradients_t *gradients, int chunk) {
    void *workspace;
    TRY(check_backward(device, args, gradients));
    if (args->count == 0 || (!gradients->dhidden.data && !gradients->weight)) return STATUS_OK;
    backward_plan_t plan = plan_backward(args, gradients, chunk, NULL);
    TRY(device_workspace(device, plan.bytes, &workspace));
    if (device->measuring) return STATUS_OK;
    plan = plan_backward(args, gradients, chunk, workspace);
    for (int first = 0; first < args->weight.rows; first += plan.ids)
        TRY(backward_block(device, args, gradients, &plan, first));
    return gradients->dhidden.data ? add_dhidden(device, args, gradients->dhidden, &plan) : STATUS_OK;
}

extern "C" status_t CUDA_NAME(token_logprobs_backward)(device_t *device, const token_logprobs_args_t *args,
                                                       const token_logprobs_gradients_t *gradients) {
    return CUDA_NAME(head_backward)(device, args, gradients, 0);
}
