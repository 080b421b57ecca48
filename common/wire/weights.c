#include "common/wire/weights.h"
#include "common/comm/clock.h"
#include "common/wire/transport.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { CHUNK_BYTES = 1 << 20, CHUNKS_AHEAD = 8, CHUNKS_WAITING = 4 * CHUNKS_AHEAD, SECOND_LOOK_S = 2 };

// ---- a model's trained values as one row of bytes: tensor after tensor, row after row ----

typedef struct trained {
    trained_tensor_t *tensor;
    int count;
    size_t bytes;
} trained_t;

static size_t row_bytes(const parameter_t *parameter) {
    return (size_t)parameter->value.columns * dtype_bytes(parameter->value.dtype);
}

static status_t list_trained(model_t *model, trained_t *out) {
    *out = (trained_t){0};
    TRY(model_trained_tensors(model, &out->tensor, &out->count));
    for (int i = 0; i < out->count; i++)
        out->bytes += (size_t)out->tensor[i].parameter->value.rows * row_bytes(out->tensor[i].parameter);
    return STATUS_OK;
}

// Device memory to `bytes`, or back.
static status_t move_values(const model_t *model, const trained_t *trained, uint8_t *bytes, bool to_device) {
    device_t *device = model->device;
    for (int i = 0; i < trained->count; i++) {
        const parameter_t *parameter = trained->tensor[i].parameter;
        const matrix_t *value = &parameter->value;
        size_t row = row_bytes(parameter), step = (size_t)value->stride * dtype_bytes(value->dtype);
        bool packed = row == step;
        size_t pieces = packed ? 1 : (size_t)value->rows, length = packed ? row * (size_t)value->rows : row;
        for (size_t piece = 0; piece < pieces; piece++) {
            char *at = (char *)value->data + piece * step;
            if (to_device)
                TRY(device->table->upload(device, at, bytes, length));
            else
                TRY(device->table->download(device, bytes, at, length));
            bytes += length;
        }
    }
    return device->table->synchronize(device);
}

static void hash_number(XXH3_state_t *state, uint64_t number) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(number >> (8 * i));
    XXH3_64bits_update(state, bytes, sizeof(bytes));
}

static status_t hash_manifest(const trained_t *trained, uint64_t *manifest) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) FAIL(STATUS_MEMORY, "out of memory");
    XXH3_64bits_reset(state);
    hash_number(state, (uint64_t)trained->count);
    for (int i = 0; i < trained->count; i++) {
        const trained_tensor_t *tensor = &trained->tensor[i];
        XXH3_64bits_update(state, tensor->name, strlen(tensor->name) + 1);
        hash_number(state, (uint64_t)tensor->parameter->value.rows);
        hash_number(state, (uint64_t)tensor->parameter->value.columns);
        hash_number(state, (uint64_t)tensor->parameter->value.dtype);
    }
    *manifest = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return STATUS_OK;
}

// The values as bytes, with manifest and checksum.
static status_t copy_values(model_t *model, const trained_t *trained, uint8_t **bytes, uint64_t *checksum) {
    *bytes = NULL;
    TRY(memory_allocate(trained->bytes, 1, (void **)bytes));
    status_t status = move_values(model, trained, *bytes, false);
    if (status) {
        free(*bytes);
        *bytes = NULL;
        return status;
    }
    *checksum = XXH3_64bits(*bytes, trained->bytes);
    return STATUS_OK;
}

status_t weights_manifest(model_t *model, uint64_t *manifest, uint64_t *checksum, int64_t *bytes) {
    trained_t trained;
    uint8_t *values = NULL;
    TRY(list_trained(model, &trained));
    status_t status = hash_manifest(&trained, manifest);
    if (!status) status = copy_values(model, &trained, &values, checksum);
    *bytes = (int64_t)trained.bytes;
    free(values);
    free(trained.tensor);
    return status;
}

// ---- server ----

typedef struct snapshot {
    int64_t version;
    uint8_t *bytes;
    size_t size;
} snapshot_t;

struct weight_server {
    hub_t *hub;
    pthread_t thread;
    atomic_bool stop;
    int keep;
    double heartbeat_s, suspected; // suspected: since when the I/O thread seems to stand still; 0: it does not
    pthread_mutex_t lock;
    // Guarded by the lock:
    snapshot_t *snapshot; // [keep], oldest first
    int held;
    status_t failure; // of the thread
};

static const snapshot_t *find_snapshot(const weight_server_t *server, int64_t version) {
    for (int i = 0; i < server->held; i++)
        if (server->snapshot[i].version == version) return &server->snapshot[i];
    return NULL;
}

// The answer to one PULL, packed under the lock: a publication may drop the snapshot right after.
static status_t answer_pull(weight_server_t *server, int64_t version, int64_t chunk, link_buffer_t *out) {
    message_t answer = {.type = MESSAGE_CHUNK};
    pthread_mutex_lock(&server->lock);
    const snapshot_t *snapshot = find_snapshot(server, version);
    size_t size = snapshot ? snapshot->size : 0;
    if (!snapshot || (chunk && (uint64_t)chunk >= (size + CHUNK_BYTES - 1) / CHUNK_BYTES)) {
        answer.type = MESSAGE_ERROR;
        answer.error.world_rank = -1;
        if (!snapshot)
            snprintf(answer.error.sentence, sizeof(answer.error.sentence),
                     "version %" PRId64 " of the weights is not held (any more); held are %" PRId64 " .. %" PRId64,
                     version, server->held ? server->snapshot[0].version : -1,
                     server->held ? server->snapshot[server->held - 1].version : -1);
        else
            snprintf(answer.error.sentence, sizeof(answer.error.sentence),
                     "version %" PRId64 " of the weights has no chunk %" PRId64, version, chunk);
    } else {
        size_t at = (size_t)chunk * CHUNK_BYTES;
        answer.chunk.version = version;
        answer.chunk.chunk = chunk;
        answer.chunk.data = snapshot->bytes + at;
        answer.chunk.size = (int64_t)(size - at < CHUNK_BYTES ? size - at : CHUNK_BYTES);
    }
    status_t status = message_pack(&answer, out);
    pthread_mutex_unlock(&server->lock);
    return status;
}

static status_t serve_event(weight_server_t *server, hub_event_t *event) {
    link_buffer_t answer = {0};
    message_t message;
    if (event->kind != HUB_MESSAGE) return STATUS_OK;
    status_t status = message_unpack(event->message.data, event->message.size, &message);
    if (status || message.type != MESSAGE_PULL) {
        hub_drop(server->hub, event->peer, status ? status_message(status) : "it sent something else than PULL");
        status_free(status);
        if (!status) message_free(&message);
        return STATUS_OK;
    }
    // Each answer is a megabyte: one that asks and does not take must not fill this process's memory.
    if (hub_waiting(server->hub, event->peer) >= CHUNKS_WAITING) {
        hub_drop(server->hub, event->peer, "it asks for more chunks than it takes");
        return STATUS_OK;
    }
    TRY(answer_pull(server, message.pull.version, message.pull.chunk, &answer));
    status = hub_send(server->hub, event->peer, answer);
    if (status && status_kind(status) == STATUS_PEER) { // gone meanwhile: its affair
        status_free(status);
        return STATUS_OK;
    }
    return status;
}

static void *server_thread(void *argument) {
    weight_server_t *server = argument;
    status_t status = STATUS_OK;
    while (!atomic_load(&server->stop) && !status) {
        hub_event_t event;
        status = hub_receive(server->hub, 0.05, &event);
        if (status) break;
        status = serve_event(server, &event);
        link_buffer_free(&event.message);
    }
    pthread_mutex_lock(&server->lock);
    server->failure = status;
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

status_t weight_server_open(const link_options_t *options, const char *bind_endpoint, int keep, weight_server_t **out) {
    *out = NULL;
    if (keep < 1) FAIL(STATUS_INVALID, "a weight server must keep at least one version, not %d", keep);
    weight_server_t *server = NULL;
    TRY(ALLOCATE(&server, 1));
    server->keep = keep;
    server->heartbeat_s = transport_options(options).heartbeat_s;
    pthread_mutex_init(&server->lock, NULL);
    status_t status = ALLOCATE(&server->snapshot, keep);
    if (!status) status = hub_open(bind_endpoint, options, &server->hub);
    if (!status) status = transport_start_thread(&server->thread, server_thread, server);
    if (status) {
        hub_close(server->hub);
        pthread_mutex_destroy(&server->lock);
        free(server->snapshot);
        free(server);
        PASS_ON(status);
    }
    *out = server;
    return STATUS_OK;
}

status_t weight_server_check(weight_server_t *server) {
    double now = clock_seconds(), still = hub_still_seconds(server->hub);
    if (still < server->heartbeat_s) server->suspected = 0;
    if (still < server->heartbeat_s) return STATUS_OK;
    // A process that was stopped itself finds its threads still: they get a moment to show that they are not.
    if (server->suspected <= 0) server->suspected = now;
    if (now - server->suspected < SECOND_LOOK_S) return STATUS_OK;
    FAIL(STATUS_TIMEOUT,
         "the thread in \"serving weights\" has not moved for %.0f s; start the run again to go on from its last "
         "checkpoint",
         still);
}

void weight_server_close(weight_server_t *server) {
    if (!server) return;
    atomic_store(&server->stop, true);
    pthread_join(server->thread, NULL);
    hub_close(server->hub);
    for (int i = 0; i < server->held; i++) free(server->snapshot[i].bytes);
    status_free(server->failure);
    pthread_mutex_destroy(&server->lock);
    free(server->snapshot);
    free(server);
}

// Takes over `bytes`, also on error.
static status_t add_snapshot(weight_server_t *server, snapshot_t snapshot) {
    status_t status = STATUS_OK;
    uint8_t *dropped = NULL;
    pthread_mutex_lock(&server->lock);
    if (server->failure) {
        status = server->failure;
        server->failure = NULL;
    } else if (server->held && snapshot.version <= server->snapshot[server->held - 1].version) {
        status = STATUS_NEW(STATUS_FAILED, "weights version %" PRId64 " is published after version %" PRId64,
                            snapshot.version, server->snapshot[server->held - 1].version);
    } else {
        if (server->held == server->keep) {
            dropped = server->snapshot[0].bytes;
            memmove(server->snapshot, server->snapshot + 1, (size_t)(server->keep - 1) * sizeof(snapshot_t));
            server->held--;
        }
        server->snapshot[server->held++] = snapshot;
    }
    pthread_mutex_unlock(&server->lock);
    free(status ? snapshot.bytes : dropped);
    return status;
}

// Publishes `bytes` (taken over) as the values of the listed tensors.
static status_t publish(weight_server_t *server, const model_t *model, const trained_t *trained, uint8_t *bytes,
                        uint64_t checksum, int64_t version, message_weights_t *out) {
    memset(out, 0, sizeof(*out));
    status_t status = STATUS_OK;
    if (strlen(hub_endpoint(server->hub)) >= sizeof(out->endpoint))
        status =
            STATUS_NEW(STATUS_UNAVAILABLE, "the address %s is too long to be announced", hub_endpoint(server->hub));
    if (!status) status = hash_manifest(trained, &out->manifest);
    if (status) {
        free(bytes);
        return status;
    }
    out->version = version;
    out->checksum = checksum;
    out->bytes = (int64_t)trained->bytes;
    out->chunk_bytes = CHUNK_BYTES;
    out->vision_version = model->vision_version;
    memcpy(out->endpoint, hub_endpoint(server->hub), strlen(hub_endpoint(server->hub)) + 1);
    return add_snapshot(server, (snapshot_t){version, bytes, trained->bytes});
}

status_t weight_server_publish(weight_server_t *server, model_t *model, int64_t version, message_weights_t *out) {
    trained_t trained;
    uint8_t *bytes = NULL;
    uint64_t checksum = 0;
    TRY(list_trained(model, &trained));
    status_t status = copy_values(model, &trained, &bytes, &checksum);
    if (!status) status = publish(server, model, &trained, bytes, checksum, version, out);
    free(trained.tensor);
    return status;
}

status_t weight_server_restore(weight_server_t *server, model_t *model, int64_t version, void *bytes, size_t size,
                               message_weights_t *out) {
    trained_t trained = {0};
    status_t status = list_trained(model, &trained);
    if (!status && size != trained.bytes)
        status =
            STATUS_NEW(STATUS_INVALID,
                       "the saved weights of version %" PRId64 " have %zu bytes, but this model trains %zu; resume "
                       "with the configuration of the run",
                       version, size, trained.bytes);
    if (status)
        free(bytes);
    else
        status = publish(server, model, &trained, bytes, XXH3_64bits(bytes, size), version, out);
    free(trained.tensor);
    return status;
}

status_t weight_server_snapshot(weight_server_t *server, int64_t version, const void **bytes, size_t *size) {
    pthread_mutex_lock(&server->lock);
    const snapshot_t *snapshot = find_snapshot(server, version);
    *bytes = snapshot ? snapshot->bytes : NULL;
    *size = snapshot ? snapshot->size : 0;
    pthread_mutex_unlock(&server->lock);
    if (!snapshot) FAIL(STATUS_INVALID, "version %" PRId64 " of the weights is not held", version);
    return STATUS_OK;
}

// ---- pull ----

typedef struct pull {
    const message_weights_t *announced;
    link_t *link;
    uint8_t *bytes;
    int64_t chunks, asked, arrived;
    double until;
} pull_t;

static status_t ask(pull_t *pull) {
    link_buffer_t buffer;
    message_t message = {.type = MESSAGE_PULL};
    message.pull.version = pull->announced->version;
    message.pull.chunk = pull->asked;
    TRY(message_pack(&message, &buffer));
    TRY(link_send(pull->link, buffer, fmax(pull->until - clock_seconds(), 0)));
    pull->asked++;
    return STATUS_OK;
}

static status_t take_chunk(pull_t *pull, const message_t *message) {
    if (message->type == MESSAGE_ERROR) FAIL(STATUS_PEER, "the weight server says: %s", message->error.sentence);
    const message_chunk_t *chunk = &message->chunk;
    int64_t at = pull->arrived * pull->announced->chunk_bytes, left = pull->announced->bytes - at;
    int64_t wanted = left < pull->announced->chunk_bytes ? left : pull->announced->chunk_bytes;
    if (message->type != MESSAGE_CHUNK || chunk->version != pull->announced->version || chunk->chunk != pull->arrived ||
        chunk->size != wanted)
        FAIL(STATUS_PEER, "the weight server answered with something else than chunk %" PRId64 " of version %" PRId64,
             pull->arrived, pull->announced->version);
    memcpy(pull->bytes + at, chunk->data, (size_t)chunk->size);
    pull->arrived++;
    return STATUS_OK;
}

static status_t pull_chunks(pull_t *pull) {
    while (pull->arrived < pull->chunks) {
        while (pull->asked < pull->chunks && pull->asked - pull->arrived < CHUNKS_AHEAD) TRY(ask(pull));
        link_buffer_t buffer;
        TRY(link_receive(pull->link, fmax(pull->until - clock_seconds(), 0), &buffer));
        if (!buffer.data)
            FAIL(STATUS_TIMEOUT,
                 "version %" PRId64 " of the weights did not arrive in time: %" PRId64 " of %" PRId64 " chunks came",
                 pull->announced->version, pull->arrived, pull->chunks);
        message_t message;
        status_t status = message_unpack(buffer.data, buffer.size, &message);
        link_buffer_free(&buffer);
        TRY(status);
        status = take_chunk(pull, &message);
        message_free(&message);
        TRY(status);
        link_progress(pull->link);
    }
    return STATUS_OK;
}

// Brings the announced bytes and checks them.
static status_t fetch_bytes(const message_weights_t *announced, const link_options_t *options, const char *name,
                            double deadline_s, uint8_t **out) {
    pull_t pull = {.announced = announced, .until = clock_seconds() + deadline_s};
    link_buffer_t hello;
    message_t message = {.type = MESSAGE_HELLO};
    snprintf(message.hello.role, sizeof(message.hello.role), "pull");
    pull.chunks = (announced->bytes + announced->chunk_bytes - 1) / announced->chunk_bytes;
    TRY(memory_allocate((size_t)announced->bytes, 1, (void **)&pull.bytes));
    status_t status = message_pack(&message, &hello);
    if (!status) status = link_open(announced->endpoint, name, hello, deadline_s, options, &pull.link);
    if (!status) status = pull_chunks(&pull);
    link_close(pull.link);
    if (!status && XXH3_64bits(pull.bytes, (size_t)announced->bytes) != announced->checksum)
        status =
            STATUS_NEW(STATUS_PEER, "version %" PRId64 " of the weights arrived with another checksum than announced",
                       announced->version);
    if (status) {
        free(pull.bytes);
        return status_context(status, "pulling weights from %s", announced->endpoint);
    }
    *out = pull.bytes;
    return STATUS_OK;
}

// Repacks the parameters among the trained tensors; adapters have no packed form.
static status_t tell_changed(model_t *model, const trained_t *trained, const message_weights_t *announced) {
    bool *changed = NULL;
    TRY(ALLOCATE(&changed, model->parameter_count));
    for (int i = 0; i < trained->count; i++) {
        for (int p = 0; p < model->parameter_count; p++)
            if (trained->tensor[i].parameter == &model->parameter[p]) changed[p] = true;
    }
    status_t status = model_parameters_changed(model, changed, announced->version);
    free(changed);
    TRY(status);
    model->vision_version = announced->vision_version;
    return STATUS_OK;
}

status_t weights_pull(const message_weights_t *announced, const link_options_t *options, const char *name,
                      model_t *model, double deadline_s) {
    trained_t trained;
    uint8_t *bytes = NULL;
    uint64_t manifest = 0;
    TRY(list_trained(model, &trained));
    status_t status = hash_manifest(&trained, &manifest);
    if (!status && (manifest != announced->manifest || (int64_t)trained.bytes != announced->bytes))
        status = STATUS_NEW(STATUS_PEER,
                            "version %" PRId64 " of the weights is for another set of trained tensors (%" PRId64
                            " bytes, here %zu); all ranks must run the same configuration",
                            announced->version, announced->bytes, trained.bytes);
    if (!status && announced->chunk_bytes <= 0)
        status = STATUS_NEW(STATUS_PEER, "the announced chunks have %" PRId64 " bytes", announced->chunk_bytes);
    if (!status) status = fetch_bytes(announced, options, name, deadline_s, &bytes);
    if (!status) status = move_values(model, &trained, bytes, true);
    if (!status) status = tell_changed(model, &trained, announced);
    free(bytes);
    free(trained.tensor);
    return status;
}
