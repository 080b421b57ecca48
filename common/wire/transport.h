// Transport: what hub and link share of ZeroMQ: sockets with the right options, frames in and out, keys, waking.
// Private to common/wire and its tests.
#ifndef COMMON_WIRE_TRANSPORT_H
#define COMMON_WIRE_TRANSPORT_H

#include "common/wire/envelope.h"
#include "common/wire/link.h"
#include <pthread.h>
#include <zmq.h>

enum { TRANSPORT_MAX_IDENTITY = 255, TRANSPORT_MAX_NAME = 200 };

// The options with defaults in place of zeros.
link_options_t transport_options(const link_options_t *options);
// Refuses an endpoint beyond loopback without keys, and keys that are none.
status_t transport_check(const char *endpoint, const link_options_t *options) STATUS_CHECKED;
// Options common to both ends: limits, no lingering, no queueing without a connection, CURVE.
status_t transport_configure(void *socket, const char *endpoint, const link_options_t *options,
                             bool is_hub) STATUS_CHECKED;
// Answers one authentication request of ZeroMQ (ZAP): only the holder of the job's own key pair may come in.
void transport_authenticate(void *zap, const char *public_key);

// Routing ids: NAME '#' and the epoch in 16 hexadecimal digits.
size_t transport_identity(const char *name, uint64_t epoch, char out[TRANSPORT_MAX_IDENTITY + 1]);
bool transport_parse_identity(const void *data, size_t size, char name[TRANSPORT_MAX_NAME + 1], uint64_t *epoch);

// Sends envelope and payload, to `identity` when the socket is a ROUTER (NULL for a DEALER). Never blocks; false: there
// is no connection now.
bool transport_send(void *socket, const void *identity, size_t identity_size, const envelope_t *envelope,
                    const void *payload, size_t size);
typedef struct transport_frame {
    zmq_msg_t part[3]; // identity, envelope, payload
    int parts;         // that were there; beyond three they are dropped
} transport_frame_t;
// Receives a frame whole (a DEALER's starts at part 1). False: there is none. Parts are to be closed.
bool transport_receive(void *socket, bool is_hub, transport_frame_t *frame);
void transport_close_frame(transport_frame_t *frame);

// A lock with a condition on the monotonic clock and a descriptor that wakes zmq_poll.
typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    int wake;
} gate_t;
status_t gate_open(gate_t *gate) STATUS_CHECKED;
void gate_close(gate_t *gate);
void gate_wait(gate_t *gate, double until); // holds the lock; returns at a signal or at `until`
void gate_wake(gate_t *gate);               // wakes the I/O thread
void gate_drain(gate_t *gate);
// Starts a thread that takes no signals.
status_t transport_start_thread(pthread_t *thread, void *(*body)(void *), void *context) STATUS_CHECKED;

#endif
