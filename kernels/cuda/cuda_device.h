// What the ops of the CUDA member know of their device: kernels/cuda/cuda_device.c makes it. The host code and the .cu
// files are compiled twice, for a GPU and for the simulator; CUDA_NAME gives each its prefix, cuda_ or sim_.
#ifndef KERNELS_CUDA_CUDA_DEVICE_H
#define KERNELS_CUDA_CUDA_DEVICE_H

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/check.h"

#if defined(__CUDACC__) || defined(POISE_CUDA_HOST) // the host's C files are compiled for a GPU with the latter
#define CUDA_NAME(name) cuda_##name
#else
#define CUDA_NAME(name) sim_##name
#endif

// Where an index was out of range. A kernel that meets one writes the op's number into *fault (any one of several wins)
// and neither reads nor writes through the index; download and synchronize look at it and name the op.
typedef enum cuda_fault {
    CUDA_FAULT_NONE,
    CUDA_FAULT_EMBEDDING,
    CUDA_FAULT_GATHER,
    CUDA_FAULT_SCATTER,
    CUDA_FAULT_POOL,
    CUDA_FAULT_ATTENTION,
    CUDA_FAULT_LOGPROBS,
    CUDA_FAULT_SAMPLE,
    CUDA_FAULT_ROPE,
    CUDA_FAULT_DRAW, // no index: the logits of a row of token_sample are not finite
    CUDA_FAULT_COUNT
} cuda_fault_t;

// The failure that a fault word tells of.
status_t cuda_fault_status(uint32_t fault) STATUS_CHECKED;

typedef struct cuda_state {
    void *stream;                 // every op launches here, in order
    bool busy;                    // something was put there since it was last waited for
    uint32_t *fault;              // device memory, one word
    struct cuda_library *library; // NULL: all products are our own (kernels/cuda/cuda_library.h)
    char note[512];               // which products run, and why
} cuda_state_t;

extern const struct device_streams CUDA_NAME(streams); // cuda_streams.c
// An upload in the stream of copies (kernels/streams.h).
status_t CUDA_NAME(upload_beside)(device_t *device, void *to, const void *from, size_t bytes) STATUS_CHECKED;
// How many GPUs this process sees; none is STATUS_UNAVAILABLE, with the reason.
status_t CUDA_NAME(count)(int *count) STATUS_CHECKED;
// Whether this program's kernels run on that compute capability: code for 8.0 runs on 8.6, not on 9.0.
bool CUDA_NAME(built_for)(int major, int minor);

// For work to be put there.
static inline void *cuda_stream(const device_t *device) {
    cuda_state_t *state = (cuda_state_t *)device->state;
    state->busy = true;
    return state->stream;
}
static inline uint32_t *cuda_fault(const device_t *device) {
    return ((const cuda_state_t *)device->state)->fault;
}

#ifdef __cplusplus
}
#endif
#endif
