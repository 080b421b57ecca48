// What the parts of the engine share; private to rollout/engine*.c.
//
// A group is one request. Its prompt is prefilled once into the group's pages; its completions (sequences) hold
// references to the prompt's full pages and own the pages after them. The prompt's last, partly filled page is copied
// when a sequence starts (a group of one takes it over). Pages are taken for everything a sequence already knows when
// it is admitted, and one at a time as it grows; when none is left the youngest holder gives its pages back.
#ifndef ROLLOUT_ENGINE_INTERNAL_H
#define ROLLOUT_ENGINE_INTERNAL_H

#include "rollout/engine.h"

typedef struct group group_t;

typedef enum sequence_state { SEQUENCE_WAITING, SEQUENCE_RUNNING, SEQUENCE_FINISHED } sequence_state_t;
typedef struct sequence {
    group_t *group;
    sequence_state_t state;
    int index;
    int length;      // tokens known: sampled so far, or all that were forced
    int scored;      // tokens with a log-prob
    int computed;    // tokens whose keys and values lie in the cache
    int32_t *tokens; // [budget]
    float *logprobs, *entropy;
    int *page; // [pages] page table from position 0, shared pages included
    int pages;
} sequence_t;

// Image features kept on the device: rows of the store by image.
typedef struct feature_entry {
    uint64_t hash;
    int rows;
    int32_t *row; // [rows] of the store
    int pins;     // groups that are being prefilled with it
    bool computed;
    struct feature_entry *next_in_bucket, *newer, *older;
} feature_entry_t;

enum { FEATURE_BUCKETS = 4096 };
typedef struct feature_store {
    matrix_t rows; // [capacity, hidden], device memory; grows up to `budget` rows (or one request's need)
    int budget;
    int32_t *free; // [free_count] rows not in use
    int free_count;
    feature_entry_t *bucket[FEATURE_BUCKETS];
    feature_entry_t *newest, *oldest; // by use
    int64_t vision_version;
} feature_store_t;

typedef enum group_state {
    GROUP_QUEUED,     // holds nothing
    GROUP_PREFILLING, // holds its prompt's pages and pins its image features
    GROUP_READY       // the whole prompt is in the cache
} group_state_t;
struct group {
    group_t *next; // in order of submission
    group_state_t state;
    uint64_t key, seed;
    int64_t tag;
    float temperature;
    bool forced;
    int budget; // max_new_tokens, or forced_length
    int32_t *tokens;
    int prompt_length;
    int32_t *rope[3]; // [prompt_length] each
    int32_t rope_next;
    const image_patches_t **images; // [image_count]
    feature_entry_t **features;     // [image_count], pinned while prefilling
    int image_count;
    int longest_image;    // tokens of the longest image group
    int32_t *image_group; // [prompt_length] as attention_mask_t.group
    int32_t *image_row;   // [prompt_length] index into the images' features, one image after another; -1: text
    int computed;         // prompt tokens in the cache
    int *page;            // [pages]
    int pages;
    int completions, unfinished, running;
    bool pinned;        // its images' features
    bool shared_before; // some sequence of it was admitted already
    double admitted_s;
    sequence_t *sequence; // [completions]
    void *owned;          // the arrays' memory
};

// One row whose token is to be drawn, or whose given token is to be scored.
typedef struct engine_draw {
    sequence_t *sequence;
    int32_t row, target; // target: forced groups only
    int position;        // of the token within the completion
    bool forced;
} engine_draw_t;

typedef struct engine_image {
    feature_entry_t *entry;
    const image_patches_t *patches;
} engine_image_t;

struct engine {
    model_t *model;
    device_t *device;
    engine_options_t options;
    tape_t *tape;
    tape_memory_t text_memory, vision_memory;
    int vision_rows; // most patch rows of one vision launch; 0 until the first image was submitted
    kv_cache_t cache;
    size_t cache_bytes, host_bytes;
    int32_t *reference; // [pages] holders of each page
    int *free_page;     // [free_pages]
    int free_pages;
    feature_store_t features;
    group_t *first, *last;
    int pending, running;
    engine_statistics_t statistics;
    double step_started; // 0: not inside a step

    // One step's rows: at most options.batch_rows, but that an image group goes in whole (step_rows in all).
    int step_rows;
    int rows, sequences, keys, feature_rows, draws, copies, images;
    int32_t *token, *rope[3], *cache_row;                        // [step_rows]
    int32_t *query_start, *query_position, *key_start, *key_row; // mask
    int32_t *key_group;                       // [key_capacity] as key_row; NULL: the model has no image groups
    int32_t *feature_source, *feature_target; // [step_rows]
    int32_t *copy_from, *copy_to;             // [step_rows * ENGINE_PAGE]
    engine_image_t *image;                    // features to compute first
    engine_draw_t *draw;                      // [draw_capacity]
    int32_t *draw_row, *draw_target, *drawn;  // [step_rows]
    float *draw_temperature, *draw_uniform, *drawn_logprob, *drawn_entropy;
    int *draw_item;
    size_t key_capacity, group_capacity, draw_capacity, image_capacity;
    // Device memory, [step_rows] each: what draws take and give.
    int32_t *device_row, *device_target, *device_token, *device_banned;
    float *device_temperature, *device_uniform, *device_logprob, *device_entropy, *device_lse;
    matrix_t picked; // [batch_rows, hidden]: the rows that are drawn from
    matrix_t copied; // device memory [copy_rows, kv width]: rows of pages on their way
    int32_t banned[8];
    int banned_count;
};

// ---- pages (engine_pages.c) ----
int engine_page_take(engine_t *engine); // -1: none is free
void engine_page_share(engine_t *engine, int page);
void engine_page_release(engine_t *engine, int page);
static inline int pages_for(int positions) {
    return (positions + ENGINE_PAGE - 1) / ENGINE_PAGE;
}
// Gives back everything the group's prompt holds; it will be prefilled again.
void engine_group_reset(engine_t *engine, group_t *group);
void engine_sequence_release(engine_t *engine, sequence_t *sequence);
// Makes the youngest holder of pages give some back. False: that was `sequence` itself.
bool engine_reclaim(engine_t *engine, sequence_t *sequence);
// The same among groups behind `group`, when nothing runs. False: there is none.
bool engine_reclaim_behind(engine_t *engine, group_t *group);

// ---- image features (engine_features.c) ----
status_t feature_store_open(engine_t *engine) STATUS_CHECKED;
void feature_store_close(engine_t *engine);
// Makes the store large enough for `rows` rows of one request.
status_t feature_store_reserve(engine_t *engine, int rows) STATUS_CHECKED;
// Pins the features of the group's images, queueing what must be computed. *pinned false: no room now, nothing changed.
status_t feature_store_pin(engine_t *engine, group_t *group, bool *pinned) STATUS_CHECKED;
void feature_store_unpin(engine_t *engine, group_t *group);
void feature_store_clear(engine_t *engine);
// Runs the vision part over the step's queued images.
status_t feature_store_compute(engine_t *engine) STATUS_CHECKED;

// ---- the step (engine_schedule.c, engine_forward.c, engine_plan.c) ----
// Chooses the rows of the next step.
status_t engine_schedule(engine_t *engine) STATUS_CHECKED;
// Runs them and records tokens and log-probs.
status_t engine_forward(engine_t *engine) STATUS_CHECKED;
// What a step gives the model and the head, over the engine's own buffers; the same when it runs and when it is
// planned.
text_input_t engine_text_input(engine_t *engine, int rows, int sequences);
token_sample_args_t engine_sample_args(engine_t *engine, matrix_t picked);
token_logprobs_args_t engine_score_args(engine_t *engine, const tensor_t *hidden, float temperature, int count);
// Dry runs: the text step at open; the vision launch when a larger image than before is submitted.
status_t engine_plan_text(engine_t *engine) STATUS_CHECKED;
status_t engine_plan_vision(engine_t *engine, const image_patches_t *largest) STATUS_CHECKED;

#endif
