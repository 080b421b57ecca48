// What Poise uses of cuBLASLt, declared by ourselves: the library is found at run time (kernels/cuda/cuda_library.h),
// so that one program runs on machines with and without it. tests/cublas/declarations.c checks these against cublasLt.h
// where a toolkit is found. Matrices are column-major there: a row-major [rows, columns] is a [columns, rows] of it.
#ifndef KERNELS_CUDA_CUBLAS_H
#define KERNELS_CUDA_CUBLAS_H

#include <stddef.h>
#include <stdint.h>

enum {
    CUBLAS_SUCCESS = 0,
    CUBLAS_NOT_INITIALIZED = 1,
    CUBLAS_ALLOC_FAILED = 3,
    CUBLAS_INVALID_VALUE = 7,
    CUBLAS_EXECUTION_FAILED = 13,
    CUBLAS_NOT_SUPPORTED = 15
};
enum { CUBLAS_F32 = 0, CUBLAS_BF16 = 14 };
enum { CUBLAS_SUMS_F32 = 68 };     // the compute type: fp32 sums, no TF32
enum { CUBLAS_TRANSPOSED = 1 };    // an operand's form
enum { CUBLAS_DESCRIPTION_A = 3 }; // the form of the first operand
enum { CUBLAS_LAYOUT_ROWS = 2, CUBLAS_LAYOUT_COLUMNS = 3, CUBLAS_LAYOUT_STRIDE = 4 };
enum {
    CUBLAS_PREFER_WORKSPACE = 1,
    CUBLAS_PREFER_REDUCTIONS = 3,
    CUBLAS_PREFER_ALIGNMENT_A = 5, // and 6, 7, 8 for B, C and D
};
// What an algorithm is made of: numbers, of which SPLITS and REDUCTION say how k is cut.
enum {
    CUBLAS_CONFIG_ID = 0,
    CUBLAS_CONFIG_TILE = 1,
    CUBLAS_CONFIG_SPLITS = 2,
    CUBLAS_CONFIG_REDUCTION = 3,
    CUBLAS_CONFIG_SWIZZLE = 4,
    CUBLAS_CONFIG_OPTION = 5,
    CUBLAS_CONFIG_STAGES = 6,
    CUBLAS_CONFIG_INNER = 7,   // 16 bits
    CUBLAS_CONFIG_CLUSTER = 8, // 16 bits
    CUBLAS_CONFIG_COUNT
};

typedef struct cublas_algorithm {
    uint64_t data[8];
} cublas_algorithm_t;
typedef struct cublas_choice {
    cublas_algorithm_t algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} cublas_choice_t;

typedef struct cublas_library {
    size_t (*get_version)(void);
    const char *(*get_status_string)(int status);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*description_create)(void **out, int compute, int scale);
    int (*description_destroy)(void *description);
    int (*description_set)(void *description, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **out, int type, uint64_t rows, uint64_t columns, int64_t stride);
    int (*layout_destroy)(void *layout);
    int (*layout_set)(void *layout, int attribute, const void *value, size_t bytes);
    int (*preference_create)(void **out);
    int (*preference_destroy)(void *preference);
    int (*preference_set)(void *preference, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *description, void *a, void *b, void *c, void *d, void *preference, int most,
                     cublas_choice_t *out, int *count);
    int (*check)(void *handle, void *description, void *a, void *b, void *c, void *d,
                 const cublas_algorithm_t *algorithm, cublas_choice_t *result);
    int (*config_get)(const cublas_algorithm_t *algorithm, int attribute, void *out, size_t bytes, size_t *written);
    int (*matmul)(void *handle, void *description, const void *alpha, const void *a, void *a_layout, const void *b,
                  void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                  const cublas_algorithm_t *algorithm, void *workspace, size_t workspace_bytes, void *stream);
} cublas_library_t;

#endif
