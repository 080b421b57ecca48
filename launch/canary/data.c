// What the canaries learn from when the user brings nothing: small coloured pictures, and a song of any length.
#include "common/data/packed.h"
#include "common/store/store.h"
#include "common/vision/image.h"
#include "kernels/base/philox.h"
#include "launch/canary/canary.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { COLOURS = 6, SIDE = 28, START_PICTURES = 384, START_SONGS = 192, TRACES = 24, SONGS = 64, QUESTIONS = 96 };
enum { LONGEST_SONG = 14, STRANDS = 8 };
static const struct {
    const char *name;
    uint8_t rgb[3];
} colour[COLOURS] = {{"red", {210, 40, 40}},     {"green", {40, 180, 60}},   {"blue", {50, 70, 220}},
                     {"yellow", {225, 215, 50}}, {"white", {235, 235, 235}}, {"black", {25, 25, 25}}};

typedef enum part { PART_START = 1, PART_TRACES, PART_SING, PART_TEST } part_t;

static uint32_t draw(part_t part, int item, int strand, uint32_t bound) {
    return philox_below(0, PHILOX_DATA, (uint64_t)part << 32 | (uint64_t)item, (uint32_t)strand, 0x6361, bound);
}

// One colour in a shade of its own, with noise, so that no two pictures are the same file.
static status_t picture_write(const char *path, part_t part, int item, int which) {
    uint8_t rgb[3 * SIDE * SIDE], *png;
    size_t size;
    int shade = (int)draw(part, item, 1, 41) - 20;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) {
        int value = colour[which].rgb[i % 3] + shade + (int)draw(part, item, STRANDS + i, 31) - 15;
        rgb[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
    image_t image = {.width = SIDE, .height = SIDE, .pixels = rgb};
    TRY(image_encode_png(&image, &png, &size));
    status_t status = file_write_whole(path, png, size);
    free(png);
    return status;
}

typedef struct lines {
    const canary_t *canary;
    const char *name;
    part_t part;
    FILE *file;
    char path[FOLDER_BYTES + 64];
} lines_t;

static status_t lines_open(const canary_t *canary, const char *name, part_t part, lines_t *out) {
    *out = (lines_t){.canary = canary, .name = name, .part = part};
    snprintf(out->path, sizeof(out->path), "%s/data/%s.jsonl", canary->folder, name);
    out->file = fopen(out->path, "we");
    if (!out->file) FAIL(STATUS_IO, "cannot write %s: %s", out->path, strerror(errno));
    return STATUS_OK;
}

static status_t line_write(lines_t *lines, int item, json_t *content, const char *turn, const char *answer) {
    char id[64];
    snprintf(id, sizeof(id), "%s-%d", lines->name, item);
    json_t *messages = json_pack("[{s:s, s:o}]", "role", "user", "content", content);
    if (messages && turn)
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "assistant", "content", turn));
    json_t *line = json_pack("{s:s, s:o, s:s}", "id", id, "messages", messages, "answer", answer);
    bool good = line && !json_dumpf(line, lines->file, JSON_COMPACT) && putc('\n', lines->file) != EOF;
    json_decref(line);
    if (!good) FAIL(STATUS_IO, "cannot write %s: %s", lines->path, strerror(errno));
    return STATUS_OK;
}

// "Which colour?" about a picture; with a trace, or as a prompt.
static status_t write_question(lines_t *lines, int item, bool trace) {
    char path[FOLDER_BYTES + 128], image[64], turn[160];
    int which = (int)draw(lines->part, item, 0, COLOURS);
    snprintf(image, sizeof(image), "%s-%d.png", lines->name, item);
    snprintf(path, sizeof(path), "%s/data/%s", lines->canary->folder, image);
    TRY(picture_write(path, lines->part, item, which));
    snprintf(turn, sizeof(turn), "<think>it is %s</think><answer>%s</answer>", colour[which].name, colour[which].name);
    json_t *content =
        json_pack("[{s:s, s:s}, {s:s, s:s}]", "type", "image", "image", image, "type", "text", "text", "Which colour?");
    return line_write(lines, item, content, trace ? turn : NULL, colour[which].name);
}

// A song goes on with probability 0.8 after each of its words: a model that has learnt it samples songs of all lengths.
static status_t write_song(lines_t *lines, int item, bool trace) {
    char turn[8 * LONGEST_SONG] = "la";
    for (int words = 1; words < LONGEST_SONG && draw(lines->part, item, words, 5); words++) strcat(turn, " la");
    json_t *content = json_pack("[{s:s, s:s}]", "type", "text", "text", "Sing.");
    return line_write(lines, item, content, trace ? turn : NULL, "la");
}

static status_t lines_pack(lines_t *lines, status_t status, bool trace) {
    if (fclose(lines->file) && !status)
        status = STATUS_NEW(STATUS_IO, "cannot write %s: %s", lines->path, strerror(errno));
    TRY(status);
    char output[FOLDER_BYTES + 64];
    snprintf(output, sizeof(output), "%s/data/%s.h5", lines->canary->folder, lines->name);
    packed_options_t options = {.input = lines->path,
                                .output = output,
                                .model = lines->canary->model,
                                .max_length = 512,
                                .require_response = trace};
    packed_counts_t counts;
    return packed_make(&options, stderr, &counts);
}

static status_t make_part(const canary_t *canary, const char *name, part_t part, int questions, int songs, bool trace) {
    lines_t lines;
    TRY(lines_open(canary, name, part, &lines));
    status_t status = STATUS_OK;
    for (int i = 0; !status && i < questions; i++) status = write_question(&lines, i, trace);
    for (int i = 0; !status && i < songs; i++) status = write_song(&lines, questions + i, trace);
    return lines_pack(&lines, status, trace);
}

status_t canary_make_data(const canary_t *canary) {
    char folder[FOLDER_BYTES + 64];
    snprintf(folder, sizeof(folder), "%s/data", canary->folder);
    TRY(file_make_directory(folder));
    TRY(make_part(canary, "start", PART_START, START_PICTURES, START_SONGS, true));
    TRY(make_part(canary, "traces", PART_TRACES, TRACES, 0, true));
    TRY(make_part(canary, "sing", PART_SING, 0, SONGS, false));
    return make_part(canary, "test", PART_TEST, QUESTIONS, 0, false);
}

static bool has_both(const packed_sample_t *sample) {
    unsigned seen = 0;
    for (int t = sample->prompt_length; t < sample->length; t++) seen |= 1u << sample->segments[t];
    return seen >> SEGMENT_THINK & 1 && seen >> SEGMENT_ANSWER & 1;
}

static status_t excerpts_of(packed_t *packed, const char *prefix, int64_t *index, int most, int *samples,
                            int *with_segments) {
    static const struct {
        const char *name;
        unsigned unlearnt;
    } excerpt[] = {{"both", 0}, {"think", 1u << SEGMENT_ANSWER}, {"answer", 1u << SEGMENT_THINK}};
    char path[FOLDER_BYTES + 128];
    int64_t count = packed_count(packed);
    *samples = *with_segments = 0;
    for (int64_t i = 0; i < count && *samples < most; i++) index[(*samples)++] = i;
    if (!*samples) FAIL(STATUS_INVALID, "data.train holds no samples");
    snprintf(path, sizeof(path), "%s.h5", prefix);
    TRY(packed_excerpt(packed, index, *samples, 0, path));
    for (int64_t i = 0; i < count && *with_segments < most; i++) {
        packed_sample_t sample;
        TRY(packed_sample(packed, i, &sample));
        if (has_both(&sample)) index[(*with_segments)++] = i;
    }
    for (size_t e = 0; *with_segments && e < sizeof(excerpt) / sizeof(excerpt[0]); e++) {
        snprintf(path, sizeof(path), "%s-%s.h5", prefix, excerpt[e].name);
        TRY(packed_excerpt(packed, index, *with_segments, excerpt[e].unlearnt, path));
    }
    return STATUS_OK;
}

status_t canary_make_excerpts(const char *data, const char *prefix, int most, int *samples, int *with_segments) {
    packed_t *packed;
    int64_t *index;
    TRY(packed_open(data, &packed));
    status_t status = ALLOCATE(&index, most);
    if (!status) {
        status = excerpts_of(packed, prefix, index, most, samples, with_segments);
        free(index);
    }
    packed_close(packed);
    return status;
}
