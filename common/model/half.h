// IEEE half precision to single, exactly.
#ifndef COMMON_MODEL_HALF_H
#define COMMON_MODEL_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000U) << 16, exponent = half >> 10 & 0x1FU, mantissa = half & 0x3FFU, bits;
    if (exponent == 31) {
        bits = sign | 0x7F800000U | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        // A subnormal half is mantissa * 2^-24, exact in f32.
        float value = (float)mantissa * 0x1p-24F;
        memcpy(&bits, &value, sizeof(bits));
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}

#endif
