// poise replay: does a logged step of a run again and compares bits.
#include "launch/commands.h"
#include "learner/learner.h"

#include <getopt.h>
#include <stdlib.h>
#include <unistd.h>

enum { STEP = 1, BAD_STEP, SET, JSON, MOST_SETTINGS = 64 };

typedef struct arguments {
    replay_options_t options;
    const char *setting[MOST_SETTINGS];
    int settings;
} arguments_t;

static status_t read_arguments(int argc, char **argv, arguments_t *out) {
    static const struct option names[] = {{"step", required_argument, NULL, STEP},
                                          {"bad-step", required_argument, NULL, BAD_STEP},
                                          {"set", required_argument, NULL, SET},
                                          {"json", no_argument, NULL, JSON},
                                          {NULL, 0, NULL, 0}};
    int64_t bad = -1;
    *out = (arguments_t){.options.step = -1};
    opterr = 0;
    optind = 0;
    for (int letter; (letter = getopt_long(argc, argv, ":", names, NULL)) != -1;) {
        if (letter == STEP)
            TRY(argument_whole("step", optarg, 1, INT64_MAX, &out->options.step));
        else if (letter == BAD_STEP)
            TRY(argument_whole("bad-step", optarg, 1, INT64_MAX, &bad));
        else if (letter == JSON)
            out->options.json = true;
        else if (letter == SET && out->settings < MOST_SETTINGS)
            out->setting[out->settings++] = optarg;
        else if (letter == SET)
            FAIL(STATUS_INVALID, "poise replay takes --set at most %d times", MOST_SETTINGS);
        else if (letter == ':')
            FAIL(STATUS_INVALID, "poise replay: '%s' wants a value", argv[optind - 1]);
        else
            FAIL(STATUS_INVALID, "poise replay does not take '%s'; 'poise replay --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (optind != argc - 1) FAIL(STATUS_INVALID, "poise replay wants one RUN folder");
    out->options.run = argv[optind];
    if ((out->options.step < 0) == (bad < 0)) FAIL(STATUS_INVALID, "poise replay wants --step N or --bad-step N");
    out->options.bad = bad > 0;
    if (out->options.bad) out->options.step = bad;
    return STATUS_OK;
}

static status_t replay_in_world(const arguments_t *arguments, comm_t *world, char sentence[512]) {
    config_t config;
    job_t job;
    TRY(learner_replay_config(&arguments->options, arguments->setting, arguments->settings, &config));
    comm_set_deadline(world, config.deadline.collective_s);
    status_t status = job_open(&config, world, false, "", &job);
    if (!status) {
        job_release_signals();
        status = learner_replay(&job, &arguments->options, sentence);
        job_close(&job);
    }
    config_free(&config);
    return status;
}

status_t command_replay(int argc, char **argv) {
    arguments_t arguments;
    comm_t *world;
    char sentence[512] = "";
    TRY(read_arguments(argc, argv, &arguments));
    TRY(comm_open_world(120, NULL, &world));
    int rank = comm_size(world) > 1 ? comm_world_rank(world) : -1;
    status_t status = replay_in_world(&arguments, world, sentence);
    if (status && rank >= 0) {
        // Collectives may hang after a failure of one rank, so the process ends here.
        int code = status_exit_code(status);
        if (code == 2 && rank > 0) sleep(3); // rank 0 says it
        status_print(status, stderr, rank, getenv("POISE_TRACE") != NULL);
        _exit(code);
    }
    status = status_first(status, comm_close_world(world));
    TRY(status);
    if (sentence[0]) FAIL(STATUS_FAILED, "%s", sentence);
    return STATUS_OK;
}
