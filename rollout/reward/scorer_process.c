#include "rollout/reward/scorer_process.h"

#include "common/comm/clock.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void sleep_ms(long milliseconds) {
    nanosleep(&(struct timespec){.tv_nsec = milliseconds * 1000000}, NULL);
}

// ---- starting ----

static int spawn(const char *program, int socket, int messages, pid_t *pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, socket, 0);
    posix_spawn_file_actions_adddup2(&actions, socket, 1);
    posix_spawn_file_actions_adddup2(&actions, messages, 2);
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
    // MPI and ZeroMQ leave descriptors open across exec: a scorer has no use for the job's connections.
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
#endif
    posix_spawnattr_init(&attributes);
    // A group of its own, so that what a scorer forks dies with it; and no blocked signals from this process.
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    char name[] = "poise", command[] = "__scorer";
    char *arguments[] = {name, command, NULL};
    int error = posix_spawn(pid, program, &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

static void limit(pid_t pid, int resource, rlim_t most) {
    struct rlimit both = {.rlim_cur = most, .rlim_max = most};
    prlimit(pid, (enum __rlimit_resource)resource, &both, NULL);
}

status_t scorer_process_start(const char *program, int64_t memory_mb, scorer_process_t *out) {
    int pair[2], lines[2];
    *out = (scorer_process_t){.socket = -1, .messages = -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        FAIL(STATUS_FAILED, "cannot make a socket pair for a scorer: %s", strerror(errno));
    if (pipe2(lines, O_CLOEXEC)) {
        int error = errno;
        close(pair[0]);
        close(pair[1]);
        FAIL(STATUS_FAILED, "cannot make a pipe for a scorer: %s", strerror(error));
    }
    int error = spawn(program, pair[1], lines[1], &out->pid);
    close(pair[1]);
    close(lines[1]);
    if (error) {
        close(pair[0]);
        close(lines[0]);
        out->pid = 0;
        FAIL(STATUS_FAILED, "cannot start a scorer (%s): %s", program, strerror(error));
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    // A sanitizer reserves a good part of all addresses, and the thread sanitizer refuses to run under any limit.
    limit(out->pid, RLIMIT_AS, (rlim_t)memory_mb << 20);
#endif
    limit(out->pid, RLIMIT_FSIZE, (rlim_t)memory_mb << 20);
    limit(out->pid, RLIMIT_CORE, 0);
    limit(out->pid, RLIMIT_NPROC, 0);
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    fcntl(lines[0], F_SETFL, O_NONBLOCK);
    out->socket = pair[0];
    out->messages = lines[0];
    return STATUS_OK;
}

// ---- ending ----

// Waits for the end of a process at most so long. false: it goes on, or is nobody that can be waited for.
static bool wait_for(pid_t pid, double seconds, int *how) {
    double until = clock_seconds() + seconds;
    for (;;) {
        pid_t ended = waitpid(pid, how, WNOHANG);
        if (ended == pid) return true;
        if (ended < 0 && errno != EINTR) return false;
        if (clock_seconds() >= until) return false;
        sleep_ms(1);
    }
}

void scorer_process_end(scorer_process_t *process, char how[64]) {
    int end = 0;
    if (how) *how = 0;
    if (!process->pid) return;
    // One whose connection closed is mostly about to end: how, is worth a moment.
    bool ended = how && wait_for(process->pid, 0.02, &end);
    if (ended && WIFSIGNALED(end))
        snprintf(how, 64, "was ended by signal %d (%s)", WTERMSIG(end), strsignal(WTERMSIG(end)));
    else if (ended)
        snprintf(how, 64, "ended with code %d", WEXITSTATUS(end));
    kill(-process->pid, SIGKILL);
    // A process that no signal reaches (a disk that hangs) must not hold up the run: it is left to scorer_orphans_end.
    if (!ended) {
        kill(process->pid, SIGKILL);
        (void)wait_for(process->pid, 2, &end);
    }
    close(process->socket);
    if (process->messages >= 0) close(process->messages);
    *process = (scorer_process_t){.socket = -1, .messages = -1};
}

// ---- children ----

// Appends the children of one thread; the kernel lists them in /proc/PID/task/THREAD/children.
static status_t add_children(pid_t pid, const char *thread, pid_t **list, size_t *count, size_t *capacity) {
    char path[320];
    long child;
    snprintf(path, sizeof(path), "/proc/%d/task/%s/children", (int)pid, thread);
    FILE *file = fopen(path, "re");
    if (!file) return STATUS_OK; // the thread has ended
    status_t status = STATUS_OK;
    while (!status && fscanf(file, "%ld", &child) == 1) {
        status = memory_grow((void **)list, capacity, *count + 1, sizeof(**list));
        if (!status) (*list)[(*count)++] = (pid_t)child;
    }
    fclose(file);
    return status;
}

static status_t children_of(pid_t pid, pid_t **list, size_t *count) {
    char path[64];
    size_t capacity = 0;
    *list = NULL;
    *count = 0;
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *threads = opendir(path);
    if (!threads) return STATUS_OK;
    status_t status = STATUS_OK;
    for (const struct dirent *entry; !status && (entry = readdir(threads));)
        if (entry->d_name[0] != '.') status = add_children(pid, entry->d_name, list, count, &capacity);
    closedir(threads);
    return status;
}

bool scorer_process_has_children(const scorer_process_t *process) {
    pid_t *list;
    size_t count;
    status_free(children_of(process->pid, &list, &count)); // what was found before memory ran short counts
    free(list);
    return count > 0;
}

status_t scorer_orphans_open(scorer_orphans_t *out) {
    *out = (scorer_orphans_t){0};
    TRY(children_of(getpid(), &out->before, &out->before_count));
    if (prctl(PR_GET_CHILD_SUBREAPER, &out->was_subreaper, 0, 0, 0) || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) {
        int error = errno;
        free(out->before);
        *out = (scorer_orphans_t){0};
        FAIL(STATUS_FAILED, "cannot see to what scorers leave behind: %s", strerror(error));
    }
    return STATUS_OK;
}

static bool listed(const pid_t *list, size_t count, pid_t pid) {
    for (size_t i = 0; i < count; i++)
        if (list[i] == pid) return true;
    return false;
}

void scorer_orphans_end(const scorer_orphans_t *orphans, const pid_t *known, size_t known_count) {
    double until = clock_seconds() + 2;
    // The end of one makes orphans of its own children: until none is left.
    for (bool found = true; found && clock_seconds() < until;) {
        pid_t *list;
        size_t count;
        found = false;
        status_free(children_of(getpid(), &list, &count));
        for (size_t i = 0; i < count; i++) {
            if (listed(known, known_count, list[i]) || listed(orphans->before, orphans->before_count, list[i]))
                continue;
            int end;
            found = true;
            kill(-list[i], SIGKILL); // where it leads a group; else there is no such group
            kill(list[i], SIGKILL);
            (void)wait_for(list[i], 0.1, &end);
        }
        free(list);
    }
}

void scorer_orphans_close(scorer_orphans_t *orphans) {
    if (!orphans->was_subreaper) prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    free(orphans->before);
    *orphans = (scorer_orphans_t){0};
}
