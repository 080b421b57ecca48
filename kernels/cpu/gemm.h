// Matrix products of the CPU device, in fp32; B may lie as bf16, which is widened as it is packed. Private to
// kernels/cpu.
//
// One product covers linear, its two backwards and the head:  C(m, n) = sum over k of A(m, k) B(k, n), in order of k
// with one fused multiply-add a step, starting from +0 (or from C itself with `resume`). What happens to the finished
// sum is the `output` of the job. Tiles never split k, so neither the tile shape nor the thread count shows in a bit.
//
// The vector kernel sets read B as panels of 64 columns, [k][64] (the last one is as wide as the columns left, rounded
// up to 16, padded with zeros); the portable set is a plain loop over the unpacked operands.
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "kernels/device.h"

enum { GEMM_PANEL = 64, GEMM_ROW_BLOCK = 96 };

typedef enum gemm_output {
    GEMM_STORE, // c = alpha * sum (+ bias[n], where there is one); alpha must be 1 with a bias
    GEMM_ADD,   // c = c + sum
    GEMM_FMA,   // c = fma(alpha, sum, c)
    GEMM_SINK,  // alpha * sum, quantised, is added to sink->sum[m * n_total + n], once a leaf
} gemm_output_t;

typedef struct gemm_job {
    int m, n, k;
    const float *a; // A(m, k) = a[m * a_row + k * a_step]; a_row or a_step is 1
    int64_t a_row, a_step;
    const void *b; // B(k, n) = b[k * b_step + n * b_column], f32 or bf16; b_step or b_column is 1
    bool b_half;   // bf16
    int64_t b_step, b_column;
    const float *packed; // the panels of B, or NULL: packed here, by blocks, into scratch
    gemm_output_t output;
    float *c; // [m, n] at c_stride; not used by GEMM_SINK
    int64_t c_stride;
    bool resume; // GEMM_STORE only: the sum goes on from c instead of +0
    float alpha;
    const float *bias; // [n] or NULL
    const gradient_sink_t *sink;
    const leaves_t *leaves; // GEMM_SINK: splits k into ranges that are summed and quantised one by one
} gemm_job_t;

// A part of a job: rows [row, row_end) by columns [column, column_end), at most GEMM_ROW_BLOCK by GEMM_PANEL. b points
// at B(0, column) and b_step, b_column are its strides: a panel, or the operand itself.
typedef struct gemm_block {
    const gemm_job_t *job;
    int row, row_end, column, column_end;
    const void *b; // bf16 only as the operand itself
    bool b_half;
    int64_t b_step, b_column;
} gemm_block_t;

// B from element `at` on.
static inline const void *gemm_at(const void *b, bool half, int64_t at) {
    return (const char *)b + at * (half ? 2 : 4);
}

typedef struct gemm_kernels {
    const char *name;
    bool packs; // false: works on unpacked operands, pack is NULL
    // One panel from `columns` (1 .. 64) columns of B.
    void (*pack)(const void *b, bool b_half, int64_t b_step, int64_t b_column, int k, int columns, float *panel);
    void (*block)(const gemm_block_t *block);
    // Adds the gradient values[0 .. count-1] to sink->sum[first ...].
    void (*sink)(const gradient_sink_t *sink, int64_t first, const float *values, int count);
    // out[j] = x[first][j] + ... + x[last - 1][j], rows in order from +0; columns 1 .. 64.
    void (*column_sums)(const float *x, int64_t stride, int first, int last, int columns, float *out);
} gemm_kernels_t;

extern const gemm_kernels_t gemm_kernels_portable, gemm_kernels_avx2, gemm_kernels_avx512;

// The kernel set that device->kernels names.
const gemm_kernels_t *gemm_kernels_for(const device_t *device);
// Bytes of the packed form of a B of k by n.
size_t gemm_packed_bytes(int64_t k, int64_t n);
void gemm_pack(const gemm_kernels_t *kernels, threads_t *threads, const float *b, int64_t b_step, int64_t b_column,
               int k, int n, float *packed);
// Scratch that gemm_run needs for a job; the job's shape, strides and `packed` count, its data do not.
size_t gemm_scratch_bytes(const gemm_kernels_t *kernels, threads_t *threads, const gemm_job_t *job);
void gemm_run(const gemm_kernels_t *kernels, threads_t *threads, const gemm_job_t *job, void *scratch);

// threads_run, but by the calling thread alone where the whole work (in multiply-adds, or what takes as long) is over
// before another thread would be awake.
void gemm_share(threads_t *threads, int tasks, double work, threads_task_t task, void *context);

// Exact gradient sums (gradient_sink_t) one number at a time: the definition that the vector code follows.
double gradient_scale(int exponent); // 2^exponent
void gradient_add_one(int64_t *sum, uint32_t *flags, double scale, float value);

// Checks shared by linear and head. `name` is for the message ("linear: x"). gemm_check_values also takes bf16.
status_t gemm_check_values(const device_t *device, const char *name, matrix_t m, int rows, int columns) STATUS_CHECKED;
status_t gemm_check_matrix(const device_t *device, const char *name, matrix_t m, int rows, int columns) STATUS_CHECKED;
status_t gemm_check_leaves(const device_t *device, const char *name, leaves_t leaves, int rows) STATUS_CHECKED;

#endif
