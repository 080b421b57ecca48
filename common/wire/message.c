#include "common/wire/message_fields.h"

#include <endian.h>
#include <math.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

// ---- packing ----

static int32_t read_i32(const void *base, size_t offset) {
    int32_t value = 0;
    memcpy(&value, (const char *)base + offset, sizeof(value));
    return value;
}

static int64_t read_i64(const void *base, size_t offset) {
    int64_t value = 0;
    memcpy(&value, (const char *)base + offset, sizeof(value));
    return value;
}

static void *read_pointer(const void *base, size_t offset) {
    void *value = NULL;
    memcpy(&value, (const char *)base + offset, sizeof(value));
    return value;
}

// The wire is little-endian; on such a machine this is a copy.
static void copy_little_endian(void *to, const void *from, size_t count, size_t size) {
    if (!count) return;
    memcpy(to, from, count * size);
    if (htole32(1) == 1) return;
    for (size_t i = 0; i < count; i++) {
        uint8_t *item = (uint8_t *)to + i * size;
        for (size_t low = 0, high = size - 1; low < high; low++, high--) {
            uint8_t byte = item[low];
            item[low] = item[high];
            item[high] = byte;
        }
    }
}

static int pack_text(msgpack_packer *packer, const char *text, size_t length) {
    int failed = msgpack_pack_str(packer, length);
    return failed ? failed : msgpack_pack_str_body(packer, text, length);
}

static int pack_array(msgpack_packer *packer, const field_t *field, const void *base) {
    int32_t count = read_i32(base, field->count);
    const uint8_t *data = read_pointer(base, field->offset);
    size_t bytes = count > 0 ? (size_t)count * field->extra : 0;
    int failed = msgpack_pack_bin(packer, bytes);
    uint8_t piece[1024];
    for (size_t at = 0; at < bytes && !failed; at += sizeof(piece)) {
        size_t length = bytes - at < sizeof(piece) ? bytes - at : sizeof(piece);
        copy_little_endian(piece, data + at, length / field->extra, field->extra);
        failed = msgpack_pack_bin_body(packer, piece, length);
    }
    return failed;
}

static int pack_field(msgpack_packer *packer, const field_t *field, const void *base);

static int pack_items(msgpack_packer *packer, const field_t *field, const void *base) {
    int32_t count = read_i32(base, field->count);
    const char *item = read_pointer(base, field->offset);
    int failed = msgpack_pack_array(packer, count > 0 ? (size_t)count : 0);
    for (int32_t i = 0; i < count && !failed; i++, item += field->extra) {
        failed = msgpack_pack_map(packer, (size_t)field->items->count);
        for (int f = 0; f < field->items->count && !failed; f++)
            failed = pack_field(packer, &field->items->field[f], item);
    }
    return failed;
}

static int pack_field(msgpack_packer *packer, const field_t *field, const void *base) {
    int failed = pack_text(packer, field->name, strlen(field->name));
    if (failed) return failed;
    const char *at = (const char *)base + field->offset;
    float real32 = 0;
    double real64 = 0;
    const char *text = NULL;
    switch (field->kind) {
    case FIELD_I32:
        return msgpack_pack_int32(packer, read_i32(base, field->offset));
    case FIELD_I64:
        return msgpack_pack_int64(packer, read_i64(base, field->offset));
    case FIELD_U64:
        return msgpack_pack_uint64(packer, (uint64_t)read_i64(base, field->offset));
    case FIELD_F32:
        memcpy(&real32, at, sizeof(real32));
        return msgpack_pack_float(packer, real32);
    case FIELD_F64:
        memcpy(&real64, at, sizeof(real64));
        return msgpack_pack_double(packer, real64);
    case FIELD_BOOL:
        return *(const bool *)at ? msgpack_pack_true(packer) : msgpack_pack_false(packer);
    case FIELD_TEXT:
        return pack_text(packer, at, strnlen(at, field->extra - 1));
    case FIELD_STRING:
        text = read_pointer(base, field->offset);
        return pack_text(packer, text ? text : "", text ? strlen(text) : 0);
    case FIELD_BYTES: {
        size_t size = (size_t)read_i64(base, field->count);
        failed = msgpack_pack_bin(packer, size);
        return failed || !size ? failed : msgpack_pack_bin_body(packer, read_pointer(base, field->offset), size);
    }
    case FIELD_ARRAY:
        return pack_array(packer, field, base);
    default:
        return pack_items(packer, field, base);
    }
}

status_t message_pack(const message_t *message, link_buffer_t *out) {
    *out = (link_buffer_t){0};
    const fields_t *fields = message_fields(message->type);
    if (!fields) FAIL(STATUS_FAILED, "message type %d cannot be packed: there is none of that number", message->type);
    msgpack_sbuffer buffer;
    msgpack_sbuffer_init(&buffer);
    msgpack_packer packer;
    msgpack_packer_init(&packer, &buffer, msgpack_sbuffer_write);
    int failed = msgpack_pack_map(&packer, (size_t)fields->count + 2);
    if (!failed) failed = pack_text(&packer, "schema", 6);
    if (!failed) failed = msgpack_pack_int(&packer, MESSAGE_SCHEMA);
    if (!failed) failed = pack_text(&packer, "type", 4);
    if (!failed) failed = pack_text(&packer, fields->name, strlen(fields->name));
    for (int i = 0; i < fields->count && !failed; i++) failed = pack_field(&packer, &fields->field[i], message);
    if (failed) {
        msgpack_sbuffer_destroy(&buffer);
        FAIL(STATUS_MEMORY, "out of memory while packing a message of type %s", fields->name);
    }
    out->size = buffer.size;
    out->data = (uint8_t *)msgpack_sbuffer_release(&buffer);
    return STATUS_OK;
}

// ---- unpacking ----

static bool key_is(const msgpack_object *key, const char *name) {
    return key->type == MSGPACK_OBJECT_STR && key->via.str.size == strlen(name) &&
           memcmp(key->via.str.ptr, name, key->via.str.size) == 0;
}

// The value of a key that must occur exactly once.
static status_t find_key(const msgpack_object_map *map, const char *name, const msgpack_object **out) {
    *out = NULL;
    for (uint32_t i = 0; i < map->size; i++) {
        if (!key_is(&map->ptr[i].key, name)) continue;
        if (*out) FAIL(STATUS_PEER, "key \"%s\" occurs twice", name);
        *out = &map->ptr[i].val;
    }
    if (!*out) FAIL(STATUS_PEER, "key \"%s\" is missing", name);
    return STATUS_OK;
}

static status_t unpack_integer(const field_t *field, const msgpack_object *value, void *base) {
    char *at = (char *)base + field->offset;
    bool is_positive = value->type == MSGPACK_OBJECT_POSITIVE_INTEGER;
    if (!is_positive && value->type != MSGPACK_OBJECT_NEGATIVE_INTEGER)
        FAIL(STATUS_PEER, "key \"%s\" is not an integer", field->name);
    if (field->kind == FIELD_U64) {
        if (!is_positive) FAIL(STATUS_PEER, "key \"%s\" is negative", field->name);
        memcpy(at, &value->via.u64, sizeof(uint64_t));
        return STATUS_OK;
    }
    bool fits = is_positive ? value->via.u64 <= (uint64_t)field->high : value->via.i64 >= field->low;
    int64_t number = is_positive ? (int64_t)value->via.u64 : value->via.i64;
    if (!fits || number < field->low)
        FAIL(STATUS_PEER, "key \"%s\" is not in %lld .. %lld", field->name, (long long)field->low,
             (long long)field->high);
    int32_t narrow = (int32_t)number;
    if (field->kind == FIELD_I32)
        memcpy(at, &narrow, sizeof(narrow));
    else
        memcpy(at, &number, sizeof(number));
    return STATUS_OK;
}

static status_t unpack_real(const field_t *field, const msgpack_object *value, void *base) {
    char *at = (char *)base + field->offset;
    msgpack_object_type wanted = field->kind == FIELD_F32 ? MSGPACK_OBJECT_FLOAT32 : MSGPACK_OBJECT_FLOAT64;
    if (value->type != wanted || !isfinite(value->via.f64))
        FAIL(STATUS_PEER, "key \"%s\" is not a finite real number of %d bits", field->name,
             field->kind == FIELD_F32 ? 32 : 64);
    float narrow = (float)value->via.f64;
    if (field->kind == FIELD_F32)
        memcpy(at, &narrow, sizeof(narrow));
    else
        memcpy(at, &value->via.f64, sizeof(double));
    return STATUS_OK;
}

static status_t unpack_text(const field_t *field, const msgpack_object *value, void *base) {
    char *at = (char *)base + field->offset;
    if (value->type != MSGPACK_OBJECT_STR) FAIL(STATUS_PEER, "key \"%s\" is not a string", field->name);
    size_t length = value->via.str.size;
    if (length && memchr(value->via.str.ptr, 0, length)) FAIL(STATUS_PEER, "key \"%s\" holds a 0 byte", field->name);
    if (field->kind == FIELD_TEXT) {
        if (length >= field->extra)
            FAIL(STATUS_PEER, "key \"%s\" is longer than %zu bytes", field->name, field->extra - 1);
        if (length) memcpy(at, value->via.str.ptr, length);
        at[length] = 0;
        return STATUS_OK;
    }
    char *copy = NULL;
    TRY(memory_copy_bytes(value->via.str.ptr, length, &copy));
    memcpy(at, &copy, sizeof(copy));
    return STATUS_OK;
}

static status_t unpack_binary(const field_t *field, const msgpack_object *value, void *base) {
    char *at = (char *)base + field->offset;
    if (value->type != MSGPACK_OBJECT_BIN) FAIL(STATUS_PEER, "key \"%s\" is not binary", field->name);
    size_t size = value->via.bin.size, unit = field->kind == FIELD_BYTES ? 1 : field->extra;
    if (field->kind == FIELD_ARRAY && size != (size_t)read_i32(base, field->count) * unit)
        FAIL(STATUS_PEER, "key \"%s\" holds %zu bytes where %zu belong", field->name, size,
             (size_t)read_i32(base, field->count) * unit);
    void *copy = NULL;
    TRY(memory_allocate(size, 1, &copy));
    copy_little_endian(copy, value->via.bin.ptr, size / unit, unit);
    memcpy(at, &copy, sizeof(copy));
    int64_t bytes = (int64_t)size;
    if (field->kind == FIELD_BYTES) memcpy((char *)base + field->count, &bytes, sizeof(bytes));
    return STATUS_OK;
}

static status_t unpack_fields(const fields_t *fields, int others, const msgpack_object *object, void *base);

static status_t unpack_items(const field_t *field, const msgpack_object *value, void *base) {
    int32_t count = read_i32(base, field->count);
    if (value->type != MSGPACK_OBJECT_ARRAY || value->via.array.size != (uint32_t)count)
        FAIL(STATUS_PEER, "key \"%s\" is not an array of %d", field->name, count);
    char *items = NULL;
    TRY(memory_allocate((size_t)count, field->extra, (void **)&items));
    memcpy((char *)base + field->offset, &items, sizeof(char *));
    for (int32_t i = 0; i < count; i++) {
        status_t status = unpack_fields(field->items, 0, &value->via.array.ptr[i], items + (size_t)i * field->extra);
        if (status) return status_context(status, "%s %d", field->name, i);
    }
    return STATUS_OK;
}

static status_t unpack_field(const field_t *field, const msgpack_object *value, void *base) {
    switch (field->kind) {
    case FIELD_I32:
    case FIELD_I64:
    case FIELD_U64:
        return unpack_integer(field, value, base);
    case FIELD_F32:
    case FIELD_F64:
        return unpack_real(field, value, base);
    case FIELD_BOOL:
        if (value->type != MSGPACK_OBJECT_BOOLEAN) FAIL(STATUS_PEER, "key \"%s\" is not a boolean", field->name);
        *(bool *)((char *)base + field->offset) = value->via.boolean;
        return STATUS_OK;
    case FIELD_TEXT:
    case FIELD_STRING:
        return unpack_text(field, value, base);
    case FIELD_BYTES:
    case FIELD_ARRAY:
        return unpack_binary(field, value, base);
    default:
        return unpack_items(field, value, base);
    }
}

// All fields of a map that has exactly those and `others` more. Tables list a count before what it counts.
static status_t unpack_fields(const fields_t *fields, int others, const msgpack_object *object, void *base) {
    if (object->type != MSGPACK_OBJECT_MAP) FAIL(STATUS_PEER, "a map was expected");
    const msgpack_object_map *map = &object->via.map;
    for (int i = 0; i < fields->count; i++) {
        const msgpack_object *value = NULL;
        TRY(find_key(map, fields->field[i].name, &value));
        TRY(unpack_field(&fields->field[i], value, base));
    }
    if (map->size != (uint32_t)(fields->count + others))
        FAIL(STATUS_PEER, "it has %u keys where %d belong", map->size, fields->count + others);
    return STATUS_OK;
}

static status_t unpack_type(const msgpack_object *object, message_type_t *out) {
    if (object->type != MSGPACK_OBJECT_MAP) FAIL(STATUS_PEER, "a message is not a map");
    const msgpack_object *schema = NULL, *type = NULL;
    TRY(find_key(&object->via.map, "schema", &schema));
    if (schema->type != MSGPACK_OBJECT_POSITIVE_INTEGER || schema->via.u64 != MESSAGE_SCHEMA)
        FAIL(STATUS_PEER, "a message has another schema than %d; run the same version of Poise on all nodes",
             MESSAGE_SCHEMA);
    TRY(find_key(&object->via.map, "type", &type));
    for (int t = MESSAGE_HELLO; message_fields((message_type_t)t); t++) {
        if (!key_is(type, message_fields((message_type_t)t)->name)) continue;
        *out = (message_type_t)t;
        return STATUS_OK;
    }
    FAIL(STATUS_PEER, "a message has an unknown type");
}

status_t message_unpack(const void *data, size_t size, message_t *out) {
    memset(out, 0, sizeof(*out));
    TRY(message_scan(data, size));
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    size_t offset = 0;
    status_t status = STATUS_OK;
    if (msgpack_unpack_next(&unpacked, data, size, &offset) != MSGPACK_UNPACK_SUCCESS || offset != size)
        FAIL_GOTO(status, done, STATUS_PEER, "a message is not whole msgpack");
    TRY_GOTO(status, done, unpack_type(&unpacked.data, &out->type));
    const fields_t *fields = message_fields(out->type);
    status = unpack_fields(fields, 2, &unpacked.data, out);
    if (status) {
        status = status_context(status, "a message of type %s is refused", fields->name);
        message_free(out);
    }
done:
    msgpack_unpacked_destroy(&unpacked);
    return status;
}

// ---- freeing ----

static void free_fields(const fields_t *fields, void *base) {
    for (int i = 0; i < fields->count; i++) {
        const field_t *field = &fields->field[i];
        if (field->kind < FIELD_STRING) continue;
        char *owned = read_pointer(base, field->offset);
        int32_t count = field->kind == FIELD_ITEMS && owned ? read_i32(base, field->count) : 0;
        for (int32_t item = 0; item < count; item++) free_fields(field->items, owned + (size_t)item * field->extra);
        free(owned);
    }
}

void message_free(message_t *message) {
    const fields_t *fields = message_fields(message->type);
    if (fields) free_fields(fields, message);
    memset(message, 0, sizeof(*message));
}
