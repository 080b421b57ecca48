// Tags and answers: the one extractor that packing, reward and evaluation share.
//
// The four tags are plain text: <think>, </think>, <answer>, </answer>.
#ifndef COMMON_TEXT_ANSWER_H
#define COMMON_TEXT_ANSWER_H

#include "common/text/tokenizer.h"

enum { ANSWER_MOST_OPTIONS = 256 }; // of one question; packing refuses more

typedef enum segment { SEGMENT_NONE = 0, SEGMENT_THINK = 1, SEGMENT_ANSWER = 2, SEGMENT_COUNT = 3 } segment_t;

// Labels the tokens of an assistant turn by the characters they cover: everything before "</think>" is think; a token
// that holds any part of "</think>" or comes after it is answer (so a token that straddles its start is answer); the
// end-of-turn token, which the caller appends, is answer. Text without "</think>" is all answer.
// offsets: [2 * count] byte offsets of each token in `text`. labels: [count].
void answer_segments(const char *text, size_t length, const int32_t *offsets, int count, uint8_t *labels);

typedef enum tag_style { TAG_WHITESPACE_TOLERANT, TAG_STRICT_NEWLINE } tag_style_t;
// r_tag in 0, 0.25, .. 1: 0.25 for each tag that occurs exactly once and that no single later tag precedes. In
// strict-newline style a tag must also stand as open-r1 wants it ("<think>\n", "\n</think>\n", "\n<answer>\n",
// "\n</answer>").
double answer_tag_score(const char *text, size_t length, tag_style_t style);

// The span between the last complete <answer>…</answer>, trimmed. false: there is none (the generation is invalid).
bool answer_extract(const char *text, size_t length, const char **start, size_t *span);
// The span of the first <think>…</think>; false when there is none.
bool answer_think(const char *text, size_t length, const char **start, size_t *span);

// Normalisation for exact match, in order: strip "Final Answer:" / "Answer:"; trim blanks, outer ( ) and trailing '.';
// lower-case, collapse blanks; a number becomes its value ("3.0" = "3", "1,000" = "1000"); with options, a single
// letter (or letter and . ) :) or an option's exact text becomes that option's letter. malloc'd.
status_t answer_normalise(const char *text, size_t length, const char *const *options, int option_count,
                          char **out) STATUS_CHECKED;
// Exact match after normalising both sides.
status_t answer_equal(const char *text, size_t length, const char *expected, const char *const *options,
                      int option_count, bool *out) STATUS_CHECKED;

#endif
