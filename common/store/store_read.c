// Reading behind store.h. Every dataset is opened through dataset_open, which refuses what a hostile or torn file could
// use to make a reader allocate or read what the file does not hold.
#include "common/store/chunk.h"
#include "common/store/store_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    CHUNK_LIMIT = 64 << 20,   // the largest chunk a reader takes: one is decompressed at a time
    DEFLATE_RATIO = 1100,     // deflate cannot expand more than 1032 times
    STRING_LIMIT = 256 << 20, // bytes of one string
    TYPE_INTEGER = 0,         // classes of types in the file
    TYPE_REAL = 1,
    TYPE_STRING = 3,
};

// A number type as the file spells it.
typedef struct number_type {
    const char *name;
    size_t size;
    int exponent; // bits of the exponent; 0: an integer
    bool is_signed;
} number_type_t;

static const number_type_t type_number = {"number", 8, 0, true}, type_real = {"real", 8, 11, true};

static const number_type_t *type_of(dtype_t dtype) {
    static const number_type_t type[DTYPE_COUNT] = {
        [DTYPE_F32] = {"f32", 4, 8, true}, [DTYPE_BF16] = {"bf16", 2, 8, true}, [DTYPE_F16] = {"f16", 2, 5, true},
        [DTYPE_I32] = {"i32", 4, 0, true}, [DTYPE_I64] = {"i64", 8, 0, true},   [DTYPE_U8] = {"u8", 1, 0, false}};
    return dtype < DTYPE_COUNT ? &type[dtype] : NULL;
}

// Whether a datatype message says exactly this type, little-endian and without padding.
static bool type_is(const directory_object_t *object, const number_type_t *type) {
    uint8_t expected[20] = {0};
    size_t bits = 8 * type->size, bytes = type->exponent ? 20 : 12;
    expected[0] = type->exponent ? TYPE_REAL : TYPE_INTEGER;
    expected[4] = (uint8_t)type->size;
    expected[10] = (uint8_t)bits;
    if (type->exponent) {
        unsigned mantissa = (unsigned)bits - 1 - (unsigned)type->exponent, bias = (1u << (type->exponent - 1)) - 1;
        expected[1] = 0x20; // the mantissa's first bit is left out
        expected[2] = (uint8_t)(bits - 1);
        expected[12] = (uint8_t)mantissa;
        expected[13] = (uint8_t)type->exponent;
        expected[15] = (uint8_t)mantissa;
        expected[16] = (uint8_t)bias;
        expected[17] = (uint8_t)(bias >> 8);
    } else {
        expected[1] = type->is_signed ? 0x08 : 0;
    }
    return object->type_bytes >= bytes && (object->type[0] & 0x0f) == expected[0] &&
           memcmp(object->type + 1, expected + 1, bytes - 1) == 0;
}

status_t store_check_name(const store_t *store, const char *name) {
    size_t length = strlen(name);
    if (!length || length >= STORE_NAME_BYTES || name[0] == '/' || name[length - 1] == '/' || strstr(name, "//"))
        FAIL(STATUS_INVALID, "'%s' is no name for a dataset of '%s'", name, store->path);
    return STATUS_OK;
}

static status_t open_reader(store_t *store) {
    static const char signature[8] = "\x89HDF\r\n\x1a\n";
    char start[sizeof(signature)];
    directory_file_t *reader = &store->reader;
    struct stat about;
    reader->path = store->path;
    // A pipe of that name must not be waited for.
    reader->fd = open(store->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (reader->fd < 0)
        FAIL(errno == ENOENT || errno == ENOTDIR ? STATUS_INVALID : STATUS_IO, "cannot open '%s': %s", store->path,
             strerror(errno));
    if (fstat(reader->fd, &about) != 0) FAIL(STATUS_IO, "cannot look at '%s': %s", store->path, strerror(errno));
    if (!S_ISREG(about.st_mode)) FAIL(STATUS_INVALID, "'%s' is not a file", store->path);
    reader->bytes = (uint64_t)about.st_size;
    if (reader->bytes < sizeof(start)) FAIL(STATUS_INVALID, "'%s' is no HDF5 file", store->path);
    TRY(directory_read(reader, 0, start, sizeof(start)));
    if (memcmp(start, signature, sizeof(start)) != 0) FAIL(STATUS_INVALID, "'%s' is no HDF5 file", store->path);
    return directory_list(reader, &store->directory);
}

status_t store_open(const char *path, store_t **out) {
    store_t *store;
    *out = NULL;
    TRY(store_new(path, &store));
    status_t status = open_reader(store);
    if (status) {
        store_close(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

bool store_has(store_t *store, const char *name) {
    return directory_find(&store->directory, name) != NULL;
}

size_t store_names(const store_t *store) {
    return store->directory.count;
}

const char *store_name(const store_t *store, size_t index) {
    const directory_entry_t *entry = index < store->directory.count ? &store->directory.entry[index] : NULL;
    return entry && entry->dataset ? entry->name : NULL;
}

// ---- datasets ----

static status_t dataset_find(store_t *store, const char *name, directory_object_t *out) {
    TRY(store_check_name(store, name));
    if (store->temporary) FAIL(STATUS_FAILED, "'%s' is open for writing and cannot be read", store->path);
    const directory_entry_t *entry = directory_find(&store->directory, name);
    if (!entry || !entry->dataset) FAIL(STATUS_INVALID, "'%s' has no dataset '%s'", store->path, name);
    // Each reading may look at as much metadata as opening did.
    directory_file_t reader = store->reader;
    reader.budget = reader.bytes + (1 << 16);
    TRY(directory_describe(&reader, entry->address, out));
    if (out->kind != OBJECT_DATASET) FAIL(STATUS_INVALID, "'%s' has no dataset '%s'", store->path, name);
    return STATUS_OK;
}

// What is stored must be all of what is claimed, or what it can inflate to.
static status_t dataset_check(const store_t *store, const char *name, const directory_object_t *object) {
    uint64_t bytes = object->count * object->size, stored = object->address == DIRECTORY_NOWHERE ? 0 : object->stored;
    bool good = stored == bytes &&
                (!bytes || (object->address <= store->reader.bytes && bytes <= store->reader.bytes - object->address));
    if (object->chunk) {
        uint64_t chunks;
        directory_file_t reader = store->reader;
        reader.budget = reader.bytes + (1 << 16);
        TRY(chunk_survey(&reader, object->tree, &chunks, &stored));
        uint64_t most = stored < store->reader.bytes ? stored : store->reader.bytes;
        good = chunks == object->count / object->chunk + (object->count % object->chunk != 0) &&
               bytes / DEFLATE_RATIO <= most && object->chunk <= object->count;
    }
    if (!good)
        FAIL(STATUS_INVALID, "'%s' in '%s' claims %llu bytes and the file holds %llu of them: it is torn or damaged",
             name, store->path, (unsigned long long)bytes, (unsigned long long)stored);
    return STATUS_OK;
}

// Opens a dataset of `rank` dimensions (0 or 1) and of this type, NULL: a string.
static status_t dataset_open(store_t *store, const char *name, int rank, const number_type_t *type,
                             directory_object_t *out) {
    TRY(dataset_find(store, name, out));
    if (type ? !type_is(out, type) : (out->type[0] & 0x0f) != TYPE_STRING)
        FAIL(STATUS_INVALID, "'%s' in '%s' is not of type %s", name, store->path, type ? type->name : "string");
    if (out->strange || (out->chunk && (!rank || out->size > CHUNK_LIMIT / out->chunk)))
        FAIL(STATUS_INVALID, "'%s' in '%s' is stored in a way that Poise does not write; make the file anew", name,
             store->path);
    if (out->rank != rank) FAIL(STATUS_INVALID, "'%s' in '%s' has not %d dimensions", name, store->path, rank);
    if (out->count > (uint64_t)INT64_MAX / out->size)
        FAIL(STATUS_INVALID, "'%s' in '%s' claims an impossible size", name, store->path);
    return dataset_check(store, name, out);
}

status_t store_count(store_t *store, const char *name, int64_t *count) {
    directory_object_t object;
    *count = 0;
    TRY(dataset_find(store, name, &object));
    if (object.rank < 0 || object.rank > 1 || object.count > INT64_MAX)
        FAIL(STATUS_INVALID, "cannot count the elements of '%s' in '%s': it is damaged", name, store->path);
    *count = (int64_t)object.count;
    return STATUS_OK;
}

// Reads elements first .. first + count - 1 of an open dataset.
static status_t dataset_read(const store_t *store, const char *name, const directory_object_t *object, int64_t first,
                             int64_t count, void *out) {
    status_t status = STATUS_OK;
    if (object->chunk && count)
        status = chunk_read(&store->reader, object->tree, object->chunk, object->size, first, count, out);
    else if (count)
        status = directory_read(&store->reader, object->address + (uint64_t)first * object->size, out,
                                (size_t)count * object->size);
    return status_context(status, "'%s'", name);
}

static status_t known_type(const store_t *store, const char *name, dtype_t dtype, const number_type_t **out) {
    *out = type_of(dtype);
    if (!*out) FAIL(STATUS_INVALID, "cannot read '%s' from '%s' as an unknown type", name, store->path);
    return STATUS_OK;
}

status_t store_read(store_t *store, const char *name, dtype_t dtype, int64_t first, int64_t count, void *out) {
    directory_object_t object;
    const number_type_t *type;
    TRY(known_type(store, name, dtype, &type));
    TRY(dataset_open(store, name, 1, type, &object));
    int64_t elements = (int64_t)object.count;
    if (first < 0 || count < 0 || first > elements || count > elements - first)
        FAIL(STATUS_INVALID, "'%s' in '%s' has %lld elements; %lld from element %lld on were asked for", name,
             store->path, (long long)elements, (long long)count, (long long)first);
    return dataset_read(store, name, &object, first, count, out);
}

status_t store_read_all(store_t *store, const char *name, dtype_t dtype, void **out, int64_t *count) {
    directory_object_t object;
    const number_type_t *type;
    void *data;
    *out = NULL;
    *count = 0;
    TRY(known_type(store, name, dtype, &type));
    TRY(dataset_open(store, name, 1, type, &object));
    TRY(memory_allocate((size_t)object.count, object.size, &data));
    status_t status = dataset_read(store, name, &object, 0, (int64_t)object.count, data);
    if (status) {
        free(data);
        return status;
    }
    *out = data;
    *count = (int64_t)object.count;
    return STATUS_OK;
}

static status_t read_scalar(store_t *store, const char *name, const number_type_t *type, void *out) {
    directory_object_t object;
    TRY(dataset_open(store, name, 0, type, &object));
    return dataset_read(store, name, &object, 0, 1, out);
}

status_t store_read_number(store_t *store, const char *name, int64_t *out) {
    *out = 0;
    return read_scalar(store, name, &type_number, out);
}

status_t store_read_real(store_t *store, const char *name, double *out) {
    *out = 0;
    return read_scalar(store, name, &type_real, out);
}

status_t store_read_string(store_t *store, const char *name, char **out) {
    directory_object_t object;
    char *text;
    *out = NULL;
    TRY(dataset_open(store, name, 0, NULL, &object));
    if (object.size > STRING_LIMIT)
        FAIL(STATUS_INVALID, "the string '%s' in '%s' is longer than %d bytes", name, store->path, STRING_LIMIT);
    TRY(memory_allocate((size_t)object.size + 1, 1, (void **)&text));
    status_t status = dataset_read(store, name, &object, 0, 1, text);
    if (status) {
        free(text);
        return status;
    }
    *out = text;
    return STATUS_OK;
}
