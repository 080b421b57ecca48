// The coordinator: the state machine of the reward rank, apart from sockets and processes so that it can be tested
// alone.
//
// It issues groups by serial (0, 1, 2, ...), hands them to workers within their credits, takes completions, sends them
// to scorers, closes groups, computes advantages, and closes a step's batch by serial numbers (step t owns serials t*P
// .. t*P + P-1). Strict staleness k: step t's groups are sampled from version max(0, t - k) exactly. A group whose
// worker is gone goes to another. Which sample a serial stands for is packed_order(seed, serial): stateless, so resume
// needs only the step number.
#ifndef ROLLOUT_REWARD_COORDINATOR_H
#define ROLLOUT_REWARD_COORDINATOR_H

#include "common/comm/job.h"
#include "common/wire/message.h"
#include "rollout/reward/reward.h"

typedef struct coordinator coordinator_t;

typedef struct coordinator_options {
    int prompts, completions, staleness, learners;
    int64_t first_step, last_step; // steps first_step .. last_step - 1 are issued
    uint64_t seed;
    int max_new_tokens;
    int vocabulary; // token ids are below it; 0: not known
    double temperature, advantage_eps, excluded_limit;
} coordinator_options_t;

// What the owner must do next; taken one at a time by coordinator_next.
typedef enum coordinator_action_kind {
    ACTION_NONE,
    ACTION_SEND_WEIGHTS, // tell the worker to hold this version before the work that follows
    ACTION_SEND_WORK,
    ACTION_SCORE,
    ACTION_SEND_PLAN,
} coordinator_action_kind_t;
typedef struct coordinator_action {
    coordinator_action_kind_t kind;
    uint32_t worker;     // SEND_WEIGHTS, SEND_WORK: peer
    int64_t version;     // SEND_WEIGHTS
    message_work_t work; // SEND_WORK; sample is filled by the owner through packed_order
    bool again;          // SEND_WORK: the group was another worker's before
    int arrived;         // SEND_WORK: completions of it that have arrived already
    uint64_t serial;     // SCORE
    int32_t index;       // SCORE: completion of the group
    const char *text;    // SCORE; valid until the group is released
    int32_t tokens;      // SCORE: length
    int64_t step;        // SEND_PLAN
} coordinator_action_t;

status_t coordinator_open(const coordinator_options_t *options, coordinator_t **out) STATUS_CHECKED;
void coordinator_close(coordinator_t *coordinator);
status_t coordinator_worker_joined(coordinator_t *coordinator, uint32_t worker, int credits) STATUS_CHECKED;
// Its open groups are issued again, under the same serials and seeds.
void coordinator_worker_gone(coordinator_t *coordinator, uint32_t worker);
// STATUS_PEER: the worker holds other bytes than were announced.
status_t coordinator_worker_ready(coordinator_t *coordinator, uint32_t worker, int64_t version,
                                  uint64_t checksum) STATUS_CHECKED;
// Version v exists with this checksum; completions that claim another are refused.
status_t coordinator_weights(coordinator_t *coordinator, int64_t version, uint64_t checksum) STATUS_CHECKED;
// Takes over the completion's memory. *fresh: it was wanted; duplicates (a group issued twice) are dropped and counted.
// STATUS_PEER: it does not belong to an open group of this worker, carries a wrong version or checksum, or values that
// no sampler gives: what is accepted trains the model, so a worker that errs must not get it past here.
status_t coordinator_completion(coordinator_t *coordinator, uint32_t worker, message_completion_t *completion,
                                bool *fresh) STATUS_CHECKED;
// Groups that the worker holds and that are not whole yet, and what it is at, for people: "generating group 17 (2 of 8
// completions have arrived)".
int coordinator_worker_open_groups(const coordinator_t *coordinator, uint32_t worker);
void coordinator_worker_phase(const coordinator_t *coordinator, uint32_t worker, char *out, size_t bytes);
// outcome other than REWARD_OK: the completion is excluded, `why` says why and the numbers do not count.
// STATUS_FAILED: more of the step's completions are excluded than excluded_limit allows.
status_t coordinator_scored(coordinator_t *coordinator, uint64_t serial, int32_t index, reward_outcome_t outcome,
                            const char *why, double reward, double tag, double answer) STATUS_CHECKED;
// The next thing to do; kind ACTION_NONE when there is nothing.
status_t coordinator_next(coordinator_t *coordinator, coordinator_action_t *action) STATUS_CHECKED;
// The closed plan of a step (groups balanced over learners by tokens, longest first), and its groups. Borrowed until
// release.
status_t coordinator_plan(coordinator_t *coordinator, int64_t step, message_plan_t *out) STATUS_CHECKED;
status_t coordinator_group(coordinator_t *coordinator, uint64_t serial, message_group_t *out) STATUS_CHECKED;
// Forgets the groups of a step once the learners have announced the version after it.
void coordinator_release(coordinator_t *coordinator, int64_t step);

typedef struct coordinator_statistics {
    int64_t duplicates; // completions that came twice and were dropped
    int64_t reissued;   // groups given to another worker
    int64_t workers, open_groups, closed_steps;
} coordinator_statistics_t;
coordinator_statistics_t coordinator_get_statistics(const coordinator_t *coordinator);

#endif
