// Inside of the reward rank: its state, and the part that knows who takes part (reward_peers.c).
#ifndef ROLLOUT_REWARD_REWARD_INTERNAL_H
#define ROLLOUT_REWARD_REWARD_INTERNAL_H

#include "common/data/packed.h"
#include "common/wire/link.h"
#include "rollout/reward/coordinator.h"
#include "rollout/reward/journal.h"
#include "rollout/reward/scorer.h"
#include "rollout/rollout.h"

enum { TIMED_STEPS = 64, PHASE_BYTES = 160 };

typedef enum peer_state {
    PEER_GONE,
    PEER_ASKING,  // a rollout pool that was told the settings and has not joined yet
    PEER_REFUSED, // it was told why, and is expected to go
    PEER_HERE,
} peer_state_t;

typedef struct peer {
    uint32_t number; // of the hub
    peer_state_t state;
    bool learner;
    int world_rank, role_index, credits; // of a pool's worker: as the settings told it
    uint64_t fingerprint;
    double since; // of the state; a worker: when it last got or finished something
} peer_t;

typedef struct step_time {
    int64_t step;
    double first_work, last_completion;
} step_time_t;

typedef struct reward_rank {
    job_t *job;
    hub_t *hub;
    coordinator_t *coordinator; // NULL until the first learner is here
    packed_t *packed;
    scorer_pool_t *scorers;
    journal_t journal;
    char join_path[4096]; // of the join file; "": none
    peer_t *peer;         // as they joined
    size_t peers, peer_capacity;
    int learners_here, workers_here;
    int vocabulary;   // of the model
    int pool_workers; // told the settings so far: their ranks follow those of the job
    int64_t first_step, last_step;
    message_weights_t *weights; // announcements still of use
    size_t weights_count, weights_capacity;
    step_time_t time[TIMED_STEPS];
    coordinator_action_t waiting_score; // taken from the coordinator while no scorer was free
    double moved;                       // when something last happened
    bool finished, mismatch_said;
    char stopped[256]; // why, when the learners stopped before the last step
} reward_rank_t;

// ---- reward_rank.c ----

status_t reward_send(reward_rank_t *r, uint32_t peer, const message_t *message) STATUS_CHECKED;
// The first learner is here: the coordinator starts at its step, with the workers that came before.
status_t reward_begin(reward_rank_t *r, int64_t step) STATUS_CHECKED;

// ---- reward_peers.c ----

peer_t *reward_peer(reward_rank_t *r, uint32_t number);
peer_t *reward_learner(reward_rank_t *r, int role_index);
// What the rank is at, for people.
void reward_peer_phase(const reward_rank_t *r, const peer_t *peer, char out[PHASE_BYTES]);
// A peer's first words: it takes part, is told the settings, or is refused with the reason. An error only where the
// job's own ranks do not fit together.
status_t reward_on_joined(reward_rank_t *r, const hub_event_t *event) STATUS_CHECKED;
void reward_on_back(reward_rank_t *r, const hub_event_t *event);
status_t reward_on_gone(reward_rank_t *r, const hub_event_t *event) STATUS_CHECKED;
// Gives up workers that stand still or never finish a group, and strangers that do not go or do not join.
void reward_drop_stalled(reward_rank_t *r);

#endif
