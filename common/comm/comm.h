// Comm: collectives among the ranks of one role, behind a table: MPI on the host's memory, NCCL on a device's.
//
// All functions are collective over the communicator. None blocks for ever: each is started non-blocking and polled
// (sleeping, not spinning) until `deadline_s` passes; then it fails with STATUS_TIMEOUT naming the phase and this rank.
// After a timeout or a peer's death the communicator is unusable (further calls fail at once), buffers given to the
// call that failed may still be written, and the process should end (comm_abandon), never finalize. One thread at a
// time may use a communicator.
#ifndef COMMON_COMM_COMM_H
#define COMMON_COMM_COMM_H

#include "kernels/device.h"

typedef struct comm comm_t;
typedef struct watch watch_t;
typedef enum comm_operation { COMM_SUM, COMM_MAX, COMM_MIN, COMM_BIT_OR } comm_operation_t;

// MPI_Init_thread (MPI_THREAD_SERIALIZED is asked for) and the world. Without mpirun this is a world of one. `watch` is
// told of collectives of the world and of communicators split from it (a call into MPI may hang where no deadline is
// looked at). Borrowed; NULL is allowed.
status_t comm_open_world(double deadline_s, watch_t *watch, comm_t **out) STATUS_CHECKED;
// Ranks with the same colour >= 0 form a communicator, ordered by rank; colour -1 gives *out = NULL.
status_t comm_split(comm_t *comm, int colour, comm_t **out) STATUS_CHECKED;
// The same ranks, for data in the memory of `device` (which must have streams, kernels/streams.h): NCCL's, or its
// stand-in's with the simulator. Collectives run in a stream of their own, after all ops that were called before them;
// ops that are called after them see their results. Sums of int64 have the same bits as MPI's. COMM_BIT_OR is not
// known here. `comm` and `device` must outlive it. Collective. Where a rank cannot have it, all are told
// (STATUS_UNAVAILABLE: there is no NCCL) and may go on without; where opening itself fails, that rank is told at once,
// and the others by the watch or their deadline.
status_t comm_open_device(comm_t *comm, device_t *device, comm_t **out) STATUS_CHECKED;
// Frees; NULL is allowed. One that is unusable is left as it is, and so is one with parts under way, which is broken
// off.
void comm_close(comm_t *comm);
// For the world: MPI_Finalize after a barrier with a deadline; where that fails, _exit is the caller's next step.
status_t comm_close_world(comm_t *world) STATUS_CHECKED;
// Ends the process without MPI_Finalize (which may hang once a rank is dead): flushes stdio, then _exit(exit_code).
_Noreturn void comm_abandon(int exit_code);
// The rank that mpirun or srun gives this process by its environment, also before MPI starts; -1 without either.
int comm_launcher_rank(void);
// The number of ranks by the launcher's environment, before MPI has started; -1 without one.
int comm_launcher_size(void);
int comm_rank(const comm_t *comm);
int comm_size(const comm_t *comm);
// This process's rank in MPI_COMM_WORLD, for messages; local rank among the processes of its node.
int comm_world_rank(const comm_t *comm);
int comm_local_rank(const comm_t *comm);
// Number of nodes (by host name) the world runs on.
int comm_hosts(const comm_t *comm);
// What carries its data, for messages: "MPI", "NCCL 2.28.9".
const char *comm_carrier(const comm_t *comm);
void comm_set_deadline(comm_t *comm, double deadline_s);

// `phase` is a short name such as "gradient sum"; it stands in timeout messages, and a copy is kept.
status_t comm_barrier(comm_t *comm, const char *phase) STATUS_CHECKED;
status_t comm_broadcast(comm_t *comm, void *data, size_t bytes, int root, const char *phase) STATUS_CHECKED;
status_t comm_all_reduce_i64(comm_t *comm, int64_t *data, int64_t count, comm_operation_t operation,
                             const char *phase) STATUS_CHECKED;
status_t comm_all_reduce_f64(comm_t *comm, double *data, int64_t count, comm_operation_t operation,
                             const char *phase) STATUS_CHECKED; // MAX and MIN only where bits matter
// Sum of int64; rank r keeps elements offset[r] .. offset[r+1]-1 of the result in place (offset: [size + 1]).
status_t comm_reduce_scatter_i64(comm_t *comm, int64_t *data, const int64_t *offset, const char *phase) STATUS_CHECKED;
// Rank r owns bytes offset[r] .. offset[r+1]-1 of data; afterwards all have all.
status_t comm_all_gather(comm_t *comm, void *data, const int64_t *offset, const char *phase) STATUS_CHECKED;
// The same for parts, begun and not waited for, so that computing goes on beside them: of elements (bytes)
// first[r] .. last[r]-1 of rank r. All ranks begin the same parts in the same order, each whenever it comes to them; no
// other collective of this communicator until they have been waited for, at most COMM_BEGUN of them. With MPI sums are
// moved by comm_progress and comm_wait (a begun all-gather has ended when the call returns).
enum { COMM_BEGUN = 64 };
status_t comm_begin_reduce_scatter_i64(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last,
                                       const char *phase) STATUS_CHECKED;
status_t comm_begin_all_gather(comm_t *comm, void *data, const int64_t *first, const int64_t *last,
                               const char *phase) STATUS_CHECKED;
// Ops that are called from now on begin after part `number` (from 0, since the last wait) has ended.
status_t comm_order(comm_t *comm, int number, const char *phase) STATUS_CHECKED;
// Moves what was begun as far as it goes without waiting. Cheap: to be called between ops.
status_t comm_progress(comm_t *comm, const char *phase) STATUS_CHECKED;
// Whether parts were begun that nobody has waited for: memory that was given to them is still theirs.
bool comm_under_way(const comm_t *comm);
// Waits for all that was begun; here its deadline starts.
status_t comm_wait(comm_t *comm, const char *phase) STATUS_CHECKED;
// Gathers one string a rank (addresses at start-up); *out is an array of `size` malloc'd strings, to be freed one by
// one and then itself. A string is at most 64 KiB.
status_t comm_gather_strings(comm_t *comm, const char *text, char ***out, const char *phase) STATUS_CHECKED;

#endif
