// Reading tokenizer.json. What is not understood is refused by name: a tokenizer that is nearly right is wrong.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include "common/store/store.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum {
    FILE_LIMIT = 512 << 20,
    MATCH_LIMIT = 50000000, // steps of one match; patterns come from files
    PATTERN_LIMIT = 64 << 10,
};

// The pattern of ByteLevel with use_regex, as GPT-2 has it.
static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

size_t tokenizer_word_slot(const char *bytes, size_t length, size_t slots) {
    return (size_t)XXH3_64bits(bytes, length) & (slots - 1);
}

static bool json_is_set(const json_t *value) {
    return value && !json_is_null(value);
}

static const char *json_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

// ---- the byte alphabet of byte-level tokens ----

// GPT-2's printable stand-in for a byte: itself when printable Latin-1, else U+0100 and up in order.
static uint32_t byte_to_code(int byte) {
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174) return (uint32_t)byte;
    int place = byte <= 32 ? byte : byte <= 160 ? byte - 127 + 33 : 67;
    return 256 + (uint32_t)place;
}

static int code_to_byte(uint32_t code) {
    if (code >= 256 && code < 256 + 68) {
        int place = (int)code - 256;
        return place < 33 ? place : place < 67 ? place - 33 + 127 : 173;
    }
    return code < 256 && byte_to_code((int)code) == code ? (int)code : -1;
}

// The bytes a token stands for; a token with a character outside the alphabet stands for its own spelling.
static status_t token_bytes(const char *text, size_t length, char **out, int *out_length) {
    size_t used = 0;
    TRY(memory_copy_bytes(text, length, out));
    for (size_t at = 0; at < length;) {
        uint32_t code = 0;
        at += utf8_next(text + at, length - at, &code, NULL, NULL);
        int byte = code_to_byte(code);
        if (byte < 0) {
            memcpy(*out, text, length);
            used = length;
            break;
        }
        (*out)[used++] = (char)byte;
    }
    (*out)[used] = 0;
    *out_length = (int)used;
    return STATUS_OK;
}

// ---- vocabulary ----

static status_t read_entry(tokenizer_t *tokenizer, const char *text, size_t length, int32_t id, bool special) {
    vocabulary_entry_t *entry = &tokenizer->entry[id];
    if (entry->text && strcmp(entry->text, text) != 0)
        FAIL(STATUS_INVALID, "the tokens '%s' and '%s' have the same id %d", entry->text, text, (int)id);
    entry->special |= special;
    if (entry->text) return STATUS_OK;
    TRY(memory_copy_bytes(text, length, &entry->text));
    return token_bytes(text, length, &entry->bytes, &entry->length);
}

static status_t read_id(const json_t *value, const char *text, int64_t limit, int64_t *largest) {
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (id < 0 || id >= limit)
        FAIL(STATUS_INVALID, "the token '%s' has no usable id (a whole number from 0 to %lld)", text,
             (long long)limit - 1);
    if (id > *largest) *largest = id;
    return STATUS_OK;
}

// The vocabulary of the model and of the added tokens, one table by id.
static status_t read_vocabulary(tokenizer_t *tokenizer, json_t *vocabulary, const json_t *added) {
    const char *text;
    json_t *value;
    size_t i;
    if (!json_is_object(vocabulary)) FAIL(STATUS_INVALID, "'model.vocab' is missing or no object");
    // Ids may have gaps, but a file of a few entries cannot ask for a table of gigabytes.
    int64_t entries = (int64_t)json_object_size(vocabulary) + (int64_t)json_array_size(added);
    int64_t limit = 16 * entries + 65536, largest = -1;
    if (limit > INT32_MAX) FAIL(STATUS_INVALID, "'model.vocab' has too many entries");
    json_object_foreach(vocabulary, text, value) TRY(read_id(value, text, limit, &largest));
    json_array_foreach(added, i, value) {
        if (!json_is_string(json_object_get(value, "content")))
            FAIL(STATUS_INVALID, "entry %zu of 'added_tokens' has no 'content'", i);
        TRY(read_id(json_object_get(value, "id"), json_text(value, "content"), limit, &largest));
    }
    tokenizer->size = (int)largest + 1;
    TRY(ALLOCATE(&tokenizer->entry, tokenizer->size));
    json_object_foreach(vocabulary, text, value)
        TRY(read_entry(tokenizer, text, strlen(text), (int32_t)json_integer_value(value), false));
    for (int b = 0; b < 256; b++) tokenizer->byte_id[b] = -1;
    for (int id = 0; id < tokenizer->size; id++) {
        const vocabulary_entry_t *entry = &tokenizer->entry[id];
        if (!entry->text || entry->length != 1) continue;
        uint8_t byte = (uint8_t)entry->bytes[0];
        uint32_t code = 0;
        utf8_next(entry->text, strlen(entry->text), &code, NULL, NULL);
        if (code == byte_to_code(byte)) tokenizer->byte_id[byte] = id;
    }
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
            side[i] = json_string_value(json_array_get(entry, (size_t)i));
            if (!side[i]) return false;
            length[i] = strlen(side[i]);
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

static const json_t *vocabulary_get(const json_t *vocabulary, const char *text, size_t length) {
    return json_object_getn(vocabulary, text, length);
}

static status_t read_merges(tokenizer_t *tokenizer, const json_t *vocabulary, const json_t *merges) {
    size_t i, capacity = 0;
    json_t *entry;
    char *joined = NULL;
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
        TRY_GOTO(status, done, memory_grow((void **)&joined, &capacity, length[0] + length[1] + 1, 1));
        memcpy(joined, side[0], length[0]);
        memcpy(joined + length[0], side[1], length[1]);
        const json_t *left = vocabulary_get(vocabulary, side[0], length[0]);
        const json_t *right = vocabulary_get(vocabulary, side[1], length[1]);
        const json_t *result = vocabulary_get(vocabulary, joined, length[0] + length[1]);
        if (!left || !right || !result)
            FAIL_GOTO(status, done, STATUS_INVALID,
                      "the merge of '%.*s' and '%.*s' is about a token that is not in "
                      "'model.vocab'",
                      (int)length[0], side[0], (int)length[1], side[1]);
        uint64_t pair = (uint64_t)json_integer_value(left) << 32 | (uint64_t)json_integer_value(right);
        merge_insert(tokenizer, (merge_t){pair, (int32_t)i, (int32_t)json_integer_value(result)});
    }
done:
    free(joined);
    return status;
}

// Words by their bytes, for ignore_merges.
static status_t read_words(tokenizer_t *tokenizer, const json_t *vocabulary) {
    const char *text;
    json_t *value;
    tokenizer->word_slots = 16;
    while (tokenizer->word_slots < 2 * json_object_size(vocabulary)) tokenizer->word_slots *= 2;
    TRY(ALLOCATE(&tokenizer->word, tokenizer->word_slots));
    for (size_t slot = 0; slot < tokenizer->word_slots; slot++) tokenizer->word[slot] = -1;
    json_object_foreach((json_t *)(uintptr_t)vocabulary, text, value) {
        const vocabulary_entry_t *entry = &tokenizer->entry[json_integer_value(value)];
        size_t slot = tokenizer_word_slot(entry->bytes, (size_t)entry->length, tokenizer->word_slots);
        while (tokenizer->word[slot] >= 0) slot = (slot + 1) & (tokenizer->word_slots - 1);
        tokenizer->word[slot] = (int32_t)json_integer_value(value);
    }
    return STATUS_OK;
}

static status_t read_model(tokenizer_t *tokenizer, json_t *root) {
    json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    const char *type = json_text(model, "type");
    if (!json_is_object(model)) FAIL(STATUS_INVALID, "'model' is missing");
    if (*type && strcmp(type, "BPE") != 0)
        FAIL(STATUS_INVALID, "'model.type' is '%s'; only byte-level BPE is supported", type);
    if (json_is_true(json_object_get(model, "byte_fallback")))
        FAIL(STATUS_INVALID, "'model.byte_fallback' is not supported; only byte-level BPE is");
    if (*json_text(model, "continuing_subword_prefix") || *json_text(model, "end_of_word_suffix"))
        FAIL(STATUS_INVALID, "'model.continuing_subword_prefix' and 'model.end_of_word_suffix' are not supported");
    if (json_number_value(json_object_get(model, "dropout")) != 0)
        FAIL(STATUS_INVALID, "'model.dropout' is not supported: it makes tokens random");
    json_t *vocabulary = json_object_get(model, "vocab");
    TRY(read_vocabulary(tokenizer, vocabulary, added));
    for (int b = 0; b < 256 && *json_text(model, "unk_token"); b++)
        if (tokenizer->byte_id[b] < 0)
            FAIL(STATUS_INVALID,
                 "'model.vocab' has no token for the byte 0x%02x, so 'model.unk_token' would be needed, "
                 "which is not supported",
                 (unsigned)b);
    TRY(read_merges(tokenizer, vocabulary, json_object_get(model, "merges")));
    tokenizer->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    if (tokenizer->ignore_merges) TRY(read_words(tokenizer, vocabulary));
    return STATUS_OK;
}

// ---- normaliser, pre-tokenizer, decoder ----

static status_t read_normalizer(tokenizer_t *tokenizer, const json_t *value) {
    static const char *const name[] = {"", "NFC", "NFD", "NFKC", "NFKD"};
    if (!json_is_set(value)) return STATUS_OK;
    const char *type = json_text(value, "type");
    const json_t *list = json_object_get(value, "normalizers");
    if (strcmp(type, "Sequence") == 0 && json_array_size(list) == 0) return STATUS_OK;
    if (strcmp(type, "Sequence") == 0 && json_array_size(list) == 1)
        return read_normalizer(tokenizer, json_array_get(list, 0));
    for (int form = NORMAL_NFC; form <= NORMAL_NFKD; form++)
        if (strcmp(type, name[form]) == 0) {
            tokenizer->form = (normal_form_t)form;
            return STATUS_OK;
        }
    FAIL(STATUS_INVALID, "the normalizer '%s' is not supported (NFC, NFD, NFKC and NFKD are)", type);
}

// Oniguruma's meaning in PCRE2's words: \s is White_Space in both engines' Unicode mode but for U+180E. What differs
// more is refused.
static status_t translate_pattern(const char *pattern, char *out, size_t bytes) {
    size_t used = 0;
    for (const char *c = pattern; *c; c++) {
        const char *piece = NULL;
        if (used + 32 > bytes) FAIL(STATUS_INVALID, "a pattern of the pre_tokenizer is too long");
        if (*c == '\\' && c[1]) {
            if (strchr("wWbBhHRXkgGzZAKQE", c[1]))
                FAIL(STATUS_INVALID, "the pre_tokenizer's pattern '%.200s' uses '\\%c', which is not supported",
                     pattern, c[1]);
            piece = c[1] == 's' ? "\\p{White_Space}" : c[1] == 'S' ? "\\P{White_Space}" : NULL;
            if (!piece) out[used++] = *c;
            c++;
        }
        if (piece) {
            memcpy(out + used, piece, strlen(piece));
            used += strlen(piece);
        } else {
            out[used++] = *c;
        }
    }
    out[used] = 0;
    return STATUS_OK;
}

static status_t add_stage(tokenizer_t *tokenizer, const char *pattern, bool drop_matches, bool drop_gaps) {
    if (tokenizer->stages == TOKENIZER_STAGES)
        FAIL(STATUS_INVALID, "the pre_tokenizer has more than %d steps", TOKENIZER_STAGES);
    size_t bytes = 18 * strlen(pattern) + 64;
    if (bytes > PATTERN_LIMIT) FAIL(STATUS_INVALID, "a pattern of the pre_tokenizer is too long");
    char *translated;
    TRY(memory_allocate(bytes, 1, (void **)&translated));
    status_t status = translate_pattern(pattern, translated, bytes);
    int code = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code *regex = NULL;
    if (!status) {
        regex =
            pcre2_compile((PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &offset, NULL);
        if (!regex) {
            PCRE2_UCHAR why[128] = "";
            pcre2_get_error_message(code, why, sizeof(why));
            status = STATUS_NEW(STATUS_INVALID, "the pre_tokenizer's pattern '%.200s' is not understood: %s", pattern,
                                (char *)why);
        }
    }
    free(translated);
    if (status) return status;
    pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE); // where there is no JIT, matching is slower and the same
    tokenizer->stage[tokenizer->stages++] =
        (split_stage_t){.regex = regex, .drop_matches = drop_matches, .drop_gaps = drop_gaps};
    return STATUS_OK;
}

// Writes a literal string as a pattern.
static status_t add_literal_stage(tokenizer_t *tokenizer, const char *text, bool drop_matches, bool drop_gaps) {
    char *pattern;
    TRY(memory_allocate(2 * strlen(text) + 1, 1, (void **)&pattern));
    size_t used = 0;
    for (const char *c = text; *c; c++) {
        if (strchr("\\^$.[]|()?*+{}-#", *c)) pattern[used++] = '\\';
        pattern[used++] = *c;
    }
    status_t status = add_stage(tokenizer, pattern, drop_matches, drop_gaps);
    free(pattern);
    return status;
}

static status_t read_split(tokenizer_t *tokenizer, const json_t *value) {
    const json_t *pattern = json_object_get(value, "pattern");
    const char *behavior = json_text(value, "behavior");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    bool invert = json_is_true(json_object_get(value, "invert")), removed = strcmp(behavior, "Removed") == 0;
    if (!removed && strcmp(behavior, "Isolated") != 0)
        FAIL(STATUS_INVALID, "the pre_tokenizer's split behavior '%s' is not supported (Isolated and Removed are)",
             behavior);
    if (regex) return add_stage(tokenizer, regex, removed && !invert, removed && invert);
    if (literal && *literal) return add_literal_stage(tokenizer, literal, removed && !invert, removed && invert);
    FAIL(STATUS_INVALID, "a Split of the pre_tokenizer has no pattern");
}

static status_t read_pre_tokenizer(tokenizer_t *tokenizer, const json_t *value, bool *byte_level) {
    const char *type = json_text(value, "type");
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        json_t *item;
        json_array_foreach(json_object_get(value, "pretokenizers"), i, item) {
            if (strcmp(json_text(item, "type"), "Sequence") == 0)
                FAIL(STATUS_INVALID, "the pre_tokenizer has a Sequence within a Sequence, which is not supported");
            TRY(read_pre_tokenizer(tokenizer, item, byte_level));
        }
        return STATUS_OK;
    }
    if (*byte_level) FAIL(STATUS_INVALID, "the pre_tokenizer has a step after ByteLevel, which is not supported");
    if (strcmp(type, "Split") == 0) return read_split(tokenizer, value);
    if (strcmp(type, "Digits") == 0)
        return add_stage(tokenizer, json_is_true(json_object_get(value, "individual_digits")) ? "\\p{N}" : "\\p{N}+",
                         false, false);
    if (strcmp(type, "ByteLevel") != 0)
        FAIL(STATUS_INVALID, "the pre_tokenizer '%s' is not supported (Split, Digits and ByteLevel are)", type);
    *byte_level = true;
    if (!json_is_false(json_object_get(value, "add_prefix_space")))
        FAIL(STATUS_INVALID, "the pre_tokenizer ByteLevel has 'add_prefix_space', which is not supported");
    if (json_is_false(json_object_get(value, "use_regex"))) return STATUS_OK;
    return add_stage(tokenizer, gpt2_pattern, false, false);
}

static status_t read_post_processor(const json_t *value) {
    const char *type = json_text(value, "type");
    if (!json_is_set(value) || strcmp(type, "ByteLevel") == 0) return STATUS_OK;
    if (strcmp(type, "Sequence") == 0) {
        size_t i;
        json_t *item;
        json_array_foreach(json_object_get(value, "processors"), i, item) {
            if (strcmp(json_text(item, "type"), "ByteLevel") != 0)
                FAIL(STATUS_INVALID, "the post_processor '%s' is not supported", json_text(item, "type"));
        }
        return STATUS_OK;
    }
    FAIL(STATUS_INVALID, "the post_processor '%s' is not supported (ByteLevel is)", type);
}

static status_t read_pipeline(tokenizer_t *tokenizer, const json_t *root) {
    bool byte_level = false;
    TRY(read_normalizer(tokenizer, json_object_get(root, "normalizer")));
    TRY(read_pre_tokenizer(tokenizer, json_object_get(root, "pre_tokenizer"), &byte_level));
    if (!byte_level) FAIL(STATUS_INVALID, "the pre_tokenizer has no ByteLevel step; only byte-level BPE is supported");
    TRY(read_post_processor(json_object_get(root, "post_processor")));
    const char *decoder = json_text(json_object_get(root, "decoder"), "type");
    if (strcmp(decoder, "ByteLevel") != 0)
        FAIL(STATUS_INVALID, "the decoder '%s' is not supported (ByteLevel is)", decoder);
    return STATUS_OK;
}

// ---- added tokens ----

static int added_compare(const void *left, const void *right) {
    const added_token_t *a = left, *b = right;
    int first = (uint8_t)a->pattern[0] - (uint8_t)b->pattern[0];
    if (first) return first;
    if (a->length != b->length) return a->length < b->length ? 1 : -1;
    return strcmp(a->pattern, b->pattern);
}

static void added_sort(added_tokens_t *added) {
    if (added->count) qsort(added->token, (size_t)added->count, sizeof(*added->token), added_compare);
    int at = 0;
    for (int byte = 0; byte <= 256; byte++) {
        while (at < added->count && (uint8_t)added->token[at].pattern[0] < byte) at++;
        added->start[byte] = at;
    }
}

static status_t read_added(tokenizer_t *tokenizer, const json_t *root) {
    json_t *list = json_object_get(root, "added_tokens"), *item;
    const json_t *vocabulary = json_object_get(json_object_get(root, "model"), "vocab");
    size_t i;
    TRY(ALLOCATE(&tokenizer->raw.token, json_array_size(list)));
    TRY(ALLOCATE(&tokenizer->normalised.token, json_array_size(list)));
    json_array_foreach(list, i, item) {
        const char *text = json_text(item, "content");
        size_t length = strlen(text);
        if (!length) continue;
        const json_t *known = json_object_get(vocabulary, text);
        int32_t id = (int32_t)json_integer_value(known ? known : json_object_get(item, "id"));
        bool special = json_is_true(json_object_get(item, "special"));
        TRY(read_entry(tokenizer, text, length, id, special));
        bool normalised = json_is_true(json_object_get(item, "normalized"));
        char *normal = NULL;
        size_t normal_length = length;
        if (normalised) TRY(tokenizer_normalise(tokenizer->form, text, length, &normal, &normal_length));
        char *pattern = NULL;
        status_t status = memory_copy_bytes(normal ? normal : text, normal_length, &pattern);
        free(normal);
        if (status) return status;
        added_tokens_t *added = normalised ? &tokenizer->normalised : &tokenizer->raw;
        added->token[added->count++] = (added_token_t){
            .pattern = pattern,
            .length = normal_length,
            .id = id,
            .special = special,
            .single_word = json_is_true(json_object_get(item, "single_word")),
            .strip_left = json_is_true(json_object_get(item, "lstrip")),
            .strip_right = json_is_true(json_object_get(item, "rstrip")),
        };
    }
    added_sort(&tokenizer->raw);
    added_sort(&tokenizer->normalised);
    return STATUS_OK;
}

// ---- opening and closing ----

static status_t read_all(tokenizer_t *tokenizer, const char *path) {
    char *text;
    size_t size;
    json_error_t error;
    TRY(file_read_whole(path, FILE_LIMIT, &text, &size));
    json_t *root = json_loadb(text, size, 0, &error);
    free(text);
    if (!root) FAIL(STATUS_INVALID, "line %d: %s", error.line, error.text);
    status_t status = STATUS_OK;
    if (!json_is_object(root)) status = STATUS_NEW(STATUS_INVALID, "the file holds no JSON object");
    if (!status) status = read_pipeline(tokenizer, root);
    if (!status) status = read_model(tokenizer, root);
    if (!status) status = read_added(tokenizer, root);
    json_decref(root);
    return status;
}

status_t tokenizer_open(const char *directory, tokenizer_t **out) {
    tokenizer_t *tokenizer;
    *out = NULL;
    size_t bytes = strlen(directory) + 32;
    char *path;
    TRY(memory_allocate(bytes, 1, (void **)&path));
    snprintf(path, bytes, "%s/tokenizer.json", directory);
    status_t status = ALLOCATE(&tokenizer, 1);
    if (!status) {
        tokenizer->limits = pcre2_match_context_create(NULL);
        if (tokenizer->limits) {
            pcre2_set_match_limit(tokenizer->limits, MATCH_LIMIT);
            status = read_all(tokenizer, path);
        } else {
            status = STATUS_NEW(STATUS_MEMORY, "out of memory");
        }
        if (status) tokenizer_close(tokenizer);
    }
    if (status && !strstr(status_message(status), path)) status = status_context(status, "%s", path);
    free(path);
    if (!status) *out = tokenizer;
    return status;
}

static void added_free(added_tokens_t *added) {
    for (int i = 0; i < added->count; i++) free(added->token[i].pattern);
    free(added->token);
}

void tokenizer_close(tokenizer_t *tokenizer) {
    if (!tokenizer) return;
    for (int id = 0; id < tokenizer->size && tokenizer->entry; id++) {
        free(tokenizer->entry[id].text);
        free(tokenizer->entry[id].bytes);
    }
    free(tokenizer->entry);
    free(tokenizer->merge);
    free(tokenizer->word);
    added_free(&tokenizer->raw);
    added_free(&tokenizer->normalised);
    for (int i = 0; i < tokenizer->stages; i++) pcre2_code_free(tokenizer->stage[i].regex);
    pcre2_match_context_free(tokenizer->limits);
    free(tokenizer);
}
