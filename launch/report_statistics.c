// Means, intervals by resampling pictures, and controls.
#include "common/text/answer.h"
#include "kernels/base/philox.h"
#include "launch/report_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Quantile of ascending values, linear between neighbours.
static double quantile(const double *sorted, int count, double share) {
    double at = share * (count - 1);
    int low = (int)at;
    if (low >= count - 1) return sorted[count - 1];
    return sorted[low] + (at - low) * (sorted[low + 1] - sorted[low]);
}

static void summarise(double *mean, int resamples, report_estimate_t *out) {
    double sum = 0, square = 0;
    int at_most = 0, at_least = 0;
    for (int r = 0; r < resamples; r++) {
        sum += mean[r];
        at_most += mean[r] <= 0;
        at_least += mean[r] >= 0;
    }
    double average = sum / resamples;
    for (int r = 0; r < resamples; r++) square += (mean[r] - average) * (mean[r] - average);
    qsort(mean, (size_t)resamples, sizeof(*mean), by_value);
    out->low = quantile(mean, resamples, 0.025);
    out->high = quantile(mean, resamples, 0.975);
    out->error = sqrt(square / (resamples - 1));
    int fewer = at_most < at_least ? at_most : at_least;
    out->p = fmin(1.0, 2.0 * (fewer + 1) / (resamples + 1));
}

// Sum and size of each cluster that has samples, in order of its number; returns how many there are.
static int gather_clusters(const double *value, const int *cluster, int64_t count, int clusters, double *sum,
                           double *size) {
    for (int64_t i = 0; i < count; i++) {
        sum[cluster[i]] += value[i];
        size[cluster[i]] += 1;
    }
    int used = 0;
    for (int c = 0; c < clusters; c++) {
        if (size[c] == 0) continue;
        sum[used] = sum[c];
        size[used++] = size[c];
    }
    return used;
}

status_t report_bootstrap(const double *value, const int *cluster, int64_t count, int clusters, uint64_t seed,
                          report_estimate_t *out) {
    *out = (report_estimate_t){NAN, NAN, NAN, NAN, NAN};
    if (!count) return STATUS_OK;
    for (int64_t i = 0; i < count; i++)
        if (cluster[i] < 0 || cluster[i] >= clusters)
            FAIL(STATUS_INVALID, "sample %lld has cluster %d of %d", (long long)i, cluster[i], clusters);
    double *memory;
    TRY(ALLOCATE(&memory, 2 * (size_t)clusters + REPORT_RESAMPLES));
    double *sum = memory, *size = memory + clusters, *mean = memory + 2 * (size_t)clusters;
    int used = gather_clusters(value, cluster, count, clusters, sum, size);
    double total = 0;
    for (int c = 0; c < used; c++) total += sum[c];
    out->value = total / (double)count;
    for (int r = 0; r < REPORT_RESAMPLES; r++) {
        double drawn_sum = 0, drawn_size = 0;
        for (int d = 0; d < used; d++) {
            uint32_t c = philox_below(seed, PHILOX_BOOTSTRAP, (uint64_t)r, (uint32_t)d, 0, (uint32_t)used);
            drawn_sum += sum[c];
            drawn_size += size[c];
        }
        mean[r] = drawn_sum / drawn_size;
    }
    summarise(mean, REPORT_RESAMPLES, out);
    free(memory);
    return STATUS_OK;
}

// ---- measures ----

bool report_measure_correct(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->correct;
    return true;
}

bool report_measure_correct_bare(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->correct_bare;
    return sample->has_bare;
}

bool report_measure_invalid(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->invalid;
    return true;
}

bool report_measure_listing(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->trace_correct;
    return sample->has_listing;
}

bool report_measure_kind(const report_sample_t *sample, const void *kind, double *out) {
    *out = sample->correct;
    return !strcmp(sample->kind, kind);
}

bool report_measure_truncated(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->truncated;
    return true;
}

bool report_measure_tag_score(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->tag_score;
    return true;
}

bool report_measure_think_tokens(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->think_tokens;
    return true;
}

bool report_measure_answer_tokens(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->answer_tokens;
    return true;
}

bool report_measure_tokens(const report_sample_t *sample, const void *unused, double *out) {
    (void)unused;
    *out = sample->tokens;
    return true;
}

double report_mean(const report_evaluation_t *evaluation, report_measure_t measure, const void *context) {
    double sum = 0, value;
    int64_t count = 0;
    for (int64_t i = 0; i < evaluation->count; i++) {
        if (!measure(&evaluation->sample[i], context, &value)) continue;
        sum += value;
        count++;
    }
    return count ? sum / (double)count : NAN;
}

status_t report_estimate(const report_evaluation_t *evaluation, report_measure_t measure, const void *context,
                         uint64_t seed, report_estimate_t *out) {
    double *value;
    int *cluster;
    int64_t count = 0;
    TRY(ALLOCATE(&value, evaluation->count));
    status_t status = ALLOCATE(&cluster, evaluation->count);
    for (int64_t i = 0; !status && i < evaluation->count; i++) {
        if (!measure(&evaluation->sample[i], context, &value[count])) continue;
        cluster[count++] = evaluation->sample[i].cluster;
    }
    if (!status) {
        status = report_bootstrap(value, cluster, count, evaluation->clusters, seed, out);
        free(cluster);
    }
    free(value);
    return status;
}

// ---- pairs ----

bool report_same_questions(const report_evaluation_t *a, const report_evaluation_t *b) {
    if (a->count != b->count) return false;
    for (int64_t i = 0; i < a->count; i++)
        if (strcmp(a->sample[i].id, b->sample[i].id) != 0 || strcmp(a->sample[i].gold, b->sample[i].gold) != 0)
            return false;
    return true;
}

status_t report_paired(const report_evaluation_t *a, const report_evaluation_t *b, uint64_t seed,
                       report_estimate_t *out) {
    if (!report_same_questions(a, b))
        FAIL(STATUS_INVALID, "%s and %s were evaluated on different questions; a paired comparison needs the same ones",
             a->directory, b->directory);
    double *value;
    int *cluster;
    TRY(ALLOCATE(&value, a->count));
    status_t status = ALLOCATE(&cluster, a->count);
    for (int64_t i = 0; !status && i < a->count; i++) {
        value[i] = (double)a->sample[i].correct - (double)b->sample[i].correct;
        cluster[i] = a->sample[i].cluster;
    }
    if (!status) {
        status = report_bootstrap(value, cluster, a->count, a->clusters, seed, out);
        free(cluster);
    }
    free(value);
    return status;
}

// ---- kinds and the majority answer ----

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

status_t report_kinds(const report_evaluation_t *evaluation, const char ***out, int *count) {
    TRY(ALLOCATE(out, evaluation->count));
    for (int64_t i = 0; i < evaluation->count; i++) (*out)[i] = evaluation->sample[i].kind;
    qsort(*out, (size_t)evaluation->count, sizeof(**out), by_text);
    *count = 0;
    for (int64_t i = 0; i < evaluation->count; i++)
        if (!*count || strcmp((*out)[*count - 1], (*out)[i]) != 0) (*out)[(*count)++] = (*out)[i];
    return STATUS_OK;
}

typedef struct gold {
    const char *kind;
    char *answer; // normalised
} gold_t;

static int by_gold(const void *a, const void *b) {
    const gold_t *x = a, *y = b;
    int order = strcmp(x->kind, y->kind);
    return order ? order : strcmp(x->answer, y->answer);
}

// Counts equal neighbours of the sorted list; each kind's longest run of equal answers is its majority.
static status_t count_majority(const gold_t *gold, int64_t count, json_t *answers, int64_t *right) {
    *right = 0;
    for (int64_t i = 0; i < count;) {
        int64_t best = 0, at = i, j = i;
        while (j < count && !strcmp(gold[j].kind, gold[i].kind)) {
            int64_t k = j;
            while (k < count && !by_gold(&gold[k], &gold[j])) k++;
            if (k - j > best) {
                best = k - j;
                at = j;
            }
            j = k;
        }
        if (json_object_set_new(answers, gold[i].kind, json_string(gold[at].answer)))
            FAIL(STATUS_MEMORY, "out of memory while counting answers");
        *right += best;
        i = j;
    }
    return STATUS_OK;
}

status_t report_majority(const report_evaluation_t *evaluation, double *out, json_t **answers) {
    gold_t *gold;
    int64_t right = 0;
    json_t *chosen = json_object();
    if (answers) *answers = NULL;
    if (!chosen) FAIL(STATUS_MEMORY, "out of memory while counting answers");
    status_t status = ALLOCATE(&gold, evaluation->count);
    for (int64_t i = 0; !status && i < evaluation->count; i++) {
        const report_sample_t *sample = &evaluation->sample[i];
        gold[i].kind = sample->kind;
        status = answer_normalise(sample->gold, strlen(sample->gold), NULL, 0, &gold[i].answer);
    }
    if (!status) {
        qsort(gold, (size_t)evaluation->count, sizeof(*gold), by_gold);
        status = count_majority(gold, evaluation->count, chosen, &right);
    }
    for (int64_t i = 0; gold && i < evaluation->count; i++) free(gold[i].answer);
    free(gold);
    *out = evaluation->count ? (double)right / (double)evaluation->count : NAN;
    if (status || !answers)
        json_decref(chosen);
    else
        *answers = chosen;
    return status;
}
