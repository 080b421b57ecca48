// Scorers that misbehave: in poise_faults the scorer child reads its requests through here.
//
//   POISE_SCORER_FAULT=text               a completion that holds "[fault KIND]" gets that fault; KIND none: none
//   POISE_SCORER_FAULT=KIND[+KIND...]:SHARE[:SEED]
//                                         SHARE of 1,000 completions, chosen by (seed, group, index), get a fault, each
//                                         one of these kinds
//   POISE_SCORER_FAULT=start              every scorer ends as soon as it is started
//   POISE_SCORER_FAULT_LOG=FILE           gets a line "GROUP INDEX KIND" for each fault (again where it is tried again)
//
// What a kind does stands at its function; `kinds` below says which outcome must follow.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

// getline, and what an optimising build makes of it.
extern ssize_t __real___getdelim(char **line, size_t *capacity, int end, FILE *file);
extern ssize_t __wrap___getdelim(char **line, size_t *capacity, int end, FILE *file);
extern ssize_t __wrap_getline(char **line, size_t *capacity, FILE *file);

static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(9);
}
static _Noreturn void forever(void) {
    for (;;) pause();
}
static void deaf(void) {
    for (int number = 1; number < 32; number++) signal(number, SIG_IGN);
}

// ---- ERROR ----
static void fault_crash(void) {
    signal(SIGSEGV, SIG_DFL); // sanitizers take it otherwise
    raise(SIGSEGV);
}
static void fault_exit(void) {
    _exit(3);
}
static void fault_garbage(void) {
    say("\x01\xff{]}NaN\n");
}
static void fault_flood(void) { // an answer without an end
    for (;;) say("{\"ok\":true,\"tag\":0.25,\"tag\":0.25,\"tag\":0.25,\"tag\":0.25,");
}
static void fault_memory(void) {
    for (size_t size = (size_t)1 << 22;;) {
        char *more = malloc(size);
        if (!more) {
            dprintf(2, "out of memory\n");
            _exit(4);
        }
        memset(more, 1, size);
    }
}
static void fault_close(void) {
    close(0);
    close(1);
    forever();
}
static void fault_stale(void) { // another completion's answer
    say("{\"ok\":true,\"tag\":1,\"answer\":1,\"length\":1,\"serial\":123456,\"index\":0}\n");
    forever();
}
// ---- TIMEOUT ----
static void fault_hang(void) {
    forever();
}
static void fault_deaf(void) { // ignores all that can be ignored, and keeps a core busy
    deaf();
    for (volatile uint64_t turns = 0;; turns++) {
    }
}
static void fault_half(void) { // begins an answer
    say("{\"ok\":true,");
    forever();
}
static void fault_fork(void) { // children, and grandchildren that leave group and session
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            deaf();
            if (!fork()) setsid();
            forever();
        }
    forever();
}
static void fault_stop(void) {
    raise(SIGSTOP);
}
// ---- OK: the answer is given, and what comes with it must do no harm ----
static void fault_daemon(void) { // one process in the background, one that stays a child
    pid_t middle = fork();
    if (!middle) {
        setsid();
        if (fork() > 0) _exit(0);
        deaf();
        forever();
    }
    if (!fork()) {
        deaf();
        forever();
    }
}
static void fault_chatter(void) { // far more on its standard error than a pipe holds
    char line[1000];
    memset(line, 'x', sizeof(line));
    for (int i = 0; i < 4000; i++)
        if (write(2, line, sizeof(line)) < 0) return;
}

static const struct {
    const char *name;
    void (*act)(void);
} kinds[] = {{"crash", fault_crash},   {"exit", fault_exit},      {"garbage", fault_garbage}, {"flood", fault_flood},
             {"memory", fault_memory}, {"close", fault_close},    {"stale", fault_stale},     {"hang", fault_hang},
             {"deaf", fault_deaf},     {"half", fault_half},      {"fork", fault_fork},       {"stop", fault_stop},
             {"daemon", fault_daemon}, {"chatter", fault_chatter}};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static int kind_find(const char *name, size_t length) {
    for (int k = 0; k < KINDS; k++)
        if (strlen(kinds[k].name) == length && !strncmp(kinds[k].name, name, length)) return k;
    dprintf(2, "POISE_SCORER_FAULT: there is no fault '%.*s'\n", (int)length, name);
    _exit(99);
}

// splitmix64
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// The fault of a request; -1: none.
static int kind_choose(const char *plan, const char *line, uint64_t serial, uint64_t index) {
    if (!strcmp(plan, "text")) {
        const char *mark = strstr(line, "[fault ");
        return mark && strncmp(mark + 7, "none]", 5) != 0 ? kind_find(mark + 7, strcspn(mark + 7, "]")) : -1;
    }
    const char *share = strchr(plan, ':'), *seed = share ? strchr(share + 1, ':') : NULL;
    if (!share) return -1;
    uint64_t number = mix(mix(serial * 4096 + index) ^ (seed ? strtoull(seed + 1, NULL, 10) : 0));
    if (number % 1000 >= strtoull(share + 1, NULL, 10)) return -1;
    int names = 1;
    for (const char *at = plan; at < share; at++) names += *at == '+';
    const char *name = plan;
    for (int skip = (int)(number / 1000 % (uint64_t)names); skip > 0; skip--) name = strchr(name, '+') + 1;
    return kind_find(name, strcspn(name, "+:"));
}

ssize_t __wrap_getline(char **line, size_t *capacity, FILE *file) {
    return __wrap___getdelim(line, capacity, '\n', file);
}

ssize_t __wrap___getdelim(char **line, size_t *capacity, int end, FILE *file) {
    const char *plan = file == stdin ? getenv("POISE_SCORER_FAULT") : NULL, *log = getenv("POISE_SCORER_FAULT_LOG");
    if (plan && !strcmp(plan, "start")) _exit(7);
    ssize_t length = __real___getdelim(line, capacity, end, file);
    if (!plan || length <= 0) return length;
    const char *serial = strstr(*line, "\"serial\":"), *index = strstr(*line, "\"index\":");
    uint64_t s = serial ? strtoull(serial + 9, NULL, 10) : 0, i = index ? strtoull(index + 8, NULL, 10) : 0;
    int kind = kind_choose(plan, *line, s, i);
    if (kind < 0) return length;
    int out = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    if (out >= 0) {
        dprintf(out, "%llu %llu %s\n", (unsigned long long)s, (unsigned long long)i, kinds[kind].name);
        close(out);
    }
    kinds[kind].act();
    return length;
}
