// Attention: how the work is cut into pieces and shared over threads. The inner loops are in attention_impl.h.
#include "kernels/check.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/ops.h"

#include <string.h>

// Below this many FMAs a thread more does not pay.
#define ATTENTION_SHARE_COST 100000.0

// Which pieces the work is cut into. All cuts give the same bits: they split outputs only.
typedef enum attention_cut {
    CUT_FORWARD, // tiles of rows
    CUT_SETS,    // backward, all gradients: sets of sequences that share key rows
    CUT_QUERIES, // backward, dq alone: tiles of rows
    CUT_KEYS,    // backward, dk and dv alone: chunks of keys, or sets where rows are shared
} attention_cut_t;

// Pieces in a fixed order, each with a cost; a share takes the pieces that begin in its part of the total cost.
typedef struct attention_plan {
    const attention_args_t *args;
    const attention_gradients_t *gradients;
    const cpu_kernels_t *kernels;
    const float *delta;
    const int32_t *set; // backward: [sequences] first sequence of the set that shares key rows with this one
    char *scratch;
    size_t scratch_bytes;
    attention_cut_t cut;
    double total, largest; // cost of all pieces, and of the largest
    int shares;
} attention_plan_t;

// One thread's walk over all pieces. With share < 0 it only adds up their cost.
typedef struct attention_walk {
    const attention_plan_t *plan;
    void *scratch;
    int share;
    double done, largest;
} attention_walk_t;

static int plan_rows(const attention_plan_t *plan, int sequence) {
    const attention_args_t *args = plan->args;
    return (args->mask.query_start[sequence + 1] - args->mask.query_start[sequence]) * (args->heads / args->kv_heads);
}

static int plan_keys(const attention_plan_t *plan, int sequence) {
    return plan->args->mask.key_start[sequence + 1] - plan->args->mask.key_start[sequence];
}

// Rough FMAs of a piece: its rows times the keys of its range that its last row can see.
static double piece_cost(const attention_piece_t *piece) {
    const attention_args_t *args = piece->args;
    const attention_mask_t *mask = &args->mask;
    int last = (piece->first_row + piece->rows - 1) / (args->heads / args->kv_heads);
    double keys = piece->keys, position = mask->query_position[piece->sequence] + last;
    if (mask->causal && !mask->group && piece->first_key + keys > position + 1) keys = position + 1 - piece->first_key;
    if (mask->window > 0 && !mask->group && keys > mask->window + piece->rows) keys = mask->window + piece->rows;
    if (keys < 0) keys = 0;
    double products = 2 * piece->want_q + 3 * piece->want_kv + 2 * (piece->want_q != piece->want_kv);
    if (!piece->gradients) products = 2;
    return (double)piece->rows * (keys + ATTENTION_BLOCK) * (args->head_dim + ATTENTION_BLOCK) * products;
}

static bool walk_mine(const attention_walk_t *walk) {
    if (walk->share < 0) return false;
    int owner = (int)(walk->done / walk->plan->total * walk->plan->shares);
    if (owner >= walk->plan->shares) owner = walk->plan->shares - 1;
    return owner == walk->share;
}

static void walk_count(attention_walk_t *walk, double cost) {
    walk->done += cost;
    if (cost > walk->largest) walk->largest = cost;
}

static void walk_piece(attention_walk_t *walk, const attention_piece_t *piece) {
    if (walk_mine(walk)) {
        if (piece->gradients)
            walk->plan->kernels->attention_backward(piece, walk->scratch);
        else
            walk->plan->kernels->attention(piece, walk->scratch);
    }
    walk_count(walk, piece_cost(piece));
}

static attention_piece_t walk_whole(const attention_plan_t *plan, int sequence, int head) {
    return (attention_piece_t){.args = plan->args,
                               .sequence = sequence,
                               .kv_head = head,
                               .rows = plan_rows(plan, sequence),
                               .gradients = plan->gradients,
                               .delta = plan->delta,
                               .keys = plan_keys(plan, sequence),
                               .want_q = plan->cut == CUT_SETS || plan->cut == CUT_QUERIES,
                               .want_kv = plan->cut == CUT_SETS || plan->cut == CUT_KEYS};
}

static void walk_tiles(attention_walk_t *walk, int sequence, int head) {
    attention_piece_t piece = walk_whole(walk->plan, sequence, head);
    int rows = piece.rows;
    for (piece.first_row = 0; piece.first_row < rows; piece.first_row += ATTENTION_ROWS) {
        piece.rows = rows - piece.first_row < ATTENTION_ROWS ? rows - piece.first_row : ATTENTION_ROWS;
        walk_piece(walk, &piece);
    }
}

static void walk_chunks(attention_walk_t *walk, int sequence, int head) {
    attention_piece_t piece = walk_whole(walk->plan, sequence, head);
    int keys = piece.keys;
    for (piece.first_key = 0; piece.first_key < keys; piece.first_key += ATTENTION_KEYS) {
        piece.keys = keys - piece.first_key < ATTENTION_KEYS ? keys - piece.first_key : ATTENTION_KEYS;
        walk_piece(walk, &piece);
    }
}

// The sequences of a set go one after the other on one thread: they add to common rows in order.
static void walk_set(attention_walk_t *walk, int first, int last, int head) {
    bool mine = walk_mine(walk);
    double cost = 0;
    for (int s = first; s < last; s++) {
        attention_piece_t piece = walk_whole(walk->plan, s, head);
        if (mine && piece.rows) walk->plan->kernels->attention_backward(&piece, walk->scratch);
        cost += piece_cost(&piece);
    }
    walk_count(walk, cost);
}

static void walk_all(attention_walk_t *walk) {
    const attention_plan_t *plan = walk->plan;
    int sequences = plan->args->mask.sequences;
    bool tiles = plan->cut == CUT_FORWARD || plan->cut == CUT_QUERIES;
    for (int first = 0, last; first < sequences; first = last) {
        last = first + 1;
        while (!tiles && last < sequences && plan->set[last] == plan->set[first]) last++;
        for (int head = 0; head < plan->args->kv_heads; head++) {
            if (tiles)
                walk_tiles(walk, first, head);
            else if (plan->cut == CUT_KEYS && last == first + 1)
                walk_chunks(walk, first, head);
            else
                walk_set(walk, first, last, head);
        }
    }
}

static void attention_share(void *context, int task, int worker) {
    const attention_plan_t *plan = context;
    attention_walk_t walk = {
        .plan = plan, .scratch = plan->scratch + (size_t)worker * plan->scratch_bytes, .share = task};
    walk_all(&walk);
}

static void attention_measure(device_t *device, attention_plan_t *plan, attention_cut_t cut) {
    plan->cut = cut;
    attention_walk_t walk = {.plan = plan, .share = -1};
    walk_all(&walk);
    plan->total = walk.done;
    plan->largest = walk.largest;
    plan->shares = threads_count(device->threads);
    double wanted = plan->total / ATTENTION_SHARE_COST;
    if (wanted < plan->shares) plan->shares = wanted < 1 ? 1 : (int)wanted;
}

static void attention_run(device_t *device, attention_plan_t *plan, attention_cut_t cut) {
    attention_measure(device, plan, cut);
    if (plan->total > 0) threads_run(device->threads, plan->shares, attention_share, plan);
}

// Whole sets are cheapest (5 products); where a few of them would leave threads idle, dq and dk, dv go by themselves
// in smaller pieces (7 products).
static void attention_run_backward(device_t *device, attention_plan_t *plan) {
    attention_measure(device, plan, CUT_SETS);
    if (plan->shares > 1 && plan->largest * plan->shares > 1.5 * plan->total) {
        attention_run(device, plan, CUT_QUERIES);
        attention_run(device, plan, CUT_KEYS);
    } else if (plan->total > 0)
        threads_run(device->threads, plan->shares, attention_share, plan);
}

// Rows of q that belong to no sequence get zeros.
static void attention_clear(const attention_args_t *args, int first, int last) {
    for (int64_t row = first; row < last; row++) {
        size_t size = dtype_bytes(args->out.dtype);
        memset((char *)args->out.data + (size_t)(row * args->out.stride) * size, 0, (size_t)args->out.columns * size);
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
    attention_run(device, &plan, CUT_FORWARD);
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
    attention_piece_t all = {.args = args, .gradients = gradients, .delta = delta_values};
    cpu_parallel(device, args->q.rows, 1, 8.0 * args->q.columns, plan.kernels->attention_delta, &all);
    attention_run_backward(device, &plan);
    return STATUS_OK;
}
