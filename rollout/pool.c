// A rollout pool's worker: finds a running job, asks it what to run, and then works like one of its own ranks. It
// speaks only ZeroMQ, so that neither can take the other down.
#include "common/comm/join_file.h"
#include "common/comm/placement.h"
#include "common/data/packed.h"
#include "common/wire/message.h"
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Patience of the first connection, over which the job tells its own.
static const double asking_heartbeat_s = 20;

// RUN, RUN/join.json or an endpoint, with or without a file of keys.
static status_t read_invitation(const rollout_pool_options_t *options, join_file_t *out) {
    char path[4096];
    bool is_endpoint = strstr(options->join, "://") != NULL;
    struct stat about;
    *out = (join_file_t){0};
    if (options->keys)
        TRY(join_file_read(options->keys, out));
    else if (!is_endpoint) {
        bool is_folder = stat(options->join, &about) == 0 && S_ISDIR(about.st_mode);
        snprintf(path, sizeof(path), "%s%s", options->join, is_folder ? "/join.json" : "");
        status_t status = join_file_read(path, out);
        if (status && access(path, F_OK) != 0) {
            status_free(status);
            FAIL(STATUS_INVALID,
                 "there is no '%s': the job has not begun yet, or has ended; result.json beside it says how", path);
        }
        TRY(status);
    }
    if (!is_endpoint && options->keys)
        FAIL(STATUS_INVALID, "--join wants an endpoint such as tcp://node7:40123 beside --keys, not '%s'",
             options->join);
    if (!is_endpoint) return STATUS_OK;
    if (strlen(options->join) >= sizeof(out->endpoint))
        FAIL(STATUS_INVALID, "the endpoint '%.40s...' is too long", options->join);
    memcpy(out->endpoint, options->join, strlen(options->join) + 1);
    return STATUS_OK;
}

static status_t open_job(const join_file_t *invitation, job_t *job) {
    memset(job, 0, sizeof(*job));
    job->signal_fd = -1;
    job->role = ROLE_ROLLOUT;
    TRY(job_open_signals(job));
    TRY(memory_copy_string(invitation->endpoint, &job->coordinator_endpoint));
    if (!invitation->public_key[0]) return STATUS_OK;
    TRY(memory_copy_string(invitation->public_key, &job->public_key));
    return memory_copy_string(invitation->secret_key, &job->secret_key);
}

// ---- asking ----

static status_t take_answer(link_t *link, double deadline_s, message_t *out) {
    link_buffer_t buffer;
    TRY(link_receive(link, deadline_s, &buffer));
    if (!buffer.data) FAIL(STATUS_TIMEOUT, "the job did not tell its settings within %.0f s", deadline_s);
    status_t status = message_unpack(buffer.data, buffer.size, out);
    link_buffer_free(&buffer);
    TRY(status);
    if (out->type == MESSAGE_SETTINGS || out->type == MESSAGE_STOP) return STATUS_OK;
    if (out->type == MESSAGE_REFUSED)
        status = STATUS_NEW(STATUS_INVALID, "the job refuses this worker: %s", out->refused.reason);
    else
        status =
            STATUS_NEW(STATUS_PEER, "the job answered with %s instead of its settings", message_type_name(out->type));
    message_free(out);
    return status;
}

static status_t ask(const job_t *job, const config_t *config, message_t *out) {
    char host[128] = "localhost", name[192];
    link_buffer_t buffer;
    link_t *link;
    message_t hello = {.type = MESSAGE_HELLO, .hello = {.role = "pool", .world_rank = -1, .role_index = -1}};
    gethostname(host, sizeof(host) - 1);
    for (char *c = host; *c; c++)
        if (*c == '#') *c = '_';
    snprintf(name, sizeof(name), "rollout pool %s.%ld", host, (long)getpid());
    link_options_t options = job_link_options_of(job, config);
    options.heartbeat_s = asking_heartbeat_s;
    TRY(message_pack(&hello, &buffer));
    TRY(link_open(job->coordinator_endpoint, name, buffer, config->deadline.start_s, &options, &link));
    status_t status = take_answer(link, config->deadline.start_s, out);
    link_close(link);
    return status;
}

// The job's configuration with this pool's own settings. Those must not change what training is.
static status_t read_settings(const message_t *answer, const rollout_pool_options_t *options, config_t *out) {
    config_t plain;
    TRY(config_read_text(answer->settings.config, "the job's configuration", NULL, 0, &plain));
    uint64_t hash, own = 0;
    status_t status = config_training_hash(&plain, &hash);
    config_free(&plain);
    TRY(status);
    TRY(config_read_text(answer->settings.config, "the job's configuration", options->setting, options->settings, out));
    status = config_training_hash(out, &own);
    if (!status && own == hash) return STATUS_OK;
    config_free(out);
    TRY(status);
    FAIL(STATUS_INVALID, "a rollout pool takes the settings that shape training from the job; --set only paths (model, "
                         "adapter, data.train), device, threads, rollout.* and deadline.*");
}

static status_t check_data(const config_t *config, uint64_t hash) {
    packed_t *packed;
    TRY(packed_open(config->data.train, &packed));
    bool same = packed_hash_number(packed) == hash;
    packed_close(packed);
    if (same) return STATUS_OK;
    FAIL(STATUS_INVALID, "'%s' is another data file than the job's; give the job's by --set data.train=FILE",
         config->data.train);
}

// ---- working ----

static status_t work(job_t *job) {
    rollout_worker_t *worker;
    bool stopped = false, asked = false;
    status_t status = rollout_worker_open(job, NULL, &worker);
    if (status) PASS_ON(status);
    fprintf(stderr, "poise: rollout rank %d of the job at %s\n", job_rank(job), job->coordinator_endpoint);
    while (!status && !stopped && !(asked = job_stop_requested(job)))
        status = rollout_worker_step(worker, 0.25, &stopped);
    if (!status) rollout_worker_print_summary(worker);
    if (!status && asked)
        fprintf(stderr, "poise: rollout rank %d leaves as asked; what it had not finished goes to others\n",
                job_rank(job));
    if (!status && stopped) fprintf(stderr, "poise: the job has ended: %s\n", rollout_worker_stop_reason(worker));
    rollout_worker_close(worker);
    return status;
}

static status_t run(job_t *job, const rollout_pool_options_t *options) {
    config_t config;
    message_t answer;
    TRY(config_read(NULL, options->setting, options->settings, &config));
    status_t status = ask(job, &config, &answer);
    config_free(&config);
    TRY(status);
    if (answer.type == MESSAGE_STOP) {
        fprintf(stderr, "poise: nothing to do: the job has ended: %s\n", answer.stop.reason);
        message_free(&answer);
        return STATUS_OK;
    }
    job->outside_rank = answer.settings.world_rank;
    job->role_index = answer.settings.role_index;
    status = read_settings(&answer, options, &config);
    uint64_t hash = answer.settings.data_hash;
    message_free(&answer);
    TRY(status);
    job->config = &config;
    status = check_data(&config, hash);
    if (!status) status = placement_alone(config.device, job->device);
    if (!status) status = work(job);
    job->config = NULL;
    config_free(&config);
    return status;
}

status_t rollout_pool_run(const rollout_pool_options_t *options) {
    join_file_t invitation;
    job_t job;
    TRY(read_invitation(options, &invitation));
    status_t status = open_job(&invitation, &job);
    explicit_bzero(invitation.secret_key, sizeof(invitation.secret_key));
    if (!status) status = run(&job, options);
    job_close(&job);
    return status;
}
