// Who is alive, who is lost, and who says so.
#include "common/comm/watch_internal.h"

#include "common/comm/clock.h"
#include "common/comm/comm.h"
#include "common/text/utf8.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EVENTS_A_TURN = 64, LONGEST_CONCLUSION_S = 20, ENDPOINT_BYTES = 512, STUCK_S = 1, PARTING_S = 5 };
static const double turn_s = 0.1, beat_s = 0.25, settle_s = 1.0, answer_s = 4.0;

static status_t frame_buffer(const char *frame, size_t size, link_buffer_t *out) {
    TRY(memory_allocate(size, 1, (void **)&out->data));
    memcpy(out->data, frame, size);
    out->size = size;
    return STATUS_OK;
}

static status_t message_buffer(const watch_message_t *message, link_buffer_t *out) {
    char frame[FRAME_BYTES];
    return frame_buffer(frame, watch_message_write(message, frame), out);
}

// What cannot be sent now is of no use later: who does not answer is found by its silence.
static void link_tell(link_t *link, const watch_message_t *message) {
    link_buffer_t buffer;
    status_t status = message_buffer(message, &buffer);
    if (!status) status = link_send(link, buffer, 0);
    status_free(status);
}

static void host_tell(watch_t *watch, const watch_message_t *message) {
    for (int rank = 0; rank < watch->size; rank++) {
        link_buffer_t buffer;
        if (!watch->peer[rank].here) continue;
        status_t status = message_buffer(message, &buffer);
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
    char frame[FRAME_BYTES], name[32];
    link_buffer_t buffer;
    watch_hello_t hello = {.rank = watch->rank, .essential = watch->options.essential};
    snprintf(hello.role, sizeof(hello.role), "%s", watch->options.role);
    snprintf(name, sizeof(name), "rank %d", watch->rank);
    TRY(frame_buffer(frame, watch_hello_write(&hello, frame), &buffer));
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
    watch_hello_t hello;
    if (!watch_hello_read(event->message.data, event->message.size, watch->size, watch->options.host, &hello)) return;
    watch_peer_t *peer = &watch->peer[hello.rank];
    *peer = (watch_peer_t){.number = event->peer,
                           .here = true,
                           .essential = hello.essential,
                           .since = clock_seconds(),
                           .phase = "starting"};
    memcpy(peer->role, hello.role, sizeof(peer->role));
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

static void host_message(watch_t *watch, int rank, const link_buffer_t *frame) {
    watch_peer_t *peer = &watch->peer[rank];
    watch_message_t message;
    if (!watch_message_read(frame->data, frame->size, &message)) return;
    if (message.kind == WATCH_BEAT) {
        peer->waiting = message.waiting;
        peer->collectives = message.collectives;
        peer->since = clock_seconds();
        memcpy(peer->phase, message.phase, sizeof(peer->phase));
    } else if (message.kind == WATCH_STOP) {
        atomic_store(&watch->stop, true);
    } else if (message.kind == WATCH_FAILED) {
        failure_t failure = {.weight = message.weight,
                             .code = message.code,
                             .rank = rank,
                             .since = clock_seconds(),
                             .overdue = message.overdue};
        memcpy(failure.sentence, message.sentence, sizeof(failure.sentence));
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
    snprintf(self->phase, sizeof(self->phase), "%s", watch_where(watch).name);
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
             watch_where(watch).name, seconds, failure->sentence);
    memcpy(failure->sentence, sentence, sizeof(sentence));
}

// Called without the mutex. Does not return.
static _Noreturn void host_end(watch_t *watch, failure_t *failure) {
    watch_message_t end = {.kind = WATCH_END, .code = failure->code};
    if (failure->overdue) name_missing(watch, failure);
    if (failure->weight == FAILURE_CONSEQUENCE && !failure->overdue) name_stuck(watch, failure);
    conclude(watch, failure);
    host_tell(watch, &end);
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
        if (event.kind == HUB_JOINED) host_joined(watch, &event);
        if (event.kind == HUB_MESSAGE && rank >= 0) host_message(watch, rank, &event.message);
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
        host_tell(watch, &(watch_message_t){.kind = WATCH_STOP});
        watch->told_stop = true;
    }
    if (done && (!watch->told_done || (lost && !watch->told_lost))) {
        host_tell(watch, &(watch_message_t){.kind = WATCH_DONE, .lost = lost});
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
             watch_where(watch).name);
    conclude(watch, &failure);
    watch_exit(watch, 1);
}

static void peer_message(watch_t *watch, const link_buffer_t *frame) {
    watch_message_t message;
    if (!watch_message_read(frame->data, frame->size, &message)) return;
    if (message.kind == WATCH_END) watch_exit(watch, message.code);
    if (message.kind == WATCH_STOP) {
        watch->told_stop = true;
        atomic_store(&watch->stop, true);
    }
    if (message.kind != WATCH_DONE) return;
    pthread_mutex_lock(&watch->mutex);
    watch->done = true;
    watch->lost = watch->lost || message.lost;
    pthread_mutex_unlock(&watch->mutex);
}

static void peer_beat(watch_t *watch) {
    watch_where_t where = watch_where(watch);
    watch_message_t beat = {
        .kind = WATCH_BEAT, .waiting = atomic_load(&watch->waits), .collectives = atomic_load(&watch->collectives)};
    utf8_printable(where.name, strlen(where.name), beat.phase, sizeof(beat.phase));
    const watch_message_t *sent = &watch->sent;
    double now = clock_seconds();
    bool same = watch->sent_at > 0 && beat.waiting == sent->waiting && beat.collectives == sent->collectives &&
                !strcmp(beat.phase, sent->phase);
    if (now - watch->sent_at < beat_s || same) return;
    watch->sent = beat;
    watch->sent_at = now;
    link_tell(watch->link, &beat);
}

static void peer_failed(watch_t *watch, const failure_t *failure) {
    double waited = clock_seconds() - failure->since;
    if (!watch->options.essential) { // the reward rank has heard of it, or is itself gone
        if (waited < answer_s && failure->weight == FAILURE_CONSEQUENCE) return;
        watch_say(watch->rank, failure->sentence);
        watch_exit(watch, failure->code);
    }
    if (!watch->told) {
        peer_beat(watch);
        watch_message_t message = {
            .kind = WATCH_FAILED, .weight = failure->weight, .code = failure->code, .overdue = failure->overdue};
        memcpy(message.sentence, failure->sentence, sizeof(message.sentence));
        link_tell(watch->link, &message);
        watch->told = true;
    }
    if (waited < answer_s) return;
    watch_say(watch->rank, failure->sentence);
    watch_exit(watch, failure->code);
}

static void peer_turn(watch_t *watch) {
    link_buffer_t buffer = {0};
    status_t status = link_receive(watch->link, turn_s, &buffer);
    if (!status) peer_message(watch, &buffer);
    link_buffer_free(&buffer);
    if (!status && atomic_load(&watch->stop) && !watch->told_stop) {
        link_tell(watch->link, &(watch_message_t){.kind = WATCH_STOP});
        watch->told_stop = true;
    }
    pthread_mutex_lock(&watch->mutex);
    failure_t failure = watch->failure;
    bool done = watch->done, finished = watch->finished, lost = watch->lost;
    int code = watch->exit_code;
    pthread_mutex_unlock(&watch->mutex);
    // The host has closed MPI by the time it leaves; this rank has a moment to do the same, and to end in order.
    if (status && done && watch->parted_at == 0) watch->parted_at = clock_seconds();
    bool stuck = watch->parted_at > 0 && clock_seconds() - watch->parted_at > PARTING_S;
    if (done && finished && (lost || stuck)) watch_exit(watch, code);
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
