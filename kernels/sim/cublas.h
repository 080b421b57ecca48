// cuBLASLt's stand-in for the simulated GPU: the functions of kernels/cuda/cublas.h with cuBLASLt's meaning. Products
// run in the order of their stream; misuse (a wrong shape, an operand that is not aligned as was promised, memory that
// is not the device's) is an error. Whether it is there, and how it errs, is chosen by a test or, where none has, by
// POISE_CUBLAS, with these names; by default it is absent.
#ifndef KERNELS_SIM_CUBLAS_H
#define KERNELS_SIM_CUBLAS_H

#include "kernels/base/status.h"
#include "kernels/cuda/cublas.h"

typedef enum sim_cublas {
    SIM_CUBLAS_ABSENT,    // "none": it cannot be loaded
    SIM_CUBLAS_GOOD,      // "good": sums k in order, the bits of our own products; proposes a split of k first
    SIM_CUBLAS_BACKWARDS, // "backwards": sums k from its end: good, with other bits
    SIM_CUBLAS_COUNTS,    // "counts": the order depends on the number of rows
    SIM_CUBLAS_PLACES,    // "places": the order depends on a row's place
    SIM_CUBLAS_SECOND,    // "second": the first algorithm's order depends on the number of rows, the second is good
    SIM_CUBLAS_TRUNCATES, // "truncates": good, but for its bf16 results, which are cut and not rounded
    SIM_CUBLAS_WRONG,     // "wrong": results of other operands
    SIM_CUBLAS_SPLITS,    // "splits": every algorithm splits k
    SIM_CUBLAS_NO_HANDLE, // "no_handle": it cannot be opened
    SIM_CUBLAS_FAILS,     // "fails": products cannot be launched
    SIM_CUBLAS_COUNT
} sim_cublas_t;
void sim_cublas_set(sim_cublas_t kind);
// Products so far, and objects (handles, descriptions, layouts, preferences) that were made and that still live.
typedef struct sim_cublas_counts {
    size_t products, made, live;
} sim_cublas_counts_t;
sim_cublas_counts_t sim_cublas_count(void);
status_t sim_cublas_load(cublas_library_t *out) STATUS_CHECKED;

#endif
