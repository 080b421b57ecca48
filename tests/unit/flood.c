// Strangers at the door: a hub with keys exchanges messages with a peer of the job while another process floods its
// port with garbage, half-open connections, frames of absurd size, peers without keys, with wrong ones and with the
// public key alone. The exchange completes, a peer joins in the middle of it, strangers cause no event, and
// descriptors, memory and the log stay bounded. FLOOD_MESSAGES and FLOOD_SECONDS: more of it.
#include "common/comm/clock.h"
#include "common/wire/doorkeeper.h"
#include "common/wire/envelope.h"
#include "common/wire/transport.h"
#include "tests/lib/check.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { HELD = 1500, DEALERS = 12, KINDS = 7, DESCRIPTORS = 900, MEMORY_KIB = 400 << 10 };
static const char *const kinds[KINDS] = {
    "connections of garbage",           "half-open connections", "frames of absurd size",
    "long frames before the handshake", "peers without keys",    "peers with wrong keys",
    "peers with the public key alone"};

// Shared by both processes.
typedef struct shared {
    atomic_int port;
    char public_key[41];
    _Atomic uint64_t count[KINDS];
} shared_t;

typedef struct attack {
    shared_t *shared;
    int kind;
} attack_t;

// ---- the flooding process ----

static int connect_raw(const shared_t *shared) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atomic_load(&shared->port))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0) return fd;
    if (fd >= 0) close(fd);
    usleep(1000);
    return -1;
}

static void greet(int fd, const char *mechanism) {
    uint8_t greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1};
    memcpy(greeting + 12, mechanism, strlen(mechanism));
    (void)!send(fd, greeting, sizeof(greeting), MSG_NOSIGNAL);
}

static void attack_once(const attack_t *attack, uint8_t *bytes, size_t size) {
    int fd = connect_raw(attack->shared);
    if (fd < 0) return;
    if (attack->kind == 0) (void)!send(fd, bytes, size, MSG_NOSIGNAL);
    if (attack->kind == 2 || attack->kind == 3) greet(fd, "CURVE");
    if (attack->kind == 2) { // a command of 2^40 bytes
        const uint8_t head[9] = {6, 0, 0, 1, 0, 0, 0, 0, 0};
        (void)!send(fd, head, sizeof(head), MSG_NOSIGNAL);
    }
    if (attack->kind == 3) { // one that a peer of the job would be allowed, sent but for its end
        const uint8_t head[9] = {6, 0, 0, 0, 0, 0, 0x80, 0, 0};
        (void)!send(fd, head, sizeof(head), MSG_NOSIGNAL);
        for (int i = 0; i < 100; i++)
            if (send(fd, bytes, size, MSG_NOSIGNAL) <= 0) break;
    }
    atomic_fetch_add(&attack->shared->count[attack->kind], 1);
    close(fd);
}

// Keeps as many connections open as it can, saying nothing.
static void hold_open(const attack_t *attack) {
    int held[HELD];
    for (int i = 0; i < HELD; i++) held[i] = -1;
    for (int i = 0;; i = (i + 1) % HELD) {
        char byte;
        if (held[i] >= 0 && recv(held[i], &byte, 1, MSG_DONTWAIT) < 0) {
            usleep(200);
            continue; // still open
        }
        if (held[i] >= 0) close(held[i]);
        held[i] = connect_raw(attack->shared);
        if (held[i] >= 0) atomic_fetch_add(&attack->shared->count[attack->kind], 1);
    }
}

// Peers that speak the protocol, but have not the keys: they say hello and send data as a peer would.
static void impersonate(const attack_t *attack) {
    char endpoint[64], name[32], identity[TRANSPORT_MAX_IDENTITY + 1], public_key[41], secret_key[41];
    snprintf(endpoint, sizeof(endpoint), "tcp://127.0.0.1:%d", atomic_load(&attack->shared->port));
    void *context = zmq_ctx_new();
    for (uint64_t turn = 0;; turn++) {
        void *dealer = zmq_socket(context, ZMQ_DEALER);
        int zero = 0, quick = 1;
        zmq_setsockopt(dealer, ZMQ_LINGER, &zero, sizeof(zero));
        zmq_setsockopt(dealer, ZMQ_RECONNECT_IVL, &quick, sizeof(quick));
        snprintf(name, sizeof(name), "stranger %d-%d", attack->kind, (int)(turn % DEALERS));
        size_t size = transport_identity(name, turn, identity);
        zmq_setsockopt(dealer, ZMQ_ROUTING_ID, identity, size);
        if (attack->kind > 4) {
            zmq_curve_keypair(public_key, secret_key);
            const char *claimed = attack->kind == 6 ? attack->shared->public_key : public_key;
            zmq_setsockopt(dealer, ZMQ_CURVE_SERVERKEY, attack->shared->public_key, 40);
            zmq_setsockopt(dealer, ZMQ_CURVE_PUBLICKEY, claimed, 40);
            zmq_setsockopt(dealer, ZMQ_CURVE_SECRETKEY, secret_key, 40);
        }
        zmq_connect(dealer, endpoint);
        for (uint64_t i = 1; i < 4; i++) {
            envelope_t envelope = {
                .kind = i == 1 ? ENVELOPE_HELLO : ENVELOPE_DATA, .epoch = turn, .sequence = i, .limit = 9};
            transport_send(dealer, NULL, 0, &envelope, "let me in", 9);
        }
        usleep(20000);
        zmq_close(dealer);
        atomic_fetch_add(&attack->shared->count[attack->kind], 1);
    }
}

static void *run_attack(void *argument) {
    attack_t *attack = argument;
    static uint8_t bytes[1 << 16];
    while (!atomic_load(&attack->shared->port)) usleep(1000);
    if (attack->kind == 1) hold_open(attack);
    if (attack->kind >= 4) impersonate(attack);
    for (;;) attack_once(attack, bytes, sizeof(bytes));
    return NULL;
}

static pid_t start_flood(shared_t *shared) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child) return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    static attack_t attack[KINDS];
    pthread_t thread;
    for (int i = 0; i < KINDS; i++) {
        attack[i] = (attack_t){.shared = shared, .kind = i};
        pthread_create(&thread, NULL, run_attack, &attack[i]);
    }
    for (;;) pause();
}

// ---- the job's process ----

static int open_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

static long resident_kib(void) {
    long pages = 0, total = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (fscanf(file, "%ld %ld", &total, &pages) != 2) pages = 0;
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

static link_buffer_t numbered(uint64_t number) {
    link_buffer_t buffer = {.size = 1000};
    CHECK_OK(memory_allocate(buffer.size, 1, (void **)&buffer.data));
    memcpy(buffer.data, &number, sizeof(number));
    return buffer;
}

// One message there and back. The only events are the peer's.
static void exchange(hub_t *hub, link_t *link, uint32_t peer, uint64_t number) {
    hub_event_t event = {0};
    link_buffer_t back;
    CHECK_OK(link_send(link, numbered(number), 60));
    for (double until = clock_seconds() + 60; event.kind == HUB_NOTHING && clock_seconds() < until;)
        CHECK_OK(hub_receive(hub, 1, &event));
    assert_int_equal(event.kind, HUB_MESSAGE);
    assert_int_equal(event.peer, peer);
    assert_memory_equal(event.message.data, &number, sizeof(number));
    CHECK_OK(hub_send(hub, peer, event.message));
    CHECK_OK(link_receive(link, 60, &back));
    assert_non_null(back.data);
    assert_memory_equal(back.data, &number, sizeof(number));
    link_buffer_free(&back);
}

static link_t *join(hub_t *hub, const link_options_t *options, const char *name, uint32_t *peer) {
    link_buffer_t hello = numbered(0);
    link_t *link;
    hub_event_t event = {0};
    CHECK_OK(link_open(hub_endpoint(hub), name, hello, 120, options, &link));
    CHECK_OK(hub_receive(hub, 10, &event));
    assert_int_equal(event.kind, HUB_JOINED);
    link_buffer_free(&event.message);
    *peer = event.peer;
    return link;
}

// Mean seconds of a message there and back while nothing disturbs.
static double quiet_seconds(hub_t *hub, link_t *link, uint32_t peer) {
    enum { MESSAGES = 400 };
    double begun = clock_seconds();
    for (uint64_t i = 0; i < MESSAGES; i++) exchange(hub, link, peer, i);
    return (clock_seconds() - begun) / MESSAGES;
}

// Waits until every kind of attack has happened `more` times since `before`.
static void await_attacks(const shared_t *shared, const uint64_t *before, uint64_t more) {
    for (double until = clock_seconds() + 120; clock_seconds() < until; usleep(10000)) {
        int enough = 0;
        for (int i = 0; i < KINDS; i++) enough += atomic_load(&shared->count[i]) >= before[i] + more;
        if (enough == KINDS) return;
    }
    fail_msg("the flood does not flow");
}

static int log_lines(const char *path) {
    FILE *file = fopen(path, "r");
    int lines = 0;
    for (int c; (c = getc(file)) != EOF;) lines += c == '\n';
    fclose(file);
    return lines;
}

static void test_flood(void **state) {
    (void)state;
    shared_t *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char secret[41], log[] = "/tmp/poise-flood-XXXXXX";
    CHECK_OK(link_make_keys(shared->public_key, secret));
    pid_t flood = start_flood(shared); // before this process has threads
    link_options_t options = {.public_key = shared->public_key,
                              .secret_key = secret,
                              .heartbeat_s = 30,
                              .max_message = 64 << 20,
                              .window = 32};
    hub_t *hub;
    CHECK_OK(hub_open("tcp://127.0.0.1:*", &options, &hub));
    int terminal = dup(2), file = mkstemp(log);
    dup2(file, 2);
    uint32_t first, second;
    link_t *before = join(hub, &options, "a peer from before", &first);
    double quiet = quiet_seconds(hub, before, first), flooded = 0;
    long memory = resident_kib(), most_memory = memory;
    int most_descriptors = 0;
    double begun = clock_seconds(), seconds = (double)setting("FLOOD_SECONDS", 0);
    atomic_store(&shared->port, (int)strtol(strrchr(hub_endpoint(hub), ':') + 1, NULL, 10));
    uint64_t none[KINDS] = {0}, seen[KINDS], number = 0, messages = (uint64_t)setting("FLOOD_MESSAGES", 1500);
    await_attacks(shared, none, 20);
    for (double until = clock_seconds() + 60; shared->count[1] < HELD && clock_seconds() < until;) usleep(10000);
    link_t *during = join(hub, &options, "a peer that comes during the flood", &second);
    for (int i = 0; i < KINDS; i++) seen[i] = atomic_load(&shared->count[i]);
    while (number < messages || clock_seconds() - begun < seconds) {
        double sent = clock_seconds();
        exchange(hub, number % 2 ? before : during, number % 2 ? first : second, number);
        flooded += clock_seconds() - sent;
        if (number++ % 50) continue;
        int descriptors = open_descriptors();
        long now = resident_kib();
        if (descriptors > most_descriptors) most_descriptors = descriptors;
        if (now > most_memory) most_memory = now;
    }
    await_attacks(shared, seen, 1); // it was a flood all the time
    link_statistics_t statistics = hub_get_statistics(hub);
    double took = clock_seconds() - begun;
    kill(flood, SIGKILL);
    waitpid(flood, NULL, 0);
    link_close(before);
    link_close(during);
    hub_close(hub);
    dup2(terminal, 2);
    int lines = log_lines(log);
    unlink(log);
    for (int i = 0; i < KINDS; i++) printf("count: %s: %llu\n", kinds[i], (unsigned long long)shared->count[i]);
    printf("count: messages exchanged meanwhile: %llu\n", (unsigned long long)number);
    printf("%.1f s; at most %d descriptors, %ld MiB more memory; %llu strangers ended; %d lines in the log\n", took,
           most_descriptors, (most_memory - memory) >> 10, (unsigned long long)statistics.strangers, lines);
    flooded /= (double)number;
    printf("a message and its answer: %.2f ms undisturbed, %.2f ms in the flood\n", quiet * 1e3, flooded * 1e3);
    // The flood takes its share of the processors, which is no matter of the hub's; what a stranger could make a peer
    // wait for (a handshake, a deadline, a queue of connections) takes a hundred times as long.
    assert_true(flooded < 20 * quiet + 0.02);
    assert_true(statistics.strangers > 100);
    assert_int_equal(statistics.refused, 0); // not one frame came through
    assert_true(most_descriptors < DESCRIPTORS);
    assert_true(most_memory - memory < MEMORY_KIB);
    assert_true(lines >= 1 && lines < took + 10);
    munmap(shared, sizeof(*shared));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_flood)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
