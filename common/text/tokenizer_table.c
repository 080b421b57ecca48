// Growing text, and a trie in one hash table: both take memory in proportion to what is put in.
#include "common/text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

status_t buffer_append(buffer_t *buffer, const char *data, size_t length) {
    if (length > SIZE_MAX / 2 - buffer->length) FAIL(STATUS_INVALID, "a text is too long");
    TRY(memory_grow((void **)&buffer->data, &buffer->capacity, buffer->length + length + 1, 1));
    if (length) memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
    buffer->data[buffer->length] = 0;
    return STATUS_OK;
}

status_t buffer_append_code(buffer_t *buffer, uint32_t code) {
    char bytes[4];
    size_t length = 1;
    if (code < 0x80) {
        bytes[0] = (char)code;
    } else if (code < 0x800) {
        bytes[0] = (char)(0xc0 | code >> 6);
        bytes[1] = (char)(0x80 | (code & 0x3f));
        length = 2;
    } else if (code < 0x10000) {
        bytes[0] = (char)(0xe0 | code >> 12);
        bytes[1] = (char)(0x80 | (code >> 6 & 0x3f));
        bytes[2] = (char)(0x80 | (code & 0x3f));
        length = 3;
    } else {
        bytes[0] = (char)(0xf0 | code >> 18);
        bytes[1] = (char)(0x80 | (code >> 12 & 0x3f));
        bytes[2] = (char)(0x80 | (code >> 6 & 0x3f));
        bytes[3] = (char)(0x80 | (code & 0x3f));
        length = 4;
    }
    return buffer_append(buffer, bytes, length);
}

static size_t trie_slot(const trie_t *trie, uint32_t node, uint8_t byte) {
    uint64_t key = (uint64_t)node << 8 | byte;
    size_t slot = (size_t)((key ^ key >> 23) * 0x9E3779B97F4A7C15u >> 24) & (trie->slots - 1);
    while (trie->edge[slot].to && (trie->edge[slot].from != node || trie->edge[slot].byte != byte))
        slot = (slot + 1) & (trie->slots - 1);
    return slot;
}

uint32_t trie_step(const trie_t *trie, uint32_t node, uint8_t byte) {
    return trie->slots ? trie->edge[trie_slot(trie, node, byte)].to : 0;
}

static status_t trie_widen(trie_t *trie) {
    trie_t wider = {.slots = trie->slots ? 2 * trie->slots : 64};
    TRY(ALLOCATE(&wider.edge, wider.slots));
    for (size_t i = 0; i < trie->slots; i++)
        if (trie->edge[i].to) wider.edge[trie_slot(&wider, trie->edge[i].from, trie->edge[i].byte)] = trie->edge[i];
    free(trie->edge);
    trie->edge = wider.edge;
    trie->slots = wider.slots;
    return STATUS_OK;
}

static status_t trie_new_node(trie_t *trie) {
    if (trie->nodes >= INT32_MAX) FAIL(STATUS_INVALID, "the vocabulary is too large");
    TRY(memory_grow((void **)&trie->value, &trie->value_capacity, trie->nodes + 1, sizeof(*trie->value)));
    trie->value[trie->nodes++] = -1;
    return STATUS_OK;
}

status_t trie_add(trie_t *trie, const char *bytes, size_t length, int32_t value) {
    uint32_t node = 0;
    // Each place of a text is walked from as far as a token may go.
    if (length > TRIE_MAX_DEPTH)
        FAIL(STATUS_INVALID, "a token of %zu bytes is too long: at most %d bytes are possible here", length,
             TRIE_MAX_DEPTH);
    if (!trie->nodes) TRY(trie_new_node(trie));
    for (size_t i = 0; i < length; i++) {
        if (2 * (trie->edges + 1) > trie->slots) TRY(trie_widen(trie));
        size_t slot = trie_slot(trie, node, (uint8_t)bytes[i]);
        if (!trie->edge[slot].to) {
            TRY(trie_new_node(trie));
            trie->edge[slot] = (trie_edge_t){.from = node, .to = (uint32_t)trie->nodes - 1, .byte = (uint8_t)bytes[i]};
            trie->edges++;
        }
        node = trie->edge[slot].to;
    }
    trie->value[node] = value;
    return STATUS_OK;
}

void trie_free(trie_t *trie) {
    free(trie->edge);
    free(trie->value);
    *trie = (trie_t){0};
}
