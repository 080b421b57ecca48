// `poise canary`: small runs whose outcome is known beforehand; inside the command only.
#ifndef LAUNCH_CANARY_CANARY_H
#define LAUNCH_CANARY_CANARY_H

#include "launch/commands.h"
#include "learner/probe.h"

typedef enum canary_kind {
    CANARY_LR0,
    CANARY_RATIO,
    CANARY_LENGTH,
    CANARY_SEGMENTS,
    CANARY_IMAGES,
    CANARIES
} canary_kind_t;

typedef enum verdict { VERDICT_PASS, VERDICT_FAIL, VERDICT_SKIP } verdict_t;
typedef struct row {
    const char *name;
    char measured[200], expected[120];
    verdict_t verdict;
} row_t;

enum { MOST_ROWS = 16, FOLDER_BYTES = 3000, MOST_SETTINGS = 96 };

typedef struct canary {
    comm_t *world;
    bool first; // world rank 0: it measures and prints
    const char *file;
    const char *const *user; // --set of the command line
    int users;
    int threads;
    bool wanted[CANARIES], injected[CANARIES];
    char folder[FOLDER_BYTES], model[FOLDER_BYTES];
    bool temporary;    // the folder goes when all is done
    int log;           // descriptor of folder/log.txt, where the runs' own messages go
    int user_messages; // a copy of the descriptor of standard error, where the user looks
    row_t row[MOST_ROWS];
    int rows; // on rank 0
    // Of the user's own data (-c FILE): what there is to learn from.
    int samples, with_segments;
    config_t config; // as the runs get it, but for their own settings; open only with -c
} canary_t;

// Settings of one run, "key=value", later ones win.
typedef struct settings {
    char *text[MOST_SETTINGS];
    int count;
    bool lost; // memory was short, or there were too many
} settings_t;
void settings_add(settings_t *settings, const char *format, ...) __attribute__((format(printf, 2, 3)));
void settings_free(settings_t *settings);

// ---- data.c ----
// Rank 0: pictures and questions, packed: folder/data/{start,traces,sing,test}.h5.
status_t canary_make_data(const canary_t *canary) STATUS_CHECKED;
// Rank 0: excerpts of a packed file with at most `most` samples: PREFIX.h5, and where samples have both segments
// PREFIX-{both,think,answer}.h5: those samples, with both segments to learn, or one.
status_t canary_make_excerpts(const char *data, const char *prefix, int most, int *samples,
                              int *with_segments) STATUS_CHECKED;

// ---- run.c ----
// A run named `name` (its folder is folder/name) with these settings over the canary's own. Collective over the world.
status_t canary_run(canary_t *canary, run_kind_t kind, const char *name, const settings_t *settings) STATUS_CHECKED;
// What that run starts from or has ended in. Collective; *out is set on rank 0.
status_t canary_probe(canary_t *canary, bool grpo, const char *name, const settings_t *settings,
                      learner_probe_t *out) STATUS_CHECKED;
// Rank 0: a metric's values, one a step, at most `most`; *count of them. Absent ones are an error.
status_t canary_metric(const canary_t *canary, const char *name, const char *metric, double *values, int most,
                       int *count) STATUS_CHECKED;
// Rank 0: the hash of the trained weights in the run's last line.
status_t canary_weights(const canary_t *canary, const char *name, char out[65]) STATUS_CHECKED;
// Rank 0: a number of an evaluation's summary.json.
status_t canary_summary(const canary_t *canary, const char *name, const char *key, double *out) STATUS_CHECKED;

// ---- checks.c ----
// Runs what is wanted and fills the rows. Collective.
status_t canary_check(canary_t *canary) STATUS_CHECKED;
const char *canary_name(canary_kind_t kind);

#endif
