// Workers that hold the right keys and say anything: they join, leave, claim versions and send completions as the bytes
// tell. The coordinator may refuse (STATUS_PEER); it never fails itself, and a group closes with one completion each.
#include "rollout/reward/coordinator.h"
#include "tests/fuzz/fuzz.h"

enum { PROMPTS = 2, COMPLETIONS = 2, STEPS = 4, TOKENS = 8, VOCABULARY = 100 };

typedef struct state {
    coordinator_t *coordinator;
    struct {
        uint64_t serial;
        int32_t index;
    } score[64];
    int scores;
    int64_t planned;
} state_t;

static void refused(status_t status) {
    FUZZ_CHECK(!status || status_kind(status) == STATUS_PEER);
    status_free(status);
}

static void complete(state_t *state, fuzz_bytes_t *bytes) {
    message_completion_t completion = {.serial = fuzz_take(bytes, 1) % 16, .index = (int32_t)(fuzz_take(bytes, 1) % 4)};
    uint8_t how = (uint8_t)fuzz_take(bytes, 1);
    completion.version = (int64_t)(completion.serial / PROMPTS);
    if (how & 1) completion.version = (int64_t)fuzz_take(bytes, 1);
    completion.checksum = how & 2 ? 0 : 7 + (uint64_t)completion.version;
    completion.length = (int32_t)(fuzz_take(bytes, 1) % (TOKENS + 2));
    if (how & 4) completion.serial = fuzz_take(bytes, 8);
    FUZZ_CHECK(!ALLOCATE(&completion.tokens, completion.length));
    FUZZ_CHECK(!ALLOCATE(&completion.logprobs, completion.length));
    FUZZ_CHECK(!ALLOCATE(&completion.entropy, completion.length));
    FUZZ_CHECK(!memory_copy_string("<answer>1</answer>", &completion.text));
    for (int i = 0; i < completion.length; i++) {
        uint32_t bits = (uint32_t)fuzz_take(bytes, how & 8 ? 4 : 0);
        completion.tokens[i] = how & 16 ? (int32_t)fuzz_take(bytes, 4) : i;
        memcpy(&completion.logprobs[i], &bits, sizeof(bits));
    }
    bool fresh;
    refused(coordinator_completion(state->coordinator, 1 + (uint32_t)(fuzz_take(bytes, 1) % 3), &completion, &fresh));
    free(completion.tokens), free(completion.logprobs), free(completion.entropy), free(completion.text);
}

static void take_plan(state_t *state, int64_t step) {
    message_plan_t plan;
    FUZZ_CHECK(step == state->planned++);
    FUZZ_CHECK(!coordinator_plan(state->coordinator, step, &plan));
    FUZZ_CHECK(plan.groups == PROMPTS);
    for (int i = 0; i < plan.groups; i++) {
        message_group_t group;
        FUZZ_CHECK(!coordinator_group(state->coordinator, plan.serial[i], &group));
        FUZZ_CHECK(group.count == COMPLETIONS);
        for (int k = 0; k < group.count; k++) {
            FUZZ_CHECK(group.item[k].index == k && group.item[k].length >= 1 && group.item[k].length <= TOKENS);
            for (int t = 0; t < group.item[k].length; t++) {
                FUZZ_CHECK(group.item[k].tokens[t] >= 0 && group.item[k].tokens[t] < VOCABULARY);
                FUZZ_CHECK(group.item[k].logprobs[t] < 0.01f);
            }
        }
    }
    FUZZ_CHECK(!coordinator_weights(state->coordinator, step + 1, 8 + (uint64_t)step));
    coordinator_release(state->coordinator, step);
}

static void drain(state_t *state) {
    for (;;) {
        coordinator_action_t action;
        FUZZ_CHECK(!coordinator_next(state->coordinator, &action));
        if (action.kind == ACTION_NONE) return;
        if (action.kind == ACTION_SCORE) {
            FUZZ_CHECK(state->scores < 64 && strlen(action.text) > 0);
            state->score[state->scores].serial = action.serial;
            state->score[state->scores++].index = action.index;
        }
        if (action.kind == ACTION_SEND_PLAN) take_plan(state, action.step);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    coordinator_options_t options = {.prompts = PROMPTS,
                                     .completions = COMPLETIONS,
                                     .learners = 2,
                                     .last_step = STEPS,
                                     .max_new_tokens = TOKENS,
                                     .vocabulary = VOCABULARY,
                                     .temperature = 1,
                                     .advantage_eps = 1e-4,
                                     .excluded_limit = 1};
    fuzz_bytes_t bytes = {.at = data, .end = data + size};
    state_t state = {0};
    fuzz_allow(1 << 20, 64, size);
    FUZZ_CHECK(!coordinator_open(&options, &state.coordinator));
    FUZZ_CHECK(!coordinator_weights(state.coordinator, 0, 7));
    while (bytes.at < bytes.end) {
        uint8_t what = (uint8_t)fuzz_take(&bytes, 1);
        uint32_t peer = 1 + (uint32_t)(fuzz_take(&bytes, 1) % 3);
        if (what % 8 == 0) refused(coordinator_worker_joined(state.coordinator, peer, (int)fuzz_take(&bytes, 1) - 1));
        if (what % 8 == 1) coordinator_worker_gone(state.coordinator, peer);
        if (what % 8 == 2)
            refused(
                coordinator_worker_ready(state.coordinator, peer, (int64_t)fuzz_take(&bytes, 1), fuzz_take(&bytes, 1)));
        if (what % 8 >= 3 && what % 8 < 7) complete(&state, &bytes);
        if (what % 8 == 7 && state.scores) {
            state.scores--;
            FUZZ_CHECK(!coordinator_scored(state.coordinator, state.score[state.scores].serial,
                                           state.score[state.scores].index, what & 8 ? REWARD_ERROR : REWARD_OK, "",
                                           0.5, 0.25, 1));
        }
        drain(&state);
    }
    coordinator_close(state.coordinator);
    return 0;
}
