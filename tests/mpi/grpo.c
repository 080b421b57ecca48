// ranks: 4
// A GRPO learner against a reward rank and worker made here: equal weights for 1 to 3 learners, log-probs equal to the
// rollout's to the bit, several updates, KL, staleness, resume to the bit, trajectories, refusals.
#include "tests/lib/grpo_server.h"
#include "tests/lib/packed_fixture.h"

#include "learner/learner.h"
#include <jansson.h>

enum { SAMPLES = 11, STEPS = 4 };

typedef struct scene {
    comm_t *world;
    char folder[256];
} scene_t;

typedef struct settings {
    const char *output;
    const char *extra[6];
} settings_t;

static config_t read_config(const scene_t *scene, const settings_t *settings) {
    char train[512], output[512];
    snprintf(train, sizeof(train), "data.train=%s/train.h5", scene->folder);
    snprintf(output, sizeof(output), "output=%s/%s", scene->folder, settings->output);
    const char *list[24] = {"model=" PACKED_FIXTURE_MODEL,
                            "grpo.prompts=5",
                            "grpo.completions=4",
                            "grpo.max_new_tokens=10",
                            "seed=5",
                            "optimizer.steps=4",
                            "optimizer.learning_rate=0.003",
                            "save_model=false",
                            "metrics.tensorboard=false",
                            "deadline.step_s=40",
                            "deadline.start_s=20",
                            train,
                            output};
    int count = 13;
    for (int i = 0; i < 6 && settings->extra[i]; i++) list[count++] = settings->extra[i];
    config_t config;
    CHECK_OK(config_read(NULL, list, count, &config));
    return config;
}

typedef struct result {
    status_t status; // of the learner
    int announcements;
    int64_t announced[SERVER_STEPS];
    bool failed;
    char sentence[512];
} result_t;

// Learners on the first ranks, the server on the last one.
static result_t run_grpo(const scene_t *scene, int learners, const settings_t *settings, int stop_rank) {
    int rank = comm_rank(scene->world);
    bool serves = rank == comm_size(scene->world) - 1;
    config_t config = read_config(scene, settings);
    result_t result = {0};
    job_t job = {.config = &config,
                 .world = scene->world,
                 .role = serves ? ROLE_REWARD : ROLE_LEARNER,
                 .role_index = serves ? 0 : rank,
                 .learner_count = learners,
                 .rollout_count = 1,
                 .signal_fd = -1,
                 .stop_seen = rank == stop_rank};
    CHECK_OK(comm_split(scene->world, rank < learners ? 0 : -1, &job.learners));
    if (job.learners) comm_set_deadline(job.learners, 60.0);
    grpo_server_t *server = NULL;
    if (serves) {
        server = calloc(1, sizeof(*server));
        server_open(server, &config, learners, &job);
    }
    CHECK_OK(job_share_endpoint(&job, server ? hub_endpoint(server->hub) : NULL));
    if (job.learners) result.status = learner_grpo_run(&job);
    if (server) {
        server_serve(server, &job);
        result.announcements = server->announcements;
        memcpy(result.announced, server->announced, sizeof(result.announced));
        result.failed = server->failed;
        memcpy(result.sentence, server->sentence, sizeof(result.sentence));
        server_close(server);
        free(server);
    }
    free(job.coordinator_endpoint);
    comm_close(job.learners);
    config_free(&config);
    CHECK_OK(comm_barrier(scene->world, "end of a run"));
    return result;
}

static void run_whole(const scene_t *scene, int learners, const settings_t *settings) {
    result_t result = run_grpo(scene, learners, settings, -1);
    CHECK_OK(result.status);
    assert_false(result.failed);
}

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

static void same_run(const scene_t *scene, const char *a, const char *b) {
    static const char *const names[] = {"loss",       "loss/policy",      "loss/kl",       "reward",
                                        "reward_std", "advantage/std",    "ratio/p01",     "ratio/p99",
                                        "clip/low",   "clip/high",        "entropy",       "length/mean",
                                        "length/max", "length/truncated", "gradient_norm", "logprob_max_abs_diff"};
    if (comm_rank(scene->world) != 0) return;
    json_t *last_a = line_of(scene, a, STEPS), *last_b = line_of(scene, b, STEPS);
    assert_non_null(json_object_get(last_a, "weights_hash"));
    assert_string_equal(json_string_value(json_object_get(last_a, "weights_hash")),
                        json_string_value(json_object_get(last_b, "weights_hash")));
    json_decref(last_a);
    json_decref(last_b);
    for (int step = 1; step <= STEPS; step++) {
        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
            if (metric(scene, a, step, names[i]) != metric(scene, b, step, names[i]))
                fail_msg("%s of step %d differs between %s and %s", names[i], step, a, b);
        }
    }
}

static void test_learners_agree(void **state) {
    const scene_t *scene = *state;
    run_whole(scene, 1, &(settings_t){"one", {"grpo.launch_leaves=1"}});
    run_whole(scene, 2, &(settings_t){"two", {"grpo.launch_leaves=3"}});
    run_whole(scene, 3, &(settings_t){"three", {"grpo.launch_leaves=2", "recompute=block"}});
    same_run(scene, "one", "two");
    same_run(scene, "one", "three");
    if (comm_rank(scene->world) != 0) return;
    for (int step = 1; step <= STEPS; step++) {
        // On policy: what the engine sampled under version t is what the learner computes under version t.
        assert_true(metric(scene, "one", step, "logprob_max_abs_diff") == 0.0);
        assert_true(metric(scene, "one", step, "ratio/p50") == 1.0);
        assert_true(metric(scene, "one", step, "ratio/max_deviation") == 0.0);
        assert_true(metric(scene, "one", step, "clip/low") == 0.0);
        assert_true(metric(scene, "one", step, "groups/spreadless") == 1.0);
        assert_true(metric(scene, "one", step, "entropy") > 0.1);
        assert_true(metric(scene, "one", step, "gradient_norm") > 0.0);
    }
    assert_true(metric(scene, "one", STEPS, "learning_rate") < metric(scene, "one", 1, "learning_rate"));
}

static void test_updates_and_kl(void **state) {
    const scene_t *scene = *state;
    settings_t settings = {"updates1",
                           {"grpo.updates=3", "grpo.kl=0.05", "grpo.aggregation=sequence_mean",
                            "optimizer.learning_rate=0.02", "grpo.launch_leaves=2"}};
    run_whole(scene, 1, &settings);
    settings.output = "updates3";
    run_whole(scene, 3, &settings);
    same_run(scene, "updates1", "updates3");
    if (comm_rank(scene->world) != 0) return;
    // Before a batch's first update the policy is the sampler's; later updates move it.
    assert_true(metric(scene, "updates1", 1, "logprob_max_abs_diff") == 0.0);
    assert_true(metric(scene, "updates1", 1, "ratio/max_deviation") > 0.0);
    assert_true(metric(scene, "updates1", STEPS, "loss/kl") > 0.0);
    double clipped = 0.0;
    for (int step = 1; step <= STEPS; step++)
        clipped += metric(scene, "updates1", step, "clip/low") + metric(scene, "updates1", step, "clip/high");
    assert_true(clipped > 0.0);
}

static void test_resume(void **state) {
    const scene_t *scene = *state;
    run_whole(scene, 2, &(settings_t){"resumed", {"optimizer.stop_after=2"}});
    run_whole(scene, 3, &(settings_t){"resumed", {NULL}});
    same_run(scene, "one", "resumed");
}

static void test_staleness(void **state) {
    const scene_t *scene = *state;
    run_whole(scene, 1, &(settings_t){"stale", {"grpo.staleness=1"}});
    run_whole(scene, 2, &(settings_t){"stale_resumed", {"grpo.staleness=1", "optimizer.stop_after=2"}});
    result_t result = run_grpo(scene, 1, &(settings_t){"stale_resumed", {"grpo.staleness=1"}}, -1);
    CHECK_OK(result.status);
    same_run(scene, "stale", "stale_resumed");
    if (comm_rank(scene->world) == comm_size(scene->world) - 1) {
        // Version 1 comes from the checkpoint, version 2 from the resumed weights.
        const int64_t expected[] = {1, 2, 3, 4};
        assert_int_equal(result.announcements, 4);
        assert_memory_equal(result.announced, expected, sizeof(expected));
    }
    if (comm_rank(scene->world) != 0) return;
    assert_true(metric(scene, "stale", 1, "logprob_max_abs_diff") == 0.0);
    assert_true(metric(scene, "stale", 2, "logprob_max_abs_diff") > 0.0); // sampled one version earlier
}

static void test_stop_request(void **state) {
    const scene_t *scene = *state;
    result_t result = run_grpo(scene, 2, &(settings_t){"stopped", {NULL}}, 1);
    if (comm_rank(scene->world) < 2) {
        assert_int_equal(status_kind(result.status), STATUS_CANCELLED);
        status_free(result.status);
    }
    run_whole(scene, 2, &(settings_t){"stopped", {NULL}});
    same_run(scene, "one", "stopped");
}

static void test_trajectories(void **state) {
    const scene_t *scene = *state;
    run_whole(scene, 2, &(settings_t){"logged", {"metrics.trajectories=true"}});
    same_run(scene, "one", "logged");
    if (comm_rank(scene->world) != 0) return;
    char path[512];
    snprintf(path, sizeof(path), "%s/logged/trajectories/step-%d.h5", scene->folder, STEPS);
    store_t *store;
    CHECK_OK(store_open(path, &store));
    int64_t serial[5], tokens, starts;
    CHECK_OK(store_read(store, "groups/serial", DTYPE_I64, 0, 5, serial));
    for (int g = 0; g < 5; g++) assert_int_equal(serial[g], (STEPS - 1) * 5 + g);
    CHECK_OK(store_count(store, "tokens", &tokens));
    CHECK_OK(store_count(store, "completions/token_start", &starts));
    assert_int_equal(starts, 5 * 4 + 1);
    int64_t end;
    CHECK_OK(store_read(store, "completions/token_start", DTYPE_I64, starts - 1, 1, &end));
    assert_int_equal(end, tokens);
    store_close(store);
}

static void test_failure_is_reported(void **state) {
    const scene_t *scene = *state;
    // A checkpoint of a GRPO run under another learning rate: found before anybody joins.
    result_t result = {0};
    config_t config = read_config(scene, &(settings_t){"one", {"optimizer.learning_rate=0.5"}});
    job_t job = {.config = &config,
                 .world = scene->world,
                 .signal_fd = -1,
                 .learner_count = 4,
                 .role_index = comm_rank(scene->world)};
    CHECK_OK(comm_split(scene->world, 0, &job.learners));
    result.status = learner_grpo_run(&job);
    assert_non_null(result.status);
    if (comm_rank(scene->world) == 0)
        assert_non_null(strstr(status_message(result.status), "another training configuration"));
    status_free(result.status);
    comm_close(job.learners);
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
        packed_fixture_make(scene.folder, SAMPLES, false);
    }
    CHECK_OK(comm_broadcast(scene.world, scene.folder, sizeof(scene.folder), 0, "folder"));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_learners_agree, &scene),
        cmocka_unit_test_prestate(test_updates_and_kl, &scene),
        cmocka_unit_test_prestate(test_resume, &scene),
        cmocka_unit_test_prestate(test_staleness, &scene),
        cmocka_unit_test_prestate(test_stop_request, &scene),
        cmocka_unit_test_prestate(test_trajectories, &scene),
        cmocka_unit_test_prestate(test_failure_is_reported, &scene),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
