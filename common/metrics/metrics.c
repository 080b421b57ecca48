#include "common/metrics/metrics.h"
#include "common/metrics/events.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PENDING_LIMIT = 16 << 20 };

struct metrics {
    char *path;
    int file;      // -1: not open
    off_t whole;   // bytes of the file that are whole lines
    char *pending; // [pending_size] lines that are not in the file yet
    size_t pending_size, pending_capacity;
    events_t *events; // NULL: not wanted
    json_t *values;   // collected for the next line
    bool lost;        // a value could not be stored: memory
};

static double wall_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Whether a line is a whole one of a step up to last_step.
static bool keeps_line(const char *line, size_t length, int64_t last_step) {
    if (!length || line[length - 1] != '\n') return false;
    json_t *value = json_loadb(line, length, 0, NULL);
    const json_t *step = json_object_get(value, "step");
    bool keep = json_is_integer(step) && json_integer_value(step) <= last_step;
    json_decref(value);
    return keep;
}

// Cuts the file before its first line of a later step (lines are in order of steps), or a torn one.
static status_t cut_lines(const char *path, int64_t last_step) {
    FILE *file = fopen(path, "rbe");
    if (!file && errno == ENOENT) return STATUS_OK;
    if (!file) FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    char *line = NULL;
    size_t capacity = 0;
    off_t whole = 0;
    ssize_t length = 0;
    while ((length = getline(&line, &capacity, file)) > 0 && keeps_line(line, (size_t)length, last_step))
        whole += length;
    bool failed = ferror(file) != 0;
    free(line);
    fclose(file);
    if (failed || truncate(path, whole) != 0)
        FAIL(STATUS_IO, "cannot cut %s to step %lld: %s", path, (long long)last_step, strerror(errno));
    return STATUS_OK;
}

static status_t make_directory(const char *path) {
    char *copy = NULL;
    TRY(memory_copy_string(path, &copy));
    int failed = 0;
    for (char *at = copy + 1; !failed; at++) {
        char end = *at;
        if (end && end != '/') continue;
        *at = 0;
        failed = mkdir(copy, 0777) != 0 && errno != EEXIST;
        *at = end;
        if (!end) break;
    }
    free(copy);
    if (failed) FAIL(STATUS_IO, "cannot make the folder %s: %s", path, strerror(errno));
    return STATUS_OK;
}

static status_t open_files(metrics_t *metrics, const char *directory, bool tensorboard, int64_t resume_step) {
    TRY(make_directory(directory));
    if (asprintf(&metrics->path, "%s/metrics.jsonl", directory) < 0) {
        metrics->path = NULL;
        FAIL(STATUS_MEMORY, "out of memory");
    }
    TRY(cut_lines(metrics->path, resume_step < 0 ? INT64_MIN : resume_step));
    metrics->file = open(metrics->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    struct stat about;
    if (metrics->file < 0 || fstat(metrics->file, &about) != 0)
        FAIL(STATUS_IO, "cannot write %s: %s", metrics->path, strerror(errno));
    metrics->whole = about.st_size;
    metrics->values = json_object();
    if (!metrics->values) FAIL(STATUS_MEMORY, "out of memory");
    if (tensorboard) TRY(events_open(directory, resume_step, &metrics->events));
    return STATUS_OK;
}

status_t metrics_open(const char *directory, bool tensorboard, int64_t resume_step, metrics_t **out) {
    *out = NULL;
    metrics_t *metrics = NULL;
    TRY(ALLOCATE(&metrics, 1));
    metrics->file = -1;
    status_t status = open_files(metrics, directory, tensorboard, resume_step);
    if (status) {
        metrics_close(metrics);
        PASS_ON(status);
    }
    *out = metrics;
    return STATUS_OK;
}

void metrics_close(metrics_t *metrics) {
    if (!metrics) return;
    if (metrics->file >= 0) close(metrics->file);
    free(metrics->pending);
    events_close(metrics->events);
    json_decref(metrics->values);
    free(metrics->path);
    free(metrics);
}

void metrics_add(metrics_t *metrics, const char *name, double value) {
    json_t *number = isfinite(value) ? json_real(value) : json_null();
    if (json_object_set_new(metrics->values, name, number) != 0) metrics->lost = true;
}

void metrics_add_text(metrics_t *metrics, const char *name, const char *text) {
    if (json_object_set_new(metrics->values, name, json_string(text)) != 0) metrics->lost = true;
}

static status_t keep_line(metrics_t *metrics, const char *text) {
    size_t length = strlen(text), needed = metrics->pending_size + length + 1;
    if (needed > PENDING_LIMIT)
        FAIL(STATUS_FAILED, "%s cannot be written since many steps, and %d MiB of lines wait for it; free space there",
             metrics->path, PENDING_LIMIT >> 20);
    TRY(memory_grow((void **)&metrics->pending, &metrics->pending_capacity, needed, 1));
    memcpy(metrics->pending + metrics->pending_size, text, length);
    metrics->pending[needed - 1] = '\n';
    metrics->pending_size = needed;
    return STATUS_OK;
}

static status_t add_line(metrics_t *metrics, double time, int64_t step) {
    json_t *line = json_object();
    bool ok = line && json_object_set_new(line, "step", json_integer(step)) == 0 &&
              json_object_set_new(line, "time", json_real(time)) == 0 && json_object_update(line, metrics->values) == 0;
    char *text = ok ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(line);
    if (!text) FAIL(STATUS_MEMORY, "out of memory while writing %s", metrics->path);
    status_t status = keep_line(metrics, text);
    free(text);
    return status;
}

status_t metrics_flush(metrics_t *metrics) {
    for (size_t done = 0; done < metrics->pending_size;) {
        ssize_t written = write(metrics->file, metrics->pending + done, metrics->pending_size - done);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            int why = errno;
            if (done && ftruncate(metrics->file, metrics->whole) != 0) why = errno;
            FAIL(STATUS_IO, "cannot write %s: %s", metrics->path, strerror(why));
        }
        done += (size_t)written;
    }
    metrics->whole += (off_t)metrics->pending_size;
    metrics->pending_size = 0;
    return STATUS_OK;
}

static status_t write_events(metrics_t *metrics, double time, int64_t step) {
    if (!metrics->events) return STATUS_OK;
    event_value_t *values = NULL;
    size_t count = 0;
    TRY(ALLOCATE(&values, json_object_size(metrics->values)));
    const char *name = NULL;
    json_t *value = NULL;
    json_object_foreach(metrics->values, name, value) {
        if (json_is_real(value)) values[count++] = (event_value_t){name, (float)json_real_value(value)};
    }
    status_t status = events_write(metrics->events, time, step, values, count);
    free(values);
    return status;
}

status_t metrics_write(metrics_t *metrics, int64_t step) {
    double time = wall_time();
    if (metrics->lost)
        FAIL(STATUS_FAILED, "a metric of step %lld could not be kept (memory, or a text that is no UTF-8)",
             (long long)step);
    TRY(add_line(metrics, time, step));
    status_t status = metrics_flush(metrics);
    status = status_first(status, write_events(metrics, time, step));
    json_object_clear(metrics->values);
    return status;
}
