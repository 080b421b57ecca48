// ranks: 4
// The NCCL member of comm over its stand-in: the bits of MPI's, parts, failures at start, deadlines.
#include "common/comm/clock.h"
#include "common/comm/comm_table.h"
#include "kernels/sim/sim_runtime.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct context {
    comm_t *world, *device_comm;
    device_table_t table; // the simulator's, whose name a test changes
    device_t *device, *plain;
    int failures;
} context_t;

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "rank %d: %s:%d: %s does not hold\n", comm_world_rank(context->world), __FILE__, __LINE__, \
                    #condition);                                                                                       \
            context->failures++;                                                                                       \
        }                                                                                                              \
    } while (0)

enum { RANKS = 4, PARTS = 3 };

static int64_t value(int rank, int64_t i) {
    uint64_t x = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u + (uint64_t)rank * 0xbf58476d1ce4e5b9u;
    return (int64_t)(x ^ x >> 29) >> 3; // of either sign; the sum of four is within int64
}

// The same numbers on the host and on the device.
typedef struct pair {
    int64_t *host, *device, *back;
    int64_t count;
} pair_t;

static status_t pair_open(context_t *context, int64_t count, pair_t *out) {
    device_t *device = context->device;
    size_t bytes = (size_t)count * sizeof(int64_t);
    *out = (pair_t){.count = count};
    TRY(ALLOCATE(&out->host, count));
    TRY(ALLOCATE(&out->back, count));
    TRY(device->table->allocate(device, bytes, (void **)&out->device));
    for (int64_t i = 0; i < count; i++) out->host[i] = value(comm_rank(context->world), i);
    return device->table->upload(device, out->device, out->host, bytes);
}

// Elements first .. last-1 of both are the same.
static status_t pair_check(context_t *context, pair_t *pair, int64_t first, int64_t last, const char *what) {
    device_t *device = context->device;
    size_t bytes = (size_t)pair->count * sizeof(int64_t);
    TRY(device->table->download(device, pair->back, pair->device, bytes));
    int64_t wrong = 0;
    for (int64_t i = first; i < last; i++) wrong += pair->host[i] != pair->back[i];
    if (wrong)
        fprintf(stderr, "rank %d: %lld of %lld numbers of the %s are not MPI's\n", comm_world_rank(context->world),
                (long long)wrong, (long long)(last - first), what);
    context->failures += wrong != 0;
    return STATUS_OK;
}

static void pair_close(context_t *context, pair_t *pair) {
    context->device->table->release(context->device, pair->device);
    free(pair->host);
    free(pair->back);
}

// Shares that are even, odd, or nothing at all for some ranks.
static void make_shares(int64_t count, int kind, int64_t *offset) {
    for (int r = 0; r <= RANKS; r++) offset[r] = count * r / RANKS;
    if (kind == 0) offset[RANKS] = offset[1] * RANKS;
    for (int r = 0; r <= RANKS && kind == 0; r++) offset[r] = offset[1] * r;
    if (kind == 2) offset[1] = offset[2] = 1;
}

static status_t check_shares(context_t *context, int64_t count, int kind) {
    comm_t *world = context->world, *nccl = context->device_comm;
    int rank = comm_rank(world);
    int64_t offset[RANKS + 1], bytes[RANKS + 1];
    pair_t pair;
    TRY(pair_open(context, count, &pair));
    make_shares(count, kind, offset);
    for (int r = 0; r <= RANKS; r++) bytes[r] = offset[r] * (int64_t)sizeof(int64_t);
    TRY(comm_reduce_scatter_i64(world, pair.host, offset, "sum"));
    TRY(comm_reduce_scatter_i64(nccl, pair.device, offset, "sum"));
    TRY(pair_check(context, &pair, offset[rank], offset[rank + 1], "reduce-scatter"));
    TRY(comm_all_gather(world, pair.host, bytes, "gather"));
    TRY(comm_all_gather(nccl, pair.device, bytes, "gather"));
    TRY(pair_check(context, &pair, 0, offset[RANKS], "all-gather"));
    pair_close(context, &pair);
    return STATUS_OK;
}

static status_t check_whole(context_t *context, int64_t count) {
    comm_t *world = context->world, *nccl = context->device_comm;
    const comm_operation_t operations[] = {COMM_SUM, COMM_MAX, COMM_MIN};
    for (int i = 0; i < 3; i++) {
        pair_t pair;
        TRY(pair_open(context, count, &pair));
        TRY(comm_all_reduce_i64(world, pair.host, count, operations[i], "all"));
        TRY(comm_all_reduce_i64(nccl, pair.device, count, operations[i], "all"));
        TRY(pair_check(context, &pair, 0, count, "all-reduce"));
        TRY(comm_broadcast(nccl, pair.device, (size_t)count * sizeof(int64_t), i, "broadcast"));
        pair_close(context, &pair);
        TRY(pair_open(context, count, &pair));
        TRY(comm_broadcast(world, pair.host, (size_t)count * sizeof(int64_t), i, "broadcast"));
        TRY(comm_broadcast(nccl, pair.device, (size_t)count * sizeof(int64_t), i, "broadcast"));
        TRY(pair_check(context, &pair, 0, count, "broadcast"));
        pair_close(context, &pair);
    }
    double real = comm_rank(world) * 0.25, *there = NULL;
    const device_table_t *table = context->device->table;
    TRY(table->allocate(context->device, sizeof(real), (void **)&there));
    TRY(table->upload(context->device, there, &real, sizeof(real)));
    TRY(comm_all_reduce_f64(nccl, there, 1, COMM_MAX, "maximum"));
    TRY(table->download(context->device, &real, there, sizeof(real)));
    table->release(context->device, there);
    EXPECT(real == 0.75);
    TRY(comm_barrier(nccl, "barrier"));
    return STATUS_OK;
}

// Parts of every rank's share, begun together; each is there once ops are ordered behind it.
static status_t check_parts(context_t *context, int64_t count) {
    comm_t *world = context->world, *nccl = context->device_comm;
    int rank = comm_rank(world);
    int64_t offset[RANKS + 1], first[PARTS][RANKS], last[PARTS][RANKS];
    pair_t pair;
    TRY(pair_open(context, count, &pair));
    make_shares(count, 1, offset);
    TRY(comm_reduce_scatter_i64(world, pair.host, offset, "sum"));
    for (int p = 0; p < PARTS; p++) {
        for (int r = 0; r < RANKS; r++) {
            int64_t share = offset[r + 1] - offset[r];
            first[p][r] = offset[r] + share * p / PARTS;
            last[p][r] = offset[r] + share * (p + 1) / PARTS;
        }
        TRY(comm_begin_reduce_scatter_i64(nccl, pair.device, first[p], last[p], "sum in parts"));
    }
    for (int p = 0; p < PARTS; p++) {
        TRY(comm_order(nccl, p, "sum in parts"));
        TRY(pair_check(context, &pair, first[p][rank], last[p][rank], "part of a reduce-scatter"));
    }
    TRY(comm_wait(nccl, "sum in parts"));
    int64_t bytes[RANKS + 1];
    for (int r = 0; r <= RANKS; r++) bytes[r] = offset[r] * (int64_t)sizeof(int64_t);
    TRY(comm_all_gather(world, pair.host, bytes, "gather"));
    for (int p = 0; p < PARTS; p++) {
        for (int r = 0; r < RANKS; r++) {
            first[p][r] *= (int64_t)sizeof(int64_t);
            last[p][r] *= (int64_t)sizeof(int64_t);
        }
        TRY(comm_begin_all_gather(nccl, pair.device, first[p], last[p], "gather in parts"));
    }
    TRY(comm_wait(nccl, "gather in parts"));
    TRY(pair_check(context, &pair, 0, count, "all-gather in parts"));
    pair_close(context, &pair);
    return STATUS_OK;
}

// Where one rank cannot have it, all are told; afterwards all can.
static status_t check_start(context_t *context) {
    int rank = comm_rank(context->world);
    comm_t *none = NULL;
    status_t status = comm_open_device(context->world, rank == 1 ? context->plain : context->device, &none);
    EXPECT(status && !none);
    if (rank == 1)
        EXPECT(status_kind(status) == STATUS_INVALID && strstr(status_message(status), "set collectives: mpi"));
    else
        EXPECT(status_kind(status) == STATUS_UNAVAILABLE && strstr(status_message(status), "looking for NCCL"));
    status_free(status);
    // A library that is not there is a sentence that says what to do.
    context->table.name = "cuda";
    setenv("POISE_NCCL", "/nowhere/libnccl.so.2", 1);
    status = comm_open_device(context->world, context->device, &none);
    EXPECT(status && status_kind(status) == STATUS_UNAVAILABLE && strstr(status_message(status), "libnccl2") &&
           strstr(status_message(status), "/nowhere/libnccl.so.2"));
    status_free(status);
    context->table.name = "sim";
    return STATUS_OK;
}

// A rank that stays away is named by the deadline, in a collective and when the communicator is made.
static status_t check_deadline(context_t *context) {
    comm_t *world = context->world, *late = context->device_comm;
    int rank = comm_rank(world);
    if (rank == 2) {
        nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 500000000}, NULL);
        return comm_barrier(world, "after the deadline");
    }
    comm_set_deadline(late, 0.4);
    int64_t *data = NULL, offset[RANKS + 1];
    char who[32];
    snprintf(who, sizeof(who), "rank %d", rank);
    TRY(context->device->table->allocate(context->device, 8000, (void **)&data));
    make_shares(1000, 1, offset);
    double start = clock_seconds();
    status_t status = comm_reduce_scatter_i64(late, data, offset, "gradient sum");
    double took = clock_seconds() - start;
    EXPECT(status && status_kind(status) == STATUS_TIMEOUT && took >= 0.39 && took < 20);
    EXPECT(status && strstr(status_message(status), "gradient sum") && strstr(status_message(status), who));
    status_free(status);
    status = comm_barrier(late, "the next one");
    EXPECT(status && status_kind(status) == STATUS_PEER && strstr(status_message(status), "the next one"));
    status_free(status);
    return comm_barrier(world, "after the deadline");
}

enum { BROKEN = 1 }; // the rank that fails

// What each rank is told where one fails: this one its own failure, the others of their wait.
static void expect_told(context_t *context, const char *fault, status_t status, int rank, const char *phase,
                        const char *reason) {
    int own = comm_rank(context->world);
    char who[32];
    snprintf(who, sizeof(who), "rank %d", own);
    bool right = status && strstr(status_message(status), phase) && strstr(status_message(status), who);
    if (right && own == rank)
        right = status_kind(status) == STATUS_FAILED && strstr(status_message(status), reason);
    else if (right)
        right = status_kind(status) == STATUS_TIMEOUT;
    if (!right) fprintf(stderr, "rank %d: %s tells it: %s\n", own, fault, status ? status_message(status) : "nothing");
    context->failures += !right;
    status_free(status);
}

static status_t check_faults(context_t *context) {
    static const char *const opening[] = {"init@1", "absent@1"}, *const working[] = {"call@1", "async@1:2", "hang@1"};
    comm_t *world = context->world, *comm = NULL;
    setenv("POISE_SIM_NCCL", "id@0", 1);
    status_t status = comm_open_device(world, context->device, &comm);
    EXPECT(status && strstr(status_message(status), "making NCCL's id") &&
           status_kind(status) == (comm_rank(world) ? STATUS_PEER : STATUS_FAILED));
    status_free(status);
    for (int i = 0; i < 2; i++) {
        comm_t *part; // of no use afterwards: some ranks have begun to make the stand-in's communicator from it
        setenv("POISE_SIM_NCCL", opening[i], 1);
        TRY(comm_split(world, 0, &part));
        comm_set_deadline(part, 1.0);
        status = comm_open_device(part, context->device, &comm);
        EXPECT(!comm);
        expect_told(context, opening[i], status, i ? -1 : BROKEN, "opening NCCL", "unhandled system error");
        TRY(comm_barrier(world, "after a fault"));
    }
    for (int i = 0; i < 3; i++) {
        int64_t *data = NULL;
        setenv("POISE_SIM_NCCL", working[i], 1);
        TRY(comm_open_device(world, context->device, &comm));
        comm_set_deadline(comm, 1.0);
        TRY(context->device->table->allocate(context->device, 800, (void **)&data));
        status = comm_all_reduce_i64(comm, data, 100, COMM_SUM, "gradient sum");
        if (i == 1 && !status) status = comm_all_reduce_i64(comm, data, 100, COMM_SUM, "gradient sum");
        expect_told(context, working[i], status, i < 2 ? BROKEN : -1, "gradient sum",
                    i ? "unhandled system error" : "unhandled cuda error");
        comm_close(comm);
        sim_runtime_reset();
        TRY(comm_barrier(world, "after a fault"));
    }
    unsetenv("POISE_SIM_NCCL");
    return STATUS_OK;
}

static status_t run(context_t *context) {
    TRY(comm_open_world(20, NULL, &context->world));
    TRY(device_open("cpu", 1, &context->plain));
    context->table = device_sim_table;
    TRY(device_open_table(&context->table, "", 1, &context->device));
    TRY(check_start(context));
    TRY(comm_open_device(context->world, context->device, &context->device_comm));
    const int64_t counts[] = {4, 7, 4096, 100003};
    for (int i = 0; i < 4; i++) {
        for (int kind = 0; kind < 3; kind++) TRY(check_shares(context, counts[i], kind));
        TRY(check_whole(context, counts[i]));
        TRY(check_parts(context, counts[i]));
    }
    TRY(check_shares(context, 5000001, 1)); // 40 MB: more than one of the transport's pieces
    // A second one beside it, closed as it should be.
    comm_t *second = NULL;
    TRY(comm_open_device(context->world, context->device, &second));
    TRY(comm_barrier(second, "second"));
    comm_close(second);
    TRY(check_deadline(context));
    sim_runtime_reset();
    TRY(check_faults(context));
    int64_t failures = context->failures;
    TRY(comm_all_reduce_i64(context->world, &failures, 1, COMM_SUM, "counting failures"));
    context->failures = (int)failures;
    return STATUS_OK;
}

int main(void) {
    context_t context = {0};
    status_t status = run(&context);
    if (status) status_print(status, stderr, context.world ? comm_rank(context.world) : -1, true);
    if (status) comm_abandon(1);
    status = comm_close_world(context.world); // of what was broken off nothing is freed
    if (status) status_print(status, stderr, -1, true);
    return status || context.failures;
}
