// Workers that poise_faults makes go wrong at a moment chosen from outside, by signals to their process (they are no
// faults of the Nth call: they are about what the worker is at). Only with POISE_STUCK=1 in the environment.
//
//   RTMIN+1  stuck: the work loop stops inside the engine; heartbeats go on
//   RTMIN+2  idle: the work loop goes on, the engine does nothing any more
//   RTMIN+3  dies (SIGKILL) when a group is partly delivered: after its first completions, before its last
//
// A worker that has sent its first completion says so by an empty file of its process id in the folder POISE_WORKING.
#include "common/wire/message.h"
#include "rollout/engine.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

extern status_t __real_engine_step(engine_t *engine, engine_sink_t sink, void *context);
extern status_t __wrap_engine_step(engine_t *engine, engine_sink_t sink, void *context);
extern status_t __real_link_send(link_t *link, link_buffer_t message, double deadline_s);
extern status_t __wrap_link_send(link_t *link, link_buffer_t message, double deadline_s);

enum { SERIALS = 256 };
static atomic_int mode;
static bool listens;
static int sent[SERIALS]; // completions of a group, by serial
static uint64_t whose[SERIALS];

static void on_signal(int number) {
    atomic_store(&mode, number - SIGRTMIN);
}

__attribute__((constructor)) static void stuck_open(void) {
    listens = getenv("POISE_STUCK") != NULL;
    for (int i = 1; i <= 3 && listens; i++) signal(SIGRTMIN + i, on_signal);
}

status_t __wrap_engine_step(engine_t *engine, engine_sink_t sink, void *context) {
    while (atomic_load(&mode) == 1 && engine_pending(engine)) pause();
    if (atomic_load(&mode) == 2 && engine_pending(engine)) {
        usleep(2000);
        return STATUS_OK;
    }
    return __real_engine_step(engine, sink, context);
}

static void say_working(void) {
    static bool said;
    const char *folder = getenv("POISE_WORKING");
    char path[4096];
    if (said || !folder) return;
    said = true;
    snprintf(path, sizeof(path), "%s/%ld", folder, (long)getpid());
    int file = creat(path, 0600);
    if (file >= 0) close(file);
}

status_t __wrap_link_send(link_t *link, link_buffer_t message, double deadline_s) {
    if (!listens) return __real_link_send(link, message, deadline_s);
    message_t content = {0};
    bool dies = false;
    status_t status = message_unpack(message.data, message.size, &content);
    if (status) {
        status_free(status);
    } else if (content.type == MESSAGE_COMPLETION) {
        uint64_t serial = content.completion.serial, place = serial % SERIALS;
        if (whose[place] != serial) sent[place] = 0;
        whose[place] = serial;
        say_working();
        dies = ++sent[place] < 3 && atomic_load(&mode) == 3;
        message_free(&content);
    } else {
        message_free(&content);
    }
    status = __real_link_send(link, message, deadline_s);
    if (dies) {
        usleep(50000); // so that what was sent arrives
        raise(SIGKILL);
    }
    return status;
}
