// Arithmetic word problems of two or three steps: a story, the steps that solve it, and the answer.
//
// A problem's structure and numbers alone say which split it may be in (problem_split), whatever the seed, the names
// and the wording: what a test asks has not been seen in training in other words.
#ifndef LAUNCH_WORD_PROBLEMS_PROBLEM_H
#define LAUNCH_WORD_PROBLEMS_PROBLEM_H

#include "launch/draws.h"

enum { PROBLEM_BYTES = 512, PROBLEM_NUMBERS = 5, PROBLEM_STEPS = 3, PROBLEM_LARGEST = 999 };

typedef enum problem_split { PROBLEM_SFT, PROBLEM_RL, PROBLEM_DEV, PROBLEM_TEST, PROBLEM_SPLITS } problem_split_t;

// What happens in a story, in this order: an opening, up to two changes, an end that asks.
typedef enum problem_event {
    EVENT_NONE,
    OPEN_HAVE,    // has a
    OPEN_BOXES,   // a boxes of b: a * b
    CHANGE_GAIN,  // + a
    CHANGE_LOSS,  // - a
    END_LEFT,     // how many now
    END_SHARE,    // / a
    END_SELL,     // * a
    END_TOGETHER, // another one has a times as many: together
    END_MORE,     // another one has a more: together
    PROBLEM_EVENTS
} problem_event_t;

typedef struct problem {
    problem_event_t event[4]; // opening, change, change, end; EVENT_NONE where there is no change
    int number[PROBLEM_NUMBERS], numbers;
    struct {
        int left, right, result; // left sign right = result
        char sign;               // + - * /
    } step[PROBLEM_STEPS];
    int steps;                 // 2 or 3
    char text[PROBLEM_BYTES];  // the story and its question
    char trace[PROBLEM_BYTES]; // the steps in words, without tags
    int answer;                // 1 .. PROBLEM_LARGEST
} problem_t;

// Draws a problem that belongs to the split.
void problem_make(draws_t *draws, problem_split_t split, problem_t *out);
// The split that a problem with these events and numbers belongs to.
problem_split_t problem_split(const problem_t *problem);

#endif
