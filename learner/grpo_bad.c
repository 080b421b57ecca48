// A GRPO step with a NaN: its groups, wherever they are, go into the bad step's file.
#include "learner/trajectory.h"

#include <stdlib.h>
#include <string.h>

typedef struct parcel {
    uint8_t *bytes;  // of all ranks: a length, then a packed group, and so on
    int64_t *offset; // [ranks + 1]
} parcel_t;

static status_t pack_own(const grpo_run_t *run, link_buffer_t **out, int *count) {
    const grpo_batch_t *batch = &run->batch;
    TRY(ALLOCATE(out, batch->own_count));
    for (*count = 0; *count < batch->own_count; ++*count)
        TRY(message_pack(&batch->group[batch->own[*count].number], &(*out)[*count]));
    return STATUS_OK;
}

static void release(link_buffer_t *buffer, int count) {
    for (int i = 0; i < count; i++) link_buffer_free(&buffer[i]);
    free(buffer);
}

// Every rank gets every group, packed.
static status_t exchange(grpo_run_t *run, const link_buffer_t *buffer, int count, parcel_t *out) {
    learner_t *learner = &run->learner;
    int ranks = comm_size(learner->comm), rank = comm_rank(learner->comm);
    TRY(ALLOCATE(&out->offset, ranks + 1));
    for (int i = 0; i < count; i++) out->offset[rank + 1] += (int64_t)(sizeof(int64_t) + buffer[i].size);
    TRY(comm_all_reduce_i64(learner->comm, out->offset, ranks + 1, COMM_SUM, "sizes of groups"));
    for (int r = 0; r < ranks; r++) out->offset[r + 1] += out->offset[r];
    status_t status = ALLOCATE(&out->bytes, out->offset[ranks]);
    TRY(learner_agree(learner, status, "memory of the groups"));
    uint8_t *at = out->bytes + out->offset[rank];
    for (int i = 0; i < count; i++) {
        int64_t size = (int64_t)buffer[i].size;
        memcpy(at, &size, sizeof(size));
        memcpy(at + sizeof(size), buffer[i].data, buffer[i].size);
        at += sizeof(size) + buffer[i].size;
    }
    return comm_all_gather(learner->comm, out->bytes, out->offset, "gathering groups");
}

// Learner 0: what it did not have.
static status_t unpack_missing(grpo_run_t *run, const parcel_t *parcel) {
    grpo_batch_t *batch = &run->batch;
    int64_t end = parcel->offset[comm_size(run->learner.comm)];
    for (int64_t at = 0; at < end;) {
        int64_t size;
        message_t message;
        memcpy(&size, parcel->bytes + at, sizeof(size));
        TRY(message_unpack(parcel->bytes + at + sizeof(size), (size_t)size, &message));
        at += (int64_t)sizeof(size) + size;
        int i = 0;
        while (i < batch->plan->groups && batch->plan->serial[i] != message.group.serial) i++;
        if (i < batch->plan->groups && !batch->group[i].type)
            batch->group[i] = message;
        else
            message_free(&message);
    }
    return STATUS_OK;
}

static status_t gather_groups(grpo_run_t *run) {
    learner_t *learner = &run->learner;
    link_buffer_t *buffer = NULL;
    int count = 0;
    parcel_t parcel = {0};
    if (comm_size(learner->comm) == 1) return STATUS_OK;
    status_t status = learner_agree(learner, pack_own(run, &buffer, &count), "packing groups");
    if (!status) status = exchange(run, buffer, count, &parcel);
    if (!status) status = learner_agree(learner, learner->first ? unpack_missing(run, &parcel) : STATUS_OK, "groups");
    release(buffer, count);
    free(parcel.bytes);
    free(parcel.offset);
    return status;
}

static status_t write_groups(void *context, store_t *store) {
    trajectory_t groups;
    TRY(trajectory_take_groups(context, &groups));
    status_t status = trajectory_write_groups(&groups, store);
    trajectory_free(&groups);
    return status;
}

status_t grpo_handle_finding(grpo_run_t *run) {
    if (run->offline) return STATUS_OK;
    TRY(gather_groups(run));
    bad_step_t bad = {.kind = "grpo",
                      .step = run->batch.step,
                      .update = run->update,
                      .finding = &run->finding,
                      .inputs = write_groups,
                      .versions = grpo_save_versions,
                      .context = run};
    return bad_step_handle(&run->learner, &bad);
}
