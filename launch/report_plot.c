// Plots: data and a script each, drawn by gnuplot as SVG and PNG.
#include "common/store/store.h"
#include "launch/report_gnuplot.h"
#include "launch/report_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const palette[] = {"0072B2", "D55E00", "009E73", "CC79A7", "E69F00", "56B4E9", "555555"};
enum { COLOURS = sizeof(palette) / sizeof(palette[0]), MAX_LINES = 3 * REPORT_MAX_RUNS };

// A plot being made: its data file and the part of its script that both terminals share.
typedef struct sketch {
    report_t *report;
    const char *name, *title;
    FILE *data, *script;
    char *data_text, *script_text;
    size_t data_size, script_size;
    int blocks; // data sets written so far; gnuplot's index
} sketch_t;

static status_t sketch_begin(sketch_t *sketch, report_t *report, const char *name, const char *title) {
    *sketch = (sketch_t){.report = report, .name = name, .title = title};
    sketch->data = open_memstream(&sketch->data_text, &sketch->data_size);
    sketch->script = open_memstream(&sketch->script_text, &sketch->script_size);
    if (sketch->data && sketch->script) return STATUS_OK;
    if (sketch->data) fclose(sketch->data);
    if (sketch->script) fclose(sketch->script);
    free(sketch->data_text);
    free(sketch->script_text);
    FAIL(STATUS_MEMORY, "out of memory while drawing");
}

// A string of gnuplot: single quotes, in which nothing but the quote itself means anything.
static void quote(FILE *stream, const char *text) {
    fputc('\'', stream);
    for (; *text; text++) {
        if (*text == '\'') fputc('\'', stream);
        fputc((unsigned char)*text < 32 || *text == 127 ? ' ' : *text, stream);
    }
    fputc('\'', stream);
}

static void write_script(const sketch_t *sketch, FILE *out) {
    static const char *const terminals[2][2] = {
        {"svg size 760,430 dynamic noenhanced font 'Helvetica,13' background '#ffffff'", "svg"},
        {"pngcairo size 1140,645 noenhanced font 'Sans,14' background '#ffffff'", "png"}};
    fprintf(out, "# gnuplot %s.gp draws %s.svg and %s.png from %s.dat\n", sketch->name, sketch->name, sketch->name,
            sketch->name);
    for (int i = 0; i < 2; i++) {
        fprintf(out, "reset\nset terminal %s\nset output '%s.%s'\nset title ", terminals[i][0], sketch->name,
                terminals[i][1]);
        quote(out, sketch->title);
        fprintf(out,
                "\nset border 3\nset tics nomirror out\nset grid ytics lc rgb '#dddddd' lt 1\n"
                "set key below center horizontal\nset lmargin 9\n%s",
                sketch->script_text);
    }
    fputs("set output\n", out);
}

static status_t write_files(const sketch_t *sketch) {
    char path[REPORT_PATH_BYTES], *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) FAIL(STATUS_MEMORY, "out of memory while drawing");
    write_script(sketch, out);
    bool bad = ferror(out);
    bad |= fclose(out) != 0;
    status_t status = bad ? STATUS_NEW(STATUS_MEMORY, "out of memory while drawing") : STATUS_OK;
    snprintf(path, sizeof(path), "%s/plots/%s.gp", sketch->report->output, sketch->name);
    if (!status) status = file_write_whole(path, text, size);
    free(text);
    snprintf(path, sizeof(path), "%s/plots/%s.dat", sketch->report->output, sketch->name);
    if (!status) status = file_write_whole(path, sketch->data_text, sketch->data_size);
    return status;
}

static status_t draw(sketch_t *sketch) {
    report_t *report = sketch->report;
    if (report->plots >= REPORT_MAX_PLOTS) return STATUS_OK;
    report_plot_t *plot = &report->plot[report->plots++];
    snprintf(plot->name, sizeof(plot->name), "%s", sketch->name);
    snprintf(plot->title, sizeof(plot->title), "%s", sketch->title);
    TRY(write_files(sketch));
    if (!report->gnuplot) return STATUS_OK;
    char folder[REPORT_PATH_BYTES], script[64], *complaint;
    snprintf(folder, sizeof(folder), "%s/plots", report->output);
    snprintf(script, sizeof(script), "%s.gp", sketch->name);
    TRY(gnuplot_run(folder, script, &complaint));
    plot->drawn = !complaint;
    if (complaint) report_warn(report, "gnuplot could not draw plots/%s: %s", script, complaint);
    free(complaint);
    return STATUS_OK;
}

// Closes the streams and draws, when there is something to draw.
static status_t sketch_end(sketch_t *sketch) {
    bool bad = ferror(sketch->data) || ferror(sketch->script);
    bad |= fclose(sketch->data) != 0;
    bad |= fclose(sketch->script) != 0;
    status_t status = bad ? STATUS_NEW(STATUS_MEMORY, "out of memory while drawing") : STATUS_OK;
    if (!status && sketch->blocks) status = draw(sketch);
    free(sketch->data_text);
    free(sketch->script_text);
    return status;
}

// ---- curves by step ----

typedef struct curve {
    const report_series_t *series;
    char label[160];
} curve_t;

// Columns: step, value, mean of the last `window` values. Long runs are thinned out to what a picture can show.
static void write_curve(FILE *stream, const curve_t *curve, size_t window) {
    const report_series_t *series = curve->series;
    size_t every = series->count / 1500 + 1;
    double sum = 0;
    fprintf(stream, "# %s\n", curve->label);
    for (size_t i = 0; i < series->count; i++) {
        sum += series->value[i];
        if (i >= window) sum -= series->value[i - window];
        if (i % every && i + 1 < series->count) continue;
        fprintf(stream, "%lld %.9g %.9g\n", (long long)series->step[i], series->value[i],
                sum / (double)(i + 1 < window ? i + 1 : window));
    }
    fputs("\n\n", stream);
}

static bool all_positive(const curve_t *curve, int count) {
    for (int i = 0; i < count; i++)
        for (size_t j = 0; j < curve[i].series->count; j++)
            if (!(curve[i].series->value[j] > 0)) return false;
    return true;
}

static status_t draw_curves(report_t *report, const char *name, const char *title, const char *axis, bool logarithmic,
                            const curve_t *curve, int count) {
    sketch_t sketch;
    TRY(sketch_begin(&sketch, report, name, title));
    fputs("set xlabel 'step'\nset ylabel ", sketch.script);
    quote(sketch.script, axis);
    fprintf(sketch.script, "\n%splot ", logarithmic && all_positive(curve, count) ? "set logscale y\n" : "");
    for (int i = 0; i < count; i++) {
        size_t window = curve[i].series->count / 30 + 1;
        write_curve(sketch.data, &curve[i], window);
        const char *colour = palette[i % COLOURS];
        if (window > 1)
            fprintf(sketch.script, "'%s.dat' index %d using 1:2 with lines lw 1 lc rgb '#B0%s' notitle, ", name, i,
                    colour);
        fprintf(sketch.script, "'%s.dat' index %d using 1:3 with %s lw 2 lc rgb '#%s' title ", name, i,
                curve[i].series->count > 1 ? "lines" : "points", colour);
        quote(sketch.script, curve[i].label);
        fputs(i + 1 < count ? ", " : "\n", sketch.script);
    }
    sketch.blocks = count;
    return sketch_end(&sketch);
}

static void add_curve(curve_t *curve, int *count, const report_series_t *series, const report_run_t *run,
                      const char *part) {
    if (!series || !series->count || *count >= MAX_LINES) return;
    curve[*count].series = series;
    snprintf(curve[*count].label, sizeof(curve[*count].label), "%s%s%s", run->label, *part ? ": " : "", part);
    ++*count;
}

static status_t draw_losses(report_t *report) {
    static const char *const parts[] = {"loss", "loss/think", "loss/answer"};
    curve_t whole[MAX_LINES], split[MAX_LINES];
    int wholes = 0, splits = 0;
    for (int r = 0; r < report->runs; r++) {
        const report_run_t *run = &report->run[r];
        if (report_run_is_grpo(run)) continue;
        add_curve(whole, &wholes, report_run_find(run, parts[0]), run, "");
        // A run with one segment only has nothing to tell apart.
        if (!report_run_find(run, parts[1]) || !report_run_find(run, parts[2])) continue;
        add_curve(split, &splits, report_run_find(run, parts[1]), run, "think");
        add_curve(split, &splits, report_run_find(run, parts[2]), run, "answer");
    }
    if (wholes) TRY(draw_curves(report, "loss", "Supervised training: loss", "loss", true, whole, wholes));
    if (!splits) return STATUS_OK;
    return draw_curves(report, "loss_segments", "Supervised training: loss by segment, before weighting",
                       "nats per token", true, split, splits);
}

static bool is_reward_part(const char *name) {
    size_t length = strlen(name);
    return !strncmp(name, "reward/", 7) && (length < 4 || strcmp(name + length - 4, "_std") != 0);
}

static status_t draw_rewards(report_t *report) {
    curve_t whole[MAX_LINES], split[MAX_LINES];
    int wholes = 0, splits = 0;
    for (int r = 0; r < report->runs; r++) {
        const report_run_t *run = &report->run[r];
        if (!report_run_is_grpo(run)) continue;
        add_curve(whole, &wholes, report_run_find(run, "reward"), run, "");
        for (size_t i = 0; i < run->series_count; i++)
            if (is_reward_part(run->series[i].name))
                add_curve(split, &splits, &run->series[i], run, run->series[i].name + 7);
    }
    if (wholes) TRY(draw_curves(report, "reward", "GRPO: mean reward", "reward", false, whole, wholes));
    if (!splits) return STATUS_OK;
    return draw_curves(report, "reward_parts", "GRPO: reward by part", "reward", false, split, splits);
}

static status_t draw_lengths(report_t *report) {
    curve_t curve[MAX_LINES];
    int count = 0;
    for (int r = 0; r < report->runs; r++)
        if (report_run_is_grpo(&report->run[r]))
            add_curve(curve, &count, report_run_find(&report->run[r], "length/mean"), &report->run[r], "");
    if (!count) return STATUS_OK;
    return draw_curves(report, "lengths", "GRPO: mean length of completions", "tokens", false, curve, count);
}

// ---- bars by configuration or kind ----

typedef struct bar {
    double value, low, high;
} bar_t;

typedef struct bars {
    const char *const *group;  // [groups] labels below the bars
    const char *const *colour; // [colours] labels of the key
    int groups, colours;
    const bar_t *bar;         // [groups * colours]; value NAN: no bar
    const char *axis, *extra; // extra: more of gnuplot's plot list, or ""
    bool percent;
} bars_t;

static status_t draw_bars(report_t *report, const char *name, const char *title, const bars_t *bars) {
    sketch_t sketch = {0};
    TRY(sketch_begin(&sketch, report, name, title));
    FILE *script = sketch.script;
    double width = 0.8 / bars->colours;
    fprintf(script,
            "set style fill solid 0.85 border -1\nset boxwidth %.5f\nset yrange [0:%s]\nset xrange [-0.6:%.1f]\n",
            0.92 * width, bars->percent ? "100" : "*", bars->groups - 0.4);
    fputs("set ylabel ", script);
    quote(script, bars->axis);
    fputs("\nset xtics (", script);
    for (int g = 0; g < bars->groups; g++) {
        quote(script, bars->group[g]);
        fprintf(script, " %d%s", g, g + 1 < bars->groups ? ", " : ")\nplot ");
    }
    for (int c = 0; c < bars->colours; c++) {
        fprintf(sketch.data, "# %s: place, value, low, high\n", bars->colour[c]);
        for (int g = 0; g < bars->groups; g++) {
            const bar_t *bar = &bars->bar[g * bars->colours + c];
            if (isfinite(bar->value))
                fprintf(sketch.data, "%.5f %.6g %.6g %.6g\n", g + (c - 0.5 * (bars->colours - 1)) * width, bar->value,
                        bar->low, bar->high);
        }
        fputs("\n\n", sketch.data);
        fprintf(script, "%s'%s.dat' index %d using 1:2 with boxes lc rgb '#%s' title ", c ? ", " : "", name, c,
                palette[c % COLOURS]);
        quote(script, bars->colour[c]);
        fprintf(script, ", '%s.dat' index %d using 1:2:3:4 with yerrorbars ps 0 lw 1.5 lc rgb '#333333' notitle", name,
                c);
    }
    fprintf(script, "%s\n", bars->extra);
    sketch.blocks = bars->colours;
    return sketch_end(&sketch);
}

static bar_t percent_bar(const json_t *object, const char *key) {
    char name[64];
    snprintf(name, sizeof(name), "%s_ci95", key);
    const json_t *value = json_object_get(object, key), *ends = json_object_get(object, name);
    if (!json_is_number(value)) return (bar_t){NAN, NAN, NAN};
    return (bar_t){100 * json_number_value(value), 100 * json_number_value(json_array_get(ends, 0)),
                   100 * json_number_value(json_array_get(ends, 1))};
}

static status_t draw_accuracy(report_t *report) {
    static const char *const colours[] = {"answer right", "listing right"};
    const char *group[REPORT_MAX_ROWS];
    bar_t bar[2 * REPORT_MAX_ROWS];
    char extra[512];
    int used = 0;
    bool listing = false;
    const json_t *rows = json_object_get(report->json, "rows"), *controls = json_object_get(report->json, "controls");
    for (int i = 0; i < report->rows; i++)
        listing |= json_is_number(json_object_get(json_array_get(rows, (size_t)i), "trace_accuracy"));
    for (int i = 0; i < report->rows; i++) {
        group[i] = report->row[i].name;
        bar[used++] = percent_bar(json_array_get(rows, (size_t)i), "accuracy");
        if (listing) bar[used++] = percent_bar(json_array_get(rows, (size_t)i), "trace_accuracy");
    }
    const json_t *shuffled = json_object_get(controls, "shuffled_images");
    int length = snprintf(extra, sizeof(extra), ", %.6g with lines dt 2 lw 2 lc rgb '#000000' title 'majority answer'",
                          100 * json_number_value(json_object_get(controls, "majority")));
    if (json_is_number(shuffled))
        snprintf(extra + length, sizeof(extra) - (size_t)length,
                 ", %.6g with lines dt 3 lw 2 lc rgb '#CC0000' title 'shuffled images'",
                 100 * json_number_value(shuffled));
    bars_t bars = {.group = group,
                   .colour = colours,
                   .groups = report->rows,
                   .colours = listing ? 2 : 1,
                   .bar = bar,
                   .axis = "percent of questions",
                   .extra = extra,
                   .percent = true};
    return draw_bars(report, "accuracy", "Held-out questions, with 95 % intervals", &bars);
}

static status_t draw_kinds(report_t *report) {
    const char **kind, *colour[REPORT_MAX_ROWS] = {0};
    int kinds;
    bar_t *bar;
    const json_t *rows = json_object_get(report->json, "rows");
    TRY(report_kinds(&report->row[0].evaluation, &kind, &kinds));
    if (kinds > 24) kinds = 24;
    for (int i = 0; i < report->rows; i++) colour[i] = report->row[i].name;
    status_t status = ALLOCATE(&bar, (size_t)kinds * (size_t)report->rows);
    for (int k = 0; !status && k < kinds; k++)
        for (int i = 0; i < report->rows; i++) {
            const json_t *all = json_object_get(json_array_get(rows, (size_t)i), "by_kind");
            bar[k * report->rows + i] = percent_bar(json_object_get(all, kind[k]), "accuracy");
        }
    if (!status) {
        bars_t bars = {.group = kind,
                       .colour = colour,
                       .groups = kinds,
                       .colours = report->rows,
                       .bar = bar,
                       .axis = "percent right",
                       .extra = "",
                       .percent = true};
        status = draw_bars(report, "kinds", "Accuracy by kind of question, with 95 % intervals", &bars);
        free(bar);
    }
    free(kind);
    return status;
}

static status_t draw_tokens(report_t *report) {
    static const char *const colours[] = {"think", "answer"}, *const keys[] = {"mean_think_tokens",
                                                                               "mean_answer_tokens"};
    const char *group[REPORT_MAX_ROWS];
    bar_t bar[2 * REPORT_MAX_ROWS];
    const json_t *rows = json_object_get(report->json, "rows");
    for (int i = 0; i < report->rows; i++) {
        group[i] = report->row[i].name;
        for (int part = 0; part < 2; part++) {
            double value = json_number_value(json_object_get(json_array_get(rows, (size_t)i), keys[part]));
            bar[2 * i + part] = (bar_t){value, value, value};
        }
    }
    bars_t bars = {.group = group,
                   .colour = colours,
                   .groups = report->rows,
                   .colours = 2,
                   .bar = bar,
                   .axis = "tokens per answer",
                   .extra = ""};
    return draw_bars(report, "tokens", "Mean length of reasoning and answer", &bars);
}

status_t report_draw(report_t *report) {
    char folder[REPORT_PATH_BYTES];
    if (snprintf(folder, sizeof(folder), "%s/plots", report->output) >= (int)sizeof(folder) - 64)
        FAIL(STATUS_INVALID, "the path %.80s... is too long", report->output);
    TRY(file_make_directory(folder));
    if (!report->gnuplot)
        report_warn(report, "there is no gnuplot on this machine, so the plots were not drawn; install gnuplot-nox and "
                            "run this again, or run gnuplot on the scripts in plots/");
    TRY(draw_accuracy(report));
    TRY(draw_losses(report));
    TRY(draw_rewards(report));
    TRY(draw_lengths(report));
    TRY(draw_kinds(report));
    return draw_tokens(report);
}
