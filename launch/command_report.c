// poise report: tables and plots over evaluated configurations.
#include "common/store/store.h"
#include "launch/commands.h"
#include "launch/report_gnuplot.h"
#include "launch/report_parts.h"

#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FILE_WIDTH = 160, MAX_NOTE_BYTES = 1 << 20, MAX_NAME_BYTES = 40 };
enum { OUTPUT = 1, SEED, TITLE, NOTE, CONTROL };

typedef struct options {
    const char *output, *title, *note, *shuffled;
    int64_t seed;
} options_t;

static status_t read_options(int argc, char **argv, options_t *out) {
    static const struct option names[] = {
        {"output", required_argument, NULL, OUTPUT},   {"seed", required_argument, NULL, SEED},
        {"title", required_argument, NULL, TITLE},     {"note", required_argument, NULL, NOTE},
        {"control", required_argument, NULL, CONTROL}, {NULL, 0, NULL, 0}};
    *out = (options_t){.title = "Evaluation report"};
    opterr = 0;
    optind = 0; // resets getopt, also where a program calls this more than once
    for (int letter; (letter = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (letter == OUTPUT)
            out->output = optarg;
        else if (letter == SEED)
            TRY(argument_whole("seed", optarg, 0, INT64_MAX, &out->seed));
        else if (letter == TITLE)
            out->title = optarg;
        else if (letter == NOTE)
            out->note = optarg;
        else if (letter == CONTROL && !strncmp(optarg, "shuffled=", 9) && optarg[9])
            out->shuffled = optarg + 9;
        else if (letter == CONTROL)
            FAIL(STATUS_INVALID, "--control takes shuffled=EVAL_DIR, not '%s'", optarg);
        else
            FAIL(STATUS_INVALID, "poise report does not take '%s'; 'poise --help' shows what it takes",
                 argv[optind - 1]);
    }
    if (!out->output || !*out->output) FAIL(STATUS_INVALID, "poise report wants --output DIR");
    if (optind >= argc)
        FAIL(STATUS_INVALID, "poise report wants one NAME=EVAL_DIR[,RUN_DIR...] or more, in the order of the rows");
    return STATUS_OK;
}

static bool is_name(const char *text, size_t length) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
    return length > 0 && length <= MAX_NAME_BYTES && strspn(text, allowed) >= length;
}

// The index of a run folder, read when it is met first.
static status_t find_run(report_t *report, const char *directory, int *out) {
    char path[PATH_MAX], known[PATH_MAX];
    if (!realpath(directory, path)) FAIL(STATUS_INVALID, "there is no run folder %s", directory);
    for (int r = 0; r < report->runs; r++) {
        *out = r;
        if (realpath(report->run[r].directory, known) && !strcmp(path, known)) return STATUS_OK;
    }
    if (report->runs >= REPORT_MAX_RUNS) FAIL(STATUS_INVALID, "a report takes at most %d run folders", REPORT_MAX_RUNS);
    TRY(report_run_read(directory, &report->run[report->runs]));
    if (!report->run[report->runs].lines) report_warn(report, "%s/metrics.jsonl is empty", directory);
    *out = report->runs++;
    return STATUS_OK;
}

// A run is called after the row that names it first; where a row brings several, after its folder too.
static void label_runs(report_t *report, const report_row_t *row) {
    int fresh = 0;
    for (int i = 0; i < row->runs; i++) fresh += !*report->run[row->run[i]].label;
    for (int i = 0; i < row->runs; i++) {
        report_run_t *run = &report->run[row->run[i]];
        if (*run->label) continue;
        const char *slash = strrchr(run->directory, '/'), *folder = slash && slash[1] ? slash + 1 : run->directory;
        if (fresh == 1)
            snprintf(run->label, sizeof(run->label), "%s", row->name);
        else
            snprintf(run->label, sizeof(run->label), "%s/%.50s", row->name, folder);
    }
}

// NAME=EVAL_DIR[,RUN_DIR...]; `text` is cut at its '=' and commas.
static status_t read_row(report_t *report, char *text) {
    char *equals = strchr(text, '=');
    if (!equals || !is_name(text, (size_t)(equals - text)))
        FAIL(STATUS_INVALID,
             "a row is NAME=EVAL_DIR[,RUN_DIR...] with a name of letters, digits and _ . - (at most %d), not '%s'",
             MAX_NAME_BYTES, text);
    if (report->rows >= REPORT_MAX_ROWS) FAIL(STATUS_INVALID, "a report takes at most %d rows", REPORT_MAX_ROWS);
    *equals = 0;
    for (int i = 0; i < report->rows; i++)
        if (!strcmp(report->row[i].name, text)) FAIL(STATUS_INVALID, "there are two rows named %s", text);
    report_row_t *row = &report->row[report->rows];
    row->name = text;
    char *rest = equals + 1, *directory = strsep(&rest, ",");
    TRY(report_evaluation_read(directory, &row->evaluation));
    report->rows++;
    if (row->evaluation.shuffle_images > 0)
        report_warn(report, "%s was evaluated with shuffled images: a control, not a result", row->name);
    while ((directory = strsep(&rest, ","))) {
        if (!*directory) continue;
        if (row->runs >= REPORT_MAX_RUNS) FAIL(STATUS_INVALID, "the row %s has too many run folders", row->name);
        TRY(find_run(report, directory, &row->run[row->runs]));
        row->runs++;
    }
    label_runs(report, row);
    return STATUS_OK;
}

static status_t gather(report_t *report, const options_t *options, int argc, char **argv) {
    for (int i = optind; i < argc; i++) TRY(read_row(report, argv[i]));
    if (!report->row[0].evaluation.has_images)
        report_warn(report, "the samples do not say which picture they are about, so the intervals take every question "
                            "for one about a picture of its own");
    for (int i = 1; i < report->rows; i++)
        if (!report_same_questions(&report->row[0].evaluation, &report->row[i].evaluation))
            report_warn(report, "%s was evaluated on other questions than %s", report->row[i].name,
                        report->row[0].name);
    if (options->shuffled) {
        TRY(report_evaluation_read(options->shuffled, &report->shuffled));
        report->has_shuffled = true;
    }
    if (options->note) {
        size_t size;
        TRY(file_read_whole(options->note, MAX_NOTE_BYTES, &report->note, &size));
    }
    return gnuplot_version(&report->gnuplot);
}

// ---- writing ----

typedef status_t (*printer_t)(const report_t *report, FILE *stream);

static status_t print_json(const report_t *report, FILE *stream) {
    if (json_dumpf(report->json, stream, JSON_INDENT(1) | JSON_REAL_PRECISION(15)))
        FAIL(STATUS_MEMORY, "out of memory while writing the report");
    fputc('\n', stream);
    return STATUS_OK;
}

static status_t print_text(const report_t *report, FILE *stream) {
    return report_print_text(report, FILE_WIDTH, stream);
}

static status_t write_file(const report_t *report, const char *name, printer_t print) {
    char path[REPORT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    if (!stream) FAIL(STATUS_MEMORY, "out of memory while writing the report");
    status_t status = print(report, stream);
    bool bad = ferror(stream);
    bad |= fclose(stream) != 0;
    if (!status && bad) status = STATUS_NEW(STATUS_MEMORY, "out of memory while writing the report");
    snprintf(path, sizeof(path), "%s/%s", report->output, name);
    if (!status) status = file_write_whole(path, text, size);
    free(text);
    return status;
}

static status_t add_lists(report_t *report) {
    json_t *plots = json_array(), *warnings = json_array();
    bool bad = json_object_set_new(report->json, "plots", plots) != 0;
    bad |= json_object_set_new(report->json, "warnings", warnings) != 0;
    for (int i = 0; !bad && i < report->plots; i++)
        if (report->plot[i].drawn)
            bad |= json_array_append_new(plots, json_sprintf("plots/%s.svg", report->plot[i].name)) != 0;
    for (int i = 0; !bad && i < report->warnings; i++)
        bad |= json_array_append_new(warnings, json_string(report->warning[i])) != 0;
    if (bad) FAIL(STATUS_FAILED, "cannot put the report's notes into JSON (text that is no UTF-8, or no memory)");
    return STATUS_OK;
}

// Columns of the terminal that standard output is; as many as the file has when it is none.
static int terminal_width(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col < 20) return FILE_WIDTH;
    return size.ws_col;
}

static status_t make(report_t *report, const options_t *options, int argc, char **argv) {
    TRY(gather(report, options, argc, argv));
    TRY(file_make_directory(report->output));
    TRY(report_compute(report));
    TRY(report_draw(report));
    TRY(add_lists(report));
    TRY(write_file(report, "report.html", report_print_html));
    TRY(write_file(report, "report.txt", print_text));
    TRY(write_file(report, "report.json", print_json)); // last: whoever finds it finds the others
    TRY(report_print_text(report, terminal_width(), stdout));
    printf("\nwritten: %s/report.{json,txt,html}%s\n", report->output, report->gnuplot ? " and plots/" : "");
    fflush(stdout);
    return STATUS_OK;
}

static void close_report(report_t *report) {
    for (int i = 0; i < report->rows; i++) report_evaluation_free(&report->row[i].evaluation);
    for (int i = 0; i < report->runs; i++) report_run_free(&report->run[i]);
    for (int i = 0; i < report->warnings; i++) free(report->warning[i]);
    report_evaluation_free(&report->shuffled);
    json_decref(report->json);
    free(report->gnuplot);
    free(report->note);
    free(report);
}

status_t command_report(int argc, char **argv) {
    options_t options;
    report_t *report;
    TRY(read_options(argc, argv, &options));
    TRY(ALLOCATE(&report, 1));
    report->output = options.output;
    report->title = options.title;
    report->seed = (uint64_t)options.seed;
    status_t status = make(report, &options, argc, argv);
    close_report(report);
    return status;
}
