// Parameters' values between fp32 on the host and the published copy on the device.
#include "common/model/model.h"

#include <string.h>

enum { PIECE = 4096 };

status_t model_dtype_parse(const char *name, dtype_t *out) {
    *out = !strcmp(name, "bf16") ? DTYPE_BF16 : DTYPE_F32;
    if (*out == DTYPE_F32 && strcmp(name, "fp32") != 0)
        FAIL(STATUS_INVALID, "there is no weight type '%s'; use fp32 or bf16", name);
    return STATUS_OK;
}

// Parameters are contiguous, so an element's place is its number.
static char *element_at(const parameter_t *parameter, int64_t element) {
    return (char *)parameter->value.data + (size_t)element * dtype_bytes(parameter->value.dtype);
}

status_t model_write_values(const model_t *model, const parameter_t *parameter, int64_t first, int64_t count,
                            const float *values) {
    device_t *device = model->device;
    if (model->dtype == DTYPE_F32)
        return device->table->upload(device, element_at(parameter, first), values, (size_t)count * sizeof(float));
    uint16_t half[PIECE];
    float rounded[PIECE];
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t n = count - at < PIECE ? count - at : PIECE;
        for (int64_t i = 0; i < n; i++) {
            half[i] = bf16_round(values[at + i]);
            rounded[i] = bf16_widen(half[i]);
        }
        bool kept_half = parameter->value.dtype == DTYPE_BF16;
        TRY(device->table->upload(device, element_at(parameter, first + at), kept_half ? (void *)half : rounded,
                                  (size_t)n * dtype_bytes(parameter->value.dtype)));
    }
    return STATUS_OK;
}

status_t model_read_values(const model_t *model, const parameter_t *parameter, int64_t first, int64_t count,
                           float *out) {
    device_t *device = model->device;
    if (parameter->value.dtype == DTYPE_F32)
        return device->table->download(device, out, element_at(parameter, first), (size_t)count * sizeof(float));
    uint16_t half[PIECE];
    for (int64_t at = 0; at < count; at += PIECE) {
        int64_t n = count - at < PIECE ? count - at : PIECE;
        TRY(device->table->download(device, half, element_at(parameter, first + at), (size_t)n * sizeof(*half)));
        for (int64_t i = 0; i < n; i++) out[at + i] = bf16_widen(half[i]);
    }
    return STATUS_OK;
}
