// Stream: one peer's two directions, apart from sockets: numbers, acknowledges, sends again, orders, drops duplicates.
// Private to common/wire. Not thread-safe; hub and link hold their lock.
#ifndef COMMON_WIRE_STREAM_H
#define COMMON_WIRE_STREAM_H

#include "common/wire/envelope.h"
#include "common/wire/link.h"

typedef struct outgoing {
    link_buffer_t buffer;
    double sent;  // when last put on the wire
    bool arrived; // the peer has it, out of order
    bool again;   // to be sent once more at the next chance
} outgoing_t;

typedef struct stream {
    size_t window;
    double heartbeat_s;
    // Outgoing: message `acknowledged + 1 + i` is queue[head + i].
    outgoing_t *queue;
    size_t head, count, capacity;
    uint64_t acknowledged, transmitted, peer_limit;
    size_t flying_bytes;   // transmitted and not acknowledged
    size_t repeats;        // how many of those are marked `again`
    double moved;          // when `acknowledged` last rose, or the first of a flight was sent
    double retry, retried; // current timeout, and when it last ran out
    // Incoming: slot[n % window] holds message n where it came before its turn.
    link_buffer_t *slot;
    size_t early; // messages in slots
    uint64_t received, consumed, advertised;
    double gap_since; // 0: no gap
    bool acknowledge; // something arrived that the peer should hear of
} stream_t;

status_t stream_open(stream_t *stream, size_t window, double heartbeat_s) STATUS_CHECKED;
void stream_close(stream_t *stream);

// Queues a message (takes it over, also on error).
status_t stream_queue(stream_t *stream, link_buffer_t message) STATUS_CHECKED;
// Whether a message queued now would be sent without waiting for the peer.
bool stream_has_room(const stream_t *stream);
bool stream_is_flushed(const stream_t *stream);

// Fills the acknowledgement fields of an envelope, and notes that they are on their way.
void stream_stamp(stream_t *stream, envelope_t *envelope);
// Takes the acknowledgement fields of an arrived envelope. False: it acknowledges what was never sent.
bool stream_acknowledged(stream_t *stream, const envelope_t *envelope, double now);
// After a reconnection: all that is unacknowledged is sent again.
void stream_reconnected(stream_t *stream);
// The next message to put on the wire now, or NULL. `again` tells a resend. Sets the message's time.
const outgoing_t *stream_next(stream_t *stream, double now, uint64_t *sequence, bool *again);
// When stream_next may have something although nothing arrives: a time, or INFINITY.
double stream_wake(const stream_t *stream);

typedef enum stream_arrival { ARRIVAL_NEW, ARRIVAL_DUPLICATE, ARRIVAL_BEYOND } stream_arrival_t;
// Takes message `sequence` (copies the bytes when it is new).
status_t stream_arrived(stream_t *stream, uint64_t sequence, const void *data, size_t size, double now,
                        stream_arrival_t *arrival) STATUS_CHECKED;
// The next message in order, now the caller's; false when there is none.
bool stream_take(stream_t *stream, link_buffer_t *out, double now);
// The owner consumed one message; true when the peer should be told at once that there is room.
bool stream_consumed(stream_t *stream);

// False when the stream cannot heal any more; says why.
bool stream_is_healthy(const stream_t *stream, double now, char *reason, size_t bytes);

#endif
