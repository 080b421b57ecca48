#include "learner/setup.h"

#include "common/model/model_processor.h"
#include "common/model/model_start.h"
#include "common/store/store.h"
#include "learner/disk.h"

#include <stdlib.h>
#include <string.h>

static status_t open_parts(learner_t *learner, bool grpo) {
    const config_t *config = learner->config;
    if (!config->data.train || !config->data.train[0])
        FAIL(STATUS_INVALID, "data.train is not set; name a file that \"poise pack\" made");
    TRY(device_open(job_device(learner->job), config->threads, &learner->device));
    if (learner->first && learner->device->note) fprintf(stderr, "poise: %s\n", learner->device->note);
    TRY(model_start(config, learner->device, &learner->model));
    if (grpo && learner->first) model_warn_generation(learner->model, stderr);
    TRY(packed_open(config->data.train, &learner->packed));
    TRY(packed_check_model(learner->packed, config->model));
    if (packed_count(learner->packed) < 1) FAIL(STATUS_INVALID, "%s holds no samples", config->data.train);
    if (learner->model->config.has_vision) {
        TRY(patch_cache_open(&learner->model->config.image, (size_t)config->data.patch_cache_mb << 20,
                             &learner->patches));
    }
    if (grpo && config->grpo.kl > 0.0) {
        TRY(model_start(config, learner->device, &learner->reference));
        model_freeze_all(learner->reference);
    }
    return launcher_open(config, learner->device, &learner->launcher);
}

status_t learner_open(job_t *job, bool grpo, learner_t *out) {
    const config_t *config = job->config;
    *out = (learner_t){.job = job, .config = config, .comm = job->learners};
    out->first = comm_rank(out->comm) == 0;
    out->last = config->optimizer.steps;
    if (config->optimizer.stop_after > 0 && config->optimizer.stop_after < out->last)
        out->last = config->optimizer.stop_after;
    status_t status = learner_agree(out, open_parts(out, grpo), "start of the learners");
    if (!status) status = optimizer_open(config, out->model, out->comm, &out->optimizer);
    if (status) {
        learner_close(out);
        PASS_ON(status);
    }
    return STATUS_OK;
}

void learner_close(learner_t *learner) {
    launcher_close(&learner->launcher);
    optimizer_close(learner->optimizer);
    patch_cache_close(learner->patches);
    packed_close(learner->packed);
    model_close(learner->reference);
    model_close(learner->model);
    device_close(learner->device);
    *learner = (learner_t){0};
}

status_t learner_agree(learner_t *learner, status_t status, const char *phase) {
    int64_t failed = status != STATUS_OK;
    status_t reduced = comm_all_reduce_i64(learner->comm, &failed, 1, COMM_MAX, phase);
    if (status || reduced) return status_first(status, reduced);
    if (failed) FAIL(STATUS_PEER, "another learner failed in \"%s\"; its message says why", phase);
    return STATUS_OK;
}

status_t learner_should_stop(learner_t *learner, bool *stop) {
    int64_t wanted = job_stop_requested(learner->job);
    TRY(comm_all_reduce_i64(learner->comm, &wanted, 1, COMM_MAX, "stop request"));
    *stop = wanted != 0;
    return STATUS_OK;
}

status_t learner_open_metrics(learner_t *learner, const char *label, int64_t completed, metrics_t **metrics,
                              progress_t *progress) {
    const config_t *config = learner->config;
    status_t status = STATUS_OK;
    job_phase(learner->job, "opening the metrics");
    if (learner->first) {
        learner_print_setup(learner, stderr);
        status = file_make_directory(config->output);
        if (!status) status = metrics_open(config->output, config->metrics.tensorboard, completed, metrics);
        progress_start(progress, label, learner->last);
    }
    return learner_agree(learner, status, "opening the metrics");
}

status_t learner_share(learner_t *learner, double *values, int64_t count, const char *phase) {
    int64_t *bits;
    TRY(ALLOCATE(&bits, count));
    memcpy(bits, values, (size_t)count * sizeof(*bits));
    status_t status = comm_all_reduce_i64(learner->comm, bits, count, COMM_SUM, phase);
    memcpy(values, bits, (size_t)count * sizeof(*bits));
    free(bits);
    return status;
}

status_t learner_sample_images(learner_t *learner, const packed_sample_t *sample, const image_patches_t **out) {
    if (sample->image_count > 0 && !learner->patches)
        FAIL(STATUS_INVALID, "sample \"%s\" has images but the model %s sees none", sample->id, learner->config->model);
    for (int i = 0; i < sample->image_count; i++) {
        status_t status = patch_cache_get(learner->patches, learner->packed, sample->images[i], &out[i]);
        if (status) return status_context(status, "image %d of sample \"%s\"", i, sample->id);
    }
    status_t status =
        batch_check_images(&learner->model->config, sample->tokens, sample->length, out, sample->image_count);
    return status ? status_context(status, "sample \"%s\"", sample->id) : STATUS_OK;
}

void learner_print_setup(const learner_t *learner, FILE *stream) {
    const model_t *model = learner->model;
    model_print_counts(model, stream);
    ledger_report_t report;
    ledger_read(learner->device, &report);
    fprintf(stream, "memory of one learner (of %d), precision %s:\n", comm_size(learner->comm),
            learner->config->precision);
    ledger_print(&report, stream);
    if (learner->reference) fprintf(stream, "  (weights twice: grpo.kl keeps those of the start)\n");
}

typedef struct model_save {
    learner_t *learner;
    char path[4096];
} model_save_t;

static status_t save_model_once(void *context) {
    const model_save_t *save = context;
    const learner_t *learner = save->learner;
    if (!learner->first) return STATUS_OK;
    return learner->model->adapter_rank > 0 ? model_save_adapter(learner->model, learner->config->model, save->path)
                                            : model_save(learner->model, learner->config->model, save->path);
}

status_t learner_save_model(learner_t *learner) {
    const config_t *config = learner->config;
    if (!config->save_model) return STATUS_OK;
    job_phase(learner->job, "saving the model");
    model_save_t save = {.learner = learner};
    bool adapter = learner->model->adapter_rank > 0;
    int64_t elements = 0, trained = 0;
    for (int part = 0; part < PART_COUNT; part++) {
        int64_t trainable, total;
        model_count(learner->model, (model_part_t)part, &trainable, &total);
        elements += total;
        trained += trainable;
    }
    snprintf(save.path, sizeof(save.path), "%s/%s", config->output, adapter ? "adapter" : "model");
    const disk_task_t task = {.what = adapter ? "the trained adapter" : "the trained model",
                              .folder = config->output,
                              .bytes = (adapter ? trained : elements) * (int64_t)sizeof(float) + (1 << 20),
                              .last = true,
                              .run = save_model_once,
                              .context = &save};
    TRY(disk_try(learner, &task));
    if (learner->first) fprintf(stderr, "poise: wrote %s\n", save.path);
    return STATUS_OK;
}

status_t learner_note_metrics(learner_t *learner, status_t status) {
    bool goes_on = learner->first && learner->config->checkpoint.on_failure == ON_FAILURE_CONTINUE;
    if (status && goes_on && status_kind(status) == STATUS_IO) {
        if (!learner->metrics_late)
            fprintf(stderr,
                    "poise: %s; free space in %s: the run goes on, and lines of metrics are kept until they can be "
                    "written\n",
                    status_message(status), learner->config->output);
        learner->metrics_late = true;
        status_free(status);
        status = STATUS_OK;
    } else if (!status) {
        learner->metrics_late = false;
    }
    return learner_agree(learner, status, "metrics");
}

static status_t flush_metrics(void *metrics) {
    return metrics ? metrics_flush(metrics) : STATUS_OK;
}

status_t learner_end_metrics(learner_t *learner, metrics_t *metrics) {
    const disk_task_t task = {.what = "the metrics",
                              .folder = learner->config->output,
                              .last = true,
                              .run = flush_metrics,
                              .context = metrics};
    return disk_try(learner, &task);
}
