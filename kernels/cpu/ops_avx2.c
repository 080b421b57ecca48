#define VECTOR_AVX2
#include "kernels/cpu/ops_impl.h"
