// Writing behind store.h, by the HDF5 library. Reading is store_read.c, without it.
#include "common/store/file.h"
#include "common/store/store_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHUNK_BYTES = 1 << 20 };

enum { REASON_BYTES = 160 };

// The innermost message of HDF5's error stack, or what the system said if the message quotes that: "..., errno = 28,
// error message = 'No space left on device', buf = ...".
static herr_t store_first_reason(unsigned n, const H5E_error2_t *error, void *text) {
    static const char quoted[] = "error message = '";
    if (n || !error->desc) return 0;
    const char *from = strstr(error->desc, quoted);
    from = from ? from + strlen(quoted) : error->desc;
    size_t length = strcspn(from, from == error->desc ? "\n" : "'");
    snprintf(text, REASON_BYTES, "%.*s", (int)length, from);
    return 0;
}

static status_t store_failure(status_kind_t kind, const char *what, const store_t *store, const char *name) {
    char reason[REASON_BYTES] = "no reason given";
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

status_t store_new(const char *path, store_t **out) {
    store_t *store;
    *out = NULL;
    TRY(ALLOCATE(&store, 1));
    store->file = -1;
    store->reader.fd = -1;
    status_t status = memory_copy_string(path, &store->path);
    if (status) {
        free(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

// File locks are off: files appear whole by rename, and network file systems often refuse locks. Libraries of later
// versions are told to write the oldest form, the one that directory.h reads.
static hid_t store_access(void) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access >= 0 && (H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) < 0 || H5Pset_file_locking(access, 0, 1) < 0 ||
                        H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST) < 0)) {
        H5Pclose(access);
        return -1;
    }
    return access;
}

status_t store_create(const char *path, store_t **out) {
    store_t *store;
    // After a file could not be closed HDF5's own tidying at exit would touch what it has freed. Files are closed here.
    H5dont_atexit();
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
    // Flushed first: HDF5 frees a file whose closing fails, but keeps its id, which nobody may touch any more.
    if (!status && H5Fflush(store->file, H5F_SCOPE_GLOBAL) < 0)
        status = store_failure(STATUS_IO, "finish", store, NULL);
    if (!status) {
        if (H5Fclose(store->file) < 0) status = store_failure(STATUS_IO, "finish", store, NULL);
        store->file = -1;
    }
    if (!status) status = file_publish(store->temporary, store->path);
    if (status)
        store->broken = true;
    else
        store->committed = true;
    return status;
}

// Lets a file that will not be kept be closed whatever the disk says: what HDF5 still has to write goes to memory.
// Without this a full disk would leave the file open, and its space taken, after it has been unlinked.
static void store_divert(store_t *store) {
    void *handle = NULL;
    int memory = memfd_create("poise-store", MFD_CLOEXEC);
    if (memory < 0) return;
    if (H5Fget_vfd_handle(store->file, H5P_DEFAULT, &handle) >= 0 && handle) dup2(memory, *(const int *)handle);
    close(memory);
}

void store_close(store_t *store) {
    if (!store) return;
    if (store->temporary) store_quiet();
    if (store->file >= 0 && store->temporary) store_divert(store);
    if (store->file >= 0) H5Fclose(store->file);
    if (store->reader.fd >= 0) close(store->reader.fd);
    directory_free(&store->directory);
    if (store->temporary && !store->committed) unlink(store->temporary);
    free(store->temporary);
    free(store->path);
    free(store);
}

// ---- writing ----

static bool store_was_written(store_t *store, const char *name) {
    char part[STORE_NAME_BYTES];
    size_t length = strlen(name);
    for (size_t i = 1; i <= length; i++) {
        if (name[i] && name[i] != '/') continue;
        memcpy(part, name, i);
        part[i] = 0;
        bool there = H5Lexists(store->file, part, H5P_DEFAULT) > 0;
        H5Eclear2(H5E_DEFAULT);
        if (!there) return false;
    }
    return true;
}

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
    if (store_was_written(store, name)) {
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
    if (!status && !store_was_written(store, name)) status = store_make_parts(store, name, type, total);
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
