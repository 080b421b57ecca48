#include "kernels/sim/nccl.h"

#include "kernels/sim/memory.h"
#include "kernels/sim/sim_runtime.h"
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { STAND_IN_VERSION = 22809, GROUP_CALLS = 4096 };

typedef enum fault {
    FAULT_NONE,
    FAULT_ID,
    FAULT_INIT,
    FAULT_ABSENT,
    FAULT_CALL,
    FAULT_ASYNC,
    FAULT_HANG,
    FAULT_DIE
} fault_t;

typedef struct sim_communicator {
    sim_nccl_transport_t transport;
    void *group; // the transport's
    int ranks, rank, works;
    fault_t fault; // asked for on this rank, at piece `fault_at` of its work
    int fault_at;
    bool joined, aborted;
    int error;
    char message[512];
} sim_communicator_t;

// The calls of one group on one communicator: one step of a stream.
typedef struct sim_batch {
    sim_communicator_t *communicator;
    int number; // of the communicator's pieces of work, from 1
    void *stream;
    sim_nccl_call_t *call;
    size_t capacity;
    int calls, done;
    char *staged; // of the call under way: the transport reads and writes host memory, whenever it is looked at
} sim_batch_t;

static sim_nccl_transport_t transport_set;
static void *transport_context;
static __thread int group_depth;
static __thread sim_batch_t *group_batch; // what the open group has gathered

void sim_nccl_set_transport(const sim_nccl_transport_t *transport, void *context) {
    transport_set = *transport;
    transport_context = context;
}

// Frees the status; the communicator remembers it and is lost.
static int lost(sim_communicator_t *communicator, int error, status_t status) {
    communicator->error = error;
    snprintf(communicator->message, sizeof(communicator->message), "%s", status_message(status));
    status_free(status);
    return error;
}

// What POISE_SIM_NCCL asks of this rank, and when.
static fault_t fault_of(int rank, int *at) {
    static const char *const name[] = {"", "id", "init", "absent", "call", "async", "hang", "die"};
    const char *asked = getenv("POISE_SIM_NCCL"), *where = asked ? strchr(asked, '@') : NULL;
    *at = 1;
    if (!where) return FAULT_NONE;
    char *end;
    if (strtol(where + 1, &end, 10) != rank) return FAULT_NONE;
    if (*end == ':') *at = atoi(end + 1);
    for (int kind = FAULT_ID; kind <= FAULT_DIE; kind++)
        if (strlen(name[kind]) == (size_t)(where - asked) && !strncmp(asked, name[kind], strlen(name[kind])))
            return (fault_t)kind;
    return FAULT_NONE;
}

// Whether this piece of work is the one that the fault is asked for.
static bool fault_is_due(const sim_communicator_t *communicator, fault_t fault, int work) {
    return communicator->fault == fault && communicator->fault_at == work;
}

static int nccl_get_version(int *version) {
    *version = STAND_IN_VERSION;
    return NCCL_SUCCESS;
}

static int nccl_get_unique_id(nccl_id_t *id) {
    int at;
    if (!transport_set.identify) return NCCL_INVALID_USAGE;
    if (fault_of(0, &at) == FAULT_ID) return NCCL_SYSTEM_ERROR;
    status_t status = transport_set.identify(transport_context, id);
    int result = status ? NCCL_INTERNAL_ERROR : NCCL_SUCCESS;
    status_free(status);
    return result;
}

static int progress(sim_communicator_t *communicator) {
    if (communicator->error || communicator->joined) return communicator->error;
    if (communicator->fault == FAULT_ABSENT) return NCCL_IN_PROGRESS;
    status_t status = communicator->transport.joined(communicator->group, &communicator->joined);
    if (status) return lost(communicator, NCCL_REMOTE_ERROR, status);
    return communicator->joined ? NCCL_SUCCESS : NCCL_IN_PROGRESS;
}

static int nccl_init(void **comm, int ranks, nccl_id_t id, int rank, nccl_config_t *config) {
    *comm = NULL;
    if (!transport_set.join || ranks < 1 || rank < 0 || rank >= ranks) return NCCL_INVALID_ARGUMENT;
    if (config->size != sizeof(*config) || config->magic != (unsigned)NCCL_CONFIG_MAGIC || config->blocking)
        return NCCL_INVALID_ARGUMENT;
    sim_communicator_t *communicator = calloc(1, sizeof(*communicator));
    if (!communicator) return NCCL_INTERNAL_ERROR;
    communicator->transport = transport_set;
    communicator->ranks = ranks;
    communicator->rank = rank;
    communicator->fault = fault_of(rank, &communicator->fault_at);
    *comm = communicator;
    if (communicator->fault == FAULT_INIT)
        return lost(communicator, NCCL_SYSTEM_ERROR, STATUS_NEW(STATUS_FAILED, "the fault that was asked for"));
    if (communicator->fault == FAULT_ABSENT) return NCCL_IN_PROGRESS;
    status_t status = transport_set.join(transport_context, &id, ranks, rank, &communicator->group);
    if (status) return lost(communicator, NCCL_INTERNAL_ERROR, status);
    return progress(communicator);
}

static int nccl_finalize(void *comm) {
    (void)comm;
    return NCCL_SUCCESS;
}

static int nccl_destroy(void *comm) {
    sim_communicator_t *communicator = comm;
    if (communicator->group) communicator->transport.leave(communicator->group);
    free(communicator);
    return NCCL_SUCCESS;
}

// The communicator stays: a stream may still hold steps of it, which end without having run.
static int nccl_abort(void *comm) {
    ((sim_communicator_t *)comm)->aborted = true;
    return NCCL_SUCCESS;
}

static int nccl_async_error(void *comm, int *error) {
    *error = progress(comm);
    return NCCL_SUCCESS;
}

static const char *nccl_error_string(int result) {
    switch (result) {
    case NCCL_SUCCESS:
        return "no error";
    case NCCL_UNHANDLED_CUDA_ERROR:
        return "unhandled cuda error";
    case NCCL_SYSTEM_ERROR:
        return "unhandled system error";
    case NCCL_INTERNAL_ERROR:
        return "internal error";
    case NCCL_INVALID_ARGUMENT:
        return "invalid argument";
    case NCCL_INVALID_USAGE:
        return "invalid usage";
    case NCCL_REMOTE_ERROR:
        return "remote process exited or there was a network error";
    case NCCL_IN_PROGRESS:
        return "NCCL operation in progress";
    default:
        return "unknown result code";
    }
}

static const char *nccl_last_error(void *comm) {
    return comm ? ((const sim_communicator_t *)comm)->message : "";
}

static void batch_free(sim_batch_t *batch) {
    free(batch->staged);
    free(batch->call);
    free(batch);
}

static size_t type_bytes(int type) {
    return type == NCCL_UINT8 ? 1 : type == NCCL_INT64 || type == NCCL_FLOAT64 ? 8 : 0;
}

static status_t call_begin(sim_batch_t *batch) {
    const sim_nccl_call_t *call = &batch->call[batch->done];
    size_t bytes = call->count * type_bytes(call->type);
    char why[256];
    if (bytes && (!sim_memory_holds(call->from, bytes, why, sizeof(why)) ||
                  !sim_memory_holds(call->to, bytes, why, sizeof(why))))
        FAIL(STATUS_FAILED, "a collective of %zu bytes is given memory of the device that is none: %s", bytes, why);
    TRY(ALLOCATE(&batch->staged, bytes));
    if (bytes) memcpy(batch->staged, sim_memory_view(call->from), bytes);
    sim_nccl_call_t staged = *call;
    staged.data = batch->staged;
    return batch->communicator->transport.start(batch->communicator->group, &staged);
}

static void call_end(sim_batch_t *batch) {
    const sim_nccl_call_t *call = &batch->call[batch->done++];
    bool result = call->kind != SIM_NCCL_REDUCE || call->root == batch->communicator->rank;
    size_t bytes = call->count * type_bytes(call->type);
    if (result && bytes) memcpy(sim_memory_view(call->to), batch->staged, bytes);
    free(batch->staged);
    batch->staged = NULL;
}

static status_t batch_step(void *context, bool *done) {
    sim_batch_t *batch = context;
    sim_communicator_t *communicator = batch->communicator;
    status_t status = STATUS_OK;
    *done = false;
    if (communicator->aborted) status = STATUS_NEW(STATUS_PEER, "the communicator was aborted");
    if (!status && fault_is_due(communicator, FAULT_DIE, batch->number)) raise(SIGKILL);
    if (!status && fault_is_due(communicator, FAULT_HANG, batch->number)) return STATUS_OK;
    if (!status && fault_is_due(communicator, FAULT_ASYNC, batch->number)) {
        (void)lost(communicator, NCCL_SYSTEM_ERROR, STATUS_NEW(STATUS_FAILED, "the fault that was asked for"));
        return STATUS_OK;
    }
    while (!status && batch->done < batch->calls) {
        if (!batch->staged) status = call_begin(batch);
        bool ended = false;
        if (!status) status = communicator->transport.test(communicator->group, &ended);
        if (status || !ended) break;
        call_end(batch);
    }
    *done = batch->done == batch->calls;
    if (status) {
        communicator->error = NCCL_REMOTE_ERROR;
        snprintf(communicator->message, sizeof(communicator->message), "%s", status_message(status));
    }
    if (*done) batch_free(batch); // after a failure the transport may still write into what is staged
    return status;
}

static int launch(sim_batch_t *batch) {
    sim_communicator_t *communicator = batch->communicator;
    batch->number = ++communicator->works;
    if (fault_is_due(communicator, FAULT_CALL, batch->number)) {
        batch_free(batch);
        return lost(communicator, NCCL_UNHANDLED_CUDA_ERROR, STATUS_NEW(STATUS_FAILED, "the fault that was asked for"));
    }
    status_t status = sim_stream_put(batch->stream, batch_step, batch);
    return status ? lost(communicator, NCCL_REMOTE_ERROR, status) : NCCL_SUCCESS;
}

static int nccl_group_start(void) {
    group_depth++;
    return NCCL_SUCCESS;
}

static int nccl_group_end(void) {
    if (group_depth < 1) return NCCL_INVALID_USAGE;
    if (--group_depth) return NCCL_SUCCESS;
    sim_batch_t *batch = group_batch;
    group_batch = NULL;
    return batch ? launch(batch) : NCCL_SUCCESS;
}

static int add(sim_communicator_t *communicator, void *stream, const sim_nccl_call_t *call) {
    if (!communicator || !stream || call->root < 0 || call->root >= communicator->ranks) return NCCL_INVALID_ARGUMENT;
    if (call->count && (!call->from || !call->to)) return NCCL_INVALID_ARGUMENT;
    int state = progress(communicator);
    if (state) return state == NCCL_IN_PROGRESS ? NCCL_INVALID_USAGE : state;
    if (communicator->aborted) return NCCL_INVALID_USAGE;
    sim_batch_t *batch = group_batch;
    if (batch && (batch->communicator != communicator || batch->stream != stream)) return NCCL_INVALID_USAGE;
    if (!batch) {
        batch = calloc(1, sizeof(*batch));
        if (!batch) return NCCL_INTERNAL_ERROR;
        batch->communicator = communicator;
        batch->stream = stream;
    }
    status_t status = memory_grow((void **)&batch->call, &batch->capacity, (size_t)batch->calls + 1, sizeof(*call));
    if (status || batch->calls >= GROUP_CALLS) {
        status_free(status);
        batch_free(batch);
        group_batch = NULL;
        return NCCL_INTERNAL_ERROR;
    }
    batch->call[batch->calls++] = *call;
    if (!group_depth) return launch(batch);
    group_batch = batch;
    return NCCL_SUCCESS;
}

static bool can_reduce(int type, int operation) {
    return (type == NCCL_INT64 || type == NCCL_FLOAT64) &&
           (operation == NCCL_SUM || operation == NCCL_MAX || operation == NCCL_MIN);
}

static int nccl_all_reduce(const void *from, void *to, size_t count, int type, int operation, void *comm,
                           void *stream) {
    if (!can_reduce(type, operation)) return NCCL_INVALID_ARGUMENT;
    const sim_nccl_call_t call = {SIM_NCCL_ALL_REDUCE, from, to, NULL, count, type, operation, 0};
    return add(comm, stream, &call);
}

static int nccl_reduce(const void *from, void *to, size_t count, int type, int operation, int root, void *comm,
                       void *stream) {
    if (!can_reduce(type, operation)) return NCCL_INVALID_ARGUMENT;
    const sim_nccl_call_t call = {SIM_NCCL_REDUCE, from, to, NULL, count, type, operation, root};
    return add(comm, stream, &call);
}

static int nccl_broadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
    if (!type_bytes(type)) return NCCL_INVALID_ARGUMENT;
    const sim_nccl_call_t call = {SIM_NCCL_BROADCAST, from, to, NULL, count, type, NCCL_SUM, root};
    return add(comm, stream, &call);
}

// Both below in place, as NCCL knows it: rank r's part of the whole is at r * count.
static int nccl_reduce_scatter(const void *from, void *to, size_t count, int type, int operation, void *comm,
                               void *stream) {
    sim_communicator_t *communicator = comm;
    size_t bytes = count * type_bytes(type);
    if (!communicator || (const char *)to != (const char *)from + (size_t)communicator->rank * bytes)
        return NCCL_INVALID_ARGUMENT;
    int result = nccl_group_start();
    for (int root = 0; !result && root < communicator->ranks; root++) {
        const char *part = (const char *)from + (size_t)root * bytes;
        result = nccl_reduce(part, (char *)(uintptr_t)part, count, type, operation, root, comm, stream);
    }
    int ended = nccl_group_end();
    return result ? result : ended;
}

static int nccl_all_gather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
    sim_communicator_t *communicator = comm;
    size_t bytes = count * type_bytes(type);
    if (!communicator || (const char *)from != (char *)to + (size_t)communicator->rank * bytes)
        return NCCL_INVALID_ARGUMENT;
    int result = nccl_group_start();
    for (int root = 0; !result && root < communicator->ranks; root++) {
        char *part = (char *)to + (size_t)root * bytes;
        result = nccl_broadcast(part, part, count, type, root, comm, stream);
    }
    int ended = nccl_group_end();
    return result ? result : ended;
}

const nccl_library_t sim_nccl = {
    .get_version = nccl_get_version,
    .get_unique_id = nccl_get_unique_id,
    .comm_init_rank_config = nccl_init,
    .comm_finalize = nccl_finalize,
    .comm_destroy = nccl_destroy,
    .comm_abort = nccl_abort,
    .comm_get_async_error = nccl_async_error,
    .get_error_string = nccl_error_string,
    .get_last_error = nccl_last_error,
    .group_start = nccl_group_start,
    .group_end = nccl_group_end,
    .all_reduce = nccl_all_reduce,
    .reduce = nccl_reduce,
    .broadcast = nccl_broadcast,
    .reduce_scatter = nccl_reduce_scatter,
    .all_gather = nccl_all_gather,
};
