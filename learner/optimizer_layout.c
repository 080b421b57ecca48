#include "learner/optimizer_internal.h"

#include <stdlib.h>
#include <string.h>

static status_t layout_tensors(optimizer_t *optimizer) {
    TRY(model_trained_tensors(optimizer->model, &optimizer->tensor, &optimizer->tensors));
    if (optimizer->tensors < 1) {
        FAIL(STATUS_INVALID, "nothing is left to train; set one of train.vision, train.projector, train.language to "
                             "true, or lora.rank above 0");
    }
    TRY(ALLOCATE(&optimizer->start, optimizer->tensors + 1));
    for (int i = 0; i < optimizer->tensors; i++) {
        const trained_tensor_t *tensor = &optimizer->tensor[i];
        const matrix_t *value = &tensor->parameter->value;
        if (value->stride != value->columns || tensor->elements != (int64_t)value->rows * value->columns) {
            FAIL(STATUS_FAILED, "tensor %s is not contiguous", tensor->name);
        }
        int64_t blocks = (tensor->elements + GRADIENT_BLOCK - 1) / GRADIENT_BLOCK;
        optimizer->start[i + 1] = optimizer->start[i] + blocks * GRADIENT_BLOCK;
    }
    optimizer->blocks = optimizer->start[optimizer->tensors] / GRADIENT_BLOCK;
    return STATUS_OK;
}

static status_t layout_owners(optimizer_t *optimizer) {
    int ranks = comm_size(optimizer->comm), rank = comm_rank(optimizer->comm);
    TRY(ALLOCATE(&optimizer->offset, ranks + 1));
    TRY(ALLOCATE(&optimizer->bytes, ranks + 1));
    for (int r = 0; r <= ranks; r++) optimizer->offset[r] = optimizer->blocks * r / ranks * GRADIENT_BLOCK;
    optimizer->own_first = optimizer->offset[rank];
    optimizer->own_count = optimizer->offset[rank + 1] - optimizer->own_first;
    TRY(ALLOCATE(&optimizer->segment, optimizer->tensors));
    int64_t end = optimizer->own_first + optimizer->own_count;
    for (int i = 0; i < optimizer->tensors; i++) {
        int64_t first = optimizer->start[i], last = first + optimizer->tensor[i].elements;
        if (first < optimizer->own_first) first = optimizer->own_first;
        if (last > end) last = end;
        if (first >= last) continue;
        optimizer->segment[optimizer->segments++] =
            (optimizer_segment_t){i, first - optimizer->start[i], last - first, first - optimizer->own_first};
    }
    return STATUS_OK;
}

static status_t device_take(optimizer_t *optimizer, ledger_part_t part, size_t bytes, void **out) {
    return ledger_take(optimizer->device, part, bytes ? bytes : 1, out);
}

static status_t layout_memory(optimizer_t *optimizer) {
    size_t flat = (size_t)optimizer->blocks * GRADIENT_BLOCK, own = (size_t)optimizer->own_count;
    size_t tensors = (size_t)optimizer->tensors;
    ledger_plan(optimizer->device, LEDGER_SUMS, flat * sizeof(int64_t));
    ledger_plan(optimizer->device, LEDGER_OPTIMIZER, 3 * own * sizeof(float));
    TRY(ledger_check(optimizer->device));
    TRY(device_take(optimizer, LEDGER_SUMS, flat * sizeof(int64_t), (void **)&optimizer->sum));
    TRY(device_take(optimizer, LEDGER_SUMS, tensors * sizeof(uint32_t), (void **)&optimizer->flags));
    TRY(device_take(optimizer, LEDGER_OPTIMIZER, own * sizeof(float), (void **)&optimizer->master));
    TRY(device_take(optimizer, LEDGER_OPTIMIZER, own * sizeof(float), (void **)&optimizer->first_moment));
    TRY(device_take(optimizer, LEDGER_OPTIMIZER, own * sizeof(float), (void **)&optimizer->second_moment));
    TRY(device_take(optimizer, LEDGER_SUMS, (size_t)optimizer->blocks * sizeof(double),
                    (void **)&optimizer->device_square_sum));
    TRY(device_take(optimizer, LEDGER_SUMS, tensors * sizeof(int64_t), (void **)&optimizer->device_absmax));
    ledger_plan(optimizer->device, LEDGER_SUMS, 0); // all is taken
    ledger_plan(optimizer->device, LEDGER_OPTIMIZER, 0);
    if (optimizer->host_memory) {
        optimizer->staged_sum = optimizer->sum;
        optimizer->host_flags = optimizer->flags;
        optimizer->square_sum = optimizer->device_square_sum;
        optimizer->absmax = optimizer->device_absmax;
    } else {
        TRY(ALLOCATE(&optimizer->square_sum, optimizer->blocks));
        TRY(ALLOCATE(&optimizer->absmax, tensors));
        if (!optimizer->device_comm) TRY(ALLOCATE(&optimizer->staged_sum, flat));
        TRY(ALLOCATE(&optimizer->host_flags, tensors));
    }
    TRY(ALLOCATE(&optimizer->flat, flat));
    TRY(ALLOCATE(&optimizer->reduced, 3 * tensors));
    TRY(ALLOCATE(&optimizer->scale, tensors));
    for (size_t i = 0; i < tensors; i++) {
        optimizer->scale[i] = (optimizer_scale_t){EXPONENT_START, EXPONENT_MOST, CALIBRATION_FRESH};
    }
    optimizer->host_bytes = flat * sizeof(float) + 3 * tensors * sizeof(int64_t) + tensors * sizeof(optimizer_scale_t);
    if (!optimizer->host_memory)
        optimizer->host_bytes += (size_t)optimizer->blocks * sizeof(double) + tensors * 12 +
                                 (optimizer->device_comm ? 0 : flat * sizeof(int64_t));
    ledger_note_host(optimizer->device, LEDGER_SUMS, (int64_t)optimizer->host_bytes);
    return ALLOCATE(&optimizer->changed, optimizer->model->parameter_count + 1);
}

// Masters start as the published values; sinks point into the flat sums; what a publication touches is noted.
static status_t layout_connect(optimizer_t *optimizer) {
    device_t *device = optimizer->device;
    const model_t *model = optimizer->model;
    for (int i = 0; i < optimizer->tensors; i++) {
        parameter_t *parameter = optimizer->tensor[i].parameter;
        parameter->sink =
            (gradient_sink_t){optimizer->sum + optimizer->start[i], optimizer->scale[i].exponent, optimizer->flags + i};
        for (int p = 0; p < model->parameter_count; p++) {
            const adapter_t *adapter = model->adapter ? model->adapter[p] : NULL;
            if (parameter == &model->parameter[p] ||
                (adapter && (parameter == &adapter->a || parameter == &adapter->b)))
                optimizer->changed[p] = true;
        }
    }
    for (int s = 0; s < optimizer->segments; s++) {
        const optimizer_segment_t *segment = &optimizer->segment[s];
        const parameter_t *parameter = optimizer->tensor[segment->tensor].parameter;
        float *staged = optimizer->flat;
        TRY(model_read_values(model, parameter, segment->first, segment->count, staged));
        TRY(device->table->upload(device, optimizer->master + segment->local, staged,
                                  (size_t)segment->count * sizeof(float)));
    }
    return STATUS_OK;
}

// Which of the two carries sums and weights. NCCL that is missing somewhere is missing for all: they choose alike.
static status_t choose_collectives(optimizer_t *optimizer) {
    config_collectives_t wanted = optimizer->config->collectives;
    bool always = wanted == COLLECTIVES_NCCL;
    if (wanted == COLLECTIVES_MPI || comm_size(optimizer->comm) < 2) return STATUS_OK;
    if (!always && !optimizer->device->table->streams) return STATUS_OK;
    status_t status = comm_open_device(optimizer->comm, optimizer->device, &optimizer->device_comm);
    bool speaks = comm_rank(optimizer->comm) == 0;
    if (!status && speaks)
        fprintf(stderr, "poise: learners exchange gradients and weights by %s\n", comm_carrier(optimizer->device_comm));
    if (!status || always || status_kind(status) != STATUS_UNAVAILABLE) return status;
    if (speaks)
        fprintf(stderr, "poise: learners exchange gradients and weights through the host's memory: %s\n",
                status_message(status));
    status_free(status);
    return STATUS_OK;
}

status_t optimizer_open(const config_t *config, model_t *model, comm_t *learners, optimizer_t **out) {
    *out = NULL;
    optimizer_t *optimizer;
    TRY(ALLOCATE(&optimizer, 1));
    optimizer->config = config;
    optimizer->model = model;
    optimizer->device = model->device;
    optimizer->comm = learners;
    optimizer->host_memory = model->device->table->host_memory;
    status_t status = choose_collectives(optimizer);
    if (!status) status = layout_tensors(optimizer);
    if (!status) status = layout_owners(optimizer);
    if (!status) status = layout_memory(optimizer);
    if (!status) status = optimizer_layout_buckets(optimizer);
    if (!status) status = layout_connect(optimizer);
    if (status) {
        optimizer_close(optimizer);
        PASS_ON(status);
    }
    *out = optimizer;
    return STATUS_OK;
}

void optimizer_close(optimizer_t *optimizer) {
    if (!optimizer) return;
    device_t *device = optimizer->device;
    for (int i = 0; i < optimizer->tensors && optimizer->sum; i++) {
        optimizer->tensor[i].parameter->sink = (gradient_sink_t){0};
    }
    // After a failure sums may be under way, and MPI may still write them: their memory stays until the process ends.
    if (comm_under_way(optimizer->sum_comm)) optimizer->sum = optimizer->staged_sum = NULL;
    // Before memory of a GPU is freed, which waits for its streams.
    if (optimizer->sum_comm != optimizer->comm) comm_close(optimizer->sum_comm);
    if (optimizer->device_comm != optimizer->sum_comm) comm_close(optimizer->device_comm);
    void *on_device[] = {optimizer->sum,          optimizer->flags,         optimizer->master,
                         optimizer->first_moment, optimizer->second_moment, optimizer->device_square_sum,
                         optimizer->device_absmax};
    for (size_t i = 0; i < sizeof(on_device) / sizeof(*on_device); i++) {
        ledger_give(device, on_device[i]);
    }
    ledger_note_host(device, LEDGER_SUMS, -(int64_t)optimizer->host_bytes);
    if (!optimizer->host_memory) {
        free(optimizer->staged_sum);
        free(optimizer->host_flags);
        free(optimizer->square_sum);
        free(optimizer->absmax);
    }
    free(optimizer->bucket_op);
    free(optimizer->part);
    free(optimizer->flat);
    free(optimizer->reduced);
    free(optimizer->scale);
    free(optimizer->changed);
    free(optimizer->segment);
    free(optimizer->offset);
    free(optimizer->bytes);
    free(optimizer->start);
    free(optimizer->tensor);
    free(optimizer);
}
