// HDF5 behind store.h. Every dataset is opened through dataset_open, which refuses what a hostile or torn file could
// use to make a reader allocate or read what the file does not hold.
#include "common/store/chunk.h"
#include "common/store/file.h"

#include <errno.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    NAME_BYTES = 1024,
    CHUNK_BYTES = 1 << 20,
    CHUNK_LIMIT = 64 << 20,   // the largest chunk a reader takes: one is decompressed at a time
    DEFLATE_RATIO = 1100,     // deflate cannot expand more than 1032 times
    STRING_LIMIT = 256 << 20, // bytes of one string
};

struct store {
    hid_t file;
    char *path;
    char *temporary; // NULL for a reader
    int64_t bytes;   // size of the file, for a reader
    bool committed;
    bool broken; // a write failed: the file must not appear
};

// What the file says is stored under a name.
typedef struct dataset {
    hid_t id;
    int64_t count;  // elements
    uint64_t chunk; // elements of a compressed chunk; 0: stored in one piece
} dataset_t;

// The innermost message of HDF5's error stack.
static herr_t store_first_reason(unsigned n, const H5E_error2_t *error, void *text) {
    if (n == 0 && error->desc) snprintf(text, 160, "%s", error->desc);
    return 0;
}

static status_t store_failure(status_kind_t kind, const char *what, const store_t *store, const char *name) {
    char reason[160] = "no reason given";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, store_first_reason, reason);
    H5Eclear2(H5E_DEFAULT);
    if (name) FAIL(kind, "cannot %s '%s' in '%s': %s", what, name, store->path, reason);
    FAIL(kind, "cannot %s '%s': %s", what, store->path, reason);
}

// HDF5 prints its error stack unless told not to, a thread at a time.
static void store_quiet(void) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static hid_t store_half_type(size_t exponent_bits) {
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    size_t mantissa = 15 - exponent_bits;
    if (H5Tset_fields(type, 15, mantissa, exponent_bits, 0, mantissa) < 0 || H5Tset_size(type, 2) < 0 ||
        H5Tset_ebias(type, exponent_bits == 8 ? 127 : 15) < 0) {
        H5Tclose(type);
        return -1;
    }
    return type;
}

// The type in the file, which is also the type in memory (little-endian machines only). To be closed.
static hid_t store_type(dtype_t dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case DTYPE_BF16:
        return store_half_type(8);
    case DTYPE_F16:
        return store_half_type(5);
    case DTYPE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case DTYPE_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case DTYPE_U8:
        return H5Tcopy(H5T_STD_U8LE);
    default:
        return -1;
    }
}

static const char *store_type_name(dtype_t dtype) {
    static const char *const name[DTYPE_COUNT] = {"f32", "bf16", "f16", "i32", "i64", "u8"};
    return dtype < DTYPE_COUNT ? name[dtype] : "unknown";
}

static status_t store_check_name(const store_t *store, const char *name) {
    size_t length = strlen(name);
    if (!length || length >= NAME_BYTES || name[0] == '/' || name[length - 1] == '/' || strstr(name, "//"))
        FAIL(STATUS_INVALID, "'%s' is no name for a dataset of '%s'", name, store->path);
    return STATUS_OK;
}

static status_t store_new(const char *path, store_t **out) {
    store_t *store;
    *out = NULL;
    TRY(ALLOCATE(&store, 1));
    store->file = -1;
    status_t status = memory_copy_string(path, &store->path);
    if (status) {
        free(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

// File locks are off: files appear whole by rename, and network file systems often refuse locks.
static hid_t store_access(void) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access >= 0 && (H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) < 0 || H5Pset_file_locking(access, 0, 1) < 0)) {
        H5Pclose(access);
        return -1;
    }
    return access;
}

status_t store_create(const char *path, store_t **out) {
    store_t *store;
    store_quiet();
    TRY(store_new(path, &store));
    *out = NULL;
    status_t status = file_temporary_name(path, &store->temporary);
    hid_t access = store_access(), creation = H5Pcreate(H5P_FILE_CREATE);
    if (!status) {
        H5Pset_obj_track_times(creation, 0);
        store->file = H5Fcreate(store->temporary, H5F_ACC_TRUNC, creation, access);
        if (store->file < 0) status = store_failure(STATUS_IO, "create", store, NULL);
    }
    if (access >= 0) H5Pclose(access);
    if (creation >= 0) H5Pclose(creation);
    if (status) {
        store_close(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

status_t store_commit(store_t *store) {
    if (!store->temporary || store->committed)
        FAIL(STATUS_FAILED, "'%s' is not open for writing, so it cannot be committed", store->path);
    store_quiet();
    status_t status = STATUS_OK;
    if (store->broken)
        status = STATUS_NEW(STATUS_IO, "'%s' is not written because an earlier write to it failed", store->path);
    if (!status && H5Fclose(store->file) < 0) {
        status = store_failure(STATUS_IO, "finish", store, NULL);
        store->broken = true;
    } else if (!status) {
        store->file = -1;
        status = file_publish(store->temporary, store->path);
    }
    if (status)
        store->broken = true;
    else
        store->committed = true;
    return status;
}

status_t store_open(const char *path, store_t **out) {
    store_t *store;
    struct stat about;
    *out = NULL;
    store_quiet();
    if (stat(path, &about) != 0)
        FAIL(errno == ENOENT || errno == ENOTDIR ? STATUS_INVALID : STATUS_IO, "cannot open '%s': %s", path,
             strerror(errno));
    if (!S_ISREG(about.st_mode)) FAIL(STATUS_INVALID, "'%s' is not a file", path);
    if (H5Fis_hdf5(path) <= 0) {
        H5Eclear2(H5E_DEFAULT);
        FAIL(STATUS_INVALID, "'%s' is no HDF5 file", path);
    }
    TRY(store_new(path, &store));
    store->bytes = about.st_size;
    hid_t access = store_access();
    store->file = H5Fopen(path, H5F_ACC_RDONLY, access);
    if (access >= 0) H5Pclose(access);
    if (store->file < 0) {
        status_t status = store_failure(STATUS_INVALID, "read", store, NULL);
        store_close(store);
        return status_context(status, "the HDF5 file is torn or damaged");
    }
    *out = store;
    return STATUS_OK;
}

void store_close(store_t *store) {
    if (!store) return;
    store_quiet();
    if (store->file >= 0) H5Fclose(store->file);
    if (store->temporary && !store->committed) unlink(store->temporary);
    H5Eclear2(H5E_DEFAULT);
    free(store->temporary);
    free(store->path);
    free(store);
}

// ---- reading ----

// Walks a name part by part; only hard links count, so that nothing outside the file is ever opened.
bool store_has(store_t *store, const char *name) {
    char part[NAME_BYTES];
    size_t length = strlen(name);
    if (!length || length >= NAME_BYTES || store->file < 0) return false;
    store_quiet();
    memcpy(part, name, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (name[i] && name[i] != '/') continue;
        part[i] = 0;
        H5L_info_t link;
        bool there = H5Lexists(store->file, part, H5P_DEFAULT) > 0 &&
                     H5Lget_info(store->file, part, &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD;
        H5Eclear2(H5E_DEFAULT);
        if (!there) return false;
        part[i] = name[i];
    }
    return true;
}

// Layout, filters and storage must be such that reading stays inside the file and inside its size. *chunk as in
// dataset_t.
static status_t dataset_check(const store_t *store, const char *name, hid_t id, size_t size, uint64_t bytes,
                              uint64_t *chunk) {
    hid_t creation = H5Dget_create_plist(id);
    H5D_layout_t layout = creation < 0 ? H5D_LAYOUT_ERROR : H5Pget_layout(creation);
    bool good = layout == H5D_CONTIGUOUS && H5Pget_external_count(creation) == 0;
    *chunk = 0;
    if (layout == H5D_CHUNKED) {
        *chunk = chunk_elements(creation);
        good = *chunk && *chunk <= CHUNK_LIMIT / size;
    }
    if (creation >= 0) H5Pclose(creation);
    H5Eclear2(H5E_DEFAULT);
    if (!good)
        FAIL(STATUS_INVALID, "'%s' in '%s' is stored in a way that Poise does not write; make the file anew", name,
             store->path);
    uint64_t stored = H5Dget_storage_size(id);
    uint64_t most = stored > UINT64_MAX / DEFLATE_RATIO ? UINT64_MAX : stored * (*chunk ? DEFLATE_RATIO : 1);
    if (stored > (uint64_t)store->bytes || bytes > most)
        FAIL(STATUS_INVALID, "'%s' in '%s' claims %llu bytes and the file holds %llu of them: it is torn or damaged",
             name, store->path, (unsigned long long)bytes, (unsigned long long)stored);
    return STATUS_OK;
}

// Opens a dataset of `rank` dimensions (0 or 1) and type `type`; `shown` names the type in errors.
static status_t dataset_open(store_t *store, const char *name, int rank, hid_t type, const char *shown,
                             dataset_t *out) {
    *out = (dataset_t){.id = -1};
    TRY(store_check_name(store, name));
    if (store->temporary) FAIL(STATUS_FAILED, "'%s' is open for writing and cannot be read", store->path);
    if (!store_has(store, name)) FAIL(STATUS_INVALID, "'%s' has no dataset '%s'", store->path, name);
    hid_t id = H5Dopen2(store->file, name, H5P_DEFAULT);
    if (id < 0) return store_failure(STATUS_INVALID, "open", store, name);
    status_t status = STATUS_OK;
    hid_t own = H5Dget_type(id), space = H5Dget_space(id);
    hsize_t count[H5S_MAX_RANK] = {1};
    size_t size = own < 0 ? 0 : H5Tget_size(own);
    if (own < 0 || space < 0)
        status = store_failure(STATUS_INVALID, "read the description of", store, name);
    else if (type >= 0 ? H5Tequal(own, type) <= 0 : H5Tget_class(own) != H5T_STRING || H5Tis_variable_str(own) != 0)
        status = STATUS_NEW(STATUS_INVALID, "'%s' in '%s' is not of type %s", name, store->path, shown);
    else if (H5Sget_simple_extent_type(space) != (rank ? H5S_SIMPLE : H5S_SCALAR) ||
             H5Sget_simple_extent_ndims(space) != rank || (rank && H5Sget_simple_extent_dims(space, count, NULL) < 0))
        status = STATUS_NEW(STATUS_INVALID, "'%s' in '%s' has not %d dimensions", name, store->path, rank);
    else if (!size || count[0] > (uint64_t)INT64_MAX / size)
        status = STATUS_NEW(STATUS_INVALID, "'%s' in '%s' claims an impossible size", name, store->path);
    else
        status = dataset_check(store, name, id, size, count[0] * size, &out->chunk);
    if (!status && !rank && out->chunk)
        status =
            STATUS_NEW(STATUS_INVALID, "'%s' in '%s' is stored in a way that Poise does not write", name, store->path);
    if (own >= 0) H5Tclose(own);
    if (space >= 0) H5Sclose(space);
    if (status) {
        H5Dclose(id);
        return status;
    }
    out->id = id;
    out->count = type >= 0 ? (int64_t)count[0] : (int64_t)size;
    return STATUS_OK;
}

status_t store_count(store_t *store, const char *name, int64_t *count) {
    *count = 0;
    TRY(store_check_name(store, name));
    if (!store_has(store, name)) FAIL(STATUS_INVALID, "'%s' has no dataset '%s'", store->path, name);
    hid_t id = H5Dopen2(store->file, name, H5P_DEFAULT);
    hid_t space = id < 0 ? -1 : H5Dget_space(id);
    hssize_t elements = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    if (space >= 0) H5Sclose(space);
    if (id >= 0) H5Dclose(id);
    if (elements < 0) return store_failure(STATUS_INVALID, "count the elements of", store, name);
    *count = elements;
    return STATUS_OK;
}

// Reads elements first .. first + count - 1 of an open dataset.
static status_t dataset_read(const store_t *store, const char *name, const dataset_t *dataset, hid_t type,
                             int64_t first, int64_t count, void *out) {
    if (!count) return STATUS_OK;
    if (dataset->chunk) {
        bool whole;
        TRY(chunk_read(dataset->id, dataset->chunk, H5Tget_size(type), first, count, out, &whole));
        H5Eclear2(H5E_DEFAULT);
        if (!whole)
            FAIL(STATUS_INVALID, "'%s' in '%s' is torn or damaged: a part of it is missing or broken", name,
                 store->path);
        return STATUS_OK;
    }
    hsize_t start = (hsize_t)first, length = (hsize_t)count;
    hid_t file_space = H5Dget_space(dataset->id), memory_space = H5Screate_simple(1, &length, NULL);
    bool good = file_space >= 0 && memory_space >= 0 &&
                H5Sselect_hyperslab(file_space, H5S_SELECT_SET, &start, NULL, &length, NULL) >= 0 &&
                H5Dread(dataset->id, type, memory_space, file_space, H5P_DEFAULT, out) >= 0;
    status_t status = good ? STATUS_OK : store_failure(STATUS_IO, "read", store, name);
    if (file_space >= 0) H5Sclose(file_space);
    if (memory_space >= 0) H5Sclose(memory_space);
    return status;
}

status_t store_read(store_t *store, const char *name, dtype_t dtype, int64_t first, int64_t count, void *out) {
    dataset_t dataset;
    store_quiet();
    hid_t type = store_type(dtype);
    if (type < 0) FAIL(STATUS_INVALID, "cannot read '%s' from '%s' as an unknown type", name, store->path);
    status_t status = dataset_open(store, name, 1, type, store_type_name(dtype), &dataset);
    if (!status && (first < 0 || count < 0 || first > dataset.count || count > dataset.count - first))
        status = STATUS_NEW(STATUS_INVALID, "'%s' in '%s' has %lld elements; %lld from element %lld on were asked for",
                            name, store->path, (long long)dataset.count, (long long)count, (long long)first);
    if (!status) status = dataset_read(store, name, &dataset, type, first, count, out);
    if (dataset.id >= 0) H5Dclose(dataset.id);
    H5Tclose(type);
    return status;
}

status_t store_read_all(store_t *store, const char *name, dtype_t dtype, void **out, int64_t *count) {
    dataset_t dataset;
    *out = NULL;
    *count = 0;
    store_quiet();
    hid_t type = store_type(dtype);
    if (type < 0) FAIL(STATUS_INVALID, "cannot read '%s' from '%s' as an unknown type", name, store->path);
    void *data = NULL;
    status_t status = dataset_open(store, name, 1, type, store_type_name(dtype), &dataset);
    if (!status) status = memory_allocate((size_t)dataset.count, H5Tget_size(type), &data);
    if (!status) status = dataset_read(store, name, &dataset, type, 0, dataset.count, data);
    if (dataset.id >= 0) H5Dclose(dataset.id);
    H5Tclose(type);
    if (status) {
        free(data);
        return status;
    }
    *out = data;
    *count = dataset.count;
    return STATUS_OK;
}

static status_t store_read_scalar(store_t *store, const char *name, hid_t type, const char *shown, void *out) {
    dataset_t dataset;
    store_quiet();
    TRY(dataset_open(store, name, 0, type, shown, &dataset));
    status_t status = STATUS_OK;
    if (H5Dread(dataset.id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) < 0)
        status = store_failure(STATUS_IO, "read", store, name);
    H5Dclose(dataset.id);
    return status;
}

status_t store_read_number(store_t *store, const char *name, int64_t *out) {
    *out = 0;
    return store_read_scalar(store, name, H5T_STD_I64LE, "number", out);
}

status_t store_read_real(store_t *store, const char *name, double *out) {
    *out = 0;
    return store_read_scalar(store, name, H5T_IEEE_F64LE, "real", out);
}

status_t store_read_string(store_t *store, const char *name, char **out) {
    dataset_t dataset;
    *out = NULL;
    store_quiet();
    TRY(dataset_open(store, name, 0, -1, "string", &dataset));
    status_t status = STATUS_OK;
    hid_t type = H5Dget_type(dataset.id);
    char *text = NULL;
    if (dataset.count > STRING_LIMIT)
        status = STATUS_NEW(STATUS_INVALID, "the string '%s' in '%s' is longer than %d bytes", name, store->path,
                            STRING_LIMIT);
    if (!status) status = memory_allocate((size_t)dataset.count + 1, 1, (void **)&text);
    if (!status && H5Dread(dataset.id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0)
        status = store_failure(STATUS_IO, "read", store, name);
    if (type >= 0) H5Tclose(type);
    H5Dclose(dataset.id);
    if (status) {
        free(text);
        return status;
    }
    *out = text;
    return STATUS_OK;
}

// ---- writing ----

static status_t store_write_checks(store_t *store, const char *name) {
    store_quiet();
    TRY(store_check_name(store, name));
    if (!store->temporary || store->committed || store->file < 0)
        FAIL(STATUS_FAILED, "'%s' is not open for writing", store->path);
    if (store->broken) FAIL(STATUS_IO, "an earlier write to '%s' failed", store->path);
    return STATUS_OK;
}

static status_t store_write_new(store_t *store, const char *name) {
    TRY(store_write_checks(store, name));
    if (store_has(store, name)) {
        store->broken = true;
        FAIL(STATUS_FAILED, "'%s' was written to '%s' before", name, store->path);
    }
    return STATUS_OK;
}

// Makes the dataset and writes it; the groups in its name are made on the way.
static status_t store_put(store_t *store, const char *name, hid_t type, hid_t space, hid_t creation, const void *data) {
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_obj_track_times(creation, 0);
    hid_t id = H5Dcreate2(store->file, name, type, space, links, creation, H5P_DEFAULT);
    H5Pclose(links);
    status_t status = STATUS_OK;
    if (id < 0)
        status = store_failure(STATUS_IO, "make", store, name);
    else if (H5Sget_simple_extent_npoints(space) > 0 && H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        status = store_failure(STATUS_IO, "write", store, name);
    if (id >= 0 && H5Dclose(id) < 0 && !status) status = store_failure(STATUS_IO, "write", store, name);
    if (status) store->broken = true;
    return status;
}

status_t store_write(store_t *store, const char *name, dtype_t dtype, const void *data, int64_t count, bool compress) {
    TRY(store_write_new(store, name));
    hid_t type = store_type(dtype);
    if (type < 0 || count < 0) {
        if (type >= 0) H5Tclose(type);
        FAIL(STATUS_INVALID, "cannot write '%s' to '%s': unknown type or negative size", name, store->path);
    }
    hsize_t length = (hsize_t)count, chunk = CHUNK_BYTES / H5Tget_size(type);
    hid_t space = H5Screate_simple(1, &length, NULL), creation = H5Pcreate(H5P_DATASET_CREATE);
    if (compress && count) {
        if (chunk > length) chunk = length;
        H5Pset_chunk(creation, 1, &chunk);
        H5Pset_shuffle(creation);
        H5Pset_deflate(creation, 1);
    }
    status_t status = store_put(store, name, type, space, creation, data);
    H5Pclose(creation);
    H5Sclose(space);
    H5Tclose(type);
    return status;
}

// Makes the dataset of a first part, without filling it.
static status_t store_make_parts(store_t *store, const char *name, hid_t type, int64_t total) {
    hsize_t length = (hsize_t)total;
    hid_t space = H5Screate_simple(1, &length, NULL), creation = H5Pcreate(H5P_DATASET_CREATE);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    H5Pset_obj_track_times(creation, 0);
    H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
    hid_t id = H5Dcreate2(store->file, name, type, space, links, creation, H5P_DEFAULT);
    status_t status = id < 0 ? store_failure(STATUS_IO, "make", store, name) : STATUS_OK;
    if (id >= 0) H5Dclose(id);
    H5Pclose(links);
    H5Pclose(creation);
    H5Sclose(space);
    return status;
}

static status_t store_put_part(store_t *store, const char *name, hid_t type, int64_t first, int64_t count,
                               const void *data) {
    hsize_t start = (hsize_t)first, length = (hsize_t)count;
    hid_t id = H5Dopen2(store->file, name, H5P_DEFAULT), space = id < 0 ? -1 : H5Dget_space(id);
    hid_t memory = H5Screate_simple(1, &length, NULL);
    bool good = space >= 0 && memory >= 0 &&
                H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &length, NULL) >= 0 &&
                H5Dwrite(id, type, memory, space, H5P_DEFAULT, data) >= 0;
    status_t status = good ? STATUS_OK : store_failure(STATUS_IO, "write", store, name);
    if (memory >= 0) H5Sclose(memory);
    if (space >= 0) H5Sclose(space);
    if (id >= 0 && H5Dclose(id) < 0 && !status) status = store_failure(STATUS_IO, "write", store, name);
    return status;
}

status_t store_write_part(store_t *store, const char *name, dtype_t dtype, int64_t total, int64_t first, int64_t count,
                          const void *data) {
    TRY(store_write_checks(store, name));
    hid_t type = store_type(dtype);
    status_t status = STATUS_OK;
    if (type < 0 || total < 0 || first < 0 || count < 0 || first > total || count > total - first)
        status = STATUS_NEW(STATUS_INVALID, "cannot write this part of '%s' to '%s'", name, store->path);
    if (!status && !store_has(store, name)) status = store_make_parts(store, name, type, total);
    if (!status && count) status = store_put_part(store, name, type, first, count, data);
    if (type >= 0) H5Tclose(type);
    if (status) store->broken = true;
    return status;
}

static status_t store_write_scalar(store_t *store, const char *name, hid_t type, const void *data) {
    TRY(store_write_new(store, name));
    hid_t space = H5Screate(H5S_SCALAR), creation = H5Pcreate(H5P_DATASET_CREATE);
    status_t status = store_put(store, name, type, space, creation, data);
    H5Pclose(creation);
    H5Sclose(space);
    return status;
}

status_t store_write_string(store_t *store, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(text) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    status_t status = store_write_scalar(store, name, type, text);
    H5Tclose(type);
    return status;
}

status_t store_write_number(store_t *store, const char *name, int64_t value) {
    return store_write_scalar(store, name, H5T_STD_I64LE, &value);
}

status_t store_write_real(store_t *store, const char *name, double value) {
    return store_write_scalar(store, name, H5T_IEEE_F64LE, &value);
}
