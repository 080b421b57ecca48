// What an image processor does to a picture, and what shape it has afterwards: all that packing, learner and rollout
// need to know of a family's pictures without its forward.
#ifndef COMMON_VISION_IMAGE_RULES_H
#define COMMON_VISION_IMAGE_RULES_H

#include "kernels/base/status.h"
#include <stdbool.h>
#include <stdint.h>

// Pillow's filters that average; its "nearest" is not among them.
typedef enum image_filter {
    FILTER_BILINEAR,
    FILTER_BICUBIC,
    FILTER_LANCZOS,
    FILTER_BOX,
    FILTER_HAMMING
} image_filter_t;

// The processors, one a family of them.
typedef enum image_processor {
    PROCESSOR_QWEN2_VL,   // smart resize, patches in blocks of merge x merge
    PROCESSOR_LLAVA_NEXT, // the whole picture and tiles of the best resolution ("any resolution")
    PROCESSOR_GEMMA3,     // one fixed size, and crops where pan-and-scan is on
} image_processor_t;

enum { IMAGE_MAX_PINPOINTS = 64 };

// What a family's read_config fills from config.json is marked (c); image_rules_read adds the rest from the processor's
// files and checks that they agree with what is there.
typedef struct image_rules {
    image_processor_t processor;          // (c)
    int patch, merge, temporal;           // (c) 14, 2, 2 for Qwen2.5-VL; merge and temporal are 1 for the others
    int side_height, side_width;          // (c) LLaVA-NeXT: of a tile; Gemma-3: of every crop (vision image_size)
    int pinpoint[IMAGE_MAX_PINPOINTS][2]; // (c) LLaVA-NeXT: height, width of the possible resolutions
    int pinpoints;                        // (c)
    int tokens;                           // (c) Gemma-3: language-model tokens a crop becomes
    int image_token;                      // (c) the id that stands for one feature row
    int vision_start, vision_end;         // (c) ids around a picture; -1 where the family has none
    int media_tokens[8];                  // (c) ids that are never sampled, ascending
    int media_token_count;                // (c)

    int64_t min_pixels, max_pixels; // Qwen2-VL
    bool whiten;                    // do_convert_rgb: image_whiten
    bool resize;                    // do_resize: off takes pictures only where the result fits without
    image_filter_t filter;
    int resize_height, resize_width; // LLaVA-NeXT: of the whole picture, and of each tile before it is cropped
    bool center_crop;                // LLaVA-NeXT: to side_height x side_width
    struct {
        bool on;
        int min_crop, max_crops; // pixels; number
        double min_ratio;
    } pan_and_scan; // Gemma-3
    bool rescale, normalise;
    double rescale_factor;
    float mean[3], deviation[3];
} image_rules_t;

// The shape of one prepared picture. Patch rows: grid[0] * grid[1] * grid[2].
typedef struct image_shape {
    int grid[3];      // Qwen2-VL: frames; others: tiles or crops, the whole picture first. Then rows and columns of
                      // patches (of each)
    int tiles[2];     // LLaVA-NeXT: rows and columns of tiles, without the whole picture
    int size[2];      // height and width in pixels before resizing
    int runs;         // runs of image tokens in the text (1, but one a crop with Gemma-3)
    int feature_rows; // language-model tokens, over all runs; each run has feature_rows / runs
} image_shape_t;

// Reads a model folder's processor_config.json and preprocessor_config.json into rules whose (c) fields are set: the
// image processor's settings are those nested in the first (transformers 5) or, where it has none, the second. A file
// or key that is absent leaves the defaults of transformers' class. Errors (STATUS_INVALID) name file and key: a
// setting that cannot be followed, one that contradicts config.json, a wrong type.
status_t image_rules_read(const char *directory, image_rules_t *rules) STATUS_CHECKED;

// A number for all that the rules make of a picture and of its tokens: the same only for the same rules.
uint64_t image_rules_hash(const image_rules_t *rules);

// The language-model tokens that a picture of this shape becomes (shape->feature_rows and runs are not read).
int image_feature_rows(const image_rules_t *rules, const image_shape_t *shape);
// LLaVA-NeXT: the part of the tiles' patches (tiles[0] * grid[1] rows by tiles[1] * grid[2] columns) that shows the
// picture and not its padding. out: top, left, rows, columns.
void image_unpad(const image_shape_t *shape, int out[4]);

#endif
