#include "common/model/compose.h"

#include "common/model/compose_files.h"
#include "common/model/model_files.h"

#include <stdlib.h>
#include <string.h>

// The rows that the language model has are copied; any behind them become their mean.
static status_t copy_rows(const model_t *from, const parameter_t *source, const parameter_spec_t *have,
                          const model_t *to, const parameter_t *target, const parameter_spec_t *want) {
    int columns = have->columns;
    float *row = NULL;
    double *mean = NULL;
    status_t status = ALLOCATE(&row, (size_t)columns);
    if (!status) status = ALLOCATE(&mean, (size_t)columns);
    for (int r = 0; !status && r < have->rows; r++) {
        int64_t first = (int64_t)r * columns;
        status = model_read_values(from, source, first, columns, row);
        if (!status) status = model_write_values(to, target, first, columns, row);
        for (int c = 0; c < columns; c++) mean[c] += row[c];
    }
    for (int c = 0; !status && c < columns; c++) row[c] = (float)(mean[c] / have->rows);
    for (int r = have->rows; !status && r < want->rows; r++)
        status = model_write_values(to, target, (int64_t)r * columns, columns, row);
    free(row);
    free(mean);
    return status;
}

static status_t copy_language(const model_t *language, model_t *composed) {
    static const char prefix[] = "language_model.";
    int copied = 0;
    for (int i = 0; i < composed->parameter_count; i++) {
        const parameter_spec_t *want = &composed->spec[i];
        if (strncmp(want->name, prefix, sizeof(prefix) - 1) != 0) continue;
        int at = model_find(language, want->name + sizeof(prefix) - 1);
        if (at < 0) FAIL(STATUS_FAILED, "the language model has no %s", want->name + sizeof(prefix) - 1);
        const parameter_spec_t *have = &language->spec[at];
        bool table = i == composed->embedding || i == composed->head;
        if (have->columns != want->columns || (table ? have->rows > want->rows : have->rows != want->rows))
            FAIL(STATUS_FAILED, "%s has another shape in the composed model", want->name);
        TRY(copy_rows(language, &language->parameter[at], have, composed, &composed->parameter[i], want));
        copied++;
    }
    if (copied != language->parameter_count)
        FAIL(STATUS_FAILED, "%d of the language model's %d tensors found their place", copied,
             language->parameter_count);
    return STATUS_OK;
}

static status_t open_language(const char *directory, device_t *device, model_t **out) {
    TRY(model_open(directory, device, out));
    if (!(*out)->family->decoder)
        FAIL(STATUS_INVALID, "%s holds a %s model; poise compose wants a text decoder (llama, mistral, qwen2, ...)",
             directory, (*out)->family->name);
    return model_load(*out, directory);
}

static status_t compose_in(const compose_options_t *options, device_t *device, model_t *language, const char *folder,
                           model_t **composed) {
    TRY(folder_copy_settings(options->language, folder));
    TRY(compose_write_files(options, language->spec[language->embedding].rows, folder));
    TRY(status_context(model_open(folder, device, composed), "the composed model (%s)", options->vision));
    TRY(model_initialise(*composed, options->seed, options->std));
    TRY(copy_language(language, *composed));
    return model_save(*composed, folder, options->output);
}

status_t compose_model(const compose_options_t *options) {
    device_t *device = NULL;
    model_t *language = NULL, *composed = NULL;
    char folder[MODEL_PATH_BYTES - 16], parts[MODEL_PATH_BYTES];
    if (snprintf(folder, sizeof(folder), "%s.parts", options->output) >= (int)sizeof(folder))
        FAIL(STATUS_INVALID, "the path %s is too long", options->output);
    TRY(device_open("cpu", 1, &device));
    status_t status = open_language(options->language, device, &language);
    if (!status) status = folder_begin(folder, parts);
    if (!status) {
        status = compose_in(options, device, language, parts, &composed);
        folder_discard(parts);
    }
    if (composed) model_close(composed);
    if (language) model_close(language);
    device_close(device);
    return status;
}
