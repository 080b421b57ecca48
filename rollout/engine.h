// Rollout engine: continuous batching over a paged KV cache.
//
// A request is one prompt and G completions. The prompt's pages and its image's features are computed once and shared
// through reference counts (the last, partly filled page is copied on write). Every step runs one batch of rows: decode
// rows of the running completions first, then prefill in chunks up to batch_rows. When pages run out the youngest
// completions are preempted: their pages are freed and they are recomputed later, to the same bits. Media tokens are
// never sampled. Draws are keyed by (seed, key, completion, position), so results do not depend on what else runs. One
// thread; not collective.
#ifndef ROLLOUT_ENGINE_H
#define ROLLOUT_ENGINE_H

#include "common/config/config.h"
#include "common/model/batch.h"
#include "common/model/model.h"

enum { ENGINE_PAGE = 16 };

typedef struct engine_options {
    int pages;                  // KV pages of 16 tokens
    int batch_rows;             // most rows per step (an image group, which goes in whole, may exceed it)
    int prefill_chunk;          // most prefill rows of one sequence per step
    size_t feature_cache_bytes; // image features kept by (content hash, vision version)
} engine_options_t;
// The rollout settings of a configuration.
engine_options_t engine_options_of(const config_t *config);

typedef struct engine_request {
    uint64_t key; // group serial, or a hash of the request's id
    int64_t tag;  // the caller's own number, handed back with each completion
    uint64_t seed;
    const int32_t *tokens; // [prompt_length]; copied
    int prompt_length;
    const image_patches_t *const *images; // [image_count]; must live until the request is finished
    int image_count;
    int completions; // G
    int max_new_tokens;
    float temperature;     // 0: greedy
    const int32_t *forced; // NULL, or [forced_length]: tokens to score instead of sampling (completions = 1)
    int forced_length;
} engine_request_t;

typedef struct engine_completion {
    uint64_t key;
    int64_t tag;
    int index;  // 0 .. G-1
    int length; // tokens, end-of-turn included
    const int32_t *tokens;
    const float *logprobs; // at the request's temperature (greedy: at 1), over the full vocabulary
    const float *entropy;
    bool stopped;   // an eos token came; else the budget ended it
    double seconds; // since the request was admitted
} engine_completion_t;
// Called from engine_step for each completion as it finishes; pointers are valid during the call.
typedef status_t (*engine_sink_t)(void *context, const engine_completion_t *completion);

typedef struct engine_statistics {
    int64_t generated_tokens, prefill_tokens, decode_steps, decode_rows, preemptions;
    int64_t pages_saved; // page references that sharing avoided allocating
    int64_t features_computed, features_reused;
    double busy_s;
    int peak_pages;
} engine_statistics_t;

typedef struct engine engine_t;
typedef struct packed packed_t; // common/data/packed.h

// Plans the memory by a dry run over the worst step. Errors: a pool smaller than one sequence could need is reported at
// submit.
status_t engine_open(model_t *model, const engine_options_t *options, engine_t **out) STATUS_CHECKED;
void engine_close(engine_t *engine);
// Plans for the largest image and the longest prompt of a packed file now, with so many new tokens, so that the memory
// table has them and no later step takes memory; what is larger is planned for when it is submitted.
status_t engine_plan_data(engine_t *engine, packed_t *packed, int new_tokens) STATUS_CHECKED;
// Prints the memory table of the dry run.
void engine_print_memory(const engine_t *engine, FILE *stream);
// Queues a request. STATUS_INVALID: prompt + budget can never fit the pool or the request is malformed.
status_t engine_submit(engine_t *engine, const engine_request_t *request) STATUS_CHECKED;
// Completions neither finished nor cancelled, running or queued.
int engine_pending(const engine_t *engine);
// One batch. Does nothing when nothing is pending. After an error the engine can only be closed.
status_t engine_step(engine_t *engine, engine_sink_t sink, void *context) STATUS_CHECKED;
// Drops a request (its group went to another worker). Unknown keys are ignored.
void engine_cancel(engine_t *engine, uint64_t key);
// To call after the model's weights changed: drops KV pages and, when vision_version moved, image features. Nothing may
// be pending.
status_t engine_weights_changed(engine_t *engine) STATUS_CHECKED;
// The time of a step counts from within it (in a sink).
engine_statistics_t engine_get_statistics(const engine_t *engine);

#endif
