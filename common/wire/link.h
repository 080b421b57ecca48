// Link: reliable, ordered messages between a hub (ROUTER) and its peers (DEALER) over ZeroMQ.
//
// Delivery: a message is delivered once and in order per direction of a peer, or the peer is declared gone. Each
// direction has sequence numbers, acknowledgements and resends (a cut link loses what was on the wire), duplicates are
// dropped. A peer has an epoch number; frames of an old epoch are refused. Heartbeats come from the I/O thread, apart
// from the work loop, and carry the work loop's progress counter, so that a peer that answers but never finishes can be
// told from a busy one. Each hub or link runs one I/O thread that owns its sockets; the functions here are called by
// one other thread (or, where said, by any). Payloads are frames of common/wire/message.h. Bad frames, and connections
// of strangers (doorkeeper.h), are counted, named in the log at most once a second, and dropped. Beyond loopback CURVE
// keys are required; see link_options_t.
#ifndef COMMON_WIRE_LINK_H
#define COMMON_WIRE_LINK_H

#include "kernels/base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct link_options {
    const char *public_key, *secret_key; // the job's CURVE key pair (Z85), or NULL on loopback
    double heartbeat_s;                  // silence after which a peer is gone; heartbeats go out at a quarter of it
    size_t max_message;                  // bytes; larger frames are refused
    size_t window;                       // unacknowledged messages per direction before sends wait (back-pressure)
} link_options_t;

typedef struct link_buffer { // an owned message; free by link_buffer_free
    uint8_t *data;
    size_t size;
} link_buffer_t;
void link_buffer_free(link_buffer_t *buffer);

// What a hub's owner sees next.
// HUB_BACK: it was silent for longer than half of heartbeat_s, or its connection was made anew, and it is heard again.
typedef enum hub_event_kind { HUB_NOTHING, HUB_JOINED, HUB_MESSAGE, HUB_BACK, HUB_GONE } hub_event_kind_t;
typedef struct hub_event {
    hub_event_kind_t kind;
    uint32_t peer;         // number of the peer in this hub; a peer that comes back gets a new one
    link_buffer_t message; // HUB_MESSAGE (the owner frees it); HUB_JOINED: the peer's hello payload
    char reason[96];       // HUB_GONE: "no heartbeat for 5.0 s", "said goodbye", ...; HUB_BACK: what happened
} hub_event_t;

typedef struct hub hub_t;
// Binds to `endpoint` ("tcp://127.0.0.1:*"); the real one is hub_endpoint. Errors: address in use, keys missing beyond
// loopback.
status_t hub_open(const char *endpoint, const link_options_t *options, hub_t **out) STATUS_CHECKED;
void hub_close(hub_t *hub); // flushes acknowledgements for at most 1 s
const char *hub_endpoint(const hub_t *hub);
// Waits at most `wait_s` for an event. STATUS_OK with HUB_NOTHING when there is none.
status_t hub_receive(hub_t *hub, double wait_s, hub_event_t *event) STATUS_CHECKED;
// Queues a message for a peer (any thread). Takes over `message`. A peer that is gone: STATUS_PEER. Never blocks: the
// hub's queue is bounded by what its owner grants as credits.
status_t hub_send(hub_t *hub, uint32_t peer, link_buffer_t message) STATUS_CHECKED;
// Messages queued for a peer that it has not acknowledged: what a peer that asks without taking costs. 0: it is gone.
size_t hub_waiting(hub_t *hub, uint32_t peer);
// Declares a peer gone (stalled, misbehaving); a HUB_GONE event follows.
void hub_drop(hub_t *hub, uint32_t peer, const char *reason);
// Seconds since the peer's work loop last moved (link_progress), and since it was last heard at all.
double hub_idle_seconds(hub_t *hub, uint32_t peer);
// Seconds since the hub's own I/O thread last turned, which it does once a second or more (any thread; never blocks).
double hub_still_seconds(const hub_t *hub);

typedef struct link link_t;
// Connects and waits for the hub's welcome until `deadline_s`. `hello` is the first payload (who I am). name: for
// messages.
status_t link_open(const char *endpoint, const char *name, link_buffer_t hello, double deadline_s,
                   const link_options_t *options, link_t **out) STATUS_CHECKED;
void link_close(link_t *link); // says goodbye, flushes for at most 1 s
// Queues a message (takes it over). Waits while the window is full, until deadline_s: STATUS_TIMEOUT; hub gone:
// STATUS_PEER.
status_t link_send(link_t *link, link_buffer_t message, double deadline_s) STATUS_CHECKED;
// Waits at most wait_s. No message: STATUS_OK and out->data NULL. Hub gone: STATUS_PEER.
status_t link_receive(link_t *link, double wait_s, link_buffer_t *out) STATUS_CHECKED;
// The work loop moved: to be called at least once an engine step (any thread).
void link_progress(link_t *link);

// Counters since opening, for metrics and tests.
typedef struct link_statistics {
    uint64_t sent, received, resent, duplicates, refused, bytes_sent, bytes_received;
    uint64_t strangers; // of a hub: connections that ended without a valid frame (no key, a wrong one, garbage)
} link_statistics_t;
link_statistics_t link_get_statistics(const link_t *link);
link_statistics_t hub_get_statistics(const hub_t *hub);

// A fresh CURVE key pair (Z85, 41 bytes each with the 0).
status_t link_make_keys(char public_key[41], char secret_key[41]) STATUS_CHECKED;

#endif
