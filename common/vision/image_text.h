// Pictures in a chat's text: what stands for one in the text that a chat template makes, and what the processors put
// there before the text is tokenised.
#ifndef COMMON_VISION_IMAGE_TEXT_H
#define COMMON_VISION_IMAGE_TEXT_H

#include "common/vision/image_rules.h"

// The id of the token that stands for a whole picture in a template's text.
int image_text_mark(const image_rules_t *rules);
// The text that takes the mark's place; malloc'd. image, start, end: the spellings of image_token, vision_start and
// vision_end (the last two only read where the processor writes them). Line breaks around a picture are part of it.
status_t image_text_expand(const image_rules_t *rules, const image_shape_t *shape, const char *image, const char *start,
                           const char *end, char **out) STATUS_CHECKED;

#endif
