// `poise word-problems`: arithmetic word problems as JSON Lines.
//
// sft.jsonl    problems with simulated traces
// rl.jsonl     problems with answers, no traces
// dev.jsonl    the same, for choosing settings
// test.jsonl   the same, for the numbers that are reported
#include "common/store/store.h"
#include "launch/commands.h"
#include "launch/word_problems/problem.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <string.h>

// What the model is told before each problem; the base model is asked in the same words.
static const char instruction[] = "Solve it. Reply with <think>steps</think><answer>number</answer>.";

static const char *const split_names[PROBLEM_SPLITS] = {"sft", "rl", "dev", "test"};

static status_t write_line(file_writer_t *lines, problem_split_t split, int64_t number, const problem_t *problem) {
    char id[64], answer[16], turn[2 * PROBLEM_BYTES];
    snprintf(id, sizeof(id), "%s-%lld", split_names[split], (long long)number);
    snprintf(answer, sizeof(answer), "%d", problem->answer);
    snprintf(turn, sizeof(turn), "<think>%s</think><answer>%s</answer>", problem->trace, answer);
    json_t *messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "system", "content", instruction, "role", "user",
                                 "content", problem->text);
    if (messages && split == PROBLEM_SFT)
        json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "assistant", "content", turn));
    json_t *line = json_pack("{s:s, s:o, s:s, s:s}", "id", id, "messages", messages, "answer", answer, "kind",
                             problem->steps == 2 ? "two_steps" : "three_steps");
    bool good = line && !json_dumpf(line, lines->stream, JSON_COMPACT) && putc('\n', lines->stream) != EOF;
    json_decref(line);
    if (!good) FAIL(STATUS_IO, "cannot write '%s': %s", lines->path, strerror(errno));
    return STATUS_OK;
}

static status_t make_split(const char *folder, int64_t seed, problem_split_t split, int64_t count) {
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/%s.jsonl", folder, split_names[split]) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %s is too long", folder);
    file_writer_t lines = {0};
    TRY(file_writer_open(path, &lines));
    status_t status = STATUS_OK;
    for (int64_t i = 0; !status && i < count; i++) {
        draws_t draws = {.seed = (uint64_t)seed, .item = (uint64_t)i, .split = (uint32_t)split};
        problem_t problem;
        problem_make(&draws, split, &problem);
        status = write_line(&lines, split, i, &problem);
    }
    if (!status) status = file_writer_finish(&lines);
    file_writer_close(&lines);
    return status;
}

status_t command_word_problems(int argc, char **argv) {
    const char *output = NULL;
    int64_t seed = 0, count[PROBLEM_SPLITS] = {4096, 4096, 200, 500};
    static const struct option options[] = {{"output", 1, NULL, 'o'}, {"seed", 1, NULL, 'n'}, {"sft", 1, NULL, 's'},
                                            {"rl", 1, NULL, 'r'},     {"dev", 1, NULL, 'd'},  {"test", 1, NULL, 't'},
                                            {NULL, 0, NULL, 0}};
    int64_t *number[128] = {['n'] = &seed,
                            ['s'] = &count[PROBLEM_SFT],
                            ['r'] = &count[PROBLEM_RL],
                            ['d'] = &count[PROBLEM_DEV],
                            ['t'] = &count[PROBLEM_TEST]};
    int index = 0;
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, "", options, &index)) != -1;) {
        if (letter == 'o')
            output = optarg;
        else if (letter > 0 && letter < 128 && number[letter])
            TRY(argument_whole(options[index].name, optarg, 0, 100000000, number[letter]));
        else
            FAIL(STATUS_INVALID, "poise word-problems does not take '%s'", argv[optind - 1]);
    }
    if (!output || optind < argc)
        FAIL(STATUS_INVALID, "poise word-problems wants --output DIR and nothing without a --name");
    TRY(file_make_directory(output));
    for (problem_split_t split = 0; split < PROBLEM_SPLITS; split++) TRY(make_split(output, seed, split, count[split]));
    return STATUS_OK;
}
