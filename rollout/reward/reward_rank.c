// The reward rank: sockets, scorers and files around the coordinator. Its main thread only routes.
#include "common/comm/join_file.h"
#include "common/store/store.h"
#include "rollout/reward/reward_internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LEAST_TURN_S = 10 };

status_t reward_send(reward_rank_t *r, uint32_t peer, const message_t *message) {
    link_buffer_t buffer;
    TRY(message_pack(message, &buffer));
    status_t status = hub_send(r->hub, peer, buffer);
    if (!status || status_kind(status) != STATUS_PEER) return status;
    status_free(status); // it is gone: its HUB_GONE event says so and is acted on
    return STATUS_OK;
}

static status_t send_stop(reward_rank_t *r, const char *reason) {
    message_t stop = {.type = MESSAGE_STOP};
    snprintf(stop.stop.reason, sizeof(stop.stop.reason), "%s", reason);
    for (size_t i = 0; i < r->peers; i++)
        if (r->peer[i].state == PEER_HERE || r->peer[i].state == PEER_ASKING)
            TRY(reward_send(r, r->peer[i].number, &stop));
    return STATUS_OK;
}

static const message_weights_t *weights_find(const reward_rank_t *r, int64_t version) {
    for (size_t i = 0; i < r->weights_count; i++)
        if (r->weights[i].version == version) return &r->weights[i];
    return NULL;
}

status_t reward_begin(reward_rank_t *r, int64_t step) {
    const config_t *config = r->job->config;
    r->first_step = step;
    r->last_step = config->optimizer.stop_after && config->optimizer.stop_after < config->optimizer.steps
                       ? config->optimizer.stop_after
                       : config->optimizer.steps;
    coordinator_options_t options = {.prompts = config->grpo.prompts,
                                     .completions = config->grpo.completions,
                                     .staleness = config->grpo.staleness,
                                     .learners = r->job->learner_count,
                                     .first_step = step,
                                     .last_step = r->last_step,
                                     .seed = (uint64_t)config->seed,
                                     .max_new_tokens = config->grpo.max_new_tokens,
                                     .vocabulary = r->vocabulary,
                                     .temperature = config->grpo.temperature,
                                     .advantage_eps = config->grpo.advantage_eps,
                                     .excluded_limit = config->grpo.excluded_limit};
    TRY(coordinator_open(&options, &r->coordinator));
    // Workers that came before the first learner could not be told to work: nobody knew at which step the run stands.
    for (size_t i = 0; i < r->peers; i++)
        if (r->peer[i].state == PEER_HERE && !r->peer[i].learner)
            TRY(coordinator_worker_joined(r->coordinator, r->peer[i].number, r->peer[i].credits));
    return STATUS_OK;
}

// ---- messages ----

static status_t on_weights(reward_rank_t *r, const peer_t *peer, const message_weights_t *weights) {
    if (!peer->learner || peer->role_index != 0)
        FAIL(STATUS_PEER, "rank %d announced weights, which only learner 0 does", peer->world_rank);
    TRY(memory_grow((void **)&r->weights, &r->weights_capacity, r->weights_count + 1, sizeof(*r->weights)));
    size_t kept = 0;
    for (size_t i = 0; i < r->weights_count; i++)
        if (r->weights[i].version + 2 * r->job->config->grpo.staleness + 2 >= weights->version)
            r->weights[kept++] = r->weights[i];
    r->weights_count = kept;
    r->weights[r->weights_count++] = *weights;
    TRY(coordinator_weights(r->coordinator, weights->version, weights->checksum));
    if (weights->version > r->first_step) coordinator_release(r->coordinator, weights->version - 1);
    if (weights->version >= r->last_step) {
        r->finished = true;
        return send_stop(r, "training is done");
    }
    return STATUS_OK;
}

static status_t on_fetch(reward_rank_t *r, const peer_t *peer, const message_t *message) {
    if (!peer->learner) FAIL(STATUS_PEER, "rank %d asked for groups, which only learners do", peer->world_rank);
    for (int i = 0; i < message->fetch.count; i++) {
        message_t group = {.type = MESSAGE_GROUP};
        TRY(coordinator_group(r->coordinator, message->fetch.serial[i], &group.group));
        group.group.sample = packed_order(r->packed, (uint64_t)r->job->config->seed, (int64_t)group.group.serial);
        TRY(reward_send(r, peer->number, &group));
    }
    return STATUS_OK;
}

static step_time_t *time_of(reward_rank_t *r, int64_t step) {
    step_time_t *time = &r->time[(uint64_t)step % TIMED_STEPS];
    if (time->step != step || !time->first_work) *time = (step_time_t){.step = step, .first_work = clock_seconds()};
    return time;
}

static status_t on_error(reward_rank_t *r, const peer_t *peer, const message_t *message) {
    if (peer->learner) FAIL(STATUS_PEER, "learner rank %d failed: %s", peer->world_rank, message->error.sentence);
    fprintf(stderr, "poise: rollout rank %d failed: %s\n", peer->world_rank, message->error.sentence);
    hub_drop(r->hub, peer->number, "it reported an error");
    return STATUS_OK;
}

// The learners agreed to stop at a step boundary (USR1); their checkpoint is on disk.
static status_t on_stop(reward_rank_t *r, const peer_t *peer, const message_t *message) {
    if (!peer->learner || peer->role_index != 0)
        FAIL(STATUS_PEER, "rank %d asked the run to stop, which only learner 0 does", peer->world_rank);
    r->finished = true;
    snprintf(r->stopped, sizeof(r->stopped), "%s", message->stop.reason);
    return send_stop(r, message->stop.reason);
}

static status_t on_completion(reward_rank_t *r, peer_t *peer, message_completion_t *completion) {
    uint64_t serial = completion->serial;
    int32_t index = completion->index;
    bool fresh;
    TRY(coordinator_completion(r->coordinator, peer->number, completion, &fresh));
    if (fresh) {
        peer->since = clock_seconds();
        time_of(r, (int64_t)(serial / (uint64_t)r->job->config->grpo.prompts))->last_completion = peer->since;
        return STATUS_OK;
    }
    char reason[64];
    snprintf(reason, sizeof(reason), "completion %d had arrived before", index);
    journal_entry_t entry = {.kind = "duplicate_dropped", .rank = peer->world_rank, .phase = "generating"};
    entry.reason = reason;
    entry.about_group = true;
    entry.group = serial;
    journal_write(&r->journal, &entry, "%s", "");
    return STATUS_OK;
}

// For learner 0's metrics. Those of a version that nobody announced, or has forgotten, are left out.
static status_t on_statistics(reward_rank_t *r, const message_t *message) {
    const peer_t *first = reward_learner(r, 0);
    if (!first || !weights_find(r, message->statistics.version)) return STATUS_OK;
    return reward_send(r, first->number, message);
}

// What only learners and what only workers send. Workers that come before the first learner have nothing to say yet.
static status_t check_sender(const reward_rank_t *r, const peer_t *peer, message_type_t type) {
    bool of_learner = type == MESSAGE_WEIGHTS || type == MESSAGE_FETCH || type == MESSAGE_STOP;
    bool of_worker = type == MESSAGE_READY || type == MESSAGE_COMPLETION || type == MESSAGE_STATISTICS;
    if ((of_learner && peer->learner) || (of_worker && !peer->learner && r->coordinator) || type == MESSAGE_ERROR)
        return STATUS_OK;
    if (of_worker && !peer->learner)
        FAIL(STATUS_PEER, "rank %d sent %s before the learners were here", peer->world_rank, message_type_name(type));
    FAIL(STATUS_PEER, "rank %d sent %s, which the reward rank does not take from a %s rank", peer->world_rank,
         message_type_name(type), peer->learner ? "learner" : "rollout");
}

static status_t dispatch(reward_rank_t *r, peer_t *peer, message_t *message) {
    TRY(check_sender(r, peer, message->type));
    switch (message->type) {
    case MESSAGE_WEIGHTS:
        return on_weights(r, peer, &message->weights);
    case MESSAGE_FETCH:
        return on_fetch(r, peer, message);
    case MESSAGE_ERROR:
        return on_error(r, peer, message);
    case MESSAGE_STOP:
        return on_stop(r, peer, message);
    case MESSAGE_READY:
        peer->since = clock_seconds();
        return coordinator_worker_ready(r->coordinator, peer->number, message->ready.version, message->ready.checksum);
    case MESSAGE_COMPLETION:
        return on_completion(r, peer, &message->completion);
    default:
        return on_statistics(r, message);
    }
}

static status_t on_message(reward_rank_t *r, hub_event_t *event) {
    peer_t *peer = reward_peer(r, event->peer);
    message_t message = {0};
    if (!peer || peer->state != PEER_HERE) return STATUS_OK;
    status_t status = message_unpack(event->message.data, event->message.size, &message);
    if (!status) status = dispatch(r, peer, &message);
    if (message.type) message_free(&message);
    // A worker that breaks the rules costs its place, not the run.
    if (status && status_kind(status) == STATUS_PEER && !peer->learner) {
        char reason[96];
        snprintf(reason, sizeof(reason), "it broke the protocol: %s", status_message(status));
        status_print(status, stderr, comm_world_rank(r->job->world), false);
        hub_drop(r->hub, peer->number, reason);
        status_free(status);
        return STATUS_OK;
    }
    return status;
}

// ---- actions ----

static status_t do_score(reward_rank_t *r, const coordinator_action_t *action) {
    const config_t *config = r->job->config;
    packed_sample_t sample;
    TRY(packed_sample(r->packed, packed_order(r->packed, (uint64_t)config->seed, (int64_t)action->serial), &sample));
    reward_input_t input = {.completion = action->text,
                            .answer = config->grpo.reward_answer > 0 ? sample.answer : NULL,
                            .kind = sample.kind,
                            .options = sample.options,
                            .option_count = sample.option_count,
                            .tag_style = config->grpo.strict_tags ? TAG_STRICT_NEWLINE : TAG_WHITESPACE_TOLERANT,
                            .tokens = action->tokens,
                            .budget = config->grpo.max_new_tokens};
    return scorer_submit(r->scorers, action->serial, action->index, &input);
}

static status_t do_send_work(reward_rank_t *r, coordinator_action_t *action) {
    message_t message = {.type = MESSAGE_WORK, .work = action->work};
    peer_t *peer = reward_peer(r, action->worker);
    // A worker that had nothing to do starts now.
    if (peer && coordinator_worker_open_groups(r->coordinator, action->worker) == 1) peer->since = clock_seconds();
    if (action->again) {
        char reason[64];
        snprintf(reason, sizeof(reason), "%d of %d completions had arrived", action->arrived, action->work.completions);
        journal_entry_t entry = {.kind = "group_reissued", .rank = peer ? peer->world_rank : -1, .phase = "work"};
        entry.reason = reason;
        entry.about_group = true;
        entry.group = action->work.serial;
        journal_write(&r->journal, &entry, "group %llu goes to rollout rank %d instead (%s)",
                      (unsigned long long)action->work.serial, entry.rank, reason);
    }
    time_of(r, (int64_t)(action->work.serial / (uint64_t)r->job->config->grpo.prompts));
    message.work.sample = packed_order(r->packed, (uint64_t)r->job->config->seed, (int64_t)action->work.serial);
    return reward_send(r, action->worker, &message);
}

static status_t do_send_weights(reward_rank_t *r, const coordinator_action_t *action) {
    const message_weights_t *weights = weights_find(r, action->version);
    if (!weights)
        FAIL(STATUS_FAILED, "weights version %lld is wanted but was never announced", (long long)action->version);
    message_t message = {.type = MESSAGE_WEIGHTS, .weights = *weights};
    return reward_send(r, action->worker, &message);
}

static status_t do_send_plan(reward_rank_t *r, const coordinator_action_t *action) {
    message_t message = {.type = MESSAGE_PLAN};
    TRY(coordinator_plan(r->coordinator, action->step, &message.plan));
    const step_time_t *time = time_of(r, action->step);
    message.plan.generate_s = time->last_completion - time->first_work;
    message.plan.reward_s = clock_seconds() - time->last_completion;
    for (size_t i = 0; i < r->peers; i++)
        if (r->peer[i].state == PEER_HERE && r->peer[i].learner) TRY(reward_send(r, r->peer[i].number, &message));
    return STATUS_OK;
}

// Does what the coordinator wants until it wants nothing (or a scorer).
static status_t act(reward_rank_t *r) {
    while (r->coordinator) {
        coordinator_action_t action = r->waiting_score;
        r->waiting_score = (coordinator_action_t){0};
        if (action.kind == ACTION_NONE) TRY(coordinator_next(r->coordinator, &action));
        if (action.kind == ACTION_NONE) return STATUS_OK;
        r->moved = clock_seconds();
        switch (action.kind) {
        case ACTION_SCORE:
            if (!scorer_pool_free(r->scorers)) {
                r->waiting_score = action;
                return STATUS_OK;
            }
            TRY(do_score(r, &action));
            break;
        case ACTION_SEND_WEIGHTS:
            TRY(do_send_weights(r, &action));
            break;
        case ACTION_SEND_WORK:
            TRY(do_send_work(r, &action));
            break;
        case ACTION_SEND_PLAN:
            TRY(do_send_plan(r, &action));
            break;
        case ACTION_NONE:
            break;
        }
    }
    return STATUS_OK;
}

// Takes what the scorers have finished, waiting at most wait_s for a first result, and keeps them busy.
static status_t take_scores(reward_rank_t *r, double wait_s) {
    for (;;) {
        scorer_result_t result;
        bool have;
        TRY(scorer_take(r->scorers, wait_s, &result, &have));
        if (!have) return STATUS_OK;
        r->moved = clock_seconds();
        if (result.outcome != REWARD_OK)
            fprintf(stderr, "poise: completion %d of group %llu has no reward: %s\n", result.index,
                    (unsigned long long)result.serial, result.why);
        TRY(coordinator_scored(r->coordinator, result.serial, result.index, result.outcome, result.why, result.reward,
                               result.tag, result.answer));
        TRY(act(r));
    }
}

static status_t check_deadlines(reward_rank_t *r, double started) {
    const config_t *config = r->job->config;
    double now = clock_seconds();
    bool complete = r->learners_here == r->job->learner_count && r->workers_here > 0;
    if (complete || r->finished) {
        if (now - r->moved < config->deadline.step_s) return STATUS_OK;
        coordinator_statistics_t statistics = coordinator_get_statistics(r->coordinator);
        FAIL(STATUS_TIMEOUT,
             "nothing has moved for %.0f s while waiting for %s (%lld open groups, %d workers); raise deadline.step_s "
             "if steps take this long",
             config->deadline.step_s,
             statistics.open_groups ? "rollout workers to finish groups" : "learner 0 to announce the next weights",
             (long long)statistics.open_groups, r->workers_here);
    }
    double since = r->coordinator && r->moved > started ? r->moved : started;
    if (now - since < config->deadline.start_s) return STATUS_OK;
    FAIL(STATUS_TIMEOUT,
         "after %.0f s %d of %d learners and %d of %d rollout workers are here; look at the messages of the missing "
         "ranks, or raise deadline.start_s",
         config->deadline.start_s, r->learners_here, r->job->learner_count, r->workers_here, r->job->rollout_count);
}

static status_t serve(reward_rank_t *r) {
    double started = r->moved = clock_seconds();
    // A turn only routes. The least is for machines that are very busy.
    double heartbeat_s = r->job->config->deadline.heartbeat_s;
    double turn_limit_s = heartbeat_s > LEAST_TURN_S ? heartbeat_s : LEAST_TURN_S;
    while (!r->finished || r->learners_here) {
        hub_event_t event;
        watch_phase(r->job->watch, r->coordinator ? "serving" : "waiting for the learners", turn_limit_s);
        // While something is being scored the wait is for the scorers: theirs are the short turns.
        bool scoring = scorer_pool_busy(r->scorers);
        TRY(hub_receive(r->hub, scoring ? 0 : 0.01, &event));
        status_t status = STATUS_OK;
        if (event.kind != HUB_NOTHING) r->moved = clock_seconds();
        if (event.kind == HUB_JOINED) status = reward_on_joined(r, &event);
        if (event.kind == HUB_BACK) reward_on_back(r, &event);
        if (event.kind == HUB_MESSAGE) status = on_message(r, &event);
        if (event.kind == HUB_GONE) status = reward_on_gone(r, &event);
        link_buffer_free(&event.message);
        TRY(status);
        TRY(act(r));
        TRY(take_scores(r, scoring && event.kind == HUB_NOTHING ? 0.002 : 0));
        reward_drop_stalled(r);
        TRY(check_deadlines(r, started));
        (void)job_stop_requested(r->job); // the learners hear of it and decide
    }
    return STATUS_OK;
}

// A group without a gold answer can have no reward: said now, not after the first step's generation.
static status_t check_answers(const reward_rank_t *r) {
    const config_t *config = r->job->config;
    int64_t count = packed_count(r->packed), missing = 0;
    if (config->grpo.reward_answer <= 0) return STATUS_OK;
    for (int64_t i = 0; i < count; i++) {
        packed_sample_t sample;
        TRY(packed_sample(r->packed, i, &sample));
        missing += !*sample.answer;
    }
    if (!missing) return STATUS_OK;
    FAIL(STATUS_INVALID,
         "%lld of %lld samples of %s have no 'answer'; pack data with answers, or set grpo.reward_answer to 0 to train "
         "without them",
         (long long)missing, (long long)count, config->data.train);
}

static status_t reward_rank_open(reward_rank_t *r) {
    const config_t *config = r->job->config;
    scorer_options_t scorers = {.program = r->job->program,
                                .scorers = config->reward.scorers,
                                .timeout_s = config->reward.timeout_s,
                                .memory_mb = config->reward.memory_mb,
                                .tag_weight = config->grpo.reward_tag,
                                .answer_weight = config->grpo.reward_answer,
                                .length_weight = config->grpo.reward_length};
    TRY(packed_open(config->data.train, &r->packed));
    TRY(check_answers(r));
    model_t *model;
    TRY(model_open(config->model, NULL, &model));
    r->vocabulary = model->config.vocabulary;
    model_close(model);
    TRY(scorer_pool_open(&scorers, &r->scorers));
    link_options_t options = job_link_options(r->job);
    TRY(hub_open(job_bind_endpoint(r->job), &options, &r->hub));
    if (config->output[0]) TRY(file_make_directory(config->output));
    journal_open(&r->journal, config->output);
    if (!config->output[0]) return STATUS_OK;
    char *folder = realpath(config->output, NULL); // launchers read the path, from wherever they stand
    snprintf(r->join_path, sizeof(r->join_path), "%s/join.json", folder ? folder : config->output);
    free(folder);
    return join_file_write(r->job, hub_endpoint(r->hub), r->join_path);
}

// Tells launchers how the run ended, and takes back the invitation to join.
static void close_journal(reward_rank_t *r, status_t status) {
    journal_entry_t entry = {.kind = "closed", .rank = comm_world_rank(r->job->world)};
    entry.reason = status ? status_message(status) : "training is done";
    if (r->join_path[0]) unlink(r->join_path);
    journal_write(&r->journal, &entry, "%s", "");
    journal_close(&r->journal);
}

status_t reward_rank_run(job_t *job) {
    reward_rank_t r = {.job = job, .journal = {.file = {-1, -1}}};
    status_t status = reward_rank_open(&r);
    journal_entry_t opened = {.kind = "opened", .rank = comm_world_rank(job->world), .join = r.join_path};
    if (!status) journal_write(&r.journal, &opened, "%s", "");
    // The others wait in this collective: they are told also when opening failed.
    status_t shared = status ? job_share_failure(job, status) : job_share_endpoint(job, hub_endpoint(r.hub));
    status = status_first(status, shared);
    if (!status) status = serve(&r);
    if (status && r.hub) status = status_first(status, send_stop(&r, status_message(status)));
    if (!status && r.stopped[0])
        status = STATUS_NEW(STATUS_CANCELLED, "%s; the same command goes on from there", r.stopped);
    job_phase(job, "closing the streams");
    close_journal(&r, status);
    if (r.hub) hub_close(r.hub);
    scorer_pool_close(r.scorers);
    coordinator_close(r.coordinator);
    packed_close(r.packed);
    free(r.peer);
    free(r.weights);
    return status;
}
