// The reference: a plain loop an output, over the operands as they are. The vector kernels must give its bits.
#include "kernels/cpu/gemm.h"

#include <math.h>

static float dot(const gemm_block_t *block, int row, int column, int first, int last, float sum) {
    const gemm_job_t *job = block->job;
    const float *a = job->a + row * job->a_row;
    const void *b = gemm_at(block->b, block->b_half, (column - block->column) * block->b_column);
    if (block->b_half) {
        const uint16_t *half = b;
        for (int64_t k = first; k < last; k++) sum = fmaf(a[k * job->a_step], bf16_widen(half[k * block->b_step]), sum);
        return sum;
    }
    const float *whole = b;
    for (int64_t k = first; k < last; k++) sum = fmaf(a[k * job->a_step], whole[k * block->b_step], sum);
    return sum;
}

static void finish(const gemm_job_t *job, int row, int column, float sum) {
    float *c = job->c + row * job->c_stride + column;
    switch (job->output) {
    case GEMM_STORE:
        *c = job->bias ? sum + job->bias[column] : job->alpha * sum;
        break;
    case GEMM_ADD:
        *c = *c + sum;
        break;
    case GEMM_FMA:
        *c = fmaf(job->alpha, sum, *c);
        break;
    case GEMM_SINK:
        break;
    }
}

static void block_portable(const gemm_block_t *block) {
    const gemm_job_t *job = block->job;
    for (int row = block->row; row < block->row_end; row++)
        for (int column = block->column; column < block->column_end; column++) {
            if (job->output != GEMM_SINK) {
                float start = job->resume ? job->c[row * job->c_stride + column] : 0.0f;
                finish(job, row, column, dot(block, row, column, 0, job->k, start));
                continue;
            }
            int64_t *sum = job->sink->sum + (int64_t)row * job->n + column;
            for (int leaf = 0; leaf < job->leaves->count; leaf++) {
                float part = dot(block, row, column, job->leaves->start[leaf], job->leaves->start[leaf + 1], 0.0f);
                gradient_add_one(sum, job->sink->flags, gradient_scale(job->sink->exponent), job->alpha * part);
            }
        }
}

static void sink_portable(const gradient_sink_t *sink, int64_t first, const float *values, int count) {
    for (int i = 0; i < count; i++)
        gradient_add_one(sink->sum + first + i, sink->flags, gradient_scale(sink->exponent), values[i]);
}

static void column_sums_portable(const float *x, int64_t stride, int first, int last, int columns, float *out) {
    for (int j = 0; j < columns; j++) {
        float sum = 0.0f;
        for (int i = first; i < last; i++) sum = sum + x[i * stride + j];
        out[j] = sum;
    }
}

const gemm_kernels_t gemm_kernels_portable = {.name = "portable",
                                              .packs = false,
                                              .pack = NULL,
                                              .block = block_portable,
                                              .sink = sink_portable,
                                              .column_sums = column_sums_portable};
