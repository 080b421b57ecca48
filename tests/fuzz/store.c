// Any bytes as an HDF5 file: every dataset read as every type, then as packed data, a checkpoint or trajectories.
#include "common/store/store.h"
#include "common/data/packed.h"
#include "launch/inspect_parts.h"
#include "tests/fuzz/fuzz.h"

static void read_dataset(store_t *store, const char *name) {
    int64_t count, number;
    double real;
    char *text;
    status_free(store_count(store, name, &count));
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        void *all = NULL;
        uint8_t some[8 * 8];
        status_t status = store_read_all(store, name, (dtype_t)dtype, &all, &count);
        if (!status && count > 2) status = store_read(store, name, (dtype_t)dtype, count - 2, 2, some);
        status_free(status);
        free(all);
    }
    status_t status = store_read_string(store, name, &text);
    if (!status) free(text);
    status_free(status);
    status_free(store_read_number(store, name, &number));
    status_free(store_read_real(store, name, &real));
}

static void read_packed(const char *path) {
    packed_t *packed = NULL;
    status_t status = packed_open(path, &packed);
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
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool quiet;
    store_t *store;
    char path[256];
    if (!quiet) quiet = freopen("/dev/null", "w", stdout) != NULL; // what inspect prints
    fuzz_allow(1 << 20, 1100, size);                               // deflate makes a byte of 1,000 at most
    fuzz_file("data.h5", data, size);
    snprintf(path, sizeof(path), "%s", fuzz_path("data.h5"));
    status_t status = store_open(path, &store);
    if (!status) {
        for (size_t i = 0; i < store_names(store); i++)
            if (store_name(store, i)) read_dataset(store, store_name(store, i));
        store_close(store);
        read_packed(path);
        status = inspect_store(path, NULL, -1);
    }
    status_free(status);
    return 0;
}
