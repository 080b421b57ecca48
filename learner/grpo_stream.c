// The learner's end of the stream to the reward rank.
#include "learner/grpo_internal.h"

#include <stdlib.h>
#include <string.h>

static const double wait_slice_s = 0.02;

status_t grpo_send(grpo_run_t *run, const message_t *message) {
    link_buffer_t buffer;
    TRY(message_pack(message, &buffer));
    return link_send(run->link, buffer, run->learner.config->deadline.step_s);
}

status_t grpo_stream_open(grpo_run_t *run, int64_t completed) {
    learner_t *learner = &run->learner;
    const job_t *job = learner->job;
    if (!job->coordinator_endpoint) FAIL(STATUS_FAILED, "the reward rank's endpoint is not known");
    link_options_t options = job_link_options(job);
    message_t hello = {.type = MESSAGE_HELLO};
    snprintf(hello.hello.role, sizeof(hello.hello.role), "learner");
    hello.hello.world_rank = comm_world_rank(learner->comm);
    hello.hello.role_index = job->role_index;
    hello.hello.data_hash = packed_hash_number(learner->packed);
    hello.hello.step = completed;
    TRY(device_fingerprint(learner->device, &run->fingerprint));
    hello.hello.fingerprint = run->fingerprint;
    if (learner->first)
        TRY(weight_server_open(&options, job_bind_endpoint(job), learner->config->grpo.staleness + 1, &run->server));
    link_buffer_t buffer;
    char name[64];
    snprintf(name, sizeof(name), "learner %d", job->role_index);
    TRY(message_pack(&hello, &buffer));
    return link_open(job->coordinator_endpoint, name, buffer, learner->config->deadline.start_s, &options, &run->link);
}

void grpo_stream_close(grpo_run_t *run) {
    link_close(run->link);
    weight_server_close(run->server);
    for (size_t i = 0; i < run->pending_count; i++) message_free(&run->pending[i]);
    free(run->pending);
    run->link = NULL;
    run->server = NULL;
    run->pending = NULL;
    run->pending_count = run->pending_capacity = 0;
}

status_t grpo_announce(grpo_run_t *run, int64_t version) {
    if (!run->server) return STATUS_OK;
    double started = clock_seconds();
    job_phase(run->learner.job, "announcing the weights");
    message_t message = {.type = MESSAGE_WEIGHTS};
    TRY(weight_server_publish(run->server, run->learner.model, version, &message.weights));
    TRY(grpo_send(run, &message));
    run->times.sync_s += clock_seconds() - started;
    return STATUS_OK;
}

// ---- receiving ----

static void add_statistics(message_statistics_t *sum, const message_statistics_t *more) {
    sum->generated_tokens += more->generated_tokens;
    sum->prefill_tokens += more->prefill_tokens;
    sum->preemptions += more->preemptions;
    sum->pages_saved += more->pages_saved;
    sum->decode_steps += more->decode_steps;
    sum->decode_rows += more->decode_rows;
    sum->busy_s += more->busy_s;
    sum->idle_s += more->idle_s;
    sum->sync_s += more->sync_s;
}

static status_t keep_statistics(grpo_run_t *run, const message_statistics_t *more) {
    if (more->version < 0) FAIL(STATUS_PEER, "rollout statistics name version %lld", (long long)more->version);
    message_statistics_t *sum = &run->statistics[more->version % STATISTICS_VERSIONS];
    add_statistics(sum, more);
    sum->version = more->version;
    return STATUS_OK;
}

message_statistics_t grpo_take_statistics(grpo_run_t *run, int64_t step) {
    message_statistics_t out = {0};
    int64_t version = step - run->learner.config->grpo.staleness; // the step's groups are sampled from it
    for (int i = 0; i < STATISTICS_VERSIONS; i++) {
        message_statistics_t *sum = &run->statistics[i];
        if (sum->version > (version > 0 ? version : 0)) continue;
        add_statistics(&out, sum);
        *sum = (message_statistics_t){0};
    }
    return out;
}

static status_t keep_group(grpo_run_t *run, message_t *message) {
    grpo_batch_t *batch = &run->batch;
    for (int i = 0; batch->plan && i < batch->plan->groups; i++) {
        if (batch->plan->serial[i] != message->group.serial || batch->group[i].type) continue;
        batch->group[i] = *message;
        *message = (message_t){0};
        return STATUS_OK;
    }
    FAIL(STATUS_PEER, "the reward rank sent group %llu, which was not asked for",
         (unsigned long long)message->group.serial);
}

// Files what came. Takes over what it keeps; the caller frees the rest.
static status_t file_message(grpo_run_t *run, message_t *message) {
    switch (message->type) {
    case MESSAGE_PLAN:
        TRY(memory_grow((void **)&run->pending, &run->pending_capacity, run->pending_count + 1, sizeof(message_t)));
        run->pending[run->pending_count++] = *message;
        *message = (message_t){0};
        return STATUS_OK;
    case MESSAGE_GROUP:
        return keep_group(run, message);
    case MESSAGE_STATISTICS:
        return keep_statistics(run, &message->statistics);
    case MESSAGE_STOP:
        run->stopped = true;
        memcpy(run->stop_reason, message->stop.reason, sizeof(run->stop_reason));
        return STATUS_OK;
    default:
        FAIL(STATUS_PEER, "the reward rank sent %s, which a learner does not take", message_type_name(message->type));
    }
}

static status_t receive(grpo_run_t *run, double wait_s, bool *came) {
    link_buffer_t buffer = {0};
    *came = false;
    TRY(link_receive(run->link, wait_s, &buffer));
    if (!buffer.data) return STATUS_OK;
    *came = true;
    message_t message = {0};
    status_t status = message_unpack(buffer.data, buffer.size, &message);
    link_buffer_free(&buffer);
    if (status) return status;
    status = file_message(run, &message);
    if (message.type) message_free(&message);
    return status;
}

typedef bool (*wait_done_t)(const grpo_run_t *run, int64_t step);

// Receives (and, on colocated ranks, generates) until done() says so.
static status_t wait_until(grpo_run_t *run, wait_done_t done, int64_t step, const char *what) {
    double limit = run->learner.config->deadline.step_s, until = clock_seconds() + limit;
    bool may_idle = run->colocated && run->colocated->idle && !run->stopped, worked = false;
    while (!done(run, step)) {
        bool came;
        job_phase(run->learner.job, run->colocated ? "generating and waiting" : "waiting for the reward rank");
        TRY(receive(run, worked ? 0.0 : wait_slice_s, &came));
        link_progress(run->link);
        if (run->server) TRY(weight_server_check(run->server));
        if (came) {
            until = clock_seconds() + limit;
            continue;
        }
        if (run->stopped && !done(run, step))
            FAIL(STATUS_CANCELLED, "the reward rank ended the run: %s", run->stop_reason);
        worked = false;
        if (may_idle) TRY(run->colocated->idle(run->colocated->context, &worked));
        if (worked) until = clock_seconds() + limit;
        if (clock_seconds() < until) continue;
        FAIL(STATUS_TIMEOUT,
             "learner rank %d waited %.0f s for %s of step %lld from the reward rank; look at the rollout ranks, or "
             "raise deadline.step_s",
             comm_world_rank(run->learner.comm), limit, what, (long long)step);
    }
    return STATUS_OK;
}

static bool have_plan(const grpo_run_t *run, int64_t step) {
    for (size_t i = 0; i < run->pending_count; i++) {
        if (run->pending[i].plan.step == step) return true;
    }
    return false;
}

static bool wants_group(const grpo_run_t *run, int number) {
    const message_plan_t *plan = run->batch.plan;
    bool all = run->learner.first && run->learner.config->metrics.trajectories;
    return all || plan->owner[number] == run->learner.job->role_index;
}

static bool have_groups(const grpo_run_t *run, int64_t step) {
    (void)step;
    for (int i = 0; i < run->batch.plan->groups; i++) {
        if (wants_group(run, i) && !run->batch.group[i].type) return false;
    }
    return true;
}

static bool have_stop(const grpo_run_t *run, int64_t step) {
    (void)step;
    return run->stopped;
}

static status_t take_plan(grpo_run_t *run, int64_t step) {
    grpo_batch_t *batch = &run->batch;
    size_t at = 0;
    while (run->pending[at].plan.step != step) at++;
    batch->plan_message = run->pending[at];
    batch->plan = &batch->plan_message.plan;
    batch->step = step;
    run->pending[at] = run->pending[--run->pending_count];
    if (batch->plan->groups != run->learner.config->grpo.prompts) {
        FAIL(STATUS_PEER, "the plan of step %lld has %d groups, not %d", (long long)step, batch->plan->groups,
             run->learner.config->grpo.prompts);
    }
    for (int i = 0; i < batch->plan->groups; i++) {
        if (batch->plan->owner[i] < 0 || batch->plan->owner[i] >= comm_size(run->learner.comm))
            FAIL(STATUS_PEER, "the plan of step %lld names learner %d", (long long)step, batch->plan->owner[i]);
    }
    return ALLOCATE(&batch->group, batch->plan->groups);
}

static status_t ask_for_groups(grpo_run_t *run) {
    const message_plan_t *plan = run->batch.plan;
    message_t fetch = {.type = MESSAGE_FETCH};
    TRY(ALLOCATE(&fetch.fetch.serial, plan->groups));
    for (int i = 0; i < plan->groups; i++) {
        if (wants_group(run, i)) fetch.fetch.serial[fetch.fetch.count++] = plan->serial[i];
    }
    status_t status = fetch.fetch.count > 0 ? grpo_send(run, &fetch) : STATUS_OK;
    free(fetch.fetch.serial);
    return status;
}

status_t grpo_wait_batch(grpo_run_t *run, int64_t step) {
    double started = clock_seconds();
    TRY(wait_until(run, have_plan, step, "the plan"));
    double planned = clock_seconds();
    run->times.idle_s += planned - started;
    TRY(take_plan(run, step));
    TRY(ask_for_groups(run));
    TRY(wait_until(run, have_groups, step, "the groups"));
    run->times.fetch_s += clock_seconds() - planned;
    return STATUS_OK;
}

status_t grpo_wait_stop(grpo_run_t *run) {
    return wait_until(run, have_stop, run->batch.step, "the end");
}
