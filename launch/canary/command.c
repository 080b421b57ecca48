// `poise canary`: arguments, the folder, the table.
#include "common/store/store.h"
#include "launch/canary/canary.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_USER_SETTINGS = 40, USER_SAMPLES = 16 };

typedef struct canary_arguments {
    const char *file, *output, *model;
    const char *user[MOST_USER_SETTINGS];
    int users;
    int64_t threads;
    bool wanted[CANARIES], injected[CANARIES], only;
} canary_arguments_t;

static status_t read_names(const char *option, const char *text, bool out[CANARIES]) {
    while (*text) {
        size_t length = strcspn(text, ",");
        int k = 0;
        while (k < CANARIES && (strlen(canary_name((canary_kind_t)k)) != length ||
                                strncmp(text, canary_name((canary_kind_t)k), length) != 0))
            k++;
        if (k == CANARIES)
            FAIL(STATUS_INVALID,
                 "poise canary %s: there is no canary '%.*s'; there are lr0, ratio, length, segments, images", option,
                 (int)length, text);
        out[k] = true;
        text += length + (text[length] == ',');
    }
    return STATUS_OK;
}

static status_t arguments_read(int argc, char **argv, canary_arguments_t *a) {
    static const struct option options[] = {
        {"config", 1, NULL, 'c'}, {"set", 1, NULL, 's'},   {"only", 1, NULL, 'o'},    {"inject", 1, NULL, 'i'},
        {"output", 1, NULL, 'd'}, {"model", 1, NULL, 'm'}, {"threads", 1, NULL, 't'}, {NULL, 0, NULL, 0}};
    *a = (canary_arguments_t){.threads = 1};
    opterr = 0;
    optind = 1;
    for (int letter; (letter = getopt_long(argc, argv, ":c:", options, NULL)) != -1;) {
        if (letter == 'c')
            a->file = optarg;
        else if (letter == 'd')
            a->output = optarg;
        else if (letter == 'm')
            a->model = optarg;
        else if (letter == 't')
            TRY(argument_whole("threads", optarg, 1, 1024, &a->threads));
        else if (letter == 'i')
            TRY(read_names("--inject", optarg, a->injected));
        else if (letter == 'o') {
            a->only = true;
            TRY(read_names("--only", optarg, a->wanted));
        } else if (letter == 's' && a->users < MOST_USER_SETTINGS)
            a->user[a->users++] = optarg;
        else if (letter == 's')
            FAIL(STATUS_INVALID, "poise canary takes --set at most %d times", MOST_USER_SETTINGS);
        else
            FAIL(STATUS_INVALID, "poise canary does not take '%s' like this; 'poise canary --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (optind < argc) FAIL(STATUS_INVALID, "poise canary does not take '%s'", argv[optind]);
    if (a->users && !a->file) FAIL(STATUS_INVALID, "poise canary takes --set together with -c FILE only");
    if (a->file && (a->wanted[CANARY_LENGTH] || a->wanted[CANARY_IMAGES]))
        FAIL(STATUS_INVALID, "the canaries length and images bring their own model and data; leave -c out for them");
    for (int k = 0; !a->only && k < CANARIES; k++)
        a->wanted[k] = !a->file || (k != CANARY_LENGTH && k != CANARY_IMAGES);
    for (int k = 0; k < CANARIES; k++)
        if (a->injected[k] && !a->wanted[k])
            FAIL(STATUS_INVALID, "--inject %s: that canary is not among those that run", canary_name((canary_kind_t)k));
    return STATUS_OK;
}

// ---- starting ----

static bool under_launcher(void) {
    static const char *const mark[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "SLURM_STEP_ID"};
    for (size_t i = 0; i < sizeof(mark) / sizeof(mark[0]); i++)
        if (getenv(mark[i])) return true;
    return false;
}

// Becomes `mpirun -n 4 poise canary ...` with what launch/env sets. Returns only where there is no mpirun.
static status_t become_mpirun(int argc, char **argv) {
    static const char *const set[][2] = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                         {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                         {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                         {"OMPI_MCA_hwloc_base_binding_policy", "none"}};
    char program[4096], mpirun[] = "mpirun", count_option[] = "-n", count[] = "4";
    char **arguments;
    TRY(own_path(program));
    TRY(ALLOCATE(&arguments, argc + 5));
    arguments[0] = mpirun;
    arguments[1] = count_option;
    arguments[2] = count;
    arguments[3] = program;
    for (int i = 0; i < argc; i++) arguments[4 + i] = argv[i];
    for (size_t i = 0; i < sizeof(set) / sizeof(set[0]); i++) setenv(set[i][0], set[i][1], 0);
    execvp(mpirun, arguments);
    free(arguments);
    FAIL(STATUS_UNAVAILABLE,
         "poise canary wants a few ranks, and mpirun was not found (%s); start it as 'launch/run -n 4 "
         "canary', 'mpirun -n 4 poise canary' or 'srun -n 4 poise canary'",
         strerror(errno));
}

// The quickstart's model folder lies where the program was built from, or below the current folder.
static status_t find_model(const char *given, char out[FOLDER_BYTES]) {
    char program[4096], candidate[3][4300];
    TRY(own_path(program));
    *strrchr(program, '/') = 0;
    snprintf(candidate[0], sizeof(candidate[0]), "%s", given ? given : "configs/quickstart");
    snprintf(candidate[1], sizeof(candidate[1]), "%s/../../configs/quickstart", program);
    snprintf(candidate[2], sizeof(candidate[2]), "%s/../share/poise/quickstart", program);
    for (int i = 0; i < (given ? 1 : 3); i++) {
        char *whole = realpath(candidate[i], NULL), tokenizer[4400];
        snprintf(tokenizer, sizeof(tokenizer), "%s/tokenizer.json", whole ? whole : "");
        bool good = whole && strlen(whole) < FOLDER_BYTES && !access(tokenizer, R_OK);
        if (good) snprintf(out, FOLDER_BYTES, "%s", whole);
        free(whole);
        if (good) return STATUS_OK;
    }
    FAIL(STATUS_INVALID, "%s is no model folder; name the folder configs/quickstart of Poise by --model",
         given ? given : "configs/quickstart");
}

static status_t folder_make(canary_t *c, const char *output) {
    if (!output) {
        const char *base = getenv("TMPDIR");
        snprintf(c->folder, sizeof(c->folder), "%s/poise-canary.XXXXXX", base && *base ? base : "/tmp");
        if (!mkdtemp(c->folder)) FAIL(STATUS_IO, "cannot make a folder like %s: %s", c->folder, strerror(errno));
        c->temporary = true;
        return STATUS_OK;
    }
    TRY(file_make_directory(output));
    char *whole = realpath(output, NULL);
    bool fits = whole && strlen(whole) < FOLDER_BYTES - 100;
    if (fits) snprintf(c->folder, sizeof(c->folder), "%s", whole);
    free(whole);
    if (!fits) FAIL(STATUS_INVALID, "the path %s cannot be used", output);
    DIR *folder = opendir(c->folder);
    int entries = 0;
    while (folder && readdir(folder)) entries++;
    if (folder) closedir(folder);
    if (entries > 2) FAIL(STATUS_INVALID, "the folder %s is not empty; name another by --output", output);
    return STATUS_OK;
}

static int remove_entry(const char *path, const struct stat *information, int type, struct FTW *at) {
    (void)information, (void)type, (void)at;
    return remove(path);
}

// What rank 0 finds out before the first run, for all ranks.
typedef struct start_note {
    char folder[FOLDER_BYTES], model[FOLDER_BYTES], sentence[1024];
    int samples, with_segments, failed; // failed: the kind of the error
} start_note_t;

static status_t prepare_first(canary_t *c, const canary_arguments_t *a) {
    char path[FOLDER_BYTES + 64], prefix[FOLDER_BYTES + 64];
    if (!a->output && comm_hosts(c->world) > 1)
        FAIL(STATUS_INVALID, "the ranks are on several nodes; name a folder that all of them reach by --output");
    TRY(folder_make(c, a->output));
    snprintf(path, sizeof(path), "%s/data", c->folder);
    TRY(file_make_directory(path));
    if (c->file) {
        snprintf(prefix, sizeof(prefix), "%s/data/user", c->folder);
        return canary_make_excerpts(c->config.data.train, prefix, USER_SAMPLES, &c->samples, &c->with_segments);
    }
    TRY(find_model(a->model, c->model));
    TRY(canary_make_data(c));
    snprintf(path, sizeof(path), "%s/data/traces.h5", c->folder);
    snprintf(prefix, sizeof(prefix), "%s/data/traces", c->folder);
    return canary_make_excerpts(path, prefix, 1 << 20, &c->samples, &c->with_segments);
}

static status_t prepare(canary_t *c, const canary_arguments_t *a) {
    start_note_t note = {0};
    status_t status = STATUS_OK;
    if (c->first) {
        status = prepare_first(c, a);
        note.samples = c->samples;
        note.with_segments = c->with_segments;
        memcpy(note.folder, c->folder, sizeof(note.folder));
        memcpy(note.model, c->model, sizeof(note.model));
        if (status) {
            note.failed = (int)status_kind(status);
            snprintf(note.sentence, sizeof(note.sentence), "%s", status_message(status));
        }
    }
    status = status_first(status, comm_broadcast(c->world, &note, sizeof(note), 0, "preparing the canaries"));
    TRY(status);
    if (note.failed) FAIL((status_kind_t)note.failed, "%s", note.sentence);
    c->samples = note.samples;
    c->with_segments = note.with_segments;
    memcpy(c->folder, note.folder, sizeof(note.folder));
    memcpy(c->model, note.model, sizeof(note.model));
    char path[FOLDER_BYTES + 64];
    snprintf(path, sizeof(path), "%s/log.txt", c->folder);
    c->log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    return STATUS_OK;
}

// ---- the end ----

static const char *verdict_name(verdict_t verdict) {
    static const char *const name[] = {"PASS", "FAIL", "SKIP"};
    return name[verdict];
}

static void print_table(const canary_t *c) {
    size_t measured = strlen("measured"), expected = strlen("expected");
    for (int i = 0; i < c->rows; i++) {
        size_t m = strlen(c->row[i].measured), e = strlen(c->row[i].expected);
        measured = m > measured ? m : measured;
        expected = e > expected ? e : expected;
    }
    printf("%-17s %-4s  %-*s  %s\n", "canary", "", (int)measured, "measured", "expected");
    for (int i = 0; i < c->rows; i++)
        printf("%-17s %-4s  %-*s  %s\n", c->row[i].name, verdict_name(c->row[i].verdict), (int)measured,
               c->row[i].measured, c->row[i].expected);
    for (int k = 0; k < CANARIES; k++)
        if (c->injected[k]) printf("injected: the fault that %s is there to find\n", canary_name((canary_kind_t)k));
    fflush(stdout);
}

static status_t write_json(const canary_t *c, int failed) {
    json_t *rows = json_array(), *injected = json_array();
    for (int i = 0; i < c->rows; i++)
        json_array_append_new(rows,
                              json_pack("{s:s, s:s, s:s, s:s}", "name", c->row[i].name, "measured", c->row[i].measured,
                                        "expected", c->row[i].expected, "verdict", verdict_name(c->row[i].verdict)));
    for (int k = 0; k < CANARIES; k++)
        if (c->injected[k]) json_array_append_new(injected, json_string(canary_name((canary_kind_t)k)));
    json_t *all = json_pack("{s:b, s:i, s:o, s:o}", "passed", failed == 0, "ranks", comm_size(c->world), "injected",
                            injected, "canaries", rows);
    char *text = all ? json_dumps(all, JSON_INDENT(1)) : NULL, path[FOLDER_BYTES + 64];
    json_decref(all);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing the results");
    snprintf(path, sizeof(path), "%s/canary.json", c->folder);
    status_t status = file_write_whole(path, text, strlen(text));
    free(text);
    return status;
}

// Rank 0: the table, the file, and the sentence where something failed.
static status_t report(canary_t *c, status_t *verdict) {
    char names[512] = "";
    int failed = 0;
    print_table(c);
    for (int i = 0; i < c->rows; i++) {
        if (c->row[i].verdict != VERDICT_FAIL) continue;
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", failed ? ", " : "", c->row[i].name);
        failed++;
    }
    TRY(write_json(c, failed));
    if (failed)
        *verdict =
            STATUS_NEW(STATUS_FAILED,
                       "%d of %d canaries failed: %s; do not train with this installation before the cause is found",
                       failed, c->rows, names);
    return STATUS_OK;
}

// A rank that is lost ends all: what the watch finds out is said where the user looks, not in the log of a run.
static void conclude(void *context, int exit_code, const char *sentence) {
    const canary_t *c = context;
    dprintf(c->user_messages, "poise: %s\n", sentence);
    status_t run = STATUS_NEW(exit_code == 2 ? STATUS_INVALID : STATUS_FAILED, "%s", sentence);
    status_free(result_for_launcher(run));
    status_free(run);
}

static status_t watch_ranks(canary_t *c, watch_t *watch) {
    char *public_key = NULL, *secret_key = NULL;
    bool apart = comm_hosts(c->world) > 1;
    status_t status = apart ? job_share_keys(c->world, &public_key, &secret_key) : STATUS_OK;
    watch_options_t options = {.role = "canary",
                               .essential = true,
                               .link = {.public_key = public_key,
                                        .secret_key = secret_key,
                                        .heartbeat_s = 30,
                                        .max_message = 1 << 20,
                                        .window = 64},
                               .bind = apart ? "tcp://*:*" : "tcp://127.0.0.1:*",
                               .start_s = 120,
                               .conclude = conclude,
                               .context = c};
    if (!status) status = watch_join(watch, c->world, &options);
    free(public_key);
    if (secret_key) explicit_bzero(secret_key, strlen(secret_key));
    free(secret_key);
    TRY(status);
    watch_phase(watch, "running canaries", 0);
    return STATUS_OK;
}

static status_t canary_all(canary_t *c, const canary_arguments_t *a, watch_t *watch, status_t *verdict) {
    if (comm_size(c->world) < 2) FAIL(STATUS_INVALID, "poise canary wants two ranks or more: launch/run -n 4 canary");
    if (a->file) {
        TRY(config_read(a->file, a->user, a->users, &c->config));
        if (!*c->config.data.train)
            FAIL(STATUS_INVALID, "%s names no data.train for the canaries to learn from", a->file);
    }
    TRY(watch_ranks(c, watch));
    TRY(prepare(c, a));
    TRY(canary_check(c));
    if (!c->first) return STATUS_OK;
    TRY(report(c, verdict));
    return result_for_launcher(*verdict);
}

static status_t canary_command(int argc, char **argv) {
    canary_arguments_t arguments;
    status_t verdict = STATUS_OK;
    TRY(arguments_read(argc, argv, &arguments));
    if (!under_launcher()) return become_mpirun(argc, argv);
    canary_t *c;
    TRY(ALLOCATE(&c, 1));
    c->file = arguments.file;
    c->user = arguments.user;
    c->users = arguments.users;
    c->threads = (int)arguments.threads;
    c->log = -1;
    memcpy(c->wanted, arguments.wanted, sizeof(c->wanted));
    memcpy(c->injected, arguments.injected, sizeof(c->injected));
    c->user_messages = dup(STDERR_FILENO);
    watch_t *watch;
    TRY(job_hold_signals());
    TRY(watch_open(&watch));
    watch_phase(watch, "starting MPI", 120);
    TRY(comm_open_world(120, watch, &c->world));
    comm_set_deadline(c->world, 3600);
    c->first = comm_world_rank(c->world) == 0;
    status_t status = canary_all(c, &arguments, watch, &verdict);
    // After a failure the folder stays: its log tells more.
    if (c->log >= 0) close(c->log);
    if (!status && !verdict && c->temporary) (void)nftw(c->folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (verdict && c->temporary)
        dprintf(c->user_messages, "poise: the runs of the canaries are kept in %s\n", c->folder);
    config_free(&c->config);
    status = status_first(world_end(c->world, watch, status), verdict);
    watch_close(watch);
    if (c->user_messages >= 0) close(c->user_messages);
    free(c);
    return status;
}

status_t command_canary(int argc, char **argv) {
    status_t status = canary_command(argc, argv);
    if (status) result_before_world(status);
    return status;
}
