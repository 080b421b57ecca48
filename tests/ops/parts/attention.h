// Layouts of the attention cases, and their own check of bits: prefill, decode, pages, packing, shared prefixes.
#ifndef TESTS_OPS_PARTS_ATTENTION_H
#define TESTS_OPS_PARTS_ATTENTION_H

#include "tests/ops/parts/ops.h"

typedef enum attention_layout {
    LAYOUT_ONE,     // one causal sequence
    LAYOUT_PACKED,  // three of them
    LAYOUT_WINDOWS, // 16 rows that all see each other, and so on
    LAYOUT_SHARED,  // three that share a prefix
    LAYOUT_PAGED,   // three whose keys lie apart
    LAYOUT_FULL,    // one whose tokens all see each other
    LAYOUT_IMAGES,  // three of those
    // Causal, with image groups:
    LAYOUT_GROUPS,        // three sequences of several groups
    LAYOUT_GROUPS_LONG,   // one; a group longer than a chunk of keys right behind another
    LAYOUT_GROUPS_SHARED, // three that share a prefix with a group in it
    LAYOUT_GROUPS_PAGED,  // as LAYOUT_GROUPS, keys apart
} attention_layout_t;

// Whether a query at position `query` sees key `key` of the sequence.
bool reference_sees(const attention_mask_t *mask, int sequence, int query, int key);
// Computes queries of one sequence in every other way and compares bits; returns the failures it printed.
int attention_invariance(int heads, int kv_heads, int head_dim, int window, bool groups, const char *device);
// Hidden keys that hold NaN leave no trace, and a query that sees nothing gives zeros.
int attention_hidden(const char *device);

#endif
