// Frames that poise_faults loses, doubles, delays past later ones, or sends again long after, on all of a process's
// sockets: links and hubs, weights and work alike. By the linker's --wrap of transport_send.
//
//   POISE_FRAMES=lose=0.02,twice=0.02,delay=0.05,replay=0.01,seed=7     shares of the frames sent
//   POISE_FRAMES_COUNTS=FILE     8 numbers of 8 bytes, shared by all processes: sent, lost, doubled, delayed, replayed
#include "common/wire/transport.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern bool __real_transport_send(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                                  const void *payload, size_t size);
extern bool __wrap_transport_send(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                                  const void *payload, size_t size);

enum { LOST = 1, DOUBLED, DELAYED, REPLAYED, KINDS, MOST_HELD = 256 };

typedef struct held {
    void *socket; // NULL: free
    int after;    // frames of that socket
    char identity[TRANSPORT_MAX_IDENTITY];
    size_t identity_size, size;
    bool routed;
    envelope_t envelope;
    char *payload;
} held_t;

static double share[KINDS];
static uint64_t state;
static atomic_llong own_counts[KINDS], *counts;
static held_t held[MOST_HELD];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void frames_open(void) {
    const char *text = getenv("POISE_FRAMES"), *path = getenv("POISE_FRAMES_COUNTS");
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    counts = own_counts;
    if (!text) return;
    unsigned long seed = 1;
    if (strstr(text, "seed=")) seed = strtoul(strstr(text, "seed=") + 5, NULL, 10);
    static const char *const name[KINDS] = {"", "lose=", "twice=", "delay=", "replay="};
    for (int k = LOST; k < KINDS; k++)
        if (strstr(text, name[k])) share[k] = strtod(strstr(text, name[k]) + strlen(name[k]), NULL);
    state = seed * 1000003u + (uint64_t)(rank ? atoi(rank) : 0);
    int file = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (file >= 0 && ftruncate(file, 64) == 0) {
        void *shared = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED) counts = shared;
    }
    if (file >= 0) close(file);
}

static double draw(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 9007199254740992.0;
}

static void hold(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                 const void *payload, size_t size, int after) {
    for (int i = 0; i < MOST_HELD; i++) {
        held_t *h = &held[i];
        if (h->socket) continue;
        *h = (held_t){.socket = socket, .after = after, .identity_size = identity_size, .size = size};
        h->routed = identity != NULL;
        h->envelope = *envelope;
        if (identity) memcpy(h->identity, identity, identity_size);
        h->payload = malloc(size + 1);
        if (h->payload && size) memcpy(h->payload, payload, size);
        if (!h->payload) h->socket = NULL;
        return;
    }
}

// Sends what was held long enough. A socket is used by one thread, so nobody else is sending on it.
static void release(void *socket) {
    for (int i = 0; i < MOST_HELD; i++) {
        held_t *h = &held[i];
        if (h->socket != socket || --h->after > 0) continue;
        h->socket = NULL;
        __real_transport_send(socket, h->routed ? h->identity : NULL, h->identity_size, &h->envelope, h->payload,
                              h->size);
        free(h->payload);
        h->payload = NULL;
    }
}

bool __wrap_transport_send(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                           const void *payload, size_t size) {
    if (state == 0) return __real_transport_send(socket, identity, identity_size, envelope, payload, size);
    pthread_mutex_lock(&lock);
    double fate = draw();
    int kind = 0;
    for (int k = LOST; k < KINDS && !kind; k++) {
        if (fate < share[k]) kind = k;
        fate -= share[k];
    }
    atomic_fetch_add(&counts[0], 1);
    if (kind) atomic_fetch_add(&counts[kind], 1);
    bool sent = true;
    if (kind == DELAYED)
        hold(socket, identity, identity_size, envelope, payload, size, 1 + (int)(6 * draw()));
    else if (kind != LOST)
        sent = __real_transport_send(socket, identity, identity_size, envelope, payload, size);
    if (kind == DOUBLED) __real_transport_send(socket, identity, identity_size, envelope, payload, size);
    if (kind == REPLAYED) hold(socket, identity, identity_size, envelope, payload, size, 20 + (int)(200 * draw()));
    release(socket);
    pthread_mutex_unlock(&lock);
    return sent;
}
