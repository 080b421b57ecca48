#define VECTOR_AVX512
#include "kernels/cpu/head_impl.h"
