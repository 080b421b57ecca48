// Configuration: YAML against a schema, `--set a.b=c` on top.
//
// One table (config_schema.c) names every key with its type, default, range and a line of help; reading, checking,
// printing (--dry-run) and docs/configuration.md all come from it. An unknown key is an error with the nearest name and
// its line.
#ifndef COMMON_CONFIG_CONFIG_H
#define COMMON_CONFIG_CONFIG_H

#include "kernels/base/status.h"
#include <stdint.h>

enum { CONFIG_MAX_LIST = 32 };

typedef struct config_list {
    char *item[CONFIG_MAX_LIST];
    int count;
} config_list_t;

typedef enum config_on_failure { ON_FAILURE_CONTINUE, ON_FAILURE_STOP } config_on_failure_t;
typedef enum config_objective { OBJECTIVE_VANILLA, OBJECTIVE_SCALE, OBJECTIVE_FIXED } config_objective_t;
typedef enum config_nonfinite { NONFINITE_STOP, NONFINITE_SKIP } config_nonfinite_t;
typedef enum config_collectives { COLLECTIVES_AUTO, COLLECTIVES_MPI, COLLECTIVES_NCCL } config_collectives_t;
typedef enum config_schedule { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT } config_schedule_t;
// How token losses of a batch become one number; rl-literature names. token_mean = DAPO's, sequence_mean = GRPO's,
// constant = Dr.GRPO's (sum / (sequences * max_new_tokens)).
typedef enum config_aggregation {
    AGGREGATION_TOKEN_MEAN,
    AGGREGATION_SEQUENCE_MEAN,
    AGGREGATION_CONSTANT
} config_aggregation_t;

typedef struct config {
    // What carries gradients and weights between learners.
    config_collectives_t collectives;
    char *model;     // model: Hugging Face folder to start from (config, tokenizer, weights)
    char *adapter;   // adapter: PEFT folder to start from, or ""
    char *output;    // output: run folder (checkpoints, metrics, final model)
    char *device;    // device: cpu | cuda | sim (or cpu:portable, ...)
    char *precision; // precision: fp32 or bf16
    char *recompute; // recompute: none | cheap | block
    int64_t seed;
    int threads;     // per rank
    double init_std; // init_std: > 0 starts from random weights with this deviation instead of model's files
    bool resume;     // resume: continue from the newest whole checkpoint in output, when there is one
    bool save_model; // write output/model as a Hugging Face folder (or adapter) at the end
    struct {
        char *train, *test; // packed HDF5 files (test: what eval reads)
        int64_t patch_cache_mb;
    } data;
    struct {
        bool vision, projector, language; // false: frozen
    } train;
    struct {
        int rank; // 0: full fine-tuning
        double alpha;
        bool rank_stabilised; // scale alpha / sqrt(rank)
        config_list_t targets, exclude;
    } lora;
    struct {
        double learning_rate, beta1, beta2, eps, weight_decay, clip_norm, final_fraction;
        int warmup_steps, steps, stop_after; // stop_after 0: at steps
        config_schedule_t schedule;
        config_nonfinite_t nonfinite; // what a step with NaN or Inf does
        int nonfinite_limit;          // steps in a row that may be skipped
    } optimizer;
    struct {
        config_objective_t objective;
        double think_start, think_end, answer_start, answer_end;
        int batch;         // samples per step, over all learners
        int pack_tokens;   // most rows of a pack (a gradient leaf)
        int launch_leaves; // packs per launch (micro-batch); does not change results
    } sft;
    struct {
        int prompts;       // groups per step
        int completions;   // G
        int updates;       // optimizer steps per batch
        int launch_leaves; // groups per launch (micro-batch); does not change results
        int max_new_tokens;
        double temperature, clip_low, clip_high, kl, advantage_eps;
        double reward_tag, reward_answer, reward_length; // lambdas
        bool strict_tags;                                // strict-newline tag style
        config_aggregation_t aggregation;
        int staleness;
        double excluded_limit; // share of excluded completions above which the run stops
    } grpo;
    struct {
        int learners, rollouts; // ranks of each; one more is the reward rank. 0 = from the world size
        bool colocated;         // learner ranks also generate
        bool pools_elsewhere;   // listen beyond this node although all ranks are on it
    } roles;
    struct {
        int pages, batch_rows, prefill_chunk,
            credits; // pages of 16 tokens; rows per engine step; open groups per worker
        int feature_cache_mb;
    } rollout;
    struct {
        int scorers;      // child processes of the reward rank
        double timeout_s; // per completion
        int64_t memory_mb;
    } reward;
    struct {
        int every, keep;                // steps between checkpoints (0: only at the end), how many stay
        config_on_failure_t on_failure; // what a disk that takes no file does to a run
        double wait_s;                  // the last files of a run are tried again for so long
    } checkpoint;
    struct {
        bool tensorboard, trajectories;
        int every;
    } metrics;
    struct {
        double start_s, step_s, group_s, heartbeat_s, collective_s; // deadlines, seconds
    } deadline;
    struct {
        int max_new_tokens, limit; // limit 0: all of data.test
        double temperature;
        int shuffle_images; // > 0: the control; image of question i is that of question i + shuffle_images
        bool bare;          // score the whole text as the answer too
    } eval;
    void *owned; // list of the strings' memory
} config_t;

// Defaults, then the file (NULL: none), then settings ("a.b=c") in order. Errors: STATUS_INVALID with file, line and
// what to write.
status_t config_read(const char *path, const char *const *settings, int setting_count, config_t *out) STATUS_CHECKED;
// The same from text (what config_print wrote); `name` stands for the file in errors.
status_t config_read_text(const char *text, const char *name, const char *const *settings, int setting_count,
                          config_t *out) STATUS_CHECKED;
void config_free(config_t *config);
// The whole resolved configuration as YAML, every key, in schema order.
status_t config_print(const config_t *config, FILE *stream) STATUS_CHECKED;
// The same as a text, to be freed.
status_t config_to_text(const config_t *config, char **out) STATUS_CHECKED;
// The reference table (key, type, default, help) as Markdown.
void config_print_reference(FILE *stream);
// A hash of what determines the results of training (not threads, launch_leaves, recompute, roles, deadlines, paths of
// output): a checkpoint refuses to resume under another.
status_t config_training_hash(const config_t *config, uint64_t *out) STATUS_CHECKED;
// The same in 16 hexadecimal digits, as files keep it.
enum { CONFIG_HASH_BYTES = 17 };
status_t config_training_hash_text(const config_t *config, char out[CONFIG_HASH_BYTES]) STATUS_CHECKED;

#endif
