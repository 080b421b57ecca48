// A ZeroMQ proxy between links and a hub that loses, doubles, delays and reorders frames by a seed, sends old ones
// again, or cuts the line. Needs no keys. For tests only.
#ifndef TESTS_LIB_LOSSY_PROXY_H
#define TESTS_LIB_LOSSY_PROXY_H

#include "common/comm/clock.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { PROXY_MAX_PEERS = 64, PROXY_HELD = 512 };

typedef struct proxy_frame {
    char *head, *payload;
    size_t head_size, payload_size;
    int peer;
    int to_hub;
    double due; // 0: free
} proxy_frame_t;

typedef struct proxy {
    void *context, *front, *back[PROXY_MAX_PEERS];
    char id[PROXY_MAX_PEERS][256], target[256], endpoint[256];
    size_t id_size[PROXY_MAX_PEERS];
    int peers;
    double lose, twice, delay, replay; // shares
    uint64_t random;
    proxy_frame_t held[PROXY_HELD];
    pthread_t thread;
    atomic_int stop, cut;
    atomic_llong heal_at; // clock in microseconds at which a cut ends by itself; 0: when `cut` is cleared
    atomic_llong lost, doubled, delayed, replayed;
} proxy_t;

static inline double proxy_draw(proxy_t *proxy) {
    proxy->random = proxy->random * 6364136223846793005u + 1442695040888963407u;
    return (double)(proxy->random >> 11) / 9007199254740992.0;
}

static inline void proxy_forward(proxy_t *proxy, int peer, int to_hub, const char *head, size_t head_size,
                                 const char *payload, size_t payload_size) {
    void *socket = to_hub ? proxy->back[peer] : proxy->front;
    if (!to_hub) zmq_send(socket, proxy->id[peer], proxy->id_size[peer], ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(socket, head, head_size, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(socket, payload, payload_size, ZMQ_DONTWAIT);
}

// Keeps a copy for `wait_s`; false: there is no room.
static inline int proxy_hold(proxy_t *proxy, int peer, int to_hub, const char *head, size_t head_size,
                             const char *payload, size_t payload_size, double wait_s) {
    for (int i = 0; i < PROXY_HELD; i++) {
        proxy_frame_t *frame = &proxy->held[i];
        if (frame->due > 0) continue;
        *frame = (proxy_frame_t){.peer = peer, .to_hub = to_hub, .head_size = head_size, .payload_size = payload_size};
        frame->due = clock_seconds() + wait_s;
        frame->head = malloc(head_size + 1);
        frame->payload = malloc(payload_size + 1);
        memcpy(frame->head, head, head_size);
        memcpy(frame->payload, payload, payload_size);
        return 1;
    }
    return 0;
}

static inline void proxy_frame_in(proxy_t *proxy, int peer, int to_hub, const char *head, size_t head_size,
                                  const char *payload, size_t payload_size) {
    if (atomic_load(&proxy->cut) || proxy_draw(proxy) < proxy->lose) {
        atomic_fetch_add(&proxy->lost, 1);
        return;
    }
    if (proxy_draw(proxy) < proxy->delay &&
        proxy_hold(proxy, peer, to_hub, head, head_size, payload, payload_size, 0.03 * proxy_draw(proxy))) {
        atomic_fetch_add(&proxy->delayed, 1);
        return;
    }
    // Long after, when what it says is over.
    if (proxy_draw(proxy) < proxy->replay &&
        proxy_hold(proxy, peer, to_hub, head, head_size, payload, payload_size, 0.2 + proxy_draw(proxy)))
        atomic_fetch_add(&proxy->replayed, 1);
    proxy_forward(proxy, peer, to_hub, head, head_size, payload, payload_size);
    if (proxy_draw(proxy) < proxy->twice) {
        atomic_fetch_add(&proxy->doubled, 1);
        proxy_forward(proxy, peer, to_hub, head, head_size, payload, payload_size);
    }
}

static inline int proxy_peer(proxy_t *proxy, const void *id, size_t size) {
    for (int i = 0; i < proxy->peers; i++)
        if (proxy->id_size[i] == size && memcmp(proxy->id[i], id, size) == 0) return i;
    if (proxy->peers == PROXY_MAX_PEERS) return -1;
    int peer = proxy->peers++;
    memcpy(proxy->id[peer], id, size);
    proxy->id_size[peer] = size;
    proxy->back[peer] = zmq_socket(proxy->context, ZMQ_DEALER);
    int zero = 0;
    zmq_setsockopt(proxy->back[peer], ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(proxy->back[peer], ZMQ_ROUTING_ID, id, size);
    zmq_connect(proxy->back[peer], proxy->target);
    return peer;
}

// Takes one frame off a socket; -1: there is none.
static inline int proxy_take(proxy_t *proxy, void *socket, int peer) {
    zmq_msg_t part[3];
    int parts = 0, more = 1;
    for (int i = 0; i < 3; i++) zmq_msg_init(&part[i]);
    for (int i = peer < 0 ? 0 : 1; i < 3 && more; i++) {
        if (zmq_msg_recv(&part[i], socket, ZMQ_DONTWAIT) < 0) break;
        more = zmq_msg_more(&part[i]);
        parts++;
    }
    if (parts) {
        int to_hub = peer < 0;
        if (to_hub) peer = proxy_peer(proxy, zmq_msg_data(&part[0]), zmq_msg_size(&part[0]));
        if (peer >= 0)
            proxy_frame_in(proxy, peer, to_hub, zmq_msg_data(&part[1]), zmq_msg_size(&part[1]), zmq_msg_data(&part[2]),
                           zmq_msg_size(&part[2]));
    }
    for (int i = 0; i < 3; i++) zmq_msg_close(&part[i]);
    return parts ? 0 : -1;
}

static inline void *proxy_thread(void *argument) {
    proxy_t *proxy = argument;
    while (!atomic_load(&proxy->stop)) {
        zmq_pollitem_t items[PROXY_MAX_PEERS + 1] = {{.socket = proxy->front, .events = ZMQ_POLLIN}};
        for (int i = 0; i < proxy->peers; i++)
            items[i + 1] = (zmq_pollitem_t){.socket = proxy->back[i], .events = ZMQ_POLLIN};
        zmq_poll(items, proxy->peers + 1, 2);
        for (int n = 0; n < 64 && proxy_take(proxy, proxy->front, -1) == 0;) n++;
        for (int i = 0; i < proxy->peers; i++)
            for (int n = 0; n < 64 && proxy_take(proxy, proxy->back[i], i) == 0;) n++;
        double now = clock_seconds();
        long long heal_at = atomic_load(&proxy->heal_at);
        if (heal_at && now * 1e6 > (double)heal_at) {
            atomic_store(&proxy->heal_at, 0);
            atomic_store(&proxy->cut, 0);
        }
        for (int i = 0; i < PROXY_HELD; i++) {
            proxy_frame_t *frame = &proxy->held[i];
            if (frame->due <= 0 || frame->due > now) continue;
            proxy_forward(proxy, frame->peer, frame->to_hub, frame->head, frame->head_size, frame->payload,
                          frame->payload_size);
            free(frame->head);
            free(frame->payload);
            *frame = (proxy_frame_t){0};
        }
    }
    for (int i = 0; i < PROXY_HELD; i++) {
        free(proxy->held[i].head);
        free(proxy->held[i].payload);
    }
    return NULL;
}

// Shares lose, twice and delay are to be set before.
static inline void proxy_open(proxy_t *proxy, const char *target, uint64_t seed) {
    proxy->random = seed;
    snprintf(proxy->target, sizeof(proxy->target), "%s", target);
    proxy->context = zmq_ctx_new();
    proxy->front = zmq_socket(proxy->context, ZMQ_ROUTER);
    int zero = 0;
    zmq_setsockopt(proxy->front, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_bind(proxy->front, "tcp://127.0.0.1:*");
    size_t size = sizeof(proxy->endpoint);
    zmq_getsockopt(proxy->front, ZMQ_LAST_ENDPOINT, proxy->endpoint, &size);
    pthread_create(&proxy->thread, NULL, proxy_thread, proxy);
}

static inline void proxy_close(proxy_t *proxy) {
    atomic_store(&proxy->stop, 1);
    pthread_join(proxy->thread, NULL);
    zmq_close(proxy->front);
    for (int i = 0; i < proxy->peers; i++) zmq_close(proxy->back[i]);
    zmq_ctx_term(proxy->context);
}

#endif
