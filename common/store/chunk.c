#include "common/store/chunk.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    NODE_BYTES = 24,
    KEY_BYTES = 24, // bytes of the chunk, filters left out, first element, 0
    SLOT_BYTES = KEY_BYTES + 8,
    CHILDREN = 4096, // of one node; HDF5 makes 64
    LEVELS = 8,
};

// Head of a node: its level and its children. level: that it must have; -1: any, for a root.
static status_t open_node(const directory_file_t *file, uint64_t address, int level, int *found, uint64_t *count) {
    uint8_t head[NODE_BYTES];
    TRY(directory_read(file, address, head, sizeof(head)));
    *found = head[5];
    *count = directory_number(head + 6, 2);
    if (memcmp(head, "TREE", 4) != 0 || head[4] != 1 || *found >= LEVELS || (level >= 0 && *found != level) ||
        *count > CHILDREN)
        return directory_damaged(file, "a tree of compressed data is none");
    return STATUS_OK;
}

static status_t survey(directory_file_t *file, uint64_t address, int level, uint64_t *chunks, uint64_t *stored) {
    uint64_t count;
    uint8_t slot[SLOT_BYTES];
    TRY(open_node(file, address, level, &level, &count));
    for (uint64_t i = 0; i < count; i++) {
        TRY(directory_read_metadata(file, address + NODE_BYTES + i * SLOT_BYTES, slot, sizeof(slot)));
        if (level) {
            TRY(survey(file, directory_number(slot + KEY_BYTES, 8), level - 1, chunks, stored));
            continue;
        }
        ++*chunks;
        *stored += directory_number(slot, 4);
    }
    return STATUS_OK;
}

status_t chunk_survey(directory_file_t *file, uint64_t tree, uint64_t *chunks, uint64_t *stored) {
    *chunks = *stored = 0;
    return tree == DIRECTORY_NOWHERE ? STATUS_OK : survey(file, tree, -1, chunks, stored);
}

static status_t missing(const directory_file_t *file) {
    return directory_damaged(file, "a part of it is missing or broken");
}

// The place of the chunk that starts at element `offset`.
static status_t find_chunk(const directory_file_t *file, uint64_t address, uint64_t offset, uint64_t *place,
                           uint64_t *bytes) {
    uint8_t slot[SLOT_BYTES];
    for (int level = -1; level != 0;) {
        uint64_t count, low = 0;
        TRY(open_node(file, address, level < 0 ? -1 : level - 1, &level, &count));
        if (!count) return missing(file);
        for (uint64_t high = count; high - low > 1;) { // the last child that starts at or before it
            uint64_t middle = low + (high - low) / 2;
            TRY(directory_read(file, address + NODE_BYTES + middle * SLOT_BYTES, slot, sizeof(slot)));
            if (directory_number(slot + 8, 8) <= offset)
                low = middle;
            else
                high = middle;
        }
        TRY(directory_read(file, address + NODE_BYTES + low * SLOT_BYTES, slot, sizeof(slot)));
        address = directory_number(slot + KEY_BYTES, 8);
    }
    if (directory_number(slot + 8, 8) != offset || directory_number(slot + 4, 4) != 0) return missing(file);
    *place = address;
    *bytes = directory_number(slot, 4);
    return STATUS_OK;
}

// HDF5's shuffle keeps all first bytes of the elements together, then all second bytes, and so on.
static void unshuffle(const uint8_t *shuffled, uint64_t elements, size_t size, uint64_t first, uint64_t count,
                      uint8_t *out) {
    for (uint64_t i = 0; i < count; i++)
        for (size_t byte = 0; byte < size; byte++) *out++ = shuffled[byte * elements + first + i];
}

// Fetches one chunk into `packed` (packed_bytes long) and inflates it to exactly `bytes` bytes.
static status_t load_chunk(const directory_file_t *file, uint64_t tree, uint64_t offset, uint8_t *packed,
                           size_t packed_bytes, uint8_t *plain, size_t bytes) {
    uint64_t place = 0, stored = 0;
    uLongf made = bytes;
    TRY(find_chunk(file, tree, offset, &place, &stored));
    if (!stored || stored > packed_bytes) return missing(file);
    TRY(directory_read(file, place, packed, stored));
    if (uncompress(plain, &made, packed, stored) != Z_OK || made != bytes) return missing(file);
    return STATUS_OK;
}

status_t chunk_read(const directory_file_t *file, uint64_t tree, uint64_t elements, size_t size, int64_t first,
                    int64_t count, uint8_t *out) {
    size_t bytes = elements * size, packed_bytes = compressBound(bytes);
    uint8_t *plain = NULL, *packed = NULL;
    status_t status = memory_allocate(bytes, 1, (void **)&plain);
    if (!status) status = memory_allocate(packed_bytes, 1, (void **)&packed);
    for (uint64_t at = (uint64_t)first, end = at + (uint64_t)count; !status && at < end;) {
        uint64_t within = at % elements, take = elements - within;
        if (take > end - at) take = end - at;
        status = load_chunk(file, tree, at - within, packed, packed_bytes, plain, bytes);
        if (!status) unshuffle(plain, elements, size, within, take, out);
        out += take * size;
        at += take;
    }
    free(plain);
    free(packed);
    return status;
}
