// The report as text: tables that fit a terminal.
#include "launch/report_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_BYTES = 64, MAX_COLUMNS = 40 };

typedef struct column {
    char head[CELL_BYTES];
    int importance; // columns with the smallest are left out first
    bool left;      // aligned to the left
    bool hidden;
    char (*cell)[CELL_BYTES]; // [rows]
} column_t;

typedef struct table {
    column_t column[MAX_COLUMNS];
    int columns, rows;
    bool short_of_memory; // a column is missing
} table_t;

static bool table_begin(table_t *table, int rows) {
    *table = (table_t){.rows = rows};
    return rows > 0;
}

// A new column; NULL when room is short (the table then lacks it) or memory (table_end then fails).
static column_t *table_column(table_t *table, const char *head, int importance, bool left) {
    if (table->columns >= MAX_COLUMNS) return NULL;
    column_t *column = &table->column[table->columns];
    column->cell = calloc((size_t)table->rows, CELL_BYTES);
    if (!column->cell) {
        table->short_of_memory = true;
        return NULL;
    }
    snprintf(column->head, CELL_BYTES, "%s", head);
    column->importance = importance;
    column->left = left;
    table->columns++;
    return column;
}

// Characters of UTF-8 text.
static int text_width(const char *text) {
    int width = 0;
    for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static int column_width(const table_t *table, const column_t *column) {
    int width = text_width(column->head);
    for (int r = 0; r < table->rows; r++)
        if (text_width(column->cell[r]) > width) width = text_width(column->cell[r]);
    return width;
}

static void table_fit(table_t *table, int width) {
    for (;;) {
        int total = 0, shown = 0;
        column_t *least = NULL;
        for (int c = 0; c < table->columns; c++) {
            column_t *column = &table->column[c];
            if (column->hidden) continue;
            total += column_width(table, column) + (shown++ ? 2 : 0);
            if (!least || column->importance <= least->importance) least = column;
        }
        if (total <= width || shown <= 2) return;
        least->hidden = true;
    }
}

static void print_cell(FILE *stream, const char *text, int width, bool left) {
    int gap = width - text_width(text);
    if (!left) fprintf(stream, "%*s", gap, "");
    fputs(text, stream);
    if (left) fprintf(stream, "%*s", gap, "");
}

// Prints to fit `width`, and frees.
static status_t table_end(table_t *table, int width, FILE *stream) {
    table_fit(table, width);
    for (int r = -1; r < table->rows; r++) {
        int shown = 0;
        for (int c = 0; c < table->columns; c++) {
            const column_t *column = &table->column[c];
            if (column->hidden) continue;
            if (shown++) fputs("  ", stream);
            print_cell(stream, r < 0 ? column->head : column->cell[r], column_width(table, column), column->left);
        }
        fputc('\n', stream);
    }
    for (int c = 0; c < table->columns; c++) free(table->column[c].cell);
    if (table->short_of_memory) FAIL(STATUS_MEMORY, "out of memory while writing the report");
    return STATUS_OK;
}

// ---- cells ----

static void put_percent(char *cell, const json_t *value) {
    if (json_is_number(value))
        snprintf(cell, CELL_BYTES, "%.1f", 100 * json_number_value(value));
    else
        snprintf(cell, CELL_BYTES, "-");
}

static void put_interval(char *cell, const json_t *value, bool sign) {
    const json_t *low = json_array_get(value, 0), *high = json_array_get(value, 1);
    if (json_is_number(low) && json_is_number(high))
        snprintf(cell, CELL_BYTES, sign ? "[%+.1f, %+.1f]" : "[%.1f, %.1f]", 100 * json_number_value(low),
                 100 * json_number_value(high));
    else
        snprintf(cell, CELL_BYTES, "-");
}

static void put_number(char *cell, const json_t *value, int digits) {
    if (json_is_number(value))
        snprintf(cell, CELL_BYTES, "%.*f", digits, json_number_value(value));
    else
        snprintf(cell, CELL_BYTES, "-");
}

static void fill_percent(table_t *table, const json_t *rows, const char *head, const char *key, int importance) {
    column_t *column = table_column(table, head, importance, false);
    for (int r = 0; column && r < table->rows; r++)
        put_percent(column->cell[r], json_object_get(json_array_get(rows, (size_t)r), key));
}

static void fill_interval(table_t *table, const json_t *rows, const char *head, const char *key, int importance,
                          bool sign) {
    column_t *column = table_column(table, head, importance, false);
    for (int r = 0; column && r < table->rows; r++)
        put_interval(column->cell[r], json_object_get(json_array_get(rows, (size_t)r), key), sign);
}

static void fill_number(table_t *table, const json_t *rows, const char *head, const char *key, int digits,
                        int importance) {
    column_t *column = table_column(table, head, importance, false);
    for (int r = 0; column && r < table->rows; r++)
        put_number(column->cell[r], json_object_get(json_array_get(rows, (size_t)r), key), digits);
}

static void fill_text(table_t *table, const json_t *rows, const char *head, const char *key, int importance) {
    column_t *column = table_column(table, head, importance, true);
    for (int r = 0; column && r < table->rows; r++) {
        const char *text = json_string_value(json_object_get(json_array_get(rows, (size_t)r), key));
        snprintf(column->cell[r], CELL_BYTES, "%s", text ? text : "");
    }
}

// ---- the tables ----

static status_t print_rows(const json_t *json, int width, FILE *stream) {
    const json_t *rows = json_object_get(json, "rows");
    table_t table;
    if (!table_begin(&table, (int)json_array_size(rows))) return STATUS_OK;
    fill_text(&table, rows, "config", "config", 100);
    fill_percent(&table, rows, "accuracy %", "accuracy", 99);
    fill_interval(&table, rows, "95 % interval", "accuracy_ci95", 90, false);
    fill_percent(&table, rows, "invalid %", "invalid_rate", 85);
    fill_percent(&table, rows, "bare %", "accuracy_bare", 70);
    fill_percent(&table, rows, "listing %", "trace_accuracy", 80);
    fill_number(&table, rows, "think tok.", "mean_think_tokens", 1, 60);
    fill_number(&table, rows, "tok./answer", "mean_tokens", 1, 30);
    fill_number(&table, rows, "tag score", "tag_score", 2, 20);
    fill_percent(&table, rows, "cut off %", "truncated_rate", 40);
    fill_number(&table, rows, "n", "n", 0, 50);
    fill_number(&table, rows, "seconds", "seconds", 0, 65);
    return table_end(&table, width, stream);
}

static status_t print_kinds(const json_t *json, int width, FILE *stream) {
    const json_t *rows = json_object_get(json, "rows");
    const json_t *kinds = json_object_get(json_array_get(rows, 0), "by_kind");
    table_t table;
    if (json_object_size(kinds) < 2 || !table_begin(&table, (int)json_array_size(rows))) return STATUS_OK;
    fputs("\nAccuracy by kind of question (percent)\n", stream);
    fill_text(&table, rows, "config", "config", 100);
    const char *kind;
    const json_t *value;
    json_object_foreach((json_t *)kinds, kind, value) {
        column_t *column = table_column(&table, kind, 50, false);
        for (int r = 0; column && r < table.rows; r++) {
            const json_t *all = json_object_get(json_array_get(rows, (size_t)r), "by_kind");
            put_percent(column->cell[r], json_object_get(json_object_get(all, kind), "accuracy"));
        }
    }
    return table_end(&table, width, stream);
}

static status_t print_pairs(const json_t *json, int width, FILE *stream) {
    const json_t *pairs = json_object_get(json, "paired");
    table_t table;
    if (!table_begin(&table, (int)json_array_size(pairs))) return STATUS_OK;
    fputs("\nPaired differences of accuracy (points)\n", stream);
    fill_text(&table, pairs, "a", "a", 100);
    fill_text(&table, pairs, "minus b", "b", 99);
    column_t *column = table_column(&table, "difference", 95, false);
    for (int r = 0; column && r < table.rows; r++)
        snprintf(column->cell[r], CELL_BYTES, "%+.1f",
                 100 * json_number_value(json_object_get(json_array_get(pairs, (size_t)r), "difference")));
    fill_interval(&table, pairs, "95 % interval", "ci95", 90, true);
    fill_number(&table, pairs, "p", "p", 4, 50);
    // What a comparison of this size would find four times in five.
    column = table_column(&table, "detectable", 40, false);
    for (int r = 0; column && r < table.rows; r++)
        snprintf(column->cell[r], CELL_BYTES, "%.1f",
                 280 * json_number_value(json_object_get(json_array_get(pairs, (size_t)r), "stderr")));
    return table_end(&table, width, stream);
}

static void print_controls(const json_t *json, FILE *stream) {
    const json_t *controls = json_object_get(json, "controls"),
                 *answers = json_object_get(controls, "majority_answers");
    const json_t *shuffled = json_object_get(controls, "shuffled_images"), *value;
    const char *kind;
    int count = 0;
    fprintf(stream, "\nControls of %s\n  majority answer of each kind  %5.1f %%   (",
            json_string_value(json_object_get(controls, "row")),
            100 * json_number_value(json_object_get(controls, "majority")));
    json_object_foreach((json_t *)answers, kind, value)
        fprintf(stream, "%s%s: %s", count++ ? ", " : "", *kind ? kind : "all", json_string_value(value));
    fputs(")\n", stream);
    if (json_is_number(shuffled)) {
        char interval[CELL_BYTES];
        put_interval(interval, json_object_get(controls, "shuffled_images_ci95"), false);
        fprintf(stream, "  shuffled images               %5.1f %%   %s\n", 100 * json_number_value(shuffled), interval);
    }
}

static void put_run(char *cell, const json_t *run, int line, const char *name) {
    static const char *const keys[] = {"steps", "learner_tokens_per_second", "rollout_tokens_per_second", "seconds"};
    if (line < 4)
        put_number(cell, json_object_get(run, keys[line]), line == 3);
    else
        put_number(cell, json_object_get(json_object_get(run, "time"), name), 1);
}

// A line for each thing that runs spend seconds on (as their metrics name them), a column a run.
static status_t print_time(const json_t *json, int width, FILE *stream) {
    static const char *const heads[] = {"steps", "learner tokens/s", "rollout tokens/s", "seconds"};
    const json_t *runs = json_object_get(json, "runs"), *names = json_object_get(json, "time"), *value;
    table_t table;
    const char *name;
    int lines = 4 + (int)json_object_size(names) - (json_object_get(names, "step") != NULL);
    if (!json_array_size(runs) || !table_begin(&table, lines)) return STATUS_OK;
    fputs("\nTraining runs: seconds by what they were spent on (stages overlap)\n", stream);
    column_t *what = table_column(&table, "", 100, true);
    for (size_t r = 0; what && r < json_array_size(runs); r++) {
        const json_t *run = json_array_get(runs, r);
        column_t *column = table_column(&table, json_string_value(json_object_get(run, "name")), 50, false);
        int line = 0;
        for (; line < 4; line++) {
            snprintf(what->cell[line], CELL_BYTES, "%s", heads[line]);
            if (column) put_run(column->cell[line], run, line, NULL);
        }
        json_object_foreach((json_t *)names, name, value) {
            if (!strcmp(name, "step")) continue; // their sum is "seconds"
            snprintf(what->cell[line], CELL_BYTES, "  %s", name);
            if (column) put_run(column->cell[line], run, line, name);
            line++;
        }
    }
    TRY(table_end(&table, width, stream));
    const json_t *difference = json_object_get(json, "rollout_learner_logprob_max_abs_diff");
    if (json_is_number(difference))
        fprintf(stream, "max |rollout log-prob - learner log-prob| before the first update of any batch: %g\n",
                json_number_value(difference));
    return STATUS_OK;
}

status_t report_print_text(const report_t *report, int width, FILE *stream) {
    const json_t *json = report->json;
    fprintf(stream, "%s\n", report->title);
    fprintf(stream, "%lld questions on %lld pictures, seed %llu; accuracies in percent\n\n",
            (long long)json_integer_value(json_object_get(json, "n")),
            (long long)json_integer_value(json_object_get(json, "images")), (unsigned long long)report->seed);
    TRY(print_rows(json, width, stream));
    fputs("interval: over resampled pictures; invalid: no complete <answer>; bare: the whole text taken as the "
          "answer;\nlisting: reasoning that names everything in the picture as it is; seconds: training and "
          "evaluation\n",
          stream);
    print_controls(json, stream);
    TRY(print_kinds(json, width, stream));
    TRY(print_pairs(json, width, stream));
    TRY(print_time(json, width, stream));
    for (int i = 0; i < report->warnings; i++) fprintf(stream, "\nnote: %s\n", report->warning[i]);
    return STATUS_OK;
}
