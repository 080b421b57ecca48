// The CPU device's linear members of the device table; kernels/device.h documents them. What it leaves open:
//
//  - Order of y: base = x W^T, + bias, then fma(scale, (x A^T) B^T, .): each product its own sum from +0.
//  - Order of dx: dx + dy W, then + dxa A with dxa = scale * (dy B).
//  - A leaf's gradients are sums over its rows in row order from +0: dW = dy^T x, dB = scale * (dy^T xa), dA = dxa^T x,
//    dbias = the sum of dy.
//  - The packed form is panels of 64 columns (kernels/cpu/gemm.h); the portable set has none.
//  - Rows of an input and of an output must not overlap. fp32 only; other dtypes give STATUS_UNAVAILABLE.
#ifndef KERNELS_CPU_LINEAR_H
#define KERNELS_CPU_LINEAR_H

#include "kernels/device.h"

size_t cpu_packed_bytes(device_t *device, matrix_t weight);
status_t cpu_pack_weight(device_t *device, matrix_t weight, void *packed) STATUS_CHECKED;
status_t cpu_linear(device_t *device, const linear_args_t *args) STATUS_CHECKED;
status_t cpu_linear_backward(device_t *device, const linear_args_t *args,
                             const linear_gradients_t *gradients) STATUS_CHECKED;

#endif
