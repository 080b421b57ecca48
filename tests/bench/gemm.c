// Matrix products of one thread: GFLOP/s, the part of the multiply-add ceiling measured in the same run, and OpenBLAS
// beside it where it is there. Arguments: [portable|avx2|avx512] [seconds a measurement].
#include "kernels/cpu/gemm.h"
#include "kernels/base/threads.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef POISE_HAVE_OPENBLAS
#include <cblas.h>
void openblas_set_num_threads(int count);
#endif

enum { RUNS = 7, CEILING_STEPS = 20000, CHAINS = 16 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof(*values), ascending);
    return values[count / 2];
}

__attribute__((target("avx512f"))) static float chains_avx512(void) {
    __m512 sum[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < CEILING_STEPS; k++)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_fmadd_ps(sum[i], a, b);
    __m512 total = sum[0];
#pragma GCC unroll 16
    for (int i = 1; i < CHAINS; i++) total = _mm512_add_ps(total, sum[i]);
    return _mm512_cvtss_f32(total);
}

__attribute__((target("avx2,fma"))) static float chains_avx2(void) {
    enum { COUNT = 12 };
    __m256 sum[COUNT], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; i++) sum[i] = _mm256_set1_ps((float)i);
    for (int k = 0; k < CEILING_STEPS; k++)
#pragma GCC unroll 16
        for (int i = 0; i < COUNT; i++) sum[i] = _mm256_fmadd_ps(sum[i], a, b);
    __m256 total = sum[0];
#pragma GCC unroll 16
    for (int i = 1; i < COUNT; i++) total = _mm256_add_ps(total, sum[i]);
    return _mm256_cvtss_f32(total);
}

static double ceiling(bool wide, volatile float *keep) {
    double rate[RUNS * 5];
    double flops = wide ? 2.0 * 16 * CHAINS * CEILING_STEPS : 2.0 * 8 * 12 * CEILING_STEPS;
    for (int i = 0; i < RUNS * 5; i++) {
        double start = now();
        *keep = wide ? chains_avx512() : chains_avx2();
        rate[i] = flops / (now() - start) * 1e-9;
    }
    return median(rate, RUNS * 5);
}

typedef struct bench {
    const gemm_kernels_t *kernels;
    threads_t *threads;
    double seconds, ceiling;
    float *a, *b, *c, *packed;
    int64_t *sum;
    void *scratch;
    volatile float *keep;
    bool wide;
} bench_t;

typedef enum form { FORWARD_PACKED, FORWARD, BACKWARD_X, BACKWARD_WEIGHT } form_t;

static double rate_of(const bench_t *bench, const gemm_job_t *job) {
    double rate[RUNS], flops = 2.0 * job->m * job->n * job->k;
    int repeat = 1 + (int)(bench->seconds * bench->ceiling * 1e9 / RUNS / flops);
    gemm_run(bench->kernels, bench->threads, job, bench->scratch);
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (int i = 0; i < repeat; i++) gemm_run(bench->kernels, bench->threads, job, bench->scratch);
        rate[run] = flops * repeat / (now() - start) * 1e-9;
    }
    return median(rate, RUNS);
}

static double rate_of_openblas(const bench_t *bench, form_t form, int m, int n, int k) {
#ifdef POISE_HAVE_OPENBLAS
    double rate[RUNS], flops = 2.0 * m * n * k;
    int repeat = 1 + (int)(bench->seconds * bench->ceiling * 1e9 / RUNS / flops);
    for (int run = -1; run < RUNS; run++) {
        double start = now();
        for (int i = 0; i < repeat; i++) {
            if (form == BACKWARD_WEIGHT)
                cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1.0f, bench->a, m, bench->b, n, 0.0f,
                            bench->c, n);
            else
                cblas_sgemm(CblasRowMajor, CblasNoTrans, form == BACKWARD_X ? CblasNoTrans : CblasTrans, m, n, k, 1.0f,
                            bench->a, k, bench->b, form == BACKWARD_X ? n : k, 0.0f, bench->c, n);
        }
        if (run >= 0) rate[run] = flops * repeat / (now() - start) * 1e-9;
    }
    return median(rate, RUNS);
#else
    (void)bench, (void)form, (void)m, (void)n, (void)k;
    return 0;
#endif
}

static void measure(bench_t *bench, form_t form, int m, int n, int k) {
    static const char *const name[] = {"x W^T packed", "x W^T", "dy W", "dy^T x, exact"};
    uint32_t flags = 0;
    gradient_sink_t sink = {.sum = bench->sum, .exponent = 20, .flags = &flags};
    int32_t start[2] = {0, k};
    leaves_t leaves = {.count = 1, .start = start};
    gemm_job_t job = {.m = m, .n = n, .k = k, .a = bench->a, .b = bench->b, .c = bench->c, .alpha = 1.0f};
    job.c_stride = n;
    job.a_row = form == BACKWARD_WEIGHT ? 1 : k;
    job.a_step = form == BACKWARD_WEIGHT ? m : 1;
    job.b_step = form == FORWARD || form == FORWARD_PACKED ? 1 : n;
    job.b_column = form == FORWARD || form == FORWARD_PACKED ? k : 1;
    if (form == BACKWARD_WEIGHT) {
        job.output = GEMM_SINK;
        job.sink = &sink;
        job.leaves = &leaves;
    }
    if (form == FORWARD_PACKED && bench->kernels->packs) {
        gemm_pack(bench->kernels, bench->threads, job.b, job.b_step, job.b_column, k, n, bench->packed);
        job.packed = bench->packed;
    }
    double rate = rate_of(bench, &job), other = rate_of_openblas(bench, form, m, n, k);
    printf("%-14s %5d %5d %5d %9.1f %7.0f%% %9.1f\n", name[form], m, n, k, rate, 100 * rate / bench->ceiling, other);
}

static void measure_all(bench_t *bench) {
    static const int width[][2] = {{96, 96},   {256, 96},  {128, 128},  {384, 128},
                                   {256, 256}, {384, 384}, {1500, 128}, {1500, 384}};
    static const int rows[] = {1, 4, 8, 16, 64, 300};
    int widths = (int)(sizeof(width) / sizeof(*width)), counts = (int)(sizeof(rows) / sizeof(*rows));
    printf("%-14s %5s %5s %5s %9s %8s %9s\n", "product", "M", "N", "K", "GFLOP/s", "ceiling", "OpenBLAS");
    for (int i = 0; i < widths; i++)
        for (int j = 0; j < counts; j++) measure(bench, FORWARD_PACKED, rows[j], width[i][0], width[i][1]);
    for (int i = 0; i < widths; i++) {
        measure(bench, FORWARD, 64, width[i][0], width[i][1]);
        measure(bench, FORWARD, 300, width[i][0], width[i][1]);
    }
    for (int i = 0; i < widths; i++) {
        measure(bench, BACKWARD_X, 64, width[i][1], width[i][0]);
        measure(bench, BACKWARD_X, 300, width[i][1], width[i][0]);
    }
    for (int i = 0; i < widths; i++) {
        measure(bench, BACKWARD_WEIGHT, width[i][0], width[i][1], 30);
        measure(bench, BACKWARD_WEIGHT, width[i][0], width[i][1], 128);
        measure(bench, BACKWARD_WEIGHT, width[i][0], width[i][1], 700);
    }
    for (form_t form = FORWARD_PACKED; form <= BACKWARD_WEIGHT; form++) {
        measure(bench, form, 512, 512, 512);
        measure(bench, form, 1024, 1024, 1024);
    }
}

static status_t bench_open(bench_t *bench) {
    enum { MOST = 1024 * 1536 };
    TRY(threads_open(1, &bench->threads));
    TRY(ALLOCATE(&bench->a, MOST));
    TRY(ALLOCATE(&bench->b, MOST));
    TRY(ALLOCATE(&bench->c, MOST));
    TRY(ALLOCATE(&bench->sum, MOST));
    bench->packed = aligned_alloc(64, MOST * sizeof(float));
    bench->scratch = aligned_alloc(64, MOST * sizeof(float));
    if (!bench->packed || !bench->scratch) FAIL(STATUS_MEMORY, "no memory for the benchmark's operands");
    for (int i = 0; i < MOST; i++) {
        bench->a[i] = (float)(i % 7919 % 1000) * 0.001f - 0.5f;
        bench->b[i] = (float)(i % 10473 % 1000) * 0.001f - 0.5f;
    }
    return STATUS_OK;
}

int main(int count, char **arguments) {
    bench_t bench = {.seconds = count > 2 ? atof(arguments[2]) : 0.1};
    volatile float keep = 0;
    const char *set = count > 1 ? arguments[1] : __builtin_cpu_supports("avx512dq") ? "avx512" : "avx2";
    device_t device = {.kernels = set};
    bench.kernels = gemm_kernels_for(&device);
    bench.wide = !strcmp(bench.kernels->name, "avx512");
    status_t status = bench_open(&bench);
    if (status) {
        status_print(status, stderr, -1, true);
        return status_exit_code(status);
    }
#ifdef POISE_HAVE_OPENBLAS
    openblas_set_num_threads(1);
#endif
    bench.ceiling = ceiling(bench.wide, &keep);
    printf("kernels %s, one thread; multiply-add ceiling %.1f GFLOP/s\n", bench.kernels->name, bench.ceiling);
    measure_all(&bench);
    printf("ceiling again %.1f GFLOP/s\n", ceiling(bench.wide, &keep));
    threads_close(bench.threads);
    free(bench.a), free(bench.b), free(bench.c), free(bench.sum), free(bench.packed), free(bench.scratch);
    return 0;
}
