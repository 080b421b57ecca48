// ranks: 2
// `poise sft` on the simulated GPU: its memory table is what the device hands out, and no step after the first takes
// memory of the device or pins the host's.
#include "tests/lib/packed_fixture.h"

#include "common/comm/job.h"
#include "kernels/sim/sim_runtime.h"
#include "learner/sft_internal.h"

enum { SAMPLES = 8, STEPS = 3 };

typedef struct scene {
    comm_t *world;
    char folder[256];
} scene_t;

static void read_config(const scene_t *scene, config_t *config) {
    char train[512], output[512];
    snprintf(train, sizeof(train), "data.train=%s/train.h5", scene->folder);
    snprintf(output, sizeof(output), "output=%s/run", scene->folder);
    const char *list[] = {"model=" PACKED_FIXTURE_MODEL,
                          "sft.batch=4",
                          "sft.pack_tokens=200",
                          "optimizer.steps=3",
                          "save_model=false",
                          "metrics.tensorboard=false",
                          "device=sim",

                          train,
                          output};
    CHECK_OK(config_read(NULL, list, sizeof(list) / sizeof(*list), config));
}

static void test_steps(void **state) {
    const scene_t *scene = *state;
    config_t config;
    sft_run_t run = {0};
    sft_sums_t sums;
    ledger_report_t report;
    size_t now, most;
    read_config(scene, &config);
    job_t job = {.config = &config,
                 .world = scene->world,
                 .learners = scene->world,
                 .role = ROLE_LEARNER,
                 .role_index = comm_rank(scene->world),
                 .learner_count = comm_size(scene->world),
                 .signal_fd = -1};
    CHECK_OK(learner_open(&job, false, &run.learner));
    CHECK_OK(learner_plan_memory(&run.learner, false, false));
    for (int64_t step = 0; step < STEPS; step++) {
        size_t before = sim_runtime_allocations();
        CHECK_OK(sft_train_step(&run, step, &sums));
        if (step && sim_runtime_allocations() != before)
            fail_msg("step %d takes memory %zu times", (int)step + 1, sim_runtime_allocations() - before);
        sft_finish(&run);
    }
    size_t before = sim_runtime_allocations();
    void *planted;
    CHECK_OK(ledger_take(run.learner.device, LEDGER_OTHER, 64, &planted));
    ledger_give(run.learner.device, planted);
    assert_true(sim_runtime_allocations() > before); // what the loop above looks at sees one
    ledger_read(run.learner.device, &report);
    sim_runtime_bytes(&now, &most);
    assert_int_equal(report.taken + sizeof(uint32_t), now); // the device's own fault word
    assert_int_equal(ledger_sum(&report), report.taken);    // what the dry run said
    // Of memory, 64 bytes less than that is refused by whoever opens the same again.
    learner_close(&run.learner);
    sim_runtime_bytes(&now, &most);
    assert_int_equal(now, 0);
    sim_runtime_set_memory((size_t)report.taken + sizeof(uint32_t) - 64);
    CHECK_OK(learner_open(&job, false, &run.learner));
    status_t status = learner_plan_memory(&run.learner, false, false);
    assert_non_null(status);
    assert_int_equal(status_kind(status), STATUS_MEMORY);
    assert_non_null(strstr(status_message(status), "the biggest part is"));
    status_free(status);
    learner_close(&run.learner);
    sim_runtime_set_memory((size_t)report.taken + sizeof(uint32_t));
    CHECK_OK(learner_open(&job, false, &run.learner));
    CHECK_OK(learner_plan_memory(&run.learner, false, false)); // exactly fits
    CHECK_OK(sft_train_step(&run, 0, &sums));
    sft_finish(&run);
    learner_close(&run.learner);
    config_free(&config);
}

int main(void) {
    scene_t scene = {0};
    status_t status = comm_open_world(60.0, NULL, &scene.world);
    if (status) {
        status_print(status, stderr, -1, true);
        return 1;
    }
    if (comm_rank(scene.world) == 0) {
        check_make_folder(scene.folder, sizeof(scene.folder));
        packed_fixture_make(scene.folder, SAMPLES, true);
    }
    CHECK_OK(comm_broadcast(scene.world, scene.folder, sizeof(scene.folder), 0, "folder"));
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_steps, &scene)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other rank may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
