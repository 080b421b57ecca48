#include "kernels/sim/sim_device.h"

#include "kernels/sim/sim.h"
#include <stdlib.h>

#include "kernels/cuda/cuda_ops.h"

static status_t sim_choose_order(const char *name) {
    char *end;
    if (!*name || !strcmp(name, "forward")) {
        sim_set_order(SIM_FORWARD, 0);
        return STATUS_OK;
    }
    if (!strcmp(name, "reverse")) {
        sim_set_order(SIM_REVERSE, 0);
        return STATUS_OK;
    }
    uint64_t seed = strncmp(name, "shuffled:", 9) ? 0 : strtoull(name + 9, &end, 10);
    if (strncmp(name, "shuffled:", 9) || end == name + 9 || *end)
        FAIL(STATUS_INVALID, "there is no order 'sim:%s'; the known ones are forward, reverse and shuffled:SEED", name);
    sim_set_order(SIM_SHUFFLED, seed);
    return STATUS_OK;
}

static status_t sim_open(device_t *device) {
    TRY(sim_choose_order(device->kernels));
    cuda_state_t *state;
    TRY(ALLOCATE(&state, 1));
    status_t status = ALLOCATE(&state->fault, 1);
    if (status) free(state);
    if (status) PASS_ON(status);
    device->state = state;
    return STATUS_OK;
}

static void sim_close(device_t *device) {
    free(cuda_fault(device));
    free(device->state);
    device->state = NULL;
    sim_set_order(SIM_FORWARD, 0);
}

static status_t sim_allocate(device_t *device, size_t bytes, void **out) {
    (void)device;
    *out = NULL;
    if (posix_memalign(out, 256, bytes ? bytes : 256)) FAIL(STATUS_MEMORY, "cannot allocate %zu bytes", bytes);
    memset(*out, 0, bytes);
    return STATUS_OK;
}

static void sim_release(device_t *device, void *memory) {
    (void)device;
    free(memory);
}

static status_t sim_upload(device_t *device, void *to, const void *from, size_t bytes) {
    (void)device;
    if (bytes) memmove(to, from, bytes);
    return STATUS_OK;
}

static status_t sim_synchronize(device_t *device) {
    uint32_t fault = *cuda_fault(device); // a launch has ended when it returns
    *cuda_fault(device) = CUDA_FAULT_NONE;
    return cuda_fault_status(fault);
}

static status_t sim_download(device_t *device, void *to, const void *from, size_t bytes) {
    if (bytes) memmove(to, from, bytes);
    return sim_synchronize(device);
}

static status_t sim_zero(device_t *device, void *memory, size_t bytes) {
    (void)device;
    if (bytes) memset(memory, 0, bytes);
    return STATUS_OK;
}

static size_t sim_packed_bytes(device_t *device, matrix_t weight) {
    (void)device, (void)weight;
    return 0;
}

const device_table_t device_sim_table = {
    .name = "sim",
    .host_memory = true,
    .open = sim_open,
    .close = sim_close,
    .allocate = sim_allocate,
    .release = sim_release,
    .upload = sim_upload,
    .download = sim_download,
    .zero = sim_zero,
    .synchronize = sim_synchronize,
    .packed_bytes = sim_packed_bytes,
    .linear = sim_linear,
    .linear_backward = sim_linear_backward,
    .embedding = sim_embedding,
    .embedding_backward = sim_embedding_backward,
    .rmsnorm = sim_rmsnorm,
    .rmsnorm_backward = sim_rmsnorm_backward,
    .add = sim_add,
    .token_logprobs = sim_token_logprobs,
    .token_logprobs_backward = sim_token_logprobs_backward,
    .token_sample = sim_token_sample,
};
