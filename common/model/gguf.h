// GGUF files (llama.cpp's), versions 2 and 3, little-endian: metadata by key, then quantised tensors.
//
// The file is mapped and nothing in it is believed: every length, count and offset is checked against the file before
// it is used, and what is allocated is in proportion to the file. Pointers into the file live until gguf_close.
#ifndef COMMON_MODEL_GGUF_H
#define COMMON_MODEL_GGUF_H

#include "kernels/base/status.h"

#include <stddef.h>
#include <stdint.h>

enum { GGUF_MAX_DIMENSIONS = 4 };

// Kinds of metadata values, as the format numbers them.
typedef enum gguf_kind {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_KINDS
} gguf_kind_t;

// Tensor types that are read, as the format numbers them.
typedef enum gguf_type {
    GGUF_TYPE_F32 = 0,
    GGUF_TYPE_F16 = 1,
    GGUF_TYPE_Q4_0 = 2,
    GGUF_TYPE_Q4_1 = 3,
    GGUF_TYPE_Q5_0 = 6,
    GGUF_TYPE_Q5_1 = 7,
    GGUF_TYPE_Q8_0 = 8,
    GGUF_TYPE_Q4_K = 12,
    GGUF_TYPE_Q5_K = 13,
    GGUF_TYPE_Q6_K = 14,
    GGUF_TYPE_BF16 = 30
} gguf_type_t;

// A value, or an array of `count` values of one kind; strings lie one after another, each behind its length.
typedef struct gguf_value {
    char *key;
    gguf_kind_t kind; // of the value, or of an array's elements
    bool is_array;
    uint64_t count; // 1 for a value that is no array
    const unsigned char *data;
} gguf_value_t;

typedef struct gguf_text {
    const char *bytes; // UTF-8, not 0-terminated
    size_t length;
} gguf_text_t;

typedef struct gguf_tensor {
    char *name;
    gguf_type_t type;
    int dimensions;
    int64_t shape[GGUF_MAX_DIMENSIONS]; // slowest first, as Hugging Face writes shapes
    int64_t elements;
    const void *data; // in the mapped file
    size_t bytes;
} gguf_tensor_t;

typedef struct gguf gguf_t;

// All violations are STATUS_INVALID and name the file and the key or tensor: no GGUF, version 1, big-endian, a part of
// a split model, values or tensors outside of the file, duplicate names, overlapping tensors, unknown tensor types.
status_t gguf_open(const char *path, gguf_t **out) STATUS_CHECKED;
void gguf_close(gguf_t *file);
int gguf_count(const gguf_t *file);
const gguf_tensor_t *gguf_at(const gguf_t *file, int index); // sorted by name
const gguf_tensor_t *gguf_find(const gguf_t *file, const char *name);

// NULL when the file has no such key.
const gguf_value_t *gguf_value(const gguf_t *file, const char *key);
// Element `index` of numbers: whole ones (also booleans), or any. false: another kind, out of range, no such element.
bool gguf_integer(const gguf_value_t *value, uint64_t index, int64_t *out);
bool gguf_number(const gguf_value_t *value, uint64_t index, double *out);
// The strings of a value, in an array of value->count to be freed. Errors: another kind; a string that is no UTF-8.
status_t gguf_texts(const gguf_value_t *value, gguf_text_t **out) STATUS_CHECKED;

const char *gguf_type_name(gguf_type_t type);
// Converts a tensor's `elements` values from the `first` on, both multiples of 256 or whole rows of blocks, to f32 with
// the arithmetic of gguf-py, to the bit.
status_t gguf_dequantise(const gguf_tensor_t *tensor, int64_t first, int64_t elements, float *out) STATUS_CHECKED;
// Values a block has and bytes it takes; false: a type that is not read.
bool gguf_block(uint32_t type, int *values, int *bytes);

#endif
