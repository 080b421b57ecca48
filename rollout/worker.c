// The rollout worker: work and weights in, completions out.
//
// Groups are generated from exactly the version they name. Work that names another version than the one held waits;
// weights are pulled when the groups of the version held are finished.
#include "common/data/packed.h"
#include "common/model/model_start.h"
#include "common/text/tokenizer.h"
#include "common/wire/link.h"
#include "common/wire/message.h"
#include "common/wire/weights.h"
#include "rollout/engine.h"
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>

enum { JOIN_SLACK_S = 10 }; // joining has its own deadline; this is for one that is not looked at

// A group in the engine, or waiting for its version.
typedef struct open_group {
    message_work_t work;
    const image_patches_t **images;
    int unfinished;
} open_group_t;

struct rollout_worker {
    job_t *job;
    const config_t *config;
    device_t *device;
    model_t *model;
    bool own_model;
    packed_t *packed;
    patch_cache_t *patches;
    tokenizer_t *tokenizer;
    engine_t *engine;
    link_t *link;
    char name[48];
    int64_t version; // held; -1: none yet
    uint64_t checksum;
    open_group_t *group; // in the engine
    size_t groups, group_capacity;
    message_work_t *work; // waiting, in order of arrival
    size_t works, work_capacity;
    message_weights_t *weights; // announced and not held yet, in order
    size_t announced, weights_capacity;
    engine_statistics_t reported;
    double idle_s, sync_s, waiting_since; // waiting_since: 0 while there is something to do
    bool stopped;
    char stop_reason[256];
};

static status_t send_message(rollout_worker_t *worker, const message_t *message) {
    link_buffer_t buffer;
    TRY(message_pack(message, &buffer));
    return link_send(worker->link, buffer, worker->config->deadline.step_s);
}

// ---- opening ----

// A colocated worker computes with its learner's weights and scratch.
static void add_memory(device_t *device, ledger_report_t *sum) {
    ledger_report_t own;
    ledger_read(device, &own);
    for (int i = 0; i < LEDGER_PARTS; i++) {
        bool one = i == LEDGER_WEIGHTS || i == LEDGER_WORKSPACE || i == LEDGER_IMAGES || i == LEDGER_OTHER;
        ledger_row_t *row = &sum->row[i], *more = &own.row[i];
        row->device = one ? (row->device > more->device ? row->device : more->device) : row->device + more->device;
        row->host = one ? (row->host > more->host ? row->host : more->host) : row->host + more->host;
    }
    if (sum->total) return; // the learner has said what is free
    memcpy(sum->place, own.place, sizeof(sum->place));
    sum->total = own.total;
    sum->free = own.free;
    sum->taken = own.taken;
}

status_t rollout_print_plan(job_t *job, FILE *stream) {
    device_t *device;
    model_t *model = NULL;
    engine_t *engine = NULL;
    packed_t *packed = NULL;
    const char *data = job->config->data.train;
    engine_options_t options = engine_options_of(job->config);
    TRY(device_open(job_device(job), job->config->threads, &device));
    status_t status = model_start(job->config, device, &model);
    if (!status) status = engine_open(model, &options, &engine);
    if (!status && data && *data) status = packed_open(data, &packed);
    if (!status && packed) status = engine_plan_data(engine, packed, job->config->grpo.max_new_tokens);
    if (!status) ledger_plan(device, LEDGER_OTHER, LEDGER_PROBE_BYTES); // the kernel fingerprint
    if (!status && !job->role_index) {
        fprintf(stream, "one rollout worker (of %d):\n", job->rollout_count);
        engine_print_memory(engine, stream);
        fflush(stream);
    }
    if (!status) add_memory(device, &job->memory);
    packed_close(packed);
    engine_close(engine);
    model_close(model);
    device_close(device);
    return status;
}

static status_t open_parts(rollout_worker_t *worker, model_t *model) {
    const config_t *config = worker->config;
    if (!config->data.train || !*config->data.train)
        FAIL(STATUS_INVALID, "data.train is not set; name a file that \"poise pack\" made");
    worker->model = model;
    if (!model) {
        worker->own_model = true;
        TRY(device_open(job_device(worker->job), config->threads, &worker->device));
        TRY(model_start(config, worker->device, &worker->model));
    }
    TRY(packed_open(config->data.train, &worker->packed));
    TRY(packed_check_model(worker->packed, config->model));
    TRY(tokenizer_open(config->model, &worker->tokenizer));
    if (worker->model->config.has_vision)
        TRY(patch_cache_open(&worker->model->config.image, (size_t)config->data.patch_cache_mb << 20,
                             &worker->patches));
    engine_options_t options = engine_options_of(config);
    TRY(engine_open(worker->model, &options, &worker->engine));
    ledger_plan(worker->model->device, LEDGER_OTHER, LEDGER_PROBE_BYTES); // the kernel fingerprint
    return engine_plan_data(worker->engine, worker->packed, config->grpo.max_new_tokens);
}

static status_t join(rollout_worker_t *worker) {
    job_t *job = worker->job;
    message_t hello = {.type = MESSAGE_HELLO};
    if (worker->own_model)
        watch_phase(job->watch, "joining the reward rank", job->config->deadline.start_s + JOIN_SLACK_S);
    snprintf(hello.hello.role, sizeof(hello.hello.role), "rollout");
    hello.hello.world_rank = job_rank(job);
    hello.hello.role_index = job->role_index;
    hello.hello.credits = worker->config->rollout.credits;
    hello.hello.data_hash = packed_hash_number(worker->packed);
    TRY(device_fingerprint(worker->model->device, &hello.hello.fingerprint));
    link_buffer_t buffer;
    TRY(message_pack(&hello, &buffer));
    link_options_t options = job_link_options(job);
    snprintf(worker->name, sizeof(worker->name), "rollout rank %d", job_rank(job));
    return link_open(job->coordinator_endpoint, worker->name, buffer, worker->config->deadline.start_s, &options,
                     &worker->link);
}

static void tell_error(rollout_worker_t *worker, status_t status) {
    message_t message = {.type = MESSAGE_ERROR};
    if (!worker->link) return;
    snprintf(message.error.sentence, sizeof(message.error.sentence), "%s", status_message(status));
    message.error.world_rank = job_rank(worker->job);
    status_free(send_message(worker, &message));
}

status_t rollout_worker_open(job_t *job, model_t *model, rollout_worker_t **out) {
    rollout_worker_t *worker;
    *out = NULL;
    // The reward rank waits in this collective: it comes before all that can fail.
    if (!job->coordinator_endpoint) TRY(job_share_endpoint(job, NULL));
    if (!job->coordinator_endpoint || !*job->coordinator_endpoint)
        FAIL(STATUS_PEER, "the reward rank could not start; its message says why");
    TRY(ALLOCATE(&worker, 1));
    worker->job = job;
    worker->config = job->config;
    worker->version = -1;
    status_t status = open_parts(worker, model);
    if (!status) status = join(worker);
    if (status) {
        rollout_worker_close(worker);
        PASS_ON(status);
    }
    *out = worker;
    return STATUS_OK;
}

void rollout_worker_close(rollout_worker_t *worker) {
    if (!worker) return;
    if (worker->link) link_close(worker->link);
    engine_close(worker->engine);
    for (size_t i = 0; i < worker->groups; i++) free(worker->group[i].images);
    patch_cache_close(worker->patches);
    tokenizer_close(worker->tokenizer);
    packed_close(worker->packed);
    if (worker->own_model) {
        model_close(worker->model);
        device_close(worker->device);
    }
    free(worker->group);
    free(worker->work);
    free(worker->weights);
    free(worker);
}

bool rollout_worker_busy(const rollout_worker_t *worker) {
    return worker->groups > 0;
}

// ---- completions ----

static status_t send_statistics(rollout_worker_t *worker) {
    engine_statistics_t now = engine_get_statistics(worker->engine), *last = &worker->reported;
    if (now.generated_tokens == last->generated_tokens) return STATUS_OK;
    message_t message = {.type = MESSAGE_STATISTICS,
                         .statistics = {.version = worker->version,
                                        .generated_tokens = now.generated_tokens - last->generated_tokens,
                                        .prefill_tokens = now.prefill_tokens - last->prefill_tokens,
                                        .preemptions = now.preemptions - last->preemptions,
                                        .pages_saved = now.pages_saved - last->pages_saved,
                                        .decode_steps = now.decode_steps - last->decode_steps,
                                        .decode_rows = now.decode_rows - last->decode_rows,
                                        .busy_s = now.busy_s - last->busy_s,
                                        .idle_s = worker->idle_s,
                                        .sync_s = worker->sync_s}};
    worker->reported = now;
    worker->idle_s = worker->sync_s = 0;
    return send_message(worker, &message);
}

static void close_group(rollout_worker_t *worker, size_t place) {
    free(worker->group[place].images);
    worker->group[place] = worker->group[--worker->groups];
    if (!worker->groups && worker->patches) patch_cache_release_all(worker->patches);
}

static status_t on_completion(void *context, const engine_completion_t *completion) {
    rollout_worker_t *worker = context;
    size_t place = 0;
    while (place < worker->groups && worker->group[place].work.serial != completion->key) place++;
    if (place == worker->groups)
        FAIL(STATUS_FAILED, "the engine finished a completion of group %llu, which is not open",
             (unsigned long long)completion->key);
    char *text;
    TRY(tokenizer_decode(worker->tokenizer, completion->tokens, completion->length, true, &text));
    // Before the last completion: what follows from that one (a plan) must not overtake the numbers of its making.
    status_t status = engine_pending(worker->engine) ? STATUS_OK : send_statistics(worker);
    // Packing copies; the message only reads what it points to.
    message_t message = {.type = MESSAGE_COMPLETION,
                         .completion = {.serial = completion->key,
                                        .index = completion->index,
                                        .version = worker->version,
                                        .checksum = worker->checksum,
                                        .length = completion->length,
                                        .tokens = (int32_t *)(uintptr_t)completion->tokens,
                                        .logprobs = (float *)(uintptr_t)completion->logprobs,
                                        .entropy = (float *)(uintptr_t)completion->entropy,
                                        .text = text,
                                        .truncated = !completion->stopped,
                                        .seconds = completion->seconds}};
    if (!status) status = send_message(worker, &message);
    free(text);
    TRY(status);
    if (--worker->group[place].unfinished == 0) close_group(worker, place);
    return STATUS_OK;
}

// ---- work ----

static status_t submit_request(rollout_worker_t *worker, const message_work_t *work, open_group_t *group) {
    packed_sample_t sample;
    if (work->sample < 0 || work->sample >= packed_count(worker->packed))
        FAIL(STATUS_PEER, "group %llu names sample %lld, the data has %lld", (unsigned long long)work->serial,
             (long long)work->sample, (long long)packed_count(worker->packed));
    TRY(packed_sample(worker->packed, work->sample, &sample));
    if (sample.image_count && !worker->patches)
        FAIL(STATUS_INVALID, "sample %s has images and the model takes none", sample.id);
    TRY(ALLOCATE(&group->images, sample.image_count));
    for (int i = 0; i < sample.image_count; i++)
        TRY(patch_cache_get(worker->patches, worker->packed, sample.images[i], &group->images[i]));
    engine_request_t request = {.key = work->serial,
                                .seed = work->seed,
                                .tokens = sample.tokens,
                                .prompt_length = sample.prompt_length,
                                .images = group->images,
                                .image_count = sample.image_count,
                                .completions = work->completions,
                                .max_new_tokens = work->max_new_tokens,
                                .temperature = work->temperature};
    status_t status = engine_submit(worker->engine, &request);
    return status ? status_context(status, "sample %s", sample.id) : STATUS_OK;
}

static status_t submit_work(rollout_worker_t *worker, const message_work_t *work) {
    for (size_t i = 0; i < worker->groups; i++)
        if (worker->group[i].work.serial == work->serial)
            FAIL(STATUS_PEER, "group %llu was given to this worker twice", (unsigned long long)work->serial);
    TRY(memory_grow((void **)&worker->group, &worker->group_capacity, worker->groups + 1, sizeof(*worker->group)));
    open_group_t *group = &worker->group[worker->groups];
    *group = (open_group_t){.work = *work, .unfinished = work->completions};
    status_t status = submit_request(worker, work, group);
    if (status) {
        free(group->images);
        return status;
    }
    worker->groups++;
    return STATUS_OK;
}

// Hands the engine the waiting work of the version held.
static status_t submit_ready(rollout_worker_t *worker) {
    size_t kept = 0;
    for (size_t i = 0; i < worker->works; i++) {
        if (worker->work[i].version == worker->version)
            TRY(submit_work(worker, &worker->work[i]));
        else
            worker->work[kept++] = worker->work[i];
    }
    worker->works = kept;
    return STATUS_OK;
}

// ---- weights ----

// Weights that the learner in this process has put in place. *held: it has come that far.
static status_t check_in_place(const rollout_worker_t *worker, const message_weights_t *weights, bool *held) {
    uint64_t manifest, checksum;
    int64_t bytes;
    *held = worker->model->version >= weights->version;
    if (!*held) return STATUS_OK;
    if (worker->model->version != weights->version)
        FAIL(STATUS_FAILED, "colocated ranks hold weights version %lld and cannot generate from version %lld",
             (long long)worker->model->version, (long long)weights->version);
    TRY(weights_manifest(worker->model, &manifest, &checksum, &bytes));
    if (manifest != weights->manifest || checksum != weights->checksum)
        FAIL(STATUS_FAILED, "this rank's weights of version %lld differ from those announced",
             (long long)weights->version);
    return STATUS_OK;
}

// Takes the oldest announced version once nothing of the present one is open.
static status_t take_weights(rollout_worker_t *worker) {
    if (!worker->announced || worker->groups) return STATUS_OK;
    message_weights_t weights = worker->weights[0];
    double started = clock_seconds();
    TRY(send_statistics(worker));
    if (worker->own_model) {
        link_options_t options = job_link_options(worker->job);
        if (weights.version != worker->version)
            TRY(weights_pull(&weights, &options, worker->name, worker->model, worker->config->deadline.step_s));
    } else {
        bool held;
        TRY(check_in_place(worker, &weights, &held));
        if (!held) return STATUS_OK;
    }
    worker->announced--;
    memmove(worker->weights, worker->weights + 1, worker->announced * sizeof(weights));
    TRY(engine_weights_changed(worker->engine));
    worker->version = weights.version;
    worker->checksum = weights.checksum;
    worker->sync_s += clock_seconds() - started;
    message_t ready = {.type = MESSAGE_READY};
    ready.ready.version = weights.version;
    ready.ready.checksum = weights.checksum;
    TRY(send_message(worker, &ready));
    return submit_ready(worker);
}

// ---- the loop ----

static status_t on_message(rollout_worker_t *worker, const message_t *message) {
    switch (message->type) {
    case MESSAGE_WORK:
        TRY(memory_grow((void **)&worker->work, &worker->work_capacity, worker->works + 1, sizeof(*worker->work)));
        worker->work[worker->works++] = message->work;
        return STATUS_OK;
    case MESSAGE_WEIGHTS:
        TRY(memory_grow((void **)&worker->weights, &worker->weights_capacity, worker->announced + 1,
                        sizeof(*worker->weights)));
        worker->weights[worker->announced++] = message->weights;
        return STATUS_OK;
    case MESSAGE_STOP:
        worker->stopped = true;
        memcpy(worker->stop_reason, message->stop.reason, sizeof(worker->stop_reason));
        return STATUS_OK;
    case MESSAGE_REFUSED:
        FAIL(STATUS_INVALID, "the job refuses %s: %s", worker->name, message->refused.reason);
    default:
        FAIL(STATUS_PEER, "the reward rank sent %s, which a rollout worker does not take",
             message_type_name(message->type));
    }
}

static status_t receive(rollout_worker_t *worker, double wait_s) {
    for (;;) {
        link_buffer_t buffer;
        TRY(link_receive(worker->link, wait_s, &buffer));
        if (!buffer.data) return STATUS_OK;
        message_t message;
        status_t status = message_unpack(buffer.data, buffer.size, &message);
        link_buffer_free(&buffer);
        TRY(status);
        status = on_message(worker, &message);
        message_free(&message);
        TRY(status);
        if (worker->stopped) return STATUS_OK;
        wait_s = 0;
    }
}

// Work whose weights never come, or a reward rank that forgets this worker, must not look like idling for ever.
static status_t check_waiting(rollout_worker_t *worker) {
    double now = clock_seconds();
    if (worker->groups) {
        worker->waiting_since = 0;
        return STATUS_OK;
    }
    if (!worker->waiting_since) worker->waiting_since = now;
    double limit = worker->config->deadline.step_s +
                   (worker->version < 0 ? worker->config->deadline.start_s : worker->config->deadline.heartbeat_s);
    if (now - worker->waiting_since < limit) return STATUS_OK;
    FAIL(STATUS_TIMEOUT, "%s waited %.0f s for %s from the reward rank", worker->name, now - worker->waiting_since,
         worker->works ? "the weights of its work" : "work");
}

static status_t turn(rollout_worker_t *worker, double wait_s) {
    bool idle = !engine_pending(worker->engine);
    if (worker->own_model) job_phase(worker->job, idle ? "waiting for work" : "generating");
    double started = clock_seconds();
    if (worker->own_model) (void)job_stop_requested(worker->job); // the learners hear of it and decide
    link_progress(worker->link);
    TRY(receive(worker, idle ? wait_s : 0));
    if (idle) worker->idle_s += clock_seconds() - started;
    if (worker->stopped) return send_statistics(worker);
    TRY(submit_ready(worker));
    TRY(take_weights(worker));
    TRY(engine_step(worker->engine, on_completion, worker));
    return check_waiting(worker);
}

status_t rollout_worker_step(rollout_worker_t *worker, double wait_s, bool *stopped) {
    status_t status = turn(worker, wait_s);
    *stopped = worker->stopped;
    if (status) tell_error(worker, status);
    return status ? status_trace(status, __FILE__, __LINE__, __func__) : STATUS_OK;
}

void rollout_worker_print_summary(const rollout_worker_t *worker) {
    engine_statistics_t s = engine_get_statistics(worker->engine);
    double speed = s.busy_s > 0 ? (double)s.generated_tokens / s.busy_s : 0;
    fprintf(stderr,
            "poise: %s generated %lld tokens at %.0f tokens/s (%.1f rows a decode step); %lld preemptions, %lld page "
            "allocations saved, %lld image features computed and %lld reused\n",
            worker->name, (long long)s.generated_tokens, speed,
            s.decode_steps ? (double)s.decode_rows / (double)s.decode_steps : 0, (long long)s.preemptions,
            (long long)s.pages_saved, (long long)s.features_computed, (long long)s.features_reused);
}

const char *rollout_worker_stop_reason(const rollout_worker_t *worker) {
    return worker->stop_reason;
}

status_t rollout_worker_run(job_t *job) {
    rollout_worker_t *worker;
    bool stopped = false;
    status_t status = rollout_worker_open(job, NULL, &worker);
    if (status) PASS_ON(status);
    if (job->role_index == 0) engine_print_memory(worker->engine, stderr);
    while (!status && !stopped) status = rollout_worker_step(worker, 0.25, &stopped);
    if (!status) rollout_worker_print_summary(worker);
    rollout_worker_close(worker);
    return status;
}
