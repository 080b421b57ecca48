// Who takes part in a run: its own ranks, and rollout pools that come and go. What comes from outside may be wrong and
// never ends the run.
#include "rollout/reward/reward_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

peer_t *reward_peer(reward_rank_t *r, uint32_t number) {
    for (size_t i = r->peers; i > 0; i--)
        if (r->peer[i - 1].number == number) return &r->peer[i - 1];
    return NULL;
}

peer_t *reward_learner(reward_rank_t *r, int role_index) {
    for (size_t i = 0; i < r->peers; i++)
        if (r->peer[i].state == PEER_HERE && r->peer[i].learner && r->peer[i].role_index == role_index)
            return &r->peer[i];
    return NULL;
}

void reward_peer_phase(const reward_rank_t *r, const peer_t *peer, char out[PHASE_BYTES]) {
    if (peer->state == PEER_ASKING)
        snprintf(out, PHASE_BYTES, "joining");
    else if (peer->state == PEER_REFUSED)
        snprintf(out, PHASE_BYTES, "refused");
    else if (peer->learner)
        snprintf(out, PHASE_BYTES, "learning");
    else if (!r->coordinator)
        snprintf(out, PHASE_BYTES, "waiting for the learners");
    else
        coordinator_worker_phase(r->coordinator, peer->number, out, PHASE_BYTES);
}

static bool is_own(const reward_rank_t *r, int world_rank) {
    return world_rank >= 0 && world_rank < comm_size(r->job->world);
}

// ---- joining ----

static status_t add_peer(reward_rank_t *r, peer_t peer) {
    TRY(memory_grow((void **)&r->peer, &r->peer_capacity, r->peers + 1, sizeof(*r->peer)));
    peer.since = clock_seconds();
    r->peer[r->peers++] = peer;
    return STATUS_OK;
}

static status_t refuse(reward_rank_t *r, uint32_t number, int world_rank, const char *reason) {
    message_t message = {.type = MESSAGE_REFUSED};
    snprintf(message.refused.reason, sizeof(message.refused.reason), "%s", reason);
    journal_entry_t entry = {.kind = "worker_refused", .rank = world_rank, .phase = "joining", .reason = reason};
    journal_write(&r->journal, &entry, "a peer that calls itself rank %d was refused while joining: %s", world_rank,
                  reason);
    TRY(add_peer(r, (peer_t){.number = number, .state = PEER_REFUSED, .world_rank = world_rank}));
    return reward_send(r, number, &message);
}

// The configuration as a pool is to use it: with paths that do not depend on where the job was started.
static status_t settings_text(const config_t *config, char **out) {
    config_t copy = *config;
    char *absolute[4];
    char **path[4] = {&copy.model, &copy.adapter, &copy.data.train, &copy.output};
    for (int i = 0; i < 4; i++) {
        absolute[i] = *path[i] && **path[i] ? realpath(*path[i], NULL) : NULL;
        if (absolute[i]) *path[i] = absolute[i];
    }
    status_t status = config_to_text(&copy, out);
    for (int i = 0; i < 4; i++) free(absolute[i]);
    return status;
}

static status_t tell_settings(reward_rank_t *r, uint32_t number) {
    message_t message = {.type = MESSAGE_SETTINGS};
    message.settings.data_hash = packed_hash_number(r->packed);
    message.settings.world_rank = comm_size(r->job->world) + r->pool_workers;
    message.settings.role_index = r->job->rollout_count + r->pool_workers;
    r->pool_workers++;
    TRY(settings_text(r->job->config, &message.settings.config));
    status_t status =
        add_peer(r, (peer_t){.number = number, .state = PEER_ASKING, .world_rank = message.settings.world_rank});
    if (!status) status = reward_send(r, number, &message);
    message_free(&message);
    return status;
}

static bool was_here(const reward_rank_t *r, bool learner, int world_rank) {
    for (size_t i = 0; i < r->peers; i++) {
        const peer_t *peer = &r->peer[i];
        bool joined = peer->state == PEER_HERE || (peer->state == PEER_GONE && peer->credits >= 0);
        if (joined && peer->learner == learner && peer->world_rank == world_rank) return true;
    }
    return false;
}

// Whether the layout of the job has such a rank, and it has not been here yet.
static bool is_expected(const reward_rank_t *r, const message_hello_t *hello, bool learner) {
    const job_t *job = r->job;
    bool colocated = job->config->roles.colocated;
    int first = learner || colocated ? 0 : job->learner_count;
    int count = learner ? job->learner_count : job->rollout_count;
    return hello->role_index >= 0 && hello->role_index < count && hello->world_rank == first + hello->role_index &&
           !was_here(r, learner, hello->world_rank);
}

// Whether a pool's worker of that rank was told the settings and is due.
static bool is_invited(const reward_rank_t *r, const message_hello_t *hello) {
    int number = hello->world_rank - comm_size(r->job->world);
    return number >= 0 && number < r->pool_workers && hello->role_index == r->job->rollout_count + number &&
           !was_here(r, false, hello->world_rank);
}

static status_t take_hello(reward_rank_t *r, uint32_t number, const message_hello_t *hello) {
    bool learner = !strcmp(hello->role, "learner"), worker = !strcmp(hello->role, "rollout");
    char reason[256];
    if (!strcmp(hello->role, "pool")) {
        if (!r->finished) return tell_settings(r, number);
        message_t stop = {.type = MESSAGE_STOP};
        snprintf(stop.stop.reason, sizeof(stop.stop.reason), "%s", r->stopped[0] ? r->stopped : "training is done");
        TRY(add_peer(r, (peer_t){.number = number, .state = PEER_REFUSED, .world_rank = hello->world_rank}));
        return reward_send(r, number, &stop);
    }
    bool expected = (learner || worker) && is_expected(r, hello, learner);
    if (!expected && !(worker && is_invited(r, hello))) {
        snprintf(reason, sizeof(reason), "this run has no place for rank %d as %s %d", hello->world_rank, hello->role,
                 hello->role_index);
        return refuse(r, number, hello->world_rank, reason);
    }
    if (hello->data_hash != packed_hash_number(r->packed)) {
        if (expected)
            FAIL(STATUS_INVALID,
                 "rank %d opened another data file than the reward rank; give all ranks the same data.train",
                 hello->world_rank);
        return refuse(r, number, hello->world_rank,
                      "its data.train is another file than the job's; give it the same by --set data.train=FILE");
    }
    if (worker && hello->credits < 1) return refuse(r, number, hello->world_rank, "it takes no work (no credits)");
    if (learner && r->coordinator && hello->step != r->first_step)
        FAIL(STATUS_FAILED, "learner %d resumed at step %lld and another at step %lld", hello->role_index,
             (long long)hello->step, (long long)r->first_step);
    TRY(add_peer(r, (peer_t){.number = number,
                             .state = PEER_HERE,
                             .learner = learner,
                             .world_rank = hello->world_rank,
                             .role_index = hello->role_index,
                             .credits = hello->credits,
                             .fingerprint = hello->fingerprint}));
    if (learner) {
        r->learners_here++;
        return r->coordinator ? STATUS_OK : reward_begin(r, hello->step);
    }
    r->workers_here++;
    journal_entry_t entry = {.kind = "worker_joined", .rank = hello->world_rank, .phase = "joining"};
    if (is_own(r, hello->world_rank))
        journal_write(&r->journal, &entry, "%s", "");
    else
        journal_write(&r->journal, &entry, "rollout rank %d has joined from outside; %d workers are here",
                      hello->world_rank, r->workers_here);
    return r->coordinator ? coordinator_worker_joined(r->coordinator, number, hello->credits) : STATUS_OK;
}

// Equal fingerprints promise equal bits. Where a worker's differs from the learners', the run says so once; the
// mismatch itself is in the metrics (logprob_max_abs_diff).
static void compare_fingerprints(reward_rank_t *r) {
    const peer_t *learner = reward_learner(r, 0);
    for (size_t i = 0; learner && !r->mismatch_said && i < r->peers; i++) {
        const peer_t *peer = &r->peer[i];
        if (peer->state != PEER_HERE || peer->fingerprint == learner->fingerprint) continue;
        r->mismatch_said = true;
        fprintf(stderr,
                "poise: %s rank %d runs other kernels than learner rank %d: their log-probs may differ; see "
                "logprob_max_abs_diff in the metrics\n",
                peer->learner ? "learner" : "rollout", peer->world_rank, learner->world_rank);
    }
}

status_t reward_on_joined(reward_rank_t *r, const hub_event_t *event) {
    message_t message;
    status_t status = message_unpack(event->message.data, event->message.size, &message);
    if (status) {
        if (status_kind(status) != STATUS_PEER) return status;
        status_t refused = refuse(r, event->peer, -1, status_message(status));
        status_free(status);
        return refused;
    }
    if (message.type == MESSAGE_HELLO) {
        status = take_hello(r, event->peer, &message.hello);
    } else {
        char reason[96];
        snprintf(reason, sizeof(reason), "it opened with %s instead of hello", message_type_name(message.type));
        status = refuse(r, event->peer, -1, reason);
    }
    message_free(&message);
    if (!status) compare_fingerprints(r);
    return status;
}

// ---- going and coming back ----

void reward_on_back(reward_rank_t *r, const hub_event_t *event) {
    char phase[PHASE_BYTES];
    const peer_t *peer = reward_peer(r, event->peer);
    if (!peer || peer->state != PEER_HERE) return;
    reward_peer_phase(r, peer, phase);
    journal_entry_t entry = {.kind = "worker_back", .rank = peer->world_rank, .phase = phase, .reason = event->reason};
    if (peer->learner) entry.kind = "learner_back";
    journal_write(&r->journal, &entry, "%s rank %d is back while %s (%s)", peer->learner ? "learner" : "rollout",
                  peer->world_rank, phase, event->reason);
}

static void worker_gone(reward_rank_t *r, const peer_t *peer, const char *phase, const char *reason) {
    bool left = !strcmp(reason, "said goodbye");
    int open = r->coordinator ? coordinator_worker_open_groups(r->coordinator, peer->number) : 0;
    journal_entry_t entry = {.kind = left ? "worker_left" : "worker_gone", .rank = peer->world_rank};
    entry.phase = phase;
    entry.reason = reason;
    journal_write(&r->journal, &entry, "rollout rank %d is gone while %s: %s; its %d open groups go to the %d left",
                  peer->world_rank, phase, reason, open, r->workers_here);
    if (r->coordinator) coordinator_worker_gone(r->coordinator, peer->number);
}

status_t reward_on_gone(reward_rank_t *r, const hub_event_t *event) {
    char phase[PHASE_BYTES];
    peer_t *peer = reward_peer(r, event->peer);
    if (!peer) return STATUS_OK;
    peer_state_t before = peer->state;
    reward_peer_phase(r, peer, phase);
    peer->state = PEER_GONE;
    if (before != PEER_HERE) {
        peer->credits = -1; // it never took part
        return STATUS_OK;
    }
    if (peer->learner)
        r->learners_here--;
    else
        r->workers_here--;
    if (r->finished) return STATUS_OK;
    if (!peer->learner) {
        worker_gone(r, peer, phase, event->reason);
        return STATUS_OK;
    }
    FAIL(STATUS_PEER,
         "learner rank %d is gone (%s); it was last in \"%s\"; start the run again to go on from its last checkpoint",
         peer->world_rank, event->reason, phase);
}

void reward_drop_stalled(reward_rank_t *r) {
    const config_t *config = r->job->config;
    double now = clock_seconds();
    char reason[96];
    for (size_t i = 0; i < r->peers; i++) {
        peer_t *peer = &r->peer[i];
        if (peer->state == PEER_REFUSED && now - peer->since > config->deadline.heartbeat_s)
            hub_drop(r->hub, peer->number, "it was refused");
        if (peer->state == PEER_ASKING && now - peer->since > config->deadline.start_s)
            hub_drop(r->hub, peer->number, "it was told the settings and did not join");
        if (peer->state != PEER_HERE || peer->learner) continue;
        // Groups are issued as far as training has come, so a worker that holds some has always one to finish.
        if (r->coordinator && now - peer->since > config->deadline.group_s &&
            coordinator_worker_open_groups(r->coordinator, peer->number) > 0) {
            snprintf(reason, sizeof(reason), "its heartbeats came, but no completion for %.1f s", now - peer->since);
            hub_drop(r->hub, peer->number, reason);
        } else if (hub_idle_seconds(r->hub, peer->number) > config->deadline.step_s) {
            hub_drop(r->hub, peer->number, "its work loop has stopped");
        }
    }
}
