// Reading the metrics of training runs.
#include "launch/report_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SERIES = 4096 };
static const char difference_name[] = "logprob_max_abs_diff";

// Where `name` is, or belongs.
static size_t series_place(const report_run_t *run, const char *name, bool *found) {
    size_t low = 0, high = run->series_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(run->series[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *found = low < run->series_count && !strcmp(run->series[low].name, name);
    return low;
}

static status_t add_point(report_run_t *run, const char *name, int64_t step, double value) {
    bool found;
    size_t at = series_place(run, name, &found);
    if (!found) {
        char *copy;
        if (run->series_count >= MAX_SERIES) FAIL(STATUS_INVALID, "there are more than %d metrics", MAX_SERIES);
        TRY(memory_grow((void **)&run->series, &run->series_capacity, run->series_count + 1, sizeof(*run->series)));
        TRY(memory_copy_string(name, &copy));
        memmove(&run->series[at + 1], &run->series[at], (run->series_count - at) * sizeof(*run->series));
        run->series[at] = (report_series_t){.name = copy};
        run->series_count++;
    }
    report_series_t *series = &run->series[at];
    TRY(memory_grow((void **)&series->step, &series->step_capacity, series->count + 1, sizeof(*series->step)));
    TRY(memory_grow((void **)&series->value, &series->value_capacity, series->count + 1, sizeof(*series->value)));
    series->step[series->count] = step;
    series->value[series->count++] = value;
    return STATUS_OK;
}

static status_t take_metrics(void *context, const json_t *line) {
    report_run_t *run = context;
    const json_t *step = json_object_get(line, "step"), *time = json_object_get(line, "time");
    if (!json_is_integer(step)) FAIL(STATUS_INVALID, "the line has no whole number 'step'");
    if (json_is_number(time)) {
        run->last_time = json_number_value(time);
        if (!run->lines) run->first_time = run->last_time;
    }
    run->lines++;
    if (json_is_null(json_object_get(line, difference_name))) run->unknown_differences++;
    const char *name;
    const json_t *value;
    json_object_foreach((json_t *)line, name, value) {
        if (!json_is_number(value) || !strcmp(name, "step") || !strcmp(name, "time")) continue;
        if (!isfinite(json_number_value(value))) continue;
        TRY(add_point(run, name, json_integer_value(step), json_number_value(value)));
    }
    return STATUS_OK;
}

status_t report_run_read(const char *directory, report_run_t *out) {
    char path[REPORT_PATH_BYTES];
    *out = (report_run_t){0};
    if (snprintf(path, sizeof(path), "%s/metrics.jsonl", directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %.80s... is too long", directory);
    TRY(memory_copy_string(directory, &out->directory));
    status_t status = report_read_lines(path, take_metrics, out);
    if (status) report_run_free(out);
    return status;
}

void report_run_free(report_run_t *run) {
    for (size_t i = 0; i < run->series_count; i++) {
        free(run->series[i].name);
        free(run->series[i].step);
        free(run->series[i].value);
    }
    free(run->series);
    free(run->directory);
    *run = (report_run_t){0};
}

const report_series_t *report_run_find(const report_run_t *run, const char *name) {
    bool found;
    size_t at = series_place(run, name, &found);
    return found ? &run->series[at] : NULL;
}

bool report_run_is_grpo(const report_run_t *run) {
    for (size_t i = 0; i < run->series_count; i++)
        if (!strcmp(run->series[i].name, "reward") || !strncmp(run->series[i].name, "reward/", 7)) return true;
    return false;
}

double report_series_sum(const report_series_t *series) {
    double sum = 0;
    for (size_t i = 0; i < series->count; i++) sum += series->value[i];
    return sum;
}

double report_series_largest(const report_series_t *series) {
    double largest = NAN;
    for (size_t i = 0; i < series->count; i++)
        if (!(series->value[i] <= largest)) largest = series->value[i];
    return largest;
}

bool report_series_is_time(const report_series_t *series) {
    return !strncmp(series->name, "time/", 5);
}

double report_run_seconds(const report_run_t *run) {
    const report_series_t *step = report_run_find(run, "time/step");
    return step ? report_series_sum(step) : run->last_time - run->first_time;
}

// The mean of a rate, each step weighted by the seconds it held for.
static double mean_rate(const report_series_t *rate, const report_series_t *seconds) {
    double sum = 0, weight = 0;
    bool weighted = seconds && seconds->count == rate->count;
    for (size_t i = 0; i < rate->count; i++) {
        double held = weighted ? seconds->value[i] : 1;
        sum += rate->value[i] * held;
        weight += held;
    }
    return sum / weight;
}

double report_run_speed(const report_run_t *run, bool rollout) {
    static const char *const names[][2] = {{"tokens_per_second/generate", "time/generate"},
                                           {"tokens_per_second/train", "time/train"},
                                           {"tokens_per_second", "time/step"}};
    for (size_t i = rollout ? 0 : 1; i < (rollout ? 1 : 3); i++) {
        const report_series_t *rate = report_run_find(run, names[i][0]);
        if (rate) return mean_rate(rate, report_run_find(run, names[i][1]));
    }
    return NAN;
}

double report_run_logprob_difference(const report_run_t *run) {
    const report_series_t *series = report_run_find(run, difference_name);
    return series && !run->unknown_differences ? report_series_largest(series) : NAN;
}
