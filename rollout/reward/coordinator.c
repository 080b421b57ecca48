#include "rollout/reward/coordinator.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct item {
    bool arrived, queued, scored;
    message_completion_t completion; // owned once arrived
    message_group_item_t result;     // borrows the completion's arrays
} item_t;

typedef struct group {
    uint64_t serial;
    uint32_t worker; // 0: nobody has it
    bool issued;     // somebody had it
    int arrived, scored;
    bool closed, spread;
    item_t *item;                  // [completions]
    message_group_item_t *results; // [completions], filled when closed
} group_t;

enum { MOST_REASONS = 16 };
typedef struct reason {
    char text[256];
    int64_t count;
} reason_t;

typedef struct step {
    int64_t number, version;
    bool planned; // its plan has been handed out
    int closed;
    int64_t excluded, timeouts;    // completions without a reward; of them those that ran out of time
    reason_t reason[MOST_REASONS]; // why; beyond so many different ones only counted above
    group_t *group;                // [prompts]
    message_plan_t plan;
} step_t;

typedef struct worker {
    uint32_t peer;
    int credits, open; // groups it may hold, and holds
    int64_t version;   // last announced to it; -1: none
    int64_t held;      // last it said it holds; -1: none
} worker_t;

typedef struct score_request {
    uint64_t serial;
    int32_t index;
} score_request_t;

typedef struct version {
    int64_t number;
    uint64_t checksum;
} version_t;

struct coordinator {
    coordinator_options_t options;
    worker_t *worker;
    size_t workers, worker_capacity;
    step_t **step; // active steps, oldest first
    size_t steps, step_capacity;
    int64_t next_step;
    version_t *version;
    size_t versions, version_capacity;
    score_request_t *queue; // completions that wait for a scorer, in order of arrival
    size_t queue_head, queue_count, queue_capacity;
    coordinator_statistics_t statistics;
};

status_t coordinator_open(const coordinator_options_t *options, coordinator_t **out) {
    *out = NULL;
    if (options->prompts < 1 || options->completions < 1 || options->learners < 1 || options->staleness < 0 ||
        options->completions > MESSAGE_MAX_COMPLETIONS)
        FAIL(STATUS_INVALID,
             "grpo.prompts and the number of learners must be at least 1, and grpo.completions between 1 and %d",
             MESSAGE_MAX_COMPLETIONS);
    TRY(ALLOCATE(out, 1));
    (*out)->options = *options;
    (*out)->next_step = options->first_step;
    return STATUS_OK;
}

static void completion_free(message_completion_t *completion) {
    free(completion->tokens);
    free(completion->logprobs);
    free(completion->entropy);
    free(completion->text);
    *completion = (message_completion_t){0};
}

static void step_free(coordinator_t *c, step_t *step) {
    if (!step) return;
    for (int g = 0; step->group && g < c->options.prompts; g++) {
        group_t *group = &step->group[g];
        for (int i = 0; group->item && i < c->options.completions; i++) completion_free(&group->item[i].completion);
        free(group->item);
        free(group->results);
    }
    free(step->group);
    free(step->plan.serial);
    free(step->plan.owner);
    free(step->plan.tokens);
    free(step);
}

void coordinator_close(coordinator_t *c) {
    if (!c) return;
    for (size_t i = 0; i < c->steps; i++) step_free(c, c->step[i]);
    free(c->step);
    free(c->worker);
    free(c->version);
    free(c->queue);
    free(c);
}

// ---- look-ups ----

static worker_t *worker_find(coordinator_t *c, uint32_t peer) {
    for (size_t i = 0; i < c->workers; i++)
        if (c->worker[i].peer == peer) return &c->worker[i];
    return NULL;
}

static const version_t *version_find(const coordinator_t *c, int64_t number) {
    for (size_t i = 0; i < c->versions; i++)
        if (c->version[i].number == number) return &c->version[i];
    return NULL;
}

static step_t *step_find(const coordinator_t *c, int64_t number) {
    for (size_t i = 0; i < c->steps; i++)
        if (c->step[i]->number == number) return c->step[i];
    return NULL;
}

static group_t *group_find(const coordinator_t *c, uint64_t serial, step_t **out_step) {
    uint64_t prompts = (uint64_t)c->options.prompts;
    step_t *step = step_find(c, (int64_t)(serial / prompts));
    if (out_step) *out_step = step;
    return step ? &step->group[serial % prompts] : NULL;
}

// ---- workers and weights ----

status_t coordinator_worker_joined(coordinator_t *c, uint32_t peer, int credits) {
    if (credits < 1) FAIL(STATUS_PEER, "a worker joined with %d credits; rollout.credits must be at least 1", credits);
    if (worker_find(c, peer)) FAIL(STATUS_PEER, "worker %u joined twice", peer);
    TRY(memory_grow((void **)&c->worker, &c->worker_capacity, c->workers + 1, sizeof(*c->worker)));
    c->worker[c->workers++] = (worker_t){.peer = peer, .credits = credits, .version = -1, .held = -1};
    return STATUS_OK;
}

void coordinator_worker_gone(coordinator_t *c, uint32_t peer) {
    worker_t *worker = worker_find(c, peer);
    if (!worker) return;
    *worker = c->worker[--c->workers];
    for (size_t s = 0; s < c->steps; s++)
        for (int g = 0; g < c->options.prompts; g++) {
            group_t *group = &c->step[s]->group[g];
            if (group->worker != peer || group->arrived == c->options.completions) continue;
            // What has arrived stays: the next worker's completions are the same bits, and doubles are dropped.
            group->worker = 0;
            c->statistics.reissued++;
        }
}

status_t coordinator_worker_ready(coordinator_t *c, uint32_t peer, int64_t number, uint64_t checksum) {
    const version_t *version = version_find(c, number);
    worker_t *worker = worker_find(c, peer);
    if (!worker) return STATUS_OK; // it left meanwhile
    if (!version || version->checksum != checksum)
        FAIL(STATUS_PEER,
             "worker %u says that it holds weights version %lld with checksum %016llx, which is not what was announced",
             peer, (long long)number, (unsigned long long)checksum);
    worker->held = number;
    return STATUS_OK;
}

int coordinator_worker_open_groups(const coordinator_t *c, uint32_t peer) {
    int open = 0;
    for (size_t s = 0; s < c->steps; s++)
        for (int g = 0; g < c->options.prompts; g++) {
            const group_t *group = &c->step[s]->group[g];
            open += group->worker == peer && group->arrived < c->options.completions;
        }
    return open;
}

void coordinator_worker_phase(const coordinator_t *c, uint32_t peer, char *out, size_t bytes) {
    const worker_t *worker = NULL;
    const group_t *first = NULL;
    for (size_t i = 0; i < c->workers; i++)
        if (c->worker[i].peer == peer) worker = &c->worker[i];
    for (size_t s = 0; s < c->steps && !first; s++)
        for (int g = 0; g < c->options.prompts && !first; g++) {
            const group_t *group = &c->step[s]->group[g];
            if (group->worker == peer && group->arrived < c->options.completions) first = group;
        }
    if (worker && worker->version != worker->held)
        snprintf(out, bytes, "taking weights version %lld", (long long)worker->version);
    else if (first)
        snprintf(out, bytes, "generating group %llu (%d of %d completions have arrived)",
                 (unsigned long long)first->serial, first->arrived, c->options.completions);
    else
        snprintf(out, bytes, "waiting for work");
}

static int64_t version_of_step(const coordinator_t *c, int64_t step) {
    int64_t version = step - c->options.staleness;
    return version < 0 ? 0 : version;
}

static status_t step_open(coordinator_t *c, int64_t number) {
    step_t *step;
    TRY(memory_grow((void **)&c->step, &c->step_capacity, c->steps + 1, sizeof(*c->step)));
    TRY(ALLOCATE(&step, 1));
    step->number = number;
    step->version = version_of_step(c, number);
    c->step[c->steps++] = step;
    TRY(ALLOCATE(&step->group, c->options.prompts));
    for (int g = 0; g < c->options.prompts; g++) {
        step->group[g].serial = (uint64_t)number * (uint64_t)c->options.prompts + (uint64_t)g;
        TRY(ALLOCATE(&step->group[g].item, c->options.completions));
        TRY(ALLOCATE(&step->group[g].results, c->options.completions));
    }
    return STATUS_OK;
}

status_t coordinator_weights(coordinator_t *c, int64_t number, uint64_t checksum) {
    if (version_find(c, number)) FAIL(STATUS_PEER, "weights version %lld was announced twice", (long long)number);
    // Versions older than any open step can need are forgotten.
    size_t kept = 0;
    for (size_t i = 0; i < c->versions; i++)
        if (c->version[i].number + 2 * c->options.staleness + 2 >= number) c->version[kept++] = c->version[i];
    c->versions = kept;
    TRY(memory_grow((void **)&c->version, &c->version_capacity, c->versions + 1, sizeof(*c->version)));
    c->version[c->versions++] = (version_t){.number = number, .checksum = checksum};
    while (c->next_step < c->options.last_step && version_find(c, version_of_step(c, c->next_step))) {
        TRY(step_open(c, c->next_step));
        c->next_step++;
    }
    return STATUS_OK;
}

// ---- completions and scores ----

// Whether a sampler can have made these tokens and log-probs.
static bool values_are_possible(const coordinator_t *c, const message_completion_t *completion) {
    static const float rounding = 1e-3f;
    bool good = true;
    for (int32_t t = 0; good && t < completion->length; t++)
        good = completion->tokens[t] >= 0 &&
               (!c->options.vocabulary || completion->tokens[t] < c->options.vocabulary) &&
               isfinite(completion->logprobs[t]) && completion->logprobs[t] <= rounding &&
               isfinite(completion->entropy[t]);
    return good;
}

static status_t completion_check(const coordinator_t *c, const step_t *step, const group_t *group, uint32_t peer,
                                 const message_completion_t *completion) {
    if (!group)
        FAIL(STATUS_PEER, "worker %u sent a completion of group %llu, which is not open", peer,
             (unsigned long long)completion->serial);
    const version_t *version = version_find(c, step->version);
    if (completion->version != step->version || !version || completion->checksum != version->checksum)
        FAIL(
            STATUS_PEER,
            "worker %u sampled group %llu from weights version %lld (checksum %016llx), but version %lld was asked for",
            peer, (unsigned long long)group->serial, (long long)completion->version,
            (unsigned long long)completion->checksum, (long long)step->version);
    if (completion->index < 0 || completion->index >= c->options.completions || completion->length < 1 ||
        completion->length > c->options.max_new_tokens)
        FAIL(STATUS_PEER, "worker %u sent completion %d of group %llu with %d tokens, which is out of range", peer,
             completion->index, (unsigned long long)group->serial, completion->length);
    if (!values_are_possible(c, completion))
        FAIL(STATUS_PEER, "worker %u sent completion %d of group %llu with tokens or log-probs that cannot be", peer,
             completion->index, (unsigned long long)group->serial);
    // One that was taken for dead may deliver late what others have delivered since; nobody else delivers for others.
    if (!group->item[completion->index].arrived && group->worker != peer)
        FAIL(STATUS_PEER, "worker %u sent completion %d of group %llu, which it does not hold", peer, completion->index,
             (unsigned long long)group->serial);
    return STATUS_OK;
}

static status_t score_queue_push(coordinator_t *c, uint64_t serial, int32_t index) {
    if (c->queue_head == c->queue_count) c->queue_head = c->queue_count = 0;
    TRY(memory_grow((void **)&c->queue, &c->queue_capacity, c->queue_count + 1, sizeof(*c->queue)));
    c->queue[c->queue_count++] = (score_request_t){.serial = serial, .index = index};
    return STATUS_OK;
}

status_t coordinator_completion(coordinator_t *c, uint32_t peer, message_completion_t *completion, bool *fresh) {
    step_t *step;
    *fresh = false;
    group_t *group = group_find(c, completion->serial, &step);
    // A worker that was taken for dead may deliver what another has delivered since, even after the step has gone.
    bool released = !group && completion->serial / (uint64_t)c->options.prompts < (uint64_t)c->next_step;
    status_t status = released ? STATUS_OK : completion_check(c, step, group, peer, completion);
    if (status || released || group->item[completion->index].arrived) {
        if (!status) c->statistics.duplicates++;
        completion_free(completion);
        return status;
    }
    item_t *item = &group->item[completion->index];
    *fresh = item->arrived = true;
    item->completion = *completion;
    *completion = (message_completion_t){0};
    worker_t *holder = worker_find(c, group->worker);
    if (++group->arrived == c->options.completions && holder) holder->open--;
    return score_queue_push(c, group->serial, item->completion.index);
}

static void group_close(coordinator_t *c, group_t *group) {
    double reward[MESSAGE_MAX_COMPLETIONS] = {0}, advantage[MESSAGE_MAX_COMPLETIONS] = {0};
    bool excluded[MESSAGE_MAX_COMPLETIONS] = {false};
    int count = c->options.completions;
    for (int i = 0; i < count; i++) {
        reward[i] = group->item[i].result.reward;
        excluded[i] = group->item[i].result.excluded;
    }
    reward_group_advantages(reward, excluded, count, c->options.advantage_eps, advantage, &group->spread);
    for (int i = 0; i < count; i++) {
        group->results[i] = group->item[i].result;
        group->results[i].advantage = advantage[i];
    }
    group->closed = true;
}

static void reason_count(step_t *step, const char *why) {
    int r = 0;
    while (r < MOST_REASONS && step->reason[r].count && strcmp(step->reason[r].text, why) != 0) r++;
    if (r == MOST_REASONS) return;
    if (!step->reason[r].count++) snprintf(step->reason[r].text, sizeof(step->reason[r].text), "%s", why);
}

// Counts an exclusion. Once the step has more than may be, nothing can mend it: the run ends now, not after scoring the
// rest, however often a scorer would have to be started for that.
static status_t exclude(const coordinator_t *c, step_t *step, reward_outcome_t outcome, const char *why) {
    step->excluded++;
    step->timeouts += outcome == REWARD_TIMEOUT;
    reason_count(step, why);
    int64_t all = (int64_t)c->options.prompts * c->options.completions;
    if ((double)step->excluded <= c->options.excluded_limit * (double)all) return STATUS_OK;
    const reason_t *most = &step->reason[0];
    for (int r = 1; r < MOST_REASONS; r++)
        if (step->reason[r].count > most->count) most = &step->reason[r];
    FAIL(STATUS_FAILED,
         "%lld of the %lld completions of step %lld have no reward (%lld ran out of time, %lld failed), which is more "
         "than grpo.excluded_limit (%g) allows; the most frequent reason, %lld times: %s; mend that, or raise "
         "reward.timeout_s, reward.memory_mb or grpo.excluded_limit",
         (long long)step->excluded, (long long)all, (long long)step->number, (long long)step->timeouts,
         (long long)(step->excluded - step->timeouts), c->options.excluded_limit, (long long)most->count, most->text);
}

status_t coordinator_scored(coordinator_t *c, uint64_t serial, int32_t index, reward_outcome_t outcome, const char *why,
                            double reward, double tag, double answer) {
    step_t *step;
    group_t *group = group_find(c, serial, &step);
    if (!group || index < 0 || index >= c->options.completions || !group->item[index].arrived ||
        group->item[index].scored)
        FAIL(STATUS_FAILED, "a score came for completion %d of group %llu, which waits for none", index,
             (unsigned long long)serial);
    item_t *item = &group->item[index];
    const message_completion_t *completion = &item->completion;
    bool excluded = outcome != REWARD_OK;
    item->scored = true;
    item->result = (message_group_item_t){.index = index,
                                          .length = completion->length,
                                          .tokens = completion->tokens,
                                          .logprobs = completion->logprobs,
                                          .reward = excluded ? 0 : reward,
                                          .reward_tag = excluded ? 0 : tag,
                                          .reward_answer = excluded ? 0 : answer,
                                          .truncated = completion->truncated,
                                          .excluded = excluded};
    if (excluded) TRY(exclude(c, step, outcome, why));
    if (++group->scored < c->options.completions) return STATUS_OK;
    group_close(c, group);
    step->closed++;
    return STATUS_OK;
}

// ---- plans ----

typedef struct load {
    int group;
    int64_t tokens;
} load_t;

static int load_compare(const void *a, const void *b) {
    const load_t *x = a, *y = b;
    if (x->tokens != y->tokens) return x->tokens < y->tokens ? 1 : -1;
    return x->group - y->group;
}

// Longest group first to the learner with the least so far: balanced, and a function of the groups alone.
static status_t plan_assign(const coordinator_t *c, message_plan_t *plan) {
    load_t *load = NULL;
    int64_t *total = NULL;
    status_t status = ALLOCATE(&load, plan->groups);
    if (!status) status = ALLOCATE(&total, c->options.learners);
    for (int g = 0; !status && g < plan->groups; g++) load[g] = (load_t){.group = g, .tokens = plan->tokens[g]};
    if (!status) qsort(load, (size_t)plan->groups, sizeof(*load), load_compare);
    for (int g = 0; !status && g < plan->groups; g++) {
        int least = 0;
        for (int l = 1; l < c->options.learners; l++)
            if (total[l] < total[least]) least = l;
        plan->owner[load[g].group] = least;
        total[least] += load[g].tokens;
    }
    free(load);
    free(total);
    return status;
}

static status_t plan_make(coordinator_t *c, step_t *step) {
    message_plan_t *plan = &step->plan;
    plan->step = step->number;
    plan->groups = c->options.prompts;
    TRY(ALLOCATE(&plan->serial, plan->groups));
    TRY(ALLOCATE(&plan->owner, plan->groups));
    TRY(ALLOCATE(&plan->tokens, plan->groups));
    for (int g = 0; g < plan->groups; g++) {
        const group_t *group = &step->group[g];
        plan->serial[g] = group->serial;
        plan->spreadless += !group->spread;
        for (int i = 0; i < c->options.completions; i++) {
            const message_group_item_t *result = &group->results[i];
            plan->tokens[g] += result->length;
            plan->excluded += result->excluded;
            plan->sequences += !result->excluded;
            plan->completion_tokens += result->excluded ? 0 : result->length;
        }
    }
    plan->timeouts = step->timeouts;
    return plan_assign(c, plan);
}

// ---- what to do next ----

// The worker for a group of this version: one with a free credit, the least loaded; -1 when there is none.
static int worker_choose(const coordinator_t *c) {
    int best = -1;
    for (size_t i = 0; i < c->workers; i++) {
        const worker_t *worker = &c->worker[i];
        if (worker->open >= worker->credits) continue;
        if (best < 0 || worker->open < c->worker[best].open) best = (int)i;
    }
    return best;
}

static bool next_work(coordinator_t *c, coordinator_action_t *action) {
    int chosen = worker_choose(c);
    if (chosen < 0) return false;
    worker_t *worker = &c->worker[chosen];
    for (size_t s = 0; s < c->steps; s++) {
        step_t *step = c->step[s];
        for (int g = 0; g < c->options.prompts; g++) {
            group_t *group = &step->group[g];
            if (group->worker || group->arrived == c->options.completions) continue;
            action->worker = worker->peer;
            if (worker->version != step->version) {
                worker->version = step->version;
                action->kind = ACTION_SEND_WEIGHTS;
                action->version = step->version;
                return true;
            }
            group->worker = worker->peer;
            worker->open++;
            action->kind = ACTION_SEND_WORK;
            action->again = group->issued;
            action->arrived = group->arrived;
            group->issued = true;
            action->work = (message_work_t){.serial = group->serial,
                                            .seed = c->options.seed,
                                            .version = step->version,
                                            .completions = c->options.completions,
                                            .max_new_tokens = c->options.max_new_tokens,
                                            .temperature = (float)c->options.temperature};
            return true;
        }
    }
    return false;
}

status_t coordinator_next(coordinator_t *c, coordinator_action_t *action) {
    *action = (coordinator_action_t){0};
    if (c->queue_head < c->queue_count) {
        score_request_t request = c->queue[c->queue_head++];
        const group_t *group = group_find(c, request.serial, NULL);
        action->kind = ACTION_SCORE;
        action->serial = request.serial;
        action->index = request.index;
        action->text = group->item[request.index].completion.text;
        action->tokens = group->item[request.index].completion.length;
        return STATUS_OK;
    }
    if (next_work(c, action)) return STATUS_OK;
    for (size_t s = 0; s < c->steps; s++) {
        step_t *step = c->step[s];
        if (step->planned || step->closed < c->options.prompts) continue;
        TRY(plan_make(c, step));
        step->planned = true;
        c->statistics.closed_steps++;
        action->kind = ACTION_SEND_PLAN;
        action->step = step->number;
        return STATUS_OK;
    }
    return STATUS_OK;
}

status_t coordinator_plan(coordinator_t *c, int64_t number, message_plan_t *out) {
    const step_t *step = step_find(c, number);
    if (!step || !step->planned)
        FAIL(STATUS_PEER, "the plan of step %lld was asked for, but that step is not closed", (long long)number);
    *out = step->plan;
    return STATUS_OK;
}

status_t coordinator_group(coordinator_t *c, uint64_t serial, message_group_t *out) {
    step_t *step;
    group_t *group = group_find(c, serial, &step);
    if (!group || !group->closed)
        FAIL(STATUS_PEER, "group %llu was asked for, but it is not closed or has been released",
             (unsigned long long)serial);
    *out = (message_group_t){
        .serial = serial, .version = step->version, .count = c->options.completions, .item = group->results};
    return STATUS_OK;
}

void coordinator_release(coordinator_t *c, int64_t number) {
    for (size_t s = 0; s < c->steps; s++) {
        if (c->step[s]->number != number) continue;
        step_free(c, c->step[s]);
        memmove(&c->step[s], &c->step[s + 1], (c->steps - s - 1) * sizeof(*c->step));
        c->steps--;
        return;
    }
}

coordinator_statistics_t coordinator_get_statistics(const coordinator_t *c) {
    coordinator_statistics_t statistics = c->statistics;
    statistics.workers = (int64_t)c->workers;
    for (size_t s = 0; s < c->steps; s++) statistics.open_groups += c->options.prompts - c->step[s]->closed;
    return statistics;
}
