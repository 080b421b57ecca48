// Part of every build: the simulator and the GPU tell of the same faults.
#include "kernels/cuda/cuda_device.h"

status_t cuda_fault_status(uint32_t fault) {
    static const char *const op[CUDA_FAULT_COUNT] = {
        [CUDA_FAULT_EMBEDDING] = "embedding",  [CUDA_FAULT_GATHER] = "gather_rows",
        [CUDA_FAULT_SCATTER] = "scatter_rows", [CUDA_FAULT_POOL] = "pool_rows",
        [CUDA_FAULT_ATTENTION] = "attention",  [CUDA_FAULT_LOGPROBS] = "token_logprobs",
        [CUDA_FAULT_SAMPLE] = "token_sample",  [CUDA_FAULT_ROPE] = "rope_table",
    };
    if (fault == CUDA_FAULT_NONE) return STATUS_OK;
    if (fault == CUDA_FAULT_DRAW)
        FAIL(STATUS_FAILED,
             "token_sample: the logits of a row are not finite, so no token can be drawn; the weights or "
             "the hidden states are broken (a learning rate that is too large does this)");
    FAIL(STATUS_INVALID, "%s: an index is out of range; the results since the last synchronisation are not to be used",
         fault < CUDA_FAULT_COUNT ? op[fault] : "an op");
}
