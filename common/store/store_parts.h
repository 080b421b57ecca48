// Inside of common/store: what the writing and the reading half of a store share.
#ifndef COMMON_STORE_STORE_PARTS_H
#define COMMON_STORE_STORE_PARTS_H

#include "common/store/directory.h"
#include "common/store/store.h"
#include <hdf5.h>

enum { STORE_NAME_BYTES = 1024 };

struct store {
    char *path;
    // A writer's:
    hid_t file;
    char *temporary; // NULL for a reader
    bool committed;
    bool broken; // a write failed: the file must not appear
    // A reader's:
    directory_file_t reader;
    directory_t directory;
};

status_t store_new(const char *path, store_t **out) STATUS_CHECKED;
status_t store_check_name(const store_t *store, const char *name) STATUS_CHECKED;

#endif
