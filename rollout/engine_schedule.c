// What the next step runs: decode rows of running sequences, oldest first, then the longer runs of sequences that come
// back or are scored, then prompts. Only the choice of rows depends on what else is there, never their results.
#include "rollout/engine_internal.h"

#include "common/comm/clock.h"

static int room(const engine_t *engine) {
    int left = engine->options.batch_rows - engine->rows;
    return left > 0 ? left : 0;
}

static int cache_row(const int *page, int position) {
    return page[position / ENGINE_PAGE] * ENGINE_PAGE + position % ENGINE_PAGE;
}

// Opens the mask entry of one run of rows of a group: positions first .. first + count - 1, keys 0 .. first + count
// - 1.
static void begin_run(engine_t *engine, const group_t *group, const int *page, int first, int count) {
    int sequence = engine->sequences++;
    engine->query_start[sequence] = engine->rows;
    engine->query_position[sequence] = first;
    engine->key_start[sequence] = engine->keys;
    for (int position = 0; position < first + count; position++) {
        if (engine->key_group)
            engine->key_group[engine->keys] = position < group->prompt_length ? group->image_group[position] : -1;
        engine->key_row[engine->keys++] = cache_row(page, position);
    }
    for (int i = 0; i < count; i++) engine->cache_row[engine->rows + i] = cache_row(page, first + i);
    engine->query_start[sequence + 1] = engine->rows + count;
    engine->key_start[sequence + 1] = engine->keys;
}

static void add_draw(engine_t *engine, sequence_t *sequence, int row, int position) {
    bool forced = sequence->group->forced;
    engine->draw[engine->draws++] = (engine_draw_t){.sequence = sequence,
                                                    .row = row,
                                                    .target = forced ? sequence->tokens[position] : -1,
                                                    .position = position,
                                                    .forced = forced};
}

// Tokens whose keys the sequence still needs in the cache: the last one of a forced sequence predicts nothing.
static int wanted(const sequence_t *sequence) {
    return sequence->length - (sequence->group->forced ? 1 : 0) - sequence->computed;
}

static void run_sequence(engine_t *engine, sequence_t *sequence, int count) {
    const group_t *group = sequence->group;
    begin_run(engine, group, sequence->page, group->prompt_length + sequence->computed, count);
    for (int i = 0; i < count; i++) {
        int row = engine->rows++, token = sequence->computed++;
        engine->token[row] = sequence->tokens[token];
        for (int axis = 0; axis < 3; axis++) engine->rope[axis][row] = group->rope_next + token;
        if (group->forced ? token + 1 >= sequence->scored : sequence->computed == sequence->length)
            add_draw(engine, sequence, row, token + 1);
    }
}

// A page for the position that a running sequence writes next. False: the sequence itself had to give way.
static bool grow(engine_t *engine, sequence_t *sequence) {
    int needed = pages_for(sequence->group->prompt_length + sequence->length);
    while (sequence->pages < needed) {
        int page = engine_page_take(engine);
        if (page >= 0)
            sequence->page[sequence->pages++] = page;
        else if (!engine_reclaim(engine, sequence))
            return false;
    }
    return true;
}

static void schedule_running(engine_t *engine, bool decode) {
    for (group_t *group = engine->first; group; group = group->next) {
        for (int i = 0; group->running && i < group->completions; i++) {
            sequence_t *sequence = &group->sequence[i];
            // (A sequence that has its row of this step wants none.)
            if (sequence->state != SEQUENCE_RUNNING || (decode ? wanted(sequence) != 1 : wanted(sequence) < 2))
                continue;
            if (!room(engine)) return;
            int count = wanted(sequence);
            if (count > engine->options.prefill_chunk) count = engine->options.prefill_chunk;
            if (count > room(engine)) count = room(engine);
            // Sequences that come back or are scored got all their pages when they were admitted.
            if (decode && !group->forced && !grow(engine, sequence)) continue;
            if (decode)
                engine->statistics.decode_rows++;
            else
                engine->statistics.prefill_tokens += count;
            run_sequence(engine, sequence, count);
        }
    }
}

// Gives a waiting sequence of a prefilled group its pages. False: there are too few, nothing changed.
static bool admit(engine_t *engine, sequence_t *sequence) {
    group_t *group = sequence->group;
    int full = group->prompt_length / ENGINE_PAGE, partial = group->prompt_length % ENGINE_PAGE;
    int total = pages_for(group->prompt_length + wanted(sequence));
    bool takes_over = group->completions == 1 && partial;
    if (total - full - takes_over > engine->free_pages || engine->running == engine->options.batch_rows) return false;
    for (int i = 0; i < full; i++) {
        engine_page_share(engine, group->page[i]);
        sequence->page[i] = group->page[i];
    }
    if (group->shared_before) engine->statistics.pages_saved += full;
    group->shared_before = true;
    sequence->pages = full;
    if (takes_over) {
        sequence->page[sequence->pages++] = group->page[full];
        group->page[full] = -1;
    }
    while (sequence->pages < total) sequence->page[sequence->pages++] = engine_page_take(engine);
    if (partial && !takes_over) {
        for (int i = 0; i < partial; i++) {
            engine->copy_from[engine->copies] = group->page[full] * ENGINE_PAGE + i;
            engine->copy_to[engine->copies++] = sequence->page[full] * ENGINE_PAGE + i;
        }
    }
    sequence->state = SEQUENCE_RUNNING;
    group->running++;
    engine->running++;
    return true;
}

// Takes the prompt's pages and pins its image features. *began false: not now, nothing changed.
static status_t begin_prefill(engine_t *engine, group_t *group, bool *began) {
    int pages = pages_for(group->prompt_length);
    *began = false;
    if (pages > engine->free_pages) return STATUS_OK;
    TRY(feature_store_pin(engine, group, began));
    if (!*began) return STATUS_OK;
    while (group->pages < pages) group->page[group->pages++] = engine_page_take(engine);
    group->state = GROUP_PREFILLING;
    if (group->admitted_s == 0) group->admitted_s = clock_seconds();
    return STATUS_OK;
}

// Whether a chunk that ends before this position would leave out keys that its last row sees.
static bool splits_image(const group_t *group, int position) {
    return position > 0 && position < group->prompt_length && group->image_group[position] >= 0 &&
           group->image_group[position] == group->image_group[position - 1];
}

// Rows of the prompt's next chunk. An image group goes into one step as a whole: a chunk ends before it, or is raised
// to hold it when it begins there, beyond batch_rows if it must (step_rows has room for one).
static int prefill_count(const engine_t *engine, const group_t *group) {
    int first = group->computed, count = group->prompt_length - first;
    if (count > engine->options.prefill_chunk) count = engine->options.prefill_chunk;
    if (count > room(engine)) count = room(engine);
    int end = first + count;
    while (end > first && splits_image(group, end)) end--;
    if (end > first) return end - first;
    for (end = first + 1; splits_image(group, end); end++) continue;
    return end - first;
}

static void prefill(engine_t *engine, group_t *group) {
    int count = prefill_count(engine, group);
    begin_run(engine, group, group->page, group->computed, count);
    for (int i = 0; i < count; i++) {
        int row = engine->rows++, position = group->computed++;
        engine->token[row] = model_row_of_token(&engine->model->config, group->tokens[position]);
        for (int axis = 0; axis < 3; axis++) engine->rope[axis][row] = group->rope[axis][position];
        int feature = group->image_row[position];
        if (feature < 0) continue;
        int image = 0;
        for (; feature >= group->features[image]->rows; image++) feature -= group->features[image]->rows;
        engine->feature_source[engine->feature_rows] = group->features[image]->row[feature];
        engine->feature_target[engine->feature_rows++] = row;
    }
    engine->statistics.prefill_tokens += count;
    if (group->computed < group->prompt_length) return;
    // All completions get their first token from the prompt's last row, whether or not there are pages for them yet.
    group->state = GROUP_READY;
    for (int i = 0; i < group->completions; i++) {
        sequence_t *sequence = &group->sequence[i];
        if (sequence->state != SEQUENCE_FINISHED && !sequence->scored) add_draw(engine, sequence, engine->rows - 1, 0);
    }
}

// Moves one group on as far as rows and pages allow. *stuck: it needs pages or feature rows that others hold.
static status_t advance(engine_t *engine, group_t *group, bool *stuck) {
    *stuck = false;
    if (group->state == GROUP_QUEUED) {
        bool began;
        TRY(begin_prefill(engine, group, &began));
        *stuck = !began;
        if (!began) return STATUS_OK;
    }
    if (group->state == GROUP_PREFILLING) {
        prefill(engine, group);
        return STATUS_OK; // its sequences wait for their first token, or for the prompt's rows
    }
    for (int i = 0; room(engine) && i < group->completions; i++) {
        sequence_t *sequence = &group->sequence[i];
        if (sequence->state != SEQUENCE_WAITING) continue;
        *stuck = !admit(engine, sequence);
        if (*stuck) return STATUS_OK;
        int count = wanted(sequence);
        if (count > engine->options.prefill_chunk) count = engine->options.prefill_chunk;
        if (count > room(engine)) count = room(engine);
        if (count == 1 && wanted(sequence) == 1)
            engine->statistics.decode_rows++;
        else
            engine->statistics.prefill_tokens += count;
        run_sequence(engine, sequence, count);
    }
    return STATUS_OK;
}

status_t engine_schedule(engine_t *engine) {
    engine->rows = engine->sequences = engine->keys = engine->feature_rows = 0;
    engine->draws = engine->copies = 0;
    // Pins outlive the step that reads the features: another image must not take their rows before.
    for (group_t *group = engine->first; group; group = group->next)
        if (group->state == GROUP_READY && group->pinned) feature_store_unpin(engine, group);
    int64_t decode_rows = engine->statistics.decode_rows;
    schedule_running(engine, true);
    schedule_running(engine, false);
    for (group_t *group = engine->first; group && room(engine); group = group->next) {
        bool stuck;
        TRY(advance(engine, group, &stuck));
        // Nobody overtakes: a group that waits for pages is served before those behind it. Those that hold pages and
        // cannot move give them back when nothing else will.
        while (stuck && !engine->rows && !engine->running && engine_reclaim_behind(engine, group))
            TRY(advance(engine, group, &stuck));
        if (stuck) break;
    }
    if (!engine->rows && engine->pending)
        FAIL(STATUS_FAILED, "the engine has %d completions to make and cannot place a row of them", engine->pending);
    if (engine->statistics.decode_rows > decode_rows) engine->statistics.decode_steps++;
    return STATUS_OK;
}
