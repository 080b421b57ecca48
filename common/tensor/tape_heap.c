#include "common/tensor/tape_heap.h"

#include "kernels/streams.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// One unit more, because a device promises memory, not our alignment.
size_t heap_bytes(size_t bytes) {
    size_t capacity = (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
    return capacity ? capacity + ARENA_ALIGNMENT : 0;
}

status_t heap_open(heap_t *heap, device_t *device, ledger_part_t part, const char *name, size_t bytes) {
    *heap = (heap_t){.device = device, .arena = {.name = name}};
    size_t taken = heap_bytes(bytes), capacity = taken - ARENA_ALIGNMENT;
    if (!taken) return STATUS_OK;
    void *memory;
    status_t status = ledger_take(device, part, taken, &memory);
    if (status) return status_context(status, "reserving %zu bytes for the %s of a tape", capacity, name);
    heap->arena.base = memory;
    heap->arena.capacity = capacity;
    return STATUS_OK;
}

status_t heap_open_measuring(heap_t *heap, const char *name) {
    *heap = (heap_t){0};
    return arena_open_measuring(&heap->arena, name);
}

void heap_close(heap_t *heap) {
    if (heap->device && heap->arena.base) ledger_give(heap->device, heap->arena.base);
    if (!heap->device) arena_close(&heap->arena);
    free(heap->holes);
    *heap = (heap_t){0};
}

// Before every change of arena.used: ops called since the last change use what lies below it at most.
static void heap_look(heap_t *heap) {
    const device_streams_t *streams = heap->device ? heap->device->table->streams : NULL;
    if (streams && streams->idle(heap->device))
        heap->touched = 0;
    else if (heap->touched < heap->arena.used)
        heap->touched = heap->arena.used;
}

void heap_reset(heap_t *heap) {
    heap_look(heap);
    heap->arena.used = 0;
    heap->hole_count = 0;
}

static size_t heap_round(size_t bytes) {
    if (!bytes) bytes = 1;
    return (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT;
}

static char *heap_base(const heap_t *heap) {
    uintptr_t base = (uintptr_t)heap->arena.base;
    return heap->arena.base + (ARENA_ALIGNMENT - base % ARENA_ALIGNMENT) % ARENA_ALIGNMENT;
}

status_t heap_take_fresh(heap_t *heap, size_t bytes, void **out, bool *fresh) {
    TRY(heap_take(heap, bytes, out));
    *fresh = (size_t)((char *)*out - heap_base(heap)) >= heap->touched;
    return STATUS_OK;
}

status_t heap_take(heap_t *heap, size_t bytes, void **out) {
    *out = NULL;
    heap_look(heap);
    size_t wanted = heap_round(bytes);
    if (wanted < bytes) FAIL(STATUS_MEMORY, "a tensor of %zu bytes does not fit into memory", bytes);
    for (size_t i = 0; i < heap->hole_count; i++) {
        heap_hole_t *hole = &heap->holes[i];
        if (hole->bytes < wanted) continue;
        *out = heap_base(heap) + hole->offset;
        hole->offset += wanted;
        hole->bytes -= wanted;
        if (!hole->bytes) {
            heap->hole_count--;
            memmove(hole, hole + 1, (heap->hole_count - i) * sizeof(*hole));
        }
        return STATUS_OK;
    }
    void *unaligned;
    TRY(arena_take(&heap->arena, wanted, &unaligned));
    *out = heap_base(heap) + ((char *)unaligned - heap->arena.base);
    return STATUS_OK;
}

status_t heap_give(heap_t *heap, void *memory, size_t bytes) {
    heap_look(heap);
    size_t offset = (size_t)((char *)memory - heap_base(heap)), size = heap_round(bytes), at = 0;
    while (at < heap->hole_count && heap->holes[at].offset < offset) at++;
    bool joins_left = at > 0 && heap->holes[at - 1].offset + heap->holes[at - 1].bytes == offset;
    bool joins_right = at < heap->hole_count && offset + size == heap->holes[at].offset;
    if (joins_left && joins_right) {
        heap->holes[at - 1].bytes += size + heap->holes[at].bytes;
        heap->hole_count--;
        memmove(&heap->holes[at], &heap->holes[at + 1], (heap->hole_count - at) * sizeof(heap_hole_t));
    } else if (joins_left) {
        heap->holes[at - 1].bytes += size;
    } else if (joins_right) {
        heap->holes[at].offset = offset;
        heap->holes[at].bytes += size;
    } else {
        TRY(memory_grow((void **)&heap->holes, &heap->hole_capacity, heap->hole_count + 1, sizeof(heap_hole_t)));
        memmove(&heap->holes[at + 1], &heap->holes[at], (heap->hole_count - at) * sizeof(heap_hole_t));
        heap->holes[at] = (heap_hole_t){offset, size};
        heap->hole_count++;
    }
    heap_hole_t *last = &heap->holes[heap->hole_count - 1];
    if (last->offset + last->bytes == heap->arena.used) {
        heap->arena.used = last->offset;
        heap->hole_count--;
    }
    return STATUS_OK;
}
