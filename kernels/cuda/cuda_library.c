// The library of the CUDA member: opening, choosing an algorithm, and products. Compiled twice, as cuda_device.c is.
#include "kernels/cuda/cuda_library_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    CHOICES = 16,        // algorithms that are asked for
    TYPICAL_ROWS = 2048, // the shape for which the library shall propose them
    TYPICAL_SIDE = 4096,
    PART_ROWS = 2048,      // most rows of one product,
    PART_BYTES = 64 << 20, // and about what their sums may take
    ALIGNMENT = 16,
};

static cuda_library_t *library_of(const device_t *device) {
    return ((const cuda_state_t *)device->state)->library;
}

// A failure of the library.
static status_t library_failure(const cuda_library_t *library, const char *what, int code) {
    return STATUS_NEW(STATUS_FAILED, "cuBLASLt %s: %s", what, library->call.get_status_string(code));
}
#define LIBRARY_TRY(library, call, what)                                                                               \
    do {                                                                                                               \
        int code_ = (library)->call;                                                                                   \
        if (code_ != CUBLAS_SUCCESS) return library_failure(library, what, code_);                                     \
    } while (0)

// ---- opening ----

static int type_of(dtype_t dtype) {
    return dtype == DTYPE_BF16 ? CUBLAS_BF16 : CUBLAS_F32;
}

static void library_free(cuda_library_t *library) {
    if (!library) return;
    const cublas_library_t *call = &library->call;
    void *const layout[] = {library->x, library->weight, library->sums[0], library->sums[1]};
    for (size_t i = 0; i < sizeof(layout) / sizeof(layout[0]); i++)
        if (layout[i]) (void)call->layout_destroy(layout[i]);
    if (library->description) (void)call->description_destroy(library->description);
    if (library->handle) (void)call->destroy(library->handle);
    CUDA_NAME(library_unload)(library->file);
    free(library->shape);
    free(library);
}

static status_t library_prepare(cuda_library_t *library) {
    int transposed = CUBLAS_TRANSPOSED;
    TRY(CUDA_NAME(library_load)(&library->call, &library->file));
    LIBRARY_TRY(library, call.create(&library->handle), "cannot be opened");
    LIBRARY_TRY(library, call.description_create(&library->description, CUBLAS_SUMS_F32, CUBLAS_F32),
                "cannot describe a product");
    LIBRARY_TRY(library,
                call.description_set(library->description, CUBLAS_DESCRIPTION_A, &transposed, sizeof(transposed)),
                "cannot describe a product");
    uint64_t side = TYPICAL_SIDE, rows = TYPICAL_ROWS;
    LIBRARY_TRY(library, call.layout_create(&library->weight, CUBLAS_BF16, side, side, (int64_t)side),
                "cannot describe a matrix");
    LIBRARY_TRY(library, call.layout_create(&library->x, CUBLAS_BF16, side, rows, (int64_t)side),
                "cannot describe a matrix");
    for (int half = 0; half < 2; half++)
        LIBRARY_TRY(
            library,
            call.layout_create(&library->sums[half], half ? CUBLAS_BF16 : CUBLAS_F32, side, rows, (int64_t)side),
            "cannot describe a matrix");
    return STATUS_OK;
}

static status_t layout_fill(const cuda_library_t *library, void *layout, int rows, int columns, int64_t stride) {
    uint64_t across = (uint64_t)columns, down = (uint64_t)rows; // a row-major matrix is a column-major one turned
    LIBRARY_TRY(library, call.layout_set(layout, CUBLAS_LAYOUT_ROWS, &across, sizeof(across)), "refuses a shape");
    LIBRARY_TRY(library, call.layout_set(layout, CUBLAS_LAYOUT_COLUMNS, &down, sizeof(down)), "refuses a shape");
    LIBRARY_TRY(library, call.layout_set(layout, CUBLAS_LAYOUT_STRIDE, &stride, sizeof(stride)), "refuses a shape");
    return STATUS_OK;
}

// x [rows, k], weight [n, k], sums [rows, n].
static status_t layouts_fill(const cuda_library_t *library, bool half, int rows, int n, int k) {
    int64_t wide = (n + LIBRARY_GROUP - 1) / LIBRARY_GROUP * LIBRARY_GROUP;
    TRY(layout_fill(library, library->x, rows, k, k));
    TRY(layout_fill(library, library->weight, n, k, k));
    return layout_fill(library, library->sums[half], rows, n, wide);
}

// One number of an algorithm; 0 where it has none.
static uint32_t config_of(const cuda_library_t *library, const cublas_algorithm_t *algorithm, int attribute) {
    bool narrow = attribute == CUBLAS_CONFIG_INNER || attribute == CUBLAS_CONFIG_CLUSTER;
    uint32_t whole = 0;
    uint16_t half = 0;
    size_t written = 0;
    int code = narrow ? library->call.config_get(algorithm, attribute, &half, sizeof(half), &written)
                      : library->call.config_get(algorithm, attribute, &whole, sizeof(whole), &written);
    return code != CUBLAS_SUCCESS ? 0 : narrow ? half : whole;
}

// One block sums all of k, and nothing is kept elsewhere meanwhile.
static bool is_whole(const cuda_library_t *library, const cublas_choice_t *choice) {
    return choice->state == CUBLAS_SUCCESS && choice->workspace == 0 &&
           config_of(library, &choice->algorithm, CUBLAS_CONFIG_SPLITS) <= 1 &&
           config_of(library, &choice->algorithm, CUBLAS_CONFIG_REDUCTION) == 0;
}

static status_t preference_fill(const cuda_library_t *library, void *preference) {
    uint64_t workspace = 0;
    uint32_t reductions = 0, alignment = ALIGNMENT;
    const char *what = "refuses a preference";
    LIBRARY_TRY(library, call.preference_set(preference, CUBLAS_PREFER_WORKSPACE, &workspace, sizeof(workspace)), what);
    LIBRARY_TRY(library, call.preference_set(preference, CUBLAS_PREFER_REDUCTIONS, &reductions, sizeof(reductions)),
                what);
    for (int i = 0; i < 4; i++)
        LIBRARY_TRY(library,
                    call.preference_set(preference, CUBLAS_PREFER_ALIGNMENT_A + i, &alignment, sizeof(alignment)),
                    what);
    return STATUS_OK;
}

// The algorithms that the library proposes and that cut k nowhere, fastest first.
static status_t library_choices(cuda_library_t *library, bool half, cublas_choice_t out[CHOICES], int *count) {
    cublas_choice_t found[CHOICES] = {0};
    void *preference, *sums = library->sums[half];
    int proposed = 0;
    *count = 0;
    TRY(layouts_fill(library, half, TYPICAL_ROWS, TYPICAL_SIDE, TYPICAL_SIDE));
    LIBRARY_TRY(library, call.preference_create(&preference), "cannot take a preference");
    status_t status = preference_fill(library, preference);
    int code = CUBLAS_SUCCESS;
    if (!status)
        code = library->call.heuristic(library->handle, library->description, library->weight, library->x, sums, sums,
                                       preference, CHOICES, found, &proposed);
    (void)library->call.preference_destroy(preference);
    TRY(status);
    if (code != CUBLAS_SUCCESS) return library_failure(library, "proposes no algorithm", code);
    for (int i = 0; i < proposed; i++)
        if (is_whole(library, &found[i])) out[(*count)++] = found[i];
    if (*count == 0)
        FAIL(STATUS_UNAVAILABLE, "each of the %d algorithms that cuBLASLt proposes cuts the sums or wants workspace",
             proposed);
    return STATUS_OK;
}

static void library_use(cuda_library_t *library, bool half, const cublas_algorithm_t *algorithm) {
    library->algorithm[half] = *algorithm;
    library->shapes = 0; // what was asked of another one
}

// The first algorithm that passes the probe. fp32 results first; bf16 ones have to be these, rounded, or are not used.
static status_t library_choose(device_t *device, cuda_library_t *library, library_probe_t *probe) {
    cublas_choice_t choice[CHOICES];
    int count;
    bool half = library->chosen;
    status_t why = STATUS_OK;
    TRY(library_choices(library, half, choice, &count));
    for (int i = 0; i < count; i++) {
        status_free(why);
        library_use(library, half, &choice[i].algorithm);
        why = CUDA_NAME(probe_run)(device, library, probe, half);
        if (!why) return STATUS_OK;
    }
    PASS_ON(why);
}

static uint64_t identity_of(const cuda_library_t *library) {
    uint64_t hash = (0xcbf29ce484222325u ^ library->call.get_version()) * 0x100000001b3u;
    for (int half = 0; half <= library->rounds; half++)
        for (int i = 0; i < CUBLAS_CONFIG_COUNT; i++)
            hash = (hash ^ config_of(library, &library->algorithm[half], i)) * 0x100000001b3u;
    return hash ? hash : 1;
}

static status_t library_try(device_t *device, cuda_library_t *library) {
    library_probe_t probe = {0};
    TRY(library_prepare(library));
    status_t status = CUDA_NAME(probe_open)(device, &probe);
    if (!status) status = library_choose(device, library, &probe);
    if (!status) {
        library->chosen = true;
        status_t halves = library_choose(device, library, &probe);
        library->rounds = !halves;
        status_free(halves);
        library->shapes = 0;
    }
    CUDA_NAME(probe_close)(device, &probe);
    return status;
}

status_t CUDA_NAME(library_open)(device_t *device) {
    cuda_state_t *state = device->state;
    cuda_library_t *library;
    TRY(ALLOCATE(&library, 1));
    status_t status = library_try(device, library);
    ledger_give(device, device->workspace); // the probe's says nothing of a run's
    device->workspace = NULL;
    device->workspace_bytes = 0;
    if (status) {
        snprintf(state->note, sizeof(state->note), "bf16 products by Poise's own kernels: %s", status_message(status));
        status_free(status);
        library_free(library);
        CUDA_NAME(library_forget_error)();
        device->note = state->note;
        return device->table->synchronize(device); // a GPU that the library has broken cannot be used
    }
    state->library = library;
    snprintf(state->note, sizeof(state->note),
             "bf16 products of linear by cuBLASLt %zu (algorithm %u, tile %u, stages %u%s): a row's bits depend on "
             "nothing beside it, as a probe has shown",
             library->call.get_version(), config_of(library, &library->algorithm[0], CUBLAS_CONFIG_ID),
             config_of(library, &library->algorithm[0], CUBLAS_CONFIG_TILE),
             config_of(library, &library->algorithm[0], CUBLAS_CONFIG_STAGES),
             library->rounds ? "" : "; its bf16 results are not used");
    device->note = state->note;
    device->identity = identity_of(library);
    return STATUS_OK;
}

void CUDA_NAME(library_close)(device_t *device) {
    cuda_state_t *state = device->state;
    library_free(state->library);
    state->library = NULL;
}

// ---- products ----

// Whether the algorithm takes a shape, whatever the rows. Asked once.
static status_t library_takes(cuda_library_t *library, int n, int k, dtype_t sums, bool *out) {
    bool half = sums == DTYPE_BF16;
    cublas_choice_t result;
    *out = false;
    for (int i = 0; i < library->shapes; i++) {
        const library_shape_t *shape = &library->shape[i];
        if (shape->n != n || shape->k != k || shape->sums != sums) continue;
        *out = shape->taken;
        return STATUS_OK;
    }
    TRY(memory_grow((void **)&library->shape, &library->capacity, (size_t)library->shapes + 1,
                    sizeof(*library->shape)));
    TRY(layouts_fill(library, half, LIBRARY_ROWS, n, k));
    int code = library->call.check(library->handle, library->description, library->weight, library->x,
                                   library->sums[half], library->sums[half], &library->algorithm[half], &result);
    *out = code == CUBLAS_SUCCESS && result.workspace == 0;
    library->shape[library->shapes++] = (library_shape_t){.n = n, .k = k, .sums = sums, .taken = *out};
    return STATUS_OK;
}

static size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

status_t CUDA_NAME(library_plan)(device_t *device, const linear_args_t *args, library_plan_t *out) {
    cuda_library_t *library = library_of(device);
    int n = args->weight.rows, k = args->weight.columns;
    memset(out, 0, sizeof(*out));
    if (!library || args->x.dtype != DTYPE_BF16 || args->weight.dtype != DTYPE_BF16 || n < 1 || k < LIBRARY_GROUP ||
        k % LIBRARY_GROUP)
        return STATUS_OK;
    out->whole = !args->bias && !args->lora_a.data && (args->y.dtype == DTYPE_F32 || library->rounds);
    out->sums = out->whole ? args->y.dtype : DTYPE_F32;
    TRY(library_takes(library, n, k, out->sums, &out->taken));
    if (!out->taken) return STATUS_OK;
    out->stride = (n + LIBRARY_GROUP - 1) / LIBRARY_GROUP * LIBRARY_GROUP;
    size_t fit = PART_BYTES / ((size_t)out->stride * sizeof(float)) / LIBRARY_ROWS * LIBRARY_ROWS;
    int most = fit < LIBRARY_ROWS ? LIBRARY_ROWS : fit > PART_ROWS ? PART_ROWS : (int)fit;
    out->rows = args->x.rows < most ? (args->x.rows + LIBRARY_ROWS - 1) / LIBRARY_ROWS * LIBRARY_ROWS : most;
    // Scratch for both, whether or not this call needs it: a dry run has to cover every smaller number of rows.
    out->x = padded((size_t)out->rows * (size_t)k * dtype_bytes(DTYPE_BF16));
    if (!library_aligned(&args->weight)) out->weight = padded((size_t)n * (size_t)k * dtype_bytes(DTYPE_BF16));
    out->bytes = out->x + out->weight + (size_t)out->rows * (size_t)out->stride * dtype_bytes(out->sums);
    return STATUS_OK;
}

status_t CUDA_NAME(library_multiply)(device_t *device, const matrix_t *x, const matrix_t *weight, const matrix_t *out) {
    cuda_library_t *library = library_of(device);
    bool half = type_of(out->dtype) == CUBLAS_BF16;
    void *sums = library->sums[half];
    const float one = 1.0f, zero = 0.0f;
    TRY(layout_fill(library, library->x, x->rows, x->columns, x->stride));
    TRY(layout_fill(library, library->weight, weight->rows, weight->columns, weight->stride));
    TRY(layout_fill(library, sums, out->rows, out->columns, out->stride));
    int code = library->call.matmul(library->handle, library->description, &one, weight->data, library->weight, x->data,
                                    library->x, &zero, out->data, sums, out->data, sums, &library->algorithm[half],
                                    NULL, 0, cuda_stream(device));
    if (code == CUBLAS_SUCCESS) return STATUS_OK;
    FAIL(STATUS_FAILED, "linear: cuBLASLt cannot multiply %d rows of %d by %d: %s (POISE_CUBLAS=none does without it)",
         x->rows, weight->columns, weight->rows, library->call.get_status_string(code));
}
