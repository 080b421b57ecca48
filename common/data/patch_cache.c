// Preprocessed images within a budget: a hash table of entries, oldest use first out, pinned while a step needs them.
#include "common/data/packed.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 4096 };

typedef struct entry {
    uint64_t hash;
    image_patches_t *patches;
    uint64_t used;   // clock of the last use
    uint64_t pinned; // the pin generation that holds it
    struct entry *next;
} entry_t;

struct patch_cache {
    const image_rules_t *rules;
    size_t capacity, bytes;
    uint64_t clock, generation;
    entry_t *bucket[BUCKETS];
};

status_t patch_cache_open(const image_rules_t *rules, size_t capacity_bytes, patch_cache_t **out) {
    TRY(ALLOCATE(out, 1));
    (*out)->rules = rules;
    (*out)->capacity = capacity_bytes;
    (*out)->generation = 1;
    return STATUS_OK;
}

static size_t entry_bytes(const entry_t *entry) {
    return sizeof(*entry) + (size_t)entry->patches->rows * (size_t)entry->patches->columns * sizeof(float);
}

void patch_cache_close(patch_cache_t *cache) {
    if (!cache) return;
    for (int b = 0; b < BUCKETS; b++)
        for (entry_t *entry = cache->bucket[b], *next; entry; entry = next) {
            next = entry->next;
            image_patches_free(entry->patches);
            free(entry);
        }
    free(cache);
}

// Drops the least recently used entry that is not pinned; false when all are.
static bool drop_oldest(patch_cache_t *cache) {
    entry_t **oldest = NULL;
    for (int b = 0; b < BUCKETS; b++)
        for (entry_t **at = &cache->bucket[b]; *at; at = &(*at)->next)
            if ((*at)->pinned != cache->generation && (!oldest || (*at)->used < (*oldest)->used)) oldest = at;
    if (!oldest) return false;
    entry_t *entry = *oldest;
    *oldest = entry->next;
    cache->bytes -= entry_bytes(entry);
    image_patches_free(entry->patches);
    free(entry);
    return true;
}

status_t patch_cache_get(patch_cache_t *cache, packed_t *packed, int32_t image, const image_patches_t **out) {
    const void *bytes;
    size_t size;
    uint64_t hash = packed_image_hash(packed, image);
    entry_t **bucket = &cache->bucket[hash % BUCKETS];
    for (entry_t *entry = *bucket; entry; entry = entry->next)
        if (entry->hash == hash) {
            entry->used = ++cache->clock;
            entry->pinned = cache->generation;
            *out = entry->patches;
            return STATUS_OK;
        }
    entry_t *entry;
    TRY(packed_image(packed, image, &bytes, &size, &hash));
    TRY(ALLOCATE(&entry, 1));
    status_t status = image_patches_make(cache->rules, bytes, size, &entry->patches);
    if (status) {
        free(entry);
        return status_context(status, "image %d of the packed file", image);
    }
    entry->hash = hash;
    entry->used = ++cache->clock;
    entry->pinned = cache->generation;
    entry->next = *bucket;
    *bucket = entry;
    cache->bytes += entry_bytes(entry);
    while (cache->bytes > cache->capacity && drop_oldest(cache)) {
    }
    *out = entry->patches;
    return STATUS_OK;
}

void patch_cache_release_all(patch_cache_t *cache) {
    cache->generation++;
}
