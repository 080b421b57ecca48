// The MPI member of comm: non-blocking collectives, tested until done.
#include "common/comm/comm_mpi.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef struct mpi_state {
    MPI_Comm handle;
    MPI_Request request[COMM_MAX_PIECES];
    int *counts, *starts; // [size] of an all-gather under way
} mpi_state_t;

status_t comm_mpi_check(int code, const char *call) {
    if (code == MPI_SUCCESS) return STATUS_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    FAIL(STATUS_PEER, "%s failed: %s", call, text);
}

static MPI_Request *next_request(comm_t *comm) {
    return &((mpi_state_t *)comm->state)->request[comm->pieces];
}

MPI_Comm comm_mpi_handle(const comm_t *comm) {
    return ((const mpi_state_t *)comm->state)->handle;
}

static status_t make_state(comm_t *comm, MPI_Comm handle) {
    mpi_state_t *state = NULL;
    TRY(ALLOCATE(&state, 1));
    state->handle = handle;
    for (int i = 0; i < COMM_MAX_PIECES; i++) state->request[i] = MPI_REQUEST_NULL;
    status_t status = ALLOCATE(&state->counts, comm->size);
    if (!status) status = ALLOCATE(&state->starts, comm->size);
    if (status) {
        free(state->counts);
        free(state);
        PASS_ON(status);
    }
    comm->state = state;
    return STATUS_OK;
}

status_t comm_mpi_open_world(comm_t *world) {
    int initialised = 0, provided = MPI_THREAD_SINGLE, size = 1, rank = 0;
    MPI_Initialized(&initialised);
    if (!initialised) {
        // Threads that MPI starts must never be the ones a stop request is delivered to.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        TRY(comm_mpi_check(code, "MPI_Init_thread"));
        world->finalizes = true;
    } else {
        MPI_Query_thread(&provided);
    }
    if (provided < MPI_THREAD_SERIALIZED)
        FAIL(STATUS_UNAVAILABLE,
             "this MPI library does not support threads (MPI_THREAD_SERIALIZED); use a build that does");
    TRY(comm_mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    TRY(comm_mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size"));
    TRY(comm_mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank"));
    world->table = &comm_mpi_table;
    world->size = size;
    world->rank = world->world_rank = rank;
    return make_state(world, MPI_COMM_WORLD);
}

status_t comm_mpi_finalize(void) {
    return comm_mpi_check(MPI_Finalize(), "MPI_Finalize");
}

static status_t mpi_split(comm_t *comm, const int *members, int count, int tag, comm_t *out) {
    MPI_Group all = MPI_GROUP_NULL, group = MPI_GROUP_NULL;
    MPI_Comm handle = MPI_COMM_NULL;
    TRY(comm_mpi_check(MPI_Comm_group(comm_mpi_handle(comm), &all), "MPI_Comm_group"));
    int code = MPI_Group_incl(all, count, members, &group);
    if (code == MPI_SUCCESS) code = MPI_Comm_create_group(comm_mpi_handle(comm), group, tag, &handle);
    if (group != MPI_GROUP_NULL) MPI_Group_free(&group);
    MPI_Group_free(&all);
    TRY(comm_mpi_check(code, "MPI_Comm_create_group"));
    TRY(comm_mpi_check(MPI_Comm_set_errhandler(handle, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    return make_state(out, handle);
}

static void mpi_close(comm_t *comm) {
    mpi_state_t *state = comm->state;
    // Freeing a communicator may wait for its other ranks; the few bytes are left to MPI_Finalize.
    free(state->counts);
    free(state->starts);
    free(state);
    comm->state = NULL;
}

static status_t mpi_start_barrier(comm_t *comm) {
    return comm_mpi_check(MPI_Ibarrier(comm_mpi_handle(comm), next_request(comm)), "MPI_Ibarrier");
}

static status_t mpi_start_broadcast(comm_t *comm, void *data, int bytes, int root) {
    return comm_mpi_check(MPI_Ibcast(data, bytes, MPI_BYTE, root, comm_mpi_handle(comm), next_request(comm)),
                          "MPI_Ibcast");
}

static status_t mpi_start_all_reduce(comm_t *comm, void *data, int count, comm_type_t type,
                                     comm_operation_t operation) {
    MPI_Datatype datatype = type == COMM_I64 ? MPI_INT64_T : MPI_DOUBLE;
    MPI_Op op = operation == COMM_SUM   ? MPI_SUM
                : operation == COMM_MAX ? MPI_MAX
                : operation == COMM_MIN ? MPI_MIN
                                        : MPI_BOR;
    return comm_mpi_check(
        MPI_Iallreduce(MPI_IN_PLACE, data, count, datatype, op, comm_mpi_handle(comm), next_request(comm)),
        "MPI_Iallreduce");
}

static status_t mpi_start_reduce(comm_t *comm, int64_t *data, int count, int root) {
    bool own = comm->rank == root;
    return comm_mpi_check(MPI_Ireduce(own ? MPI_IN_PLACE : data, own ? data : NULL, count, MPI_INT64_T, MPI_SUM, root,
                                      comm_mpi_handle(comm), next_request(comm)),
                          "MPI_Ireduce");
}

static status_t mpi_start_all_gather(comm_t *comm, void *data, const int64_t *offset) {
    mpi_state_t *state = comm->state;
    for (int rank = 0; rank < comm->size; rank++) {
        state->counts[rank] = (int)(offset[rank + 1] - offset[rank]);
        state->starts[rank] = (int)offset[rank];
    }
    return comm_mpi_check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, data, state->counts, state->starts, MPI_BYTE,
                                          comm_mpi_handle(comm), next_request(comm)),
                          "MPI_Iallgatherv");
}

static status_t mpi_test(comm_t *comm, bool *done) {
    mpi_state_t *state = comm->state;
    int ended = 0, number[COMM_MAX_PIECES], left = 0;
    TRY(comm_mpi_check(MPI_Testsome(comm->pieces, state->request, &ended, number, MPI_STATUSES_IGNORE),
                       "MPI_Testsome"));
    for (int i = 0; i < comm->pieces; i++)
        if (state->request[i] != MPI_REQUEST_NULL) state->request[left++] = state->request[i];
    comm->pieces = left;
    *done = left == 0;
    return STATUS_OK;
}

const comm_table_t comm_mpi_table = {
    .name = "mpi",
    .split = mpi_split,
    .close = mpi_close,
    .start_barrier = mpi_start_barrier,
    .start_broadcast = mpi_start_broadcast,
    .start_all_reduce = mpi_start_all_reduce,
    .start_reduce = mpi_start_reduce,
    .start_all_gather = mpi_start_all_gather,
    .test = mpi_test,
};
