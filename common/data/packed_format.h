// The datasets of a packed file (docs/file-formats.md); private to common/data.
#ifndef COMMON_DATA_PACKED_FORMAT_H
#define COMMON_DATA_PACKED_FORMAT_H

#include "common/data/packed.h"
#include "common/store/store.h"
#include <xxhash.h>

enum { PACKED_SCHEMA = 1, PACKED_TEXTS = 4 }; // strings of a sample before its options: id, answer, kind, listing

// All arrays of the file but the images' bytes. Starts have one entry more than what they index.
typedef struct packed_arrays {
    int64_t samples, token_count, image_uses, images, strings, string_bytes;
    int32_t *tokens;          // [token_count]
    uint8_t *segments;        // [token_count]
    int64_t *sample_start;    // [samples + 1] into tokens
    int32_t *prompt_length;   // [samples]
    int64_t *image_use_start; // [samples + 1] into image_use
    int32_t *image_use;       // [image_uses] image numbers
    int64_t *option_start;    // [samples + 1] counts options before each sample
    int64_t *
        string_start; // [strings + 1] into string_data; strings are 0-terminated; sample by sample: texts, then options
    char *string_data;    // [string_bytes]
    int64_t *image_start; // [images + 1] into image_data
    int64_t *image_hash;  // [images] XXH3-64
} packed_arrays_t;

// 32 hex digits of XXH3-128 over all arrays (images enter by their hashes).
void packed_content_hash(const packed_arrays_t *arrays, char out[33]);
// 16 hex digits over what decides about tokens and pixels: tokenizer.json and the image rules.
status_t packed_model_hash(const char *model_directory, const image_rules_t *rules, char out[17]) STATUS_CHECKED;
// The model hash recorded in an open file; valid until packed_close.
const char *packed_model(const packed_t *packed);
// A file is these arrays, then "image_data" (by the caller), then the hashes.
status_t packed_write_arrays(store_t *store, const packed_arrays_t *arrays) STATUS_CHECKED;
status_t packed_write_hashes(store_t *store, const packed_arrays_t *arrays, const char *model_hash) STATUS_CHECKED;

#endif
