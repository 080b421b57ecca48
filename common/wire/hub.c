#include "common/comm/clock.h"
#include "common/wire/doorkeeper.h"
#include "common/wire/stream.h"
#include "common/wire/transport.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    TURN_S = 1, // the I/O thread turns at least this often, so that it can be seen to be alive
    REASON_BYTES = 96,
    NAME_BUCKETS = 1024,
    MAX_PEERS = 1 << 16, // ever joined, over the life of a hub
    FRAMES_AT_ONCE = 128,
    FLUSH_MS = 300,
};

static const double goodbye_again_s = 0.25, tell_every_s = 1;

// One epoch of one name. After it is gone only what refuses its late frames stays.
typedef struct peer {
    char *name;
    uint64_t epoch;
    char identity[TRANSPORT_MAX_IDENTITY + 1];
    size_t identity_size;
    stream_t stream;
    double heard, spoken; // last frame in, last frame out
    uint64_t progress;
    double progressed;
    bool leaving;       // it has been told that the hub closes
    bool dropped, gone; // dropped by the owner: to be told and declared gone by the I/O thread
    char reason[REASON_BYTES];
    bool told_back; // a HUB_BACK event is on its way to the owner
    char back[REASON_BYTES];
    int32_t next; // older peers of the same bucket; -1 ends
} peer_t;

typedef struct event {
    hub_event_kind_t kind;
    uint32_t peer;
    link_buffer_t message;
} event_t;

struct hub {
    link_options_t options;
    char *public_key; // owned copy, for the I/O thread
    char endpoint[512];
    void *context, *router, *zap;
    doorkeeper_t *keeper;
    pthread_t thread;
    double served;          // when the I/O thread last looked
    atomic_llong turned_ms; // the same for others to see, without the gate
    gate_t gate;
    // Everything below is guarded by the gate.
    peer_t **peer; // [peers]; number n is peer[n - 1]
    size_t peers, peers_capacity;
    int32_t bucket[NAME_BUCKETS];
    event_t *event; // [events] from first_event on
    size_t first_event, events, event_capacity;
    link_statistics_t statistics;
    bool closing;
    uint64_t told_refused, told_strangers; // as said in the log
    double told;                           // when
    char why[160];                         // the last frame was refused
    double close_until, said_goodbye;
    status_t failure; // of the I/O thread; given out once, then said again by `failed`
    bool failed;
};

// ---- state, under the lock ----

static peer_t *peer_of(const hub_t *hub, uint32_t number) {
    return number >= 1 && number <= hub->peers ? hub->peer[number - 1] : NULL;
}

static int32_t *bucket_of(hub_t *hub, const char *name) {
    return &hub->bucket[XXH3_64bits(name, strlen(name)) % NAME_BUCKETS];
}

// Number of the newest peer of that name; 0: none.
static uint32_t find_peer(hub_t *hub, const char *name) {
    for (int32_t i = *bucket_of(hub, name); i >= 0; i = hub->peer[i]->next)
        if (strcmp(hub->peer[i]->name, name) == 0) return (uint32_t)i + 1;
    return 0;
}

static status_t add_event(hub_t *hub, event_t event) {
    if (hub->first_event && hub->first_event + hub->events == hub->event_capacity) {
        memmove(hub->event, hub->event + hub->first_event, hub->events * sizeof(*hub->event));
        hub->first_event = 0;
    }
    status_t status = memory_grow((void **)&hub->event, &hub->event_capacity, hub->first_event + hub->events + 1,
                                  sizeof(*hub->event));
    if (status) {
        link_buffer_free(&event.message);
        return status;
    }
    hub->event[hub->first_event + hub->events++] = event;
    pthread_cond_broadcast(&hub->gate.condition);
    return STATUS_OK;
}

static void refuse_frame(hub_t *hub, const char *why) {
    hub->statistics.refused++;
    snprintf(hub->why, sizeof(hub->why), "%s", why);
}

// Refusals go into the log at most once a second, with their number: who floods the hub must not flood the log.
static void tell_refusals(hub_t *hub, double now, double *wake) {
    uint64_t frames = hub->statistics.refused - hub->told_refused;
    uint64_t strangers = hub->statistics.strangers - hub->told_strangers;
    if (!frames && !strangers) return;
    if (now - hub->told < tell_every_s) {
        *wake = fmin(*wake, hub->told + tell_every_s);
        return;
    }
    if (frames)
        fprintf(stderr, "poise: %s refused %llu frames (%llu in all): %s\n", hub->endpoint, (unsigned long long)frames,
                (unsigned long long)hub->statistics.refused, hub->why);
    if (strangers)
        fprintf(stderr, "poise: %s ended %llu connections that showed no %s (%llu in all)\n", hub->endpoint,
                (unsigned long long)strangers, hub->public_key ? "key of this job" : "sign of being Poise",
                (unsigned long long)hub->statistics.strangers);
    hub->told_refused = hub->statistics.refused;
    hub->told_strangers = hub->statistics.strangers;
    hub->told = now;
}

static void send_frame(hub_t *hub, peer_t *peer, envelope_kind_t kind, uint64_t sequence, const void *data, size_t size,
                       double now) {
    envelope_t envelope = {.kind = kind, .epoch = peer->epoch, .sequence = sequence};
    stream_stamp(&peer->stream, &envelope);
    // Without a connection the frame is lost like one on a cut wire; the stream sends again what matters.
    transport_send(hub->router, peer->identity, peer->identity_size, &envelope, data, size);
    peer->spoken = now;
}

static status_t lose_peer(hub_t *hub, uint32_t number, const char *reason, double now, bool tell) {
    peer_t *peer = peer_of(hub, number);
    if (!peer || peer->gone) return STATUS_OK;
    snprintf(peer->reason, sizeof(peer->reason), "%s", reason);
    if (tell) send_frame(hub, peer, ENVELOPE_BYE, peer->stream.transmitted, peer->reason, strlen(peer->reason), now);
    peer->gone = true;
    stream_close(&peer->stream);
    return add_event(hub, (event_t){.kind = HUB_GONE, .peer = number});
}

static void send_refusal(hub_t *hub, const zmq_msg_t *identity, uint64_t epoch, uint64_t newest, const char *reason) {
    envelope_t envelope = {.kind = ENVELOPE_REFUSE, .epoch = epoch, .sequence = newest};
    zmq_msg_t *id = (zmq_msg_t *)(uintptr_t)identity;
    transport_send(hub->router, zmq_msg_data(id), zmq_msg_size(id), &envelope, reason, strlen(reason));
}

static status_t make_peer(hub_t *hub, const char *name, const envelope_t *envelope, double now, peer_t **out) {
    peer_t *peer = NULL;
    if (hub->peers >= MAX_PEERS) {
        refuse_frame(hub, "too many peers have joined");
        return STATUS_OK;
    }
    TRY(memory_grow((void **)&hub->peer, &hub->peers_capacity, hub->peers + 1, sizeof(void *)));
    TRY(ALLOCATE(&peer, 1));
    status_t status = memory_copy_string(name, &peer->name);
    if (!status) status = stream_open(&peer->stream, hub->options.window, hub->options.heartbeat_s);
    if (status) {
        free(peer->name);
        free(peer);
        return status;
    }
    peer->epoch = envelope->epoch;
    peer->identity_size = transport_identity(name, envelope->epoch, peer->identity);
    peer->heard = peer->spoken = peer->progressed = now;
    peer->progress = envelope->progress;
    peer->next = *bucket_of(hub, name);
    *bucket_of(hub, name) = (int32_t)hub->peers;
    hub->peer[hub->peers++] = peer;
    *out = peer;
    return STATUS_OK;
}

// ---- frames, on the I/O thread under the lock ----

// A hello of an epoch not seen before.
static status_t welcome(hub_t *hub, const char *name, const envelope_t *envelope, zmq_msg_t *payload, double now) {
    uint32_t before = find_peer(hub, name);
    TRY(lose_peer(hub, before, "replaced by a newer process of the same name", now, true));
    peer_t *peer = NULL;
    TRY(make_peer(hub, name, envelope, now, &peer));
    if (!peer) return STATUS_OK;
    stream_acknowledged(&peer->stream, envelope, now); // takes its limit
    event_t event = {.kind = HUB_JOINED, .peer = (uint32_t)hub->peers};
    event.message.size = zmq_msg_size(payload);
    TRY(memory_copy_bytes(zmq_msg_data(payload), event.message.size, (char **)&event.message.data));
    send_frame(hub, peer, ENVELOPE_WELCOME, 0, NULL, 0, now);
    return add_event(hub, event);
}

static status_t take_data(hub_t *hub, uint32_t number, const envelope_t *envelope, zmq_msg_t *payload, double now) {
    peer_t *peer = peer_of(hub, number);
    stream_arrival_t arrival = ARRIVAL_DUPLICATE;
    TRY(stream_arrived(&peer->stream, envelope->sequence, zmq_msg_data(payload), zmq_msg_size(payload), now, &arrival));
    if (arrival == ARRIVAL_DUPLICATE) hub->statistics.duplicates++;
    if (arrival == ARRIVAL_BEYOND) refuse_frame(hub, "a message beyond the window");
    event_t event = {.kind = HUB_MESSAGE, .peer = number};
    while (stream_take(&peer->stream, &event.message, now)) {
        hub->statistics.received++;
        hub->statistics.bytes_received += event.message.size;
        TRY(add_event(hub, event));
    }
    return STATUS_OK;
}

// Tells the owner of a peer that is heard again after a cut or a long silence. At most one such event waits.
static status_t note_back(hub_t *hub, uint32_t number, bool anew, double now) {
    peer_t *peer = peer_of(hub, number);
    double half = hub->options.heartbeat_s / 2, silence = now - peer->heard;
    bool quiet = silence > half && now - hub->served < half; // or it was this thread that did not look
    if (peer->told_back || (!anew && !quiet)) return STATUS_OK;
    if (quiet)
        snprintf(peer->back, sizeof(peer->back), "silent for %.1f s%s", silence, anew ? ", connected anew" : "");
    else
        snprintf(peer->back, sizeof(peer->back), "connected anew");
    peer->told_back = true;
    return add_event(hub, (event_t){.kind = HUB_BACK, .peer = number});
}

// A frame of the current epoch of a known peer.
static status_t take_current(hub_t *hub, uint32_t number, const envelope_t *envelope, zmq_msg_t *payload, double now) {
    peer_t *peer = peer_of(hub, number);
    TRY(note_back(hub, number, envelope->kind == ENVELOPE_RESUME, now));
    peer->heard = now;
    if (envelope->progress > peer->progress) {
        peer->progress = envelope->progress;
        peer->progressed = now;
    }
    if (!stream_acknowledged(&peer->stream, envelope, now)) {
        refuse_frame(hub, "it acknowledges what was never sent");
        return STATUS_OK;
    }
    switch (envelope->kind) {
    case ENVELOPE_RESUME:
        stream_reconnected(&peer->stream);
        send_frame(hub, peer, ENVELOPE_WELCOME, 0, NULL, 0, now);
        return STATUS_OK;
    case ENVELOPE_HELLO: // its welcome was lost
        send_frame(hub, peer, ENVELOPE_WELCOME, 0, NULL, 0, now);
        return STATUS_OK;
    case ENVELOPE_DATA:
        return take_data(hub, number, envelope, payload, now);
    case ENVELOPE_BYE:
        return lose_peer(hub, number, "said goodbye", now, !peer->leaving);
    default:
        return STATUS_OK;
    }
}

static status_t take_frame(hub_t *hub, transport_frame_t *frame, double now) {
    char name[TRANSPORT_MAX_NAME + 1];
    envelope_t envelope;
    uint64_t epoch = 0;
    zmq_msg_t *id = &frame->part[0];
    if (frame->parts != 3 || !transport_parse_identity(zmq_msg_data(id), zmq_msg_size(id), name, &epoch) ||
        !envelope_decode(zmq_msg_data(&frame->part[1]), zmq_msg_size(&frame->part[1]), &envelope) ||
        envelope.epoch != epoch || envelope.kind == ENVELOPE_WELCOME || envelope.kind == ENVELOPE_REFUSE) {
        refuse_frame(hub, "it is no frame of this protocol");
        return STATUS_OK;
    }
    uint32_t number = find_peer(hub, name);
    peer_t *peer = peer_of(hub, number);
    if (peer && peer->epoch == epoch && !peer->gone) return take_current(hub, number, &envelope, &frame->part[2], now);
    if (envelope.kind == ENVELOPE_HELLO && (!peer || epoch > peer->epoch))
        return hub->closing ? STATUS_OK : welcome(hub, name, &envelope, &frame->part[2], now);
    if (envelope.kind == ENVELOPE_BYE) { // the answer to ours, or a goodbye that was answered already
        if (peer && peer->epoch == epoch && strcmp(peer->reason, "said goodbye") == 0)
            send_refusal(hub, id, epoch, epoch, "goodbye");
        return STATUS_OK;
    }
    char why[160];
    if (peer && peer->epoch == epoch)
        snprintf(why, sizeof(why), "it was declared gone: %s", peer->reason);
    else if (peer && epoch < peer->epoch)
        snprintf(why, sizeof(why), "a newer process of the same name has joined");
    else
        snprintf(why, sizeof(why), "the hub does not know it (the hub was started again)");
    refuse_frame(hub, why);
    send_refusal(hub, id, epoch, peer ? peer->epoch : 0, why);
    return STATUS_OK;
}

// Sends what is due to one peer; lowers *wake to when it needs the thread again.
static status_t serve_peer(hub_t *hub, uint32_t number, double now, double *wake) {
    peer_t *peer = peer_of(hub, number);
    if (peer->gone) return STATUS_OK;
    double silence = hub->options.heartbeat_s;
    char reason[REASON_BYTES];
    if (peer->dropped) {
        memcpy(reason, peer->reason, sizeof(reason));
        return lose_peer(hub, number, reason, now, true);
    }
    if (now - peer->heard > silence) {
        snprintf(reason, sizeof(reason), "no heartbeat for %.1f s", now - peer->heard);
        return lose_peer(hub, number, reason, now, true);
    }
    if (!stream_is_healthy(&peer->stream, now, reason, sizeof(reason)))
        return lose_peer(hub, number, reason, now, true);
    uint64_t sequence = 0;
    bool again = false;
    for (const outgoing_t *item; (item = stream_next(&peer->stream, now, &sequence, &again));) {
        send_frame(hub, peer, ENVELOPE_DATA, sequence, item->buffer.data, item->buffer.size, now);
        hub->statistics.resent += again;
        hub->statistics.sent += !again;
        hub->statistics.bytes_sent += again ? 0 : item->buffer.size;
    }
    if (peer->stream.acknowledge) send_frame(hub, peer, ENVELOPE_ACK, 0, NULL, 0, now);
    if (now - peer->spoken >= silence / 4) send_frame(hub, peer, ENVELOPE_HEARTBEAT, 0, NULL, 0, now);
    *wake = fmin(*wake, fmin(peer->spoken + silence / 4, peer->heard + silence));
    *wake = fmin(*wake, stream_wake(&peer->stream));
    return STATUS_OK;
}

// Closing: once all is acknowledged, says goodbye to every peer until it is answered, or the time is over.
static status_t take_leave(hub_t *hub, bool flushed, double now, double *wake) {
    static const char reason[] = "the hub was closed";
    bool all_answered = true;
    *wake = fmin(*wake, hub->close_until);
    for (uint32_t number = 1; number <= hub->peers; number++) {
        peer_t *peer = peer_of(hub, number);
        if (peer->gone) continue;
        all_answered = false;
        if (now >= hub->close_until) TRY(lose_peer(hub, number, reason, now, true));
        if (peer->gone || !flushed || now - hub->said_goodbye < goodbye_again_s) continue;
        peer->leaving = true;
        send_frame(hub, peer, ENVELOPE_BYE, peer->stream.transmitted, reason, strlen(reason), now);
    }
    if (flushed && now - hub->said_goodbye >= goodbye_again_s) hub->said_goodbye = now;
    if (flushed) *wake = fmin(*wake, hub->said_goodbye + goodbye_again_s);
    if (all_answered || now >= hub->close_until) *wake = -1;
    return STATUS_OK;
}

static status_t serve(hub_t *hub, double *wake) {
    double now = clock_seconds();
    gate_drain(&hub->gate);
    transport_frame_t frame;
    bool drained = false;
    for (int i = 0; i < FRAMES_AT_ONCE && !drained; i++) {
        drained = !transport_receive(hub->router, true, &frame);
        if (drained) break;
        doorkeeper_admit(hub->keeper, now, &frame.part[frame.parts < 3 ? frame.parts - 1 : 2]);
        status_t status = take_frame(hub, &frame, now);
        transport_close_frame(&frame);
        TRY(status);
    }
    bool flushed = true;
    *wake = INFINITY;
    doorkeeper_serve(hub->keeper, now, drained, wake);
    hub->statistics.strangers = doorkeeper_refused(hub->keeper);
    tell_refusals(hub, now, wake);
    // A process that was stopped itself must first look at what has arrived meanwhile.
    double half = hub->options.heartbeat_s / 2;
    for (size_t i = 0; i < hub->peers && now - hub->served > half; i++)
        hub->peer[i]->heard = fmax(hub->peer[i]->heard, now - half);
    hub->served = now;
    for (uint32_t number = 1; number <= hub->peers; number++) {
        TRY(serve_peer(hub, number, now, wake));
        flushed = flushed && (peer_of(hub, number)->gone || stream_is_flushed(&peer_of(hub, number)->stream));
    }
    return hub->closing ? take_leave(hub, flushed, now, wake) : STATUS_OK;
}

double hub_still_seconds(const hub_t *hub) {
    return fmax(clock_seconds() - (double)atomic_load(&hub->turned_ms) * 1e-3, 0);
}

static void *hub_thread(void *argument) {
    hub_t *hub = argument;
    double wake = 0;
    while (wake >= 0) {
        atomic_store(&hub->turned_ms, (long long)(clock_seconds() * 1e3));
        double wait_ms = ceil(fmin(fmax(wake - clock_seconds(), 0), TURN_S) * 1000);
        zmq_pollitem_t items[4] = {{.socket = hub->router, .events = ZMQ_POLLIN},
                                   {.fd = hub->gate.wake, .events = ZMQ_POLLIN},
                                   {.socket = doorkeeper_socket(hub->keeper), .events = ZMQ_POLLIN},
                                   {.socket = hub->zap, .events = ZMQ_POLLIN}};
        zmq_poll(items, hub->zap ? 4 : 3, (long)wait_ms);
        if (hub->zap && items[3].revents) transport_authenticate(hub->zap, hub->public_key);
        pthread_mutex_lock(&hub->gate.mutex);
        status_t status = serve(hub, &wake);
        if (status) {
            hub->failure = status;
            hub->failed = true;
            pthread_cond_broadcast(&hub->gate.condition);
            wake = -1;
        }
        pthread_mutex_unlock(&hub->gate.mutex);
    }
    return NULL;
}

// ---- the door ----

static void free_hub(hub_t *hub) {
    int linger = FLUSH_MS; // goodbyes and last acknowledgements are still in the socket
    doorkeeper_close(hub->keeper);
    if (hub->router) zmq_setsockopt(hub->router, ZMQ_LINGER, &linger, sizeof(linger));
    if (hub->router) zmq_close(hub->router);
    if (hub->zap) zmq_close(hub->zap);
    if (hub->context) zmq_ctx_term(hub->context);
    for (size_t i = 0; i < hub->peers; i++) {
        stream_close(&hub->peer[i]->stream);
        free(hub->peer[i]->name);
        free(hub->peer[i]);
    }
    for (size_t i = 0; i < hub->events; i++) link_buffer_free(&hub->event[hub->first_event + i].message);
    free(hub->peer);
    free(hub->event);
    free(hub->public_key);
    status_free(hub->failure);
    free(hub);
}

static status_t bind_hub(hub_t *hub, const char *endpoint) {
    hub->context = zmq_ctx_new();
    if (!hub->context) FAIL(STATUS_MEMORY, "cannot make a ZeroMQ context: %s", zmq_strerror(zmq_errno()));
    zmq_ctx_set(hub->context, ZMQ_MAX_SOCKETS, 1 << 16);
    if (hub->options.public_key) {
        TRY(memory_copy_string(hub->options.public_key, &hub->public_key));
        hub->zap = zmq_socket(hub->context, ZMQ_REP);
        if (!hub->zap || zmq_bind(hub->zap, "inproc://zeromq.zap.01") != 0)
            FAIL(STATUS_UNAVAILABLE, "cannot set up authentication: %s", zmq_strerror(zmq_errno()));
    }
    hub->router = zmq_socket(hub->context, ZMQ_ROUTER);
    if (!hub->router) FAIL(STATUS_UNAVAILABLE, "cannot make a ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    TRY(transport_configure(hub->router, endpoint, &hub->options, true));
    TRY(doorkeeper_open(hub->context, hub->router, &hub->keeper));
    if (zmq_bind(hub->router, endpoint) != 0)
        FAIL(STATUS_UNAVAILABLE, "cannot listen on %s: %s", endpoint, zmq_strerror(zmq_errno()));
    char real[256] = "", host[128] = "localhost";
    size_t size = sizeof(real);
    if (zmq_getsockopt(hub->router, ZMQ_LAST_ENDPOINT, real, &size) != 0)
        FAIL(STATUS_UNAVAILABLE, "cannot tell the address of %s: %s", endpoint, zmq_strerror(zmq_errno()));
    const char *port = strrchr(real, ':');
    bool every = strncmp(real, "tcp://0.0.0.0:", 14) == 0 || strncmp(real, "tcp://[::]:", 11) == 0;
    gethostname(host, sizeof(host) - 1);
    if (every) // peers need a name of this machine, not "all interfaces"
        snprintf(hub->endpoint, sizeof(hub->endpoint), "tcp://%s%s", host, port);
    else
        snprintf(hub->endpoint, sizeof(hub->endpoint), "%s", real);
    return STATUS_OK;
}

status_t hub_open(const char *endpoint, const link_options_t *options, hub_t **out) {
    *out = NULL;
    TRY(transport_check(endpoint, options));
    hub_t *hub = NULL;
    TRY(ALLOCATE(&hub, 1));
    hub->options = transport_options(options);
    for (int i = 0; i < NAME_BUCKETS; i++) hub->bucket[i] = -1;
    status_t status = bind_hub(hub, endpoint);
    if (!status) status = gate_open(&hub->gate);
    if (status) {
        free_hub(hub);
        PASS_ON(status);
    }
    hub->options.public_key = hub->options.secret_key = NULL; // the caller's memory; the socket has its copy
    atomic_store(&hub->turned_ms, (long long)(clock_seconds() * 1e3));
    status = transport_start_thread(&hub->thread, hub_thread, hub);
    if (status) {
        gate_close(&hub->gate);
        free_hub(hub);
        PASS_ON(status);
    }
    *out = hub;
    return STATUS_OK;
}

void hub_close(hub_t *hub) {
    if (!hub) return;
    pthread_mutex_lock(&hub->gate.mutex);
    hub->closing = true;
    hub->close_until = clock_seconds() + 1;
    pthread_mutex_unlock(&hub->gate.mutex);
    gate_wake(&hub->gate);
    pthread_join(hub->thread, NULL);
    gate_close(&hub->gate);
    free_hub(hub);
}

const char *hub_endpoint(const hub_t *hub) {
    return hub->endpoint;
}

status_t hub_receive(hub_t *hub, double wait_s, hub_event_t *out) {
    memset(out, 0, sizeof(*out));
    double until = clock_seconds() + wait_s;
    bool wake = false;
    status_t status = STATUS_OK;
    pthread_mutex_lock(&hub->gate.mutex);
    while (!hub->events && !hub->failed && clock_seconds() < until) gate_wait(&hub->gate, until);
    if (hub->events) {
        event_t event = hub->event[hub->first_event++];
        if (!--hub->events) hub->first_event = 0;
        out->kind = event.kind;
        out->peer = event.peer;
        out->message = event.message;
        peer_t *peer = peer_of(hub, event.peer);
        if (event.kind == HUB_GONE && peer) memcpy(out->reason, peer->reason, sizeof(out->reason));
        if (event.kind == HUB_BACK && peer) {
            memcpy(out->reason, peer->back, sizeof(out->reason));
            peer->told_back = false;
        }
        if (event.kind == HUB_MESSAGE && peer && !peer->gone) wake = stream_consumed(&peer->stream);
        if (wake) peer->stream.acknowledge = true;
    } else if (hub->failed) {
        status = hub->failure ? hub->failure : STATUS_NEW(STATUS_FAILED, "the hub at %s has failed", hub->endpoint);
        hub->failure = NULL;
    }
    pthread_mutex_unlock(&hub->gate.mutex);
    if (wake) gate_wake(&hub->gate);
    return status;
}

status_t hub_send(hub_t *hub, uint32_t peer, link_buffer_t message) {
    status_t status = STATUS_OK;
    if (message.size > hub->options.max_message) {
        status = STATUS_NEW(STATUS_INVALID, "a message of %zu bytes is longer than the %zu allowed", message.size,
                            hub->options.max_message);
        link_buffer_free(&message);
        return status;
    }
    pthread_mutex_lock(&hub->gate.mutex);
    peer_t *to = peer_of(hub, peer);
    if (!to || to->gone) {
        link_buffer_free(&message);
        status = STATUS_NEW(STATUS_PEER, "%s is gone: %s", to ? to->name : "an unknown peer", to ? to->reason : "-");
    } else {
        status = stream_queue(&to->stream, message);
    }
    pthread_mutex_unlock(&hub->gate.mutex);
    gate_wake(&hub->gate);
    return status;
}

void hub_drop(hub_t *hub, uint32_t peer, const char *reason) {
    pthread_mutex_lock(&hub->gate.mutex);
    peer_t *to = peer_of(hub, peer);
    if (to && !to->gone) {
        snprintf(to->reason, sizeof(to->reason), "%s", reason);
        to->dropped = true;
    }
    pthread_mutex_unlock(&hub->gate.mutex);
    gate_wake(&hub->gate);
}

size_t hub_waiting(hub_t *hub, uint32_t peer) {
    pthread_mutex_lock(&hub->gate.mutex);
    const peer_t *of = peer_of(hub, peer);
    size_t waiting = of && !of->gone ? of->stream.count : 0;
    pthread_mutex_unlock(&hub->gate.mutex);
    return waiting;
}

double hub_idle_seconds(hub_t *hub, uint32_t peer) {
    pthread_mutex_lock(&hub->gate.mutex);
    const peer_t *of = peer_of(hub, peer);
    double idle = of && !of->gone ? clock_seconds() - of->progressed : INFINITY;
    pthread_mutex_unlock(&hub->gate.mutex);
    return idle;
}

link_statistics_t hub_get_statistics(const hub_t *hub) {
    hub_t *open = (hub_t *)(uintptr_t)hub; // only its lock changes
    pthread_mutex_lock(&open->gate.mutex);
    link_statistics_t statistics = open->statistics;
    pthread_mutex_unlock(&open->gate.mutex);
    return statistics;
}
