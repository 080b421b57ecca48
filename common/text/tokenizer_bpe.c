// BPE: a piece begins as its characters (or bytes), and neighbours are merged by rank, lowest first, then leftmost.
#include "common/text/tokenizer_parts.h"
#include "common/text/utf8.h"

#include <string.h>

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
    encoder->heap_count = 0;
    for (size_t i = 0; i + 1 < encoder->symbols; i++) TRY(consider(encoder, (int32_t)i));
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

static status_t add_symbol(encoder_t *encoder, int32_t id, int32_t length) {
    size_t count = encoder->symbols;
    TRY(memory_grow((void **)&encoder->symbol, &encoder->symbol_capacity, count + 1, sizeof(*encoder->symbol)));
    encoder->symbol[count] = (symbol_t){.id = id, .previous = (int32_t)count - 1, .next = -1, .length = length};
    if (count) encoder->symbol[count - 1].next = (int32_t)count;
    encoder->symbols++;
    return STATUS_OK;
}

// One character of a piece: its spelling with prefix and suffix, and how many bytes of the text it covers.
typedef struct unit {
    const char *text;
    size_t length;
    int32_t id; // of the token of this spelling, or -1
    int32_t covers;
} unit_t;

typedef struct unknown {
    bool waits; // an unknown token is not yet added: the next one may be fused with it
    int32_t length;
} unknown_t;

static status_t flush_unknown(encoder_t *encoder, unknown_t *unknown) {
    if (!unknown->waits) return STATUS_OK;
    unknown->waits = false;
    return add_symbol(encoder, encoder->tokenizer->unknown, unknown->length);
}

static status_t add_fallback(encoder_t *encoder, const unit_t *unit, bool *added) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    *added = false;
    if (!tokenizer->byte_fallback) return STATUS_OK;
    for (size_t i = 0; i < unit->length; i++)
        if (tokenizer->fallback_id[(uint8_t)unit->text[i]] < 0) return STATUS_OK;
    *added = true;
    // Of a spelling longer than what it covers (a prefix, or a byte's stand-in) the last bytes cover nothing.
    int32_t left = unit->covers;
    for (size_t i = 0; i < unit->length; i++) {
        int32_t length = left > 0;
        TRY(add_symbol(encoder, tokenizer->fallback_id[(uint8_t)unit->text[i]], length));
        left -= length;
    }
    return STATUS_OK;
}

static status_t add_unit(encoder_t *encoder, const unit_t *unit, unknown_t *unknown) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    bool added;
    if (unit->id >= 0) {
        TRY(flush_unknown(encoder, unknown));
        return add_symbol(encoder, unit->id, unit->covers);
    }
    // As in the reference an unknown token that waits stays behind the bytes.
    TRY(add_fallback(encoder, unit, &added));
    if (added) return STATUS_OK;
    if (!tokenizer->has_unknown) {
        // A character without a token adds nothing; its place goes to the token before it.
        if (encoder->symbols) encoder->symbol[encoder->symbols - 1].length += unit->covers;
        return STATUS_OK;
    }
    if (tokenizer->unknown < 0) FAIL(STATUS_INVALID, "the 'unk_token' of the tokenizer is not in its vocabulary");
    if (unknown->waits && tokenizer->fuse_unknown) {
        unknown->length += unit->covers;
        return STATUS_OK;
    }
    TRY(flush_unknown(encoder, unknown));
    *unknown = (unknown_t){.waits = true, .length = unit->covers};
    return STATUS_OK;
}

static status_t decorate(encoder_t *encoder, unit_t *unit, bool first, bool last) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    buffer_t *word = &encoder->word;
    word->length = 0;
    if (!first) TRY(buffer_append(word, tokenizer->prefix, strlen(tokenizer->prefix)));
    TRY(buffer_append(word, unit->text, unit->length));
    if (last) TRY(buffer_append(word, tokenizer->suffix, strlen(tokenizer->suffix)));
    unit->text = word->data;
    unit->length = word->length;
    unit->id = tokenizer_word(tokenizer, word->data, word->length);
    return STATUS_OK;
}

static status_t add_characters(encoder_t *encoder, const char *text, size_t length) {
    const tokenizer_t *tokenizer = encoder->tokenizer;
    bool decorated = *tokenizer->prefix || *tokenizer->suffix;
    unknown_t unknown = {0};
    encoder->symbols = 0;
    for (size_t at = 0, next; at < length; at = next) {
        uint32_t code = 0;
        char stand_in[2];
        unit_t unit = {.text = text + at};
        if (tokenizer->byte_level) {
            code = byte_level_code((uint8_t)text[at]);
            next = at + 1;
            stand_in[0] = (char)(code < 0x80 ? code : 0xc0 | code >> 6);
            stand_in[1] = (char)(0x80 | (code & 0x3f));
            unit.text = stand_in;
            unit.length = code < 0x80 ? 1 : 2;
        } else {
            next = at + utf8_next(text + at, length - at, &code, NULL, NULL);
            unit.length = next - at;
        }
        unit.covers = (int32_t)(next - at);
        if (decorated)
            TRY(decorate(encoder, &unit, !at, next == length));
        else
            unit.id = code < 512 ? tokenizer->code_id[code] : tokenizer_word(tokenizer, unit.text, unit.length);
        TRY(add_unit(encoder, &unit, &unknown));
    }
    return flush_unknown(encoder, &unknown);
}

static status_t find_whole(encoder_t *encoder, const char *text, size_t length, int32_t *id) {
    if (encoder->tokenizer->byte_level) {
        encoder->word.length = 0;
        for (size_t i = 0; i < length; i++) TRY(buffer_append_code(&encoder->word, byte_level_code((uint8_t)text[i])));
        text = encoder->word.data;
        length = encoder->word.length;
    }
    *id = tokenizer_word(encoder->tokenizer, text, length);
    return STATUS_OK;
}

status_t encoder_bpe(encoder_t *encoder, const char *text, size_t length) {
    if (encoder->tokenizer->ignore_merges) {
        int32_t whole = -1;
        TRY(find_whole(encoder, text, length, &whole));
        if (whole >= 0) return encoder_emit(encoder, whole, 0, length);
    }
    TRY(add_characters(encoder, text, length));
    if (!encoder->symbols) return STATUS_OK;
    TRY(merge_all(encoder));
    size_t at = 0;
    for (int32_t i = 0; i >= 0; i = encoder->symbol[i].next) {
        size_t end = at + (size_t)encoder->symbol[i].length;
        TRY(encoder_emit(encoder, encoder->symbol[i].id, at, end));
        at = end;
    }
    return STATUS_OK;
}
