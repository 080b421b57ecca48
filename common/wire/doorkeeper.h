// Doorkeeper: bounds what connections that never say anything valid can cost a hub. Private to common/wire.
//
// Anyone who reaches the port can connect; who has no key gets no further than ZeroMQ's handshake, but each attempt
// holds a file descriptor and what it has sent. The keeper watches the socket's connections. One is a stranger until a
// frame comes out of it (with CURVE, only holders of the key get a frame through). Strangers are cut off, the oldest
// first, when there are more than DOORKEEPER_STRANGERS; after DOORKEEPER_PATIENCE_S; and when one has sent more than
// any handshake needs. A peer of the job that is cut off by this connects again, like after any other cut.
#ifndef COMMON_WIRE_DOORKEEPER_H
#define COMMON_WIRE_DOORKEEPER_H

#include "kernels/base/status.h"
#include <stdint.h>
#include <zmq.h>

enum { DOORKEEPER_STRANGERS = 128, DOORKEEPER_PATIENCE_S = 10 };

typedef struct doorkeeper doorkeeper_t;

// Watches `router`, before it is bound.
status_t doorkeeper_open(void *context, void *router, doorkeeper_t **out) STATUS_CHECKED;
// Before the router is closed. NULL is allowed.
void doorkeeper_close(doorkeeper_t *keeper);
// To be polled for ZMQ_POLLIN.
void *doorkeeper_socket(const doorkeeper_t *keeper);
// A frame came: its connection is none of a stranger.
void doorkeeper_admit(doorkeeper_t *keeper, double now, zmq_msg_t *part);
// Takes what has happened and cuts off. drained: all frames that had arrived have been admitted since the last call.
// Lowers *wake to when it has to be called again.
void doorkeeper_serve(doorkeeper_t *keeper, double now, bool drained, double *wake);
// Connections that ended as strangers, since opening.
uint64_t doorkeeper_refused(const doorkeeper_t *keeper);

#endif
