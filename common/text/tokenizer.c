// Encoding: text is cut at added tokens, normalised, cut by the pre-tokenizer's steps, and each piece goes to the
// model.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <stdlib.h>
#include <string.h>

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

status_t encoder_emit(encoder_t *encoder, int32_t id, size_t first, size_t last) {
    if (encoder->at + last > INT32_MAX) FAIL(STATUS_INVALID, "the text is too long to be tokenised");
    return token_list_add(encoder->out, id, (int32_t)(encoder->at + first), (int32_t)(encoder->at + last));
}

static void encoder_free(encoder_t *encoder) {
    pcre2_match_data_free(encoder->match);
    for (int i = 0; i < TOKENIZER_STEPS; i++) {
        free(encoder->splits[i].at);
        free(encoder->rewritten[i].data);
    }
    free(encoder->word.data);
    free(encoder->normal.data);
    free(encoder->symbol);
    free(encoder->heap);
    free(encoder->best);
}

static status_t encode(const tokenizer_t *tokenizer, const char *text, size_t length, bool parse_special,
                       const char *given, token_list_t *out) {
    encoder_t encoder = {.tokenizer = tokenizer,
                         .out = out,
                         .parse_special = parse_special && !tokenizer->split_special,
                         .given = given};
    int count = out->count;
    if (length > TOKENIZER_TEXT_LIMIT)
        FAIL(STATUS_INVALID, "the text has %zu bytes, more than the %d that can be tokenised", length,
             TOKENIZER_TEXT_LIMIT);
    size_t valid = utf8_valid(text, length);
    if (valid != length) FAIL(STATUS_INVALID, "the text is not UTF-8 at byte %zu", valid);
    encoder.match = pcre2_match_data_create(1, NULL);
    status_t status = encoder.match ? encoder_text(&encoder, text, length)
                                    : STATUS_NEW(STATUS_MEMORY, "out of memory while tokenising");
    encoder_free(&encoder);
    if (status) out->count = count;
    return status;
}

status_t tokenizer_encode(const tokenizer_t *tokenizer, const char *text, size_t length, bool parse_special,
                          token_list_t *out) {
    return encode(tokenizer, text, length, parse_special, NULL, out);
}

status_t tokenizer_encode_marked(const tokenizer_t *tokenizer, const char *text, const char *given, size_t length,
                                 token_list_t *out) {
    return encode(tokenizer, text, length, true, given, out);
}

status_t tokenizer_encode_whole(const tokenizer_t *tokenizer, const char *text, const char *given, size_t length,
                                token_list_t *out) {
    int count = out->count;
    status_t status = STATUS_OK;
    for (int i = 0; i < tokenizer->befores && !status; i++) status = token_list_add(out, tokenizer->before[i], 0, 0);
    if (!status) status = encode(tokenizer, text, length, true, given, out);
    int32_t end = out->count ? out->offset[2 * out->count - 1] : 0;
    for (int i = 0; i < tokenizer->afters && !status; i++) status = token_list_add(out, tokenizer->after[i], end, end);
    if (status) out->count = count;
    return status;
}

int tokenizer_size(const tokenizer_t *tokenizer) {
    return tokenizer->size;
}

const char *tokenizer_spelling(const tokenizer_t *tokenizer, int32_t id, bool *special) {
    if (id < 0 || id >= tokenizer->size || !tokenizer->entry[id].text) return NULL;
    if (special) *special = tokenizer->entry[id].special;
    return tokenizer->entry[id].text;
}

int32_t tokenizer_find(const tokenizer_t *tokenizer, const char *token) {
    for (int i = 0; i < tokenizer->added_count; i++) {
        int32_t id = tokenizer->added[i].id;
        if (strcmp(tokenizer->entry[id].text, token) == 0) return id;
    }
    return -1;
}
