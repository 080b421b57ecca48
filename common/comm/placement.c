#include "common/comm/placement.h"

#include "kernels/streams.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GPU_LIST = 2048 };

// Whether a name is in the list, and where.
static bool listed(const char *list, const char *name, size_t length) {
    for (const char *at = list; *at;) {
        size_t own = strcspn(at, " ");
        if (own == length && !strncmp(at, name, length)) return true;
        at += own + (at[own] == ' ');
    }
    return false;
}

// The first name of the list that is not in `taken`; it is added there. -1: none is left.
static int take(const char *list, char *taken, size_t bytes) {
    int ordinal = 0;
    for (const char *at = list; *at; ordinal++) {
        size_t length = strcspn(at, " "), used = strlen(taken);
        if (!listed(taken, at, length)) {
            if (used + length + 2 > bytes) return -1;
            snprintf(taken + used, bytes - used, "%.*s ", (int)length, at);
            return ordinal;
        }
        at += length + (at[length] == ' ');
    }
    return -1;
}

static int names_in(const char *list) {
    int count = 0;
    for (const char *at = list; (at = strchr(at, ' ')); at++) count++;
    return count;
}

// All that the machine's ranks see, each once.
static status_t too_few(const placement_rank_t *ranks, int count, const char *host, char *seen, size_t bytes) {
    int computing = 0;
    seen[0] = 0;
    for (int r = 0; r < count; r++) {
        if (!ranks[r].computes || strcmp(ranks[r].host, host) != 0) continue;
        computing++;
        while (take(ranks[r].gpus, seen, bytes) >= 0) continue;
    }
    int gpus = names_in(seen);
    FAIL(STATUS_INVALID,
         "%d ranks of machine %s compute on GPUs, and together they see %d of them; start at most %d such ranks there "
         "(srun: --ntasks-per-node=%d --gpus-per-task=1; mpirun: slots=%d in its hostfile), or show them more "
         "(CUDA_VISIBLE_DEVICES, --gpus-per-node)",
         computing, host, gpus, gpus, gpus, gpus);
}

status_t placement_choose(const placement_rank_t *ranks, int count, int rank, int *ordinal) {
    *ordinal = -1;
    if (!ranks[rank].computes) return STATUS_OK;
    size_t bytes = 1;
    for (int r = 0; r < count; r++) bytes += strlen(ranks[r].gpus) + 1;
    char *taken;
    TRY(ALLOCATE(&taken, bytes));
    status_t status = STATUS_OK;
    // Who sees fewest chooses first, so that a rank that sees all leaves to the others what they alone see.
    int most = 0, seen;
    for (int r = 0; r < count; r++)
        if ((seen = names_in(ranks[r].gpus)) > most) most = seen;
    for (int least = 0; least <= most && !status; least++)
        for (int r = 0; r < count && !status; r++) {
            if (!ranks[r].computes || names_in(ranks[r].gpus) != least || strcmp(ranks[r].host, ranks[rank].host) != 0)
                continue;
            int found = take(ranks[r].gpus, taken, bytes);
            if (found < 0) status = too_few(ranks, count, ranks[rank].host, taken, bytes);
            if (r == rank) *ordinal = found;
        }
    free(taken);
    return status;
}

// Devices that have numbers, and none was asked for.
static bool has_places(const char *device) {
    return device && (!strcmp(device, "cuda") || !strncmp(device, "sim", 3));
}

static void name_place(const char *device, int ordinal, char out[PLACEMENT_NAME]) {
    if (ordinal < 0)
        out[0] = 0;
    else if (!strcmp(device, "cuda"))
        snprintf(out, PLACEMENT_NAME, "cuda:%d", ordinal);
    else
        snprintf(out, PLACEMENT_NAME, "%s", device); // what follows "sim:" is no number
}

typedef struct shared_place {
    bool failed, computes;
    char host[256], gpus[GPU_LIST];
} shared_place_t;

// *ordinal -1: the rank computes nothing.
static status_t share(comm_t *world, const char *device, bool computes, int *ordinal) {
    *ordinal = -1;
    size_t size = (size_t)comm_size(world), rank = (size_t)comm_rank(world);
    shared_place_t *all = NULL;
    int64_t *offset = NULL;
    placement_rank_t *ranks = NULL;
    status_t own = STATUS_OK, status = STATUS_OK;
    TRY_GOTO(status, done, ALLOCATE(&all, size));
    TRY_GOTO(status, done, ALLOCATE(&offset, size + 1));
    TRY_GOTO(status, done, ALLOCATE(&ranks, size));
    for (size_t r = 0; r <= size; r++) offset[r] = (int64_t)(r * sizeof(*all));
    all[rank].computes = computes;
    gethostname(all[rank].host, sizeof(all[rank].host) - 1);
    if (computes) own = device_list(device, all[rank].gpus, sizeof(all[rank].gpus));
    all[rank].failed = own != STATUS_OK;
    TRY_GOTO(status, done, comm_all_gather(world, all, offset, "sharing out GPUs"));
    for (size_t r = 0; r < size; r++) {
        ranks[r] = (placement_rank_t){all[r].host, all[r].gpus, all[r].computes};
        if (all[r].failed && !own && !status)
            status = STATUS_NEW(STATUS_PEER, "rank %zu cannot use the device %s; its message says why", r, device);
    }
    if (!own && !status) status = placement_choose(ranks, (int)size, (int)rank, ordinal);
done:
    free(ranks);
    free(offset);
    free(all);
    return status_first(own, status);
}

status_t placement_share(comm_t *world, const char *device, bool computes, char out[PLACEMENT_NAME]) {
    int ordinal = -1;
    snprintf(out, PLACEMENT_NAME, "%s", device ? device : "");
    if (!has_places(device)) return STATUS_OK;
    status_t status = share(world, device, computes, &ordinal);
    name_place(device, ordinal, out);
    return status;
}

status_t placement_ordinal(comm_t *world, const char *device, int *ordinal) {
    return share(world, device, true, ordinal);
}

static int number_of(const char *const *names, size_t count, int initial) {
    for (size_t i = 0; i < count; i++) {
        const char *text = getenv(names[i]);
        if (text && *text) return (int)strtol(text, NULL, 10);
    }
    return initial;
}

status_t placement_alone(const char *device, char out[PLACEMENT_NAME]) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID",
                                        "SLURM_LOCALID"};
    char gpus[GPU_LIST], host[256] = "";
    gethostname(host, sizeof(host) - 1);
    snprintf(out, PLACEMENT_NAME, "%s", device ? device : "");
    if (!has_places(device)) return STATUS_OK;
    TRY(device_list(device, gpus, sizeof(gpus)));
    int rank = number_of(names, sizeof(names) / sizeof(names[0]), 0), count = names_in(gpus);
    // A launcher that shows each process one GPU has placed it already; a machine that has one has not.
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    if (count == 1 && shown && *shown) rank = 0;
    if (rank >= count)
        FAIL(STATUS_INVALID,
             "this is process %d of machine %s, counted from 0, and it sees %d GPUs; start at most %d processes a "
             "machine (srun: --ntasks-per-node=%d --gpus-per-task=1), or show them more (CUDA_VISIBLE_DEVICES)",
             rank, host, count, count, count);
    name_place(device, rank, out);
    return STATUS_OK;
}
