// ranks: 4
// Role split and its errors, sharing the coordinator's address, stop requests.
#include "common/comm/job.h"
#include "common/comm/comm_table.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
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

static void set_roles(context_t *context, int learners, int rollouts, bool colocated) {
    context->config.roles.learners = learners;
    context->config.roles.rollouts = rollouts;
    context->config.roles.colocated = colocated;
}

static status_t check_roles(context_t *context, bool grpo, int learners, int rollouts, const char *layout) {
    job_t job;
    int rank = comm_rank(context->world);
    TRY(job_open(&context->config, context->world, grpo, "/bin/poise", &job));
    EXPECT(job.learner_count == learners && job.rollout_count == rollouts);
    role_t wanted = layout[rank] == 'L' ? ROLE_LEARNER : layout[rank] == 'R' ? ROLE_ROLLOUT : ROLE_REWARD;
    EXPECT(job.role == wanted);
    int index = 0;
    for (int r = 0; r < rank; r++) index += layout[r] == layout[rank];
    EXPECT(job.role_index == index);
    EXPECT((job.learners != NULL) == (wanted == ROLE_LEARNER));
    if (job.learners) EXPECT(comm_size(job.learners) == learners && comm_rank(job.learners) == index);
    EXPECT(job.public_key == NULL && strcmp(job_bind_endpoint(&job), "tcp://127.0.0.1:*") == 0);
    EXPECT(job_link_options(&job).heartbeat_s == 3);
    EXPECT(strcmp(job.program, "/bin/poise") == 0);
    if (grpo) {
        EXPECT(job.coordinator_endpoint == NULL);
        TRY(job_share_endpoint(&job, wanted == ROLE_REWARD ? "tcp://127.0.0.1:4711" : NULL));
        EXPECT(strcmp(job.coordinator_endpoint, "tcp://127.0.0.1:4711") == 0);
        status_t status = job_share_endpoint(&job, NULL); // the reward rank could not open its hub
        EXPECT(status && strstr(status_message(status), "reward rank"));
        status_free(status);
    }
    job_close(&job);
    return STATUS_OK;
}

static void check_refused(context_t *context, const char *part) {
    job_t job;
    status_t status = job_open(&context->config, context->world, true, "poise", &job);
    EXPECT(status && status_kind(status) == STATUS_INVALID && strstr(status_message(status), part));
    if (status && !strstr(status_message(status), part)) fprintf(stderr, "said: %s\n", status_message(status));
    status_free(status);
}

static status_t check_stop(context_t *context) {
    job_t job;
    set_roles(context, 0, 0, false);
    TRY(job_open(&context->config, context->world, true, "poise", &job));
    EXPECT(!job_stop_requested(&job));
    kill(getpid(), SIGUSR1);
    for (int i = 0; i < 100 && !job_stop_requested(&job); i++) nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    EXPECT(job_stop_requested(&job));
    EXPECT(job_stop_requested(&job)); // it stays
    job_close(&job);
    return STATUS_OK;
}

static status_t run(context_t *context) {
    TRY(comm_open_world(20, NULL, &context->world));
    context->config.deadline.start_s = 20;
    context->config.deadline.collective_s = 20;
    context->config.deadline.heartbeat_s = 3;
    TRY(check_roles(context, false, 4, 0, "LLLL"));
    TRY(check_roles(context, true, 1, 2, "LRRW"));
    set_roles(context, 2, 0, false);
    TRY(check_roles(context, true, 2, 1, "LLRW"));
    set_roles(context, 0, 1, false);
    TRY(check_roles(context, true, 2, 1, "LLRW"));
    set_roles(context, 1, 2, false);
    TRY(check_roles(context, true, 1, 2, "LRRW"));
    set_roles(context, 0, 0, true);
    TRY(check_roles(context, true, 3, 3, "LLLW"));
    set_roles(context, 3, 3, true);
    TRY(check_roles(context, true, 3, 3, "LLLW"));
    set_roles(context, 2, 3, false);
    check_refused(context, "mpirun -n 6");
    set_roles(context, 1, 1, false);
    check_refused(context, "mpirun -n 3");
    set_roles(context, 3, 0, false);
    check_refused(context, "mpirun -n 5 or more");
    set_roles(context, 2, 0, true);
    check_refused(context, "mpirun -n 3");
    set_roles(context, 2, 3, true);
    check_refused(context, "same number");
    set_roles(context, -1, 0, false);
    check_refused(context, "or more");
    TRY(check_stop(context));
    int64_t failures = context->failures;
    TRY(comm_all_reduce_i64(context->world, &failures, 1, COMM_SUM, "counting failures"));
    context->failures = (int)failures;
    return STATUS_OK;
}

int main(void) {
    context_t context = {0};
    status_t status = run(&context);
    if (status) status_print(status, stderr, context.world ? comm_rank(context.world) : -1, true);
    if (status) comm_abandon(1);
    status = comm_close_world(context.world);
    if (status) status_print(status, stderr, -1, true);
    return status || context.failures;
}
