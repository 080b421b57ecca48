#include "common/store/chunk.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

uint64_t chunk_elements(hid_t creation) {
    static const H5Z_filter_t expected[2] = {H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE};
    hsize_t chunk[H5S_MAX_RANK] = {0};
    if (H5Pget_layout(creation) != H5D_CHUNKED || H5Pget_nfilters(creation) != 2) return 0;
    for (unsigned i = 0; i < 2; i++) {
        unsigned flags, config;
        size_t values = 0;
        if (H5Pget_filter2(creation, i, &flags, &values, NULL, 0, NULL, &config) != expected[i]) return 0;
    }
    return H5Pget_chunk(creation, H5S_MAX_RANK, chunk) == 1 ? chunk[0] : 0;
}

// HDF5's shuffle keeps all first bytes of the elements together, then all second bytes, and so on.
static void unshuffle(const uint8_t *shuffled, uint64_t elements, size_t size, uint64_t first, uint64_t count,
                      uint8_t *out) {
    for (uint64_t i = 0; i < count; i++)
        for (size_t byte = 0; byte < size; byte++) *out++ = shuffled[byte * elements + first + i];
}

// Fetches one chunk into `packed` (packed_bytes long) and inflates it to exactly `bytes` bytes.
static bool chunk_load(hid_t dataset, hsize_t offset, uint8_t *packed, size_t packed_bytes, uint8_t *plain,
                       size_t bytes) {
    hsize_t stored = 0;
    uint32_t skipped = 0;
    uLongf made = bytes;
    return H5Dget_chunk_storage_size(dataset, &offset, &stored) >= 0 && stored > 0 && stored <= packed_bytes &&
           H5Dread_chunk(dataset, H5P_DEFAULT, &offset, &skipped, packed) >= 0 && !skipped &&
           uncompress(plain, &made, packed, stored) == Z_OK && made == bytes;
}

status_t chunk_read(hid_t dataset, uint64_t elements, size_t size, int64_t first, int64_t count, uint8_t *out,
                    bool *good) {
    size_t bytes = elements * size, packed_bytes = compressBound(bytes);
    uint8_t *plain = NULL, *packed = NULL;
    *good = true;
    status_t status = memory_allocate(bytes, 1, (void **)&plain);
    if (!status) status = memory_allocate(packed_bytes, 1, (void **)&packed);
    for (uint64_t at = (uint64_t)first, end = at + (uint64_t)count; !status && *good && at < end;) {
        uint64_t within = at % elements, take = elements - within;
        if (take > end - at) take = end - at;
        *good = chunk_load(dataset, at - within, packed, packed_bytes, plain, bytes);
        if (*good) unshuffle(plain, elements, size, within, take, out);
        out += take * size;
        at += take;
    }
    free(plain);
    free(packed);
    return status;
}
