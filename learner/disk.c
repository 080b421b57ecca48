#include "learner/disk.h"

#include "common/comm/clock.h"

#include <string.h>
#include <sys/statvfs.h>
#include <time.h>

// Outcomes of a try, the worst of all learners counts.
enum { DISK_DONE, DISK_LATER, DISK_AGAIN, DISK_GIVE_UP, DISK_FAILED };
static const double pause_most_s = 5.0, tell_every_s = 60.0;

// "12.3 MB"
static void format_bytes(double bytes, char out[32]) {
    static const char *const unit[] = {"bytes", "kB", "MB", "GB", "TB"};
    int u = 0;
    for (; bytes >= 1000.0 && u < 4; u++) bytes /= 1000.0;
    snprintf(out, 32, u ? "%.1f %s" : "%.0f %s", bytes, unit[u]);
}

static void describe(const disk_task_t *task, status_t status, char *out, size_t size) {
    char needs[32], room[64] = "";
    struct statvfs disk;
    format_bytes((double)task->bytes, needs);
    bool read_only = false;
    if (!statvfs(task->folder, &disk)) {
        char available[32];
        read_only = disk.f_flag & ST_RDONLY;
        format_bytes((double)disk.f_bavail * (double)disk.f_frsize, available);
        snprintf(room, sizeof(room), ", %s are free there", available);
    }
    snprintf(out, size, "%s could not be written: %s; it needs %s%s in %s%s: %s", task->what, status_message(status),
             task->bytes ? "about " : "little", task->bytes ? needs : "", task->folder, room,
             read_only ? "the disk is read-only, make it writable again"
                       : "free space there, of files that are not the newest checkpoint's");
}

// Seconds that the last files are tried for. In GRPO the reward rank gives up a learner that says nothing for a step.
static double wait_limit(const learner_t *learner) {
    double limit = learner->config->checkpoint.wait_s, step = 0.9 * learner->config->deadline.step_s;
    return limit < step ? limit : step;
}

static int outcome_of(const learner_t *learner, const disk_task_t *task, status_t status, double begun) {
    const config_t *config = learner->config;
    if (!status) return DISK_DONE;
    if (!learner->first || status_kind(status) != STATUS_IO || config->checkpoint.on_failure == ON_FAILURE_STOP)
        return DISK_FAILED;
    if (!task->last) return DISK_LATER;
    return clock_seconds() - begun < wait_limit(learner) ? DISK_AGAIN : DISK_GIVE_UP;
}

// Learner 0 says what is wrong; while it waits, once a minute.
static void tell(const learner_t *learner, const disk_task_t *task, status_t status, int outcome, double begun,
                 double *told) {
    char text[1536];
    double now = clock_seconds();
    if (outcome == DISK_AGAIN && *told > 0.0 && now - *told < tell_every_s) return;
    *told = now;
    describe(task, status, text, sizeof(text));
    if (outcome == DISK_LATER)
        fprintf(stderr, "poise: %s; the run goes on, %s\n", text, task->next);
    else
        fprintf(stderr, "poise: %s; trying again for %.0f s more\n", text, wait_limit(learner) - (now - begun));
}

static void pause_for(const learner_t *learner) {
    double seconds = wait_limit(learner) / 20.0;
    if (seconds > pause_most_s) seconds = pause_most_s;
    struct timespec time = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&time, NULL);
    job_phase(learner->job, "waiting for room on the disk");
}

static status_t give_up(const learner_t *learner, const disk_task_t *task, status_t status) {
    char text[1536];
    describe(task, status, text, sizeof(text));
    status_free(status);
    FAIL(STATUS_IO,
         "%s; given up after %.0f s (checkpoint.wait_s), the same command goes on from the last whole "
         "checkpoint",
         text, wait_limit(learner));
}

status_t disk_try(learner_t *learner, const disk_task_t *task) {
    double begun = clock_seconds(), told = 0.0;
    for (;;) {
        status_t status = task->run(task->context);
        int64_t worst = outcome_of(learner, task, status, begun);
        int own = (int)worst;
        status_t reduced = comm_all_reduce_i64(learner->comm, &worst, 1, COMM_MAX, task->what);
        if (reduced || worst == DISK_FAILED) {
            // A learner that failed says why itself; learner 0's disk is then the smaller trouble.
            if (status && (reduced || own == DISK_FAILED)) return status_first(status, reduced);
            status_free(status);
            if (reduced) return reduced;
            FAIL(STATUS_PEER, "another learner failed in \"%s\"; its message says why", task->what);
        }
        if (worst == DISK_DONE) return STATUS_OK;
        if (worst == DISK_GIVE_UP && status) return give_up(learner, task, status);
        if (worst == DISK_GIVE_UP) FAIL(STATUS_PEER, "learner 0 could not write %s; its message says why", task->what);
        if (status) tell(learner, task, status, own, begun, &told);
        status_free(status);
        if (worst == DISK_LATER) return STATUS_OK;
        pause_for(learner);
    }
}
