// Inside of common/store: what an HDF5 file holds, read without the HDF5 library.
//
// Files come from strangers, and the library trusts what it reads: 1.10 divides by zero, reads past buffers and leaks
// on damaged files, inside the process that opened them. So it only ever writes here. What it writes at Poise's request
// is a small, fixed part of the format (superblock 0, symbol tables, version 1 object headers and B-trees, contiguous
// or shuffled and deflated data), and this reader knows exactly that part; anything else is an error, never a guess.
// Opening costs the metadata, not the data, however large the file is. Metadata read, and memory used, stay within a
// small multiple of the file's size, whatever it claims.
#ifndef COMMON_STORE_DIRECTORY_H
#define COMMON_STORE_DIRECTORY_H

#include "kernels/base/status.h"
#include <stdint.h>

enum { DIRECTORY_TYPE_BYTES = 20 };
#define DIRECTORY_NOWHERE UINT64_MAX // an address that the file leaves open

// An open file. Every read goes through directory_read.
typedef struct directory_file {
    int fd;
    const char *path; // borrowed, for messages
    uint64_t bytes;
    uint64_t budget; // bytes of metadata that may still be read
} directory_file_t;

// What an object header says.
typedef struct directory_object {
    enum { OBJECT_OTHER, OBJECT_GROUP, OBJECT_DATASET } kind;
    bool strange;                       // stored in a way that Poise does not write
    int rank;                           // dimensions; -1: none
    uint64_t count;                     // elements (1 without dimensions)
    uint8_t type[DIRECTORY_TYPE_BYTES]; // the datatype message
    size_t type_bytes;
    uint32_t size;            // bytes of an element
    uint64_t address, stored; // contiguous data
    uint64_t chunk, tree;     // compressed data: elements of a chunk (0: contiguous) and where the tree of chunks is
    uint64_t links, heap;     // of a group: its tree of links, and where their names are
} directory_object_t;

typedef struct directory_entry {
    char *name; // from the root, parts separated by '/'
    uint64_t address;
    bool dataset;
} directory_entry_t;

typedef struct directory {
    directory_entry_t *entry; // [count], in the order of their names
    size_t count, capacity;
} directory_t;

// Reads exactly `size` bytes at `address`. Outside of the file: STATUS_INVALID.
status_t directory_read(const directory_file_t *file, uint64_t address, void *out, size_t size) STATUS_CHECKED;
// The same for metadata, which counts against the budget.
status_t directory_read_metadata(directory_file_t *file, uint64_t address, void *out, size_t size) STATUS_CHECKED;
// Lists groups and datasets. Only hard links count, so that nothing outside the file is ever opened.
status_t directory_list(directory_file_t *file, directory_t *out) STATUS_CHECKED;
void directory_free(directory_t *directory);
// NULL when there is none of that name.
const directory_entry_t *directory_find(const directory_t *directory, const char *name);
// Reads an object header.
status_t directory_describe(directory_file_t *file, uint64_t address, directory_object_t *out) STATUS_CHECKED;

// Little-endian numbers of the format.
static inline uint64_t directory_number(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}
status_t directory_damaged(const directory_file_t *file, const char *what) STATUS_CHECKED;

#endif
