// Inside of common/store: compressed datasets read without HDF5's own decompression.
//
// HDF5 1.10 does not check that a chunk inflates to the size it should have, and reads past its buffer when a damaged
// one is shorter. So chunks are fetched as stored and inflated here, with every size checked.
#ifndef COMMON_STORE_CHUNK_H
#define COMMON_STORE_CHUNK_H

#include "kernels/base/status.h"
#include <hdf5.h>
#include <stdint.h>

// Elements of a chunk when the dataset is stored as store_write's `compress` does (one dimension, shuffled, deflated),
// else 0.
uint64_t chunk_elements(hid_t creation);
// Reads elements first .. first + count - 1, `size` bytes each, of such a dataset. *good is false when a chunk is
// missing or damaged; the status is for running out of memory.
status_t chunk_read(hid_t dataset, uint64_t elements, size_t size, int64_t first, int64_t count, uint8_t *out,
                    bool *good) STATUS_CHECKED;

#endif
