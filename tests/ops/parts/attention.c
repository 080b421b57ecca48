// Attention: shape M (queries), heads, key heads, head size, layout, window.
#include "tests/ops/parts/attention.h"

#include <math.h>
#include <string.h>

enum { Q, K, V, OUT, LSE };
enum { REFERENCE_KEYS = 1024 };
enum { QUERY_START, QUERY_POSITION, KEY_START, KEY_ROW, GROUP };

static int layout_sequences(int layout, int queries) {
    switch (layout) {
    case LAYOUT_ONE:
    case LAYOUT_FULL:
    case LAYOUT_GROUPS_LONG:
        return 1;
    case LAYOUT_WINDOWS:
        return (queries + 15) / 16;
    default:
        return 3;
    }
}

// Three sequences with the prompt's keys in common: each sees `prefix` shared rows, then its own.
static void layout_shared(problem_t *p, int queries, int prefix) {
    int32_t *row = p->array[KEY_ROW].value;
    int at = 0;
    for (int s = 0; s < 3; s++) {
        int first = queries * s / 3, last = queries * (s + 1) / 3;
        bool owner = s == 0; // the first sequence also computes the prefix, as queries of its own
        p->array[QUERY_START].value[s] = first;
        p->array[QUERY_POSITION].value[s] = owner ? 0 : prefix;
        p->array[KEY_START].value[s] = at;
        for (int j = 0; j < (owner ? 0 : prefix); j++) row[at++] = j;
        for (int j = first; j < last; j++) row[at++] = j;
    }
    p->array[QUERY_START].value[3] = queries;
    p->array[KEY_START].value[3] = at;
}

// Keys that lie apart.
static bool layout_apart(int layout) {
    return layout == LAYOUT_PAGED || layout == LAYOUT_GROUPS_PAGED;
}

// The image group of position j of a sequence.
static int layout_group(int layout, int j, int prefix) {
    switch (layout) {
    case LAYOUT_GROUPS_LONG: // 20 .. 109 straddles chunks of 64 keys
        return j >= 3 && j < 20 ? 0 : j >= 20 && j < 110 ? 1 : j == 115 ? 2 : -1;
    case LAYOUT_GROUPS_SHARED:
        return j >= 2 && j < prefix - 1 ? 4 : j > prefix && j < prefix + 13 ? 0 : -1;
    default:
        return j % 23 >= 5 && j % 23 < 17 ? j / 23 : -1;
    }
}

static void layout_groups(problem_t *p, int layout, int sequences, int prefix) {
    const int32_t *start = p->array[KEY_START].value;
    for (int s = 0; s < sequences; s++)
        for (int j = start[s]; j < start[s + 1]; j++)
            p->array[GROUP].value[j] = layout_group(layout, j - start[s], prefix);
}

static void layout_fill(problem_t *p, int layout, int queries) {
    int sequences = layout_sequences(layout, queries);
    for (int s = 0; s <= sequences; s++) {
        int at = layout == LAYOUT_WINDOWS ? (s * 16 < queries ? s * 16 : queries) : queries * s / sequences;
        p->array[QUERY_START].value[s] = at;
        p->array[KEY_START].value[s] = at;
    }
    // Pages: key j of the whole lies in row j * 5 mod the number of rows (which is prime to 5).
    for (int j = 0; j < queries; j++) p->array[KEY_ROW].value[j] = layout_apart(layout) ? j * 5 % p->tensor[K].rows : j;
    for (int s = 0; s < sequences; s++) p->array[QUERY_POSITION].value[s] = 0;
}

static status_t attention_setup(problem_t *p) {
    int queries = p->shape[0], heads = p->shape[1], kv_heads = p->shape[2], size = p->shape[3], layout = p->shape[4];
    int rows = layout_apart(layout) ? queries * 2 + 1 : queries;
    while (rows % 5 == 0) rows++;
    int sequences = layout_sequences(layout, queries);
    TRY(problem_tensor(p, "q", TENSOR_INPUT, false, queries, heads * size, 6, 2.0f));
    TRY(problem_tensor(p, "k", TENSOR_INPUT, false, rows, kv_heads * size, 3, 2.0f));
    TRY(problem_tensor(p, "v", TENSOR_INPUT, false, rows, kv_heads * size, 0, 1.0f));
    TRY(problem_tensor(p, "out", TENSOR_OUTPUT, false, queries, heads * size, 1, 1.0f));
    TRY(problem_tensor(p, "lse", TENSOR_SAVED, false, queries, heads, 0, 0.0f));
    TRY(problem_array(p, false, sequences + 1, 1, 0, 1));
    TRY(problem_array(p, false, sequences, 1, 0, 1));
    TRY(problem_array(p, false, sequences + 1, 1, 0, 1));
    TRY(problem_array(p, false, queries * 3, 1, 0, 1));
    TRY(problem_array(p, false, queries * 3, 1, 0, 1));
    if (layout == LAYOUT_SHARED || layout == LAYOUT_GROUPS_SHARED)
        layout_shared(p, queries, queries / 4);
    else
        layout_fill(p, layout, queries);
    if (layout >= LAYOUT_GROUPS) layout_groups(p, layout, sequences, queries / 4);
    return STATUS_OK;
}

static attention_args_t attention_args(problem_t *p) {
    int layout = p->shape[4];
    return (attention_args_t){
        .q = problem_matrix(p, Q),
        .k = problem_matrix(p, K),
        .v = problem_matrix(p, V),
        .heads = p->shape[1],
        .kv_heads = p->shape[2],
        .head_dim = p->shape[3],
        .scale = 1.0f / sqrtf((float)p->shape[3]),
        .mask = {.sequences = layout_sequences(layout, p->shape[0]),
                 .query_start = p->array[QUERY_START].value,
                 .query_position = p->array[QUERY_POSITION].value,
                 .key_start = p->array[KEY_START].value,
                 .key_row = p->array[KEY_ROW].value,
                 .causal = layout != LAYOUT_WINDOWS && layout != LAYOUT_FULL && layout != LAYOUT_IMAGES,
                 .window = p->shape[5],
                 .group = layout >= LAYOUT_GROUPS ? p->array[GROUP].value : NULL},
        .out = problem_matrix(p, OUT),
        .lse = p->tensor[LSE].value};
}
static status_t attention_run(problem_t *p, device_t *device) {
    attention_args_t args = attention_args(p);
    return device->table->attention(device, &args);
}
static status_t attention_run_backward(problem_t *p, device_t *device) {
    attention_args_t args = attention_args(p);
    attention_gradients_t gradients = {.dout = problem_gradient(p, OUT),
                                       .dq = problem_gradient(p, Q),
                                       .dk = problem_gradient(p, K),
                                       .dv = problem_gradient(p, V)};
    return device->table->attention_backward(device, &args, &gradients);
}

bool reference_sees(const attention_mask_t *mask, int sequence, int query, int key) {
    const int32_t *group = mask->group ? mask->group + mask->key_start[sequence] : NULL;
    int keys = mask->key_start[sequence + 1] - mask->key_start[sequence];
    bool together = group && query < keys && group[query] >= 0 && group[query] == group[key];
    bool near = mask->window <= 0 || key > query - mask->window;
    return near && (!mask->causal || key <= query || together);
}

static void reference_query(const problem_t *p, double *const *value, const attention_mask_t *mask, int s, int row,
                            int head) {
    int heads = p->shape[1], kv_heads = p->shape[2], size = p->shape[3], kv = head / (heads / kv_heads);
    int position = mask->query_position[s] + row - mask->query_start[s];
    int first = mask->key_start[s], keys = mask->key_start[s + 1] - first;
    const double *q = value[Q] + ((int64_t)row * heads + head) * size;
    double *out = value[OUT] + ((int64_t)row * heads + head) * size, scale = (double)(1.0f / sqrtf((float)size));
    double largest = -INFINITY, sum = 0, score[REFERENCE_KEYS];
    for (int j = 0; j < keys; j++) {
        const double *k = value[K] + ((int64_t)mask->key_row[first + j] * kv_heads + kv) * size;
        score[j] = 0;
        for (int d = 0; d < size; d++) score[j] += q[d] * k[d];
        score[j] *= scale;
        if (reference_sees(mask, s, position, j) && score[j] > largest) largest = score[j];
    }
    for (int d = 0; d < size; d++) out[d] = 0;
    for (int j = 0; j < keys; j++) {
        if (!reference_sees(mask, s, position, j)) continue;
        const double *v = value[V] + ((int64_t)mask->key_row[first + j] * kv_heads + kv) * size;
        double weight = exp(score[j] - largest);
        sum += weight;
        for (int d = 0; d < size; d++) out[d] += weight * v[d];
    }
    for (int d = 0; d < size && sum > 0; d++) out[d] /= sum;
    value[LSE][(int64_t)row * heads + head] = largest + log(sum);
}

static void attention_reference(const problem_t *p, double *const *value) {
    attention_mask_t mask = attention_args((problem_t *)(uintptr_t)p).mask;
    for (int s = 0; s < mask.sequences; s++)
        for (int row = mask.query_start[s]; row < mask.query_start[s + 1]; row++)
            for (int head = 0; head < p->shape[1]; head++) reference_query(p, value, &mask, s, row, head);
}

// Two products of head_dim for a pair that is seen; five in the backward.
static double attention_flops(const int *shape, bool backward) {
    double queries = shape[0], pairs = queries * (queries + 1) / 2, sequence = queries / 3;
    if (shape[4] == LAYOUT_WINDOWS) pairs = queries * 16;
    if (shape[4] == LAYOUT_FULL) pairs = queries * queries;
    if (shape[4] == LAYOUT_IMAGES) pairs = queries * queries / 3;
    if (shape[4] == LAYOUT_PACKED || shape[4] == LAYOUT_PAGED) pairs = 3 * sequence * (sequence + 1) / 2;
    return pairs * shape[1] * shape[3] * (backward ? 10 : 4);
}
// The backward reads the output as it was kept; the tensor cores take p and ds in bf16.
static int attention_inexact(const int *shape) {
    (void)shape;
    return HALF_BACKWARD | HALF_TENSOR;
}
const op_t op_attention = {.name = "attention",
                           .inexact = attention_inexact,
                           .backward = "attention_backward",
                           .setup = attention_setup,
                           .run = attention_run,
                           .run_backward = attention_run_backward,
                           .reference = attention_reference,
                           .tolerance = 3e-6,
                           .flops = attention_flops};
