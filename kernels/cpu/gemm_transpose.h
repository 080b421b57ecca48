// Packing of a weight that lies the other way round: sixteen of its rows become sixteen columns of a panel.
// Included by gemm_impl.h only, after the kernel set is chosen.
#ifndef KERNELS_CPU_GEMM_TRANSPOSE_H
#define KERNELS_CPU_GEMM_TRANSPOSE_H

#include "kernels/cpu/vector.h"

#if defined(VECTOR_AVX512)
// r[i][j] -> r[j][i], in four rounds of pairs: 1, 2, 4 and 8 apart.
static inline __attribute__((always_inline)) void transpose_square(__m512 r[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
        __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // Now r[4g + c] holds column c of each 4 x 4 square of rows 4g .. 4g + 3; the squares themselves change places.
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 ab_even = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88),
               ab_odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        __m512 cd_even = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 cd_odd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        t[c] = _mm512_shuffle_f32x4(ab_even, cd_even, 0x88);
        t[8 + c] = _mm512_shuffle_f32x4(ab_even, cd_even, 0xdd);
        t[4 + c] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

// to[k * to_step + i] = from[i * stride + k] for i < rows, 0 for i in rows .. 15; k < columns.
static void transpose_sixteen(const float *from, int64_t stride, int columns, int rows, float *to, int64_t to_step) {
    for (int k = 0; k < columns; k += 16) {
        int left = columns - k < 16 ? columns - k : 16;
        __mmask16 mask = (__mmask16)((1u << left) - 1u);
        __m512 r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            r[i] = i < rows ? _mm512_maskz_loadu_ps(mask, from + i * stride + k) : _mm512_setzero_ps();
        transpose_square(r);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            if (i < left) _mm512_storeu_ps(to + (k + i) * to_step, r[i]);
    }
}
#else
static inline __attribute__((always_inline)) void transpose_square(__m256 r[8]) {
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
        t[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

// to[k * to_step + i] = from[i * stride + k] for i < rows, 0 for i in rows .. 15; k < columns.
static void transpose_sixteen(const float *from, int64_t stride, int columns, int rows, float *to, int64_t to_step) {
    for (int half = 0; half < 16; half += 8) {
        int k = 0;
        for (; k + 8 <= columns && half + 8 <= rows; k += 8) {
            __m256 r[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + (half + i) * stride + k);
            transpose_square(r);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(to + (k + i) * to_step + half, r[i]);
        }
        for (; k < columns; k++)
            for (int i = half; i < half + 8; i++) to[k * to_step + i] = i < rows ? from[i * stride + k] : 0.0f;
    }
}
#endif

#endif
