// What a learner does when the disk is full, read-only or broken: a run that can go on goes on.
//
// With checkpoint.on_failure "continue" a file that could not be written in the middle of a run is told on stderr, with
// what it needs and where, and the run goes on; the last files of a run (at its end, or when it is asked to stop) are
// tried again for checkpoint.wait_s, so that there is time to free space. With "stop" the first failure ends the run.
// Either way what was whole before stays.
#ifndef LEARNER_DISK_H
#define LEARNER_DISK_H

#include "learner/setup.h"

typedef struct disk_task {
    const char *what;   // "the checkpoint of step 7"
    const char *folder; // where it goes, for the figures of the message
    int64_t bytes;      // about how many it needs; 0: few
    const char *next;   // what becomes of it when the run goes on: "the next try is after step 8"
    bool last;          // the run ends after it: tried again for checkpoint.wait_s
    status_t (*run)(
        void *context); // does it, on all learners; a STATUS_IO of learner 0 is the disk's, others end the run
    void *context;
} disk_task_t;

// Collective: all learners have the same outcome.
status_t disk_try(learner_t *learner, const disk_task_t *task) STATUS_CHECKED;

#endif
