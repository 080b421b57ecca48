// safetensors files: an 8-byte header length, a JSON header, raw little-endian tensors without gaps.
#ifndef COMMON_MODEL_SAFETENSORS_H
#define COMMON_MODEL_SAFETENSORS_H

#include "kernels/device.h"
#include <jansson.h>

enum { SAFETENSORS_MAX_DIMENSIONS = 8 };

typedef struct safetensors_tensor {
    char *name;
    dtype_t dtype; // F32, BF16, F16, I32, I64, U8 (also BOOL)
    int dimensions;
    int64_t shape[SAFETENSORS_MAX_DIMENSIONS];
    int64_t elements;
    const void *data; // in the mapped file; may lie at any address, so read it by safetensors_read_* or memcpy
    size_t bytes;
} safetensors_tensor_t;

typedef struct safetensors safetensors_t;

// Opens one file. Nothing in the header is believed before it is checked: its length, names (no duplicates), shapes
// (products that overflow), offsets (in the file, in step with shape and dtype, neither overlapping nor leaving gaps).
// All violations are STATUS_INVALID and name the file and tensor.
status_t safetensors_open(const char *path, safetensors_t **out) STATUS_CHECKED;
// Opens DIR/model.safetensors, or without one all files of DIR/model.safetensors.index.json. A tensor in two files, or
// one the index names that its file lacks, is an error.
status_t safetensors_open_folder(const char *directory, safetensors_t **out) STATUS_CHECKED;
void safetensors_close(safetensors_t *file);
int safetensors_count(const safetensors_t *file);
const safetensors_tensor_t *safetensors_at(const safetensors_t *file, int index);
// NULL when there is none.
const safetensors_tensor_t *safetensors_find(const safetensors_t *file, const char *name);
// The value of "__metadata__"'s key in the first file, or NULL.
const char *safetensors_metadata(const safetensors_t *file, const char *key);
// Converts `elements` values to f32 (exact for f32, bf16, f16) or i32 (from i32, i64 in range, u8).
status_t safetensors_read_f32(const safetensors_tensor_t *tensor, float *out) STATUS_CHECKED;
status_t safetensors_read_i32(const safetensors_tensor_t *tensor, int32_t *out) STATUS_CHECKED;

// What to write: `data` is host memory of dtype and shape, contiguous. `load`, when set, is asked for the data of one
// tensor at a time (for tensors on a device) and fills `buffer` of `bytes`.
typedef struct safetensors_item {
    const char *name;
    dtype_t dtype;
    int dimensions;
    const int64_t *shape;
    const void *data;
} safetensors_item_t;
typedef status_t (*safetensors_load_t)(void *context, int index, void *buffer, size_t bytes);
// Writes a whole file under a temporary name, flushes it to disk and renames it. Tensors lie in the order given; the
// header's bytes depend on nothing else, so equal contents give equal files. metadata_format: e.g. "pt".
status_t safetensors_write(const char *path, const safetensors_item_t *items, int count, const char *metadata_format,
                           safetensors_load_t load, void *context) STATUS_CHECKED;

// transformers' max_shard_size.
#define SAFETENSORS_SHARD_BYTES ((size_t)5000000000)
// Writes FOLDER/model.safetensors, or where the tensors are more than `shard_bytes` the files
// model-00001-of-0000N.safetensors, filled in order and each at most that large unless it is one tensor, and
// model.safetensors.index.json.
status_t safetensors_write_folder(const char *directory, const safetensors_item_t *items, int count,
                                  const char *metadata_format, safetensors_load_t load, void *context,
                                  size_t shard_bytes) STATUS_CHECKED;

#endif
