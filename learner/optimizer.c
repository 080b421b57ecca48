#include "learner/optimizer_internal.h"

#include "common/comm/job.h"

#include <math.h>
#include <string.h>

status_t optimizer_begin(optimizer_t *optimizer) {
    device_t *device = optimizer->device;
    size_t flat = (size_t)optimizer->blocks * GRADIENT_BLOCK;
    if (comm_under_way(optimizer->sum_comm))
        FAIL(STATUS_FAILED, "the sums of a step are zeroed while another's are under way");
    optimizer->bucket_next = optimizer->early = 0;
    optimizer->hidden_s = 0.0;
    TRY(device->table->zero(device, optimizer->sum, flat * sizeof(int64_t)));
    TRY(device->table->zero(device, optimizer->flags, (size_t)optimizer->tensors * sizeof(uint32_t)));
    for (int i = 0; i < optimizer->tensors; i++) {
        optimizer->tensor[i].parameter->sink.exponent = optimizer->scale[i].exponent;
    }
    return STATUS_OK;
}

// Flags of all ranks, so that all take the same branch.
static status_t agree_on_flags(optimizer_t *optimizer) {
    device_t *device = optimizer->device;
    size_t bytes = (size_t)optimizer->tensors * sizeof(uint32_t);
    if (!optimizer->host_memory) {
        TRY(device->table->download(device, optimizer->host_flags, optimizer->flags, bytes));
    }
    for (int i = 0; i < optimizer->tensors; i++) optimizer->reduced[i] = optimizer->host_flags[i];
    TRY(comm_all_reduce_i64(optimizer->comm, optimizer->reduced, optimizer->tensors, COMM_BIT_OR, "gradient flags"));
    for (int i = 0; i < optimizer->tensors; i++) optimizer->host_flags[i] = (uint32_t)optimizer->reduced[i];
    return STATUS_OK;
}

// After an overflow: the exponent goes down, and stays there for a while.
static status_t retreat(optimizer_t *optimizer, int tensor) {
    optimizer_scale_t *scale = &optimizer->scale[tensor];
    if (scale->exponent <= EXPONENT_LEAST) {
        FAIL(STATUS_FAILED, "the gradient of %s is beyond 2^%d; lower optimizer.learning_rate or check the data",
             optimizer->tensor[tensor].name, GRADIENT_LIMIT_BITS - EXPONENT_LEAST);
    }
    scale->exponent -= EXPONENT_RETREAT;
    if (scale->exponent < EXPONENT_LEAST) scale->exponent = EXPONENT_LEAST;
    scale->ceiling = scale->exponent;
    scale->calibration = CALIBRATION_DONE;
    return STATUS_OK;
}

static bool find_flag(const optimizer_t *optimizer, int *tensor) {
    *tensor = -1;
    for (int i = 0; i < optimizer->tensors && *tensor < 0; i++) {
        if (optimizer->host_flags[i] & GRADIENT_NOT_FINITE) *tensor = i;
    }
    return *tensor >= 0;
}

status_t optimizer_own_flag(optimizer_t *optimizer, int *tensor) {
    device_t *device = optimizer->device;
    size_t bytes = (size_t)optimizer->tensors * sizeof(uint32_t);
    if (!optimizer->host_memory) TRY(device->table->download(device, optimizer->host_flags, optimizer->flags, bytes));
    (void)find_flag(optimizer, tensor);
    return STATUS_OK;
}

int64_t *optimizer_skipped_in_row(optimizer_t *optimizer) {
    return &optimizer->skipped_in_row;
}

static status_t check_flags(optimizer_t *optimizer, optimizer_report_t *report) {
    TRY(agree_on_flags(optimizer));
    report->skipped = find_flag(optimizer, &report->tensor);
    for (int i = 0; i < optimizer->tensors && !report->skipped; i++) {
        if (!(optimizer->host_flags[i] & GRADIENT_OVERFLOW)) continue;
        TRY(retreat(optimizer, i));
        report->redo = true;
    }
    return STATUS_OK;
}

// What has begun must have ended before its memory is used for another thing.
status_t optimizer_drop(optimizer_t *optimizer) {
    return optimizer->bucket_next > 0 ? optimizer_reduce_end(optimizer) : STATUS_OK;
}

// Square sums block by block on their owners, gathered, added in block order; and each tensor's largest total.
static status_t global_norm(optimizer_t *optimizer, double *norm) {
    device_t *device = optimizer->device;
    size_t sums = (size_t)optimizer->blocks * sizeof(double), largest = (size_t)optimizer->tensors * sizeof(int64_t);
    TRY(device->table->zero(device, optimizer->device_square_sum, sums));
    TRY(device->table->zero(device, optimizer->device_absmax, largest));
    for (int s = 0; s < optimizer->segments; s++) {
        const optimizer_segment_t *segment = &optimizer->segment[s];
        int64_t flat = optimizer->start[segment->tensor] + segment->first;
        gradient_norm_args_t args = {.count = segment->count,
                                     .sum = optimizer->sum + flat,
                                     .exponent = optimizer->scale[segment->tensor].exponent,
                                     .square_sum = optimizer->device_square_sum + flat / GRADIENT_BLOCK,
                                     .absmax = optimizer->device_absmax + segment->tensor};
        TRY(device->table->gradient_norm(device, &args));
    }
    if (!optimizer->host_memory) {
        TRY(device->table->download(device, optimizer->square_sum, optimizer->device_square_sum, sums));
        TRY(device->table->download(device, optimizer->absmax, optimizer->device_absmax, largest));
    }
    for (int r = 0; r <= comm_size(optimizer->comm); r++) {
        optimizer->bytes[r] = optimizer->offset[r] / GRADIENT_BLOCK * (int64_t)sizeof(double);
    }
    TRY(comm_all_gather(optimizer->comm, optimizer->square_sum, optimizer->bytes, "gradient norm"));
    TRY(comm_all_reduce_i64(optimizer->comm, optimizer->absmax, optimizer->tensors, COMM_MAX, "gradient maximum"));
    double total = 0.0;
    for (int64_t b = 0; b < optimizer->blocks; b++) total += optimizer->square_sum[b];
    *norm = sqrt(total);
    return STATUS_OK;
}

static int bit_length(int64_t value) {
    return value > 0 ? 64 - __builtin_clzll((unsigned long long)value) : 0;
}

// The exponent under which a tensor's largest total comes to about 2^EXPONENT_TARGET.
static int fitting_exponent(const optimizer_scale_t *scale, int64_t absmax) {
    int exponent = scale->exponent + EXPONENT_TARGET - bit_length(absmax);
    if (exponent > scale->ceiling) exponent = scale->ceiling;
    return exponent < EXPONENT_LEAST ? EXPONENT_LEAST : exponent > EXPONENT_MOST ? EXPONENT_MOST : exponent;
}

// A tensor's first totals decide whether EXPONENT_START was fine enough. True: sum the step's leaves again.
static bool calibrate(optimizer_scale_t *scale, int64_t absmax) {
    if (scale->calibration == CALIBRATION_DONE) return false;
    if (absmax == 0) {
        bool probe = scale->calibration == CALIBRATION_FRESH;
        scale->exponent = probe ? EXPONENT_PROBE : EXPONENT_QUIET;
        scale->calibration = CALIBRATION_PROBED;
        return probe;
    }
    scale->calibration = CALIBRATION_DONE;
    if (bit_length(absmax) >= CALIBRATION_BITS) return false;
    scale->exponent = fitting_exponent(scale, absmax);
    return true;
}

static status_t check_totals(optimizer_t *optimizer, optimizer_report_t *report) {
    for (int i = 0; i < optimizer->tensors; i++) {
        // A total near the end of int64 means that the sum itself may have wrapped; the magnitude of the least int64 is
        // no int64 and reads as negative.
        if (optimizer->absmax[i] < 0 || bit_length(optimizer->absmax[i]) > TOTAL_LIMIT_BITS) {
            TRY(retreat(optimizer, i));
            report->redo = true;
        } else if (calibrate(&optimizer->scale[i], optimizer->absmax[i])) {
            report->redo = true;
        }
    }
    return STATUS_OK;
}

static void choose_exponents(optimizer_t *optimizer) {
    for (int i = 0; i < optimizer->tensors; i++) {
        optimizer_scale_t *scale = &optimizer->scale[i];
        if (optimizer->absmax[i]) scale->exponent = fitting_exponent(scale, optimizer->absmax[i]);
        if (scale->ceiling < EXPONENT_MOST) scale->ceiling++;
    }
}

// probe: computes and looks for NaN and Inf, but changes nothing.
static status_t update_own(optimizer_t *optimizer, double gradient_scale, double learning_rate, bool probe) {
    device_t *device = optimizer->device;
    const config_t *config = optimizer->config;
    for (int s = 0; s < optimizer->segments; s++) {
        const optimizer_segment_t *segment = &optimizer->segment[s];
        adamw_args_t args = {
            .count = segment->count,
            .master = optimizer->master + segment->local,
            .first_moment = optimizer->first_moment + segment->local,
            .second_moment = optimizer->second_moment + segment->local,
            .sum = optimizer->sum + optimizer->start[segment->tensor] + segment->first,
            .exponent = optimizer->scale[segment->tensor].exponent,
            .gradient_scale = gradient_scale,
            .learning_rate = (float)learning_rate,
            .beta1 = (float)config->optimizer.beta1,
            .beta2 = (float)config->optimizer.beta2,
            .eps = (float)config->optimizer.eps,
            .weight_decay = (float)config->optimizer.weight_decay,
            .step = optimizer->updates + 1,
            .probe = probe ? optimizer->flags + segment->tensor : NULL,
        };
        TRY(device->table->adamw(device, &args));
    }
    return STATUS_OK;
}

status_t optimizer_gather(optimizer_t *optimizer, const float *own, const char *phase) {
    device_t *device = optimizer->device;
    TRY(device->table->download(device, optimizer->flat + optimizer->own_first, own,
                                (size_t)optimizer->own_count * sizeof(float)));
    for (int r = 0; r <= comm_size(optimizer->comm); r++) {
        optimizer->bytes[r] = optimizer->offset[r] * (int64_t)sizeof(float);
    }
    if (!optimizer->device_comm) return comm_all_gather(optimizer->comm, optimizer->flat, optimizer->bytes, phase);
    // The sums have been used, and the next step zeroes them: their memory is where the device's ranks meet.
    float *meeting = (float *)optimizer->sum;
    size_t flat = (size_t)optimizer->blocks * GRADIENT_BLOCK * sizeof(float);
    TRY(device->table->upload(device, meeting + optimizer->own_first, optimizer->flat + optimizer->own_first,
                              (size_t)optimizer->own_count * sizeof(float)));
    TRY(comm_all_gather(optimizer->device_comm, meeting, optimizer->bytes, phase));
    return device->table->download(device, optimizer->flat, meeting, flat);
}

status_t optimizer_publish(optimizer_t *optimizer, int64_t version) {
    TRY(optimizer_gather(optimizer, optimizer->master, "weight gather"));
    for (int i = 0; i < optimizer->tensors; i++) {
        const trained_tensor_t *tensor = &optimizer->tensor[i];
        TRY(model_write_values(optimizer->model, tensor->parameter, 0, tensor->elements,
                               optimizer->flat + optimizer->start[i]));
    }
    return model_parameters_changed(optimizer->model, optimizer->changed, version);
}

status_t optimizer_step(optimizer_t *optimizer, double normaliser, int64_t step, bool publish,
                        optimizer_report_t *report) {
    *report = (optimizer_report_t){.learning_rate = optimizer_learning_rate(optimizer->config, step)};
    if (!(normaliser > 0.0) || !isfinite(normaliser)) {
        FAIL(STATUS_INVALID, "step %lld has nothing to learn from: the count its loss is divided by is %g",
             (long long)step, normaliser);
    }
    double started = clock_seconds();
    report->early = (double)optimizer->early / optimizer->buckets;
    report->hidden_s = optimizer->hidden_s;
    TRY(check_flags(optimizer, report));
    if (report->skipped || report->redo) return optimizer_drop(optimizer);
    TRY(optimizer_reduce_end(optimizer));
    double norm = 0.0;
    TRY(global_norm(optimizer, &norm));
    double reduced = clock_seconds();
    report->reduce_s = reduced - started;
    TRY(check_totals(optimizer, report));
    if (report->redo) return STATUS_OK;

    report->gradient_norm = norm / normaliser;
    double clip = optimizer->config->optimizer.clip_norm;
    double factor = clip > 0.0 ? clip / (report->gradient_norm + 1e-6) : 1.0;
    double scale = (factor < 1.0 ? factor : 1.0) / normaliser;
    // An update that would leave NaN or Inf behind cannot be taken back, so it is tried first.
    TRY(update_own(optimizer, scale, report->learning_rate, true));
    TRY(agree_on_flags(optimizer));
    report->weights = report->skipped = find_flag(optimizer, &report->tensor);
    if (report->skipped) return STATUS_OK;
    TRY(update_own(optimizer, scale, report->learning_rate, false));
    optimizer->updates++;
    choose_exponents(optimizer);
    double updated = clock_seconds();
    report->update_s = updated - reduced;
    TRY(optimizer_publish(optimizer, optimizer->model->version + (publish ? 1 : 0)));
    report->gather_s = clock_seconds() - updated;
    return STATUS_OK;
}
