// The probe of the library's products: rows in different company, through linear itself, so that padding and parts are
// tried with it. The numbers span several powers of two; sums in another order have other bits.
#include "kernels/cuda/cuda_library_internal.h"
#include "kernels/cuda/cuda_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef POISE_CUDA_HOST
#include <cuda_runtime_api.h>
enum { SHAPES = PROBE_SHAPES };
#else
#include "kernels/sim/sim_runtime.h"
enum { SHAPES = 3 }; // the simulator makes our own products slowly
#endif

enum { ROWS = 130 };
// The first has more rows than one product takes; they are the same ROWS again and again.
static const struct {
    int n, k, rows;
} shapes[PROBE_SHAPES] = {{72, 64, 2048 + ROWS},  {90, 72, ROWS},     {136, 264, ROWS},
                          {1024, 4096, 2 * ROWS}, {4096, 1024, ROWS}, {4864, 896, 2048 + ROWS}};
// Rows of an input that are computed together: the first, and how many.
static const struct {
    int first, count;
} companies[] = {{0, 1}, {0, 7}, {0, 17}, {0, 64}, {1, 129}, {5, 1}, {63, 17}, {65, 64}, {129, 1}};
enum { COMPANIES = sizeof(companies) / sizeof(companies[0]) };

static uint16_t number(uint32_t which, uint32_t i) {
    uint32_t x = (i + 1) * 2654435761u ^ which * 2246822519u;
    x = (x ^ x >> 15) * 2246822519u;
    x ^= x >> 13;
    return (uint16_t)((x & 0x8000u) | (123u + (x >> 16 & 7u)) << 7 | (x & 0x7fu)); // 2^-4 to 2^4
}

// A matrix whose rows repeat after `unique` ones.
static status_t put_numbers(device_t *device, uint32_t which, int rows, int unique, int columns, void **out) {
    uint16_t *host;
    size_t each = (size_t)columns;
    TRY(ALLOCATE(&host, (size_t)rows * each));
    for (size_t r = 0; r < (size_t)rows; r++)
        for (size_t c = 0; c < each; c++) host[r * each + c] = number(which, (uint32_t)(r % (size_t)unique * each + c));
    size_t bytes = (size_t)rows * each * sizeof(*host);
    status_t status = ledger_take(device, LEDGER_OTHER, bytes, out);
    if (!status) status = device->table->upload(device, *out, host, bytes);
    free(host);
    return status;
}

// Rows of a shape through linear: y as fp32 numbers.
static status_t multiply(device_t *device, struct probe_shape *shape, int which, int first, int count, bool half,
                         float *out) {
    int n = shapes[which].n, k = shapes[which].k;
    dtype_t dtype = half ? DTYPE_BF16 : DTYPE_F32;
    linear_args_t args = {.x = matrix_view((uint16_t *)shape->x + (size_t)first * (size_t)k, DTYPE_BF16, count, k),
                          .weight = matrix_view(shape->weight, DTYPE_BF16, n, k),
                          .y = matrix_view(shape->y, dtype, count, n)};
    size_t elements = (size_t)count * (size_t)n;
    TRY(CUDA_NAME(linear)(device, &args));
    TRY(device->table->download(device, out, shape->y, elements * dtype_bytes(dtype)));
    for (size_t i = elements; half && i--;) { // from the end: they are widened in place
        uint16_t bits;
        memcpy(&bits, (const char *)out + i * sizeof(bits), sizeof(bits));
        out[i] = bf16_widen(bits);
    }
    return STATUS_OK;
}

status_t CUDA_NAME(probe_open)(device_t *device, library_probe_t *probe) {
    for (int i = 0; i < SHAPES; i++) {
        struct probe_shape *shape = &probe->shape[i];
        int n = shapes[i].n, k = shapes[i].k, rows = shapes[i].rows;
        TRY(put_numbers(device, 1, rows, ROWS, k, &shape->x));
        TRY(put_numbers(device, 2, n, n, k, &shape->weight));
        TRY(ledger_take(device, LEDGER_OTHER, (size_t)rows * (size_t)n * sizeof(float), &shape->y));
        TRY(ALLOCATE(&shape->own, (size_t)ROWS * (size_t)n));
        TRY(ALLOCATE(&shape->sums, (size_t)rows * (size_t)n));
        TRY(multiply(device, shape, i, 0, ROWS, false, shape->own)); // the device has no library yet
    }
    return STATUS_OK;
}

void CUDA_NAME(probe_close)(device_t *device, library_probe_t *probe) {
    for (int i = 0; i < SHAPES; i++) {
        struct probe_shape *shape = &probe->shape[i];
        void *const memory[] = {shape->x, shape->weight, shape->y};
        for (int m = 0; m < 3; m++) ledger_give(device, memory[m]);
        free(shape->own);
        free(shape->sums);
    }
}

// All rows together: products of the operands at all, and for bf16 the fp32 ones, rounded.
static status_t check_sums(const float *own, const float *sums, const float *got, int which, bool half) {
    size_t count = (size_t)ROWS * (size_t)shapes[which].n;
    float allowed = 1e-5f * 256.0f * (float)shapes[which].k;
    for (size_t i = 0; i < count; i++) {
        if (half && memcmp(&(float){bf16_widen(bf16_round(sums[i]))}, &got[i], sizeof(float)) != 0)
            FAIL(STATUS_UNAVAILABLE, "cuBLASLt's bf16 results are not its fp32 results, rounded");
        if (!half && !(fabsf(got[i] - own[i]) <= allowed))
            FAIL(STATUS_UNAVAILABLE, "cuBLASLt's product of %d by %d is wrong: %g instead of %g", shapes[which].k,
                 shapes[which].n, (double)got[i], (double)own[i]);
    }
    return STATUS_OK;
}

static status_t check_companies(device_t *device, library_probe_t *probe, int which, bool half, const float *alone,
                                float *got) {
    size_t n = (size_t)shapes[which].n;
    for (int c = 0; c <= COMPANIES; c++) { // the last: all rows that there are
        int first = c < COMPANIES ? companies[c].first : 0;
        int count = c < COMPANIES ? companies[c].count : shapes[which].rows;
        TRY(multiply(device, &probe->shape[which], which, first, count, half, got));
        for (int r = 0; r < count; r++)
            if (memcmp(got + (size_t)r * n, alone + (size_t)((first + r) % ROWS) * n, n * sizeof(*got)) != 0)
                FAIL(STATUS_UNAVAILABLE,
                     "cuBLASLt's products break the bit contract: row %d of %d by %d has other bits among %d rows than "
                     "among %d",
                     first + r, shapes[which].k, shapes[which].n, count, (int)ROWS);
    }
    return STATUS_OK;
}

static status_t probe_shape(device_t *device, library_probe_t *probe, int which, bool half, float *got) {
    struct probe_shape *shape = &probe->shape[which];
    size_t count = (size_t)ROWS * (size_t)shapes[which].n;
    library_plan_t plan;
    linear_args_t args = {.x = matrix_view(shape->x, DTYPE_BF16, ROWS, shapes[which].k),
                          .weight = matrix_view(shape->weight, DTYPE_BF16, shapes[which].n, shapes[which].k),
                          .y = matrix_view(shape->y, half ? DTYPE_BF16 : DTYPE_F32, ROWS, shapes[which].n)};
    float *all;
    TRY(CUDA_NAME(library_plan)(device, &args, &plan));
    if (!plan.taken)
        FAIL(STATUS_UNAVAILABLE, "cuBLASLt's algorithm does not take a product of %d by %d", shapes[which].k,
             shapes[which].n);
    TRY(multiply(device, shape, which, 0, ROWS, half, got));
    TRY(check_sums(shape->own, shape->sums, got, which, half));
    if (!half) memcpy(shape->sums, got, count * sizeof(*got));
    TRY(ALLOCATE(&all, count));
    memcpy(all, got, count * sizeof(*got));
    status_t status = check_companies(device, probe, which, half, all, got);
    free(all);
    return status;
}

status_t CUDA_NAME(probe_run)(device_t *device, cuda_library_t *library, library_probe_t *probe, bool half) {
    cuda_state_t *state = device->state;
    bool rounds = library->rounds;
    status_t status = STATUS_OK;
    state->library = library;
    library->rounds = half; // bf16 results come from the algorithm that is tried
    for (int i = 0; i < SHAPES && !status; i++) {
        float *got;
        status = ALLOCATE(&got, (size_t)shapes[i].rows * (size_t)shapes[i].n);
        if (status) break;
        status = probe_shape(device, probe, i, half, got);
        free(got);
    }
    library->rounds = rounds;
    state->library = NULL;
    return status;
}

void CUDA_NAME(library_forget_error)(void) {
    (void)cudaGetLastError();
}
