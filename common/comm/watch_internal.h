// What watch.c (the thread and its limits), watch_ranks.c (who is lost) and watch_local.c (who hangs at the start)
// share.
#ifndef COMMON_COMM_WATCH_INTERNAL_H
#define COMMON_COMM_WATCH_INTERNAL_H

#include "common/comm/watch.h"
#include "common/comm/watch_message.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct failure {
    failure_weight_t weight;
    int code, rank;
    double since;
    bool overdue; // a collective's deadline passed: the host names who is missing in it
    bool loss;    // of another rank
    char sentence[SENTENCE_BYTES];
} failure_t;

typedef struct watch_peer { // the host's view of a rank
    uint32_t number;
    bool here, essential, waiting;
    uint64_t collectives;
    double since; // in this phase
    char role[ROLE_BYTES], phase[PHASE_BYTES];
} watch_peer_t;

typedef struct watch_where {
    char name[PHASE_BYTES];
} watch_where_t;

typedef struct board board_t; // session/rank.R

struct watch {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int rank, size;
    // Set by the main thread. A reader takes the limit first and a writer sets it last, so that a new limit is never
    // held against an old beginning.
    _Atomic double since, limit;
    atomic_ullong collectives;
    atomic_bool waits;
    atomic_bool stop;   // asked for here or elsewhere
    double phase_limit; // the main thread's own
    board_t *board;
    int local, local_size; // socket to the ranks of this machine until all have joined; -1: none. Ranks of the job
    pthread_mutex_t where_mutex;     // innermost, as is the next: held for a copy of these two
    watch_where_t phase, collective; // collective: "" outside of one
    pthread_mutex_t board_mutex;     // held for one write to the board
    char *notice;                    // path of session/lost, NULL without a session
    // Under the mutex:
    bool closing, joined, finished; // finished: this rank's part is done
    bool start_failed;              // a wait before all had joined has failed
    int exit_code;                  // when finished
    failure_t failure;              // this rank's own, or what the host has heard so far
    // The watch thread's, once joined:
    watch_options_t options;
    hub_t *hub;         // the host's
    link_t *link;       // of the others
    watch_peer_t *peer; // [size], the host's
    bool done;          // the result is written (under the mutex)
    bool lost;          // a rank is missing that others could do without
    bool told, told_done, told_lost, told_stop;
    watch_message_t sent; // this rank's last beat
    double sent_at;
    // Time that this process itself did not run (stopped, or starved) counts for nobody.
    double ticked, skipped, skipped_since;
    double opened;    // when the watch began
    double parted_at; // when the host left after all was done; 0: it has not
};

// Ends the process; the board says that it ended by itself.
_Noreturn void watch_exit(watch_t *watch, int code);
// What the launcher has to say: a rank has died, sooner than its silence tells. False: nothing.
bool watch_notice(const watch_t *watch, int *rank, char sentence[SENTENCE_BYTES]);
// Names this rank's role on the board.
void watch_role(watch_t *watch, const char *role);
// What the main thread is in, for messages.
watch_where_t watch_where(watch_t *watch);
// Prints the sentence as rank `rank`'s, in one write and as one line: part of it may be another process's.
void watch_say(int rank, const char *sentence);
// What launch/run is to end with (session/said).
void watch_tell_launcher(const watch_t *watch, const char *sentence);
// Until the ranks have joined (watch_local.c): opens the socket; answers ranks of this machine that ask; and, when the
// start is overdue, finds out who hangs. Exactly one rank of the machine prints it, and all end with code 1.
void watch_local_open(watch_t *watch);
void watch_local_close(watch_t *watch);
void watch_local_turn(watch_t *watch);
_Noreturn void watch_local_overdue(watch_t *watch, double seconds);
// What a rank of this machine is found to be in. A stopped process has its socket and does not answer.
typedef enum local_state { LOCAL_ABSENT, LOCAL_SILENT, LOCAL_HANGS, LOCAL_WAITS } local_state_t;
typedef struct local_view {
    local_state_t state;
    char phase[PHASE_BYTES];
} local_view_t;
// The rank that speaks for the machine's `size` ranks; -1: none waits or hangs.
int watch_local_speaker(const local_view_t *view, int size);
// Who is the reason that nothing moves. `where`: what this rank waits in.
void watch_local_sentence(const local_view_t *view, int size, const char *where, char *out, size_t bytes);
// One turn of the thread with the other ranks (about 0.1 s).
void watch_ranks_turn(watch_t *watch);

#endif
