// ranks: 2
// Peers that say something wrong to a running reward rank (rank 1) are refused or dropped, each with its reason, and
// the run goes on to its end.
#include "tests/lib/packed_fixture.h"

#include "common/comm/job.h"
#include "common/comm/join_file.h"
#include "common/data/packed.h"
#include "common/wire/message.h"
#include "rollout/rollout.h"

typedef struct scene {
    comm_t *world;
    char folder[256], test[300], output[300];
    config_t config;
    job_t job;
    uint64_t data_hash;
} scene_t;

static link_t *open_with(const scene_t *scene, const char *name, link_buffer_t hello) {
    link_t *link;
    link_options_t options = job_link_options(&scene->job);
    CHECK_OK(link_open(scene->job.coordinator_endpoint, name, hello, 30, &options, &link));
    return link;
}

static link_buffer_t packed_message(const message_t *message) {
    link_buffer_t buffer;
    CHECK_OK(message_pack(message, &buffer));
    return buffer;
}

static link_buffer_t hello_of(const scene_t *scene, const char *role, int world_rank, int role_index, uint64_t hash) {
    (void)scene;
    message_t hello = {.type = MESSAGE_HELLO};
    snprintf(hello.hello.role, sizeof(hello.hello.role), "%s", role);
    hello.hello.world_rank = world_rank;
    hello.hello.role_index = role_index;
    hello.hello.credits = 4;
    hello.hello.data_hash = hash;
    return packed_message(&hello);
}

static void next(link_t *link, message_t *out) {
    link_buffer_t buffer;
    CHECK_OK(link_receive(link, 30, &buffer));
    assert_non_null(buffer.data);
    CHECK_OK(message_unpack(buffer.data, buffer.size, out));
    link_buffer_free(&buffer);
}

// The hello is answered by a refusal that says `part`.
static void refused(const scene_t *scene, const char *name, link_buffer_t hello, const char *part) {
    message_t answer;
    link_t *link = open_with(scene, name, hello);
    next(link, &answer);
    assert_int_equal(answer.type, MESSAGE_REFUSED);
    if (!strstr(answer.refused.reason, part)) fail_msg("said \"%s\", not \"%s\"", answer.refused.reason, part);
    link_close(link);
}

// A worker from outside: asks, is told its rank, joins.
static link_t *join_as_pool(const scene_t *scene, const char *name, int *world_rank) {
    message_t answer;
    link_t *link = open_with(scene, name, hello_of(scene, "pool", -1, -1, 0));
    next(link, &answer);
    assert_int_equal(answer.type, MESSAGE_SETTINGS);
    assert_true(answer.settings.data_hash == scene->data_hash);
    config_t config;
    CHECK_OK(config_read_text(answer.settings.config, "settings", NULL, 0, &config));
    uint64_t theirs, ours;
    CHECK_OK(config_training_hash(&config, &theirs));
    CHECK_OK(config_training_hash(&scene->config, &ours));
    assert_true(theirs == ours);
    config_free(&config);
    *world_rank = answer.settings.world_rank;
    int role_index = answer.settings.role_index;
    message_free(&answer);
    link_close(link);
    assert_true(*world_rank >= 2);
    refused(scene, "liar", hello_of(scene, "rollout", *world_rank, role_index, scene->data_hash + 1),
            "another file than the job's");
    char joined[64];
    snprintf(joined, sizeof(joined), "rollout rank %d", *world_rank);
    return open_with(scene, joined, hello_of(scene, "rollout", *world_rank, role_index, scene->data_hash));
}

// What a worker then says costs it its place.
static void dropped(const scene_t *scene, const char *name, link_buffer_t words, const char *part) {
    int rank;
    link_buffer_t buffer = {0};
    link_t *link = join_as_pool(scene, name, &rank);
    CHECK_OK(link_send(link, words, 30));
    status_t status = STATUS_OK;
    for (int i = 0; i < 300 && !status; i++) {
        status = link_receive(link, 0.1, &buffer);
        link_buffer_free(&buffer);
    }
    assert_non_null(status);
    if (!strstr(status_message(status), part)) fail_msg("said \"%s\", not \"%s\"", status_message(status), part);
    status_free(status);
    link_close(link);
}

static link_buffer_t bytes_of(const char *text) {
    link_buffer_t buffer = {.size = strlen(text)};
    CHECK_OK(memory_copy_bytes(text, buffer.size, (char **)&buffer.data));
    return buffer;
}

static void outside_side(scene_t *scene) {
    CHECK_OK(job_share_endpoint(&scene->job, NULL));
    uint64_t hash = scene->data_hash;
    message_t fetch = {.type = MESSAGE_FETCH}, stop = {.type = MESSAGE_STOP}, answer;
    message_t completion = {.type = MESSAGE_COMPLETION, .completion = {.serial = UINT64_MAX, .text = (char[]){"x"}}};
    join_file_t invitation;
    char path[340];
    snprintf(path, sizeof(path), "%s/join.json", scene->output);
    CHECK_OK(join_file_read(path, &invitation));
    assert_string_equal(invitation.endpoint, scene->job.coordinator_endpoint);
    refused(scene, "noise", bytes_of("hello?"), "");
    refused(scene, "mute", bytes_of(""), "");
    refused(scene, "rude", packed_message(&stop), "opened with stop instead of hello");
    refused(scene, "king", hello_of(scene, "king", 0, 0, hash), "no place for rank 0 as king 0");
    refused(scene, "second learner", hello_of(scene, "learner", 0, 7, hash), "no place for rank 0 as learner 7");
    refused(scene, "guest", hello_of(scene, "rollout", 9, 8, hash), "no place for rank 9 as rollout 8");
    // Before the learner is here, and after.
    dropped(scene, "early", packed_message(&completion), "before the learners were here");
    link_t *learner = open_with(scene, "learner 0", hello_of(scene, "learner", 0, 0, hash));
    refused(scene, "learner again", hello_of(scene, "learner", 0, 0, hash), "no place for rank 0 as learner 0");
    message_t weights = {.type = MESSAGE_WEIGHTS, .weights = {.checksum = 5, .chunk_bytes = 1}};
    CHECK_OK(link_send(learner, packed_message(&weights), 30));
    dropped(scene, "noisy", bytes_of("\xc1\xc1"), "broke the protocol");
    dropped(scene, "greedy", packed_message(&fetch), "sent fetch, which the reward rank does not take");
    dropped(scene, "false", packed_message(&completion), "sent a completion of group 18446744073709551615");
    dropped(scene, "usurper", packed_message(&weights), "sent weights, which the reward rank does not take");
    dropped(scene, "mutineer", packed_message(&stop), "sent stop, which the reward rank does not take");
    // The last version ends the run; who comes then is told so.
    weights.weights.version = 1;
    CHECK_OK(link_send(learner, packed_message(&weights), 30));
    next(learner, &answer);
    assert_int_equal(answer.type, MESSAGE_STOP);
    link_t *late = open_with(scene, "late", hello_of(scene, "pool", -1, -1, 0));
    next(late, &answer);
    assert_int_equal(answer.type, MESSAGE_STOP);
    assert_string_equal(answer.stop.reason, "training is done");
    link_close(late);
    link_close(learner);
    CHECK_OK(comm_barrier(scene->world, "the reward rank is done"));
    assert_int_equal(access(path, F_OK), -1);
}

static void test_strangers(void **state) {
    scene_t *scene = *state;
    const char *settings[] = {"model=" PACKED_FIXTURE_MODEL, scene->test,         scene->output,
                              "grpo.reward_answer=0",        "optimizer.steps=1", "deadline.start_s=60"};
    CHECK_OK(config_read(NULL, settings, 6, &scene->config));
    memmove(scene->output, scene->output + strlen("output="), strlen(scene->output + strlen("output=")) + 1);
    packed_t *packed;
    CHECK_OK(packed_open(scene->config.data.train, &packed));
    scene->data_hash = packed_hash_number(packed);
    packed_close(packed);
    bool reward = comm_rank(scene->world) == 1;
    scene->job = (job_t){.config = &scene->config,
                         .world = scene->world,
                         .role = reward ? ROLE_REWARD : ROLE_LEARNER,
                         .learner_count = 1,
                         .rollout_count = 1,
                         .program = POISE_BINARY_DIR "/poise",
                         .signal_fd = -1};
    if (reward) {
        CHECK_OK(reward_rank_run(&scene->job));
        CHECK_OK(comm_barrier(scene->world, "the reward rank is done"));
    } else {
        outside_side(scene);
    }
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
        packed_fixture_make(scene.folder, 3, false);
    }
    CHECK_OK(comm_broadcast(scene.world, scene.folder, sizeof(scene.folder), 0, "folder"));
    snprintf(scene.test, sizeof(scene.test), "data.train=%s/train.h5", scene.folder);
    snprintf(scene.output, sizeof(scene.output), "output=%s", scene.folder);
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_strangers, &scene)};
    int failed = cmocka_run_group_tests_name("strangers", tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other rank may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
