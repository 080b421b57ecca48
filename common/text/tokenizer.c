// Encoding and decoding. Text is cut at added tokens, normalised, cut by the pre-tokenizer's patterns, and each piece
// is merged from its bytes by rank.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 256 << 20 };

typedef struct symbol {
    int32_t id, previous, next; // next == -1: last; id == -1: merged into its left neighbour
    int32_t length;             // bytes
} symbol_t;

// A merge that could be done: of the symbol at `place` with its right neighbour.
typedef struct candidate {
    int32_t rank, place, result;
} candidate_t;

typedef struct encoder {
    const tokenizer_t *tokenizer;
    token_list_t *out;
    bool parse_special;
    size_t base; // offset of the text at hand within the whole normalised text
    pcre2_match_data *match[TOKENIZER_STAGES];
    symbol_t *symbol;
    size_t symbol_capacity;
    candidate_t *heap;
    size_t heap_capacity, heap_count;
} encoder_t;

void token_list_free(token_list_t *list) {
    free(list->id);
    free(list->offset);
    *list = (token_list_t){0};
}

status_t token_list_add(token_list_t *list, int32_t id, int32_t first, int32_t last) {
    size_t count = (size_t)list->count;
    if (count >= INT32_MAX / 2) FAIL(STATUS_INVALID, "too many tokens for one list");
    TRY(memory_grow((void **)&list->id, &list->capacity, count + 1, sizeof(*list->id)));
    TRY(memory_grow((void **)&list->offset, &list->offset_capacity, 2 * count + 2, sizeof(*list->offset)));
    list->id[count] = id;
    list->offset[2 * count] = first;
    list->offset[2 * count + 1] = last;
    list->count++;
    return STATUS_OK;
}

static status_t emit(encoder_t *encoder, int32_t id, size_t first, size_t last) {
    return token_list_add(encoder->out, id, (int32_t)(encoder->base + first), (int32_t)(encoder->base + last));
}

// ---- merging one piece ----

static bool candidate_before(candidate_t a, candidate_t b) {
    return a.rank != b.rank ? a.rank < b.rank : a.place < b.place;
}

static status_t heap_push(encoder_t *encoder, candidate_t item) {
    TRY(memory_grow((void **)&encoder->heap, &encoder->heap_capacity, encoder->heap_count + 1, sizeof(item)));
    candidate_t *heap = encoder->heap;
    size_t at = encoder->heap_count++;
    while (at && candidate_before(item, heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
    return STATUS_OK;
}

static candidate_t heap_pop(encoder_t *encoder) {
    candidate_t *heap = encoder->heap, top = heap[0], item = heap[--encoder->heap_count];
    size_t at = 0, count = encoder->heap_count;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && candidate_before(heap[child + 1], heap[child])) child++;
        if (!candidate_before(heap[child], item)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
    return top;
}

static const merge_t *find_merge(const tokenizer_t *tokenizer, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t slot = merge_slot(pair, tokenizer->merge_slots);
    while (tokenizer->merge[slot].pair != pair) {
        if (tokenizer->merge[slot].pair == UINT64_MAX) return NULL;
        slot = (slot + 1) & (tokenizer->merge_slots - 1);
    }
    return &tokenizer->merge[slot];
}

static status_t consider(encoder_t *encoder, int32_t place) {
    const symbol_t *symbol = encoder->symbol;
    if (place < 0 || symbol[place].next < 0) return STATUS_OK;
    const merge_t *merge = find_merge(encoder->tokenizer, symbol[place].id, symbol[symbol[place].next].id);
    if (!merge) return STATUS_OK;
    return heap_push(encoder, (candidate_t){.rank = merge->rank, .place = place, .result = merge->result});
}

static status_t merge_all(encoder_t *encoder) {
    while (encoder->heap_count) {
        candidate_t top = heap_pop(encoder);
        symbol_t *left = &encoder->symbol[top.place];
        if (left->id < 0 || left->next < 0) continue;
        symbol_t *right = &encoder->symbol[left->next];
        const merge_t *merge = find_merge(encoder->tokenizer, left->id, right->id);
        if (!merge || merge->result != top.result) continue; // a neighbour changed since
        left->id = top.result;
        left->length += right->length;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) encoder->symbol[left->next].previous = top.place;
        TRY(consider(encoder, left->previous));
        TRY(consider(encoder, top.place));
    }
    return STATUS_OK;
}

static int32_t find_word(const tokenizer_t *tokenizer, const char *bytes, size_t length) {
    if (!tokenizer->ignore_merges) return -1;
    size_t slot = tokenizer_word_slot(bytes, length, tokenizer->word_slots);
    for (; tokenizer->word[slot] >= 0; slot = (slot + 1) & (tokenizer->word_slots - 1)) {
        const vocabulary_entry_t *entry = &tokenizer->entry[tokenizer->word[slot]];
        if ((size_t)entry->length == length && memcmp(entry->bytes, bytes, length) == 0) return tokenizer->word[slot];
    }
    return -1;
}

static status_t encode_piece(encoder_t *encoder, const char *text, size_t first, size_t last) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    size_t length = last - first;
    if (!length) return STATUS_OK;
    int32_t word = find_word(tokenizer, text + first, length);
    if (word >= 0) return emit(encoder, word, first, last);
    TRY(memory_grow((void **)&encoder->symbol, &encoder->symbol_capacity, length, sizeof(*encoder->symbol)));
    // A byte without a token adds nothing, as in the tokenizers library; its place goes to the token before it.
    int32_t count = 0, skipped = 0;
    for (size_t i = 0; i < length; i++) {
        int32_t id = tokenizer->byte_id[(uint8_t)text[first + i]];
        if (id < 0 && count) encoder->symbol[count - 1].length++;
        if (id < 0 && !count) skipped++;
        if (id < 0) continue;
        encoder->symbol[count] = (symbol_t){.id = id, .previous = count - 1, .next = count + 1, .length = 1};
        count++;
    }
    if (!count) return STATUS_OK;
    encoder->symbol[count - 1].next = -1;
    encoder->heap_count = 0;
    for (int32_t i = 0; i + 1 < count; i++) TRY(consider(encoder, i));
    TRY(merge_all(encoder));
    size_t at = first + (size_t)skipped;
    for (int32_t i = 0; i >= 0; i = encoder->symbol[i].next) {
        size_t end = at + (size_t)encoder->symbol[i].length;
        TRY(emit(encoder, encoder->symbol[i].id, at, end));
        at = end;
    }
    return STATUS_OK;
}

// ---- cutting into pieces ----

static status_t find_match(encoder_t *encoder, int stage, const char *text, size_t length, size_t from, bool *found,
                           size_t *start, size_t *end) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    const pcre2_code *regex = tokenizer->stage[stage].regex;
    pcre2_match_data *match = encoder->match[stage];
    int code = pcre2_match(regex, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, match, tokenizer->limits);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(regex, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match,
                           tokenizer->limits);
    *found = code >= 0;
    if (code < 0 && code != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof(why));
        FAIL(STATUS_INVALID, "the pre_tokenizer's pattern fails on this text near byte %zu: %s", from, (char *)why);
    }
    if (!*found) return STATUS_OK;
    const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(match);
    *start = vector[0];
    *end = vector[1];
    if (*end < *start) *end = *start; // \K in a look-ahead could turn them round
    return STATUS_OK;
}

static status_t split(encoder_t *encoder, int stage, const char *text, size_t first, size_t last) {
    if (first == last) return STATUS_OK;
    if (stage == encoder->tokenizer->stages) return encode_piece(encoder, text, first, last);
    const split_stage_t *rule = &encoder->tokenizer->stage[stage];
    size_t length = last - first, done = 0, from = 0;
    while (from <= length && done < length) {
        bool found;
        size_t start = length, end = length;
        TRY(find_match(encoder, stage, text + first, length, from, &found, &start, &end));
        if (!found) break;
        if (start == end) { // an empty match cuts, and the search goes on behind the next character
            if (start < length) end = start + utf8_next(text + first + start, length - start, NULL, NULL, NULL);
            if (!rule->drop_gaps) TRY(split(encoder, stage + 1, text, first + done, first + start));
            done = start;
            from = start < length ? end : length + 1;
            continue;
        }
        if (!rule->drop_gaps) TRY(split(encoder, stage + 1, text, first + done, first + start));
        if (!rule->drop_matches) TRY(split(encoder, stage + 1, text, first + start, first + end));
        done = from = end;
    }
    if (rule->drop_gaps) return STATUS_OK;
    return split(encoder, stage + 1, text, first + done, last);
}

// ---- added tokens ----

static bool added_wanted(const encoder_t *encoder, const added_token_t *token) {
    return encoder->parse_special || !token->special;
}

// The longest added token that starts at `at`.
static const added_token_t *added_at(const added_tokens_t *added, const char *text, size_t length, size_t at) {
    int byte = (uint8_t)text[at];
    for (int i = added->start[byte]; i < added->start[byte + 1]; i++) {
        const added_token_t *token = &added->token[i];
        if (token->length <= length - at && memcmp(token->pattern, text + at, token->length) == 0) return token;
    }
    return NULL;
}

static bool is_space(uint32_t code) {
    return (code >= 9 && code <= 13) || code == 32 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
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
        if (!is_space(code_at(text, length, before))) break;
        *start = before;
    }
    while (token->strip_right && *end < length) {
        uint32_t code = code_at(text, length, *end);
        if (!is_space(code)) break;
        *end += utf8_next(text + *end, length - *end, NULL, NULL, NULL);
    }
    return true;
}

typedef status_t (*between_t)(encoder_t *encoder, const char *text, size_t first, size_t last);

// Emits the added tokens of a text and hands what is between them to `between`.
static status_t split_added(encoder_t *encoder, const added_tokens_t *added, const char *text, size_t length,
                            between_t between) {
    size_t done = 0, at = 0;
    while (at < length) {
        const added_token_t *token = added->count ? added_at(added, text, length, at) : NULL;
        if (!token) {
            at++;
            continue;
        }
        size_t start = at, end = at + token->length;
        at = end;
        if (!added_wanted(encoder, token) || start < done || !added_fits(token, text, length, done, &start, &end))
            continue;
        TRY(between(encoder, text, done, start));
        TRY(emit(encoder, token->id, start, end));
        done = end;
        at = end;
    }
    return between(encoder, text, done, length);
}

static status_t encode_plain(encoder_t *encoder, const char *text, size_t first, size_t last) {
    return split(encoder, 0, text, first, last);
}

// A stretch of the given text without raw added tokens: normalised, then searched for the others.
static status_t encode_stretch(encoder_t *encoder, const char *text, size_t first, size_t last) {
    if (first == last) return STATUS_OK;
    char *normal;
    size_t length, base = encoder->base;
    TRY(tokenizer_normalise(encoder->tokenizer->form, text + first, last - first, &normal, &length));
    encoder->base = base + first;
    status_t status = base + first + length > TEXT_LIMIT
                          ? STATUS_NEW(STATUS_INVALID, "the normalised text is longer than %d bytes", TEXT_LIMIT)
                          : split_added(encoder, &encoder->tokenizer->normalised, normal ? normal : text + first,
                                        length, encode_plain);
    // From here on offsets count the normalised bytes in place of the given ones.
    encoder->base = base + length - (last - first);
    free(normal);
    return status;
}

status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t length, bool parse_special,
                          token_list_t *out) {
    encoder_t encoder = {.tokenizer = tokenizer, .out = out, .parse_special = parse_special};
    int count = out->count;
    if (length > TEXT_LIMIT)
        FAIL(STATUS_INVALID, "the text has %zu bytes, more than the %d that can be tokenised", length, TEXT_LIMIT);
    size_t valid = utf8_valid(text, length);
    if (valid != length) FAIL(STATUS_INVALID, "the text is not UTF-8 at byte %zu", valid);
    status_t status = STATUS_OK;
    for (int i = 0; i < tokenizer->stages && !status; i++) {
        encoder.match[i] = pcre2_match_data_create_from_pattern(tokenizer->stage[i].regex, NULL);
        if (!encoder.match[i]) status = STATUS_NEW(STATUS_MEMORY, "out of memory while tokenising");
    }
    if (!status) status = split_added(&encoder, &tokenizer->raw, text, length, encode_stretch);
    for (int i = 0; i < tokenizer->stages; i++) pcre2_match_data_free(encoder.match[i]);
    free(encoder.symbol);
    free(encoder.heap);
    if (status) out->count = count;
    return status;
}

// ---- decoding ----

int tokenizer_size(const tokenizer_t *tokenizer) {
    return tokenizer->size;
}

status_t tokenizer_token(const tokenizer_t *tokenizer, int32_t id, const char **bytes, size_t *length, bool *special) {
    if (id < 0 || id >= tokenizer->size || !tokenizer->entry[id].text)
        FAIL(STATUS_INVALID, "no token has the id %d (ids go to %d)", (int)id, tokenizer->size - 1);
    *bytes = tokenizer->entry[id].bytes;
    *length = (size_t)tokenizer->entry[id].length;
    if (special) *special = tokenizer->entry[id].special;
    return STATUS_OK;
}

int32_t tokenizer_find(const tokenizer_t *tokenizer, const char *token) {
    const added_tokens_t *lists[2] = {&tokenizer->raw, &tokenizer->normalised};
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < lists[l]->count; i++) {
            int32_t id = lists[l]->token[i].id;
            if (strcmp(tokenizer->entry[id].text, token) == 0) return id;
        }
    return -1;
}

// Copies `bytes` with everything that is no UTF-8 replaced by U+FFFD. Returns the bytes written; *kept is how many at
// the end could still become a character (0 when `final`).
static size_t replace_invalid(const char *bytes, size_t length, bool final, char *out, size_t *kept) {
    size_t used = 0;
    *kept = 0;
    for (size_t at = 0; at < length;) {
        size_t bad;
        bool cut;
        size_t step = utf8_next(bytes + at, length - at, NULL, &bad, &cut);
        if (step) {
            memcpy(out + used, bytes + at, step);
            used += step;
            at += step;
        } else if (cut && !final) {
            *kept = length - at;
            break;
        } else {
            static const unsigned char replacement[3] = {0xef, 0xbf, 0xbd}; // U+FFFD
            memcpy(out + used, replacement, sizeof(replacement));
            used += sizeof(replacement);
            at += bad;
        }
    }
    return used;
}

static const vocabulary_entry_t *decode_entry(const tokenizer_t *tokenizer, int32_t id, bool skip_special) {
    if (id < 0 || id >= tokenizer->size) return NULL;
    const vocabulary_entry_t *entry = &tokenizer->entry[id];
    return entry->text && !(skip_special && entry->special) ? entry : NULL;
}

status_t tokenizer_decode_text(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special,
                               char **out, size_t *length) {
    size_t total = 0, used = 0, kept;
    *out = NULL;
    for (int i = 0; i < count; i++) {
        const vocabulary_entry_t *entry = decode_entry(tokenizer, ids[i], skip_special);
        if (entry) total += (size_t)entry->length;
    }
    char *bytes, *text = NULL;
    TRY(memory_allocate(total + 1, 1, (void **)&bytes));
    for (int i = 0; i < count; i++) {
        const vocabulary_entry_t *entry = decode_entry(tokenizer, ids[i], skip_special);
        if (!entry) continue;
        memcpy(bytes + used, entry->bytes, (size_t)entry->length);
        used += (size_t)entry->length;
    }
    status_t status = memory_allocate(3 * total + 1, 1, (void **)&text);
    if (!status) {
        size_t written = replace_invalid(bytes, total, true, text, &kept);
        text[written] = 0;
        if (length) *length = written;
        *out = text;
    }
    free(bytes);
    return status;
}

status_t tokenizer_decode(const tokenizer_t *tokenizer, const int32_t *ids, int count, bool skip_special, char **out) {
    return tokenizer_decode_text(tokenizer, ids, count, skip_special, out, NULL);
}

status_t tokenizer_stream_push(const tokenizer_t *tokenizer, tokenizer_stream_t *stream, int32_t id, bool skip_special,
                               char *text, size_t bytes, size_t *written) {
    const vocabulary_entry_t *entry = decode_entry(tokenizer, id, skip_special);
    size_t length = (entry ? (size_t)entry->length : 0) + (size_t)stream->pending_count, kept;
    *written = 0;
    if (3 * length + 1 > bytes)
        FAIL(STATUS_INVALID, "a buffer of %zu bytes is too small for the next token's text; give it %zu", bytes,
             3 * length + 1);
    char *joined;
    TRY(memory_allocate(length + 1, 1, (void **)&joined));
    memcpy(joined, stream->pending, (size_t)stream->pending_count);
    if (entry) memcpy(joined + stream->pending_count, entry->bytes, (size_t)entry->length);
    *written = replace_invalid(joined, length, id == -1, text, &kept);
    text[*written] = 0;
    memcpy(stream->pending, joined + length - kept, kept); // at most 3 bytes: a character is 4
    stream->pending_count = (int)kept;
    free(joined);
    return STATUS_OK;
}
