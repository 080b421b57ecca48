// Memory of the ranks: what each takes of its device and host, gathered, and whether those on one device fit it.
#ifndef COMMON_COMM_MEMORY_SHARE_H
#define COMMON_COMM_MEMORY_SHARE_H

#include "common/comm/comm.h"
#include "kernels/ledger.h"

typedef struct memory_rank {
    char host[128], label[64]; // label: "learner 0"
    ledger_report_t report;
} memory_rank_t;

// STATUS_MEMORY where the ranks that compute on the device of `rank` need more than it has free (kernels/ledger.h).
status_t memory_check(const memory_rank_t *ranks, int count, int rank) STATUS_CHECKED;
// What every rank's device will be asked for must fit, ranks on one device added up. Collective over `comm`.
status_t memory_agree(comm_t *comm, device_t *device) STATUS_CHECKED;
// The same for reports that were made before; rank 0 prints them, a line each, with the sums of shared devices. Nothing
// is printed where no rank has a device with memory of its own. Collective over `comm`.
status_t memory_print(comm_t *comm, const char *label, const ledger_report_t *own, FILE *stream) STATUS_CHECKED;

#endif
