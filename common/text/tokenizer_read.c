// The model of tokenizer.json: vocabulary, merges, scores. What is not understood is refused by name: a tokenizer that
// is nearly right is wrong.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static const double unknown_penalty = 10; // how far an unknown character's score lies below the lowest one

// ---- the table by id and the table by text ----

status_t tokenizer_set_entry(tokenizer_t *tokenizer, const char *text, size_t length, int32_t id) {
    size_t capacity = (size_t)tokenizer->capacity;
    if (id >= tokenizer->capacity) {
        TRY(memory_grow((void **)&tokenizer->entry, &capacity, (size_t)id + 1, sizeof(*tokenizer->entry)));
        memset(tokenizer->entry + tokenizer->capacity, 0,
               (capacity - (size_t)tokenizer->capacity) * sizeof(*tokenizer->entry));
        tokenizer->capacity = (int)capacity;
    }
    if (id >= tokenizer->size) tokenizer->size = id + 1;
    vocabulary_entry_t *entry = &tokenizer->entry[id];
    if (entry->text && (entry->length != length || memcmp(entry->text, text, length) != 0))
        FAIL(STATUS_INVALID, "the tokens '%s' and '%s' have the same id %d", entry->text, text, (int)id);
    if (entry->text) return STATUS_OK;
    entry->length = (uint32_t)length;
    return memory_copy_bytes(text, length, &entry->text);
}

static size_t word_slot(const tokenizer_t *tokenizer, const char *text, size_t length) {
    size_t slot = (size_t)XXH3_64bits(text, length) & (tokenizer->word_slots - 1);
    for (; tokenizer->word[slot] >= 0; slot = (slot + 1) & (tokenizer->word_slots - 1)) {
        const vocabulary_entry_t *entry = &tokenizer->entry[tokenizer->word[slot]];
        if (entry->length == length && memcmp(entry->text, text, length) == 0) break;
    }
    return slot;
}

int32_t tokenizer_word(const tokenizer_t *tokenizer, const char *text, size_t length) {
    return tokenizer->word[word_slot(tokenizer, text, length)];
}

static status_t start_words(tokenizer_t *tokenizer, size_t count) {
    tokenizer->word_slots = 16;
    while (tokenizer->word_slots < 2 * count) tokenizer->word_slots *= 2;
    TRY(ALLOCATE(&tokenizer->word, tokenizer->word_slots));
    for (size_t slot = 0; slot < tokenizer->word_slots; slot++) tokenizer->word[slot] = -1;
    return STATUS_OK;
}

static status_t add_word(tokenizer_t *tokenizer, const char *text, size_t length, int32_t id) {
    TRY(tokenizer_set_entry(tokenizer, text, length, id));
    tokenizer->entry[id].model = true;
    tokenizer->word[word_slot(tokenizer, text, length)] = id;
    return STATUS_OK;
}

// Tokens of one character, and those that stand for a byte.
static void find_characters(tokenizer_t *tokenizer) {
    for (int i = 0; i < 512; i++) {
        char text[2] = {(char)i, 0};
        size_t length = 1;
        if (i >= 128) {
            text[0] = (char)(0xc0 | i >> 6);
            text[1] = (char)(0x80 | (i & 0x3f));
            length = 2;
        }
        tokenizer->code_id[i] = tokenizer_word(tokenizer, text, length);
    }
    for (int b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof(text), "<0x%02X>", (unsigned)b);
        tokenizer->fallback_id[b] = tokenizer_word(tokenizer, text, 6);
    }
}

// ---- BPE ----

static status_t read_vocabulary(tokenizer_t *tokenizer, json_t *vocabulary) {
    const char *text;
    size_t length;
    json_t *value;
    if (!json_is_object(vocabulary)) FAIL(STATUS_INVALID, "'model.vocab' is missing or no object");
    // Ids may have gaps, but a file of a few entries cannot ask for a table of gigabytes.
    int64_t limit = 16 * (int64_t)json_object_size(vocabulary) + 65536;
    if (limit > INT32_MAX / 2) FAIL(STATUS_INVALID, "'model.vocab' has too many entries");
    TRY(start_words(tokenizer, json_object_size(vocabulary)));
    json_object_keylen_foreach(vocabulary, text, length, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= limit)
            FAIL(STATUS_INVALID, "the token '%s' has no usable id (a whole number from 0 to %lld)", text,
                 (long long)limit - 1);
        TRY(add_word(tokenizer, text, length, (int32_t)id));
    }
    tokenizer->model_count = (int)json_object_size(vocabulary);
    return STATUS_OK;
}

static void merge_insert(tokenizer_t *tokenizer, merge_t merge) {
    size_t slot = merge_slot(merge.pair, tokenizer->merge_slots);
    while (tokenizer->merge[slot].pair != UINT64_MAX && tokenizer->merge[slot].pair != merge.pair)
        slot = (slot + 1) & (tokenizer->merge_slots - 1);
    tokenizer->merge[slot] = merge;
}

// Splits one entry of 'merges', "a b" or ["a", "b"], into its two sides.
static bool merge_sides(const json_t *entry, const char **side, size_t *length) {
    if (json_is_array(entry) && json_array_size(entry) == 2) {
        for (int i = 0; i < 2; i++) {
            const json_t *text = json_array_get(entry, (size_t)i);
            side[i] = json_string_value(text);
            if (!side[i]) return false;
            length[i] = json_string_length(text);
        }
        return true;
    }
    side[0] = json_string_value(entry);
    const char *space = side[0] ? strchr(side[0], ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) return false;
    side[1] = space + 1;
    length[0] = (size_t)(space - side[0]);
    length[1] = strlen(side[1]);
    return true;
}

static status_t read_merges(tokenizer_t *tokenizer, const json_t *merges) {
    size_t i, prefix = strlen(tokenizer->prefix);
    json_t *entry;
    buffer_t joined = {0};
    status_t status = STATUS_OK;
    if (!json_is_array(merges)) FAIL(STATUS_INVALID, "'model.merges' is missing or no list");
    size_t count = json_array_size(merges);
    tokenizer->merge_slots = 16;
    while (tokenizer->merge_slots < 2 * count) tokenizer->merge_slots *= 2;
    TRY(ALLOCATE(&tokenizer->merge, tokenizer->merge_slots));
    for (size_t slot = 0; slot < tokenizer->merge_slots; slot++) tokenizer->merge[slot].pair = UINT64_MAX;
    json_array_foreach(merges, i, entry) {
        const char *side[2];
        size_t length[2];
        if (!merge_sides(entry, side, length))
            FAIL_GOTO(status, done, STATUS_INVALID, "entry %zu of 'model.merges' is no pair of tokens", i);
        size_t skip = length[1] < prefix ? length[1] : prefix;
        joined.length = 0;
        TRY_GOTO(status, done, buffer_append(&joined, side[0], length[0]));
        TRY_GOTO(status, done, buffer_append(&joined, side[1] + skip, length[1] - skip));
        int32_t left = tokenizer_word(tokenizer, side[0], length[0]);
        int32_t right = tokenizer_word(tokenizer, side[1], length[1]);
        int32_t result = tokenizer_word(tokenizer, joined.data, joined.length);
        if (left < 0 || right < 0 || result < 0)
            FAIL_GOTO(status, done, STATUS_INVALID,
                      "the merge of '%.*s' and '%.*s' is about a token that is not in 'model.vocab'", (int)length[0],
                      side[0], (int)length[1], side[1]);
        uint64_t pair = (uint64_t)left << 32 | (uint64_t)right;
        merge_insert(tokenizer, (merge_t){pair, (int32_t)i, result});
    }
done:
    free(joined.data);
    return status;
}

static status_t read_bpe(tokenizer_t *tokenizer, json_t *model) {
    const json_t *unknown = json_object_get(model, "unk_token");
    if (json_number_value(json_object_get(model, "dropout")) != 0)
        FAIL(STATUS_INVALID, "'model.dropout' is not supported: it makes tokens random");
    tokenizer->kind = MODEL_BPE;
    TRY(memory_copy_string(json_text(model, "continuing_subword_prefix"), &tokenizer->prefix));
    TRY(memory_copy_string(json_text(model, "end_of_word_suffix"), &tokenizer->suffix));
    if (strlen(tokenizer->prefix) > 64 || strlen(tokenizer->suffix) > 64)
        FAIL(STATUS_INVALID, "'model.continuing_subword_prefix' or 'model.end_of_word_suffix' is too long");
    tokenizer->byte_fallback = json_flag(model, "byte_fallback");
    tokenizer->fuse_unknown = json_flag(model, "fuse_unk");
    tokenizer->ignore_merges = json_flag(model, "ignore_merges");
    TRY(read_vocabulary(tokenizer, json_object_get(model, "vocab")));
    find_characters(tokenizer);
    tokenizer->has_unknown = json_is_string(unknown);
    tokenizer->unknown = -1;
    if (tokenizer->has_unknown)
        tokenizer->unknown = tokenizer_word(tokenizer, json_string_value(unknown), json_string_length(unknown));
    return read_merges(tokenizer, json_object_get(model, "merges"));
}

// ---- unigram ----

// The reference's JSON reader makes a number of its digits as one whole number times or over a power of ten, which is
// the nearest double only up to 15 digits. Equal paths are told apart by such last bits. Files hold the shortest
// digits.
static double score_as_read(double score) {
    char text[40], power[16], digits[24];
    if (!isfinite(score) || score == 0) return score;
    for (int count = 15; count <= 17; count++) {
        snprintf(text, sizeof(text), "%.*e", count - 1, fabs(score));
        if (strtod(text, NULL) != fabs(score)) continue;
        int used = 0;
        for (const char *c = text; *c != 'e'; c++)
            if (*c != '.' && used < 20) digits[used++] = *c;
        digits[used] = 0;
        int exponent = atoi(strchr(text, 'e') + 1) - (count - 1);
        if (exponent < -300 || exponent > 290) return score;
        snprintf(power, sizeof(power), "1e%d", abs(exponent));
        double value = (double)strtoull(digits, NULL, 10), scale = strtod(power, NULL);
        value = exponent < 0 ? value / scale : value * scale;
        return score < 0 ? -value : value;
    }
    return score;
}

static status_t read_unigram(tokenizer_t *tokenizer, json_t *model) {
    const json_t *vocabulary = json_object_get(model, "vocab"), *unknown = json_object_get(model, "unk_id"), *item;
    size_t i, count = json_array_size(vocabulary);
    if (!json_is_array(vocabulary) || !count) FAIL(STATUS_INVALID, "'model.vocab' is missing, empty or no list");
    if (count > INT32_MAX / 4) FAIL(STATUS_INVALID, "'model.vocab' has too many entries");
    tokenizer->kind = MODEL_UNIGRAM;
    tokenizer->byte_fallback = json_flag(model, "byte_fallback");
    tokenizer->unknown = -1;
    if (json_is_set(unknown)) {
        if (!json_is_integer(unknown) || json_integer_value(unknown) < 0 ||
            json_integer_value(unknown) >= (json_int_t)count)
            FAIL(STATUS_INVALID, "'model.unk_id' is no place in 'model.vocab'");
        tokenizer->unknown = (int32_t)json_integer_value(unknown);
    }
    TRY(start_words(tokenizer, count));
    TRY(ALLOCATE(&tokenizer->score, count));
    double lowest = INFINITY;
    json_array_foreach(vocabulary, i, item) {
        const json_t *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        if (!json_is_string(text) || !json_is_number(score))
            FAIL(STATUS_INVALID, "entry %zu of 'model.vocab' is no pair of a token and its score", i);
        TRY(add_word(tokenizer, json_string_value(text), json_string_length(text), (int32_t)i));
        TRY(trie_add(&tokenizer->pieces, json_string_value(text), json_string_length(text), (int32_t)i));
        tokenizer->score[i] = score_as_read(json_number_value(score));
        if (tokenizer->score[i] < lowest) lowest = tokenizer->score[i];
    }
    tokenizer->unknown_score = lowest - unknown_penalty;
    tokenizer->model_count = (int)count;
    find_characters(tokenizer);
    return STATUS_OK;
}

status_t tokenizer_read_model(tokenizer_t *tokenizer, const json_t *root) {
    json_t *model = json_object_get(root, "model");
    if (!json_is_object(model)) FAIL(STATUS_INVALID, "'model' is missing");
    const char *type = json_text(model, "type");
    if (!*type) type = json_is_array(json_object_get(model, "vocab")) ? "Unigram" : "BPE";
    if (strcmp(type, "BPE") == 0) return read_bpe(tokenizer, model);
    if (strcmp(type, "Unigram") == 0) return read_unigram(tokenizer, model);
    FAIL(STATUS_INVALID, "'model.type' is '%s'; BPE and Unigram are supported", type);
}
