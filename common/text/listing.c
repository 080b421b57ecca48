#include "common/text/listing.h"

#include <stdlib.h>
#include <string.h>

// A piece of a listing: the start of a row, an item word of it, or the end of the text.
typedef enum piece_kind { PIECE_END, PIECE_ROW, PIECE_WORD } piece_kind_t;
typedef struct piece {
    piece_kind_t kind;
    const char *start; // of the row's number, or of the word
    size_t length;
} piece_t;
typedef struct reader {
    const char *at, *end;
    bool in_row;
} reader_t;

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static char lower(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

// Letters, and all bytes of characters beyond ASCII.
static bool is_letter(char c) {
    return (lower(c) >= 'a' && lower(c) <= 'z') || (unsigned char)c >= 0x80;
}

static int compare(const char *a, size_t a_length, const char *b, size_t b_length) {
    for (size_t i = 0; i < a_length && i < b_length; i++) {
        int difference = (unsigned char)lower(a[i]) - (unsigned char)lower(b[i]);
        if (difference) return difference;
    }
    return (a_length > b_length) - (a_length < b_length);
}

// "row", blanks, a number, blanks, ':' behind `start`; moves the reader behind it.
static bool read_row(reader_t *reader, const char *start, size_t length, piece_t *out) {
    if (compare(start, length, "row", 3) != 0) return false;
    const char *at = start + length, *end = reader->end;
    while (at < end && *at == ' ') at++;
    const char *number = at;
    while (at < end && is_digit(*at)) at++;
    size_t digits = (size_t)(at - number);
    while (at < end && *at == ' ') at++;
    if (!digits || at == end || *at != ':') return false;
    *out = (piece_t){PIECE_ROW, number, digits};
    reader->at = at + 1;
    reader->in_row = true;
    return true;
}

static piece_t next_piece(reader_t *reader) {
    piece_t piece;
    while (reader->at < reader->end) {
        const char *start = reader->at;
        if (!is_letter(*start)) {
            bool decimal = *start == '.' && reader->at + 1 < reader->end && is_digit(start[1]);
            if ((*start == '.' && !decimal) || *start == '\n') reader->in_row = false;
            reader->at++;
            continue;
        }
        while (reader->at < reader->end && is_letter(*reader->at)) reader->at++;
        size_t length = (size_t)(reader->at - start);
        if (read_row(reader, start, length, &piece)) return piece;
        if (reader->in_row) return (piece_t){PIECE_WORD, start, length};
    }
    return (piece_t){.kind = PIECE_END};
}

// The place of a word among the ascending ones, or where it would stand.
static size_t find(const listing_words_t *words, const char *word, size_t length, bool *found) {
    size_t low = 0, high = words->count;
    *found = false;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare(words->word[middle], strlen(words->word[middle]), word, length);
        if (order == 0) *found = true;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void listing_words_free(listing_words_t *words) {
    for (size_t i = 0; i < words->count; i++) free(words->word[i]);
    free(words->word);
    *words = (listing_words_t){0};
}

status_t listing_words_add(listing_words_t *words, const char *gold) {
    reader_t reader = {.at = gold, .end = gold + strlen(gold)};
    for (piece_t piece = next_piece(&reader); piece.kind != PIECE_END; piece = next_piece(&reader)) {
        bool found;
        if (piece.kind != PIECE_WORD) continue;
        size_t place = find(words, piece.start, piece.length, &found);
        if (found) continue;
        char *word;
        TRY(memory_grow((void **)&words->word, &words->capacity, words->count + 1, sizeof(*words->word)));
        TRY(memory_copy_bytes(piece.start, piece.length, &word));
        for (size_t i = 0; i < piece.length; i++) word[i] = lower(word[i]);
        memmove(words->word + place + 1, words->word + place, (words->count - place) * sizeof(*words->word));
        words->word[place] = word;
        words->count++;
    }
    return STATUS_OK;
}

static piece_t next_known(reader_t *reader, const listing_words_t *words) {
    for (;;) {
        bool found;
        piece_t piece = next_piece(reader);
        if (piece.kind != PIECE_WORD) return piece;
        find(words, piece.start, piece.length, &found);
        if (found) return piece;
    }
}

bool listing_equal(const listing_words_t *words, const char *text, size_t length, const char *gold) {
    reader_t said = {.at = text, .end = text + length}, right = {.at = gold, .end = gold + strlen(gold)};
    bool any = false;
    for (;;) {
        piece_t a = next_known(&said, words), b = next_known(&right, words);
        if (a.kind != b.kind) return false;
        if (a.kind == PIECE_END) return any;
        if (compare(a.start, a.length, b.start, b.length) != 0) return false;
        any = true;
    }
}
