// ranks: 4
// `poise sft` as a function: equal weights for 1 to 4 learners and any launch size, resume to the bit, refusals, stop.
#include "tests/lib/packed_fixture.h"

#include "common/comm/job.h"
#include "learner/checkpoint.h"
#include "learner/learner.h"
#include <jansson.h>

enum { SAMPLES = 25, STEPS = 6 };

typedef struct scene {
    comm_t *world;
    char folder[256];
} scene_t;

// A run's settings beside those that all runs here share.
typedef struct settings {
    const char *output; // under the scene's folder
    const char *extra[4];
} settings_t;

static config_t read_config(const scene_t *scene, const settings_t *settings) {
    char train[512], output[512];
    snprintf(train, sizeof(train), "data.train=%s/train.h5", scene->folder);
    snprintf(output, sizeof(output), "output=%s/%s", scene->folder, settings->output);
    const char *list[24] = {"model=" PACKED_FIXTURE_MODEL,
                            "sft.batch=8",
                            "sft.pack_tokens=300",
                            "seed=5",
                            "optimizer.steps=6",
                            "optimizer.learning_rate=0.005",
                            "optimizer.warmup_steps=1",
                            "checkpoint.keep=3",
                            "save_model=false",
                            "metrics.tensorboard=false",
                            train,
                            output};
    int count = 12;
    for (int i = 0; i < 4 && settings->extra[i]; i++) list[count++] = settings->extra[i];
    config_t config;
    CHECK_OK(config_read(NULL, list, count, &config));
    return config;
}

// Runs on the first `ranks` ranks; the others return at once with OK.
static status_t run_sft(const scene_t *scene, int ranks, const settings_t *settings, int stop_rank) {
    comm_t *group;
    CHECK_OK(comm_split(scene->world, comm_rank(scene->world) < ranks ? 0 : -1, &group));
    if (!group) return STATUS_OK;
    comm_set_deadline(group, 60.0);
    config_t config = read_config(scene, settings);
    job_t job = {.config = &config,
                 .world = scene->world,
                 .learners = group,
                 .role = ROLE_LEARNER,
                 .role_index = comm_rank(group),
                 .learner_count = ranks,
                 .signal_fd = -1,
                 .stop_seen = comm_rank(group) == stop_rank};
    status_t status = learner_sft_run(&job);
    config_free(&config);
    comm_close(group);
    return status;
}

static void barrier(const scene_t *scene) {
    CHECK_OK(comm_barrier(scene->world, "test"));
}

// Line `step` of a run's metrics.
static json_t *line_of(const scene_t *scene, const char *output, int step) {
    char path[512], line[8192];
    snprintf(path, sizeof(path), "%s/%s/metrics.jsonl", scene->folder, output);
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("%s is missing", path);
    json_t *found = NULL;
    while (!found && fgets(line, sizeof(line), file)) {
        json_t *value = json_loads(line, 0, NULL);
        if (json_integer_value(json_object_get(value, "step")) == step)
            found = value;
        else
            json_decref(value);
    }
    fclose(file);
    if (!found) fail_msg("%s has no step %d", path, step);
    return found;
}

static double metric(const scene_t *scene, const char *output, int step, const char *name) {
    json_t *line = line_of(scene, output, step);
    const json_t *value = json_object_get(line, name);
    if (!json_is_number(value)) fail_msg("step %d of %s has no %s", step, output, name);
    double number = json_number_value(value);
    json_decref(line);
    return number;
}

// All that must not depend on ranks: the weights, and every step's losses and norm.
static void same_run(const scene_t *scene, const char *a, const char *b) {
    static const char *const names[] = {"loss",         "loss/think", "loss/answer", "gradient_norm", "learning_rate",
                                        "weight/think", "tokens",     "empty/think", "packs"};
    if (comm_rank(scene->world) != 0) return;
    json_t *last_a = line_of(scene, a, STEPS), *last_b = line_of(scene, b, STEPS);
    const char *hash = json_string_value(json_object_get(last_a, "weights_hash"));
    assert_non_null(hash);
    assert_string_equal(hash, json_string_value(json_object_get(last_b, "weights_hash")));
    for (int step = 1; step <= STEPS; step++) {
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
            if (metric(scene, a, step, names[i]) != metric(scene, b, step, names[i]))
                fail_msg("%s of step %d differs between %s and %s", names[i], step, a, b);
        }
    }
    json_decref(last_a);
    json_decref(last_b);
}

static void test_learns(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_sft(scene, 1, &(settings_t){"straight", {NULL}}, -1));
    barrier(scene);
    if (comm_rank(scene->world) != 0) return;
    double first = metric(scene, "straight", 1, "loss"), last = metric(scene, "straight", STEPS, "loss");
    if (!(last < 0.9 * first)) fail_msg("the loss went from %g to %g", first, last);
    assert_true(metric(scene, "straight", 1, "weight/think") == 1.0);
    assert_true(metric(scene, "straight", STEPS, "weight/think") < 0.6);
    // Every seventh sample is a bare answer: its think term is dropped and counted.
    double empty = 0.0;
    for (int step = 1; step <= STEPS; step++) empty += metric(scene, "straight", step, "empty/think");
    assert_true(empty >= 3.0);
    int64_t step;
    char output[512];
    snprintf(output, sizeof(output), "%s/straight", scene->folder);
    CHECK_OK(checkpoint_newest(output, &step));
    assert_int_equal(step, STEPS);
}

static void test_ranks_and_launches(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_sft(scene, 2, &(settings_t){"two", {"sft.launch_leaves=3"}}, -1));
    CHECK_OK(run_sft(scene, 3, &(settings_t){"three", {"recompute=block"}}, -1));
    CHECK_OK(run_sft(scene, 4, &(settings_t){"four", {"sft.launch_leaves=2", "threads=2"}}, -1));
    barrier(scene);
    same_run(scene, "straight", "two");
    same_run(scene, "straight", "three");
    same_run(scene, "straight", "four");
}

static void test_resume(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_sft(scene, 2, &(settings_t){"resumed", {"optimizer.stop_after=2"}}, -1));
    barrier(scene);
    CHECK_OK(run_sft(scene, 3, &(settings_t){"resumed", {"optimizer.stop_after=3"}}, -1));
    barrier(scene);
    CHECK_OK(run_sft(scene, 1, &(settings_t){"resumed", {"checkpoint.every=1"}}, -1));
    barrier(scene);
    same_run(scene, "straight", "resumed");
    if (comm_rank(scene->world) != 0) return;
    // Of six checkpoints the newest three stay.
    for (int step = 1; step <= STEPS; step++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/resumed/checkpoints/step-%d.h5", scene->folder, step);
        assert_int_equal(access(path, F_OK) == 0, step > STEPS - 3);
    }
}

static void test_torn_checkpoint(void **state) {
    const scene_t *scene = *state;
    char path[512];
    CHECK_OK(run_sft(scene, 1, &(settings_t){"torn", {"optimizer.stop_after=4", "checkpoint.every=3"}}, -1));
    barrier(scene);
    snprintf(path, sizeof(path), "%s/torn/checkpoints/step-4.h5", scene->folder);
    if (comm_rank(scene->world) == 0) assert_int_equal(truncate(path, 4000), 0);
    barrier(scene);
    CHECK_OK(run_sft(scene, 2, &(settings_t){"torn", {NULL}}, -1));
    barrier(scene);
    same_run(scene, "straight", "torn");
}

static void test_stop_request(void **state) {
    const scene_t *scene = *state;
    status_t status = run_sft(scene, 3, &(settings_t){"stopped", {NULL}}, 1);
    if (comm_rank(scene->world) < 3) {
        assert_int_equal(status_kind(status), STATUS_CANCELLED);
        status_free(status);
    }
    barrier(scene);
    CHECK_OK(run_sft(scene, 4, &(settings_t){"stopped", {NULL}}, -1));
    barrier(scene);
    same_run(scene, "straight", "stopped");
}

static void expect_refusal(const scene_t *scene, const settings_t *settings, const char *part) {
    status_t status = run_sft(scene, 2, settings, -1);
    if (comm_rank(scene->world) == 0) {
        assert_int_equal(status_kind(status), STATUS_INVALID);
        if (!strstr(status_message(status), part)) fail_msg("\"%s\" lacks \"%s\"", status_message(status), part);
    } else if (comm_rank(scene->world) == 1) {
        assert_non_null(status);
    }
    status_free(status);
    barrier(scene);
}

static void test_refusals(void **state) {
    const scene_t *scene = *state;
    expect_refusal(scene, &(settings_t){"straight", {"optimizer.learning_rate=0.006"}},
                   "another training configuration");
    expect_refusal(scene, &(settings_t){"straight", {"resume=false"}}, "resume: true");
    expect_refusal(scene,
                   &(settings_t){"nothing", {"train.vision=false", "train.projector=false", "train.language=false"}},
                   "nothing is left to train");
    expect_refusal(scene, &(settings_t){"short", {"sft.pack_tokens=20"}}, "sft.pack_tokens");
    expect_refusal(scene, &(settings_t){"pattern", {"lora.rank=2", "lora.targets=[nowhere]"}}, "nowhere");
}

static void test_adapters_and_freezing(void **state) {
    const scene_t *scene = *state;
    settings_t lora = {"lora1", {"lora.rank=2", "lora.targets=[q_proj, v_proj]", "train.vision=false"}};
    CHECK_OK(run_sft(scene, 1, &lora, -1));
    lora.output = "lora4";
    CHECK_OK(run_sft(scene, 4, &lora, -1));
    barrier(scene);
    same_run(scene, "lora1", "lora4");
    settings_t frozen = {"frozen1", {"train.language=false", "sft.objective=vanilla"}};
    CHECK_OK(run_sft(scene, 1, &frozen, -1));
    frozen.output = "frozen3";
    CHECK_OK(run_sft(scene, 3, &frozen, -1));
    barrier(scene);
    same_run(scene, "frozen1", "frozen3");
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_learns, &scene),
        cmocka_unit_test_prestate(test_ranks_and_launches, &scene),
        cmocka_unit_test_prestate(test_resume, &scene),
        cmocka_unit_test_prestate(test_torn_checkpoint, &scene),
        cmocka_unit_test_prestate(test_stop_request, &scene),
        cmocka_unit_test_prestate(test_refusals, &scene),
        cmocka_unit_test_prestate(test_adapters_and_freezing, &scene),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
