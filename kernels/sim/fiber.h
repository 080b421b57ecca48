// Fibers: one stack a simulated thread, switched by hand. A fiber that is not resumed any more is simply left where it
// is.
#ifndef KERNELS_SIM_FIBER_H
#define KERNELS_SIM_FIBER_H

#include "kernels/base/status.h"
#include <stddef.h>

typedef struct fiber {
    void *context; // where it stopped
    char *stack;   // lowest usable byte; the page below it faults
    size_t bytes;
    void *fake_stack; // the address sanitizer's
} fiber_t;

// Stacks for `count` fibers, with a page that faults under each.
status_t fiber_stacks_open(fiber_t *fibers, int count, size_t bytes) STATUS_CHECKED;
void fiber_stacks_close(fiber_t *fibers, int count);
// Makes the fiber start anew in entry(), which must never return.
void fiber_prepare(fiber_t *fiber, void (*entry)(void));
// Goes on in `to`; returns when something switches back to `from`. last: `from` is never resumed.
void fiber_switch(fiber_t *from, fiber_t *to, bool last);
// The first thing a fiber calls when it starts.
void fiber_started(fiber_t *self, fiber_t *starter);

#endif
