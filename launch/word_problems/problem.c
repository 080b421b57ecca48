#include "launch/word_problems/problem.h"

#include "kernels/base/philox.h"
#include <stdio.h>
#include <string.h>

// ---- structure and numbers ----

static bool add_step(problem_t *problem, int left, char sign, int right) {
    if (problem->steps == PROBLEM_STEPS || (sign == '/' && left % right)) return false;
    int result = sign == '+' ? left + right : sign == '-' ? left - right : sign == '*' ? left * right : left / right;
    if (result < 1 || result > PROBLEM_LARGEST) return false;
    problem->step[problem->steps].left = left;
    problem->step[problem->steps].sign = sign;
    problem->step[problem->steps].right = right;
    problem->step[problem->steps++].result = result;
    problem->answer = result;
    return true;
}

static int add_number(problem_t *problem, draws_t *draws, int least, int most) {
    int number = least + draws_below(draws, most - least + 1);
    problem->number[problem->numbers++] = number;
    return number;
}

// problem->answer is the amount so far. False where the numbers that were drawn do not fit.
static bool add_event(problem_t *problem, draws_t *draws, problem_event_t event) {
    int now = problem->answer, number;
    switch (event) {
    case OPEN_HAVE:
        problem->answer = add_number(problem, draws, 12, 69);
        return true;
    case OPEN_BOXES:
        number = add_number(problem, draws, 2, 9);
        return add_step(problem, number, '*', add_number(problem, draws, 3, 15));
    case CHANGE_GAIN:
        return add_step(problem, now, '+', add_number(problem, draws, 4, 48));
    case CHANGE_LOSS:
        return now > 3 && add_step(problem, now, '-', add_number(problem, draws, 2, now - 1 < 48 ? now - 1 : 48));
    case END_SHARE:
        return now < 150 && add_step(problem, now, '/', add_number(problem, draws, 2, 9));
    case END_SELL:
        return now < 100 && add_step(problem, now, '*', add_number(problem, draws, 2, 6));
    case END_TOGETHER:
        return now < 50 && add_step(problem, now, '*', add_number(problem, draws, 2, 4)) &&
               add_step(problem, now, '+', problem->answer);
    case END_MORE:
        return now < 100 && add_step(problem, now, '+', add_number(problem, draws, 3, 29)) &&
               add_step(problem, now, '+', problem->answer);
    default:
        return true;
    }
}

static bool draw_structure(problem_t *problem, draws_t *draws) {
    static const problem_event_t ends[8] = {END_LEFT, END_LEFT, END_LEFT,     END_SHARE,
                                            END_SELL, END_SELL, END_TOGETHER, END_MORE};
    problem->event[0] = draws_chance(draws, 0.6) ? OPEN_HAVE : OPEN_BOXES;
    int changes = draws_below(draws, 3);
    for (int i = 0; i < changes; i++) problem->event[1 + i] = draws_chance(draws, 0.5) ? CHANGE_GAIN : CHANGE_LOSS;
    problem->event[3] = ends[draws_below(draws, 8)];
    for (int i = 0; i < 4; i++)
        if (!add_event(problem, draws, problem->event[i])) return false;
    return problem->steps >= 2;
}

problem_split_t problem_split(const problem_t *problem) {
    static const problem_split_t shares[10] = {PROBLEM_SFT, PROBLEM_SFT, PROBLEM_SFT, PROBLEM_SFT, PROBLEM_SFT,
                                               PROBLEM_RL,  PROBLEM_RL,  PROBLEM_RL,  PROBLEM_DEV, PROBLEM_TEST};
    uint64_t key = 0;
    for (int i = 0; i < 4; i++) key = key * PROBLEM_EVENTS + (uint64_t)problem->event[i];
    for (int i = 0; i < PROBLEM_NUMBERS; i++)
        key = key * 128 + (uint64_t)(i < problem->numbers ? problem->number[i] : 0);
    return shares[philox_below(0, PHILOX_DATA, key, 0, 0, 10)];
}

// ---- words ----

typedef struct words {
    const char *name, *other, *he, *object;
    const problem_t *problem;
    int step; // that a trace is at
} words_t;

typedef struct person {
    const char *name, *he;
} person_t;
static const person_t people[] = {
    {"Mia", "she"},   {"Tom", "he"},   {"Anna", "she"}, {"Ben", "he"},    {"Lucy", "she"},  {"Sam", "he"},
    {"Nora", "she"},  {"Leo", "he"},   {"Emma", "she"}, {"Max", "he"},    {"Zoe", "she"},   {"Paul", "he"},
    {"Clara", "she"}, {"Omar", "he"},  {"Ruth", "she"}, {"Ivan", "he"},   {"Maria", "she"}, {"Jack", "he"},
    {"Sofia", "she"}, {"David", "he"}, {"Lena", "she"}, {"Carlos", "he"}, {"Grace", "she"}, {"Peter", "he"},
};
static const char *const objects[] = {"apples", "pencils",  "marbles", "stickers", "cookies", "books",  "shells",
                                      "cards",  "balloons", "oranges", "stamps",   "beads",   "stones", "tickets",
                                      "eggs",   "buttons",  "flowers", "candles",  "coins",   "toys"};
enum { PEOPLE = sizeof(people) / sizeof(people[0]), OBJECTS = sizeof(objects) / sizeof(objects[0]), WAYS = 3 };

// $N name, $M the other's name, $h he or she, $H the same at a sentence's start, $o objects, $n and $m the event's
// numbers; in traces $s a step as it is written, and the next $s the one behind it.
static const char *const told[PROBLEM_EVENTS][WAYS] = {
    [OPEN_HAVE] = {"$N has $n $o.", "$N collects $n $o.", "There are $n $o in $N's bag."},
    [OPEN_BOXES] = {"$N has $n boxes with $m $o each.", "$N buys $n bags of $m $o.",
                    "$N packs $n boxes. Each holds $m $o."},
    [CHANGE_GAIN] = {"$H buys $n more.", "$H gets $n more from a friend.", "Then $h finds another $n."},
    [CHANGE_LOSS] = {"$H gives away $n.", "$H loses $n of them.", "Then $h uses $n of them."},
    [END_LEFT] = {"How many $o does $N have now?", "How many $o are there in the end?",
                  "How many $o does $h have then?"},
    [END_SHARE] = {"$H shares them equally among $n friends. How many $o does each friend get?",
                   "They are put into $n equal piles. How many $o are in a pile?",
                   "$H splits them evenly over $n days. How many $o is that a day?"},
    [END_SELL] = {"$H sells them all for $n dollars each. How many dollars does $h get?",
                  "Each costs $n dollars. How many dollars are they worth?",
                  "Each weighs $n grams. How many grams do they weigh?"},
    [END_TOGETHER] = {"$M has $n times as many. How many $o do they have together?",
                      "$M has $n times that number. How many $o do both have?",
                      "$M owns $n times as many $o. What is their total?"},
    [END_MORE] = {"$M has $n more than $N. How many $o do they have together?",
                  "$M has $n more than that. How many $o do both have?", "$M owns $n $o more. What is their total?"},
};
static const char *const solved[PROBLEM_EVENTS][WAYS] = {
    [OPEN_HAVE] = {"$N starts with $n.", "At first $n.", "There are $n."},
    [OPEN_BOXES] = {"In all $s.", "$n times $m: $s.", "At first $s."},
    [CHANGE_GAIN] = {"Add $n: $s.", "With $n more: $s.", "Then $s."},
    [CHANGE_LOSS] = {"Take away $n: $s.", "Without $n: $s.", "Then $s."},
    [END_LEFT] = {"", "", ""},
    [END_SHARE] = {"Divide by $n: $s.", "Each part: $s.", "So $s."},
    [END_SELL] = {"Times $n: $s.", "At $n each: $s.", "So $s."},
    [END_TOGETHER] = {"$M has $s. Together $s.", "$n times: $s. Both: $s.", "$M: $s. Total: $s."},
    [END_MORE] = {"$M has $s. Together $s.", "$n more: $s. Both: $s.", "$M: $s. Total: $s."},
};

static int put_step(words_t *words, char *out, size_t bytes) {
    const problem_t *p = words->problem;
    int i = words->step++;
    return snprintf(out, bytes, "%d %c %d = %d", p->step[i].left, p->step[i].sign, p->step[i].right, p->step[i].result);
}

// Appends the pattern with its words put in. What is written here fits PROBLEM_BYTES twice over.
static void put(const char *pattern, words_t *words, const int *number, char *out) {
    size_t used = strlen(out);
    if (used && *pattern) out[used++] = ' ';
    for (; *pattern && used + 1 < PROBLEM_BYTES; pattern++) {
        char *end = out + used;
        size_t bytes = PROBLEM_BYTES - used;
        if (*pattern != '$') {
            out[used++] = *pattern;
            continue;
        }
        switch (*++pattern) {
        case 'N':
            used += (size_t)snprintf(end, bytes, "%s", words->name);
            break;
        case 'M':
            used += (size_t)snprintf(end, bytes, "%s", words->other);
            break;
        case 'h':
            used += (size_t)snprintf(end, bytes, "%s", words->he);
            break;
        case 'H':
            used += (size_t)snprintf(end, bytes, "%s", strcmp(words->he, "he") != 0 ? "She" : "He");
            break;
        case 'o':
            used += (size_t)snprintf(end, bytes, "%s", words->object);
            break;
        case 's':
            used += (size_t)put_step(words, end, bytes);
            break;
        default:
            used += (size_t)snprintf(end, bytes, "%d", number[*pattern == 'm']);
        }
    }
    out[used] = 0;
}

static void tell(problem_t *problem, draws_t *draws) {
    const person_t *person = &people[draws_below(draws, PEOPLE)];
    const person_t *other = person + 1 + draws_below(draws, PEOPLE - 1);
    if (other >= people + PEOPLE) other -= PEOPLE;
    words_t words = {.name = person->name,
                     .other = other->name,
                     .he = person->he,
                     .object = objects[draws_below(draws, OBJECTS)],
                     .problem = problem};
    const int *number = problem->number;
    for (int i = 0; i < 4; i++) {
        problem_event_t event = problem->event[i];
        if (event == EVENT_NONE) continue;
        put(told[event][draws_below(draws, WAYS)], &words, number, problem->text);
        put(solved[event][draws_below(draws, WAYS)], &words, number, problem->trace);
        number += event == OPEN_BOXES ? 2 : event == END_LEFT ? 0 : 1;
    }
}

void problem_make(draws_t *draws, problem_split_t split, problem_t *out) {
    do *out = (problem_t){0};
    while (!draw_structure(out, draws) || problem_split(out) != split);
    tell(out, draws);
}
