// The sum of gradients over ranks, in buckets that begin while backward runs.
//
// Buckets are equal pieces of the flat space, last to first: the last tensors of a forward are the first whose
// gradients are final. Their order is the same on every rank, and every rank begins all of them in every try of a step:
// one that has no leaf, or whose last launch has no backward, begins them in optimizer_reduce_rest. So the ranks'
// collectives always match, whenever each rank comes to them. Sums are of whole numbers: buckets do not show in them.
#include "learner/optimizer_internal.h"

#include "common/comm/clock.h"
#include <stdlib.h>
#include <string.h>

enum { BUCKETS_MOST = 32, BUCKET_LEAST_BLOCKS = 64 };
static const char *const phase = "gradient sum";

void optimizer_cut_buckets(optimizer_t *optimizer, int64_t least_blocks) {
    int64_t blocks = (optimizer->blocks + BUCKETS_MOST - 1) / BUCKETS_MOST;
    if (blocks < least_blocks) blocks = least_blocks;
    optimizer->bucket_blocks = blocks;
    optimizer->buckets = (int)((optimizer->blocks + blocks - 1) / blocks);
}

status_t optimizer_layout_buckets(optimizer_t *optimizer) {
    optimizer_cut_buckets(optimizer, BUCKET_LEAST_BLOCKS);
    TRY(ALLOCATE(&optimizer->bucket_op, BUCKETS_MOST));
    TRY(ALLOCATE(&optimizer->part, 2 * (size_t)comm_size(optimizer->comm)));
    if (optimizer->device_comm || comm_size(optimizer->comm) < 2) {
        optimizer->sum_comm = optimizer->device_comm ? optimizer->device_comm : optimizer->comm;
        return STATUS_OK;
    }
    // One of its own, so that other collectives go on beside what is under way here.
    return comm_split(optimizer->comm, 0, &optimizer->sum_comm);
}

static void bucket_range(const optimizer_t *optimizer, int bucket, int64_t *first, int64_t *last) {
    int64_t end = optimizer->blocks - bucket * optimizer->bucket_blocks, begin = end - optimizer->bucket_blocks;
    *first = (begin > 0 ? begin : 0) * GRADIENT_BLOCK;
    *last = end * GRADIENT_BLOCK;
}

static status_t begin_next(optimizer_t *optimizer) {
    int64_t begin, end, ranks = comm_size(optimizer->comm);
    int64_t *first = optimizer->part, *last = optimizer->part + ranks;
    bucket_range(optimizer, optimizer->bucket_next++, &begin, &end);
    for (int64_t r = 0; r < ranks; r++) {
        int64_t low = optimizer->offset[r], high = optimizer->offset[r + 1];
        first[r] = low < begin ? begin : low > end ? end : low;
        last[r] = high < begin ? begin : high > end ? end : high;
    }
    int64_t *sum = optimizer->device_comm ? optimizer->sum : optimizer->staged_sum;
    return comm_begin_reduce_scatter_i64(optimizer->sum_comm, sum, first, last, phase);
}

// ---- what the tape tells ----

static int tensor_of(const optimizer_t *optimizer, const parameter_t *parameter) {
    int64_t at = parameter->sink.sum - optimizer->sum;
    int low = 0, high = optimizer->tensors - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (optimizer->start[middle] <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// A bucket is final when the first op of the forward that used one of its tensors has been walked back over.
static void hear_use(void *context, const parameter_t *parameter, size_t op) {
    optimizer_t *optimizer = context;
    int tensor = tensor_of(optimizer, parameter);
    int64_t bucket = optimizer->bucket_blocks * GRADIENT_BLOCK, end = optimizer->blocks * GRADIENT_BLOCK;
    int first = (int)((end - optimizer->start[tensor + 1]) / bucket);
    int last = (int)((end - optimizer->start[tensor] - 1) / bucket);
    for (int b = first; b <= last; b++)
        if (op < optimizer->bucket_op[b]) optimizer->bucket_op[b] = op;
}

static status_t hear_added(void *context, size_t op) {
    optimizer_t *optimizer = context;
    while (optimizer->bucket_next < optimizer->buckets && optimizer->bucket_op[optimizer->bucket_next] >= op) {
        if (op > 0 && !optimizer->early++) optimizer->early_since = clock_seconds(); // op 0: nothing is left to hide it
        TRY(begin_next(optimizer));
    }
    return comm_progress(optimizer->sum_comm, phase);
}

const tape_listener_t *optimizer_listener(optimizer_t *optimizer) {
    if (comm_size(optimizer->comm) < 2) return NULL;
    // Sums that go through the host's memory are copied there when they are whole.
    if (!optimizer->host_memory && !optimizer->device_comm) return NULL;
    for (int b = 0; b < optimizer->buckets; b++) optimizer->bucket_op[b] = SIZE_MAX;
    optimizer->listener = (tape_listener_t){hear_use, hear_added, optimizer};
    return &optimizer->listener;
}

// ---- the end ----

status_t optimizer_reduce_rest(optimizer_t *optimizer) {
    bool staged = !optimizer->host_memory && !optimizer->device_comm;
    if (optimizer->early && optimizer->hidden_s == 0.0) optimizer->hidden_s = clock_seconds() - optimizer->early_since;
    if (staged && optimizer->bucket_next == 0) {
        device_t *device = optimizer->device;
        size_t flat = (size_t)optimizer->blocks * GRADIENT_BLOCK * sizeof(int64_t);
        TRY(device->table->download(device, optimizer->staged_sum, optimizer->sum, flat));
    }
    while (optimizer->bucket_next < optimizer->buckets) TRY(begin_next(optimizer));
    return STATUS_OK;
}

status_t optimizer_reduce_end(optimizer_t *optimizer) {
    TRY(optimizer_reduce_rest(optimizer));
    TRY(comm_wait(optimizer->sum_comm, phase));
    if (optimizer->host_memory || optimizer->device_comm) return STATUS_OK;
    return optimizer->device->table->upload(optimizer->device, optimizer->sum + optimizer->own_first,
                                            optimizer->staged_sum + optimizer->own_first,
                                            (size_t)optimizer->own_count * sizeof(int64_t));
}
