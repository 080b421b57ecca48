#include "kernels/device.h"

#include "kernels/ledger.h"
#include "kernels/streams.h"

#include <stdlib.h>
#include <string.h>

// NULL in a program that is not linked with them.
#pragma weak device_cuda_table
#pragma weak device_sim_table

enum { WORKSPACE_ALIGNMENT = 64, DEVICE_MAX_THREADS = 4096 };

size_t dtype_bytes(dtype_t dtype) {
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_I32:
        return 4;
    case DTYPE_BF16:
    case DTYPE_F16:
        return 2;
    case DTYPE_I64:
        return 8;
    case DTYPE_U8:
        return 1;
    case DTYPE_COUNT:
        break;
    }
    return 0;
}

const char *dtype_name(dtype_t dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return "f32";
    case DTYPE_BF16:
        return "bf16";
    case DTYPE_F16:
        return "f16";
    case DTYPE_I32:
        return "i32";
    case DTYPE_I64:
        return "i64";
    case DTYPE_U8:
        return "u8";
    case DTYPE_COUNT:
        break;
    }
    return "unknown";
}

// Splits "cpu:avx2" into the member's table and the name of a kernel set ("" = the best one).
static status_t device_find(const char *name, const device_table_t **table, const char **kernels) {
    const device_table_t *const known[] = {&device_cpu_table, &device_cuda_table, &device_sim_table};
    static const char *const names[] = {"cpu", "cuda", "sim"};
    size_t length = strcspn(name, ":");
    *kernels = name[length] == ':' ? name + length + 1 : "";
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strlen(names[i]) != length || strncmp(names[i], name, length) != 0) continue;
        *table = known[i];
        if (*table) return STATUS_OK;
        FAIL(STATUS_UNAVAILABLE, "this build of Poise has no '%s' kernels; use the device 'cpu'", names[i]);
    }
    FAIL(STATUS_INVALID,
         "there is no device '%s'; the known ones are cpu, cpu:portable, cpu:avx2, cpu:avx512, cuda and sim", name);
}

// The first op that a table lacks, or NULL. A member may come without pack_weight.
static const char *missing_op(const device_table_t *table) {
#define OP(name)                                                                                                       \
    { #name, offsetof(device_table_t, name) }
    static const struct {
        const char *name;
        size_t at;
    } ops[] = {OP(linear),
               OP(linear_backward),
               OP(embedding),
               OP(embedding_backward),
               OP(gather_rows),
               OP(gather_rows_backward),
               OP(scatter_rows),
               OP(scatter_rows_backward),
               OP(pool_rows),
               OP(pool_rows_backward),
               OP(rmsnorm),
               OP(rmsnorm_backward),
               OP(layernorm),
               OP(layernorm_backward),
               OP(rope_table),
               OP(rope),
               OP(attention),
               OP(attention_backward),
               OP(activation),
               OP(activation_backward),
               OP(add),
               OP(token_logprobs),
               OP(token_logprobs_backward),
               OP(token_sample),
               OP(gradient_norm),
               OP(adamw)};
#undef OP
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
        void (*function)(void);
        memcpy(&function, (const char *)table + ops[i].at, sizeof(function));
        if (!function) return ops[i].name;
    }
    return NULL;
}

bool device_known(const char *name) {
    const device_table_t *table;
    const char *kernels;
    status_t status = device_find(name, &table, &kernels);
    status_free(status);
    return !status;
}

status_t device_list(const char *name, char *out, size_t bytes) {
    const device_table_t *table;
    const char *kernels;
    out[0] = 0;
    TRY(device_find(name, &table, &kernels));
    return table->streams ? table->streams->list(out, bytes) : STATUS_OK;
}

status_t device_open_table(const device_table_t *table, const char *kernels, int threads, device_t **out) {
    *out = NULL;
    if (threads < 1 || threads > DEVICE_MAX_THREADS)
        FAIL(STATUS_INVALID, "the number of threads must be 1 to %d, not %d", DEVICE_MAX_THREADS, threads);
    device_t *device;
    TRY(ALLOCATE(&device, 1));
    device->table = table;
    device->kernels = kernels;
    status_t status = ledger_open(device);
    if (!status) status = threads_open(threads, &device->threads);
    if (!status) status = table->open(device);
    if (status) {
        ledger_close(device);
        threads_close(device->threads);
        free(device);
        PASS_ON(status);
    }
    *out = device;
    return STATUS_OK;
}

status_t device_open(const char *name, int threads, device_t **out) {
    *out = NULL;
    const device_table_t *table;
    const char *kernels;
    TRY(device_find(name, &table, &kernels));
    const char *missing = missing_op(table);
    if (missing)
        FAIL(STATUS_UNAVAILABLE, "the device '%s' has no kernel for the op %s; use the device 'cpu'", name, missing);
    return device_open_table(table, kernels, threads, out);
}

void device_close(device_t *device) {
    if (!device) return;
    ledger_give(device, device->workspace);
    device->table->close(device);
    ledger_close(device);
    threads_close(device->threads);
    free(device);
}

// A dry run that finds a larger need drops the present workspace, so that the next real op allocates the full size at
// once: workspace_bytes is what a real allocation has or, with workspace == NULL, what the next one shall have.
status_t device_workspace(device_t *device, size_t bytes, void **out) {
    size_t rounded = (bytes + WORKSPACE_ALIGNMENT - 1) / WORKSPACE_ALIGNMENT * WORKSPACE_ALIGNMENT;
    *out = NULL;
    if (rounded < bytes) FAIL(STATUS_MEMORY, "an op asks for %zu bytes of workspace; use a smaller batch", bytes);
    if (rounded == 0) rounded = WORKSPACE_ALIGNMENT;
    if (device->workspace && rounded > device->workspace_bytes) {
        ledger_give(device, device->workspace);
        device->workspace = NULL;
    }
    if (rounded > device->workspace_bytes) device->workspace_bytes = rounded;
    if (device->measuring) return STATUS_OK;
    if (!device->workspace) {
        status_t status = ledger_take(device, LEDGER_WORKSPACE, device->workspace_bytes, &device->workspace);
        if (status) {
            device->workspace = NULL;
            device->workspace_bytes = 0;
            return status_context(status, "workspace of the device '%s'", device->table->name);
        }
    }
    *out = device->workspace;
    return STATUS_OK;
}
