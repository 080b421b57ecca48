// sft, grpo, eval: the commands that run as MPI jobs.
#include "common/comm/memory_share.h"
#include "common/store/store.h"
#include "launch/commands.h"
#include "learner/learner.h"
#include "rollout/rollout.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

status_t run_arguments_read(int argc, char **argv, run_arguments_t *out) {
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"set", required_argument, NULL, 's'},
                                            {"dry-run", no_argument, NULL, 'd'},
                                            {NULL, 0, NULL, 0}};
    const int most = (int)(sizeof(out->setting) / sizeof(out->setting[0]));
    *out = (run_arguments_t){0};
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, ":c:s:", options, NULL)) != -1;) {
        if (letter == 'c')
            out->file = optarg;
        else if (letter == 'd')
            out->dry_run = true;
        else if (letter == 's' && out->settings < most)
            out->setting[out->settings++] = optarg;
        else if (letter == 's')
            FAIL(STATUS_INVALID, "poise %s takes --set at most %d times; put the settings into a file for -c", argv[0],
                 most);
        else if (letter == ':')
            FAIL(STATUS_INVALID, "poise %s: '%s' wants a value", argv[0], argv[optind - 1]);
        else
            FAIL(STATUS_INVALID, "poise %s does not take '%s'; 'poise %s --help' shows what it takes", argv[0],
                 argv[optind - 1], argv[0]);
    }
    if (optind < argc)
        FAIL(STATUS_INVALID, "poise %s does not take '%s'; 'poise %s --help' shows what it takes", argv[0],
             argv[optind], argv[0]);
    return STATUS_OK;
}

status_t own_path(char out[4096]) {
    ssize_t length = readlink("/proc/self/exe", out, 4095);
    if (length <= 0) FAIL(STATUS_FAILED, "cannot find the path of this program: %s", strerror(errno));
    out[length] = 0;
    return STATUS_OK;
}

// The run's result for launchers: mpirun's own exit code is not to be trusted after a rank's death. Written by one
// rank. A dry run leaves none in the output folder.
static status_t result_write_one(const char *path, status_t run) {
    const char *state = run ? "failed" : "done";
    if (run && status_kind(run) == STATUS_CANCELLED) state = "stopped";
    json_t *result =
        json_pack("{s:i, s:s, s:s}", "exit", status_exit_code(run), "state", state, "message", status_message(run));
    char *text = result ? json_dumps(result, JSON_INDENT(1)) : NULL;
    json_decref(result);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing the result");
    status_t status = file_write_whole(path, text, strlen(text));
    free(text);
    return status;
}

status_t result_for_launcher(status_t run) {
    const char *path = getenv("POISE_RESULT");
    return path ? result_write_one(path, run) : STATUS_OK;
}

static status_t result_write(const config_t *config, bool dry_run, status_t run) {
    // The launcher's copy first: it does not depend on the run's disk, and without it the run is not done.
    status_t status = result_for_launcher(run);
    if (dry_run || !*config->output) return status;
    char path[4096];
    snprintf(path, sizeof(path), "%s/result.json", config->output);
    status_t inside = file_make_directory(config->output);
    if (!inside) inside = result_write_one(path, run ? run : status);
    return status_first(status, inside);
}

// What an earlier run in the same folder left would pass for this run's result if this one is refused or killed.
static void result_remove(const config_t *config) {
    char path[4096];
    if (!config->output || !*config->output) return;
    snprintf(path, sizeof(path), "%s/result.json", config->output);
    (void)unlink(path); // mostly there is none
}

typedef status_t (*body_t)(job_t *job, bool dry_run);

static status_t body_sft(job_t *job, bool dry_run) {
    return dry_run ? learner_print_plan(job, false, stdout) : learner_sft_run(job);
}

// A colocated rank: the learner's loop, and a worker on the same weights that runs while the learner waits.
typedef struct colocated {
    job_t *job;
    rollout_worker_t *worker;
} colocated_t;

static status_t colocated_start(void *context, model_t *model, packed_t *packed) {
    (void)packed; // the worker reads the file by itself
    colocated_t *colocated = context;
    return rollout_worker_open(colocated->job, model, &colocated->worker);
}

static status_t colocated_idle(void *context, bool *worked) {
    colocated_t *colocated = context;
    bool stopped;
    TRY(rollout_worker_step(colocated->worker, 0, &stopped));
    *worked = rollout_worker_busy(colocated->worker);
    return STATUS_OK;
}

static void colocated_end(void *context) {
    colocated_t *colocated = context;
    rollout_worker_close(colocated->worker);
    colocated->worker = NULL;
}

static status_t run_colocated(job_t *job) {
    colocated_t context = {.job = job};
    learner_colocated_t colocated = {
        .context = &context, .start = colocated_start, .idle = colocated_idle, .end = colocated_end};
    return learner_grpo_run_with(job, &colocated);
}

static status_t body_grpo(job_t *job, bool dry_run) {
    if (dry_run && job->role == ROLE_LEARNER) TRY(learner_print_plan(job, true, stdout));
    bool generates = job->role == ROLE_ROLLOUT || (job->role == ROLE_LEARNER && job->config->roles.colocated);
    if (dry_run) return generates ? rollout_print_plan(job, stdout) : STATUS_OK;
    if (job->role == ROLE_REWARD) return reward_rank_run(job);
    TRY(job_share_endpoint(job, NULL));
    if (job->role == ROLE_ROLLOUT) return rollout_worker_run(job);
    return job->config->roles.colocated ? run_colocated(job) : learner_grpo_run(job);
}

static status_t body_eval(job_t *job, bool dry_run) {
    return dry_run ? eval_print_plan(job, stdout) : eval_run(job);
}

enum { RANKS_SHOWN = 64, DEFAULT_START_S = 120 };

// What each rank of the world would do. In GRPO the last one is the reward rank, and colocated ranks do both of the
// other jobs.
static void print_ranks(const job_t *job, bool grpo, bool evaluates) {
    if (comm_world_rank(job->world)) return;
    int world = comm_size(job->world);
    for (int rank = 0; rank < world && rank < RANKS_SHOWN; rank++) {
        if (grpo && rank == world - 1)
            printf("rank %d: reward\n", rank);
        else if (grpo && job->config->roles.colocated)
            printf("rank %d: learner %d + rollout %d\n", rank, rank, rank);
        else if (rank < job->learner_count)
            printf("rank %d: %s %d\n", rank, evaluates ? "eval" : role_name(ROLE_LEARNER), rank);
        else
            printf("rank %d: rollout %d\n", rank, rank - job->learner_count);
    }
    if (world > RANKS_SHOWN) printf("and so on: %d ranks\n", world);
    fflush(stdout);
}

status_t run_one(const config_t *config, comm_t *world, run_kind_t kind) {
    static const body_t body[] = {[RUN_SFT] = body_sft, [RUN_GRPO] = body_grpo, [RUN_EVAL] = body_eval};
    job_t job = {0};
    char program[4096];
    TRY(own_path(program));
    TRY(job_open(config, world, kind == RUN_GRPO, program, &job));
    status_t status = body[kind](&job, false);
    job_close(&job);
    return status;
}

// Where the watch ends the job, the result is what it found out.
typedef struct conclusion {
    const config_t *config;
    bool dry_run;
} conclusion_t;

static void conclude(void *context, int exit_code, const char *sentence) {
    const conclusion_t *conclusion = context;
    status_t run = STATUS_NEW(exit_code == 2 ? STATUS_INVALID : STATUS_FAILED, "%s", sentence);
    status_free(result_write(conclusion->config, conclusion->dry_run, run));
    status_free(run);
    // The invitation of a reward rank that cannot take it back any more.
    char path[4096];
    snprintf(path, sizeof(path), "%s/join.json", conclusion->config->output);
    if (!conclusion->dry_run && *conclusion->config->output) (void)unlink(path);
}

static bool concluded(void *context) {
    const conclusion_t *conclusion = context;
    char path[4096];
    snprintf(path, sizeof(path), "%s/result.json", conclusion->config->output);
    return !conclusion->dry_run && *conclusion->config->output && access(path, F_OK) == 0;
}

static status_t print_memory(const job_t *job, bool evaluates) {
    char label[64];
    bool colocated = job->config->roles.colocated && job->role == ROLE_LEARNER && job->rollout_count;
    snprintf(label, sizeof(label), "%s %d%s", evaluates ? "eval" : role_name(job->role), job->role_index,
             colocated ? " + rollout" : "");
    return memory_print(job->world, label, &job->memory, stdout);
}

// From here on the ranks hear of each other's end.
static status_t join_watch(job_t *job, bool grpo, const char *role, conclusion_t *conclusion) {
    bool last = grpo && !conclusion->dry_run;
    watch_options_t options = {.host = last ? comm_size(job->world) - 1 : 0,
                               .host_role = last ? role_name(ROLE_REWARD) : role,
                               .role = role,
                               .essential = job->role != ROLE_ROLLOUT,
                               .link = job_link_options(job),
                               .bind = job_bind_endpoint(job),
                               .start_s = job->config->deadline.start_s,
                               .conclude = conclude,
                               .concluded = concluded,
                               .context = conclusion};
    return watch_join(job->watch, job->world, &options);
}

static bool result_is_there(void) {
    const char *extra = getenv("POISE_RESULT");
    return extra && access(extra, F_OK) == 0;
}

// `conclusion` must outlive the watch.
static status_t run_in_world(conclusion_t *conclusion, comm_t *world, watch_t *watch, bool grpo, body_t body) {
    const config_t *config = conclusion->config;
    bool dry_run = conclusion->dry_run;
    job_t job = {0};
    char program[4096];
    // Before the ranks meet in job_open, so before any of them can write a new one.
    if (!dry_run && !comm_world_rank(world)) result_remove(config);
    status_t status = own_path(program);
    if (!status) status = job_open(config, world, grpo, program, &job);
    bool opened = !status;
    job.watch = watch;
    if (!status) status = join_watch(&job, grpo, body == body_eval ? "eval" : role_name(job.role), conclusion);
    if (!status) job_phase(&job, "loading the model");
    if (!status && dry_run && !comm_world_rank(world)) status = config_print(config, stdout);
    if (!status && dry_run) print_ranks(&job, grpo, body == body_eval);
    if (!status) status = body(&job, dry_run);
    if (!status && dry_run) status = print_memory(&job, body == body_eval);
    // The reward rank knows best how a GRPO run ended, unless it has nothing to do; elsewhere it is rank 0.
    bool reporter = grpo && !dry_run ? job.role == ROLE_REWARD : comm_world_rank(world) == 0;
    bool failed = status && status_kind(status) != STATUS_CANCELLED;
    // The trace is for whoever changes the code; what the watch says is the sentence alone.
    if (opened && failed && getenv("POISE_TRACE")) status_print(status, stderr, comm_world_rank(world), true);
    if (failed) watch_fail(watch, status); // where the ranks have joined it does not return
    if (opened) job_phase(&job, "writing the result");
    // The result that is written next tells world_end that its sentence is said.
    int rank = comm_world_rank(world);
    if (failed && opened && reporter && rank > 0 && !result_is_there())
        status_print(status, stderr, rank, getenv("POISE_TRACE") != NULL);
    if (opened && reporter) status = status_first(status, result_write(config, dry_run, status));
    if (!failed && status && status_kind(status) != STATUS_CANCELLED) watch_fail(watch, status);
    if (opened) job_close(&job);
    return status;
}

// Everything is written. What is left is to close MPI, which ends with the others or, where one is missing, at once.
static status_t finish_world(comm_t *world, watch_t *watch, int rank, status_t status) {
    if (status && rank <= 0) status_print(status, stderr, -1, getenv("POISE_TRACE") != NULL);
    status_free(status); // rank 0 says for all that the run was asked to stop
    fflush(stdout);
    watch_finish(watch, 0);
    status_t closed = comm_close_world(world);
    if (closed && watch_finished(watch)) {
        status_free(closed);
        comm_abandon(0);
    }
    return closed;
}

// A run that ends before its ranks have joined has no coordinator to write its result; launchers want one all the same.
// rank: whose failure it is; negative: of none among several.
static void result_note(status_t status, int rank) {
    if (!getenv("POISE_RESULT") || result_is_there()) return;
    bool named = rank >= 0 && status_exit_code(status) == 1;
    status_t said = named ? STATUS_NEW(status_kind(status), "[rank %d] %s", rank, status_message(status)) : status;
    status_free(result_for_launcher(said));
    if (named) status_free(said);
}

enum { RANK_0_SPEAKS_S = 10 };

void result_before_world(status_t status) {
    // launch/run lets a rank's end be: without this all of them would say what rank 0 has said.
    if (status_exit_code(status) == 2 && comm_launcher_rank() > 0 && getenv("POISE_RESULT")) {
        for (int tenths = 0; tenths < 10 * RANK_0_SPEAKS_S && !result_is_there(); tenths++) usleep(100000);
        if (result_is_there()) _exit(2);
    }
    result_note(status, comm_launcher_size() > 1 ? comm_launcher_rank() : -1);
}

status_t world_end(comm_t *world, watch_t *watch, status_t status) {
    int rank = comm_size(world) > 1 ? comm_world_rank(world) : -1;
    if (!status || status_kind(status) == STATUS_CANCELLED) {
        status = finish_world(world, watch, rank, status);
        if (!status) return STATUS_OK;
        watch_fail(watch, status);
    }
    // Wrong use is mostly the same on every rank, and rank 0 says it; the others only if they live long enough to.
    // After any other failure collectives may hang, so the process ends here; mpirun and srun then end the other ranks.
    int code = status_exit_code(status);
    // Who only heard of another's failure gives that rank time to say it, too.
    bool heard = rank >= 0 && status_kind(status) == STATUS_PEER;
    if ((code == 2 && rank > 0) || heard) sleep(3);
    watch_phase(watch, "ending", 0);
    if ((rank <= 0 && !heard) || !result_is_there()) // another has said it
        status_print(status, stderr, code == 2 && rank <= 0 ? -1 : rank, getenv("POISE_TRACE") != NULL);
    fflush(stdout);
    result_note(status, rank);
    if (rank < 0) exit(code);
    _exit(code);
}

static status_t run_ranks(int argc, char **argv, bool grpo, body_t body) {
    run_arguments_t arguments;
    config_t config = {0};
    conclusion_t conclusion = {.config = &config};
    comm_t *world;
    watch_t *watch;
    TRY(run_arguments_read(argc, argv, &arguments));
    if (!arguments.file && !arguments.settings)
        FAIL(STATUS_INVALID, "poise %s wants -c FILE (a YAML configuration; see configs/)", argv[0]);
    conclusion.dry_run = arguments.dry_run;
    TRY(job_hold_signals());
    TRY(watch_open(&watch));
    // Read before MPI starts, for the deadline of starting it; what is wrong in it is said when all ranks are there.
    status_t status = config_read(arguments.file, arguments.setting, arguments.settings, &config);
    double start_s = status ? DEFAULT_START_S : config.deadline.start_s;
    watch_phase(watch, "starting MPI", start_s);
    status = status_first(status, comm_open_world(start_s, watch, &world));
    if (!world) {
        watch_fail(watch, status);
        PASS_ON(status);
    }
    if (!status) status = run_in_world(&conclusion, world, watch, grpo, body);
    status = world_end(world, watch, status);
    watch_close(watch);
    config_free(&config);
    return status;
}

static status_t run_job(int argc, char **argv, bool grpo, body_t body) {
    status_t status = run_ranks(argc, argv, grpo, body);
    if (status) result_before_world(status);
    return status;
}

status_t command_sft(int argc, char **argv) {
    return run_job(argc, argv, false, body_sft);
}

status_t command_grpo(int argc, char **argv) {
    return run_job(argc, argv, true, body_grpo);
}

status_t command_eval(int argc, char **argv) {
    return run_job(argc, argv, false, body_eval);
}

status_t command_config(int argc, char **argv) {
    config_t config;
    run_arguments_t arguments;
    if (argc == 2 && !strcmp(argv[1], "--reference")) {
        config_print_reference(stdout);
        return STATUS_OK;
    }
    TRY(run_arguments_read(argc, argv, &arguments));
    TRY(config_read(arguments.file, arguments.setting, arguments.settings, &config));
    status_t status = config_print(&config, stdout);
    config_free(&config);
    return status;
}

status_t command_scorer(int argc, char **argv) {
    (void)argc, (void)argv;
    return reward_scorer_main();
}
