// Streams: queues of work on a device beside the one its ops run in (device_table_t.streams; NULL where there are
// none).
//
// A stream's work runs in the order it was put in; events order streams among each other. A stream is the device's own
// handle (a cudaStream_t); NULL stands for the stream of ops. Nothing here waits.
#ifndef KERNELS_STREAMS_H
#define KERNELS_STREAMS_H

#include "kernels/device.h"

// What there is to know of a GPU before it is opened.
typedef struct device_about {
    char name[128];        // "NVIDIA H100 80GB HBM3"
    char place[32];        // its address on the machine's bus
    int major, minor;      // compute capability
    size_t left, total;    // bytes of memory
    int driver, runtime;   // CUDA versions, 1000 * major + 10 * minor
    const char *built_for; // the compute capabilities that this program's kernels were compiled for, as in "80, 90"
    bool supported;        // they run there
} device_about_t;

typedef struct device_streams {
    status_t (*open)(device_t *device, void **stream);
    void (*close)(device_t *device, void *stream);
    status_t (*event_open)(device_t *device, void **event);
    void (*event_close)(device_t *device, void *event);
    // The event is what lies in the stream now.
    status_t (*record)(device_t *device, void *event, void *stream);
    // What is put into the stream from now on begins when the event has ended.
    status_t (*after)(device_t *device, void *stream, void *event);
    status_t (*ended)(device_t *device, void *event, bool *ended);
    // Nothing is under way: no op, copy or set was called since the device was last waited for.
    bool (*idle)(const device_t *device);
    // As the table's upload, but beside what is under way, in a stream of copies: nothing under way may use `to`. Ops
    // called from now on see it.
    status_t (*upload)(device_t *device, void *to, const void *from, size_t bytes);
    // Names of the GPUs that this process sees, by their numbers, a blank behind each. Opens none.
    status_t (*list)(char *out, size_t bytes);
    // Of GPU number `ordinal`. Its free memory is asked for, which starts CUDA there.
    status_t (*about)(int ordinal, device_about_t *out);
    // What the device has free and in all, in bytes, and its name on its machine for messages: ranks with equal ones
    // share its memory.
    status_t (*memory)(device_t *device, size_t *left, size_t *total, char *place, size_t bytes);
    // Graphs: the ops between begin and end are recorded and not run; *graph runs them all at once, on the memory that
    // their arguments named. In between nothing may be taken, copied from or to the host, or waited for; where that or
    // something else spoils the capture, end fails and leaves none. Every op must have run once before on its shapes.
    status_t (*capture_begin)(device_t *device);
    status_t (*capture_end)(device_t *device, void **graph);
    status_t (*graph_run)(device_t *device, void *graph);
    void (*graph_close)(device_t *device, void *graph);
} device_streams_t;

#endif
