#include "learner/checkpoint.h"

#include "learner/disk.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHECKPOINT_SCHEMA = 1, PATH_BYTES = 4096 };

static void file_path(const char *output, int64_t step, char path[PATH_BYTES]) {
    snprintf(path, PATH_BYTES, "%s/checkpoints/step-%lld.h5", output, (long long)step);
}

// "step-12.h5" -> 12; -1 for any other name.
static int64_t step_of_name(const char *name) {
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    char *end;
    errno = 0;
    long long step = strtoll(name + 5, &end, 10);
    return errno || strcmp(end, ".h5") != 0 ? -1 : step;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

status_t checkpoint_list(const char *output, const char *folder, int64_t **out, size_t *count) {
    char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s", output, folder);
    *out = NULL;
    *count = 0;
    DIR *directory = opendir(path);
    if (!directory) {
        if (errno == ENOENT) return STATUS_OK;
        FAIL(STATUS_IO, "cannot read the folder %s: %s", path, strerror(errno));
    }
    size_t capacity = 0;
    status_t status = STATUS_OK;
    for (const struct dirent *entry; !status && (entry = readdir(directory));) {
        int64_t step = step_of_name(entry->d_name);
        if (step < 0) continue;
        status = memory_grow((void **)out, &capacity, *count + 1, sizeof(**out));
        if (!status) (*out)[(*count)++] = step;
    }
    closedir(directory);
    if (*count > 1) qsort(*out, *count, sizeof(**out), newest_first);
    return status;
}

status_t checkpoint_newest(const char *output, int64_t *step) {
    int64_t *steps;
    size_t count;
    *step = -1;
    TRY(checkpoint_list(output, "checkpoints", &steps, &count));
    for (size_t i = 0; i < count && *step < 0; i++) {
        char path[PATH_BYTES];
        file_path(output, steps[i], path);
        store_t *store;
        status_t status = store_open(path, &store);
        if (status) {
            fprintf(stderr, "poise: passing over %s: %s\n", path, status_message(status));
            status_free(status);
            continue;
        }
        store_close(store);
        *step = steps[i];
    }
    free(steps);
    return STATUS_OK;
}

// ---- writing ----

static status_t write_configuration(const learner_t *learner, store_t *store) {
    char *text;
    TRY(config_to_text(learner->config, &text));
    status_t status = store_write_string(store, "config", text);
    free(text);
    return status;
}

static status_t write_header(const learner_t *learner, store_t *store, const char *kind, int64_t completed) {
    char hash[CONFIG_HASH_BYTES];
    TRY(config_training_hash_text(learner->config, hash));
    TRY(store_write_number(store, "schema", CHECKPOINT_SCHEMA));
    TRY(store_write_string(store, "kind", kind));
    TRY(store_write_number(store, "step", completed));
    TRY(store_write_string(store, "training_hash", hash));
    TRY(store_write_string(store, "data_hash", packed_hash(learner->packed)));
    for (int part = 0; part < PART_COUNT; part++) {
        char name[64];
        int64_t trainable, total;
        model_count(learner->model, (model_part_t)part, &trainable, &total);
        snprintf(name, sizeof(name), "counts/%s_trainable", model_part_name((model_part_t)part));
        TRY(store_write_number(store, name, trainable));
        snprintf(name, sizeof(name), "counts/%s_frozen", model_part_name((model_part_t)part));
        TRY(store_write_number(store, name, total - trainable));
    }
    return write_configuration(learner, store);
}

// What cannot be removed stays, and is told: the new checkpoint is whole, and the run can go on.
static void remove_old(const config_t *config) {
    int64_t *steps;
    size_t count;
    status_t status = checkpoint_list(config->output, "checkpoints", &steps, &count);
    for (size_t i = (size_t)config->checkpoint.keep; i < count && !status; i++) {
        char path[PATH_BYTES];
        file_path(config->output, steps[i], path);
        if (unlink(path) != 0 && errno != ENOENT)
            status = STATUS_NEW(STATUS_IO, "cannot remove the old checkpoint %s: %s", path, strerror(errno));
    }
    if (status) fprintf(stderr, "poise: old checkpoints stay: %s\n", status_message(status));
    status_free(status);
    free(steps);
}

// Makes the folder too.
static status_t create(learner_t *learner, const char *path, const char *kind, int64_t completed, store_t **store) {
    char folder[PATH_BYTES];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    if (slash) TRY(file_make_directory(folder));
    TRY(store_create(path, store));
    return write_header(learner, *store, kind, completed);
}

typedef struct save {
    learner_t *learner;
    const char *path, *kind;
    int64_t completed;
    checkpoint_part_t part;
    void *context;
    bool regular; // one of the run's own, which older ones give way to
} save_t;

// The outcome is this learner's own.
static status_t save_once(void *context) {
    const save_t *save = context;
    learner_t *learner = save->learner;
    job_phase(learner->job, "writing a checkpoint");
    store_t *store = NULL;
    status_t status = learner->first ? create(learner, save->path, save->kind, save->completed, &store) : STATUS_OK;
    // Even when the file could not be made the gathers run: the other ranks are in them.
    status = status_first(status, optimizer_save(learner->optimizer, status ? NULL : store));
    if (!status && store && save->part) status = save->part(save->context, store);
    if (!status && store) status = store_commit(store);
    store_close(store);
    if (!status && learner->first && save->regular) remove_old(learner->config);
    return status;
}

status_t checkpoint_write(learner_t *learner, const char *path, const char *kind, int64_t completed,
                          checkpoint_part_t part, void *context) {
    save_t save = {learner, path, kind, completed, part, context, false};
    return learner_agree(learner, save_once(&save), "checkpoint");
}

// Masters and two moments of what is trained, the published versions that staleness keeps, and the rest of the file.
static int64_t bytes_needed(const learner_t *learner, const char *kind) {
    int64_t elements = 0;
    for (int part = 0; part < PART_COUNT; part++) {
        int64_t trainable, total;
        model_count(learner->model, (model_part_t)part, &trainable, &total);
        elements += trainable;
    }
    int versions = strcmp(kind, "grpo") ? 0 : learner->config->grpo.staleness;
    return elements * (int64_t)sizeof(float) * (3 + versions) + (64 << 10);
}

status_t checkpoint_save(learner_t *learner, const char *kind, int64_t completed, bool last, checkpoint_part_t part,
                         void *context) {
    char path[PATH_BYTES], folder[PATH_BYTES], what[64], next[96] = "with the next checkpoint at its end";
    const config_t *config = learner->config;
    file_path(config->output, completed, path);
    save_t save = {learner, path, kind, completed, part, context, true};
    snprintf(folder, sizeof(folder), "%s/checkpoints", config->output);
    snprintf(what, sizeof(what), "the checkpoint of step %lld", (long long)completed);
    if (config->checkpoint.every > 0 && completed + config->checkpoint.every < learner->last)
        snprintf(next, sizeof(next), "with the next checkpoint after step %lld",
                 (long long)completed + config->checkpoint.every);
    const disk_task_t task = {.what = what,
                              .folder = folder,
                              .bytes = bytes_needed(learner, kind),
                              .next = next,
                              .last = last,
                              .run = save_once,
                              .context = &save};
    return disk_try(learner, &task);
}

// ---- reading ----

static status_t check_text(store_t *store, const char *name, const char *expected, const char *what) {
    char *text;
    TRY(store_read_string(store, name, &text));
    bool same = !strcmp(text, expected);
    status_t status = same ? STATUS_OK
                           : STATUS_NEW(STATUS_INVALID,
                                        "it was written %s (%s there, %s now); choose another output folder to start "
                                        "anew, or go back to what the run began with",
                                        what, text, expected);
    free(text);
    return status;
}

static status_t check_header(const learner_t *learner, store_t *store, const char *kind, int64_t step) {
    char hash[CONFIG_HASH_BYTES];
    TRY(config_training_hash_text(learner->config, hash));
    int64_t schema, stored;
    TRY(store_read_number(store, "schema", &schema));
    if (schema != CHECKPOINT_SCHEMA)
        FAIL(STATUS_INVALID, "it has schema %lld, this program reads %d", (long long)schema, CHECKPOINT_SCHEMA);
    TRY(check_text(store, "kind", kind, "by another command"));
    TRY(check_text(store, "training_hash", hash, "under another training configuration"));
    TRY(check_text(store, "data_hash", packed_hash(learner->packed), "with other training data"));
    TRY(store_read_number(store, "step", &stored));
    if (stored != step)
        FAIL(STATUS_INVALID, "it is named for step %lld but holds step %lld", (long long)step, (long long)stored);
    return STATUS_OK;
}

status_t checkpoint_open(const learner_t *learner, const char *kind, int64_t step, store_t **store) {
    char path[PATH_BYTES];
    file_path(learner->config->output, step, path);
    return checkpoint_open_path(learner, path, kind, step, store);
}

status_t checkpoint_open_path(const learner_t *learner, const char *path, const char *kind, int64_t step,
                              store_t **store) {
    TRY(store_open(path, store));
    status_t status = check_header(learner, *store, kind, step);
    if (!status) return STATUS_OK;
    store_close(*store);
    *store = NULL;
    return status_context(status, "cannot go on from %s", path);
}

// What a killed run left half written.
static void sweep(const learner_t *learner) {
    static const char *const folders[] = {"", "/checkpoints", "/trajectories", "/bad_steps"};
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
        snprintf(path, sizeof(path), "%s%s", learner->config->output, folders[i]);
        store_sweep(path);
    }
}

static status_t find(const learner_t *learner, int64_t *step) {
    TRY(checkpoint_newest(learner->config->output, step));
    if (*step >= 0 && !learner->config->resume) {
        FAIL(STATUS_INVALID,
             "%s/checkpoints already holds a checkpoint of step %lld; set resume: true to go on from it, or choose "
             "another output folder",
             learner->config->output, (long long)*step);
    }
    return STATUS_OK;
}

// *store: the checkpoint to go on from; NULL and *step -1 when there is none.
static status_t find_checked(learner_t *learner, const char *kind, store_t **store, int64_t *step) {
    *store = NULL;
    *step = -1;
    // One rank looks, so that a slow file system cannot show two ranks two folders.
    TRY(learner_agree(learner, learner->first ? find(learner, step) : STATUS_OK, "looking for checkpoints"));
    TRY(comm_broadcast(learner->comm, step, sizeof(*step), 0, "looking for checkpoints"));
    if (*step < 0) return STATUS_OK;
    status_t status = learner_agree(learner, checkpoint_open(learner, kind, *step, store), "opening a checkpoint");
    if (!status) return STATUS_OK;
    store_close(*store);
    *store = NULL;
    return status;
}

status_t checkpoint_check(learner_t *learner, const char *kind, int64_t *completed) {
    store_t *store;
    int64_t step;
    *completed = 0;
    TRY(find_checked(learner, kind, &store, &step));
    store_close(store);
    if (step > 0) *completed = step;
    return STATUS_OK;
}

status_t checkpoint_resume(learner_t *learner, const char *kind, checkpoint_part_t part, void *context,
                           int64_t *completed) {
    store_t *store;
    int64_t step;
    *completed = 0;
    job_phase(learner->job, "reading a checkpoint");
    if (learner->first) sweep(learner);
    TRY(find_checked(learner, kind, &store, &step));
    if (step < 0) return STATUS_OK;
    status_t status = optimizer_load(learner->optimizer, store);
    if (!status) {
        status_t read = learner->first && part ? part(context, store) : STATUS_OK;
        status = learner_agree(learner, read, "reading a checkpoint");
    }
    store_close(store);
    TRY(status);
    if (learner->first) fprintf(stderr, "poise: going on after step %lld\n", (long long)step);
    *completed = step;
    return STATUS_OK;
}
