#include "common/model/model_start.h"

static bool part_is_trained(const config_t *config, model_part_t part) {
    switch (part) {
    case PART_VISION:
        return config->train.vision;
    case PART_PROJECTOR:
        return config->train.projector;
    default:
        return config->train.language;
    }
}

static void mark(parameter_t *parameter, bool trained) {
    parameter->sink = (gradient_sink_t){.sum = trained ? parameter->value.data : NULL};
}

static void mark_trained(const config_t *config, model_t *model) {
    bool adapters = model->adapter_rank > 0;
    for (int i = 0; i < model->parameter_count; i++) {
        bool part = part_is_trained(config, model->spec[i].part);
        mark(&model->parameter[i], part && !adapters);
        if (!model->adapter[i]) continue;
        mark(&model->adapter[i]->a, part);
        mark(&model->adapter[i]->b, part);
    }
}

static status_t start_adapters(const config_t *config, model_t *model) {
    if (config->adapter && config->adapter[0]) {
        TRY(model_load_adapter(model, config->adapter));
        if (config->lora.rank > 0 && config->lora.rank != model->adapter_rank) {
            FAIL(STATUS_INVALID, "the adapter in %s has rank %d but lora.rank is %d; give them the same rank, or 0",
                 config->adapter, model->adapter_rank, config->lora.rank);
        }
        return STATUS_OK;
    }
    if (config->lora.rank < 1) return STATUS_OK;
    adapter_request_t request = {.patterns = (const char *const *)config->lora.targets.item,
                                 .pattern_count = config->lora.targets.count,
                                 .excluded = (const char *const *)config->lora.exclude.item,
                                 .excluded_count = config->lora.exclude.count,
                                 .rank = config->lora.rank,
                                 .alpha = (float)config->lora.alpha,
                                 .rank_stabilised = config->lora.rank_stabilised,
                                 .seed = (uint64_t)config->seed};
    return model_request_adapters(model, &request);
}

status_t model_start(const config_t *config, device_t *device, model_t **out) {
    *out = NULL;
    if (!config->model || !config->model[0]) FAIL(STATUS_INVALID, "model is not set; name a Hugging Face folder");
    model_t *model;
    dtype_t dtype;
    TRY(status_context(model_dtype_parse(config->precision, &dtype), "precision"));
    TRY(model_open_as(config->model, device, dtype, &model));
    status_t status = config->init_std > 0.0 ? model_initialise(model, (uint64_t)config->seed, (float)config->init_std)
                                             : model_load(model, config->model);
    if (!status) status = start_adapters(config, model);
    if (status) {
        model_close(model);
        PASS_ON(status);
    }
    mark_trained(config, model);
    *out = model;
    return STATUS_OK;
}

void model_freeze_all(model_t *model) {
    for (int i = 0; i < model->parameter_count; i++) {
        mark(&model->parameter[i], false);
        if (!model->adapter[i]) continue;
        mark(&model->adapter[i]->a, false);
        mark(&model->adapter[i]->b, false);
    }
}

void model_print_counts(const model_t *model, FILE *stream) {
    int64_t all_trainable = 0, all_total = 0;
    fprintf(stream, "%-10s %14s %14s\n", "part", "trainable", "frozen");
    for (int part = 0; part < PART_COUNT; part++) {
        int64_t trainable, total;
        model_count(model, (model_part_t)part, &trainable, &total);
        if (!total) continue;
        fprintf(stream, "%-10s %14lld %14lld\n", model_part_name((model_part_t)part), (long long)trainable,
                (long long)(total - trainable));
        all_trainable += trainable;
        all_total += total;
    }
    fprintf(stream, "%-10s %14lld %14lld\n", "all", (long long)all_trainable, (long long)(all_total - all_trainable));
}
