#include "launch/report_gnuplot.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { OUTPUT_BYTES = 4096, DEADLINE_MS = 60000, POLL_MS = 5 };

// What the child printed, first OUTPUT_BYTES bytes, from the file it printed to.
static void read_output(int file, char *out) {
    ssize_t length = pread(file, out, OUTPUT_BYTES - 1, 0);
    out[length > 0 ? length : 0] = 0;
}

// Waits, and kills the child when its time is over. Returns its wait status; -1 after the deadline.
static int wait_for(pid_t child) {
    for (int waited = 0;; waited += POLL_MS) {
        int result;
        pid_t ended = waitpid(child, &result, WNOHANG);
        if (ended == child) return result;
        if ((ended < 0 && errno != EINTR) || waited >= DEADLINE_MS) {
            kill(child, SIGKILL);
            waitpid(child, &result, 0);
            return -1;
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
    }
}

static int spawn(const char *directory, const char *argument, int output, pid_t *child) {
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return error;
    char program[] = "gnuplot", *copy = strdup(argument);
    char *const arguments[] = {program, copy, NULL};
    if (!copy) error = ENOMEM;
    if (!error) error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!error) error = posix_spawn_file_actions_adddup2(&actions, output, 1);
    if (!error) error = posix_spawn_file_actions_adddup2(&actions, output, 2);
    if (!error && directory) error = posix_spawn_file_actions_addchdir_np(&actions, directory);
    if (!error) error = posix_spawnp(child, program, &actions, NULL, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    free(copy);
    return error;
}

// Runs `gnuplot ARGUMENT`; *result is its wait status (-1: deadline), *missing whether there is none.
static status_t run(const char *directory, const char *argument, char *output, int *result, bool *missing) {
    char path[] = "/tmp/poise-gnuplot-XXXXXX";
    int file = mkostemp(path, O_CLOEXEC);
    if (file < 0) FAIL(STATUS_IO, "cannot make a temporary file in /tmp: %s", strerror(errno));
    unlink(path);
    pid_t child;
    int error = spawn(directory, argument, file, &child);
    *missing = error == ENOENT || error == EACCES;
    *result = -1;
    output[0] = 0;
    if (!error) {
        *result = wait_for(child);
        read_output(file, output);
    }
    close(file);
    if (error && !*missing) FAIL(STATUS_FAILED, "cannot start gnuplot: %s", strerror(error));
    return STATUS_OK;
}

status_t gnuplot_version(char **out) {
    char output[OUTPUT_BYTES];
    int result;
    bool missing;
    *out = NULL;
    TRY(run(NULL, "--version", output, &result, &missing));
    if (missing || result != 0) return STATUS_OK;
    output[strcspn(output, "\n")] = 0;
    return memory_copy_string(output, out);
}

status_t gnuplot_run(const char *directory, const char *script, char **complaint) {
    char output[OUTPUT_BYTES];
    int result;
    bool missing;
    *complaint = NULL;
    TRY(run(directory, script, output, &result, &missing));
    if (!missing && result == 0) return STATUS_OK;
    if (missing) return memory_copy_string("there is no gnuplot", complaint);
    if (result == -1) return memory_copy_string("it took longer than a minute", complaint);
    char *last = output, *end = output + strlen(output);
    while (end > output && strchr(" \n\t", end[-1])) *--end = 0;
    for (char *line = output; (line = strchr(line, '\n'));) last = ++line;
    return memory_copy_string(*last ? last : "it ended with an error", complaint);
}
