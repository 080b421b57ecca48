// Listings: the facts a trace states about a picture, "row 1: boot, bag, sandal. row 2: dress, bag, boot."
//
// A model may write counters between the items ("row 1: boot 1, bag, boot 2."), so a trace is compared by its rows'
// item words alone. What an item word is comes from the gold listings: words that occur in none of them are passed
// over, like numbers and punctuation. A row ends at a full stop, a line's end, or the next "row N:".
#ifndef COMMON_TEXT_LISTING_H
#define COMMON_TEXT_LISTING_H

#include "kernels/base/status.h"
#include <stddef.h>

// The item words of a set of gold listings. Start from {0}; free by listing_words_free.
typedef struct listing_words {
    char **word; // lower case, ascending
    size_t count, capacity;
} listing_words_t;
void listing_words_free(listing_words_t *words);
// Adds the words of a gold listing's rows.
status_t listing_words_add(listing_words_t *words, const char *gold) STATUS_CHECKED;
// Whether the rows that `text` lists are those of `gold`: the same row numbers in the same order, each with the same
// sequence of item words. Letter case does not count. False when gold has no row.
bool listing_equal(const listing_words_t *words, const char *text, size_t length, const char *gold);

#endif
