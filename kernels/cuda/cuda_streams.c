// Streams and events of the CUDA member beside the one that its ops run in, and which GPUs there are. Compiled twice,
// as cuda_device.c is.
#include "kernels/streams.h"

#include "kernels/cuda/cuda_ops.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef POISE_CUDA_HOST
#include <cuda_runtime_api.h>
#define CUDA_MEMBER "cuda"
#else
#include "kernels/sim/sim_runtime.h"
#define CUDA_MEMBER          "sim"
#define POISE_CUDA_BUILT_FOR "80, 90" // what nvcc compiles the same sources for
#endif

#define CUDA_TRY(call)                                                                                                 \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) FAIL(STATUS_FAILED, CUDA_MEMBER ": %s", cudaGetErrorString(error_));                \
    } while (0)

static cudaStream_t stream_of(device_t *device, void *stream) {
    return (cudaStream_t)(stream ? stream : cuda_stream(device));
}

// (The host's calling thread has this device chosen from opening on; other threads call device functions alone.)
static status_t streams_open(device_t *device, void **stream) {
    (void)device;
    cudaStream_t opened = NULL;
    CUDA_TRY(cudaStreamCreateWithFlags(&opened, cudaStreamNonBlocking));
    *stream = opened;
    return STATUS_OK;
}

static void streams_close(device_t *device, void *stream) {
    (void)device;
    (void)cudaStreamDestroy((cudaStream_t)stream);
}

static status_t streams_event_open(device_t *device, void **event) {
    (void)device;
    cudaEvent_t opened = NULL;
    CUDA_TRY(cudaEventCreateWithFlags(&opened, cudaEventDisableTiming));
    *event = opened;
    return STATUS_OK;
}

static void streams_event_close(device_t *device, void *event) {
    (void)device;
    (void)cudaEventDestroy((cudaEvent_t)event);
}

static status_t streams_record(device_t *device, void *event, void *stream) {
    CUDA_TRY(cudaEventRecord((cudaEvent_t)event, stream_of(device, stream)));
    return STATUS_OK;
}

static status_t streams_after(device_t *device, void *stream, void *event) {
    CUDA_TRY(cudaStreamWaitEvent(stream_of(device, stream), (cudaEvent_t)event, 0));
    return STATUS_OK;
}

static status_t streams_ended(device_t *device, void *event, bool *ended) {
    (void)device;
    cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *ended = error != cudaErrorNotReady;
    if (!*ended) (void)cudaGetLastError(); // the next launch has not failed
    if (*ended) CUDA_TRY(error);
    return STATUS_OK;
}

static bool streams_idle(const device_t *device) {
    return !((const cuda_state_t *)device->state)->busy;
}

// A machine without a driver says "insufficient driver", too.
status_t CUDA_NAME(count)(int *count) {
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    *count = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess && *count > 0) return STATUS_OK;
#ifdef POISE_CUDA_HOST
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (!driver)
        FAIL(STATUS_UNAVAILABLE, "there is no GPU that CUDA can use: this machine has no NVIDIA driver (libcuda.so.1); "
                                 "use the device 'cpu'");
    if (error == cudaErrorInsufficientDriver)
        FAIL(STATUS_UNAVAILABLE,
             "the NVIDIA driver here knows CUDA %d.%d and this program was built with CUDA %d.%d; it needs a newer "
             "driver or a build with an older toolkit, or use the device 'cpu'",
             driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
#endif
    FAIL(STATUS_UNAVAILABLE, "there is no GPU that CUDA can use: %s%s%s; use the device 'cpu'",
         cudaGetErrorString(error), shown ? "; CUDA_VISIBLE_DEVICES shows this process " : "",
         !shown   ? ""
         : *shown ? shown
                  : "none");
}

// A GPU's address on its machine's bus is the same for every process there, whatever number it has for each.
static status_t streams_list(char *out, size_t bytes) {
    int count = 0;
    out[0] = 0;
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    TRY(CUDA_NAME(count)(&count));
    for (int i = 0; i < count; i++) {
        char name[32] = "";
        CUDA_TRY(cudaDeviceGetPCIBusId(name, sizeof(name), i));
        size_t used = strlen(out);
        // Parts of one GPU (MIG) have its address; a process sees one of them, which the variable names.
        const char *part = shown && !strncmp(shown, "MIG-", 4) ? shown : "";
        if (strchr(part, ' ') || used + strlen(name) + strlen(part) + 2 > bytes)
            FAIL(STATUS_FAILED, "a list of %d GPUs is too long", count);
        snprintf(out + used, bytes - used, "%s%s ", name, part);
    }
    return STATUS_OK;
}

// ---- what the GPUs are, and their memory ----

bool CUDA_NAME(built_for)(int major, int minor) {
    char *end;
    long built;
    for (const char *at = POISE_CUDA_BUILT_FOR; (built = strtol(at, &end, 10)) > 0; at = end + strspn(end, ", "))
        if (built / 10 == major && built % 10 <= minor) return true;
    return false;
}

static status_t streams_about(int ordinal, device_about_t *out) {
    struct cudaDeviceProp properties;
    *out = (device_about_t){.built_for = POISE_CUDA_BUILT_FOR};
    CUDA_TRY(cudaDriverGetVersion(&out->driver));
    CUDA_TRY(cudaRuntimeGetVersion(&out->runtime));
    CUDA_TRY(cudaGetDeviceProperties(&properties, ordinal));
    snprintf(out->name, sizeof(out->name), "%.*s", (int)sizeof(out->name) - 1, properties.name);
    out->major = properties.major;
    out->minor = properties.minor;
    out->supported = CUDA_NAME(built_for)(out->major, out->minor);
    CUDA_TRY(cudaDeviceGetPCIBusId(out->place, sizeof(out->place), ordinal));
    CUDA_TRY(cudaSetDevice(ordinal));
    CUDA_TRY(cudaMemGetInfo(&out->left, &out->total));
    return STATUS_OK;
}

static status_t streams_memory(device_t *device, size_t *left, size_t *total, char *place, size_t bytes) {
    int ordinal = 0;
    char name[32] = "";
    (void)device;
    CUDA_TRY(cudaGetDevice(&ordinal));
    CUDA_TRY(cudaDeviceGetPCIBusId(name, sizeof(name), ordinal));
#ifdef POISE_CUDA_HOST
    snprintf(place, bytes, "GPU %s", name);
#else
    snprintf(place, bytes, "the simulated GPU of process %ld", (long)getpid()); // each process has its own memory
#endif
    CUDA_TRY(cudaMemGetInfo(left, total));
    return STATUS_OK;
}

// ---- graphs ----

static status_t streams_capture_begin(device_t *device) {
    CUDA_TRY(cudaStreamBeginCapture(stream_of(device, NULL), cudaStreamCaptureModeThreadLocal));
    return STATUS_OK;
}

static status_t streams_capture_end(device_t *device, void **out) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t executable = NULL;
    *out = NULL;
    cudaError_t error = cudaStreamEndCapture(stream_of(device, NULL), &graph);
    if (error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    if (error != cudaSuccess) (void)cudaGetLastError(); // it is told here; the next launch has not failed
    CUDA_TRY(error);
    *out = executable;
    return STATUS_OK;
}

static status_t streams_graph_run(device_t *device, void *graph) {
    CUDA_TRY(cudaGraphLaunch((cudaGraphExec_t)graph, stream_of(device, NULL)));
    return STATUS_OK;
}

static void streams_graph_close(device_t *device, void *graph) {
    (void)device;
    if (graph) (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

const device_streams_t CUDA_NAME(streams) = {
    .open = streams_open,
    .close = streams_close,
    .event_open = streams_event_open,
    .event_close = streams_event_close,
    .record = streams_record,
    .after = streams_after,
    .ended = streams_ended,
    .idle = streams_idle,
    .upload = CUDA_NAME(upload_beside),
    .list = streams_list,
    .about = streams_about,
    .memory = streams_memory,
    .capture_begin = streams_capture_begin,
    .capture_end = streams_capture_end,
    .graph_run = streams_graph_run,
    .graph_close = streams_graph_close,
};
