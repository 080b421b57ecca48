// Threads: one pool a process, static partition of numbered tasks.
//
// Tasks are split by output (rows, columns, heads), never by the reduction, so the thread count cannot change a bit.
// Waiting threads sleep (no spinning): several ranks usually share the cores of a node.
#ifndef KERNELS_BASE_THREADS_H
#define KERNELS_BASE_THREADS_H

#include "kernels/base/status.h"

typedef struct threads threads_t;
// One task. `worker` is in [0, threads_count), for scratch memory a thread.
typedef void (*threads_task_t)(void *context, int task, int worker);

// Starts count - 1 threads (the caller is the last worker). count >= 1.
status_t threads_open(int count, threads_t **out) STATUS_CHECKED;
void threads_close(threads_t *threads);
int threads_count(const threads_t *threads);
// Runs task 0 .. tasks - 1, worker w taking the w-th contiguous share, and returns when all are done. Called by one
// thread at a time; a task must not call it again.
void threads_run(threads_t *threads, int tasks, threads_task_t task, void *context);

#endif
