// LoRA adapters beside linears. Their files are adapter_peft.c's.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/model/adapter.h"
#include "kernels/base/philox.h"

#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

struct adapter_pattern {
    pcre2_code *code;
    pcre2_match_data *match;
};

size_t adapter_module_length(const char *name) {
    size_t length = strlen(name), end = strlen(".weight");
    return length > end && !strcmp(name + length - end, ".weight") ? length - end : length;
}

status_t adapter_pattern_open(const char *pattern, adapter_pattern_t **out) {
    char text[4096], message[256];
    int error;
    PCRE2_SIZE offset;
    *out = NULL;
    if (snprintf(text, sizeof(text), "^(?:.*\\.)?(?:%s)$", pattern) >= (int)sizeof(text))
        FAIL(STATUS_INVALID, "the module pattern '%.64s...' is too long", pattern);
    TRY(ALLOCATE(out, 1));
    adapter_pattern_t *made = *out;
    made->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_NO_AUTO_CAPTURE, &error, &offset, NULL);
    if (made->code) made->match = pcre2_match_data_create_from_pattern(made->code, NULL);
    if (made->match) return STATUS_OK;
    bool compiled = made->code;
    adapter_pattern_close(made);
    *out = NULL;
    if (compiled) FAIL(STATUS_MEMORY, "out of memory while matching module names");
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
    FAIL(STATUS_INVALID, "the module pattern '%s' is not a regular expression: %s", pattern, message);
}

bool adapter_pattern_matches(const adapter_pattern_t *pattern, const char *name, size_t length) {
    return pcre2_match(pattern->code, (PCRE2_SPTR)name, length, 0, 0, pattern->match, NULL) >= 0;
}

void adapter_pattern_close(adapter_pattern_t *pattern) {
    if (!pattern) return;
    pcre2_match_data_free(pattern->match);
    pcre2_code_free(pattern->code);
    free(pattern);
}

// Marks the linears that a pattern matches, by our name or by that of the newest transformers.
static status_t match_pattern(const model_t *model, const char *text, bool *marked) {
    adapter_pattern_t *pattern;
    TRY(adapter_pattern_open(text, &pattern));
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
        marked[i] = true;
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
    TRY(model->device->table->allocate(model->device, bytes, &data));
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

static status_t add_marked(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                           uint64_t seed, bool *marked) {
    for (int i = 0; i < pattern_count; i++) TRY(match_pattern(model, patterns[i], marked));
    for (int i = 0; i < model->parameter_count; i++) {
        if (!marked[i]) continue;
        TRY(adapter_create(model, i, rank, alpha, alpha / (float)rank));
        TRY(fill_a(model, i, seed));
    }
    return STATUS_OK;
}

status_t model_add_adapters(model_t *model, const char *const *patterns, int pattern_count, int rank, float alpha,
                            uint64_t seed) {
    bool *marked;
    TRY(adapter_check(model, rank, (double)alpha));
    if (pattern_count < 1) FAIL(STATUS_INVALID, "adapters need one module pattern or more, such as 'q_proj'");
    TRY(ALLOCATE(&marked, model->parameter_count));
    status_t status = add_marked(model, patterns, pattern_count, rank, alpha, seed, marked);
    free(marked);
    if (status) PASS_ON(status);
    model->adapter_rank = rank;
    model->adapter_alpha = alpha;
    model->vision_version++;
    return STATUS_OK;
}
