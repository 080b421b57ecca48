#include "common/comm/clock.h"
#include "common/comm/comm_table.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { QUICK_POLLS = 8, SLEEP_FIRST_NS = 20000, SLEEP_LONGEST_NS = 200000, STRING_LIMIT = 65536 };
// Open MPI's non-blocking reductions take scratch memory of the size of a piece.
// Longer than any transfer within a node that is really moving, short beside a rank that is late.
#define YIELD_S 0.05
#define HANG_S  10.0
static const int64_t default_piece_bytes = (int64_t)8 << 20;
static const int64_t device_piece_bytes = (int64_t)1 << 30;

static status_t check_usable(const comm_t *comm, const char *phase) {
    if (comm->broken)
        FAIL(STATUS_PEER,
             "rank %d cannot start \"%s\": an earlier collective did not finish and its communicator is lost",
             comm->world_rank, phase);
    return STATUS_OK;
}

static void break_off(comm_t *comm) {
    comm->broken = true;
    if (comm->table->abort) comm->table->abort(comm);
}

// Starts what was begun as far as there is room for it.
static status_t start_queued(comm_t *comm) {
    while (comm->queue_next < comm->queued && comm->pieces < COMM_MAX_PIECES) {
        const comm_piece_t *piece = &comm->queue[comm->queue_next++];
        TRY(comm->table->start_reduce(comm, piece->data, piece->count, piece->root));
        comm->pieces++;
    }
    if (comm->queue_next == comm->queued) comm->queue_next = comm->queued = 0;
    return STATUS_OK;
}

// One look at what is under way. *done: nothing is left, also of what was begun.
static status_t look(comm_t *comm, bool *done, const char *phase) {
    status_t status = comm->table->test(comm, done);
    if (!status && comm->queued) {
        *done = false;
        status = start_queued(comm);
    }
    if (!status) return STATUS_OK;
    break_off(comm);
    return status_context(status, "rank %d in \"%s\"", comm->world_rank, phase);
}

// Waits for all pieces under way. MPI moves data only while it is polled, so sleeping at once would starve a transfer
// that is under way (a 12 MB reduction took 0.5 s that way): first it polls and yields the core between polls, then it
// sleeps ever longer.
static status_t wait_pieces(comm_t *comm, double until, const char *phase) {
    long sleep_ns = SLEEP_FIRST_NS;
    double yield_until = clock_seconds() + YIELD_S;
    watch_waits(comm->watch);
    for (int polls = 0;; polls++) {
        bool done = false;
        TRY(look(comm, &done, phase));
        if (done) break;
        if (polls < QUICK_POLLS) continue;
        if (clock_seconds() > until) {
            break_off(comm);
            FAIL(STATUS_TIMEOUT,
                 "rank %d waited %.1f s in \"%s\" for the other %d ranks of its group; one of them has died, hangs or "
                 "is slower than the deadline allows (raise deadline.collective_s if so)",
                 comm->world_rank, comm->deadline_s, phase, comm->size - 1);
        }
        if (clock_seconds() < yield_until) {
            sched_yield();
            continue;
        }
        nanosleep(&(struct timespec){.tv_nsec = sleep_ns}, NULL);
        sleep_ns = sleep_ns * 3 / 2 > SLEEP_LONGEST_NS ? SLEEP_LONGEST_NS : sleep_ns * 3 / 2;
    }
    comm->pieces = 0;
    return STATUS_OK;
}

// After a piece was started: waits when enough are under way.
static status_t started(comm_t *comm, status_t status, double until, const char *phase) {
    if (status) {
        break_off(comm);
        return status_context(status, "rank %d in \"%s\"", comm->world_rank, phase);
    }
    if (++comm->pieces < COMM_MAX_PIECES) return STATUS_OK;
    return wait_pieces(comm, until, phase);
}

// Between these two lies a collective. The deadline looked at here is the first to pass; the watch's is for calls that
// do not come back.
static status_t begin(comm_t *comm, const char *phase, double *until) {
    if (comm->begun) FAIL(STATUS_FAILED, "\"%s\" was called between the beginning of parts and their wait", phase);
    watch_collective(comm->watch, phase, comm->deadline_s + HANG_S);
    *until = clock_seconds() + comm->deadline_s;
    return STATUS_OK;
}

static status_t finish(comm_t *comm, double until, const char *phase) {
    TRY(wait_pieces(comm, until, phase));
    watch_collective(comm->watch, NULL, 0);
    return STATUS_OK;
}

status_t comm_open_world(double deadline_s, watch_t *watch, comm_t **out) {
    *out = NULL;
    comm_t *world = NULL;
    TRY(ALLOCATE(&world, 1));
    world->deadline_s = deadline_s;
    world->watch = watch;
    world->piece_bytes = default_piece_bytes;
    status_t status = comm_mpi_open_world(world);
    char **host = NULL;
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    if (!status) status = comm_gather_strings(world, name, &host, "start-up");
    if (status) {
        free(world);
        PASS_ON(status);
    }
    for (int rank = 0; rank < world->size; rank++) {
        bool seen = false;
        for (int earlier = 0; earlier < rank; earlier++) seen = seen || strcmp(host[earlier], host[rank]) == 0;
        world->hosts += !seen;
        if (rank < world->rank && strcmp(host[rank], name) == 0) world->local_rank++;
    }
    for (int rank = 0; rank < world->size; rank++) free(host[rank]);
    free(host);
    *out = world;
    return STATUS_OK;
}

status_t comm_split(comm_t *comm, int colour, comm_t **out) {
    *out = NULL;
    size_t size = (size_t)comm->size;
    int64_t *offset = NULL;
    int32_t *colours = NULL;
    int *members = NULL;
    comm_t *part = NULL;
    status_t status = STATUS_OK;
    TRY_GOTO(status, done, ALLOCATE(&offset, size + 1));
    TRY_GOTO(status, done, ALLOCATE(&colours, size));
    TRY_GOTO(status, done, ALLOCATE(&members, size));
    for (size_t rank = 0; rank <= size; rank++) offset[rank] = (int64_t)(rank * sizeof(int32_t));
    colours[comm->rank] = colour;
    // This gather is also the wait with a deadline; making the group afterwards meets ranks that are there.
    TRY_GOTO(status, done, comm_all_gather(comm, colours, offset, "making groups"));
    int tag = comm->splits++;
    if (colour < 0) goto done;
    int count = 0, own = 0;
    for (int rank = 0; rank < comm->size; rank++) {
        if (colours[rank] != colour) continue;
        if (rank == comm->rank) own = count;
        members[count++] = rank;
    }
    TRY_GOTO(status, done, ALLOCATE(&part, 1));
    *part = *comm;
    part->rank = own;
    part->size = count;
    part->splits = 0;
    part->pieces = 0;
    part->queue = NULL;
    part->queued = part->queue_next = part->queue_capacity = 0;
    part->finalizes = false;
    part->state = NULL;
    watch_phase(comm->watch, "making groups", comm->deadline_s + HANG_S);
    TRY_GOTO(status, done, comm->table->split(comm, members, count, tag, part));
    *out = part;
    part = NULL;
done:
    free(part);
    if (!comm->broken) free(colours); // after a deadline MPI may still write there
    free(offset);
    free(members);
    return status;
}

status_t comm_open_device(comm_t *comm, device_t *device, comm_t **out) {
    *out = NULL;
    comm_t *opened;
    TRY(ALLOCATE(&opened, 1));
    *opened = *comm;
    opened->table = &comm_nccl_table;
    opened->splits = opened->pieces = 0;
    opened->queue = NULL;
    opened->queued = opened->queue_next = opened->queue_capacity = 0;
    opened->finalizes = false;
    opened->state = NULL;
    opened->piece_bytes = device_piece_bytes;
    watch_phase(comm->watch, "opening NCCL", comm->deadline_s + HANG_S);
    status_t status = comm_nccl_open(comm, device, opened);
    if (status) {
        free(opened);
        PASS_ON(status);
    }
    *out = opened;
    return STATUS_OK;
}

void comm_close(comm_t *comm) {
    if (!comm) return;
    if (comm->begun && !comm->broken) break_off(comm);
    if (comm->broken) return; // what MPI may still use stays until the process ends
    comm->table->close(comm);
    free(comm->queue);
    free(comm);
}

status_t comm_close_world(comm_t *world) {
    if (!world) return STATUS_OK;
    bool finalizes = world->finalizes;
    watch_t *watch = world->watch;
    double limit = world->deadline_s + HANG_S;
    status_t status = comm_barrier(world, "end of the run");
    watch_phase(watch, "closing MPI", limit);
    if (!status) comm_close(world);
    TRY(status);
    return finalizes ? comm_mpi_finalize() : STATUS_OK;
}

void comm_abandon(int exit_code) {
    fflush(NULL);
    _exit(exit_code);
}

int comm_rank(const comm_t *comm) {
    return comm->rank;
}

int comm_size(const comm_t *comm) {
    return comm->size;
}

int comm_launcher_rank(void) {
    static const char *const name[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++) {
        const char *text = getenv(name[i]);
        if (text && *text) return (int)strtol(text, NULL, 10);
    }
    return -1;
}

int comm_launcher_size(void) {
    static const char *const name[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof(name) / sizeof(name[0]); i++) {
        const char *text = getenv(name[i]);
        if (text && *text) return (int)strtol(text, NULL, 10);
    }
    return -1;
}

int comm_world_rank(const comm_t *comm) {
    return comm->world_rank;
}

int comm_local_rank(const comm_t *comm) {
    return comm->local_rank;
}

int comm_hosts(const comm_t *comm) {
    return comm->hosts;
}

const char *comm_carrier(const comm_t *comm) {
    return comm->carrier[0] ? comm->carrier : "MPI";
}

void comm_set_deadline(comm_t *comm, double deadline_s) {
    comm->deadline_s = deadline_s;
}

void comm_set_piece_bytes(comm_t *comm, int64_t bytes) {
    comm->piece_bytes = bytes;
}

status_t comm_barrier(comm_t *comm, const char *phase) {
    TRY(check_usable(comm, phase));
    if (comm->size == 1) return STATUS_OK;
    double until = 0;
    TRY(begin(comm, phase, &until));
    TRY(started(comm, comm->table->start_barrier(comm), until, phase));
    return finish(comm, until, phase);
}

// Starts the broadcast of `bytes` bytes in pieces; the last ones may still be under way afterwards.
static status_t start_broadcasts(comm_t *comm, char *data, int64_t bytes, int root, double until, const char *phase) {
    for (int64_t at = 0; at < bytes; at += comm->piece_bytes) {
        int64_t piece = bytes - at < comm->piece_bytes ? bytes - at : comm->piece_bytes;
        TRY(started(comm, comm->table->start_broadcast(comm, data + at, (int)piece, root), until, phase));
    }
    return STATUS_OK;
}

status_t comm_broadcast(comm_t *comm, void *data, size_t bytes, int root, const char *phase) {
    TRY(check_usable(comm, phase));
    if (root < 0 || root >= comm->size)
        FAIL(STATUS_FAILED, "broadcast in \"%s\" from rank %d of a group of %d", phase, root, comm->size);
    if (comm->size == 1) return STATUS_OK;
    double until = 0;
    TRY(begin(comm, phase, &until));
    TRY(start_broadcasts(comm, data, (int64_t)bytes, root, until, phase));
    return finish(comm, until, phase);
}

static status_t all_reduce(comm_t *comm, char *data, int64_t count, comm_type_t type, comm_operation_t operation,
                           const char *phase) {
    TRY(check_usable(comm, phase));
    if (comm->size == 1) return STATUS_OK;
    double until = 0;
    TRY(begin(comm, phase, &until));
    int64_t most = comm->piece_bytes / 8;
    for (int64_t at = 0; at < count; at += most) {
        int piece = (int)(count - at < most ? count - at : most);
        TRY(started(comm, comm->table->start_all_reduce(comm, data + 8 * at, piece, type, operation), until, phase));
    }
    return finish(comm, until, phase);
}

status_t comm_all_reduce_i64(comm_t *comm, int64_t *data, int64_t count, comm_operation_t operation,
                             const char *phase) {
    return all_reduce(comm, (char *)data, count, COMM_I64, operation, phase);
}

status_t comm_all_reduce_f64(comm_t *comm, double *data, int64_t count, comm_operation_t operation, const char *phase) {
    if (operation == COMM_BIT_OR) FAIL(STATUS_FAILED, "a bitwise or of real numbers was asked for in \"%s\"", phase);
    return all_reduce(comm, (char *)data, count, COMM_F64, operation, phase);
}

static status_t check_offsets(const comm_t *comm, const int64_t *offset, const char *phase) {
    for (int rank = 0; rank < comm->size; rank++)
        if (offset[rank] < 0 || offset[rank + 1] < offset[rank])
            FAIL(STATUS_FAILED, "the shares in \"%s\" are not ascending at rank %d", phase, rank);
    return STATUS_OK;
}

// One reduction a share, each to its owner: every rank is the root of its own, so the load is even.
static status_t start_reduce_scatter(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last,
                                     double until, const char *phase) {
    if (comm->table->start_reduce_scatter)
        return started(comm, comm->table->start_reduce_scatter(comm, data, first, last), until, phase);
    int64_t most = comm->piece_bytes / 8;
    for (int root = 0; root < comm->size; root++) {
        for (int64_t at = first[root]; at < last[root]; at += most) {
            int piece = (int)(last[root] - at < most ? last[root] - at : most);
            TRY(started(comm, comm->table->start_reduce(comm, data + at, piece, root), until, phase));
        }
    }
    return STATUS_OK;
}

static status_t start_gather(comm_t *comm, char *data, const int64_t *first, const int64_t *last, double until,
                             const char *phase) {
    if (comm->table->start_gather)
        return started(comm, comm->table->start_gather(comm, data, first, last), until, phase);
    for (int root = 0; root < comm->size; root++)
        TRY(start_broadcasts(comm, data + first[root], last[root] - first[root], root, until, phase));
    return STATUS_OK;
}

status_t comm_reduce_scatter_i64(comm_t *comm, int64_t *data, const int64_t *offset, const char *phase) {
    TRY(check_usable(comm, phase));
    TRY(check_offsets(comm, offset, phase));
    if (comm->size == 1) return STATUS_OK;
    double until = 0;
    TRY(begin(comm, phase, &until));
    TRY(start_reduce_scatter(comm, data, offset, offset + 1, until, phase));
    return finish(comm, until, phase);
}

status_t comm_all_gather(comm_t *comm, void *data, const int64_t *offset, const char *phase) {
    TRY(check_usable(comm, phase));
    TRY(check_offsets(comm, offset, phase));
    if (comm->size == 1) return STATUS_OK;
    double until = 0;
    TRY(begin(comm, phase, &until));
    // More is too long for the int displacements of one call, or for its scratch memory.
    if (comm->table->start_all_gather && offset[comm->size] <= comm->piece_bytes)
        TRY(started(comm, comm->table->start_all_gather(comm, data, offset), until, phase));
    else
        TRY(start_gather(comm, data, offset, offset + 1, until, phase));
    return finish(comm, until, phase);
}

static status_t check_part(comm_t *comm, const int64_t *first, const int64_t *last, const char *phase) {
    TRY(check_usable(comm, phase));
    for (int rank = 0; rank < comm->size; rank++)
        if (first[rank] < 0 || last[rank] < first[rank])
            FAIL(STATUS_FAILED, "the part in \"%s\" of rank %d is not ascending", phase, rank);
    if (comm->pieces >= COMM_BEGUN && comm->table->order)
        FAIL(STATUS_FAILED, "more than %d parts were begun in \"%s\"", COMM_BEGUN, phase);
    return STATUS_OK;
}

// Around the beginning of a part. For the watch that is a collective of its own: one that does not come back is looked
// after, and afterwards the phase before it goes on.
static void begin_part(comm_t *comm, const char *phase) {
    watch_collective(comm->watch, phase, comm->deadline_s + HANG_S);
}

static status_t end_part(comm_t *comm, status_t status, const char *phase) {
    if (status) {
        break_off(comm);
        return status_context(status, "rank %d in \"%s\"", comm->world_rank, phase);
    }
    comm->begun = true;
    watch_collective(comm->watch, NULL, 0);
    return STATUS_OK;
}

// Pieces as start_reduce_scatter would start them, in its order.
static status_t queue_reductions(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last) {
    int64_t most = comm->piece_bytes / 8;
    for (int root = 0; root < comm->size; root++) {
        for (int64_t at = first[root]; at < last[root]; at += most) {
            int piece = (int)(last[root] - at < most ? last[root] - at : most);
            TRY(memory_grow((void **)&comm->queue, &comm->queue_capacity, comm->queued + 1, sizeof(*comm->queue)));
            comm->queue[comm->queued++] = (comm_piece_t){data + at, piece, root};
        }
    }
    return start_queued(comm);
}

status_t comm_begin_reduce_scatter_i64(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last,
                                       const char *phase) {
    if (comm->size == 1) return STATUS_OK;
    TRY(check_part(comm, first, last, phase));
    begin_part(comm, phase);
    if (!comm->table->order) return end_part(comm, queue_reductions(comm, data, first, last), phase);
    status_t status = comm->table->start_reduce_scatter(comm, data, first, last);
    comm->pieces += !status;
    return end_part(comm, status, phase);
}

status_t comm_begin_all_gather(comm_t *comm, void *data, const int64_t *first, const int64_t *last, const char *phase) {
    if (comm->size == 1) return STATUS_OK;
    TRY(check_part(comm, first, last, phase));
    if (!comm->table->order) {
        double until = 0;
        TRY(begin(comm, phase, &until));
        TRY(start_gather(comm, data, first, last, until, phase));
        return finish(comm, until, phase);
    }
    begin_part(comm, phase);
    status_t status = comm->table->start_gather(comm, data, first, last);
    comm->pieces += !status;
    return end_part(comm, status, phase);
}

status_t comm_progress(comm_t *comm, const char *phase) {
    bool done = false;
    if (!comm->begun) return STATUS_OK;
    TRY(check_usable(comm, phase));
    return look(comm, &done, phase);
}

bool comm_under_way(const comm_t *comm) {
    return comm && (comm->begun || comm->broken);
}

status_t comm_order(comm_t *comm, int number, const char *phase) {
    TRY(check_usable(comm, phase));
    if (comm->size == 1 || !comm->table->order) return STATUS_OK;
    if (number < 0 || number >= comm->pieces) return STATUS_OK; // waited for
    status_t status = comm->table->order(comm, number);
    if (!status) return STATUS_OK;
    break_off(comm);
    return status_context(status, "rank %d in \"%s\"", comm->world_rank, phase);
}

status_t comm_wait(comm_t *comm, const char *phase) {
    TRY(check_usable(comm, phase));
    if (!comm->begun) return STATUS_OK;
    double until = clock_seconds() + comm->deadline_s;
    watch_collective(comm->watch, phase, comm->deadline_s + HANG_S);
    TRY(finish(comm, until, phase));
    comm->begun = false;
    return STATUS_OK;
}

status_t comm_gather_strings(comm_t *comm, const char *text, char ***out, const char *phase) {
    *out = NULL;
    size_t size = (size_t)comm->size, length = strlen(text);
    int64_t *offset = NULL, *lengths = NULL;
    char *bytes = NULL, **strings = NULL;
    status_t status = STATUS_OK;
    TRY_GOTO(status, done, ALLOCATE(&offset, size + 1));
    TRY_GOTO(status, done, ALLOCATE(&lengths, size));
    for (size_t rank = 0; rank <= size; rank++) offset[rank] = (int64_t)(rank * sizeof(int64_t));
    lengths[comm->rank] = (int64_t)length;
    TRY_GOTO(status, done, comm_all_gather(comm, lengths, offset, phase));
    for (size_t rank = 0; rank < size; rank++) { // the same on every rank, so all fail alike
        if (lengths[rank] < 0 || lengths[rank] > STRING_LIMIT)
            FAIL_GOTO(status, done, STATUS_FAILED, "rank %zu gathers a string of %lld bytes in \"%s\"", rank,
                      (long long)lengths[rank], phase);
        offset[rank + 1] = offset[rank] + lengths[rank];
    }
    TRY_GOTO(status, done, ALLOCATE(&bytes, offset[size]));
    // The strings lie one behind the other. NOLINTNEXTLINE(bugprone-not-null-terminated-result)
    memcpy(bytes + offset[comm->rank], text, length);
    TRY_GOTO(status, done, comm_all_gather(comm, bytes, offset, phase));
    TRY_GOTO(status, done, ALLOCATE(&strings, size));
    for (size_t rank = 0; rank < size; rank++)
        TRY_GOTO(status, done, memory_copy_bytes(bytes + offset[rank], (size_t)lengths[rank], &strings[rank]));
    *out = strings;
    strings = NULL;
done:
    for (size_t rank = 0; strings && rank < size; rank++) free(strings[rank]);
    free(strings);
    // After a deadline MPI may still write into these.
    if (!comm->broken) {
        free(bytes);
        free(lengths);
    }
    free(offset);
    return status;
}
