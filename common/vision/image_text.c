#include "common/vision/image_text.h"

#include <stdlib.h>
#include <string.h>

// Gemma-3's template writes the token that begins a picture; the others write the token of one feature row.
int image_text_mark(const image_rules_t *rules) {
    return rules->processor == PROCESSOR_GEMMA3 ? rules->vision_start : rules->image_token;
}

static void add(char **at, const char *word, int times) {
    size_t length = strlen(word);
    for (int i = 0; i < times; i++, *at += length) memcpy(*at, word, length);
}

// One picture or crop of Gemma-3.
static void add_run(char **at, const char *image, const char *start, const char *end, int tokens) {
    add(at, "\n\n", 1);
    add(at, start, 1);
    add(at, image, tokens);
    add(at, end, 1);
    add(at, "\n\n", 1);
}

status_t image_text_expand(const image_rules_t *rules, const image_shape_t *shape, const char *image, const char *start,
                           const char *end, char **out) {
    static const char original[] = "Here is the original image ",
                      crops[] = " and here are some crops to help you see better ";
    bool framed = rules->processor == PROCESSOR_GEMMA3;
    int runs = framed && shape->runs > 0 ? shape->runs : 1, tokens = shape->feature_rows / runs;
    if (tokens < 1 || tokens * runs != shape->feature_rows)
        FAIL(STATUS_INVALID, "a picture becomes %d tokens in %d runs, which cannot be", shape->feature_rows, runs);
    size_t bytes = (size_t)shape->feature_rows * strlen(image);
    if (framed) bytes += (size_t)runs * (strlen(start) + strlen(end) + 5) + sizeof(original) + sizeof(crops);
    TRY(memory_allocate(bytes + 1, 1, (void **)out));
    char *at = *out;
    if (!framed) {
        add(&at, image, tokens);
        return STATUS_OK;
    }
    if (runs > 1) add(&at, original, 1);
    add_run(&at, image, start, end, tokens);
    if (runs > 1) add(&at, crops, 1);
    for (int run = 1; run < runs; run++) {
        if (run > 1) add(&at, " ", 1);
        add_run(&at, image, start, end, tokens);
    }
    return STATUS_OK;
}
