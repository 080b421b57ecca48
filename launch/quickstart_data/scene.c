#include "launch/quickstart_data/scene.h"

#include <stdarg.h>
#include <string.h>

enum { TSHIRT, TROUSER, PULLOVER, DRESS, SANDAL, SNEAKER, BAG, BOOT };

static const int cluster[2][3] = {{BOOT, SANDAL, SNEAKER}, {PULLOVER, DRESS, TSHIRT}};

// Appends formatted text; silently full, which the fixed sizes of what is written rule out.
static void append(char *out, size_t bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *out, size_t bytes, const char *format, ...) {
    size_t used = strlen(out);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out + used, bytes - used, format, arguments);
    va_end(arguments);
}

static bool contains(const int *list, int count, int kind) {
    for (int i = 0; i < count; i++)
        if (list[i] == kind) return true;
    return false;
}

static void shuffle(draws_t *draws, int *list, int count) {
    for (int i = count - 1; i > 0; i--) {
        int j = draws_below(draws, i + 1), keep = list[i];
        list[i] = list[j];
        list[j] = keep;
    }
}

void scene_make(draws_t *draws, const fashion_t *fashion, scene_t *out) {
    int kinds[KINDS] = {0, 1, 2, 3, 4, 5, 6, 7}, chosen[4], count = 2 + draws_below(draws, 3), have = 0;
    shuffle(draws, kinds, KINDS);
    if (draws_chance(draws, 0.5)) {
        int group[3];
        memcpy(group, cluster[draws_below(draws, 2)], sizeof(group));
        shuffle(draws, group, 3);
        chosen[have++] = group[0];
        chosen[have++] = group[1];
    }
    for (int i = 0; have < count; i++)
        if (!contains(chosen, have, kinds[i])) chosen[have++] = kinds[i];
    // Every chosen kind stands somewhere; the other cells are free.
    for (int i = 0; i < SCENE_CELLS; i++) out->kind[i] = i < count ? chosen[i] : chosen[draws_below(draws, count)];
    shuffle(draws, out->kind, SCENE_CELLS);
    for (int i = 0; i < SCENE_CELLS; i++)
        out->picture[i] = fashion->index[out->kind[i]][draws_below(draws, fashion->index_count[out->kind[i]])];
}

void scene_paint(const scene_t *scene, const fashion_t *fashion, uint8_t *rgb) {
    for (int cell = 0; cell < SCENE_CELLS; cell++) {
        const uint8_t *from = fashion->pixels + (size_t)scene->picture[cell] * FASHION_PIXELS;
        int top = cell / SCENE_COLUMNS * FASHION_SIDE, left = cell % SCENE_COLUMNS * FASHION_SIDE;
        for (int y = 0; y < FASHION_SIDE; y++)
            for (int x = 0; x < FASHION_SIDE; x++) {
                uint8_t *to = rgb + 3 * ((top + y) * SCENE_COLUMNS * FASHION_SIDE + left + x);
                to[0] = to[1] = to[2] = from[y * FASHION_SIDE + x];
            }
    }
}

void scene_listing(const int kinds[SCENE_CELLS], char *out, size_t bytes) {
    *out = 0;
    for (int i = 0; i < SCENE_CELLS; i++) {
        int column = i % SCENE_COLUMNS;
        if (!column) append(out, bytes, "%srow %d:", i ? " " : "", i / SCENE_COLUMNS + 1);
        append(out, bytes, " %s%s", kind_names[kinds[i]], column == SCENE_COLUMNS - 1 ? "." : ",");
    }
}

// Kinds of the scene, without repeats.
static int scene_kinds(const scene_t *scene, int out[SCENE_CELLS]) {
    int count = 0;
    for (int i = 0; i < SCENE_CELLS; i++)
        if (!contains(out, count, scene->kind[i])) out[count++] = scene->kind[i];
    return count;
}

// A kind that does not stand in the list: with probability `alike` one that is mixed up with `like`, where one is
// absent.
static int absent_kind(draws_t *draws, const int *present, int present_count, int like, double alike) {
    int candidates[KINDS], count = 0;
    bool similar = draws_chance(draws, alike);
    for (int c = 0; similar && c < 2; c++)
        for (int i = 0; i < 3; i++)
            if (contains(cluster[c], 3, like) && !contains(present, present_count, cluster[c][i]))
                candidates[count++] = cluster[c][i];
    if (!count)
        for (int k = 0; k < KINDS; k++)
            if (!contains(present, present_count, k)) candidates[count++] = k;
    return candidates[draws_below(draws, count)];
}

static void make_count(draws_t *draws, const scene_t *scene, int how_many, question_t *q) {
    int kinds[SCENE_CELLS], count = scene_kinds(scene, kinds);
    shuffle(draws, kinds, count);
    q->asked_count = how_many;
    q->asked[0] = kinds[0];
    q->asked[1] = how_many == 2 ? kinds[1] : -1;
    if (how_many == 1)
        append(q->text, TEXT_BYTES, "How many %s are in the picture?", kind_names[kinds[0]]);
    else
        append(q->text, TEXT_BYTES, "How many %s and %s are in the picture altogether?", kind_names[kinds[0]],
               kind_names[kinds[1]]);
}

static void make_choose(draws_t *draws, const scene_t *scene, question_t *q) {
    const int *row = scene->kind + q->row * SCENE_COLUMNS;
    int taken[SCENE_COLUMNS + 2];
    memcpy(taken, row, SCENE_COLUMNS * sizeof(int));
    q->option[0] = row[draws_below(draws, SCENE_COLUMNS)];
    for (int i = 1; i < 3; i++) {
        q->option[i] = absent_kind(draws, taken, SCENE_COLUMNS + i - 1, q->option[0], i == 1 ? 0.7 : 0);
        taken[SCENE_COLUMNS + i - 1] = q->option[i];
    }
    shuffle(draws, q->option, 3);
    append(q->text, TEXT_BYTES, "Which of these is in row %d: %s, %s, %s?", q->row + 1, kind_names[q->option[0]],
           kind_names[q->option[1]], kind_names[q->option[2]]);
}

static void make_true_false(draws_t *draws, const scene_t *scene, question_t *q) {
    const int *row = scene->kind + q->row * SCENE_COLUMNS;
    bool present = draws_chance(draws, 0.5);
    int seen = row[draws_below(draws, SCENE_COLUMNS)];
    q->asked_count = 1;
    q->asked[0] = present ? seen : absent_kind(draws, row, SCENE_COLUMNS, seen, 0.6);
    append(q->text, TEXT_BYTES, "True or false: there is a %s in row %d.", kind_names[q->asked[0]], q->row + 1);
}

bool question_make(draws_t *draws, question_type_t type, const scene_t *scene, question_t *out) {
    int kinds[SCENE_CELLS];
    *out =
        (question_t){.type = type, .row = draws_below(draws, SCENE_ROWS), .column = draws_below(draws, SCENE_COLUMNS)};
    switch (type) {
    case ASK_COUNT:
        make_count(draws, scene, 1, out);
        break;
    case ASK_COUNT_TWO:
        if (scene_kinds(scene, kinds) < 3) return false;
        make_count(draws, scene, 2, out);
        break;
    case ASK_POSITION:
        append(out->text, TEXT_BYTES, "Which item is in row %d, column %d?", out->row + 1, out->column + 1);
        break;
    case ASK_CHOOSE:
        make_choose(draws, scene, out);
        break;
    case ASK_TRUE_FALSE:
        make_true_false(draws, scene, out);
        break;
    default:
        append(out->text, TEXT_BYTES, "Describe the picture.");
        break;
    }
    return question_answer(out, scene->kind, out->answer, TEXT_BYTES);
}

const char *question_kind(question_type_t type) {
    switch (type) {
    case ASK_COUNT:
    case ASK_COUNT_TWO:
        return "fill_in";
    case ASK_CHOOSE:
        return "choose";
    case ASK_TRUE_FALSE:
        return "true_false";
    case ASK_POSITION:
        return "position";
    default:
        return "caption";
    }
}

bool question_answer(const question_t *q, const int kinds[SCENE_CELLS], char *out, size_t bytes) {
    const int *row = kinds + q->row * SCENE_COLUMNS;
    int count = 0, found = -1;
    switch (q->type) {
    case ASK_COUNT:
    case ASK_COUNT_TWO:
        for (int i = 0; i < SCENE_CELLS; i++) count += contains(q->asked, q->asked_count, kinds[i]);
        snprintf(out, bytes, "%d", count);
        return true;
    case ASK_POSITION:
        snprintf(out, bytes, "%s", kind_names[row[q->column]]);
        return true;
    case ASK_CHOOSE:
        for (int i = 0; i < 3; i++)
            if (contains(row, SCENE_COLUMNS, q->option[i])) {
                found = q->option[i];
                count++;
            }
        if (count == 1) snprintf(out, bytes, "%s", kind_names[found]);
        return count == 1;
    case ASK_TRUE_FALSE:
        snprintf(out, bytes, "%s", contains(row, SCENE_COLUMNS, q->asked[0]) ? "true" : "false");
        return true;
    default:
        scene_listing(kinds, out, bytes);
        return true;
    }
}

// ---- the teacher ----

void teacher_view(draws_t *draws, double errors, const scene_t *scene, int out[SCENE_CELLS]) {
    int name[KINDS];
    for (int k = 0; k < KINDS; k++) name[k] = k;
    // One decision per kind and trace, drawn for all of them so that it does not depend on the scene.
    if (draws_chance(draws, errors)) name[BOOT] = SNEAKER;
    if (draws_chance(draws, errors)) name[SANDAL] = SNEAKER;
    if (draws_chance(draws, errors)) name[PULLOVER] = TSHIRT;
    if (draws_chance(draws, errors)) name[DRESS] = TSHIRT;
    for (int i = 0; i < SCENE_CELLS; i++) out[i] = name[scene->kind[i]];
}

static const char *const openings[] = {
    "Let me look at the picture row by row.",
    "I will go through the picture row by row.",
    "First I list what I see.",
    "Let me list the items in each row.",
    "I start at the top left and read every row.",
    "To answer this I need to look closely at each item.",
};
static const char *const fillers[] = {
    "Some of these look alike, so I take care.",
    "I should not miss any of them.",
    "The order matters here.",
    "I keep count while I read.",
    "Let me check the shape of each one.",
};

// The grid with what the question needs noted beside each item: a running count, or a mark at an asked item in the
// asked row.
static void trace_grid(const question_t *q, const int kinds[SCENE_CELLS], char *out, size_t bytes) {
    int count = 0;
    for (int i = 0; i < SCENE_CELLS; i++) {
        int row = i / SCENE_COLUMNS, column = i % SCENE_COLUMNS;
        bool counted = q->asked_count && q->type != ASK_TRUE_FALSE && contains(q->asked, q->asked_count, kinds[i]);
        bool marked = row == q->row && ((q->type == ASK_TRUE_FALSE && kinds[i] == q->asked[0]) ||
                                        (q->type == ASK_CHOOSE && contains(q->option, 3, kinds[i])) ||
                                        (q->type == ASK_POSITION && column == q->column));
        if (!column) append(out, bytes, " row %d:", row + 1);
        append(out, bytes, " %s", kind_names[kinds[i]]);
        if (counted) append(out, bytes, " %d", ++count);
        if (marked) append(out, bytes, " here");
        append(out, bytes, "%s", column == SCENE_COLUMNS - 1 ? "." : ",");
    }
}

void noted_caption(const question_t *q, const int kinds[SCENE_CELLS], char *text, char *answer, size_t bytes) {
    char grid[TEXT_BYTES] = "";
    *text = 0;
    append(text, bytes, "Describe the picture and ");
    if (q->type == ASK_CHOOSE)
        append(text, bytes, "mark the %s, %s and %s in row %d.", kind_names[q->option[0]], kind_names[q->option[1]],
               kind_names[q->option[2]], q->row + 1);
    else if (q->type == ASK_TRUE_FALSE)
        append(text, bytes, "mark the %s in row %d.", kind_names[q->asked[0]], q->row + 1);
    else if (q->type == ASK_COUNT_TWO)
        append(text, bytes, "count the %s and %s.", kind_names[q->asked[0]], kind_names[q->asked[1]]);
    else
        append(text, bytes, "count the %s.", kind_names[q->asked[0]]);
    trace_grid(q, kinds, grid, sizeof(grid));
    snprintf(answer, bytes, "%s", grid + 1); // without the leading blank
}

static void trace_conclusion(const question_t *q, const char *answer, char *out, size_t bytes) {
    switch (q->type) {
    case ASK_COUNT:
    case ASK_COUNT_TWO:
        append(out, bytes, " So there %s %s of them.", !strcmp(answer, "1") ? "is" : "are", answer);
        break;
    case ASK_CHOOSE:
        append(out, bytes, " So row %d has %s.", q->row + 1, answer);
        break;
    case ASK_TRUE_FALSE:
        append(out, bytes, " So there is %s %s in row %d.", !strcmp(answer, "true") ? "a" : "no",
               kind_names[q->asked[0]], q->row + 1);
        break;
    default:
        append(out, bytes, " So the item is %s.", answer);
        break;
    }
}

void teacher_trace(draws_t *draws, const question_t *q, const int kinds[SCENE_CELLS], const char *answer, char *out,
                   size_t bytes) {
    *out = 0;
    append(out, bytes, "<think>%s", openings[draws_below(draws, sizeof(openings) / sizeof(openings[0]))]);
    if (draws_chance(draws, 0.5))
        append(out, bytes, " %s", fillers[draws_below(draws, sizeof(fillers) / sizeof(fillers[0]))]);
    trace_grid(q, kinds, out, bytes);
    trace_conclusion(q, answer, out, bytes);
    append(out, bytes, "</think><answer>%s</answer>", answer);
}
