// The thread, its limits, and what it leaves in the session's folder.
#include "common/comm/watch_internal.h"

#include "common/comm/clock.h"
#include "common/comm/comm.h"
#include "common/text/utf8.h"
#include "common/wire/transport.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const double turn_s = 0.1, late_s = 1.0, notice_s = 8.0;

// ---- the board: text of fixed places, so that a shell can read it and a phase is one copy ----

enum { CLOSING_S = 5, BOARD_LINE = 32, BOARD_HOST = 96, BOARD_PHASE = 160, BOARD_BYTES = BOARD_PHASE + PHASE_BYTES };

struct board {
    char text[BOARD_BYTES];
};

static void board_put(watch_t *watch, int at, int bytes, const char *text) {
    board_t *board = watch->board;
    if (!board) return;
    size_t length = strnlen(text, (size_t)bytes - 1);
    // Whichever thread ends the process says so, while the other may still be told to.
    pthread_mutex_lock(&watch->board_mutex);
    memcpy(board->text + at, text, length);
    memset(board->text + at + length, ' ', (size_t)bytes - 1 - length);
    board->text[at + bytes - 1] = '\n';
    pthread_mutex_unlock(&watch->board_mutex);
}

// Lines: process and Open MPI's number of the job; running or ended; role; host; phase.
static void board_open(watch_t *watch) {
    const char *session = getenv("POISE_SESSION"), *job = getenv("OMPI_MCA_ess_base_jobid");
    char path[4096], line[BOARD_LINE], host[256] = "";
    if (!session || !*session || watch->rank < 0) return;
    snprintf(path, sizeof(path), "%s/rank.%d", session, watch->rank);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return; // another node's folder
    void *map = MAP_FAILED;
    if (ftruncate(file, BOARD_BYTES) == 0) map = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED) return;
    watch->board = map;
    snprintf(line, sizeof(line), "%ld %s", (long)getpid(), job ? job : "-");
    board_put(watch, 0, BOARD_LINE, line);
    board_put(watch, BOARD_LINE, BOARD_LINE, "running");
    board_put(watch, 2 * BOARD_LINE, BOARD_LINE, "-");
    if (gethostname(host, sizeof(host) - 1) != 0) memcpy(host, "-", 2);
    board_put(watch, BOARD_HOST, BOARD_PHASE - BOARD_HOST, host);
    board_put(watch, BOARD_PHASE, PHASE_BYTES, "starting");
}

void watch_exit(watch_t *watch, int code) {
    board_put(watch, BOARD_LINE, BOARD_LINE, "ended");
    _exit(code);
}

void watch_role(watch_t *watch, const char *role) {
    board_put(watch, 2 * BOARD_LINE, BOARD_LINE, role);
}

// By launch/run: "RANK SENTENCE" in session/lost.
bool watch_notice(const watch_t *watch, int *rank, char sentence[SENTENCE_BYTES]) {
    char text[512], said[SENTENCE_BYTES];
    if (!watch->notice) return false;
    int file = open(watch->notice, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    ssize_t size = read(file, text, sizeof(text));
    close(file);
    if (size <= 0 || !watch_lost_read(text, (size_t)size, rank, said)) return false;
    snprintf(sentence, SENTENCE_BYTES, "%.1900s; start the run again to go on from its last checkpoint", said);
    return true;
}

void watch_tell_launcher(const watch_t *watch, const char *sentence) {
    char path[4096];
    if (!watch->notice) return;
    snprintf(path, sizeof(path), "%s/said", getenv("POISE_SESSION"));
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return; // another machine's rank has said something
    dprintf(file, "%s\n", sentence);
    close(file);
}

void watch_say(int rank, const char *sentence) {
    char line[SENTENCE_BYTES];
    utf8_printable(sentence, strlen(sentence), line, sizeof(line));
    if (rank < 0)
        dprintf(STDERR_FILENO, "poise: %s\n", line);
    else
        dprintf(STDERR_FILENO, "poise: [rank %d] %s\n", rank, line);
}

// ---- what the main thread says ----

// Keeps a copy: the thread reads it after the caller's own text is gone.
static void name_where(watch_t *watch, watch_where_t *where, const char *name) {
    pthread_mutex_lock(&watch->where_mutex);
    snprintf(where->name, sizeof(where->name), "%s", name);
    pthread_mutex_unlock(&watch->where_mutex);
    board_put(watch, BOARD_PHASE, PHASE_BYTES, watch_where(watch).name);
}

void watch_phase(watch_t *watch, const char *phase, double limit_s) {
    if (!watch) return;
    watch->phase_limit = limit_s;
    name_where(watch, &watch->phase, phase);
    atomic_store(&watch->since, clock_seconds());
    atomic_store(&watch->limit, limit_s);
}

void watch_collective(watch_t *watch, const char *phase, double limit_s) {
    if (!watch) return;
    atomic_store(&watch->waits, false);
    if (phase) atomic_fetch_add(&watch->collectives, 1);
    name_where(watch, &watch->collective, phase ? phase : "");
    atomic_store(&watch->since, clock_seconds());
    atomic_store(&watch->limit, phase ? limit_s : watch->phase_limit);
}

void watch_waits(watch_t *watch) {
    if (watch) atomic_store(&watch->waits, true);
}

watch_where_t watch_where(watch_t *watch) {
    pthread_mutex_lock(&watch->where_mutex);
    watch_where_t where = watch->collective.name[0] ? watch->collective : watch->phase;
    pthread_mutex_unlock(&watch->where_mutex);
    return where;
}

// ---- the thread ----

static void overdue(watch_t *watch, double seconds) {
    failure_t failure = {.weight = FAILURE_CAUSE, .code = 1, .rank = watch->rank, .since = clock_seconds()};
    const char *role = watch->options.role ? watch->options.role : "this";
    if (watch->done) watch_exit(watch, watch->exit_code); // all is written; only closing MPI hangs
    if (watch->joined) {
        snprintf(failure.sentence, sizeof(failure.sentence),
                 "%s rank %d hangs in \"%s\": nothing has moved for %.0f s; start the run again to go on from its last "
                 "checkpoint, or raise the deadline if it is only slow (docs/manual.md, Deadlines)",
                 role, watch->rank, watch_where(watch).name, seconds);
        if (watch->failure.weight < FAILURE_CAUSE) watch->failure = failure;
        return;
    }
    watch_local_overdue(watch, seconds);
}

static void check_limit(watch_t *watch) {
    double limit = atomic_load(&watch->limit), since = atomic_load(&watch->since), now = clock_seconds();
    double late = now - watch->ticked - late_s;
    watch->ticked = now;
    if (watch->skipped_since != since) {
        watch->skipped = 0;
        watch->skipped_since = since;
    }
    if (late > 0) watch->skipped += late;
    if (limit <= 0 || now - since - watch->skipped <= limit || watch->failure.weight == FAILURE_CAUSE) return;
    overdue(watch, now - since - watch->skipped);
}

static void wait_alone(watch_t *watch) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(turn_s * 1e9);
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&watch->mutex);
    if (!watch->closing) pthread_cond_timedwait(&watch->changed, &watch->mutex, &until);
    pthread_mutex_unlock(&watch->mutex);
}

// A death before the ranks have joined: the launcher says it.
static void check_notice(watch_t *watch) {
    int rank;
    char sentence[SENTENCE_BYTES];
    if (watch_notice(watch, &rank, sentence)) watch_exit(watch, 1);
}

static void *watch_thread(void *argument) {
    watch_t *watch = argument;
    for (bool closing = false; !closing;) {
        pthread_mutex_lock(&watch->mutex);
        bool joined = watch->joined;
        closing = watch->closing;
        pthread_mutex_unlock(&watch->mutex);
        if (closing) break;
        if (joined)
            watch_ranks_turn(watch);
        else
            wait_alone(watch);
        if (!joined) {
            check_notice(watch);
            watch_local_turn(watch);
        } else {
            watch_local_close(watch);
        }
        pthread_mutex_lock(&watch->mutex);
        if (watch->start_failed) watch_local_overdue(watch, clock_seconds() - watch->opened);
        if (!watch->closing) check_limit(watch);
        pthread_mutex_unlock(&watch->mutex);
    }
    link_close(watch->link);
    hub_close(watch->hub);
    return NULL;
}

// ---- the door ----

status_t watch_open(watch_t **out) {
    watch_t *watch;
    *out = NULL;
    TRY(ALLOCATE(&watch, 1));
    watch->rank = comm_launcher_rank();
    watch->ticked = watch->opened = clock_seconds();
    pthread_mutex_init(&watch->where_mutex, NULL);
    pthread_mutex_init(&watch->board_mutex, NULL);
    board_open(watch);
    watch_local_open(watch);
    if (watch->board && asprintf(&watch->notice, "%s/lost", getenv("POISE_SESSION")) < 0) watch->notice = NULL;
    watch_phase(watch, "starting", 0);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&watch->mutex, NULL);
    pthread_cond_init(&watch->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    status_t status = transport_start_thread(&watch->thread, watch_thread, watch);
    if (status) {
        pthread_cond_destroy(&watch->changed);
        pthread_mutex_destroy(&watch->mutex);
        pthread_mutex_destroy(&watch->board_mutex);
        pthread_mutex_destroy(&watch->where_mutex);
        watch_local_close(watch);
        if (watch->board) munmap(watch->board, BOARD_BYTES);
        free(watch->notice);
        free(watch);
        PASS_ON(status);
    }
    *out = watch;
    return STATUS_OK;
}

void watch_close(watch_t *watch) {
    if (!watch) return;
    pthread_mutex_lock(&watch->mutex);
    watch->closing = true;
    pthread_cond_broadcast(&watch->changed);
    pthread_mutex_unlock(&watch->mutex);
    // A stream's own thread may hang; all is written by now.
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += CLOSING_S;
    if (pthread_timedjoin_np(watch->thread, NULL, &until) != 0) watch_exit(watch, watch->exit_code);
    board_put(watch, BOARD_LINE, BOARD_LINE, "ended");
    if (watch->board) munmap(watch->board, BOARD_BYTES);
    watch_local_close(watch);
    pthread_cond_destroy(&watch->changed);
    pthread_mutex_destroy(&watch->mutex);
    pthread_mutex_destroy(&watch->board_mutex);
    pthread_mutex_destroy(&watch->where_mutex);
    free(watch->peer);
    free(watch->notice);
    free(watch);
}

void watch_fail(watch_t *watch, status_t status) {
    if (!watch) return;
    pthread_mutex_lock(&watch->mutex);
    board_put(watch, BOARD_LINE, BOARD_LINE, "ended");
    status_kind_t kind = status_kind(status);
    // A wait for the others that has failed before all had joined: the ranks of this machine find out who hangs.
    watch->start_failed = !watch->joined && watch->local >= 0 && kind == STATUS_TIMEOUT;
    if (watch->joined || watch->start_failed) {
        failure_t failure = {.weight = FAILURE_CAUSE, .rank = watch->rank, .since = clock_seconds()};
        failure.code = status_exit_code(status);
        failure.overdue = kind == STATUS_TIMEOUT && watch->collective.name[0];
        if (kind == STATUS_PEER || kind == STATUS_TIMEOUT) failure.weight = FAILURE_CONSEQUENCE;
        snprintf(failure.sentence, sizeof(failure.sentence), "%s", status_message(status));
        if (watch->joined && watch->failure.weight < failure.weight) watch->failure = failure;
        // The thread ends the process. If it cannot, the caller does.
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += (time_t)notice_s;
        if (watch->start_failed) until.tv_sec += (time_t)notice_s; // they ask, and then wait for a speaker
        int waited = 0;
        while (waited == 0) waited = pthread_cond_timedwait(&watch->changed, &watch->mutex, &until);
    }
    pthread_mutex_unlock(&watch->mutex);
}

void watch_finish(watch_t *watch, int exit_code) {
    if (!watch) return;
    pthread_mutex_lock(&watch->mutex);
    watch->finished = true;
    watch->exit_code = exit_code;
    if (!watch->joined || watch->hub) watch->done = true;
    pthread_mutex_unlock(&watch->mutex);
}

void watch_ask_stop(watch_t *watch) {
    if (watch) atomic_store(&watch->stop, true);
}

bool watch_stop_asked(watch_t *watch) {
    return watch && atomic_load(&watch->stop);
}

bool watch_finished(watch_t *watch) {
    if (!watch) return false;
    pthread_mutex_lock(&watch->mutex);
    bool done = watch->done;
    pthread_mutex_unlock(&watch->mutex);
    return done;
}
