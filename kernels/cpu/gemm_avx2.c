#define VECTOR_AVX2
#define GEMM_SET_NAME "avx2"
// 6 rows by 16 columns: 12 sums, 2 halves of B and one broadcast in 16 registers.
#define MICRO_ROWS    6
#define MICRO_VECTORS 1
#include "kernels/cpu/gemm_impl.h"
