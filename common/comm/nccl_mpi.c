#include "common/comm/nccl_mpi.h"

#include "common/comm/comm_mpi.h"
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 8 << 20, ID_TEXT = 64 };

typedef struct mpi_group {
    MPI_Comm handle;
    MPI_Request request;
    int rank;
    nccl_id_t own, first; // the id that this rank was given, and rank 0's
    int stage;            // of joining: the communicator, then rank 0's id
    sim_nccl_call_t call;
    size_t at; // elements of the call that are done
    size_t piece;
} mpi_group_t;

static status_t transport_identify(void *context, nccl_id_t *id) {
    const comm_t *comm = context;
    memset(id, 0, sizeof(*id));
    snprintf(id->bytes, ID_TEXT, "stand-in of rank %d, group %p", comm_world_rank(comm), (const void *)comm);
    return STATUS_OK;
}

static status_t transport_join(void *context, const nccl_id_t *id, int ranks, int rank, void **out) {
    comm_t *comm = context;
    *out = NULL;
    if (ranks != comm_size(comm) || rank != comm_rank(comm))
        FAIL(STATUS_FAILED, "rank %d of %d joins as rank %d of %d", comm_rank(comm), comm_size(comm), rank, ranks);
    mpi_group_t *group;
    TRY(ALLOCATE(&group, 1));
    group->own = *id;
    group->first = *id;
    group->rank = rank;
    status_t status =
        comm_mpi_check(MPI_Comm_idup(comm_mpi_handle(comm), &group->handle, &group->request), "MPI_Comm_idup");
    if (status) {
        free(group);
        PASS_ON(status);
    }
    *out = group;
    return STATUS_OK;
}

static status_t transport_joined(void *of, bool *joined) {
    mpi_group_t *group = of;
    for (;;) {
        int flag = 0;
        TRY(comm_mpi_check(MPI_Test(&group->request, &flag, MPI_STATUS_IGNORE), "MPI_Test"));
        *joined = false;
        if (!flag) return STATUS_OK;
        if (group->stage++) break;
        TRY(comm_mpi_check(MPI_Comm_set_errhandler(group->handle, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
        TRY(comm_mpi_check(MPI_Ibcast(&group->first, NCCL_ID_BYTES, MPI_BYTE, 0, group->handle, &group->request),
                           "MPI_Ibcast"));
    }
    if (memcmp(&group->own, &group->first, NCCL_ID_BYTES) != 0)
        FAIL(STATUS_FAILED, "rank %d was given another id than rank 0", group->rank);
    *joined = true;
    return STATUS_OK;
}

static status_t start_piece(mpi_group_t *group) {
    const sim_nccl_call_t *call = &group->call;
    size_t width = call->type == NCCL_UINT8 ? 1 : 8, most = PIECE_BYTES / width;
    group->piece = call->count - group->at < most ? call->count - group->at : most;
    char *data = (char *)call->data + group->at * width;
    int count = (int)group->piece;
    MPI_Datatype type = call->type == NCCL_INT64 ? MPI_INT64_T : call->type == NCCL_FLOAT64 ? MPI_DOUBLE : MPI_BYTE;
    MPI_Op operation = call->operation == NCCL_MAX ? MPI_MAX : call->operation == NCCL_MIN ? MPI_MIN : MPI_SUM;
    bool own = call->root == group->rank;
    switch (call->kind) {
    case SIM_NCCL_ALL_REDUCE:
        return comm_mpi_check(
            MPI_Iallreduce(MPI_IN_PLACE, data, count, type, operation, group->handle, &group->request),
            "MPI_Iallreduce");
    case SIM_NCCL_REDUCE:
        return comm_mpi_check(MPI_Ireduce(own ? MPI_IN_PLACE : data, own ? data : NULL, count, type, operation,
                                          call->root, group->handle, &group->request),
                              "MPI_Ireduce");
    case SIM_NCCL_BROADCAST:
        return comm_mpi_check(MPI_Ibcast(data, count, type, call->root, group->handle, &group->request), "MPI_Ibcast");
    }
    return STATUS_OK;
}

static status_t transport_start(void *of, const sim_nccl_call_t *call) {
    mpi_group_t *group = of;
    group->call = *call;
    group->at = 0;
    return call->count ? start_piece(group) : STATUS_OK;
}

static status_t transport_test(void *of, bool *done) {
    mpi_group_t *group = of;
    *done = false;
    while (group->at < group->call.count) {
        int flag = 0;
        TRY(comm_mpi_check(MPI_Test(&group->request, &flag, MPI_STATUS_IGNORE), "MPI_Test"));
        if (!flag) return STATUS_OK;
        group->at += group->piece;
        if (group->at < group->call.count) TRY(start_piece(group));
    }
    *done = true;
    return STATUS_OK;
}

// As for comm's own communicators, the few bytes are left to MPI_Finalize.
static void transport_leave(void *of) {
    free(of);
}

const sim_nccl_transport_t nccl_mpi_transport = {
    .identify = transport_identify,
    .join = transport_join,
    .joined = transport_joined,
    .start = transport_start,
    .test = transport_test,
    .leave = transport_leave,
};
