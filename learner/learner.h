// The door of learner/: what launch/ calls. Collective over job->learners.
#ifndef LEARNER_LEARNER_H
#define LEARNER_LEARNER_H

#include "common/comm/job.h"

// `poise sft`: trains from config, writes metrics, checkpoints and output/model. job->learners is all ranks.
status_t learner_sft_run(job_t *job) STATUS_CHECKED;
// A learner rank of `poise grpo`.
status_t learner_grpo_run(job_t *job) STATUS_CHECKED;
// --dry-run: prints the resolved plan, trainable and frozen counts per module, and the memory table; no training.
status_t learner_print_plan(job_t *job, bool grpo, FILE *stream) STATUS_CHECKED;

#endif
