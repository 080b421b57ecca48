#define VECTOR_PORTABLE
#include "kernels/cpu/head_impl.h"
