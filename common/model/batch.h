// Batch: sequences laid out as the rows of one forward, for training and scoring.
//
// A sequence is tokens and images; it may share the first rows of an earlier sequence of the batch (a group's prompt is
// computed once for its G completions). Sequences belong to gradient leaves: a pack in SFT, a group in GRPO.
// Nothing leaks between sequences: positions, masks and images are per sequence. Host memory only; not collective.
#ifndef COMMON_MODEL_BATCH_H
#define COMMON_MODEL_BATCH_H

#include "common/model/model.h"
#include "common/vision/image.h"

typedef struct batch_sequence {
    const int32_t *tokens; // [length] the whole sequence, shared prefix included
    int length;
    int shared_with;   // index of an earlier sequence of the batch (of the same leaf), or -1
    int shared_length; // its first rows that are reused (tokens must agree); 0 when shared_with is -1. Images of the
                       // shared part are the earlier sequence's; the rest of this sequence must have none
    // [image_count], in order of their placeholder runs; the batch points into them, so they must outlive it.
    const image_patches_t *const *images;
    int image_count;
    int leaf;         // from 0, counting up over the batch without gaps
    int first_target; // log-probs are wanted for tokens first_target .. length - 1 (>= 1); length: none
} batch_sequence_t;

typedef struct batch {
    text_input_t text; // features NULL until batch_forward
    vision_image_t *images;
    int image_count;
    int leaf_count;
    int32_t *leaf_row_start; // [leaf_count + 1] rows of text
    // One entry a token whose log-prob is wanted, ordered by sequence then position within a leaf.
    int entry_count;
    int32_t *entry_row;        // [entry_count] the row that predicts it
    int32_t *entry_target;     // [entry_count] its id
    int32_t *entry_sequence;   // [entry_count]
    int32_t *entry_position;   // [entry_count] its position in the sequence
    int32_t *leaf_entry_start; // [leaf_count + 1]
    void *owned;               // the arrays' memory
} batch_t;

// A sequence must have as many image placeholders as its images become features: the error says both numbers, the caller
// which sample it is.
status_t batch_check_images(const model_config_t *config, const int32_t *tokens, int length,
                            const image_patches_t *const *images, int image_count) STATUS_CHECKED;
// Builds the rows. Errors name the sequence: placeholders and images disagree, a shared prefix differs or ends within
// an image group, empty sequences.
status_t batch_build(const model_t *model, const batch_sequence_t *sequences, int count, batch_t *out) STATUS_CHECKED;
void batch_free(batch_t *batch);
// Image groups of a whole sequence, for attention_mask_t.group: group[i] is the number, from 0, of the run of image
// tokens that token i lies in, or -1. All -1 for a model without image groups.
void batch_image_groups(const model_config_t *config, const int32_t *tokens, int count, int32_t *group);
// Vision (for the images), splice, text and head: log-probs of all entries at `temperature`. The tape decides about
// recording. *head is the tape's. entry order as in the batch. Rows are computed in one launch.
status_t batch_forward(model_t *model, tape_t *tape, batch_t *batch, float temperature, bool entropy,
                       head_output_t **head) STATUS_CHECKED;

#endif
