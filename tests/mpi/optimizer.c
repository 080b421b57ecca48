// ranks: 4
// The optimizer over 1, 2, 3 and 4 ranks: goldens of torch's AdamW, equal bits, redo, skip, checkpoints.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/lib/optimizer_fixture.h"
#include <jansson.h>
#include <unistd.h>

enum { LEAVES = 12, STEPS = 5 };

static comm_t *world_of(void **state) {
    return *state;
}

// A communicator of the first `size` ranks; NULL on the others.
static comm_t *group_of(comm_t *world, int size) {
    comm_t *group;
    EXPECT_OK(comm_split(world, comm_rank(world) < size ? 0 : -1, &group));
    if (group) comm_set_deadline(group, 30.0);
    return group;
}

static comm_t *alone(comm_t *world) {
    comm_t *group;
    EXPECT_OK(comm_split(world, comm_rank(world), &group));
    return group;
}

// ---- goldens ----

static const char *const golden_names[FIXTURE_TENSORS] = {"matrix", "bias", "frozen_scale"};
static const int golden_shapes[FIXTURE_TENSORS][2] = {{5, 7}, {1, 6}, {3, 2}};

static double flat_at(const json_t *tensor, int columns, int64_t element) {
    const json_t *first = json_array_get(tensor, 0);
    if (!json_is_array(first)) return json_number_value(json_array_get(tensor, (size_t)element));
    return json_number_value(
        json_array_get(json_array_get(tensor, (size_t)(element / columns)), (size_t)(element % columns)));
}

static config_t golden_config(const json_t *run) {
    const json_t *settings = json_object_get(run, "settings"), *betas = json_object_get(settings, "betas");
    const json_t *cosine = json_object_get(settings, "cosine");
    config_t config = {0};
    config.optimizer.learning_rate = json_number_value(json_object_get(settings, "lr"));
    config.optimizer.beta1 = json_number_value(json_array_get(betas, 0));
    config.optimizer.beta2 = json_number_value(json_array_get(betas, 1));
    config.optimizer.eps = json_number_value(json_object_get(settings, "eps"));
    config.optimizer.weight_decay = json_number_value(json_object_get(settings, "weight_decay"));
    config.optimizer.clip_norm = json_number_value(json_object_get(settings, "max_norm"));
    config.optimizer.schedule = cosine ? SCHEDULE_COSINE : SCHEDULE_CONSTANT;
    config.optimizer.warmup_steps = (int)json_integer_value(json_array_get(cosine, 0));
    config.optimizer.steps = cosine ? (int)json_integer_value(json_array_get(cosine, 1)) : 10;
    return config;
}

// Each rank contributes the elements whose number it has; the normaliser shows that sums are divided once.
static void golden_contribute(fixture_t *fixture, const json_t *gradient, comm_t *comm, double normaliser) {
    for (int t = 0; t < FIXTURE_TENSORS; t++) {
        const json_t *tensor = json_object_get(gradient, golden_names[t]);
        for (int64_t e = 0; e < fixture->model.spec[t].elements; e++) {
            if (e % comm_size(comm) != comm_rank(comm)) continue;
            fixture_contribute(&fixture->model.parameter[t].sink, e,
                               normaliser * flat_at(tensor, golden_shapes[t][1], e));
        }
    }
}

static void golden_compare(fixture_t *fixture, const json_t *parameters, bool decays, const char *run, int step) {
    for (int t = 0; t < FIXTURE_TENSORS; t++) {
        if (decays && t == 1) continue; // the golden leaves the bias without decay, ours decays all tensors
        const json_t *tensor = json_object_get(parameters, golden_names[t]);
        for (int64_t e = 0; e < fixture->model.spec[t].elements; e++) {
            double expected = flat_at(tensor, golden_shapes[t][1], e), value = (double)fixture_values(fixture, t)[e];
            if (fabs(value - expected) > 2e-6 * fmax(1.0, fabs(expected)))
                fail_msg("%s, step %d, %s[%d]: %.9g, not %.9g", run, step, golden_names[t], (int)e, value, expected);
        }
    }
}

static void golden_run(const json_t *run, comm_t *comm) {
    const char *name = json_string_value(json_object_get(run, "name"));
    config_t config = golden_config(run);
    fixture_t fixture;
    fixture_open(&fixture, golden_names, golden_shapes);
    for (int t = 0; t < FIXTURE_TENSORS; t++) {
        const json_t *tensor = json_object_get(json_object_get(run, "start"), golden_names[t]);
        for (int64_t e = 0; e < fixture.model.spec[t].elements; e++)
            fixture_values(&fixture, t)[e] = (float)flat_at(tensor, golden_shapes[t][1], e);
    }
    optimizer_t *optimizer;
    EXPECT_OK(optimizer_open(&config, &fixture.model, comm, &optimizer));
    const json_t *steps = json_object_get(run, "steps"), *step;
    size_t index;
    json_array_foreach(steps, index, step) {
        optimizer_report_t report = {.redo = true};
        int tries = 0;
        for (; report.redo && tries < 8; tries++) {
            EXPECT_OK(optimizer_begin(optimizer));
            golden_contribute(&fixture, json_object_get(step, "gradient"), comm, 32.0);
            EXPECT_OK(optimizer_step(optimizer, 32.0, (int64_t)index, true, &report));
        }
        assert_false(report.redo || report.skipped);
        double norm = json_number_value(json_object_get(step, "norm"));
        if (fabs(report.gradient_norm - norm) > 1e-6 * norm)
            fail_msg("%s: norm %.12g, not %.12g", name, report.gradient_norm, norm);
        assert_true(fabs(report.learning_rate - json_number_value(json_object_get(step, "lr"))) < 1e-12);
        golden_compare(&fixture, json_object_get(step, "parameters"), config.optimizer.weight_decay > 0.0, name,
                       (int)index);
        assert_int_equal(fixture.model.version, (int64_t)index + 1);
    }
    assert_int_equal(index, 10);
    optimizer_close(optimizer);
    fixture_close(&fixture);
}

static void test_goldens(void **state) {
    comm_t *world = world_of(state);
    json_error_t error;
    json_t *root = json_load_file(POISE_SOURCE_DIR "/tests/goldens/optimizer/adamw.json", 0, &error), *run;
    if (!root) fail_msg("%s", error.text);
    size_t index;
    for (int size = 1; size <= comm_size(world); size += 2) {
        comm_t *group = group_of(world, size);
        if (!group) continue;
        json_array_foreach(json_object_get(root, "runs"), index, run) golden_run(run, group);
        assert_int_equal(index, 4);
        comm_close(group);
    }
    json_decref(root);
}

// ---- equal bits ----

static const char *const names[FIXTURE_TENSORS] = {"large", "small", "middle"};
static const int shapes[FIXTURE_TENSORS][2] = {{100, 130}, {1, 5}, {70, 120}};

static config_t plain_config(void) {
    config_t config = {0};
    config.optimizer.learning_rate = 1e-2;
    config.optimizer.beta1 = 0.9;
    config.optimizer.beta2 = 0.95;
    config.optimizer.eps = 1e-8;
    config.optimizer.weight_decay = 0.01;
    config.optimizer.clip_norm = 1.0;
    config.optimizer.schedule = SCHEDULE_COSINE;
    config.optimizer.steps = STEPS;
    return config;
}

static void start_values(fixture_t *fixture) {
    for (int t = 0; t < FIXTURE_TENSORS; t++) {
        for (int64_t e = 0; e < fixture->model.spec[t].elements; e++)
            fixture_values(fixture, t)[e] = philox_normal(7, PHILOX_TEST, (uint64_t)e, (uint32_t)t, 0);
    }
}

// Leaf gradients of very different sizes, so that a floating-point sum would depend on its order.
static double leaf_gradient(int step, int leaf, int tensor, int64_t element) {
    double scale = ldexp(1.0, (leaf * 5 + step) % 17 - 8);
    return scale *
           (double)philox_normal(11, PHILOX_TEST, (uint64_t)element, (uint32_t)(tensor * 100 + leaf), (uint32_t)step);
}

static void one_step(fixture_t *fixture, optimizer_t *optimizer, comm_t *comm, int step, double extra, int *redos,
                     optimizer_report_t *report) {
    for (*redos = 0;; ++*redos) {
        EXPECT_OK(optimizer_begin(optimizer));
        for (int leaf = 0; leaf < LEAVES; leaf++) {
            // A different assignment of leaves at every size.
            if ((leaf * 7 + step) % comm_size(comm) != comm_rank(comm)) continue;
            for (int t = 0; t < FIXTURE_TENSORS; t++) {
                for (int64_t e = 0; e < fixture->model.spec[t].elements; e++)
                    fixture_contribute(&fixture->model.parameter[t].sink, e, leaf_gradient(step, leaf, t, e));
            }
            if (leaf == 3 && extra != 0.0) fixture_contribute(&fixture->model.parameter[2].sink, 17, extra);
        }
        EXPECT_OK(optimizer_step(optimizer, 3.0, step, true, report));
        if (!report->redo) return;
        assert_true(*redos < 20);
    }
}

typedef struct outcome {
    char hash[65];
    double norm[STEPS];
    int redos;
} outcome_t;

static outcome_t run_steps(comm_t *comm, double extra) {
    config_t config = plain_config();
    fixture_t fixture;
    outcome_t outcome = {0};
    fixture_open(&fixture, names, shapes);
    start_values(&fixture);
    optimizer_t *optimizer;
    EXPECT_OK(optimizer_open(&config, &fixture.model, comm, &optimizer));
    for (int step = 0; step < STEPS; step++) {
        optimizer_report_t report;
        int redos;
        one_step(&fixture, optimizer, comm, step, step == 2 ? extra : 0.0, &redos, &report);
        outcome.norm[step] = report.gradient_norm;
        outcome.redos += redos;
        assert_false(report.skipped);
    }
    EXPECT_OK(optimizer_weights_hash(optimizer, outcome.hash));
    optimizer_close(optimizer);
    fixture_close(&fixture);
    return outcome;
}

static void compare_sizes(comm_t *world, double extra, int least_redos) {
    comm_t *self = alone(world);
    outcome_t expected = run_steps(self, extra);
    comm_close(self);
    assert_true(expected.redos >= least_redos);
    for (int size = 2; size <= comm_size(world); size++) {
        comm_t *group = group_of(world, size);
        if (!group) continue;
        outcome_t outcome = run_steps(group, extra);
        assert_string_equal(outcome.hash, expected.hash);
        assert_memory_equal(outcome.norm, expected.norm, sizeof(outcome.norm));
        assert_int_equal(outcome.redos, expected.redos);
        comm_close(group);
    }
}

static void test_equal_bits(void **state) {
    compare_sizes(world_of(state), 0.0, 0);
}

// A contribution beyond 2^47 under the exponent of that step, on one rank only.
static void test_overflow_is_redone(void **state) {
    comm_t *self = alone(world_of(state));
    outcome_t without = run_steps(self, 0.0), with = run_steps(self, 1e15);
    comm_close(self);
    assert_int_equal(without.redos, 0);
    assert_string_not_equal(without.hash, with.hash);
    assert_true(fabs(with.norm[2] - 1e15 / 3.0) < 1e9);
    compare_sizes(world_of(state), 1e15, 1);
}

static void test_not_finite_is_skipped(void **state) {
    comm_t *world = world_of(state);
    config_t config = plain_config();
    fixture_t fixture;
    fixture_open(&fixture, names, shapes);
    start_values(&fixture);
    optimizer_t *optimizer;
    EXPECT_OK(optimizer_open(&config, &fixture.model, world, &optimizer));
    char before[65], after[65];
    EXPECT_OK(optimizer_weights_hash(optimizer, before));
    optimizer_report_t report;
    EXPECT_OK(optimizer_begin(optimizer));
    if (comm_rank(world) == 2) fixture_contribute(&fixture.model.parameter[1].sink, 4, (double)NAN);
    EXPECT_OK(optimizer_step(optimizer, 1.0, 0, true, &report));
    assert_true(report.skipped && !report.redo);
    EXPECT_OK(optimizer_weights_hash(optimizer, after));
    assert_string_equal(before, after);
    status_t status = optimizer_step(optimizer, 0.0, 0, true, &report);
    assert_int_equal(status_kind(status), STATUS_INVALID);
    status_free(status);
    optimizer_close(optimizer);
    fixture_close(&fixture);
}

// ---- checkpoints ----

static void save(optimizer_t *optimizer, comm_t *comm, const char *path) {
    store_t *store = NULL;
    if (comm_rank(comm) == 0) EXPECT_OK(store_create(path, &store));
    EXPECT_OK(optimizer_save(optimizer, store));
    if (store) EXPECT_OK(store_commit(store));
    store_close(store);
}

// Steps first .. last - 1 on `comm`, from a checkpoint unless first is 0, into a checkpoint.
static void part_of_run(comm_t *comm, const char *path, int first, int last, char hash[65]) {
    config_t config = plain_config();
    fixture_t fixture;
    fixture_open(&fixture, names, shapes);
    if (first == 0) start_values(&fixture);
    optimizer_t *optimizer;
    EXPECT_OK(optimizer_open(&config, &fixture.model, comm, &optimizer));
    if (first > 0) {
        store_t *store;
        EXPECT_OK(store_open(path, &store));
        EXPECT_OK(optimizer_load(optimizer, store));
        store_close(store);
        assert_int_equal(fixture.model.version, first);
    }
    for (int step = first; step < last; step++) {
        optimizer_report_t report;
        int redos;
        one_step(&fixture, optimizer, comm, step, step == 2 ? 1e15 : 0.0, &redos, &report);
    }
    save(optimizer, comm, path);
    EXPECT_OK(optimizer_weights_hash(optimizer, hash));
    optimizer_close(optimizer);
    fixture_close(&fixture);
}

static void test_checkpoint_with_other_ranks(void **state) {
    comm_t *world = world_of(state), *self = alone(world);
    outcome_t expected = run_steps(self, 1e15);
    comm_close(self);
    char path[256] = "", hash[65];
    if (comm_rank(world) == 0) snprintf(path, sizeof(path), "/tmp/poise-optimizer-%d.h5", (int)getpid());
    EXPECT_OK(comm_broadcast(world, path, sizeof(path), 0, "path"));
    const int sizes[] = {4, 3, 1}, ends[] = {1, 3, STEPS};
    for (int part = 0; part < 3; part++) {
        comm_t *group = group_of(world, sizes[part]);
        if (group) part_of_run(group, path, part ? ends[part - 1] : 0, ends[part], hash);
        comm_close(group);
        EXPECT_OK(comm_barrier(world, "parts"));
    }
    if (comm_rank(world) == 0) {
        assert_string_equal(hash, expected.hash);
        unlink(path);
    }
}

int main(void) {
    comm_t *world;
    status_t status = comm_open_world(30.0, NULL, &world);
    if (status) {
        status_print(status, stderr, -1, true);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_goldens, world),
        cmocka_unit_test_prestate(test_equal_bits, world),
        cmocka_unit_test_prestate(test_overflow_is_redone, world),
        cmocka_unit_test_prestate(test_not_finite_is_skipped, world),
        cmocka_unit_test_prestate(test_checkpoint_with_other_ranks, world),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    status = comm_close_world(world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
