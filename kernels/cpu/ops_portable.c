#define VECTOR_PORTABLE
#include "kernels/cpu/ops_impl.h"
