// What ranks tell each other about who is alive, as bytes and as checked values. The bytes come from other processes:
// whatever they hold, what is accepted is within range, and its texts can be printed.
//
// Frames between the ranks of a job are text that ends with a 0, in the payloads of a stream of common/wire:
//   RANK ESSENTIAL ROLE                     the first one: who joins
//   B WAITING COLLECTIVES PHASE             a rank's phase (waiting: in a collective)
//   F WEIGHT CODE OVERDUE SENTENCE          a rank has failed
//   E CODE                                  from the host: end, with this exit code
//   S                                       some rank was asked to stop; the host passes it on
//   D LOST                                  from the host: the result is written; LOST 1: MPI cannot be closed
// Numbers are decimal without a sign; what stands between them is one space.
#ifndef COMMON_COMM_WATCH_MESSAGE_H
#define COMMON_COMM_WATCH_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SENTENCE_BYTES = 2048, PHASE_BYTES = 64, ROLE_BYTES = 16, FRAME_BYTES = SENTENCE_BYTES + 64 };

// A consequence (a peer is missing, a deadline passed) gives way to a cause that comes soon after.
typedef enum failure_weight { FAILURE_NONE, FAILURE_CONSEQUENCE, FAILURE_CAUSE } failure_weight_t;

typedef enum watch_kind { WATCH_BEAT, WATCH_FAILED, WATCH_END, WATCH_STOP, WATCH_DONE } watch_kind_t;
typedef struct watch_message {
    watch_kind_t kind;
    bool waiting;            // of a beat
    uint64_t collectives;    // of a beat
    failure_weight_t weight; // of a failure; never FAILURE_NONE
    int code;                // 0..255, of a failure and of the end
    bool overdue;            // of a failure
    bool lost;               // of done
    char phase[PHASE_BYTES], sentence[SENTENCE_BYTES];
} watch_message_t;

// False: it is none, or of a kind that is not known; such frames are ignored.
bool watch_message_read(const void *bytes, size_t size, watch_message_t *out);
// The frame of a message, which ends with its 0; the size with that 0 is returned.
size_t watch_message_write(const watch_message_t *message, char out[FRAME_BYTES]);

typedef struct watch_hello {
    int rank;
    bool essential;
    char role[ROLE_BYTES];
} watch_hello_t;
// False: it is none, or of a rank that cannot join: not one of `ranks`, or the host itself.
bool watch_hello_read(const void *bytes, size_t size, int ranks, int host, watch_hello_t *out);
size_t watch_hello_write(const watch_hello_t *hello, char out[FRAME_BYTES]);

// What the launcher leaves in session/lost: the line "RANK SENTENCE". False: it is none.
bool watch_lost_read(const char *bytes, size_t size, int *rank, char sentence[SENTENCE_BYTES]);

// Before the ranks have joined, those of one machine exchange datagrams: this struct, as it lies in memory.
typedef enum local_kind { LOCAL_ASK = 'A', LOCAL_ANSWER = 'R', LOCAL_SAID = 'S' } local_kind_t;
typedef struct local_message {
    int32_t kind, rank, waits;
    char phase[PHASE_BYTES];
} local_message_t;
// False: it is none, or not from another one of `ranks` than `self`. waits is 0 or 1.
bool local_message_read(const void *bytes, size_t size, int ranks, int self, local_message_t *out);

#endif
