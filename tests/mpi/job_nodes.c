// ranks: 4
// A job whose ranks are on two nodes (two host names): keys are made, the hub listens on every interface, links join it
// encrypted. Needs the right to rename its own UTS namespace; without it the test says so and passes.
#include "common/comm/job.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct context {
    comm_t *world;
    config_t config;
    int failures;
} context_t;

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "rank %d: %s:%d: %s does not hold\n", comm_world_rank(context->world), __FILE__, __LINE__, \
                    #condition);                                                                                       \
            context->failures++;                                                                                       \
        }                                                                                                              \
    } while (0)

// The last rank keeps the real name: the others must be able to connect to it.
static bool rename_node(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank || atoi(rank) > 1) return true;
    return unshare(CLONE_NEWUTS) == 0 && sethostname("another-node", 12) == 0;
}

static status_t check_keys(context_t *context, const job_t *job) {
    char **keys = NULL;
    EXPECT(job->public_key && strlen(job->public_key) == 40 && job->secret_key && strlen(job->secret_key) == 40);
    EXPECT(strcmp(job->public_key, job->secret_key) != 0);
    TRY(comm_gather_strings(context->world, job->secret_key, &keys, "comparing keys"));
    for (int r = 0; r < 4; r++) {
        EXPECT(strcmp(keys[r], job->secret_key) == 0);
        free(keys[r]);
    }
    free(keys);
    EXPECT(strcmp(job_bind_endpoint(job), "tcp://*:*") == 0);
    return STATUS_OK;
}

static status_t serve(context_t *context, job_t *job) {
    link_options_t options = job_link_options(job);
    hub_t *hub = NULL;
    status_t status = hub_open(job_bind_endpoint(job), &options, &hub);
    if (status) return status_first(status, job_share_endpoint(job, NULL));
    EXPECT(!strstr(hub_endpoint(hub), "0.0.0.0"));
    TRY(job_share_endpoint(job, hub_endpoint(hub)));
    int joined = 0, gone = 0, messages = 0;
    while (gone < 3) {
        hub_event_t event;
        TRY(hub_receive(hub, 20, &event));
        if (event.kind == HUB_NOTHING) break;
        joined += event.kind == HUB_JOINED;
        gone += event.kind == HUB_GONE;
        messages += event.kind == HUB_MESSAGE;
        link_buffer_free(&event.message);
    }
    EXPECT(joined == 3 && messages == 3 && gone == 3);
    hub_close(hub);
    return STATUS_OK;
}

static status_t join(context_t *context, job_t *job) {
    link_options_t options = job_link_options(job);
    link_t *link = NULL;
    char name[32];
    link_buffer_t hello = {.size = 5}, message = {.size = 4};
    TRY(job_share_endpoint(job, NULL));
    snprintf(name, sizeof(name), "rank-%d", comm_rank(context->world));
    TRY(memory_copy_string("hello", (char **)&hello.data));
    TRY(link_open(job->coordinator_endpoint, name, hello, 20, &options, &link));
    TRY(memory_copy_string("data", (char **)&message.data));
    TRY(link_send(link, message, 10));
    link_close(link);
    return STATUS_OK;
}

static status_t run(context_t *context, bool renamed) {
    job_t job;
    context->config.deadline.start_s = context->config.deadline.collective_s = 30;
    context->config.deadline.heartbeat_s = 10;
    TRY(comm_open_world(30, NULL, &context->world));
    int64_t all_renamed = renamed;
    TRY(comm_all_reduce_i64(context->world, &all_renamed, 1, COMM_MIN, "renaming"));
    if (!all_renamed) {
        if (comm_rank(context->world) == 0) printf("skipped: hosts cannot be renamed here\n");
        return STATUS_OK;
    }
    EXPECT(comm_hosts(context->world) == 2);
    EXPECT(comm_local_rank(context->world) == comm_rank(context->world) % 2);
    TRY(job_open(&context->config, context->world, true, "poise", &job));
    TRY(check_keys(context, &job));
    TRY(job.role == ROLE_REWARD ? serve(context, &job) : join(context, &job));
    job_close(&job);
    int64_t failures = context->failures;
    TRY(comm_all_reduce_i64(context->world, &failures, 1, COMM_SUM, "counting failures"));
    context->failures = (int)failures;
    return STATUS_OK;
}

int main(void) {
    context_t context = {0};
    bool renamed = rename_node();
    status_t status = run(&context, renamed);
    if (status) status_print(status, stderr, context.world ? comm_rank(context.world) : -1, true);
    if (status) comm_abandon(1);
    status = comm_close_world(context.world);
    if (status) status_print(status, stderr, -1, true);
    return status || context.failures;
}
