// The part of the CUDA runtime that the host code uses, for the simulator. The names are the runtime's own and mean
// here functions of kernels/sim, so that kernels/cuda/*.c is one source for a GPU and for the simulator.
//
// What it does as a GPU would, or worse, so that misuse shows (docs/gpu.md):
//  - Launches, copies and sets of a stream are kept in order and run when somebody waits for the stream, for an event
//    after them, or for the device, and not a moment before. What a copy to pinned memory will write holds 0xff until
//    then; a copy from pinned memory reads when it runs, and fails where the source has changed since the call.
//  - Device memory lies between guard zones in an address range that the host cannot touch: a host access ends the
//    process with a message. Kernels may touch live allocations, their shared memory and their own stacks only.
//  - A fault stays: every later call fails with it, as after an illegal address on a GPU, until sim_runtime_reset.
//
// cudaGetErrorString tells of the calling thread's last failed call in full.
#ifndef KERNELS_SIM_SIM_RUNTIME_H
#define KERNELS_SIM_SIM_RUNTIME_H

#include "kernels/sim/sim.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define cudaError_t                       sim_cuda_error_t
#define cudaSuccess                       SIM_CUDA_SUCCESS
#define cudaErrorInvalidValue             SIM_CUDA_INVALID_VALUE
#define cudaErrorMemoryAllocation         SIM_CUDA_MEMORY_ALLOCATION
#define cudaErrorNoDevice                 SIM_CUDA_NO_DEVICE
#define cudaErrorInvalidDevice            SIM_CUDA_INVALID_DEVICE
#define cudaErrorNotReady                 SIM_CUDA_NOT_READY
#define cudaErrorIllegalAddress           SIM_CUDA_ILLEGAL_ADDRESS
#define cudaErrorStreamCaptureUnsupported SIM_CUDA_CAPTURE_UNSUPPORTED
#define cudaErrorStreamCaptureInvalidated SIM_CUDA_CAPTURE_INVALIDATED
typedef enum sim_cuda_error {
    SIM_CUDA_SUCCESS = 0,
    SIM_CUDA_INVALID_VALUE = 1,
    SIM_CUDA_MEMORY_ALLOCATION = 2,
    SIM_CUDA_NO_DEVICE = 100,
    SIM_CUDA_INVALID_DEVICE = 101,
    SIM_CUDA_INVALID_HANDLE = 400,
    SIM_CUDA_NOT_READY = 600,
    SIM_CUDA_ILLEGAL_ADDRESS = 700,
    SIM_CUDA_CAPTURE_UNSUPPORTED = 900,
    SIM_CUDA_CAPTURE_INVALIDATED = 901,
} sim_cuda_error_t;

typedef enum sim_cuda_copy {
    SIM_CUDA_HOST_TO_HOST,
    SIM_CUDA_HOST_TO_DEVICE,
    SIM_CUDA_DEVICE_TO_HOST,
    SIM_CUDA_DEVICE_TO_DEVICE,
    SIM_CUDA_DEFAULT,
} sim_cuda_copy_t;
#define cudaMemcpyHostToHost     SIM_CUDA_HOST_TO_HOST
#define cudaMemcpyHostToDevice   SIM_CUDA_HOST_TO_DEVICE
#define cudaMemcpyDeviceToHost   SIM_CUDA_DEVICE_TO_HOST
#define cudaMemcpyDeviceToDevice SIM_CUDA_DEVICE_TO_DEVICE
#define cudaMemcpyDefault        SIM_CUDA_DEFAULT
#define cudaStreamNonBlocking    1u
#define cudaEventDefault         0u
#define cudaEventDisableTiming   2u

typedef struct sim_cuda_stream *sim_cuda_stream_t;
typedef struct sim_cuda_event *sim_cuda_event_t;
#define cudaStream_t sim_cuda_stream_t
#define cudaEvent_t  sim_cuda_event_t
// A graph is what was put into a stream while it was captured; one that can be launched is a copy of it.
typedef struct sim_cuda_graph *sim_cuda_graph_t;
#define cudaGraph_t                      sim_cuda_graph_t
#define cudaGraphExec_t                  sim_cuda_graph_t
#define cudaStreamCaptureModeThreadLocal 1u

typedef enum sim_cuda_attribute { SIM_CUDA_MAJOR, SIM_CUDA_MINOR } sim_cuda_attribute_t;
#define cudaDevAttrComputeCapabilityMajor SIM_CUDA_MAJOR
#define cudaDevAttrComputeCapabilityMinor SIM_CUDA_MINOR

typedef struct sim_cuda_properties {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
} sim_cuda_properties_t;
#define cudaDeviceProp sim_cuda_properties

#define cudaGetDeviceCount            sim_cuda_get_device_count
#define cudaGetDeviceProperties       sim_cuda_get_device_properties
#define cudaDriverGetVersion          sim_cuda_driver_get_version
#define cudaRuntimeGetVersion         sim_cuda_runtime_get_version
#define cudaSetDevice                 sim_cuda_set_device
#define cudaGetDevice                 sim_cuda_get_device
#define cudaDeviceGetAttribute        sim_cuda_device_get_attribute
#define cudaDeviceGetPCIBusId         sim_cuda_device_get_pci_bus_id
#define cudaMemGetInfo                sim_cuda_mem_get_info
#define cudaMalloc                    sim_cuda_malloc
#define cudaFree                      sim_cuda_free
#define cudaMallocHost                sim_cuda_malloc_host
#define cudaFreeHost                  sim_cuda_free_host
#define cudaMemcpyAsync               sim_cuda_memcpy_async
#define cudaMemsetAsync               sim_cuda_memset_async
#define cudaStreamCreateWithFlags     sim_cuda_stream_create
#define cudaStreamDestroy             sim_cuda_stream_destroy
#define cudaStreamSynchronize         sim_cuda_stream_synchronize
#define cudaStreamQuery               sim_cuda_stream_query
#define cudaStreamWaitEvent           sim_cuda_stream_wait_event
#define cudaEventCreateWithFlags      sim_cuda_event_create
#define cudaEventDestroy              sim_cuda_event_destroy
#define cudaEventRecord               sim_cuda_event_record
#define cudaEventSynchronize          sim_cuda_event_synchronize
#define cudaEventQuery                sim_cuda_event_query
#define cudaEventElapsedTime          sim_cuda_event_elapsed_time
#define cudaDeviceSynchronize         sim_cuda_device_synchronize
#define cudaStreamBeginCapture        sim_cuda_stream_begin_capture
#define cudaStreamEndCapture          sim_cuda_stream_end_capture
#define cudaGraphInstantiateWithFlags sim_cuda_graph_instantiate
#define cudaGraphLaunch               sim_cuda_graph_launch
#define cudaGraphDestroy              sim_cuda_graph_destroy
#define cudaGraphExecDestroy          sim_cuda_graph_destroy
#define cudaGetLastError              sim_cuda_get_last_error
#define cudaGetErrorString            sim_cuda_get_error_string

// As many as POISE_SIM_GPUS says (64 where it says nothing), or those of them that CUDA_VISIBLE_DEVICES lists. All that
// a process opens are the same one: the number is only looked at.
cudaError_t sim_cuda_get_device_count(int *out);
cudaError_t sim_cuda_set_device(int device);
cudaError_t sim_cuda_get_device(int *out);
// Compute capability 8.0, or what POISE_SIM_CAPABILITY says ("7.5"). Versions: POISE_SIM_DRIVER (12080; 0: there is no
// driver) and 12080.
cudaError_t sim_cuda_get_device_properties(sim_cuda_properties_t *out, int device);
cudaError_t sim_cuda_driver_get_version(int *out);
cudaError_t sim_cuda_runtime_get_version(int *out);
cudaError_t sim_cuda_device_get_attribute(int *out, sim_cuda_attribute_t attribute, int device);
cudaError_t sim_cuda_device_get_pci_bus_id(char *out, int bytes, int device);
cudaError_t sim_cuda_mem_get_info(size_t *free_bytes, size_t *total_bytes);
cudaError_t sim_cuda_malloc(void **out, size_t bytes); // what it gives is filled with 0xff
cudaError_t sim_cuda_free(void *memory);               // waits for the device
cudaError_t sim_cuda_malloc_host(void **out, size_t bytes);
cudaError_t sim_cuda_free_host(void *memory); // waits for the device
cudaError_t sim_cuda_memcpy_async(void *to, const void *from, size_t bytes, sim_cuda_copy_t kind,
                                  sim_cuda_stream_t stream);
cudaError_t sim_cuda_memset_async(void *to, int value, size_t bytes, sim_cuda_stream_t stream);
cudaError_t sim_cuda_stream_create(sim_cuda_stream_t *out, unsigned flags); // keeps the order that the thread has set
cudaError_t sim_cuda_stream_destroy(sim_cuda_stream_t stream);              // the last one looks for leaks
cudaError_t sim_cuda_stream_synchronize(sim_cuda_stream_t stream);
cudaError_t sim_cuda_stream_query(sim_cuda_stream_t stream);
cudaError_t sim_cuda_stream_wait_event(sim_cuda_stream_t stream, sim_cuda_event_t event, unsigned flags);
cudaError_t sim_cuda_event_create(sim_cuda_event_t *out, unsigned flags);
cudaError_t sim_cuda_event_destroy(sim_cuda_event_t event);
cudaError_t sim_cuda_event_record(sim_cuda_event_t event, sim_cuda_stream_t stream);
cudaError_t sim_cuda_event_synchronize(sim_cuda_event_t event);
cudaError_t sim_cuda_event_query(sim_cuda_event_t event);
// Of the host's clock when the records were come to; an error where timing is disabled or a record has not been.
cudaError_t sim_cuda_event_elapsed_time(float *milliseconds, sim_cuda_event_t from, sim_cuda_event_t to);
cudaError_t sim_cuda_device_synchronize(void);
// What is put into a captured stream from now on makes the graph and does not run. What a GPU cannot capture (memory
// taken or given back, waiting, asking, copies from or to pageable memory, events, work of others) fails, and then the
// capture ends without a graph.
cudaError_t sim_cuda_stream_begin_capture(sim_cuda_stream_t stream, unsigned mode);
cudaError_t sim_cuda_stream_end_capture(sim_cuda_stream_t stream, sim_cuda_graph_t *out);
cudaError_t sim_cuda_graph_instantiate(sim_cuda_graph_t *out, sim_cuda_graph_t graph, unsigned long long flags);
cudaError_t sim_cuda_graph_launch(sim_cuda_graph_t graph, sim_cuda_stream_t stream);
cudaError_t sim_cuda_graph_destroy(sim_cuda_graph_t graph);
cudaError_t sim_cuda_get_last_error(void);
const char *sim_cuda_get_error_string(sim_cuda_error_t error);

// ---- for other stand-ins ----
// Work of a stream that is done by others at their own pace (a collective): called until it says so. It runs with the
// device's memory open to it. A step that fails is a fault.
typedef status_t (*sim_step_t)(void *context, bool *done);
status_t sim_stream_put(void *stream, sim_step_t step, void *context) STATUS_CHECKED;
// The same with a copy of the context, of whose making nothing is left to do: graphs can hold it.
status_t sim_stream_put_copy(void *stream, sim_step_t step, const void *context, size_t bytes) STATUS_CHECKED;

// ---- for tests ----
// Forgets the fault and whatever still waits.
void sim_runtime_reset(void);
// Live allocations of device and pinned memory, and how many of them the last leak report found.
size_t sim_runtime_live(void);
size_t sim_runtime_leaks(void);
// cudaMalloc and cudaMallocHost so far.
size_t sim_runtime_allocations(void);
// Bytes of device memory that live now, and the most that did.
void sim_runtime_bytes(size_t *now, size_t *most);
// Graphs launched so far.
size_t sim_runtime_launched_graphs(void);
// The host's access to device memory ends the process, whoever handled SIGSEGV before.
void sim_runtime_end_plainly(void);
// Bytes that the device has (POISE_SIM_MEMORY, in MiB, says it for a program; 16 GiB without); cudaMalloc fails beyond.
void sim_runtime_set_memory(size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
