// Reading what `poise eval` wrote.
#include "common/store/store.h"
#include "launch/report_parts.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SUMMARY_BYTES = 16 << 20, MAX_LINE_BYTES = 64 << 20, MAX_SAMPLES = 10000000 };

static status_t take_line(const char *path, int64_t number, char *text, size_t length, report_line_t take,
                          void *context) {
    bool whole = length && text[length - 1] == '\n';
    if (length > MAX_LINE_BYTES) FAIL(STATUS_INVALID, "%s:%lld: the line is too long", path, (long long)number);
    if (strspn(text, " \t\r\n") == length) return STATUS_OK;
    json_error_t error;
    json_t *line = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!line && !whole) return STATUS_OK;
    if (!line) FAIL(STATUS_INVALID, "%s:%lld: this is no JSON: %s", path, (long long)number, error.text);
    status_t status = json_is_object(line) ? take(context, line) : STATUS_NEW(STATUS_INVALID, "it is no JSON object");
    json_decref(line);
    return status ? status_context(status, "%s:%lld", path, (long long)number) : STATUS_OK;
}

status_t report_read_lines(const char *path, report_line_t take, void *context) {
    FILE *file = fopen(path, "rb");
    if (!file) FAIL(errno == ENOENT ? STATUS_INVALID : STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    char *text = NULL;
    size_t capacity = 0;
    status_t status = STATUS_OK;
    int64_t number = 0;
    for (ssize_t length; !status && (length = getline(&text, &capacity, file)) > 0;)
        status = take_line(path, ++number, text, (size_t)length, take, context);
    if (!status && ferror(file)) status = STATUS_NEW(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    free(text);
    fclose(file);
    return status;
}

// ---- one line of samples.jsonl ----

typedef struct reader {
    report_evaluation_t *evaluation;
    size_t capacity;
} reader_t;

static status_t field_text(const json_t *line, const char *key, bool needed, char **out) {
    const json_t *value = json_object_get(line, key);
    if (!value && !needed) return memory_copy_string("", out);
    if (!json_is_string(value)) FAIL(STATUS_INVALID, "the sample has no text '%s'", key);
    return memory_copy_string(json_string_value(value), out);
}

static status_t field_flag(const json_t *line, const char *key, bool needed, bool *found, bool *out) {
    const json_t *value = json_object_get(line, key);
    *out = false;
    if (found) *found = false;
    if ((!value || json_is_null(value)) && !needed) return STATUS_OK;
    if (!json_is_boolean(value)) FAIL(STATUS_INVALID, "the sample has no true or false '%s'", key);
    if (found) *found = true;
    *out = json_is_true(value);
    return STATUS_OK;
}

static status_t field_number(const json_t *line, const char *key, double *out) {
    const json_t *value = json_object_get(line, key);
    *out = 0;
    if (!value || json_is_null(value)) return STATUS_OK;
    if (!json_is_number(value)) FAIL(STATUS_INVALID, "the sample's '%s' is no number", key);
    *out = json_number_value(value);
    return STATUS_OK;
}

// What tells the sample's picture: image_group, else image, else the sample itself.
static status_t field_image(const json_t *line, int64_t index, bool *found, char **out) {
    const json_t *value = json_object_get(line, "image_group");
    if (!value || json_is_null(value)) value = json_object_get(line, "image");
    if (value && !json_is_null(value)) *found = true;
    if (!value || json_is_null(value)) {
        char own[48];
        snprintf(own, sizeof(own), "sample %lld", (long long)index);
        return memory_copy_string(own, out);
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while reading samples");
    status_t status = memory_copy_string(text, out);
    free(text);
    return status;
}

static status_t fill_sample(const json_t *line, bool *has_images, report_sample_t *sample) {
    const json_t *index = json_object_get(line, "index");
    if (!json_is_integer(index)) FAIL(STATUS_INVALID, "the sample has no whole number 'index'");
    sample->index = json_integer_value(index);
    TRY(field_text(line, "id", true, &sample->id));
    TRY(field_text(line, "kind", false, &sample->kind));
    TRY(field_text(line, "answer", true, &sample->gold));
    TRY(field_image(line, sample->index, has_images, &sample->image));
    TRY(field_flag(line, "correct", true, NULL, &sample->correct));
    TRY(field_flag(line, "invalid", true, NULL, &sample->invalid));
    TRY(field_flag(line, "correct_bare", false, &sample->has_bare, &sample->correct_bare));
    TRY(field_flag(line, "truncated", false, NULL, &sample->truncated));
    TRY(field_flag(line, "trace_correct", false, &sample->has_listing, &sample->trace_correct));
    TRY(field_number(line, "tag_score", &sample->tag_score));
    TRY(field_number(line, "think_tokens", &sample->think_tokens));
    TRY(field_number(line, "answer_tokens", &sample->answer_tokens));
    return field_number(line, "tokens", &sample->tokens);
}

static status_t take_sample(void *context, const json_t *line) {
    reader_t *reader = context;
    report_evaluation_t *evaluation = reader->evaluation;
    if (evaluation->count >= MAX_SAMPLES) FAIL(STATUS_INVALID, "there are more than %d samples", MAX_SAMPLES);
    TRY(memory_grow((void **)&evaluation->sample, &reader->capacity, (size_t)evaluation->count + 1,
                    sizeof(*evaluation->sample)));
    report_sample_t *sample = &evaluation->sample[evaluation->count++];
    *sample = (report_sample_t){0};
    return fill_sample(line, &evaluation->has_images, sample);
}

// ---- the whole folder ----

static int by_id(const void *a, const void *b) {
    return strcmp(((const report_sample_t *)a)->id, ((const report_sample_t *)b)->id);
}

static int by_image(const void *a, const void *b) {
    return strcmp((*(const report_sample_t *const *)a)->image, (*(const report_sample_t *const *)b)->image);
}

static status_t number_clusters(report_evaluation_t *evaluation) {
    report_sample_t **order;
    TRY(ALLOCATE(&order, evaluation->count));
    for (int64_t i = 0; i < evaluation->count; i++) order[i] = &evaluation->sample[i];
    qsort(order, (size_t)evaluation->count, sizeof(*order), by_image);
    for (int64_t i = 0; i < evaluation->count; i++) {
        if (i && strcmp(order[i]->image, order[i - 1]->image) != 0) evaluation->clusters++;
        order[i]->cluster = evaluation->clusters;
    }
    evaluation->clusters++;
    free(order);
    return STATUS_OK;
}

static status_t check_ids(const report_evaluation_t *evaluation) {
    for (int64_t i = 1; i < evaluation->count; i++)
        if (!strcmp(evaluation->sample[i].id, evaluation->sample[i - 1].id))
            FAIL(STATUS_INVALID, "%s/samples.jsonl holds the sample '%s' twice; evaluate again into an empty folder",
                 evaluation->directory, evaluation->sample[i].id);
    return STATUS_OK;
}

static status_t check_summary(report_evaluation_t *evaluation, const json_t *summary) {
    const json_t *n = json_object_get(summary, "n"), *accuracy = json_object_get(summary, "accuracy");
    if (!json_is_integer(n) || json_integer_value(n) != evaluation->count)
        FAIL(STATUS_INVALID, "%s: summary.json and samples.jsonl count different samples; run poise eval again",
             evaluation->directory);
    double own = report_mean(evaluation, report_measure_correct, NULL);
    if (json_is_number(accuracy) && fabs(json_number_value(accuracy) - own) > 1e-6)
        FAIL(STATUS_INVALID, "%s: summary.json has accuracy %.6f, samples.jsonl %.6f; run poise eval again",
             evaluation->directory, json_number_value(accuracy), own);
    evaluation->seconds = json_number_value(json_object_get(summary, "seconds"));
    evaluation->shuffle_images = json_integer_value(json_object_get(summary, "shuffle_images"));
    return STATUS_OK;
}

static status_t read_summary(report_evaluation_t *evaluation) {
    char path[REPORT_PATH_BYTES], *text;
    snprintf(path, sizeof(path), "%s/summary.json", evaluation->directory);
    size_t size;
    status_t status = file_read_whole(path, MAX_SUMMARY_BYTES, &text, &size);
    if (status) return status_context(status, "the evaluation is not finished, run poise eval again");
    json_error_t error;
    json_t *summary = json_loadb(text, size, 0, &error);
    free(text);
    if (!json_is_object(summary)) status = STATUS_NEW(STATUS_INVALID, "%s holds no JSON object: %s", path, error.text);
    if (!status) status = check_summary(evaluation, summary);
    json_decref(summary);
    return status;
}

static status_t read_all(report_evaluation_t *evaluation) {
    char path[REPORT_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/samples.jsonl", evaluation->directory) >= (int)sizeof(path))
        FAIL(STATUS_INVALID, "the path %.80s... is too long", evaluation->directory);
    if (access(path, F_OK))
        FAIL(STATUS_INVALID,
             "there is no %s: that folder holds no evaluation, or one that is not finished (run poise "
             "eval again to go on)",
             path);
    reader_t reader = {.evaluation = evaluation};
    TRY(report_read_lines(path, take_sample, &reader));
    if (!evaluation->count) FAIL(STATUS_INVALID, "%s holds no sample", path);
    qsort(evaluation->sample, (size_t)evaluation->count, sizeof(*evaluation->sample), by_id);
    TRY(check_ids(evaluation));
    TRY(read_summary(evaluation));
    return number_clusters(evaluation);
}

status_t report_evaluation_read(const char *directory, report_evaluation_t *out) {
    *out = (report_evaluation_t){0};
    TRY(memory_copy_string(directory, &out->directory));
    status_t status = read_all(out);
    if (status) report_evaluation_free(out);
    return status;
}

void report_evaluation_free(report_evaluation_t *evaluation) {
    for (int64_t i = 0; i < evaluation->count; i++) {
        report_sample_t *sample = &evaluation->sample[i];
        free(sample->id);
        free(sample->kind);
        free(sample->gold);
        free(sample->image);
    }
    free(evaluation->sample);
    free(evaluation->directory);
    *evaluation = (report_evaluation_t){0};
}
