// poise: one executable, one command a run.
#include "launch/commands.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const command_t commands[] = {
    {"sft", "-c FILE [--set KEY=VALUE]... [--dry-run]",
     "supervised fine-tuning: SCALe, fixed weights, vanilla (mpirun)", command_sft},
    {"grpo", "-c FILE [--set KEY=VALUE]... [--dry-run]", "GRPO with learner, rollout and reward ranks (mpirun)",
     command_grpo},
    {"rollout", "--join RUN | --join ENDPOINT [--keys FILE] [--set KEY=VALUE]...",
     "one more rollout worker for a running grpo job (alone or mpirun)", command_rollout},
    {"eval", "-c FILE [--set KEY=VALUE]... [--dry-run]", "greedy answers, accuracy, invalid rate (alone or mpirun)",
     command_eval},
    {"report",
     "--output DIR [--title TEXT] [--note FILE] [--seed N] [--control shuffled=EVAL_DIR] NAME=EVAL_DIR[,RUN_DIR...]...",
     "tables and plots over evaluated runs: text, JSON, HTML", command_report},
    {"pack", "--model DIR --input FILE --output FILE [--max-length N] [--prompts]", "compile data to one HDF5 file",
     command_pack},
    {"score",
     "--model DIR [--adapter DIR] --input FILE --output FILE [--temperature T] [--threads N] [--device NAME] [--dtype "
     "fp32|bf16]",
     "log-probs of given completions", command_score},
    {"generate",
     "--model DIR [--adapter DIR] --input FILE --output FILE [--max-tokens N] [--temperature T] [--seed S] [--num N] "
     "[--threads N] [--device NAME] [--dtype fp32|bf16]",
     "completions of prompts", command_generate},
    {"tokenize", "--model DIR --input FILE --output FILE", "token ids of text or messages", command_tokenize},
    {"merge", "--model DIR --adapter DIR --output DIR [--threads N]", "adapter into weights", command_merge},
    {"convert", "FILE.gguf DIR", "a GGUF file into a Hugging Face folder", command_convert},
    {"compose", "--language DIR --vision FILE.json --output DIR [--seed N] [--init-std S] [--image-token TEXT]",
     "a vision tower and projector of random weights before a language model", command_compose},
    {"replay", "RUN --step N|--bad-step N [--json] [--set KEY=VALUE]...",
     "repeat a logged GRPO step and compare bits, or find a bad step's first NaN (alone or mpirun)", command_replay},
    {"inspect", "PATH [--model DIR] [--sample N]", "what a model, adapter, data file, checkpoint or run holds",
     command_inspect},
    {"canary",
     "[--only NAME,...] [--inject NAME,...] [--output DIR] [--model DIR] [--threads N] [-c FILE [--set KEY=VALUE]...]",
     "check that training learns what it is told, and nothing else (mpirun)", command_canary},
    {"doctor", "", "check this machine and say what is wrong", command_doctor},
    {"config", "[-c FILE] [--set KEY=VALUE]... [--reference]", "print the resolved configuration, or its reference",
     command_config},
    {"quickstart-data",
     "--output DIR [--seed N] [--fashion DIR] [--base N] [--text N] [--captions N] [--sft N] [--rl N] [--dev N] "
     "[--test N] [--teacher-errors PERCENT]",
     "make the quickstart's pictures and questions", command_quickstart_data},
    {"word-problems", "--output DIR [--seed N] [--sft N] [--rl N] [--dev N] [--test N]",
     "make arithmetic word problems with simulated traces", command_word_problems},
    {"__scorer", NULL, NULL, command_scorer},
};
enum { COMMANDS = sizeof(commands) / sizeof(commands[0]) };

static void print_usage(FILE *stream) {
    fputs("usage: poise COMMAND [OPTIONS]\n\n", stream);
    for (int i = 0; i < COMMANDS; i++)
        if (commands[i].help)
            fprintf(stream, "  %-16s %s\n  %16s poise %s%s%s\n", commands[i].name, commands[i].help, "",
                    commands[i].name, *commands[i].arguments ? " " : "", commands[i].arguments);
    fputs("\nExit codes: 0 done, 1 the run failed, 2 wrong use. docs/manual.md tells the rest.\n", stream);
}

static bool wants_help(int argc, char **argv) {
    for (int i = 2; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
    return false;
}

static status_t output_failure(void) {
    FAIL(STATUS_IO, "cannot write all of the output to standard output; is the disk full, or the reader gone?");
}

// Wrong use is mostly the same on every rank: rank 0 says it, and the others only if they live long enough to.
static void let_rank_0_speak(void) {
    if (comm_launcher_rank() > 0) sleep(3);
}

// What is printed counts as done when it has left the process.
static status_t finish_output(status_t status) {
    if ((!status || !status_exit_code(status)) && (fflush(stdout) != 0 || ferror(stdout)))
        return status_first(output_failure(), status);
    return status;
}

static int end(status_t status) {
    status = finish_output(status);
    int code = status_exit_code(status);
    if (code == 2) let_rank_0_speak();
    // The trace is for whoever changes the code; users ask for it.
    status_print(status, stderr, -1, getenv("POISE_TRACE") != NULL);
    status_free(status);
    return code;
}

int main(int argc, char **argv) {
    if (argc >= 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))) {
        print_usage(stdout);
        return end(STATUS_OK);
    }
    if (argc >= 2 && !strcmp(argv[1], "--version")) {
        puts("poise " POISE_VERSION);
        return end(STATUS_OK);
    }
    const command_t *command = NULL;
    for (int i = 0; argc >= 2 && i < COMMANDS; i++)
        if (!strcmp(argv[1], commands[i].name)) command = &commands[i];
    if (!command) {
        let_rank_0_speak();
        if (argc >= 2)
            fprintf(stderr, "poise: there is no command '%s'; 'poise --help' lists them\n", argv[1]);
        else
            print_usage(stderr);
        return 2;
    }
    if (command->help && wants_help(argc, argv)) {
        printf("usage: poise %s%s%s\n\n%s; docs/manual.md tells the rest.\n", command->name,
               *command->arguments ? " " : "", command->arguments, command->help);
        return end(STATUS_OK);
    }
    return end(command->run(argc - 1, argv + 1));
}
