// Kernels made for the simulator's own tests: most of them wrong. tests/sim/faults.cu.
#ifndef TESTS_SIM_FAULTS_H
#define TESTS_SIM_FAULTS_H

#include "kernels/base/status.h"
#include <stdint.h>

typedef struct fault_args {
    float *out;     // device memory, what each kernel says
    uint32_t *bits; // the same, whole numbers
    const float *in;
    void *stream; // NULL: at once, with memory of any kind
} fault_args_t;

#ifdef __cplusplus
extern "C" {
#endif
// By name; STATUS_INVALID for an unknown one.
status_t fault_run(const char *name, fault_args_t args);
// e^x of the kernels; bf16 and half there and back.
float fault_exp(float x);
uint16_t fault_half(float x);
float fault_whole(uint16_t half);
uint16_t fault_bf16(float x);
#ifdef __cplusplus
}
#endif
#endif
