// bf16 storage under fp32 lanes: a row of a matrix is read to fp32, computed with, and rounded once when it is written.
// Reading is exact; rounding is to nearest, ties to even, and a NaN stays a NaN. Both are whole-number operations on
// the bits, so the spellings of v16_t agree here too. Included by vector.h users that handle matrices.
#ifndef KERNELS_CPU_VECTOR_BF16_H
#define KERNELS_CPU_VECTOR_BF16_H

#include "kernels/cpu/vector.h"
#include "kernels/device.h"

#if defined(VECTOR_AVX512)
static inline v16_t v16_load_bf16(const uint16_t *p) {
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// The upper halves of the rounded lanes.
static inline __m512i v16_bf16_bits(v16_t a) {
    __m512i bits = _mm512_castps_si512(a), upper = _mm512_srli_epi32(bits, 16);
    __m512i bias = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(upper, _mm512_set1_epi32(1)));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), upper, _mm512_set1_epi32(0x40));
}
static inline void v16_store_bf16(uint16_t *p, v16_t a) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(v16_bf16_bits(a)));
}
static inline v16_t v16_round_bf16(v16_t a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(v16_bf16_bits(a), 16));
}
#elif defined(VECTOR_AVX2)
static inline __m256 v16_widen_half(const uint16_t *p) {
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
static inline v16_t v16_load_bf16(const uint16_t *p) {
    return V16_EACH(v16_widen_half(p), v16_widen_half(p + 8));
}
static inline __m256i v16_bf16_bits(__m256 a) {
    __m256i bits = _mm256_castps_si256(a), upper = _mm256_srli_epi32(bits, 16);
    __m256i bias = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(upper, _mm256_set1_epi32(1)));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
static inline void v16_store_bf16(uint16_t *p, v16_t a) {
    __m256i packed = _mm256_packus_epi32(v16_bf16_bits(a.lo), v16_bf16_bits(a.hi));
    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
static inline v16_t v16_round_bf16(v16_t a) {
    return V16_EACH(_mm256_castsi256_ps(_mm256_slli_epi32(v16_bf16_bits(a.lo), 16)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(v16_bf16_bits(a.hi), 16)));
}
#else
static inline v16_t v16_load_bf16(const uint16_t *p) {
    V16_LANES(bf16_widen(p[i]));
}
static inline void v16_store_bf16(uint16_t *p, v16_t a) {
    for (int i = 0; i < LANES; i++) p[i] = bf16_round(a.lane[i]);
}
static inline v16_t v16_round_bf16(v16_t a) {
    V16_LANES(bf16_widen(bf16_round(a.lane[i])));
}
#endif

// A row of an f32 or bf16 matrix.
typedef struct row {
    const void *at;
    bool half; // bf16
} row_t;

static inline row_t row_of(const matrix_t *m, int64_t row) {
    bool half = m->dtype == DTYPE_BF16;
    return (row_t){m->data ? (const char *)m->data + row * m->stride * (half ? 2 : 4) : NULL, half};
}
// The row from column c on.
static inline row_t row_from(row_t r, int64_t c) {
    return (row_t){(const char *)r.at + c * (r.half ? 2 : 4), r.half};
}
// Columns c .. c + n - 1, 1 <= n <= 16; the other lanes are 0.
static inline v16_t row_get(row_t r, int64_t c, int n) {
    if (!r.half) return v16_load_up_to((const float *)r.at + c, n);
    const uint16_t *from = (const uint16_t *)r.at + c;
    if (n == LANES) return v16_load_bf16(from);
    uint16_t buffer[LANES] = {0};
    memcpy(buffer, from, (size_t)n * sizeof(*from));
    return v16_load_bf16(buffer);
}
static inline void row_put(row_t r, int64_t c, v16_t value, int n) {
    if (!r.half) {
        v16_store_up_to((float *)(uintptr_t)r.at + c, value, n);
        return;
    }
    uint16_t *to = (uint16_t *)(uintptr_t)r.at + c, buffer[LANES];
    if (n == LANES) {
        v16_store_bf16(to, value);
        return;
    }
    v16_store_bf16(buffer, value);
    memcpy(to, buffer, (size_t)n * sizeof(*to));
}
// What a value becomes when it is kept in the row's dtype.
static inline v16_t row_round(row_t r, v16_t value) {
    return r.half ? v16_round_bf16(value) : value;
}
// The whole row as floats: itself, or widened into `scratch` (columns floats).
static inline const float *row_floats(row_t r, int columns, float *scratch) {
    if (!r.half) return r.at;
    for (int c = 0; c < columns; c += LANES) {
        int n = columns - c < LANES ? columns - c : LANES;
        v16_store_up_to(scratch + c, row_get(r, c, n), n);
    }
    return scratch;
}

#endif
