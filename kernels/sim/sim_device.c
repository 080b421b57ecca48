#include "kernels/sim/sim_device.h"

#include "kernels/check.h"
#include "kernels/sim/sim.h"
#include <stdlib.h>

#define CUDA_NAME(name) sim_##name
#include "kernels/cuda/launchers.h"

static status_t sim_open(device_t *device) {
    const char *name = device->kernels;
    char *end;
    device->state = NULL;
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

static void sim_close(device_t *device) {
    (void)device;
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

static status_t sim_copy(device_t *device, void *to, const void *from, size_t bytes) {
    (void)device;
    if (bytes) memmove(to, from, bytes);
    return STATUS_OK;
}

static status_t sim_zero(device_t *device, void *memory, size_t bytes) {
    (void)device;
    if (bytes) memset(memory, 0, bytes);
    return STATUS_OK;
}

static status_t sim_synchronize(device_t *device) {
    (void)device; // a launch has ended when it returns
    return STATUS_OK;
}

static status_t sim_rmsnorm(device_t *device, const rmsnorm_args_t *args) {
    TRY(check_rmsnorm(args));
    if (device->measuring) return STATUS_OK;
    return sim_rmsnorm_launch(args, NULL);
}

static status_t sim_rmsnorm_backward(device_t *device, const rmsnorm_args_t *args,
                                     const rmsnorm_gradients_t *gradients) {
    TRY(check_rmsnorm_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    return sim_rmsnorm_backward_launch(args, gradients, NULL);
}

static status_t sim_embedding(device_t *device, const embedding_args_t *args) {
    TRY(check_embedding(args));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("embedding", "token", args->token, args->y.rows, 0, args->table.rows));
    return sim_embedding_launch(args, NULL);
}

static status_t sim_embedding_backward(device_t *device, const embedding_args_t *args,
                                       const embedding_gradients_t *gradients) {
    TRY(check_embedding_backward(args, gradients));
    if (device->measuring) return STATUS_OK;
    TRY(check_indices("embedding backward", "token", args->token, args->y.rows, 0, args->table.rows));
    return sim_embedding_backward_launch(args, gradients, NULL);
}

static status_t sim_add(device_t *device, const add_args_t *args) {
    TRY(check_add(args));
    if (device->measuring) return STATUS_OK;
    return sim_add_launch(args, NULL);
}

static status_t sim_linear(device_t *device, const linear_args_t *args) {
    int m = args->x.rows, n = args->weight.rows, k = args->x.columns;
    TRY(check_values("linear", "x", &args->x, m, k));
    TRY(check_values("linear", "weight", &args->weight, n, k));
    TRY(check_values("linear", "y", &args->y, m, n));
    if (args->lora_a.data) FAIL(STATUS_UNAVAILABLE, "linear: the simulator has no kernel for an adapter");
    if (device->measuring) return STATUS_OK;
    return sim_linear_launch(args, NULL);
}

static size_t sim_packed_bytes(device_t *device, matrix_t weight) {
    (void)device, (void)weight;
    return 0;
}

const device_table_t device_sim_table = {
    .name = "sim",
    .open = sim_open,
    .close = sim_close,
    .allocate = sim_allocate,
    .release = sim_release,
    .upload = sim_copy,
    .download = sim_copy,
    .zero = sim_zero,
    .synchronize = sim_synchronize,
    .packed_bytes = sim_packed_bytes,
    .linear = sim_linear,
    .embedding = sim_embedding,
    .embedding_backward = sim_embedding_backward,
    .rmsnorm = sim_rmsnorm,
    .rmsnorm_backward = sim_rmsnorm_backward,
    .add = sim_add,
};
