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

static status_t matrix_download(const model_t *model, const matrix_t *matrix, float **out) {
    size_t count = (size_t)matrix->rows * (size_t)matrix->columns;
    if (matrix->dtype != DTYPE_F32)
        FAIL(STATUS_UNAVAILABLE, "adapters are merged into f32 weights, not %s", dtype_name(matrix->dtype));
    TRY(memory_allocate(count, sizeof(float), (void **)out));
    return model->device->table->download(model->device, *out, matrix->data, count * sizeof(float));
}

status_t model_merge_adapters(model_t *model) {
    for (int i = 0; i < model->parameter_count; i++) {
        adapter_t *adapter = model->adapter[i];
        const matrix_t *value = &model->parameter[i].value;
        float *weight = NULL, *a = NULL, *b = NULL;
        if (!adapter) continue;
        status_t status = matrix_download(model, value, &weight);
        if (!status) status = matrix_download(model, &adapter->a.value, &a);
        if (!status) status = matrix_download(model, &adapter->b.value, &b);
        if (!status) merge_one(weight, a, b, adapter->scale, value->rows, value->columns, adapter->a.value.rows);
        size_t bytes = (size_t)value->rows * (size_t)value->columns * sizeof(float);
        if (!status) status = model->device->table->upload(model->device, value->data, weight, bytes);
        // B of zero leaves the adapter without effect; its values are part of the weight now.
        if (!status)
            status = model->device->table->zero(model->device, adapter->b.value.data,
                                                (size_t)adapter->b.value.rows * (size_t)adapter->b.value.columns *
                                                    sizeof(float));
        free(weight);
        free(a);
        free(b);
        TRY(status);
    }
    return model_parameters_changed(model, NULL, model->version);
}
