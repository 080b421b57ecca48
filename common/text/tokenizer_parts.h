// Inside of the tokenizer: what the readers build and encoding and decoding use.
//
//   tokenizer_open.c       the folder: which files, which of the reference's classes, opening and closing
//   tokenizer_config.c     what the class that the folder names changes in tokenizer.json
//   tokenizer_special.c    named, extra and added tokens of the files beside it
//   tokenizer_proto.c      tokenizer.model, as the tokenizer.json that the reference makes of it
//   tokenizer_read.c       the model: vocabulary, merges, scores
//   tokenizer_added.c      added tokens: reading and matching
//   tokenizer_normalise.c  normalizers; tokenizer_charsmap.c: the compiled ones of SentencePiece
//   tokenizer_cut.c        pre-tokenizers
//   tokenizer_bpe.c, tokenizer_unigram.c   the two models
//   tokenizer_decode.c     decoders, whole and streaming
//   tokenizer_pattern.c, tokenizer_table.c  patterns; words and tries
#ifndef COMMON_TEXT_TOKENIZER_PARTS_H
#define COMMON_TEXT_TOKENIZER_PARTS_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "common/text/tokenizer.h"
#include <jansson.h>
#include <pcre2.h>

enum {
    TOKENIZER_STEPS = 32,              // of each kind in one tokenizer
    TOKENIZER_DEPTH = 16,              // of sequences within sequences
    TOKENIZER_TEXT_LIMIT = 256 << 20,  // bytes
    TOKENIZER_FRAME_TOKENS = 16,       // that a post-processor puts on each side
    TOKENIZER_REPLACEMENT_LIMIT = 256, // bytes of what a Replace puts in
};

// Text that grows; 0-terminated only where said.
typedef struct buffer {
    char *data;
    size_t length, capacity;
} buffer_t;
status_t buffer_append(buffer_t *buffer, const char *data, size_t length) STATUS_CHECKED;
status_t buffer_append_code(buffer_t *buffer, uint32_t code) STATUS_CHECKED;

// ---- words and tries (tokenizer_table.c) ----

// A trie over bytes in one hash table of edges. Node 0 is the root.
enum { TRIE_MAX_DEPTH = 1024 }; // bytes of a Unigram or added token; the longest of real vocabularies have some hundred
typedef struct trie_edge {
    uint32_t from, to; // to == 0: empty
    uint8_t byte;
} trie_edge_t;
typedef struct trie {
    trie_edge_t *edge;
    size_t slots, edges;
    int32_t *value; // by node; -1: no entry ends here
    size_t nodes, value_capacity;
} trie_t;
status_t trie_add(trie_t *trie, const char *bytes, size_t length, int32_t value) STATUS_CHECKED; // later ones win
uint32_t trie_step(const trie_t *trie, uint32_t node, uint8_t byte);                             // 0: no way on
void trie_free(trie_t *trie);

// ---- patterns (tokenizer_pattern.c) ----

// A regular expression, or literal text where regex is NULL.
typedef struct pattern {
    pcre2_code *regex;
    char *literal;
    size_t literal_length;
} pattern_t;
// {"Regex": ..} or {"String": ..}, in Oniguruma's meaning. Errors say what of it is not supported.
status_t pattern_read(const json_t *value, pattern_t *out) STATUS_CHECKED;
status_t pattern_compile(const char *regex, size_t length, pattern_t *out) STATUS_CHECKED;
void pattern_free(pattern_t *pattern);

// Looks for one match after the other as the reference does: an empty match right behind the last one does not count.
typedef struct pattern_search {
    const pattern_t *pattern;
    pcre2_match_context *limits;
    pcre2_match_data *match;
    const char *text;
    size_t length, from, last;
    bool any; // there was a match, and it ended at `last`
} pattern_search_t;
status_t pattern_next(pattern_search_t *search, bool *found, size_t *start, size_t *end) STATUS_CHECKED;
// Copies text with every match replaced.
status_t pattern_replace(pattern_search_t *search, const char *content, size_t length, buffer_t *out) STATUS_CHECKED;

// ---- normalizers ----

typedef struct charsmap {
    uint32_t *unit; // double array
    size_t units;
    char *text; // replacements, each ended by NUL
    size_t length;
} charsmap_t;
status_t charsmap_read(const char *base64, size_t length, charsmap_t *out) STATUS_CHECKED;
status_t charsmap_apply(const charsmap_t *map, const char *text, size_t length, buffer_t *out) STATUS_CHECKED;

typedef enum normal_kind {
    NORMAL_NFC,
    NORMAL_NFD,
    NORMAL_NFKC,
    NORMAL_NFKD,
    NORMAL_LOWERCASE,
    NORMAL_STRIP,
    NORMAL_STRIP_ACCENTS,
    NORMAL_NMT,
    NORMAL_REPLACE,
    NORMAL_PREPEND,
    NORMAL_CHARSMAP,
} normal_kind_t;
typedef struct normal_step {
    normal_kind_t kind;
    bool left, right;  // strip
    pattern_t pattern; // replace
    char *content;     // replace, prepend
    size_t content_length;
    charsmap_t charsmap;
} normal_step_t;

// ---- pre-tokenizers ----

typedef enum cut_behaviour {
    CUT_REMOVED,
    CUT_ISOLATED,
    CUT_MERGED_WITH_PREVIOUS,
    CUT_MERGED_WITH_NEXT,
    CUT_CONTIGUOUS,
} cut_behaviour_t;
typedef enum cut_kind { CUT_PATTERN, CUT_CHARACTERS, CUT_METASPACE, CUT_BYTE_LEVEL } cut_kind_t;
typedef enum cut_prepend { CUT_NEVER, CUT_FIRST, CUT_ALWAYS } cut_prepend_t;
typedef struct cut_step {
    cut_kind_t kind;
    cut_behaviour_t behaviour;
    bool invert;
    bool split;        // metaspace
    bool prefix_space; // byte level
    cut_prepend_t prepend;
    pattern_t pattern;
    bool (*counts)(uint32_t code); // CUT_CHARACTERS: each such character is a match
    char mark[5];                  // metaspace's replacement
} cut_step_t;

// ---- decoders ----

typedef enum decode_kind {
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_METASPACE,
    DECODE_STRIP,
    DECODE_BYTE_LEVEL,
} decode_kind_t;
typedef struct decode_step {
    decode_kind_t kind;
    pattern_t pattern; // replace
    char *content;
    size_t content_length;
    char mark[5];        // metaspace's replacement, or what strip takes off
    int64_t left, right; // strip: how many at most
    bool drop_first;     // metaspace: none is left of the first token's marks
} decode_step_t;

// ---- the tokenizer ----

typedef struct vocabulary_entry {
    char *text;  // the token's spelling; NULL: no token has this id
    char *shown; // what decoders see where it is another text (added tokens that are normalised), or NULL
    uint32_t length, shown_length;
    bool special; // left out of decoding with skip_special
    bool model;   // in the model's own vocabulary
} vocabulary_entry_t;

typedef struct added_token {
    int32_t id;
    bool special, normalised, single_word, strip_left, strip_right;
} added_token_t;

typedef struct merge {
    uint64_t pair; // left id << 32 | right id
    int32_t rank, result;
} merge_t;

typedef enum model_kind { MODEL_BPE, MODEL_UNIGRAM } model_kind_t;

struct tokenizer {
    model_kind_t kind;
    vocabulary_entry_t *entry; // [size]
    int size, capacity;
    int model_count; // entries of the model's vocabulary
    int32_t *word;   // [word_slots] ids of the model's tokens by the hash of their text, -1 empty
    size_t word_slots;
    int32_t code_id[512];     // the model's token of one character, or -1
    int32_t fallback_id[256]; // the token <0xNN>, or -1
    int32_t unknown;          // its id, or -1
    bool has_unknown;         // BPE: there is an unk_token, in the vocabulary or not
    bool byte_level, byte_fallback, fuse_unknown, ignore_merges;
    char *prefix, *suffix; // of characters that go on a word, or end it
    merge_t *merge;        // open addressing, merge_slots a power of two; pair == UINT64_MAX is empty
    size_t merge_slots;
    double *score; // unigram
    double unknown_score;
    trie_t pieces; // unigram

    added_token_t *added;
    int added_count;
    trie_t raw, normalised; // values: places in `added`

    normal_step_t normal[TOKENIZER_STEPS];
    cut_step_t cut[TOKENIZER_STEPS];
    decode_step_t decode[TOKENIZER_STEPS];
    int normals, cuts, decodes;
    bool has_decoder;
    int32_t before[TOKENIZER_FRAME_TOKENS], after[TOKENIZER_FRAME_TOKENS]; // what the post-processor adds
    int befores, afters;
    bool split_special; // text never becomes a special token
    pcre2_match_context *limits;
};

static inline size_t merge_slot(uint64_t pair, size_t slots) {
    return (size_t)((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 20) & (slots - 1);
}
// Id of the model's token with this text, or -1.
int32_t tokenizer_word(const tokenizer_t *tokenizer, const char *text, size_t length);

// Readers of tokenizer.json's parts.
status_t tokenizer_read_model(tokenizer_t *tokenizer, const json_t *root) STATUS_CHECKED;
status_t tokenizer_read_added(tokenizer_t *tokenizer, const json_t *root) STATUS_CHECKED;
status_t tokenizer_read_normalizer(tokenizer_t *tokenizer, const json_t *value, int depth) STATUS_CHECKED;
status_t tokenizer_read_cuts(tokenizer_t *tokenizer, const json_t *value, int depth) STATUS_CHECKED;
status_t tokenizer_read_decoder(tokenizer_t *tokenizer, const json_t *value, int depth) STATUS_CHECKED;

// What stands beside the vocabulary in a folder; fields are NULL where the file is missing.
enum { NAMED_TOKENS = 7 };

typedef struct tokenizer_config {
    json_t *model, *config, *map, *added; // config.json, tokenizer_config.json, special_tokens_map.json,
                                          // added_tokens.json
} tokenizer_config_t;
status_t tokenizer_config_read(const char *directory, tokenizer_config_t *out) STATUS_CHECKED;
void tokenizer_config_free(tokenizer_config_t *config);
// The named tokens ({"bos_token": token, ...}) that the files or the class tell; new reference.
status_t tokenizer_config_names(const tokenizer_config_t *config, json_t **out) STATUS_CHECKED;
// Whether the reference's class builds the tokenizer anew from its vocabulary, by its own rules.
status_t tokenizer_config_builds(const tokenizer_config_t *config, const json_t *root, bool *out) STATUS_CHECKED;
// Changes `root` (a whole tokenizer.json) to what the reference makes of it. `converted`: it was made of a
// tokenizer.model.
status_t tokenizer_config_apply(const tokenizer_config_t *config, bool converted, json_t *root) STATUS_CHECKED;
// tokenizer.model as a tokenizer.json; new reference. bpe: whatever the file says of its kind.
status_t tokenizer_read_proto(const char *bytes, size_t length, bool bpe, const tokenizer_config_t *config,
                              json_t **out) STATUS_CHECKED;
status_t tokenizer_read_object(const char *path, json_t **out) STATUS_CHECKED; // NULL: there is no such file

// The tokens that the files beside the vocabulary name. A token is its text, or an object like those of added_tokens.
typedef struct special_tokens {
    json_t *named;   // {"bos_token": token, ..., then the folder's own names}; those that are none are not there
    json_t *extra;   // list of tokens without a name
    json_t *decoder; // {"id": token}
    json_t *by_text; // the decoder's by their text
} special_tokens_t;
// defaults: the class's names for its tokens ([NAMED_TOKENS], NULL for none), or NULL where there is no such class.
// root: tokenizer.json, or what a tokenizer.model was converted to, or NULL. To be freed after an error, too.
status_t special_tokens_read(const tokenizer_config_t *files, const char *const *defaults, const json_t *root,
                             bool converted, special_tokens_t *out) STATUS_CHECKED;
void special_tokens_free(special_tokens_t *special);
// Makes root's added_tokens. anew: the class forgets the file's own; plain: at last it adds all special ones plainly.
status_t special_tokens_add(const special_tokens_t *special, bool anew, bool plain, json_t *root) STATUS_CHECKED;
// The post-processor of a converted tokenizer: add_bos_token and add_eos_token say what is put around a text.
status_t special_tokens_frame(const special_tokens_t *special, const json_t *config, json_t *root) STATUS_CHECKED;

static inline bool json_is_set(const json_t *value) {
    return value && !json_is_null(value);
}
static inline const char *json_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}
static inline bool json_flag(const json_t *object, const char *key) {
    return json_is_true(json_object_get(object, key));
}
// Adds an entry by id; a second one with another spelling is an error. special only ever grows.
status_t tokenizer_set_entry(tokenizer_t *tokenizer, const char *text, size_t length, int32_t id) STATUS_CHECKED;

// Normalises valid UTF-8 into `out`. *moved: text at the front was taken off.
status_t tokenizer_normalise(const tokenizer_t *tokenizer, pcre2_match_data *match, const char *text, size_t length,
                             buffer_t *out, bool *moved) STATUS_CHECKED;
void normal_step_free(normal_step_t *step);

// GPT-2's printable stand-in for a byte, and back (-1: none).
uint32_t byte_level_code(int byte);
int byte_level_byte(uint32_t code);
bool tokenizer_is_space(uint32_t code);
// Whether a character counts as part of a word: letters, marks, decimal and letter numbers, connectors, joiners.
bool tokenizer_word_code(uint32_t code);

// ---- encoding ----

typedef struct symbol {
    int32_t id, previous, next; // next == -1: last; id == -1: merged into its left neighbour
    int32_t length;             // bytes
} symbol_t;
// A merge that could be done: of the symbol at `place` with its right neighbour.
typedef struct candidate {
    int32_t rank, place, result;
} candidate_t;
typedef struct best_path {
    double score;
    int32_t id, start; // start < 0: not reached
} best_path_t;
typedef struct split {
    size_t start, end;
    bool match;
} split_t;
typedef struct splits {
    split_t *at;
    size_t count, capacity;
} splits_t;

typedef struct encoder {
    const tokenizer_t *tokenizer;
    token_list_t *out;
    bool parse_special;
    const char *given; // a mark a byte of the text as given, or NULL; NULL in what is normalised
    size_t at;         // offset of the text at hand within the whole rewritten text
    pcre2_match_data *match;
    splits_t splits[TOKENIZER_STEPS];
    buffer_t rewritten[TOKENIZER_STEPS], word, normal;
    symbol_t *symbol;
    size_t symbol_capacity, symbols;
    candidate_t *heap;
    size_t heap_capacity, heap_count;
    best_path_t *best;
    size_t best_capacity;
} encoder_t;

status_t encoder_emit(encoder_t *encoder, int32_t id, size_t first, size_t last) STATUS_CHECKED;
// Cuts a piece of normalised text further by steps `step` and up, and gives each part to the model. `front`: it stands
// at the start of the text as given.
status_t encoder_cut(encoder_t *encoder, int step, const char *text, size_t length, bool front) STATUS_CHECKED;
// One piece, by either model; offsets are relative to encoder->at.
status_t encoder_bpe(encoder_t *encoder, const char *text, size_t length) STATUS_CHECKED;
status_t encoder_unigram(encoder_t *encoder, const char *text, size_t length) STATUS_CHECKED;
// The whole text: added tokens, normalizers, and the rest.
status_t encoder_text(encoder_t *encoder, const char *text, size_t length) STATUS_CHECKED;

#endif
