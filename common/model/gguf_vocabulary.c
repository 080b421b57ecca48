#include "common/model/gguf_vocabulary.h"
#include "common/text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    MAX_TOKENS = 1 << 24,
    TOKEN_BYTES = 2048, // of one token; every split of it is looked up
    MERGES_A_BYTE = 64  // merges' text may have so many bytes for one of the vocabulary's
};
enum { TYPE_CONTROL = 3, TYPE_USER = 4 };

// ---- texts by their bytes ----

int32_t vocabulary_find(const vocabulary_t *vocabulary, const gguf_text_t *text) {
    size_t at = (size_t)XXH3_64bits(text->bytes, text->length) & (vocabulary->slots - 1);
    for (int32_t id; (id = vocabulary->slot[at]) >= 0; at = (at + 1) & (vocabulary->slots - 1)) {
        const gguf_text_t *other = &vocabulary->token[id];
        if (other->length == text->length && !memcmp(other->bytes, text->bytes, text->length)) return id;
    }
    return -1;
}

static status_t index_tokens(vocabulary_t *vocabulary) {
    vocabulary->slots = 16;
    while (vocabulary->slots < 2 * (size_t)vocabulary->count) vocabulary->slots *= 2;
    TRY(ALLOCATE(&vocabulary->slot, vocabulary->slots));
    memset(vocabulary->slot, -1, vocabulary->slots * sizeof(*vocabulary->slot));
    // From the last one, which is found by a text that several have.
    for (int32_t id = vocabulary->count - 1; id >= 0; id--) {
        const gguf_text_t *text = &vocabulary->token[id];
        if (vocabulary_find(vocabulary, text) >= 0) continue;
        size_t at = (size_t)XXH3_64bits(text->bytes, text->length) & (vocabulary->slots - 1);
        while (vocabulary->slot[at] >= 0) at = (at + 1) & (vocabulary->slots - 1);
        vocabulary->slot[at] = id;
    }
    return STATUS_OK;
}

// ---- spelling ----

static status_t keep_spelling(vocabulary_t *vocabulary, int32_t id, const char *bytes, size_t length) {
    TRY(memory_grow((void **)&vocabulary->spelled, &vocabulary->spelled_capacity, vocabulary->spelled_count + 1,
                    sizeof(*vocabulary->spelled)));
    TRY(memory_copy_bytes(bytes, length, &vocabulary->spelled[vocabulary->spelled_count]));
    vocabulary->token[id] = (gguf_text_t){vocabulary->spelled[vocabulary->spelled_count++], length};
    return STATUS_OK;
}

static bool byte_prints(uint32_t byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

// The byte-level alphabet: printing bytes stand for themselves, the 68 others for the characters from 256 on.
static bool in_alphabet(const gguf_text_t *text) {
    uint32_t code = 0;
    for (size_t at = 0; at < text->length;) {
        at += utf8_next(text->bytes + at, text->length - at, &code, NULL, NULL);
        if (code >= 256 + 68 || (code < 256 && !byte_prints(code))) return false;
    }
    return true;
}

// A token that is not spelled in the alphabet, such as "<|a b|>", is by its bytes.
static status_t spell_bytes(vocabulary_t *vocabulary, int32_t id) {
    char out[2 * TOKEN_BYTES];
    size_t used = 0;
    gguf_text_t text = vocabulary->token[id];
    if (in_alphabet(&text)) return STATUS_OK;
    for (size_t i = 0; i < text.length; i++) {
        uint32_t byte = (unsigned char)text.bytes[i], code = byte;
        if (!byte_prints(byte)) code = 256 + (byte < 33 ? byte : byte < 161 ? byte - 127 + 33 : 67);
        if (code < 128) {
            out[used++] = (char)code;
        } else {
            out[used++] = (char)(0xC0 | code >> 6);
            out[used++] = (char)(0x80 | (code & 63));
        }
    }
    return keep_spelling(vocabulary, id, out, used);
}

static bool is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || (code >= 28 && code <= 32) || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

// Gemma's runs of spaces are stored as spaces, and looked up as U+2581.
static status_t spell_spaces(vocabulary_t *vocabulary, int32_t id) {
    char out[3 * TOKEN_BYTES];
    size_t used = 0;
    gguf_text_t text = vocabulary->token[id];
    if (!memchr(text.bytes, ' ', text.length)) return STATUS_OK;
    uint32_t code = 0;
    for (size_t at = 0; at < text.length; used += 3) {
        at += utf8_next(text.bytes + at, text.length - at, &code, NULL, NULL);
        if (!is_space(code)) return STATUS_OK;
        memcpy(out + used, "\u2581", 3);
    }
    return keep_spelling(vocabulary, id, out, used);
}

// ---- merges ----

static status_t add_merge(vocabulary_t *vocabulary, gguf_text_t left, gguf_text_t right, double score) {
    if (vocabulary->merge_count >= INT32_MAX) FAIL(STATUS_INVALID, "its vocabulary has too many merges");
    TRY(memory_grow((void **)&vocabulary->merge, &vocabulary->merge_capacity, vocabulary->merge_count + 1,
                    sizeof(*vocabulary->merge)));
    int32_t rank = (int32_t)vocabulary->merge_count++;
    vocabulary->merge[rank] = (vocabulary_merge_t){left, right, score, rank};
    return STATUS_OK;
}

static status_t read_merges(vocabulary_t *vocabulary, const gguf_value_t *value) {
    gguf_text_t *texts;
    TRY(gguf_texts(value, &texts));
    status_t status = STATUS_OK;
    for (uint64_t i = 0; !status && i < value->count; i++) {
        gguf_text_t text = texts[i];
        const char *space = text.length ? memchr(text.bytes, ' ', text.length) : NULL;
        size_t left = space ? (size_t)(space - text.bytes) : 0, right = space ? text.length - left - 1 : 0;
        if (!left || !right || memchr(space + 1, ' ', right))
            status = STATUS_NEW(STATUS_INVALID, "merge %llu of 'tokenizer.ggml.merges' is no pair of tokens",
                                (unsigned long long)i);
        else
            status = add_merge(vocabulary, (gguf_text_t){text.bytes, left}, (gguf_text_t){space + 1, right}, 0);
    }
    free(texts);
    return status;
}

static size_t characters(const gguf_text_t *text) {
    size_t count = 0;
    for (size_t i = 0; i < text->length; i++) count += ((unsigned char)text->bytes[i] & 0xC0) != 0x80;
    return count;
}

// The best first: by score, then longer sides, then as they were found.
static int by_score(const void *left, const void *right) {
    const vocabulary_merge_t *a = left, *b = right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    size_t sides[2][2] = {{characters(&a->left), characters(&b->left)}, {characters(&a->right), characters(&b->right)}};
    for (int i = 0; i < 2; i++)
        if (sides[i][0] != sides[i][1]) return sides[i][0] > sides[i][1] ? -1 : 1;
    return (a->rank > b->rank) - (a->rank < b->rank);
}

typedef struct token_split {
    gguf_text_t left, right;
    int32_t ids[2];
} token_split_t;

static int by_ids(const void *left, const void *right) {
    const token_split_t *a = left, *b = right;
    int side = a->ids[0] != b->ids[0] ? 0 : 1;
    return (a->ids[side] > b->ids[side]) - (a->ids[side] < b->ids[side]);
}

// All ways to make a token of two others.
static status_t split_token(vocabulary_t *vocabulary, gguf_text_t text, double score, size_t *bytes) {
    token_split_t found[TOKEN_BYTES];
    size_t count = 0;
    for (size_t at = 1; at < text.length; at++) {
        if (((unsigned char)text.bytes[at] & 0xC0) == 0x80) continue;
        token_split_t split = {{text.bytes, at}, {text.bytes + at, text.length - at}, {0}};
        split.ids[0] = vocabulary_find(vocabulary, &split.left);
        split.ids[1] = split.ids[0] < 0 ? -1 : vocabulary_find(vocabulary, &split.right);
        if (split.ids[1] >= 0) found[count++] = split;
    }
    if (count) qsort(found, count, sizeof(*found), by_ids);
    for (size_t i = 0; i < count; i++) TRY(add_merge(vocabulary, found[i].left, found[i].right, score));
    *bytes += count * text.length;
    return STATUS_OK;
}

// A SentencePiece vocabulary has scores instead of merges. Gemma's are not in the order of its merges; that of its
// tokens is.
static status_t derive_from(vocabulary_t *vocabulary, const gguf_value_t *scores, bool *done) {
    size_t all = 0, made = 0;
    for (int32_t id = 0; id < vocabulary->count; id++) all += vocabulary->token[id].length + 1;
    for (int32_t id = 0; id < vocabulary->count; id++) {
        // Tokens that are spelled alike are one: in the place of the first, with the score of the last.
        int32_t last = vocabulary_find(vocabulary, &vocabulary->token[id]);
        double score = -(double)last;
        if (done[last]) continue;
        done[last] = true;
        if (scores && (!gguf_number(scores, (uint64_t)last, &score) || isnan(score)))
            FAIL(STATUS_INVALID, "'tokenizer.ggml.scores' has no number for token %d", (int)last);
        TRY(split_token(vocabulary, vocabulary->token[id], score, &made));
        if (made / MERGES_A_BYTE > all)
            FAIL(STATUS_INVALID, "its vocabulary makes more merges than any vocabulary has");
    }
    if (vocabulary->merge_count)
        qsort(vocabulary->merge, vocabulary->merge_count, sizeof(*vocabulary->merge), by_score);
    return STATUS_OK;
}

static status_t derive_merges(vocabulary_t *vocabulary, const gguf_value_t *scores) {
    bool *done;
    if (vocabulary->kind != VOCABULARY_GEMMA && !scores)
        FAIL(STATUS_INVALID, "its vocabulary has neither merges nor scores");
    TRY(ALLOCATE(&done, vocabulary->count));
    status_t status = derive_from(vocabulary, vocabulary->kind == VOCABULARY_GEMMA ? NULL : scores, done);
    free(done);
    return status;
}

// ---- marked tokens ----

static void mark_text(vocabulary_t *vocabulary, const gguf_text_t *text, vocabulary_mark_t mark) {
    int32_t id = vocabulary_find(vocabulary, text);
    if (id >= 0 && vocabulary->mark[id] == MARK_NONE) vocabulary->mark[id] = mark;
}

static void mark_id(vocabulary_t *vocabulary, int32_t id) {
    if (id >= 0) mark_text(vocabulary, &vocabulary->token[id], MARK_SPECIAL);
}

// The tokens that a tokenizer of the kind has by itself, those the file marks, and its bos, eos, unknown and pad.
static status_t read_marks(vocabulary_t *vocabulary, const gguf_t *file, const gguf_text_t *stored) {
    static const char *const own[][6] = {[VOCABULARY_BYTES] = {"<|endoftext|>", NULL},
                                         [VOCABULARY_PIECES] = {"<unk>", "<s>", "</s>", NULL},
                                         [VOCABULARY_GEMMA] = {"<unk>", "<bos>", "<eos>", "<pad>", "<mask>", NULL}};
    const gguf_value_t *types = gguf_value(file, "tokenizer.ggml.token_type");
    memset(vocabulary->mark, 0, (size_t)vocabulary->count * sizeof(*vocabulary->mark));
    for (const char *const *token = own[vocabulary->kind]; *token; token++)
        mark_text(vocabulary, &(gguf_text_t){*token, strlen(*token)}, MARK_SPECIAL);
    static const int wanted[2] = {TYPE_CONTROL, TYPE_USER};
    for (int pass = 0; types && pass < 2; pass++)
        for (int32_t id = 0; id < vocabulary->count; id++) {
            int64_t type;
            if (!gguf_integer(types, (uint64_t)id, &type))
                FAIL(STATUS_INVALID, "'tokenizer.ggml.token_type' has no type for token %d", (int)id);
            if (type == wanted[pass]) mark_text(vocabulary, &stored[id], pass ? MARK_PLAIN : MARK_SPECIAL);
        }
    mark_id(vocabulary, vocabulary->bos);
    mark_id(vocabulary, vocabulary->eos);
    mark_id(vocabulary, vocabulary->unknown);
    mark_id(vocabulary, vocabulary->pad);
    return STATUS_OK;
}

// ---- the whole ----

static status_t read_id(const vocabulary_t *vocabulary, const gguf_t *file, const char *name, int32_t *out) {
    char key[128];
    int64_t id = 0;
    snprintf(key, sizeof(key), "tokenizer.ggml.%s", name);
    const gguf_value_t *value = gguf_value(file, key);
    *out = -1;
    if (!value) return STATUS_OK;
    if (!gguf_integer(value, 0, &id) || id < 0 || id >= vocabulary->count)
        FAIL(STATUS_INVALID, "the value of '%s' is no token of its vocabulary", key);
    *out = (int32_t)id;
    return STATUS_OK;
}

static bool read_flag(const gguf_t *file, const char *key, bool absent) {
    int64_t value = absent;
    (void)gguf_integer(gguf_value(file, key), 0, &value);
    return value != 0;
}

static status_t read_text(const gguf_t *file, const char *key, gguf_text_t *out) {
    const gguf_value_t *value = gguf_value(file, key);
    gguf_text_t *texts;
    if (!value || value->is_array) return STATUS_OK;
    TRY(gguf_texts(value, &texts));
    *out = texts[0];
    free(texts);
    return STATUS_OK;
}

static status_t read_kind(const gguf_t *file, gguf_decoder_t decoder, vocabulary_kind_t *out) {
    gguf_text_t model = {0};
    TRY(read_text(file, "tokenizer.ggml.model", &model));
    *out = decoder == GGUF_GEMMA3 ? VOCABULARY_GEMMA : VOCABULARY_PIECES;
    if (model.length == 5 && !memcmp(model.bytes, "llama", 5)) return STATUS_OK;
    *out = VOCABULARY_BYTES;
    if (model.length == 4 && !memcmp(model.bytes, "gpt2", 4)) return STATUS_OK;
    FAIL(STATUS_INVALID, "its tokenizer is of the kind '%.*s'; those read are gpt2 and llama",
         model.length < 64 ? (int)model.length : 64, model.bytes ? model.bytes : "");
}

static status_t read_tokens(vocabulary_t *vocabulary, const gguf_text_t *stored) {
    for (int32_t id = 0; id < vocabulary->count; id++) {
        if (stored[id].length > TOKEN_BYTES)
            FAIL(STATUS_INVALID, "token %d of its vocabulary has %zu bytes, more than %d", (int)id, stored[id].length,
                 TOKEN_BYTES);
        vocabulary->token[id] = stored[id];
        if (vocabulary->kind == VOCABULARY_BYTES) TRY(spell_bytes(vocabulary, id));
        if (vocabulary->kind == VOCABULARY_GEMMA) TRY(spell_spaces(vocabulary, id));
    }
    return index_tokens(vocabulary);
}

static status_t fill(vocabulary_t *vocabulary, const gguf_t *file, const gguf_text_t *stored) {
    TRY(ALLOCATE(&vocabulary->token, vocabulary->count));
    TRY(ALLOCATE(&vocabulary->mark, vocabulary->count));
    TRY(read_tokens(vocabulary, stored));
    TRY(read_id(vocabulary, file, "bos_token_id", &vocabulary->bos));
    TRY(read_id(vocabulary, file, "eos_token_id", &vocabulary->eos));
    TRY(read_id(vocabulary, file, "unknown_token_id", &vocabulary->unknown));
    TRY(read_id(vocabulary, file, "padding_token_id", &vocabulary->pad));
    vocabulary->add_bos = read_flag(file, "tokenizer.ggml.add_bos_token", vocabulary->kind != VOCABULARY_BYTES);
    vocabulary->add_eos = read_flag(file, "tokenizer.ggml.add_eos_token", false);
    TRY(read_text(file, "tokenizer.ggml.pre", &vocabulary->pre));
    TRY(read_text(file, "tokenizer.chat_template", &vocabulary->chat_template));
    const gguf_value_t *merges = gguf_value(file, "tokenizer.ggml.merges");
    if (merges)
        TRY(read_merges(vocabulary, merges));
    else
        TRY(derive_merges(vocabulary, gguf_value(file, "tokenizer.ggml.scores")));
    return read_marks(vocabulary, file, stored);
}

status_t vocabulary_open(const gguf_t *file, gguf_decoder_t decoder, vocabulary_t *out) {
    gguf_text_t *stored;
    *out = (vocabulary_t){0};
    const gguf_value_t *tokens = gguf_value(file, "tokenizer.ggml.tokens");
    if (!tokens || !tokens->is_array || !tokens->count || tokens->count > MAX_TOKENS)
        FAIL(STATUS_INVALID, "it has no vocabulary ('tokenizer.ggml.tokens')");
    TRY(read_kind(file, decoder, &out->kind));
    TRY(gguf_texts(tokens, &stored));
    out->count = (int32_t)tokens->count;
    status_t status = fill(out, file, stored);
    free(stored);
    return status;
}

void vocabulary_free(vocabulary_t *vocabulary) {
    for (size_t i = 0; i < vocabulary->spelled_count; i++) free(vocabulary->spelled[i]);
    free(vocabulary->spelled);
    free(vocabulary->token);
    free(vocabulary->mark);
    free(vocabulary->slot);
    free(vocabulary->merge);
}
