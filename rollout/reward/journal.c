#include "rollout/reward/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void complain(journal_t *journal, const char *path) {
    if (!journal->told)
        fprintf(stderr, "poise: cannot write events to %s: %s; they are only said here\n", path, strerror(errno));
    journal->told = true;
}

static int open_lines(const char *path) {
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

void journal_open(journal_t *journal, const char *output) {
    char path[4096];
    const char *extra = getenv("POISE_EVENTS");
    *journal = (journal_t){.file = {-1, -1}};
    snprintf(path, sizeof(path), "%s/events.jsonl", output);
    if (*output) journal->file[0] = open_lines(path);
    if (*output && journal->file[0] < 0) complain(journal, path);
    if (!extra || !*extra) return;
    journal->file[1] = open_lines(extra);
    // launch/run's folder is on its own machine; from others it reads what is in the output folder.
    if (journal->file[1] < 0 && !(errno == ENOENT && getenv("POISE_SESSION"))) complain(journal, extra);
}

void journal_close(journal_t *journal) {
    for (int i = 0; i < 2; i++)
        if (journal->file[i] >= 0) close(journal->file[i]);
    journal->file[0] = journal->file[1] = -1;
}

static bool set_text(json_t *line, const char *key, const char *text) {
    if (!text) return true;
    json_t *value = json_string(text);
    // Names of files and hosts need not be UTF-8.
    return json_object_set_new(line, key, value ? value : json_string("(not text)")) == 0;
}

static char *make_line(const journal_entry_t *entry) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    json_t *line = json_object();
    bool made =
        line && json_object_set_new(line, "time", json_real((double)now.tv_sec + 1e-9 * (double)now.tv_nsec)) == 0;
    made = made && set_text(line, "kind", entry->kind) &&
           json_object_set_new(line, "rank", json_integer(entry->rank)) == 0;
    if (entry->about_group)
        made = made && json_object_set_new(line, "group", json_integer((json_int_t)entry->group)) == 0;
    made = made && set_text(line, "phase", entry->phase) && set_text(line, "reason", entry->reason) &&
           set_text(line, "join", entry->join);
    char *text = made ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(16)) : NULL;
    json_decref(line);
    return text;
}

void journal_write(journal_t *journal, const journal_entry_t *entry, const char *sentence, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, sentence);
    vsnprintf(text, sizeof(text), sentence, arguments);
    va_end(arguments);
    if (*text) fprintf(stderr, "poise: %s\n", text);
    char *line = make_line(entry);
    size_t size = line ? strlen(line) : 0;
    if (line) line[size++] = '\n'; // in place of its 0: one write, so that readers never see half a line
    for (int i = 0; i < 2 && line; i++) {
        if (journal->file[i] < 0) continue;
        ssize_t written = write(journal->file[i], line, size);
        if (written == (ssize_t)size) continue;
        if (written >= 0) errno = ENOSPC;
        complain(journal, i ? "POISE_EVENTS" : "events.jsonl");
        close(journal->file[i]);
        journal->file[i] = -1;
    }
    free(line);
}
