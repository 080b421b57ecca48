#include "common/wire/message_fields.h"

typedef struct scan {
    const uint8_t *at, *end;
    uint64_t open[MESSAGE_MAX_DEPTH]; // objects still to come at each level
    int depth;
    uint64_t objects;
} scan_t;

// Big-endian number of `bytes` bytes; false when they are not there.
static bool scan_number(scan_t *scan, int bytes, uint64_t *out) {
    if (scan->end - scan->at < bytes) return false;
    *out = 0;
    for (int i = 0; i < bytes; i++) *out = *out << 8 | *scan->at++;
    return true;
}

static status_t scan_skip(scan_t *scan, uint64_t bytes) {
    if (bytes > (uint64_t)(scan->end - scan->at))
        FAIL(STATUS_PEER, "a message declares %llu bytes where only %lld are left", (unsigned long long)bytes,
             (long long)(scan->end - scan->at));
    scan->at += bytes;
    return STATUS_OK;
}

// Enters an array (parts 1) or a map (parts 2) of `count` entries.
static status_t scan_enter(scan_t *scan, uint64_t count, int parts) {
    uint64_t limit = parts == 2 ? MESSAGE_MAX_KEYS : MESSAGE_MAX_COMPLETIONS;
    if (count > limit)
        FAIL(STATUS_PEER, "a message declares %llu entries where at most %llu are allowed", (unsigned long long)count,
             (unsigned long long)limit);
    uint64_t objects = count * (uint64_t)parts;
    if (objects > (uint64_t)(scan->end - scan->at)) // each takes a byte at least
        FAIL(STATUS_PEER, "a message declares %llu objects where only %lld bytes are left", (unsigned long long)objects,
             (long long)(scan->end - scan->at));
    if (!objects) return STATUS_OK;
    if (scan->depth == MESSAGE_MAX_DEPTH) FAIL(STATUS_PEER, "a message nests deeper than %d", MESSAGE_MAX_DEPTH);
    scan->open[scan->depth++] = objects;
    return STATUS_OK;
}

// A type whose size stands in the next `width` bytes; `extra` bytes more belong to it (the type byte of ext).
static status_t scan_sized(scan_t *scan, int width, uint64_t extra) {
    uint64_t size = 0;
    if (!scan_number(scan, width, &size)) FAIL(STATUS_PEER, "a message ends within a size");
    return scan_skip(scan, size + extra);
}

static status_t scan_counted(scan_t *scan, int width, int parts) {
    uint64_t count = 0;
    if (!scan_number(scan, width, &count)) FAIL(STATUS_PEER, "a message ends within a count");
    return scan_enter(scan, count, parts);
}

static status_t scan_object(scan_t *scan) {
    if (scan->at == scan->end) FAIL(STATUS_PEER, "a message ends early");
    uint8_t head = *scan->at++;
    if (head <= 0x7f || head >= 0xe0) return STATUS_OK;        // small integers
    if (head <= 0x8f) return scan_enter(scan, head & 0x0f, 2); // fixmap
    if (head <= 0x9f) return scan_enter(scan, head & 0x0f, 1); // fixarray
    if (head <= 0xbf) return scan_skip(scan, head & 0x1f);     // fixstr
    switch (head) {
    case 0xc0: // nil
    case 0xc2: // false
    case 0xc3: // true
        return STATUS_OK;
    case 0xc4: // bin 8, 16, 32
    case 0xc5:
    case 0xc6:
        return scan_sized(scan, 1 << (head - 0xc4), 0);
    case 0xc7: // ext 8, 16, 32
    case 0xc8:
    case 0xc9:
        return scan_sized(scan, 1 << (head - 0xc7), 1);
    case 0xca: // float 32
        return scan_skip(scan, 4);
    case 0xcb: // float 64
        return scan_skip(scan, 8);
    case 0xcc: // uint 8 .. 64
    case 0xcd:
    case 0xce:
    case 0xcf:
        return scan_skip(scan, 1u << (head - 0xcc));
    case 0xd0: // int 8 .. 64
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return scan_skip(scan, 1u << (head - 0xd0));
    case 0xd4: // fixext 1 .. 16
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8:
        return scan_skip(scan, 1 + (1u << (head - 0xd4)));
    case 0xd9: // str 8, 16, 32
    case 0xda:
    case 0xdb:
        return scan_sized(scan, 1 << (head - 0xd9), 0);
    case 0xdc: // array 16, 32
    case 0xdd:
        return scan_counted(scan, head == 0xdc ? 2 : 4, 1);
    case 0xde: // map 16, 32
    case 0xdf:
        return scan_counted(scan, head == 0xde ? 2 : 4, 2);
    default:
        FAIL(STATUS_PEER, "a message holds the byte 0x%02x, which msgpack does not define", head);
    }
}

status_t message_scan(const uint8_t *data, size_t size) {
    scan_t scan = {.at = data, .end = data + size};
    do {
        if (scan.depth) scan.open[scan.depth - 1]--;
        if (++scan.objects > MESSAGE_MAX_OBJECTS)
            FAIL(STATUS_PEER, "a message holds more than %d objects", MESSAGE_MAX_OBJECTS);
        TRY(scan_object(&scan));
        while (scan.depth && !scan.open[scan.depth - 1]) scan.depth--;
    } while (scan.depth);
    if (scan.at != scan.end)
        FAIL(STATUS_PEER, "a message is followed by %lld bytes that do not belong to it",
             (long long)(scan.end - scan.at));
    return STATUS_OK;
}
