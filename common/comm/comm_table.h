// The transport seam of comm: what a kind of collective (MPI, NCCL) brings. Private to common/comm and its tests.
//
// comm.c checks arguments, cuts long arrays into pieces and takes the short way for a communicator of one rank; a
// member only starts pieces and waits for them. A piece is at most INT_MAX elements.
#ifndef COMMON_COMM_COMM_TABLE_H
#define COMMON_COMM_COMM_TABLE_H

#include "common/comm/comm.h"
#include "common/comm/watch.h"

typedef enum comm_type { COMM_BYTE, COMM_I64, COMM_F64 } comm_type_t;
enum { COMM_MAX_PIECES = 8 }; // started and not yet finished at the same time

typedef struct comm_table {
    const char *name;
    // The communicator of the ranks that gave the same colour; `members` are their ranks in `comm`, ascending.
    status_t (*split)(comm_t *comm, const int *members, int count, int tag, comm_t *out);
    void (*close)(comm_t *comm);
    status_t (*start_barrier)(comm_t *comm);
    status_t (*start_broadcast)(comm_t *comm, void *data, int bytes, int root);
    status_t (*start_all_reduce)(comm_t *comm, void *data, int count, comm_type_t type, comm_operation_t operation);
    // Sum of int64 to `root`, in place there; elsewhere `data` is only read.
    status_t (*start_reduce)(comm_t *comm, int64_t *data, int count, int root);
    // Bytes offset[r] .. offset[r+1]-1 come from rank r, in place; the whole is at most INT_MAX bytes.
    status_t (*start_all_gather)(comm_t *comm, void *data, const int64_t *offset);
    // NULL: comm.c makes it of reductions. Sum of int64, of elements first[r] .. last[r]-1 to rank r in place, whatever
    // their number, and the same for bytes of an all-gather.
    status_t (*start_reduce_scatter)(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last);
    status_t (*start_gather)(comm_t *comm, void *data, const int64_t *first, const int64_t *last);
    // NULL: nothing to order. Ops of the device begin after piece number `piece` (from 0, since the last wait); up to
    // COMM_BEGUN pieces are under way then.
    status_t (*order)(comm_t *comm, int piece);
    // NULL: nothing to do. A wait has ended in vain: ends what is under way.
    void (*abort)(comm_t *comm);
    // Whether all pieces started so far are done. A member without `order` takes those that are off comm->pieces.
    status_t (*test)(comm_t *comm, bool *done);
} comm_table_t;

// A reduction that was begun and waits for its turn.
typedef struct comm_piece {
    int64_t *data;
    int count, root;
} comm_piece_t;

struct comm {
    const comm_table_t *table;
    int rank, size, world_rank, local_rank, hosts;
    double deadline_s;
    int64_t piece_bytes; // longest piece
    int pieces;          // started and not yet known to be done
    int splits;          // made so far; tags of the groups
    bool broken;         // a wait ended by its deadline: pieces may still be under way
    comm_piece_t *queue; // begun, to be started in this order; kept from step to step
    size_t queued, queue_next, queue_capacity;
    bool begun;       // parts, and nobody has waited for them
    bool finalizes;   // the world of this process, to be finalized
    watch_t *watch;   // is told of every collective; may be NULL
    char carrier[32]; // empty: MPI
    void *state;      // the member's own
};

// For tests: cuts arrays into pieces of at most this many bytes (a multiple of 8).
void comm_set_piece_bytes(comm_t *comm, int64_t bytes);
extern const comm_table_t comm_mpi_table, comm_nccl_table;
// Initialises MPI and fills the world (comm_mpi.c).
status_t comm_mpi_open_world(comm_t *world) STATUS_CHECKED;
status_t comm_mpi_finalize(void) STATUS_CHECKED;
// Makes the NCCL member's state of `out`, a copy of `comm` otherwise. Collective over `comm` (comm_nccl.c).
status_t comm_nccl_open(comm_t *comm, device_t *device, comm_t *out) STATUS_CHECKED;

#endif
