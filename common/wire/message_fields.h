// The fields of every message type, as tables: packing, unpacking, checking and freeing all walk them. Private to
// message*.c.
#ifndef COMMON_WIRE_MESSAGE_FIELDS_H
#define COMMON_WIRE_MESSAGE_FIELDS_H

#include "common/wire/message.h"

typedef enum field_kind {
    FIELD_I32,
    FIELD_I64,
    FIELD_U64,
    FIELD_F32,
    FIELD_F64,
    FIELD_BOOL,
    FIELD_TEXT,   // char[extra], 0-terminated
    FIELD_STRING, // char *, owned
    FIELD_BYTES,  // uint8_t *, owned; its int64_t size stands at offset `count`
    FIELD_ARRAY,  // owned array of `extra`-byte little-endian numbers; its int32_t length stands at offset `count`
    FIELD_ITEMS,  // owned array of structs of `extra` bytes described by `items`; length as for FIELD_ARRAY
} field_kind_t;

typedef struct field {
    const char *name;
    field_kind_t kind;
    size_t offset;
    size_t extra;
    size_t count;
    int64_t low, high; // FIELD_I32, FIELD_I64: the allowed range
    const struct fields *items;
} field_t;

typedef struct fields {
    const char *name; // of the message type, as on the wire
    const field_t *field;
    int count;
} fields_t;

// NULL for a number that is no type.
const fields_t *message_fields(message_type_t type);

enum { MESSAGE_MAX_DEPTH = 4, MESSAGE_MAX_KEYS = 32, MESSAGE_MAX_OBJECTS = 65536 };

// Walks msgpack bytes without building anything: exactly one object; nesting, declared counts and sizes within the
// bytes that are there and within the limits above. What passes costs the parser little more than its own size.
status_t message_scan(const uint8_t *data, size_t size) STATUS_CHECKED;

#endif
