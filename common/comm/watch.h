// Watch: a thread in every rank of a job that ends the process when its main thread hangs or another rank is lost.
//
// The main thread says what it is doing and how long that may take; a collective says so by itself. Ranks that have
// joined also hear of each other over ZeroMQ: one of them, the host (the rank that writes the run's result), collects
// who is alive and who is in which phase. When a rank fails, dies, stands still or hangs, the host decides on the one
// sentence that names who and where, prints it, has it written as the run's result, and tells the others, which end
// without a word. When the host itself is lost, the lowest other rank does that in its place. Rollout workers are
// replaced, so theirs ends nothing. All functions take watch == NULL and then do nothing.
#ifndef COMMON_COMM_WATCH_H
#define COMMON_COMM_WATCH_H

#include "common/wire/link.h"

typedef struct comm comm_t;
typedef struct watch watch_t;

// Starts the thread. Before MPI: the rank comes from the launcher's environment. With POISE_SESSION naming a folder
// (launch/run makes it) the rank keeps a file there, session/rank.R: its process, role and phase.
status_t watch_open(watch_t **out) STATUS_CHECKED;
// Leaves the others (who must be done too, see watch_finish) and frees.
void watch_close(watch_t *watch);

// What the main thread does from now on ("writing a checkpoint"; a copy is kept), and for how many seconds without
// another call before it counts as hanging. Cheap.
void watch_phase(watch_t *watch, const char *phase, double limit_s);
// The same around a collective, by comm; NULL ends it and counts the phase before it anew.
void watch_collective(watch_t *watch, const char *phase_or_null, double limit_s);
// This rank has done its part of the collective and waits for the others. (One that hangs inside MPI has not.)
void watch_waits(watch_t *watch);

typedef struct watch_options {
    int host;              // world rank that decides
    const char *host_role; // its role: "reward"
    const char *role;      // of this rank, static: "learner"
    bool essential;        // the job cannot go on without this rank (false: rollout workers)
    link_options_t link;   // keys and heartbeat; borrowed until the call returns
    const char *bind;      // where the host listens
    double start_s;        // deadline of joining
    // Called in the watch's thread of the rank that speaks for the job, just before it ends: writes the run's result.
    void (*conclude)(void *context, int exit_code, const char *sentence);
    // May be NULL. Whether another rank has concluded: one that stood still, and that the others gave up, may come
    // back.
    bool (*concluded)(void *context);
    void *context;
} watch_options_t;
// Collective over the world: the host listens, the others join it.
status_t watch_join(watch_t *watch, comm_t *world, const watch_options_t *options) STATUS_CHECKED;

// This rank has failed with `status` (which stays the caller's). Does not return where the job's ranks are joined and
// the host takes over: the process ends with the job's exit code. Returns when there is nobody to tell; the caller then
// prints and ends the process.
void watch_fail(watch_t *watch, status_t status);
// This rank has been asked to stop: all joined ranks hear of it. And whether any has.
void watch_ask_stop(watch_t *watch);
bool watch_stop_asked(watch_t *watch);
// This rank's part is done; only closing MPI is left. On the host, after the result was written: from then on no rank's
// end is a failure, and ranks that cannot close MPI because one is missing end with `exit_code`.
void watch_finish(watch_t *watch, int exit_code);
// Whether the host has said that the run's result is written.
bool watch_finished(watch_t *watch);

#endif
