// A problem's twin in the memory of a device, so that an op's description is the same for every device: it sees a
// problem_t whose pointers are the device's.
#include "tests/ops/parts/ops.h"

#include <stdlib.h>
#include <string.h>

typedef status_t (*mirror_copy_t)(device_t *device, void **twin, void *origin, size_t bytes);

static status_t mirror_up(device_t *device, void **twin, void *origin, size_t bytes) {
    *twin = NULL;
    TRY(device->table->allocate(device, bytes, twin));
    return device->table->upload(device, *twin, origin, bytes);
}
static status_t mirror_down(device_t *device, void **twin, void *origin, size_t bytes) {
    return *twin ? device->table->download(device, origin, *twin, bytes) : STATUS_OK;
}
static status_t mirror_drop(device_t *device, void **twin, void *origin, size_t bytes) {
    (void)origin, (void)bytes;
    if (*twin) device->table->release(device, *twin);
    *twin = NULL;
    return STATUS_OK;
}

static size_t half_bytes(const op_tensor_t *t) {
    return (size_t)(t->rows * t->stride) * sizeof(uint16_t);
}

// Does the same with everything that a problem has in memory.
static status_t mirror_each(problem_t *twin, problem_t *origin, device_t *device, mirror_copy_t copy) {
    for (int i = 0; i < origin->tensors; i++) {
        op_tensor_t *to = &twin->tensor[i], *from = &origin->tensor[i];
        size_t bytes = (size_t)(from->rows * from->stride) * sizeof(float);
        TRY(copy(device, (void **)&to->value, from->value, bytes));
        TRY(copy(device, (void **)&to->gradient, from->gradient, bytes));
        TRY(copy(device, (void **)&to->sum, from->sum, (size_t)from->rows * (size_t)from->columns * sizeof(int64_t)));
        TRY(copy(device, (void **)&to->flags, from->flags, sizeof(*from->flags)));
        if (from->half) TRY(copy(device, (void **)&to->half, from->half, half_bytes(from)));
    }
    for (int i = 0; i < origin->arrays; i++) {
        op_array_t *to = &twin->array[i], *from = &origin->array[i];
        TRY(copy(device, (void **)&to->value, from->value,
                 (size_t)from->rows * (size_t)from->columns * sizeof(int32_t)));
    }
    return STATUS_OK;
}

// The CPU's memory is the host's by definition; another device whose memory is the host's, too, is used as if it were
// not.
bool mirror_wanted(const device_t *device) {
    return !device->table->host_memory || strcmp(device->table->name, "cpu") != 0;
}

status_t mirror_open(problem_t *twin, problem_t *origin, device_t *device) {
    *twin = *origin;
    twin->origin = origin;
    twin->device = device;
    twin->packed = NULL;
    for (int i = 0; i < OP_TENSORS; i++) {
        op_tensor_t *t = &twin->tensor[i];
        t->value = t->gradient = NULL;
        t->sum = NULL;
        t->flags = NULL;
        t->half = NULL;
    }
    for (int i = 0; i < OP_ARRAYS; i++) twin->array[i].value = NULL;
    status_t status = mirror_each(twin, origin, device, mirror_up);
    if (status) mirror_close(twin);
    return status;
}

// A tensor turns out to lie as bf16 when the op first asks for its matrix.
uint16_t *mirror_half(problem_t *twin, int tensor) {
    op_tensor_t *t = &twin->origin->tensor[tensor];
    void *half = NULL;
    (void)problem_matrix(twin->origin, tensor);
    status_t status = mirror_up(twin->device, &half, t->half, half_bytes(t));
    if (!status) return half;
    fprintf(stderr, "%s: %s\n", twin->device->table->name, status_message(status));
    abort();
}

status_t mirror_fetch(problem_t *twin) {
    TRY(mirror_each(twin, twin->origin, twin->device, mirror_down));
    return twin->device->table->synchronize(twin->device);
}

void mirror_close(problem_t *twin) {
    if (!twin->device) return;
    status_free(mirror_each(twin, twin->origin, twin->device, mirror_drop));
    if (twin->packed) twin->device->table->release(twin->device, twin->packed);
    *twin = (problem_t){0};
}
