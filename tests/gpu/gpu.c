// What tests/gpu/run runs, and ctest with the device "sim": the op list on a GPU. It needs kernels/ and tests/ops/parts
// alone, so that a machine without MPI can build it.
//
//   gpu_check DEVICE check [WORD]     every row whose op the device has: against double and against the CPU, gradients
//                                     against finite differences, bits in other company and of repeated runs, bf16
//   gpu_check DEVICE once [WORD]      every row once, forward and backward: for compute-sanitizer
//   gpu_check DEVICE peaks            the measuring kernels compute what they should
//   gpu_check DEVICE speed [WORD]     larger rows, as shares of this device's measured ceilings
// WORD: rows that have it in their name or their op's. Exit code 77: the device is not there.
#include "kernels/cuda/peak.h"
#include "tests/ops/parts/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// NULL in a program that is not linked with the device.
#undef CUDA_NAME
status_t cuda_peak(device_t *device, peak_t kind, void *memory, size_t bytes, int blocks, int rounds) STATUS_CHECKED;
status_t cuda_timer_open(int marks, device_timer_t **out) STATUS_CHECKED;
void cuda_timer_close(device_timer_t *timer);
status_t cuda_timer_mark(device_t *device, device_timer_t *timer, int mark) STATUS_CHECKED;
status_t cuda_timer_seconds(device_timer_t *timer, int from, int to, double *seconds) STATUS_CHECKED;
status_t cuda_timer_end(void) STATUS_CHECKED;
#pragma weak device_cuda_table
#pragma weak device_sim_table
#pragma weak cuda_peak
#pragma weak sim_peak
#pragma weak cuda_timer_open
#pragma weak cuda_timer_close
#pragma weak cuda_timer_mark
#pragma weak cuda_timer_seconds
#pragma weak cuda_timer_end
#pragma weak sim_timer_open
#pragma weak sim_timer_close
#pragma weak sim_timer_mark
#pragma weak sim_timer_seconds
#pragma weak sim_timer_end

enum { EXIT_SKIPPED = 77, MEASURES = 15, WARM_UPS = 3 };
// Zeroed before each measured call, so that the call finds nothing in the level-2 cache (H100: 50 MB, A100: 40 MB) that
// it would not find in a training step.
#define FLUSH_BYTES ((size_t)256 << 20)

typedef struct gpu {
    status_t (*peak)(device_t *, peak_t, void *, size_t, int, int);
    status_t (*timer_open)(int, device_timer_t **);
    void (*timer_close)(device_timer_t *);
    status_t (*timer_mark)(device_t *, device_timer_t *, int);
    status_t (*timer_seconds)(device_timer_t *, int, int, double *);
    status_t (*timer_end)(void);
} gpu_t;

static gpu_t gpu_of(const device_table_t *table) {
    if (strcmp(table->name, "sim") != 0)
        return (gpu_t){cuda_peak,       cuda_timer_open,    cuda_timer_close,
                       cuda_timer_mark, cuda_timer_seconds, cuda_timer_end};
    return (gpu_t){sim_peak, sim_timer_open, sim_timer_close, sim_timer_mark, sim_timer_seconds, sim_timer_end};
}

// Row i for this device: without its backward where the device lacks it.
static bool choose(const op_case_t *from, const device_t *device, const char *word, op_case_t *row, op_t *op) {
    *row = *from;
    *op = *from->op;
    row->op = op;
    if (word && !strstr(op->name, word) && !strstr(row->name, word)) return false;
    if (!op_member(device->table, op->name)) return false;
    if (op->backward && !op_member(device->table, op->backward)) {
        op->run_backward = NULL;
        op->finish_backward = NULL;
    }
    return true;
}

// ---- check ----

static double element(const op_tensor_t *t, int part, int64_t r, int64_t c) {
    if (part == 2) return (double)t->sum[r * t->columns + c];
    return (double)(part ? t->gradient : t->value)[r * t->stride + c];
}

static bool part_close(const op_tensor_t *a, const op_tensor_t *b, int part, double bound) {
    double squares = 0;
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t c = 0; c < a->columns; c++) squares += pow(element(a, part, r, c), 2);
    double mean = sqrt(squares / fmax(1.0, (double)a->rows * a->columns));
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t c = 0; c < a->columns; c++) {
            double x = element(a, part, r, c), y = element(b, part, r, c);
            if (x != y && !(fabs(x - y) <= bound * (fabs(x) + mean))) return false;
        }
    return true;
}

// Within the rounding of sums in another order: of values, gradients and exact sums. In bf16 attention's gradients are
// as far off as harness_half allows: the device rounds factors that the CPU does not.
static int compare_cpu(const op_case_t *row, const problem_t *cpu, const problem_t *gpu) {
    bool half = row->shape[OP_HALF];
    int failures = 0, inexact = half && row->op->inexact ? row->op->inexact(row->shape) : 0;
    for (int i = 0; i < cpu->tensors; i++)
        for (int part = 0; part < 3; part++) {
            double bound = !half ? 2e-5 : part == 1 && inexact & HALF_TENSOR ? 0x1p-4 : 0x1p-6;
            if (part_close(&cpu->tensor[i], &gpu->tensor[i], part, bound)) continue;
            fprintf(stderr, "%s%s of %s%s: ", part ? "gradient of " : "", cpu->tensor[i].name, row->op->name,
                    row->shape[OP_HALF] ? " in bf16" : "");
            failures += harness_fail(row, "the device is far from the CPU", NULL);
        }
    return failures;
}

// The CPU's results, and two runs of the device that must have the same bits.
static int check_runs(const op_case_t *row, device_t *device, device_t *cpu) {
    problem_t want = {0}, first = {0}, again = {0};
    int failures = 0;
    status_t status = problem_open(&want, row, 8);
    if (!status) status = problem_run(&want, cpu);
    if (!status) status = problem_open(&first, row, 8);
    if (!status) status = problem_run(&first, device);
    if (!status) status = problem_open(&again, row, 8);
    if (!status) status = problem_run(&again, device);
    if (!status) failures += compare_bits(row, "a second run", &first, &again) + compare_cpu(row, &want, &first);
    if (status) failures += harness_fail(row, "runs", status);
    problem_close(&want);
    problem_close(&first);
    problem_close(&again);
    return failures;
}

static int check_row(op_case_t *row, bool differences, device_t *device, device_t *cpu) {
    int failures = differences ? harness_gradients_on(row, device) : 0;
    for (int aligned = 0; aligned < 2; aligned++) {
        row->shape[OP_ALIGNED] = aligned;
        row->shape[OP_HALF] = 0;
        failures += harness_compare_on(row, device) + harness_invariance_on(row, device);
        failures += check_runs(row, device, cpu);
        row->shape[OP_HALF] = 1;
        failures += harness_half_on(row, device) + harness_invariance_on(row, device);
        failures += check_runs(row, device, cpu);
    }
    printf("%-16s %-40s %s\n", row->op->name, row->name, failures ? "FAILED" : "right");
    fflush(stdout);
    return failures;
}

static int check(device_t *device, const char *word) {
    // Long rows have more keys, tiles and chunks than one block takes; there is no time for their finite differences.
    const struct {
        const op_case_t *row;
        int count;
        bool differences;
    } lists[] = {{op_cases, op_cases_count, true},
                 {op_long_cases, op_long_cases_count, false},
                 {op_shared_cases, op_shared_cases_count, false}};
    device_t *cpu;
    int failures = 0, rows = 0;
    status_t status = device_open("cpu:portable", 1, &cpu);
    if (status) {
        status_print(status, stderr, -1, false);
        status_free(status);
        return 1;
    }
    for (size_t list = 0; list < sizeof(lists) / sizeof(*lists); list++) {
        for (int i = 0; i < lists[list].count; i++) {
            op_case_t row;
            op_t op;
            if (!choose(&lists[list].row[i], device, word, &row, &op)) continue;
            failures += check_row(&row, lists[list].differences, device, cpu);
            rows++;
        }
    }
    device_close(cpu);
    printf("%d rows on %s, %d failures\n", rows, device->table->name, failures);
    return failures || !rows;
}

static int once(device_t *device, const char *word) {
    int failures = 0, rows = 0;
    for (int i = 0; i < 4 * op_cases_count; i++) {
        op_case_t row;
        op_t op;
        problem_t problem = {0};
        if (!choose(&op_cases[i / 4], device, word, &row, &op)) continue;
        row.shape[OP_HALF] = i % 2;
        row.shape[OP_ALIGNED] = i / 2 % 2;
        status_t status = problem_open(&problem, &row, 5);
        if (!status) status = problem_run(&problem, device);
        if (status) failures += harness_fail(&row, "once", status);
        problem_close(&problem);
        rows++;
    }
    printf("%d runs on %s, %d failures\n", rows, device->table->name, failures);
    return failures || !rows;
}

// ---- times ----

typedef status_t (*timed_call_t)(void *context, device_t *device);

static int compare_seconds(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The middle one of several calls' times between events, after calls that warm up; `flush`, FLUSH_BYTES of device
// memory or NULL, is zeroed before each. All are put in the stream behind each other, so that while the device zeroes
// the host is ahead of it, and what a launch costs the host is hidden.
static status_t time_call(device_t *device, timed_call_t call, void *context, void *flush, double *seconds) {
    const device_table_t *table = device->table;
    const gpu_t gpu = gpu_of(table);
    device_timer_t *timer = NULL;
    double all[MEASURES];
    status_t status = gpu.timer_open(2 * MEASURES, &timer);
    for (int i = 0; !status && i < WARM_UPS; i++) status = call(context, device);
    if (!status) status = table->synchronize(device);
    for (int i = 0; !status && i < MEASURES; i++) {
        if (flush) status = table->zero(device, flush, FLUSH_BYTES);
        if (!status) status = gpu.timer_mark(device, timer, 2 * i);
        if (!status) status = call(context, device);
        if (!status) status = gpu.timer_mark(device, timer, 2 * i + 1);
    }
    if (!status) status = table->synchronize(device);
    for (int i = 0; !status && i < MEASURES; i++) status = gpu.timer_seconds(timer, 2 * i, 2 * i + 1, &all[i]);
    gpu.timer_close(timer);
    TRY(status);
    qsort(all, MEASURES, sizeof(*all), compare_seconds);
    *seconds = all[MEASURES / 2];
    return STATUS_OK;
}

// ---- ceilings ----

typedef struct peak_run {
    peak_t kind;
    void *memory;
    size_t bytes;
    int blocks, rounds;
} peak_run_t;

static status_t peak_call(void *context, device_t *device) {
    const peak_run_t *run = context;
    return gpu_of(device->table).peak(device, run->kind, run->memory, run->bytes, run->blocks, run->rounds);
}

static status_t peaks_check(device_t *device) {
    enum { FLOATS = 2 * PEAK_THREADS, ROUNDS = 3 };
    const device_table_t *table = device->table;
    float *memory, host[FLOATS];
    peak_run_t run = {PEAK_COPY, NULL, sizeof(host), 1, 0};
    for (int i = 0; i < FLOATS; i++) host[i] = i < FLOATS / 2 ? (float)i : -1.0f;
    TRY(table->allocate(device, sizeof(host), (void **)&memory));
    run.memory = memory;
    TRY(table->upload(device, memory, host, sizeof(host)));
    TRY(peak_call(&run, device));
    TRY(table->download(device, host, memory, sizeof(host)));
    for (int i = 0; i < FLOATS; i++)
        if (host[i] != (float)(i % (FLOATS / 2)))
            FAIL(STATUS_FAILED, "the copy is wrong at %d: %g", i, (double)host[i]);
    for (int i = 0; i < FLOATS; i++) host[i] = 1.0f; // as two bf16: 0 and 1
    for (int kind = PEAK_FMA; kind <= PEAK_TENSOR; kind++) {
        run = (peak_run_t){(peak_t)kind, memory, sizeof(host), 2, ROUNDS};
        TRY(table->upload(device, memory, host, sizeof(host)));
        TRY(peak_call(&run, device));
        float got[FLOATS], want = 0;
        TRY(table->download(device, got, memory, sizeof(got)));
        for (int i = 0; i < PEAK_CHAINS; i++) want += kind == PEAK_FMA ? (float)i + ROUNDS : 4 * 8 * ROUNDS;
        for (int i = 0; i < FLOATS; i++)
            if (got[i] != want)
                FAIL(STATUS_FAILED, "ceiling %d gives %g instead of %g", kind, (double)got[i], (double)want);
    }
    // More rounds take longer; both take some time.
    double few = 0.0, many = 0.0;
    run = (peak_run_t){PEAK_FMA, memory, sizeof(host), 1, ROUNDS};
    TRY(time_call(device, peak_call, &run, NULL, &few));
    run.rounds = 30 * ROUNDS;
    TRY(time_call(device, peak_call, &run, NULL, &many));
    if (!(few > 0.0) || !(many > few))
        FAIL(STATUS_FAILED, "events say that %d rounds take %g s, and %d take %g s", ROUNDS, few, run.rounds, many);
    table->release(device, memory);
    printf("the measuring kernels compute what they should\n");
    return STATUS_OK;
}

typedef struct ceilings {
    double copy, fma, tensor; // a second
} ceilings_t;

// Numbers below 1, each as two of bf16 alike: with zeros a GPU draws less power, and runs faster than it can in
// earnest.
static status_t fill(device_t *device, void *memory, size_t bytes) {
    uint32_t *host, state = 1;
    TRY(ALLOCATE(&host, bytes / sizeof(uint32_t)));
    for (size_t i = 0; i < bytes / sizeof(uint32_t); i++) {
        state = state * 1664525u + 1013904223u;
        uint32_t half = (state >> 31) << 15 | (0x3c00 + (state >> 16) % 0x380); // +-[2^-7, 1)
        host[i] = half << 16 | half;
    }
    status_t status = device->table->upload(device, memory, host, bytes);
    free(host);
    return status;
}

static status_t measure(device_t *device, ceilings_t *out) {
    enum { BLOCKS = 4096, ROUNDS = 4096 };
    size_t bytes = (size_t)2 << 30, floats = (size_t)BLOCKS * PEAK_THREADS * sizeof(float);
    double threads = (double)BLOCKS * PEAK_THREADS, steps = (double)PEAK_CHAINS * ROUNDS, copy = 0.0, fma = 0.0,
           tensor = 0.0;
    peak_run_t run = {PEAK_COPY, NULL, bytes, BLOCKS, 0};
    TRY(device->table->allocate(device, bytes, &run.memory));
    TRY(time_call(device, peak_call, &run, NULL, &copy));
    run = (peak_run_t){PEAK_FMA, run.memory, bytes, BLOCKS, ROUNDS};
    TRY(fill(device, run.memory, floats));
    TRY(time_call(device, peak_call, &run, NULL, &fma));
    run.kind = PEAK_TENSOR;
    TRY(fill(device, run.memory, floats));
    TRY(time_call(device, peak_call, &run, NULL, &tensor));
    device->table->release(device, run.memory);
    *out =
        (ceilings_t){(double)bytes / copy, 2 * threads * steps / fma, threads / 32 * steps * 16 * 8 * 16 * 2 / tensor};
    printf("measured ceilings of %s: %.0f GB/s copying, %.1f TFLOP/s in fp32 FMAs, %.1f TFLOP/s in bf16 products "
           "(mma.sync)\n%s\n\n",
           device->kernels, out->copy * 1e-9, out->fma * 1e-12, out->tensor * 1e-12,
           ((const cuda_state_t *)device->state)->note);
    return STATUS_OK;
}

// ---- speed ----

static const op_case_t speeds[] = {
    {&op_embedding, "8192 x 4096", {8192, 4096, 32768}},
    {&op_gather, "8192 x 4096", {8192, 4096, 8192}},
    {&op_scatter, "8192 x 4096", {8192, 4096, 8195}},
    {&op_pool, "64 x 64 by 4 x 4, 1152", {256, 1152, 4096, 16, 64}},
    {&op_rmsnorm, "8192 x 4096", {8192, 4096, NORM_CAST_THEN_WEIGHT}},
    {&op_layernorm, "8192 x 1152", {8192, 1152, 1}},
    {&op_rope_table, "8192 x 64", {8192, 64}},
    {&op_rope, "8192, 32 heads of 128", {8192, 64, 32}},
    {&op_activation, "silu gated 8192 x 11008", {8192, 11008, ACTIVATION_SILU, 1, 30}},
    {&op_activation, "gelu tanh 8192 x 4304", {8192, 4304, ACTIVATION_GELU_TANH, 0, 30}},
    {&op_add, "8192 x 4096", {8192, 4096}},
    {&op_attention, "4096 tokens, 28 to 4 heads of 128", {4096, 28, 4, 128, LAYOUT_ONE}},
    {&op_attention, "4096 of an image, head 72", {4096, 16, 16, 72, LAYOUT_FULL}},
    {&op_attention, "4096 of an image, head 80", {4096, 16, 16, 80, LAYOUT_FULL}},
    {&op_attention, "577 of an image, head 64", {577, 16, 16, 64, LAYOUT_FULL}},
    {&op_attention, "1024 tokens, 8 to 4 heads of 256", {1024, 8, 4, 256, LAYOUT_ONE}},
    {&op_linear, "4096 x 3584 x 3584", {4096, 3584, 3584}},
    {&op_linear, "4096 x 3584 x 18944", {4096, 3584, 18944}},
    {&op_linear, "16 x 3584 x 3584 (decode)", {16, 3584, 3584}},
    {&op_linear, "adapter of rank 16", {4096, 3584, 3584, 16}},
    {&op_token_logprobs, "1024 x 3584 x 152064", {1024, 3584, 152064, 0, 10}},
    {&op_token_sample, "16 x 3584 x 152064", {16, 3584, 152064}},
    {&op_gradient_norm, "64 Mi", {1, 64 << 20}},
    {&op_adamw, "64 Mi", {1, 64 << 20, 3}},
};

typedef struct pass {
    const op_case_t *row;
    problem_t *problem;
    bool backward;
    const ceilings_t *ceilings;
    void *flush;
} pass_t;

static status_t pass_call(void *context, device_t *device) {
    const pass_t *pass = context;
    const op_t *op = pass->problem->op;
    return pass->backward ? op->run_backward(pass->problem, device) : op->run(pass->problem, device);
}

static status_t time_pass(pass_t *pass, device_t *device) {
    const op_case_t *row = pass->row;
    double best = 0.0;
    TRY(time_call(device, pass_call, pass, pass->flush, &best));
    double flops = row->op->flops ? row->op->flops(row->shape, pass->backward) / best : 0;
    double bytes = row->op->bytes ? row->op->bytes(row->shape, pass->backward) / best : 0;
    double peak = row->shape[OP_HALF] ? pass->ceilings->tensor : pass->ceilings->fma;
    double share = fmax(flops / peak, bytes / pass->ceilings->copy);
    printf("| %s | %s | %s | %s | %.1f | %.2f | %.0f | %.0f%% |\n", row->op->name, row->name,
           row->shape[OP_HALF] ? "bf16" : "fp32", pass->backward ? "backward" : "forward", best * 1e6, flops * 1e-12,
           bytes * 1e-9, 100 * share);
    fflush(stdout);
    return STATUS_OK;
}

static status_t time_row(const op_case_t *row, device_t *device, const ceilings_t *ceilings, void *flush) {
    problem_t problem = {0}, twin = {0};
    status_t status = problem_open(&problem, row, 4);
    if (!status && row->op->prepare) row->op->prepare(&problem);
    if (!status) status = mirror_open(&twin, &problem, device);
    pass_t pass = {row, &twin, false, ceilings, flush};
    if (!status) status = time_pass(&pass, device);
    pass.backward = true;
    if (!status && row->op->run_backward) status = time_pass(&pass, device);
    if (twin.device) mirror_close(&twin);
    problem_close(&problem);
    return status;
}

static int speed(device_t *device, const char *word) {
    ceilings_t ceilings;
    int failures = 0;
    void *flush = NULL;
    status_t status = measure(device, &ceilings);
    if (!status) status = device->table->allocate(device, FLUSH_BYTES, &flush);
    if (status) {
        status_print(status, stderr, -1, false);
        status_free(status);
        return 1;
    }
    printf("| op | row | dtype | pass | us | TFLOP/s | GB/s | share of the roofline "
           "|\n|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < 2 * (int)(sizeof(speeds) / sizeof(speeds[0])); i++) {
        op_case_t row;
        op_t op;
        if (!choose(&speeds[i / 2], device, word, &row, &op)) continue;
        row.shape[OP_HALF] = i % 2;
        row.shape[OP_ALIGNED] = 1;
        status = time_row(&row, device, &ceilings, flush);
        if (status) failures += harness_fail(&row, "speed", status);
    }
    device->table->release(device, flush);
    return failures;
}

int main(int count, char **argument) {
    device_t *device = NULL;
    const device_table_t *table = NULL;
    static const char *const known[] = {"check", "once", "peaks", "speed"};
    bool is_known = false;
    for (int i = 0; i < 4 && count > 2; i++) is_known = is_known || !strcmp(argument[2], known[i]);
    if (!is_known) {
        fprintf(stderr, "usage: gpu_check DEVICE check|once|peaks|speed [WORD]\n");
        return 2;
    }
    const char *what = argument[2], *word = count > 3 ? argument[3] : NULL;
    // Not device_open: a member is looked at while it still lacks ops.
    if (device_known(argument[1])) table = strncmp(argument[1], "sim", 3) ? &device_cuda_table : &device_sim_table;
    const char *kernels = strchr(argument[1], ':');
    if (!table) {
        fprintf(stderr, "gpu_check: this build has no device %s\n", argument[1]);
        return EXIT_SKIPPED;
    }
    status_t status = device_open_table(table, kernels ? kernels + 1 : "", 1, &device);
    if (status) {
        int code = status_kind(status) == STATUS_UNAVAILABLE ? EXIT_SKIPPED : 1;
        status_print(status, stderr, -1, false);
        status_free(status);
        return code;
    }
    int failed = 0;
    if (!strcmp(what, "check")) failed = check(device, word);
    if (!strcmp(what, "once")) failed = once(device, word);
    if (!strcmp(what, "speed")) failed = speed(device, word);
    if (!strcmp(what, "peaks")) {
        status = peaks_check(device);
        if (status) status_print(status, stderr, -1, true);
        failed = status != STATUS_OK;
        status_free(status);
    }
    device_close(device);
    status = gpu_of(table).timer_end();
    if (status) status_print(status, stderr, -1, false);
    failed += status != STATUS_OK;
    status_free(status);
    return failed != 0;
}
