#ifndef COMMON_COMM_NCCL_LOAD_H
#define COMMON_COMM_NCCL_LOAD_H

#include "kernels/base/status.h"
#include "kernels/cuda/nccl.h"

// Finds libnccl.so.2 (POISE_NCCL names another file) and its functions. *handle goes to nccl_unload.
status_t nccl_load(nccl_library_t *out, void **handle) STATUS_CHECKED;
void nccl_unload(void *handle);

#endif
