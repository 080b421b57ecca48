// Hub, links and coordinator under thousands of random faults. POISE_SOAK_FAULTS: how many of each kind of soak at
// least (a test run does some thousands; tests/stress/workers.sh many more), POISE_STRESS_SEED: which. Ends with lines
// "count<tab>WHAT<tab>NUMBER" on stdout for the stress report.
#include "tests/lib/check.h"

#include "common/comm/clock.h"
#include "common/wire/link.h"
#include "rollout/reward/coordinator.h"
#include "tests/lib/lossy_proxy.h"

#include <stdio.h>

enum { LINKS = 3, WINDOW = 16, REOPENINGS = 15 };

static long long wanted_faults(void) {
    const char *text = getenv("POISE_SOAK_FAULTS");
    return text ? atoll(text) : 2000;
}

static uint64_t first_seed(void) {
    const char *text = getenv("POISE_STRESS_SEED");
    return 0x9E3779B97F4A7C15u * (1 + (text ? strtoull(text, NULL, 10) : 0));
}

static uint64_t draw(uint64_t *state, uint64_t bound) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % bound;
}

static void report(const char *what, long long number) {
    printf("count\t%s\t%lld\n", what, number);
    fflush(stdout);
}

// ---- the wire ----

typedef struct end {
    link_t *link;
    uint32_t peer;                // in the hub
    uint64_t epoch;               // opened so often
    uint64_t sent[2], arrived[2]; // to the hub, from the hub
} end_t;

typedef struct wire {
    hub_t *hub;
    proxy_t *proxy;
    link_options_t options;
    end_t end[LINKS];
    uint64_t random;
} wire_t;

// A message says whose it is, of which epoch, its number, and is as long as those tell.
static size_t length_of(uint64_t link, uint64_t epoch, uint64_t number) {
    return 24 + (size_t)((link * 7919 + epoch * 104729 + number * 31) % 900);
}

static link_buffer_t message_of(uint64_t link, uint64_t epoch, uint64_t number) {
    uint64_t head[3] = {link, epoch, number};
    link_buffer_t buffer = {.size = length_of(link, epoch, number)};
    buffer.data = calloc(buffer.size, 1);
    memcpy(buffer.data, head, sizeof(head));
    return buffer;
}

static void expect_next(const link_buffer_t *buffer, uint64_t link, uint64_t epoch, uint64_t number) {
    uint64_t head[3] = {0};
    assert_true(buffer->size >= sizeof(head));
    memcpy(head, buffer->data, sizeof(head));
    if (head[0] != link || head[1] != epoch || head[2] != number)
        fail_msg("message %llu of link %llu, epoch %llu came where message %llu of link %llu, epoch %llu was due",
                 (unsigned long long)head[2], (unsigned long long)head[0], (unsigned long long)head[1],
                 (unsigned long long)number, (unsigned long long)link, (unsigned long long)epoch);
    assert_int_equal(buffer->size, length_of(link, epoch, number));
}

static void open_end(wire_t *wire, int i) {
    char name[32];
    end_t *end = &wire->end[i];
    end->epoch++;
    end->peer = 0;
    memset(end->sent, 0, sizeof(end->sent));
    memset(end->arrived, 0, sizeof(end->arrived));
    snprintf(name, sizeof(name), "soak %d", i);
    CHECK_OK(
        link_open(wire->proxy->endpoint, name, message_of((uint64_t)i, end->epoch, 0), 60, &wire->options, &end->link));
}

static void take_hub_events(wire_t *wire, double wait_s) {
    hub_event_t event;
    for (;;) {
        CHECK_OK(hub_receive(wire->hub, wait_s, &event));
        if (event.kind == HUB_NOTHING) return;
        wait_s = 0;
        if (event.kind == HUB_JOINED) {
            uint64_t head[3];
            memcpy(head, event.message.data, sizeof(head));
            assert_true(head[0] < LINKS && head[1] == wire->end[head[0]].epoch && head[2] == 0);
            wire->end[head[0]].peer = event.peer;
        }
        for (int i = 0; i < LINKS; i++) {
            end_t *end = &wire->end[i];
            if (end->peer != event.peer) continue;
            if (event.kind == HUB_MESSAGE) expect_next(&event.message, (uint64_t)i, end->epoch, ++end->arrived[0]);
            if (event.kind == HUB_GONE && end->link) fail_msg("link %d was declared gone: %s", i, event.reason);
        }
        link_buffer_free(&event.message);
    }
}

static void take_link_messages(wire_t *wire) {
    for (int i = 0; i < LINKS; i++) {
        end_t *end = &wire->end[i];
        for (;;) {
            link_buffer_t buffer;
            CHECK_OK(link_receive(end->link, 0, &buffer));
            if (!buffer.data) break;
            expect_next(&buffer, (uint64_t)i, end->epoch, ++end->arrived[1]);
            link_buffer_free(&buffer);
        }
    }
}

static void some_traffic(wire_t *wire) {
    int i = (int)draw(&wire->random, LINKS);
    end_t *end = &wire->end[i];
    if (end->sent[0] < end->arrived[0] + WINDOW) {
        CHECK_OK(link_send(end->link, message_of((uint64_t)i, end->epoch, end->sent[0] + 1), 60));
        end->sent[0]++;
    }
    if (end->peer && end->sent[1] < end->arrived[1] + WINDOW) {
        CHECK_OK(hub_send(wire->hub, end->peer, message_of((uint64_t)i, end->epoch, end->sent[1] + 1)));
        end->sent[1]++;
    }
    take_hub_events(wire, draw(&wire->random, 4) ? 0 : 0.002);
    take_link_messages(wire);
}

static void settle(wire_t *wire) {
    double until = clock_seconds() + 60;
    for (bool done = false; !done;) {
        done = true;
        take_hub_events(wire, 0.01);
        take_link_messages(wire);
        for (int i = 0; i < LINKS; i++)
            for (int way = 0; way < 2; way++) done = done && wire->end[i].arrived[way] == wire->end[i].sent[way];
        if (!done && clock_seconds() > until) fail_msg("what was sent did not arrive within 60 s");
    }
}

static long long proxy_faults(const proxy_t *proxy) {
    return proxy->lost + proxy->doubled + proxy->delayed + proxy->replayed;
}

static void test_wire(void **state) {
    (void)state;
    wire_t wire = {.options = {.heartbeat_s = 5, .window = 4 * WINDOW}, .random = first_seed()};
    long long wanted = wanted_faults(), cuts = 0, reopened = 0, turns = 0;
    CHECK_OK(hub_open("tcp://127.0.0.1:*", &wire.options, &wire.hub));
    wire.proxy = calloc(1, sizeof(*wire.proxy));
    wire.proxy->lose = 0.04;
    wire.proxy->twice = wire.proxy->delay = 0.08;
    wire.proxy->replay = 0.05;
    proxy_open(wire.proxy, hub_endpoint(wire.hub), first_seed() | 1);
    for (int i = 0; i < LINKS; i++) open_end(&wire, i);
    while (proxy_faults(wire.proxy) < wanted) {
        some_traffic(&wire);
        if (++turns % 400 == 0 && !wire.proxy->heal_at) {
            // The proxy heals it by itself: what is sent here may wait for that.
            wire.proxy->cut = 1;
            wire.proxy->heal_at =
                (long long)((clock_seconds() + 0.05) * 1e6) + 1000 * (long long)draw(&wire.random, 400);
            cuts++;
        }
        if (turns % 1500 == 0 && reopened < REOPENINGS) {
            end_t *end = &wire.end[draw(&wire.random, LINKS)];
            link_t *old = end->link;
            end->link = NULL; // its goodbye, or its silence, is no fault
            link_close(old);
            open_end(&wire, (int)(end - wire.end));
            reopened++;
        }
    }
    wire.proxy->cut = 0;
    settle(&wire);
    assert_true(hub_get_statistics(wire.hub).duplicates > 0 && hub_get_statistics(wire.hub).resent > 0);
    for (int i = 0; i < LINKS; i++) link_close(wire.end[i].link);
    hub_close(wire.hub);
    proxy_close(wire.proxy);
    report("soak: frames lost", wire.proxy->lost);
    report("soak: frames doubled", wire.proxy->doubled);
    report("soak: frames delayed past others", wire.proxy->delayed);
    report("soak: frames sent again long after", wire.proxy->replayed);
    report("soak: lines cut and healed", cuts);
    report("soak: links closed and opened anew", reopened);
    free(wire.proxy);
}

// ---- the coordinator ----

enum { PROMPTS = 4, COMPLETIONS = 3, STALENESS = 1, STEPS = 40, MOST_WORKERS = 6, MOST_HELD = 64 };

typedef struct hand { // what a worker has been given and has not sent
    uint64_t serial;
    int64_t version;
    int next; // completion
} hand_t;

typedef struct player {
    uint32_t number; // 0: none
    hand_t hand[MOST_HELD];
    int hands;
} player_t;

typedef struct game {
    coordinator_t *c;
    player_t player[MOST_WORKERS], ghost; // ghost: a worker that was taken for dead, and sends on
    uint32_t last_number;
    int64_t announced, planned; // planned: steps from the first on that are closed
    bool has_plan[STEPS];
    uint64_t random, digest;
    long long gone, late, twice, wrong, expected_duplicates;
} game_t;

// A completion whose content follows from its place, as a worker's does.
static message_completion_t completion_of(uint64_t serial, int index, int64_t version) {
    message_completion_t c = {.serial = serial, .index = index, .version = version, .length = 1 + (int)(serial % 5)};
    c.checksum = 100 + (uint64_t)version;
    CHECK_OK(ALLOCATE(&c.tokens, c.length));
    CHECK_OK(ALLOCATE(&c.logprobs, c.length));
    CHECK_OK(ALLOCATE(&c.entropy, c.length));
    CHECK_OK(memory_copy_string("text", &c.text));
    for (int i = 0; i < c.length; i++) c.tokens[i] = (int32_t)(serial * 1000 + (uint64_t)index * 100 + (uint64_t)i);
    return c;
}

typedef enum delivery {
    DELIVERY_RIGHT,
    DELIVERY_LATE,  // of a worker that was taken for dead: refused unless it has come from another since
    DELIVERY_WRONG, // with a checksum that was never announced, which must cost an error and nothing else
} delivery_t;

static void deliver(game_t *g, uint32_t worker, const hand_t *hand, int index, delivery_t kind, bool *fresh) {
    message_completion_t completion = completion_of(hand->serial, index, hand->version);
    bool wrong = kind != DELIVERY_RIGHT;
    if (kind == DELIVERY_WRONG) completion.checksum ^= 1;
    status_t status = coordinator_completion(g->c, worker, &completion, fresh);
    if (status) {
        if (!wrong) status_print(status, stderr, -1, true);
        assert_true(wrong && status_kind(status) == STATUS_PEER);
        status_free(status);
        free(completion.tokens);
        free(completion.logprobs);
        free(completion.entropy);
        free(completion.text);
        return;
    }
    g->expected_duplicates += !*fresh;
}

static player_t *player_of(game_t *g, uint32_t number) {
    for (int i = 0; i < MOST_WORKERS; i++)
        if (g->player[i].number == number) return &g->player[i];
    fail_msg("the coordinator names worker %u, which is not here", number);
    return NULL;
}

static void take_plan(game_t *g, int64_t step) {
    message_plan_t plan;
    CHECK_OK(coordinator_plan(g->c, step, &plan));
    uint64_t digest = (uint64_t)step;
    assert_true(step >= 0 && step < STEPS && !g->has_plan[step]); // once
    g->has_plan[step] = true;
    while (g->planned < STEPS && g->has_plan[g->planned]) g->planned++;
    assert_int_equal(plan.groups, PROMPTS);
    for (int i = 0; i < PROMPTS; i++) {
        message_group_t group;
        assert_int_equal(plan.serial[i], step * PROMPTS + i);
        CHECK_OK(coordinator_group(g->c, plan.serial[i], &group));
        assert_int_equal(group.count, COMPLETIONS);
        for (int j = 0; j < COMPLETIONS; j++) {
            assert_int_equal(group.item[j].index, j);
            assert_int_equal(group.item[j].length, 1 + (int)(group.serial % 5));
            assert_int_equal(group.item[j].tokens[0], group.serial * 1000 + (uint64_t)j * 100);
            uint64_t bits;
            memcpy(&bits, &group.item[j].advantage, 8);
            digest = (digest ^ bits ^ group.serial) * 1099511628211u;
        }
    }
    g->digest += digest; // steps may close in any order
}

static void act(game_t *g) {
    coordinator_action_t action;
    for (;;) {
        CHECK_OK(coordinator_next(g->c, &action));
        if (action.kind == ACTION_NONE) return;
        if (action.kind == ACTION_SEND_WORK) {
            player_t *player = player_of(g, action.worker);
            assert_true(player->hands < MOST_HELD);
            player->hand[player->hands++] = (hand_t){action.work.serial, action.work.version, 0};
        }
        if (action.kind == ACTION_SCORE)
            CHECK_OK(coordinator_scored(g->c, action.serial, action.index, REWARD_OK, "",
                                        (double)((action.serial + (uint64_t)action.index) % 3), 0, 0));
        if (action.kind == ACTION_SEND_PLAN) take_plan(g, action.step);
    }
}

static void send_next(game_t *g, player_t *player, bool late) {
    if (!player->hands) return;
    int at = (int)draw(&g->random, (uint64_t)player->hands);
    hand_t *hand = &player->hand[at];
    bool fresh;
    deliver(g, player->number, hand, hand->next, late ? DELIVERY_LATE : DELIVERY_RIGHT, &fresh);
    assert_false(late && fresh);
    g->late += late;
    if (++hand->next == COMPLETIONS) *hand = player->hand[--player->hands];
}

static void one_fault(game_t *g, player_t *player) {
    bool fresh = false;
    switch (draw(&g->random, 4)) {
    case 0: // it dies; from time to time it lives on, unheard of
        coordinator_worker_gone(g->c, player->number);
        if (draw(&g->random, 2)) g->ghost = *player;
        *player = (player_t){0};
        g->gone++;
        return;
    case 1:
        send_next(g, &g->ghost, true);
        return;
    case 2:
        if (!player->hands || !player->hand[0].next) return;
        deliver(g, player->number, &player->hand[0], player->hand[0].next - 1, DELIVERY_RIGHT, &fresh);
        assert_false(fresh);
        g->twice++;
        return;
    default:
        if (!player->hands) return;
        deliver(g, player->number, &player->hand[0], player->hand[0].next, DELIVERY_WRONG, &fresh);
        assert_false(fresh);
        g->wrong++;
    }
}

static void game_open(game_t *g, uint64_t seed) {
    const coordinator_options_t options = {.prompts = PROMPTS,
                                           .completions = COMPLETIONS,
                                           .staleness = STALENESS,
                                           .learners = 2,
                                           .last_step = STEPS,
                                           .max_new_tokens = 8,
                                           .temperature = 1,
                                           .advantage_eps = 1e-4,
                                           .excluded_limit = 0.5};
    *g = (game_t){.announced = -1, .random = seed};
    CHECK_OK(coordinator_open(&options, &g->c));
}

// Plays a whole run; `faults` of 100 moves are faults.
static void play(game_t *g, uint64_t faults) {
    for (long long moves = 0; g->planned < STEPS; moves++) {
        assert_true(moves < 1000000); // it gets on
        player_t *player = &g->player[draw(&g->random, MOST_WORKERS)];
        if (!player->number) {
            player->number = ++g->last_number;
            CHECK_OK(coordinator_worker_joined(g->c, player->number, 1 + (int)draw(&g->random, 5)));
        }
        if (g->announced < g->planned) {
            g->announced++;
            CHECK_OK(coordinator_weights(g->c, g->announced, 100 + (uint64_t)g->announced));
            if (g->announced > 0) coordinator_release(g->c, g->announced - 1);
        }
        act(g);
        if (draw(&g->random, 100) < faults)
            one_fault(g, player);
        else
            send_next(g, player, false);
        act(g);
    }
    assert_int_equal(coordinator_get_statistics(g->c).duplicates, g->expected_duplicates);
    coordinator_close(g->c);
}

static void test_coordinator(void **state) {
    (void)state;
    long long wanted = wanted_faults(), faults = 0, gone = 0, late = 0, twice = 0, wrong = 0;
    game_t *g = malloc(sizeof(*g));
    game_open(g, 1);
    play(g, 0);
    uint64_t undisturbed = g->digest;
    for (uint64_t round = 0; faults < wanted; round++) {
        game_open(g, first_seed() + round);
        play(g, 10 + round % 50);
        assert_true(g->digest == undisturbed);
        gone += g->gone, late += g->late, twice += g->twice, wrong += g->wrong;
        faults = gone + late + twice + wrong;
    }
    report("soak: workers gone", gone);
    report("soak: completions of workers taken for dead", late);
    report("soak: completions twice", twice);
    report("soak: completions of weights never announced", wrong);
    free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_coordinator), cmocka_unit_test(test_wire)};
    return cmocka_run_group_tests_name("soak", tests, NULL, NULL);
}
