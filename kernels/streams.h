// Streams: queues of work on a device beside the one its ops run in (device_table_t.streams; NULL where there are
// none).
//
// A stream's work runs in the order it was put in; events order streams among each other. A stream is the device's own
// handle (a cudaStream_t); NULL stands for the stream of ops. Nothing here waits.
#ifndef KERNELS_STREAMS_H
#define KERNELS_STREAMS_H

#include "kernels/device.h"

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
    // Names of the GPUs that this process sees, by their numbers, a blank behind each. Opens none.
    status_t (*list)(char *out, size_t bytes);
} device_streams_t;

#endif
