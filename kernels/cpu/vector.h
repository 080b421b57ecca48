// Sixteen virtual lanes of fp32, in three spellings that agree to the bit: portable C, AVX2+FMA (two registers) and
// AVX-512 (one). A kernel is written once over v16_t in a file NAME_impl.h; NAME_portable.c, NAME_avx2.c and
// NAME_avx512.c define VECTOR_PORTABLE, VECTOR_AVX2 or VECTOR_AVX512 before including it. Function names in the
// implementation go through VECTOR_NAME(name), which appends the kernel set.
//
// Why the spellings agree: every operation here is a single IEEE operation (or an explicit FMA) per lane, folds add in
// the order 8-4-2-1, and max(a, b) is (a > b ? a : b), as the x86 instruction does it.
#ifndef KERNELS_CPU_VECTOR_H
#define KERNELS_CPU_VECTOR_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

#if defined(VECTOR_AVX512)
#include <immintrin.h>
#define VECTOR_NAME(name) name##_avx512
typedef __m512 v16_t;
static inline v16_t v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16_t a) {
    _mm512_storeu_ps(p, a);
}
// The first n lanes (0 <= n <= 16); the others read as 0 and are not written.
static inline v16_t v16_load_partial(const float *p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
static inline void v16_store_partial(float *p, v16_t a, int n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a);
}
static inline v16_t v16_set(float a) {
    return _mm512_set1_ps(a);
}
static inline v16_t v16_add(v16_t a, v16_t b) {
    return _mm512_add_ps(a, b);
}
static inline v16_t v16_sub(v16_t a, v16_t b) {
    return _mm512_sub_ps(a, b);
}
static inline v16_t v16_mul(v16_t a, v16_t b) {
    return _mm512_mul_ps(a, b);
}
static inline v16_t v16_div(v16_t a, v16_t b) {
    return _mm512_div_ps(a, b);
}
static inline v16_t v16_sqrt(v16_t a) {
    return _mm512_sqrt_ps(a);
}
static inline v16_t v16_fma(v16_t a, v16_t b, v16_t c) { // a * b + c
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16_t v16_max(v16_t a, v16_t b) {
    return _mm512_max_ps(a, b);
}
static inline v16_t v16_min(v16_t a, v16_t b) { // (a < b ? a : b)
    return _mm512_min_ps(a, b);
}
static inline v16_t v16_round(v16_t a) { // to the nearest whole number, ties to even
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n for whole n in [-126, 127].
static inline v16_t v16_exp2_whole(v16_t n) {
    __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
}
// per lane: a < b ? x : y
static inline v16_t v16_select_less(v16_t a, v16_t b, v16_t x, v16_t y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// per lane i: bit i of bits ? x : y
static inline v16_t v16_select_bits(uint32_t bits, v16_t x, v16_t y) {
    return _mm512_mask_blend_ps((__mmask16)bits, y, x);
}
static inline __m256 v16_upper(v16_t a) {
    return _mm512_extractf32x8_ps(a, 1);
}
static inline __m256 v16_lower(v16_t a) {
    return _mm512_castps512_ps256(a);
}
#elif defined(VECTOR_AVX2)
#include <immintrin.h>
#define VECTOR_NAME(name)                      name##_avx2
typedef struct v16 {
    __m256 lo, hi;
} v16_t;
static inline v16_t v16_load(const float *p) {
    return (v16_t){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v16_store(float *p, v16_t a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline v16_t v16_load_partial(const float *p, int n) {
    float buffer[LANES] = {0};
    memcpy(buffer, p, (size_t)n * sizeof(float));
    return v16_load(buffer);
}
static inline void v16_store_partial(float *p, v16_t a, int n) {
    float buffer[LANES];
    v16_store(buffer, a);
    memcpy(p, buffer, (size_t)n * sizeof(float));
}
#define V16_EACH(expression_lo, expression_hi) ((v16_t){(expression_lo), (expression_hi)})
static inline v16_t v16_set(float a) {
    return V16_EACH(_mm256_set1_ps(a), _mm256_set1_ps(a));
}
static inline v16_t v16_add(v16_t a, v16_t b) {
    return V16_EACH(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi));
}
static inline v16_t v16_sub(v16_t a, v16_t b) {
    return V16_EACH(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi));
}
static inline v16_t v16_mul(v16_t a, v16_t b) {
    return V16_EACH(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi));
}
static inline v16_t v16_div(v16_t a, v16_t b) {
    return V16_EACH(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi));
}
static inline v16_t v16_sqrt(v16_t a) {
    return V16_EACH(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi));
}
static inline v16_t v16_fma(v16_t a, v16_t b, v16_t c) {
    return V16_EACH(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
static inline v16_t v16_max(v16_t a, v16_t b) {
    return V16_EACH(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi));
}
static inline v16_t v16_min(v16_t a, v16_t b) {
    return V16_EACH(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi));
}
static inline __m256 v16_round_half(__m256 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline v16_t v16_round(v16_t a) {
    return V16_EACH(v16_round_half(a.lo), v16_round_half(a.hi));
}
static inline __m256 v16_exp2_half(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline v16_t v16_exp2_whole(v16_t n) {
    return V16_EACH(v16_exp2_half(n.lo), v16_exp2_half(n.hi));
}
static inline v16_t v16_select_less(v16_t a, v16_t b, v16_t x, v16_t y) {
    return V16_EACH(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                    _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)));
}
static inline __m256 v16_select_half(uint32_t bits, __m256 x, __m256 y) {
    __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), each), each);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(chosen));
}
static inline v16_t v16_select_bits(uint32_t bits, v16_t x, v16_t y) {
    return V16_EACH(v16_select_half(bits, x.lo, y.lo), v16_select_half(bits >> 8, x.hi, y.hi));
}
static inline __m256 v16_upper(v16_t a) {
    return a.hi;
}
static inline __m256 v16_lower(v16_t a) {
    return a.lo;
}
#else
#define VECTOR_NAME(name) name##_portable
typedef struct v16 {
    float lane[LANES];
} v16_t;
#define V16_LANES(expression)                                                                                          \
    v16_t r;                                                                                                           \
    for (int i = 0; i < LANES; i++) r.lane[i] = (expression);                                                          \
    return r
static inline v16_t v16_load(const float *p) {
    V16_LANES(p[i]);
}
static inline void v16_store(float *p, v16_t a) {
    memcpy(p, a.lane, sizeof(a.lane));
}
static inline v16_t v16_load_partial(const float *p, int n) {
    V16_LANES(i < n ? p[i] : 0.0f);
}
static inline void v16_store_partial(float *p, v16_t a, int n) {
    memcpy(p, a.lane, (size_t)n * sizeof(float));
}
static inline v16_t v16_set(float a) {
    V16_LANES(a);
}
static inline v16_t v16_add(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] + b.lane[i]);
}
static inline v16_t v16_sub(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] - b.lane[i]);
}
static inline v16_t v16_mul(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] * b.lane[i]);
}
static inline v16_t v16_div(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] / b.lane[i]);
}
static inline v16_t v16_sqrt(v16_t a) {
    V16_LANES(sqrtf(a.lane[i]));
}
static inline v16_t v16_fma(v16_t a, v16_t b, v16_t c) {
    V16_LANES(fmaf(a.lane[i], b.lane[i], c.lane[i]));
}
static inline v16_t v16_max(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]);
}
static inline v16_t v16_min(v16_t a, v16_t b) {
    V16_LANES(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]);
}
static inline v16_t v16_round(v16_t a) {
    V16_LANES(rintf(a.lane[i]));
}
static inline float v16_exp2_one(float n) {
    uint32_t bits = (uint32_t)((n == n ? (int32_t)n : 0) + 127) << 23;
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}
static inline v16_t v16_exp2_whole(v16_t n) {
    V16_LANES(v16_exp2_one(n.lane[i]));
}
static inline v16_t v16_select_less(v16_t a, v16_t b, v16_t x, v16_t y) {
    V16_LANES(a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]);
}
static inline v16_t v16_select_bits(uint32_t bits, v16_t x, v16_t y) {
    V16_LANES(bits >> i & 1u ? x.lane[i] : y.lane[i]);
}
#endif

// The first n lanes, 1 <= n <= 16, where n is 16 most of the time.
static inline v16_t v16_load_up_to(const float *p, int n) {
    return n == LANES ? v16_load(p) : v16_load_partial(p, n);
}
static inline void v16_store_up_to(float *p, v16_t a, int n) {
    if (n == LANES)
        v16_store(p, a);
    else
        v16_store_partial(p, a, n);
}

// Sum and maximum of the lanes: lane i with lane i+8, then +4, +2, +1.
#if defined(VECTOR_AVX512) || defined(VECTOR_AVX2)
static inline float v16_sum(v16_t a) {
    __m256 eight = _mm256_add_ps(v16_lower(a), v16_upper(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float v16_largest(v16_t a) {
    __m256 eight = _mm256_max_ps(v16_lower(a), v16_upper(a));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
static inline float v16_sum(v16_t a) {
    float lane[LANES];
    v16_store(lane, a);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] + lane[i + width];
    return lane[0];
}
static inline float v16_largest(v16_t a) {
    float lane[LANES];
    v16_store(lane, a);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}
#endif

// e^x. Cody-Waite reduction to |r| <= ln2/2 and a polynomial of degree 6 (Cephes' coefficients, expf); relative error
// below 2^-22. Arguments under -87 give exactly 0 (never a denormal); above 88.02 the result is that of 88.02; NaN
// gives NaN.
static inline v16_t v16_exp(v16_t x) {
    v16_t clamped = v16_min(v16_set(88.02f), v16_max(v16_set(-87.0f), x)); // in this order, a NaN comes through
    v16_t n = v16_round(v16_mul(clamped, v16_set(1.44269504f)));
    v16_t r = v16_fma(n, v16_set(-0.693359375f), clamped);
    r = v16_fma(n, v16_set(2.12194440e-4f), r);
    v16_t p = v16_set(1.9875691500e-4f);
    p = v16_fma(p, r, v16_set(1.3981999507e-3f));
    p = v16_fma(p, r, v16_set(8.3334519073e-3f));
    p = v16_fma(p, r, v16_set(4.1665795894e-2f));
    p = v16_fma(p, r, v16_set(1.6666665459e-1f));
    p = v16_fma(p, r, v16_set(5.0000001201e-1f));
    p = v16_add(v16_fma(p, v16_mul(r, r), r), v16_set(1.0f));
    return v16_select_less(x, v16_set(-87.0f), v16_set(0.0f), v16_mul(p, v16_exp2_whole(n)));
}
// The same for one number; same bits as a lane.
static inline float v16_exp_one(float x) {
    float lane[LANES];
    v16_store(lane, v16_exp(v16_set(x)));
    return lane[0];
}

#endif
