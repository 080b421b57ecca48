// Arena: memory that is planned once and handed out by moving a mark.
//
// A step allocates nothing: a dry run over the worst batch measures what each arena needs, prints it, and one
// reservation serves all later steps. In measuring mode an arena hands out addresses in a reserved, inaccessible range
// (any use faults at once), so the same code runs dry and for real.
#ifndef KERNELS_BASE_ARENA_H
#define KERNELS_BASE_ARENA_H

#include "kernels/base/status.h"
#include <stddef.h>

enum { ARENA_ALIGNMENT = 64 };

typedef struct arena {
    const char *name; // static; shown in the memory table and in errors
    char *base;
    size_t capacity; // bytes
    size_t used;     // bytes, now
    size_t peak;     // bytes, the most since arena_open
    bool measuring;
} arena_t;

// Opens a real arena of `capacity` bytes (zeroed pages of the operating system).
status_t arena_open(arena_t *arena, const char *name, size_t capacity) STATUS_CHECKED;
// Opens a measuring arena: it takes address space only (1 TiB, less where that is not to be had), and what it hands out
// must not be touched.
status_t arena_open_measuring(arena_t *arena, const char *name) STATUS_CHECKED;
void arena_close(arena_t *arena);
// `bytes` of memory aligned to ARENA_ALIGNMENT, not zeroed. Fails with STATUS_MEMORY, naming the arena and the sizes.
status_t arena_take(arena_t *arena, size_t bytes, void **out) STATUS_CHECKED;
// Marks nest: arena_release(arena, arena_mark(arena)) gives back what was taken in between.
static inline size_t arena_mark(const arena_t *arena) {
    return arena->used;
}
static inline void arena_release(arena_t *arena, size_t mark) {
    arena->used = mark;
}
#define ARENA_TAKE(arena, pointer, count) arena_take((arena), (size_t)(count) * sizeof(**(pointer)), (void **)(pointer))

#endif
