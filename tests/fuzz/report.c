// Parts: metrics.jsonl of a run, samples.jsonl and summary.json of an evaluation, result.json. Read as `poise report`
// and `poise inspect` do.
#include "launch/inspect_parts.h"
#include "launch/report_parts.h"
#include "tests/fuzz/fuzz.h"

static void use_evaluation(const report_evaluation_t *evaluation) {
    const char **kinds = NULL;
    int count = 0;
    double majority;
    json_t *answers = NULL;
    status_t status = report_kinds(evaluation, &kinds, &count);
    if (!status) status = report_majority(evaluation, &majority, &answers);
    status_free(status);
    json_decref(answers);
    free(kinds);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"metrics.jsonl", "samples.jsonl", "summary.json", "result.json"};
    static bool quiet;
    report_run_t run;
    report_evaluation_t evaluation;
    fuzz_parts_t parts = fuzz_parts(data, size);
    if (!quiet) quiet = freopen("/dev/null", "w", stdout) != NULL; // what inspect prints
    fuzz_allow(1 << 20, 256, size);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const uint8_t *part = NULL;
        size_t length = 0;
        bool there = fuzz_next(&parts, &part, &length) && length;
        fuzz_file(names[i], there ? part : NULL, length);
    }
    status_t status = report_run_read(fuzz_folder(), &run);
    if (!status) {
        (void)report_run_is_grpo(&run);
        (void)report_run_seconds(&run);
        for (int rollout = 0; rollout < 2; rollout++) (void)report_run_speed(&run, rollout);
        (void)report_run_logprob_difference(&run);
        report_run_free(&run);
    }
    status_free(status);
    status = report_evaluation_read(fuzz_folder(), &evaluation);
    if (!status) {
        use_evaluation(&evaluation);
        report_evaluation_free(&evaluation);
    }
    status_free(status);
    status_free(inspect_run(fuzz_folder()));
    status_free(inspect_evaluation(fuzz_folder()));
    return 0;
}
