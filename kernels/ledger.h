// Ledger: what a device's memory is taken for, and what it will be taken for.
//
// All memory that lives longer than a call is taken through it, under the part that it belongs to; a dry run notes what
// a part will come to. So the memory table is what was handed out, and a job that cannot fit is refused in one sentence
// before it computes anything: whoever plans a part calls ledger_check before taking it.
#ifndef KERNELS_LEDGER_H
#define KERNELS_LEDGER_H

#include "kernels/device.h"

#include <stdio.h>

typedef enum ledger_part {
    LEDGER_WEIGHTS,
    LEDGER_OPTIMIZER, // masters and moments
    LEDGER_SUMS,      // of gradients
    LEDGER_VALUES,    // kept for backward
    LEDGER_GRADIENTS, // of activations
    LEDGER_CACHE,     // KV pages
    LEDGER_FEATURES,  // of images
    LEDGER_STEP,      // values and tables of an engine's step
    LEDGER_WORKSPACE, // scratch of kernels
    LEDGER_IMAGES,    // preprocessed, on the host
    LEDGER_OTHER,
    LEDGER_PARTS
} ledger_part_t;
enum { LEDGER_PROBE_BYTES = 4 << 20 }; // of LEDGER_OTHER while device_fingerprint runs
const char *ledger_part_name(ledger_part_t part);

typedef struct ledger_row {
    uint64_t device; // what was taken or, if that is more, what was planned; 0 where the device's memory is the host's
    uint64_t host;
} ledger_row_t;
// What one rank needs of its device and of its host, and what the device has.
typedef struct ledger_report {
    ledger_row_t row[LEDGER_PARTS];
    uint64_t taken;       // of the device's, so far
    uint64_t free, total; // of the device's, as it says; total 0: it does not
    char place[48];       // the device's own name on its machine; empty: its memory is the host's
} ledger_report_t;

status_t ledger_open(device_t *device) STATUS_CHECKED;
void ledger_close(device_t *device);
// Memory of the device, zeroed. Where there is none left the error is ledger_check's.
status_t ledger_take(device_t *device, ledger_part_t part, size_t bytes, void **out) STATUS_CHECKED;
// NULL is allowed.
void ledger_give(device_t *device, void *memory);
// What a part will come to in all; where more is taken already, that counts.
void ledger_plan(device_t *device, ledger_part_t part, size_t bytes);
// Memory of the host that was taken (or, negative, given back) for a part.
void ledger_note_host(device_t *device, ledger_part_t part, int64_t bytes);
void ledger_read(device_t *device, ledger_report_t *out);
uint64_t ledger_sum(const ledger_report_t *report); // of the device's rows
// STATUS_MEMORY where what is planned and not yet taken is more than the device has free: it names the biggest part and
// what makes it smaller. Always OK where the device's memory is the host's.
status_t ledger_check(device_t *device) STATUS_CHECKED;
// The same for the ranks that compute on one device: their reports, of which those with `place` count.
status_t ledger_check_shared(const ledger_report_t *reports, int count, const char *place) STATUS_CHECKED;
// The table: a line a part that is not empty, and the sum beside what is free.
void ledger_print(const ledger_report_t *report, FILE *stream);

#endif
