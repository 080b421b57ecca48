// NCCL's stand-in for the simulated GPU: the functions of kernels/cuda/nccl.h with NCCL's meaning. Communicators do not
// block, calls between group_start and group_end become one piece of work, work runs in the order of its stream, and
// misuse is an error. Bytes travel by whoever set the transport (common/comm: MPI).
//
// POISE_SIM_NCCL=FAULT@RANK[:N], for tests: on this rank of a communicator, at its Nth piece of work (from 1),
//   id           there is no id (rank 0 makes it)
//   init         joining fails at once                   absent     joining never ends, here and so for all
//   call         a call fails at once                    async      an error of NCCL's own threads, while work runs
//   hang         the work never ends                     die        the process is killed
#ifndef KERNELS_SIM_NCCL_H
#define KERNELS_SIM_NCCL_H

#include "kernels/base/status.h"
#include "kernels/cuda/nccl.h"

typedef enum sim_nccl_kind { SIM_NCCL_ALL_REDUCE, SIM_NCCL_REDUCE, SIM_NCCL_BROADCAST } sim_nccl_kind_t;
typedef struct sim_nccl_call {
    sim_nccl_kind_t kind;
    const void *from;
    void *to;
    void *data; // for the transport: host memory, from where and to where alike
    size_t count;
    int type, operation, root;
} sim_nccl_call_t;

// None of these waits. A group does one call at a time; every rank starts the same calls in the same order.
typedef struct sim_nccl_transport {
    status_t (*identify)(void *context, nccl_id_t *id);
    status_t (*join)(void *context, const nccl_id_t *id, int ranks, int rank, void **group);
    status_t (*joined)(void *group, bool *joined);
    status_t (*start)(void *group, const sim_nccl_call_t *call);
    status_t (*test)(void *group, bool *done);
    void (*leave)(void *group); // what is under way is left to itself
} sim_nccl_transport_t;
void sim_nccl_set_transport(const sim_nccl_transport_t *transport, void *context);

extern const nccl_library_t sim_nccl;

#endif
