// What the files of `poise report` share: rows (evaluations), runs (metrics), statistics, plots and pages.
#ifndef LAUNCH_REPORT_PARTS_H
#define LAUNCH_REPORT_PARTS_H

#include "kernels/base/status.h"

#include <jansson.h>
#include <stdint.h>

enum { REPORT_MAX_ROWS = 32, REPORT_MAX_RUNS = 32, REPORT_RESAMPLES = 2000, REPORT_PATH_BYTES = 4096 };

// ---- evaluations ----

typedef struct report_sample {
    int64_t index;
    char *id, *kind, *gold; // gold: the expected answer
    char *image;            // what samples on one picture share
    int cluster;            // number of `image` in the order of its text, from 0
    bool correct, invalid, truncated;
    bool has_bare, correct_bare; // the whole text taken as the answer
    bool has_listing, trace_correct;
    double tag_score, think_tokens, answer_tokens, tokens;
} report_sample_t;

// One evaluation folder of `poise eval`.
typedef struct report_evaluation {
    char *directory;
    report_sample_t *sample; // [count], ascending by id
    int64_t count;
    int clusters;
    bool has_images;        // the samples say which picture they are about
    double seconds;         // the evaluation's own time
    int64_t shuffle_images; // of its summary: > 0 for the control
} report_evaluation_t;

// Reads DIRECTORY/samples.jsonl and summary.json and checks that they agree. Errors name the file and line.
status_t report_evaluation_read(const char *directory, report_evaluation_t *out) STATUS_CHECKED;
void report_evaluation_free(report_evaluation_t *evaluation);
// A file of JSON Lines, an object a line. A last line without its newline (a run that was killed while it wrote) is
// left out when it is no JSON; any other bad line is an error.
typedef status_t (*report_line_t)(void *context, const json_t *line);
status_t report_read_lines(const char *path, report_line_t take, void *context) STATUS_CHECKED;

// ---- training runs ----

typedef struct report_series {
    char *name;
    int64_t *step;
    double *value; // what was finite
    size_t count, step_capacity, value_capacity;
} report_series_t;

typedef struct report_run {
    char *directory;
    char label[96];          // the row it belongs to, with its folder's name where a row has several
    report_series_t *series; // ascending by name
    size_t series_count, series_capacity;
    int64_t lines;
    int64_t unknown_differences;  // lines whose logprob_max_abs_diff is null: it was no number
    double first_time, last_time; // of the lines' "time"
} report_run_t;

// Reads DIRECTORY/metrics.jsonl; every number of a line is a point of the series of its name.
status_t report_run_read(const char *directory, report_run_t *out) STATUS_CHECKED;
void report_run_free(report_run_t *run);
// NULL when the run has no such series.
const report_series_t *report_run_find(const report_run_t *run, const char *name);
bool report_run_is_grpo(const report_run_t *run);
double report_series_sum(const report_series_t *series);
double report_series_largest(const report_series_t *series);
// Wall seconds of training: the sum of time/step, or what lies between the first and the last line.
double report_run_seconds(const report_run_t *run);
// Names are "time/WHAT": seconds of each step.
bool report_series_is_time(const report_series_t *series);
// Tokens a second that rollout ranks generated (rollout) or that learners trained on, over the whole run; NAN when the
// run's metrics do not tell.
double report_run_speed(const report_run_t *run, bool rollout);
// The largest |rollout log-prob - learner log-prob| of a GRPO run; NAN when its metrics do not tell, or not of every
// step.
double report_run_logprob_difference(const report_run_t *run);

// ---- statistics ----

typedef struct report_estimate {
    double value, low, high; // the mean and its 95 % interval
    double error;            // standard deviation of the resampled means
    double p;                // two-sided, that the mean is 0
} report_estimate_t;

// The mean of value[0 .. count-1] with a percentile interval over 2,000 resamples of whole clusters. cluster[i] is in
// [0, clusters). Draws are keyed by (seed, resample, draw): equal inputs give equal numbers. count 0 gives NANs.
status_t report_bootstrap(const double *value, const int *cluster, int64_t count, int clusters, uint64_t seed,
                          report_estimate_t *out) STATUS_CHECKED;
// The mean of a measure over those samples it is defined for.
typedef bool (*report_measure_t)(const report_sample_t *sample, const void *context, double *out);
status_t report_estimate(const report_evaluation_t *evaluation, report_measure_t measure, const void *context,
                         uint64_t seed, report_estimate_t *out) STATUS_CHECKED;
bool report_measure_correct(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_correct_bare(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_invalid(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_listing(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_kind(const report_sample_t *sample, const void *kind, double *out); // correct, of one kind
bool report_measure_truncated(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_tag_score(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_think_tokens(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_answer_tokens(const report_sample_t *sample, const void *unused, double *out);
bool report_measure_tokens(const report_sample_t *sample, const void *unused, double *out);
// The plain mean of a measure; NAN when it is defined for no sample.
double report_mean(const report_evaluation_t *evaluation, report_measure_t measure, const void *context);
// Whether both asked the same questions (ids and expected answers).
bool report_same_questions(const report_evaluation_t *a, const report_evaluation_t *b);
// accuracy(a) - accuracy(b) over the same questions, paired by id. STATUS_INVALID when the questions differ.
status_t report_paired(const report_evaluation_t *a, const report_evaluation_t *b, uint64_t seed,
                       report_estimate_t *out) STATUS_CHECKED;
// Kinds of question in the order of their names; *out is malloc'd, the names are the samples'.
status_t report_kinds(const report_evaluation_t *evaluation, const char ***out, int *count) STATUS_CHECKED;
// Accuracy of always giving the most frequent expected answer of the question's kind, known from the questions
// themselves: the best that one can do without looking at question or picture. With `answers`, a JSON object kind ->
// answer is made (ties: the answer first in byte order).
status_t report_majority(const report_evaluation_t *evaluation, double *out, json_t **answers) STATUS_CHECKED;

// ---- the report ----

typedef struct report_row {
    const char *name;
    report_evaluation_t evaluation;
    int run[REPORT_MAX_RUNS]; // indices into report_t.run
    int runs;
} report_row_t;

typedef struct report_plot {
    char name[32];
    char title[160];
    bool drawn; // gnuplot made NAME.svg and NAME.png
} report_plot_t;

enum { REPORT_MAX_PLOTS = 12, REPORT_MAX_WARNINGS = 32 };

typedef struct report {
    const char *output, *title;
    char *note; // text of --note, or NULL
    uint64_t seed;
    report_row_t row[REPORT_MAX_ROWS];
    int rows;
    report_run_t run[REPORT_MAX_RUNS]; // each run folder once
    int runs;
    report_evaluation_t shuffled;
    bool has_shuffled;
    report_plot_t plot[REPORT_MAX_PLOTS];
    int plots;
    char *gnuplot; // its version line, or NULL when there is none
    char *warning[REPORT_MAX_WARNINGS];
    int warnings;
    json_t *json; // the content of report.json; text and page are made from it
} report_t;

// Keeps a sentence for the end of the report. Never fails; what does not fit is left out.
void report_warn(report_t *report, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Fills report->json from rows, runs and controls.
status_t report_compute(report_t *report) STATUS_CHECKED;
// Writes plots/NAME.dat and NAME.gp and runs gnuplot on each; without gnuplot it warns.
status_t report_draw(report_t *report) STATUS_CHECKED;
// The text report; tables leave out their least important columns to fit `width`.
status_t report_print_text(const report_t *report, int width, FILE *stream) STATUS_CHECKED;
// The page: one file, nothing loaded from elsewhere.
status_t report_print_html(const report_t *report, FILE *stream) STATUS_CHECKED;
void report_escape_html(FILE *stream, const char *text);
// An SVG file's element for use inside a page: no prolog, ids prefixed so that several can share the page.
status_t report_inline_svg(FILE *stream, const char *path, const char *prefix, const char *label) STATUS_CHECKED;

#endif
