#define VECTOR_AVX2
#include "kernels/cpu/head_impl.h"
