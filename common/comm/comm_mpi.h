// What NCCL's stand-in takes of the MPI member. Private to common/comm.
#ifndef COMMON_COMM_COMM_MPI_H
#define COMMON_COMM_COMM_MPI_H

#include "common/comm/comm_table.h"

#include <mpi.h>

status_t comm_mpi_check(int code, const char *call) STATUS_CHECKED;
MPI_Comm comm_mpi_handle(const comm_t *comm);

#endif
