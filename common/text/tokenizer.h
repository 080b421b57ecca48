// Tokenizer: tokenizer.json of Hugging Face, byte-level BPE (Qwen2 and its like).
//
// Ids and decoded text equal those of the tokenizers library. A tokenizer is immutable after opening and may be shared.
// All text is UTF-8; invalid UTF-8 is refused with the byte offset. Lengths are in bytes unless said.
#ifndef COMMON_TEXT_TOKENIZER_H
#define COMMON_TEXT_TOKENIZER_H

#include "kernels/base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct tokenizer tokenizer_t;

// Growing list of token ids with the bytes each came from: offset[2 i] .. offset[2 i + 1] of the text.
// Start from {0}; free by token_list_free.
typedef struct token_list {
    int32_t *id;
    int32_t *offset; // [2 * count]; after normalisation these are offsets into the normalised text
    int count;
    size_t capacity, offset_capacity;
} token_list_t;
void token_list_free(token_list_t *list);
status_t token_list_add(token_list_t *list, int32_t id, int32_t first, int32_t last) STATUS_CHECKED;

// Reads DIRECTORY/tokenizer.json. Errors name the unsupported or broken part.
status_t tokenizer_open(const char *directory, tokenizer_t **out) STATUS_CHECKED;
void tokenizer_close(tokenizer_t *tokenizer);
int tokenizer_size(const tokenizer_t *tokenizer); // largest id + 1
// Appends the ids of `text`. parse_special: text that spells a special token becomes that token (as HF encode). Added
// tokens that are not special are found either way, as the tokenizers library does with encode_special_tokens.
// Errors (nothing is appended then): no UTF-8, more than 256 MiB, a pattern that takes too long on this text.
status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t length, bool parse_special,
                          token_list_t *out) STATUS_CHECKED;
// Bytes of ids, malloc'd, 0-terminated. skip_special leaves special tokens out. Bytes that are no UTF-8 become U+FFFD
// as in HF, and ids that no token has are left out as in HF.
status_t tokenizer_decode(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                          char **out) STATUS_CHECKED;
// The same with the length, for text that may hold NUL characters; length may be NULL.
status_t tokenizer_decode_text(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                               char **out, size_t *length) STATUS_CHECKED;
// The raw bytes of one token (not 0-terminated), and whether it is special. Errors: unknown id.
status_t tokenizer_token(const tokenizer_t *tokenizer, int32_t id, const char **bytes, size_t *length,
                         bool *special) STATUS_CHECKED;
// The id of a special or added token by its text; -1 when there is none.
int32_t tokenizer_find(const tokenizer_t *tokenizer, const char *token);

// Streaming decode: push ids one by one; `text` (`bytes` long, 0-terminated) gets what is whole UTF-8 so far (may be
// empty), the rest waits. An id of -1 at the end brings the rest as U+FFFD. All pieces together are what
// tokenizer_decode gives. Errors: `bytes` is too small (3 bytes a byte of the token and 16 more always do).
typedef struct tokenizer_stream {
    char pending[8];
    int pending_count;
} tokenizer_stream_t;
status_t tokenizer_stream_push(const tokenizer_t *tokenizer, tokenizer_stream_t *stream, int32_t id, bool skip_special,
                               char *text, size_t bytes, size_t *written) STATUS_CHECKED;

#endif
