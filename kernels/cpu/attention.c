// Attention: how the work is cut into pieces and shared over threads. The inner loops are in attention_impl.h.
#include "kernels/check.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/ops.h"

#include <string.h>

// Below this many FMAs a thread more does not pay.
#define ATTENTION_SHARE_COST 100000.0

// Pieces in a fixed order, each with a cost; a share takes the pieces that begin in its part of the total cost.
typedef struct attention_plan {
    const attention_args_t *args;
    const attention_gradients_t *gradients;
    const cpu_kernels_t *kernels;
    const float *delta;
    const int32_t *set; // backward: [sequences] first sequence of the set that shares key rows with this one
    char *scratch;
    size_t scratch_bytes;
    double total;
    int shares;
} attention_plan_t;

static int plan_queries(const attention_plan_t *plan, int sequence) {
    const attention_mask_t *mask = &plan->args->mask;
    return mask->query_start[sequence + 1] - mask->query_start[sequence];
}

// FMAs of rows first .. first + count - 1 of a sequence, by the keys their last query can see.
static double plan_cost(const attention_plan_t *plan, int sequence, int first, int count) {
    const attention_args_t *args = plan->args;
    const attention_mask_t *mask = &args->mask;
    double keys = mask->key_start[sequence + 1] - mask->key_start[sequence];
    int last = (first + count - 1) / (args->heads / args->kv_heads) + mask->query_position[sequence];
    if (mask->causal && !mask->group && keys > last + 1.0) keys = last + 1.0;
    if (mask->window > 0 && !mask->group && keys > mask->window + count) keys = mask->window + count;
    return (double)count * (keys + ATTENTION_BLOCK) * (args->head_dim + ATTENTION_BLOCK) * 2.0;
}

static bool plan_mine(const attention_plan_t *plan, double done, int share) {
    int owner = (int)(done / plan->total * plan->shares);
    return owner == share || (owner >= plan->shares && share == plan->shares - 1);
}

// Walks the tiles of the forward. With share < 0 it only adds up their cost.
static double attention_walk(const attention_plan_t *plan, int share, void *scratch) {
    const attention_args_t *args = plan->args;
    int group = args->heads / args->kv_heads;
    double done = 0;
    for (int s = 0; s < args->mask.sequences; s++)
        for (int head = 0; head < args->kv_heads; head++) {
            int rows = plan_queries(plan, s) * group;
            for (int first = 0; first < rows; first += ATTENTION_ROWS) {
                int count = rows - first < ATTENTION_ROWS ? rows - first : ATTENTION_ROWS;
                if (share >= 0 && plan_mine(plan, done, share)) {
                    attention_tile_t tile = {
                        .args = args, .sequence = s, .kv_head = head, .first_row = first, .rows = count};
                    plan->kernels->attention(&tile, scratch);
                }
                done += plan_cost(plan, s, first, count);
            }
        }
    return done;
}

// The same for the backward: a piece is a set of sequences that share key rows, for one key head.
static double attention_walk_back(const attention_plan_t *plan, int share, void *scratch) {
    const attention_args_t *args = plan->args;
    int group = args->heads / args->kv_heads, sequences = args->mask.sequences;
    double done = 0;
    for (int first = 0, last; first < sequences; first = last) {
        double cost = 0;
        for (last = first; last < sequences && plan->set[last] == first; last++)
            cost += plan_cost(plan, last, 0, plan_queries(plan, last) * group);
        for (int head = 0; head < args->kv_heads; head++) {
            bool mine = share >= 0 && plan_mine(plan, done, share);
            for (int s = first; mine && s < last; s++) {
                attention_tile_t tile = {
                    .args = args, .gradients = plan->gradients, .delta = plan->delta, .sequence = s, .kv_head = head};
                plan->kernels->attention_backward(&tile, scratch);
            }
            done += cost;
        }
    }
    return done;
}

static void attention_share(void *context, int task, int worker) {
    const attention_plan_t *plan = context;
    void *scratch = plan->scratch + (size_t)worker * plan->scratch_bytes;
    if (plan->gradients)
        attention_walk_back(plan, task, scratch);
    else
        attention_walk(plan, task, scratch);
}

static void attention_run(device_t *device, attention_plan_t *plan) {
    plan->total = plan->gradients ? attention_walk_back(plan, -1, NULL) : attention_walk(plan, -1, NULL);
    if (plan->total <= 0) return;
    plan->shares = threads_count(device->threads);
    double wanted = plan->total / ATTENTION_SHARE_COST;
    if (wanted < plan->shares) plan->shares = wanted < 1 ? 1 : (int)wanted;
    threads_run(device->threads, plan->shares, attention_share, plan);
}

// Rows of q that belong to no sequence get zeros.
static void attention_clear(const attention_args_t *args, int first, int last) {
    for (int64_t row = first; row < last; row++) {
        memset((float *)args->out.data + row * args->out.stride, 0, (size_t)args->out.columns * sizeof(float));
        if (args->lse) memset(args->lse + row * args->heads, 0, (size_t)args->heads * sizeof(float));
    }
}

status_t cpu_attention(device_t *device, const attention_args_t *args) {
    TRY(check_attention(args));
    attention_plan_t plan = {.args = args, .kernels = cpu_device_kernels(device)};
    plan.scratch_bytes = plan.kernels->attention_scratch(args->head_dim, false);
    TRY(device_workspace(device, plan.scratch_bytes * (size_t)threads_count(device->threads), (void **)&plan.scratch));
    if (device->measuring) return STATUS_OK;
    TRY(check_attention_indices(args));
    const attention_mask_t *mask = &args->mask;
    attention_clear(args, 0, mask->sequences ? mask->query_start[0] : args->q.rows);
    if (mask->sequences) attention_clear(args, mask->query_start[mask->sequences], args->q.rows);
    attention_run(device, &plan);
    return STATUS_OK;
}

// Finds which sequences share rows of k and v. Sets are runs of sequences; a run is widened until no row is in two.
// owner: [k.rows] scratch.
static status_t attention_find_sets(const attention_args_t *args, int32_t *set, int32_t *owner) {
    const attention_mask_t *mask = &args->mask;
    for (int row = 0; row < args->k.rows; row++) owner[row] = -1;
    for (int s = 0; s < mask->sequences; s++) {
        int first = s;
        for (int j = mask->key_start[s]; j < mask->key_start[s + 1]; j++) {
            int other = owner[mask->key_row[j]];
            if (other == s)
                FAIL(STATUS_INVALID, "attention backward: sequence %d lists row %d of k twice", s, mask->key_row[j]);
            if (other >= 0 && set[other] < first) first = set[other];
            owner[mask->key_row[j]] = s;
        }
        for (int i = first; i <= s; i++) set[i] = first;
    }
    return STATUS_OK;
}

status_t cpu_attention_backward(device_t *device, const attention_args_t *args,
                                const attention_gradients_t *gradients) {
    TRY(check_attention_backward(args, gradients));
    attention_plan_t plan = {.args = args, .gradients = gradients, .kernels = cpu_device_kernels(device)};
    plan.scratch_bytes = plan.kernels->attention_scratch(args->head_dim, true);
    size_t scratch = plan.scratch_bytes * (size_t)threads_count(device->threads);
    size_t delta = (size_t)args->q.rows * (size_t)args->heads * sizeof(float);
    size_t owners = (size_t)args->k.rows * sizeof(int32_t), sets = (size_t)args->mask.sequences * sizeof(int32_t);
    TRY(device_workspace(device, scratch + delta + owners + sets, (void **)&plan.scratch));
    if (device->measuring) return STATUS_OK;
    TRY(check_attention_indices(args));
    float *delta_values = (float *)(void *)(plan.scratch + scratch);
    int32_t *owner = (int32_t *)(delta_values + (size_t)args->q.rows * (size_t)args->heads),
            *set = owner + args->k.rows;
    TRY(attention_find_sets(args, set, owner));
    plan.delta = delta_values;
    plan.set = set;
    attention_tile_t all = {.args = args, .gradients = gradients, .delta = delta_values};
    cpu_parallel(device, args->q.rows, 1, 8.0 * args->q.columns, plan.kernels->attention_delta, &all);
    attention_run(device, &plan);
    return STATUS_OK;
}
