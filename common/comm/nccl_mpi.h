// The transport of NCCL's stand-in (kernels/sim/nccl.h) over the MPI communicator of `comm`, which must outlive it.
#ifndef COMMON_COMM_NCCL_MPI_H
#define COMMON_COMM_NCCL_MPI_H

#include "common/comm/comm.h"
#include "kernels/sim/nccl.h"

extern const sim_nccl_transport_t nccl_mpi_transport; // context: the comm_t

#endif
