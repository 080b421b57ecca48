// What the parts of the engine share; private to rollout/engine*.c.
//
// A group is one request. Its prompt is prefilled once into the group's pages; its completions (sequences) hold
// references to the prompt's full pages and own the pages after them. The prompt's last, partly filled page is copied
// when a sequence starts (a group of one takes it over). Pages are taken for everything a sequence already knows when
// it is admitted, and one at a time as it grows; when none is left the youngest holder gives its pages back.
#ifndef ROLLOUT_ENGINE_INTERNAL_H
#define ROLLOUT_ENGINE_INTERNAL_H

#include "kernels/ledger.h"
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

typedef struct engine_block {
    char *host, *device; // the same memory where the device's is the host's
    size_t bytes;
} engine_block_t;

// One captured decode step of so many rows.
typedef struct engine_graph {
    int rows;
    bool tried; // as a step of its own: all its ops have run on these shapes
    void *graph;
} engine_graph_t;
enum { ENGINE_GRAPHS = 48 };
typedef struct engine_graphs {
    bool off;              // the device has none, POISE_GRAPHS=none, or a capture failed
    const void *workspace; // of the device, and the tape, when they were captured
    const tape_t *tape;
    engine_graph_t one[ENGINE_GRAPHS];
    int count;
    int64_t captured, run;
} engine_graphs_t;

struct engine {
    model_t *model;
    device_t *device;
    engine_options_t options;
    tape_t *tape;
    tape_memory_t text_memory, vision_memory;
    int vision_rows; // most patch rows of one vision launch; 0 until the first image was submitted
    kv_cache_t cache;
    size_t cache_bytes;
    int32_t *reference; // [pages] holders of each page
    int *free_page;     // [free_pages]
    int free_pages;
    feature_store_t features;
    group_t *first, *last;
    int pending, running;
    engine_statistics_t statistics;
    double step_started; // 0: not inside a step

    // Blocks of arrays on the host and, where the device's memory is another, as they lie there (engine_memory.c): what
    // a step uploads in one piece, at addresses that stay, as graphs want.
    engine_block_t tables, masks, draws_made;
    int32_t *rope_axis; // device memory, as rope_frequency; NULL where the device's memory is the host's
    float *rope_frequency[2];
    engine_graphs_t graphs;

    // One step's rows: at most options.batch_rows, but that an image group goes in whole (step_rows in all). All but
    // images and draws lie in the blocks.
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
    size_t key_capacity, draw_capacity, image_capacity;
    int32_t *device_banned;
    float *device_lse; // [step_rows]
    matrix_t picked;   // [batch_rows, hidden]: the rows that are drawn from
    matrix_t copied;   // device memory [copy_rows, kv width]: rows of pages on their way
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

// ---- a step's memory (engine_memory.c) ----
// Memory for steps of up to `rows` rows, and for masks of up to `keys` keys; what was there before goes.
status_t engine_set_rows(engine_t *engine, size_t rows) STATUS_CHECKED;
status_t engine_grow_keys(engine_t *engine, size_t keys) STATUS_CHECKED;
status_t engine_open_constants(engine_t *engine) STATUS_CHECKED;
void engine_free_memory(engine_t *engine);
// Tells a tape which of its inputs are on the device already.
void engine_adopt(engine_t *engine, tape_t *tape);
// Where an array of the blocks lies on the device.
void *engine_on_device(const engine_t *engine, const void *array);
// Uploads the first `count` numbers of an array of the blocks; everything that the step's forward reads.
status_t engine_send(engine_t *engine, const void *array, size_t count) STATUS_CHECKED;
status_t engine_send_step(engine_t *engine) STATUS_CHECKED;

// ---- decode steps as graphs (engine_graph.c) ----
// Whether the step has decode rows alone, each drawn for, and graphs are to be had.
bool engine_graph_fits(const engine_t *engine);
// Runs it: by a graph from the third step of as many rows on. Bits are those of engine_forward's own way.
status_t engine_graph_decode(engine_t *engine) STATUS_CHECKED;
void engine_graphs_close(engine_t *engine);

// ---- image features (engine_features.c) ----
status_t feature_store_open(engine_t *engine) STATUS_CHECKED;
void feature_store_close(engine_t *engine);
// Images will come: what their features may take is planned and, where the device's memory is another than the host's,
// taken now, so that no step does.
status_t feature_store_plan(engine_t *engine) STATUS_CHECKED;
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
// The rows of `hidden` that are drawn from, and the draw: ops alone, over inputs that are on the device.
status_t engine_draw_ops(engine_t *engine, const tensor_t *hidden, int count) STATUS_CHECKED;
// What draws [0 .. count) of draw_item take; and what they gave, recorded.
void engine_fill_draws(engine_t *engine, int count);
status_t engine_take_draws(engine_t *engine, int count) STATUS_CHECKED;
text_input_t engine_text_input(engine_t *engine, int rows, int sequences);
token_sample_args_t engine_sample_args(engine_t *engine, matrix_t picked);
token_logprobs_args_t engine_score_args(engine_t *engine, const tensor_t *hidden, float temperature, int count);
// Dry runs: the text step at open; the vision launch when a larger image than before is submitted.
status_t engine_plan_text(engine_t *engine) STATUS_CHECKED;
status_t engine_plan_vision(engine_t *engine, const image_patches_t *largest) STATUS_CHECKED;

#endif
