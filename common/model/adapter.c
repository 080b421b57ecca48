// LoRA adapters beside linears. Their files are adapter_peft.c's.
#include "common/model/adapter.h"
#include "kernels/base/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t adapter_module_length(const char *name) {
    size_t length = strlen(name), end = strlen(".weight");
    return length > end && !strcmp(name + length - end, ".weight") ? length - end : length;
}

// Sets the mark of the linears that a pattern matches, by our name or by that of the newest transformers.
static status_t match_pattern(const model_t *model, const char *text, bool mark, bool *marked) {
    adapter_pattern_t *pattern;
    TRY(adapter_pattern_open(strcmp(text, "all-linear") != 0 ? text : ".*", &pattern));
    int found = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const parameter_spec_t *spec = &model->spec[i];
        char other[512];
        snprintf(other, sizeof(other), "%s", spec->name);
        if (model->family->module_name) model->family->module_name(spec->name, other, sizeof(other));
        if (!spec->is_linear) continue;
        if (!adapter_pattern_matches(pattern, spec->name, adapter_module_length(spec->name)) &&
            !adapter_pattern_matches(pattern, other, adapter_module_length(other)))
            continue;
        marked[i] = mark;
        found++;
    }
    adapter_pattern_close(pattern);
    if (!found)
        FAIL(STATUS_INVALID, "the module pattern '%s' matches no linear layer of this model ('q_proj', for one, would)",
             text);
    return STATUS_OK;
}

static status_t allocate_side(const model_t *model, parameter_t *side, int rows, int columns) {
    void *data;
    size_t bytes = (size_t)rows * (size_t)columns * dtype_bytes(model->dtype);
    TRY(ledger_take(model->device, LEDGER_WEIGHTS, bytes, &data));
    side->value = matrix_view(data, model->dtype, rows, columns);
    return STATUS_OK;
}

status_t adapter_create(model_t *model, int index, int rank, float alpha, float scale) {
    const parameter_spec_t *spec = &model->spec[index];
    TRY(ALLOCATE(&model->adapter[index], 1));
    adapter_t *adapter = model->adapter[index];
    adapter->alpha = alpha;
    adapter->scale = scale;
    TRY(allocate_side(model, &adapter->a, rank, spec->columns));
    return allocate_side(model, &adapter->b, spec->rows, rank);
}

status_t adapter_check(const model_t *model, int rank, double alpha) {
    if (model->adapter_rank) FAIL(STATUS_INVALID, "the model has adapters already");
    if (rank < 1 || rank > ADAPTER_MAX_RANK)
        FAIL(STATUS_INVALID, "the adapter rank must be 1 to %d, not %d", ADAPTER_MAX_RANK, rank);
    if (!(alpha > 0) || !isfinite(alpha))
        FAIL(STATUS_INVALID, "the adapter's alpha must be a number above 0, not %g", alpha);
    return STATUS_OK;
}

static status_t fill_a(const model_t *model, int index, uint64_t seed) {
    const adapter_t *adapter = model->adapter[index];
    int64_t count = (int64_t)adapter->a.value.rows * adapter->a.value.columns;
    float *values, std = 1.0F / (float)adapter->a.value.rows;
    TRY(ALLOCATE(&values, count));
    for (int64_t e = 0; e < count; e++)
        values[e] = std * philox_normal(seed, PHILOX_INIT, (uint64_t)e, (uint32_t)index, 1);
    status_t status = model_write_values(model, &adapter->a, 0, count, values);
    free(values);
    return status;
}

static status_t add_marked(model_t *model, const adapter_request_t *request, bool *marked) {
    int rank = request->rank, found = 0;
    double root = request->rank_stabilised ? sqrt((double)rank) : (double)rank;
    float scale = request->rank_stabilised ? (float)((double)request->alpha / root) : request->alpha / (float)rank;
    for (int i = 0; i < request->pattern_count; i++) TRY(match_pattern(model, request->patterns[i], true, marked));
    for (int i = 0; i < request->excluded_count; i++) TRY(match_pattern(model, request->excluded[i], false, marked));
    for (int i = 0; i < model->parameter_count; i++) found += marked[i];
    if (!found) FAIL(STATUS_INVALID, "every layer that would get an adapter is excluded from getting one");
    for (int i = 0; i < model->parameter_count; i++) {
        if (!marked[i]) continue;
        TRY(adapter_create(model, i, rank, request->alpha, scale));
        TRY(fill_a(model, i, request->seed));
    }
    return STATUS_OK;
}

status_t model_request_adapters(model_t *model, const adapter_request_t *request) {
    bool *marked;
    TRY(adapter_check(model, request->rank, (double)request->alpha));
    if (request->pattern_count < 1) FAIL(STATUS_INVALID, "adapters need one module pattern or more, such as 'q_proj'");
    TRY(ALLOCATE(&marked, model->parameter_count));
    status_t status = add_marked(model, request, marked);
    free(marked);
    if (status) PASS_ON(status);
    model->adapter_rank = request->rank;
    model->adapter_alpha = request->alpha;
    model->adapter_rank_stabilised = request->rank_stabilised;
    model->vision_version++;
    return STATUS_OK;
}

status_t model_add_adapters(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                            uint64_t seed) {
    adapter_request_t request = {
        .patterns = patterns, .pattern_count = pattern_count, .rank = rank, .alpha = alpha, .seed = seed};
    return model_request_adapters(model, &request);
}
