#include "rollout/reward/scorer.h"

#include "common/comm/job.h"
#include "common/text/utf8.h"
#include "rollout/reward/scorer_process.h"
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LONGEST_ANSWER = 4096, LONGEST_MESSAGE = 80, DRAINED_AT_ONCE = 1 << 20 };

typedef struct child {
    scorer_process_t process;
    bool busy;
    bool refused;     // the request could not be made: its outcome is an error, without the child
    int64_t answered; // requests, since the process was started
    double started;
    uint64_t serial;
    int32_t index;
    char *request; // what is still to be written
    size_t request_size, request_sent;
    char answer[LONGEST_ANSWER];
    size_t answer_size;
    char said[LONGEST_MESSAGE + 1]; // begin of what it wrote to its standard error since the request
    size_t said_size;
} child_t;

struct scorer_pool {
    scorer_options_t options;
    scorer_orphans_t orphans;
    bool adopting; // orphans is open
    child_t *child;
    struct pollfd *poll; // [2 * scorers]
    pid_t *known;        // [scorers]
};

static status_t child_start(const scorer_pool_t *pool, child_t *child) {
    child->answered = 0;
    return scorer_process_start(pool->options.program, pool->options.memory_mb, &child->process);
}

// Ends what scorers have left behind, or put into the background.
static void pool_sweep(scorer_pool_t *pool) {
    size_t known = 0;
    for (int i = 0; i < pool->options.scorers; i++)
        if (pool->child[i].process.pid) pool->known[known++] = pool->child[i].process.pid;
    if (pool->adopting) scorer_orphans_end(&pool->orphans, pool->known, known);
}

// Ends the child and whatever it has started. how: as scorer_process_end.
static void child_end(scorer_pool_t *pool, child_t *child, char how[64]) {
    scorer_process_end(&child->process, how);
    pool_sweep(pool);
}

static void child_forget(child_t *child) {
    free(child->request);
    child->request = NULL;
    child->request_size = child->request_sent = child->answer_size = child->said_size = 0;
    child->busy = child->refused = false;
}

status_t scorer_pool_open(const scorer_options_t *options, scorer_pool_t **out) {
    scorer_pool_t *pool;
    *out = NULL;
    TRY(ALLOCATE(&pool, 1));
    pool->options = *options;
    status_t status = ALLOCATE(&pool->child, options->scorers);
    if (!status) status = ALLOCATE(&pool->poll, 2 * (size_t)options->scorers);
    if (!status) status = ALLOCATE(&pool->known, options->scorers);
    if (!status) status = scorer_orphans_open(&pool->orphans);
    pool->adopting = !status;
    for (int i = 0; !status && i < options->scorers; i++)
        pool->child[i].process = (scorer_process_t){.socket = -1, .messages = -1};
    for (int i = 0; !status && i < options->scorers; i++) status = child_start(pool, &pool->child[i]);
    if (status) {
        scorer_pool_close(pool);
        return status;
    }
    *out = pool;
    return STATUS_OK;
}

void scorer_pool_close(scorer_pool_t *pool) {
    if (!pool) return;
    for (int i = 0; pool->child && pool->known && i < pool->options.scorers; i++) {
        if (pool->child[i].process.pid) child_end(pool, &pool->child[i], NULL);
        child_forget(&pool->child[i]);
    }
    if (pool->adopting) scorer_orphans_close(&pool->orphans);
    free(pool->child);
    free(pool->poll);
    free(pool->known);
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

// ---- requests ----

// A copy in which every byte that is not UTF-8 is U+FFFD, as decoding a completion would have it.
static status_t clean_text(const char *text, char **out) {
    size_t length = strlen(text), used = 0;
    TRY(ALLOCATE(out, 3 * length + 1));
    for (size_t at = 0; at < length;) {
        size_t bad = 1, step = utf8_next(text + at, length - at, NULL, &bad, NULL);
        if (step) {
            memcpy(*out + used, text + at, step);
            used += step;
            at += step;
            continue;
        }
        memcpy(*out + used, "\xef\xbf\xbd", 3);
        used += 3;
        at += bad;
    }
    return STATUS_OK;
}

// The request as a line; NULL when the sample's own texts are not UTF-8 or memory is short.
static char *request_line(uint64_t serial, int32_t index, const char *completion, const reward_input_t *input,
                          size_t *size) {
    json_t *options = json_array();
    // Without one of its options a sample is another question.
    for (int i = 0; options && i < input->option_count; i++) {
        if (!json_array_append_new(options, json_string(input->options[i]))) continue;
        json_decref(options);
        return NULL;
    }
    json_t *request =
        json_pack("{s:I, s:i, s:s, s:s?, s:s, s:o, s:b, s:i, s:i}", "serial", (json_int_t)serial, "index", (int)index,
                  "completion", completion, "answer", input->answer, "kind", input->kind, "options", options, "strict",
                  input->tag_style == TAG_STRICT_NEWLINE, "tokens", input->tokens, "budget", input->budget);
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (!text) return NULL;
    *size = strlen(text);
    text[(*size)++] = '\n'; // over the terminating 0: the length is kept apart
    return text;
}

// Takes what the child has written to its standard error: a scorer that talks must not stand still over it.
static void child_drain(child_t *child) {
    char data[4096];
    for (size_t taken = 0; taken < DRAINED_AT_ONCE;) {
        ssize_t n = child->process.messages >= 0 ? read(child->process.messages, data, sizeof(data)) : -1;
        if (n == 0) { // it has closed it: nothing is to be waited for any more
            close(child->process.messages);
            child->process.messages = -1;
        }
        if (n <= 0) return;
        taken += (size_t)n;
        for (ssize_t i = 0; i < n && child->said_size < LONGEST_MESSAGE; i++) {
            bool blank = (unsigned char)data[i] < ' ' || (unsigned char)data[i] >= 127;
            if (blank && (!child->said_size || child->said[child->said_size - 1] == ' ')) continue;
            child->said[child->said_size++] = blank ? ' ' : data[i];
        }
    }
}

// Writes what the socket takes. false: the child is gone.
static bool child_write(child_t *child) {
    while (child->request_sent < child->request_size) {
        ssize_t n = send(child->process.socket, child->request + child->request_sent,
                         child->request_size - child->request_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
        child->request_sent += (size_t)n;
    }
    return true;
}

// Whether an idle child can be given a request: it has not ended meanwhile, and said nothing that it was not asked.
static bool child_usable(const child_t *child) {
    char byte;
    if (!child->process.pid) return false;
    ssize_t n = recv(child->process.socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

// Gives the child its request, in a fresh process where the old one will not do.
static status_t child_ask(scorer_pool_t *pool, child_t *child) {
    if (!child_usable(child)) {
        if (child->process.pid) child_end(pool, child, NULL);
        TRY(child_start(pool, child));
    }
    child_drain(child);
    child->request_sent = child->answer_size = child->said_size = 0;
    child->started = clock_seconds();
    child_write(child); // a child that is gone shows when its answer is waited for
    return STATUS_OK;
}

status_t scorer_submit(scorer_pool_t *pool, uint64_t serial, int32_t index, const reward_input_t *input) {
    child_t *child = pool_idle(pool);
    char *completion;
    if (!child) FAIL(STATUS_INVALID, "no scorer is free");
    TRY(clean_text(input->completion, &completion));
    child_forget(child);
    child->serial = serial;
    child->index = index;
    child->request = request_line(serial, index, completion, input, &child->request_size);
    free(completion);
    child->refused = !child->request;
    if (!child->refused) TRY(child_ask(pool, child));
    child->busy = true;
    return STATUS_OK;
}

// ---- results ----

static bool is_score(const json_t *value) {
    return json_is_number(value) && json_number_value(value) >= 0 && json_number_value(value) <= 1;
}

// Parses a child's answer line. false: it is no answer to this request.
static bool child_parse(const scorer_pool_t *pool, const child_t *child, scorer_result_t *out) {
    json_t *answer = json_loadb(child->answer, child->answer_size, 0, NULL);
    const json_t *tag = json_object_get(answer, "tag"), *match = json_object_get(answer, "answer"),
                 *length = json_object_get(answer, "length"), *serial = json_object_get(answer, "serial"),
                 *index = json_object_get(answer, "index"), *good = json_object_get(answer, "ok");
    const char *why = json_string_value(json_object_get(answer, "why"));
    bool mine = json_is_integer(serial) && (uint64_t)json_integer_value(serial) == child->serial &&
                json_is_integer(index) && json_integer_value(index) == child->index;
    bool scored = mine && json_is_true(good) && is_score(tag) && is_score(match) && is_score(length);
    bool failed = mine && json_is_false(good) && why;
    if (scored) {
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
    }
    if (failed) {
        out->outcome = REWARD_ERROR;
        snprintf(out->why, sizeof(out->why), "%.150s", why);
    }
    json_decref(answer);
    return scored || failed;
}

typedef enum look { LOOK_WAITING, LOOK_ANSWERED, LOOK_FAILED } look_t;

// Reads what the child has answered. LOOK_FAILED: there will be no answer; `why` says so.
static look_t child_look(child_t *child, const char **why) {
    bool alive = child_write(child);
    *why = "it has closed its connection";
    while (alive) {
        size_t room = sizeof(child->answer) - child->answer_size;
        *why = "its answer has no end";
        if (!room) return LOOK_FAILED;
        ssize_t n = recv(child->process.socket, child->answer + child->answer_size, room, 0);
        *why = "it has closed its connection";
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return LOOK_WAITING;
        if (n <= 0) return LOOK_FAILED;
        child->answer_size += (size_t)n;
        if (child->answer[child->answer_size - 1] == '\n') return LOOK_ANSWERED;
    }
    return LOOK_FAILED;
}

// What the child did instead of answering, for the user; ends it.
static void child_blame(scorer_pool_t *pool, child_t *child, const char *why, char *out, size_t size) {
    char how[64];
    child_drain(child);
    child_end(pool, child, how);
    child->said[child->said_size] = 0;
    // How a process ended says more than that its connection closed.
    snprintf(out, size, "the scorer failed: %s%s%s%s", *how ? "it " : why, how, child->said_size ? "; it said: " : "",
             child->said);
}

// Looks at one busy child. *have: it has a result.
static status_t child_finished(scorer_pool_t *pool, child_t *child, scorer_result_t *out, bool *have) {
    const char *why = "";
    *have = true;
    *out = (scorer_result_t){.serial = child->serial, .index = child->index, .outcome = REWARD_ERROR};
    if (child->refused) {
        snprintf(out->why, sizeof(out->why), "its sample's texts are not valid UTF-8, or memory is short");
        child_forget(child);
        return STATUS_OK;
    }
    child_drain(child);
    look_t look = child_look(child, &why);
    if (look == LOOK_ANSWERED && child_parse(pool, child, out)) {
        child->answered++;
        child_forget(child);
        // Nothing may go on behind an answer that was given.
        if (scorer_process_has_children(&child->process))
            child_end(pool, child, NULL);
        else
            pool_sweep(pool);
        return STATUS_OK;
    }
    if (look == LOOK_ANSWERED) why = "its answer makes no sense";
    bool late = look == LOOK_WAITING && clock_seconds() - child->started > pool->options.timeout_s;
    if (look == LOOK_WAITING && !late) {
        *have = false;
        return STATUS_OK;
    }
    if (!late && child->answered) {
        // It may have been an earlier completion that did it harm: a fresh process tells, so that an outcome does not
        // depend on what was scored before.
        child_end(pool, child, NULL);
        *have = false;
        return child_ask(pool, child);
    }
    if (late) {
        out->outcome = REWARD_TIMEOUT;
        snprintf(out->why, sizeof(out->why), "not scored within %g s", pool->options.timeout_s);
        child_end(pool, child, NULL);
    } else {
        child_blame(pool, child, why, out->why, sizeof(out->why));
    }
    child_forget(child); // the next request starts another process
    return STATUS_OK;
}

status_t scorer_take(scorer_pool_t *pool, double wait_s, scorer_result_t *out, bool *have) {
    double until = clock_seconds() + wait_s;
    *have = false;
    for (;;) {
        nfds_t waiting = 0;
        for (int i = 0; i < pool->options.scorers; i++) {
            child_t *child = &pool->child[i];
            if (!child->busy) continue;
            TRY(child_finished(pool, child, out, have));
            if (*have) return STATUS_OK;
            bool unsent = child->request_sent < child->request_size;
            pool->poll[waiting++] =
                (struct pollfd){.fd = child->process.socket, .events = (short)(POLLIN | (unsent ? POLLOUT : 0))};
            pool->poll[waiting++] = (struct pollfd){.fd = child->process.messages, .events = POLLIN};
        }
        double left = until - clock_seconds();
        if (!waiting || left <= 0) return STATUS_OK;
        poll(pool->poll, waiting, left > 0.05 ? 50 : (int)(left * 1e3) + 1);
    }
}
