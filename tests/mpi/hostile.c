// ranks: 4
// A worker that holds the right keys and says wrong things: rank 2 joins the reward rank (3) again and again, as ever
// other ranks, each time breaking the protocol in another way, before a good worker (1) comes. Each time it is dropped,
// its group goes to another, and the learner (0) ends as if nothing had been.
#include "common/comm/clock.h"
#include "common/comm/job.h"
#include "common/wire/message.h"
#include "learner/learner.h"
#include "rollout/rollout.h"
#include "tests/lib/packed_fixture.h"

#include <fcntl.h>

enum { SAMPLES = 7, STEPS = 2, LEARNER = 0, WORKER, HOSTILE, REWARD };

typedef struct scene {
    comm_t *world;
    char folder[256];
} scene_t;

typedef struct stranger {
    link_t *link;
    message_weights_t weights;
    message_work_t work;
} stranger_t;

static void say(link_t *link, const message_t *message) {
    link_buffer_t buffer;
    CHECK_OK(message_pack(message, &buffer));
    CHECK_OK(link_send(link, buffer, 60));
}

// Receives until the work has come: the reward rank gives it only once a learner is there.
static void await_work(stranger_t *stranger) {
    for (double until = clock_seconds() + 120; clock_seconds() < until && !stranger->work.completions;) {
        link_buffer_t buffer;
        message_t message;
        CHECK_OK(link_receive(stranger->link, 1, &buffer));
        link_progress(stranger->link);
        if (!buffer.data) continue;
        CHECK_OK(message_unpack(buffer.data, buffer.size, &message));
        link_buffer_free(&buffer);
        if (message.type == MESSAGE_WEIGHTS) stranger->weights = message.weights;
        if (message.type == MESSAGE_WORK) stranger->work = message.work;
        message_free(&message);
    }
    assert_true(stranger->work.completions > 0);
}

static void await_drop(link_t *link, const char *what) {
    for (double until = clock_seconds() + 60; clock_seconds() < until;) {
        link_buffer_t buffer;
        status_t status = link_receive(link, 1, &buffer);
        link_buffer_free(&buffer);
        if (!status) continue;
        bool dropped = strstr(status_message(status), "broke the protocol") != NULL;
        if (!dropped) fail_msg("%s: %s", what, status_message(status));
        status_free(status);
        return;
    }
    fail_msg("%s: it was not dropped", what);
}

static message_t completion_of(const stranger_t *stranger, int32_t *tokens, float *logprobs) {
    return (message_t){.type = MESSAGE_COMPLETION,
                       .completion = {.serial = stranger->work.serial,
                                      .version = stranger->work.version,
                                      .checksum = stranger->weights.checksum,
                                      .length = 1,
                                      .tokens = tokens,
                                      .logprobs = logprobs,
                                      .entropy = logprobs,
                                      .text = "x"}};
}

static const char *const attacks[] = {"bytes that are no message",
                                      "a type that only learners send: fetch",
                                      "a type that only learners send: weights",
                                      "a type that only learners send: stop",
                                      "a type that the reward rank sends: plan",
                                      "a version that it does not hold",
                                      "a completion of a group that does not exist",
                                      "a completion of a group at the end of all numbers",
                                      "a completion with a wrong checksum",
                                      "a completion of too many tokens",
                                      "a completion of a token that does not exist",
                                      "a completion with an impossible log-prob",
                                      "a completion of another worker's group"};
enum { ATTACKS = sizeof(attacks) / sizeof(*attacks) };

static void attack(const stranger_t *stranger, int kind) {
    int32_t tokens[64] = {5};
    float logprobs[64] = {-1};
    uint64_t serial[1] = {0};
    message_t message = completion_of(stranger, tokens, logprobs);
    link_buffer_t buffer = {.size = 5};
    switch (kind) {
    case 0:
        CHECK_OK(memory_copy_bytes("hello", 5, (char **)&buffer.data));
        CHECK_OK(link_send(stranger->link, buffer, 60));
        return;
    case 1:
        message = (message_t){.type = MESSAGE_FETCH, .fetch = {.count = 1, .serial = serial}};
        break;
    case 2:
        message = (message_t){.type = MESSAGE_WEIGHTS, .weights = {.version = 99, .chunk_bytes = 1}};
        break;
    case 3:
        message = (message_t){.type = MESSAGE_STOP, .stop = {.reason = "go home"}};
        break;
    case 4:
        message = (message_t){.type = MESSAGE_PLAN};
        break;
    case 5:
        message = (message_t){.type = MESSAGE_READY, .ready = {.version = 7, .checksum = 1}};
        break;
    case 6:
        message.completion.serial = 1000000;
        break;
    case 7:
        message.completion.serial = UINT64_MAX;
        break;
    case 8:
        message.completion.checksum++;
        break;
    case 9:
        message.completion.length = 64;
        break;
    case 10:
        tokens[0] = 1 << 30;
        break;
    case 11:
        logprobs[0] = 1;
        break;
    default:
        message.completion.serial++; // it has a credit for one
    }
    say(stranger->link, &message);
}

// A rank joins once: each time it is another.
static void join(const job_t *job, uint64_t data_hash, int number, link_t **out) {
    link_options_t options = job_link_options(job);
    link_buffer_t buffer;
    char name[32];
    message_t hello = {.type = MESSAGE_HELLO,
                       .hello = {.role = "rollout",
                                 .world_rank = HOSTILE + number,
                                 .role_index = 1 + number,
                                 .credits = 1,
                                 .data_hash = data_hash}};
    snprintf(name, sizeof(name), "rollout rank %d", HOSTILE + number);
    CHECK_OK(message_pack(&hello, &buffer));
    CHECK_OK(link_open(job->coordinator_endpoint, name, buffer, 60, &options, out));
}

static void run_hostile(const scene_t *scene, const job_t *job) {
    packed_t *packed;
    CHECK_OK(packed_open(job->config->data.train, &packed));
    for (int number = 0; number <= ATTACKS; number++) {
        stranger_t stranger = {0};
        int kind = number ? number - 1 : 5; // once before a learner is there, or it is an error in any case
        join(job, packed_hash_number(packed), number, &stranger.link);
        if (number > 1) await_work(&stranger);
        attack(&stranger, kind);
        await_drop(stranger.link, attacks[kind]);
        link_close(stranger.link);
    }
    packed_close(packed);
    char path[300];
    snprintf(path, sizeof(path), "%s/done", scene->folder);
    CHECK_OK(file_write_whole(path, "", 0));
}

static void run_worker(const scene_t *scene, job_t *job) {
    char path[300];
    rollout_worker_t *worker;
    bool stopped = false;
    snprintf(path, sizeof(path), "%s/done", scene->folder);
    for (double until = clock_seconds() + 200; access(path, F_OK) != 0 && clock_seconds() < until;) usleep(20000);
    assert_int_equal(access(path, F_OK), 0);
    CHECK_OK(rollout_worker_open(job, NULL, &worker));
    while (!stopped) CHECK_OK(rollout_worker_step(worker, 0.1, &stopped));
    rollout_worker_close(worker);
}

static void test_wrong_workers_are_dropped(void **state) {
    const scene_t *scene = *state;
    int rank = comm_rank(scene->world);
    char train[512], output[512];
    snprintf(train, sizeof(train), "data.train=%s/train.h5", scene->folder);
    snprintf(output, sizeof(output), "output=%s/run", scene->folder);
    const char *list[] = {"model=" PACKED_FIXTURE_MODEL,
                          "init_std=0.05",
                          "grpo.prompts=2",
                          "grpo.completions=2",
                          "grpo.max_new_tokens=8",
                          "optimizer.steps=2",
                          "rollout.pages=200",
                          "reward.scorers=1",
                          "save_model=false",
                          "metrics.tensorboard=false",
                          "deadline.step_s=240",
                          "deadline.start_s=240",
                          "deadline.heartbeat_s=30",
                          train,
                          output};
    config_t config;
    CHECK_OK(config_read(NULL, list, sizeof(list) / sizeof(*list), &config));
    job_t job = {.config = &config,
                 .world = scene->world,
                 .role = rank == REWARD    ? ROLE_REWARD
                         : rank == LEARNER ? ROLE_LEARNER
                                           : ROLE_ROLLOUT,
                 .role_index = rank == HOSTILE ? 1 : 0,
                 .learner_count = 1,
                 .rollout_count = 2 + ATTACKS,
                 .program = POISE_BINARY_DIR "/poise",
                 .signal_fd = -1};
    CHECK_OK(comm_split(scene->world, rank == LEARNER ? 0 : -1, &job.learners));
    if (rank == REWARD) {
        CHECK_OK(reward_rank_run(&job));
    } else {
        CHECK_OK(job_share_endpoint(&job, NULL));
        if (rank == LEARNER) CHECK_OK(learner_grpo_run(&job));
        if (rank == HOSTILE) run_hostile(scene, &job);
        if (rank == WORKER) run_worker(scene, &job);
    }
    free(job.coordinator_endpoint);
    comm_close(job.learners);
    config_free(&config);
    CHECK_OK(comm_barrier(scene->world, "the end"));
}

int main(void) {
    scene_t scene = {0};
    status_t status = comm_open_world(280.0, NULL, &scene.world);
    if (status) {
        status_print(status, stderr, -1, true);
        return 1;
    }
    if (comm_rank(scene.world) == 0) {
        check_make_folder(scene.folder, sizeof(scene.folder));
        packed_fixture_make(scene.folder, SAMPLES, false);
    }
    CHECK_OK(comm_broadcast(scene.world, scene.folder, sizeof(scene.folder), 0, "folder"));
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_wrong_workers_are_dropped, &scene)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
