// Unigram: of all ways to write a piece as tokens the one with the largest sum of scores (Viterbi). A character that no
// token spells costs more than any token does; neighbours of that kind become one unknown token, or their bytes.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <string.h>

static void offer(best_path_t *node, double score, int32_t id, size_t start) {
    if (node->start >= 0 && !(score > node->score)) return;
    *node = (best_path_t){.score = score, .id = id, .start = (int32_t)start};
}

static status_t find_paths(encoder_t *encoder, const char *text, size_t length) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    TRY(memory_grow((void **)&encoder->best, &encoder->best_capacity, length + 1, sizeof(*encoder->best)));
    best_path_t *best = encoder->best;
    best[0] = (best_path_t){.start = 0};
    for (size_t i = 1; i <= length; i++) best[i] = (best_path_t){.start = -1};
    for (size_t at = 0; at < length;) {
        size_t character = utf8_next(text + at, length - at, NULL, NULL, NULL);
        bool single = false;
        uint32_t node = 0;
        for (size_t end = at; end < length;) {
            node = trie_step(&tokenizer->pieces, node, (uint8_t)text[end++]);
            if (!node) break;
            int32_t id = tokenizer->pieces.value[node];
            if (id < 0) continue;
            offer(&best[end], tokenizer->score[id] + best[at].score, id, at);
            single |= end - at == character;
        }
        if (!single) {
            best_path_t *node_at = &best[at + character];
            double score = tokenizer->unknown_score + best[at].score;
            if (tokenizer->unknown < 0 && (node_at->start < 0 || score > node_at->score))
                FAIL(STATUS_INVALID, "the tokenizer has no token for a character, and no 'unk_id'");
            offer(node_at, score, tokenizer->unknown, at);
        }
        at += character;
    }
    return STATUS_OK;
}

static status_t emit_piece(encoder_t *encoder, const char *text, size_t start, size_t end) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    int32_t id = tokenizer_word(tokenizer, text + start, end - start);
    if (id >= 0) return encoder_emit(encoder, id, start, end);
    bool bytes = tokenizer->byte_fallback;
    for (size_t i = start; i < end && bytes; i++) bytes = tokenizer->fallback_id[(uint8_t)text[i]] >= 0;
    if (!bytes) return encoder_emit(encoder, tokenizer->unknown, start, end);
    for (size_t i = start; i < end; i++) TRY(encoder_emit(encoder, tokenizer->fallback_id[(uint8_t)text[i]], i, i + 1));
    return STATUS_OK;
}

status_t encoder_unigram(encoder_t *encoder, const char *text, size_t length) {
    TRY(find_paths(encoder, text, length));
    // The best path is known from its end: links are turned round to walk it from the start.
    best_path_t *best = encoder->best;
    int32_t next = -1;
    for (int32_t at = (int32_t)length; at > 0;) {
        int32_t start = best[at].start;
        best[at].start = next;
        next = at;
        at = start;
    }
    size_t start = 0;
    for (int32_t end = next; end > 0; end = best[end].start) {
        int32_t after = best[end].start;
        bool unknown = best[end].id == encoder->tokenizer->unknown;
        if (unknown && after > 0 && best[after].id == encoder->tokenizer->unknown) continue; // goes on
        TRY(emit_piece(encoder, text, start, (size_t)end));
        start = (size_t)end;
    }
    return STATUS_OK;
}
