// What the parts of the evaluation share; private to rollout/eval*.c.
#ifndef ROLLOUT_EVAL_H
#define ROLLOUT_EVAL_H

#include "common/data/packed.h"
#include "common/text/listing.h"
#include "rollout/engine.h"
#include "rollout/tool.h"

typedef struct question question_t; // one in the engine

typedef struct eval {
    job_t *job;
    const config_t *config;
    int rank, ranks;
    device_t *device;
    model_t *model;
    tokenizer_t *tokenizer;
    packed_t *packed;
    engine_t *engine;
    listing_words_t words; // item words of the file's listings
    int64_t count;         // samples that are evaluated
    char identity[17];     // hash of what the answers depend on
    FILE *file;            // this rank's samples as they finish
    char *path;            // of that file
    bool *done;            // [count] samples whose line is written, by any run
    int64_t finished;      // of this rank's, in this run
    bool stopped;          // this rank was asked to stop before its share was done
    question_t *questions; // in the engine
} eval_t;
// Gives every rank the same outcome: an error of one becomes an error of all. Collective.
status_t eval_agree(eval_t *eval, status_t status, const char *phase) STATUS_CHECKED;

// ---- scoring (eval_score.c) ----
// Rank 0 says on stderr when no sample has an answer to compare with.
status_t eval_check_answers(eval_t *eval) STATUS_CHECKED;
// Fills eval->words.
status_t eval_collect_words(eval_t *eval) STATUS_CHECKED;
// Appends the JSON line of one answered sample.
status_t eval_score(eval_t *eval, const packed_sample_t *sample, const engine_completion_t *completion,
                    tool_text_t *line) STATUS_CHECKED;

// ---- files (eval_files.c) ----
// Hash of the weights, the data and the settings that shape an answer.
status_t eval_identify(eval_t *eval) STATUS_CHECKED;
// Finds what an earlier run left in the output folder (any number of ranks), keeps this rank's share of it in a fresh
// file and opens that for more. Results of another model or other settings are dropped, with a word on stderr.
// Collective.
status_t eval_resume(eval_t *eval) STATUS_CHECKED;
status_t eval_append(eval_t *eval, int64_t index, const tool_text_t *line) STATUS_CHECKED;
// Rank 0: merges the ranks' files into samples.jsonl and writes summary.json. answered: some rank answered a question
// in this run.
status_t eval_merge(eval_t *eval, double seconds, bool answered) STATUS_CHECKED;

#endif
