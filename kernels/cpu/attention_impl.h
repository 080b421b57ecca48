// Attention. Written once over v16_t; kernels/device.h fixes the order of every sum.
//
// A tile of up to 64 rows (queries and the heads that share a key head) meets the keys chunk by chunk, 4 blocks of 16
// positions. The keys of a block are turned to [head_dim][16], so a score is a chain of FMAs over head_dim in one lane
// and 16 keys go side by side; p V runs with lanes over head_dim and keys in order. How many rows or blocks share
// registers is a matter of speed: each output's chain is the same however they are grouped.
#include "kernels/cpu/transpose_impl.h"
#include "kernels/cpu/vector_bf16.h"

#include <float.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(VECTOR_AVX512)
enum { SCORE_ROWS = 4, SCORE_BLOCKS = 4, SCORE_TALL = 8, UPDATE_ROWS = 4, UPDATE_VECTORS = 4 };
#else
enum { SCORE_ROWS = 4, SCORE_BLOCKS = 1, SCORE_TALL = 4, UPDATE_ROWS = 2, UPDATE_VECTORS = 2 };
#endif

enum { ALL_KEYS = 0xffff };

// The keys of one chunk and what each row of the tile sees of them.
typedef struct attention_chunk {
    int start, keys;                                    // position of the first key, number of keys (1 .. 64)
    int blocks;                                         // (keys + 15) / 16
    const float *k[ATTENTION_KEYS], *v[ATTENTION_KEYS]; // the rows of this key head
    uint16_t seen[ATTENTION_ROWS][ATTENTION_BLOCKS];    // bit j: the row sees key j of the block
    float score[ATTENTION_ROWS][ATTENTION_KEYS];        // then p
    float maximum[ATTENTION_BLOCKS][ATTENTION_ROWS];    // forward: the running maximum after each block
    float rescale[ATTENTION_BLOCKS][ATTENTION_ROWS];    // forward
    float dscore[ATTENTION_ROWS][ATTENTION_KEYS];       // backward
} attention_chunk_t;

// The rows of a tile.
typedef struct attention_rows {
    int count;
    int position[ATTENTION_ROWS], head[ATTENTION_ROWS];
    int64_t row[ATTENTION_ROWS]; // of q
    const float *q[ATTENTION_ROWS];
    float maximum[ATTENTION_ROWS];
    float lanes[ATTENTION_ROWS][LANES]; // the running sum of p, by lane
} attention_rows_t;

// Where the rows of bf16 matrices are widened: [ATTENTION_ROWS] of q, [ATTENTION_KEYS] of k and of v, head_dim each.
typedef struct attention_wide {
    float *q, *k, *v;
} attention_wide_t;

INLINE int attention_group(const attention_args_t *args) {
    return args->heads / args->kv_heads;
}

// ---- masks ----

// Bits of the keys start .. start + 15 that lie in [low, high).
static inline uint16_t attention_range_bits(int start, int low, int high) {
    int first = low - start, last = high - start;
    if (first < 0) first = 0;
    if (last > ATTENTION_BLOCK) last = ATTENTION_BLOCK;
    if (first >= last) return 0;
    return (uint16_t)((1u << last) - (1u << first));
}

// The keys [low, high) that a query at this position sees before image groups are looked at. Groups add keys from
// `high` on, never below `low`.
static inline void attention_range(const attention_mask_t *mask, int position, int keys, int *low, int *high) {
    *low = mask->window > 0 && position >= mask->window ? position - mask->window + 1 : 0;
    *high = mask->causal && position < keys ? position + 1 : keys;
}

static uint16_t attention_seen(const attention_mask_t *mask, int sequence, int position, int start) {
    int first_key = mask->key_start[sequence], keys = mask->key_start[sequence + 1] - first_key, low, high;
    attention_range(mask, position, keys, &low, &high);
    uint16_t bits = attention_range_bits(start, low, high);
    if (!mask->group || position >= keys) return bits;
    int own = mask->group[first_key + position];
    if (own < 0) return bits;
    int last = keys - start < ATTENTION_BLOCK ? keys - start : ATTENTION_BLOCK;
    uint16_t together = 0;
    for (int j = 0; j < last; j++) together |= (uint16_t)((mask->group[first_key + start + j] == own) << j);
    return bits | (together & attention_range_bits(start, low, keys));
}

// Fills `seen`; returns whether any row sees any key of the chunk.
static bool attention_look(const attention_piece_t *piece, const attention_rows_t *rows, attention_chunk_t *chunk) {
    const attention_mask_t *mask = &piece->args->mask;
    unsigned any = 0;
    int keys = mask->key_start[piece->sequence + 1] - mask->key_start[piece->sequence], low, high;
    attention_range(mask, rows->position[rows->count - 1], keys, &low, &high);
    bool all = low <= chunk->start; // the last row's range begins last, the first row's ends first
    attention_range(mask, rows->position[0], keys, &low, &high);
    if (all && high >= chunk->start + chunk->keys) {
        for (int b = 0; b < chunk->blocks; b++) {
            int left = chunk->keys - b * ATTENTION_BLOCK;
            uint16_t bits = (uint16_t)((1u << (left < ATTENTION_BLOCK ? left : ATTENTION_BLOCK)) - 1u);
            for (int r = 0; r < rows->count; r++) chunk->seen[r][b] = bits;
        }
        return true;
    }
    for (int r = 0; r < rows->count; r++) {
        if (r && rows->position[r] == rows->position[r - 1]) {
            memcpy(chunk->seen[r], chunk->seen[r - 1], sizeof(chunk->seen[r]));
            continue;
        }
        for (int b = 0; b < chunk->blocks; b++) {
            chunk->seen[r][b] =
                attention_seen(mask, piece->sequence, rows->position[r], chunk->start + b * ATTENTION_BLOCK);
            any |= chunk->seen[r][b];
        }
    }
    return any != 0;
}

// The keys of a sequence that rows at positions first .. last can see, as a range; whole chunks outside are skipped.
static void attention_reach(const attention_mask_t *mask, int sequence, int first, int last, int *low, int *high) {
    int keys = mask->key_start[sequence + 1] - mask->key_start[sequence], unused;
    attention_range(mask, first, keys, low, &unused);
    attention_range(mask, last, keys, &unused, high);
    const int32_t *group = mask->group ? mask->group + mask->key_start[sequence] : NULL;
    for (int position = first; group && position <= last && position < keys; position++)
        if (group[position] >= 0) *high = keys;
}

static attention_wide_t attention_wide(const attention_args_t *args, float *memory) {
    attention_wide_t wide = {.q = memory};
    wide.k = wide.q + ATTENTION_ROWS * args->head_dim;
    wide.v = wide.k + ATTENTION_KEYS * args->head_dim;
    return wide;
}

static void attention_fill_rows(const attention_piece_t *piece, int first_row, int count, const attention_wide_t *wide,
                                attention_rows_t *rows) {
    const attention_args_t *args = piece->args;
    int group = attention_group(args);
    const attention_mask_t *mask = &args->mask;
    int query = first_row / group, shared = first_row % group;
    rows->count = count;
    for (int r = 0; r < count; r++) {
        int head = piece->kv_head * group + shared;
        int64_t row = mask->query_start[piece->sequence] + query;
        rows->position[r] = mask->query_position[piece->sequence] + query;
        rows->head[r] = head;
        rows->row[r] = row;
        row_t q = row_from(row_of(&args->q, row), (int64_t)head * args->head_dim);
        rows->q[r] = row_floats(q, args->head_dim, wide->q + r * args->head_dim);
        if (++shared < group) continue;
        shared = 0;
        query++;
    }
}

static void attention_fill_chunk(const attention_piece_t *piece, int start, attention_chunk_t *chunk) {
    const attention_args_t *args = piece->args;
    const attention_mask_t *mask = &args->mask;
    int first_key = mask->key_start[piece->sequence];
    int left = mask->key_start[piece->sequence + 1] - first_key - start;
    int64_t column = (int64_t)piece->kv_head * args->head_dim;
    chunk->start = start;
    chunk->keys = left < ATTENTION_KEYS ? left : ATTENTION_KEYS;
    chunk->blocks = (chunk->keys + ATTENTION_BLOCK - 1) / ATTENTION_BLOCK;
    for (int j = 0; j < chunk->keys; j++) {
        int64_t row = mask->key_row[first_key + start + j];
        chunk->k[j] = row_from(row_of(&args->k, row), column).at;
        chunk->v[j] = row_from(row_of(&args->v, row), column).at;
    }
}

// Widens the keys and values of a chunk that somebody sees; rows of f32 are read where they lie.
static void attention_widen(const attention_args_t *args, const attention_wide_t *wide, attention_chunk_t *chunk) {
    bool k = args->k.dtype == DTYPE_BF16, v = args->v.dtype == DTYPE_BF16;
    for (int j = 0; j < chunk->keys && (k || v); j++) {
        chunk->k[j] = row_floats((row_t){chunk->k[j], k}, args->head_dim, wide->k + j * args->head_dim);
        chunk->v[j] = row_floats((row_t){chunk->v[j], v}, args->head_dim, wide->v + j * args->head_dim);
    }
}

// Turns the rows of a chunk, block by block, to [head_dim][16]; lanes beyond the last key become 0.
static void attention_turn(const float *const *row, const attention_chunk_t *chunk, int head_dim, float *turned) {
    for (int b = 0; b < chunk->blocks; b++) {
        int left = chunk->keys - b * ATTENTION_BLOCK;
        transpose_block(row + b * ATTENTION_BLOCK, left < ATTENTION_BLOCK ? left : ATTENTION_BLOCK, head_dim,
                        turned + (size_t)b * head_dim * ATTENTION_BLOCK);
    }
}

// ---- scores: out[r][b*16 + j] = a_r . key_j, in order of d ----

INLINE void score_kernel(const float *const *a, const float *turned, int head_dim, float (*out)[ATTENTION_KEYS],
                         const int rows, const int blocks) {
    v16_t sum[8][4];
    int64_t block_stride = (int64_t)head_dim * ATTENTION_BLOCK;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) sum[r][b] = v16_set(0.0f);
    for (int d = 0; d < head_dim; d++) {
        v16_t key[4];
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) key[b] = v16_load(turned + b * block_stride + d * ATTENTION_BLOCK);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16_t x = v16_set(a[r][d]);
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++) sum[r][b] = v16_fma(x, key[b], sum[r][b]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) v16_store(out[r] + b * ATTENTION_BLOCK, sum[r][b]);
}

// Blocks first .. last - 1 of the chunk for `rows` rows (8, 4 or 1; 8 rows take block by block).
INLINE void score_rows(const float *const *a, const float *turned, int head_dim, float (*out)[ATTENTION_KEYS],
                       const int rows, int first, int last) {
    for (int b = first; b < last;) {
        const float *block = turned + (size_t)b * head_dim * ATTENTION_BLOCK;
        float(*to)[ATTENTION_KEYS] = (float(*)[ATTENTION_KEYS])(out[0] + b * ATTENTION_BLOCK);
        if (SCORE_BLOCKS >= 4 && rows <= SCORE_ROWS && last - b >= 4) {
            score_kernel(a, block, head_dim, to, rows, 4);
            b += 4;
        } else if (SCORE_BLOCKS >= 2 && rows <= SCORE_ROWS && last - b >= 2) {
            score_kernel(a, block, head_dim, to, rows, 2);
            b += 2;
        } else {
            score_kernel(a, block, head_dim, to, rows, 1);
            b += 1;
        }
    }
}

// Scores of all rows against the blocks that anyone of a group of rows sees; other scores are not written.
static void attention_scores(const float *const *a, int count, const float *turned, int head_dim,
                             const attention_chunk_t *chunk, float (*out)[ATTENTION_KEYS]) {
    for (int r = 0; r < count;) {
        int rows = chunk->blocks == 1 && count - r >= SCORE_TALL ? SCORE_TALL
                   : count - r >= SCORE_ROWS                     ? SCORE_ROWS
                                                                 : 1;
        unsigned any[ATTENTION_BLOCKS] = {0};
        for (int i = r; i < r + rows; i++)
            for (int b = 0; b < chunk->blocks; b++) any[b] |= chunk->seen[i][b];
        int first = 0, last = chunk->blocks;
        while (first < last && !any[first]) first++;
        while (last > first && !any[last - 1]) last--;
        if (rows == SCORE_ROWS)
            score_rows(a + r, turned, head_dim, out + r, SCORE_ROWS, first, last);
        else if (rows == SCORE_TALL)
            score_rows(a + r, turned, head_dim, out + r, SCORE_TALL, first, last);
        else
            score_rows(a + r, turned, head_dim, out + r, 1, first, last);
        r += rows;
    }
}

// ---- updates: c_r = c_r * rescale + sum over k of a(r, k) b_k, in order of k ----

typedef struct attention_update {
    float *const *c;
    const float *a; // a(r, k) = a[r * row_step + k * key_step]
    int64_t row_step, key_step;
    const float *const *b;
    int keys, columns;
    const float *rescale; // [ATTENTION_BLOCKS][ATTENTION_ROWS], applied before a block of 16 k, or NULL
    const uint16_t *seen; // [rows][ATTENTION_BLOCKS]: a(r, k) that are left out, or NULL: none is
} attention_update_t;

// What a step needs, in registers: rows of a, and where b's columns begin.
typedef struct update_place {
    const float *a[4];
    int64_t key_step;
    const float *const *b;
    int column, width;
} update_place_t;

// One step: rows x vectors chains advance by key k. `bits` picks rows when `some` is set.
INLINE void update_step(const update_place_t *at, const int rows, const int vectors, v16_t (*sum)[4], int64_t k,
                        const bool some, unsigned bits) {
    const float *from = at->b[k] + at->column;
    v16_t b[4];
#pragma GCC unroll 4
    for (int c = 0; c < vectors; c++) b[c] = v16_load_up_to(from + c * LANES, at->width);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        if (some && !(bits >> r & 1u)) continue;
        v16_t a = v16_set(at->a[r][k * at->key_step]);
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) sum[r][c] = v16_fma(a, b[c], sum[r][c]);
    }
}

// The keys first .. last - 1 of a block when some rows see only part of it.
INLINE void update_partial(const update_place_t *at, const uint16_t *seen, const int rows, const int vectors,
                           v16_t (*sum)[4], int first, int last) {
    for (int k = first; k < last; k++) {
        unsigned bits = 0;
        for (int r = 0; r < rows; r++) bits |= (seen[r * ATTENTION_BLOCKS] >> (k - first) & 1u) << r;
        if (bits == (1u << rows) - 1u)
            update_step(at, rows, vectors, sum, k, false, 0);
        else if (bits)
            update_step(at, rows, vectors, sum, k, true, bits);
    }
}

// `width` is LANES but for the tail of the columns, which comes as one vector.
INLINE void update_kernel(const attention_update_t *u, int row, int column, int width, const int rows,
                          const int vectors) {
    v16_t sum[4][4];
    update_place_t at = {.key_step = u->key_step, .b = u->b, .column = column, .width = width};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        at.a[r] = u->a + (row + r) * u->row_step;
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) sum[r][c] = v16_load_up_to(u->c[row + r] + column + c * LANES, width);
    }
    for (int block = 0; block * ATTENTION_BLOCK < u->keys; block++) {
        int first = block * ATTENTION_BLOCK;
        int last = u->keys < first + ATTENTION_BLOCK ? u->keys : first + ATTENTION_BLOCK;
        unsigned any = ALL_KEYS, all = ALL_KEYS, full = (1u << (last - first)) - 1u;
        const uint16_t *seen = u->seen ? u->seen + row * ATTENTION_BLOCKS + block : NULL;
        if (seen) {
            any = 0;
            for (int r = 0; r < rows; r++) {
                any |= seen[r * ATTENTION_BLOCKS];
                all &= seen[r * ATTENTION_BLOCKS];
            }
        }
        if (!any) continue; // a row that sees nothing of the block has no rescaling either
        if (u->rescale) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                v16_t factor = v16_set(u->rescale[block * ATTENTION_ROWS + row + r]);
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++) sum[r][c] = v16_mul(sum[r][c], factor);
            }
        }
        if ((all & full) == full)
            for (int k = first; k < last; k++) update_step(&at, rows, vectors, sum, k, false, 0);
        else
            update_partial(&at, seen, rows, vectors, sum, first, last);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) v16_store_up_to(u->c[row + r] + column + c * LANES, sum[r][c], width);
}

// A slice of columns for all rows: the slice of b stays in the first cache.
INLINE void update_columns(const attention_update_t *u, int count, int column, int width, const int vectors) {
    int row = 0;
    for (; row + UPDATE_ROWS <= count; row += UPDATE_ROWS) update_kernel(u, row, column, width, UPDATE_ROWS, vectors);
    for (; row < count; row++) update_kernel(u, row, column, width, 1, vectors);
}

static void attention_apply(const attention_update_t *u, int count) {
    int column = 0;
    while (column < u->columns) {
        int left = u->columns - column;
        if (UPDATE_VECTORS >= 4 && left >= 4 * LANES) {
            update_columns(u, count, column, LANES, 4);
            column += 4 * LANES;
        } else if (left >= 2 * LANES) {
            update_columns(u, count, column, LANES, 2);
            column += 2 * LANES;
        } else if (left >= LANES) {
            update_columns(u, count, column, LANES, 1);
            column += LANES;
        } else {
            update_columns(u, count, column, left, 1);
            column += left;
        }
    }
}

// ---- forward ----

// The largest score of each row in each block, among the keys it sees; -inf where it sees none.
static void attention_block_maxima(const attention_rows_t *rows, attention_chunk_t *chunk, float scale) {
    v16_t factor = v16_set(scale), lowest = v16_set(-INFINITY);
    for (int b = 0; b < chunk->blocks; b++) {
        float *maximum = chunk->maximum[b];
        for (int r = rows->count; r < ATTENTION_ROWS && r % LANES; r++) maximum[r] = -INFINITY;
        for (int r = 0; r < rows->count; r++) {
            unsigned seen = chunk->seen[r][b];
            maximum[r] = -INFINITY;
            if (!seen) continue;
            float *score = chunk->score[r] + b * ATTENTION_BLOCK;
            v16_t s = v16_mul(v16_load(score), factor);
            v16_store(score, s);
            maximum[r] = v16_largest(seen == ALL_KEYS ? s : v16_select_bits(seen, s, lowest));
        }
    }
}

// From maxima of blocks to running maxima and rescaling factors, 16 rows at a time. Where nothing new is larger the
// factor is exp(0), which is exactly 1; at a row's first block it is exp(-inf) = 0.
static void attention_running_maxima(attention_rows_t *rows, attention_chunk_t *chunk) {
    v16_t bottom = v16_set(-FLT_MAX), zero = v16_set(0.0f);
    for (int r = 0; r < rows->count; r += LANES) {
        v16_t old = v16_load(rows->maximum + r);
        for (int b = 0; b < chunk->blocks; b++) {
            v16_t now = v16_max(old, v16_load(chunk->maximum[b] + r));
            v16_t step = v16_select_less(now, bottom, zero, v16_sub(old, now)); // still -inf: nothing seen so far
            v16_store(chunk->rescale[b] + r, v16_exp(step));
            v16_store(chunk->maximum[b] + r, now);
            old = now;
        }
        v16_store(rows->maximum + r, old);
    }
}

// Turns the scores of a chunk into p and moves the running maximum and sum of each row, block by block.
static void attention_softmax(attention_rows_t *rows, attention_chunk_t *chunk, float scale) {
    v16_t zero = v16_set(0.0f);
    attention_block_maxima(rows, chunk, scale);
    attention_running_maxima(rows, chunk);
    for (int r = 0; r < rows->count; r++) {
        v16_t sum = v16_load(rows->lanes[r]);
        for (int b = 0; b < chunk->blocks; b++) {
            unsigned seen = chunk->seen[r][b];
            if (!seen) continue;
            float *score = chunk->score[r] + b * ATTENTION_BLOCK;
            v16_t p = v16_exp(v16_sub(v16_load(score), v16_set(chunk->maximum[b][r])));
            if (seen != ALL_KEYS) p = v16_select_bits(seen, p, zero);
            sum = v16_fma(sum, v16_set(chunk->rescale[b][r]), p);
            v16_store(score, p);
        }
        v16_store(rows->lanes[r], sum);
    }
}

// The natural logarithm of a positive normal number, to double precision's first 11 digits: x = m 2^e with m in
// [sqrt 1/2, sqrt 2), ln m = 2 artanh((m - 1) / (m + 1)) by its series. A C library's log may differ between machines.
static inline float attention_log(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    int exponent = (int)((bits - 0x3f3504f3u) & 0xff800000u) >> 23;
    bits -= (uint32_t)exponent << 23;
    float mantissa;
    memcpy(&mantissa, &bits, sizeof(mantissa));
    double z = ((double)mantissa - 1.0) / ((double)mantissa + 1.0), s = z * z, series = 1.0 / 13;
    series = series * s + 1.0 / 11;
    series = series * s + 1.0 / 9;
    series = series * s + 1.0 / 7;
    series = series * s + 1.0 / 5;
    series = series * s + 1.0 / 3;
    return (float)((double)exponent * 0.69314718055994531 + 2.0 * (z + z * s * series));
}

// out = accumulated / sum; rows that saw no key give zeros. The added zero turns -0 into +0: whether a sum of zeros
// is -0 depends on steps that hidden keys skip.
static void attention_finish(const attention_piece_t *piece, const attention_rows_t *rows, float *const *accumulated) {
    const attention_args_t *args = piece->args;
    int size = args->head_dim;
    float sum[ATTENTION_ROWS], logarithm[ATTENTION_ROWS];
    for (int r = 0; r < rows->count; r++) sum[r] = v16_sum(v16_load(rows->lanes[r]));
    if (args->lse)
        for (int r = 0; r < rows->count; r++) logarithm[r] = attention_log(sum[r]);
    for (int r = 0; r < rows->count; r++) {
        row_t out = row_from(row_of(&args->out, rows->row[r]), (int64_t)rows->head[r] * size);
        bool blind = rows->maximum[r] == -INFINITY && sum[r] == 0.0f;
        v16_t divisor = v16_set(blind ? 1.0f : sum[r]), zero = v16_set(0.0f);
        for (int d = 0; d < size; d += LANES) {
            int n = size - d < LANES ? size - d : LANES;
            row_put(out, d, v16_add(v16_div(v16_load(accumulated[r] + d), divisor), zero), n);
        }
        if (args->lse)
            args->lse[rows->row[r] * args->heads + rows->head[r]] = blind ? -INFINITY : rows->maximum[r] + logarithm[r];
    }
}

static void attention_forward_piece(const attention_piece_t *piece, void *scratch) {
    const attention_args_t *args = piece->args;
    int size = args->head_dim, padded = (size + LANES - 1) / LANES * LANES;
    attention_chunk_t *chunk = scratch;
    attention_rows_t *rows = (attention_rows_t *)(chunk + 1);
    float *turned = (float *)(rows + 1), *accumulated = turned + ATTENTION_KEYS * size;
    float *c[ATTENTION_ROWS];
    attention_wide_t wide = attention_wide(args, accumulated + ATTENTION_ROWS * padded);
    attention_fill_rows(piece, piece->first_row, piece->rows, &wide, rows);
    for (int r = 0; r < rows->count; r++) {
        c[r] = accumulated + (size_t)r * padded;
        memset(rows->lanes[r], 0, sizeof(rows->lanes[r]));
    }
    for (int r = 0; r < ATTENTION_ROWS; r++) rows->maximum[r] = -INFINITY;
    memset(accumulated, 0, (size_t)rows->count * padded * sizeof(float));
    int low, high;
    attention_reach(&args->mask, piece->sequence, rows->position[0], rows->position[rows->count - 1], &low, &high);
    for (int start = low / ATTENTION_KEYS * ATTENTION_KEYS; start < high; start += ATTENTION_KEYS) {
        attention_fill_chunk(piece, start, chunk);
        if (!attention_look(piece, rows, chunk)) continue;
        attention_widen(args, &wide, chunk);
        attention_turn(chunk->k, chunk, size, turned);
        attention_scores(rows->q, rows->count, turned, size, chunk, chunk->score);
        attention_softmax(rows, chunk, args->scale);
        attention_update_t update = {.c = c,
                                     .a = chunk->score[0],
                                     .row_step = ATTENTION_KEYS,
                                     .key_step = 1,
                                     .b = chunk->v,
                                     .keys = chunk->keys,
                                     .columns = size,
                                     .rescale = chunk->rescale[0],
                                     .seen = chunk->seen[0]};
        attention_apply(&update, rows->count);
    }
    attention_finish(piece, rows, c);
}

// ---- backward ----

// delta = sum over head_dim, in 16 lanes, of dout * out.
static void attention_delta_rows(void *context, int64_t first, int64_t last, int worker) {
    (void)worker;
    const attention_piece_t *piece = context;
    const attention_args_t *args = piece->args;
    const matrix_t *out_matrix = &args->out, *dout_matrix = &piece->gradients->dout;
    float *delta = (float *)(uintptr_t)piece->delta;
    for (int64_t row = first; row < last; row++)
        for (int head = 0; head < args->heads; head++) {
            int64_t column = (int64_t)head * args->head_dim;
            row_t out = row_from(row_of(out_matrix, row), column);
            const float *dout = (const float *)dout_matrix->data + row * dout_matrix->stride + column;
            v16_t sum = v16_set(0.0f);
            for (int d = 0; d < args->head_dim; d += LANES) {
                int n = args->head_dim - d < LANES ? args->head_dim - d : LANES;
                sum = v16_fma(v16_load_up_to(dout + d, n), row_get(out, d, n), sum);
            }
            delta[row * args->heads + head] = v16_sum(sum);
        }
}

// What the backward of a tile needs beside its rows.
typedef struct attention_back {
    const float *dout[ATTENTION_ROWS];
    float *dq[ATTENTION_ROWS];
    float lse[ATTENTION_ROWS], delta[ATTENTION_ROWS];
    float *dk[ATTENTION_KEYS], *dv[ATTENTION_KEYS];
} attention_back_t;

static void attention_fill_back(const attention_piece_t *piece, const attention_rows_t *rows, attention_back_t *back) {
    const attention_args_t *args = piece->args;
    const matrix_t *dout = &piece->gradients->dout, *dq = &piece->gradients->dq;
    for (int r = 0; r < rows->count; r++) {
        int head = rows->head[r];
        int64_t row = rows->row[r], column = (int64_t)head * args->head_dim;
        back->dout[r] = (const float *)dout->data + row * dout->stride + column;
        back->dq[r] = (float *)dq->data + row * dq->stride + column;
        back->lse[r] = args->lse[row * args->heads + head];
        back->delta[r] = piece->delta[row * args->heads + head];
    }
}

// From scores and dp = dout . v (in dscore) to p and ds = p (dp - delta) scale; 0 where a key is hidden.
static void attention_back_softmax(const attention_back_t *back, int count, attention_chunk_t *chunk, float scale) {
    v16_t factor = v16_set(scale), zero = v16_set(0.0f);
    for (int r = 0; r < count; r++)
        for (int b = 0; b < chunk->blocks; b++) {
            float *score = chunk->score[r] + b * ATTENTION_BLOCK, *dscore = chunk->dscore[r] + b * ATTENTION_BLOCK;
            unsigned seen = chunk->seen[r][b];
            v16_t p = zero, ds = zero;
            if (seen) {
                p = v16_exp(v16_sub(v16_mul(v16_load(score), factor), v16_set(back->lse[r])));
                ds = v16_mul(v16_mul(p, v16_sub(v16_load(dscore), v16_set(back->delta[r]))), factor);
                p = v16_select_bits(seen, p, zero);
                ds = v16_select_bits(seen, ds, zero);
            }
            v16_store(score, p);
            v16_store(dscore, ds);
        }
}

// One tile against one chunk: dq += ds k, dk += ds^T q, dv += p^T dout.
static void attention_back_tile(const attention_piece_t *piece, const attention_rows_t *rows, attention_back_t *back,
                                attention_chunk_t *chunk, const float *turned_k, const float *turned_v) {
    int size = piece->args->head_dim, count = rows->count;
    attention_scores(rows->q, count, turned_k, size, chunk, chunk->score);
    attention_scores(back->dout, count, turned_v, size, chunk, chunk->dscore);
    attention_back_softmax(back, count, chunk, piece->args->scale);
    attention_update_t update = {.c = back->dq,
                                 .a = chunk->dscore[0],
                                 .row_step = ATTENTION_KEYS,
                                 .key_step = 1,
                                 .b = chunk->k,
                                 .keys = chunk->keys,
                                 .columns = size,
                                 .seen = chunk->seen[0]};
    if (piece->want_q) attention_apply(&update, count);
    if (!piece->want_kv) return;
    update.c = back->dk;
    update.row_step = 1;
    update.key_step = ATTENTION_KEYS;
    update.b = rows->q;
    update.keys = count;
    update.seen = NULL;
    attention_apply(&update, chunk->keys);
    update.c = back->dv;
    update.a = chunk->score[0];
    update.b = back->dout;
    attention_apply(&update, chunk->keys);
}

static void attention_fill_key_gradients(const attention_piece_t *piece, const attention_chunk_t *chunk,
                                         attention_back_t *back) {
    const matrix_t *dk = &piece->gradients->dk, *dv = &piece->gradients->dv;
    const attention_mask_t *mask = &piece->args->mask;
    int64_t column = (int64_t)piece->kv_head * piece->args->head_dim;
    for (int j = 0; j < chunk->keys; j++) {
        int64_t row = mask->key_row[mask->key_start[piece->sequence] + chunk->start + j];
        back->dk[j] = (float *)dk->data + row * dk->stride + column;
        back->dv[j] = (float *)dv->data + row * dv->stride + column;
    }
}

// Chunks outside, tiles inside, so that dq adds in order of keys and dk and dv in order of queries.
static void attention_backward_piece(const attention_piece_t *piece, void *scratch) {
    int size = piece->args->head_dim, end = piece->first_row + piece->rows;
    attention_chunk_t *chunk = scratch;
    attention_rows_t *rows = (attention_rows_t *)(chunk + 1);
    attention_back_t *back = (attention_back_t *)(rows + 1);
    float *turned_k = (float *)(back + 1), *turned_v = turned_k + ATTENTION_KEYS * size;
    attention_wide_t wide = attention_wide(piece->args, turned_v + ATTENTION_KEYS * size);
    for (int start = piece->first_key; start < piece->first_key + piece->keys; start += ATTENTION_KEYS) {
        attention_fill_chunk(piece, start, chunk);
        attention_fill_key_gradients(piece, chunk, back);
        bool turned = false;
        for (int first = piece->first_row; first < end; first += ATTENTION_ROWS) {
            attention_fill_rows(piece, first, end - first < ATTENTION_ROWS ? end - first : ATTENTION_ROWS, &wide, rows);
            if (!attention_look(piece, rows, chunk)) continue;
            attention_fill_back(piece, rows, back);
            if (!turned) {
                attention_widen(piece->args, &wide, chunk);
                attention_turn(chunk->k, chunk, size, turned_k);
                attention_turn(chunk->v, chunk, size, turned_v);
                turned = true;
            }
            attention_back_tile(piece, rows, back, chunk, turned_k, turned_v);
        }
    }
}

static size_t attention_scratch(int head_dim, bool backward) {
    int padded = (head_dim + LANES - 1) / LANES * LANES;
    size_t floats = (size_t)ATTENTION_KEYS * head_dim * (backward ? 2 : 1) + (backward ? 0 : ATTENTION_ROWS * padded);
    floats += (size_t)(ATTENTION_ROWS + 2 * ATTENTION_KEYS) * head_dim; // attention_wide_t
    size_t bytes = sizeof(attention_chunk_t) + sizeof(attention_rows_t) + floats * sizeof(float);
    if (backward) bytes += sizeof(attention_back_t);
    return (bytes + 63) / 64 * 64;
}
