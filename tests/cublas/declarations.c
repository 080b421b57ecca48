// What kernels/cuda/cublas.h declares is what cublasLt.h of a toolkit declares: compiled where there is one, never run.
#include "kernels/cuda/cublas.h"

#include <cublasLt.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #ours)
SAME(CUBLAS_SUCCESS, CUBLAS_STATUS_SUCCESS);
SAME(CUBLAS_NOT_INITIALIZED, CUBLAS_STATUS_NOT_INITIALIZED);
SAME(CUBLAS_ALLOC_FAILED, CUBLAS_STATUS_ALLOC_FAILED);
SAME(CUBLAS_INVALID_VALUE, CUBLAS_STATUS_INVALID_VALUE);
SAME(CUBLAS_EXECUTION_FAILED, CUBLAS_STATUS_EXECUTION_FAILED);
SAME(CUBLAS_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(CUBLAS_F32, CUDA_R_32F);
SAME(CUBLAS_BF16, CUDA_R_16BF);
SAME(CUBLAS_SUMS_F32, CUBLAS_COMPUTE_32F);
SAME(CUBLAS_TRANSPOSED, CUBLAS_OP_T);
SAME(CUBLAS_DESCRIPTION_A, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(CUBLAS_LAYOUT_ROWS, CUBLASLT_MATRIX_LAYOUT_ROWS);
SAME(CUBLAS_LAYOUT_COLUMNS, CUBLASLT_MATRIX_LAYOUT_COLS);
SAME(CUBLAS_LAYOUT_STRIDE, CUBLASLT_MATRIX_LAYOUT_LD);
SAME(CUBLAS_PREFER_WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(CUBLAS_PREFER_REDUCTIONS, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(CUBLAS_PREFER_ALIGNMENT_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(CUBLAS_PREFER_ALIGNMENT_A + 1, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
SAME(CUBLAS_PREFER_ALIGNMENT_A + 2, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
SAME(CUBLAS_PREFER_ALIGNMENT_A + 3, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(CUBLAS_CONFIG_ID, CUBLASLT_ALGO_CONFIG_ID);
SAME(CUBLAS_CONFIG_TILE, CUBLASLT_ALGO_CONFIG_TILE_ID);
SAME(CUBLAS_CONFIG_SPLITS, CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
SAME(CUBLAS_CONFIG_REDUCTION, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
SAME(CUBLAS_CONFIG_SWIZZLE, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING);
SAME(CUBLAS_CONFIG_OPTION, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION);
SAME(CUBLAS_CONFIG_STAGES, CUBLASLT_ALGO_CONFIG_STAGES_ID);
SAME(CUBLAS_CONFIG_INNER, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID);
SAME(CUBLAS_CONFIG_CLUSTER, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);
SAME(0, CUBLASLT_REDUCTION_SCHEME_NONE);
SAME(sizeof(int), sizeof(cublasStatus_t));
SAME(sizeof(int), sizeof(cudaDataType));
SAME(sizeof(int), sizeof(cublasComputeType_t));
SAME(sizeof(int), sizeof(cublasOperation_t));
SAME(sizeof(int), sizeof(cublasLtMatmulDescAttributes_t));
SAME(sizeof(int), sizeof(cublasLtMatrixLayoutAttribute_t));
SAME(sizeof(int), sizeof(cublasLtMatmulPreferenceAttributes_t));
SAME(sizeof(int), sizeof(cublasLtMatmulAlgoConfigAttributes_t));
SAME(sizeof(void *), sizeof(cublasLtHandle_t));
SAME(sizeof(cublas_algorithm_t), sizeof(cublasLtMatmulAlgo_t));
SAME(sizeof(cublas_choice_t), sizeof(cublasLtMatmulHeuristicResult_t));
SAME(offsetof(cublas_choice_t, algorithm), offsetof(cublasLtMatmulHeuristicResult_t, algo));
SAME(offsetof(cublas_choice_t, workspace), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
SAME(offsetof(cublas_choice_t, state), offsetof(cublasLtMatmulHeuristicResult_t, state));
SAME(offsetof(cublas_choice_t, waves), offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));

// Functions: the types of cuBLASLt's own, written out. Where ours has int or void *, theirs has an enum or a pointer.
#define TAKES(function, ...)                                                                                           \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&function), cublasStatus_t (*)(__VA_ARGS__)), #function)
_Static_assert(__builtin_types_compatible_p(__typeof__(&cublasLtGetVersion), size_t (*)(void)), "version");
_Static_assert(__builtin_types_compatible_p(__typeof__(&cublasLtGetStatusString), const char *(*)(cublasStatus_t)),
               "string");
TAKES(cublasLtCreate, cublasLtHandle_t *);
TAKES(cublasLtDestroy, cublasLtHandle_t);
TAKES(cublasLtMatmulDescCreate, cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType_t);
TAKES(cublasLtMatmulDescDestroy, cublasLtMatmulDesc_t);
TAKES(cublasLtMatmulDescSetAttribute, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t);
TAKES(cublasLtMatrixLayoutCreate, cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t, int64_t);
TAKES(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayout_t);
TAKES(cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t, const void *, size_t);
TAKES(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreference_t *);
TAKES(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreference_t);
TAKES(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
      const void *, size_t);
TAKES(cublasLtMatmulAlgoGetHeuristic, cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
      cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
      cublasLtMatmulHeuristicResult_t *, int *);
TAKES(cublasLtMatmulAlgoCheck, cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
      cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, cublasLtMatmulHeuristicResult_t *);
TAKES(cublasLtMatmulAlgoConfigGetAttribute, const cublasLtMatmulAlgo_t *, cublasLtMatmulAlgoConfigAttributes_t, void *,
      size_t, size_t *);
TAKES(cublasLtMatmul, cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t,
      const void *, cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t, void *,
      cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t);
