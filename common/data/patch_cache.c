// Patches by content hash, least recently used first to go. What a step uses is pinned until the step ends, so the
// budget can be exceeded by one step's pictures, never by more.
#include "common/data/packed.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry {
    image_patches_t *patches;
    size_t bytes;
    bool pinned;
    struct entry *newer, *older; // by use
    struct entry *chain;         // same bucket
} entry_t;

struct patch_cache {
    image_rules_t rules;
    size_t capacity, used;
    entry_t *newest, *oldest;
    entry_t **bucket;
    size_t buckets, entries;
};

enum { FIRST_BUCKETS = 256 };

status_t patch_cache_open(const image_rules_t *rules, size_t capacity_bytes, patch_cache_t **out) {
    patch_cache_t *cache;
    *out = NULL;
    TRY(ALLOCATE(&cache, 1));
    cache->rules = *rules;
    cache->capacity = capacity_bytes;
    cache->buckets = FIRST_BUCKETS;
    status_t status = ALLOCATE(&cache->bucket, cache->buckets);
    if (status) {
        free(cache);
        return status;
    }
    *out = cache;
    return STATUS_OK;
}

static void list_remove(patch_cache_t *cache, entry_t *entry) {
    *(entry->newer ? &entry->newer->older : &cache->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &cache->oldest) = entry->newer;
    entry->newer = entry->older = NULL;
}

static void list_put_first(patch_cache_t *cache, entry_t *entry) {
    entry->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = entry;
    cache->newest = entry;
}

static entry_t **find(patch_cache_t *cache, uint64_t hash) {
    entry_t **link = &cache->bucket[hash & (cache->buckets - 1)];
    while (*link && (*link)->patches->content_hash != hash) link = &(*link)->chain;
    return link;
}

static void drop(patch_cache_t *cache, entry_t *entry) {
    *find(cache, entry->patches->content_hash) = entry->chain;
    list_remove(cache, entry);
    cache->used -= entry->bytes;
    cache->entries--;
    image_patches_free(entry->patches);
    free(entry);
}

// Drops the oldest unpinned entries until the budget holds.
static void shrink(patch_cache_t *cache) {
    for (entry_t *entry = cache->oldest; entry && cache->used > cache->capacity;) {
        entry_t *newer = entry->newer;
        if (!entry->pinned) drop(cache, entry);
        entry = newer;
    }
}

static status_t grow_buckets(patch_cache_t *cache) {
    entry_t **bucket;
    if (cache->entries < 2 * cache->buckets) return STATUS_OK;
    size_t buckets = 4 * cache->buckets;
    TRY(ALLOCATE(&bucket, buckets));
    for (entry_t *entry = cache->oldest; entry; entry = entry->newer) {
        entry_t **link = &bucket[entry->patches->content_hash & (buckets - 1)];
        entry->chain = *link;
        *link = entry;
    }
    free(cache->bucket);
    cache->bucket = bucket;
    cache->buckets = buckets;
    return STATUS_OK;
}

static status_t load(patch_cache_t *cache, packed_t *packed, int32_t image, entry_t **out) {
    const void *bytes;
    size_t size;
    uint64_t hash;
    entry_t *entry;
    TRY(grow_buckets(cache));
    TRY(packed_image(packed, image, &bytes, &size, &hash));
    TRY(ALLOCATE(&entry, 1));
    status_t status = image_patches_make(&cache->rules, bytes, size, &entry->patches);
    if (status) free(entry);
    TRY(status_context(status, "picture %d of the packed data", (int)image));
    entry->bytes = sizeof(*entry) + sizeof(*entry->patches) +
                   sizeof(float) * (size_t)entry->patches->rows * (size_t)entry->patches->columns;
    entry_t **link = find(cache, hash);
    entry->chain = *link;
    *link = entry;
    list_put_first(cache, entry);
    cache->used += entry->bytes;
    cache->entries++;
    *out = entry;
    return STATUS_OK;
}

status_t patch_cache_get(patch_cache_t *cache, packed_t *packed, int32_t image, const image_patches_t **out) {
    *out = NULL;
    if (image < 0 || image >= packed_images(packed))
        FAIL(STATUS_INVALID, "the packed data has %d pictures; there is no picture %d", (int)packed_images(packed),
             (int)image);
    entry_t *entry = *find(cache, packed_image_hash(packed, image));
    if (entry) {
        list_remove(cache, entry);
        list_put_first(cache, entry);
    } else {
        TRY(load(cache, packed, image, &entry));
    }
    entry->pinned = true;
    *out = entry->patches;
    shrink(cache);
    return STATUS_OK;
}

void patch_cache_release_all(patch_cache_t *cache) {
    for (entry_t *entry = cache->newest; entry; entry = entry->older) entry->pinned = false;
    shrink(cache);
}

void patch_cache_close(patch_cache_t *cache) {
    if (!cache) return;
    while (cache->oldest) drop(cache, cache->oldest);
    free(cache->bucket);
    free(cache);
}
