// Placement: which GPU a rank computes on. One process a GPU; the ranks of a machine take its GPUs in their order.
#ifndef COMMON_COMM_PLACEMENT_H
#define COMMON_COMM_PLACEMENT_H

#include "common/comm/comm.h"

enum { PLACEMENT_NAME = 64 };

typedef struct placement_rank {
    const char *host;
    const char *gpus; // names of those that this process sees, one behind the other, with a blank after each
    bool computes;    // it opens the device
} placement_rank_t;
// *ordinal: the place of rank's GPU in its own list, -1 where it computes nothing. Of a machine's ranks those that see
// fewest choose first, and else in their order, each the first of its list that is left. STATUS_INVALID where they are
// too few on a rank's machine: it names the machine and both numbers.
status_t placement_choose(const placement_rank_t *ranks, int count, int rank, int *ordinal) STATUS_CHECKED;

// The name to open the configuration's `device` by on this rank: "cuda" becomes "cuda:2", others stay; empty where the
// rank computes nothing. Collective over the world.
status_t placement_share(comm_t *world, const char *device, bool computes, char out[PLACEMENT_NAME]) STATUS_CHECKED;
// The number of the GPU of "cuda" or "sim" that this rank would compute on. Collective over the world.
status_t placement_ordinal(comm_t *world, const char *device, int *ordinal) STATUS_CHECKED;
// The same for a process outside the job's world (a rollout pool's): by the local rank that its launcher gives it.
status_t placement_alone(const char *device, char out[PLACEMENT_NAME]) STATUS_CHECKED;

#endif
