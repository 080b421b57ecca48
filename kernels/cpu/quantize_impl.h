// The exact gradient sum: adds floats to a gradient_sink_t as kernels/device.h defines it.
//
// Adding 1.5 * 2^52 to a double below 2^51 in magnitude rounds it to a whole number, ties to even, and leaves that
// number in the low bits: the same result everywhere, and a form that compilers vectorise for every instruction set.
#ifndef KERNELS_CPU_QUANTIZE_IMPL_H
#define KERNELS_CPU_QUANTIZE_IMPL_H

#include "kernels/device.h"
#include <math.h>
#include <string.h>

// sum[i] += round(value[i] * factor), factor = 2^exponent. Several threads may share `flags`, not elements of `sum`.
static inline void quantize_add(int64_t *sum, const float *value, int count, double factor, uint32_t *flags) {
    const double shift = 0x1.8p52, limit = 0x1p47;
    int64_t shift_bits;
    memcpy(&shift_bits, &shift, sizeof(shift));
    int64_t bad = 0;
    for (int i = 0; i < count; i++) {
        double shifted = (double)value[i] * factor + shift;
        double whole = shifted - shift;
        int64_t bits;
        memcpy(&bits, &shifted, sizeof(bits));
        int64_t fits = fabs(whole) < limit ? -1 : 0; // false for NaN as well
        sum[i] += (bits - shift_bits) & fits;
        bad |= ~fits;
    }
    if (!bad) return;
    uint32_t found = 0;
    for (int i = 0; i < count; i++) {
        double whole = ((double)value[i] * factor + shift) - shift;
        if (!isfinite(value[i]))
            found |= GRADIENT_NOT_FINITE;
        else if (!(fabs(whole) < limit))
            found |= GRADIENT_OVERFLOW;
    }
    __atomic_fetch_or(flags, found, __ATOMIC_RELAXED);
}

#endif
