// The report as one page that loads nothing from elsewhere.
#include "common/store/store.h"
#include "launch/report_parts.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SVG_BYTES = 32 << 20 };

static const char style[] =
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;"
    "background:#fff}\nh1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}\n"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}\n"
    "th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}\n"
    "th:first-child,td:first-child,.left{text-align:left}thead th{border-bottom:2px solid #888}\n"
    "figure{margin:1.4rem 0}figure svg{width:100%;height:auto;max-width:760px}\n"
    "figcaption,small,.muted{color:#555;font-size:.88rem}.warn{border-left:4px solid #d55e00;padding-left:.8rem}\n";

void report_escape_html(FILE *stream, const char *text) {
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", stream);
            break;
        case '<':
            fputs("&lt;", stream);
            break;
        case '>':
            fputs("&gt;", stream);
            break;
        case '"':
            fputs("&quot;", stream);
            break;
        case '\'':
            fputs("&#39;", stream);
            break;
        default:
            fputc(*text, stream);
        }
    }
}

// ---- pictures ----

// The length of a place where an id is made or referred to, up to and with the quote or '#': id=' id=" ="# ='# url(#
static size_t id_place(const char *at, const char *start) {
    static const char *const places[] = {"id='", "id=\"", "='#", "=\"#", "url(#"};
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        size_t length = strlen(places[i]);
        if (strncmp(at, places[i], length) != 0) continue;
        // "id=" must be an attribute, not the end of another one's name.
        if (i < 2 && (at == start || !isspace((unsigned char)at[-1]))) continue;
        // A '#' followed by a colour is no reference.
        if ((i == 2 || i == 3) && (at - start < 4 || strncmp(at - 4, "href", 4) != 0)) continue;
        return length;
    }
    return 0;
}

status_t report_inline_svg(FILE *stream, const char *path, const char *prefix, const char *label) {
    char *text;
    size_t size;
    TRY(file_read_whole(path, MAX_SVG_BYTES, &text, &size));
    const char *start = strstr(text, "<svg");
    if (!start) {
        free(text);
        FAIL(STATUS_FAILED, "%s holds no picture; is gnuplot whole?", path);
    }
    fputs("<svg role=\"img\" aria-label=\"", stream);
    report_escape_html(stream, label);
    fputc('"', stream);
    for (const char *at = start + 4; *at;) {
        size_t length = id_place(at, start);
        if (length) {
            fwrite(at, 1, length, stream);
            fputs(prefix, stream);
            at += length;
        } else {
            fputc(*at++, stream);
        }
    }
    free(text);
    return STATUS_OK;
}

static status_t print_plots(const report_t *report, FILE *stream) {
    for (int i = 0; i < report->plots; i++) {
        const report_plot_t *plot = &report->plot[i];
        char path[REPORT_PATH_BYTES], prefix[64];
        if (!plot->drawn) continue;
        snprintf(path, sizeof(path), "%s/plots/%s.svg", report->output, plot->name);
        snprintf(prefix, sizeof(prefix), "%s_", plot->name);
        fputs("<figure>\n", stream);
        TRY(report_inline_svg(stream, path, prefix, plot->title));
        fputs("<figcaption>", stream);
        report_escape_html(stream, plot->title);
        fprintf(stream, " (plots/%s.svg, .png, .dat, .gp)</figcaption>\n</figure>\n", plot->name);
    }
    return STATUS_OK;
}

// ---- tables ----

static void cell_text(FILE *stream, const json_t *value, bool head) {
    const char *text = json_string_value(value);
    fprintf(stream, "<t%c class=\"left\">", head ? 'h' : 'd');
    report_escape_html(stream, text ? text : "");
    fprintf(stream, "</t%c>", head ? 'h' : 'd');
}

static void cell_number(FILE *stream, const json_t *value, double factor, int digits, bool sign) {
    if (!json_is_number(value))
        fputs("<td>–</td>", stream);
    else
        fprintf(stream, sign ? "<td>%+.*f</td>" : "<td>%.*f</td>", digits, factor * json_number_value(value));
}

static void cell_interval(FILE *stream, const json_t *value, bool sign) {
    const json_t *low = json_array_get(value, 0), *high = json_array_get(value, 1);
    if (json_is_number(low) && json_is_number(high))
        fprintf(stream, sign ? "<td>[%+.1f, %+.1f]</td>" : "<td>[%.1f, %.1f]</td>", 100 * json_number_value(low),
                100 * json_number_value(high));
    else
        fputs("<td>–</td>", stream);
}

static void print_rows(const json_t *json, FILE *stream) {
    fputs("<div class=\"wide\"><table><thead><tr><th>configuration</th><th>accuracy %</th><th>95 % interval</th>"
          "<th>invalid %</th><th>bare %</th><th>listing right %</th><th>think tokens</th><th>tokens</th>"
          "<th>tag score</th><th>n</th><th>seconds</th></tr></thead>\n<tbody>\n",
          stream);
    size_t i;
    const json_t *row;
    json_array_foreach(json_object_get(json, "rows"), i, row) {
        fputs("<tr>", stream);
        cell_text(stream, json_object_get(row, "config"), true);
        cell_number(stream, json_object_get(row, "accuracy"), 100, 1, false);
        cell_interval(stream, json_object_get(row, "accuracy_ci95"), false);
        cell_number(stream, json_object_get(row, "invalid_rate"), 100, 1, false);
        cell_number(stream, json_object_get(row, "accuracy_bare"), 100, 1, false);
        cell_number(stream, json_object_get(row, "trace_accuracy"), 100, 1, false);
        cell_number(stream, json_object_get(row, "mean_think_tokens"), 1, 1, false);
        cell_number(stream, json_object_get(row, "mean_tokens"), 1, 1, false);
        cell_number(stream, json_object_get(row, "tag_score"), 1, 2, false);
        cell_number(stream, json_object_get(row, "n"), 1, 0, false);
        cell_number(stream, json_object_get(row, "seconds"), 1, 0, false);
        fputs("</tr>\n", stream);
    }
    fputs("</tbody></table></div>\n", stream);
}

static void print_kinds(const json_t *json, FILE *stream) {
    const json_t *rows = json_object_get(json, "rows"), *row, *value;
    const json_t *kinds = json_object_get(json_array_get(rows, 0), "by_kind");
    const char *kind;
    size_t i;
    if (json_object_size(kinds) < 2) return;
    fputs("<h2>By kind of question</h2>\n<div class=\"wide\"><table><thead><tr><th>configuration</th>", stream);
    json_object_foreach((json_t *)kinds, kind, value) {
        fputs("<th>", stream);
        report_escape_html(stream, kind);
        fprintf(stream, "<br><small>n = %lld</small></th>", (long long)json_integer_value(json_object_get(value, "n")));
    }
    fputs("</tr></thead>\n<tbody>\n", stream);
    json_array_foreach(rows, i, row) {
        fputs("<tr>", stream);
        cell_text(stream, json_object_get(row, "config"), true);
        json_object_foreach((json_t *)kinds, kind, value) cell_number(
            stream, json_object_get(json_object_get(json_object_get(row, "by_kind"), kind), "accuracy"), 100, 1, false);
        fputs("</tr>\n", stream);
    }
    fputs("</tbody></table></div>\n", stream);
}

static void print_pairs(const json_t *json, FILE *stream) {
    const json_t *pairs = json_object_get(json, "paired"), *pair;
    size_t i;
    if (!json_array_size(pairs)) return;
    fputs("<h2>Paired differences</h2>\n<div class=\"wide\"><table><thead><tr><th>a</th><th class=\"left\">minus b</th>"
          "<th>points</th><th>95 % interval</th><th>p</th><th>detectable</th></tr></thead>\n<tbody>\n",
          stream);
    json_array_foreach(pairs, i, pair) {
        fputs("<tr>", stream);
        cell_text(stream, json_object_get(pair, "a"), true);
        cell_text(stream, json_object_get(pair, "b"), false);
        cell_number(stream, json_object_get(pair, "difference"), 100, 1, true);
        cell_interval(stream, json_object_get(pair, "ci95"), true);
        cell_number(stream, json_object_get(pair, "p"), 1, 4, false);
        cell_number(stream, json_object_get(pair, "stderr"), 280, 1, false);
        fputs("</tr>\n", stream);
    }
    fputs("</tbody></table></div>\n<p class=\"muted\">Points of accuracy on the same questions. Detectable: the "
          "difference that a comparison of this size would find four times in five.</p>\n",
          stream);
}

static void print_controls(const json_t *json, FILE *stream) {
    const json_t *controls = json_object_get(json, "controls"),
                 *answers = json_object_get(controls, "majority_answers");
    const json_t *shuffled = json_object_get(controls, "shuffled_images"), *value;
    const char *kind;
    int count = 0;
    fprintf(stream,
            "<h2>Controls of %s</h2>\n<ul>\n<li>Always giving the most frequent answer of the question's kind: "
            "<b>%.1f %%</b> (",
            json_string_value(json_object_get(controls, "row")),
            100 * json_number_value(json_object_get(controls, "majority")));
    json_object_foreach((json_t *)answers, kind, value) {
        fputs(count++ ? ", " : "", stream);
        report_escape_html(stream, *kind ? kind : "all");
        fputs(": ", stream);
        report_escape_html(stream, json_string_value(value));
    }
    fputs("). The answers are counted on the questions themselves, which flatters this control.</li>\n", stream);
    if (json_is_number(shuffled))
        fprintf(stream,
                "<li>The same model with each question shown another question's picture: <b>%.1f %%</b>.</li>\n",
                100 * json_number_value(shuffled));
    fputs("</ul>\n", stream);
}

// One line of the runs' table: a number of each run.
static void print_run_line(FILE *stream, const json_t *runs, const char *head, const char *key, const char *time,
                           int digits) {
    size_t i;
    const json_t *run;
    fputs("<tr><th>", stream);
    report_escape_html(stream, head);
    fputs("</th>", stream);
    json_array_foreach(runs, i, run) {
        const json_t *value = time ? json_object_get(json_object_get(run, "time"), time) : json_object_get(run, key);
        cell_number(stream, value, 1, digits, false);
    }
    fputs("</tr>\n", stream);
}

static void print_time(const json_t *json, FILE *stream) {
    const json_t *runs = json_object_get(json, "runs"), *names = json_object_get(json, "time"), *run, *value;
    const char *name;
    size_t i;
    if (!json_array_size(runs)) return;
    fputs("<h2>Training runs</h2>\n<p class=\"muted\">Seconds, summed over the steps, by what they were spent on; "
          "stages overlap.</p>\n<div class=\"wide\"><table><thead><tr><th></th>",
          stream);
    json_array_foreach(runs, i, run) {
        fputs("<th>", stream);
        report_escape_html(stream, json_string_value(json_object_get(run, "name")));
        fputs("</th>", stream);
    }
    fputs("</tr></thead>\n<tbody>\n", stream);
    print_run_line(stream, runs, "steps", "steps", NULL, 0);
    print_run_line(stream, runs, "learner tokens/s", "learner_tokens_per_second", NULL, 0);
    print_run_line(stream, runs, "rollout tokens/s", "rollout_tokens_per_second", NULL, 0);
    print_run_line(stream, runs, "seconds", "seconds", NULL, 1);
    json_object_foreach((json_t *)names, name, value) if (strcmp(name, "step") != 0)
        print_run_line(stream, runs, name, NULL, name, 1);
    fputs("</tbody></table></div>\n", stream);
    const json_t *difference = json_object_get(json, "rollout_learner_logprob_max_abs_diff");
    if (json_is_number(difference))
        fprintf(stream,
                "<p>Largest |rollout log-prob − learner log-prob| of any sampled token before its batch's first "
                "update: <b>%g</b>.</p>\n",
                json_number_value(difference));
}

// ---- words ----

// Text as paragraphs: a blank line ends one.
static void print_paragraphs(FILE *stream, const char *text) {
    while (*text) {
        text += strspn(text, "\n\r \t");
        const char *end = strstr(text, "\n\n");
        size_t length = end ? (size_t)(end - text) : strlen(text);
        char *paragraph = strndup(text, length);
        if (paragraph && *paragraph) {
            fputs("<p>", stream);
            report_escape_html(stream, paragraph);
            fputs("</p>\n", stream);
        }
        free(paragraph);
        text += length;
    }
}

static void print_method(const report_t *report, FILE *stream) {
    fprintf(stream,
            "<h2>Method</h2>\n"
            "<p>An answer is the text between the last complete <code>&lt;answer&gt;…&lt;/answer&gt;</code>; without "
            "one the sample is invalid and counts as wrong. It is right when it equals the expected answer after "
            "normalising both: a leading “Answer:”, blanks, outer brackets and a final full stop go, letters become "
            "lower case, numbers become their value, and an option's letter stands for its text. “Bare” takes the "
            "whole text as the answer, for models that were not taught the tags. “Listing right” is the share of "
            "reasoning traces that name "
            "everything in the picture as it is.</p>\n"
            "<p>Intervals are 95 %% percentile intervals over %d resamples of whole pictures (questions on one picture "
            "stay together), with draws keyed by seed %llu, so they come out the same each time. Differences are "
            "paired: the same questions, a minus b. They hold for this training seed; another seed can move "
            "them by more.</p>\n",
            REPORT_RESAMPLES, (unsigned long long)report->seed);
    if (report->note) print_paragraphs(stream, report->note);
}

static void print_versions(const json_t *json, FILE *stream) {
    const char *name;
    const json_t *value;
    fputs("<p class=\"muted\">", stream);
    json_object_foreach(json_object_get(json, "versions"), name, value) {
        if (!json_is_string(value)) continue;
        report_escape_html(stream, name);
        fputc(' ', stream);
        report_escape_html(stream, json_string_value(value));
        fputs("; ", stream);
    }
    fputs("numbers in full: report.json.</p>\n", stream);
}

status_t report_print_html(const report_t *report, FILE *stream) {
    const json_t *json = report->json;
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          stream);
    report_escape_html(stream, report->title);
    fprintf(stream, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<h1>", style);
    report_escape_html(stream, report->title);
    fprintf(stream, "</h1>\n<p>%lld questions on %lld pictures, seed %llu. Accuracies in percent.</p>\n",
            (long long)json_integer_value(json_object_get(json, "n")),
            (long long)json_integer_value(json_object_get(json, "images")), (unsigned long long)report->seed);
    print_rows(json, stream);
    for (int i = 0; i < report->warnings; i++) {
        fputs("<p class=\"warn\">", stream);
        report_escape_html(stream, report->warning[i]);
        fputs("</p>\n", stream);
    }
    print_controls(json, stream);
    print_pairs(json, stream);
    print_kinds(json, stream);
    fputs("<h2>Plots</h2>\n", stream);
    TRY(print_plots(report, stream));
    print_time(json, stream);
    print_method(report, stream);
    print_versions(json, stream);
    fputs("</body>\n</html>\n", stream);
    return STATUS_OK;
}
