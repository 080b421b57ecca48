// What a GPU's user counts on, on the simulated one: the ledger of its memory and the sentence that refuses a job,
// steps that take no memory, and decode steps that run as graphs, to the same bits.
#include "common/comm/memory_share.h"
#include "kernels/ledger.h"
#include "kernels/sim/cublas.h"
#include "kernels/sim/sim_runtime.h"
#include "kernels/streams.h"
#include "rollout/engine_internal.h"
#include "tests/lib/engine_fixture.h"

enum { PROMPTS = 2, COMPLETIONS = 3, NEW_TOKENS = 6 };

static void refused(status_t status, const char *const *words) {
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_MEMORY);
    for (; *words; words++)
        if (!strstr(status_message(status), *words)) fail_msg("no \"%s\" in: %s", *words, status_message(status));
    status_free(status);
}

static void test_ledger(void **state) {
    (void)state;
    device_t *device;
    void *weights, *cache;
    ledger_report_t report;
    size_t free_bytes, total;
    CHECK_OK(device_open("sim", 1, &device));
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total), cudaSuccess);
    sim_runtime_set_memory(total - free_bytes + (1 << 20)); // one MiB is free
    CHECK_OK(ledger_take(device, LEDGER_WEIGHTS, 1 << 18, &weights));
    ledger_plan(device, LEDGER_VALUES, 3 << 18);
    CHECK_OK(ledger_check(device)); // exactly
    ledger_read(device, &report);
    assert_int_equal(ledger_sum(&report), 1 << 20);
    assert_int_equal(report.taken, 1 << 18);
    ledger_plan(device, LEDGER_VALUES, (3 << 18) + 1);
    refused(ledger_check(device),
            (const char *const[]){"needs 1.0 MiB", "values kept for backward", "recompute: block", NULL});
    ledger_plan(device, LEDGER_VALUES, 0);
    ledger_plan(device, LEDGER_CACHE, 3 << 18);
    refused(ledger_take(device, LEDGER_CACHE, (3 << 18) + 1, &cache),
            (const char *const[]){"KV cache", "lower rollout.pages", NULL});
    CHECK_OK(ledger_take(device, LEDGER_CACHE, 3 << 18, &cache));
    ledger_read(device, &report);
    assert_int_equal(report.free, 0);
    ledger_give(device, weights);
    ledger_give(device, cache);
    ledger_plan(device, LEDGER_CACHE, 0);
    ledger_read(device, &report);
    assert_int_equal(ledger_sum(&report), 0);
    sim_runtime_set_memory((size_t)16 << 30);
    device_close(device);
}

// Ranks that share a device add up, those of other devices and machines do not.
static void test_shared(void **state) {
    (void)state;
    memory_rank_t rank[4] = {{.host = "a"}, {.host = "a"}, {.host = "b"}, {.host = "a"}};
    for (int r = 0; r < 4; r++) {
        ledger_report_t *report = &rank[r].report;
        snprintf(report->place, sizeof(report->place), "GPU %d", r == 3);
        report->total = 100;
        report->free = 80; // the two on GPU 0 of machine a have taken 10 each
        report->taken = 10;
        report->row[LEDGER_SUMS].device = 20;
        report->row[LEDGER_WEIGHTS].device = 30;
    }
    for (int r = 0; r < 4; r++) CHECK_OK(memory_check(rank, 4, r)); // 100 of 100
    rank[1].report.row[LEDGER_SUMS].device++;
    for (int r = 0; r < 2; r++)
        refused(memory_check(rank, 4, r), (const char *const[]){"the 2 ranks on one GPU", "part is weights", NULL});
    for (int r = 2; r < 4; r++) CHECK_OK(memory_check(rank, 4, r));
    rank[1].report.total = 0; // it computes elsewhere
    for (int r = 0; r < 4; r++) CHECK_OK(memory_check(rank, 4, r));
}

// ---- the engine ----

typedef struct plant {
    fixture_results_t *results;
    device_t *device;
    bool takes; // memory, in the step
} plant_t;

static status_t planted_sink(void *context, const engine_completion_t *completion) {
    const plant_t *plant = context;
    void *memory;
    if (plant->takes) {
        TRY(ledger_take(plant->device, LEDGER_OTHER, 64, &memory));
        ledger_give(plant->device, memory);
    }
    return fixture_sink(plant->results, completion);
}

// All prompts once; the allocations of its steps.
static size_t run_once(fixture_t *f, engine_t *engine, fixture_results_t *results, bool takes) {
    plant_t plant = {results, f->device, takes};
    for (int i = 0; i < PROMPTS; i++) {
        engine_request_t request = fixture_request(f, i);
        request.completions = COMPLETIONS - i; // the number of rows changes while it runs
        request.max_new_tokens = NEW_TOKENS - 2 * i;
        request.image_count = 0;
        CHECK_OK(engine_submit(engine, &request));
    }
    size_t before = sim_runtime_allocations();
    while (engine_pending(engine)) CHECK_OK(engine_step(engine, planted_sink, &plant));
    return sim_runtime_allocations() - before;
}

static const engine_options_t options = {.pages = 64, .batch_rows = 12, .prefill_chunk = 12};
static const char folders_llama[] = "families/llama_gqa3_llama3",
                  folders_gemma[] = "families/gemma3_text_gqa2_pattern3";
typedef struct kind {
    const char *folder;
    bool half; // bf16, products by cuBLASLt's stand-in
} kind_t;
static const kind_t kinds[] = {{folders_llama, false}, {folders_gemma, false}, {folders_llama, true}};

static void expect_equal(const fixture_results_t *a, const fixture_results_t *b) {
    assert_int_equal(a->finished, b->finished);
    assert_memory_equal(a->result, b->result, sizeof(a->result));
}

// A device's table whose member streams has graphs that cannot be captured.
static status_t no_capture(device_t *device) {
    (void)device;
    FAIL(STATUS_FAILED, "no graphs today");
}

// One that is spoilt once it has begun, by an allocation in the step.
static status_t spoilt_capture(device_t *device) {
    void *memory;
    TRY(device_sim_table.streams->capture_begin(device));
    assert_int_equal(cudaMalloc(&memory, 64), cudaErrorStreamCaptureUnsupported);
    return STATUS_OK;
}

static void test_graphs(void **state) {
    const kind_t *kind = *state;
    fixture_t f;
    engine_t *engine;
    ledger_report_t report;
    size_t now, most;
    fixture_results_t *plain = calloc(1, sizeof(*plain)), *first = calloc(1, sizeof(*plain)),
                      *again = calloc(1, sizeof(*plain)), *third = calloc(1, sizeof(*plain)),
                      *without = calloc(1, sizeof(*plain));
    sim_cublas_set(kind->half ? SIM_CUBLAS_GOOD : SIM_CUBLAS_ABSENT);
    fixture_open_on(&f, "sim", 1, kind->folder);
    if (kind->half) {
        char path[512];
        snprintf(path, sizeof(path), "%s/tests/goldens/%s", POISE_SOURCE_DIR, kind->folder);
        model_close(f.model);
        CHECK_OK(model_open_as(path, f.device, DTYPE_BF16, &f.model));
        CHECK_OK(model_load(f.model, path));
    }
    f.model->config.eos_token_count = 0;
    CHECK_OK(engine_open(f.model, &options, &engine));
    engine->graphs.off = true;
    (void)run_once(&f, engine, plain, false);
    assert_int_equal(engine->graphs.captured, 0);
    engine_close(engine);
    CHECK_OK(engine_open(f.model, &options, &engine));
    (void)run_once(&f, engine, first, false);
    size_t launched = sim_runtime_launched_graphs();
    assert_int_equal(run_once(&f, engine, again, false), 0);
    assert_false(engine->graphs.off);
    assert_true(engine->graphs.captured >= 1);
    assert_true(sim_runtime_launched_graphs() > launched);
    assert_int_equal(sim_cublas_count().products > 0, kind->half);
    // Memory that moved: graphs are captured anew.
    int64_t captured = engine->graphs.captured;
    CHECK_OK(engine_grow_keys(engine, 3 * engine->key_capacity));
    (void)run_once(&f, engine, third, false);
    assert_true(engine->graphs.captured > captured);
    assert_int_equal(run_once(&f, engine, without, false), 0);
    expect_equal(plain, first);
    expect_equal(plain, again);
    expect_equal(plain, third);
    expect_equal(plain, without);
    memset(again, 0, sizeof(*again));
    assert_true(run_once(&f, engine, again, true) > 0); // an allocation in a step is seen
    // The table is what was handed out, but for the device's own fault word.
    ledger_read(f.device, &report);
    sim_runtime_bytes(&now, &most);
    assert_int_equal(report.taken + sizeof(uint32_t), now);
    assert_int_equal(ledger_sum(&report), report.taken);
    engine_close(engine);
    fixture_close(&f);
    free(plain);
    free(first);
    free(again);
    free(third);
    free(without);
}

// Where a step cannot be captured it runs as it is, and so do those after it.
static void test_uncaptured(void **state) {
    fixture_t f;
    engine_t *engine;
    fixture_results_t *plain = calloc(1, sizeof(*plain)), *other = calloc(1, sizeof(*plain));
    sim_cublas_set(SIM_CUBLAS_ABSENT);
    fixture_open_on(&f, "sim", 1, folders_llama);
    f.model->config.eos_token_count = 0;
    CHECK_OK(engine_open(f.model, &options, &engine));
    engine->graphs.off = true;
    (void)run_once(&f, engine, plain, false);
    engine_close(engine);
    const device_table_t *table = f.device->table;
    device_streams_t streams = *table->streams;
    device_table_t changed = *table;
    streams.capture_begin = *state ? spoilt_capture : no_capture;
    changed.streams = &streams;
    f.device->table = &changed;
    CHECK_OK(engine_open(f.model, &options, &engine));
    (void)run_once(&f, engine, other, false);
    assert_true(engine->graphs.off);
    assert_int_equal(engine->graphs.run, 0);
    expect_equal(plain, other);
    engine_close(engine);
    f.device->table = table;
    fixture_close(&f);
    free(plain);
    free(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ledger),
        cmocka_unit_test(test_shared),
        cmocka_unit_test_prestate(test_graphs, (void *)(uintptr_t)&kinds[0]),
        cmocka_unit_test_prestate(test_graphs, (void *)(uintptr_t)&kinds[1]),
        cmocka_unit_test_prestate(test_graphs, (void *)(uintptr_t)&kinds[2]),
        cmocka_unit_test_prestate(test_uncaptured, NULL),
        cmocka_unit_test_prestate(test_uncaptured, (void *)(uintptr_t)kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
