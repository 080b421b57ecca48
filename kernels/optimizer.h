// What AdamW's kernels multiply by, computed once a call and alike on every device.
#ifndef KERNELS_OPTIMIZER_H
#define KERNELS_OPTIMIZER_H

#include "kernels/device.h"

typedef struct adamw_factors {
    double gradient;       // gradient_scale * 2^-exponent
    float decay;           // 1 - lr wd
    float first, second;   // 1 - beta1, 1 - beta2
    float step_size;       // lr / (1 - beta1^t)
    float root_correction; // sqrt(1 - beta2^t)
} adamw_factors_t;

adamw_factors_t adamw_factors_of(const adamw_args_t *args);

#endif
