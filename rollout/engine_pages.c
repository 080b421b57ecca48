// Pages of the KV cache: reference counts, and who gives way when there are none.
#include "rollout/engine_internal.h"

int engine_page_take(engine_t *engine) {
    if (!engine->free_pages) return -1;
    int page = engine->free_page[--engine->free_pages];
    engine->reference[page] = 1;
    int used = engine->options.pages - engine->free_pages;
    if (used > engine->statistics.peak_pages) engine->statistics.peak_pages = used;
    return page;
}

void engine_page_share(engine_t *engine, int page) {
    engine->reference[page]++;
}

void engine_page_release(engine_t *engine, int page) {
    if (--engine->reference[page] == 0) engine->free_page[engine->free_pages++] = page;
}

void engine_group_reset(engine_t *engine, group_t *group) {
    for (int i = 0; i < group->pages; i++)
        if (group->page[i] >= 0) engine_page_release(engine, group->page[i]);
    if (group->pinned) feature_store_unpin(engine, group);
    group->pages = 0;
    group->computed = 0;
    group->state = GROUP_QUEUED;
}

void engine_sequence_release(engine_t *engine, sequence_t *sequence) {
    for (int i = 0; i < sequence->pages; i++) engine_page_release(engine, sequence->page[i]);
    if (sequence->state == SEQUENCE_RUNNING) {
        sequence->group->running--;
        engine->running--;
    }
    sequence->pages = 0;
    sequence->computed = 0;
    sequence->state = SEQUENCE_WAITING;
}

static void preempt(engine_t *engine, sequence_t *sequence) {
    engine_sequence_release(engine, sequence);
    engine->statistics.preemptions++;
    // A group of one had handed its last prompt page over, so its prompt is incomplete now.
    if (sequence->group->completions == 1) engine_group_reset(engine, sequence->group);
}

bool engine_reclaim(engine_t *engine, sequence_t *sequence) {
    group_t *youngest = sequence->group;
    for (group_t *group = youngest->next; group; group = group->next)
        if (group->pages || group->running) youngest = group;
    if (!youngest->running) {
        engine_group_reset(engine, youngest);
        return true;
    }
    int victim = youngest->completions - 1;
    while (youngest->sequence[victim].state != SEQUENCE_RUNNING) victim--;
    preempt(engine, &youngest->sequence[victim]);
    return &youngest->sequence[victim] != sequence;
}

bool engine_reclaim_behind(engine_t *engine, group_t *group) {
    group_t *youngest = NULL;
    for (group_t *other = group->next; other; other = other->next)
        if (other->pages) youngest = other;
    if (!youngest) return false;
    engine_group_reset(engine, youngest);
    return true;
}
