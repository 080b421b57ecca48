// The CUDA member's host side: memory, copies, waiting, and the table of ops. Compiled twice: with POISE_CUDA_HOST
// against the CUDA runtime, and for the simulator against what kernels/sim has under the runtime's names.
//
// One stream carries all that must happen in the order of the calls: ops, copies and sets. A second one carries uploads
// into memory that nothing under way uses; the first goes on behind each of them. Uploads go through pinned memory in
// SLOTS parts, each stream through its own: the caller's memory is free again at once, and nothing waits until the
// parts are used up.
#include "kernels/cuda/cuda_library.h"
#include "kernels/cuda/cuda_ops.h"

#include <stdlib.h>
#include <string.h>
#ifdef POISE_CUDA_HOST
#include <cuda_runtime_api.h>
#define CUDA_MEMBER "cuda"
#define CUDA_TABLE  device_cuda_table
#else
#include "kernels/sim/sim_runtime.h"
#define CUDA_MEMBER "sim"
#define CUDA_TABLE  device_sim_table
#endif

enum { SLOTS = 4, SLOT_BYTES = 1 << 19, NAME_BYTES = 32 };

// A stream with the pinned memory that its uploads go through.
typedef struct upload_stream {
    cudaStream_t stream;
    char *staging; // SLOTS parts
    cudaEvent_t read[SLOTS];
    bool recorded[SLOTS];
    int slot; // the part that is being filled
    size_t filled;
} upload_stream_t;

typedef struct cuda_host {
    cuda_state_t state; // first: what the ops see
    int ordinal;
    char name[NAME_BYTES];       // "sm_90"
    upload_stream_t ops, copies; // the two streams
    cudaEvent_t copied;          // the last upload beside the ops
    uint32_t *fault;             // pinned: where the device's fault word is read to
} cuda_host_t;

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) FAIL(STATUS_FAILED, CUDA_MEMBER ": %s", cudaGetErrorString(error_));                \
    } while (0)

static cuda_host_t *host_of(const device_t *device) {
    return device->state;
}

// For work to be put there.
static cudaStream_t ops_of(cuda_host_t *host) {
    host->state.busy = true;
    return host->ops.stream;
}

// ---- opening ----

#ifdef POISE_CUDA_HOST
// What follows "cuda:" is the number of the GPU.
static status_t choose(const char *text, int *ordinal) {
    char *end;
    int count = 0;
    long number = *text ? strtol(text, &end, 10) : 0;
    if (*text && (*end || end == text)) FAIL(STATUS_INVALID, "there is no device 'cuda:%s'; a GPU has a number", text);
    TRY(CUDA_NAME(count)(&count));
    if (number < 0 || number >= count)
        FAIL(STATUS_UNAVAILABLE, "there is no GPU %ld; this process sees %d of them, numbered from 0", number, count);
    *ordinal = (int)number;
    return STATUS_OK;
}

static status_t name_kernels(cuda_host_t *host) {
    int major = 0, minor = 0;
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, host->ordinal));
    CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, host->ordinal));
    if (major < 8)
        FAIL(STATUS_UNAVAILABLE, "GPU %d has compute capability %d.%d; the kernels need 8.0 or later", host->ordinal,
             major, minor);
    if (!CUDA_NAME(built_for)(major, minor))
        FAIL(STATUS_UNAVAILABLE,
             "GPU %d has compute capability %d.%d, and this build has kernels for " POISE_CUDA_BUILT_FOR
             " alone; build it with -DPOISE_CUDA_ARCHITECTURES=%d%d",
             host->ordinal, major, minor, major, minor);
    snprintf(host->name, sizeof(host->name), "sm_%d%d", major, minor);
    return STATUS_OK;
}
#else
// What follows "sim:" is the order in which threads and blocks take turns.
static status_t choose(const char *text, int *ordinal) {
    char *end = NULL;
    *ordinal = 0;
    if (!*text || !strcmp(text, "forward")) {
        sim_set_order(SIM_FORWARD, 0);
        return STATUS_OK;
    }
    if (!strcmp(text, "reverse")) {
        sim_set_order(SIM_REVERSE, 0);
        return STATUS_OK;
    }
    uint64_t seed = strncmp(text, "shuffled:", 9) ? 0 : strtoull(text + 9, &end, 10);
    if (!end || end == text + 9 || *end)
        FAIL(STATUS_INVALID, "there is no order 'sim:%s'; the known ones are forward, reverse and shuffled:SEED", text);
    sim_set_order(SIM_SHUFFLED, seed);
    return STATUS_OK;
}

static status_t name_kernels(cuda_host_t *host) {
    snprintf(host->name, sizeof(host->name), "sim");
    return STATUS_OK;
}
#endif

static void upload_stream_close(upload_stream_t *uploads) {
    if (uploads->stream) (void)cudaStreamSynchronize(uploads->stream);
    (void)cudaFreeHost(uploads->staging);
    for (int i = 0; i < SLOTS; i++)
        if (uploads->read[i]) (void)cudaEventDestroy(uploads->read[i]);
    if (uploads->stream) (void)cudaStreamDestroy(uploads->stream);
}

static status_t upload_stream_open(upload_stream_t *uploads) {
    void *staging = NULL;
    CUDA_TRY(cudaStreamCreateWithFlags(&uploads->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaMallocHost(&staging, (size_t)SLOTS * SLOT_BYTES));
    uploads->staging = staging;
    for (int i = 0; i < SLOTS; i++) CUDA_TRY(cudaEventCreateWithFlags(&uploads->read[i], cudaEventDisableTiming));
    return STATUS_OK;
}

static void host_close(cuda_host_t *host) {
    if (host->ops.stream) (void)cudaStreamSynchronize(host->ops.stream);
    (void)cudaFree(host->state.fault);
    (void)cudaFreeHost(host->fault);
    if (host->copied) (void)cudaEventDestroy(host->copied);
    upload_stream_close(&host->copies);
    upload_stream_close(&host->ops);
    free(host);
}

static status_t host_open(cuda_host_t *host, const char *kernels) {
    void *pinned = NULL, *fault = NULL;
    TRY(choose(kernels, &host->ordinal));
    CUDA_TRY(cudaSetDevice(host->ordinal));
    TRY(name_kernels(host));
    TRY(upload_stream_open(&host->ops));
    TRY(upload_stream_open(&host->copies));
    CUDA_TRY(cudaEventCreateWithFlags(&host->copied, cudaEventDisableTiming));
    host->state.stream = host->ops.stream;
    CUDA_TRY(cudaMalloc(&fault, sizeof(*host->state.fault)));
    host->state.fault = fault;
    CUDA_TRY(cudaMemsetAsync(fault, 0, sizeof(*host->state.fault), ops_of(host)));
    CUDA_TRY(cudaMallocHost(&pinned, sizeof(*host->fault)));
    host->fault = pinned;
    return STATUS_OK;
}

static void cuda_device_close(device_t *device) {
    if (host_of(device)->ops.stream) (void)cudaStreamSynchronize(host_of(device)->ops.stream);
    CUDA_NAME(library_close)(device);
    host_close(host_of(device));
    device->state = NULL;
}

static status_t cuda_device_open(device_t *device) {
    cuda_host_t *host;
    TRY(ALLOCATE(&host, 1));
    status_t status = host_open(host, device->kernels);
    if (status) {
        host_close(host);
        PASS_ON(status);
    }
    device->state = host;
    device->kernels = host->name;
    status = CUDA_NAME(library_open)(device);
    if (status) cuda_device_close(device);
    return status;
}

// ---- memory and copies; every call may come from another thread than the last one ----

static status_t cuda_device_enter(device_t *device) {
    CUDA_TRY(cudaSetDevice(host_of(device)->ordinal));
    return STATUS_OK;
}

static status_t cuda_device_zero(device_t *device, void *memory, size_t bytes) {
    TRY(cuda_device_enter(device));
    if (bytes) CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, ops_of(host_of(device))));
    return STATUS_OK;
}

static void cuda_device_release(device_t *device, void *memory) {
    if (memory && cudaSetDevice(host_of(device)->ordinal) == cudaSuccess) (void)cudaFree(memory);
}

static status_t cuda_device_allocate(device_t *device, size_t bytes, void **out) {
    size_t left = 0, total = 0;
    *out = NULL;
    TRY(cuda_device_enter(device));
    cudaError_t error = cudaMalloc(out, bytes ? bytes : 1);
    if (error != cudaSuccess) {
        *out = NULL;
        (void)cudaGetLastError();                                // it is told here; the next launch has not failed
        if (error != cudaErrorMemoryAllocation) CUDA_TRY(error); // an earlier kernel's fault, which every call tells of
        (void)cudaMemGetInfo(&left, &total);
        FAIL(STATUS_MEMORY,
             "the device '" CUDA_MEMBER "' cannot allocate %zu bytes: %zu of its %zu are free; use a smaller batch, "
             "another recompute level or a larger GPU",
             bytes, left, total);
    }
    status_t status = cuda_device_zero(device, *out, bytes);
    if (status) {
        cuda_device_release(device, *out);
        *out = NULL;
    }
    return status;
}

// Room in pinned memory: waits only where the part to be filled has not been read yet.
static status_t stage(upload_stream_t *uploads, size_t bytes, char **out) {
    if (SLOT_BYTES - uploads->filled < bytes) {
        CUDA_TRY(cudaEventRecord(uploads->read[uploads->slot], uploads->stream));
        uploads->recorded[uploads->slot] = true;
        uploads->slot = (uploads->slot + 1) % SLOTS;
        uploads->filled = 0;
        if (uploads->recorded[uploads->slot]) CUDA_TRY(cudaEventSynchronize(uploads->read[uploads->slot]));
    }
    *out = uploads->staging + (size_t)uploads->slot * SLOT_BYTES + uploads->filled;
    uploads->filled += (bytes + 63) / 64 * 64;
    if (uploads->filled > SLOT_BYTES) uploads->filled = SLOT_BYTES;
    return STATUS_OK;
}

static status_t put_upload(upload_stream_t *uploads, void *to, const void *from, size_t bytes) {
    for (size_t done = 0, part; done < bytes; done += part) {
        char *staged = NULL;
        part = bytes - done < SLOT_BYTES ? bytes - done : SLOT_BYTES;
        TRY(stage(uploads, part, &staged));
        memcpy(staged, (const char *)from + done, part);
        CUDA_TRY(cudaMemcpyAsync((char *)to + done, staged, part, cudaMemcpyHostToDevice, uploads->stream));
    }
    return STATUS_OK;
}

static status_t cuda_device_upload(device_t *device, void *to, const void *from, size_t bytes) {
    TRY(cuda_device_enter(device));
    host_of(device)->state.busy = true;
    return put_upload(&host_of(device)->ops, to, from, bytes);
}

status_t CUDA_NAME(upload_beside)(device_t *device, void *to, const void *from, size_t bytes) {
    cuda_host_t *host = host_of(device);
    TRY(cuda_device_enter(device));
    TRY(put_upload(&host->copies, to, from, bytes));
    CUDA_TRY(cudaEventRecord(host->copied, host->copies.stream));
    CUDA_TRY(cudaStreamWaitEvent(ops_of(host), host->copied, 0));
    return STATUS_OK;
}

// Waits for what is under way and tells of an index that was out of range.
static status_t cuda_device_synchronize(device_t *device) {
    cuda_host_t *host = host_of(device);
    TRY(cuda_device_enter(device));
    CUDA_TRY(cudaMemcpyAsync(host->fault, host->state.fault, sizeof(*host->fault), cudaMemcpyDeviceToHost,
                             host->ops.stream));
    CUDA_TRY(cudaStreamSynchronize(host->ops.stream));
    host->state.busy = false;
    uint32_t fault = *host->fault;
    if (fault != CUDA_FAULT_NONE)
        CUDA_TRY(cudaMemsetAsync(host->state.fault, 0, sizeof(*host->state.fault), ops_of(host)));
    return cuda_fault_status(fault);
}

static status_t cuda_device_download(device_t *device, void *to, const void *from, size_t bytes) {
    TRY(cuda_device_enter(device));
    if (bytes) CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, ops_of(host_of(device))));
    return cuda_device_synchronize(device);
}

static size_t cuda_device_packed_bytes(device_t *device, matrix_t weight) {
    (void)device, (void)weight;
    return 0;
}

const device_table_t CUDA_TABLE = {
    .name = CUDA_MEMBER,
    .host_memory = false,
    .streams = &CUDA_NAME(streams),
    .open = cuda_device_open,
    .close = cuda_device_close,
    .allocate = cuda_device_allocate,
    .release = cuda_device_release,
    .upload = cuda_device_upload,
    .download = cuda_device_download,
    .zero = cuda_device_zero,
    .synchronize = cuda_device_synchronize,
    .packed_bytes = cuda_device_packed_bytes,
    .linear = CUDA_NAME(linear),
    .linear_backward = CUDA_NAME(linear_backward),
    .embedding = CUDA_NAME(embedding),
    .embedding_backward = CUDA_NAME(embedding_backward),
    .gather_rows = CUDA_NAME(gather_rows),
    .gather_rows_backward = CUDA_NAME(gather_rows_backward),
    .scatter_rows = CUDA_NAME(scatter_rows),
    .scatter_rows_backward = CUDA_NAME(scatter_rows_backward),
    .pool_rows = CUDA_NAME(pool_rows),
    .pool_rows_backward = CUDA_NAME(pool_rows_backward),
    .rmsnorm = CUDA_NAME(rmsnorm),
    .rmsnorm_backward = CUDA_NAME(rmsnorm_backward),
    .rope_table = CUDA_NAME(rope_table),
    .rope = CUDA_NAME(rope),
    .layernorm = CUDA_NAME(layernorm),
    .layernorm_backward = CUDA_NAME(layernorm_backward),
    .activation = CUDA_NAME(activation),
    .activation_backward = CUDA_NAME(activation_backward),
    .attention = CUDA_NAME(attention),
    .attention_backward = CUDA_NAME(attention_backward),
    .add = CUDA_NAME(add),
    .token_logprobs = CUDA_NAME(token_logprobs),
    .token_logprobs_backward = CUDA_NAME(token_logprobs_backward),
    .token_sample = CUDA_NAME(token_sample),
    .gradient_norm = CUDA_NAME(gradient_norm),
    .adamw = CUDA_NAME(adamw),
};
