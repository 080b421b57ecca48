// ranks: 3
// `poise eval` as a function: the same files for any number of ranks, resume, the shuffled control, refusals.
#include "tests/lib/packed_fixture.h"

#include "common/comm/job.h"
#include "rollout/rollout.h"
#include <jansson.h>
#include <sys/stat.h>

enum { SAMPLES = 17 };

typedef struct scene {
    comm_t *world;
    char folder[256];
} scene_t;

static status_t run_eval(const scene_t *scene, int ranks, const char *output, const char *setting, bool stop) {
    comm_t *group;
    CHECK_OK(comm_split(scene->world, comm_rank(scene->world) < ranks ? 0 : -1, &group));
    if (!group) return STATUS_OK;
    comm_set_deadline(group, 60.0);
    char test[512], folder[512];
    snprintf(test, sizeof(test), "data.test=%s/train.h5", scene->folder);
    snprintf(folder, sizeof(folder), "output=%s/%s", scene->folder, output);
    const char *list[] = {"model=" PACKED_FIXTURE_MODEL, test,   folder, "eval.max_new_tokens=12", "rollout.pages=40",
                          "rollout.batch_rows=20",       setting};
    config_t config;
    CHECK_OK(config_read(NULL, list, 7, &config));
    job_t job = {.config = &config, .world = group, .learners = group, .signal_fd = -1, .stop_seen = stop};
    status_t status = eval_run(&job);
    config_free(&config);
    comm_close(group);
    return status;
}

static void barrier(const scene_t *scene) {
    CHECK_OK(comm_barrier(scene->world, "test"));
}

static char *text_of(const scene_t *scene, const char *output, const char *name) {
    char path[512], *text;
    size_t size;
    snprintf(path, sizeof(path), "%s/%s/%s", scene->folder, output, name);
    CHECK_OK(file_read_whole(path, 1 << 20, &text, &size));
    return text;
}

// All but the seconds.
static json_t *summary_of(const scene_t *scene, const char *output) {
    char *text = text_of(scene, output, "summary.json");
    json_t *summary = json_loads(text, 0, NULL);
    assert_non_null(summary);
    assert_true(json_real_value(json_object_get(summary, "seconds")) > 0);
    json_object_del(summary, "seconds");
    free(text);
    return summary;
}

static bool exists(const scene_t *scene, const char *output, const char *name) {
    char path[512];
    struct stat about;
    snprintf(path, sizeof(path), "%s/%s/%s", scene->folder, output, name);
    return stat(path, &about) == 0;
}

static void same_result(const scene_t *scene, const char *a, const char *b, bool same) {
    if (comm_rank(scene->world) != 0) return;
    char *x = text_of(scene, a, "samples.jsonl"), *y = text_of(scene, b, "samples.jsonl");
    assert_int_equal(!strcmp(x, y), same);
    if (same) {
        json_t *p = summary_of(scene, a), *q = summary_of(scene, b);
        assert_true(json_equal(p, q));
        json_decref(p);
        json_decref(q);
    }
    free(x);
    free(y);
}

static void test_ranks(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_eval(scene, 1, "one", "threads=1", false));
    CHECK_OK(run_eval(scene, 2, "two", "rollout.prefill_chunk=7", false));
    CHECK_OK(run_eval(scene, 3, "three", "rollout.batch_rows=3", false));
    barrier(scene);
    // Once more with nothing left to do: not even the time changes.
    char *before = text_of(scene, "three", "summary.json");
    barrier(scene);
    CHECK_OK(run_eval(scene, 2, "three", "rollout.batch_rows=3", false));
    barrier(scene);
    char *after = text_of(scene, "three", "summary.json");
    assert_string_equal(before, after);
    free(before);
    free(after);
    same_result(scene, "one", "two", true);
    same_result(scene, "one", "three", true);
    if (comm_rank(scene->world) == 0) {
        assert_false(exists(scene, "three", "samples.rank-2.jsonl"));
        json_t *summary = summary_of(scene, "one");
        assert_int_equal(json_integer_value(json_object_get(summary, "n")), SAMPLES);
        const json_t *kind = json_object_get(json_object_get(summary, "by_kind"), "count");
        assert_int_equal(json_integer_value(json_object_get(kind, "n")), SAMPLES);
        assert_true(json_real_value(json_object_get(summary, "mean_tokens")) > 1);
        assert_true(json_is_real(json_object_get(summary, "invalid_rate")));
        json_decref(summary);
    }
    barrier(scene);
}

// What an ended run left: some lines in two ranks' files, one of them marked, one torn, one foreign.
static void leave_half(const scene_t *scene, const char *output) {
    char path[600];
    char *text = text_of(scene, output, "samples.jsonl");
    FILE *file[2];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s/samples.rank-%d.jsonl", scene->folder, output, i + 3);
        file[i] = fopen(path, "w");
        assert_non_null(file[i]);
    }
    int index = 0;
    for (char *line = strtok(text, "\n"); line && index < 9; line = strtok(NULL, "\n"), index++) {
        char *mark = strstr(line, "\"text\":\"");
        assert_non_null(mark);
        if (index == 5)
            fprintf(file[1], "%.*s\"text\":\"MARK%s\n", (int)(mark - line), line, mark + strlen("\"text\":\""));
        else if (index == 8)
            fprintf(file[0], "%.*s", (int)strlen(line) / 2, line);
        else
            fprintf(file[index % 2], "%s\n", line);
    }
    fprintf(file[1], "{\"index\":12,\"id\":\"another\"}\n");
    for (int i = 0; i < 2; i++) fclose(file[i]);
    snprintf(path, sizeof(path), "%s/%s/samples.jsonl", scene->folder, output);
    assert_int_equal(unlink(path), 0);
    free(text);
}

static void test_resume(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_eval(scene, 3, "resumed", "threads=1", false));
    barrier(scene);
    if (comm_rank(scene->world) == 0) leave_half(scene, "resumed");
    barrier(scene);
    CHECK_OK(run_eval(scene, 2, "resumed", "threads=1", false));
    barrier(scene);
    if (comm_rank(scene->world) == 0) {
        char *resumed = text_of(scene, "resumed", "samples.jsonl"), *whole = text_of(scene, "one", "samples.jsonl");
        char *mark = strstr(resumed, "MARK");
        assert_non_null(mark); // the line of the ended run was kept
        memmove(mark, mark + 4, strlen(mark + 4) + 1);
        assert_string_equal(resumed, whole);
        assert_false(exists(scene, "resumed", "samples.rank-4.jsonl"));
        free(resumed);
        free(whole);
    }
    barrier(scene);
    // Other settings: nothing of it is kept.
    CHECK_OK(run_eval(scene, 2, "resumed", "eval.max_new_tokens=11", false));
    barrier(scene);
    if (comm_rank(scene->world) == 0) {
        char *text = text_of(scene, "resumed", "samples.jsonl");
        assert_null(strstr(text, "MARK"));
        free(text);
    }
    same_result(scene, "one", "resumed", false);
    barrier(scene);
}

static void test_stop(void **state) {
    const scene_t *scene = *state;
    bool inside = comm_rank(scene->world) < 2;
    status_t status = run_eval(scene, 2, "stopped", "threads=1", true);
    if (inside) {
        assert_non_null(status);
        assert_int_equal(status_kind(status), STATUS_CANCELLED);
        status_free(status);
    }
    barrier(scene);
    // One is done before the other is stopped: neither calls that a failure.
    status = run_eval(scene, 2, "stopped", "threads=1", comm_rank(scene->world) == 1);
    if (inside) {
        assert_non_null(status);
        assert_int_equal(status_kind(status), STATUS_CANCELLED);
        status_free(status);
    }
    barrier(scene);
    CHECK_OK(run_eval(scene, 3, "stopped", "threads=1", false));
    barrier(scene);
    same_result(scene, "one", "stopped", true);
    barrier(scene);
}

static void test_shuffled(void **state) {
    const scene_t *scene = *state;
    CHECK_OK(run_eval(scene, 1, "shuffled1", "eval.shuffle_images=2", false));
    CHECK_OK(run_eval(scene, 3, "shuffled3", "eval.shuffle_images=2", false));
    barrier(scene);
    same_result(scene, "shuffled1", "shuffled3", true);
    same_result(scene, "one", "shuffled1", false);
    barrier(scene);
    // The first samples alone are those of the whole.
    CHECK_OK(run_eval(scene, 2, "limited", "eval.limit=5", false));
    barrier(scene);
    if (comm_rank(scene->world) == 0) {
        char *part = text_of(scene, "limited", "samples.jsonl"), *whole = text_of(scene, "one", "samples.jsonl");
        assert_true(strlen(part) < strlen(whole));
        assert_memory_equal(part, whole, strlen(part));
        free(part);
        free(whole);
    }
    barrier(scene);
}

static void test_refusals(void **state) {
    const scene_t *scene = *state;
    bool inside = comm_rank(scene->world) < 2;
    status_t status = run_eval(scene, 2, "refused", "data.test=/nonexistent.h5", false);
    if (inside) {
        assert_non_null(status);
        assert_non_null(strstr(status_message(status), "nonexistent"));
        status_free(status);
    }
    barrier(scene);
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
        cmocka_unit_test_prestate(test_ranks, &scene),    cmocka_unit_test_prestate(test_resume, &scene),
        cmocka_unit_test_prestate(test_stop, &scene),     cmocka_unit_test_prestate(test_shuffled, &scene),
        cmocka_unit_test_prestate(test_refusals, &scene),
    };
    int failed = cmocka_run_group_tests_name("eval", tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    if (comm_rank(scene.world) == 0) check_remove_folder(scene.folder);
    status = comm_close_world(scene.world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
