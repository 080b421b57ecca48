#include "common/model/batch.h"

#include <stdlib.h>
#include <string.h>

// What is known of one sequence while the batch is built.
typedef struct place {
    int first_row;   // of its own rows
    int first_image; // of its own images, in the batch's list
    int image_count; // of the whole sequence, shared images included
    int64_t key_start;
    const image_patches_t **image; // [image_count]
} place_t;

typedef struct arrays {
    void **pointer; // every array of the batch, to be freed
    size_t count, capacity;
} arrays_t;

typedef struct builder {
    const model_t *model;
    const batch_sequence_t *sequence;
    int count;
    batch_t *batch;
    place_t *place; // [count]
    arrays_t *arrays;
    int32_t *position[3]; // [longest] of one whole sequence
    image_shape_t *shape; // [most images of a sequence]
} builder_t;

static status_t take(builder_t *builder, size_t count, size_t size, void **out) {
    arrays_t *arrays = builder->arrays;
    TRY(memory_grow((void **)&arrays->pointer, &arrays->capacity, arrays->count + 1, sizeof(void *)));
    TRY(memory_allocate(count, size, out));
    arrays->pointer[arrays->count++] = *out;
    return STATUS_OK;
}
#define TAKE(builder, pointer, count) take((builder), (size_t)(count), sizeof(**(pointer)), (void **)(pointer))

static int own_rows(const batch_sequence_t *sequence) {
    return sequence->length - sequence->shared_length;
}

static int first_target(const batch_sequence_t *sequence) {
    return sequence->first_target < 1 ? 1 : sequence->first_target;
}

void batch_image_groups(const model_config_t *config, const int32_t *tokens, int count, int32_t *group) {
    bool has_groups = config->has_vision && config->image_groups;
    int runs = 0;
    for (int i = 0; i < count; i++) {
        bool image = has_groups && tokens[i] == config->image.image_token;
        if (image && (i == 0 || group[i - 1] < 0)) runs++;
        group[i] = image ? runs - 1 : -1;
    }
}

// ---- checks ----

static status_t check_shared(const batch_sequence_t *sequences, int number, int image_token) {
    const batch_sequence_t *sequence = &sequences[number];
    if (sequence->shared_with == -1) {
        if (sequence->shared_length)
            FAIL(STATUS_INVALID, "it shares %d rows with no sequence", sequence->shared_length);
        return STATUS_OK;
    }
    if (sequence->shared_with < 0 || sequence->shared_with >= number)
        FAIL(STATUS_INVALID, "it shares rows with sequence %d, which is not an earlier one", sequence->shared_with);
    const batch_sequence_t *other = &sequences[sequence->shared_with];
    int shared = sequence->shared_length;
    if (shared < 1 || shared > other->length || shared > sequence->length)
        FAIL(STATUS_INVALID, "it shares %d rows with a sequence of %d", shared, other->length);
    if (other->leaf != sequence->leaf)
        FAIL(STATUS_INVALID, "it shares rows with a sequence of gradient leaf %d, and its own leaf is %d", other->leaf,
             sequence->leaf);
    if (memcmp(other->tokens, sequence->tokens, (size_t)shared * sizeof(int32_t)) != 0)
        FAIL(STATUS_INVALID, "its first %d tokens differ from those it shares", shared);
    bool has_images = sequence->image_count > 0;
    for (int i = shared; i < sequence->length && image_token >= 0; i++)
        has_images = has_images || sequence->tokens[i] == image_token;
    if (has_images) FAIL(STATUS_INVALID, "it has images behind the rows it shares");
    return STATUS_OK;
}

static status_t check_sequence(const builder_t *builder, int number) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    const model_config_t *config = &builder->model->config;
    if (sequence->length < 1) FAIL(STATUS_INVALID, "it is empty");
    int previous = number ? builder->sequence[number - 1].leaf : 0;
    if (sequence->leaf < previous || sequence->leaf > previous + 1 || (!number && sequence->leaf))
        FAIL(STATUS_INVALID, "its gradient leaf is %d after %d; leaves must count up from 0", sequence->leaf, previous);
    for (int i = 0; i < sequence->length; i++)
        if (!model_takes_token(config, sequence->tokens[i]) ||
            (i >= first_target(sequence) && sequence->tokens[i] >= config->vocabulary))
            FAIL(STATUS_INVALID, "its token %d is %d, outside of the vocabulary of %d", i, (int)sequence->tokens[i],
                 config->vocabulary);
    if (sequence->image_count && !config->has_vision)
        FAIL(STATUS_INVALID, "it has images, and this model has no vision part");
    int columns = config->has_vision ? 3 * config->image.temporal * config->image.patch * config->image.patch : 0;
    for (int i = 0; i < sequence->image_count; i++)
        if (sequence->images[i]->columns != columns ||
            sequence->images[i]->shape.feature_rows !=
                builder->model->family->feature_rows(config, &sequence->images[i]->shape))
            FAIL(STATUS_INVALID, "its image %d was prepared for another model", i + 1);
    TRY(check_shared(builder->sequence, number, config->has_vision ? config->image.image_token : -1));
    if (sequence->shared_with < 0 || !config->has_vision || !config->image_groups) return STATUS_OK;
    const batch_sequence_t *other = &builder->sequence[sequence->shared_with];
    int shared = sequence->shared_length, token = config->image.image_token;
    if (shared < other->length && other->tokens[shared - 1] == token && other->tokens[shared] == token)
        FAIL(STATUS_INVALID, "the %d rows it shares end within an image, whose tokens see each other", shared);
    return STATUS_OK;
}

// ---- sizes and places ----

status_t batch_check_images(const model_config_t *config, const int32_t *tokens, int length,
                            const image_patches_t *const *images, int image_count) {
    int64_t found = 0, needed = 0;
    for (int i = 0; i < length && config->has_vision; i++) found += tokens[i] == config->image.image_token;
    for (int i = 0; i < image_count; i++) needed += images[i]->shape.feature_rows;
    if (found != needed)
        FAIL(STATUS_INVALID, "it has %lld image placeholders, and its images (%d) need %lld", (long long)found,
             image_count, (long long)needed);
    return STATUS_OK;
}

// Images that begin in the first `length` tokens: an image has all its placeholders before the next one's first, in one
// run or several.
static int images_within(const builder_t *builder, int number, int length) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    const place_t *place = &builder->place[number];
    int64_t placeholders = 0;
    int found = 0;
    for (int i = 0; i < length; i++) placeholders += sequence->tokens[i] == builder->model->config.image.image_token;
    while (placeholders > 0 && found < place->image_count) placeholders -= place->image[found++]->shape.feature_rows;
    return found;
}

static status_t place_sequence(builder_t *builder, int number, int64_t *rows, int64_t *keys, int64_t *images) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    place_t *place = &builder->place[number];
    int inherited = 0;
    if (sequence->shared_with >= 0) inherited = images_within(builder, sequence->shared_with, sequence->shared_length);
    place->first_row = (int)*rows;
    place->first_image = (int)*images;
    place->key_start = *keys;
    place->image_count = inherited + sequence->image_count;
    TRY(take(builder, (size_t)place->image_count, sizeof(void *), (void **)&place->image));
    for (int i = 0; i < place->image_count; i++)
        place->image[i] =
            i < inherited ? builder->place[sequence->shared_with].image[i] : sequence->images[i - inherited];
    *rows += own_rows(sequence);
    *keys += sequence->length;
    *images += sequence->image_count;
    if (*rows > INT32_MAX || *keys > INT32_MAX || *images > INT32_MAX)
        FAIL(STATUS_INVALID, "the batch has too many rows: use a smaller one");
    return STATUS_OK;
}

static status_t allocate_rows(builder_t *builder, int64_t keys) {
    batch_t *batch = builder->batch;
    text_input_t *text = &batch->text;
    int count = builder->count;
    TRY(TAKE(builder, (int32_t **)&text->token, text->rows));
    for (int i = 0; i < 3; i++) TRY(TAKE(builder, (int32_t **)&text->rope_position[i], text->rows));
    TRY(TAKE(builder, (int32_t **)&text->mask.query_start, count + 1));
    TRY(TAKE(builder, (int32_t **)&text->mask.query_position, count));
    TRY(TAKE(builder, (int32_t **)&text->mask.key_start, count + 1));
    TRY(TAKE(builder, (int32_t **)&text->mask.key_row, keys));
    if (builder->model->config.image_groups) TRY(TAKE(builder, (int32_t **)&text->mask.group, keys));
    TRY(TAKE(builder, &batch->images, batch->image_count));
    TRY(TAKE(builder, &batch->leaf_row_start, batch->leaf_count + 1));
    TRY(TAKE(builder, &batch->leaf_entry_start, batch->leaf_count + 1));
    TRY(TAKE(builder, &batch->entry_row, batch->entry_count));
    TRY(TAKE(builder, &batch->entry_target, batch->entry_count));
    TRY(TAKE(builder, &batch->entry_sequence, batch->entry_count));
    return TAKE(builder, &batch->entry_position, batch->entry_count);
}

static status_t place_all(builder_t *builder) {
    batch_t *batch = builder->batch;
    int64_t rows = 0, keys = 0, images = 0, entries = 0, features = 0;
    int longest = 0, most_images = 0;
    TRY(TAKE(builder, &builder->place, builder->count));
    for (int i = 0; i < builder->count; i++) {
        const batch_sequence_t *sequence = &builder->sequence[i];
        status_t status = check_sequence(builder, i);
        if (!status) status = place_sequence(builder, i, &rows, &keys, &images);
        if (status) return status_context(status, "sequence %d of the batch", i);
        if (sequence->length > first_target(sequence)) entries += sequence->length - first_target(sequence);
        for (int j = 0; j < sequence->image_count; j++) features += sequence->images[j]->shape.feature_rows;
        if (sequence->length > longest) longest = sequence->length;
        if (builder->place[i].image_count > most_images) most_images = builder->place[i].image_count;
    }
    if (entries > INT32_MAX || features > rows) FAIL(STATUS_INVALID, "the batch has more image tokens than rows");
    batch->text.rows = (int)rows;
    batch->image_count = (int)images;
    batch->entry_count = (int)entries;
    batch->leaf_count = builder->sequence[builder->count - 1].leaf + 1;
    TRY(TAKE(builder, (int32_t **)&batch->text.feature_index, features));
    for (int i = 0; i < 3; i++) TRY(TAKE(builder, &builder->position[i], longest));
    TRY(TAKE(builder, &builder->shape, most_images));
    return allocate_rows(builder, keys);
}

// ---- rows ----

// The arrays are ours; the contract hands them out as constant.
static int32_t *writable(const int32_t *array) {
    return (int32_t *)(uintptr_t)array;
}

static status_t fill_rows(builder_t *builder, int number) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    const place_t *place = &builder->place[number];
    text_input_t *text = &builder->batch->text;
    int shared = sequence->shared_length, own = own_rows(sequence);
    for (int i = 0; i < place->image_count; i++) builder->shape[i] = place->image[i]->shape;
    TRY(batch_check_images(&builder->model->config, sequence->tokens, sequence->length, place->image,
                           place->image_count));
    int32_t next;
    TRY(builder->model->family->rope_positions(&builder->model->config, sequence->tokens, sequence->length,
                                               builder->shape, place->image_count, builder->position, &next));
    for (int i = 0; i < own; i++) {
        writable(text->token)[place->first_row + i] =
            model_row_of_token(&builder->model->config, sequence->tokens[shared + i]);
        for (int axis = 0; axis < 3; axis++)
            writable(text->rope_position[axis])[place->first_row + i] = builder->position[axis][shared + i];
    }
    int32_t *key_row = writable(text->mask.key_row) + place->key_start;
    if (shared)
        memcpy(key_row, text->mask.key_row + builder->place[sequence->shared_with].key_start,
               (size_t)shared * sizeof(int32_t));
    for (int i = 0; i < own; i++) key_row[shared + i] = place->first_row + i;
    if (text->mask.group)
        batch_image_groups(&builder->model->config, sequence->tokens, sequence->length,
                           writable(text->mask.group) + place->key_start);
    writable(text->mask.query_start)[number] = place->first_row;
    writable(text->mask.query_start)[number + 1] = place->first_row + own;
    writable(text->mask.query_position)[number] = shared;
    writable(text->mask.key_start)[number] = (int32_t)place->key_start;
    writable(text->mask.key_start)[number + 1] = (int32_t)place->key_start + sequence->length;
    return STATUS_OK;
}

static void fill_images(builder_t *builder, int number, int *feature) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    const place_t *place = &builder->place[number];
    batch_t *batch = builder->batch;
    for (int i = 0; i < sequence->image_count; i++) {
        const image_patches_t *patches = sequence->images[i];
        batch->images[place->first_image + i] = (vision_image_t){
            .shape = patches->shape, .patches = patches->patches, .patch_rows = patches->rows, .leaf = sequence->leaf};
    }
    // fill_rows counted the placeholders: image after image, in order.
    for (int i = 0; sequence->image_count && i < sequence->length; i++)
        if (sequence->tokens[i] == builder->model->config.image.image_token)
            writable(batch->text.feature_index)[(*feature)++] = place->first_row + i;
}

static void fill_entries(builder_t *builder, int number, int *entry) {
    const batch_sequence_t *sequence = &builder->sequence[number];
    batch_t *batch = builder->batch;
    const int32_t *key_row = batch->text.mask.key_row + builder->place[number].key_start;
    for (int position = first_target(sequence); position < sequence->length; position++) {
        batch->entry_row[*entry] = key_row[position - 1];
        batch->entry_target[*entry] = sequence->tokens[position];
        batch->entry_sequence[*entry] = number;
        batch->entry_position[*entry] = position;
        (*entry)++;
    }
}

static status_t fill_all(builder_t *builder) {
    batch_t *batch = builder->batch;
    int feature = 0, entry = 0;
    for (int i = 0; i < builder->count; i++) {
        status_t status = fill_rows(builder, i);
        if (status) return status_context(status, "sequence %d of the batch", i);
        fill_images(builder, i, &feature);
        fill_entries(builder, i, &entry);
        int leaf = builder->sequence[i].leaf;
        batch->leaf_row_start[leaf + 1] = builder->place[i].first_row + own_rows(&builder->sequence[i]);
        batch->leaf_entry_start[leaf + 1] = entry;
    }
    batch->text.mask.sequences = builder->count;
    batch->text.mask.causal = true;
    batch->text.leaves = (leaves_t){batch->leaf_count, batch->leaf_row_start};
    return STATUS_OK;
}

status_t batch_build(const model_t *model, const batch_sequence_t *sequences, int count, batch_t *out) {
    *out = (batch_t){0};
    if (count < 1) FAIL(STATUS_INVALID, "a batch needs one sequence or more");
    builder_t builder = {.model = model, .sequence = sequences, .count = count, .batch = out};
    TRY(ALLOCATE(&builder.arrays, 1));
    out->owned = builder.arrays;
    status_t status = place_all(&builder);
    if (!status) status = fill_all(&builder);
    if (status) batch_free(out);
    return status;
}

void batch_free(batch_t *batch) {
    arrays_t *arrays = batch->owned;
    for (size_t i = 0; arrays && i < arrays->count; i++) free(arrays->pointer[i]);
    if (arrays) free(arrays->pointer);
    free(arrays);
    *batch = (batch_t){0};
}

status_t batch_forward(model_t *model, tape_t *tape, batch_t *batch, float temperature, bool entropy,
                       head_output_t **head) {
    *head = NULL;
    tensor_t *hidden;
    const void *rows, *targets;
    size_t bytes = (size_t)batch->entry_count * sizeof(int32_t);
    // Features of an earlier forward died with its tape_reset.
    batch->text.features = NULL;
    if (batch->image_count)
        TRY(model->family->vision(model, tape, batch->images, batch->image_count, &batch->text.features));
    TRY(model->family->text(model, tape, &batch->text, &hidden));
    TRY(tape_upload(tape, batch->entry_row, bytes, &rows));
    TRY(tape_upload(tape, batch->entry_target, bytes, &targets));
    leaves_t leaves = {batch->leaf_count, batch->leaf_entry_start};
    return tape_token_logprobs(tape, hidden, model_head(model), temperature, batch->entry_count, rows, targets, leaves,
                               entropy, head);
}
