// Before the ranks have joined: those of one machine ask each other over Unix datagrams who hangs, so that a start that
// is overdue ends with one sentence that names the rank. Abstract names: whatever becomes of the processes, nothing
// stays behind. Ranks of other machines are not asked; each machine says its own sentence.
#include "common/comm/watch_internal.h"

#include "common/comm/clock.h"
#include "common/comm/comm.h"
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST_RANKS = 65536 };
// How long the others have to answer, and how long one that another speaks for waits to hear that it has.
static const double answer_s = 1.5, verdict_s = 5.0;

static socklen_t local_address(int rank, struct sockaddr_un *out) {
    const char *job = getenv("OMPI_MCA_ess_base_jobid"), *step = getenv("SLURM_STEP_ID");
    if (!job) job = getenv("SLURM_JOB_ID");
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    // The first byte stays 0: a name that is no file.
    int length = snprintf(out->sun_path + 1, sizeof(out->sun_path) - 1, "poise-watch.%u.%s.%s.%d", (unsigned)geteuid(),
                          job ? job : "-", step ? step : "-", rank);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

void watch_local_open(watch_t *watch) {
    struct sockaddr_un address;
    int on = 1;
    watch->local = -1;
    watch->local_size = comm_launcher_size();
    if (watch->rank < 0 || watch->local_size < 2 || watch->local_size > MOST_RANKS) return;
    socklen_t length = local_address(watch->rank, &address);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return;
    if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0 ||
        bind(fd, (struct sockaddr *)&address, length) != 0)
        close(fd);
    else
        watch->local = fd;
}

void watch_local_close(watch_t *watch) {
    if (watch->local >= 0) close(watch->local);
    watch->local = -1;
}

static bool local_send(const watch_t *watch, int to, local_kind_t kind) {
    struct sockaddr_un address;
    socklen_t length = local_address(to, &address);
    local_message_t message = {
        .kind = (int32_t)kind, .rank = watch->rank, .waits = atomic_load(&((watch_t *)(uintptr_t)watch)->waits)};
    snprintf(message.phase, sizeof(message.phase), "%s", watch_where((watch_t *)(uintptr_t)watch).name);
    return sendto(watch->local, &message, sizeof(message), 0, (struct sockaddr *)&address, length) ==
           (ssize_t)sizeof(message);
}

// One message of this user's, or false. Others could otherwise end the job.
static bool local_receive(watch_t *watch, local_message_t *out) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char bytes[sizeof(*out) + 1]; // one more, so that a longer one is seen to be
    struct iovec data = {bytes, sizeof(bytes)};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    for (;;) {
        message.msg_controllen = sizeof(control);
        ssize_t size = recvmsg(watch->local, &message, MSG_CMSG_CLOEXEC);
        if (size < 0) return false;
        const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        struct ucred sender;
        if (!header || header->cmsg_type != SCM_CREDENTIALS || header->cmsg_len != CMSG_LEN(sizeof(sender))) continue;
        memcpy(&sender, CMSG_DATA(header), sizeof(sender));
        if (sender.uid != geteuid()) continue;
        if (local_message_read(bytes, (size_t)size, watch->local_size, watch->rank, out)) return true;
    }
}

// Takes what has come until `until`: answers those that ask, notes answers in `view` (may be NULL), and ends the
// process when another rank has spoken for the job.
static void local_take(watch_t *watch, double until, local_view_t *view) {
    local_message_t message;
    for (;;) {
        while (local_receive(watch, &message)) {
            if (message.kind == LOCAL_SAID) watch_exit(watch, 1);
            if (message.kind == LOCAL_ASK) local_send(watch, message.rank, LOCAL_ANSWER);
            if (message.kind != LOCAL_ANSWER || !view) continue;
            view[message.rank].state = message.waits ? LOCAL_WAITS : LOCAL_HANGS;
            memcpy(view[message.rank].phase, message.phase, PHASE_BYTES);
        }
        double left = until - clock_seconds();
        if (left <= 0) return;
        struct pollfd wait = {.fd = watch->local, .events = POLLIN};
        poll(&wait, 1, (int)(left * 1e3) + 1);
    }
}

void watch_local_turn(watch_t *watch) {
    if (watch->local >= 0) local_take(watch, 0, NULL);
}

// The lowest rank of the best state speaks: one that waits, else one that hangs.
int watch_local_speaker(const local_view_t *view, int size) {
    for (local_state_t state = LOCAL_WAITS; state >= LOCAL_HANGS; state--)
        for (int rank = 0; rank < size; rank++)
            if (view[rank].state == state) return rank;
    return -1;
}

// Names who hangs, or stands still, or else is missing: the worst that was found. All of them, but one where all hang.
void watch_local_sentence(const local_view_t *view, int size, const char *where, char *out, size_t bytes) {
    static const char *const what[] = {"is not there (it has died, or runs on another machine)",
                                       "stands still or cannot be reached", "hangs"};
    bool waits = false;
    local_state_t worst = LOCAL_WAITS;
    const local_state_t order[] = {LOCAL_SILENT, LOCAL_HANGS, LOCAL_ABSENT};
    for (int rank = 0; rank < size; rank++) waits |= view[rank].state == LOCAL_WAITS;
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]) && worst == LOCAL_WAITS; i++) {
        // Where none waits, hanging is what all do: inside of MPI's own start, which does not say who is late.
        if (order[i] == LOCAL_HANGS && !waits) continue;
        for (int rank = 0; rank < size; rank++)
            if (view[rank].state == order[i]) worst = order[i];
    }
    if (worst == LOCAL_WAITS) {
        snprintf(out, bytes,
                 "all ranks of this machine wait in \"%s\"; a rank of another machine, or MPI itself, hangs", where);
        return;
    }
    size_t used = 0;
    out[0] = 0;
    for (int rank = 0; rank < size && used < bytes / 2; rank++) {
        if (view[rank].state != worst) continue;
        const char *phase = worst == LOCAL_HANGS ? view[rank].phase : where;
        used += (size_t)snprintf(out + used, bytes - used, "%srank %d %s in \"%s\"", used ? ", " : "", rank,
                                 what[worst], phase);
    }
}

void watch_local_overdue(watch_t *watch, double seconds) {
    char who[SENTENCE_BYTES / 2], sentence[SENTENCE_BYTES];
    local_view_t *view = NULL;
    snprintf(who, sizeof(who), "rank %d waits in \"%s\" for ranks that have died or hang", watch->rank,
             watch_where(watch).name);
    bool asks = watch->local >= 0;
    status_t status = asks ? ALLOCATE(&view, watch->local_size) : STATUS_OK;
    asks = asks && !status;
    status_free(status);
    if (asks) {
        view[watch->rank].state = atomic_load(&watch->waits) ? LOCAL_WAITS : LOCAL_HANGS;
        snprintf(view[watch->rank].phase, PHASE_BYTES, "%s", watch_where(watch).name);
        for (int rank = 0; rank < watch->local_size; rank++)
            if (rank != watch->rank && local_send(watch, rank, LOCAL_ASK)) view[rank].state = LOCAL_SILENT;
        local_take(watch, clock_seconds() + answer_s, view);
        if (watch_local_speaker(view, watch->local_size) != watch->rank)
            local_take(watch, clock_seconds() + verdict_s, NULL); // ends the process when the speaker has spoken
        watch_local_sentence(view, watch->local_size, watch_where(watch).name, who, sizeof(who));
        for (int rank = 0; rank < watch->local_size; rank++)
            if (rank != watch->rank) local_send(watch, rank, LOCAL_SAID);
    }
    free(view);
    snprintf(sentence, sizeof(sentence),
             "%s: nothing has moved for %.0f s; start the run again, or raise deadline.start_s", who, seconds);
    watch_say(watch->rank, sentence);
    watch_tell_launcher(watch, who);
    watch_exit(watch, 1);
}
