#define VECTOR_AVX512
#include "kernels/cpu/ops_impl.h"
