#include "common/model/gguf.h"
#include "common/text/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEY_BYTES = 65535, NAME_BYTES = 256, DEFAULT_ALIGNMENT = 32 };

struct gguf {
    unsigned char *memory;
    size_t bytes;
    gguf_value_t *values; // sorted by key
    size_t value_count, value_capacity;
    gguf_tensor_t *tensors; // sorted by name
    size_t tensor_count, tensor_capacity;
};

// What is left of the file to be read.
typedef struct cursor {
    const unsigned char *at, *end;
} cursor_t;

static const unsigned char kind_bytes[GGUF_KINDS] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};

static uint64_t little(const unsigned char *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

static bool take(cursor_t *cursor, int bytes, uint64_t *out) {
    if (cursor->end - cursor->at < bytes) return false;
    *out = little(cursor->at, bytes);
    cursor->at += bytes;
    return true;
}

static bool skip(cursor_t *cursor, uint64_t bytes) {
    if (bytes > (uint64_t)(cursor->end - cursor->at)) return false;
    cursor->at += bytes;
    return true;
}

static bool take_text(cursor_t *cursor, gguf_text_t *out) {
    uint64_t length;
    if (!take(cursor, 8, &length) || length > (uint64_t)(cursor->end - cursor->at)) return false;
    *out = (gguf_text_t){(const char *)cursor->at, (size_t)length};
    return skip(cursor, length);
}

// A name is text without a NUL character, so that it is a C string.
static status_t take_name(cursor_t *cursor, size_t most, const char *what, char **out) {
    gguf_text_t text = {0};
    if (!take_text(cursor, &text)) FAIL(STATUS_INVALID, "it ends within %s; is the download complete?", what);
    if (!text.length || text.length > most || memchr(text.bytes, 0, text.length) ||
        utf8_valid(text.bytes, text.length) != text.length)
        FAIL(STATUS_INVALID, "%s is empty, too long, or no text", what);
    return memory_copy_bytes(text.bytes, text.length, out);
}

// ---- metadata ----

static status_t skip_elements(cursor_t *cursor, const gguf_value_t *value) {
    gguf_text_t text;
    bool whole = true;
    if (value->kind == GGUF_STRING)
        for (uint64_t i = 0; whole && i < value->count; i++) whole = take_text(cursor, &text);
    else
        whole = value->count <= (uint64_t)(cursor->end - cursor->at) &&
                skip(cursor, value->count * kind_bytes[value->kind]);
    if (!whole) FAIL(STATUS_INVALID, "it ends within the value of '%.160s'; is the download complete?", value->key);
    return STATUS_OK;
}

static status_t read_value(gguf_t *file, cursor_t *cursor) {
    uint64_t kind = 0, count = 1;
    char *key = NULL;
    TRY(memory_grow((void **)&file->values, &file->value_capacity, file->value_count + 1, sizeof(*file->values)));
    TRY(take_name(cursor, KEY_BYTES, "a metadata key", &key));
    gguf_value_t *value = &file->values[file->value_count++];
    *value = (gguf_value_t){.key = key};
    bool whole = take(cursor, 4, &kind);
    value->is_array = kind == GGUF_ARRAY;
    if (value->is_array) whole = take(cursor, 4, &kind) && take(cursor, 8, &count);
    if (!whole) FAIL(STATUS_INVALID, "it ends within the value of '%.160s'; is the download complete?", key);
    if (kind >= GGUF_KINDS || kind == GGUF_ARRAY)
        FAIL(STATUS_INVALID, "the value of '%.160s' is of an unknown kind, %llu", key, (unsigned long long)kind);
    value->kind = (gguf_kind_t)kind;
    value->count = count;
    value->data = cursor->at;
    return skip_elements(cursor, value);
}

static int by_key(const void *left, const void *right) {
    return strcmp(((const gguf_value_t *)left)->key, ((const gguf_value_t *)right)->key);
}

static status_t read_values(gguf_t *file, cursor_t *cursor, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) TRY(read_value(file, cursor));
    if (file->value_count) qsort(file->values, file->value_count, sizeof(*file->values), by_key);
    for (size_t i = 1; i < file->value_count; i++)
        if (!strcmp(file->values[i - 1].key, file->values[i].key))
            FAIL(STATUS_INVALID, "the metadata key '%.160s' is there twice", file->values[i].key);
    return STATUS_OK;
}

const gguf_value_t *gguf_value(const gguf_t *file, const char *key) {
    gguf_value_t wanted = {.key = (char *)(uintptr_t)key};
    return file->value_count ? bsearch(&wanted, file->values, file->value_count, sizeof(wanted), by_key) : NULL;
}

bool gguf_integer(const gguf_value_t *value, uint64_t index, int64_t *out) {
    if (!value || index >= value->count || value->kind == GGUF_STRING) return false;
    int width = kind_bytes[value->kind];
    uint64_t raw = little(value->data + index * (uint64_t)width, width);
    switch (value->kind) {
    case GGUF_I8:
        *out = (int8_t)raw;
        return true;
    case GGUF_I16:
        *out = (int16_t)raw;
        return true;
    case GGUF_I32:
        *out = (int32_t)raw;
        return true;
    case GGUF_F32:
    case GGUF_F64:
        return false;
    default:
        *out = (int64_t)raw;
        return value->kind != GGUF_U64 || raw <= INT64_MAX;
    }
}

bool gguf_number(const gguf_value_t *value, uint64_t index, double *out) {
    int64_t whole;
    if (gguf_integer(value, index, &whole)) {
        *out = (double)whole;
        return true;
    }
    if (!value || index >= value->count) return false;
    if (value->kind == GGUF_F32) {
        float narrow;
        memcpy(&narrow, value->data + index * sizeof(narrow), sizeof(narrow));
        *out = (double)narrow;
        return true;
    }
    if (value->kind == GGUF_F64) memcpy(out, value->data + index * sizeof(*out), sizeof(*out));
    return value->kind == GGUF_F64;
}

status_t gguf_texts(const gguf_value_t *value, gguf_text_t **out) {
    *out = NULL;
    if (value->kind != GGUF_STRING) FAIL(STATUS_INVALID, "the value of '%.160s' is no text", value->key);
    // Each string takes at least the 8 bytes of its length, so the count is in proportion to the file.
    TRY(ALLOCATE(out, value->count));
    const unsigned char *at = value->data;
    for (uint64_t i = 0; i < value->count; i++) {
        gguf_text_t text = {(const char *)at + 8, (size_t)little(at, 8)};
        at += 8 + text.length;
        (*out)[i] = text;
        if (utf8_valid(text.bytes, text.length) == text.length) continue;
        free(*out);
        *out = NULL;
        FAIL(STATUS_INVALID, "string %llu of '%.160s' is no UTF-8", (unsigned long long)i, value->key);
    }
    return STATUS_OK;
}

// ---- tensors ----

static status_t read_shape(cursor_t *cursor, gguf_tensor_t *tensor) {
    uint64_t dimensions = 0, side;
    if (!take(cursor, 4, &dimensions)) FAIL(STATUS_INVALID, "it ends within the list of tensors");
    if (dimensions < 1 || dimensions > GGUF_MAX_DIMENSIONS)
        FAIL(STATUS_INVALID, "the tensor '%.160s' has %llu dimensions", tensor->name, (unsigned long long)dimensions);
    tensor->dimensions = (int)dimensions;
    tensor->elements = 1;
    // The file lists the fastest dimension first.
    for (int i = tensor->dimensions - 1; i >= 0; i--) {
        if (!take(cursor, 8, &side)) FAIL(STATUS_INVALID, "it ends within the list of tensors");
        if (side < 1 || side > (uint64_t)(INT64_MAX / 16 / tensor->elements))
            FAIL(STATUS_INVALID, "the tensor '%.160s' has an impossible shape", tensor->name);
        tensor->shape[i] = (int64_t)side;
        tensor->elements *= (int64_t)side;
    }
    return STATUS_OK;
}

// `offset` is relative to the data section, whose start is not known yet.
static status_t read_tensor(gguf_t *file, cursor_t *cursor) {
    uint64_t type = 0, offset = 0;
    char *name = NULL;
    int values, bytes;
    TRY(memory_grow((void **)&file->tensors, &file->tensor_capacity, file->tensor_count + 1, sizeof(*file->tensors)));
    TRY(take_name(cursor, NAME_BYTES, "the name of a tensor", &name));
    gguf_tensor_t *tensor = &file->tensors[file->tensor_count++];
    *tensor = (gguf_tensor_t){.name = name};
    TRY(read_shape(cursor, tensor));
    if (!take(cursor, 4, &type) || !take(cursor, 8, &offset))
        FAIL(STATUS_INVALID, "it ends within the list of tensors");
    if (!gguf_block((uint32_t)type, &values, &bytes))
        FAIL(STATUS_INVALID,
             "the tensor '%.160s' is of type %llu, which is not read; those read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, "
             "Q5_1, Q8_0, Q4_K, Q5_K and Q6_K",
             name, (unsigned long long)type);
    tensor->type = (gguf_type_t)type;
    if (tensor->shape[tensor->dimensions - 1] % values)
        FAIL(STATUS_INVALID, "the rows of the tensor '%.160s' are no multiple of the %d values that a %s block has",
             name, values, gguf_type_name(tensor->type));
    tensor->bytes = (size_t)(tensor->elements / values) * (size_t)bytes;
    // Not a place yet: place_tensors turns the number into one.
    tensor->data = (const void *)(uintptr_t)offset;
    return STATUS_OK;
}

static int by_place(const void *left, const void *right) {
    const gguf_tensor_t *a = left, *b = right;
    return ((uintptr_t)a->data > (uintptr_t)b->data) - ((uintptr_t)a->data < (uintptr_t)b->data);
}

static int by_name(const void *left, const void *right) {
    return strcmp(((const gguf_tensor_t *)left)->name, ((const gguf_tensor_t *)right)->name);
}

static status_t place_tensors(gguf_t *file, size_t start, size_t alignment) {
    size_t bytes = file->bytes - start, after = 0;
    if (file->tensor_count) qsort(file->tensors, file->tensor_count, sizeof(*file->tensors), by_place);
    for (size_t i = 0; i < file->tensor_count; i++) {
        gguf_tensor_t *tensor = &file->tensors[i];
        size_t offset = (uintptr_t)tensor->data;
        if (offset % alignment)
            FAIL(STATUS_INVALID, "the tensor '%.160s' is not aligned to %zu bytes", tensor->name, alignment);
        if (offset > bytes || tensor->bytes > bytes - offset)
            FAIL(STATUS_INVALID, "the tensor '%.160s' lies outside of the file; is the download complete?",
                 tensor->name);
        if (offset < after) FAIL(STATUS_INVALID, "the tensor '%.160s' overlaps another", tensor->name);
        after = offset + tensor->bytes;
        tensor->data = file->memory + start + offset;
    }
    if (file->tensor_count) qsort(file->tensors, file->tensor_count, sizeof(*file->tensors), by_name);
    for (size_t i = 1; i < file->tensor_count; i++)
        if (!strcmp(file->tensors[i - 1].name, file->tensors[i].name))
            FAIL(STATUS_INVALID, "the tensor '%.160s' is there twice", file->tensors[i].name);
    return STATUS_OK;
}

// ---- the file ----

static status_t map_file(gguf_t *file, const char *path) {
    struct stat info;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe would be waited for
    if (descriptor < 0) FAIL(STATUS_INVALID, "cannot open it: %s", strerror(errno));
    if (fstat(descriptor, &info) || !S_ISREG(info.st_mode) || info.st_size < 24) {
        close(descriptor);
        FAIL(STATUS_INVALID, "it is no GGUF file: it is shorter than a header");
    }
    void *memory = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    int problem = errno;
    close(descriptor);
    if (memory == MAP_FAILED || !memory) FAIL(STATUS_IO, "cannot map it: %s", strerror(problem));
    file->memory = memory;
    file->bytes = (size_t)info.st_size;
    return STATUS_OK;
}

static status_t read_version(cursor_t *cursor) {
    uint64_t magic = 0, version = 0;
    if (!take(cursor, 4, &magic) || memcmp(cursor->at - 4, "GGUF", 4) != 0)
        FAIL(STATUS_INVALID, "it is no GGUF file: it does not begin with 'GGUF'");
    if (!take(cursor, 4, &version)) FAIL(STATUS_INVALID, "it ends within its header");
    if (version && !(version & 0xFFFF))
        FAIL(STATUS_INVALID, "it is a big-endian GGUF file; convert it with llama.cpp's gguf_convert_endian.py");
    if (version != 2 && version != 3)
        FAIL(STATUS_INVALID, "it is GGUF of version %llu; versions 2 and 3 are read", (unsigned long long)version);
    return STATUS_OK;
}

static status_t read_file(gguf_t *file) {
    cursor_t cursor = {file->memory, file->memory + file->bytes};
    uint64_t tensors = 0, values = 0;
    TRY(read_version(&cursor));
    if (!take(&cursor, 8, &tensors) || !take(&cursor, 8, &values)) FAIL(STATUS_INVALID, "it ends within its header");
    if (tensors > INT32_MAX) FAIL(STATUS_INVALID, "it claims %llu tensors", (unsigned long long)tensors);
    TRY(read_values(file, &cursor, values));
    int64_t parts = 1, alignment = DEFAULT_ALIGNMENT;
    const gguf_value_t *wanted = gguf_value(file, "general.alignment");
    if (wanted &&
        (!gguf_integer(wanted, 0, &alignment) || alignment < 1 || alignment > 1 << 20 || alignment & (alignment - 1)))
        FAIL(STATUS_INVALID, "the value of 'general.alignment' is no power of two");
    if (gguf_integer(gguf_value(file, "split.count"), 0, &parts) && parts > 1)
        FAIL(STATUS_INVALID, "it is one of %lld parts; join them with llama.cpp's 'llama-gguf-split --merge'",
             (long long)parts);
    for (uint64_t i = 0; i < tensors; i++) TRY(read_tensor(file, &cursor));
    size_t start = (size_t)(cursor.at - file->memory), step = (size_t)alignment;
    start = (start + step - 1) / step * step;
    return place_tensors(file, start < file->bytes ? start : file->bytes, step);
}

status_t gguf_open(const char *path, gguf_t **out) {
    gguf_t *file;
    *out = NULL;
    TRY(ALLOCATE(&file, 1));
    status_t status = map_file(file, path);
    if (!status) status = read_file(file);
    if (status) {
        gguf_close(file);
        return status_context(status, "%s", path);
    }
    *out = file;
    return STATUS_OK;
}

void gguf_close(gguf_t *file) {
    if (!file) return;
    for (size_t i = 0; i < file->value_count; i++) free(file->values[i].key);
    for (size_t i = 0; i < file->tensor_count; i++) free(file->tensors[i].name);
    free(file->values);
    free(file->tensors);
    if (file->memory) munmap(file->memory, file->bytes);
    free(file);
}

int gguf_count(const gguf_t *file) {
    return (int)file->tensor_count;
}

const gguf_tensor_t *gguf_at(const gguf_t *file, int index) {
    return &file->tensors[index];
}

const gguf_tensor_t *gguf_find(const gguf_t *file, const char *name) {
    gguf_tensor_t wanted = {.name = (char *)(uintptr_t)name};
    return file->tensor_count ? bsearch(&wanted, file->tensors, file->tensor_count, sizeof(wanted), by_name) : NULL;
}
