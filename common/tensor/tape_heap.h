// Heap: memory of a tape whose parts may be given back in any order. First fit over an arena, neighbours joined, so the
// same sequence of calls gives the same addresses: what a dry run measured is what the real run needs.
#ifndef COMMON_TENSOR_TAPE_HEAP_H
#define COMMON_TENSOR_TAPE_HEAP_H

#include "kernels/base/arena.h"
#include "kernels/ledger.h"

typedef struct heap_hole {
    size_t offset, bytes;
} heap_hole_t;

typedef struct heap {
    arena_t arena;
    device_t *device;   // NULL while measuring: the arena owns its address range
    heap_hole_t *holes; // by offset, never touching each other or the arena's end
    size_t hole_count, hole_capacity;
    size_t touched; // what lies below may be in use by ops under way; what lies above is not
} heap_t;

// part: of the device's memory. What is taken there: heap_bytes(bytes).
status_t heap_open(heap_t *heap, device_t *device, ledger_part_t part, const char *name, size_t bytes) STATUS_CHECKED;
size_t heap_bytes(size_t bytes);
status_t heap_open_measuring(heap_t *heap, const char *name) STATUS_CHECKED;
void heap_close(heap_t *heap);
void heap_reset(heap_t *heap);
status_t heap_take(heap_t *heap, size_t bytes, void **out) STATUS_CHECKED;
// The same; *fresh: no op that is under way uses this memory, so that a copy into it need not wait for any.
status_t heap_take_fresh(heap_t *heap, size_t bytes, void **out, bool *fresh) STATUS_CHECKED;
// `bytes` as they were taken.
status_t heap_give(heap_t *heap, void *memory, size_t bytes) STATUS_CHECKED;

#endif
