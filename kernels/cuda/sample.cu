// token_sample: the logits and sums of the head, then one block a row that chooses.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/head_tiles.h"

enum {
    SAMPLE_BYTES = 128 << 20, // what the logits of one chunk of rows may take
    MASS_BLOCK = 256,         // ids that are summed before they are added in double, as on the CPU
    MASS_LANES = 16,
    MASS_TEAMS = HEAD_THREADS / MASS_LANES
};
static_assert((int)MASS_BLOCK == (int)HEAD_THREADS, "a block of masses has a thread an id");

typedef struct sample_job {
    head_job_t head;
    const float *uniform;
    const int32_t *banned;
    int banned_count, blocks; // blocks of masses in a row
    float *masses;            // [rows, blocks]
    double *passed;           // [rows, blocks] the masses up to a block's end
    int32_t *token;
    float *logprob, *entropy, *top_gap;
    uint32_t *fault;
} sample_job_t;

// ---- the largest logit, its lowest id, and the second largest ----

typedef struct best {
    float value, second;
    int id;
} best_t;

static __device__ __forceinline__ best_t better(best_t a, best_t b) {
    bool first = a.value > b.value || (a.value == b.value && a.id < b.id);
    best_t winner = first ? a : b, other = first ? b : a;
    winner.second = head_larger(winner.second, other.value);
    return winner;
}

static __device__ __forceinline__ best_t row_best(const float *logit, int ids) {
    CUDA_SHARED(best_t, warps, [HEAD_WARPS]);
    best_t best = {-INFINITY, -INFINITY, ids};
    for (int id = (int)threadIdx.x; id < ids; id += HEAD_THREADS) {
        best_t one = {logit[id], -INFINITY, id};
        best = better(best, one);
    }
    for (int bits = 16; bits; bits /= 2) {
        best_t other = {__shfl_xor_sync(0xffffffffu, best.value, bits), __shfl_xor_sync(0xffffffffu, best.second, bits),
                        __shfl_xor_sync(0xffffffffu, best.id, bits)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    best = warps[0];
    for (int i = 1; i < HEAD_WARPS; i++) best = better(best, warps[i]);
    __syncthreads();
    return best;
}

// ---- the draw ----

static __device__ __forceinline__ float mass_of(const float *logit, int id, int ids, float temperature, float max) {
    return id < ids ? cuda_exp(__fadd_rn(__fdiv_rn(logit[id], temperature), -max)) : 0.0f;
}

// Sums of the blocks of masses, 16 lanes each, folded 8-4-2-1; then, one after the other in double, how far each gets.
static __device__ __forceinline__ void sum_masses(const sample_job_t &job, const float *logit, float *masses,
                                                  double *passed, float temperature, float max) {
    int lane = (int)threadIdx.x % MASS_LANES, team = (int)threadIdx.x / MASS_LANES;
    for (int first = 0; first < job.blocks; first += MASS_TEAMS) { // the same count for both teams of a warp
        int block = first + team;
        float sum = 0.0f;
        if (first + (int)threadIdx.x / 32 * 2 >= job.blocks) break; // both teams of the warp
        for (int e = 0; e < MASS_BLOCK; e += MASS_LANES)
            sum = __fadd_rn(sum, mass_of(logit, block * MASS_BLOCK + e + lane, job.head.ids, temperature, max));
        for (int bits = MASS_LANES / 2; bits; bits /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, bits));
        if (lane == 0 && block < job.blocks) masses[block] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int block = 0; block < job.blocks; block++) passed[block] = total += (double)masses[block];
    }
    __syncthreads();
}

// The first block that passes the target; job.blocks: none.
static __device__ __forceinline__ int find_block(const sample_job_t &job, const double *passed, double target) {
    CUDA_SHARED(int, found, [HEAD_WARPS]);
    int least = job.blocks;
    for (int block = (int)threadIdx.x; block < job.blocks; block += HEAD_THREADS)
        if (passed[block] > target && block < least) least = block;
    least = __reduce_min_sync(0xffffffffu, least);
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = least;
    __syncthreads();
    for (int i = 0; i < HEAD_WARPS; i++) least = found[i] < least ? found[i] : least;
    __syncthreads();
    return least;
}

// The token, or -1: nothing allowed has any mass. The same in every thread.
static __device__ __forceinline__ int draw(const sample_job_t &job, int row, const float *logit, float temperature,
                                           float max) {
    CUDA_SHARED(float, mass, [MASS_BLOCK]);
    CUDA_SHARED(int, drawn, [1]);
    float *masses = job.masses + (int64_t)row * job.blocks;
    double *passed = job.passed + (int64_t)row * job.blocks;
    sum_masses(job, logit, masses, passed, temperature, max);
    double total = passed[job.blocks - 1];
    if (!(total > 0.0)) return -1;
    double target = (double)job.uniform[row] * total; // below total, as uniform is at most 1 - 2^-24
    int block = find_block(job, passed, target), first = block * MASS_BLOCK;
    if (block == job.blocks) return -1;
    mass[threadIdx.x] = mass_of(logit, first + (int)threadIdx.x, job.head.ids, temperature, max);
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = block ? passed[block - 1] : 0.0;
        int last = -1;
        for (int i = 0; i < MASS_BLOCK && !(sum > target); i++) {
            sum += (double)mass[i];
            if (mass[i] > 0.0f) last = first + i;
        }
        drawn[0] = last;
    }
    __syncthreads();
    return drawn[0];
}

// Bans, and says whether everything the row names is in range.
static __device__ __forceinline__ bool prepare_row(const sample_job_t &job, int row, float *logit) {
    float temperature = job.head.temperatures[row], uniform = job.uniform[row];
    bool good = temperature >= 0.0f && temperature - temperature == 0.0f && uniform >= 0.0f && uniform < 1.0f;
    if (!good) *(volatile uint32_t *)job.fault = CUDA_FAULT_SAMPLE;
    for (int i = (int)threadIdx.x; i < job.banned_count; i += HEAD_THREADS)
        if (cuda_index(job.banned[i], job.head.ids, job.fault, CUDA_FAULT_SAMPLE)) logit[job.banned[i]] = -INFINITY;
    __syncthreads();
    return good;
}

static __global__ void __launch_bounds__(HEAD_THREADS) sample_kernel(sample_job_t job) {
    int row = (int)blockIdx.x, token;
    float *logit = job.head.logits + row * job.head.stride;
    head_sums_t sums = head_combine(job.head, row);
    bool good = prepare_row(job, row, logit), finite = sums.sum - sums.sum == 0.0f;
    float given = job.head.temperatures[row], temperature = given == 0.0f ? 1.0f : given;
    best_t best = {0.0f, 0.0f, 0};
    if (given == 0.0f || job.top_gap) best = row_best(logit, job.head.ids);
    token = !good || !finite ? -1 : given == 0.0f && best.id < job.head.ids ? best.id : -1;
    float max = sums.max;
    for (int attempt = 0; attempt < 2 && good && finite && given != 0.0f && token < 0; attempt++) {
        // The second: everything allowed is e^87 below the best banned id; measure from the best allowed one.
        if (attempt) max = __fdiv_rn(row_best(logit, job.head.ids).value, temperature);
        token = draw(job, row, logit, temperature, max);
    }
    if (threadIdx.x != 0) return;
    float log_sum = head_log(sums.sum);
    if (good && token < 0) *(volatile uint32_t *)job.fault = CUDA_FAULT_DRAW;
    job.token[row] = token;
    job.logprob[row] =
        token < 0 ? NAN : __fadd_rn(__fadd_rn(__fdiv_rn(logit[token], temperature), -sums.max), -log_sum);
    if (job.entropy) job.entropy[row] = token < 0 ? NAN : __fadd_rn(log_sum, -__fdiv_rn(sums.product, sums.sum));
    if (job.top_gap) job.top_gap[row] = token < 0 ? NAN : __fadd_rn(best.value, -best.second);
}

static status_t check_sample(const device_t *device, const token_sample_args_t *args) {
    const char *op = "token_sample";
    TRY(head_check(op, &args->hidden, &args->weight));
    if (args->banned_count < 0 || args->banned_count >= args->weight.rows)
        FAIL(STATUS_INVALID, "%s: %d of %d ids are banned; at least one must be allowed", op, args->banned_count,
             args->weight.rows);
    if (device->measuring || args->hidden.rows == 0) return STATUS_OK;
    if (!args->temperature || !args->uniform || !args->token || !args->logprob)
        FAIL(STATUS_INVALID, "%s: temperature, uniform, token and logprob are all needed", op);
    if (args->banned_count && !args->banned) FAIL(STATUS_INVALID, "%s: the banned ids are missing", op);
    return STATUS_OK;
}

// The rows first .. first + count - 1; scratch as head_sample sizes it for `most` rows.
static sample_job_t sample_rows(device_t *device, const token_sample_args_t *args, int first, int count, int most,
                                char *scratch) {
    sample_job_t job = {};
    matrix_t hidden = args->hidden;
    hidden.data = (char *)hidden.data + (size_t)(first * hidden.stride) * dtype_bytes(hidden.dtype);
    hidden.rows = count;
    job.head.hidden = gemm_operand_of(hidden);
    job.head.weight = gemm_operand_of(args->weight);
    job.head.rows = count;
    job.head.ids = args->weight.rows;
    job.head.temperatures = args->temperature + first;
    job.head.groups = head_groups(args->weight.rows);
    job.head.stride = (args->weight.rows + 3) / 4 * 4;
    job.blocks = (args->weight.rows + MASS_BLOCK - 1) / MASS_BLOCK;
    size_t groups = head_padded((size_t)most * (size_t)job.head.groups * sizeof(float));
    size_t logits = head_padded((size_t)most * (size_t)job.head.stride * sizeof(float));
    job.head.logits = (float *)(void *)scratch;
    job.head.max = (float *)(void *)(scratch + logits);
    job.head.sum = (float *)(void *)(scratch + logits + groups);
    job.head.product = (float *)(void *)(scratch + logits + 2 * groups);
    job.passed = (double *)(void *)(scratch + logits + 3 * groups);
    job.masses = (float *)(void *)(job.passed + (int64_t)most * job.blocks);
    job.uniform = args->uniform + first;
    job.banned = args->banned;
    job.banned_count = args->banned_count;
    job.token = args->token + first;
    job.logprob = args->logprob + first;
    job.entropy = args->entropy ? args->entropy + first : NULL;
    job.top_gap = args->top_gap ? args->top_gap + first : NULL;
    job.fault = cuda_fault(device);
    return job;
}

extern "C" status_t CUDA_NAME(head_sample)(device_t *device, const token_sample_args_t *args, int chunk) {
    void *workspace, *stream;
    TRY(check_sample(device, args));
    int count = args->hidden.rows, ids = args->weight.rows;
    size_t stride = (size_t)(ids + 3) / 4 * 4, blocks = (size_t)(ids + MASS_BLOCK - 1) / MASS_BLOCK;
    size_t fit = SAMPLE_BYTES / (stride * sizeof(float));
    int most = chunk ? chunk : fit < 1 ? 1 : (size_t)count < fit ? count : (int)fit;
    if (count == 0) return STATUS_OK;
    size_t groups = head_padded((size_t)most * (size_t)head_groups(ids) * sizeof(float));
    size_t logits = head_padded((size_t)most * stride * sizeof(float));
    size_t masses = (size_t)most * blocks * (sizeof(double) + sizeof(float));
    TRY(device_workspace(device, logits + 3 * groups + masses, &workspace));
    if (device->measuring) return STATUS_OK;
    stream = cuda_stream(device);
    for (int first = 0; first < count; first += most) {
        int rows = count - first < most ? count - first : most;
        sample_job_t job = sample_rows(device, args, first, rows, most, (char *)workspace);
        TRY(CUDA_NAME(head_logits)(device, &job.head));
        TRY(CUDA_LAUNCH(sample_kernel, dim3((unsigned)rows), dim3(HEAD_THREADS), 0, stream, job));
    }
    return STATUS_OK;
}

extern "C" status_t CUDA_NAME(token_sample)(device_t *device, const token_sample_args_t *args) {
    return CUDA_NAME(head_sample)(device, args, 0);
}
