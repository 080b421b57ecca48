// Which samples share a pack: first fit, longest first.
#include "common/data/packed.h"

#include <stdlib.h>

typedef struct entry {
    int item, length;
} entry_t;

static int entry_compare(const void *a, const void *b) {
    const entry_t *x = a, *y = b;
    if (x->length != y->length) return y->length > x->length ? 1 : -1;
    return x->item - y->item;
}

// Puts each sample into the first pack that has room; pack_of[item] and plan->tokens are filled.
static int place(const entry_t *entry, int count, int max_tokens, int *pack_of, int64_t *tokens) {
    int packs = 0;
    for (int i = 0; i < count; i++) {
        int pack = 0;
        while (pack < packs && tokens[pack] + entry[i].length > max_tokens) pack++;
        if (pack == packs) tokens[packs++] = 0;
        tokens[pack] += entry[i].length;
        pack_of[entry[i].item] = pack;
    }
    return packs;
}

status_t pack_plan_make(const int *lengths, int count, int max_tokens, pack_plan_t *out) {
    entry_t *entry = NULL;
    int *pack_of = NULL;
    *out = (pack_plan_t){0};
    for (int i = 0; i < count; i++) {
        if (lengths[i] < 1) FAIL(STATUS_INVALID, "sample %d of the batch has %d tokens", i, lengths[i]);
        if (lengths[i] > max_tokens)
            FAIL(STATUS_INVALID,
                 "a sample of %d tokens does not fit a pack of %d; raise sft.pack_tokens or pack the data with a "
                 "smaller --max-length",
                 lengths[i], max_tokens);
    }
    status_t status = ALLOCATE(&entry, count);
    if (!status) status = ALLOCATE(&pack_of, count);
    if (!status) status = ALLOCATE(&out->tokens, count);
    if (!status) status = ALLOCATE(&out->item, count);
    if (!status) status = ALLOCATE(&out->pack_start, count + 1);
    if (!status) {
        for (int i = 0; i < count; i++) entry[i] = (entry_t){.item = i, .length = lengths[i]};
        qsort(entry, (size_t)count, sizeof(*entry), entry_compare);
        out->packs = place(entry, count, max_tokens, pack_of, out->tokens);
        int filled = 0;
        for (int p = 0; p < out->packs; p++) {
            for (int i = 0; i < count; i++)
                if (pack_of[i] == p) out->item[filled++] = i;
            out->pack_start[p + 1] = filled;
        }
    }
    free(entry);
    free(pack_of);
    if (status) pack_plan_free(out);
    return status;
}

void pack_plan_free(pack_plan_t *plan) {
    free(plan->tokens);
    free(plan->item);
    free(plan->pack_start);
    *plan = (pack_plan_t){0};
}
