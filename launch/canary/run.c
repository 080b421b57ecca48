// The runs that canaries are made of, and what is read from their files.
#include "launch/canary/canary.h"

#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void settings_add(settings_t *settings, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    if (settings->count == MOST_SETTINGS || vasprintf(&text, format, arguments) < 0)
        settings->lost = true;
    else
        settings->text[settings->count++] = text;
    va_end(arguments);
}

void settings_free(settings_t *settings) {
    for (int i = 0; i < settings->count; i++) free(settings->text[i]);
    *settings = (settings_t){0};
}

// The file, then the user's settings, then those of all canaries, then the run's own.
static status_t make_config(const canary_t *canary, const char *name, const settings_t *settings, config_t *out) {
    const char *all[2 * MOST_SETTINGS];
    int count = 0;
    settings_t common = {0};
    for (int i = 0; i < canary->users; i++) all[count++] = canary->user[i];
    if (!canary->file) {
        settings_add(&common, "model=%s", canary->model);
        settings_add(&common, "threads=%d", canary->threads);
        settings_add(&common, "optimizer.beta2=0.95");
        settings_add(&common, "sft.pack_tokens=512");
        if (comm_size(canary->world) == 2) settings_add(&common, "roles.colocated=true");
    }
    settings_add(&common, "output=%s/%s", canary->folder, name);
    settings_add(&common, "metrics.tensorboard=false");
    settings_add(&common, "metrics.trajectories=false");
    settings_add(&common, "metrics.every=1");
    settings_add(&common, "checkpoint.every=0");
    settings_add(&common, "resume=true");
    settings_add(&common, "save_model=false");
    settings_add(&common, "optimizer.stop_after=0");
    settings_add(&common, "optimizer.warmup_steps=0");
    settings_add(&common, "optimizer.schedule=constant");
    settings_add(&common, "grpo.staleness=0");
    settings_add(&common, "grpo.kl=0");
    // Ranks without a part in one run wait for the others in the next.
    settings_add(&common, "deadline.start_s=3600");
    for (int i = 0; i < common.count; i++) all[count++] = common.text[i];
    for (int i = 0; i < settings->count; i++) all[count++] = settings->text[i];
    status_t status = common.lost || settings->lost
                          ? STATUS_NEW(STATUS_MEMORY, "no memory for the settings of a canary, or too many of them")
                          : config_read(canary->file, all, count, out);
    settings_free(&common);
    return status;
}

// Messages of the runs go to the log: dozens of small runs would bury what matters. -1 when it cannot be done.
static int messages_away(const canary_t *canary) {
    fflush(stderr);
    int kept = dup(STDERR_FILENO);
    if (kept >= 0 && (canary->log < 0 || dup2(canary->log, STDERR_FILENO) < 0)) {
        close(kept);
        return -1;
    }
    return kept;
}

static void messages_back(int kept) {
    fflush(stderr);
    if (kept < 0) return;
    dup2(kept, STDERR_FILENO);
    close(kept);
}

static status_t finish(const canary_t *canary, const char *name, status_t status) {
    if (!status) return STATUS_OK;
    if (status_kind(status) == STATUS_CANCELLED) {
        status_free(status);
        FAIL(STATUS_FAILED, "stopped before all canaries were done");
    }
    return status_context(status, "the run \"%s\" (its messages: %s/log.txt)", name, canary->folder);
}

status_t canary_run(canary_t *canary, run_kind_t kind, const char *name, const settings_t *settings) {
    config_t config;
    TRY(make_config(canary, name, settings, &config));
    if (canary->first) fprintf(stderr, "canary: %s\n", name);
    int kept = messages_away(canary);
    status_t status = run_one(&config, canary->world, kind);
    messages_back(kept);
    config_free(&config);
    return finish(canary, name, status);
}

status_t canary_probe(canary_t *canary, bool grpo, const char *name, const settings_t *settings, learner_probe_t *out) {
    config_t config;
    job_t job;
    TRY(make_config(canary, name, settings, &config));
    int kept = messages_away(canary);
    status_t status = job_open(&config, canary->world, grpo, "", &job);
    if (!status) {
        if (job.learners) status = learner_probe(&job, grpo, out);
        job_close(&job);
    }
    messages_back(kept);
    config_free(&config);
    return finish(canary, name, status);
}

status_t canary_metric(const canary_t *canary, const char *name, const char *metric, double *values, int most,
                       int *count) {
    char path[FOLDER_BYTES + 128], *line = NULL;
    size_t capacity = 0;
    bool missing = false;
    *count = 0;
    snprintf(path, sizeof(path), "%s/%s/metrics.jsonl", canary->folder, name);
    FILE *file = fopen(path, "re");
    if (!file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    for (ssize_t length; *count < most && (length = getline(&line, &capacity, file)) > 0;) {
        json_t *object = json_loadb(line, (size_t)length, 0, NULL);
        const json_t *value = json_object_get(object, metric);
        missing |= !json_is_number(value);
        values[(*count)++] = json_number_value(value);
        json_decref(object);
    }
    free(line);
    fclose(file);
    if (missing || !*count) FAIL(STATUS_FAILED, "%s lacks the metric %s in some step", path, metric);
    return STATUS_OK;
}

status_t canary_weights(const canary_t *canary, const char *name, char out[65]) {
    char path[FOLDER_BYTES + 128], *line = NULL;
    size_t capacity = 0;
    *out = 0;
    snprintf(path, sizeof(path), "%s/%s/metrics.jsonl", canary->folder, name);
    FILE *file = fopen(path, "re");
    if (!file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    for (ssize_t length; (length = getline(&line, &capacity, file)) > 0;) {
        json_t *object = json_loadb(line, (size_t)length, 0, NULL);
        const char *hash = json_string_value(json_object_get(object, "weights_hash"));
        if (hash) snprintf(out, 65, "%s", hash);
        json_decref(object);
    }
    free(line);
    fclose(file);
    if (!*out) FAIL(STATUS_FAILED, "%s has no weights_hash in its last line", path);
    return STATUS_OK;
}

status_t canary_summary(const canary_t *canary, const char *name, const char *key, double *out) {
    char path[FOLDER_BYTES + 128];
    snprintf(path, sizeof(path), "%s/%s/summary.json", canary->folder, name);
    json_t *summary = json_load_file(path, 0, NULL);
    const json_t *value = json_object_get(summary, key);
    bool good = json_is_number(value);
    *out = json_number_value(value);
    json_decref(summary);
    if (!good) FAIL(STATUS_FAILED, "%s lacks %s", path, key);
    return STATUS_OK;
}
