// Tokenizer: tokenizer.json of Hugging Face (BPE, byte-level or SentencePiece-style, and Unigram), or tokenizer.model
// of SentencePiece where a folder has only that.
//
// Ids and decoded text equal those of transformers' AutoTokenizer on the same folder. A tokenizer is immutable after
// opening and may be shared. All text is UTF-8; invalid UTF-8 is refused with the byte offset. Lengths are in bytes
// unless said.
#ifndef COMMON_TEXT_TOKENIZER_H
#define COMMON_TEXT_TOKENIZER_H

#include "kernels/base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct tokenizer tokenizer_t;

// Growing list of token ids with the bytes each came from: offset[2 i] .. offset[2 i + 1] of the text as the normalizer
// and the pre-tokenizer rewrote it (where they leave it alone: of the text itself). Start from {0}; free by
// token_list_free. For spans of what tokens decode to see tokenizer_decode_offsets.
typedef struct token_list {
    int32_t *id;
    int32_t *offset; // [2 * count]
    int count;
    size_t capacity, offset_capacity;
} token_list_t;
void token_list_free(token_list_t *list);
status_t token_list_add(token_list_t *list, int32_t id, int32_t first, int32_t last) STATUS_CHECKED;

// Reads DIRECTORY/tokenizer.json, or DIRECTORY/tokenizer.model, with what config.json, tokenizer_config.json,
// special_tokens_map.json and added_tokens.json there change about it. Errors name the unsupported or broken part.
status_t tokenizer_open(const char *directory, tokenizer_t **out) STATUS_CHECKED;
void tokenizer_close(tokenizer_t *tokenizer);
int tokenizer_size(const tokenizer_t *tokenizer); // largest id + 1
// Appends the ids of `text`. parse_special: text that spells a special token becomes that token (as HF encode). Added
// tokens that are not special are found either way, as the tokenizers library does with encode_special_tokens.
// Errors (nothing is appended then): no UTF-8, more than 256 MiB, a pattern that takes too long on this text.
status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t length, bool parse_special,
                          token_list_t *out) STATUS_CHECKED;
// Text of which every byte has a mark: 1 where users gave it, 0 where not. Special tokens are found, except where users
// spelled all of one.
status_t tokenizer_encode_marked(const tokenizer_t *tokenizer, const char *text, const char *given, size_t length,
                                 token_list_t *out) STATUS_CHECKED;
// The same as encode() of transformers with its defaults: special tokens are found, and what the post-processor puts
// around a text (a beginning-of-text token, for one) is there. given: marks as above, or NULL.
status_t tokenizer_encode_whole(const tokenizer_t *tokenizer, const char *text, const char *given, size_t length,
                                token_list_t *out) STATUS_CHECKED;
// Text of ids, malloc'd, 0-terminated. skip_special leaves special tokens out. Bytes that are no UTF-8 become U+FFFD
// as in HF, and ids that no token has are left out as in HF.
status_t tokenizer_decode(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                          char **out) STATUS_CHECKED;
// The same with the length, for text that may hold NUL characters; length may be NULL.
status_t tokenizer_decode_text(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                               char **out, size_t *length) STATUS_CHECKED;
// The same with the bytes of the decoded text that each token stands for: offsets[2 i] .. offsets[2 i + 1]. A token
// that shows nothing has an empty span; spans follow one another without gaps. offsets: [2 * count], or NULL.
status_t tokenizer_decode_offsets(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                                  char **out, size_t *length, int32_t *offsets) STATUS_CHECKED;
// A token as the vocabulary spells it (0-terminated), and whether it is special (may be NULL). NULL: no such id.
const char *tokenizer_spelling(const tokenizer_t *tokenizer, int32_t id, bool *special);
// The id of a special or added token by its text; -1 when there is none.
int32_t tokenizer_find(const tokenizer_t *tokenizer, const char *token);

// Streaming decode: push ids one by one; *text (*length bytes, 0-terminated, good until the next call) is what is
// certain so far (may be empty), the rest waits: half a character, bytes that later ones may spoil. An id of -1 at the
// end brings the rest. All pieces together are what tokenizer_decode gives. Start from {0} for each text; free by
// tokenizer_stream_free. skip_special as of the first push.
typedef struct tokenizer_stream {
    struct tokenizer_stream_state *state;
} tokenizer_stream_t;
status_t tokenizer_stream_push(const tokenizer_t *tokenizer, tokenizer_stream_t *stream, int32_t id, bool skip_special,
                               const char **text, size_t *length) STATUS_CHECKED;
void tokenizer_stream_free(tokenizer_stream_t *stream);

#endif
