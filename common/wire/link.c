#include "common/comm/clock.h"
#include "common/text/utf8.h"
#include "common/wire/stream.h"
#include "common/wire/transport.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FRAMES_AT_ONCE = 128, FLUSH_MS = 300, REASON_BYTES = 160 };
static const double hello_again_s = 0.25, goodbye_s = 1.0;

typedef enum link_state {
    LINK_OPENING, // hello is sent until it is welcomed
    LINK_OPEN,
    LINK_LEAVING, // goodbye is sent until it is answered
    LINK_OVER,
} link_state_t;

struct link {
    link_options_t options;
    char name[TRANSPORT_MAX_NAME + 1];
    char *endpoint, *public_key, *secret_key;
    link_buffer_t hello;
    void *context;
    pthread_t thread;
    gate_t gate;
    _Atomic uint64_t progress;
    // The I/O thread's own.
    void *dealer, *monitor;
    double spoken, hello_sent, served;
    bool failed; // the sockets are not to be touched any more
    // Everything below is guarded by the gate.
    uint64_t epoch;
    stream_t stream;
    link_state_t state;
    link_buffer_t *inbox; // [inbox_count] from inbox_first on: arrived in order
    size_t inbox_first, inbox_count, inbox_capacity;
    double heard, leave_until;
    bool connected, leaving, told_refusal, keys_refused;
    char reason[REASON_BYTES]; // why it is over
    link_statistics_t statistics;
};

// ---- the socket, on the I/O thread ----

static void close_socket(link_t *link, int linger_ms) {
    if (link->dealer) zmq_setsockopt(link->dealer, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
    if (link->dealer) zmq_socket_monitor(link->dealer, NULL, 0);
    if (link->monitor) zmq_close(link->monitor);
    if (link->dealer) zmq_close(link->dealer);
    link->dealer = link->monitor = NULL;
}

// The routing id holds the epoch, so a new epoch needs a new socket.
static status_t open_socket(link_t *link) {
    char identity[TRANSPORT_MAX_IDENTITY + 1], events[64];
    size_t size = transport_identity(link->name, link->epoch, identity);
    snprintf(events, sizeof(events), "inproc://events-%016llx", (unsigned long long)link->epoch);
    link->dealer = zmq_socket(link->context, ZMQ_DEALER);
    link->monitor = zmq_socket(link->context, ZMQ_PAIR);
    if (!link->dealer || !link->monitor)
        FAIL(STATUS_UNAVAILABLE, "cannot make a ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    link_options_t options = link->options;
    options.public_key = link->public_key;
    options.secret_key = link->secret_key;
    TRY(transport_configure(link->dealer, link->endpoint, &options, false));
    int watched = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                  ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (zmq_setsockopt(link->dealer, ZMQ_ROUTING_ID, identity, size) != 0 ||
        zmq_socket_monitor(link->dealer, events, watched) != 0 || zmq_connect(link->monitor, events) != 0)
        FAIL(STATUS_UNAVAILABLE, "cannot set up a ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    if (zmq_connect(link->dealer, link->endpoint) != 0)
        FAIL(STATUS_INVALID, "cannot connect to %s: %s", link->endpoint, zmq_strerror(zmq_errno()));
    return STATUS_OK;
}

static void send_frame(link_t *link, envelope_kind_t kind, uint64_t sequence, const void *data, size_t size,
                       double now) {
    envelope_t envelope = {.kind = kind, .epoch = link->epoch, .sequence = sequence};
    envelope.progress = atomic_load(&link->progress);
    stream_stamp(&link->stream, &envelope);
    transport_send(link->dealer, NULL, 0, &envelope, data, size);
    link->spoken = now;
}

// ---- under the lock ----

static void refuse_frame(link_t *link, const char *why) {
    link->statistics.refused++;
    if (link->told_refusal) return;
    link->told_refusal = true;
    fprintf(stderr, "poise: %s refused a frame from %s: %s (said once; the count is in the statistics)\n", link->name,
            link->endpoint, why);
}

static void end_link(link_t *link, const char *prefix, const char *text, size_t length) {
    if (link->state == LINK_OVER) return;
    link->state = LINK_OVER;
    size_t used = (size_t)snprintf(link->reason, sizeof(link->reason), "%s", prefix);
    utf8_printable(text, length < 100 ? length : 100, link->reason + used, sizeof(link->reason) - used);
    pthread_cond_broadcast(&link->gate.condition);
}

static status_t take_data(link_t *link, const envelope_t *envelope, zmq_msg_t *payload, double now) {
    stream_arrival_t arrival = ARRIVAL_DUPLICATE;
    TRY(stream_arrived(&link->stream, envelope->sequence, zmq_msg_data(payload), zmq_msg_size(payload), now, &arrival));
    if (arrival == ARRIVAL_DUPLICATE) link->statistics.duplicates++;
    if (arrival == ARRIVAL_BEYOND) refuse_frame(link, "a message beyond the window");
    link_buffer_t message;
    while (stream_take(&link->stream, &message, now)) {
        if (link->inbox_first && link->inbox_first + link->inbox_count == link->inbox_capacity) {
            memmove(link->inbox, link->inbox + link->inbox_first, link->inbox_count * sizeof(*link->inbox));
            link->inbox_first = 0;
        }
        status_t status = memory_grow((void **)&link->inbox, &link->inbox_capacity,
                                      link->inbox_first + link->inbox_count + 1, sizeof(*link->inbox));
        if (status) {
            link_buffer_free(&message);
            return status;
        }
        link->inbox[link->inbox_first + link->inbox_count++] = message;
        link->statistics.received++;
        link->statistics.bytes_received += message.size;
    }
    return STATUS_OK;
}

// While opening, a refusal of an old epoch is answered by a newer one: this process is the youngest of its name (its
// clock may run behind). Once open, it means that another process has taken our place.
static status_t take_refusal(link_t *link, const envelope_t *envelope, zmq_msg_t *payload) {
    if (link->state == LINK_OPENING && envelope->sequence >= link->epoch && envelope->sequence < UINT64_MAX) {
        close_socket(link, 0);
        link->epoch = envelope->sequence + 1;
        link->hello_sent = -INFINITY;
        return open_socket(link);
    }
    end_link(link, "the hub refuses this peer: ", zmq_msg_data(payload), zmq_msg_size(payload));
    return STATUS_OK;
}

static status_t take_frame(link_t *link, transport_frame_t *frame, double now) {
    envelope_t envelope;
    zmq_msg_t *payload = &frame->part[2];
    if (frame->parts != 3 ||
        !envelope_decode(zmq_msg_data(&frame->part[1]), zmq_msg_size(&frame->part[1]), &envelope) ||
        envelope.epoch != link->epoch) {
        refuse_frame(link, "it is no frame of this protocol and epoch");
        return STATUS_OK;
    }
    link->heard = now;
    if (envelope.kind == ENVELOPE_REFUSE) return take_refusal(link, &envelope, payload);
    if (!stream_acknowledged(&link->stream, &envelope, now)) {
        refuse_frame(link, "it acknowledges what was never sent");
        return STATUS_OK;
    }
    if (envelope.kind == ENVELOPE_WELCOME && link->state == LINK_OPENING) link->state = LINK_OPEN;
    if (envelope.kind == ENVELOPE_DATA) TRY(take_data(link, &envelope, payload, now));
    if (envelope.kind == ENVELOPE_BYE) {
        // The hub keeps the connection until it has the answer: a closing connection takes unread frames with it.
        if (link->state != LINK_LEAVING) send_frame(link, ENVELOPE_BYE, link->stream.transmitted, NULL, 0, now);
        end_link(link, "the hub said goodbye: ", zmq_msg_data(payload), zmq_msg_size(payload));
    }
    pthread_cond_broadcast(&link->gate.condition);
    return STATUS_OK;
}

// Connection events: after a return, both ends send again what was on the wire.
static void take_events(link_t *link, double now) {
    zmq_msg_t part;
    zmq_msg_init(&part);
    while (link->monitor && zmq_msg_recv(&part, link->monitor, ZMQ_DONTWAIT) >= 0) {
        // An address follows each event. It may be read later, where a receive fails between them.
        if (!zmq_msg_more(&part)) continue;
        uint16_t event = 0;
        if (zmq_msg_size(&part) >= sizeof(event)) memcpy(&event, zmq_msg_data(&part), sizeof(event));
        if (event & ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
            link->connected = true;
            link->keys_refused = false;
            link->hello_sent = -INFINITY;
            if (link->state == LINK_OPEN || link->state == LINK_LEAVING) {
                stream_reconnected(&link->stream);
                send_frame(link, ENVELOPE_RESUME, 0, NULL, 0, now);
            }
        } else {
            link->connected = false;
            if (!(event & ZMQ_EVENT_DISCONNECTED)) link->keys_refused = true;
        }
    }
    zmq_msg_close(&part);
}

static void send_due(link_t *link, double now, double *wake) {
    double beat = link->options.heartbeat_s / 4;
    uint64_t sequence = 0;
    bool again = false;
    if (link->state == LINK_OPENING || link->state == LINK_LEAVING) {
        if (now - link->hello_sent >= hello_again_s) {
            if (link->state == LINK_OPENING)
                send_frame(link, ENVELOPE_HELLO, 0, link->hello.data, link->hello.size, now);
            else
                send_frame(link, ENVELOPE_BYE, link->stream.transmitted, NULL, 0, now);
            link->hello_sent = now;
        }
        *wake = fmin(*wake, link->hello_sent + hello_again_s);
    }
    for (const outgoing_t *item;
         link->state == LINK_OPEN && link->connected && (item = stream_next(&link->stream, now, &sequence, &again));) {
        send_frame(link, ENVELOPE_DATA, sequence, item->buffer.data, item->buffer.size, now);
        link->statistics.resent += again;
        link->statistics.sent += !again;
        link->statistics.bytes_sent += again ? 0 : item->buffer.size;
    }
    if (link->stream.acknowledge && link->state != LINK_OPENING) send_frame(link, ENVELOPE_ACK, 0, NULL, 0, now);
    if (now - link->spoken >= beat && link->state != LINK_OPENING)
        send_frame(link, ENVELOPE_HEARTBEAT, 0, NULL, 0, now);
    if (link->state != LINK_OPENING) *wake = fmin(*wake, link->spoken + beat);
    if (link->connected) *wake = fmin(*wake, stream_wake(&link->stream));
}

static void check_health(link_t *link, double now, double *wake) {
    char reason[REASON_BYTES];
    if (link->state != LINK_OPEN) return;
    // A process that was stopped itself must first look at what has arrived meanwhile.
    double half = link->options.heartbeat_s / 2;
    if (now - link->served > half) link->heard = fmax(link->heard, now - half);
    link->served = now;
    if (now - link->heard > link->options.heartbeat_s) {
        snprintf(reason, sizeof(reason), "no heartbeat for %.1f s", now - link->heard);
        end_link(link, "", reason, strlen(reason));
    } else if (!stream_is_healthy(&link->stream, now, reason, sizeof(reason))) {
        send_frame(link, ENVELOPE_BYE, link->stream.transmitted, reason, strlen(reason), now);
        end_link(link, "", reason, strlen(reason));
    }
    *wake = fmin(*wake, link->heard + link->options.heartbeat_s);
}

static status_t serve(link_t *link, double *wake) {
    double now = clock_seconds();
    gate_drain(&link->gate);
    take_events(link, now);
    transport_frame_t frame;
    for (int i = 0; i < FRAMES_AT_ONCE && transport_receive(link->dealer, false, &frame); i++) {
        status_t status = take_frame(link, &frame, now);
        transport_close_frame(&frame);
        TRY(status);
    }
    *wake = INFINITY;
    check_health(link, now, wake);
    if (link->state != LINK_OVER) send_due(link, now, wake);
    if (link->leaving) {
        if (link->state == LINK_OPEN && stream_is_flushed(&link->stream)) {
            link->state = LINK_LEAVING;
            link->hello_sent = -INFINITY;
            *wake = now;
        }
        *wake = fmin(*wake, link->leave_until);
        if (link->state == LINK_OVER || link->state == LINK_OPENING || now >= link->leave_until) *wake = -1;
    }
    return STATUS_OK;
}

static void *link_thread(void *argument) {
    link_t *link = argument;
    double wake = 0;
    while (wake >= 0) {
        double wait_ms = ceil(fmin(fmax(wake - clock_seconds(), 0), 60) * 1000);
        zmq_pollitem_t items[3] = {{.fd = link->gate.wake, .events = ZMQ_POLLIN},
                                   {.socket = link->dealer, .events = ZMQ_POLLIN},
                                   {.socket = link->monitor, .events = ZMQ_POLLIN}};
        zmq_poll(items, link->failed ? 1 : 3, (long)wait_ms);
        pthread_mutex_lock(&link->gate.mutex);
        status_t status = link->failed ? STATUS_OK : serve(link, &wake);
        if (status) {
            link->failed = true;
            end_link(link, "", status_message(status), strlen(status_message(status)));
            status_free(status);
        }
        if (link->failed) {
            gate_drain(&link->gate);
            wake = link->leaving ? -1 : INFINITY;
        }
        pthread_mutex_unlock(&link->gate.mutex);
    }
    return NULL;
}

// ---- the door ----

static void free_link(link_t *link) {
    close_socket(link, FLUSH_MS);
    if (link->context) zmq_ctx_term(link->context);
    stream_close(&link->stream);
    for (size_t i = 0; i < link->inbox_count; i++) link_buffer_free(&link->inbox[link->inbox_first + i]);
    free(link->inbox);
    link_buffer_free(&link->hello);
    if (link->secret_key) explicit_bzero(link->secret_key, strlen(link->secret_key));
    free(link->secret_key);
    free(link->public_key);
    free(link->endpoint);
    free(link);
}

// Later processes of a name have larger epochs. The clock only makes a first guess: see take_refusal.
static uint64_t first_epoch(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static status_t prepare_link(link_t *link, const char *endpoint, const char *name, const link_options_t *options) {
    TRY(transport_check(endpoint, options));
    if (!name[0] || strlen(name) > TRANSPORT_MAX_NAME || strchr(name, '#'))
        FAIL(STATUS_INVALID, "the name of a link must have 1 to %d characters and no '#'", TRANSPORT_MAX_NAME);
    if (link->hello.size > options->max_message && options->max_message)
        FAIL(STATUS_INVALID, "a hello of %zu bytes is longer than the %zu allowed", link->hello.size,
             options->max_message);
    memcpy(link->name, name, strlen(name) + 1);
    link->options = transport_options(options);
    if (options->public_key) {
        TRY(memory_copy_string(options->public_key, &link->public_key));
        TRY(memory_copy_string(options->secret_key, &link->secret_key));
    }
    link->options.public_key = link->options.secret_key = NULL;
    link->epoch = first_epoch();
    TRY(memory_copy_string(endpoint, &link->endpoint));
    TRY(stream_open(&link->stream, link->options.window, link->options.heartbeat_s));
    link->context = zmq_ctx_new();
    if (!link->context) FAIL(STATUS_MEMORY, "cannot make a ZeroMQ context: %s", zmq_strerror(zmq_errno()));
    TRY(open_socket(link));
    return gate_open(&link->gate);
}

static status_t await_welcome(link_t *link, double deadline_s) {
    double until = clock_seconds() + deadline_s;
    status_t status = STATUS_OK;
    pthread_mutex_lock(&link->gate.mutex);
    while (link->state == LINK_OPENING && clock_seconds() < until) gate_wait(&link->gate, until);
    if (link->state == LINK_OVER)
        status = STATUS_NEW(STATUS_PEER, "%s cannot join %s: %s", link->name, link->endpoint, link->reason);
    else if (link->state == LINK_OPENING)
        status = STATUS_NEW(STATUS_TIMEOUT, "%s was not welcomed by %s within %.1f s: %s", link->name, link->endpoint,
                            deadline_s,
                            link->keys_refused ? "it refused the keys; use those of the same job"
                            : link->connected  ? "it is connected but does not answer"
                                               : "nothing answers there");
    pthread_mutex_unlock(&link->gate.mutex);
    return status;
}

status_t link_open(const char *endpoint, const char *name, link_buffer_t hello, double deadline_s,
                   const link_options_t *options, link_t **out) {
    *out = NULL;
    link_t *link = NULL;
    status_t status = ALLOCATE(&link, 1);
    if (status) {
        link_buffer_free(&hello);
        return status;
    }
    link->hello = hello;
    link->hello_sent = -INFINITY;
    link->heard = link->spoken = link->served = clock_seconds();
    status = prepare_link(link, endpoint, name, options);
    if (status) {
        free_link(link);
        PASS_ON(status);
    }
    status = transport_start_thread(&link->thread, link_thread, link);
    if (status) {
        gate_close(&link->gate);
        free_link(link);
        PASS_ON(status);
    }
    status = await_welcome(link, deadline_s);
    if (status) {
        link_close(link);
        PASS_ON(status);
    }
    *out = link;
    return STATUS_OK;
}

void link_close(link_t *link) {
    if (!link) return;
    pthread_mutex_lock(&link->gate.mutex);
    link->leaving = true;
    link->leave_until = clock_seconds() + goodbye_s;
    pthread_mutex_unlock(&link->gate.mutex);
    gate_wake(&link->gate);
    pthread_join(link->thread, NULL);
    gate_close(&link->gate);
    free_link(link);
}

static status_t over(const link_t *link) {
    return STATUS_NEW(STATUS_PEER, "%s lost %s: %s", link->name, link->endpoint, link->reason);
}

static status_t take_message(link_t *link, link_buffer_t *message) {
    link_buffer_t taken = *message;
    *message = (link_buffer_t){0};
    return stream_queue(&link->stream, taken);
}

status_t link_send(link_t *link, link_buffer_t message, double deadline_s) {
    double until = clock_seconds() + deadline_s;
    status_t status = STATUS_OK;
    if (message.size > link->options.max_message) {
        status = STATUS_NEW(STATUS_INVALID, "a message of %zu bytes is longer than the %zu allowed", message.size,
                            link->options.max_message);
        link_buffer_free(&message);
        return status;
    }
    pthread_mutex_lock(&link->gate.mutex);
    while (link->state == LINK_OPEN && !stream_has_room(&link->stream) && clock_seconds() < until)
        gate_wait(&link->gate, until);
    if (link->state != LINK_OPEN)
        status = over(link);
    else if (!stream_has_room(&link->stream))
        status = STATUS_NEW(STATUS_TIMEOUT, "%s waited %.1f s for %s to take messages", link->name, deadline_s,
                            link->endpoint);
    else
        status = take_message(link, &message);
    if (status) link_buffer_free(&message);
    pthread_mutex_unlock(&link->gate.mutex);
    gate_wake(&link->gate);
    return status;
}

status_t link_receive(link_t *link, double wait_s, link_buffer_t *out) {
    *out = (link_buffer_t){0};
    double until = clock_seconds() + wait_s;
    bool wake = false;
    status_t status = STATUS_OK;
    pthread_mutex_lock(&link->gate.mutex);
    while (!link->inbox_count && link->state == LINK_OPEN && clock_seconds() < until) gate_wait(&link->gate, until);
    if (link->inbox_count) {
        *out = link->inbox[link->inbox_first++];
        if (!--link->inbox_count) link->inbox_first = 0;
        wake = stream_consumed(&link->stream);
        if (wake) link->stream.acknowledge = true;
    } else if (link->state != LINK_OPEN) {
        status = over(link);
    }
    pthread_mutex_unlock(&link->gate.mutex);
    if (wake) gate_wake(&link->gate);
    return status;
}

void link_progress(link_t *link) {
    atomic_fetch_add(&link->progress, 1);
}

link_statistics_t link_get_statistics(const link_t *link) {
    link_t *open = (link_t *)(uintptr_t)link; // only its lock changes
    pthread_mutex_lock(&open->gate.mutex);
    link_statistics_t statistics = open->statistics;
    pthread_mutex_unlock(&open->gate.mutex);
    return statistics;
}
