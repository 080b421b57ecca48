// Added tokens: looked for in the text before anything else, some as given and the rest after normalisation. The
// longest that starts leftmost wins.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>

// ---- reading ----

// What a token is matched as, and shown as: its normal form.
static status_t read_normal(tokenizer_t *tokenizer, added_token_t *token, const char *text, size_t length,
                            pcre2_match_data *match) {
    vocabulary_entry_t *entry = &tokenizer->entry[token->id];
    buffer_t normal = {0};
    bool moved;
    status_t status = tokenizer_normalise(tokenizer, match, text, length, &normal, &moved);
    bool same = !status && normal.length == length && memcmp(normal.data, text, length) == 0;
    if (!status && !same) {
        free(entry->shown);
        entry->shown = NULL;
        entry->shown_length = (uint32_t)normal.length;
        status = memory_copy_bytes(normal.data, normal.length, &entry->shown);
    }
    if (!status && normal.length)
        status = trie_add(&tokenizer->normalised, normal.data, normal.length, (int32_t)(token - tokenizer->added));
    free(normal.data);
    return status;
}

// The place of an added token with this text, or -1.
static int32_t find_added(const trie_t *texts, const char *text, size_t length) {
    uint32_t node = 0;
    for (size_t i = 0; i < length; i++) {
        node = trie_step(texts, node, (uint8_t)text[i]);
        if (!node) return -1;
    }
    return node ? texts->value[node] : -1;
}

static status_t read_token(tokenizer_t *tokenizer, const json_t *item, size_t place, trie_t *texts, int32_t *next) {
    const json_t *content = json_object_get(item, "content");
    if (!json_is_string(content)) FAIL(STATUS_INVALID, "entry %zu of 'added_tokens' has no 'content'", place);
    const char *text = json_string_value(content);
    size_t length = json_string_length(content);
    if (!length) return STATUS_OK;
    int32_t known = find_added(texts, text, length);
    added_token_t *token = &tokenizer->added[known >= 0 ? known : tokenizer->added_count];
    if (known < 0) {
        // As in the reference the id is the vocabulary's, or else the next free one, whatever the file says.
        int32_t id = tokenizer_word(tokenizer, text, length);
        token->id = id >= 0 ? id : (*next)++;
        TRY(trie_add(texts, text, length, tokenizer->added_count++));
    }
    TRY(tokenizer_set_entry(tokenizer, text, length, token->id));
    tokenizer->entry[token->id].special |= json_flag(item, "special");
    token->special = tokenizer->entry[token->id].special;
    token->normalised = json_flag(item, "normalized");
    token->single_word = json_flag(item, "single_word");
    token->strip_left = json_flag(item, "lstrip");
    token->strip_right = json_flag(item, "rstrip");
    return STATUS_OK;
}

static status_t index_token(tokenizer_t *tokenizer, int place, pcre2_match_data *match) {
    added_token_t *token = &tokenizer->added[place];
    char *text;
    size_t length = tokenizer->entry[token->id].length;
    if (!token->normalised) return trie_add(&tokenizer->raw, tokenizer->entry[token->id].text, length, place);
    TRY(memory_copy_bytes(tokenizer->entry[token->id].text, length, &text));
    status_t status = read_normal(tokenizer, token, text, length, match);
    free(text);
    return status;
}

// A token whose normal form is not itself is looked up among the special ones by that form.
static void mark_shown(tokenizer_t *tokenizer, const trie_t *texts) {
    for (int i = 0; i < tokenizer->added_count; i++) {
        vocabulary_entry_t *entry = &tokenizer->entry[tokenizer->added[i].id];
        if (!entry->shown) continue;
        int32_t as = find_added(texts, entry->shown, entry->shown_length);
        entry->special = as >= 0 && tokenizer->added[as].special;
    }
}

status_t tokenizer_read_added(tokenizer_t *tokenizer, const json_t *root) {
    const json_t *list = json_object_get(root, "added_tokens"), *item;
    int32_t next = tokenizer->model_count;
    trie_t texts = {0};
    size_t i;
    if (json_array_size(list) > INT32_MAX / 4) FAIL(STATUS_INVALID, "there are too many 'added_tokens'");
    TRY(ALLOCATE(&tokenizer->added, json_array_size(list)));
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    status_t status = match ? STATUS_OK : STATUS_NEW(STATUS_MEMORY, "out of memory");
    json_array_foreach(list, i, item) {
        if (!status) status = read_token(tokenizer, item, i, &texts, &next);
    }
    for (int place = 0; place < tokenizer->added_count && !status; place++)
        status = index_token(tokenizer, place, match);
    if (!status) mark_shown(tokenizer, &texts);
    pcre2_match_data_free(match);
    trie_free(&texts);
    return status;
}

// ---- matching ----

static const added_token_t *added_at(const tokenizer_t *tokenizer, const trie_t *trie, const char *text, size_t length,
                                     size_t at, size_t *end) {
    const added_token_t *found = NULL;
    uint32_t node = 0;
    for (size_t i = at; i < length; i++) {
        node = trie_step(trie, node, (uint8_t)text[i]);
        if (!node) break;
        if (trie->value[node] < 0) continue;
        found = &tokenizer->added[trie->value[node]];
        *end = i + 1;
    }
    return found;
}

// Start of the character that ends before `at` (at > 0).
static size_t character_before(const char *text, size_t at) {
    do at--;
    while (at && ((uint8_t)text[at] & 0xc0) == 0x80);
    return at;
}

static uint32_t code_at(const char *text, size_t length, size_t at) {
    uint32_t code = 0;
    utf8_next(text + at, length - at, &code, NULL, NULL);
    return code;
}

// Widens [*start, *end) as the token's rules say; false: the token does not count here.
static bool added_fits(const added_token_t *token, const char *text, size_t length, size_t done, size_t *start,
                       size_t *end) {
    if (token->single_word) {
        if (*start && tokenizer_word_code(code_at(text, length, character_before(text, *start)))) return false;
        if (*end < length && tokenizer_word_code(code_at(text, length, *end))) return false;
    }
    while (token->strip_left && *start > done) {
        size_t before = character_before(text, *start);
        if (!tokenizer_is_space(code_at(text, length, before))) break;
        *start = before;
    }
    if (token->strip_left && *start < done) *start = done;
    while (token->strip_right && *end < length) {
        if (!tokenizer_is_space(code_at(text, length, *end))) break;
        *end += utf8_next(text + *end, length - *end, NULL, NULL, NULL);
    }
    return true;
}

typedef status_t (*between_t)(encoder_t *encoder, const char *text, size_t first, size_t last, bool front);

// Whether a special token that is spelled here counts: not where users spelled all of it.
static bool special_counts(const encoder_t *encoder, size_t first, size_t last) {
    return encoder->parse_special && (!encoder->given || memchr(encoder->given + first, 0, last - first));
}

// Emits the added tokens of a text and hands what is between them to `between`.
static status_t split_added(encoder_t *encoder, const trie_t *trie, const char *text, size_t length, bool front,
                            between_t between) {
    size_t done = 0, at = 0;
    while (at < length && trie->nodes) {
        size_t start = at, end = 0;
        const added_token_t *token = added_at(encoder->tokenizer, trie, text, length, at, &end);
        if (!token) {
            at++;
            continue;
        }
        at = end;
        if (token->special && !special_counts(encoder, start, end)) continue;
        if (!added_fits(token, text, length, done, &start, &end)) continue;
        // A token that an earlier one's strip_right ran into counts all the same, as in the reference.
        if (done < start) TRY(between(encoder, text, done, start, front && !done));
        TRY(encoder_emit(encoder, token->id, 0, end - (start < done ? done : start)));
        encoder->at += end - (start < done ? done : start);
        done = end;
    }
    return done < length ? between(encoder, text, done, length, front && !done) : STATUS_OK;
}

static status_t encode_plain(encoder_t *encoder, const char *text, size_t first, size_t last, bool front) {
    return encoder_cut(encoder, 0, text + first, last - first, front);
}

static status_t encode_normal(encoder_t *encoder, const char *text, size_t first, size_t last, bool front) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    if (!tokenizer->normals)
        return split_added(encoder, &tokenizer->normalised, text + first, last - first, front, encode_plain);
    bool moved;
    TRY(tokenizer_normalise(tokenizer, encoder->match, text + first, last - first, &encoder->normal, &moved));
    return split_added(encoder, &tokenizer->normalised, encoder->normal.data, encoder->normal.length, front && !moved,
                       encode_plain);
}

// Whether a place in normalised text can be told from the given text: nothing is rewritten but blanks.
static bool keeps_letters(const tokenizer_t *tokenizer) {
    for (int i = 0; i < tokenizer->normals; i++) {
        normal_kind_t kind = tokenizer->normal[i].kind;
        if (kind != NORMAL_PREPEND && kind != NORMAL_REPLACE && kind != NORMAL_STRIP && kind != NORMAL_NFC)
            return false;
    }
    return true;
}

// Whether users could make a special token of a stretch once it is normalised, where marks say nothing: they spelled
// one, or the normaliser may make one of what they wrote.
static bool users_spell(const encoder_t *encoder, const char *text, size_t first, size_t last) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    if (!memchr(encoder->given + first, 1, last - first)) return false;
    if (!keeps_letters(tokenizer)) return true;
    for (int i = 0; i < tokenizer->added_count; i++) {
        const added_token_t *token = &tokenizer->added[i];
        const vocabulary_entry_t *entry = &tokenizer->entry[token->id];
        if (!token->special || !token->normalised) continue;
        for (const char *at = text + first; (at = memmem(at, last - (size_t)(at - text), entry->text, entry->length));
             at++)
            if (!memchr(encoder->given + (at - text), 0, entry->length)) return true;
    }
    return false;
}

// A stretch of the given text without raw added tokens: normalised, then searched for the others.
static status_t encode_stretch(encoder_t *encoder, const char *text, size_t first, size_t last, bool front) {
    if (first == last) return STATUS_OK;
    const char *given = encoder->given;
    bool parse_special = encoder->parse_special;
    if (given && users_spell(encoder, text, first, last)) encoder->parse_special = false;
    encoder->given = NULL;
    status_t status = encode_normal(encoder, text, first, last, front);
    encoder->given = given;
    encoder->parse_special = parse_special;
    return status;
}

status_t encoder_text(encoder_t *encoder, const char *text, size_t length) {
    return split_added(encoder, &encoder->tokenizer->raw, text, length, true, encode_stretch);
}
