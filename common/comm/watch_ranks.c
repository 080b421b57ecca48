// Who is alive, who is lost, and who says so.
#include "common/comm/watch_internal.h"

#include "common/comm/clock.h"
#include "common/comm/comm.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Frames are text, in the payloads of a stream of common/wire:
//   hello   RANK ESSENTIAL ROLE             B WAITING COLLECTIVES PHASE   a rank's phase (waiting: in a collective)
//   F WEIGHT CODE OVERDUE SENTENCE          a rank has failed
//   E CODE                                  from the host: end, with this exit code
//   S                                       some rank was asked to stop; the host passes it on
//   D LOST                                  from the host: the result is written; LOST 1: MPI cannot be closed
enum {
    FRAME_BYTES = SENTENCE_BYTES + 64,
    EVENTS_A_TURN = 64,
    LONGEST_CONCLUSION_S = 20,
    ENDPOINT_BYTES = 512,
    STUCK_S = 1
};
static const double turn_s = 0.1, beat_s = 0.25, settle_s = 1.0, answer_s = 4.0;

static status_t text_buffer(const char *text, link_buffer_t *out) {
    size_t size = strlen(text);
    TRY(memory_allocate(size + 1, 1, (void **)&out->data));
    memcpy(out->data, text, size + 1);
    out->size = size + 1;
    return STATUS_OK;
}

// The frame's text, or NULL when it is none.
static const char *frame_text(const link_buffer_t *buffer) {
    bool ends = buffer->size > 0 && buffer->size <= FRAME_BYTES && buffer->data[buffer->size - 1] == 0;
    return ends ? (const char *)buffer->data : NULL;
}

// What cannot be sent now is of no use later: who does not answer is found by its silence.
static void link_tell(link_t *link, const char *text) {
    link_buffer_t buffer;
    status_t status = text_buffer(text, &buffer);
    if (!status) status = link_send(link, buffer, 0);
    status_free(status);
}

static void host_tell(watch_t *watch, const char *text) {
    for (int rank = 0; rank < watch->size; rank++) {
        link_buffer_t buffer;
        if (!watch->peer[rank].here) continue;
        status_t status = text_buffer(text, &buffer);
        if (!status) status = hub_send(watch->hub, watch->peer[rank].number, buffer);
        status_free(status);
    }
}

// ---- joining ----

static status_t host_open(watch_t *watch, char endpoint[ENDPOINT_BYTES]) {
    TRY(ALLOCATE(&watch->peer, watch->size));
    TRY(hub_open(watch->options.bind, &watch->options.link, &watch->hub));
    snprintf(endpoint, ENDPOINT_BYTES, "%s", hub_endpoint(watch->hub));
    return STATUS_OK;
}

static status_t peer_open(watch_t *watch, const char *endpoint) {
    char hello[64], name[32];
    link_buffer_t buffer;
    snprintf(hello, sizeof(hello), "%d %d %s", watch->rank, watch->options.essential, watch->options.role);
    snprintf(name, sizeof(name), "rank %d", watch->rank);
    TRY(text_buffer(hello, &buffer));
    return link_open(endpoint, name, buffer, watch->options.start_s, &watch->options.link, &watch->link);
}

status_t watch_join(watch_t *watch, comm_t *world, const watch_options_t *options) {
    if (!watch) return STATUS_OK;
    bool host = comm_world_rank(world) == options->host;
    char endpoint[ENDPOINT_BYTES] = "";
    pthread_mutex_lock(&watch->mutex);
    watch->rank = comm_size(world) > 1 ? comm_world_rank(world) : -1;
    watch->size = comm_size(world);
    watch->options = *options;
    watch_role(watch, options->role);
    pthread_mutex_unlock(&watch->mutex);
    status_t status = STATUS_OK;
    if (watch->size > 1) {
        if (host) status = host_open(watch, endpoint);
        status = status_first(status, comm_broadcast(world, endpoint, sizeof(endpoint), options->host, "watch"));
        endpoint[sizeof(endpoint) - 1] = 0;
        if (!status && !endpoint[0])
            status = STATUS_NEW(STATUS_PEER, "rank %d could not start; its message says why", options->host);
        if (!status && !host) status = peer_open(watch, endpoint);
    }
    watch->options.link = (link_options_t){.heartbeat_s = options->link.heartbeat_s};
    pthread_mutex_lock(&watch->mutex);
    watch->joined = !status && watch->size > 1;
    pthread_mutex_unlock(&watch->mutex);
    return status;
}

// ---- the end ----

// The one sentence: printed, and written as the run's result. A disk that hangs must not keep the process.
static void conclude(watch_t *watch, const failure_t *failure) {
    char sentence[SENTENCE_BYTES + 32];
    int rank = failure->code == 2 ? -1 : failure->rank; // wrong use is no rank's own
    alarm(LONGEST_CONCLUSION_S);
    bool of_others = failure->loss || failure->weight == FAILURE_CONSEQUENCE;
    if (of_others && watch->options.concluded && watch->options.concluded(watch->options.context)) return;
    watch_say(rank, failure->sentence);
    if (rank >= 0)
        snprintf(sentence, sizeof(sentence), "[rank %d] %s", rank, failure->sentence);
    else
        snprintf(sentence, sizeof(sentence), "%s", failure->sentence);
    if (watch->options.conclude) watch->options.conclude(watch->options.context, failure->code, sentence);
}

// ---- the host ----

static void host_joined(watch_t *watch, const hub_event_t *event) {
    const char *text = frame_text(&event->message);
    int rank, essential;
    char role[ROLE_BYTES];
    if (!text || sscanf(text, "%d %d %15s", &rank, &essential, role) != 3 || rank < 0 || rank >= watch->size) return;
    watch_peer_t *peer = &watch->peer[rank];
    *peer = (watch_peer_t){.number = event->peer,
                           .here = true,
                           .essential = essential != 0,
                           .since = clock_seconds(),
                           .phase = "starting"};
    memcpy(peer->role, role, sizeof(role));
}

static int host_rank_of(const watch_t *watch, uint32_t number) {
    for (int rank = 0; rank < watch->size; rank++)
        if (watch->peer[rank].here && watch->peer[rank].number == number) return rank;
    return -1;
}

// Of two consequences the one of a collective says more: the host knows who is missing in it.
static void take(watch_t *watch, const failure_t *failure) {
    failure_t *known = &watch->failure;
    bool more =
        known->weight == FAILURE_CONSEQUENCE && failure->weight == known->weight && failure->overdue && !known->overdue;
    if (known->weight >= failure->weight && !more) return;
    double since = more ? known->since : failure->since;
    *known = *failure;
    known->since = since;
}

static void host_message(watch_t *watch, int rank, const char *text) {
    watch_peer_t *peer = &watch->peer[rank];
    int waiting, weight, overdue, at = 0;
    unsigned long long collectives;
    failure_t failure = {.rank = rank, .since = clock_seconds()};
    if (sscanf(text, "B %d %llu %n", &waiting, &collectives, &at) == 2 && at > 0) {
        peer->waiting = waiting != 0;
        peer->collectives = collectives;
        peer->since = clock_seconds();
        snprintf(peer->phase, sizeof(peer->phase), "%s", text + at);
    } else if (!strcmp(text, "S")) {
        atomic_store(&watch->stop, true);
    } else if (sscanf(text, "F %d %d %d %n", &weight, &failure.code, &overdue, &at) == 3 && at > 0) {
        failure.weight = weight == FAILURE_CAUSE ? FAILURE_CAUSE : FAILURE_CONSEQUENCE;
        failure.overdue = overdue != 0;
        snprintf(failure.sentence, sizeof(failure.sentence), "%s", text + at);
        take(watch, &failure);
    }
}

static void host_gone(watch_t *watch, int rank, const char *reason) {
    watch_peer_t *peer = &watch->peer[rank];
    failure_t failure = {
        .weight = FAILURE_CAUSE, .code = 1, .rank = watch->rank, .since = clock_seconds(), .loss = true};
    peer->here = false;
    if (strstr(reason, "goodbye")) return; // it has heard that all is done
    watch->lost = true;
    if (!peer->essential || watch->done) return;
    snprintf(failure.sentence, sizeof(failure.sentence),
             "%s rank %d is gone (%s); it was last in \"%s\"; start the run again to go on from its last checkpoint",
             peer->role, rank, reason, peer->phase);
    take(watch, &failure);
}

// The ranks that the others wait for are those that have begun fewer collectives, or are not in one.
static void name_missing(watch_t *watch, failure_t *failure) {
    uint64_t most = 0;
    watch_peer_t *self = &watch->peer[watch->options.host];
    *self = (watch_peer_t){.here = true, .since = atomic_load(&watch->since)};
    self->waiting = atomic_load(&watch->waits);
    self->collectives = atomic_load(&watch->collectives);
    self->essential = strcmp(watch->options.role, "reward") != 0; // it has no part in the others' collectives
    snprintf(self->role, sizeof(self->role), "%s", watch->options.role);
    snprintf(self->phase, sizeof(self->phase), "%s", watch_where(watch));
    for (int rank = 0; rank < watch->size; rank++)
        if (watch->peer[rank].essential && watch->peer[rank].collectives > most) most = watch->peer[rank].collectives;
    for (int rank = 0; rank < watch->size; rank++) {
        const watch_peer_t *peer = &watch->peer[rank];
        if (!peer->essential || rank == failure->rank || (peer->collectives == most && peer->waiting)) continue;
        char sentence[SENTENCE_BYTES];
        snprintf(sentence, sizeof(sentence),
                 "%s rank %d has been in \"%s\" for %.0f s, and the others wait for it: %.1500s", peer->role, rank,
                 peer->phase, clock_seconds() - peer->since, failure->sentence);
        memcpy(failure->sentence, sentence, sizeof(sentence));
        return;
    }
}

// The reward rank's turns are short. Where one is not, that is why the others lost it.
static void name_stuck(watch_t *watch, failure_t *failure) {
    double seconds = clock_seconds() - atomic_load(&watch->since);
    if (strcmp(watch->options.role, "reward") != 0 || failure->rank == watch->rank || seconds < STUCK_S) return;
    char sentence[SENTENCE_BYTES];
    snprintf(sentence, sizeof(sentence), "reward rank %d has hung in \"%s\" for %.0f s: %.1500s", watch->rank,
             watch_where(watch), seconds, failure->sentence);
    memcpy(failure->sentence, sentence, sizeof(sentence));
}

// Called without the mutex. Does not return.
static _Noreturn void host_end(watch_t *watch, failure_t *failure) {
    char text[32];
    if (failure->overdue) name_missing(watch, failure);
    if (failure->weight == FAILURE_CONSEQUENCE && !failure->overdue) name_stuck(watch, failure);
    conclude(watch, failure);
    snprintf(text, sizeof(text), "E %d", failure->code);
    host_tell(watch, text);
    hub_close(watch->hub); // flushes
    watch_exit(watch, failure->code);
}

// The launcher names a rank that died, sooner than its silence does.
static void host_notice(watch_t *watch) {
    failure_t failure = {.weight = FAILURE_CAUSE, .code = 1, .rank = watch->rank, .since = clock_seconds()};
    int rank;
    if (watch_notice(watch, &rank, failure.sentence) && rank != watch->rank) take(watch, &failure);
}

// Without it the ranks do not hear of each other, and each would take the others for dead.
static void hub_failed(watch_t *watch, status_t status) {
    failure_t failure = {.weight = FAILURE_CAUSE, .code = 1, .rank = watch->rank, .since = clock_seconds()};
    snprintf(failure.sentence, sizeof(failure.sentence), "the ranks can no longer be heard: %s",
             status_message(status));
    status_free(status);
    pthread_mutex_lock(&watch->mutex);
    take(watch, &failure);
    pthread_mutex_unlock(&watch->mutex);
}

static void host_turn(watch_t *watch) {
    for (int i = 0; i < EVENTS_A_TURN; i++) {
        hub_event_t event;
        status_t status = hub_receive(watch->hub, i ? 0 : turn_s, &event);
        if (status) {
            hub_failed(watch, status);
            break;
        }
        if (event.kind == HUB_NOTHING) break;
        pthread_mutex_lock(&watch->mutex);
        int rank = event.kind == HUB_JOINED ? -1 : host_rank_of(watch, event.peer);
        const char *text = frame_text(&event.message);
        if (event.kind == HUB_JOINED) host_joined(watch, &event);
        if (event.kind == HUB_MESSAGE && rank >= 0 && text) host_message(watch, rank, text);
        if (event.kind == HUB_GONE && rank >= 0) host_gone(watch, rank, event.reason);
        pthread_mutex_unlock(&watch->mutex);
        link_buffer_free(&event.message);
    }
    pthread_mutex_lock(&watch->mutex);
    host_notice(watch);
    failure_t failure = watch->failure;
    bool done = watch->done, lost = watch->lost;
    int code = watch->exit_code;
    pthread_mutex_unlock(&watch->mutex);
    if (atomic_load(&watch->stop) && !watch->told_stop) {
        host_tell(watch, "S");
        watch->told_stop = true;
    }
    if (done && (!watch->told_done || (lost && !watch->told_lost))) {
        host_tell(watch, lost ? "D 1" : "D 0");
        watch->told_done = true;
        watch->told_lost = lost;
    }
    if (done && lost) {
        hub_close(watch->hub);
        watch_exit(watch, code);
    }
    if (done || !failure.weight) return;
    if (failure.weight == FAILURE_CAUSE || clock_seconds() - failure.since > settle_s) host_end(watch, &failure);
}

// ---- the others ----

// The host is lost: the lowest rank that is not it speaks for the job. The others give it time to find out and to
// speak, as launchers (srun) end all ranks when the first one ends with a code that is not 0.
static void leave_to_speaker(watch_t *watch) {
    if (watch->rank == (watch->options.host == 0)) return;
    usleep((useconds_t)(answer_s * 1e6));
    watch_exit(watch, 1);
}

static _Noreturn void host_noticed(watch_t *watch, const char *sentence) {
    failure_t failure = {.code = 1, .rank = watch->rank, .loss = true};
    leave_to_speaker(watch);
    snprintf(failure.sentence, sizeof(failure.sentence), "%s", sentence);
    conclude(watch, &failure);
    watch_exit(watch, 1);
}

static _Noreturn void host_lost(watch_t *watch, const char *why) {
    failure_t failure = {.code = 1, .rank = watch->rank, .loss = true};
    const char *reason = strrchr(why, ':');
    if (strstr(why, "goodbye")) watch_exit(watch, 1);
    leave_to_speaker(watch);
    snprintf(failure.sentence, sizeof(failure.sentence),
             "%s rank %d is gone (%s) while rank %d was in \"%s\"; start the run again to go on from its last "
             "checkpoint",
             watch->options.host_role, watch->options.host, reason && reason[1] ? reason + 2 : why, watch->rank,
             watch_where(watch));
    conclude(watch, &failure);
    watch_exit(watch, 1);
}

static void peer_message(watch_t *watch, const char *text) {
    int number;
    if (sscanf(text, "E %d", &number) == 1) watch_exit(watch, number);
    if (!strcmp(text, "S")) {
        watch->told_stop = true;
        atomic_store(&watch->stop, true);
    }
    if (sscanf(text, "D %d", &number) != 1) return;
    pthread_mutex_lock(&watch->mutex);
    watch->done = true;
    watch->lost = watch->lost || number;
    pthread_mutex_unlock(&watch->mutex);
}

static void peer_beat(watch_t *watch) {
    char text[sizeof(watch->sent)];
    snprintf(text, sizeof(text), "B %d %llu %s", atomic_load(&watch->waits),
             (unsigned long long)atomic_load(&watch->collectives), watch_where(watch));
    double now = clock_seconds();
    if (now - watch->sent_at < beat_s || !strcmp(text, watch->sent)) return;
    memcpy(watch->sent, text, sizeof(text));
    watch->sent_at = now;
    link_tell(watch->link, text);
}

static void peer_failed(watch_t *watch, const failure_t *failure) {
    char text[FRAME_BYTES];
    double waited = clock_seconds() - failure->since;
    if (!watch->options.essential) { // the reward rank has heard of it, or is itself gone
        if (waited < answer_s && failure->weight == FAILURE_CONSEQUENCE) return;
        watch_say(watch->rank, failure->sentence);
        watch_exit(watch, failure->code);
    }
    if (!watch->told) {
        peer_beat(watch);
        snprintf(text, sizeof(text), "F %d %d %d %s", failure->weight, failure->code, failure->overdue,
                 failure->sentence);
        link_tell(watch->link, text);
        watch->told = true;
    }
    if (waited < answer_s) return;
    watch_say(watch->rank, failure->sentence);
    watch_exit(watch, failure->code);
}

static void peer_turn(watch_t *watch) {
    link_buffer_t buffer = {0};
    status_t status = link_receive(watch->link, turn_s, &buffer);
    const char *text = status ? NULL : frame_text(&buffer);
    if (text) peer_message(watch, text);
    link_buffer_free(&buffer);
    if (!status && atomic_load(&watch->stop) && !watch->told_stop) {
        link_tell(watch->link, "S");
        watch->told_stop = true;
    }
    pthread_mutex_lock(&watch->mutex);
    failure_t failure = watch->failure;
    bool done = watch->done, finished = watch->finished, lost = watch->lost;
    int code = watch->exit_code;
    pthread_mutex_unlock(&watch->mutex);
    if (done && finished && (lost || status)) watch_exit(watch, code);
    char sentence[SENTENCE_BYTES];
    int rank;
    if (!done && watch_notice(watch, &rank, sentence) && rank == watch->options.host) host_noticed(watch, sentence);
    if (status && !done) host_lost(watch, status_message(status));
    if (status) usleep((useconds_t)(turn_s * 1e6)); // the main thread is about to end
    status_free(status);
    if (failure.weight)
        peer_failed(watch, &failure);
    else
        peer_beat(watch);
}

void watch_ranks_turn(watch_t *watch) {
    if (watch->hub)
        host_turn(watch);
    else
        peer_turn(watch);
}
