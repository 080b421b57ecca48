// Object headers: what a group or a dataset is, and where its data are.
#include "common/store/directory.h"

#include <string.h>

enum {
    HEADER_BYTES = 16,
    MESSAGE_HEAD_BYTES = 8,
    MESSAGE_LIMIT = 512, // bytes of a message that is looked at; longer ones are passed over
    BLOCKS = 16,         // pieces of one header
    MESSAGES = 256,      // of one header
};

typedef enum message_kind {
    HEADER_SPACE = 1,
    HEADER_TYPE = 3,
    HEADER_EXTERNAL = 7,
    HEADER_LAYOUT = 8,
    HEADER_FILTERS = 11,
    HEADER_CONTINUED = 16,
    HEADER_LINKS = 17,
} message_kind_t;

// What has been seen of one header.
typedef struct header {
    directory_object_t *object;
    struct {
        uint64_t address, bytes;
    } block[BLOCKS];
    int blocks;
    bool space, type, layout, filters, filters_known;
} header_t;

static bool take_space(const uint8_t *data, size_t bytes, directory_object_t *object) {
    if (bytes < 4 || (data[0] != 1 && data[0] != 2)) return false;
    size_t start = data[0] == 1 ? 8 : 4;
    bool null = data[0] == 2 && data[3] == 2;
    object->rank = data[1];
    object->count = 1;
    if (null || object->rank > 32 || bytes < start + 8 * (size_t)object->rank) return false;
    // Nothing of more than one dimension is ever read.
    if (object->rank == 1) object->count = directory_number(data + start, 8);
    return true;
}

static bool take_type(const uint8_t *data, size_t bytes, directory_object_t *object) {
    if (bytes < 8) return false;
    object->type_bytes = bytes < DIRECTORY_TYPE_BYTES ? bytes : DIRECTORY_TYPE_BYTES;
    memcpy(object->type, data, object->type_bytes);
    object->size = (uint32_t)directory_number(data + 4, 4);
    return object->size > 0;
}

static bool take_layout(const uint8_t *data, size_t bytes, directory_object_t *object) {
    enum { CONTIGUOUS = 1, CHUNKED = 2 };
    if (bytes < 18 || data[0] != 3) return false;
    if (data[1] == CONTIGUOUS) {
        object->address = directory_number(data + 2, 8);
        object->stored = directory_number(data + 10, 8);
        return true;
    }
    // The dimensions of a chunk, then the bytes of an element as one dimension more.
    if (data[1] != CHUNKED || data[2] != 2 || bytes < 19) return false;
    object->tree = directory_number(data + 3, 8);
    object->chunk = directory_number(data + 11, 4);
    return object->chunk > 0;
}

// Exactly what store_write's `compress` makes: shuffled, then deflated.
static bool filters_are_ours(const uint8_t *data, size_t bytes) {
    static const uint64_t expected[2] = {2, 1};
    if (bytes < 8 || data[0] != 1 || data[1] != 2) return false;
    size_t at = 8;
    for (int i = 0; i < 2; i++) {
        if (at + 8 > bytes || directory_number(data + at, 2) != expected[i]) return false;
        uint64_t name = directory_number(data + at + 2, 2), values = directory_number(data + at + 6, 2);
        at += 8 + (size_t)((name + 7) / 8 * 8 + 4 * (values + values % 2));
    }
    return at <= bytes;
}

// False: the object is strange.
static bool take_message(header_t *header, uint64_t kind, const uint8_t *data, size_t bytes) {
    directory_object_t *object = header->object;
    switch (kind) {
    case HEADER_SPACE:
        if (header->space) return false;
        header->space = true;
        return take_space(data, bytes, object);
    case HEADER_TYPE:
        if (header->type) return false;
        header->type = true;
        return take_type(data, bytes, object);
    case HEADER_LAYOUT:
        if (header->layout) return false;
        header->layout = true;
        return take_layout(data, bytes, object);
    case HEADER_FILTERS:
        if (header->filters) return false;
        header->filters = true;
        return filters_are_ours(data, bytes);
    case HEADER_EXTERNAL:
        return false;
    case HEADER_LINKS:
        if (bytes < 16) return false;
        object->kind = OBJECT_GROUP;
        object->links = directory_number(data, 8);
        object->heap = directory_number(data + 8, 8);
        return true;
    default:
        return true;
    }
}

static bool is_looked_at(uint64_t kind) {
    return kind == HEADER_SPACE || kind == HEADER_TYPE || kind == HEADER_EXTERNAL || kind == HEADER_LAYOUT ||
           kind == HEADER_FILTERS || kind == HEADER_CONTINUED || kind == HEADER_LINKS;
}

// The messages of one piece of the header.
static status_t take_block(directory_file_t *file, header_t *header, int number, int *left) {
    enum { SHARED = 2 };
    uint64_t at = header->block[number].address, end = at + header->block[number].bytes;
    while (*left > 0 && end - at >= MESSAGE_HEAD_BYTES) {
        uint8_t head[MESSAGE_HEAD_BYTES], data[MESSAGE_LIMIT];
        TRY(directory_read_metadata(file, at, head, sizeof(head)));
        uint64_t kind = directory_number(head, 2), bytes = directory_number(head + 2, 2);
        at += MESSAGE_HEAD_BYTES;
        if (bytes > end - at) return directory_damaged(file, "a header is longer than its place");
        (*left)--;
        if (is_looked_at(kind)) {
            bool readable = bytes <= MESSAGE_LIMIT && !(head[4] & SHARED);
            if (readable) TRY(directory_read_metadata(file, at, data, bytes));
            if (readable && kind == HEADER_CONTINUED) {
                if (bytes < 16 || header->blocks == BLOCKS) return directory_damaged(file, "a header goes on nowhere");
                header->block[header->blocks].address = directory_number(data, 8);
                header->block[header->blocks++].bytes = directory_number(data + 8, 8);
            } else if (!readable || !take_message(header, kind, data, bytes)) {
                header->object->strange = true;
            }
        }
        at += bytes;
    }
    return STATUS_OK;
}

status_t directory_describe(directory_file_t *file, uint64_t address, directory_object_t *out) {
    *out = (directory_object_t){.rank = -1, .address = DIRECTORY_NOWHERE, .tree = DIRECTORY_NOWHERE};
    uint8_t head[HEADER_BYTES];
    header_t header = {.object = out, .blocks = 1};
    TRY(directory_read_metadata(file, address, head, sizeof(head)));
    if (head[0] != 1) return directory_damaged(file, "a header is of another version of the format");
    int left = (int)directory_number(head + 2, 2);
    if (left > MESSAGES) return directory_damaged(file, "a header has too many parts");
    header.block[0].address = address + HEADER_BYTES;
    header.block[0].bytes = directory_number(head + 8, 4);
    for (int i = 0; i < header.blocks; i++) {
        if (header.block[i].address > file->bytes || header.block[i].bytes > file->bytes - header.block[i].address)
            return directory_damaged(file, "a header lies outside of it");
        TRY(take_block(file, &header, i, &left));
    }
    if (out->kind == OBJECT_GROUP) return STATUS_OK;
    if (!header.layout && !header.space) return STATUS_OK; // a type with a name, say: none of ours
    out->kind = OBJECT_DATASET;
    out->strange =
        out->strange || !header.space || !header.type || !header.layout || (out->chunk != 0) != header.filters;
    return STATUS_OK;
}
