// The door of learner/: what launch/ calls. Collective over job->learners.
#ifndef LEARNER_LEARNER_H
#define LEARNER_LEARNER_H

#include "common/comm/job.h"
#include "common/data/packed.h"
#include "common/model/model.h"

// `poise sft`: trains from config, writes metrics, checkpoints and output/model. job->learners is all ranks.
// STATUS_CANCELLED: asked to stop (USR1); a checkpoint of the last whole step is on disk.
status_t learner_sft_run(job_t *job) STATUS_CHECKED;
// A learner rank of `poise grpo`: publishes version t, waits for the plan of step t, fetches its groups, updates. Needs
// job->coordinator_endpoint. STATUS_CANCELLED as above; learner 0 has then told the reward rank to stop.
status_t learner_grpo_run(job_t *job) STATUS_CHECKED;
// --dry-run: prints the resolved plan, trainable and frozen counts per module, and the memory table; no training.
status_t learner_print_plan(job_t *job, bool grpo, FILE *stream) STATUS_CHECKED;

// Colocated ranks generate on the learner's own weights while it waits. All may be NULL.
typedef struct learner_colocated {
    void *context;
    // Once, before the first wait. The model and the data stay the learner's; the model holds the version to publish.
    status_t (*start)(void *context, model_t *model, packed_t *packed);
    // Version `version` is announced and in the model: KV pages and cached features of older weights are void.
    status_t (*published)(void *context, int64_t version);
    // A slice of generation (milliseconds); *worked false: there was nothing to do. Called only while the learner waits
    // for a plan or for groups, never during a step.
    status_t (*idle)(void *context, bool *worked);
    // Once, before the learner closes the model; also after failures, and when `start` was never reached.
    void (*end)(void *context);
} learner_colocated_t;
// learner_grpo_run for a colocated rank. Older versions are not kept in place: job_open refuses grpo.staleness > 0.
status_t learner_grpo_run_with(job_t *job, const learner_colocated_t *colocated) STATUS_CHECKED;

// `poise replay`: repeats a logged GRPO step from RUN/trajectories and compares bits.
typedef struct replay_options {
    const char *run; // the run's folder
    int64_t step;    // completed steps, as in the names of files
    bool bad;        // a step that held NaN or infinity, from RUN/bad_steps (SFT or GRPO)
    bool json;
} replay_options_t;
// The configuration that the step was run with, read from its file, then the settings. STATUS_INVALID says which steps
// can be replayed when this one is not logged.
status_t learner_replay_config(const replay_options_t *options, const char *const *settings, int setting_count,
                               config_t *out) STATUS_CHECKED;
// Repeats and compares, and prints the report to stdout on learner 0. *sentence says what differs first ("": nothing).
// Starts from the newest checkpoint before the step from which all steps are logged, or from the weights that the run
// began with. A bad step is computed again up to its first NaN or infinity, which is named by the op that made it;
// *sentence says when it is not the recorded one.
status_t learner_replay(job_t *job, const replay_options_t *options, char sentence[512]) STATUS_CHECKED;

#endif
