#include "kernels/sim/cublas.h"

#include "kernels/device.h"
#include "kernels/sim/memory.h"
#include "kernels/sim/sim_runtime.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STAND_IN_VERSION = 130002, ALIGNMENT = 16, NO_FORM = 0 };
typedef enum order { IN_ORDER, BACKWARDS, BY_COUNT, BY_PLACE } order_t;

// Everything that is made by a create function.
typedef struct object {
    int kind, type; // type: of a layout's elements
    int form;       // of a description's first operand
    uint64_t rows, columns;
    int64_t stride;
    uint64_t workspace;                // of a preference
    uint32_t reductions, alignment[4]; // the same
} object_t;
enum { HANDLE = 1, DESCRIPTION, LAYOUT, PREFERENCE };

// What an algorithm's numbers say: data[0] its number, data[1] in how many parts it cuts k, data[2] the order.
typedef struct product {
    order_t order;
    bool truncates, shifts;
    object_t a, b, d;
    const void *from_a, *from_b;
    void *to;
} product_t;

static sim_cublas_t chosen = SIM_CUBLAS_COUNT;
static sim_cublas_counts_t counts;

void sim_cublas_set(sim_cublas_t kind) {
    chosen = kind;
}

sim_cublas_counts_t sim_cublas_count(void) {
    return counts;
}

static const char *const names[SIM_CUBLAS_COUNT] = {"none",      "good",  "backwards", "counts",    "places", "second",
                                                    "truncates", "wrong", "splits",    "no_handle", "fails"};

static status_t choose(sim_cublas_t *out) {
    const char *name = getenv("POISE_CUBLAS");
    *out = chosen;
    if (chosen != SIM_CUBLAS_COUNT) return STATUS_OK;
    for (int i = 0; i < SIM_CUBLAS_COUNT; i++)
        if (!strcmp(names[i], name && *name ? name : "none")) *out = (sim_cublas_t)i;
    if (*out == SIM_CUBLAS_COUNT)
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt's stand-in does not know '%s' (POISE_CUBLAS); 'good' is one that works",
             name);
    return STATUS_OK;
}

// ---- objects ----

static int make(void **out, object_t object) {
    object_t *made = malloc(sizeof(*made));
    *out = made;
    if (!made) return CUBLAS_ALLOC_FAILED;
    *made = object;
    counts.made++;
    counts.live++;
    return CUBLAS_SUCCESS;
}

static int drop(void *given, int kind) {
    object_t *object = given;
    if (!object || object->kind != kind) return CUBLAS_INVALID_VALUE;
    object->kind = 0;
    free(object);
    counts.live--;
    return CUBLAS_SUCCESS;
}

static size_t get_version(void) {
    return STAND_IN_VERSION;
}

static const char *get_status_string(int status) {
    switch (status) {
    case CUBLAS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "another status";
    }
}

static int create(void **handle) {
    sim_cublas_t kind;
    status_t status = choose(&kind);
    status_free(status);
    *handle = NULL;
    if (status || kind == SIM_CUBLAS_NO_HANDLE) return CUBLAS_NOT_INITIALIZED;
    return make(handle, (object_t){.kind = HANDLE});
}

static int destroy(void *handle) {
    return drop(handle, HANDLE);
}

static int description_create(void **out, int compute, int scale) {
    if (compute != CUBLAS_SUMS_F32 || scale != CUBLAS_F32) return CUBLAS_NOT_SUPPORTED;
    return make(out, (object_t){.kind = DESCRIPTION, .form = NO_FORM});
}

static int description_destroy(void *description) {
    return drop(description, DESCRIPTION);
}

static int description_set(void *description, int attribute, const void *value, size_t bytes) {
    object_t *object = description;
    if (!object || object->kind != DESCRIPTION || attribute != CUBLAS_DESCRIPTION_A || bytes != sizeof(object->form))
        return CUBLAS_INVALID_VALUE;
    memcpy(&object->form, value, bytes);
    return CUBLAS_SUCCESS;
}

static int layout_create(void **out, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return make(out, (object_t){.kind = LAYOUT, .type = type, .rows = rows, .columns = columns, .stride = stride});
}

static int layout_destroy(void *layout) {
    return drop(layout, LAYOUT);
}

static int layout_set(void *layout, int attribute, const void *value, size_t bytes) {
    object_t *object = layout;
    if (!object || object->kind != LAYOUT || bytes != 8) return CUBLAS_INVALID_VALUE;
    switch (attribute) {
    case CUBLAS_LAYOUT_ROWS:
        memcpy(&object->rows, value, bytes);
        return CUBLAS_SUCCESS;
    case CUBLAS_LAYOUT_COLUMNS:
        memcpy(&object->columns, value, bytes);
        return CUBLAS_SUCCESS;
    case CUBLAS_LAYOUT_STRIDE:
        memcpy(&object->stride, value, bytes);
        return CUBLAS_SUCCESS;
    default:
        return CUBLAS_INVALID_VALUE;
    }
}

// As in the library, where nothing is said workspace may not be taken, any reduction may, and operands lie at 256
// bytes.
static int preference_create(void **out) {
    return make(out, (object_t){.kind = PREFERENCE, .reductions = 7, .alignment = {256, 256, 256, 256}});
}

static int preference_destroy(void *preference) {
    return drop(preference, PREFERENCE);
}

static int preference_set(void *preference, int attribute, const void *value, size_t bytes) {
    object_t *object = preference;
    int operand = attribute - CUBLAS_PREFER_ALIGNMENT_A;
    if (!object || object->kind != PREFERENCE) return CUBLAS_INVALID_VALUE;
    if (attribute == CUBLAS_PREFER_WORKSPACE && bytes == sizeof(object->workspace))
        memcpy(&object->workspace, value, bytes);
    else if (attribute == CUBLAS_PREFER_REDUCTIONS && bytes == sizeof(object->reductions))
        memcpy(&object->reductions, value, bytes);
    else if (operand >= 0 && operand < 4 && bytes == sizeof(object->alignment[0]))
        memcpy(&object->alignment[operand], value, bytes);
    else
        return CUBLAS_INVALID_VALUE;
    return CUBLAS_SUCCESS;
}

// ---- algorithms ----

// A is [k, n] and transposed, B [k, m], D [n, m], by columns.
static bool fits(const object_t *description, const object_t *a, const object_t *b, const object_t *c,
                 const object_t *d) {
    if (!description || !a || !b || !c || !d || description->kind != DESCRIPTION) return false;
    const object_t *layout[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (layout[i]->kind != LAYOUT || layout[i]->stride < (int64_t)layout[i]->rows) return false;
        int bytes = layout[i]->type == CUBLAS_BF16 ? 2 : 4;
        if (layout[i]->stride * bytes % ALIGNMENT) return false;
    }
    return description->form == CUBLAS_TRANSPOSED && a->type == CUBLAS_BF16 && b->type == CUBLAS_BF16 &&
           c->type == d->type && (d->type == CUBLAS_BF16 || d->type == CUBLAS_F32) && a->rows == b->rows &&
           d->rows == a->columns && d->columns == b->columns && c->rows == d->rows && c->columns == d->columns;
}

static int heuristic(void *handle, void *description, void *a, void *b, void *c, void *d, void *preference, int most,
                     cublas_choice_t *out, int *count) {
    const object_t *wish = preference;
    sim_cublas_t kind;
    status_t status = choose(&kind);
    status_free(status);
    if (status || !handle || most < 1 || !fits(description, a, b, c, d)) return CUBLAS_INVALID_VALUE;
    if (wish->alignment[0] > ALIGNMENT || wish->alignment[1] > ALIGNMENT || wish->alignment[3] > ALIGNMENT)
        return CUBLAS_INVALID_VALUE; // an algorithm that wants more than is kept
    order_t bad = kind == SIM_CUBLAS_PLACES ? BY_PLACE : BY_COUNT;
    bool variant = kind == SIM_CUBLAS_COUNTS || kind == SIM_CUBLAS_PLACES;
    // The first cuts k although nobody allowed it.
    uint64_t orders[] = {IN_ORDER, variant || kind == SIM_CUBLAS_SECOND ? bad : IN_ORDER, variant ? bad : IN_ORDER};
    *count = 0;
    for (int i = 0; i < 3 && i < most; i++) {
        cublas_choice_t choice = {.state = CUBLAS_SUCCESS, .waves = 1.0f};
        choice.algorithm.data[0] = (uint64_t)(40 + i);
        choice.algorithm.data[1] = i && kind != SIM_CUBLAS_SPLITS ? 1 : 3;
        choice.algorithm.data[2] = kind == SIM_CUBLAS_BACKWARDS ? (uint64_t)BACKWARDS : orders[i];
        out[(*count)++] = choice;
    }
    return CUBLAS_SUCCESS;
}

static int check(void *handle, void *description, void *a, void *b, void *c, void *d,
                 const cublas_algorithm_t *algorithm, cublas_choice_t *result) {
    if (!handle || !algorithm->data[0]) return CUBLAS_INVALID_VALUE;
    if (!fits(description, a, b, c, d)) return CUBLAS_NOT_SUPPORTED;
    *result = (cublas_choice_t){.state = CUBLAS_SUCCESS, .waves = 1.0f};
    return CUBLAS_SUCCESS;
}

static int config_get(const cublas_algorithm_t *algorithm, int attribute, void *out, size_t bytes, size_t *written) {
    bool half = attribute == CUBLAS_CONFIG_INNER || attribute == CUBLAS_CONFIG_CLUSTER;
    uint32_t value = 0;
    if (bytes != (half ? 2 : 4)) return CUBLAS_INVALID_VALUE;
    if (attribute == CUBLAS_CONFIG_ID) value = (uint32_t)algorithm->data[0];
    if (attribute == CUBLAS_CONFIG_SPLITS) value = (uint32_t)algorithm->data[1];
    if (attribute == CUBLAS_CONFIG_OPTION) value = (uint32_t)algorithm->data[2];
    if (attribute == CUBLAS_CONFIG_REDUCTION) value = algorithm->data[1] > 1;
    memcpy(out, &value, bytes);
    *written = bytes;
    return CUBLAS_SUCCESS;
}

// ---- products ----

static bool holds(const object_t *layout, const void *data, char *why, size_t why_bytes) {
    size_t each = layout->type == CUBLAS_BF16 ? 2 : 4;
    if (!layout->rows || !layout->columns) return true;
    return sim_memory_holds(data, ((size_t)(layout->columns - 1) * (size_t)layout->stride + layout->rows) * each, why,
                            why_bytes);
}

static float sum_of(const product_t *p, const uint16_t *a, const uint16_t *b, uint64_t row) {
    uint64_t k = p->a.rows;
    bool back = p->order == BACKWARDS || (p->order == BY_COUNT && p->b.columns >= 128) ||
                (p->order == BY_PLACE && row % 64 >= 32);
    float sum = 0.0f;
    for (uint64_t i = 0; i < k; i++) {
        uint64_t at = back ? k - 1 - i : i;
        sum = fmaf(bf16_widen(a[at]), bf16_widen(b[at]), sum);
    }
    return sum;
}

static status_t product_step(void *context, bool *done) {
    const product_t *p = context;
    char why[256];
    *done = true;
    if (!holds(&p->a, p->from_a, why, sizeof(why)) || !holds(&p->b, p->from_b, why, sizeof(why)) ||
        !holds(&p->d, p->to, why, sizeof(why))) {
        FAIL(STATUS_FAILED, "a product of cuBLASLt's stand-in is given memory of the device that is none: %s", why);
    }
    const uint16_t *a = sim_memory_view(p->from_a), *b = sim_memory_view(p->from_b);
    char *to = sim_memory_view(p->to);
    for (uint64_t row = 0; row < p->d.columns; row++)
        for (uint64_t n = 0; n < p->d.rows; n++) {
            uint64_t other = p->shifts ? (n + 1) % p->d.rows : n;
            float sum = sum_of(p, a + other * (uint64_t)p->a.stride, b + row * (uint64_t)p->b.stride, row);
            uint64_t at = row * (uint64_t)p->d.stride + n;
            uint32_t bits;
            memcpy(&bits, &sum, sizeof(bits));
            uint16_t half = p->truncates ? (uint16_t)(bits >> 16) : bf16_round(sum);
            if (p->d.type == CUBLAS_BF16)
                memcpy(to + at * sizeof(half), &half, sizeof(half));
            else
                memcpy(to + at * sizeof(sum), &sum, sizeof(sum));
        }
    return STATUS_OK;
}

static int matmul(void *handle, void *description, const void *alpha, const void *a, void *a_layout, const void *b,
                  void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                  const cublas_algorithm_t *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    float one, zero;
    sim_cublas_t kind;
    status_t status = choose(&kind);
    status_free(status);
    memcpy(&one, alpha, sizeof(one));
    memcpy(&zero, beta, sizeof(zero));
    if (status || !handle || !stream || workspace || workspace_bytes || one != 1.0f || zero != 0.0f || c != d)
        return CUBLAS_INVALID_VALUE;
    if (!fits(description, a_layout, b_layout, c_layout, d_layout)) return CUBLAS_NOT_SUPPORTED;
    if (((uintptr_t)a | (uintptr_t)b | (uintptr_t)d) % ALIGNMENT) return CUBLAS_INVALID_VALUE;
    if (kind == SIM_CUBLAS_FAILS || algorithm->data[1] > 1) return CUBLAS_EXECUTION_FAILED;
    const product_t p = {.order = (order_t)algorithm->data[2],
                         .truncates = kind == SIM_CUBLAS_TRUNCATES,
                         .shifts = kind == SIM_CUBLAS_WRONG,
                         .a = *(const object_t *)a_layout,
                         .b = *(const object_t *)b_layout,
                         .d = *(const object_t *)d_layout,
                         .from_a = a,
                         .from_b = b,
                         .to = d};
    counts.products++;
    status = sim_stream_put_copy(stream, product_step, &p, sizeof(p));
    if (!status) return CUBLAS_SUCCESS;
    status_free(status);
    return CUBLAS_EXECUTION_FAILED;
}

status_t sim_cublas_load(cublas_library_t *out) {
    sim_cublas_t kind;
    TRY(choose(&kind));
    if (kind == SIM_CUBLAS_ABSENT)
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt's stand-in is left out (POISE_CUBLAS=good asks for it)");
    *out = (cublas_library_t){.get_version = get_version,
                              .get_status_string = get_status_string,
                              .create = create,
                              .destroy = destroy,
                              .description_create = description_create,
                              .description_destroy = description_destroy,
                              .description_set = description_set,
                              .layout_create = layout_create,
                              .layout_destroy = layout_destroy,
                              .layout_set = layout_set,
                              .preference_create = preference_create,
                              .preference_destroy = preference_destroy,
                              .preference_set = preference_set,
                              .heuristic = heuristic,
                              .check = check,
                              .config_get = config_get,
                              .matmul = matmul};
    return STATUS_OK;
}
