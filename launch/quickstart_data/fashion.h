// Fashion-MNIST as Debian's dataset-fashion-mnist installs it: 28x28 grey pictures with labels, gzipped IDX files.
#ifndef LAUNCH_QUICKSTART_DATA_FASHION_H
#define LAUNCH_QUICKSTART_DATA_FASHION_H

#include "kernels/base/status.h"
#include <stdint.h>

enum { FASHION_SIDE = 28, FASHION_PIXELS = 784, KINDS = 8 };

// The eight kinds that are used, in the order of kind_names; "shirt" and "coat" are left out, as people mix them up
// too.
extern const char *const kind_names[KINDS];

typedef struct fashion {
    int count;
    uint8_t *pixels;   // [count][784], 0 = background
    int *index[KINDS]; // pictures of each kind
    int index_count[KINDS];
} fashion_t;

// split: "train" or "t10k". directory: where the four files are.
status_t fashion_read(const char *directory, const char *split, fashion_t *out) STATUS_CHECKED;
void fashion_free(fashion_t *fashion);

#endif
