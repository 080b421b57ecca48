// Scenes and questions of the quickstart: a grid of 2x3 pictures, what is asked about it, and how the simulated teacher
// answers.
#ifndef LAUNCH_QUICKSTART_DATA_SCENE_H
#define LAUNCH_QUICKSTART_DATA_SCENE_H

#include "launch/draws.h"
#include "launch/quickstart_data/fashion.h"

enum { SCENE_ROWS = 2, SCENE_COLUMNS = 3, SCENE_CELLS = 6, TEXT_BYTES = 1024 };

typedef struct scene {
    int kind[SCENE_CELLS];    // row by row
    int picture[SCENE_CELLS]; // index into the split's pictures
} scene_t;

typedef enum question_type {
    ASK_COUNT,
    ASK_COUNT_TWO,
    ASK_POSITION,
    ASK_CHOOSE,
    ASK_TRUE_FALSE,
    ASK_CAPTION,
    QUESTION_TYPES
} question_type_t;

typedef struct question {
    question_type_t type;
    int asked[2], asked_count; // kinds that are counted, or the kind of true/false
    int row, column;
    int option[3]; // kinds offered by ASK_CHOOSE
    char text[TEXT_BYTES], answer[TEXT_BYTES];
} question_t;

// 2 to 4 kinds; half of the scenes have two of a group that people mix up (boot/sandal/sneaker, pullover/dress/tshirt).
void scene_make(draws_t *draws, const fashion_t *fashion, scene_t *out);
// RGB pixels of the grid, 3 * 84 * 56 bytes.
void scene_paint(const scene_t *scene, const fashion_t *fashion, uint8_t *rgb);
// "row 1: boot, bag, sandal. row 2: ..."
void scene_listing(const int kinds[SCENE_CELLS], char *out, size_t bytes);
// A question of this type about the scene; false when the scene has none (counting two kinds wants three).
bool question_make(draws_t *draws, question_type_t type, const scene_t *scene, question_t *out);
// "fill_in", "choose", "true_false", "position" or "caption".
const char *question_kind(question_type_t type);
// The answer that follows from a (possibly misnamed) grid; false when nothing follows (two options stand in the row).
bool question_answer(const question_t *question, const int kinds[SCENE_CELLS], char *out, size_t bytes);
// The teacher's view: with probability `errors` per trace and kind, boots and sandals are called sneakers, pullovers
// and dresses tshirts.
void teacher_view(draws_t *draws, double errors, const scene_t *scene, int out[SCENE_CELLS]);
// A caption that carries the notes a question needs: "Describe the picture and count the boot." -> "row 1: boot 1, bag,
// boot 2. ..."
void noted_caption(const question_t *question, const int kinds[SCENE_CELLS], char *text, char *answer, size_t bytes);
// The teacher's whole turn: fillers, the grid as it sees it with inline counters or marks, the conclusion, the answer,
// in tags.
void teacher_trace(draws_t *draws, const question_t *question, const int kinds[SCENE_CELLS], const char *answer,
                   char *out, size_t bytes);

#endif
