// Inside of common/store: datasets stored as store_write's `compress` does (one dimension, in chunks, shuffled,
// deflated).
#ifndef COMMON_STORE_CHUNK_H
#define COMMON_STORE_CHUNK_H

#include "common/store/directory.h"

// Walks the tree of chunks: how many there are and how many bytes they take in the file.
status_t chunk_survey(directory_file_t *file, uint64_t tree, uint64_t *chunks, uint64_t *stored) STATUS_CHECKED;
// Reads elements first .. first + count - 1, `size` bytes each, of a dataset in chunks of `elements`. A missing or
// damaged chunk: STATUS_INVALID.
status_t chunk_read(const directory_file_t *file, uint64_t tree, uint64_t elements, size_t size, int64_t first,
                    int64_t count, uint8_t *out) STATUS_CHECKED;

#endif
