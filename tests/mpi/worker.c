// ranks: 2
// A rollout worker (rank 0) against a reward rank played by the test (rank 1): exact versions, equal bits, order.
#include "tests/lib/packed_fixture.h"

#include "common/comm/job.h"
#include "common/model/model_start.h"
#include "common/wire/message.h"
#include "common/wire/weights.h"
#include "rollout/engine.h"
#include "rollout/rollout.h"

enum { COMPLETIONS = 4, BUDGET = 10, GROUPS = 3 };

typedef struct scene {
    comm_t *world;
    char folder[256], test[300];
    config_t config;
    job_t job;
} scene_t;

// What the test's own engine makes of a group.
typedef struct expected {
    int length[GROUPS][COMPLETIONS];
    int32_t tokens[GROUPS][COMPLETIONS][BUDGET];
    float logprobs[GROUPS][COMPLETIONS][BUDGET];
} expected_t;

static status_t keep(void *context, const engine_completion_t *completion) {
    expected_t *expected = context;
    size_t bytes = (size_t)completion->length * sizeof(float);
    expected->length[completion->tag][completion->index] = completion->length;
    memcpy(expected->tokens[completion->tag][completion->index], completion->tokens, bytes);
    memcpy(expected->logprobs[completion->tag][completion->index], completion->logprobs, bytes);
    return STATUS_OK;
}

static void expect(const scene_t *scene, model_t *model, uint64_t first, expected_t *out) {
    const engine_options_t options = {.pages = 200, .batch_rows = 9, .prefill_chunk = 5};
    packed_t *packed;
    patch_cache_t *patches;
    engine_t *engine;
    CHECK_OK(packed_open(scene->config.data.train, &packed));
    CHECK_OK(patch_cache_open(&model->config.image, 1 << 24, &patches));
    CHECK_OK(engine_open(model, &options, &engine));
    for (int i = 0; i < GROUPS; i++) {
        packed_sample_t sample;
        const image_patches_t *images[4];
        CHECK_OK(packed_sample(packed, i, &sample));
        for (int j = 0; j < sample.image_count; j++)
            CHECK_OK(patch_cache_get(patches, packed, sample.images[j], &images[j]));
        engine_request_t request = {.key = first + (uint64_t)i,
                                    .tag = i,
                                    .seed = 11,
                                    .tokens = sample.tokens,
                                    .prompt_length = sample.prompt_length,
                                    .images = images,
                                    .image_count = sample.image_count,
                                    .completions = COMPLETIONS,
                                    .max_new_tokens = BUDGET,
                                    .temperature = 1};
        CHECK_OK(engine_submit(engine, &request));
    }
    while (engine_pending(engine)) CHECK_OK(engine_step(engine, keep, out));
    engine_close(engine);
    patch_cache_close(patches);
    packed_close(packed);
}

// ---- the reward rank's side ----

typedef struct host {
    hub_t *hub;
    uint32_t peer;
} host_t;

static void send(const host_t *host, const message_t *message) {
    link_buffer_t buffer;
    CHECK_OK(message_pack(message, &buffer));
    CHECK_OK(hub_send(host->hub, host->peer, buffer));
}

static void send_work(const host_t *host, uint64_t first, int64_t version) {
    for (int i = 0; i < GROUPS; i++) {
        message_t work = {.type = MESSAGE_WORK,
                          .work = {.serial = first + (uint64_t)i,
                                   .sample = i,
                                   .seed = 11,
                                   .version = version,
                                   .completions = COMPLETIONS,
                                   .max_new_tokens = BUDGET,
                                   .temperature = 1}};
        send(host, &work);
    }
}

static void next(host_t *host, message_t *out) {
    hub_event_t event;
    for (int i = 0; i < 300; i++) {
        CHECK_OK(hub_receive(host->hub, 0.1, &event));
        if (event.kind == HUB_NOTHING) continue;
        if (event.kind == HUB_GONE) fail_msg("the worker is gone: %s", event.reason);
        if (event.kind == HUB_JOINED) host->peer = event.peer;
        CHECK_OK(message_unpack(event.message.data, event.message.size, out));
        link_buffer_free(&event.message);
        return;
    }
    fail_msg("nothing came for 30 s");
}

static void announce(const host_t *host, const message_weights_t *weights) {
    message_t message = {.type = MESSAGE_WEIGHTS, .weights = *weights};
    send(host, &message);
}

static void await_ready(host_t *host, const message_weights_t *weights) {
    message_t message;
    next(host, &message);
    while (message.type == MESSAGE_STATISTICS) next(host, &message);
    assert_int_equal(message.type, MESSAGE_READY);
    assert_int_equal(message.ready.version, weights->version);
    assert_true(message.ready.checksum == weights->checksum);
    message_free(&message);
}

static void await_groups(host_t *host, const message_weights_t *weights, uint64_t first, const expected_t *expected) {
    int64_t tokens = 0, counted = 0;
    for (int left = GROUPS * COMPLETIONS; left;) {
        message_t message;
        next(host, &message);
        if (message.type == MESSAGE_STATISTICS) {
            counted += message.statistics.generated_tokens;
            assert_int_equal(message.statistics.version, weights->version);
            continue;
        }
        assert_int_equal(message.type, MESSAGE_COMPLETION);
        const message_completion_t *c = &message.completion;
        uint64_t group = c->serial - first;
        assert_true(group < GROUPS && c->index < COMPLETIONS);
        assert_int_equal(c->version, weights->version);
        assert_true(c->checksum == weights->checksum);
        assert_int_equal(c->length, expected->length[group][c->index]);
        assert_memory_equal(c->tokens, expected->tokens[group][c->index], (size_t)c->length * sizeof(int32_t));
        assert_memory_equal(c->logprobs, expected->logprobs[group][c->index], (size_t)c->length * sizeof(float));
        assert_non_null(c->text);
        tokens += c->length;
        left--;
        message_free(&message);
    }
    assert_int_equal(counted, tokens); // no statistics come after the last completion
}

// Moves every weight a little and publishes that as the next version.
static void publish_next(model_t *model, weight_server_t *server, int64_t version, message_weights_t *out) {
    for (int i = 0; version && i < model->parameter_count; i++) {
        matrix_t value = model->parameter[i].value;
        float *data = value.data;
        for (int64_t j = 0; j < (int64_t)value.rows * value.columns; j++) data[j] *= 1.0F + 0.01F * (float)(j % 7);
    }
    CHECK_OK(model_parameters_changed(model, NULL, version));
    CHECK_OK(weight_server_publish(server, model, version, out));
}

static void reward_side(scene_t *scene) {
    host_t host = {0};
    device_t *device;
    model_t *model;
    weight_server_t *server;
    message_weights_t weights[3];
    message_t message;
    expected_t *expected = calloc(3, sizeof(*expected));
    link_options_t options = job_link_options(&scene->job);
    CHECK_OK(hub_open("tcp://127.0.0.1:*", &options, &host.hub));
    CHECK_OK(job_share_endpoint(&scene->job, hub_endpoint(host.hub)));
    CHECK_OK(device_open("cpu", 1, &device));
    CHECK_OK(model_start(&scene->config, device, &model));
    CHECK_OK(weight_server_open(&options, "tcp://127.0.0.1:*", 3, &server));
    for (int v = 0; v < 3; v++) {
        publish_next(model, server, v, &weights[v]);
        expect(scene, model, 100 * (uint64_t)v, &expected[v]);
    }
    assert_memory_not_equal(&expected[0], &expected[1], sizeof(*expected));
    next(&host, &message);
    assert_int_equal(message.type, MESSAGE_HELLO);
    assert_string_equal(message.hello.role, "rollout");
    assert_int_equal(message.hello.credits, 16);
    // Work that comes before its weights waits for them.
    send_work(&host, 0, 0);
    announce(&host, &weights[0]);
    await_ready(&host, &weights[0]);
    await_groups(&host, &weights[0], 0, &expected[0]);
    // Two versions at once: the first one's work is finished before the second is taken.
    announce(&host, &weights[1]);
    send_work(&host, 200, 2);
    send_work(&host, 100, 1);
    announce(&host, &weights[2]);
    await_ready(&host, &weights[1]);
    await_groups(&host, &weights[1], 100, &expected[1]);
    await_ready(&host, &weights[2]);
    await_groups(&host, &weights[2], 200, &expected[2]);
    message_t stop = {.type = MESSAGE_STOP};
    send(&host, &stop);
    CHECK_OK(comm_barrier(scene->world, "worker stopped"));
    // The second worker uses weights in place and reports what goes wrong.
    host_t second = {.hub = host.hub};
    hub_event_t event = {0};
    for (int i = 0; i < 100 && event.kind != HUB_JOINED; i++) CHECK_OK(hub_receive(host.hub, 0.1, &event));
    assert_int_equal(event.kind, HUB_JOINED);
    second.peer = event.peer;
    link_buffer_free(&event.message);
    send_work(&second, 0, 0);
    announce(&second, &weights[0]);
    await_ready(&second, &weights[0]);
    await_groups(&second, &weights[0], 0, &expected[0]);
    announce(&second, &weights[1]);
    next(&second, &message);
    assert_int_equal(message.type, MESSAGE_ERROR);
    assert_non_null(strstr(message.error.sentence, "differ"));
    hub_close(host.hub);
    weight_server_close(server);
    model_close(model);
    device_close(device);
    free(expected);
}

// ---- the worker's side ----

static void worker_side(scene_t *scene) {
    CHECK_OK(rollout_worker_run(&scene->job));
    CHECK_OK(comm_barrier(scene->world, "worker stopped"));
    device_t *device;
    model_t *model;
    rollout_worker_t *worker;
    bool stopped = false;
    CHECK_OK(device_open("cpu", 1, &device));
    CHECK_OK(model_start(&scene->config, device, &model));
    CHECK_OK(rollout_worker_open(&scene->job, model, &worker));
    // Version 0 is announced, and this rank comes to hold it only later.
    model->version = -1;
    for (int i = 0; i < 5; i++) CHECK_OK(rollout_worker_step(worker, 0.05, &stopped));
    assert_false(rollout_worker_busy(worker));
    CHECK_OK(model_parameters_changed(model, NULL, 0));
    for (int i = 0; i < 200 && !rollout_worker_busy(worker); i++) CHECK_OK(rollout_worker_step(worker, 0.05, &stopped));
    while (rollout_worker_busy(worker)) CHECK_OK(rollout_worker_step(worker, 0.05, &stopped));
    // Version 1 is claimed with the weights of version 0.
    model->version = 1;
    status_t status = STATUS_OK;
    for (int i = 0; i < 200 && !status; i++) status = rollout_worker_step(worker, 0.05, &stopped);
    assert_non_null(status);
    assert_non_null(strstr(status_message(status), "differ"));
    status_free(status);
    rollout_worker_close(worker);
    model_close(model);
    device_close(device);
}

static void test_worker(void **state) {
    scene_t *scene = *state;
    const char *settings[] = {"model=" PACKED_FIXTURE_MODEL, scene->test, "rollout.pages=100", "rollout.batch_rows=40",
                              "deadline.step_s=60"};
    CHECK_OK(config_read(NULL, settings, 5, &scene->config));
    bool reward = comm_rank(scene->world) == 1;
    scene->job = (job_t){.config = &scene->config,
                         .world = scene->world,
                         .role = reward ? ROLE_REWARD : ROLE_ROLLOUT,
                         .learner_count = 1,
                         .rollout_count = 1,
                         .signal_fd = -1};
    if (reward)
        reward_side(scene);
    else
        worker_side(scene);
    free(scene->job.coordinator_endpoint);
    config_free(&scene->config);
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
        packed_fixture_make(scene.folder, GROUPS, false);
    }
    CHECK_OK(comm_broadcast(scene.world, scene.folder, sizeof(scene.folder), 0, "folder"));
    snprintf(scene.test, sizeof(scene.test), "data.train=%s/train.h5", scene.folder);
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_worker, &scene)};
    int failed = cmocka_run_group_tests_name("worker", tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other rank may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
