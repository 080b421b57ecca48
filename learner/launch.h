// Launches: gradient leaves computed a few at a time on one tape, inside memory that was planned before.
#ifndef LEARNER_LAUNCH_H
#define LEARNER_LAUNCH_H

#include "common/config/config.h"
#include "common/model/batch.h"

// One gradient leaf (a pack or a group). `shared_with` counts from the leaf's own first sequence; `leaf` is ignored.
typedef struct leaf {
    const batch_sequence_t *sequence;
    int count;
} leaf_t;

// What the memory of a launch depends on. Only an equal one is known to need no more: where holes lie, and what fits
// them, changes with the proportion of text to patches.
typedef struct launch_size {
    int64_t rows, patches, features, images, entries, sequences;
    bool recording;
} launch_size_t;

enum { LAUNCH_SIZES = 16 };

typedef struct launcher {
    device_t *device;
    recompute_t recompute;
    tape_t *tape; // NULL until launcher_ready
    tape_memory_t memory;
    launch_size_t measured[LAUNCH_SIZES]; // launches known to fit
    int measured_count;
    float *host; // logprob, entropy and dlogprob of a launch, [3 * host_capacity]
    size_t host_capacity;
    double forward_s, backward_s, data_s; // since launcher_clear_times
    int64_t rows;                         // computed since then
    tape_watch_t watch;                   // sees every value that is computed; NULL: nobody looks
    void *watch_context;
    int first; // leaf of the launch under way, as in launch_view_t
} launcher_t;

// The launch's entries on the host, for a loss. `leaf` numbers count from `first` (see launch_leaves).
typedef struct launch_view {
    const batch_t *batch;
    int first; // number of the launch's first leaf
    const float *logprob;
    const float *entropy; // NULL unless wanted
    float *dlogprob;      // zeroed; NULL when not recording
} launch_view_t;
typedef status_t (*launch_loss_t)(void *context, const launch_view_t *view);

typedef struct launch_options {
    float temperature;
    bool entropy, recording;
    int leaves;                      // per launch
    const tape_listener_t *listener; // hears the tape of the last launch; NULL: nobody does
} launch_options_t;

status_t launcher_open(const config_t *config, device_t *device, launcher_t *out) STATUS_CHECKED;
void launcher_close(launcher_t *launcher);
void launcher_clear_times(launcher_t *launcher);
// Dry run over leaves 0 .. count - 1 as one launch: enlarges launcher->memory. Nothing is computed.
status_t launcher_measure(launcher_t *launcher, model_t *model, const leaf_t *leaf, int count,
                          const launch_options_t *options) STATUS_CHECKED;
// Reserves what was measured. A later launch that needs more is measured and the reservation grows.
status_t launcher_ready(launcher_t *launcher) STATUS_CHECKED;
// Computes `count` leaves, options->leaves at a time: forward, loss, and backward when recording (left out for a launch
// whose dlogprob is all zero: it would add nothing). Not collective.
status_t launch_leaves(launcher_t *launcher, model_t *model, const leaf_t *leaf, int count,
                       const launch_options_t *options, launch_loss_t loss, void *context) STATUS_CHECKED;

// Gives each of `count` items with these weights an owner among `ranks`: heaviest first, to the least loaded. Ties go
// to the lower number, so every rank computes the same.
status_t balance_owners(const int64_t *weight, int count, int ranks, int *owner) STATUS_CHECKED;

#endif
