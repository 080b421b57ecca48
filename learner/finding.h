// NaN and infinity: where the first one of a step is, and what becomes of the step.
#ifndef LEARNER_FINDING_H
#define LEARNER_FINDING_H

#include "learner/checkpoint.h"

// What a value that is NaN or infinite is; in the order in which a step computes them.
typedef enum finding_kind {
    FINDING_NONE,
    FINDING_REWARD,    // reward or advantage of a completion
    FINDING_SAMPLER,   // a log-prob that the sampler recorded
    FINDING_REFERENCE, // a log-prob of the KL reference
    FINDING_LOGPROB,
    FINDING_LOSS, // of a sample or completion, or its derivative
    FINDING_GRADIENT,
    FINDING_WEIGHTS, // masters or moments, as the update would leave them
} finding_kind_t;
const char *finding_name(finding_kind_t kind);

typedef struct finding {
    finding_kind_t kind;
    int32_t leaf;    // number of the group or pack in the step; -1: of all of them
    int32_t rank;    // the learner that computed it
    char where[448]; // group, sample, completion, token or tensor, in words
} finding_t;

// Keeps the first of a rank's findings: by kind, then by leaf, then by the order they come in.
void finding_note(finding_t *first, finding_kind_t kind, int leaf, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
// Gives every learner the first of all learners' findings; it does not depend on who computes what. Collective.
status_t finding_agree(learner_t *learner, finding_t *finding) STATUS_CHECKED;
// "NaN or infinity in the gradient: tensor T of group 3 (sample "x"), learner 1".
void finding_sentence(const finding_t *finding, char *out, size_t size);

// What a step with a finding does. `update`: number of the update under way, from 0.
typedef struct bad_step {
    const char *kind; // "sft", "grpo"
    int64_t step;     // completed before it
    int update;
    const finding_t *finding;
    checkpoint_part_t inputs;   // writes samples or groups; learner 0
    checkpoint_part_t versions; // what a checkpoint of this kind adds; may be NULL
    void *context;              // of both
} bad_step_t;
// Saves OUTPUT/bad_steps/step-N.h5: the state before the update, the inputs, the finding (docs/file-formats.md); keeps
// the newest few. Then, by optimizer.nonfinite: OK, the step is left out and counted; or an error that ends the run,
// after a checkpoint of the steps before where the weights are still those. Collective.
status_t bad_step_handle(learner_t *learner, const bad_step_t *bad) STATUS_CHECKED;
// The file of the step that would have been number `completed`.
void bad_step_path(const char *output, int64_t completed, char path[4096]);

#endif
