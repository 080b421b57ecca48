// ranks: 4
// Which GPU each rank takes, with a stand-in that pretends to have some; too few; one for each by the launcher.
#include "common/comm/placement.h"

#include <stdlib.h>
#include <string.h>

typedef struct context {
    comm_t *world;
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

static int chosen(const placement_rank_t *ranks, int count, int rank) {
    int ordinal = -2;
    status_t status = placement_choose(ranks, count, rank, &ordinal);
    status_free(status);
    return status ? -3 : ordinal;
}

// The rule by itself.
static void check_rule(context_t *context) {
    const placement_rank_t same[] = {
        {"a", "g0 g1 ", true}, {"b", "g0 ", true}, {"a", "g0 g1 ", true}, {"a", "g0 g1 ", false}};
    EXPECT(chosen(same, 4, 0) == 0 && chosen(same, 4, 1) == 0 && chosen(same, 4, 2) == 1 && chosen(same, 4, 3) == -1);
    const placement_rank_t own[] = {{"a", "g3 ", true}, {"a", "g1 ", true}, {"a", "g30 g3 ", true}};
    EXPECT(chosen(own, 3, 0) == 0 && chosen(own, 3, 1) == 0 && chosen(own, 3, 2) == 0);
    // Machines with different numbers of GPUs, each rank seeing its machine's; and one that leaves the other what it
    // sees.
    const placement_rank_t uneven[] = {{"a", "g0 g1 g2 g3 ", true}, {"b", "g0 ", true},
                                       {"a", "g0 g1 g2 g3 ", true}, {"c", "g0 g1 ", true},
                                       {"a", "g0 g1 g2 g3 ", true}, {"c", "g0 g1 ", true}};
    EXPECT(chosen(uneven, 6, 0) == 0 && chosen(uneven, 6, 2) == 1 && chosen(uneven, 6, 4) == 2);
    EXPECT(chosen(uneven, 6, 1) == 0 && chosen(uneven, 6, 3) == 0 && chosen(uneven, 6, 5) == 1);
    const placement_rank_t nested[] = {{"a", "g0 g1 ", true}, {"a", "g0 ", true}};
    EXPECT(chosen(nested, 2, 0) == 1 && chosen(nested, 2, 1) == 0);
    const placement_rank_t few[] = {{"a", "g0 g1 ", true}, {"b", "g0 g1 ", true}, {"a", "g0 ", true}, {"a", "", true}};
    EXPECT(chosen(few, 4, 0) == -3 && chosen(few, 4, 1) == 0 && chosen(few, 4, 3) == -3);
    int ordinal;
    status_t status = placement_choose(few, 4, 0, &ordinal);
    EXPECT(status && status_kind(status) == STATUS_INVALID &&
           strstr(status_message(status), "3 ranks of machine a compute on GPUs, and together they see 2 of them"));
    status_free(status);
}

static status_t share(context_t *context, const char *gpus, const char *visible, bool computes, char *out) {
    setenv("POISE_SIM_GPUS", gpus, 1);
    if (visible)
        setenv("CUDA_VISIBLE_DEVICES", visible, 1);
    else
        unsetenv("CUDA_VISIBLE_DEVICES");
    return placement_share(context->world, "sim", computes, out);
}

static status_t check_world(context_t *context) {
    int rank = comm_rank(context->world);
    char out[PLACEMENT_NAME] = "", own[2] = {(char)('0' + rank), 0};
    TRY(share(context, "4", NULL, true, out));
    EXPECT(!strcmp(out, "sim"));
    TRY(share(context, "8", own, true, out)); // as --gpus-per-task=1 does
    EXPECT(!strcmp(out, "sim"));
    TRY(share(context, "3", NULL, rank != 3, out)); // the reward rank computes nothing
    EXPECT(!strcmp(out, rank == 3 ? "" : "sim"));
    for (int i = 0; i < 2; i++) { // three for four; the same one for all
        status_t status = share(context, i ? "8" : "3", i ? "5" : NULL, true, out);
        const char *sees = i ? "together they see 1 of them" : "together they see 3 of them";
        EXPECT(status && status_kind(status) == STATUS_INVALID &&
               strstr(status_message(status), "4 ranks of machine") && strstr(status_message(status), sees) &&
               strstr(status_message(status), "--gpus-per-task=1") &&
               strstr(status_message(status), "CUDA_VISIBLE_DEVICES"));
        status_free(status);
    }
    // One machine's rank sees none: all end, each with a reason.
    status_t status = share(context, "4", rank == 1 ? "9" : NULL, true, out);
    EXPECT(status && strstr(status_message(status), rank == 1 ? "no CUDA-capable device" : "rank 1 cannot use"));
    status_free(status);
    TRY(placement_share(context->world, "cpu:avx2", true, out));
    EXPECT(!strcmp(out, "cpu:avx2"));
    return STATUS_OK;
}

static int alone(const char *gpus, const char *visible, const char *local, char *out) {
    setenv("POISE_SIM_GPUS", gpus, 1);
    if (visible)
        setenv("CUDA_VISIBLE_DEVICES", visible, 1);
    else
        unsetenv("CUDA_VISIBLE_DEVICES");
    setenv("OMPI_COMM_WORLD_LOCAL_RANK", local, 1);
    status_t status = placement_alone("sim", out);
    int kind = status ? (int)status_kind(status) : 0;
    status_free(status);
    return kind;
}

// A pool's worker, which knows its local rank and what it sees, and no more.
static void check_alone(context_t *context) {
    char out[PLACEMENT_NAME] = "";
    EXPECT(alone("2", NULL, "1", out) == 0 && !strcmp(out, "sim"));
    EXPECT(alone("2", NULL, "2", out) == STATUS_INVALID);
    EXPECT(alone("1", NULL, "1", out) == STATUS_INVALID); // a second process for a machine's only GPU
    EXPECT(alone("8", "5", "3", out) == 0);               // one of eight, as --gpus-per-task=1 shows it
}

static status_t run(context_t *context) {
    TRY(comm_open_world(20, NULL, &context->world));
    check_rule(context);
    check_alone(context);
    TRY(check_world(context));
    int64_t failures = context->failures;
    TRY(comm_all_reduce_i64(context->world, &failures, 1, COMM_SUM, "counting failures"));
    context->failures = (int)failures;
    return STATUS_OK;
}

int main(void) {
    context_t context = {0};
    status_t status = run(&context);
    if (status) {
        status_print(status, stderr, context.world ? comm_rank(context.world) : -1, true);
        comm_abandon(1);
    }
    status = comm_close_world(context.world);
    if (status) status_print(status, stderr, -1, true);
    return status || context.failures;
}
