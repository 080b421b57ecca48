// The vocabulary of a GGUF file with its merges and marked tokens, spelled as tokenizer.json spells it.
#ifndef COMMON_MODEL_GGUF_VOCABULARY_H
#define COMMON_MODEL_GGUF_VOCABULARY_H

#include "common/model/gguf_convert.h"

typedef enum vocabulary_kind {
    VOCABULARY_BYTES,  // byte-level BPE
    VOCABULARY_PIECES, // SentencePiece, with a space before the text
    VOCABULARY_GEMMA   // SentencePiece, without one
} vocabulary_kind_t;

// Tokens that are found in text before it is cut.
typedef enum vocabulary_mark { MARK_NONE, MARK_PLAIN, MARK_SPECIAL } vocabulary_mark_t;

typedef struct vocabulary_merge {
    gguf_text_t left, right;
    double score; // of what they make
    int32_t rank; // order before sorting
} vocabulary_merge_t;

typedef struct vocabulary {
    vocabulary_kind_t kind;
    gguf_text_t *token; // [count], in the file or in `spelled`
    int32_t count;
    vocabulary_mark_t *mark; // [count]
    int32_t *slot;           // [slots] ids by the hash of their text, -1 empty; slots is a power of two
    size_t slots;
    vocabulary_merge_t *merge;
    size_t merge_count, merge_capacity;
    int32_t bos, eos, unknown, pad; // -1: none
    bool add_bos, add_eos;
    gguf_text_t pre, chat_template; // {0}: none
    char **spelled;                 // texts that the file spells otherwise
    size_t spelled_count, spelled_capacity;
} vocabulary_t;

// *out can be given to vocabulary_free after an error, too.
status_t vocabulary_open(const gguf_t *file, gguf_decoder_t decoder, vocabulary_t *out) STATUS_CHECKED;
void vocabulary_free(vocabulary_t *vocabulary);
// The id of a token by its text, the last one of those spelled alike; -1: none.
int32_t vocabulary_find(const vocabulary_t *vocabulary, const gguf_text_t *text);

#endif
