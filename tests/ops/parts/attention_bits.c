// The bits of a query in other company.
#include "tests/ops/parts/attention.h"

#include "kernels/base/philox.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH = 130, CACHE_ROWS = 401, MAX_BATCH = 24 };

typedef struct company {
    int heads, kv_heads, size, window;
    bool groups;
    float *q, *k, *v;         // one sequence of LENGTH tokens
    float *cache_k, *cache_v; // the same keys, spread over a cache
    int32_t page[LENGTH];
    float *want, *want_lse; // from one prefill
    device_t *device;
} company_t;

// Groups one behind the other, longer than a chunk's block, up to a few keys before the end.
static int company_group(int position) {
    return position >= 5 && position < 40      ? 0
           : position >= 40 && position < 75   ? 1
           : position >= 100 && position < 127 ? 2
                                               : -1;
}

static void company_close(company_t *c) {
    float *all[] = {c->q, c->k, c->v, c->cache_k, c->cache_v, c->want, c->want_lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) free(all[i]);
    device_close(c->device);
}

static status_t company_open(company_t *c, const char *device) {
    int64_t q = (int64_t)c->heads * c->size, kv = (int64_t)c->kv_heads * c->size;
    TRY(device_open(device, 2, &c->device));
    TRY(ALLOCATE(&c->q, LENGTH * q));
    TRY(ALLOCATE(&c->k, LENGTH * kv));
    TRY(ALLOCATE(&c->v, LENGTH * kv));
    TRY(ALLOCATE(&c->cache_k, CACHE_ROWS * kv));
    TRY(ALLOCATE(&c->cache_v, CACHE_ROWS * kv));
    TRY(ALLOCATE(&c->want, LENGTH * q));
    TRY(ALLOCATE(&c->want_lse, LENGTH * c->heads));
    for (int64_t i = 0; i < LENGTH * q; i++) c->q[i] = philox_normal(5, PHILOX_TEST, (uint64_t)i, 0, 0) * 2.0f;
    for (int64_t i = 0; i < LENGTH * kv; i++) {
        c->k[i] = philox_normal(5, PHILOX_TEST, (uint64_t)i, 1, 0);
        c->v[i] = philox_normal(5, PHILOX_TEST, (uint64_t)i, 2, 0);
    }
    for (int64_t i = 0; i < CACHE_ROWS * kv; i++) c->cache_k[i] = c->cache_v[i] = NAN;
    for (int j = 0; j < LENGTH; j++) {
        c->page[j] = j * 3 % CACHE_ROWS;
        memcpy(c->cache_k + c->page[j] * kv, c->k + j * kv, (size_t)kv * sizeof(float));
        memcpy(c->cache_v + c->page[j] * kv, c->v + j * kv, (size_t)kv * sizeof(float));
    }
    return STATUS_OK;
}

static attention_args_t company_args(const company_t *c, bool cache, int rows, const float *q, float *out, float *lse) {
    int kv = c->kv_heads * c->size;
    return (attention_args_t){.q = matrix_view((void *)(uintptr_t)q, DTYPE_F32, rows, c->heads * c->size),
                              .k = matrix_view(cache ? c->cache_k : c->k, DTYPE_F32, cache ? CACHE_ROWS : LENGTH, kv),
                              .v = matrix_view(cache ? c->cache_v : c->v, DTYPE_F32, cache ? CACHE_ROWS : LENGTH, kv),
                              .heads = c->heads,
                              .kv_heads = c->kv_heads,
                              .head_dim = c->size,
                              .scale = 0.3f,
                              .mask = {.causal = true, .window = c->window},
                              .out = matrix_view(out, DTYPE_F32, rows, c->heads * c->size),
                              .lse = lse};
}

// What attention_call has in a device's memory.
typedef struct lent {
    device_t *device;
    void *at[10];
    int count;
} lent_t;
static status_t lend(lent_t *lent, const void **data, size_t bytes) {
    if (!*data) return STATUS_OK;
    TRY(lent->device->table->allocate(lent->device, bytes, &lent->at[lent->count]));
    lent->count++;
    TRY(lent->device->table->upload(lent->device, lent->at[lent->count - 1], *data, bytes));
    *data = lent->at[lent->count - 1];
    return STATUS_OK;
}
static status_t lend_matrix(lent_t *lent, matrix_t *m) {
    return lend(lent, (const void **)&m->data, (size_t)m->rows * (size_t)m->stride * dtype_bytes(m->dtype));
}
static status_t lend_all(lent_t *lent, attention_args_t *args) {
    attention_mask_t *mask = &args->mask;
    size_t sequences = (size_t)mask->sequences, keys = (size_t)mask->key_start[sequences];
    TRY(lend_matrix(lent, &args->q));
    TRY(lend_matrix(lent, &args->k));
    TRY(lend_matrix(lent, &args->v));
    TRY(lend_matrix(lent, &args->out));
    TRY(lend(lent, (const void **)&args->lse, (size_t)(args->q.rows * args->heads) * sizeof(float)));
    TRY(lend(lent, (const void **)&mask->query_start, (sequences + 1) * sizeof(int32_t)));
    TRY(lend(lent, (const void **)&mask->query_position, sequences * sizeof(int32_t)));
    TRY(lend(lent, (const void **)&mask->key_start, (sequences + 1) * sizeof(int32_t)));
    TRY(lend(lent, (const void **)&mask->key_row, keys * sizeof(int32_t)));
    return lend(lent, (const void **)&mask->group, keys * sizeof(int32_t));
}

// attention of what lies in the host's memory, on any device.
static status_t attention_call(device_t *device, const attention_args_t *args) {
    if (!mirror_wanted(device)) return device->table->attention(device, args);
    attention_args_t far = *args;
    lent_t lent = {.device = device};
    size_t out = (size_t)args->out.rows * (size_t)args->out.stride * dtype_bytes(args->out.dtype);
    status_t status = lend_all(&lent, &far);
    if (!status) status = device->table->attention(device, &far);
    if (!status) status = device->table->download(device, args->out.data, far.out.data, out);
    if (!status && args->lse)
        status =
            device->table->download(device, args->lse, far.lse, (size_t)(args->q.rows * args->heads) * sizeof(float));
    while (lent.count) device->table->release(device, lent.at[--lent.count]);
    return status;
}

static status_t company_prefill(company_t *c) {
    int32_t start[2] = {0, LENGTH}, position = 0, row[LENGTH], group[LENGTH];
    for (int j = 0; j < LENGTH; j++) {
        row[j] = j;
        group[j] = company_group(j);
    }
    attention_args_t args = company_args(c, false, LENGTH, c->q, c->want, c->want_lse);
    args.mask.sequences = 1;
    args.mask.query_start = args.mask.key_start = start;
    args.mask.query_position = &position;
    args.mask.key_row = row;
    args.mask.group = c->groups ? group : NULL;
    return attention_call(c->device, &args);
}

// A batch of spans of queries, each a sequence of its own that has the keys up to its last query (and `beyond` more,
// which causality hides; a query's image group is there as a whole): decode with spans of 1, chunked prefill with
// longer ones; all share rows.
static status_t company_spans(company_t *c, int batch, int span, int beyond, bool cache, int *failures) {
    int64_t width = (int64_t)c->heads * c->size;
    int32_t query_start[MAX_BATCH + 1] = {0}, position[MAX_BATCH], key_start[MAX_BATCH + 1] = {0};
    int32_t *row = NULL, *group = NULL;
    float *q = NULL, *out = NULL, *lse = NULL;
    status_t status = ALLOCATE(&row, MAX_BATCH * LENGTH);
    if (!status) status = ALLOCATE(&group, MAX_BATCH * LENGTH);
    if (!status) status = ALLOCATE(&q, MAX_BATCH * LENGTH * width);
    if (!status) status = ALLOCATE(&out, MAX_BATCH * LENGTH * width);
    if (!status) status = ALLOCATE(&lse, MAX_BATCH * LENGTH * c->heads);
    for (int s = 0; !status && s < batch; s++) {
        position[s] =
            (int)philox_below(9, PHILOX_TEST, (uint64_t)(s + batch * 100), (uint32_t)span, 0, LENGTH - span + 1);
        int last = position[s] + span - 1, keys = last + 1 + beyond;
        while (c->groups && keys < LENGTH && company_group(last) >= 0 && company_group(keys) == company_group(last))
            keys++;
        if (keys > LENGTH) keys = LENGTH;
        query_start[s + 1] = query_start[s] + span;
        key_start[s + 1] = key_start[s] + keys;
        for (int j = 0; j < keys; j++) {
            row[key_start[s] + j] = cache ? c->page[j] : j;
            group[key_start[s] + j] = company_group(j);
        }
        memcpy(q + query_start[s] * width, c->q + position[s] * width, (size_t)(span * width) * sizeof(float));
    }
    if (!status) {
        attention_args_t args = company_args(c, cache, query_start[batch], q, out, lse);
        args.mask.sequences = batch;
        args.mask.query_start = query_start;
        args.mask.query_position = position;
        args.mask.key_start = key_start;
        args.mask.key_row = row;
        args.mask.group = c->groups ? group : NULL;
        status = attention_call(c->device, &args);
    }
    for (int s = 0; !status && s < batch; s++) {
        bool same = !memcmp(out + query_start[s] * width, c->want + position[s] * width,
                            (size_t)(span * width) * sizeof(float)) &&
                    !memcmp(lse + (int64_t)query_start[s] * c->heads, c->want_lse + (int64_t)position[s] * c->heads,
                            (size_t)(span * c->heads) * sizeof(float));
        if (same) continue;
        fprintf(stderr,
                "attention of %d queries from %d in a batch of %d%s (heads %d, size %d, window %d): other bits\n", span,
                position[s], batch, cache ? " over pages" : "", c->heads, c->size, c->window);
        *failures += 1;
    }
    free(row), free(group), free(q), free(out), free(lse);
    return status;
}

int attention_invariance(int heads, int kv_heads, int head_dim, int window, bool groups, const char *device) {
    static const int batches[] = {1, 2, 3, 5, 8, 16, 24}, spans[] = {1, 2, 7, 16, 33, 64, 130};
    company_t c = {.heads = heads, .kv_heads = kv_heads, .size = head_dim, .window = window, .groups = groups};
    int failures = 0, most = strncmp(device, "sim", 3) ? 400 : 100; // which is slow
    status_t status = company_open(&c, device);
    if (!status) status = company_prefill(&c);
    for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++)
        for (size_t s = 0; s < sizeof(spans) / sizeof(spans[0]); s++) {
            if (batches[b] * spans[s] > most) continue;
            if (!status) status = company_spans(&c, batches[b], spans[s], 0, true, &failures);
            if (!status) status = company_spans(&c, batches[b], spans[s], (int)s * 5, false, &failures);
        }
    company_close(&c);
    if (!status) return failures;
    fprintf(stderr, "attention invariance on %s: %s\n", device, status_message(status));
    status_free(status);
    return failures + 1;
}

int attention_hidden(const char *name) {
    enum { KEYS = 40, SIZE = 24 };
    float k[KEYS * SIZE], v[KEYS * SIZE], q[3 * SIZE], out[3 * SIZE], lse[3];
    int32_t row[KEYS], query_start[] = {0, 2, 3}, position[] = {19, 5}, key_start[] = {0, KEYS, KEYS};
    for (int i = 0; i < KEYS * SIZE; i++) k[i] = v[i] = i / SIZE > 20 || i / SIZE < 10 ? NAN : 0.01f * (float)(i % 7);
    for (int i = 0; i < 3 * SIZE; i++) q[i] = 0.1f * (float)(i % 5);
    for (int j = 0; j < KEYS; j++) row[j] = j;
    company_t c = {.heads = 1, .kv_heads = 1, .size = SIZE, .window = 10, .k = k, .v = v};
    attention_args_t args = company_args(&c, false, 3, q, out, lse);
    args.k.rows = args.v.rows = KEYS;
    args.mask.sequences = 2;
    args.mask.query_start = query_start;
    args.mask.query_position = position;
    args.mask.key_start = key_start;
    args.mask.key_row = row;
    device_t *device;
    status_t status = device_open(name, 1, &device);
    if (!status) status = attention_call(device, &args);
    int failures = 0;
    for (int i = 0; !status && i < 2 * SIZE; i++) failures += !isfinite(out[i]) || out[i] > 0.061f;
    for (int i = 2 * SIZE; !status && i < 3 * SIZE; i++) failures += out[i] != 0.0f;
    if (failures) fprintf(stderr, "attention on %s: hidden keys are seen in %d numbers\n", name, failures);
    if (status) fprintf(stderr, "attention on %s: %s\n", name, status_message(status));
    failures += status != STATUS_OK;
    status_free(status);
    device_close(device);
    return failures;
}
