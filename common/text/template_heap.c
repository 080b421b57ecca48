// Memory of a template or of one rendering: blocks that are freed together.
#include "common/text/template_parts.h"

#include <stdlib.h>

struct template_block {
    template_block_t *next;
    size_t used, size;
    _Alignas(16) char data[];
};

enum { BLOCK = 16 << 10, GROWN = 1 << 20 };

status_t template_heap_take(template_heap_t *heap, size_t size, void **out) {
    template_block_t *block = heap->block;
    size_t wanted = (size + 15) & ~(size_t)15;
    if (wanted < size || wanted > heap->limit - heap->used)
        FAIL(STATUS_INVALID, "the template needs more than %zu MiB; it does too much for what it is given",
             heap->limit >> 20);
    if (!block || wanted > block->size - block->used) {
        size_t bytes = block ? 2 * block->size : BLOCK;
        if (bytes > GROWN) bytes = GROWN;
        if (bytes < wanted) bytes = wanted;
        TRY(memory_allocate(sizeof(*block) + bytes, 1, (void **)&block));
        block->size = bytes;
        block->next = heap->block;
        heap->block = block;
    }
    *out = block->data + block->used;
    block->used += wanted;
    heap->used += wanted;
    return STATUS_OK;
}

void template_heap_free(template_heap_t *heap) {
    while (heap->block) {
        template_block_t *next = heap->block->next;
        free(heap->block);
        heap->block = next;
    }
    heap->used = 0;
}
