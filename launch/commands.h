// The commands of `poise` (docs/manual.md). Each takes its own arguments, argv[0] being its name, and returns a status;
// main.c prints it and turns it into the exit code.
#ifndef LAUNCH_COMMANDS_H
#define LAUNCH_COMMANDS_H

#include "common/comm/job.h"

typedef struct command {
    const char *name;
    const char *arguments; // for the usage line
    const char *help;
    status_t (*run)(int argc, char **argv);
} command_t;

status_t command_sft(int argc, char **argv) STATUS_CHECKED;
status_t command_grpo(int argc, char **argv) STATUS_CHECKED;
status_t command_rollout(int argc, char **argv) STATUS_CHECKED;
status_t command_eval(int argc, char **argv) STATUS_CHECKED;
status_t command_score(int argc, char **argv) STATUS_CHECKED;
status_t command_generate(int argc, char **argv) STATUS_CHECKED;
status_t command_tokenize(int argc, char **argv) STATUS_CHECKED;
status_t command_pack(int argc, char **argv) STATUS_CHECKED;
status_t command_convert(int argc, char **argv) STATUS_CHECKED;
status_t command_compose(int argc, char **argv) STATUS_CHECKED;
status_t command_merge(int argc, char **argv) STATUS_CHECKED;
status_t command_inspect(int argc, char **argv) STATUS_CHECKED;
status_t command_replay(int argc, char **argv) STATUS_CHECKED;
status_t command_report(int argc, char **argv) STATUS_CHECKED;
status_t command_doctor(int argc, char **argv) STATUS_CHECKED;
status_t command_config(int argc, char **argv) STATUS_CHECKED;
status_t command_scorer(int argc, char **argv) STATUS_CHECKED;
status_t command_quickstart_data(int argc, char **argv) STATUS_CHECKED;
status_t command_word_problems(int argc, char **argv) STATUS_CHECKED;
status_t command_canary(int argc, char **argv) STATUS_CHECKED;

// What sft, grpo and eval share: -c FILE, --set KEY=VALUE ..., --dry-run.
typedef struct run_arguments {
    const char *file;
    const char *setting[64];
    int settings;
    bool dry_run;
} run_arguments_t;
status_t run_arguments_read(int argc, char **argv, run_arguments_t *out) STATUS_CHECKED;

// One run inside a world that is open, for commands that are made of several. Collective over the world; leaves no
// result file.
typedef enum run_kind { RUN_SFT, RUN_GRPO, RUN_EVAL } run_kind_t;
status_t run_one(const config_t *config, comm_t *world, run_kind_t kind) STATUS_CHECKED;
// Closes the world at the end of a command, whose status this is, and returns what is left to be said; after a failure
// it says it and ends the process, since collectives may hang. watch: of the ranks, or NULL.
status_t world_end(comm_t *world, watch_t *watch, status_t status) STATUS_CHECKED;
// Writes how a run ended (NULL: well) to the file that POISE_RESULT names, for launch/run, which does not go by what
// mpirun returns. Nothing where there is none. `run` stays the caller's.
status_t result_for_launcher(status_t run) STATUS_CHECKED;
// The same for a command that ends without a world, unless a result is there. Wrong use is mostly the same on every
// rank: where rank 0 has left its result, and so says it, the process ends here.
void result_before_world(status_t status);
// This executable's path.
status_t own_path(char out[4096]) STATUS_CHECKED;

// Parses a whole number option; the error names it.
status_t argument_whole(const char *option, const char *text, int64_t least, int64_t most, int64_t *out) STATUS_CHECKED;
status_t argument_real(const char *option, const char *text, double least, double most, double *out) STATUS_CHECKED;

#endif
