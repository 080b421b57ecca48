// The report: statistics on data whose answers are known, reading of damaged files, and a whole report from small
// evaluations.
#include "common/store/store.h"
#include "kernels/base/philox.h"
#include "launch/commands.h"
#include "launch/report_parts.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { MANY = 400 };

static void check(status_t status) {
    if (status) print_error("%s\n", status_message(status));
    assert_null(status);
}

static void check_fails(status_t status, const char *part) {
    assert_non_null(status);
    if (!strstr(status_message(status), part)) print_error("%s\n", status_message(status));
    assert_non_null(strstr(status_message(status), part));
    status_free(status);
}

// ---- the folder a test works in ----

static void remove_tree(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) {
        unlink(path);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(folder));) {
        char inner[4096];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name);
        remove_tree(inner);
    }
    closedir(folder);
    rmdir(path);
}

static int make_folder(void **state) {
    char *path = strdup("/tmp/poise-report-XXXXXX");
    *state = path;
    return path && mkdtemp(path) ? 0 : -1;
}

static int drop_folder(void **state) {
    remove_tree(*state);
    free(*state);
    return 0;
}

static void write_text(const char *folder, const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    check(file_write_whole(path, text, strlen(text)));
}

static char *read_text(const char *folder, const char *name) {
    char path[4096], *text;
    size_t size;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    check(file_read_whole(path, 64 << 20, &text, &size));
    return text;
}

// ---- bootstrap ----

static void bootstrap_of_constants(void **state) {
    (void)state;
    double value[6] = {1, 1, 1, 1, 1, 1};
    int cluster[6] = {0, 0, 1, 1, 2, 2};
    report_estimate_t out;
    check(report_bootstrap(value, cluster, 6, 3, 1, &out));
    assert_true(out.value == 1 && out.low == 1 && out.high == 1 && out.error == 0);
    assert_true(out.p < 0.001);
    // One picture: nothing to resample, so the interval is the mean however the values differ.
    double mixed[4] = {0, 1, 0, 0};
    int one[4] = {0, 0, 0, 0};
    check(report_bootstrap(mixed, one, 4, 1, 1, &out));
    assert_true(out.value == 0.25 && out.low == 0.25 && out.high == 0.25);
    check(report_bootstrap(NULL, NULL, 0, 0, 1, &out));
    assert_true(isnan(out.value) && isnan(out.low));
    int wrong[4] = {0, 0, 0, 1};
    check_fails(report_bootstrap(mixed, wrong, 4, 1, 1, &out), "cluster 1 of 1");
}

static void bootstrap_has_the_right_width(void **state) {
    (void)state;
    double value[4 * MANY];
    int own[4 * MANY], shared[4 * MANY];
    for (int i = 0; i < MANY; i++) value[i] = i % 2;
    for (int i = 0; i < MANY; i++) own[i] = i;
    report_estimate_t single, again, other, grouped;
    check(report_bootstrap(value, own, MANY, MANY, 7, &single));
    double expected = sqrt(0.25 / MANY);
    assert_true(single.value == 0.5);
    assert_true(fabs(single.error / expected - 1) < 0.08);
    assert_true(fabs((single.high - single.low) / (2 * 1.96 * expected) - 1) < 0.12);
    check(report_bootstrap(value, own, MANY, MANY, 7, &again));
    assert_memory_equal(&single, &again, sizeof(single));
    check(report_bootstrap(value, own, MANY, MANY, 8, &other));
    assert_true(other.error != single.error);
    // Four equal answers a picture say no more than one: resampling pictures must not be fooled by the count.
    for (int i = 0; i < 4 * MANY; i++) {
        value[i] = (i / 4) % 2;
        shared[i] = i / 4;
        own[i] = i;
    }
    check(report_bootstrap(value, shared, 4 * MANY, MANY, 7, &grouped));
    assert_true(fabs(grouped.error / expected - 1) < 0.08);
    check(report_bootstrap(value, own, 4 * MANY, 4 * MANY, 7, &single));
    assert_true(fabs(single.error / expected - 0.5) < 0.05);
}

static void bootstrap_p_values(void **state) {
    (void)state;
    double value[MANY];
    int own[MANY];
    report_estimate_t out;
    for (int i = 0; i < MANY; i++) {
        value[i] = i % 4 == 0 ? 1 : i % 4 == 1 ? -1 : 0;
        own[i] = i;
    }
    check(report_bootstrap(value, own, MANY, MANY, 3, &out));
    assert_true(out.value == 0 && out.low < 0 && out.high > 0 && out.p > 0.8);
    for (int i = 0; i < MANY; i++) value[i] = i % 4 == 0;
    check(report_bootstrap(value, own, MANY, MANY, 3, &out));
    assert_true(out.low > 0.15 && out.p < 0.002);
}

// ---- majority ----

static report_sample_t sample_of(char *kind, char *gold) {
    return (report_sample_t){.kind = kind, .gold = gold};
}

static void majority_by_kind(void **state) {
    (void)state;
    char count[] = "count", truth[] = "true/false", two[] = "2", two_point[] = "2.0", three[] = "3", yes[] = "True",
         no[] = "false";
    report_sample_t sample[] = {sample_of(count, two),   sample_of(truth, yes), sample_of(count, three),
                                sample_of(truth, no),    sample_of(truth, no),  sample_of(count, two_point),
                                sample_of(count, three), sample_of(truth, no)};
    report_evaluation_t evaluation = {.sample = sample, .count = 8};
    double majority;
    json_t *answers;
    check(report_majority(&evaluation, &majority, &answers));
    // count: "2" and "2.0" are one answer, a tie with "3"; true/false: three of four.
    assert_true(majority == (2.0 + 3.0) / 8);
    assert_string_equal(json_string_value(json_object_get(answers, "count")), "2");
    assert_string_equal(json_string_value(json_object_get(answers, "true/false")), "false");
    json_decref(answers);
}

// ---- escaping ----

static void html_is_escaped(void **state) {
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    report_escape_html(stream, "<a href=\"x\">R&D's é</a>");
    fclose(stream);
    assert_string_equal(text, "&lt;a href=&quot;x&quot;&gt;R&amp;D&#39;s é&lt;/a&gt;");
    free(text);
}

static void svg_ids_are_prefixed(void **state) {
    write_text(*state, "a.svg",
               "<?xml version=\"1.0\"?>\n<svg viewBox='0 0 1 1'><circle id='dot' grid=\"x\" fill='#abc'/>"
               "<use xlink:href='#dot'/><g id=\"g\" filter='url(#f)'/></svg>");
    char path[4096], *text = NULL;
    size_t size;
    snprintf(path, sizeof(path), "%s/a.svg", (const char *)*state);
    FILE *stream = open_memstream(&text, &size);
    check(report_inline_svg(stream, path, "p_", "a \"b\" <c>"));
    fclose(stream);
    assert_string_equal(text, "<svg role=\"img\" aria-label=\"a &quot;b&quot; &lt;c&gt;\" viewBox='0 0 1 1'>"
                              "<circle id='p_dot' grid=\"x\" fill='#abc'/><use xlink:href='#p_dot'/>"
                              "<g id=\"p_g\" filter='url(#p_f)'/></svg>");
    free(text);
    write_text(*state, "a.svg", "no picture");
    stream = fopen("/dev/null", "w");
    check_fails(report_inline_svg(stream, path, "p_", ""), "holds no picture");
    fclose(stream);
}

// ---- reading ----

static void metrics_are_read(void **state) {
    report_run_t run;
    write_text(*state, "metrics.jsonl",
               "{\"step\": 1, \"time\": 10.0, \"loss\": 2.5, \"time/step\": 0.5, \"tokens_per_second\": 100, \"note\": "
               "\"x\"}\n"
               "{\"step\": 2, \"time\": 11.0, \"loss\": null, \"time/step\": 1.5, \"tokens_per_second\": 300}\n"
               "{\"step\": 3, \"time\": 12.0, \"los");
    check(report_run_read(*state, &run));
    assert_int_equal(run.lines, 2);
    assert_int_equal(run.series_count, 3);
    assert_int_equal(report_run_find(&run, "loss")->count, 1);
    assert_null(report_run_find(&run, "note"));
    assert_true(report_run_seconds(&run) == 2.0);
    assert_true(report_run_speed(&run, false) == 250.0);
    assert_true(isnan(report_run_speed(&run, true)));
    assert_true(isnan(report_run_logprob_difference(&run)));
    assert_false(report_run_is_grpo(&run));
    report_run_free(&run);
    // A step whose difference was no number makes the largest unknown, not small.
    write_text(*state, "metrics.jsonl",
               "{\"step\": 1, \"logprob_max_abs_diff\": 0}\n{\"step\": 2, \"logprob_max_abs_diff\": 0.5}\n");
    check(report_run_read(*state, &run));
    assert_true(report_run_logprob_difference(&run) == 0.5);
    report_run_free(&run);
    write_text(*state, "metrics.jsonl",
               "{\"step\": 1, \"logprob_max_abs_diff\": 0}\n{\"step\": 2, \"logprob_max_abs_diff\": null}\n");
    check(report_run_read(*state, &run));
    assert_int_equal(run.unknown_differences, 1);
    assert_true(isnan(report_run_logprob_difference(&run)));
    report_run_free(&run);
    write_text(*state, "metrics.jsonl", "{\"step\": 1}\n{\"step\": 2\n{\"step\": 3}\n");
    check_fails(report_run_read(*state, &run), "metrics.jsonl:2: this is no JSON");
    write_text(*state, "metrics.jsonl", "{\"loss\": 1}\n");
    check_fails(report_run_read(*state, &run), "metrics.jsonl:1: the line has no whole number 'step'");
    write_text(*state, "metrics.jsonl", "[1]\n");
    check_fails(report_run_read(*state, &run), "no JSON object");
    check_fails(report_run_read("/nowhere", &run), "cannot read /nowhere/metrics.jsonl");
}

// An evaluation of 12 questions, four a picture. right and bare: bits of the questions; those in `invalid` are invalid.
static void write_evaluation(const char *folder, unsigned right, unsigned bare, unsigned invalid, int shuffle) {
    static const char *const kinds[] = {"count", "choose <b>", "true/false", "count"};
    static const char *const gold[] = {"2", "boot", "true", "3"};
    char *text = NULL, summary[512];
    size_t size;
    check(file_make_directory(folder));
    FILE *stream = open_memstream(&text, &size);
    int correct = 0;
    for (int i = 0; i < 12; i++) {
        bool is_right = right >> i & 1;
        correct += is_right;
        fprintf(stream,
                "{\"index\": %d, \"id\": \"q%d\", \"kind\": \"%s\", \"text\": \"t\", \"extracted\": \"2\", \"answer\": "
                "\"%s\", \"correct\": %s, \"invalid\": %s, \"correct_bare\": %s, \"tag_score\": 1.0, \"think_tokens\": "
                "%d, \"answer_tokens\": 5, \"tokens\": %d, \"truncated\": false, \"image\": \"p%d\"",
                i, i, kinds[i % 4], gold[i % 4], is_right ? "true" : "false", invalid >> i & 1 ? "true" : "false",
                bare >> i & 1 ? "true" : "false", 10 + i, 15 + i, i / 4);
        if (i < 4) fprintf(stream, ", \"trace_correct\": %s", i < 3 ? "true" : "false");
        fputs("}\n", stream);
    }
    fclose(stream);
    write_text(folder, "samples.jsonl", text);
    free(text);
    snprintf(summary, sizeof(summary), "{\"n\": 12, \"accuracy\": %.17g, \"seconds\": 4.5, \"shuffle_images\": %d}",
             correct / 12.0, shuffle);
    write_text(folder, "summary.json", summary);
}

static void evaluations_are_checked(void **state) {
    report_evaluation_t out;
    char folder[2048], path[4096];
    snprintf(folder, sizeof(folder), "%s/eval", (const char *)*state);
    write_evaluation(folder, 0xf, 0xf, 0, 0);
    check(report_evaluation_read(folder, &out));
    assert_int_equal(out.count, 12);
    assert_int_equal(out.clusters, 3);
    report_evaluation_free(&out);
    write_text(folder, "summary.json", "{\"n\": 13, \"accuracy\": 0.5}");
    check_fails(report_evaluation_read(folder, &out), "count different samples");
    write_text(folder, "summary.json", "{\"n\": 12, \"accuracy\": 0.5}");
    check_fails(report_evaluation_read(folder, &out), "has accuracy 0.5");
    snprintf(path, sizeof(path), "%s/summary.json", folder);
    assert_int_equal(unlink(path), 0);
    check_fails(report_evaluation_read(folder, &out), "not finished");
    write_text(folder, "samples.jsonl",
               "{\"index\": 0, \"id\": \"a\", \"answer\": \"x\", \"correct\": true, \"invalid\": false}\n"
               "{\"index\": 1, \"id\": \"a\", \"answer\": \"x\", \"correct\": true, \"invalid\": false}\n");
    check_fails(report_evaluation_read(folder, &out), "'a' twice");
    write_text(folder, "samples.jsonl", "{\"index\": 0, \"id\": \"a\", \"answer\": \"x\", \"correct\": 1}\n");
    check_fails(report_evaluation_read(folder, &out), "samples.jsonl:1: the sample has no true or false 'correct'");
}

// ---- a whole report ----

typedef struct scene {
    char folder[256], output[300], text[6][800];
} scene_t;

static void write_run(const char *folder, bool grpo, int steps) {
    char *text = NULL;
    size_t size;
    check(file_make_directory(folder));
    FILE *stream = open_memstream(&text, &size);
    for (int s = 1; s <= steps; s++)
        if (grpo)
            fprintf(stream,
                    "{\"step\": %d, \"time\": %d, \"reward\": %g, \"reward/tag\": %g, \"reward/answer\": %g, "
                    "\"reward_std\": 0.3, \"reward/tag_std\": 0.1, \"tokens_per_second/generate\": %d, "
                    "\"length/mean\": %d, \"logprob_max_abs_diff\": %g, \"time/step\": 2.0, "
                    "\"time/generate\": 1.25}\n",
                    s, s, 1 + s * 0.01, 0.9, 0.1 + s * 0.01, 500 + s % 2, 40 + s, s == 3 ? 0.25 : 0.0);
        else
            fprintf(stream,
                    "{\"step\": %d, \"time\": %d, \"loss\": %g, \"loss/think\": %g, \"loss/answer\": %g, "
                    "\"tokens\": 64, \"time/step\": 0.5}\n",
                    s, s, 3.0 / s, 2.0 / s, 1.0 / s);
    fclose(stream);
    write_text(folder, "metrics.jsonl", text);
    free(text);
}

static void make_scene(scene_t *scene, const char *folder) {
    snprintf(scene->folder, sizeof(scene->folder), "%s", folder);
    snprintf(scene->output, sizeof(scene->output), "%s/report", folder);
    char path[4096];
    snprintf(path, sizeof(path), "%s/e_base", folder);
    write_evaluation(path, 0x000, 0x0ff, 0xfff, 0);
    snprintf(path, sizeof(path), "%s/e_sft", folder);
    write_evaluation(path, 0x00f, 0x00f, 0x001, 0);
    snprintf(path, sizeof(path), "%s/e_grpo", folder);
    write_evaluation(path, 0x7ff, 0x7ff, 0x000, 0);
    snprintf(path, sizeof(path), "%s/e_shuffled", folder);
    write_evaluation(path, 0x111, 0x111, 0x000, 4);
    snprintf(path, sizeof(path), "%s/r_sft", folder);
    write_run(path, false, 5);
    snprintf(path, sizeof(path), "%s/r_grpo", folder);
    write_run(path, true, 40);
    write_text(folder, "note.txt", "Traces are <simulated>.\n\nSecond paragraph.\n");
}

static status_t run_report(scene_t *scene) {
    const char *f = scene->folder;
    snprintf(scene->text[0], sizeof(scene->text[0]), "base=%s/e_base", f);
    snprintf(scene->text[1], sizeof(scene->text[1]), "sft=%s/e_sft,%s/r_sft", f, f);
    snprintf(scene->text[2], sizeof(scene->text[2]), "sft_grpo=%s/e_grpo,%s/r_grpo", f, f);
    snprintf(scene->text[3], sizeof(scene->text[3]), "shuffled=%s/e_shuffled", f);
    snprintf(scene->text[4], sizeof(scene->text[4]), "%s/note.txt", f);
    char name[] = "report", output[] = "--output", control[] = "--control", note[] = "--note", title[] = "--title",
         words[] = "Tiny <script>alert('x')</script> & co", seed[] = "--seed", nine[] = "9";
    char *arguments[] = {name,           output,  scene->output,  scene->text[0], scene->text[1],
                         scene->text[2], control, scene->text[3], note,           scene->text[4],
                         title,          words,   seed,           nine,           NULL};
    return command_report(14, arguments);
}

static json_t *row_of(json_t *json, int i, const char *key) {
    return json_object_get(json_array_get(json_object_get(json, "rows"), (size_t)i), key);
}

static void check_json(const char *text) {
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    assert_int_equal(json_array_size(json_object_get(json, "rows")), 3);
    assert_string_equal(json_string_value(row_of(json, 2, "config")), "sft_grpo");
    assert_true(json_real_value(row_of(json, 0, "accuracy")) == 0);
    assert_true(fabs(json_real_value(row_of(json, 0, "accuracy_bare")) - 8 / 12.0) < 1e-12);
    assert_true(json_real_value(row_of(json, 0, "invalid_rate")) == 1);
    assert_true(fabs(json_real_value(row_of(json, 1, "accuracy")) - 4 / 12.0) < 1e-12);
    assert_true(fabs(json_real_value(row_of(json, 2, "accuracy")) - 11 / 12.0) < 1e-12);
    assert_true(json_real_value(row_of(json, 2, "trace_accuracy")) == 0.75);
    assert_true(json_real_value(row_of(json, 2, "mean_think_tokens")) == 15.5);
    assert_true(json_real_value(row_of(json, 2, "seconds")) == 84.5); // 40 steps of 2 s and the evaluation
    json_t *kind = json_object_get(row_of(json, 2, "by_kind"), "count");
    assert_int_equal(json_integer_value(json_object_get(kind, "n")), 6);
    assert_true(fabs(json_real_value(json_object_get(kind, "accuracy")) - 5 / 6.0) < 1e-12);
    // All of sft's right answers are on one of three pictures: the interval spans nothing to everything.
    json_t *interval = row_of(json, 1, "accuracy_ci95");
    assert_true(json_real_value(json_array_get(interval, 0)) == 0);
    assert_true(json_real_value(json_array_get(interval, 1)) == 1);
    json_t *pair = json_array_get(json_object_get(json, "paired"), 0);
    assert_string_equal(json_string_value(json_object_get(pair, "a")), "sft_grpo");
    assert_string_equal(json_string_value(json_object_get(pair, "b")), "sft");
    assert_true(fabs(json_real_value(json_object_get(pair, "difference")) - 7 / 12.0) < 1e-12);
    json_t *controls = json_object_get(json, "controls");
    assert_true(fabs(json_real_value(json_object_get(controls, "majority")) - 9 / 12.0) < 1e-12);
    assert_true(fabs(json_real_value(json_object_get(controls, "shuffled_images")) - 3 / 12.0) < 1e-12);
    assert_true(json_real_value(json_object_get(json, "rollout_learner_logprob_max_abs_diff")) == 0.25);
    assert_int_equal(json_integer_value(json_object_get(json, "steps")), 45);
    assert_true(json_real_value(json_object_get(json_object_get(json, "time"), "generate")) == 50);
    json_t *speed = json_object_get(json_object_get(json, "tokens_per_second"), "rollout");
    assert_true(fabs(json_real_value(speed) - 500.5) < 1e-9);
    json_decref(json);
}

static void whole_report(void **state) {
    scene_t scene;
    make_scene(&scene, *state);
    check(run_report(&scene));
    char *json = read_text(scene.output, "report.json"), *page = read_text(scene.output, "report.html");
    char *text = read_text(scene.output, "report.txt");
    check_json(json);
    assert_null(strstr(page, "<script"));
    assert_non_null(strstr(page, "Tiny &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; co"));
    assert_non_null(strstr(page, "choose &lt;b&gt;"));
    assert_null(strstr(page, "choose <b>"));
    assert_non_null(strstr(page, "<p>Traces are &lt;simulated&gt;.</p>\n<p>Second paragraph."));
    assert_non_null(strstr(text, "sft_grpo"));
    assert_non_null(strstr(text, "91.7"));
    // The same inputs make the same report.
    check(run_report(&scene));
    char *again = read_text(scene.output, "report.json");
    assert_string_equal(json, again);
    static const char *const plots[] = {"accuracy",     "loss",    "loss_segments", "reward",
                                        "reward_parts", "lengths", "kinds",         "tokens"};
    bool gnuplot = strstr(json, "\"gnuplot\": \"gnuplot");
    for (size_t i = 0; i < sizeof(plots) / sizeof(plots[0]); i++) {
        char path[4096];
        struct stat info;
        snprintf(path, sizeof(path), "%s/plots/%s.gp", scene.output, plots[i]);
        assert_int_equal(stat(path, &info), 0);
        snprintf(path, sizeof(path), "%s/plots/%s.png", scene.output, plots[i]);
        if (gnuplot) assert_true(!stat(path, &info) && info.st_size > 2000);
        if (gnuplot) assert_non_null(strstr(page, plots[i]));
    }
    free(json), free(again), free(page), free(text);
}

static void report_without_gnuplot(void **state) {
    scene_t scene;
    make_scene(&scene, *state);
    const char *before = getenv("PATH");
    char *path = strdup(before ? before : "");
    setenv("PATH", "/nowhere", 1);
    status_t status = run_report(&scene);
    setenv("PATH", path, 1);
    free(path);
    check(status);
    char *json = read_text(scene.output, "report.json"), *page = read_text(scene.output, "report.html");
    check_json(json);
    assert_non_null(strstr(json, "no gnuplot"));
    assert_non_null(strstr(page, "no gnuplot"));
    assert_null(strstr(page, "<svg"));
    free(json), free(page);
}

static status_t report_of(const char *folder, const char *first, const char *second) {
    char name[] = "report", output[] = "--output", path[1100], a[1100], b[1100];
    snprintf(path, sizeof(path), "%s/report", folder);
    snprintf(a, sizeof(a), "%s", first);
    snprintf(b, sizeof(b), "%s", second);
    char *arguments[] = {name, output, path, a, b, NULL};
    return command_report(5, arguments);
}

static void wrong_use(void **state) {
    scene_t scene;
    char row[600];
    make_scene(&scene, *state);
    check_fails(report_of(*state, "no equals", "x"), "a row is NAME=EVAL_DIR");
    check_fails(report_of(*state, "a'b=/tmp", "x"), "a row is NAME=EVAL_DIR");
    check_fails(report_of(*state, "--colour", "x"), "does not take '--colour'");
    check_fails(report_of(*state, "--control", "majority=1"), "--control takes shuffled=EVAL_DIR");
    check_fails(report_of(*state, "--seed", "-3"), "--seed must be a whole number");
    check_fails(report_of(*state, "a=/nowhere", "x"), "there is no /nowhere/samples.jsonl");
    snprintf(row, sizeof(row), "sft=%s/e_sft", scene.folder);
    check_fails(report_of(*state, row, row), "two rows named sft");
    snprintf(row, sizeof(row), "sft=%s/e_sft,%s/nowhere", scene.folder, scene.folder);
    check_fails(report_of(*state, row, row), "there is no run folder");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bootstrap_of_constants),
        cmocka_unit_test(bootstrap_has_the_right_width),
        cmocka_unit_test(bootstrap_p_values),
        cmocka_unit_test(majority_by_kind),
        cmocka_unit_test(html_is_escaped),
        cmocka_unit_test_setup_teardown(svg_ids_are_prefixed, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(metrics_are_read, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(evaluations_are_checked, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(whole_report, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(report_without_gnuplot, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(wrong_use, make_folder, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
