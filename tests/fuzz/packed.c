// Any bytes as a packed HDF5 file: opened, every sample and picture read.
#include "common/data/packed.h"
#include "common/store/store.h"

#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    packed_t *packed = NULL;
    snprintf(path, sizeof(path), "/tmp/poise-fuzz-packed.%ld.h5", (long)getpid());
    status_t status = file_write_whole(path, data, size);
    if (!status) status = packed_open(path, &packed);
    for (int64_t i = 0; !status && i < packed_count(packed); i++) {
        packed_sample_t sample;
        status = packed_sample(packed, i, &sample);
    }
    for (int32_t i = 0; !status && i < packed_images(packed); i++) {
        const void *bytes;
        size_t length;
        status = packed_image(packed, i, &bytes, &length, NULL);
    }
    status_free(status);
    packed_close(packed);
    unlink(path);
    return 0;
}
