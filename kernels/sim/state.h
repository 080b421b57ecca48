// What the files of the simulator share; not for others.
#ifndef KERNELS_SIM_STATE_H
#define KERNELS_SIM_STATE_H

#include "kernels/sim/fiber.h"
#include "kernels/sim/sim.h"
#include <stdbool.h>

enum {
    SIM_STACK_BYTES = 128 * 1024,
    SIM_RED_ZONE = 64,
    SIM_ARENA_BYTES = 256 * 1024, // shared memory with its red zones
    SIM_VARIABLES = 64,           // shared variables a block
    SIM_EXCHANGES = SIM_WARP + 1, // a lane holds one at most, and one is being made
    SIM_COPIES = 256              // cp.async in flight, a thread
};

typedef enum sim_waits { SIM_RUNS, SIM_AT_BARRIER, SIM_AT_WARP, SIM_ENDED } sim_waits_t;

typedef struct sim_exchange {
    int readers;
    bool multiplied; // product is that of the packets
    float product[SIM_WARP][4];
    unsigned char packet[SIM_WARP * SIM_PACKET];
} sim_exchange_t;

typedef struct sim_copy {
    void *to;
    const void *from;
    int bytes, from_bytes, group;
} sim_copy_t;

typedef struct sim_thread {
    fiber_t fiber;
    sim_self_t self;
    int number;
    sim_waits_t waits;
    int barrier, barrier_threads;
    const char *what; // the warp call
    uint32_t mask;
    bool orders;
    const char *file; // where it waits
    int line;
    unsigned char packet[SIM_PACKET];
    size_t packet_bytes;
    sim_exchange_t *exchange;
    sim_copy_t copies[SIM_COPIES];
    int copy_count, copy_group; // the group that is open
    uint32_t *seen;             // [threads] the latest time of each other thread that this one is ordered after
    uint32_t time;              // counts this thread's ordering calls
} sim_thread_t;

typedef struct sim_variable {
    const void *key;
    const char *name;
    size_t offset, bytes;
} sim_variable_t;

// Accesses to one word of shared memory since the block's last full barrier, or to one byte of a word that is not
// always accessed whole. Code addresses count from the program's start.
typedef struct sim_cell {
    uint32_t generation; // other than the state's: no access
    uint32_t writer_time, writer_at;
    uint32_t reader_time, reader_at; // the latest reader
    int reads;                       // first entry of the list of those before it, -1: none
    int16_t writer, reader;          // -1: none
    bool split;                      // of a word: its bytes have cells of their own
} sim_cell_t;
typedef struct sim_read {
    int next;
    uint32_t time, at;
    int thread;
} sim_read_t;

// The lanes of a warp that wait in a warp call, by bits.
typedef struct sim_gather {
    uint32_t waiting, ended, mask;
    bool alike; // all that wait made the same call with this mask
    const char *what, *file;
    int line;
} sim_gather_t;

typedef struct sim_state {
    struct sim_state *next; // of all host threads
    const sim_launch_t *launch;
    int threads;
    sim_thread_t *thread;
    sim_thread_t *running;
    fiber_t scheduler;
    int *turn; // thread numbers in order of their turns
    int moved; // whether anything ran in this pass
    sim_exchange_t *exchanges;
    sim_gather_t gathers[SIM_BLOCK_THREADS / SIM_WARP];
    int barrier_waiting[SIM_BARRIERS], barrier_threads[SIM_BARRIERS]; // how many wait there, for how many in all
    char *fault;                                                      // the message; set once
    uint64_t random;
    // shared memory
    unsigned char *arena;
    size_t arena_used, shared_used;
    sim_variable_t variables[SIM_VARIABLES];
    int variable_count;
    int last_variable; // that was accessed
    sim_cell_t *words, *bytes;
    uint32_t generation;
    sim_read_t *reads;
    int read_count;
    size_t read_capacity;
    uint32_t *floor;  // [threads] times that every thread is ordered after
    uint32_t *rows;   // the seen rows
    size_t rows_used; // of them these may be other than 0
} sim_state_t;

// The launch that runs on this host thread, or NULL.
extern __thread sim_state_t *sim_now;

status_t sim_shared_open(sim_state_t *sim) STATUS_CHECKED;
void sim_shared_close(sim_state_t *sim);
void sim_shared_launch(sim_state_t *sim);
// A new block: no variables, dynamic memory in place.
void sim_shared_block(sim_state_t *sim);
// The threads of the list have met: each is ordered after what the others did so far. full: it is the whole block.
void sim_shared_meet(sim_state_t *sim, const int *list, int count, bool full);
// One access of the running thread, by code at `at` (or at file:line).
void sim_shared_access(const void *address, size_t bytes, bool writes, const void *at);
// The same for any memory, and for memory that is not shared.
void sim_access(const void *address, size_t bytes, bool writes, const void *at);
void sim_global_access(const void *address, size_t bytes, bool writes, const void *at);
// "file:line" of a code address, through addr2line; falls back to the address.
void sim_source_of(const void *at, char *out, size_t bytes);
// Ends the launch; the running thread is left where it is.
__attribute__((noreturn)) void sim_stop(char *message);
void sim_leave(void);

#endif
