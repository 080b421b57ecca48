#include "common/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t item_bytes(const safetensors_item_t *item) {
    size_t bytes = dtype_bytes(item->dtype);
    for (int i = 0; i < item->dimensions; i++) bytes *= (size_t)item->shape[i];
    return bytes;
}

static status_t make_header(const safetensors_item_t *items, int count, const char *format, char **out) {
    static const char *const names[DTYPE_COUNT] = {"F32", "BF16", "F16", "I32", "I64", "U8"};
    json_t *header = json_object();
    size_t at = 0;
    bool failed = !header;
    if (format) failed |= json_object_set_new(header, "__metadata__", json_pack("{s:s}", "format", format)) != 0;
    for (int i = 0; i < count; i++) {
        size_t bytes = item_bytes(&items[i]);
        json_t *shape = json_array();
        for (int j = 0; j < items[i].dimensions; j++)
            failed |= json_array_append_new(shape, json_integer(items[i].shape[j])) != 0;
        json_t *entry = json_pack("{s:s,s:o,s:[I,I]}", "dtype", names[items[i].dtype], "shape", shape, "data_offsets",
                                  (json_int_t)at, (json_int_t)at + (json_int_t)bytes);
        failed |= !entry || json_object_set_new(header, items[i].name, entry) != 0;
        at += bytes;
    }
    char *text = failed ? NULL : json_dumps(header, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(header);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing the header of a safetensors file");
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    char *grown = realloc(text, padded + 1);
    if (!grown) {
        free(text);
        FAIL(STATUS_MEMORY, "out of memory while writing the header of a safetensors file");
    }
    memset(grown + length, ' ', padded - length);
    grown[padded] = 0;
    *out = grown;
    return STATUS_OK;
}

static status_t write_all(int file, const void *data, size_t bytes, const char *path) {
    const char *at = data;
    while (bytes) {
        ssize_t wrote = write(file, at, bytes);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(wrote < 0 ? errno : ENOSPC));
        at += wrote;
        bytes -= (size_t)wrote;
    }
    return STATUS_OK;
}

static status_t write_items(int file, const char *path, const safetensors_item_t *items, int count,
                            safetensors_load_t load, void *context) {
    void *buffer = NULL;
    size_t capacity = 0;
    status_t status = STATUS_OK;
    for (int i = 0; i < count && !status; i++) {
        size_t bytes = item_bytes(&items[i]);
        const void *data = items[i].data;
        if (!data && load) {
            status = memory_grow(&buffer, &capacity, bytes, 1);
            if (!status) status = load(context, i, buffer, bytes);
            data = buffer;
        }
        if (!status) status = write_all(file, data, bytes, path);
    }
    free(buffer);
    return status;
}

status_t safetensors_write(const char *path, const safetensors_item_t *items, int count, const char *metadata_format,
                           safetensors_load_t load, void *context) {
    char temporary[4096], *header = NULL;
    if (snprintf(temporary, sizeof(temporary), "%s.partial-%d", path, (int)getpid()) >= (int)sizeof(temporary))
        FAIL(STATUS_INVALID, "the path %s is too long", path);
    TRY(make_header(items, count, metadata_format, &header));
    status_t status = STATUS_OK;
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) status = STATUS_NEW(STATUS_IO, "cannot create %s: %s", temporary, strerror(errno));
    unsigned char length[8];
    uint64_t bytes = strlen(header);
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bytes >> (8 * i));
    if (!status) status = write_all(file, length, sizeof(length), temporary);
    if (!status) status = write_all(file, header, (size_t)bytes, temporary);
    if (!status) status = write_items(file, temporary, items, count, load, context);
    if (!status && fsync(file)) status = STATUS_NEW(STATUS_IO, "cannot flush %s: %s", temporary, strerror(errno));
    if (file >= 0 && close(file) && !status)
        status = STATUS_NEW(STATUS_IO, "cannot close %s: %s", temporary, strerror(errno));
    if (!status && rename(temporary, path))
        status = STATUS_NEW(STATUS_IO, "cannot rename %s to %s: %s", temporary, path, strerror(errno));
    if (status && file >= 0) unlink(temporary);
    free(header);
    return status;
}

// ---- folders ----

// A run of items that goes to one file; `load` of the whole list is asked by its own numbers.
typedef struct shard {
    int first, count;
    safetensors_load_t load;
    void *context;
} shard_t;

static status_t load_of_shard(void *context, int index, void *buffer, size_t bytes) {
    const shard_t *shard = context;
    return shard->load(shard->context, shard->first + index, buffer, bytes);
}

// Where the shards begin; `first` has room for count + 1 numbers. Returns how many there
// are.
static int plan_shards(const safetensors_item_t *items, int count, size_t limit, int *first) {
    int shards = 0;
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        size_t bytes = item_bytes(&items[i]);
        if (!i || bytes > limit - (used < limit ? used : limit)) {
            first[shards++] = i;
            used = 0;
        }
        used += bytes;
    }
    if (!shards) first[shards++] = 0;
    first[shards] = count;
    return shards;
}

static status_t shard_path(const char *directory, int index, int shards, char *name, char *path, size_t bytes) {
    snprintf(name, 64, "model-%05d-of-%05d.safetensors", index + 1, shards);
    if (shards == 1) snprintf(name, 64, "model.safetensors");
    if (snprintf(path, bytes, "%s/%s", directory, name) >= (int)bytes)
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    return STATUS_OK;
}

static status_t write_index(const char *directory, const safetensors_item_t *items, json_t *map, int count) {
    char path[4096];
    json_int_t total = 0;
    for (int i = 0; i < count; i++) total += (json_int_t)item_bytes(&items[i]);
    if (snprintf(path, sizeof(path), "%s/model.safetensors.index.json", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", directory);
    json_t *index = json_pack("{s:{s:I},s:O}", "metadata", "total_size", total, "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(index);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing %s", path);
    status_t status = STATUS_OK;
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) status = STATUS_NEW(STATUS_IO, "cannot create %s: %s", path, strerror(errno));
    if (!status) status = write_all(file, text, strlen(text), path);
    if (!status && fsync(file)) status = STATUS_NEW(STATUS_IO, "cannot flush %s: %s", path, strerror(errno));
    if (file >= 0 && close(file) && !status)
        status = STATUS_NEW(STATUS_IO, "cannot close %s: %s", path, strerror(errno));
    free(text);
    return status;
}

static status_t write_shards(const char *directory, const safetensors_item_t *items, const int *first, int shards,
                             const char *format, shard_t *shard, json_t *map) {
    char name[64], path[4096];
    for (int i = 0; i < shards; i++) {
        TRY(shard_path(directory, i, shards, name, path, sizeof(path)));
        shard->first = first[i];
        shard->count = first[i + 1] - first[i];
        TRY(safetensors_write(path, items + shard->first, shard->count, format, shard->load ? load_of_shard : NULL,
                              shard));
        for (int j = first[i]; j < first[i + 1]; j++)
            if (json_object_set_new(map, items[j].name, json_string(name)))
                FAIL(STATUS_MEMORY, "out of memory while writing the index of %s", directory);
    }
    return shards > 1 ? write_index(directory, items, map, first[shards]) : STATUS_OK;
}

status_t safetensors_write_folder(const char *directory, const safetensors_item_t *items, int count,
                                  const char *metadata_format, safetensors_load_t load, void *context,
                                  size_t shard_bytes) {
    int *first;
    TRY(ALLOCATE(&first, count + 2));
    int shards = plan_shards(items, count, shard_bytes, first);
    shard_t shard = {.load = load, .context = context};
    json_t *map = json_object();
    status_t status = map ? write_shards(directory, items, first, shards, metadata_format, &shard, map)
                          : STATUS_NEW(STATUS_MEMORY, "out of memory while writing the index of %s", directory);
    json_decref(map);
    free(first);
    return status;
}
