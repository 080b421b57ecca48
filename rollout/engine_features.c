// Image features on the device, by (content hash, vision version), within a byte budget: the least recently used one
// that no prompt is being prefilled with goes first. What is computed again has the same bits, because the vision part
// computes each image by itself.
#include "rollout/engine_internal.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROWS = 256 };

static feature_entry_t **bucket_of(feature_store_t *store, uint64_t hash) {
    return &store->bucket[(hash ^ (hash >> 32)) % FEATURE_BUCKETS];
}

static void unlink_use(feature_store_t *store, feature_entry_t *entry) {
    *(entry->newer ? &entry->newer->older : &store->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &store->oldest) = entry->newer;
    entry->newer = entry->older = NULL;
}

static void link_newest(feature_store_t *store, feature_entry_t *entry) {
    entry->older = store->newest;
    *(store->newest ? &store->newest->newer : &store->oldest) = entry;
    store->newest = entry;
}

static void drop(feature_store_t *store, feature_entry_t *entry) {
    feature_entry_t **link = bucket_of(store, entry->hash);
    while (*link != entry) link = &(*link)->next_in_bucket;
    *link = entry->next_in_bucket;
    unlink_use(store, entry);
    memcpy(store->free + store->free_count, entry->row, (size_t)entry->rows * sizeof(*store->free));
    store->free_count += entry->rows;
    free(entry);
}

void feature_store_clear(engine_t *engine) {
    while (engine->features.newest) drop(&engine->features, engine->features.newest);
    engine->features.vision_version = engine->model->vision_version;
}

static status_t allocate_rows(engine_t *engine, int rows, matrix_t *out, int32_t **free_rows) {
    const model_config_t *config = &engine->model->config;
    dtype_t dtype = model_head(engine->model)->value.dtype;
    void *memory = NULL;
    TRY(ALLOCATE(free_rows, rows));
    size_t bytes = (size_t)rows * (size_t)config->hidden * dtype_bytes(dtype);
    status_t status = bytes ? ledger_take(engine->device, LEDGER_FEATURES, bytes, &memory) : STATUS_OK;
    if (status) {
        free(*free_rows);
        *free_rows = NULL;
        PASS_ON(status);
    }
    *out = matrix_view(memory, dtype, rows, config->hidden);
    return STATUS_OK;
}

status_t feature_store_open(engine_t *engine) {
    feature_store_t *store = &engine->features;
    const model_config_t *config = &engine->model->config;
    store->vision_version = engine->model->vision_version;
    size_t row_bytes = (size_t)config->hidden * dtype_bytes(model_head(engine->model)->value.dtype);
    size_t rows = config->has_vision ? engine->options.feature_cache_bytes / row_bytes : 0;
    store->budget = rows > INT32_MAX / 2 ? INT32_MAX / 2 : (int)rows;
    int first = store->budget < FIRST_ROWS ? store->budget : FIRST_ROWS;
    TRY(allocate_rows(engine, first, &store->rows, &store->free));
    for (int i = 0; i < first; i++) store->free[i] = first - 1 - i;
    store->free_count = first;
    return STATUS_OK;
}

void feature_store_close(engine_t *engine) {
    feature_store_t *store = &engine->features;
    if (store->free) feature_store_clear(engine);
    ledger_give(engine->device, store->rows.data);
    free(store->free);
}

status_t feature_store_reserve(engine_t *engine, int rows) {
    feature_store_t *store = &engine->features;
    if (rows <= store->rows.rows) return STATUS_OK;
    matrix_t larger = {0};
    int32_t *free_rows = NULL, *identity = NULL;
    int kept = store->rows.rows;
    TRY(allocate_rows(engine, rows, &larger, &free_rows));
    status_t status = ALLOCATE(&identity, kept);
    if (!status && kept) {
        // What is there stays where it is: running prompts refer to it by row.
        const void *index;
        for (int i = 0; i < kept; i++) identity[i] = i;
        tape_reset(engine->tape, false);
        status = tape_upload(engine->tape, identity, (size_t)kept * sizeof(*identity), &index);
        matrix_t part = larger;
        part.rows = kept;
        rows_args_t copy = {.x = store->rows, .index = index, .y = part};
        if (!status) status = engine->device->table->gather_rows(engine->device, &copy);
        if (!status) status = engine->device->table->synchronize(engine->device);
    }
    free(identity);
    if (status) {
        ledger_give(engine->device, larger.data);
        free(free_rows);
        PASS_ON(status);
    }
    int added = rows - kept;
    for (int i = 0; i < added; i++) free_rows[i] = rows - 1 - i;
    memcpy(free_rows + added, store->free, (size_t)store->free_count * sizeof(*free_rows));
    ledger_give(engine->device, store->rows.data);
    free(store->free);
    store->rows = larger;
    store->free = free_rows;
    store->free_count += added;
    return STATUS_OK;
}

status_t feature_store_plan(engine_t *engine) {
    feature_store_t *store = &engine->features;
    size_t row_bytes = (size_t)store->rows.columns * dtype_bytes(store->rows.dtype);
    ledger_plan(engine->device, LEDGER_FEATURES, (size_t)store->budget * row_bytes);
    if (engine->device->table->host_memory || store->rows.rows >= store->budget) return STATUS_OK;
    TRY(ledger_check(engine->device));
    return feature_store_reserve(engine, store->budget);
}

static feature_entry_t *find(feature_store_t *store, const image_patches_t *patches) {
    feature_entry_t *entry = *bucket_of(store, patches->content_hash);
    while (entry && (entry->hash != patches->content_hash || entry->rows != patches->shape.feature_rows))
        entry = entry->next_in_bucket;
    return entry;
}

// A new entry of the image, in rows that are free or whose images nobody needs now. *out NULL: there is no room.
static status_t make(engine_t *engine, const image_patches_t *patches, feature_entry_t **out) {
    feature_store_t *store = &engine->features;
    *out = NULL;
    while (store->free_count < patches->shape.feature_rows && store->rows.rows < store->budget) {
        int rows = store->rows.rows;
        TRY(feature_store_reserve(engine, rows < store->budget / 2 ? 2 * rows : store->budget));
    }
    for (feature_entry_t *entry = store->oldest; entry && store->free_count < patches->shape.feature_rows;) {
        feature_entry_t *newer = entry->newer;
        if (!entry->pins) drop(store, entry);
        entry = newer;
    }
    if (store->free_count < patches->shape.feature_rows) return STATUS_OK;
    feature_entry_t *entry;
    size_t bytes = sizeof(*entry) + (size_t)patches->shape.feature_rows * sizeof(*entry->row);
    TRY(memory_allocate(1, bytes, (void **)&entry));
    entry->hash = patches->content_hash;
    entry->rows = patches->shape.feature_rows;
    entry->row = (int32_t *)(entry + 1);
    for (int i = 0; i < entry->rows; i++) entry->row[i] = store->free[--store->free_count];
    feature_entry_t **bucket = bucket_of(store, entry->hash);
    entry->next_in_bucket = *bucket;
    *bucket = entry;
    link_newest(store, entry);
    *out = entry;
    return STATUS_OK;
}

status_t feature_store_pin(engine_t *engine, group_t *group, bool *pinned) {
    feature_store_t *store = &engine->features;
    int queued = engine->images, reused = 0;
    *pinned = true;
    for (int i = 0; i < group->image_count; i++) {
        feature_entry_t *entry = find(store, group->images[i]);
        if (entry) {
            unlink_use(store, entry);
            link_newest(store, entry);
            reused++;
        } else {
            TRY(make(engine, group->images[i], &entry));
            if (entry) engine->image[engine->images++] = (engine_image_t){entry, group->images[i]};
        }
        if (!entry) {
            // What this group queued is dropped again (those entries are pinned by it alone).
            *pinned = false;
            for (int j = 0; j < i; j++) group->features[j]->pins--;
            while (engine->images > queued) drop(store, engine->image[--engine->images].entry);
            return STATUS_OK;
        }
        entry->pins++;
        group->features[i] = entry;
    }
    engine->statistics.features_reused += reused;
    group->pinned = true;
    return STATUS_OK;
}

void feature_store_unpin(engine_t *engine, group_t *group) {
    group->pinned = false;
    for (int i = 0; i < group->image_count; i++) {
        feature_entry_t *entry = group->features[i];
        entry->pins--;
        // Given up before it was computed: the step that had queued it has failed.
        if (!entry->pins && !entry->computed) drop(&engine->features, entry);
    }
}

// One launch: images `first` .. `first + count - 1` of the step.
static status_t compute(engine_t *engine, int first, int count, int feature_rows) {
    tape_t *tape = engine->tape;
    vision_image_t *images;
    int32_t *index;
    tensor_t *features;
    const void *uploaded;
    tape_reset(tape, false);
    TRY(TAPE_HOST(tape, &images, count));
    TRY(TAPE_HOST(tape, &index, feature_rows));
    int row = 0;
    for (int i = 0; i < count; i++) {
        const image_patches_t *patches = engine->image[first + i].patches;
        const feature_entry_t *entry = engine->image[first + i].entry;
        images[i] = (vision_image_t){.shape = patches->shape, .patches = patches->patches, .patch_rows = patches->rows};
        memcpy(index + row, entry->row, (size_t)entry->rows * sizeof(*index));
        row += entry->rows;
    }
    TRY(engine->model->family->vision(engine->model, tape, images, count, &features));
    if (features->value.rows != feature_rows)
        FAIL(STATUS_FAILED, "the vision part made %d feature rows of images that should give %d", features->value.rows,
             feature_rows);
    TRY(tape_upload(tape, index, (size_t)feature_rows * sizeof(*index), &uploaded));
    rows_args_t keep = {.x = features->value, .index = uploaded, .y = engine->features.rows};
    TRY(engine->device->table->scatter_rows(engine->device, &keep));
    for (int i = 0; i < count; i++) engine->image[first + i].entry->computed = true;
    engine->statistics.features_computed += count;
    return STATUS_OK;
}

status_t feature_store_compute(engine_t *engine) {
    for (int first = 0; first < engine->images;) {
        int count = 0, patch_rows = 0, feature_rows = 0;
        while (first + count < engine->images) {
            const image_patches_t *patches = engine->image[first + count].patches;
            if (count && patch_rows + patches->rows > engine->vision_rows) break;
            patch_rows += patches->rows;
            feature_rows += patches->shape.feature_rows;
            count++;
        }
        TRY(compute(engine, first, count, feature_rows));
        first += count;
    }
    engine->images = 0;
    return STATUS_OK;
}
