// Turns up to 16 rows of n floats to [n][16]. Moves numbers only, so the spellings need not agree in how.

static inline void transpose_plain(const float *const *row, int rows, int first, int last, float *out) {
    for (int d = first; d < last; d++)
        for (int j = 0; j < LANES; j++) out[d * LANES + j] = j < rows ? row[j][d] : 0.0f;
}

#if defined(VECTOR_AVX512)
// 16 x 16: pairs, quadruples, then 128-bit quarters.
static inline void transpose_square(__m512 *r, float *out) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            __m512d x = _mm512_castps_pd(t[i + h]), y = _mm512_castps_pd(t[i + 2 + h]);
            r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    // r[4 g + c]: column c + 4 q of rows 4 g .. 4 g + 3 in quarter q.
    for (int c = 0; c < 4; c++) {
        __m512 low01 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), high01 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        __m512 low23 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 high23 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        _mm512_storeu_ps(out + (0 + c) * LANES, _mm512_shuffle_f32x4(low01, low23, 0x88));
        _mm512_storeu_ps(out + (8 + c) * LANES, _mm512_shuffle_f32x4(low01, low23, 0xdd));
        _mm512_storeu_ps(out + (4 + c) * LANES, _mm512_shuffle_f32x4(high01, high23, 0x88));
        _mm512_storeu_ps(out + (12 + c) * LANES, _mm512_shuffle_f32x4(high01, high23, 0xdd));
    }
}
static inline void transpose_block(const float *const *row, int rows, int n, float *out) {
    int d = 0;
    for (; d + LANES <= n; d += LANES) {
        __m512 r[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) r[j] = j < rows ? _mm512_loadu_ps(row[j] + d) : _mm512_setzero_ps();
        transpose_square(r, out + d * LANES);
    }
    transpose_plain(row, rows, d, n, out);
}
#elif defined(VECTOR_AVX2)
// 8 x 8: pairs, quadruples, then halves.
static inline void transpose_square(__m256 *r, float *out) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            __m256d x = _mm256_castps_pd(t[i + h]), y = _mm256_castps_pd(t[i + 2 + h]);
            r[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
            r[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
        }
    for (int c = 0; c < 4; c++) {
        _mm256_storeu_ps(out + c * LANES, _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
        _mm256_storeu_ps(out + (4 + c) * LANES, _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
    }
}
static inline void transpose_block(const float *const *row, int rows, int n, float *out) {
    int d = 0;
    for (; d + 8 <= n; d += 8)
        for (int half = 0; half < LANES; half += 8) {
            __m256 r[8];
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++)
                r[j] = half + j < rows ? _mm256_loadu_ps(row[half + j] + d) : _mm256_setzero_ps();
            transpose_square(r, out + d * LANES + half);
        }
    transpose_plain(row, rows, d, n, out);
}
#else
static inline void transpose_block(const float *const *row, int rows, int n, float *out) {
    transpose_plain(row, rows, 0, n, out);
}
#endif
