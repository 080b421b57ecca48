#define VECTOR_AVX512
#define GEMM_SET_NAME "avx512"
// 6 rows by 64 columns: 24 sums, 4 columns of B and one broadcast in 32 registers.
#define MICRO_ROWS    6
#define MICRO_VECTORS 4
#include "kernels/cpu/gemm_impl.h"
