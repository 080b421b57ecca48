#include "common/comm/memory_share.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static status_t gather(comm_t *comm, const char *label, const ledger_report_t *own, memory_rank_t **out) {
    size_t size = (size_t)comm_size(comm);
    int64_t *offset;
    *out = NULL;
    TRY(ALLOCATE(&offset, size + 1));
    status_t status = ALLOCATE(out, size);
    if (!status) {
        memory_rank_t *mine = &(*out)[comm_rank(comm)];
        for (size_t r = 0; r <= size; r++) offset[r] = (int64_t)(r * sizeof(**out));
        gethostname(mine->host, sizeof(mine->host) - 1);
        snprintf(mine->label, sizeof(mine->label), "%s", label);
        mine->report = *own;
        status = comm_all_gather(comm, *out, offset, "adding up memory");
    }
    free(offset);
    if (!status) return STATUS_OK;
    free(*out);
    *out = NULL;
    return status;
}

// Whether two ranks compute on one device.
static bool together(const memory_rank_t *a, const memory_rank_t *b) {
    return a->report.total && b->report.total && !strcmp(a->host, b->host) && !strcmp(a->report.place, b->report.place);
}

status_t memory_check(const memory_rank_t *ranks, int count, int rank) {
    ledger_report_t *shared;
    int found = 0;
    if (!ranks[rank].report.total) return STATUS_OK;
    TRY(ALLOCATE(&shared, count));
    for (int r = 0; r < count; r++)
        if (together(&ranks[r], &ranks[rank])) shared[found++] = ranks[r].report;
    status_t status = ledger_check_shared(shared, found, ranks[rank].report.place);
    free(shared);
    return status;
}

status_t memory_agree(comm_t *comm, device_t *device) {
    ledger_report_t own;
    memory_rank_t *all;
    ledger_read(device, &own);
    TRY(gather(comm, "", &own, &all));
    status_t status = memory_check(all, comm_size(comm), comm_rank(comm));
    free(all);
    return status;
}

static double mib(uint64_t bytes) {
    return (double)bytes / (double)(1 << 20);
}

// A device that several ranks share, at its first rank.
static void print_shared(const memory_rank_t *ranks, int count, int rank, FILE *stream) {
    uint64_t need = 0, taken = 0, left = ranks[rank].report.free;
    int found = 0;
    for (int r = 0; r < count; r++) {
        if (!together(&ranks[r], &ranks[rank])) continue;
        if (r < rank) return;
        found++;
        need += ledger_sum(&ranks[r].report);
        taken += ranks[r].report.taken;
        if (ranks[r].report.free < left) left = ranks[r].report.free;
    }
    if (found < 2) return;
    fprintf(stream, "  %s of %s: %d ranks, %.1f MiB of %.1f that are free\n", ranks[rank].report.place,
            ranks[rank].host, found, mib(need), mib(left + taken));
}

enum { MEMORY_SHOWN = 64 };

static void print_all(const memory_rank_t *ranks, int count, FILE *stream) {
    bool any = false;
    for (int r = 0; r < count; r++) any = any || ranks[r].report.total;
    if (!any) return;
    fprintf(stream, "memory by rank:\n");
    for (int r = 0; r < count && r < MEMORY_SHOWN; r++) {
        const ledger_report_t *report = &ranks[r].report;
        uint64_t host = 0;
        for (int i = 0; i < LEDGER_PARTS; i++) host += report->row[i].host;
        fprintf(stream, "  rank %-3d %-24s %s", r, ranks[r].label, ranks[r].host);
        if (report->total)
            fprintf(stream, ", %s: %.1f MiB of %.1f that are free", report->place, mib(ledger_sum(report)),
                    mib(report->free + report->taken));
        fprintf(stream, "; host: %.1f MiB\n", mib(host));
    }
    if (count > MEMORY_SHOWN) fprintf(stream, "  and so on: %d ranks\n", count);
    for (int r = 0; r < count; r++)
        if (ranks[r].report.total) print_shared(ranks, count, r, stream);
    fflush(stream);
}

status_t memory_print(comm_t *comm, const char *label, const ledger_report_t *own, FILE *stream) {
    memory_rank_t *all;
    TRY(gather(comm, label, own, &all));
    int rank = comm_rank(comm), size = comm_size(comm);
    if (!rank) print_all(all, size, stream);
    status_t status = memory_check(all, size, rank);
    free(all);
    return status;
}
