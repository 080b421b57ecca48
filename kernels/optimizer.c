#include "kernels/optimizer.h"

#include <math.h>

// base^power by squaring: the same bits with every C library.
static double optimizer_power(double base, int64_t power) {
    double result = 1.0;
    for (; power > 0; power /= 2) {
        if (power % 2) result *= base;
        base *= base;
    }
    return result;
}

adamw_factors_t adamw_factors_of(const adamw_args_t *args) {
    double beta1 = args->beta1, beta2 = args->beta2, rate = args->learning_rate;
    return (adamw_factors_t){
        .gradient = ldexp(args->gradient_scale, -args->exponent),
        .decay = (float)(1.0 - rate * (double)args->weight_decay),
        .first = (float)(1.0 - beta1),
        .second = (float)(1.0 - beta2),
        .step_size = (float)(rate / (1.0 - optimizer_power(beta1, args->step))),
        .root_correction = (float)sqrt(1.0 - optimizer_power(beta2, args->step)),
    };
}
