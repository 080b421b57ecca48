#include "common/comm/job.h"

#include "common/comm/placement.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { KEY_BYTES = 41, ENDPOINT_LIMIT = 512, LINK_MAX_MESSAGE = 64 << 20, LINK_WINDOW = 256 };

const char *role_name(role_t role) {
    static const char *const name[ROLE_COUNT] = {"learner", "rollout", "reward"};
    return role >= 0 && role < ROLE_COUNT ? name[role] : "unknown";
}

// Fills the two counts for GRPO. Every rank computes the same from the same configuration, so all fail alike.
static status_t count_roles(const config_t *config, int size, int *learners, int *rollouts) {
    int wanted_learners = config->roles.learners, wanted_rollouts = config->roles.rollouts, rest = size - 1;
    if (wanted_learners < 0 || wanted_rollouts < 0)
        FAIL(STATUS_INVALID, "roles.learners and roles.rollouts must be 0 (from the world size) or more");
    if (config->roles.colocated) {
        if (config->grpo.staleness > 0)
            FAIL(STATUS_INVALID, "roles.colocated generates from the current weights only; set grpo.staleness to 0, or "
                                 "give rollouts ranks of their own");
        int wanted = wanted_learners ? wanted_learners : wanted_rollouts;
        if (wanted_learners && wanted_rollouts && wanted_learners != wanted_rollouts)
            FAIL(STATUS_INVALID,
                 "roles.colocated means that the same ranks learn and generate: set roles.learners (%d) and "
                 "roles.rollouts (%d) to the same number, or to 0",
                 wanted_learners, wanted_rollouts);
        if (rest < 1)
            FAIL(STATUS_INVALID,
                 "GRPO with roles.colocated needs one reward rank and at least one more: start it with "
                 "mpirun -n 2 or more, not -n %d",
                 size);
        if (wanted && wanted != rest)
            FAIL(STATUS_INVALID, "%d colocated ranks and 1 reward rank need mpirun -n %d, not -n %d", wanted,
                 wanted + 1, size);
        *learners = *rollouts = rest;
        return STATUS_OK;
    }
    int least = (wanted_learners ? wanted_learners : 1) + (wanted_rollouts ? wanted_rollouts : 1) + 1;
    if (size < least)
        FAIL(
            STATUS_INVALID,
            "GRPO with roles.learners %d and roles.rollouts %d (0: from the world size) and 1 reward rank needs mpirun "
            "-n %d%s, not -n %d",
            wanted_learners, wanted_rollouts, least, wanted_learners && wanted_rollouts ? "" : " or more", size);
    if (wanted_learners && wanted_rollouts && size != least)
        FAIL(STATUS_INVALID, "%d learners, %d rollout workers and 1 reward rank need mpirun -n %d, not -n %d",
             wanted_learners, wanted_rollouts, least, size);
    if (wanted_learners)
        *learners = wanted_learners;
    else if (wanted_rollouts)
        *learners = rest - wanted_rollouts;
    else
        *learners = rest / 2;
    *rollouts = rest - *learners;
    return STATUS_OK;
}

static void take_role(job_t *job, bool grpo) {
    int rank = comm_rank(job->world), size = comm_size(job->world);
    job->role = ROLE_LEARNER;
    job->role_index = rank;
    if (!grpo) return;
    if (rank == size - 1) {
        job->role = ROLE_REWARD;
        job->role_index = 0;
    } else if (rank >= job->learner_count) {
        job->role = ROLE_ROLLOUT;
        job->role_index = rank - job->learner_count;
    }
}

static void stop_signals(sigset_t *stops) {
    sigemptyset(stops);
    sigaddset(stops, SIGUSR1);
    sigaddset(stops, SIGTERM);
    sigaddset(stops, SIGINT);
}

status_t job_hold_signals(void) {
    sigset_t stops;
    stop_signals(&stops);
    if (pthread_sigmask(SIG_BLOCK, &stops, NULL) != 0) FAIL(STATUS_FAILED, "cannot block signals");
    return STATUS_OK;
}

status_t job_open_signals(job_t *job) {
    sigset_t stops;
    stop_signals(&stops);
    TRY(job_hold_signals());
    job->signal_fd = signalfd(-1, &stops, SFD_NONBLOCK | SFD_CLOEXEC);
    if (job->signal_fd < 0) FAIL(STATUS_FAILED, "cannot open a signal descriptor: %s", strerror(errno));
    return STATUS_OK;
}

void job_release_signals(void) {
    sigset_t stops;
    stop_signals(&stops);
    pthread_sigmask(SIG_UNBLOCK, &stops, NULL);
}

status_t job_share_keys(comm_t *world, char **public_key, char **secret_key) {
    struct {
        char public_key[KEY_BYTES], secret_key[KEY_BYTES], failure[256];
    } keys;
    memset(&keys, 0, sizeof(keys));
    int root = comm_size(world) - 1;
    if (comm_rank(world) == root) {
        status_t status = link_make_keys(keys.public_key, keys.secret_key);
        if (status) snprintf(keys.failure, sizeof(keys.failure), "%s", status_message(status));
        status_free(status);
    }
    TRY(comm_broadcast(world, &keys, sizeof(keys), root, "sharing keys"));
    if (keys.failure[0]) FAIL(STATUS_UNAVAILABLE, "%s", keys.failure);
    TRY(memory_copy_bytes(keys.public_key, KEY_BYTES - 1, public_key));
    return memory_copy_bytes(keys.secret_key, KEY_BYTES - 1, secret_key);
}

static status_t open_parts(job_t *job) {
    const config_t *config = job->config;
    comm_set_deadline(job->world, config->deadline.start_s);
    TRY(job_open_signals(job));
    TRY(placement_share(job->world, config->device, job->role != ROLE_REWARD, job->device));
    if (comm_hosts(job->world) > 1 || config->roles.pools_elsewhere)
        TRY(job_share_keys(job->world, &job->public_key, &job->secret_key));
    TRY(comm_split(job->world, job->role == ROLE_LEARNER ? 0 : -1, &job->learners));
    if (job->learners) comm_set_deadline(job->learners, config->deadline.collective_s);
    return STATUS_OK;
}

status_t job_open(const config_t *config, comm_t *world, bool grpo, const char *program, job_t *out) {
    memset(out, 0, sizeof(*out));
    out->signal_fd = -1;
    out->config = config;
    out->world = world;
    out->program = program;
    out->learner_count = comm_size(world);
    if (grpo) TRY(count_roles(config, comm_size(world), &out->learner_count, &out->rollout_count));
    take_role(out, grpo);
    status_t status = open_parts(out);
    if (status) job_close(out);
    return status;
}

void job_close(job_t *job) {
    comm_close(job->learners);
    free(job->coordinator_endpoint);
    free(job->public_key);
    if (job->secret_key) explicit_bzero(job->secret_key, strlen(job->secret_key));
    free(job->secret_key);
    if (job->signal_fd >= 0) close(job->signal_fd);
    memset(job, 0, sizeof(*job));
    job->signal_fd = -1;
}

void job_phase(const job_t *job, const char *phase) {
    watch_phase(job->watch, phase, job->config->deadline.step_s);
}

bool job_stop_requested(job_t *job) {
    struct signalfd_siginfo information;
    while (job->signal_fd >= 0 && read(job->signal_fd, &information, sizeof(information)) == sizeof(information)) {
        // That is mpirun's daemon on a machine that has lost the others, about to kill its ranks. The run does without.
        if (job->role == ROLE_ROLLOUT && job->watch && information.ssi_signo == SIGTERM)
            fprintf(stderr, "poise: rollout rank %d was sent TERM by process %u; that alone does not stop the run\n",
                    comm_world_rank(job->world), information.ssi_pid);
        else
            job->stop_seen = true;
    }
    if (job->stop_seen) watch_ask_stop(job->watch);
    return job->stop_seen || watch_stop_asked(job->watch);
}

// What the reward rank tells all: where its hub listens, or why there is none.
typedef struct start_note {
    char endpoint[ENDPOINT_LIMIT], sentence[1024];
    bool wrong_use;
} start_note_t;

static status_t share_note(job_t *job, start_note_t *note) {
    return comm_broadcast(job->world, note, sizeof(*note), comm_size(job->world) - 1,
                          "sharing the coordinator's address");
}

status_t job_share_endpoint(job_t *job, const char *endpoint_or_null) {
    start_note_t note = {0};
    int root = comm_size(job->world) - 1;
    // A reward rank that has none still takes part, so that the others hear of it instead of waiting.
    if (comm_rank(job->world) == root && endpoint_or_null && strlen(endpoint_or_null) < sizeof(note.endpoint))
        memcpy(note.endpoint, endpoint_or_null, strlen(endpoint_or_null));
    TRY(share_note(job, &note));
    note.endpoint[sizeof(note.endpoint) - 1] = note.sentence[sizeof(note.sentence) - 1] = 0;
    if (note.wrong_use) FAIL(STATUS_INVALID, "%s", note.sentence);
    if (!note.endpoint[0])
        FAIL(STATUS_PEER, "the reward rank (rank %d) could not start: %s", root,
             note.sentence[0] ? note.sentence : "it has no endpoint");
    free(job->coordinator_endpoint);
    job->coordinator_endpoint = NULL;
    return memory_copy_string(note.endpoint, &job->coordinator_endpoint);
}

status_t job_share_failure(job_t *job, status_t failure) {
    start_note_t note = {.wrong_use = status_kind(failure) == STATUS_INVALID};
    snprintf(note.sentence, sizeof(note.sentence), "%s", status_message(failure));
    return share_note(job, &note);
}

const char *job_bind_endpoint(const job_t *job) {
    return job->public_key ? "tcp://*:*" : "tcp://127.0.0.1:*";
}

const char *job_device(const job_t *job) {
    return job->device[0] ? job->device : job->config->device;
}

int job_rank(const job_t *job) {
    return job->world ? comm_world_rank(job->world) : job->outside_rank;
}

link_options_t job_link_options_of(const job_t *job, const config_t *config) {
    return (link_options_t){
        .public_key = job->public_key,
        .secret_key = job->secret_key,
        .heartbeat_s = config->deadline.heartbeat_s,
        .max_message = LINK_MAX_MESSAGE,
        .window = LINK_WINDOW,
    };
}

link_options_t job_link_options(const job_t *job) {
    return job_link_options_of(job, job->config);
}
