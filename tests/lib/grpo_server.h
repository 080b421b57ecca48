// A reward rank and a rollout worker in one loop, for tests of the GRPO learner: it pulls each announced version,
// samples the groups that the version is for, rewards them by a rule of its own and sends the plan.
#ifndef TESTS_LIB_GRPO_SERVER_H
#define TESTS_LIB_GRPO_SERVER_H

#include "common/comm/job.h"
#include "common/model/model_start.h"
#include "common/wire/weights.h"
#include "rollout/engine.h"
#include "tests/lib/check.h"

#include "common/data/packed.h"
#include <math.h>

enum { SERVER_STEPS = 16, SERVER_GROUPS = 8, SERVER_LEARNERS = 4 };

typedef struct grpo_server {
    const config_t *config;
    int learners;
    hub_t *hub;
    packed_t *packed;
    device_t *device;
    model_t *model;
    engine_t *engine;
    patch_cache_t *patches;
    uint32_t peer[SERVER_LEARNERS];
    int here;
    int64_t first_step, last_step;
    bool finished;
    int64_t announced[SERVER_STEPS]; // versions in the order they came
    int announcements;
    message_group_t group[SERVER_STEPS][SERVER_GROUPS];
    bool failed; // an error sentence came
    char sentence[512];
} grpo_server_t;

static inline void server_send(grpo_server_t *s, uint32_t peer, const message_t *message) {
    link_buffer_t buffer;
    CHECK_OK(message_pack(message, &buffer));
    status_free(hub_send(s->hub, peer, buffer)); // a peer that has gone needs nothing
}

static inline void server_stop(grpo_server_t *s, const char *reason) {
    message_t message = {.type = MESSAGE_STOP};
    snprintf(message.stop.reason, sizeof(message.stop.reason), "%s", reason);
    s->finished = true;
    for (int i = 0; i < s->here; i++) server_send(s, s->peer[i], &message);
}

static inline status_t server_completion(void *context, const engine_completion_t *completion) {
    message_group_t *group = context;
    message_group_item_t *item = &group[completion->tag].item[completion->index];
    item->index = completion->index;
    item->length = completion->length;
    item->truncated = !completion->stopped;
    item->tokens = malloc((size_t)completion->length * sizeof(int32_t));
    item->logprobs = malloc((size_t)completion->length * sizeof(float));
    memcpy(item->tokens, completion->tokens, (size_t)completion->length * sizeof(int32_t));
    memcpy(item->logprobs, completion->logprobs, (size_t)completion->length * sizeof(float));
    // Paid for tokens of even id: something that a few steps can learn.
    for (int i = 0; i < completion->length; i++) item->reward_answer += completion->tokens[i] % 2 == 0;
    item->reward_answer /= completion->length;
    item->reward = item->reward_answer;
    return STATUS_OK;
}

// Group 1 of a step has no spread, and one completion of group 2 has no reward.
static inline void server_advantages(message_group_t *group, int number) {
    double sum = 0.0, squares = 0.0;
    int count = 0;
    if (number == 2) group->item[1].excluded = true;
    for (int i = 0; i < group->count; i++) {
        if (number == 1) group->item[i].reward = 0.5;
        if (group->item[i].excluded) continue;
        sum += group->item[i].reward;
        count++;
    }
    double mean = sum / count;
    for (int i = 0; i < group->count; i++)
        if (!group->item[i].excluded) squares += (group->item[i].reward - mean) * (group->item[i].reward - mean);
    for (int i = 0; i < group->count && number != 1; i++)
        if (!group->item[i].excluded)
            group->item[i].advantage = (group->item[i].reward - mean) / (sqrt(squares / (count - 1)) + 1e-4);
}

static inline void server_submit(grpo_server_t *s, int64_t step, int number, int64_t version) {
    const config_t *config = s->config;
    message_group_t *group = &s->group[step][number];
    uint64_t serial = (uint64_t)(step * config->grpo.prompts + number);
    *group = (message_group_t){.serial = serial, .version = version, .count = config->grpo.completions};
    group->sample = packed_order(s->packed, (uint64_t)config->seed, (int64_t)serial);
    group->item = calloc((size_t)group->count, sizeof(*group->item));
    packed_sample_t sample;
    CHECK_OK(packed_sample(s->packed, group->sample, &sample));
    const image_patches_t *images[4];
    assert_true(sample.image_count <= 4);
    for (int i = 0; i < sample.image_count; i++)
        CHECK_OK(patch_cache_get(s->patches, s->packed, sample.images[i], &images[i]));
    engine_request_t request = {.key = serial,
                                .tag = number,
                                .seed = (uint64_t)config->seed,
                                .tokens = sample.tokens,
                                .prompt_length = sample.prompt_length,
                                .images = images,
                                .image_count = sample.image_count,
                                .completions = group->count,
                                .max_new_tokens = config->grpo.max_new_tokens,
                                .temperature = (float)config->grpo.temperature};
    CHECK_OK(engine_submit(s->engine, &request));
    while (engine_pending(s->engine)) CHECK_OK(engine_step(s->engine, server_completion, s->group[step]));
    server_advantages(group, number);
}

static inline void server_plan(grpo_server_t *s, int64_t step) {
    uint64_t serial[SERVER_GROUPS];
    int32_t owner[SERVER_GROUPS];
    int64_t tokens[SERVER_GROUPS] = {0};
    message_t message = {.type = MESSAGE_PLAN};
    message.plan = (message_plan_t){.step = step,
                                    .groups = s->config->grpo.prompts,
                                    .serial = serial,
                                    .owner = owner,
                                    .tokens = tokens,
                                    .generate_s = 0.5,
                                    .reward_s = 0.25,
                                    .spreadless = 1,
                                    .excluded = 1};
    for (int g = 0; g < s->config->grpo.prompts; g++) {
        const message_group_t *group = &s->group[step][g];
        serial[g] = group->serial;
        owner[g] = (g * 3 + (int)step) % s->learners;
        for (int i = 0; i < group->count; i++) {
            tokens[g] += group->item[i].length;
            message.plan.sequences += !group->item[i].excluded;
            message.plan.completion_tokens += group->item[i].excluded ? 0 : group->item[i].length;
        }
    }
    for (int i = 0; i < s->here; i++) server_send(s, s->peer[i], &message);
}

static inline void server_weights(grpo_server_t *s, const message_weights_t *weights, const link_options_t *options) {
    assert_true(s->announcements < SERVER_STEPS);
    s->announced[s->announcements++] = weights->version;
    if (weights->version == s->last_step) {
        server_stop(s, "done");
        return;
    }
    CHECK_OK(weights_pull(weights, options, "test worker", s->model, 10.0));
    CHECK_OK(engine_weights_changed(s->engine));
    for (int64_t step = s->first_step; step < s->last_step; step++) {
        int64_t version = step - s->config->grpo.staleness < 0 ? 0 : step - s->config->grpo.staleness;
        if (version != weights->version) continue;
        for (int g = 0; g < s->config->grpo.prompts; g++) server_submit(s, step, g, version);
        patch_cache_release_all(s->patches);
        server_plan(s, step);
    }
}

static inline void server_message(grpo_server_t *s, const hub_event_t *event, const link_options_t *options) {
    message_t message;
    CHECK_OK(message_unpack(event->message.data, event->message.size, &message));
    if (event->kind == HUB_JOINED) {
        assert_int_equal(message.type, MESSAGE_HELLO);
        assert_string_equal(message.hello.role, "learner");
        assert_true(s->here < SERVER_LEARNERS);
        if (s->here) assert_int_equal(message.hello.step, s->first_step);
        s->first_step = message.hello.step;
        s->peer[s->here++] = event->peer;
    } else if (message.type == MESSAGE_WEIGHTS) {
        server_weights(s, &message.weights, options);
    } else if (message.type == MESSAGE_FETCH) {
        for (int i = 0; i < message.fetch.count; i++) {
            uint64_t prompts = (uint64_t)s->config->grpo.prompts, serial = message.fetch.serial[i];
            message_t group = {.type = MESSAGE_GROUP, .group = s->group[serial / prompts][serial % prompts]};
            server_send(s, event->peer, &group);
        }
    } else if (message.type == MESSAGE_STOP) {
        server_stop(s, message.stop.reason);
    } else if (message.type == MESSAGE_ERROR) {
        s->failed = true;
        snprintf(s->sentence, sizeof(s->sentence), "%s", message.error.sentence);
        server_stop(s, "a learner failed");
    } else {
        fail_msg("a learner sent %s", message_type_name(message.type));
    }
    message_free(&message);
}

static inline void server_open(grpo_server_t *s, const config_t *config, int learners, const job_t *job) {
    *s = (grpo_server_t){.config = config, .learners = learners};
    link_options_t options = job_link_options(job);
    s->last_step = config->optimizer.stop_after ? config->optimizer.stop_after : config->optimizer.steps;
    CHECK_OK(hub_open("tcp://127.0.0.1:*", &options, &s->hub));
    CHECK_OK(packed_open(config->data.train, &s->packed));
    CHECK_OK(device_open(config->device, 1, &s->device));
    CHECK_OK(model_start(config, s->device, &s->model));
    CHECK_OK(patch_cache_open(&s->model->config.image, 1 << 24, &s->patches));
    engine_options_t engine = {.pages = 128, .batch_rows = 64, .prefill_chunk = 32, .feature_cache_bytes = 1 << 20};
    CHECK_OK(engine_open(s->model, &engine, &s->engine));
}

static inline void server_serve(grpo_server_t *s, const job_t *job) {
    link_options_t options = job_link_options(job);
    double started = clock_seconds();
    // Peers are numbered anew as they join: wait until all have left after the end.
    for (int gone = 0; !(s->finished && gone == s->here);) {
        hub_event_t event;
        CHECK_OK(hub_receive(s->hub, 0.01, &event));
        if (event.kind == HUB_JOINED || event.kind == HUB_MESSAGE) server_message(s, &event, &options);
        gone += event.kind == HUB_GONE;
        link_buffer_free(&event.message);
        if (clock_seconds() - started > 60.0) fail_msg("the learners did not finish");
    }
}

static inline void server_close(grpo_server_t *s) {
    for (int step = 0; step < SERVER_STEPS; step++) {
        for (int g = 0; g < SERVER_GROUPS; g++) {
            message_group_t *group = &s->group[step][g];
            for (int i = 0; i < group->count; i++) {
                free(group->item[i].tokens);
                free(group->item[i].logprobs);
            }
            free(group->item);
        }
    }
    engine_close(s->engine);
    patch_cache_close(s->patches);
    model_close(s->model);
    device_close(s->device);
    packed_close(s->packed);
    hub_close(s->hub);
}

#endif
