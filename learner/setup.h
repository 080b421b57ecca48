// What SFT and GRPO learners set up alike: device, model, data, optimizer, memory.
#ifndef LEARNER_SETUP_H
#define LEARNER_SETUP_H

#include "common/comm/job.h"
#include "common/data/packed.h"
#include "common/metrics/metrics.h"
#include "learner/launch.h"
#include "learner/optimizer.h"

typedef struct learner {
    job_t *job;
    const config_t *config;
    comm_t *comm;
    bool first; // learner 0: it prints and writes
    device_t *device;
    model_t *model;
    model_t *reference; // frozen copy of the starting weights; NULL unless grpo.kl > 0
    packed_t *packed;
    patch_cache_t *patches;
    optimizer_t *optimizer;
    launcher_t launcher;
    bool metrics_late; // lines of metrics wait for room on the disk, and it was said
    int64_t last;      // steps end here: optimizer.steps, or stop_after when that is less
} learner_t;

// Opens everything but the tape's memory. Collective.
status_t learner_open(job_t *job, bool grpo, learner_t *out) STATUS_CHECKED;
void learner_close(learner_t *learner);
// Dry-runs the worst launches that the data can ask for (all ranks find the same) and, unless `plan_only`, reserves the
// memory. The worst launch is looked for among the packs of an epoch (SFT) or from the longest prompts (GRPO).
status_t learner_plan_memory(learner_t *learner, bool grpo, bool plan_only) STATUS_CHECKED;
// Trainable and frozen parameters a part, then the memory table.
void learner_print_setup(const learner_t *learner, FILE *stream);
// Patches of a sample's images, appended to out[*count ..]; valid until patch_cache_release_all.
status_t learner_sample_images(learner_t *learner, const packed_sample_t *sample,
                               const image_patches_t **out) STATUS_CHECKED;
// output/model (a Hugging Face folder) or output/adapter, by learner 0. Collective: all fail if it fails.
status_t learner_save_model(learner_t *learner) STATUS_CHECKED;
// Gives every learner the same outcome: an error of one becomes an error of all. Collective.
status_t learner_agree(learner_t *learner, status_t status, const char *phase) STATUS_CHECKED;

// Whether some learner has been asked to stop. Collective.
status_t learner_should_stop(learner_t *learner, bool *stop) STATUS_CHECKED;
// Learner 0 prints the setup and opens metrics and progress (named `label`) of a run that goes on after `completed`
// steps; on the other learners *metrics stays as it is. Collective: all fail if it fails.
status_t learner_open_metrics(learner_t *learner, const char *label, int64_t completed, metrics_t **metrics,
                              progress_t *progress) STATUS_CHECKED;
// What metrics_write or the like came to on learner 0: a disk that takes nothing (STATUS_IO) is told once and does not
// end the run, unless checkpoint.on_failure says so. Collective.
status_t learner_note_metrics(learner_t *learner, status_t status) STATUS_CHECKED;
// Before the run ends: metrics that wait for room on the disk. Collective.
status_t learner_end_metrics(learner_t *learner, metrics_t *metrics) STATUS_CHECKED;
// Exact sharing of numbers: values[i] is set on one rank and 0 (bits) on the others; afterwards all have all. Unlike a
// floating-point sum this does not depend on the number of ranks. Collective.
status_t learner_share(learner_t *learner, double *values, int64_t count, const char *phase) STATUS_CHECKED;

#endif
