// Checkpoints of a learner run: OUTPUT/checkpoints/step-N.h5, N completed steps; the newest whole file counts.
//
// A file holds whole tensors, so another number of ranks can go on from it, to the same bits.
//
//   schema, kind ("sft", "grpo"), step, training_hash, data_hash, config (YAML)
//   counts/PART_trainable, counts/PART_frozen
//   optimizer/master/NAME, optimizer/first_moment/NAME, optimizer/second_moment/NAME    f32, whole tensors
//   optimizer/scales   i64, three a tensor: exponent, ceiling, calibration; optimizer/updates, optimizer/version
//   weights/version-V  u8, GRPO under staleness k: the k published versions before the current one
#ifndef LEARNER_CHECKPOINT_H
#define LEARNER_CHECKPOINT_H

#include "learner/setup.h"

// Writes or reads what a kind of run adds; called on learner 0 only.
typedef status_t (*checkpoint_part_t)(void *context, store_t *store);

// Writes the state after `completed` steps and removes all but the newest checkpoint.keep files. `kind` is "sft" or
// "grpo"; `last`: the run ends after it. A file that cannot be written ends the run or not as learner/disk.h says;
// older checkpoints are removed only when the new one is whole. Collective: all have the same outcome.
status_t checkpoint_save(learner_t *learner, const char *kind, int64_t completed, bool last, checkpoint_part_t part,
                         void *context) STATUS_CHECKED;
// The same state under any name; makes its folder, removes nothing.
status_t checkpoint_write(learner_t *learner, const char *path, const char *kind, int64_t completed,
                          checkpoint_part_t part, void *context) STATUS_CHECKED;
// Loads the newest whole checkpoint, if there is one and `resume` is set; *completed is its step, else 0. Errors
// (STATUS_INVALID): written under another training configuration, other data or for another command; or the folder
// holds checkpoints and `resume` is false. Collective.
status_t checkpoint_resume(learner_t *learner, const char *kind, checkpoint_part_t part, void *context,
                           int64_t *completed) STATUS_CHECKED;
// What checkpoint_resume would find and refuse, for a dry run: loads and removes nothing. Collective.
status_t checkpoint_check(learner_t *learner, const char *kind, int64_t *completed) STATUS_CHECKED;
// The step of the newest checkpoint in OUTPUT that can be opened; -1: none. A torn file is passed over with a warning.
status_t checkpoint_newest(const char *output, int64_t *step) STATUS_CHECKED;
// Steps of the files step-N.h5 in a folder of OUTPUT ("checkpoints", "trajectories"), newest first, whole or not; a
// folder that does not exist holds none. *out is malloc'd.
status_t checkpoint_list(const char *output, const char *folder, int64_t **out, size_t *count) STATUS_CHECKED;
// Opens the checkpoint of one step for reading, with the checks of checkpoint_resume. Not collective.
status_t checkpoint_open_path(const learner_t *learner, const char *path, const char *kind, int64_t step,
                              store_t **store) STATUS_CHECKED;
status_t checkpoint_open(const learner_t *learner, const char *kind, int64_t step, store_t **store) STATUS_CHECKED;

#endif
