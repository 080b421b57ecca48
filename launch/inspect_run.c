// Run and evaluation folders.
#include "launch/inspect_parts.h"
#include "launch/report_parts.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// Files in DIRECTORY/name whose names are "step-N.h5": how many, and the first and last N.
static int64_t count_steps(const char *directory, const char *name, int64_t *first, int64_t *last) {
    char path[INSPECT_PATH_BYTES];
    int64_t count = 0;
    status_t status = inspect_join(directory, name, path);
    DIR *folder = status ? NULL : opendir(path);
    status_free(status);
    if (!folder) return 0;
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char *end;
        if (strncmp(entry->d_name, "step-", 5) != 0) continue;
        int64_t step = strtoll(entry->d_name + 5, &end, 10);
        if (end == entry->d_name + 5 || strcmp(end, ".h5") != 0) continue;
        if (!count || step < *first) *first = step;
        if (!count || step > *last) *last = step;
        count++;
    }
    closedir(folder);
    return count;
}

static void print_metrics(const report_run_t *run) {
    static const char *const shown[] = {
        "loss",    "loss/think",  "loss/answer",   "reward",        "reward/tag",          "reward/answer",
        "entropy", "length/mean", "gradient_norm", "learning_rate", "logprob_max_abs_diff"};
    inspect_line("kind", "%s", report_run_is_grpo(run) ? "grpo" : "sft");
    inspect_line("lines of metrics", "%" PRId64 ", %.0f seconds of steps", run->lines, report_run_seconds(run));
    for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++) {
        const report_series_t *series = report_run_find(run, shown[i]);
        if (series && series->count)
            inspect_line(shown[i], "%.6g at step %" PRId64 " (%.6g at step %" PRId64 ")",
                         series->value[series->count - 1], series->step[series->count - 1], series->value[0],
                         series->step[0]);
    }
}

static status_t print_result(const char *directory) {
    json_t *result;
    if (!inspect_has(directory, "result.json")) {
        inspect_line("result", "none: the run is under way, or was killed");
        return STATUS_OK;
    }
    TRY(inspect_json(directory, "result.json", &result));
    const char *state = json_string_value(json_object_get(result, "state"));
    const char *message = json_string_value(json_object_get(result, "message"));
    inspect_line("result", "%s%s%s", state ? state : "not said", message && *message ? ": " : "",
                 message ? message : "");
    json_decref(result);
    return STATUS_OK;
}

static void print_steps(const char *directory, const char *name) {
    int64_t first = 0, last = 0, count = count_steps(directory, name, &first, &last);
    if (count)
        inspect_line(name, "%" PRId64 ", of steps %" PRId64 " to %" PRId64, count, first, last);
    else
        inspect_line(name, "none");
}

status_t inspect_run(const char *directory) {
    printf("%s: a run\n", directory);
    if (inspect_has(directory, "metrics.jsonl")) {
        report_run_t run;
        TRY(report_run_read(directory, &run));
        print_metrics(&run);
        report_run_free(&run);
    } else {
        inspect_line("metrics", "none yet");
    }
    print_steps(directory, "checkpoints");
    print_steps(directory, "trajectories");
    if (inspect_has(directory, "bad_steps")) print_steps(directory, "bad_steps");
    if (inspect_has(directory, "model")) inspect_line("final model", "%s/model", directory);
    if (inspect_has(directory, "adapter")) inspect_line("final adapter", "%s/adapter", directory);
    return print_result(directory);
}

// ---- evaluations ----

static status_t count_line(void *context, const json_t *line) {
    (void)line;
    ++*(int64_t *)context;
    return STATUS_OK;
}

// An evaluation that is under way, or was stopped: what its ranks have written so far.
static status_t print_unfinished(const char *directory) {
    int64_t samples = 0;
    for (int rank = 0;; rank++) {
        char name[64], path[INSPECT_PATH_BYTES];
        snprintf(name, sizeof(name), "samples.rank-%d.jsonl", rank);
        if (!inspect_has(directory, name)) break;
        TRY(inspect_join(directory, name, path));
        TRY(report_read_lines(path, count_line, &samples));
    }
    inspect_line("state", "not finished; run poise eval again to go on");
    inspect_line("samples so far", "%" PRId64, samples);
    return STATUS_OK;
}

static status_t print_kinds(const report_evaluation_t *evaluation) {
    const char **kinds;
    int count;
    TRY(report_kinds(evaluation, &kinds, &count));
    for (int i = 0; i < count; i++) {
        char name[64];
        snprintf(name, sizeof(name), "kind %s", *kinds[i] ? kinds[i] : "(none)");
        inspect_line(name, "accuracy %.4f", report_mean(evaluation, report_measure_kind, kinds[i]));
    }
    free(kinds);
    return STATUS_OK;
}

status_t inspect_evaluation(const char *directory) {
    printf("%s: an evaluation\n", directory);
    if (!inspect_has(directory, "summary.json")) return print_unfinished(directory);
    report_evaluation_t evaluation;
    report_estimate_t accuracy;
    TRY(report_evaluation_read(directory, &evaluation));
    status_t status = report_estimate(&evaluation, report_measure_correct, NULL, 0, &accuracy);
    if (!status) {
        double listing = report_mean(&evaluation, report_measure_listing, NULL);
        double bare = report_mean(&evaluation, report_measure_correct_bare, NULL);
        inspect_line("samples", "%" PRId64, evaluation.count);
        inspect_line("accuracy", "%.4f, 95 %% interval [%.4f, %.4f]", accuracy.value, accuracy.low, accuracy.high);
        if (bare >= 0) inspect_line("accuracy, bare", "%.4f", bare);
        inspect_line("invalid rate", "%.4f", report_mean(&evaluation, report_measure_invalid, NULL));
        inspect_line("tag score", "%.4f", report_mean(&evaluation, report_measure_tag_score, NULL));
        if (listing >= 0) inspect_line("listing right", "%.4f", listing);
        inspect_line("tokens", "think %.1f, answer %.1f", report_mean(&evaluation, report_measure_think_tokens, NULL),
                     report_mean(&evaluation, report_measure_answer_tokens, NULL));
        if (evaluation.shuffle_images) inspect_line("control", "every question was shown another question's picture");
        inspect_line("seconds", "%.1f", evaluation.seconds);
        status = print_kinds(&evaluation);
    }
    report_evaluation_free(&evaluation);
    return status;
}
