// Reading packed files.
#include "common/data/packed_format.h"

#include "kernels/base/philox.h"
#include <stdlib.h>
#include <string.h>

struct packed {
    store_t *store;
    char *path;
    packed_arrays_t a;
    const char **option; // pointers of one sample's options, filled by packed_sample
    int64_t option_capacity;
    uint8_t *image; // bytes of the image asked for last
    size_t image_capacity;
    char hash[33];
    char *model_hash;
};

// Reads a whole dataset whose length must be `expected` (-1: any).
static status_t read_array(store_t *store, const char *name, dtype_t dtype, int64_t expected, void **out,
                           int64_t *count) {
    int64_t found = 0;
    TRY(store_read_all(store, name, dtype, out, &found));
    if (expected >= 0 && found != expected)
        FAIL(STATUS_INVALID, "the dataset %s has %lld entries where %lld fit the others", name, (long long)found,
             (long long)expected);
    if (count) *count = found;
    return STATUS_OK;
}

// Starts must begin at 0, never fall, and end at `total`.
static status_t check_starts(const char *name, const int64_t *start, int64_t count, int64_t total) {
    bool good = start[0] == 0 && start[count] == total;
    for (int64_t i = 0; good && i < count; i++) good = start[i] <= start[i + 1];
    if (!good) FAIL(STATUS_INVALID, "the dataset %s is damaged: its offsets do not fit what they point into", name);
    return STATUS_OK;
}

static status_t packed_read(packed_t *p) {
    packed_arrays_t *a = &p->a;
    store_t *store = p->store;
    int64_t schema = 0, starts = 0;
    TRY(store_read_number(store, "schema", &schema));
    if (schema != PACKED_SCHEMA)
        FAIL(STATUS_INVALID, "it has schema %lld and this program reads %d; pack the data again", (long long)schema,
             PACKED_SCHEMA);
    TRY(read_array(store, "tokens", DTYPE_I32, -1, (void **)&a->tokens, &a->token_count));
    TRY(read_array(store, "segments", DTYPE_U8, a->token_count, (void **)&a->segments, NULL));
    TRY(read_array(store, "prompt_length", DTYPE_I32, -1, (void **)&a->prompt_length, &a->samples));
    TRY(read_array(store, "sample_start", DTYPE_I64, a->samples + 1, (void **)&a->sample_start, NULL));
    TRY(read_array(store, "image_use", DTYPE_I32, -1, (void **)&a->image_use, &a->image_uses));
    TRY(read_array(store, "image_use_start", DTYPE_I64, a->samples + 1, (void **)&a->image_use_start, NULL));
    TRY(read_array(store, "option_start", DTYPE_I64, a->samples + 1, (void **)&a->option_start, NULL));
    TRY(read_array(store, "string_start", DTYPE_I64, -1, (void **)&a->string_start, &starts));
    TRY(read_array(store, "string_data", DTYPE_U8, -1, (void **)&a->string_data, &a->string_bytes));
    TRY(read_array(store, "image_hash", DTYPE_I64, -1, (void **)&a->image_hash, &a->images));
    TRY(read_array(store, "image_start", DTYPE_I64, a->images + 1, (void **)&a->image_start, NULL));
    a->strings = starts - 1;
    return store_read_string(store, "model_hash", &p->model_hash);
}

static status_t check_samples(const packed_arrays_t *a) {
    for (int64_t i = 0; i < a->samples; i++) {
        int64_t length = a->sample_start[i + 1] - a->sample_start[i];
        if (length < 1 || length > INT32_MAX || a->prompt_length[i] < 1 || a->prompt_length[i] > length)
            FAIL(STATUS_INVALID, "sample %lld is damaged: %lld tokens, of them %d prompt", (long long)i,
                 (long long)length, a->prompt_length[i]);
    }
    for (int64_t i = 0; i < a->samples; i++)
        for (int64_t t = 0; t < a->prompt_length[i]; t++)
            if (a->segments[a->sample_start[i] + t] != SEGMENT_NONE)
                FAIL(STATUS_INVALID, "the prompt of sample %lld is damaged: it has a segment", (long long)i);
    for (int64_t i = 0; i < a->token_count; i++)
        if (a->tokens[i] < 0 || a->segments[i] >= SEGMENT_COUNT)
            FAIL(STATUS_INVALID, "token %lld is damaged", (long long)i);
    for (int64_t i = 0; i < a->image_uses; i++)
        if (a->image_use[i] < 0 || a->image_use[i] >= a->images)
            FAIL(STATUS_INVALID, "a sample uses image %d of %lld", a->image_use[i], (long long)a->images);
    return STATUS_OK;
}

static status_t packed_check(packed_t *p) {
    const packed_arrays_t *a = &p->a;
    int64_t image_bytes = 0;
    TRY(store_count(p->store, "image_data", &image_bytes));
    TRY(check_starts("sample_start", a->sample_start, a->samples, a->token_count));
    TRY(check_starts("image_use_start", a->image_use_start, a->samples, a->image_uses));
    TRY(check_starts("image_start", a->image_start, a->images, image_bytes));
    if (a->strings < 0 || a->option_start[0] != 0 || a->strings < PACKED_TEXTS * a->samples)
        FAIL(STATUS_INVALID, "the dataset string_start is damaged");
    TRY(check_starts("option_start", a->option_start, a->samples, a->strings - PACKED_TEXTS * a->samples));
    TRY(check_starts("string_start", a->string_start, a->strings, a->string_bytes));
    for (int64_t i = 0; i < a->strings; i++)
        if (a->string_start[i + 1] == a->string_start[i] || a->string_data[a->string_start[i + 1] - 1])
            FAIL(STATUS_INVALID, "string %lld is damaged", (long long)i);
    TRY(check_samples(a));
    char hash[33];
    char *recorded = NULL;
    packed_content_hash(a, p->hash);
    TRY(store_read_string(p->store, "content_hash", &recorded));
    snprintf(hash, sizeof(hash), "%s", recorded);
    free(recorded);
    if (strcmp(hash, p->hash))
        FAIL(STATUS_INVALID, "its content hash is %s, but %s was recorded: the file is damaged", p->hash, hash);
    return STATUS_OK;
}

status_t packed_open(const char *path, packed_t **out) {
    packed_t *p;
    *out = NULL;
    TRY(ALLOCATE(&p, 1));
    status_t status = memory_copy_string(path, &p->path);
    if (!status) status = store_open(path, &p->store);
    if (!status) {
        status = packed_read(p);
        if (!status) status = packed_check(p);
        status = status_context(status, "the packed file %s", path);
    }
    if (status) {
        packed_close(p);
        return status;
    }
    *out = p;
    return STATUS_OK;
}

void packed_close(packed_t *p) {
    if (!p) return;
    packed_arrays_t *a = &p->a;
    void *owned[] = {a->tokens,     a->segments,       a->sample_start, a->prompt_length, a->image_use_start,
                     a->image_use,  a->option_start,   a->string_start, a->string_data,   a->image_start,
                     a->image_hash, (void *)p->option, p->image,        p->path,          p->model_hash};
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) free(owned[i]);
    store_close(p->store);
    free(p);
}

int64_t packed_count(const packed_t *packed) {
    return packed->a.samples;
}

const char *packed_hash(const packed_t *packed) {
    return packed->hash;
}

status_t packed_sample(packed_t *p, int64_t index, packed_sample_t *out) {
    const packed_arrays_t *a = &p->a;
    if (index < 0 || index >= a->samples)
        FAIL(STATUS_INVALID, "%s has %lld samples; there is no number %lld", p->path, (long long)a->samples,
             (long long)index);
    int64_t options = a->option_start[index + 1] - a->option_start[index];
    int64_t text = PACKED_TEXTS * index + a->option_start[index];
    if (options > p->option_capacity) {
        size_t capacity = (size_t)p->option_capacity;
        TRY(memory_grow((void **)&p->option, &capacity, (size_t)options, sizeof(*p->option)));
        p->option_capacity = (int64_t)capacity;
    }
    for (int64_t i = 0; i < options; i++) p->option[i] = a->string_data + a->string_start[text + PACKED_TEXTS + i];
    int64_t start = a->sample_start[index], uses = a->image_use_start[index];
    *out = (packed_sample_t){.index = index,
                             .id = a->string_data + a->string_start[text],
                             .tokens = a->tokens + start,
                             .segments = a->segments + start,
                             .length = (int)(a->sample_start[index + 1] - start),
                             .prompt_length = a->prompt_length[index],
                             .images = a->image_use + uses,
                             .image_count = (int)(a->image_use_start[index + 1] - uses),
                             .answer = a->string_data + a->string_start[text + 1],
                             .kind = a->string_data + a->string_start[text + 2],
                             .listing = a->string_data + a->string_start[text + 3],
                             .options = p->option,
                             .option_count = (int)options};
    return STATUS_OK;
}

status_t packed_image(packed_t *p, int32_t image, const void **bytes, size_t *size, uint64_t *hash) {
    const packed_arrays_t *a = &p->a;
    if (image < 0 || image >= a->images)
        FAIL(STATUS_INVALID, "%s has %lld images; there is no number %d", p->path, (long long)a->images, image);
    int64_t start = a->image_start[image], count = a->image_start[image + 1] - start;
    TRY(memory_grow((void **)&p->image, &p->image_capacity, (size_t)count, 1));
    TRY(store_read(p->store, "image_data", DTYPE_U8, start, count, p->image));
    if (hash) *hash = (uint64_t)a->image_hash[image];
    if (XXH3_64bits(p->image, (size_t)count) != (uint64_t)a->image_hash[image])
        FAIL(STATUS_INVALID, "image %d of %s is damaged: its bytes do not have the recorded hash", image, p->path);
    *bytes = p->image;
    *size = (size_t)count;
    return STATUS_OK;
}

int32_t packed_images(const packed_t *p) {
    return (int32_t)p->a.images;
}

const char *packed_model(const packed_t *p) {
    return p->model_hash;
}

uint64_t packed_image_hash(const packed_t *p, int32_t image) {
    return image >= 0 && image < p->a.images ? (uint64_t)p->a.image_hash[image] : 0;
}

status_t packed_check_model(const packed_t *p, const char *model_directory) {
    model_t *model;
    char hash[17];
    TRY(model_open(model_directory, NULL, &model));
    status_t status = packed_model_hash(model_directory, &model->config.image, hash);
    model_close(model);
    if (!status && strcmp(hash, p->model_hash))
        status = STATUS_NEW(
            STATUS_INVALID,
            "%s was packed for another tokenizer or other image rules than those of %s; pack it again with --model %s",
            p->path, model_directory, model_directory);
    return status;
}

int64_t packed_order(const packed_t *packed, uint64_t seed, int64_t serial) {
    uint64_t count = (uint64_t)packed->a.samples;
    if (!count) return 0;
    return (int64_t)philox_permute(seed, (uint64_t)serial / count, (uint64_t)serial % count, count);
}
