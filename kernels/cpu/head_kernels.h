// The row reductions of the head, one table a kernel set. Private to kernels/cpu/head*.
#ifndef KERNELS_CPU_HEAD_KERNELS_H
#define KERNELS_CPU_HEAD_KERNELS_H

#include "kernels/device.h"

enum { HEAD_MASS_BLOCK = 256 };

typedef struct head_row_sums {
    float max;     // of y = logit / temperature
    float sum;     // of e^(y - max)
    float product; // of e^(y - max) * (y - max)
    bool finite;   // every logit is
} head_row_sums_t;

typedef struct head_row_best {
    int index; // of the largest logit, the lowest where several are equal
    float value, second;
} head_row_best_t;

typedef struct head_kernels {
    head_row_sums_t (*row_sums)(const float *logit, int count, float temperature);
    head_row_best_t (*row_best)(const float *logit, int count);
    // The masses e^(logit / temperature - max) of up to HEAD_MASS_BLOCK ids, and their sum. An id at -infinity has 0.
    float (*masses)(const float *logit, int count, float temperature, float max, float *mass);
    // In place: logit -> (scale * (0 - e^(logit / temperature - lse))) / temperature, and with 1 for 0 at `target`,
    // which is left alone when it is outside 0 .. count - 1.
    void (*row_gradient)(float *logit, int count, float temperature, float lse, float scale, int target);
} head_kernels_t;

extern const head_kernels_t head_kernels_portable, head_kernels_avx2, head_kernels_avx512;

#endif
