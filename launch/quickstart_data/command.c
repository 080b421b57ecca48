// `poise quickstart-data`: pictures and questions as JSON Lines + PNG, from Fashion-MNIST.
//
// base.jsonl   pre-training: captions, bare answers (no tags), and questions about listings given as text
// captions.jsonl   captions alone, where they are asked for (--captions)
// sft.jsonl    the simulated teacher's traces, only those whose own conclusion is right
// rl.jsonl     prompts with verified answers, no traces
// dev.jsonl    questions for choosing settings, from the train split
// test.jsonl   three questions a picture, from the test split
#include "common/store/store.h"
#include "common/vision/image.h"
#include "launch/commands.h"
#include "launch/quickstart_data/scene.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum split { SPLIT_BASE = 1, SPLIT_TEXT, SPLIT_SFT, SPLIT_RL, SPLIT_DEV, SPLIT_TEST, SPLIT_CAPTIONS } split_t;

typedef struct data_options {
    const char *output, *fashion;
    int64_t seed, base, text, captions, sft, rl, dev, test, teacher_errors;
} data_options_t;

typedef struct writer {
    const data_options_t *options;
    const char *name; // of the split
    file_writer_t lines;
} writer_t;

static status_t writer_open(writer_t *writer, const data_options_t *options, const char *name) {
    writer->options = options;
    writer->name = name;
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/%s.jsonl", options->output, name) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", options->output);
    return file_writer_open(path, &writer->lines);
}

static status_t writer_close(writer_t *writer, status_t status) {
    if (!status) status = file_writer_finish(&writer->lines);
    file_writer_close(&writer->lines);
    return status;
}

static status_t writer_image(const writer_t *writer, const scene_t *scene, const fashion_t *fashion, int64_t number,
                             char *name, size_t bytes) {
    uint8_t rgb[3 * SCENE_CELLS * FASHION_PIXELS];
    char path[4300];
    uint8_t *png = NULL;
    size_t size = 0;
    scene_paint(scene, fashion, rgb);
    image_t image = {.width = SCENE_COLUMNS * FASHION_SIDE, .height = SCENE_ROWS * FASHION_SIDE, .pixels = rgb};
    TRY(image_encode_png(&image, &png, &size));
    snprintf(name, bytes, "images/%s-%lld.png", writer->name, (long long)number);
    snprintf(path, sizeof(path), "%s/%s", writer->options->output, name);
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(png, 1, size, file) == size;
    int why = errno;
    if (file && fclose(file) && good) good = false, why = errno;
    free(png);
    if (good) return STATUS_OK;
    if (file) unlink(path); // no torn pictures
    FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(why));
}

// One line. image NULL: text only. turn NULL: a prompt without the assistant's turn.
static status_t writer_line(const writer_t *writer, int64_t number, const char *image, const question_t *question,
                            const char *text, const char *turn, const char *listing) {
    char id[64];
    snprintf(id, sizeof(id), "%s-%lld", writer->name, (long long)number);
    json_t *content = json_array(), *messages = json_array(), *options = json_array();
    if (image) json_array_append_new(content, json_pack("{s:s, s:s}", "type", "image", "image", image));
    json_array_append_new(content, json_pack("{s:s, s:s}", "type", "text", "text", text));
    json_array_append_new(messages, json_pack("{s:s, s:o}", "role", "user", "content", content));
    if (turn) json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "assistant", "content", turn));
    for (int i = 0; question->type == ASK_CHOOSE && i < 3; i++)
        json_array_append_new(options, json_string(kind_names[question->option[i]]));
    json_t *line =
        json_pack("{s:s, s:o, s:s, s:s, s:o, s:s}", "id", id, "messages", messages, "answer", question->answer, "kind",
                  question_kind(question->type), "options", options, "listing", listing);
    bool good =
        line && !json_dumpf(line, writer->lines.stream, JSON_COMPACT) && putc('\n', writer->lines.stream) != EOF;
    json_decref(line);
    if (!good) FAIL(STATUS_IO, "cannot write '%s': %s", writer->lines.path, strerror(errno));
    return STATUS_OK;
}

// What is asked, by shares of 100; see the recipe in docs/quickstart.md.
static question_type_t draw_type(draws_t *draws, const int shares[QUESTION_TYPES]) {
    int at = draws_below(draws, 100), type = 0;
    while (at >= shares[type]) at -= shares[type++];
    return (question_type_t)type;
}

// Of the questions that can be answered by notes, this many become captions with those notes: the skill that traces are
// made of. It comes late and all at once in training, so there is much of it, and half of it on listings given as text,
// where no picture is in the way.
static const double noted_share = 0.65;
static const int base_shares[QUESTION_TYPES] = {[ASK_COUNT] = 16,  [ASK_COUNT_TWO] = 12,  [ASK_POSITION] = 8,
                                                [ASK_CHOOSE] = 17, [ASK_TRUE_FALSE] = 17, [ASK_CAPTION] = 30};
static const int text_shares[QUESTION_TYPES] = {[ASK_COUNT] = 25,  [ASK_COUNT_TWO] = 20,  [ASK_POSITION] = 15,
                                                [ASK_CHOOSE] = 20, [ASK_TRUE_FALSE] = 20, [ASK_CAPTION] = 0};
static const int trace_shares[QUESTION_TYPES] = {[ASK_COUNT] = 20,  [ASK_COUNT_TWO] = 20,  [ASK_POSITION] = 0,
                                                 [ASK_CHOOSE] = 30, [ASK_TRUE_FALSE] = 30, [ASK_CAPTION] = 0};

// Draws scenes until one takes a question of the type.
static void draw_question(draws_t *draws, const fashion_t *fashion, question_type_t type, scene_t *scene,
                          question_t *question) {
    do scene_make(draws, fashion, scene);
    while (!question_make(draws, type, scene, question));
}

static status_t make_base(const data_options_t *options, const fashion_t *fashion) {
    writer_t writer = {0};
    TRY(writer_open(&writer, options, "base"));
    status_t status = STATUS_OK;
    char image[64], listing[TEXT_BYTES], text[2 * TEXT_BYTES + 2];
    int64_t total = options->base + options->text;
    for (int64_t i = 0; !status && i < total; i++) {
        bool with_image = i < options->base;
        draws_t draws = {
            .seed = (uint64_t)options->seed, .item = (uint64_t)i, .split = with_image ? SPLIT_BASE : SPLIT_TEXT};
        scene_t scene;
        question_t question;
        draw_question(&draws, fashion, draw_type(&draws, with_image ? base_shares : text_shares), &scene, &question);
        scene_listing(scene.kind, listing, sizeof(listing));
        char ask[TEXT_BYTES];
        snprintf(ask, sizeof(ask), "%s", question.text);
        if (question.type != ASK_CAPTION && question.type != ASK_POSITION && draws_chance(&draws, noted_share)) {
            noted_caption(&question, scene.kind, ask, question.answer, TEXT_BYTES);
            question.type = ASK_CAPTION;
        }
        snprintf(text, sizeof(text), "%s%s%s", with_image ? "" : listing, with_image ? "" : " ", ask);
        if (with_image) status = writer_image(&writer, &scene, fashion, i, image, sizeof(image));
        if (!status)
            status = writer_line(&writer, i, with_image ? image : NULL, &question, text, question.answer, listing);
    }
    return writer_close(&writer, status);
}

static status_t make_captions(const data_options_t *options, const fashion_t *fashion) {
    writer_t writer = {0};
    TRY(writer_open(&writer, options, "captions"));
    status_t status = STATUS_OK;
    char image[64];
    for (int64_t i = 0; !status && i < options->captions; i++) {
        draws_t draws = {.seed = (uint64_t)options->seed, .item = (uint64_t)i, .split = SPLIT_CAPTIONS};
        scene_t scene;
        question_t question;
        draw_question(&draws, fashion, ASK_CAPTION, &scene, &question);
        status = writer_image(&writer, &scene, fashion, i, image, sizeof(image));
        if (!status)
            status = writer_line(&writer, i, image, &question, question.text, question.answer, question.answer);
    }
    return writer_close(&writer, status);
}

// Traces of the teacher. Rejection: a trace is kept only when its own conclusion is the right answer.
static status_t make_sft(const data_options_t *options, const fashion_t *fashion) {
    writer_t writer = {0};
    TRY(writer_open(&writer, options, "sft"));
    status_t status = STATUS_OK;
    int64_t kept = 0, flawed = 0, drawn = 0;
    for (; !status && kept < options->sft; drawn++) {
        draws_t draws = {.seed = (uint64_t)options->seed, .item = (uint64_t)drawn, .split = SPLIT_SFT};
        char image[64], listing[TEXT_BYTES], concluded[TEXT_BYTES], trace[2 * TEXT_BYTES];
        scene_t scene;
        question_t question;
        int view[SCENE_CELLS];
        draw_question(&draws, fashion, draw_type(&draws, trace_shares), &scene, &question);
        teacher_view(&draws, (double)options->teacher_errors / 100, &scene, view);
        if (!question_answer(&question, view, concluded, sizeof(concluded)) || strcmp(concluded, question.answer))
            continue;
        scene_listing(scene.kind, listing, sizeof(listing));
        teacher_trace(&draws, &question, view, concluded, trace, sizeof(trace));
        status = writer_image(&writer, &scene, fashion, kept, image, sizeof(image));
        if (!status) status = writer_line(&writer, kept, image, &question, question.text, trace, listing);
        kept++;
        flawed += memcmp(view, scene.kind, sizeof(view)) != 0;
    }
    if (!status)
        printf("sft: kept %lld of %lld traces; %.1f %% of those kept misname something\n", (long long)kept,
               (long long)drawn, 100.0 * (double)flawed / (double)(kept ? kept : 1));
    return writer_close(&writer, status);
}

// Prompts with answers. per_image questions of different types on each picture (types in turn: counting, choosing, true
// or false).
static status_t make_prompts(const data_options_t *options, const fashion_t *fashion, const char *name, split_t split,
                             int64_t images, int per_image) {
    writer_t writer = {0};
    TRY(writer_open(&writer, options, name));
    status_t status = STATUS_OK;
    char image[64], listing[TEXT_BYTES];
    for (int64_t i = 0; !status && i < images; i++) {
        draws_t draws = {.seed = (uint64_t)options->seed, .item = (uint64_t)i, .split = split};
        scene_t scene;
        scene_make(&draws, fashion, &scene);
        scene_listing(scene.kind, listing, sizeof(listing));
        status = writer_image(&writer, &scene, fashion, i, image, sizeof(image));
        for (int p = 0; !status && p < per_image; p++) {
            static const question_type_t turns[3] = {ASK_COUNT, ASK_CHOOSE, ASK_TRUE_FALSE};
            question_t question;
            question_type_t type = per_image == 3 ? turns[p] : draw_type(&draws, trace_shares);
            if (type == ASK_COUNT && draws_chance(&draws, 0.5)) type = ASK_COUNT_TWO;
            if (!question_make(&draws, type, &scene, &question))
                status = question_make(&draws, ASK_COUNT, &scene, &question)
                             ? STATUS_OK
                             : STATUS_NEW(STATUS_FAILED, "no question fits the scene");
            if (!status)
                status = writer_line(&writer, i * per_image + p, image, &question, question.text, NULL, listing);
        }
    }
    return writer_close(&writer, status);
}

static status_t data_make(const data_options_t *options) {
    char images[4200];
    fashion_t train, test;
    snprintf(images, sizeof(images), "%s/images", options->output);
    TRY(file_make_directory(images));
    TRY(fashion_read(options->fashion, "train", &train));
    status_t status = make_base(options, &train);
    if (!status && options->captions) status = make_captions(options, &train);
    if (!status) status = make_sft(options, &train);
    if (!status) status = make_prompts(options, &train, "rl", SPLIT_RL, options->rl, 1);
    if (!status) status = make_prompts(options, &train, "dev", SPLIT_DEV, options->dev, 3);
    fashion_free(&train);
    TRY(status);
    TRY(fashion_read(options->fashion, "t10k", &test));
    status = make_prompts(options, &test, "test", SPLIT_TEST, options->test, 3);
    fashion_free(&test);
    return status;
}

status_t command_quickstart_data(int argc, char **argv) {
    data_options_t o = {.fashion = "/usr/share/datasets/fashion-mnist",
                        .base = 32000,
                        .text = 14000,
                        .sft = 10240,
                        .rl = 4096,
                        .dev = 200,
                        .test = 500,
                        .teacher_errors = 70};
    static const struct option options[] = {
        {"output", 1, NULL, 'o'}, {"fashion", 1, NULL, 'f'}, {"seed", 1, NULL, 's'},           {"base", 1, NULL, 'b'},
        {"text", 1, NULL, 'x'},   {"sft", 1, NULL, 't'},     {"captions", 1, NULL, 'c'},       {"rl", 1, NULL, 'r'},
        {"dev", 1, NULL, 'd'},    {"test", 1, NULL, 'e'},    {"teacher-errors", 1, NULL, 'w'}, {NULL, 0, NULL, 0}};
    int64_t *number[128] = {['s'] = &o.seed, ['b'] = &o.base, ['x'] = &o.text, ['c'] = &o.captions,      ['t'] = &o.sft,
                            ['r'] = &o.rl,   ['d'] = &o.dev,  ['e'] = &o.test, ['w'] = &o.teacher_errors};
    int index = 0;
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, "", options, &index)) != -1;) {
        if (letter == 'o')
            o.output = optarg;
        else if (letter == 'f')
            o.fashion = optarg;
        else if (letter < 128 && letter > 0 && number[letter])
            TRY(argument_whole(options[index].name, optarg, 0, letter == 'w' ? 100 : 100000000, number[letter]));
        else
            FAIL(STATUS_INVALID, "poise quickstart-data does not take '%s'", argv[optind - 1]);
    }
    if (!o.output || optind < argc)
        FAIL(STATUS_INVALID, "poise quickstart-data wants --output DIR and nothing without a --name");
    return data_make(&o);
}
