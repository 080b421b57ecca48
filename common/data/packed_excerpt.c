// Some samples of a packed file as a file of their own.
#include "common/data/packed_format.h"

#include <stdlib.h>
#include <string.h>

typedef struct excerpt {
    packed_t *packed;
    packed_arrays_t a;
    int32_t *number; // [images of the file] in the excerpt; -1: no sample of it uses the image
    int32_t *image;  // [a.images] in the file
} excerpt_t;

static void excerpt_free(excerpt_t *e) {
    packed_arrays_t *a = &e->a;
    void *owned[] = {a->tokens,     a->segments,     a->sample_start, a->prompt_length, a->image_use_start,
                     a->image_use,  a->option_start, a->string_start, a->string_data,   a->image_start,
                     a->image_hash, e->number,       e->image};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) free(owned[i]);
}

// Sizes of all arrays, so that filling them allocates nothing.
static status_t excerpt_allocate(excerpt_t *e, const int64_t *index, int64_t count) {
    packed_arrays_t *a = &e->a;
    int64_t tokens = 0, uses = 0, strings = 0, bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        packed_sample_t sample;
        TRY(packed_sample(e->packed, index[i], &sample));
        const char *text[PACKED_TEXTS] = {sample.id, sample.answer, sample.kind, sample.listing};
        tokens += sample.length;
        uses += sample.image_count;
        strings += PACKED_TEXTS + sample.option_count;
        for (int t = 0; t < PACKED_TEXTS; t++) bytes += (int64_t)strlen(text[t]) + 1;
        for (int t = 0; t < sample.option_count; t++) bytes += (int64_t)strlen(sample.options[t]) + 1;
    }
    int32_t images = packed_images(e->packed);
    TRY(ALLOCATE(&a->tokens, tokens));
    TRY(ALLOCATE(&a->segments, tokens));
    TRY(ALLOCATE(&a->sample_start, count + 1));
    TRY(ALLOCATE(&a->prompt_length, count));
    TRY(ALLOCATE(&a->image_use_start, count + 1));
    TRY(ALLOCATE(&a->image_use, uses));
    TRY(ALLOCATE(&a->option_start, count + 1));
    TRY(ALLOCATE(&a->string_start, strings + 1));
    TRY(ALLOCATE(&a->string_data, bytes));
    TRY(ALLOCATE(&a->image_start, uses + 1));
    TRY(ALLOCATE(&a->image_hash, uses));
    TRY(ALLOCATE(&e->image, uses));
    TRY(ALLOCATE(&e->number, images));
    for (int32_t i = 0; i < images; i++) e->number[i] = -1;
    return STATUS_OK;
}

static void add_string(packed_arrays_t *a, const char *text) {
    size_t size = strlen(text) + 1;
    memcpy(a->string_data + a->string_bytes, text, size);
    a->string_bytes += (int64_t)size;
    a->string_start[++a->strings] = a->string_bytes;
}

static status_t add_image(excerpt_t *e, int32_t image) {
    packed_arrays_t *a = &e->a;
    if (e->number[image] < 0) {
        const void *bytes;
        size_t size;
        TRY(packed_image(e->packed, image, &bytes, &size, NULL));
        e->number[image] = (int32_t)a->images;
        e->image[a->images] = image;
        a->image_hash[a->images] = (int64_t)packed_image_hash(e->packed, image);
        a->image_start[a->images + 1] = a->image_start[a->images] + (int64_t)size;
        a->images++;
    }
    a->image_use[a->image_uses++] = e->number[image];
    return STATUS_OK;
}

static status_t add_sample(excerpt_t *e, int64_t index, unsigned unlearnt) {
    packed_arrays_t *a = &e->a;
    packed_sample_t sample;
    TRY(packed_sample(e->packed, index, &sample));
    memcpy(a->tokens + a->token_count, sample.tokens, (size_t)sample.length * sizeof(*sample.tokens));
    for (int t = 0; t < sample.length; t++)
        a->segments[a->token_count + t] = unlearnt >> sample.segments[t] & 1 ? SEGMENT_NONE : sample.segments[t];
    a->token_count += sample.length;
    for (int i = 0; i < sample.image_count; i++) TRY(add_image(e, sample.images[i]));
    add_string(a, sample.id);
    add_string(a, sample.answer);
    add_string(a, sample.kind);
    add_string(a, sample.listing);
    for (int i = 0; i < sample.option_count; i++) add_string(a, sample.options[i]);
    a->prompt_length[a->samples] = sample.prompt_length;
    a->option_start[a->samples + 1] = a->option_start[a->samples] + sample.option_count;
    a->samples++;
    a->sample_start[a->samples] = a->token_count;
    a->image_use_start[a->samples] = a->image_uses;
    return STATUS_OK;
}

static status_t excerpt_write(excerpt_t *e, store_t *store) {
    const packed_arrays_t *a = &e->a;
    int64_t total = a->image_start[a->images];
    TRY(packed_write_arrays(store, a));
    TRY(store_write_part(store, "image_data", DTYPE_U8, total, 0, 0, NULL));
    for (int64_t i = 0; i < a->images; i++) {
        const void *bytes;
        size_t size;
        TRY(packed_image(e->packed, e->image[i], &bytes, &size, NULL));
        TRY(store_write_part(store, "image_data", DTYPE_U8, total, a->image_start[i], (int64_t)size, bytes));
    }
    TRY(packed_write_hashes(store, a, packed_model(e->packed)));
    return store_commit(store);
}

status_t packed_excerpt(packed_t *packed, const int64_t *index, int64_t count, unsigned unlearnt, const char *output) {
    excerpt_t e = {.packed = packed};
    store_t *store = NULL;
    status_t status = excerpt_allocate(&e, index, count);
    for (int64_t i = 0; !status && i < count; i++) status = add_sample(&e, index[i], unlearnt);
    if (!status) status = store_create(output, &store);
    if (!status) status = excerpt_write(&e, store);
    store_close(store);
    excerpt_free(&e);
    return status;
}
