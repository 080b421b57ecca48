// The NCCL member of comm: collectives on device memory, in a stream of their own, made from a communicator of MPI's.
//
// Communicators do not block: NCCL says "in progress" where it would wait, and so every wait here has a deadline. A
// piece has ended when its event has; errors of NCCL's own threads are looked at in every test.
#include "common/comm/clock.h"
#include "common/comm/comm_table.h"
#include "common/comm/nccl_load.h"
#include "common/comm/nccl_mpi.h"
#include "kernels/ledger.h"
#include "kernels/streams.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

// NULL in a program that is not linked with the simulator.
#pragma weak sim_nccl
#pragma weak sim_nccl_set_transport

enum { POLL_NS = 50000 };

typedef struct nccl_state {
    nccl_library_t call;
    void *loaded; // the library's handle; NULL: the stand-in
    void *handle; // NCCL's communicator
    device_t *device;
    void *stream;
    void *before;            // ops called before a piece
    void *ended[COMM_BEGUN]; // of each piece under way
    int known;               // so many of them have ended
    void *word;              // one int64 of device memory, for barriers
} nccl_state_t;

static nccl_state_t *state_of(const comm_t *comm) {
    return comm->state;
}

// A rank that has only heard of another's failure says so by its kind; the failure itself is told first.
static status_t check(const nccl_state_t *state, int result, const char *call) {
    if (result == NCCL_SUCCESS || result == NCCL_IN_PROGRESS) return STATUS_OK;
    const char *detail = state->call.get_last_error(state->handle);
    FAIL(result == NCCL_REMOTE_ERROR ? STATUS_PEER : STATUS_FAILED,
         "%s failed: %s%s%s (NCCL_DEBUG=INFO says more; collectives: mpi does without NCCL)", call,
         state->call.get_error_string(result), detail && *detail ? ": " : "", detail ? detail : "");
}

// Until NCCL no longer says that it is at work on the last call. This comes before an event can be recorded behind it.
static status_t settle(const comm_t *comm, const char *call) {
    const nccl_state_t *state = state_of(comm);
    double until = clock_seconds() + comm->deadline_s;
    watch_waits(comm->watch);
    for (;;) {
        int result = NCCL_SUCCESS;
        TRY(check(state, state->call.comm_get_async_error(state->handle, &result), "ncclCommGetAsyncError"));
        TRY(check(state, result, call));
        if (result == NCCL_SUCCESS) return STATUS_OK;
        if (clock_seconds() > until)
            FAIL(STATUS_TIMEOUT,
                 "%s of rank %d waited %.1f s for the other %d ranks of its group; one of them has died, hangs or is "
                 "slower than the deadline allows (raise deadline.collective_s if so; NCCL_DEBUG=INFO says more)",
                 call, comm->world_rank, comm->deadline_s, comm->size - 1);
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
}

static const device_streams_t *streams_of(const nccl_state_t *state) {
    return state->device->table->streams;
}

// Before a piece: the stream waits for the ops that were called so far.
static status_t piece_begin(const comm_t *comm) {
    nccl_state_t *state = state_of(comm);
    const device_streams_t *streams = streams_of(state);
    if (comm->pieces == 0) state->known = 0;
    TRY(streams->record(state->device, state->before, NULL));
    return streams->after(state->device, state->stream, state->before);
}

static status_t piece_end(const comm_t *comm, int result, const char *call) {
    const nccl_state_t *state = state_of(comm);
    TRY(check(state, result, call));
    TRY(settle(comm, call));
    return streams_of(state)->record(state->device, state->ended[comm->pieces], state->stream);
}

static status_t nccl_start_all_reduce(comm_t *comm, void *data, int count, comm_type_t type,
                                      comm_operation_t operation) {
    nccl_state_t *state = state_of(comm);
    if (operation == COMM_BIT_OR) FAIL(STATUS_UNAVAILABLE, "NCCL has no bitwise or");
    int kind = type == COMM_I64 ? NCCL_INT64 : NCCL_FLOAT64;
    int what = operation == COMM_SUM ? NCCL_SUM : operation == COMM_MAX ? NCCL_MAX : NCCL_MIN;
    TRY(piece_begin(comm));
    int result = state->call.all_reduce(data, data, (size_t)count, kind, what, state->handle, state->stream);
    return piece_end(comm, result, "ncclAllReduce");
}

static status_t nccl_start_barrier(comm_t *comm) {
    return nccl_start_all_reduce(comm, state_of(comm)->word, 1, COMM_I64, COMM_SUM);
}

static status_t nccl_start_broadcast(comm_t *comm, void *data, int bytes, int root) {
    nccl_state_t *state = state_of(comm);
    TRY(piece_begin(comm));
    int result = state->call.broadcast(data, data, (size_t)bytes, NCCL_UINT8, root, state->handle, state->stream);
    return piece_end(comm, result, "ncclBroadcast");
}

static status_t nccl_start_reduce(comm_t *comm, int64_t *data, int count, int root) {
    nccl_state_t *state = state_of(comm);
    TRY(piece_begin(comm));
    int result =
        state->call.reduce(data, data, (size_t)count, NCCL_INT64, NCCL_SUM, root, state->handle, state->stream);
    return piece_end(comm, result, "ncclReduce");
}

// Equal shares one behind the other, which NCCL has calls for.
static bool shares_even(const comm_t *comm, const int64_t *first, const int64_t *last) {
    int64_t share = last[0] - first[0];
    for (int rank = 0; rank < comm->size; rank++)
        if (last[rank] - first[rank] != share || first[rank] != first[0] + rank * share) return false;
    return share > 0;
}

// Other shares: one reduction each, in one group, which NCCL runs beside each other.
static status_t nccl_start_reduce_scatter(comm_t *comm, int64_t *data, const int64_t *first, const int64_t *last) {
    nccl_state_t *state = state_of(comm);
    TRY(piece_begin(comm));
    if (shares_even(comm, first, last)) {
        int result = state->call.reduce_scatter(data + first[0], data + first[comm->rank], (size_t)(last[0] - first[0]),
                                                NCCL_INT64, NCCL_SUM, state->handle, state->stream);
        return piece_end(comm, result, "ncclReduceScatter");
    }
    TRY(check(state, state->call.group_start(), "ncclGroupStart"));
    int result = NCCL_SUCCESS;
    for (int root = 0; root < comm->size && (!result || result == NCCL_IN_PROGRESS); root++) {
        int64_t *part = data + first[root];
        size_t count = (size_t)(last[root] - first[root]);
        if (count)
            result = state->call.reduce(part, part, count, NCCL_INT64, NCCL_SUM, root, state->handle, state->stream);
    }
    int ended = state->call.group_end();
    TRY(check(state, result, "ncclReduce"));
    return piece_end(comm, ended, "ncclGroupEnd");
}

static status_t nccl_start_gather(comm_t *comm, void *data, const int64_t *first, const int64_t *last) {
    nccl_state_t *state = state_of(comm);
    char *bytes = data;
    TRY(piece_begin(comm));
    if (shares_even(comm, first, last)) {
        int result = state->call.all_gather(bytes + first[comm->rank], bytes + first[0], (size_t)(last[0] - first[0]),
                                            NCCL_UINT8, state->handle, state->stream);
        return piece_end(comm, result, "ncclAllGather");
    }
    TRY(check(state, state->call.group_start(), "ncclGroupStart"));
    int result = NCCL_SUCCESS;
    for (int root = 0; root < comm->size && (!result || result == NCCL_IN_PROGRESS); root++) {
        char *part = bytes + first[root];
        size_t count = (size_t)(last[root] - first[root]);
        if (count) result = state->call.broadcast(part, part, count, NCCL_UINT8, root, state->handle, state->stream);
    }
    int ended = state->call.group_end();
    TRY(check(state, result, "ncclBroadcast"));
    return piece_end(comm, ended, "ncclGroupEnd");
}

static status_t nccl_test(comm_t *comm, bool *done) {
    nccl_state_t *state = state_of(comm);
    int error = NCCL_SUCCESS;
    *done = true;
    while (state->known < comm->pieces && *done) {
        TRY(streams_of(state)->ended(state->device, state->ended[state->known], done));
        state->known += *done;
    }
    TRY(check(state, state->call.comm_get_async_error(state->handle, &error), "ncclCommGetAsyncError"));
    TRY(check(state, error, "a collective of NCCL"));
    // What ops do from here on comes after it, also on a device whose other streams are not the host's.
    if (*done && comm->pieces) return streams_of(state)->after(state->device, NULL, state->ended[comm->pieces - 1]);
    return STATUS_OK;
}

static status_t nccl_order(comm_t *comm, int piece) {
    nccl_state_t *state = state_of(comm);
    return streams_of(state)->after(state->device, NULL, state->ended[piece]);
}

// NCCL's kernels would wait on the device for ever; the process is about to end, and then the driver may wait for them.
static void nccl_abort(comm_t *comm) {
    nccl_state_t *state = state_of(comm);
    if (state->handle) state->call.comm_abort(state->handle);
    state->handle = NULL;
}

static void state_free(nccl_state_t *state) {
    const device_streams_t *streams = streams_of(state);
    for (int i = 0; i < COMM_BEGUN; i++)
        if (state->ended[i]) streams->event_close(state->device, state->ended[i]);
    if (state->before) streams->event_close(state->device, state->before);
    if (state->stream) streams->close(state->device, state->stream);
    ledger_give(state->device, state->word);
    nccl_unload(state->loaded);
    free(state);
}

static void nccl_close(comm_t *comm) {
    nccl_state_t *state = state_of(comm);
    if (state->handle) {
        status_t status = check(state, state->call.comm_finalize(state->handle), "ncclCommFinalize");
        if (!status) status = settle(comm, "ncclCommFinalize");
        if (status)
            nccl_abort(comm);
        else
            state->call.comm_destroy(state->handle);
        status_free(status);
    }
    state_free(state);
    comm->state = NULL;
}

static status_t nccl_split(comm_t *comm, const int *members, int count, int tag, comm_t *out) {
    (void)comm, (void)members, (void)count, (void)tag, (void)out;
    FAIL(STATUS_FAILED, "a communicator of a device is not split; split the host's and open a device's of the part");
}

// What a rank does by itself: finds the library, and makes its stream and events.
static status_t open_own(comm_t *comm, device_t *device, nccl_state_t *state) {
    if (!device->table->streams)
        FAIL(STATUS_INVALID, "NCCL moves data of GPUs; with device: %s set collectives: mpi", device->table->name);
    if (!strcmp(device->table->name, "sim")) {
        if (!&sim_nccl) FAIL(STATUS_UNAVAILABLE, "this build of Poise has no stand-in of NCCL; set collectives: mpi");
        state->call = sim_nccl;
        sim_nccl_set_transport(&nccl_mpi_transport, comm);
    } else {
        TRY(nccl_load(&state->call, &state->loaded));
    }
    const device_streams_t *streams = streams_of(state);
    TRY(ledger_take(device, LEDGER_OTHER, sizeof(int64_t), &state->word));
    TRY(streams->open(device, &state->stream));
    TRY(streams->event_open(device, &state->before));
    for (int i = 0; i < COMM_BEGUN; i++) TRY(streams->event_open(device, &state->ended[i]));
    return STATUS_OK;
}

// 22809 is 2.28.9; 2.8 and earlier were counted otherwise, and are too old here.
static void name_carrier(const nccl_state_t *state, comm_t *out) {
    int version = 0;
    if (!state->loaded)
        snprintf(out->carrier, sizeof(out->carrier), "NCCL's stand-in over MPI");
    else if (state->call.get_version(&version) == NCCL_SUCCESS)
        snprintf(out->carrier, sizeof(out->carrier), "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
                 version % 100);
}

// The first failure of a rank ends all alike: nobody waits in NCCL for one that is not coming.
static status_t agree(comm_t *comm, status_t status, status_kind_t kind, const char *phase) {
    int64_t failed = status != STATUS_OK;
    status_t reduced = comm_all_reduce_i64(comm, &failed, 1, COMM_MAX, phase);
    if (status || reduced) return status_first(status, reduced);
    if (failed) FAIL(kind, "another rank failed in \"%s\"; its message says why", phase);
    return STATUS_OK;
}

static status_t join(comm_t *comm, comm_t *out) {
    nccl_state_t *state = state_of(out);
    nccl_id_t id = {{0}};
    status_t status = STATUS_OK;
    if (comm->rank == 0) status = check(state, state->call.get_unique_id(&id), "ncclGetUniqueId");
    if (status) status = status_context(status, "rank %d in \"making NCCL's id\"", comm->world_rank);
    TRY(agree(comm, status, STATUS_PEER, "making NCCL's id"));
    TRY(comm_broadcast(comm, &id, sizeof(id), 0, "sharing NCCL's id"));
    nccl_config_t config = {sizeof(config), (unsigned)NCCL_CONFIG_MAGIC, NCCL_CONFIG_VERSION, 0};
    int result = state->call.comm_init_rank_config(&state->handle, comm->size, id, comm->rank, &config);
    status = check(state, result, "ncclCommInitRankConfig");
    if (!status) status = settle(out, "ncclCommInitRankConfig");
    // A failure is told at once, not when the others, which wait in NCCL for this rank, have come to their deadline.
    if (status) return status_context(status, "rank %d in \"opening NCCL\"", comm->world_rank);
    return agree(comm, STATUS_OK, STATUS_PEER, "opening NCCL");
}

status_t comm_nccl_open(comm_t *comm, device_t *device, comm_t *out) {
    nccl_state_t *state;
    TRY(ALLOCATE(&state, 1));
    state->device = device;
    out->state = state;
    status_t status = agree(comm, open_own(comm, device, state), STATUS_UNAVAILABLE, "looking for NCCL");
    if (!status && comm->size > 1) status = join(comm, out);
    if (status) {
        nccl_abort(out);
        if (device->table->streams)
            state_free(state);
        else
            free(state);
        out->state = NULL;
        PASS_ON(status);
    }
    name_carrier(state, out);
    return STATUS_OK;
}

const comm_table_t comm_nccl_table = {
    .name = "nccl",
    .split = nccl_split,
    .close = nccl_close,
    .start_barrier = nccl_start_barrier,
    .start_broadcast = nccl_start_broadcast,
    .start_all_reduce = nccl_start_all_reduce,
    .start_reduce = nccl_start_reduce,
    .start_reduce_scatter = nccl_start_reduce_scatter,
    .start_gather = nccl_start_gather,
    .order = nccl_order,
    .abort = nccl_abort,
    .test = nccl_test,
};
