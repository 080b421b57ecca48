#include "launch/quickstart_data/fashion.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

const char *const kind_names[KINDS] = {"tshirt", "trouser", "pullover", "dress", "sandal", "sneaker", "bag", "boot"};
// Fashion-MNIST's label of each kind.
static const int kind_labels[KINDS] = {0, 1, 2, 3, 5, 7, 8, 9};

// Reads a gzipped IDX file of bytes: magic 0x08000000 + dimensions, big-endian sizes, data.
static status_t idx_read(const char *path, int dimensions, int *count, uint8_t **data) {
    gzFile file = gzopen(path, "rb");
    if (!file)
        FAIL(STATUS_INVALID, "cannot open %s; install Debian's package dataset-fashion-mnist or give --fashion DIR",
             path);
    uint8_t header[16];
    int header_bytes = 4 + 4 * dimensions, size[3] = {0, 1, 1};
    status_t status = STATUS_OK;
    *data = NULL;
    if (gzread(file, header, (unsigned)header_bytes) != header_bytes || header[0] || header[1] || header[2] != 8 ||
        header[3] != dimensions)
        status = STATUS_NEW(STATUS_INVALID, "%s is no IDX file of %d dimensions", path, dimensions);
    for (int d = 0; !status && d < dimensions; d++) {
        const uint8_t *b = header + 4 + 4 * d;
        size[d] = b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
    }
    if (!status &&
        (size[0] < 1 || size[0] > 1000000 || (dimensions == 3 && (size[1] != FASHION_SIDE || size[2] != FASHION_SIDE))))
        status = STATUS_NEW(STATUS_INVALID, "%s holds no pictures of 28x28", path);
    int bytes = size[0] * size[1] * size[2];
    if (!status) status = memory_allocate((size_t)bytes, 1, (void **)data);
    if (!status && gzread(file, *data, (unsigned)bytes) != bytes)
        status = STATUS_NEW(STATUS_INVALID, "%s is shorter than it says", path);
    gzclose(file);
    if (status) {
        free(*data);
        *data = NULL;
    }
    *count = size[0];
    return status;
}

status_t fashion_read(const char *directory, const char *split, fashion_t *out) {
    char path[4096];
    uint8_t *labels = NULL;
    int label_count = 0;
    *out = (fashion_t){0};
    snprintf(path, sizeof(path), "%s/%s-images-idx3-ubyte.gz", directory, split);
    TRY(idx_read(path, 3, &out->count, &out->pixels));
    snprintf(path, sizeof(path), "%s/%s-labels-idx1-ubyte.gz", directory, split);
    status_t status = idx_read(path, 1, &label_count, &labels);
    if (!status && label_count != out->count)
        status = STATUS_NEW(STATUS_INVALID, "%s has %d labels for %d pictures", path, label_count, out->count);
    for (int k = 0; !status && k < KINDS; k++) {
        status = ALLOCATE(&out->index[k], out->count);
        for (int i = 0; !status && i < out->count; i++)
            if (labels[i] == kind_labels[k]) out->index[k][out->index_count[k]++] = i;
        if (!status && !out->index_count[k])
            status = STATUS_NEW(STATUS_INVALID, "%s has no picture of a %s", path, kind_names[k]);
    }
    free(labels);
    if (status) fashion_free(out);
    return status;
}

void fashion_free(fashion_t *fashion) {
    for (int k = 0; k < KINDS; k++) free(fashion->index[k]);
    free(fashion->pixels);
    *fashion = (fashion_t){0};
}
