#include "kernels/base/arena.h"

#include <sys/mman.h>

static status_t arena_map(arena_t *arena, const char *name, size_t capacity, bool measuring) {
    *arena = (arena_t){.name = name, .capacity = capacity, .measuring = measuring};
    if (!capacity) return STATUS_OK;
    int protection = measuring ? PROT_NONE : PROT_READ | PROT_WRITE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (measuring ? MAP_NORESERVE : 0);
    void *base = mmap(NULL, capacity, protection, flags, -1, 0);
    if (base == MAP_FAILED)
        FAIL(STATUS_MEMORY,
             "cannot reserve %zu bytes for the arena '%s'; use a smaller batch or a machine with more memory", capacity,
             name);
    arena->base = base;
    return STATUS_OK;
}

status_t arena_open(arena_t *arena, const char *name, size_t capacity) {
    return arena_map(arena, name, capacity, false);
}

status_t arena_open_measuring(arena_t *arena, const char *name) {
    // Address space only; where that is scarce (limits, sanitizers) a smaller range measures all but the largest models
    // too.
    enum { LARGEST = 40, SMALLEST = 32 };
    for (int bits = LARGEST; bits > SMALLEST; bits--) {
        status_t status = arena_map(arena, name, (size_t)1 << bits, true);
        if (!status) return STATUS_OK;
        status_free(status);
    }
    return arena_map(arena, name, (size_t)1 << SMALLEST, true);
}

void arena_close(arena_t *arena) {
    if (arena->base) munmap(arena->base, arena->capacity);
    *arena = (arena_t){0};
}

status_t arena_take(arena_t *arena, size_t bytes, void **out) {
    size_t rounded = (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    if (rounded < bytes || rounded > arena->capacity - arena->used)
        FAIL(STATUS_MEMORY,
             "the arena '%s' has %zu of %zu bytes left and %zu are needed; the batch is larger than the planned worst "
             "case",
             arena->name, arena->capacity - arena->used, arena->capacity, bytes);
    *out = arena->base + arena->used;
    arena->used += rounded;
    if (arena->used > arena->peak) arena->peak = arena->used;
    return STATUS_OK;
}
