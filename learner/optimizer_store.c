#include "learner/optimizer_internal.h"

#include <sodium.h>
#include <string.h>
#include <xxhash.h>

static status_t write_array(optimizer_t *optimizer, store_t *store, const float *own, const char *kind) {
    TRY(optimizer_gather(optimizer, own, "checkpoint gather"));
    if (!store) return STATUS_OK;
    for (int i = 0; i < optimizer->tensors; i++) {
        char name[256];
        snprintf(name, sizeof(name), "optimizer/%s/%s", kind, optimizer->tensor[i].name);
        TRY(store_write(store, name, DTYPE_F32, optimizer->flat + optimizer->start[i], optimizer->tensor[i].elements,
                        false));
    }
    return STATUS_OK;
}

static status_t write_numbers(const optimizer_t *optimizer, store_t *store) {
    int64_t *scale = optimizer->reduced;
    for (int i = 0; i < optimizer->tensors; i++) {
        scale[3 * i] = optimizer->scale[i].exponent;
        scale[3 * i + 1] = optimizer->scale[i].ceiling;
        scale[3 * i + 2] = optimizer->scale[i].calibration;
    }
    TRY(store_write(store, "optimizer/scales", DTYPE_I64, scale, 3 * (int64_t)optimizer->tensors, false));
    TRY(store_write_number(store, "optimizer/updates", optimizer->updates));
    TRY(store_write_number(store, "optimizer/skipped_in_row", optimizer->skipped_in_row));
    return store_write_number(store, "optimizer/version", optimizer->model->version);
}

status_t optimizer_save(optimizer_t *optimizer, store_t *store) {
    // The gathers are collective: a disk that is full on rank 0 must not leave the others waiting in the next one.
    status_t status = write_array(optimizer, store, optimizer->master, "master");
    if (status && !store) return status;
    status_t next = write_array(optimizer, status ? NULL : store, optimizer->first_moment, "first_moment");
    status = status_first(status, next);
    next = write_array(optimizer, status ? NULL : store, optimizer->second_moment, "second_moment");
    status = status_first(status, next);
    if (!status && store) status = write_numbers(optimizer, store);
    return status;
}

static status_t read_array(optimizer_t *optimizer, store_t *store, float *own, const char *kind) {
    device_t *device = optimizer->device;
    for (int s = 0; s < optimizer->segments; s++) {
        const optimizer_segment_t *segment = &optimizer->segment[s];
        const trained_tensor_t *tensor = &optimizer->tensor[segment->tensor];
        char name[256];
        snprintf(name, sizeof(name), "optimizer/%s/%s", kind, tensor->name);
        int64_t elements;
        TRY(store_count(store, name, &elements));
        if (elements != tensor->elements) {
            FAIL(STATUS_INVALID, "the checkpoint holds %lld elements of %s, the model has %lld", (long long)elements,
                 tensor->name, (long long)tensor->elements);
        }
        TRY(store_read(store, name, DTYPE_F32, segment->first, segment->count, optimizer->flat));
        TRY(device->table->upload(device, own + segment->local, optimizer->flat,
                                  (size_t)segment->count * sizeof(float)));
    }
    return STATUS_OK;
}

static bool exponent_fits(int64_t exponent) {
    return exponent >= EXPONENT_LEAST && exponent <= EXPONENT_MOST;
}

static status_t read_scales(optimizer_t *optimizer, store_t *store) {
    int64_t count;
    TRY(store_count(store, "optimizer/scales", &count));
    if (count != 3 * (int64_t)optimizer->tensors) {
        FAIL(STATUS_INVALID, "the checkpoint trains %lld tensors, this configuration %d", (long long)count / 3,
             optimizer->tensors);
    }
    TRY(store_read(store, "optimizer/scales", DTYPE_I64, 0, count, optimizer->reduced));
    for (int i = 0; i < optimizer->tensors; i++) {
        const int64_t *scale = optimizer->reduced + 3 * i;
        if (!exponent_fits(scale[0]) || !exponent_fits(scale[1]) || scale[2] < CALIBRATION_FRESH ||
            scale[2] > CALIBRATION_DONE) {
            FAIL(STATUS_INVALID, "the checkpoint's gradient scale of %s is out of range", optimizer->tensor[i].name);
        }
        optimizer->scale[i] = (optimizer_scale_t){(int)scale[0], (int)scale[1], (calibration_t)scale[2]};
    }
    return STATUS_OK;
}

static status_t read_all(optimizer_t *optimizer, store_t *store, int64_t *version) {
    TRY(read_scales(optimizer, store));
    TRY(store_read_number(store, "optimizer/updates", &optimizer->updates));
    TRY(store_read_number(store, "optimizer/version", version));
    optimizer->skipped_in_row = 0; // files of older programs do not know it
    if (store_has(store, "optimizer/skipped_in_row"))
        TRY(store_read_number(store, "optimizer/skipped_in_row", &optimizer->skipped_in_row));
    TRY(read_array(optimizer, store, optimizer->master, "master"));
    TRY(read_array(optimizer, store, optimizer->first_moment, "first_moment"));
    return read_array(optimizer, store, optimizer->second_moment, "second_moment");
}

status_t optimizer_load(optimizer_t *optimizer, store_t *store) {
    int64_t version = 0, failed;
    status_t status = read_all(optimizer, store, &version);
    failed = status != STATUS_OK;
    status = status_first(status, comm_all_reduce_i64(optimizer->comm, &failed, 1, COMM_MAX, "checkpoint load"));
    if (!status && failed) status = STATUS_NEW(STATUS_PEER, "another learner could not read the checkpoint");
    if (status) PASS_ON(status);
    return optimizer_publish(optimizer, version);
}

size_t optimizer_tensor_size(const optimizer_t *optimizer, int number) {
    const trained_tensor_t *tensor = &optimizer->tensor[number];
    return (size_t)tensor->elements * dtype_bytes(tensor->parameter->value.dtype);
}

status_t optimizer_tensor_bytes(optimizer_t *optimizer, int number, const void **bytes, size_t *size) {
    device_t *device = optimizer->device;
    const trained_tensor_t *tensor = &optimizer->tensor[number];
    *bytes = tensor->parameter->value.data;
    *size = optimizer_tensor_size(optimizer, number);
    if (optimizer->host_memory) return STATUS_OK;
    TRY(device->table->download(device, optimizer->flat, *bytes, *size));
    *bytes = optimizer->flat;
    return STATUS_OK;
}

int optimizer_tensors(const optimizer_t *optimizer) {
    return optimizer->tensors;
}

const trained_tensor_t *optimizer_tensor(const optimizer_t *optimizer, int number) {
    return &optimizer->tensor[number];
}

status_t optimizer_tensor_hashes(optimizer_t *optimizer, int64_t *out) {
    for (int i = 0; i < optimizer->tensors; i++) {
        const void *bytes;
        size_t size;
        TRY(optimizer_tensor_bytes(optimizer, i, &bytes, &size));
        out[i] = (int64_t)XXH3_64bits(bytes, size);
    }
    return STATUS_OK;
}

status_t optimizer_weights_hash(optimizer_t *optimizer, char out[65]) {
    if (sodium_init() < 0) FAIL(STATUS_UNAVAILABLE, "libsodium could not be initialised");
    crypto_hash_sha256_state state;
    crypto_hash_sha256_init(&state);
    for (int i = 0; i < optimizer->tensors; i++) {
        const void *bytes;
        size_t size;
        TRY(optimizer_tensor_bytes(optimizer, i, &bytes, &size));
        crypto_hash_sha256_update(&state, bytes, size);
    }
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final(&state, digest);
    sodium_bin2hex(out, 65, digest, sizeof(digest));
    return STATUS_OK;
}
