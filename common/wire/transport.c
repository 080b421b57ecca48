#include "common/wire/transport.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    KEY_CHARACTERS = 40,
    KEY_BYTES = 32,
    CONNECT_TIMEOUT_MS = 3000,
    RECONNECT_MS = 100,
    RECONNECT_MAX_MS = 2000,
    HANDSHAKE_MS = 15000, // doorkeeper.h is quicker where it matters
    BACKLOG = 512,
};

void link_buffer_free(link_buffer_t *buffer) {
    free(buffer->data);
    *buffer = (link_buffer_t){0};
}

status_t link_make_keys(char public_key[41], char secret_key[41]) {
    if (zmq_curve_keypair(public_key, secret_key) != 0)
        FAIL(STATUS_UNAVAILABLE,
             "cannot make CURVE keys: %s; jobs on several nodes need a ZeroMQ library built with CURVE",
             zmq_strerror(zmq_errno()));
    return STATUS_OK;
}

link_options_t transport_options(const link_options_t *options) {
    link_options_t out = *options;
    if (!(out.heartbeat_s > 0)) out.heartbeat_s = 5;
    if (!out.max_message) out.max_message = (size_t)64 << 20;
    if (!out.window) out.window = 64;
    return out;
}

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

// Whether only this machine can reach the endpoint.
static bool is_local(const char *endpoint) {
    if (starts_with(endpoint, "ipc://") || starts_with(endpoint, "inproc://")) return true;
    if (!starts_with(endpoint, "tcp://")) return false;
    const char *host = endpoint + strlen("tcp://");
    if (starts_with(host, "[::1]:") || starts_with(host, "localhost:")) return true;
    unsigned a = 0, b = 0, c = 0, d = 0;
    int used = 0;
    return sscanf(host, "%3u.%3u.%3u.%3u%n", &a, &b, &c, &d, &used) == 4 && a == 127 && host[used] == ':';
}

status_t transport_check(const char *endpoint, const link_options_t *options) {
    uint8_t bytes[KEY_BYTES];
    if (!options->public_key != !options->secret_key)
        FAIL(STATUS_INVALID, "a CURVE key pair needs both its public and its secret key");
    const char *keys[2] = {options->public_key, options->secret_key};
    for (int i = 0; i < 2 && options->public_key; i++)
        if (strlen(keys[i]) != KEY_CHARACTERS || !zmq_z85_decode(bytes, keys[i]))
            FAIL(STATUS_INVALID, "the %s CURVE key is not 40 characters of Z85", i ? "secret" : "public");
    if (!options->public_key && !is_local(endpoint))
        FAIL(STATUS_INVALID,
             "%s can be reached from other machines and there are no keys; give the job's CURVE keys, or stay on "
             "tcp://127.0.0.1",
             endpoint);
    return STATUS_OK;
}

static bool set_int(void *socket, int option, int value) {
    return zmq_setsockopt(socket, option, &value, sizeof(value)) == 0;
}

static bool set_text(void *socket, int option, const char *text) {
    return zmq_setsockopt(socket, option, text, strlen(text)) == 0;
}

status_t transport_configure(void *socket, const char *endpoint, const link_options_t *options, bool is_hub) {
    size_t largest = options->max_message > ENVELOPE_BYTES ? options->max_message : ENVELOPE_BYTES;
    if (largest < TRANSPORT_MAX_IDENTITY) largest = TRANSPORT_MAX_IDENTITY;
    int64_t max = (int64_t)largest;
    // Queues are bounded by our own windows, which know who must wait; ZeroMQ's bounds would drop or block.
    bool ok = zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max, sizeof(max)) == 0 && set_int(socket, ZMQ_LINGER, 0) &&
              set_int(socket, ZMQ_SNDHWM, 0) && set_int(socket, ZMQ_RCVHWM, 0) &&
              set_int(socket, ZMQ_IPV6, strchr(endpoint, '[') != NULL);
    if (is_hub)
        ok = ok && set_int(socket, ZMQ_ROUTER_HANDOVER, 1) && set_int(socket, ZMQ_ROUTER_MANDATORY, 1) &&
             set_int(socket, ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) && set_int(socket, ZMQ_BACKLOG, BACKLOG);
    else // without a connection nothing is queued: what counts is sent again once there is one
        ok = ok && set_int(socket, ZMQ_IMMEDIATE, 1) && set_int(socket, ZMQ_CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS) &&
             set_int(socket, ZMQ_RECONNECT_IVL, RECONNECT_MS) &&
             set_int(socket, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS);
    if (options->public_key && is_hub)
        ok = ok && set_int(socket, ZMQ_CURVE_SERVER, 1) && set_text(socket, ZMQ_CURVE_SECRETKEY, options->secret_key) &&
             set_text(socket, ZMQ_ZAP_DOMAIN, "poise");
    else if (options->public_key)
        ok = ok && set_text(socket, ZMQ_CURVE_SERVERKEY, options->public_key) &&
             set_text(socket, ZMQ_CURVE_PUBLICKEY, options->public_key) &&
             set_text(socket, ZMQ_CURVE_SECRETKEY, options->secret_key);
    if (!ok) FAIL(STATUS_UNAVAILABLE, "cannot set up a ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
    return STATUS_OK;
}

static bool receive_text(void *socket, char *out, size_t limit, size_t *length) {
    int got = zmq_recv(socket, out, limit, ZMQ_DONTWAIT);
    *length = got < 0 ? 0 : (size_t)got < limit ? (size_t)got : limit;
    return got >= 0;
}

static bool more_parts(void *socket) {
    int more = 0;
    size_t size = sizeof(more);
    return zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) == 0 && more;
}

// RFC 27: version, request id, domain, address, routing id, mechanism, then the client's public key for CURVE.
void transport_authenticate(void *zap, const char *public_key) {
    enum { PARTS = 7, REQUEST = 1, MECHANISM = 5, KEY = 6 };
    char part[PARTS][256];
    size_t length[PARTS] = {0};
    int parts = 0;
    do {
        char rest[256];
        size_t ignored = 0;
        bool got = parts < PARTS ? receive_text(zap, part[parts], sizeof(part[0]), &length[parts])
                                 : receive_text(zap, rest, sizeof(rest), &ignored);
        if (!got) return;
        parts++;
    } while (more_parts(zap));
    uint8_t wanted[KEY_BYTES];
    bool allowed = parts == PARTS && length[MECHANISM] == 5 && memcmp(part[MECHANISM], "CURVE", 5) == 0 &&
                   length[KEY] == KEY_BYTES && zmq_z85_decode(wanted, public_key) &&
                   memcmp(part[KEY], wanted, KEY_BYTES) == 0;
    zmq_send(zap, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(zap, part[REQUEST], length[REQUEST], ZMQ_SNDMORE);
    zmq_send(zap, allowed ? "200" : "400", 3, ZMQ_SNDMORE);
    zmq_send(zap, "", 0, ZMQ_SNDMORE);
    zmq_send(zap, "", 0, ZMQ_SNDMORE);
    zmq_send(zap, "", 0, 0);
}

size_t transport_identity(const char *name, uint64_t epoch, char out[TRANSPORT_MAX_IDENTITY + 1]) {
    int length =
        snprintf(out, TRANSPORT_MAX_IDENTITY + 1, "%.*s#%016llx", TRANSPORT_MAX_NAME, name, (unsigned long long)epoch);
    return (size_t)length;
}

bool transport_parse_identity(const void *data, size_t size, char name[TRANSPORT_MAX_NAME + 1], uint64_t *epoch) {
    const char *text = data;
    if (size < 18 || size - 17 > TRANSPORT_MAX_NAME || text[size - 17] != '#' || memchr(text, 0, size)) return false;
    *epoch = 0;
    for (size_t i = size - 16; i < size; i++) {
        bool letter = text[i] >= 'a' && text[i] <= 'f';
        if (!letter && !(text[i] >= '0' && text[i] <= '9')) return false;
        *epoch = *epoch << 4 | (uint64_t)(letter ? text[i] - 'a' + 10 : text[i] - '0');
    }
    memcpy(name, text, size - 17);
    name[size - 17] = 0;
    return true;
}

bool transport_send(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                    const void *payload, size_t size) {
    uint8_t head[ENVELOPE_BYTES];
    envelope_encode(envelope, head);
    if (identity && zmq_send(socket, identity, identity_size, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) return false;
    if (zmq_send(socket, head, sizeof(head), ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) return false;
    return zmq_send(socket, payload ? payload : "", size, ZMQ_DONTWAIT) >= 0;
}

bool transport_receive(void *socket, bool is_hub, transport_frame_t *frame) {
    frame->parts = 0;
    for (int i = 0; i < 3; i++) zmq_msg_init(&frame->part[i]);
    zmq_msg_t surplus;
    zmq_msg_init(&surplus);
    bool got = true;
    for (int i = is_hub ? 0 : 1; got; i++) {
        zmq_msg_t *part = i < 3 ? &frame->part[i] : &surplus;
        got = zmq_msg_recv(part, socket, ZMQ_DONTWAIT) >= 0;
        if (got) frame->parts = i + 1;
        if (!got || !zmq_msg_more(part)) break;
    }
    zmq_msg_close(&surplus);
    if (!got) transport_close_frame(frame);
    return got;
}

void transport_close_frame(transport_frame_t *frame) {
    for (int i = 0; i < 3; i++) zmq_msg_close(&frame->part[i]);
}

status_t gate_open(gate_t *gate) {
    gate->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (gate->wake < 0) FAIL(STATUS_FAILED, "cannot open an event descriptor: %s", strerror(errno));
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&gate->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&gate->mutex, NULL);
    return STATUS_OK;
}

void gate_close(gate_t *gate) {
    pthread_cond_destroy(&gate->condition);
    pthread_mutex_destroy(&gate->mutex);
    close(gate->wake);
}

void gate_wait(gate_t *gate, double until) {
    double whole = floor(until);
    struct timespec time = {.tv_sec = (time_t)whole, .tv_nsec = (long)((until - whole) * 1e9)};
    pthread_cond_timedwait(&gate->condition, &gate->mutex, &time);
}

void gate_wake(gate_t *gate) {
    uint64_t one = 1;
    ssize_t written = write(gate->wake, &one, sizeof(one));
    (void)written; // it fails only when the counter is full, and then the thread is awake anyway
}

void gate_drain(gate_t *gate) {
    uint64_t count = 0;
    ssize_t got = read(gate->wake, &count, sizeof(count));
    (void)got;
}

status_t transport_start_thread(pthread_t *thread, void *(*body)(void *), void *context) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(thread, NULL, body, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code) FAIL(STATUS_FAILED, "cannot start a thread: %s", strerror(code));
    return STATUS_OK;
}
