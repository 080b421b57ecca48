// The blocked product over v16_t; compiled once a vector kernel set (see vector.h). The including file sets
// MICRO_ROWS and MICRO_VECTORS, the register tile.
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_transpose.h"
#include "kernels/cpu/vector_bf16.h"

enum {
    // k a pass. By rows, 64 columns of B are 256 KiB then, well inside the second-level cache; by columns each step of
    // A is a line of its own, and lines a page apart share few sets of the cache.
    STEP_BLOCK_ROWS = 1024,
    STEP_BLOCK_COLUMNS = 256,
    STRIPS = GEMM_ROW_BLOCK / MICRO_ROWS,
    TILE = MICRO_ROWS * GEMM_PANEL, // floats of one strip of sums
    WIDEN_STEPS = 256               // k of a bf16 B that are widened at once before they are turned
};
#define INLINE static inline __attribute__((always_inline))

// tile[i][j] = (resume ? tile[i][j] : +0) continued over `steps` of k. a_row and a_step, rows and vectors are constants
// wherever this is inlined.
INLINE void micro(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t b_step, int steps, float *tile,
                  bool resume, const int rows, const int vectors) {
    v16_t sum[MICRO_ROWS][MICRO_VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            sum[i][j] = resume ? v16_load(tile + i * GEMM_PANEL + j * LANES) : v16_set(0.0f);
#pragma GCC unroll 2
    for (int k = 0; k < steps; k++) {
        v16_t right[MICRO_VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) right[j] = v16_load(b + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            v16_t left = v16_set(a[i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[i][j] = v16_fma(left, right[j], sum[i][j]);
        }
        a += a_step;
        b += b_step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) v16_store(tile + i * GEMM_PANEL + j * LANES, sum[i][j]);
}

typedef void (*micro_t)(const float *a, int64_t a_stride, const float *b, int64_t b_step, int steps, float *tile,
                        bool resume);

// Two forms a shape: A by rows (a_step 1) and A by columns (a_row 1, the weight gradient).
#define MICRO(rows, vectors)                                                                                           \
    static void micro_rows_##rows##_##vectors(const float *a, int64_t a_stride, const float *b, int64_t b_step,        \
                                              int steps, float *tile, bool resume) {                                   \
        micro(a, a_stride, 1, b, b_step, steps, tile, resume, rows, vectors);                                          \
    }                                                                                                                  \
    static void micro_columns_##rows##_##vectors(const float *a, int64_t a_stride, const float *b, int64_t b_step,     \
                                                 int steps, float *tile, bool resume) {                                \
        micro(a, 1, a_stride, b, b_step, steps, tile, resume, rows, vectors);                                          \
    }
#define MICRO_EACH_ROW(vectors)                                                                                        \
    MICRO(1, vectors)                                                                                                  \
    MICRO(2, vectors)                                                                                                  \
    MICRO(3, vectors)                                                                                                  \
    MICRO(4, vectors)                                                                                                  \
    MICRO(5, vectors)                                                                                                  \
    MICRO(6, vectors)
#define MICRO_NAMES(form, vectors)                                                                                     \
    {                                                                                                                  \
        form##_1_##vectors, form##_2_##vectors, form##_3_##vectors, form##_4_##vectors, form##_5_##vectors,            \
            form##_6_##vectors                                                                                         \
    }

MICRO_EACH_ROW(1)
#if MICRO_VECTORS == 4
MICRO_EACH_ROW(2)
MICRO_EACH_ROW(3)
MICRO_EACH_ROW(4)
static const micro_t micro_kernels[2][MICRO_VECTORS][MICRO_ROWS] = {
    {MICRO_NAMES(micro_rows, 1), MICRO_NAMES(micro_rows, 2), MICRO_NAMES(micro_rows, 3), MICRO_NAMES(micro_rows, 4)},
    {MICRO_NAMES(micro_columns, 1), MICRO_NAMES(micro_columns, 2), MICRO_NAMES(micro_columns, 3),
     MICRO_NAMES(micro_columns, 4)}};
#else
static const micro_t micro_kernels[2][MICRO_VECTORS][MICRO_ROWS] = {{MICRO_NAMES(micro_rows, 1)},
                                                                    {MICRO_NAMES(micro_columns, 1)}};
#endif

// 2^exponent as a float for sink_sixteen; NaN where it is none, which sends every value through the definition.
INLINE float sink_scale(const gradient_sink_t *sink) {
    return sink->exponent >= -126 && sink->exponent <= 127 ? (float)gradient_scale(sink->exponent) : NAN;
}

// Adds sixteen quantised values. Scaling by a power of two is exact in fp32 too, but for results that are below 2^-126
// (0 either way) or infinite; and no float lies between 2^47 - 1/2 and 2^47. So one comparison finds whatever needs the
// definition, which then takes all sixteen.
INLINE void sink_sixteen(const gradient_sink_t *sink, int64_t at, float scale, v16_t value) {
    int64_t *sum = sink->sum + at;
    v16_t scaled = v16_mul(value, v16_set(scale));
#if defined(VECTOR_AVX512)
    const __m512 limit = _mm512_set1_ps((float)(1LL << GRADIENT_LIMIT_BITS));
    if (__builtin_expect(_mm512_cmp_ps_mask(_mm512_abs_ps(scaled), limit, _CMP_LT_OQ) == 0xffff, 1)) {
        __m512i low = _mm512_cvtps_epi64(_mm512_castps512_ps256(scaled));
        __m512i high = _mm512_cvtps_epi64(_mm512_extractf32x8_ps(scaled, 1));
        _mm512_storeu_si512(sum, _mm512_add_epi64(_mm512_loadu_si512(sum), low));
        _mm512_storeu_si512(sum + 8, _mm512_add_epi64(_mm512_loadu_si512(sum + 8), high));
        return;
    }
#else
    const __m256 limit = _mm256_set1_ps((float)(1LL << GRADIENT_LIMIT_BITS)), sign = _mm256_set1_ps(-0.0f);
    const __m256d magic = _mm256_set1_pd(0x1.8p52); // adding it rounds to a whole number, which fills the low bits
    __m256 good = _mm256_and_ps(_mm256_cmp_ps(_mm256_andnot_ps(sign, scaled.lo), limit, _CMP_LT_OQ),
                                _mm256_cmp_ps(_mm256_andnot_ps(sign, scaled.hi), limit, _CMP_LT_OQ));
    if (__builtin_expect(_mm256_movemask_ps(good) == 0xff, 1)) {
        __m128 part[4] = {_mm256_castps256_ps128(scaled.lo), _mm256_extractf128_ps(scaled.lo, 1),
                          _mm256_castps256_ps128(scaled.hi), _mm256_extractf128_ps(scaled.hi, 1)};
        for (int i = 0; i < 4; i++) {
            __m256i bits = _mm256_castpd_si256(_mm256_add_pd(_mm256_cvtps_pd(part[i]), magic));
            __m256i whole = _mm256_sub_epi64(bits, _mm256_castpd_si256(magic));
            __m256i *to = (__m256i *)(sum + 4 * i);
            _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), whole));
        }
        return;
    }
#endif
    float lane[LANES];
    v16_store(lane, value);
    for (int i = 0; i < LANES; i++) gradient_add_one(sum + i, sink->flags, gradient_scale(sink->exponent), lane[i]);
}

static void sink_values(const gradient_sink_t *sink, int64_t first, const float *values, int count) {
    float scale = sink_scale(sink);
    int i = 0;
    for (; i + LANES <= count; i += LANES) sink_sixteen(sink, first + i, scale, v16_load(values + i));
    for (; i < count; i++)
        gradient_add_one(sink->sum + first + i, sink->flags, gradient_scale(sink->exponent), values[i]);
}

static void finish_sink(const gemm_job_t *job, const float *tile, int row, int rows, int column, int columns) {
    const gradient_sink_t *sink = job->sink;
    float scale = sink_scale(sink);
    v16_t alpha = v16_set(job->alpha);
    for (int i = 0; i < rows; i++) {
        int64_t at = (int64_t)(row + i) * job->n + column;
        const float *from = tile + i * GEMM_PANEL;
        int j = 0;
        for (; j + LANES <= columns; j += LANES) sink_sixteen(sink, at + j, scale, v16_mul(alpha, v16_load(from + j)));
        for (; j < columns; j++)
            gradient_add_one(sink->sum + at + j, sink->flags, gradient_scale(sink->exponent), job->alpha * from[j]);
    }
}

INLINE v16_t finish_value(const gemm_job_t *job, v16_t sum, v16_t alpha, v16_t bias, v16_t old) {
    switch (job->output) {
    case GEMM_ADD:
        return v16_add(old, sum);
    case GEMM_FMA:
        return v16_fma(alpha, sum, old);
    default:
        return job->bias ? v16_add(sum, bias) : v16_mul(alpha, sum);
    }
}

static void finish(const gemm_job_t *job, const float *tile, int row, int rows, int column, int columns) {
    if (job->output == GEMM_SINK) {
        finish_sink(job, tile, row, rows, column, columns);
        return;
    }
    bool reads = job->output == GEMM_ADD || job->output == GEMM_FMA;
    v16_t alpha = v16_set(job->alpha), none = v16_set(0.0f);
    for (int i = 0; i < rows; i++) {
        float *c = job->c + (row + i) * job->c_stride + column;
        const float *from = tile + i * GEMM_PANEL;
        int j = 0;
        for (; j + LANES <= columns; j += LANES) {
            v16_t old = reads ? v16_load(c + j) : none;
            v16_t bias = job->bias ? v16_load(job->bias + column + j) : none;
            v16_store(c + j, finish_value(job, v16_load(from + j), alpha, bias, old));
        }
        if (j < columns) {
            int left = columns - j;
            v16_t old = reads ? v16_load_partial(c + j, left) : none;
            v16_t bias = job->bias ? v16_load_partial(job->bias + column + j, left) : none;
            v16_store_partial(c + j, finish_value(job, v16_load(from + j), alpha, bias, old), left);
        }
    }
}

static void load_tile(const gemm_job_t *job, float *tile, int row, int rows, int column, int columns) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j += LANES) {
            int left = columns - j < LANES ? columns - j : LANES;
            v16_store(tile + i * GEMM_PANEL + j,
                      v16_load_partial(job->c + (row + i) * job->c_stride + column + j, left));
        }
}

// One range of k for the whole block: strips of rows inside passes over k, so that long sums wait in the tile.
static void block_range(const gemm_block_t *block, int first, int last) {
    _Alignas(64) float tile[STRIPS * TILE];
    const gemm_job_t *job = block->job;
    const float *b = block->b; // a panel, or an operand of f32
    bool by_rows = job->a_step == 1;
    int step_block = by_rows ? STEP_BLOCK_ROWS : STEP_BLOCK_COLUMNS;
    bool whole = last - first <= step_block;
    int64_t a_stride = by_rows ? job->a_row : job->a_step;
    int rows = block->row_end - block->row, columns = block->column_end - block->column;
    int strips = (rows + MICRO_ROWS - 1) / MICRO_ROWS, vectors = (columns + LANES - 1) / LANES;
    for (int64_t k = first; k == first || k < last; k += step_block) {
        int steps = (int)(last - k < step_block ? last - k : step_block);
        for (int strip = 0; strip < strips; strip++) {
            // Equal strips: 8 rows go as 4 + 4, which keeps more sums in flight than 6 + 2.
            int row = block->row + rows * strip / strips, row_end = block->row + rows * (strip + 1) / strips;
            float *sums = tile + (whole ? 0 : strip * TILE);
            bool resume = k > first || job->resume;
            if (k == first && job->resume) load_tile(job, sums, row, row_end - row, block->column, columns);
            const float *a = job->a + row * job->a_row + k * job->a_step;
            for (int v = 0; v < vectors; v += MICRO_VECTORS) {
                int wide = vectors - v < MICRO_VECTORS ? vectors - v : MICRO_VECTORS;
                micro_kernels[!by_rows][wide - 1][row_end - row - 1](a, a_stride, b + k * block->b_step + v * LANES,
                                                                     block->b_step, steps, sums + v * LANES, resume);
            }
            if (k + steps == last) finish(job, sums, row, row_end - row, block->column, columns);
        }
    }
}

static void block_vector(const gemm_block_t *block) {
    const gemm_job_t *job = block->job;
    if (job->output != GEMM_SINK) {
        block_range(block, 0, job->k);
        return;
    }
    for (int leaf = 0; leaf < job->leaves->count; leaf++)
        if (job->leaves->start[leaf] < job->leaves->start[leaf + 1])
            block_range(block, job->leaves->start[leaf], job->leaves->start[leaf + 1]);
}

// Sixteen columns of a bf16 B that lies the other way round.
static void pack_sixteen_half(const uint16_t *b, int64_t b_column, int k, int count, float *panel, int width) {
    _Alignas(64) float wide[LANES * WIDEN_STEPS];
    for (int first = 0; first < k; first += WIDEN_STEPS) {
        int steps = k - first < WIDEN_STEPS ? k - first : WIDEN_STEPS;
        for (int i = 0; i < count; i++)
            row_floats((row_t){b + i * b_column + first, true}, steps, wide + i * WIDEN_STEPS);
        transpose_sixteen(wide, WIDEN_STEPS, steps, count, panel + (int64_t)first * width, width);
    }
}

static void pack_half(const uint16_t *b, int64_t b_step, int64_t b_column, int k, int columns, float *panel) {
    int width = (columns + LANES - 1) / LANES * LANES;
    for (int j = 0; j < width; j += LANES) {
        int count = columns - j < LANES ? columns - j : LANES;
        if (b_column != 1) {
            pack_sixteen_half(b + j * b_column, b_column, k, count, panel + j, width);
            continue;
        }
        for (int64_t i = 0; i < k; i++)
            v16_store(panel + i * width + j, row_get((row_t){b + i * b_step, true}, j, count));
    }
}

static void pack_vector(const void *from_b, bool b_half, int64_t b_step, int64_t b_column, int k, int columns,
                        float *panel) {
    if (b_half) {
        pack_half(from_b, b_step, b_column, k, columns, panel);
        return;
    }
    const float *b = from_b;
    int width = (columns + LANES - 1) / LANES * LANES;
    if (b_column != 1) {
        for (int j = 0; j < width; j += LANES) {
            int count = columns - j < LANES ? columns - j : LANES;
            transpose_sixteen(b + j * b_column, b_column, k, count, panel + j, width);
        }
        return;
    }
    for (int64_t i = 0; i < k; i++)
        for (int j = 0; j < width; j += LANES) {
            const float *from = b + i * b_step + j;
            v16_t value = columns - j >= LANES ? v16_load(from) : v16_load_partial(from, columns - j);
            v16_store(panel + i * width + j, value);
        }
}

static void column_sums_vector(const float *x, int64_t stride, int first, int last, int columns, float *out) {
    for (int j = 0; j < columns; j += LANES) {
        int left = columns - j < LANES ? columns - j : LANES;
        v16_t sum = v16_set(0.0f);
        for (int64_t i = first; i < last; i++) {
            const float *from = x + i * stride + j;
            sum = v16_add(sum, left == LANES ? v16_load(from) : v16_load_partial(from, left));
        }
        v16_store_partial(out + j, sum, left);
    }
}

const gemm_kernels_t VECTOR_NAME(gemm_kernels) = {.name = GEMM_SET_NAME,
                                                  .packs = true,
                                                  .pack = pack_vector,
                                                  .block = block_vector,
                                                  .sink = sink_values,
                                                  .column_sums = column_sums_vector};
