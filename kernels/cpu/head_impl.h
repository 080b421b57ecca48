// The head's row reductions over v16_t; compiled once a kernel set (see vector.h).
#include "kernels/cpu/head_kernels.h"
#include "kernels/cpu/vector.h"

// The lanes from `count` on become `filler`.
static inline v16_t fill_after(v16_t value, int count, float filler) {
    float lane[LANES];
    v16_store(lane, value);
    for (int i = count; i < LANES; i++) lane[i] = filler;
    return v16_load(lane);
}

static head_row_sums_t row_sums(const float *logit, int count, float temperature) {
    int whole = count / LANES * LANES, left = count - whole;
    v16_t most = v16_set(-INFINITY), check = v16_set(0.0f), zero = v16_set(0.0f);
    for (int i = 0; i < whole; i += LANES) {
        v16_t x = v16_load(logit + i);
        most = v16_max(most, x);
        check = v16_fma(x, zero, check); // NaN as soon as one logit is NaN or infinite
    }
    if (left) {
        v16_t x = v16_load_partial(logit + whole, left);
        most = v16_max(most, fill_after(x, left, -INFINITY));
        check = v16_fma(x, zero, check);
    }
    head_row_sums_t out = {.finite = v16_sum(check) == 0.0f};
    out.max = v16_largest(most) / temperature; // division keeps order, so this is the largest quotient
    v16_t divisor = v16_set(temperature), max = v16_set(out.max), sum = zero, product = zero;
    for (int i = 0; i < whole; i += LANES) {
        v16_t d = v16_sub(v16_div(v16_load(logit + i), divisor), max), e = v16_exp(d);
        sum = v16_add(sum, e);
        product = v16_fma(e, d, product);
    }
    if (left) {
        v16_t d = v16_sub(v16_div(v16_load_partial(logit + whole, left), divisor), max);
        d = fill_after(d, left, -1000.0f); // mass 0
        v16_t e = v16_exp(d);
        sum = v16_add(sum, e);
        product = v16_fma(e, d, product);
    }
    out.sum = v16_sum(sum);
    out.product = v16_sum(product);
    return out;
}

// Places are kept as floats, exact up to 2^24.
static head_row_best_t row_best(const float *logit, int count) {
    float step[LANES], value[LANES], next[LANES], place[LANES];
    for (int i = 0; i < LANES; i++) step[i] = (float)i;
    v16_t at = v16_load(step), advance = v16_set((float)LANES);
    v16_t best = v16_set(-INFINITY), second = best, index = at;
    for (int i = 0; i < count; i += LANES) {
        int left = count - i;
        v16_t x = left < LANES ? fill_after(v16_load_partial(logit + i, left), left, -INFINITY) : v16_load(logit + i);
        second = v16_max(second, v16_min(best, x));
        index = v16_select_less(best, x, at, index);
        best = v16_max(best, x);
        at = v16_add(at, advance);
    }
    v16_store(value, best);
    v16_store(next, second);
    v16_store(place, index);
    int winner = 0;
    for (int i = 1; i < LANES; i++)
        if (value[i] > value[winner] || (value[i] == value[winner] && place[i] < place[winner])) winner = i;
    head_row_best_t out = {.index = (int)place[winner], .value = value[winner], .second = next[winner]};
    for (int i = 0; i < LANES; i++)
        if (i != winner && value[i] > out.second) out.second = value[i];
    return out;
}

static float masses(const float *logit, int count, float temperature, float max, float *mass) {
    v16_t divisor = v16_set(temperature), top = v16_set(max), sum = v16_set(0.0f);
    for (int i = 0; i < count; i += LANES) {
        int left = count - i;
        v16_t x = left < LANES ? fill_after(v16_load_partial(logit + i, left), left, -INFINITY) : v16_load(logit + i);
        v16_t e = v16_exp(v16_sub(v16_div(x, divisor), top));
        sum = v16_add(sum, e);
        v16_store_partial(mass + i, e, left < LANES ? left : LANES);
    }
    return v16_sum(sum);
}

static void row_gradient(float *logit, int count, float temperature, float lse, float scale, int target) {
    v16_t divisor = v16_set(temperature), log_sum = v16_set(lse), factor = v16_set(scale), zero = v16_set(0.0f);
    float at_target = target >= 0 && target < count ? logit[target] : 0.0f;
    for (int i = 0; i < count; i += LANES) {
        int left = count - i < LANES ? count - i : LANES;
        v16_t x = left < LANES ? v16_load_partial(logit + i, left) : v16_load(logit + i);
        v16_t p = v16_exp(v16_sub(v16_div(x, divisor), log_sum));
        v16_store_partial(logit + i, v16_div(v16_mul(factor, v16_sub(zero, p)), divisor), left);
    }
    if (target >= 0 && target < count)
        logit[target] = scale * (1.0f - v16_exp_one(at_target / temperature - lse)) / temperature;
}

const head_kernels_t VECTOR_NAME(head_kernels) = {
    .row_sums = row_sums, .row_best = row_best, .masses = masses, .row_gradient = row_gradient};
