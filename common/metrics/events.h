// Events: TensorBoard event files (records of length, masked CRC-32C and a protobuf Event). Private to common/metrics
// and its tests.
#ifndef COMMON_METRICS_EVENTS_H
#define COMMON_METRICS_EVENTS_H

#include "kernels/base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct events events_t;
typedef struct event_value {
    const char *tag;
    float value;
} event_value_t;

// Opens the newest events.out.tfevents.* of the directory for appending, or a new one. What belongs to steps after
// `last_step`, and a torn end, is cut off all of them first; last_step < 0 removes them.
status_t events_open(const char *directory, int64_t last_step, events_t **out) STATUS_CHECKED;
void events_close(events_t *events);
// Appends one event and flushes it.
status_t events_write(events_t *events, double time, int64_t step, const event_value_t *values,
                      size_t count) STATUS_CHECKED;

uint32_t events_crc32c(const void *data, size_t size);
// TensorBoard's masking: checksums of data that holds checksums would be weak otherwise.
uint32_t events_mask(uint32_t crc);

#endif
