// A small packed file made of tests/goldens/score: its model folder, its pictures, and samples of all shapes.
#ifndef TESTS_LIB_PACKED_FIXTURE_H
#define TESTS_LIB_PACKED_FIXTURE_H

#include "common/data/packed.h"
#include "common/store/store.h"
#include "tests/lib/check.h"

#define PACKED_FIXTURE_MODEL POISE_SOURCE_DIR "/tests/goldens/score/model"

// One JSON line: with or without a picture, with a trace, without one, or with a bare answer.
static inline void packed_fixture_line(FILE *file, int i, bool response) {
    static const char *const pictures[] = {"rgb_60x44.png", "rgba.png", "lossy.webp"};
    static const char *const items[] = {"bag", "boot", "dress", "sneaker", "pullover"};
    const char *item = items[i % 5];
    fprintf(file,
            "{\"id\": \"sample-%d\", \"answer\": \"%d\", \"kind\": \"count\", \"messages\": [{\"role\": \"user\", ", i,
            i % 4);
    if (i % 3 == 0) {
        fprintf(file, "\"content\": \"How many %s are in the picture? %s\"}", item, i % 2 ? "Think first." : "");
    } else {
        fprintf(file,
                "\"content\": [{\"type\": \"image\", \"image\": \"%s/tests/goldens/score/pictures/%s\"}, {\"type\": "
                "\"text\", \"text\": \"How many %s?\"}]}",
                POISE_SOURCE_DIR, pictures[i % 3 == 1 ? i % 2 : 2], item);
    }
    if (response && i % 7 == 6) {
        fprintf(file, ", {\"role\": \"assistant\", \"content\": \"%d\"}", i % 4);
    } else if (response) {
        fprintf(file, ", {\"role\": \"assistant\", \"content\": \"<think>");
        for (int k = 0; k <= i % 4; k++) fprintf(file, "row %d: %s %d. ", k + 1, item, k);
        fprintf(file, "</think><answer>%d</answer>\"}", i % 4);
    }
    fprintf(file, "]}\n");
}

// Writes FOLDER/train.jsonl and packs it into FOLDER/train.h5.
static inline void packed_fixture_make(const char *folder, int samples, bool response) {
    char input[512], output[512];
    snprintf(input, sizeof(input), "%s/train.jsonl", folder);
    snprintf(output, sizeof(output), "%s/train.h5", folder);
    FILE *file = fopen(input, "w");
    assert_non_null(file);
    for (int i = 0; i < samples; i++) packed_fixture_line(file, i, response);
    fclose(file);
    packed_options_t options = {.input = input,
                                .output = output,
                                .model = PACKED_FIXTURE_MODEL,
                                .max_length = 512,
                                .require_response = response};
    packed_counts_t counts;
    CHECK_OK(packed_make(&options, stderr, &counts));
    assert_int_equal(counts.samples, samples);
}

#endif
