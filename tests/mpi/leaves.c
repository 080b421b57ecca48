// ranks: 4
// Gradient leaves of a real (tiny) model: packs and groups give one set of weights whatever the number of ranks, the
// leaves per launch and the recompute policy; a rollout's log-probs come back from the learner to the bit.
#include "tests/lib/engine_fixture.h"

#include "common/model/model_start.h"
#include "learner/launch.h"
#include "learner/loss.h"
#include "learner/optimizer_internal.h"
#include <math.h>

static const char *const golden = "gqa4_window56_hub";
enum { PACKS = 6, GROUPS = 4, BUDGET = 9, STEPS = 2 };

static config_t read_config(const char *recompute, int lora_rank, const char *collectives) {
    char model[600], cheap[64], rank[64], carrier[64];
    snprintf(carrier, sizeof(carrier), "collectives=%s", collectives);
    snprintf(model, sizeof(model), "model=%s/tests/goldens/qwen2_5_vl/%s", POISE_SOURCE_DIR, golden);
    snprintf(cheap, sizeof(cheap), "recompute=%s", recompute);
    snprintf(rank, sizeof(rank), "lora.rank=%d", lora_rank);
    const char *const settings[] = {
        model,    cheap,  rank, "optimizer.learning_rate=0.001", "optimizer.steps=4", "lora.targets=[q_proj, v_proj]",
        "seed=3", carrier};
    config_t config;
    CHECK_OK(config_read(NULL, settings, sizeof(settings) / sizeof(*settings), &config));
    return config;
}

typedef struct scene {
    fixture_t fixture; // prompts, and a model for the engine
    fixture_results_t *sampled;
    batch_sequence_t pack[PACKS][2];
    leaf_t packs[PACKS];
    batch_sequence_t group[GROUPS][FIXTURE_COMPLETIONS + 1];
    int32_t *tokens[GROUPS][FIXTURE_COMPLETIONS];
    leaf_t groups[GROUPS];
} scene_t;

static void make_packs(scene_t *scene) {
    const fixture_t *f = &scene->fixture;
    for (int p = 0; p < PACKS; p++) {
        int count = 1 + p % 2;
        for (int s = 0; s < count; s++) {
            const fixture_prompt_t *prompt = &f->prompt[(p + s) % f->prompts];
            scene->pack[p][s] = (batch_sequence_t){.tokens = prompt->tokens,
                                                   .length = prompt->length,
                                                   .shared_with = -1,
                                                   .images = prompt->images,
                                                   .image_count = prompt->image_count,
                                                   .first_target = prompt->length - 4 - p};
        }
        scene->packs[p] = (leaf_t){scene->pack[p], count};
    }
}

// Completions of the engine over the same weights, as the learner gets them.
static void make_groups(scene_t *scene) {
    fixture_t *f = &scene->fixture;
    engine_options_t options = {.pages = 256, .batch_rows = 48, .prefill_chunk = 16, .feature_cache_bytes = 1 << 20};
    engine_t *engine;
    CHECK_OK(engine_open(f->model, &options, &engine));
    for (int g = 0; g < GROUPS; g++) {
        engine_request_t request = fixture_request(f, g % f->prompts);
        request.key = (uint64_t)g;
        request.tag = g;
        request.max_new_tokens = BUDGET;
        CHECK_OK(engine_submit(engine, &request));
    }
    fixture_run(engine, scene->sampled);
    engine_close(engine);
    for (int g = 0; g < GROUPS; g++) {
        const fixture_prompt_t *prompt = &f->prompt[g % f->prompts];
        scene->group[g][0] = (batch_sequence_t){.tokens = prompt->tokens,
                                                .length = prompt->length,
                                                .shared_with = -1,
                                                .images = prompt->images,
                                                .image_count = prompt->image_count,
                                                .first_target = prompt->length};
        for (int c = 0; c < FIXTURE_COMPLETIONS; c++) {
            const fixture_result_t *result = &scene->sampled->result[g][c];
            int length = prompt->length + result->length;
            scene->tokens[g][c] = malloc((size_t)length * sizeof(int32_t));
            memcpy(scene->tokens[g][c], prompt->tokens, (size_t)prompt->length * sizeof(int32_t));
            memcpy(scene->tokens[g][c] + prompt->length, result->tokens, (size_t)result->length * sizeof(int32_t));
            scene->group[g][c + 1] = (batch_sequence_t){.tokens = scene->tokens[g][c],
                                                        .length = length,
                                                        .shared_with = 0,
                                                        .shared_length = prompt->length,
                                                        .first_target = prompt->length};
        }
        scene->groups[g] = (leaf_t){scene->group[g], FIXTURE_COMPLETIONS + 1};
    }
}

// ---- one training run ----

typedef struct run {
    comm_t *comm;
    scene_t *scene;
    bool grpo;
    int number[PACKS]; // leaves of this rank
    double difference; // largest |learner - rollout| of the first pass
    bool first;
    int64_t ratios_off; // that are not exactly 1 in the first pass
    const char *device; // NULL: cpu
    int leaves;         // so many, and one step; 0: all
    bool late;          // sums over ranks begin after backward
    bool idle;          // rank 0 has no leaf
    double early;       // share of the sums that began during backward, the least of this rank's steps
} run_t;

static status_t pack_loss(const launch_view_t *view) {
    for (int i = 0; i < view->batch->entry_count; i++)
        view->dlogprob[i] = -1.0f / (float)(1 + view->batch->entry_position[i] % 5);
    return STATUS_OK;
}

static status_t group_loss(run_t *run, const launch_view_t *view) {
    const grpo_options_t options = {0.2, 0.28, 0.0, AGGREGATION_TOKEN_MEAN, BUDGET};
    for (int l = 0; l < view->batch->leaf_count; l++) {
        int entry = view->batch->leaf_entry_start[l];
        for (int c = 0; c < FIXTURE_COMPLETIONS; c++) {
            const fixture_result_t *result = &run->scene->sampled->result[run->number[view->first + l]][c];
            float ratio[FIXTURE_BUDGET];
            grpo_sums_t sums = {0};
            grpo_completion_loss(&options, c % 2 ? 1.25 : -0.75, view->logprob + entry, result->logprobs, NULL,
                                 result->length, view->dlogprob + entry, ratio, &sums);
            for (int i = 0; i < result->length && run->first; i++) {
                double difference = fabs((double)view->logprob[entry + i] - (double)result->logprobs[i]);
                if (!(difference <= run->difference)) run->difference = difference;
                run->ratios_off += ratio[i] != 1.0f;
            }
            entry += result->length;
        }
    }
    return STATUS_OK;
}

static status_t any_loss(void *context, const launch_view_t *view) {
    run_t *run = context;
    return run->grpo ? group_loss(run, view) : pack_loss(view);
}

static int owner_of(const run_t *run, int leaf) {
    int ranks = comm_size(run->comm);
    return run->idle ? 1 + leaf % (ranks - 1) : (leaf * 5 + 1) % ranks;
}

static void train(run_t *run, const config_t *config, int launch, char hash[65]) {
    device_t *device;
    model_t *model;
    optimizer_t *optimizer;
    launcher_t launcher;
    CHECK_OK(device_open(run->device ? run->device : "cpu", 1, &device));
    CHECK_OK(model_start(config, device, &model));
    CHECK_OK(optimizer_open(config, model, run->comm, &optimizer));
    optimizer_cut_buckets(optimizer, 1);
    run->early = 1.0;
    CHECK_OK(launcher_open(config, device, &launcher));
    const leaf_t *all = run->grpo ? run->scene->groups : run->scene->packs;
    leaf_t own[PACKS];
    int count = 0, leaves = run->leaves ? run->leaves : run->grpo ? GROUPS : PACKS;
    for (int i = 0; i < leaves; i++) {
        if (owner_of(run, i) != comm_rank(run->comm)) continue;
        run->number[count] = i;
        own[count++] = all[i];
    }
    launch_options_t options = {.temperature = 1.0f, .recording = true, .leaves = launch};
    for (int step = 0; step < (run->leaves ? 1 : STEPS); step++) {
        optimizer_report_t report = {.redo = true};
        run->first = step == 0;
        for (int tries = 0; report.redo; tries++) {
            assert_true(tries < 8);
            CHECK_OK(optimizer_begin(optimizer));
            options.listener = run->late ? NULL : optimizer_listener(optimizer);
            CHECK_OK(launch_leaves(&launcher, model, own, count, &options, any_loss, run));
            if (!run->late) CHECK_OK(optimizer_reduce_rest(optimizer));
            CHECK_OK(optimizer_step(optimizer, 7.0, step, true, &report));
        }
        assert_false(report.skipped);
        assert_true(report.gradient_norm > 0.0);
        if (report.early < run->early) run->early = report.early;
    }
    CHECK_OK(optimizer_weights_hash(optimizer, hash));
    launcher_close(&launcher);
    optimizer_close(optimizer);
    model_close(model);
    device_close(device);
}

static void compare(comm_t *world, scene_t *scene, bool grpo, int lora_rank) {
    char expected[65], hash[65];
    config_t plain = read_config("none", lora_rank, "mpi"), block = read_config("block", lora_rank, "mpi"),
             cheap = read_config("cheap", lora_rank, "mpi");
    comm_t *self;
    CHECK_OK(comm_split(world, comm_rank(world), &self));
    run_t run = {.comm = self, .scene = scene, .grpo = grpo};
    train(&run, &plain, 1, expected);
    if (grpo) {
        assert_true(run.difference == 0.0);
        assert_int_equal(run.ratios_off, 0);
    }
    train(&run, &block, 3, hash);
    assert_string_equal(hash, expected);
    comm_close(self);
    for (int size = 2; size <= comm_size(world); size++) {
        comm_t *group;
        CHECK_OK(comm_split(world, comm_rank(world) < size ? 0 : -1, &group));
        if (!group) continue;
        // Ranks have different numbers of launches, and one of them none; with every recompute policy.
        run_t other = {.comm = group, .scene = scene, .grpo = grpo, .late = size == 2};
        train(&other, &plain, size == 3 ? 1 : 4, hash);
        assert_string_equal(hash, expected);
        assert_true(size == 2 ? other.early == 0.0 : other.early > 0.2);
        run_t idle = {.comm = group, .scene = scene, .grpo = grpo, .idle = true};
        train(&idle, size == 3 ? &cheap : &block, 2, hash);
        assert_string_equal(hash, expected);
        assert_true(comm_rank(group) == 0 ? idle.early == 0.0 : idle.early > 0.2);
        comm_close(group);
    }
    config_free(&plain);
    config_free(&block);
    config_free(&cheap);
}

typedef struct state {
    comm_t *world;
    scene_t *scene;
} state_t;

static void test_packs(void **state) {
    const state_t *s = *state;
    compare(s->world, s->scene, false, 0);
}

static void test_groups(void **state) {
    const state_t *s = *state;
    compare(s->world, s->scene, true, 0);
}

static void test_adapters(void **state) {
    const state_t *s = *state;
    compare(s->world, s->scene, true, 4);
}

// With the simulator's GPU a collective begins in a stream of its own as soon as somebody looks, and ops run when they
// are waited for and not before: sums that begin without waiting for the ops that add to them, or that are used before
// they have ended, show in the weights. One rank has no leaf.
static void test_streams(void **state) {
    const state_t *s = *state;
    if (!device_known("sim")) skip();
    const char *const carriers[] = {"nccl", "mpi"};
    comm_t *self, *pair;
    char expected[65], hash[65];
    CHECK_OK(comm_split(s->world, comm_rank(s->world), &self));
    CHECK_OK(comm_split(s->world, comm_rank(s->world) < 2 ? 0 : -1, &pair));
    if (pair) {
        config_t alone = read_config("none", 4, "mpi");
        run_t one = {.comm = self, .scene = s->scene, .device = "sim", .leaves = 1};
        train(&one, &alone, 1, expected);
        config_free(&alone);
        for (int i = 0; i < 2; i++) {
            config_t config = read_config(i ? "none" : "block", 4, carriers[i]);
            run_t two = {.comm = pair, .scene = s->scene, .device = "sim", .leaves = 1, .idle = true};
            train(&two, &config, 1, hash);
            assert_string_equal(hash, expected);
            // (Sums that go through the host are copied there when they are whole.)
            assert_true(i || comm_rank(pair) == 0 ? two.early == 0.0 : two.early > 0.2);
            config_free(&config);
        }
        comm_close(pair);
    }
    comm_close(self);
}

static void test_balance(void **state) {
    (void)state;
    const int64_t weight[] = {5, 9, 5, 1, 7, 3};
    int owner[6], again[6];
    CHECK_OK(balance_owners(weight, 6, 3, owner));
    const int expected[6] = {2, 0, 2, 0, 1, 1};
    assert_memory_equal(owner, expected, sizeof(expected));
    CHECK_OK(balance_owners(weight, 6, 1, again));
    for (int i = 0; i < 6; i++) assert_int_equal(again[i], 0);
}

int main(void) {
    comm_t *world;
    status_t status = comm_open_world(120.0, NULL, &world);
    if (status) {
        status_print(status, stderr, -1, true);
        return 1;
    }
    scene_t *scene = calloc(1, sizeof(*scene));
    scene->sampled = calloc(1, sizeof(*scene->sampled));
    fixture_open(&scene->fixture, golden);
    make_packs(scene);
    make_groups(scene);
    state_t state = {world, scene};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_packs, &state),
        cmocka_unit_test_prestate(test_groups, &state),
        cmocka_unit_test_prestate(test_adapters, &state),
        cmocka_unit_test_prestate(test_streams, &state),
        cmocka_unit_test(test_balance),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed) comm_abandon(1); // the other ranks may wait in a collective
    for (int g = 0; g < GROUPS; g++) {
        for (int c = 0; c < FIXTURE_COMPLETIONS; c++) free(scene->tokens[g][c]);
    }
    fixture_close(&scene->fixture);
    free(scene->sampled);
    free(scene);
    status = comm_close_world(world);
    if (status) status_print(status, stderr, -1, true);
    return status ? 1 : 0;
}
