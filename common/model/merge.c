// Merging adapters into the weights they stand beside, for export only: training and sampling keep them apart.
#include "common/model/model.h"

#include <stdlib.h>

// weight [n, k] += scale * b [n, r] a [r, k], sums in double, rounded once.
static void merge_one(float *weight, const float *a, const float *b, float scale, int n, int k, int r) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) {
            double sum = 0;
            for (int l = 0; l < r; l++)
                sum += (double)b[(size_t)i * (size_t)r + (size_t)l] * (double)a[(size_t)l * (size_t)k + (size_t)j];
            float *at = &weight[(size_t)i * (size_t)k + (size_t)j];
            *at = (float)((double)*at + (double)scale * sum);
        }
}

static status_t values_of(const model_t *model, const parameter_t *parameter, float **out) {
    int64_t count = (int64_t)parameter->value.rows * parameter->value.columns;
    TRY(memory_allocate((size_t)count, sizeof(float), (void **)out));
    return model_read_values(model, parameter, 0, count, *out);
}

status_t model_merge_adapters(model_t *model) {
    for (int i = 0; i < model->parameter_count; i++) {
        adapter_t *adapter = model->adapter[i];
        const matrix_t *value = &model->parameter[i].value;
        float *weight = NULL, *a = NULL, *b = NULL;
        if (!adapter) continue;
        status_t status = values_of(model, &model->parameter[i], &weight);
        if (!status) status = values_of(model, &adapter->a, &a);
        if (!status) status = values_of(model, &adapter->b, &b);
        if (!status) merge_one(weight, a, b, adapter->scale, value->rows, value->columns, adapter->a.value.rows);
        int64_t count = (int64_t)value->rows * value->columns;
        if (!status) status = model_write_values(model, &model->parameter[i], 0, count, weight);
        // B of zero leaves the adapter without effect; its values are part of the weight now.
        if (!status)
            status = model->device->table->zero(model->device, adapter->b.value.data,
                                                (size_t)adapter->b.value.rows * (size_t)adapter->b.value.columns *
                                                    dtype_bytes(adapter->b.value.dtype));
        free(weight);
        free(a);
        free(b);
        TRY(status);
    }
    return model_parameters_changed(model, NULL, model->version);
}
