// Hub and link: order, loss, silence, epochs, keys, back-pressure.
#include "common/wire/link.h"
#include "common/comm/clock.h"
#include "common/wire/envelope.h"
#include "tests/lib/lossy_proxy.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

static void check(status_t status) {
    if (status) status_print(status, stderr, -1, true);
    assert_null(status);
}

static void check_kind(status_t status, status_kind_t kind, const char *part) {
    assert_non_null(status);
    if (status_kind(status) != kind || !strstr(status_message(status), part)) status_print(status, stderr, -1, true);
    assert_int_equal(status_kind(status), kind);
    assert_non_null(strstr(status_message(status), part));
    status_free(status);
}

static link_buffer_t buffer_of(const void *data, size_t size) {
    link_buffer_t buffer = {.size = size};
    check(memory_copy_bytes(data, size, (char **)&buffer.data));
    return buffer;
}

static link_buffer_t number_buffer(uint64_t number, size_t size) {
    link_buffer_t buffer = {.size = size};
    check(memory_allocate(size, 1, (void **)&buffer.data));
    for (size_t i = 8; i < size; i++) buffer.data[i] = (uint8_t)(number * 31 + i * 7);
    memcpy(buffer.data, &number, 8);
    return buffer;
}

static void check_number(link_buffer_t *buffer, uint64_t number) {
    uint64_t found = 0;
    assert_true(buffer->size >= 8);
    memcpy(&found, buffer->data, 8);
    assert_int_equal(found, number);
    for (size_t i = 8; i < buffer->size; i++) assert_int_equal(buffer->data[i], (uint8_t)(number * 31 + i * 7));
    link_buffer_free(buffer);
}

static const link_options_t plain = {.heartbeat_s = 5, .max_message = 1 << 20, .window = 32};

static hub_event_t next_event(hub_t *hub, double wait_s) {
    hub_event_t event = {0};
    check(hub_receive(hub, wait_s, &event));
    return event;
}

static uint32_t expect_join(hub_t *hub, const char *hello) {
    hub_event_t event = next_event(hub, 10);
    assert_int_equal(event.kind, HUB_JOINED);
    assert_int_equal(event.message.size, strlen(hello));
    assert_memory_equal(event.message.data, hello, strlen(hello));
    link_buffer_free(&event.message);
    return event.peer;
}

static void expect_gone(hub_t *hub, uint32_t peer, const char *part, double wait_s) {
    hub_event_t event = next_event(hub, wait_s);
    assert_int_equal(event.kind, HUB_GONE);
    assert_int_equal(event.peer, peer);
    if (!strstr(event.reason, part)) fail_msg("reason is \"%s\"", event.reason);
}

// ---- both ways, with and without a bad wire ----

typedef struct sender {
    link_t *link;
    hub_t *hub;
    uint32_t peer;
    uint64_t count;
    atomic_int failed;
} sender_t;

static size_t size_of(uint64_t number) {
    return 8 + (size_t)(number * 37 % 900);
}

static void *send_from_link(void *argument) {
    sender_t *sender = argument;
    for (uint64_t n = 0; n < sender->count && !sender->failed; n++) {
        status_t status = link_send(sender->link, number_buffer(n, size_of(n)), 20);
        if (status) sender->failed = 1;
        status_free(status);
        link_progress(sender->link);
    }
    return NULL;
}

static void *send_from_hub(void *argument) {
    sender_t *sender = argument;
    for (uint64_t n = 0; n < sender->count && !sender->failed; n++) {
        status_t status = hub_send(sender->hub, sender->peer, number_buffer(n + 5, size_of(n)));
        if (status) sender->failed = 1;
        status_free(status);
    }
    return NULL;
}

static void exchange(hub_t *hub, const char *endpoint, const link_options_t *options, uint64_t count) {
    link_t *link = NULL;
    check(link_open(endpoint, "worker", buffer_of("hello", 5), 10, options, &link));
    uint32_t peer = expect_join(hub, "hello");
    sender_t sender = {.link = link, .hub = hub, .peer = peer, .count = count};
    pthread_t up, down;
    pthread_create(&up, NULL, send_from_link, &sender);
    pthread_create(&down, NULL, send_from_hub, &sender);
    uint64_t at_hub = 0, at_link = 0;
    double until = clock_seconds() + 60;
    while ((at_hub < count || at_link < count) && clock_seconds() < until) {
        hub_event_t event = next_event(hub, at_link < count ? 0 : 0.1);
        if (event.kind != HUB_NOTHING) {
            assert_int_equal(event.kind, HUB_MESSAGE);
            assert_int_equal(event.peer, peer);
            assert_int_equal(event.message.size, size_of(at_hub));
            check_number(&event.message, at_hub++);
        }
        link_buffer_t message = {0};
        check(link_receive(link, at_hub < count ? 0 : 0.1, &message));
        if (message.data) check_number(&message, 5 + at_link++);
        if (event.kind == HUB_NOTHING && !message.data) usleep(200);
    }
    pthread_join(up, NULL);
    pthread_join(down, NULL);
    assert_int_equal(sender.failed, 0);
    assert_int_equal(at_hub, count);
    assert_int_equal(at_link, count);
    assert_true(hub_idle_seconds(hub, peer) < 30);
    assert_int_equal(link_get_statistics(link).received, count);
    assert_int_equal(hub_get_statistics(hub).received, count);
    link_close(link);
    expect_gone(hub, peer, "goodbye", 5);
    check_kind(hub_send(hub, peer, number_buffer(1, 8)), STATUS_PEER, "goodbye");
}

static void test_both_ways(void **state) {
    (void)state;
    hub_t *hub = NULL;
    check(hub_open("tcp://127.0.0.1:*", &plain, &hub));
    exchange(hub, hub_endpoint(hub), &plain, 5000);
    hub_close(hub);
}

static void test_keys(void **state) {
    (void)state;
    char public_key[41], secret_key[41], other_public[41], other_secret[41];
    check(link_make_keys(public_key, secret_key));
    check(link_make_keys(other_public, other_secret));
    link_options_t with_keys = plain, wrong = plain, half_wrong = plain;
    with_keys.public_key = public_key;
    with_keys.secret_key = secret_key;
    wrong.public_key = other_public;
    wrong.secret_key = other_secret;
    hub_t *hub = NULL;
    check(hub_open("tcp://127.0.0.1:*", &with_keys, &hub));
    exchange(hub, hub_endpoint(hub), &with_keys, 500);
    link_t *link = NULL;
    check_kind(link_open(hub_endpoint(hub), "spy", buffer_of("hi", 2), 0.7, &wrong, &link), STATUS_TIMEOUT, "keys");
    check_kind(link_open(hub_endpoint(hub), "spy", buffer_of("hi", 2), 0.7, &plain, &link), STATUS_TIMEOUT, "welcomed");
    // Knowing the hub's public key is not enough: the client's own pair must be the job's.
    void *context = zmq_ctx_new(), *dealer = zmq_socket(context, ZMQ_DEALER);
    int zero = 0;
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(dealer, ZMQ_CURVE_SERVERKEY, public_key, 40);
    zmq_setsockopt(dealer, ZMQ_CURVE_PUBLICKEY, other_public, 40);
    zmq_setsockopt(dealer, ZMQ_CURVE_SECRETKEY, other_secret, 40);
    zmq_setsockopt(dealer, ZMQ_ROUTING_ID, "spy#0000000000000001", 20);
    assert_int_equal(zmq_connect(dealer, hub_endpoint(hub)), 0);
    uint8_t head[ENVELOPE_BYTES];
    envelope_encode(&(envelope_t){.kind = ENVELOPE_HELLO, .epoch = 1, .limit = 4}, head);
    zmq_send(dealer, head, sizeof(head), ZMQ_SNDMORE | ZMQ_DONTWAIT);
    zmq_send(dealer, "hi", 2, ZMQ_DONTWAIT);
    assert_int_equal(next_event(hub, 0.5).kind, HUB_NOTHING);
    zmq_close(dealer);
    zmq_ctx_term(context);
    half_wrong.public_key = public_key;
    hub_t *none = NULL;
    check_kind(hub_open("tcp://127.0.0.1:*", &half_wrong, &none), STATUS_INVALID, "secret");
    half_wrong.secret_key = "short";
    check_kind(hub_open("tcp://127.0.0.1:*", &half_wrong, &none), STATUS_INVALID, "Z85");
    hub_close(hub);
}

static void test_loopback_rule(void **state) {
    (void)state;
    const char *const far[] = {"tcp://*:*",    "tcp://0.0.0.0:*", "tcp://10.1.2.3:5555", "tcp://127.evil.example:5",
                               "tcp://eth0:*", "tcp://[::]:*",    "tcp://1270.0.0.1:5"};
    hub_t *hub = NULL;
    link_t *link = NULL;
    for (size_t i = 0; i < sizeof(far) / sizeof(*far); i++) {
        check_kind(hub_open(far[i], &plain, &hub), STATUS_INVALID, "keys");
        check_kind(link_open(far[i], "w", buffer_of("", 0), 1, &plain, &link), STATUS_INVALID, "keys");
    }
    char public_key[41], secret_key[41];
    check(link_make_keys(public_key, secret_key));
    link_options_t options = plain;
    options.public_key = public_key;
    options.secret_key = secret_key;
    check(hub_open("tcp://*:*", &options, &hub));
    assert_null(strstr(hub_endpoint(hub), "0.0.0.0"));
    check(link_open(hub_endpoint(hub), "w", buffer_of("x", 1), 10, &options, &link));
    expect_join(hub, "x");
    link_close(link);
    hub_t *second = NULL;
    options = plain;
    char taken[64];
    snprintf(taken, sizeof(taken), "tcp://127.0.0.1:%s", strrchr(hub_endpoint(hub), ':') + 1);
    check_kind(hub_open(taken, &options, &second), STATUS_UNAVAILABLE, "cannot listen");
    hub_close(hub);
}

static void test_lossy(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_options_t options = plain;
    options.heartbeat_s = 4;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        check(hub_open("tcp://127.0.0.1:*", &options, &hub));
        proxy_t *proxy = calloc(1, sizeof(*proxy));
        proxy->lose = 0.05;
        proxy->twice = 0.05;
        proxy->delay = 0.10;
        proxy_open(proxy, hub_endpoint(hub), seed);
        exchange(hub, proxy->endpoint, &options, 1500);
        assert_true(proxy->lost > 50 && proxy->doubled > 50 && proxy->delayed > 50);
        assert_true(hub_get_statistics(hub).resent > 10);
        assert_true(hub_get_statistics(hub).duplicates > 10);
        proxy_close(proxy);
        free(proxy);
        hub_close(hub);
    }
}

// A line that is cut for less than the heartbeat heals without loss; one that stays cut is noticed by both ends.
static void test_cut(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    link_options_t options = plain;
    options.heartbeat_s = 2.4;
    check(hub_open("tcp://127.0.0.1:*", &options, &hub));
    proxy_t *proxy = calloc(1, sizeof(*proxy));
    proxy_open(proxy, hub_endpoint(hub), 3);
    check(link_open(proxy->endpoint, "worker", buffer_of("a", 1), 10, &options, &link));
    uint32_t peer = expect_join(hub, "a");
    proxy->cut = 1;
    for (uint64_t n = 0; n < 10; n++) {
        check(link_send(link, number_buffer(n, 50), 1));
        check(hub_send(hub, peer, number_buffer(n, 50)));
    }
    usleep(600000);
    proxy->cut = 0;
    for (uint64_t n = 0; n < 10; n++) {
        hub_event_t event = next_event(hub, 5);
        assert_int_equal(event.kind, HUB_MESSAGE);
        check_number(&event.message, n);
        link_buffer_t message = {0};
        check(link_receive(link, 5, &message));
        check_number(&message, n);
    }
    proxy->cut = 1;
    double start = clock_seconds();
    expect_gone(hub, peer, "no heartbeat", 9);
    assert_true(clock_seconds() - start < 8);
    link_buffer_t message = {0};
    check_kind(link_receive(link, 5, &message), STATUS_PEER, "no heartbeat");
    check_kind(link_send(link, number_buffer(0, 8), 5), STATUS_PEER, "no heartbeat");
    link_close(link);
    proxy_close(proxy);
    free(proxy);
    hub_close(hub);
}

static void test_epochs(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *first = NULL, *second = NULL;
    link_buffer_t message = {0};
    check(hub_open("tcp://127.0.0.1:*", &plain, &hub));
    check(link_open(hub_endpoint(hub), "worker", buffer_of("one", 3), 5, &plain, &first));
    uint32_t one = expect_join(hub, "one");
    check(link_open(hub_endpoint(hub), "worker", buffer_of("two", 3), 5, &plain, &second));
    expect_gone(hub, one, "replaced", 5);
    uint32_t two = expect_join(hub, "two");
    assert_true(two != one);
    check_kind(link_receive(first, 5, &message), STATUS_PEER, "replaced");
    check_kind(link_send(first, number_buffer(1, 8), 1), STATUS_PEER, "replaced");
    // A process of an old epoch that did not hear it.
    void *context = zmq_ctx_new(), *dealer = zmq_socket(context, ZMQ_DEALER);
    int zero = 0, wait = 3000;
    zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
    zmq_setsockopt(dealer, ZMQ_RCVTIMEO, &wait, sizeof(wait));
    zmq_setsockopt(dealer, ZMQ_ROUTING_ID, "worker#0000000000000007", 23);
    assert_int_equal(zmq_connect(dealer, hub_endpoint(hub)), 0);
    uint8_t head[ENVELOPE_BYTES];
    envelope_t answer;
    envelope_encode(&(envelope_t){.kind = ENVELOPE_DATA, .epoch = 7, .sequence = 1, .limit = 4}, head);
    zmq_send(dealer, head, sizeof(head), ZMQ_SNDMORE);
    zmq_send(dealer, "old", 3, 0);
    assert_int_equal(zmq_recv(dealer, head, sizeof(head), 0), ENVELOPE_BYTES);
    assert_true(envelope_decode(head, sizeof(head), &answer));
    assert_int_equal(answer.kind, ENVELOPE_REFUSE);
    assert_true(answer.sequence > 7);
    assert_true(hub_get_statistics(hub).refused >= 1);
    zmq_close(dealer);
    // Frames that are none of this protocol.
    dealer = zmq_socket(context, ZMQ_DEALER);
    zmq_setsockopt(dealer, ZMQ_LINGER, &wait, sizeof(wait));
    zmq_connect(dealer, hub_endpoint(hub));
    uint64_t before = hub_get_statistics(hub).refused;
    zmq_send(dealer, "x", 1, 0);
    zmq_send(dealer, head, sizeof(head), ZMQ_SNDMORE);
    zmq_send(dealer, "a", 1, ZMQ_SNDMORE);
    zmq_send(dealer, "b", 1, ZMQ_SNDMORE);
    zmq_send(dealer, "c", 1, 0);
    for (int i = 0; i < 100 && hub_get_statistics(hub).refused < before + 2; i++) usleep(20000);
    assert_int_equal(hub_get_statistics(hub).refused, before + 2);
    zmq_close(dealer);
    zmq_ctx_term(context);
    assert_int_equal(next_event(hub, 0.1).kind, HUB_NOTHING);
    check(link_send(second, number_buffer(9, 20), 1));
    hub_event_t event = next_event(hub, 5);
    assert_int_equal(event.peer, two);
    check_number(&event.message, 9);
    link_close(first);
    link_close(second);
    expect_gone(hub, two, "goodbye", 5);
    hub_close(hub);
}

// A name whose last process had a clock far ahead can still be taken over.
static void test_clock_behind(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    check(hub_open("tcp://127.0.0.1:*", &plain, &hub));
    void *context = zmq_ctx_new(), *dealer = zmq_socket(context, ZMQ_DEALER);
    int linger = 1000;
    zmq_setsockopt(dealer, ZMQ_LINGER, &linger, sizeof(linger));
    zmq_setsockopt(dealer, ZMQ_ROUTING_ID, "worker#f000000000000000", 23);
    zmq_connect(dealer, hub_endpoint(hub));
    uint8_t head[ENVELOPE_BYTES];
    envelope_encode(&(envelope_t){.kind = ENVELOPE_HELLO, .epoch = (uint64_t)0xf << 60, .limit = 4}, head);
    zmq_send(dealer, head, sizeof(head), ZMQ_SNDMORE);
    zmq_send(dealer, "ahead", 5, 0);
    uint32_t ahead = expect_join(hub, "ahead");
    check(link_open(hub_endpoint(hub), "worker", buffer_of("now", 3), 5, &plain, &link));
    expect_gone(hub, ahead, "replaced", 5);
    uint32_t now = expect_join(hub, "now");
    check(link_send(link, number_buffer(3, 10), 1));
    hub_event_t event = next_event(hub, 5);
    assert_int_equal(event.peer, now);
    check_number(&event.message, 3);
    zmq_close(dealer);
    zmq_ctx_term(context);
    link_close(link);
    hub_close(hub);
}

static void test_back_pressure(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    link_options_t options = plain;
    options.window = 4;
    check(hub_open("tcp://127.0.0.1:*", &options, &hub));
    check(link_open(hub_endpoint(hub), "worker", buffer_of("", 0), 5, &options, &link));
    uint32_t peer = expect_join(hub, "");
    // The hub's owner takes nothing: its hub acknowledges, but gives no room beyond the window.
    uint64_t sent = 0;
    status_t status = STATUS_OK;
    while (sent < 100 && !(status = link_send(link, number_buffer(sent, 16), 0.4))) sent++;
    check_kind(status, STATUS_TIMEOUT, "waited");
    assert_int_equal(sent, 4);
    for (uint64_t n = 0; n < sent; n++) {
        hub_event_t event = next_event(hub, 5);
        check_number(&event.message, n);
    }
    check(link_send(link, number_buffer(sent, 16), 5));
    hub_event_t event = next_event(hub, 5);
    check_number(&event.message, sent);
    // The other way: the hub queues, the wire carries no more than the window until the link's owner takes.
    for (uint64_t n = 0; n < 50; n++) check(hub_send(hub, peer, number_buffer(n, 16)));
    usleep(300000);
    assert_int_equal(hub_get_statistics(hub).sent, 4);
    for (uint64_t n = 0; n < 50; n++) {
        link_buffer_t message = {0};
        check(link_receive(link, 5, &message));
        check_number(&message, n);
    }
    link_buffer_t big = number_buffer(0, (1 << 20) + 1);
    check_kind(link_send(link, big, 1), STATUS_INVALID, "longer");
    assert_int_equal(link_get_statistics(link).resent, 0);
    link_close(link);
    hub_close(hub);
}

static void test_drop_and_idle(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    link_buffer_t message = {0};
    link_options_t options = plain;
    options.heartbeat_s = 2;
    check(hub_open("tcp://127.0.0.1:*", &options, &hub));
    check(link_open(hub_endpoint(hub), "stalled", buffer_of("s", 1), 5, &options, &link));
    uint32_t peer = expect_join(hub, "s");
    assert_true(isinf(hub_idle_seconds(hub, peer + 1)));
    // Heartbeats go on while the work loop does nothing: alive, but idle.
    assert_int_equal(next_event(hub, 2.6).kind, HUB_NOTHING);
    double idle = hub_idle_seconds(hub, peer);
    assert_true(idle > 2.5);
    link_progress(link);
    for (int i = 0; i < 150 && hub_idle_seconds(hub, peer) > idle; i++) usleep(20000);
    assert_true(hub_idle_seconds(hub, peer) < idle);
    hub_drop(hub, peer, "it never finishes");
    expect_gone(hub, peer, "it never finishes", 5);
    check_kind(link_receive(link, 5, &message), STATUS_PEER, "it never finishes");
    link_close(link);
    hub_close(hub);
}

static void test_hub_goes(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    link_buffer_t message = {0};
    char endpoint[256];
    check(hub_open("tcp://127.0.0.1:*", &plain, &hub));
    snprintf(endpoint, sizeof(endpoint), "%s", hub_endpoint(hub));
    check(link_open(endpoint, "worker", buffer_of("w", 1), 5, &plain, &link));
    uint32_t peer = expect_join(hub, "w");
    check(hub_send(hub, peer, number_buffer(1, 8)));
    hub_close(hub); // what was sent before still arrives
    check(link_receive(link, 5, &message));
    check_number(&message, 1);
    check_kind(link_receive(link, 5, &message), STATUS_PEER, "closed");
    link_close(link);
    double start = clock_seconds();
    check_kind(link_open(endpoint, "worker", buffer_of("w", 1), 0.5, &plain, &link), STATUS_TIMEOUT, "nothing answers");
    assert_true(clock_seconds() - start < 3);
    check_kind(link_open("tcp://127.0.0.1:notaport", "worker", buffer_of("w", 1), 0.5, &plain, &link), STATUS_INVALID,
               "cannot connect");
    check_kind(link_open(endpoint, "a#b", buffer_of("w", 1), 0.5, &plain, &link), STATUS_INVALID, "name");
}

// A hub that was started again at the same address does not know the peers of the one before.
static void test_hub_restarts(void **state) {
    (void)state;
    hub_t *hub = NULL;
    link_t *link = NULL;
    link_buffer_t message = {0};
    link_options_t options = plain;
    options.heartbeat_s = 8;
    check(hub_open("tcp://127.0.0.1:*", &options, &hub));
    proxy_t *proxy = calloc(1, sizeof(*proxy));
    proxy_open(proxy, hub_endpoint(hub), 4);
    char endpoint[256];
    snprintf(endpoint, sizeof(endpoint), "%s", hub_endpoint(hub));
    check(link_open(proxy->endpoint, "worker", buffer_of("w", 1), 5, &options, &link));
    expect_join(hub, "w");
    proxy->cut = 1; // it goes without a word
    hub_close(hub);
    usleep(200000); // until the proxy has lost its last words
    check(hub_open(endpoint, &options, &hub));
    proxy->cut = 0;
    check(link_send(link, number_buffer(1, 8), 1));
    check_kind(link_receive(link, 20, &message), STATUS_PEER, "started again");
    assert_int_equal(next_event(hub, 0).kind, HUB_NOTHING);
    link_close(link);
    proxy_close(proxy);
    free(proxy);
    hub_close(hub);
}

static void test_many_peers(void **state) {
    (void)state;
    enum { PEERS = 24 };
    hub_t *hub = NULL;
    link_t *link[PEERS];
    uint32_t peer_sum = 0;
    check(hub_open("tcp://127.0.0.1:*", &plain, &hub));
    for (int i = 0; i < PEERS; i++) {
        char name[32];
        snprintf(name, sizeof(name), "worker-%d", i);
        check(link_open(hub_endpoint(hub), name, buffer_of(&i, sizeof(i)), 10, &plain, &link[i]));
    }
    for (int n = 0; n < 20; n++)
        for (int i = 0; i < PEERS; i++) check(link_send(link[i], number_buffer((uint64_t)n, 100), 5));
    uint64_t next[PEERS + 1] = {0};
    for (int n = 0; n < PEERS * 21; n++) {
        hub_event_t event = next_event(hub, 10);
        assert_true(event.peer >= 1 && event.peer <= PEERS);
        if (event.kind == HUB_JOINED) {
            peer_sum += event.peer;
            link_buffer_free(&event.message);
        } else {
            assert_int_equal(event.kind, HUB_MESSAGE);
            check_number(&event.message, next[event.peer]++);
        }
    }
    assert_int_equal(peer_sum, PEERS * (PEERS + 1) / 2);
    for (int i = 0; i < PEERS; i++) link_close(link[i]);
    for (int i = 0; i < PEERS; i++) assert_int_equal(next_event(hub, 5).kind, HUB_GONE);
    hub_close(hub);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ways),    cmocka_unit_test(test_keys),          cmocka_unit_test(test_loopback_rule),
        cmocka_unit_test(test_lossy),        cmocka_unit_test(test_cut),           cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_clock_behind), cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_drop_and_idle),
        cmocka_unit_test(test_hub_goes),     cmocka_unit_test(test_hub_restarts),  cmocka_unit_test(test_many_peers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
