// What an image processor does to a picture, and what shape it has afterwards: all that packing, learner and rollout
// need to know of a family's pictures without its forward.
#ifndef COMMON_VISION_IMAGE_RULES_H
#define COMMON_VISION_IMAGE_RULES_H

#include "kernels/base/status.h"
#include <stdint.h>

typedef enum image_filter { FILTER_BILINEAR, FILTER_BICUBIC, FILTER_LANCZOS } image_filter_t;

// The processors, one a family of them.
typedef enum image_processor {
    PROCESSOR_QWEN2_VL,   // smart resize, patches in blocks of merge x merge
    PROCESSOR_LLAVA_NEXT, // the whole picture and tiles of the best resolution ("any resolution")
    PROCESSOR_GEMMA3,     // one fixed size, and crops where pan-and-scan is on
} image_processor_t;

enum { IMAGE_MAX_PINPOINTS = 64 };

typedef struct image_rules {
    image_processor_t processor;
    image_filter_t filter;
    int patch, merge, temporal;           // 14, 2, 2 for Qwen2.5-VL; merge and temporal are 1 for the others
    int64_t min_pixels, max_pixels;       // Qwen2-VL
    int side_height, side_width;          // LLaVA-NeXT: of a tile; Gemma-3: of every crop
    int pinpoint[IMAGE_MAX_PINPOINTS][2]; // LLaVA-NeXT: height, width of the possible resolutions
    int pinpoints;
    int tokens; // Gemma-3: language-model tokens a crop becomes
    struct {
        bool on;
        int min_crop, max_crops; // pixels; number
        double min_ratio;
    } pan_and_scan; // Gemma-3
    float mean[3], deviation[3];
    int image_token;              // the id that stands for one feature row
    int vision_start, vision_end; // ids around a picture; -1 where the family has none
    int media_tokens[8];          // ids that are never sampled, ascending
    int media_token_count;
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

#endif
