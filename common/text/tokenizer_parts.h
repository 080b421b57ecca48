// Inside of the tokenizer: what tokenizer_read.c builds and tokenizer.c uses.
#ifndef COMMON_TEXT_TOKENIZER_PARTS_H
#define COMMON_TEXT_TOKENIZER_PARTS_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "common/text/tokenizer.h"
#include <pcre2.h>

enum { TOKENIZER_STAGES = 8 };

typedef struct vocabulary_entry {
    char *text;  // as tokenizer.json spells it; NULL: no token has this id
    char *bytes; // what it stands for
    int length;  // of bytes
    bool special;
} vocabulary_entry_t;

// A token that is looked for in the text before anything else.
typedef struct added_token {
    char *pattern; // its text, normalised when the token is matched after normalisation
    size_t length;
    int32_t id;
    bool special, single_word, strip_left, strip_right;
} added_token_t;

// Added tokens ordered by first byte, longer ones first; those of byte b are start[b] .. start[b + 1] - 1.
typedef struct added_tokens {
    added_token_t *token;
    int count;
    int start[257];
} added_tokens_t;

typedef struct merge {
    uint64_t pair; // left id << 32 | right id
    int32_t rank, result;
} merge_t;

// One step of cutting text into pieces: a regular expression whose matches, and what is between them, are pieces.
typedef struct split_stage {
    pcre2_code *regex;
    bool drop_matches, drop_gaps;
} split_stage_t;

typedef enum normal_form { NORMAL_NONE, NORMAL_NFC, NORMAL_NFD, NORMAL_NFKC, NORMAL_NFKD } normal_form_t;

struct tokenizer {
    vocabulary_entry_t *entry; // [size]
    int size;
    merge_t *merge; // open addressing, merge_slots a power of two; pair == UINT64_MAX is empty
    size_t merge_slots;
    int32_t byte_id[256]; // the token of a single byte, or -1
    bool ignore_merges;   // a piece that is a token is that token
    int32_t *word;        // [word_slots] ids by the hash of their bytes, -1 empty; only with ignore_merges
    size_t word_slots;
    added_tokens_t raw;        // matched in the text as given
    added_tokens_t normalised; // matched after normalisation
    split_stage_t stage[TOKENIZER_STAGES];
    int stages;
    normal_form_t form;
    pcre2_match_context *limits;
};

static inline size_t merge_slot(uint64_t pair, size_t slots) {
    return (size_t)((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 20) & (slots - 1);
}
// Slot of a word's bytes; `slots` is a power of two.
size_t tokenizer_word_slot(const char *bytes, size_t length, size_t slots);
// Normalises valid UTF-8. *out is malloc'd, or NULL when the text is its own normal form.
status_t tokenizer_normalise(normal_form_t form, const char *text, size_t length, char **out,
                             size_t *out_length) STATUS_CHECKED;
// Whether a character counts as part of a word: letters, marks, decimal and letter numbers, connectors, joiners.
bool tokenizer_word_code(uint32_t code);

#endif
