#include "common/wire/doorkeeper.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <math.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HANDSHAKE_BYTES = 256 << 10, // far more than a handshake: the frames after it may have come along
    DESCRIPTORS = 8192,          // wanted of the system, so that a burst leaves some for files
};
static const double look_again_s = 0.05;

typedef struct stranger {
    int fd; // in ZeroMQ's hands: may be closed at any time
    double since;
    bool talkative; // had sent too much when last looked at
} stranger_t;

struct doorkeeper {
    void *router, *events;
    stranger_t *stranger; // [count], oldest first
    size_t count, capacity;
    uint64_t refused;
    double looked;
};

// ZeroMQ accepts on its own thread; between its accepting and our cutting off there can be many.
static void raise_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= DESCRIPTORS) return;
    limit.rlim_cur = limit.rlim_max < DESCRIPTORS ? limit.rlim_max : DESCRIPTORS;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

status_t doorkeeper_open(void *context, void *router, doorkeeper_t **out) {
    static const char address[] = "inproc://doorkeeper";
    doorkeeper_t *keeper;
    *out = NULL;
    raise_descriptors();
    TRY(ALLOCATE(&keeper, 1));
    keeper->router = router;
    keeper->events = zmq_socket(context, ZMQ_PAIR);
    int unlimited = 0; // or ZeroMQ's thread would wait for us within its accepting
    if (!keeper->events || zmq_setsockopt(keeper->events, ZMQ_RCVHWM, &unlimited, sizeof(unlimited)) != 0 ||
        zmq_socket_monitor(router, address, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) != 0 ||
        zmq_connect(keeper->events, address) != 0) {
        status_t status = STATUS_NEW(STATUS_UNAVAILABLE, "cannot watch a ZeroMQ socket: %s", zmq_strerror(zmq_errno()));
        if (keeper->events) zmq_close(keeper->events);
        free(keeper);
        return status;
    }
    *out = keeper;
    return STATUS_OK;
}

void doorkeeper_close(doorkeeper_t *keeper) {
    if (!keeper) return;
    zmq_socket_monitor(keeper->router, NULL, 0);
    zmq_close(keeper->events);
    free(keeper->stranger);
    free(keeper);
}

void *doorkeeper_socket(const doorkeeper_t *keeper) {
    return keeper->events;
}

uint64_t doorkeeper_refused(const doorkeeper_t *keeper) {
    return keeper->refused;
}

static bool forget(doorkeeper_t *keeper, int fd) {
    for (size_t i = 0; i < keeper->count; i++) {
        if (keeper->stranger[i].fd != fd) continue;
        memmove(&keeper->stranger[i], &keeper->stranger[i + 1], (--keeper->count - i) * sizeof(stranger_t));
        return true;
    }
    return false;
}

// A descriptor of our own for the same connection, or -1. The number may have been closed and given to something else
// since: what is not a connection that was accepted on a listening port of this kind is left alone.
static int hold(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), type = 0, listening = 0;
    socklen_t type_size = sizeof(type), listening_size = sizeof(listening);
    struct tcp_info about;
    socklen_t size = sizeof(about);
    if (copy < 0) return -1;
    if (getsockopt(copy, SOL_SOCKET, SO_TYPE, &type, &type_size) == 0 && type == SOCK_STREAM &&
        getsockopt(copy, SOL_SOCKET, SO_ACCEPTCONN, &listening, &listening_size) == 0 && !listening &&
        getsockopt(copy, IPPROTO_TCP, TCP_INFO, &about, &size) == 0)
        return copy;
    close(copy);
    return -1;
}

static void cut_off(const stranger_t *stranger, uint16_t port) {
    struct sockaddr_storage own;
    socklen_t size = sizeof(own);
    int copy = hold(stranger->fd);
    if (copy < 0) return;
    uint16_t found = 0;
    if (getsockname(copy, (struct sockaddr *)&own, &size) == 0)
        found = own.ss_family == AF_INET    ? ((struct sockaddr_in *)(void *)&own)->sin_port
                : own.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&own)->sin6_port
                                            : 0;
    if (ntohs(found) == port) shutdown(copy, SHUT_RDWR); // ZeroMQ sees the end and closes it
    close(copy);
}

// Whether it has sent, and ZeroMQ has taken, more than a handshake.
static bool is_talkative(const stranger_t *stranger) {
    struct tcp_info about;
    socklen_t size = sizeof(about);
    int copy = hold(stranger->fd), waiting = 0;
    bool talkative = false;
    if (copy < 0) return false;
    memset(&about, 0, sizeof(about));
    if (getsockopt(copy, IPPROTO_TCP, TCP_INFO, &about, &size) == 0 && ioctl(copy, FIONREAD, &waiting) == 0 &&
        size >= offsetof(struct tcp_info, tcpi_bytes_received) + sizeof(about.tcpi_bytes_received))
        talkative = about.tcpi_bytes_received > (uint64_t)waiting + HANDSHAKE_BYTES;
    close(copy);
    return talkative;
}

static uint16_t listening_port(const doorkeeper_t *keeper) {
    char endpoint[256] = "";
    size_t size = sizeof(endpoint);
    if (zmq_getsockopt(keeper->router, ZMQ_LAST_ENDPOINT, endpoint, &size) != 0 || strncmp(endpoint, "tcp://", 6) != 0)
        return 0;
    const char *colon = strrchr(endpoint, ':');
    return colon ? (uint16_t)strtoul(colon + 1, NULL, 10) : 0;
}

static void take_events(doorkeeper_t *keeper, double now) {
    zmq_msg_t part;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, keeper->events, ZMQ_DONTWAIT) >= 0) {
        // An address follows each event. It may be read later, where a receive fails between them.
        if (!zmq_msg_more(&part)) continue;
        uint16_t event = 0;
        uint32_t value = 0;
        const char *data = zmq_msg_data(&part);
        if (zmq_msg_size(&part) >= sizeof(event) + sizeof(value)) {
            memcpy(&event, data, sizeof(event));
            memcpy(&value, data + sizeof(event), sizeof(value));
        }
        bool known = forget(keeper, (int)value);
        keeper->refused += event == ZMQ_EVENT_DISCONNECTED && known;
        if (event != ZMQ_EVENT_ACCEPTED) continue;
        status_t status =
            memory_grow((void **)&keeper->stranger, &keeper->capacity, keeper->count + 1, sizeof(stranger_t));
        if (!status) keeper->stranger[keeper->count++] = (stranger_t){.fd = (int)value, .since = now};
        status_free(status); // it is not watched, then; ZeroMQ ends its handshake in time
    }
    zmq_msg_close(&part);
}

void doorkeeper_admit(doorkeeper_t *keeper, double now, zmq_msg_t *part) {
    // That it was accepted may not have been heard yet: heard after its frame, it would make a stranger of a peer.
    take_events(keeper, now);
    if (keeper->count) (void)forget(keeper, zmq_msg_get(part, ZMQ_SRCFD));
}

void doorkeeper_serve(doorkeeper_t *keeper, double now, bool drained, double *wake) {
    take_events(keeper, now);
    if (!keeper->count) return;
    uint16_t port = listening_port(keeper);
    size_t surplus = keeper->count > DOORKEEPER_STRANGERS ? keeper->count - DOORKEEPER_STRANGERS : 0;
    bool look = drained && now - keeper->looked >= look_again_s;
    if (look) keeper->looked = now;
    size_t kept = 0;
    for (size_t i = 0; i < keeper->count; i++) {
        stranger_t *stranger = &keeper->stranger[i];
        bool cut = i < surplus || now - stranger->since > DOORKEEPER_PATIENCE_S;
        if (!cut && look) {
            // Twice: a frame that had come by the first time has been admitted by the second.
            bool talkative = is_talkative(stranger);
            cut = talkative && stranger->talkative;
            stranger->talkative = talkative;
        }
        if (cut) {
            cut_off(stranger, port);
            keeper->refused++;
        } else {
            keeper->stranger[kept++] = *stranger;
        }
    }
    keeper->count = kept;
    if (kept) *wake = fmin(*wake, now + look_again_s);
}
