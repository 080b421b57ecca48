// Job: what every rank of a run carries with it: configuration, role, communicators, stop requests.
#ifndef COMMON_COMM_JOB_H
#define COMMON_COMM_JOB_H

#include "common/comm/clock.h"
#include "common/comm/comm.h"
#include "common/comm/watch.h"
#include "common/config/config.h"
#include "common/wire/link.h"
#include "kernels/ledger.h"

typedef enum role { ROLE_LEARNER, ROLE_ROLLOUT, ROLE_REWARD, ROLE_COUNT } role_t;
const char *role_name(role_t role);

typedef struct job {
    const config_t *config;
    comm_t *world;    // NULL in a rollout pool, which is not part of the job's MPI world
    int outside_rank; // of a rollout pool's worker, as the job calls it
    comm_t *learners; // NULL on ranks that do not learn
    char device[64];  // config->device, with the number of this rank's GPU; empty: as it stands there
    role_t role;
    int role_index; // among the ranks of its role
    int learner_count, rollout_count;
    const char *program;        // path of this executable, for scorer children
    char *coordinator_endpoint; // of the reward rank ("tcp://..."), the same on all ranks; NULL in SFT
    char *public_key;           // CURVE keys (Z85, 40 characters) of the job when it listens beyond loopback, else NULL
    char *secret_key;
    int signal_fd; // signalfd of USR1, TERM, INT; -1 when there is none
    bool stop_seen;
    ledger_report_t memory; // what a dry run found that this rank takes
    watch_t *watch;         // of this process; set by whoever opened it, NULL in tests
} job_t;

// SFT: every rank learns. GRPO: world = learners + rollouts + 1 (colocated: learners + 1). The last rank is the reward
// rank. Checks the roles against the world size (the error says which mpirun -n fits) and colocated ranks against
// grpo.staleness, which keeps versions that they have no room for. Blocks USR1, TERM and INT
// in the calling thread (threads started later inherit that; spawned children must be given an empty mask) and reads
// them from signal_fd. Ranks on several nodes get a fresh CURVE key pair. Sets the deadlines of the communicators.
// Collective.
status_t job_open(const config_t *config, comm_t *world, bool grpo, const char *program, job_t *out) STATUS_CHECKED;
void job_close(job_t *job);
// Blocks USR1, TERM and INT in this thread and those it starts. Commands that run as jobs call it before MPI starts, so
// that a request that comes while ranks are starting waits for job_stop_requested instead of killing them. job_open
// calls it too.
status_t job_hold_signals(void) STATUS_CHECKED;
// The opposite, after job_open: for commands that have nothing to keep, which a signal may end at once.
void job_release_signals(void);
// A fresh CURVE key pair (Z85, to be freed), made by the last rank, known to every rank through MPI and to nobody else.
// job_open calls it where it is needed. Collective.
status_t job_share_keys(comm_t *world, char **public_key, char **secret_key) STATUS_CHECKED;
// Tells the watch what this rank does now: local work of a step, which may take deadline.step_s.
void job_phase(const job_t *job, const char *phase);
// Whether this rank or, where they have joined by a watch, another has been asked to stop (USR1: at the next step
// boundary, with a checkpoint). Cheap; not collective: ranks may hear of it at different times.
// Learners agree on it by a collective of their own.
bool job_stop_requested(job_t *job);
// Tells all ranks where the reward rank's hub listens: that rank passes the endpoint, the others NULL; afterwards
// job->coordinator_endpoint is set everywhere. Collective over the world. GRPO only.
status_t job_share_endpoint(job_t *job, const char *endpoint_or_null) STATUS_CHECKED;
// The reward rank's part in that collective when it could not start: the others' call fails with its sentence, as wrong
// use where it was that. `failure` stays the caller's. The returned status is the collective's own.
status_t job_share_failure(job_t *job, status_t failure) STATUS_CHECKED;
// The name to open this rank's device by (common/comm/placement.h).
const char *job_device(const job_t *job);
// This process's rank in the job, for messages: in MPI_COMM_WORLD, or behind it for a rollout pool's worker.
int job_rank(const job_t *job);
// Blocks the signals above and opens signal_fd. job_open does; for processes that take part without MPI.
status_t job_open_signals(job_t *job) STATUS_CHECKED;
// Where a hub of this job binds: loopback when all ranks are on one node, every interface (with keys) otherwise.
const char *job_bind_endpoint(const job_t *job);
// Keys, heartbeat and limits of this job's hubs and links. Borrows from the job.
link_options_t job_link_options(const job_t *job);
// The same before the job's own configuration is known.
link_options_t job_link_options_of(const job_t *job, const config_t *config);

#endif
