// Envelope: the fixed head of every frame between a hub and a link (docs/wire-protocol.md). Private to common/wire and
// its tests.
#ifndef COMMON_WIRE_ENVELOPE_H
#define COMMON_WIRE_ENVELOPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ENVELOPE_BYTES = 56, ENVELOPE_SCHEMA = 1 };

typedef enum envelope_kind {
    ENVELOPE_HELLO = 1, // link -> hub: who I am (payload); repeated until welcomed
    ENVELOPE_WELCOME,   // hub -> link
    ENVELOPE_DATA,      // message `sequence`
    ENVELOPE_ACK,
    ENVELOPE_HEARTBEAT,
    ENVELOPE_BYE,    // payload: the reason; answered by a BYE
    ENVELOPE_REFUSE, // hub -> link: unknown or old epoch; sequence is the newest one known; payload: the reason
    ENVELOPE_RESUME, // link -> hub after a reconnection: answered by WELCOME, and both send again what is
                     // unacknowledged
    ENVELOPE_LAST = ENVELOPE_RESUME,
} envelope_kind_t;

typedef struct envelope {
    envelope_kind_t kind;
    uint64_t epoch;    // of the link
    uint64_t sequence; // DATA: number of the message, from 1; BYE: last one sent
    uint64_t received; // all messages up to this one have arrived
    uint64_t beyond;   // bit i: message received + 2 + i has arrived too (received + 1 has not)
    uint64_t limit;    // the sender of this frame takes messages up to this number
    uint64_t progress; // counts moves of the work loop
} envelope_t;

void envelope_encode(const envelope_t *envelope, uint8_t out[ENVELOPE_BYTES]);
// False: not an envelope of this schema.
bool envelope_decode(const void *data, size_t size, envelope_t *out);

#endif
