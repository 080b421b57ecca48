// ranks: 4
// Collectives: values, odd shares, pieces, groups, deadlines.
#include "common/comm/clock.h"
#include "common/comm/comm_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct context {
    comm_t *world;
    comm_t *lost; // of check_deadline: never closed, as MPI may still use it
    int64_t *lost_data;
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

static int64_t value(int rank, int64_t i) {
    uint64_t x = (uint64_t)i * 0x9e3779b97f4a7c15u + (uint64_t)rank * 0xbf58476d1ce4e5b9u;
    return (int64_t)(x ^ x >> 31) >> 4; // sums of a few stay within int64
}

// Odd shares: ranks may own nothing, or one element.
static void make_offsets(int size, int64_t total, int seed, int64_t *offset) {
    offset[0] = 0;
    for (int r = 0; r < size; r++) {
        int64_t left = total - offset[r];
        int64_t share = (r + seed) % 3 == 0 ? 0 : (r + seed) % 3 == 1 ? 1 : left / 2 + 1;
        offset[r + 1] = r == size - 1 ? total : offset[r] + (share < left ? share : left);
    }
}

static status_t check_sums(context_t *context, comm_t *comm, int64_t count) {
    int size = comm_size(comm), rank = comm_rank(comm);
    int64_t *data = NULL;
    int64_t offset[9];
    TRY(ALLOCATE(&data, count));
    for (int64_t i = 0; i < count; i++) data[i] = value(rank, i);
    TRY(comm_all_reduce_i64(comm, data, count, COMM_SUM, "test sum"));
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t sum = 0;
        for (int r = 0; r < size; r++) sum += value(r, i);
        wrong += data[i] != sum;
    }
    EXPECT(wrong == 0);
    for (int seed = 0; seed < 3; seed++) {
        make_offsets(size, count, seed, offset);
        for (int64_t i = 0; i < count; i++) data[i] = value(rank, i);
        TRY(comm_reduce_scatter_i64(comm, data, offset, "test share"));
        for (int64_t i = offset[rank]; i < offset[rank + 1]; i++) {
            int64_t sum = 0;
            for (int r = 0; r < size; r++) sum += value(r, i);
            wrong += data[i] != sum;
        }
        // And back: every rank gives its own share.
        for (int64_t i = 0; i < count; i++)
            if (i < offset[rank] || i >= offset[rank + 1]) data[i] = -1;
        int64_t bytes[9];
        for (int r = 0; r <= size; r++) bytes[r] = offset[r] * 8;
        TRY(comm_all_gather(comm, data, bytes, "test gather"));
        for (int64_t i = 0; i < count; i++) {
            int64_t sum = 0;
            for (int r = 0; r < size; r++) sum += value(r, i);
            wrong += data[i] != sum;
        }
    }
    EXPECT(wrong == 0);
    free(data);
    return STATUS_OK;
}

static status_t check_operations(context_t *context, comm_t *comm) {
    int size = comm_size(comm), rank = comm_rank(comm);
    int64_t numbers[3] = {rank, -rank, (int64_t)1 << rank};
    TRY(comm_all_reduce_i64(comm, numbers, 1, COMM_MAX, "max"));
    TRY(comm_all_reduce_i64(comm, numbers + 1, 1, COMM_MIN, "min"));
    TRY(comm_all_reduce_i64(comm, numbers + 2, 1, COMM_BIT_OR, "or"));
    EXPECT(numbers[0] == size - 1 && numbers[1] == 1 - size && numbers[2] == ((int64_t)1 << size) - 1);
    double reals[2] = {rank * 0.5, rank * 0.5};
    TRY(comm_all_reduce_f64(comm, reals, 1, COMM_MAX, "max"));
    TRY(comm_all_reduce_f64(comm, reals + 1, 1, COMM_SUM, "sum"));
    EXPECT(reals[0] == 0.5 * (size - 1) && reals[1] == 0.25 * size * (size - 1));
    status_t status = comm_all_reduce_f64(comm, reals, 1, COMM_BIT_OR, "or");
    EXPECT(status != NULL);
    status_free(status);
    for (int root = 0; root < size; root++) {
        char text[1000];
        memset(text, rank == root ? 'a' + root : '-', sizeof(text));
        TRY(comm_broadcast(comm, text, sizeof(text), root, "broadcast"));
        EXPECT(text[0] == 'a' + root && text[999] == 'a' + root);
    }
    TRY(comm_broadcast(comm, NULL, 0, 0, "nothing"));
    TRY(comm_barrier(comm, "barrier"));
    char own[64], expected[64], **all = NULL;
    snprintf(own, sizeof(own), "%*s", rank, ""); // rank 0: empty
    TRY(comm_gather_strings(comm, own, &all, "strings"));
    for (int r = 0; r < size; r++) {
        snprintf(expected, sizeof(expected), "%*s", r, "");
        EXPECT(strcmp(all[r], expected) == 0);
        free(all[r]);
    }
    free(all);
    return STATUS_OK;
}

static status_t check_all(context_t *context, comm_t *comm) {
    TRY(check_operations(context, comm));
    const int64_t counts[] = {1, 7, 1000, 100003};
    for (int i = 0; i < 4; i++) TRY(check_sums(context, comm, counts[i]));
    comm_set_piece_bytes(comm, 808); // many pieces, more than may be under way, with odd ends
    TRY(check_operations(context, comm));
    TRY(check_sums(context, comm, 7));
    TRY(check_sums(context, comm, 4099));
    comm_set_piece_bytes(comm, (int64_t)8 << 20);
    return check_sums(context, comm, 2500001); // 20 MB: pieces at the real size
}

static status_t check_groups(context_t *context) {
    comm_t *world = context->world, *part = NULL, *none = NULL, *single = NULL;
    int rank = comm_rank(world);
    // Three of four, in two layers.
    TRY(comm_split(world, rank == 1 ? -1 : 5, &part));
    EXPECT((part == NULL) == (rank == 1));
    if (part) {
        EXPECT(comm_size(part) == 3 && comm_rank(part) == (rank ? rank - 1 : 0) && comm_world_rank(part) == rank);
        TRY(check_operations(context, part));
        TRY(check_sums(context, part, 1001));
        TRY(comm_split(part, comm_rank(part) == 2 ? -1 : 0, &none));
        EXPECT((none == NULL) == (comm_rank(part) == 2));
        if (none) TRY(comm_barrier(none, "inner"));
        comm_close(none);
    }
    comm_close(part);
    TRY(comm_split(world, rank, &single));
    EXPECT(comm_size(single) == 1);
    TRY(check_operations(context, single));
    TRY(check_sums(context, single, 1001));
    comm_close(single);
    return STATUS_OK;
}

// Sums begun in parts, by every rank when it comes to them: more pieces than may be under way, other collectives beside
// them on another communicator, none on their own.
static status_t check_parts(context_t *context) {
    enum { COUNT = 5003, PARTS = 7 };
    comm_t *world = context->world, *part = NULL;
    int size = comm_size(world), rank = comm_rank(world);
    int64_t offset[9], first[8], last[8], *data = NULL, here = rank;
    TRY(comm_split(world, 0, &part));
    comm_set_piece_bytes(part, 808);
    TRY(ALLOCATE(&data, COUNT));
    for (int round = 0; round < 2; round++) {
        make_offsets(size, COUNT, round, offset);
        for (int64_t i = 0; i < COUNT; i++) data[i] = value(rank, i);
        EXPECT(!comm_under_way(part));
        for (int p = PARTS - 1; p >= 0; p--) {
            int64_t low = (int64_t)COUNT * p / PARTS, high = (int64_t)COUNT * (p + 1) / PARTS;
            for (int r = 0; r < size; r++) {
                first[r] = offset[r] < low ? low : offset[r] > high ? high : offset[r];
                last[r] = offset[r + 1] < low ? low : offset[r + 1] > high ? high : offset[r + 1];
            }
            if (rank == 1)
                nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); // it computes longer than the others
            TRY(comm_begin_reduce_scatter_i64(part, data, first, last, "sum in parts"));
            for (int look = 0; look < 3; look++) TRY(comm_progress(part, "sum in parts"));
            if (p == 3) TRY(comm_all_reduce_i64(world, &here, 1, COMM_MAX, "beside parts"));
        }
        EXPECT(comm_under_way(part) && here == size - 1);
        status_t status = comm_barrier(part, "between");
        EXPECT(status && strstr(status_message(status), "between"));
        status_free(status);
        TRY(comm_wait(part, "sum in parts"));
        TRY(comm_wait(part, "nothing is left"));
        int64_t wrong = 0;
        for (int64_t i = offset[rank]; i < offset[rank + 1]; i++) {
            int64_t sum = 0;
            for (int r = 0; r < size; r++) sum += value(r, i);
            wrong += data[i] != sum;
        }
        EXPECT(wrong == 0 && !comm_under_way(part));
    }
    TRY(comm_barrier(part, "after parts"));
    comm_close(part);
    free(data);
    return STATUS_OK;
}

// One rank stays away: the others are told within the deadline, and are not kept by it afterwards.
static status_t check_deadline(context_t *context) {
    comm_t *part = NULL;
    int rank = comm_rank(context->world);
    TRY(comm_split(context->world, 0, &part));
    context->lost = part;
    if (rank == 2) {
        nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 500000000}, NULL);
    } else {
        comm_set_deadline(part, 0.4);
        double start = clock_seconds();
        int64_t *data = NULL;
        TRY(ALLOCATE(&data, 1000));
        context->lost_data = data;
        status_t status = comm_all_reduce_i64(part, data, 1000, COMM_SUM, "gradient sum");
        double took = clock_seconds() - start;
        char who[32];
        snprintf(who, sizeof(who), "rank %d", rank);
        EXPECT(status && status_kind(status) == STATUS_TIMEOUT);
        EXPECT(strstr(status_message(status), "gradient sum") && strstr(status_message(status), who));
        EXPECT(took >= 0.39 && took < 20);
        status_free(status);
        status = comm_barrier(part, "the next one");
        EXPECT(status && status_kind(status) == STATUS_PEER && strstr(status_message(status), "the next one"));
        status_free(status);
        status = comm_broadcast(part, data, 8, 0, "another");
        EXPECT(status != NULL);
        status_free(status);
    }
    // The world is another communicator and still whole.
    return comm_barrier(context->world, "after the deadline");
}

static status_t run(context_t *context) {
    TRY(comm_open_world(20, NULL, &context->world));
    comm_t *world = context->world;
    EXPECT(comm_size(world) == 4 && comm_hosts(world) == 1 && comm_local_rank(world) == comm_rank(world));
    status_t status = comm_broadcast(world, NULL, 0, 4, "wrong root");
    EXPECT(status != NULL);
    status_free(status);
    int64_t falling[5] = {0, 2, 1, 3, 3};
    status = comm_all_gather(world, falling, falling, "wrong shares");
    EXPECT(status != NULL);
    status_free(status);
    TRY(check_all(context, world));
    TRY(check_groups(context));
    TRY(check_parts(context));
    TRY(check_deadline(context));
    int64_t failures = context->failures;
    TRY(comm_all_reduce_i64(world, &failures, 1, COMM_SUM, "counting failures"));
    context->failures = (int)failures;
    return STATUS_OK;
}

int main(void) {
    context_t context = {0};
    status_t status = run(&context);
    if (status) status_print(status, stderr, context.world ? comm_rank(context.world) : -1, true);
    // A rank stayed away from one collective: as after a death, nobody finalizes.
    if (status) comm_abandon(1);
    status = comm_close_world(context.world);
    context.lost->broken = false; // MPI is over and uses nothing any more
    comm_close(context.lost);
    free(context.lost_data);
    if (status) status_print(status, stderr, -1, true);
    return status || context.failures;
}
