#include "common/model/safetensors.h"
#include "common/model/half.h"
#include "common/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_HEADER_BYTES = 100000000, INDEX_BYTES = 64 << 20, MAX_FILES = 4096, MAX_PATH = 4096 };

typedef struct mapping {
    void *memory;
    size_t bytes;
} mapping_t;

struct safetensors {
    mapping_t *maps;
    size_t map_count, map_capacity;
    safetensors_tensor_t *tensors; // sorted by name
    size_t count, capacity;
    json_t *metadata;
};

static const struct {
    const char *name;
    dtype_t dtype;
} dtypes[] = {{"F32", DTYPE_F32}, {"BF16", DTYPE_BF16}, {"F16", DTYPE_F16}, {"I32", DTYPE_I32},
              {"I64", DTYPE_I64}, {"U8", DTYPE_U8},     {"BOOL", DTYPE_U8}};

static status_t map_file(const char *path, mapping_t *out) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe would be waited for
    if (file < 0) FAIL(STATUS_INVALID, "cannot open %s: %s", path, strerror(errno));
    struct stat info;
    if (fstat(file, &info) || !S_ISREG(info.st_mode) || info.st_size < 8) {
        close(file);
        FAIL(STATUS_INVALID, "%s is not a safetensors file: it is shorter than its header", path);
    }
    void *memory = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    int problem = errno;
    close(file);
    if (memory == MAP_FAILED || !memory) FAIL(STATUS_IO, "cannot map %s: %s", path, strerror(problem));
    *out = (mapping_t){memory, (size_t)info.st_size};
    return STATUS_OK;
}

static bool parse_dtype(const json_t *json, dtype_t *out) {
    const char *name = json_string_value(json);
    for (size_t i = 0; name && i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (!strcmp(name, dtypes[i].name)) {
            *out = dtypes[i].dtype;
            return true;
        }
    return false;
}

// One header entry. `data_bytes` is what lies behind the header.
static status_t parse_tensor(const json_t *entry, const char *name, const char *data, size_t data_bytes,
                             safetensors_tensor_t *out) {
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    *out = (safetensors_tensor_t){.elements = 1};
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!parse_dtype(dtype, &out->dtype))
        FAIL(STATUS_INVALID,
             "the tensor '%.160s' is of the type %.32s, which Poise does not read (F32, BF16, F16, I32, I64, U8)", name,
             json_is_string(dtype) ? json_string_value(dtype) : "nothing");
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMENSIONS)
        FAIL(STATUS_INVALID, "the tensor '%.160s' has no shape of at most %d dimensions", name,
             SAFETENSORS_MAX_DIMENSIONS);
    out->dimensions = (int)json_array_size(shape);
    for (int i = 0; i < out->dimensions; i++) {
        const json_t *side = json_array_get(shape, (size_t)i);
        json_int_t value = json_integer_value(side);
        if (!json_is_integer(side) || value < 0 || (value && out->elements > INT64_MAX / 16 / value))
            FAIL(STATUS_INVALID, "the tensor '%.160s' has an impossible shape", name);
        out->shape[i] = value;
        out->elements *= value;
    }
    out->bytes = (size_t)out->elements * dtype_bytes(out->dtype);
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) || begin < 0 ||
        end < begin || (uint64_t)end > data_bytes)
        FAIL(STATUS_INVALID, "the tensor '%.160s' lies outside of the file", name);
    if ((uint64_t)(end - begin) != out->bytes)
        FAIL(STATUS_INVALID, "the tensor '%.160s' takes %lld bytes and its shape needs %zu", name,
             (long long)(end - begin), out->bytes);
    out->data = data + begin;
    return memory_copy_string(name, &out->name);
}

static int by_place(const void *left, const void *right) {
    const safetensors_tensor_t *a = left, *b = right;
    if (a->data != b->data) return a->data < b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int by_name(const void *left, const void *right) {
    return strcmp(((const safetensors_tensor_t *)left)->name, ((const safetensors_tensor_t *)right)->name);
}

// The tensors of one file, in order of place, must cover its data exactly.
static status_t check_cover(safetensors_tensor_t *tensors, size_t count, const char *data, size_t bytes) {
    if (count) qsort(tensors, count, sizeof(*tensors), by_place);
    const char *at = data;
    for (size_t i = 0; i < count; i++) {
        if ((const char *)tensors[i].data != at)
            FAIL(STATUS_INVALID, "the tensor '%.160s' %s", tensors[i].name,
                 (const char *)tensors[i].data < at ? "overlaps another" : "has a gap before it");
        at += tensors[i].bytes;
    }
    if (at != data + bytes) FAIL(STATUS_INVALID, "%zu bytes behind the last tensor belong to none", data + bytes - at);
    return STATUS_OK;
}

static status_t parse_entries(safetensors_t *file, json_t *header, const char *data, size_t data_bytes) {
    const char *name;
    json_t *entry;
    size_t first = file->count;
    json_object_foreach(header, name, entry) {
        if (!strcmp(name, "__metadata__")) {
            if (!json_is_object(entry)) FAIL(STATUS_INVALID, "__metadata__ is not an object");
            if (!file->metadata) file->metadata = json_incref(entry);
            continue;
        }
        if (!json_is_object(entry)) FAIL(STATUS_INVALID, "the tensor '%.160s' is not described by an object", name);
        TRY(memory_grow((void **)&file->tensors, &file->capacity, file->count + 1, sizeof(*file->tensors)));
        TRY(parse_tensor(entry, name, data, data_bytes, &file->tensors[file->count]));
        file->count++;
    }
    // (A file without tensors may be the first.)
    safetensors_tensor_t *tensors = file->tensors ? file->tensors + first : NULL;
    return check_cover(tensors, file->count - first, data, data_bytes);
}

static status_t add_file(safetensors_t *file, const char *path) {
    mapping_t map = {0};
    if (file->map_count == MAX_FILES) FAIL(STATUS_INVALID, "more than %d safetensors files", MAX_FILES);
    TRY(memory_grow((void **)&file->maps, &file->map_capacity, file->map_count + 1, sizeof(*file->maps)));
    TRY(map_file(path, &map));
    file->maps[file->map_count++] = map;
    const unsigned char *bytes = map.memory;
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > map.bytes - 8 || header_bytes > MAX_HEADER_BYTES)
        FAIL(STATUS_INVALID, "%s: its header says that it has %llu bytes, which the file does not hold", path,
             (unsigned long long)header_bytes);
    json_error_t error;
    json_t *header = json_loadb((const char *)bytes + 8, (size_t)header_bytes, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(header)) {
        json_decref(header);
        FAIL(STATUS_INVALID, "%s: the header is not a JSON object: %s", path, header ? "another type" : error.text);
    }
    status_t status =
        parse_entries(file, header, (const char *)bytes + 8 + header_bytes, map.bytes - 8 - (size_t)header_bytes);
    json_decref(header);
    return status ? status_context(status, "%s", path) : STATUS_OK;
}

static status_t sort_names(safetensors_t *file) {
    if (file->count) qsort(file->tensors, file->count, sizeof(*file->tensors), by_name);
    for (size_t i = 1; i < file->count; i++)
        if (!strcmp(file->tensors[i - 1].name, file->tensors[i].name))
            FAIL(STATUS_INVALID, "the tensor '%.160s' is in two files", file->tensors[i].name);
    return STATUS_OK;
}

status_t safetensors_open(const char *path, safetensors_t **out) {
    safetensors_t *file;
    *out = NULL;
    TRY(ALLOCATE(&file, 1));
    status_t status = add_file(file, path);
    if (!status) status = sort_names(file);
    if (status) {
        safetensors_close(file);
        PASS_ON(status);
    }
    *out = file;
    return STATUS_OK;
}

static status_t add_shards(safetensors_t *file, const char *directory, const json_t *map) {
    char path[MAX_PATH];
    const char *name;
    json_t *value, *seen = json_object();
    status_t status = STATUS_OK;
    json_object_foreach((json_t *)(uintptr_t)map, name, value) {
        const char *shard = json_string_value(value);
        if (!shard || strchr(shard, '/') || !*shard)
            FAIL_GOTO(status, done, STATUS_INVALID, "the index gives '%.160s' no plain file name", name);
        if (json_object_get(seen, shard)) continue;
        json_object_set_new(seen, shard, json_true());
        if (snprintf(path, sizeof(path), "%s/%s", directory, shard) >= (int)sizeof(path))
            FAIL_GOTO(status, done, STATUS_INVALID, "the path %s/%.200s is too long", directory, shard);
        TRY_GOTO(status, done, add_file(file, path));
    }
    TRY_GOTO(status, done, sort_names(file));
    json_object_foreach((json_t *)(uintptr_t)map, name, value) {
        if (!safetensors_find(file, name))
            FAIL_GOTO(status, done, STATUS_INVALID, "the index names '%.160s', which no file holds", name);
    }
done:
    json_decref(seen);
    return status;
}

static status_t open_index(const char *directory, const char *path, safetensors_t **out) {
    json_error_t error;
    char *text;
    size_t size;
    TRY(file_read_whole(path, INDEX_BYTES, &text, &size));
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!json) FAIL(STATUS_INVALID, "cannot read %s: %s", path, error.text);
    const json_t *map = json_object_get(json, "weight_map");
    safetensors_t *file = NULL;
    status_t status =
        json_is_object(map) ? ALLOCATE(&file, 1) : STATUS_NEW(STATUS_INVALID, "%s has no 'weight_map' object", path);
    if (!status) status = add_shards(file, directory, map);
    json_decref(json);
    if (status) {
        safetensors_close(file);
        PASS_ON(status);
    }
    *out = file;
    return STATUS_OK;
}

status_t safetensors_open_folder(const char *directory, safetensors_t **out) {
    static const char *const others[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", NULL};
    char path[MAX_PATH];
    *out = NULL;
    if (snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    // The single file first, as transformers does.
    snprintf(path, sizeof(path), "%s/model.safetensors", directory);
    if (!access(path, F_OK)) return safetensors_open(path, out);
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory);
    if (!access(path, F_OK)) return open_index(directory, path, out);
    for (const char *const *name = others; *name; name++) {
        snprintf(path, sizeof(path), "%s/%s", directory, *name);
        if (!access(path, F_OK))
            FAIL(STATUS_INVALID,
                 "%s holds its weights as %s, which can run code when it is read; let transformers load it and "
                 "save_pretrained it as safetensors",
                 directory, *name);
    }
    FAIL(STATUS_INVALID, "%s holds neither model.safetensors nor model.safetensors.index.json", directory);
}

void safetensors_close(safetensors_t *file) {
    if (!file) return;
    for (size_t i = 0; i < file->count; i++) free(file->tensors[i].name);
    for (size_t i = 0; i < file->map_count; i++) munmap(file->maps[i].memory, file->maps[i].bytes);
    json_decref(file->metadata);
    free(file->tensors);
    free(file->maps);
    free(file);
}

int safetensors_count(const safetensors_t *file) {
    return (int)file->count;
}

const safetensors_tensor_t *safetensors_at(const safetensors_t *file, int index) {
    return &file->tensors[index];
}

const safetensors_tensor_t *safetensors_find(const safetensors_t *file, const char *name) {
    safetensors_tensor_t key = {.name = (char *)(uintptr_t)name};
    return file->count ? bsearch(&key, file->tensors, file->count, sizeof(key), by_name) : NULL;
}

const char *safetensors_metadata(const safetensors_t *file, const char *key) {
    return json_string_value(json_object_get(file->metadata, key));
}

status_t safetensors_read_f32(const safetensors_tensor_t *tensor, float *out) {
    if (tensor->dtype == DTYPE_F32) {
        if (tensor->bytes) memcpy(out, tensor->data, tensor->bytes);
        return STATUS_OK;
    }
    if (tensor->dtype != DTYPE_BF16 && tensor->dtype != DTYPE_F16)
        FAIL(STATUS_INVALID, "the tensor '%.160s' is %s, not floating point", tensor->name, dtype_name(tensor->dtype));
    const char *data = tensor->data;
    for (int64_t i = 0; i < tensor->elements; i++) {
        uint16_t raw;
        memcpy(&raw, data + 2 * i, sizeof(raw));
        uint32_t wide = (uint32_t)raw << 16;
        if (tensor->dtype == DTYPE_F16)
            out[i] = half_to_float(raw);
        else
            memcpy(&out[i], &wide, sizeof(wide));
    }
    return STATUS_OK;
}

status_t safetensors_read_i32(const safetensors_tensor_t *tensor, int32_t *out) {
    const char *data = tensor->data;
    for (int64_t i = 0; i < tensor->elements; i++) {
        int64_t value = 0;
        if (tensor->dtype == DTYPE_I64) {
            memcpy(&value, data + 8 * i, sizeof(value));
        } else if (tensor->dtype == DTYPE_I32) {
            int32_t narrow;
            memcpy(&narrow, data + 4 * i, sizeof(narrow));
            value = narrow;
        } else if (tensor->dtype == DTYPE_U8) {
            value = (unsigned char)data[i];
        } else {
            FAIL(STATUS_INVALID, "the tensor '%.160s' is %s, not whole numbers", tensor->name,
                 dtype_name(tensor->dtype));
        }
        if (value < INT32_MIN || value > INT32_MAX)
            FAIL(STATUS_INVALID, "the tensor '%.160s' holds %lld, which is out of range", tensor->name,
                 (long long)value);
        out[i] = (int32_t)value;
    }
    return STATUS_OK;
}
