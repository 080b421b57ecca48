// Qwen2.5-VL's vision tower: patches -> windowed transformer -> merged feature rows.
//
// Patches are put into window order on the host before the first op (a permutation of merged cells, so it commutes with
// everything up to the merger); the merger's rows are put back by a gather.
#include "common/model/qwen2_5_vl.h"

#include <math.h>
#include <string.h>

// The rows of one vision call, in window order. Arrays live until tape_reset.
typedef struct vision_plan {
    int rows, cells;       // patches, merged cells
    int *cell;             // [cells] the original cell at each place
    int32_t *back;         // [cells] the place of each original cell
    int32_t *row, *column; // [rows] patch coordinates, in window order
    int32_t *identity;     // [rows]
    int32_t *window_start, *frame_start;
    int windows, frames;
    int32_t *zeros; // [max(windows, frames)]
    leaves_t patch_leaves, cell_leaves;
} vision_plan_t;

typedef struct vision_block {
    model_t *model;
    int first; // index of the block's first parameter
    const float *cosine, *sine;
    attention_mask_t mask;
} vision_block_t;

static int least(int a, int b) {
    return a < b ? a : b;
}

// One frame's cells, window by window; windows at the border are what is left of them.
static void plan_frame(vision_plan_t *plan, const qwen_config_t *qwen, int merge, int rows, int columns, int base,
                       int *at) {
    int side = qwen->window_cells, unit = merge * merge;
    for (int top = 0; top < rows; top += side) {
        for (int left = 0; left < columns; left += side) {
            for (int y = top; y < least(top + side, rows); y++) {
                for (int x = left; x < least(left + side, columns); x++) {
                    int place = (*at)++;
                    plan->cell[place] = base + y * columns + x;
                    plan->back[plan->cell[place]] = place;
                    for (int i = 0; i < unit; i++) {
                        plan->row[place * unit + i] = y * merge + i / merge;
                        plan->column[place * unit + i] = x * merge + i % merge;
                    }
                }
            }
            plan->window_start[++plan->windows] = *at * unit;
        }
    }
    plan->frame_start[++plan->frames] = *at * unit;
}

static status_t plan_leaves(tape_t *tape, const model_t *model, const vision_image_t *images, int count,
                            vision_plan_t *plan) {
    int unit = model->config.image.merge * model->config.image.merge, leaf = 0;
    int32_t *patches, *cells;
    TRY(TAPE_HOST(tape, &patches, count + 1));
    TRY(TAPE_HOST(tape, &cells, count + 1));
    patches[0] = cells[0] = 0;
    for (int i = 0, rows = 0; i < count; i++) {
        if (i && images[i].leaf != images[i - 1].leaf) {
            leaf++;
            patches[leaf] = rows;
            cells[leaf] = rows / unit;
        }
        rows += images[i].patch_rows;
    }
    patches[leaf + 1] = plan->rows;
    cells[leaf + 1] = plan->cells;
    plan->patch_leaves = (leaves_t){leaf + 1, patches};
    plan->cell_leaves = (leaves_t){leaf + 1, cells};
    return STATUS_OK;
}

static status_t plan_allocate(tape_t *tape, vision_plan_t *plan, int windows, int frames) {
    TRY(TAPE_HOST(tape, &plan->cell, plan->cells));
    TRY(TAPE_HOST(tape, &plan->back, plan->cells));
    TRY(TAPE_HOST(tape, &plan->row, plan->rows));
    TRY(TAPE_HOST(tape, &plan->column, plan->rows));
    TRY(TAPE_HOST(tape, &plan->identity, plan->rows));
    TRY(TAPE_HOST(tape, &plan->window_start, windows + 1));
    TRY(TAPE_HOST(tape, &plan->frame_start, frames + 1));
    TRY(TAPE_HOST(tape, &plan->zeros, windows + frames));
    plan->window_start[0] = plan->frame_start[0] = 0;
    for (int i = 0; i < plan->rows; i++) plan->identity[i] = i;
    for (int i = 0; i < windows + frames; i++) plan->zeros[i] = 0;
    return STATUS_OK;
}

static status_t make_plan(tape_t *tape, const model_t *model, const vision_image_t *images, int count,
                          vision_plan_t *plan) {
    const qwen_config_t *qwen = qwen_config(model);
    int merge = model->config.image.merge, side = qwen->window_cells, unit = merge * merge;
    int64_t rows = 0, windows = 0, frames = 0;
    for (int i = 0; i < count; i++) {
        const int *grid = images[i].shape.grid;
        bool fits = grid[0] > 0 && grid[1] > 0 && grid[2] > 0 && grid[1] % merge == 0 && grid[2] % merge == 0 &&
                    grid[0] <= 4096 && grid[1] <= 65536 && grid[2] <= 65536;
        if (!fits || (int64_t)grid[0] * grid[1] * grid[2] != images[i].patch_rows)
            FAIL(STATUS_INVALID,
                 "image %d has a patch grid of %d x %d x %d and %d patches, which this model cannot take", i + 1,
                 grid[0], grid[1], grid[2], images[i].patch_rows);
        int h = grid[1] / merge, w = grid[2] / merge;
        rows += images[i].patch_rows;
        frames += grid[0];
        windows += (int64_t)grid[0] * ((h + side - 1) / side) * ((w + side - 1) / side);
    }
    if (rows > INT32_MAX) FAIL(STATUS_INVALID, "the images of one batch have too many patches: use a smaller batch");
    *plan = (vision_plan_t){.rows = (int)rows, .cells = (int)(rows / unit)};
    TRY(plan_allocate(tape, plan, (int)windows, (int)frames));
    int at = 0;
    for (int i = 0; i < count; i++)
        for (int frame = 0; frame < images[i].shape.grid[0]; frame++)
            plan_frame(plan, qwen, merge, images[i].shape.grid[1] / merge, images[i].shape.grid[2] / merge, at, &at);
    return plan_leaves(tape, model, images, count, plan);
}

// The patches of all images in window order, on the device. A dry run needs no patches.
static status_t gather_patches(tape_t *tape, const vision_plan_t *plan, const vision_image_t *images, int count,
                               int unit, int columns, const void **out) {
    size_t cell_floats = (size_t)unit * (size_t)columns;
    float *patches;
    TRY(TAPE_HOST(tape, &patches, (size_t)plan->cells * cell_floats));
    for (int i = 0, first = 0; i < count && !tape_is_measuring(tape); i++) {
        int cells = images[i].patch_rows / unit;
        for (int place = first; place < first + cells; place++)
            memcpy(patches + (size_t)place * cell_floats,
                   images[i].patches + (size_t)(plan->cell[place] - first) * cell_floats, cell_floats * sizeof(float));
        first += cells;
    }
    return tape_upload(tape, patches, (size_t)plan->cells * cell_floats * sizeof(float), out);
}

// 2-D rope: the first half of the frequencies turns by row, the second by column.
static status_t make_rope(tape_t *tape, const model_t *model, const vision_plan_t *plan, const float **cosine,
                          const float **sine) {
    const qwen_config_t *qwen = qwen_config(model);
    int half = qwen->vision_hidden / qwen->vision_heads / 2, quarter = half / 2;
    float *frequency;
    int32_t *axis;
    TRY(TAPE_HOST(tape, &frequency, half));
    TRY(TAPE_HOST(tape, &axis, half));
    for (int i = 0; i < half; i++) {
        float exponent = (float)(2 * (i % quarter)) / (float)half;
        frequency[i] = 1.0F / (float)pow(qwen->vision_theta, (double)exponent);
        axis[i] = i / quarter;
    }
    rope_table_args_t args = {.rows = plan->rows, .half = half};
    size_t bytes = (size_t)plan->rows * sizeof(int32_t);
    TRY(tape_upload(tape, plan->row, bytes, (const void **)&args.position[0]));
    TRY(tape_upload(tape, plan->column, bytes, (const void **)&args.position[1]));
    TRY(tape_upload(tape, axis, (size_t)half * sizeof(*axis), (const void **)&args.axis));
    TRY(tape_upload(tape, frequency, (size_t)half * sizeof(*frequency), (const void **)&args.inverse_frequency));
    return tape_rope_table(tape, &args, cosine, sine);
}

static status_t make_mask(tape_t *tape, const vision_plan_t *plan, const int32_t *start, int sequences,
                          attention_mask_t *mask) {
    *mask = (attention_mask_t){.sequences = sequences};
    size_t bytes = (size_t)(sequences + 1) * sizeof(int32_t);
    TRY(tape_upload(tape, start, bytes, (const void **)&mask->query_start));
    mask->key_start = mask->query_start;
    TRY(tape_upload(tape, plan->zeros, (size_t)sequences * sizeof(int32_t), (const void **)&mask->query_position));
    return tape_upload(tape, plan->identity, (size_t)plan->rows * sizeof(int32_t), (const void **)&mask->key_row);
}

static status_t vision_attention(tape_t *tape, const vision_block_t *block, tensor_t *x, tensor_t **out) {
    const qwen_config_t *qwen = qwen_config(block->model);
    const parameter_t *p = block->model->parameter + block->first;
    adapter_t *const *adapter = block->model->adapter + block->first;
    int width = qwen->vision_hidden, heads = qwen->vision_heads, head_dim = width / heads;
    tensor_t *qkv, *part[3], *attended;
    TRY(tape_linear(tape, x, &p[VISION_QKV], &p[VISION_QKV_BIAS], adapter[VISION_QKV], &qkv));
    for (int i = 0; i < 3; i++) TRY(tape_columns(tape, qkv, i * width, width, &part[i]));
    for (int i = 0; i < 2; i++) TRY(tape_rope(tape, part[i], heads, head_dim / 2, block->cosine, block->sine));
    float scale = (float)(1.0 / sqrt((double)head_dim));
    TRY(tape_attention(tape, part[0], part[1], part[2], heads, heads, head_dim, scale, &block->mask, &attended));
    return tape_linear(tape, attended, &p[VISION_PROJ], &p[VISION_PROJ_BIAS], adapter[VISION_PROJ], out);
}

static status_t vision_block(tape_t *tape, const void *context, tensor_t *x, tensor_t **out) {
    const vision_block_t *block = context;
    const parameter_t *p = block->model->parameter + block->first;
    adapter_t *const *adapter = block->model->adapter + block->first;
    tensor_t *normed, *mixed, *middle, *gate, *up;
    TRY(tape_rmsnorm(tape, x, &p[VISION_NORM1], 1e-6F, NORM_CAST_THEN_WEIGHT, &normed));
    TRY(vision_attention(tape, block, normed, &mixed));
    TRY(tape_add(tape, x, mixed, &middle));
    TRY(tape_rmsnorm(tape, middle, &p[VISION_NORM2], 1e-6F, NORM_CAST_THEN_WEIGHT, &normed));
    TRY(tape_linear(tape, normed, &p[VISION_GATE], &p[VISION_GATE_BIAS], adapter[VISION_GATE], &gate));
    TRY(tape_linear(tape, normed, &p[VISION_UP], &p[VISION_UP_BIAS], adapter[VISION_UP], &up));
    TRY(tape_activation(tape, ACTIVATION_SILU, gate, up, &gate));
    TRY(tape_linear(tape, gate, &p[VISION_DOWN], &p[VISION_DOWN_BIAS], adapter[VISION_DOWN], &mixed));
    return tape_add(tape, middle, mixed, out);
}

static status_t vision_merger(model_t *model, tape_t *tape, const vision_plan_t *plan, tensor_t *x, tensor_t **out) {
    const qwen_config_t *qwen = qwen_config(model);
    const parameter_t *p = model->parameter + qwen->merger;
    adapter_t *const *adapter = model->adapter + qwen->merger;
    int unit = model->config.image.merge * model->config.image.merge;
    const void *back;
    tensor_t *y;
    TRY(tape_rmsnorm(tape, x, &p[MERGER_NORM], 1e-6F, NORM_CAST_THEN_WEIGHT, &y));
    TRY(tape_fold_rows(tape, y, unit, plan->cell_leaves, &y));
    TRY(tape_linear(tape, y, &p[MERGER_FIRST], &p[MERGER_FIRST_BIAS], adapter[MERGER_FIRST], &y));
    TRY(tape_activation(tape, ACTIVATION_GELU_ERF, y, NULL, &y));
    TRY(tape_linear(tape, y, &p[MERGER_SECOND], &p[MERGER_SECOND_BIAS], adapter[MERGER_SECOND], &y));
    TRY(tape_upload(tape, plan->back, (size_t)plan->cells * sizeof(int32_t), &back));
    return tape_gather_rows(tape, y, back, plan->cells, plan->cell_leaves, out);
}

status_t qwen_vision(model_t *model, tape_t *tape, const vision_image_t *images, int count, tensor_t **features) {
    *features = NULL;
    if (count < 1) FAIL(STATUS_INVALID, "the vision part needs one image or more");
    const qwen_config_t *qwen = qwen_config(model);
    const image_rules_t *rules = &model->config.image;
    int unit = rules->merge * rules->merge;
    vision_plan_t plan;
    TRY(make_plan(tape, model, images, count, &plan));
    const parameter_t *embed = &model->parameter[qwen->patch_embed];
    const void *patches;
    TRY(gather_patches(tape, &plan, images, count, unit, embed->value.columns, &patches));
    vision_block_t block = {.model = model};
    TRY(make_rope(tape, model, &plan, &block.cosine, &block.sine));
    attention_mask_t windows, frames;
    TRY(make_mask(tape, &plan, plan.window_start, plan.windows, &windows));
    TRY(make_mask(tape, &plan, plan.frame_start, plan.frames, &frames));
    matrix_t rows = matrix_view((void *)(uintptr_t)patches, DTYPE_F32, plan.rows, embed->value.columns);
    tensor_t *x;
    TRY(tape_input(tape, rows, plan.patch_leaves, &x));
    TRY(tape_linear(tape, x, embed, NULL, NULL, &x));
    for (int i = 0; i < qwen->depth; i++) {
        block.first = qwen->blocks + i * VISION_BLOCK_PARAMETERS;
        block.mask = qwen->full_attention[i] ? frames : windows;
        TRY(tape_block(tape, vision_block, &block, sizeof(block), x, &x));
    }
    return vision_merger(model, tape, &plan, x, features);
}
