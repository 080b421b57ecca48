#include "rollout/reward/scorer.h"

#include "common/comm/job.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { LONGEST_ANSWER = 4096 };

typedef struct child {
    pid_t pid; // 0: not running
    int socket;
    bool busy;
    double started;
    uint64_t serial;
    int32_t index;
    char *request; // what is still to be written
    size_t request_size, request_sent;
    char answer[LONGEST_ANSWER];
    size_t answer_size;
} child_t;

struct scorer_pool {
    scorer_options_t options;
    child_t *child;
    struct pollfd *poll;
};

static status_t child_spawn(const scorer_options_t *options, child_t *child) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        FAIL(STATUS_FAILED, "cannot make a socket pair for a scorer: %s", strerror(errno));
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 0);
    posix_spawn_file_actions_adddup2(&actions, pair[1], 1);
    posix_spawnattr_init(&attributes);
    // A group of its own, so that what a scorer forks dies with it; and no blocked signals from this process.
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    char name[] = "poise", command[] = "__scorer";
    char *arguments[] = {name, command, NULL};
    int error = posix_spawn(&child->pid, options->program, &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(pair[1]);
    if (error) {
        close(pair[0]);
        child->pid = 0;
        FAIL(STATUS_FAILED, "cannot start a scorer (%s): %s", options->program, strerror(error));
    }
    struct rlimit limit = {.rlim_cur = (rlim_t)options->memory_mb << 20, .rlim_max = (rlim_t)options->memory_mb << 20};
    prlimit(child->pid, RLIMIT_AS, &limit, NULL);
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    child->socket = pair[0];
    child->busy = false;
    return STATUS_OK;
}

static void child_kill(child_t *child) {
    if (!child->pid) return;
    kill(-child->pid, SIGKILL);
    kill(child->pid, SIGKILL);
    while (waitpid(child->pid, NULL, 0) < 0 && errno == EINTR) {
    }
    close(child->socket);
    free(child->request);
    *child = (child_t){.socket = -1};
}

status_t scorer_pool_open(const scorer_options_t *options, scorer_pool_t **out) {
    scorer_pool_t *pool;
    *out = NULL;
    TRY(ALLOCATE(&pool, 1));
    pool->options = *options;
    status_t status = ALLOCATE(&pool->child, options->scorers);
    if (!status) status = ALLOCATE(&pool->poll, options->scorers);
    for (int i = 0; !status && i < options->scorers; i++) status = child_spawn(options, &pool->child[i]);
    if (status) {
        scorer_pool_close(pool);
        return status;
    }
    *out = pool;
    return STATUS_OK;
}

void scorer_pool_close(scorer_pool_t *pool) {
    if (!pool) return;
    for (int i = 0; pool->child && i < pool->options.scorers; i++) child_kill(&pool->child[i]);
    free(pool->child);
    free(pool->poll);
    free(pool);
}

static child_t *pool_idle(const scorer_pool_t *pool) {
    for (int i = 0; i < pool->options.scorers; i++)
        if (!pool->child[i].busy) return &pool->child[i];
    return NULL;
}

bool scorer_pool_free(const scorer_pool_t *pool) {
    return pool_idle(pool) != NULL;
}

bool scorer_pool_busy(const scorer_pool_t *pool) {
    for (int i = 0; i < pool->options.scorers; i++)
        if (pool->child[i].busy) return true;
    return false;
}

// Writes what the socket takes. false: the child is gone.
static bool child_write(child_t *child) {
    while (child->request_sent < child->request_size) {
        ssize_t n = send(child->socket, child->request + child->request_sent, child->request_size - child->request_sent,
                         MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        child->request_sent += (size_t)n;
    }
    return true;
}

status_t scorer_submit(scorer_pool_t *pool, uint64_t serial, int32_t index, const reward_input_t *input) {
    child_t *child = pool_idle(pool);
    if (!child) FAIL(STATUS_INVALID, "no scorer is free");
    json_t *options = json_array();
    for (int i = 0; options && i < input->option_count; i++)
        json_array_append_new(options, json_string(input->options[i]));
    json_t *request =
        json_pack("{s:s, s:s?, s:s, s:o, s:b, s:i, s:i}", "completion", input->completion, "answer", input->answer,
                  "kind", input->kind, "options", options, "strict", input->tag_style == TAG_STRICT_NEWLINE, "tokens",
                  input->tokens, "budget", input->budget);
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (!text) FAIL(STATUS_INVALID, "the completion or its sample is not valid UTF-8, or memory is short");
    if (!child->pid) {
        status_t status = child_spawn(&pool->options, child);
        if (status) {
            free(text);
            return status;
        }
    }
    size_t size = strlen(text);
    text[size++] = '\n'; // over the terminating 0: the length is kept apart
    free(child->request);
    child->request = text;
    child->request_size = size;
    child->request_sent = child->answer_size = 0;
    child->busy = true;
    child->started = clock_seconds();
    child->serial = serial;
    child->index = index;
    child_write(child); // a child that is gone shows when its answer is waited for
    return STATUS_OK;
}

// Parses a child's answer line into the result.
static void child_parse(const scorer_pool_t *pool, const child_t *child, scorer_result_t *out) {
    json_t *answer = json_loadb(child->answer, child->answer_size, 0, NULL);
    const json_t *tag = json_object_get(answer, "tag"), *match = json_object_get(answer, "answer"),
                 *length = json_object_get(answer, "length");
    if (json_is_true(json_object_get(answer, "ok")) && json_is_number(tag) && json_is_number(match) &&
        json_is_number(length)) {
        out->outcome = REWARD_OK;
        out->tag = json_number_value(tag);
        out->answer = json_number_value(match);
        out->reward = pool->options.tag_weight * out->tag + pool->options.answer_weight * out->answer +
                      pool->options.length_weight * json_number_value(length);
        // What is not a number would make the whole group's advantages none.
        if (!isfinite(out->reward)) {
            out->outcome = REWARD_ERROR;
            snprintf(out->why, sizeof(out->why), "the reward is NaN or infinite");
        }
    } else {
        const char *why = json_string_value(json_object_get(answer, "why"));
        out->outcome = REWARD_ERROR;
        snprintf(out->why, sizeof(out->why), "%.150s", why ? why : "the scorer's answer makes no sense");
    }
    json_decref(answer);
}

// Looks at one busy child. true: it has a result (possibly its end).
static bool child_finished(scorer_pool_t *pool, child_t *child, scorer_result_t *out) {
    bool alive = child_write(child), complete = false;
    while (alive && !complete) {
        size_t room = sizeof(child->answer) - child->answer_size;
        ssize_t n = room ? recv(child->socket, child->answer + child->answer_size, room, 0) : 0;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) {
            alive = false;
            break;
        }
        child->answer_size += (size_t)n;
        complete = child->answer[child->answer_size - 1] == '\n';
    }
    bool late = !complete && alive && clock_seconds() - child->started > pool->options.timeout_s;
    if (!complete && alive && !late) return false;
    *out = (scorer_result_t){.serial = child->serial, .index = child->index};
    if (complete) {
        child_parse(pool, child, out);
        child->busy = false;
        return true;
    }
    out->outcome = late ? REWARD_TIMEOUT : REWARD_ERROR;
    if (late)
        snprintf(out->why, sizeof(out->why), "not scored within %g s", pool->options.timeout_s);
    else
        snprintf(out->why, sizeof(out->why), "the scorer ended without an answer");
    child_kill(child); // the next request starts another
    return true;
}

status_t scorer_take(scorer_pool_t *pool, double wait_s, scorer_result_t *out, bool *have) {
    double until = clock_seconds() + wait_s;
    *have = false;
    for (;;) {
        int waiting = 0;
        for (int i = 0; i < pool->options.scorers; i++) {
            child_t *child = &pool->child[i];
            if (!child->busy) continue;
            if (child_finished(pool, child, out)) {
                *have = true;
                return STATUS_OK;
            }
            bool unsent = child->request_sent < child->request_size;
            pool->poll[waiting++] =
                (struct pollfd){.fd = child->socket, .events = (short)(POLLIN | (unsent ? POLLOUT : 0))};
        }
        double left = until - clock_seconds();
        if (!waiting || left <= 0) return STATUS_OK;
        poll(pool->poll, (nfds_t)waiting, left > 0.05 ? 50 : (int)(left * 1e3) + 1);
    }
}
