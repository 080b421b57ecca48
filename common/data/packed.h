// Packed data: `poise pack` compiles JSON Lines + image files into one HDF5 file; every rank reads that file.
//
// Layout in docs/file-formats.md. Tokens are final (chat template applied, image placeholders expanded), segments are
// labelled, encoded images are stored once by content hash. The file carries a content hash over everything that
// training reads.
#ifndef COMMON_DATA_PACKED_H
#define COMMON_DATA_PACKED_H

#include "common/model/model.h"
#include "common/text/answer.h"
#include "common/text/chat.h"
#include "common/vision/image.h"

// One sample of a packed file. Pointers are into the open file's memory: valid until packed_close, options until the
// next packed_sample.
typedef struct packed_sample {
    int64_t index;
    const char *id;
    const int32_t *tokens;   // [length] prompt then response (response_length may be 0: prompts for GRPO or evaluation)
    const uint8_t *segments; // [length] segment_t; the prompt is SEGMENT_NONE
    int length;
    int prompt_length;
    const int32_t *images; // [image_count] image indices of the file
    int image_count;
    const char *answer;         // gold answer, "" when there is none
    const char *kind;           // kind of question, "" when there is none
    const char *const *options; // [option_count]
    int option_count;
    const char *listing; // gold reasoning facts (the quickstart's grid), "" when there is none
} packed_sample_t;

typedef struct packed packed_t;
typedef struct packed_options {
    // JSON Lines: id, messages (with or without the assistant's last turn), answer, kind, options, listing; or
    // ShareGPT's "conversations" with "<image>" marks and "image" or "images" beside them, as lines or as one JSON
    // list. Image paths are relative to the input's folder.
    const char *input;
    const char *output;    // HDF5
    const char *model;     // folder with tokenizer and preprocessor rules
    int max_length;        // longer samples are dropped and counted, never cut
    bool require_response; // SFT data: a sample without an assistant turn is an error of that line
} packed_options_t;
typedef struct packed_counts {
    int64_t samples, dropped_long, dropped_bad, images, tokens, think_tokens, answer_tokens, empty_think;
} packed_counts_t;

// Compiles. Bad lines (broken JSON or UTF-8, missing image, counts that disagree) are listed on `report` with their
// line number and counted; when more than 1 % are bad it fails. Output appears only when whole. report may be NULL.
status_t packed_make(const packed_options_t *options, FILE *report, packed_counts_t *counts) STATUS_CHECKED;

status_t packed_open(const char *path, packed_t **out) STATUS_CHECKED;
void packed_close(packed_t *packed);
int64_t packed_count(const packed_t *packed);
status_t packed_sample(packed_t *packed, int64_t index, packed_sample_t *out) STATUS_CHECKED;
// Encoded bytes and content hash of image `image`. The bytes are valid until the next call.
status_t packed_image(packed_t *packed, int32_t image, const void **bytes, size_t *size, uint64_t *hash) STATUS_CHECKED;
int32_t packed_images(const packed_t *packed);
// The content hash alone; 0 for a number that does not exist.
uint64_t packed_image_hash(const packed_t *packed, int32_t image);
// Hex of the file's content hash; valid until packed_close. Also checks that `model`'s tokenizer is the one packed
// with.
const char *packed_hash(const packed_t *packed);
// The first 16 hex digits of packed_hash as a number: what ranks compare when they join.
uint64_t packed_hash_number(const packed_t *packed);
status_t packed_check_model(const packed_t *packed, const char *model_directory) STATUS_CHECKED;

// Writes `count` samples of an open file (index: which, in this order) as a file of their own, with the images they
// use. Tokens of the segments in `unlearnt` (a bit for each segment_t) become SEGMENT_NONE there: no loss is taken on
// them.
status_t packed_excerpt(packed_t *packed, const int64_t *index, int64_t count, unsigned unlearnt,
                        const char *output) STATUS_CHECKED;

// Patches of an image, cached by content hash in a process-wide budget of `capacity_bytes` (least recently used goes
// first).
typedef struct patch_cache patch_cache_t;
status_t patch_cache_open(const image_rules_t *rules, size_t capacity_bytes, patch_cache_t **out) STATUS_CHECKED;
void patch_cache_close(patch_cache_t *cache);
// Valid until patch_cache_release_all (which ends the pins of a step; the data may stay cached).
status_t patch_cache_get(patch_cache_t *cache, packed_t *packed, int32_t image,
                         const image_patches_t **out) STATUS_CHECKED;
void patch_cache_release_all(patch_cache_t *cache);

// The order of training samples: sample number `serial` (0, 1, 2, ... over all epochs) of a seed. Stateless.
int64_t packed_order(const packed_t *packed, uint64_t seed, int64_t serial);

// Pack plan: which samples form one pack (a gradient leaf), decided globally before ranks are assigned. Samples of one
// batch are placed first-fit-decreasing into packs of at most max_tokens; deterministic.
typedef struct pack_plan {
    int packs;
    int *pack_start; // [packs + 1] into item
    int *item;       // positions within the batch
    int64_t *tokens; // [packs]
} pack_plan_t;
status_t pack_plan_make(const int *lengths, int count, int max_tokens, pack_plan_t *out) STATUS_CHECKED;
void pack_plan_free(pack_plan_t *plan);

#endif
