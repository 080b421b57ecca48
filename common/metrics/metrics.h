// Metrics: one JSON Lines file a run and, when wanted, a TensorBoard event file. One rank writes. Not thread-safe.
#ifndef COMMON_METRICS_METRICS_H
#define COMMON_METRICS_METRICS_H

#include "kernels/base/status.h"
#include <stdint.h>

typedef struct metrics metrics_t;

// Appends to DIRECTORY/metrics.jsonl (and DIRECTORY/events.out.tfevents.*); makes the folder. Lines and events of steps
// beyond `resume_step`, and torn ends, are cut off first, so that a resumed run's files read like an undisturbed run's:
// with steps numbered from 1 in metrics_write, that is the number of completed steps. A fresh run passes -1: what an
// earlier run left in these files is removed.
status_t metrics_open(const char *directory, bool tensorboard, int64_t resume_step, metrics_t **out) STATUS_CHECKED;
void metrics_close(metrics_t *metrics);
// Collects values of one step; names are like "loss/think", "time/generate". NaN and Inf are written as null (and left
// out of the event file). A name added twice keeps the last value. Texts are UTF-8.
void metrics_add(metrics_t *metrics, const char *name, double value);
void metrics_add_text(metrics_t *metrics, const char *name, const char *text); // JSON Lines only
// Writes {"step": S, "time": T, ...} with what was collected. T is the wall clock in seconds. Steps ascend. A line that
// cannot be written (STATUS_IO: a full disk) is kept and written with the next one; the file never holds a part of a
// line. The event file does without such a step. More than 16 MiB of kept lines: STATUS_FAILED.
status_t metrics_write(metrics_t *metrics, int64_t step) STATUS_CHECKED;
// Writes what was kept; nothing to write is OK.
status_t metrics_flush(metrics_t *metrics) STATUS_CHECKED;

// Progress on stderr: a bar with ETA on a terminal, a line every few seconds otherwise.
typedef struct progress {
    const char *label;
    int64_t total;
    double started, shown;
    bool terminal;
} progress_t;
void progress_start(progress_t *progress, const char *label, int64_t total);
void progress_show(progress_t *progress, int64_t done, const char *detail); // detail may be ""
void progress_end(progress_t *progress);

#endif
