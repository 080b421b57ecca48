// The content of report.json.
#include "launch/report_parts.h"

#include <hdf5.h>
#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static const char *const compared[][2] = {{"sft_grpo", "sft"},  {"scale_sft_grpo", "scale_sft"},
                                          {"scale_sft", "sft"}, {"scale_sft_grpo", "sft_grpo"},
                                          {"sft", "base"},      {"scale_sft", "base"}};
enum { COMPARED = sizeof(compared) / sizeof(compared[0]) };

void report_warn(report_t *report, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (report->warnings >= REPORT_MAX_WARNINGS) return;
    report->warning[report->warnings] = strdup(text);
    if (report->warning[report->warnings]) report->warnings++;
}

// ---- JSON helpers: a NULL value (out of memory, text that is no UTF-8) makes `set` fail ----

static json_t *real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *interval(const report_estimate_t *estimate) {
    return json_pack("[o, o]", real(estimate->low), real(estimate->high));
}

static status_t set(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value))
        FAIL(STATUS_FAILED, "cannot put '%s' into the report (text that is no UTF-8, or no memory)", key);
    return STATUS_OK;
}

static status_t append(json_t *array, json_t *value) {
    if (json_array_append_new(array, value)) FAIL(STATUS_MEMORY, "out of memory while writing the report");
    return STATUS_OK;
}

// A new member of `parent` under `key` (an object's) or at its end (an array's), borrowed.
static status_t add_member(json_t *parent, const char *key, json_t *child, json_t **out) {
    *out = child;
    return json_is_array(parent) ? append(parent, child) : set(parent, key, child);
}

// ---- rows ----

static status_t add_kinds(const report_t *report, const report_row_t *row, json_t *out) {
    const char **kinds;
    int count;
    json_t *all, *one;
    TRY(add_member(out, "by_kind", json_object(), &all));
    TRY(report_kinds(&row->evaluation, &kinds, &count));
    status_t status = STATUS_OK;
    for (int k = 0; !status && k < count; k++) {
        report_estimate_t accuracy;
        int64_t n = 0;
        for (int64_t i = 0; i < row->evaluation.count; i++) n += !strcmp(row->evaluation.sample[i].kind, kinds[k]);
        status = report_estimate(&row->evaluation, report_measure_kind, kinds[k], report->seed, &accuracy);
        if (!status) status = add_member(all, kinds[k], json_object(), &one);
        if (!status) status = set(one, "n", json_integer(n));
        if (!status) status = set(one, "accuracy", real(accuracy.value));
        if (!status) status = set(one, "accuracy_ci95", interval(&accuracy));
    }
    free(kinds);
    return status;
}

static status_t add_means(const report_row_t *row, json_t *out) {
    static const struct {
        const char *key;
        report_measure_t measure;
    } means[] = {{"invalid_rate", report_measure_invalid},
                 {"accuracy_bare", report_measure_correct_bare},
                 {"mean_think_tokens", report_measure_think_tokens},
                 {"mean_answer_tokens", report_measure_answer_tokens},
                 {"mean_tokens", report_measure_tokens},
                 {"tag_score", report_measure_tag_score},
                 {"truncated_rate", report_measure_truncated}};
    for (size_t i = 0; i < sizeof(means) / sizeof(means[0]); i++)
        TRY(set(out, means[i].key, real(report_mean(&row->evaluation, means[i].measure, NULL))));
    double correct = 0, tokens = 0;
    for (int64_t i = 0; i < row->evaluation.count; i++) {
        correct += row->evaluation.sample[i].correct;
        tokens += row->evaluation.sample[i].tokens;
    }
    return set(out, "tokens_per_correct_answer", real(correct > 0 ? tokens / correct : NAN));
}

static status_t add_row(const report_t *report, const report_row_t *row, json_t *rows) {
    json_t *out;
    report_estimate_t accuracy, listing;
    TRY(report_estimate(&row->evaluation, report_measure_correct, NULL, report->seed, &accuracy));
    TRY(report_estimate(&row->evaluation, report_measure_listing, NULL, report->seed, &listing));
    double train = 0;
    for (int i = 0; i < row->runs; i++) train += report_run_seconds(&report->run[row->run[i]]);
    TRY(add_member(rows, NULL, json_object(), &out));
    TRY(set(out, "config", json_string(row->name)));
    TRY(set(out, "accuracy", real(accuracy.value)));
    TRY(set(out, "accuracy_ci95", interval(&accuracy)));
    TRY(set(out, "accuracy_stderr", real(accuracy.error)));
    TRY(set(out, "n", json_integer(row->evaluation.count)));
    TRY(set(out, "images", json_integer(row->evaluation.clusters)));
    TRY(add_means(row, out));
    TRY(set(out, "trace_accuracy", real(listing.value)));
    TRY(set(out, "trace_accuracy_ci95", isfinite(listing.value) ? interval(&listing) : json_null()));
    TRY(add_kinds(report, row, out));
    TRY(set(out, "seconds", real(train + row->evaluation.seconds)));
    TRY(set(out, "seconds_train", real(train)));
    TRY(set(out, "seconds_evaluate", real(row->evaluation.seconds)));
    return set(out, "evaluation", json_string(row->evaluation.directory));
}

// ---- pairs and controls ----

static const report_row_t *find_row(const report_t *report, const char *name) {
    for (int i = 0; i < report->rows; i++)
        if (!strcmp(report->row[i].name, name)) return &report->row[i];
    return NULL;
}

static status_t add_pair(report_t *report, const report_row_t *a, const report_row_t *b, json_t *pairs) {
    json_t *out;
    report_estimate_t difference;
    if (!report_same_questions(&a->evaluation, &b->evaluation)) {
        report_warn(report, "%s and %s were evaluated on different questions, so they are not compared", a->name,
                    b->name);
        return STATUS_OK;
    }
    TRY(report_paired(&a->evaluation, &b->evaluation, report->seed, &difference));
    TRY(add_member(pairs, NULL, json_object(), &out));
    TRY(set(out, "a", json_string(a->name)));
    TRY(set(out, "b", json_string(b->name)));
    TRY(set(out, "difference", real(difference.value)));
    TRY(set(out, "ci95", interval(&difference)));
    TRY(set(out, "stderr", real(difference.error)));
    TRY(set(out, "p", real(difference.p)));
    return set(out, "n", json_integer(a->evaluation.count));
}

// The pairs that the five configurations are for; where there are none of them, each row with the one before it.
static status_t add_pairs(report_t *report, json_t *pairs) {
    for (int i = 0; i < COMPARED; i++) {
        const report_row_t *a = find_row(report, compared[i][0]), *b = find_row(report, compared[i][1]);
        if (a && b) TRY(add_pair(report, a, b, pairs));
    }
    bool none = !json_array_size(pairs);
    for (int i = 1; none && i < report->rows; i++) TRY(add_pair(report, &report->row[i], &report->row[i - 1], pairs));
    return STATUS_OK;
}

static status_t add_shuffled(report_t *report, const report_row_t *row, json_t *out) {
    const report_evaluation_t *shuffled = &report->shuffled;
    report_estimate_t accuracy, above;
    if (shuffled->shuffle_images < 1)
        report_warn(report, "%s was not evaluated with eval.shuffle_images above 0, so it is no control",
                    shuffled->directory);
    TRY(report_estimate(shuffled, report_measure_correct, NULL, report->seed, &accuracy));
    TRY(set(out, "shuffled_images", real(accuracy.value)));
    TRY(set(out, "shuffled_images_ci95", interval(&accuracy)));
    if (!report_same_questions(&row->evaluation, shuffled)) {
        report_warn(report, "the control with shuffled images asks other questions than %s", row->name);
        return STATUS_OK;
    }
    TRY(report_paired(&row->evaluation, shuffled, report->seed, &above));
    TRY(set(out, "above_shuffled_images", real(above.value)));
    return set(out, "above_shuffled_images_ci95", interval(&above));
}

static status_t add_controls(report_t *report, json_t *out) {
    const report_row_t *row = find_row(report, "scale_sft_grpo");
    if (!row) row = &report->row[report->rows - 1];
    double majority;
    json_t *answers;
    TRY(set(out, "row", json_string(row->name)));
    TRY(report_majority(&row->evaluation, &majority, &answers));
    TRY(set(out, "majority", real(majority)));
    TRY(set(out, "majority_answers", answers));
    TRY(set(out, "above_majority", real(report_mean(&row->evaluation, report_measure_correct, NULL) - majority)));
    if (report->has_shuffled) return add_shuffled(report, row, out);
    return set(out, "shuffled_images", json_null());
}

// ---- runs ----

static int64_t run_steps(const report_run_t *run) {
    int64_t last = 0;
    for (size_t i = 0; i < run->series_count; i++)
        if (run->series[i].count && run->series[i].step[run->series[i].count - 1] > last)
            last = run->series[i].step[run->series[i].count - 1];
    return last;
}

static status_t add_run(const report_run_t *run, json_t *runs) {
    json_t *out, *time, *last;
    TRY(add_member(runs, NULL, json_object(), &out));
    TRY(set(out, "name", json_string(run->label)));
    TRY(set(out, "directory", json_string(run->directory)));
    TRY(set(out, "kind", json_string(report_run_is_grpo(run) ? "grpo" : "sft")));
    TRY(set(out, "steps", json_integer(run_steps(run))));
    TRY(set(out, "seconds", real(report_run_seconds(run))));
    TRY(add_member(out, "time", json_object(), &time));
    TRY(add_member(out, "last", json_object(), &last));
    for (size_t i = 0; i < run->series_count; i++) {
        const report_series_t *series = &run->series[i];
        if (report_series_is_time(series))
            TRY(set(time, series->name + 5, real(report_series_sum(series))));
        else if (series->count)
            TRY(set(last, series->name, real(series->value[series->count - 1])));
    }
    TRY(set(out, "rollout_tokens_per_second", real(report_run_speed(run, true))));
    TRY(set(out, "learner_tokens_per_second", real(report_run_speed(run, false))));
    return set(out, "rollout_learner_logprob_max_abs_diff", real(report_run_logprob_difference(run)));
}

// Sums over all runs: seconds by what they were spent on; rates weighted by the runs' seconds.
static status_t add_totals(report_t *report, json_t *out) {
    json_t *time, *speed;
    double rate[2] = {0, 0}, weight[2] = {0, 0}, difference = NAN, evaluate = 0, train = 0;
    int64_t steps = 0, unknown = 0;
    TRY(add_member(out, "time", json_object(), &time));
    TRY(add_member(out, "tokens_per_second", json_object(), &speed));
    for (int r = 0; r < report->runs; r++) {
        const report_run_t *run = &report->run[r];
        double seconds = report_run_seconds(run), found = report_run_logprob_difference(run);
        for (size_t i = 0; i < run->series_count; i++) {
            const report_series_t *series = &run->series[i];
            if (!report_series_is_time(series)) continue;
            double before = json_number_value(json_object_get(time, series->name + 5));
            TRY(set(time, series->name + 5, real(before + report_series_sum(series))));
        }
        for (int rollout = 0; rollout < 2; rollout++) {
            double value = report_run_speed(run, rollout);
            if (!isfinite(value)) continue;
            rate[rollout] += value * seconds;
            weight[rollout] += seconds;
        }
        if (run->unknown_differences) {
            report_warn(report,
                        "%s: logprob_max_abs_diff was no number in %" PRId64 " of its steps, so the largest is unknown",
                        run->label, run->unknown_differences);
            unknown += run->unknown_differences;
        }
        if (isfinite(found) && !(found <= difference)) difference = found;
        steps += run_steps(run);
        train += seconds;
    }
    for (int i = 0; i < report->rows; i++) evaluate += report->row[i].evaluation.seconds;
    if (report->has_shuffled) evaluate += report->shuffled.seconds;
    TRY(set(speed, "rollout", real(rate[1] / weight[1])));
    TRY(set(speed, "learner", real(rate[0] / weight[0])));
    TRY(set(out, "steps", json_integer(steps)));
    TRY(set(out, "seconds_train", real(train)));
    TRY(set(out, "seconds_evaluate", real(evaluate)));
    return set(out, "rollout_learner_logprob_max_abs_diff", real(unknown ? NAN : difference));
}

static status_t add_versions(const report_t *report, json_t *out) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length, major, minor, patch;
    unsigned hdf5[3] = {0, 0, 0};
    TRY(set(out, "poise", json_string(POISE_VERSION)));
    TRY(set(out, "compiler", json_string(__VERSION__)));
    if (!MPI_Get_library_version(text, &length)) text[strcspn(text, ",\n")] = 0;
    TRY(set(out, "mpi", json_string(text)));
    zmq_version(&major, &minor, &patch);
    TRY(set(out, "zeromq", json_sprintf("%d.%d.%d", major, minor, patch)));
    H5get_libversion(&hdf5[0], &hdf5[1], &hdf5[2]);
    TRY(set(out, "hdf5", json_sprintf("%u.%u.%u", hdf5[0], hdf5[1], hdf5[2])));
    return set(out, "gnuplot", report->gnuplot ? json_string(report->gnuplot) : json_null());
}

static status_t fill(report_t *report, json_t *out) {
    json_t *member;
    TRY(set(out, "title", json_string(report->title)));
    TRY(set(out, "seed", json_integer((json_int_t)report->seed)));
    TRY(set(out, "n", json_integer(report->row[0].evaluation.count)));
    TRY(set(out, "images", json_integer(report->row[0].evaluation.clusters)));
    TRY(add_member(out, "rows", json_array(), &member));
    for (int i = 0; i < report->rows; i++) TRY(add_row(report, &report->row[i], member));
    TRY(add_member(out, "controls", json_object(), &member));
    TRY(add_controls(report, member));
    TRY(add_member(out, "paired", json_array(), &member));
    TRY(add_pairs(report, member));
    TRY(add_member(out, "runs", json_array(), &member));
    for (int i = 0; i < report->runs; i++) TRY(add_run(&report->run[i], member));
    TRY(add_totals(report, out));
    TRY(add_member(out, "versions", json_object(), &member));
    return add_versions(report, member);
}

status_t report_compute(report_t *report) {
    report->json = json_object();
    if (!report->json) FAIL(STATUS_MEMORY, "out of memory while writing the report");
    return fill(report, report->json);
}
