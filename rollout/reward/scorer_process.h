// The processes behind scorers: how one is started, and how it and everything that it has started end.
#ifndef ROLLOUT_REWARD_SCORER_PROCESS_H
#define ROLLOUT_REWARD_SCORER_PROCESS_H

#include "kernels/base/status.h"
#include <sys/types.h>

typedef struct scorer_process {
    pid_t pid;    // 0: not running
    int socket;   // requests and answers, non-blocking
    int messages; // reading end of its standard error, non-blocking; -1 once that is closed
} scorer_process_t;

// `program __scorer` in a process group of its own, with descriptors 0 and 1 on the socket, 2 on the pipe and no
// others; without core files; with at most `memory_mb` MiB of address space and of any file; and without the right to
// start processes, where the user has no privileges that override that.
status_t scorer_process_start(const char *program, int64_t memory_mb, scorer_process_t *out) STATUS_CHECKED;
// Kills the process and its group, waits for it and closes its descriptors. how (may be NULL): a few words on how it
// had ended by itself, or "" when it was still running.
void scorer_process_end(scorer_process_t *process, char how[64]);
// Whether the process has children.
bool scorer_process_has_children(const scorer_process_t *process);

// What a scorer's process leaves behind when it ends, or puts into the background, becomes a child of this process
// between open and close, wherever it has moved itself (a group or session of its own is no way out).
typedef struct scorer_orphans {
    int was_subreaper;
    pid_t *before; // children of this process that are no business of scorers
    size_t before_count;
} scorer_orphans_t;
status_t scorer_orphans_open(scorer_orphans_t *out) STATUS_CHECKED;
// Kills all children of this process that are neither `known` nor were there before. Takes at most a second or two.
void scorer_orphans_end(const scorer_orphans_t *orphans, const pid_t *known, size_t known_count);
void scorer_orphans_close(scorer_orphans_t *orphans);

#endif
