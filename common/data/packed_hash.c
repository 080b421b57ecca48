#include "common/data/packed_format.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t packed_hash_number(const packed_t *packed) {
    char digits[17] = {0};
    strncpy(digits, packed_hash(packed), 16);
    return strtoull(digits, NULL, 16);
}

void packed_content_hash(const packed_arrays_t *a, char out[33]) {
    const struct {
        const void *data;
        size_t bytes;
    } part[] = {
        {a->tokens, (size_t)a->token_count * sizeof(*a->tokens)},
        {a->segments, (size_t)a->token_count},
        {a->sample_start, (size_t)(a->samples + 1) * sizeof(*a->sample_start)},
        {a->prompt_length, (size_t)a->samples * sizeof(*a->prompt_length)},
        {a->image_use_start, (size_t)(a->samples + 1) * sizeof(*a->image_use_start)},
        {a->image_use, (size_t)a->image_uses * sizeof(*a->image_use)},
        {a->option_start, (size_t)(a->samples + 1) * sizeof(*a->option_start)},
        {a->string_data, (size_t)a->string_bytes},
        {a->image_hash, (size_t)a->images * sizeof(*a->image_hash)},
    };
    // Hash of the parts' hashes: no part's end can be taken for the next one's start.
    XXH128_canonical_t digest[sizeof(part) / sizeof(part[0])], whole;
    for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++)
        XXH128_canonicalFromHash(&digest[i], XXH3_128bits(part[i].data, part[i].bytes));
    XXH128_canonicalFromHash(&whole, XXH3_128bits(digest, sizeof(digest)));
    for (int i = 0; i < 16; i++) snprintf(out + 2 * i, 3, "%02x", whole.digest[i]);
}

status_t packed_model_hash(const char *model_directory, const image_rules_t *rules, char out[17]) {
    char path[4096], text[64];
    char *tokenizer;
    size_t size;
    if (snprintf(path, sizeof(path), "%s/tokenizer.model", model_directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", model_directory);
    // As in opening a tokenizer: tokenizer.model counts where there is no tokenizer.json.
    bool only_model = access(path, F_OK) == 0;
    snprintf(path, sizeof(path), "%s/tokenizer.json", model_directory);
    if (only_model && access(path, F_OK) != 0) snprintf(path, sizeof(path), "%s/tokenizer.model", model_directory);
    TRY(file_read_whole(path, (size_t)256 << 20, &tokenizer, &size));
    int length = snprintf(text, sizeof(text), "%016llx %016llx", (unsigned long long)XXH3_64bits(tokenizer, size),
                          (unsigned long long)image_rules_hash(rules));
    snprintf(out, 17, "%016llx", (unsigned long long)XXH3_64bits(text, (size_t)length));
    free(tokenizer);
    return STATUS_OK;
}

status_t packed_write_arrays(store_t *store, const packed_arrays_t *a) {
    TRY(store_write_number(store, "schema", PACKED_SCHEMA));
    TRY(store_write(store, "tokens", DTYPE_I32, a->tokens, a->token_count, true));
    TRY(store_write(store, "segments", DTYPE_U8, a->segments, a->token_count, true));
    TRY(store_write(store, "sample_start", DTYPE_I64, a->sample_start, a->samples + 1, true));
    TRY(store_write(store, "prompt_length", DTYPE_I32, a->prompt_length, a->samples, true));
    TRY(store_write(store, "image_use", DTYPE_I32, a->image_use, a->image_uses, true));
    TRY(store_write(store, "image_use_start", DTYPE_I64, a->image_use_start, a->samples + 1, true));
    TRY(store_write(store, "option_start", DTYPE_I64, a->option_start, a->samples + 1, true));
    TRY(store_write(store, "string_start", DTYPE_I64, a->string_start, a->strings + 1, true));
    TRY(store_write(store, "string_data", DTYPE_U8, a->string_data, a->string_bytes, true));
    TRY(store_write(store, "image_start", DTYPE_I64, a->image_start, a->images + 1, true));
    return store_write(store, "image_hash", DTYPE_I64, a->image_hash, a->images, false);
}

status_t packed_write_hashes(store_t *store, const packed_arrays_t *a, const char *model_hash) {
    char content[33];
    packed_content_hash(a, content);
    TRY(store_write_string(store, "model_hash", model_hash));
    return store_write_string(store, "content_hash", content);
}
