// What the fuzz programs share: files made of the input, and a guard over Poise's own allocations.
//
// An input of several files is one row of bytes: the parts are separated by a byte 0x1e.
//
// The guard: every allocation of Poise goes through memory_allocate, memory_grow and the copies; the linker sends them
// here (tests/CMakeLists.txt). One that the input's size cannot justify ends the program. So does an input that makes
// all of them together exceed what the target allows.
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include "kernels/base/status.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// One allocation may have `base` bytes and `factor` for each byte of the input. Until the next call; 0: no limit.
void fuzz_allow(size_t base, size_t factor, size_t size);

// A folder of this process, removed at the end. Its files are in memory where the machine has /dev/shm.
const char *fuzz_folder(void);
// Writes (or, with data NULL, removes) FOLDER/name.
void fuzz_file(const char *name, const void *data, size_t size);
// FOLDER/name; valid until the next call.
const char *fuzz_path(const char *name);

// The next part of an input; false when there is none.
typedef struct fuzz_parts {
    const uint8_t *at, *end;
    bool over;
} fuzz_parts_t;
static inline fuzz_parts_t fuzz_parts(const uint8_t *data, size_t size) {
    return (fuzz_parts_t){.at = data, .end = data + size};
}
bool fuzz_next(fuzz_parts_t *parts, const uint8_t **data, size_t *size);

// Bytes as decisions: numbers are taken from the front, 0 when there are none left.
typedef struct fuzz_bytes {
    const uint8_t *at, *end;
} fuzz_bytes_t;
uint64_t fuzz_take(fuzz_bytes_t *bytes, int count);

#define FUZZ_CHECK(condition)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: this does not hold: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
