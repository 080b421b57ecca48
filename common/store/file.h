// Inside of common/store: how a temporary file becomes the real one.
#ifndef COMMON_STORE_FILE_H
#define COMMON_STORE_FILE_H

#include "common/store/store.h"

// Flushes the temporary file, renames it to `path` and flushes the folder.
status_t file_publish(const char *temporary, const char *path) STATUS_CHECKED;

#endif
