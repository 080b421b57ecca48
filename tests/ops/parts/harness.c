#include "tests/ops/parts/ops.h"

#include "kernels/base/philox.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const kernel_sets[] = {"cpu:portable", "cpu:avx2", "cpu:avx512"};
enum { KERNEL_SETS = 3, PRINTED_FAILURES = 4 };
static const float sentinel = -12345.678f;

// ---- problems ----

float problem_random(const problem_t *problem, int which, int64_t element) {
    philox_block_t block = philox_draw(problem->seed, PHILOX_TEST, (uint64_t)element / 4, (uint32_t)which, 0);
    return philox_uniform(block.word[element % 4]) * 2.0f - 1.0f;
}

status_t problem_tensor(problem_t *problem, const char *name, tensor_role_t role, bool by_row, int rows, int columns,
                        int pad, float spread) {
    int which = problem->tensors++;
    op_tensor_t *t = &problem->tensor[which];
    *t = (op_tensor_t){
        .name = name, .role = role, .by_row = by_row, .rows = rows, .columns = columns, .stride = columns + pad};
    if (pad && problem->shape[OP_ALIGNED]) t->stride = (t->stride + 7) / 8 * 8;
    TRY(ALLOCATE(&t->value, rows * t->stride));
    TRY(ALLOCATE(&t->gradient, rows * t->stride));
    TRY(ALLOCATE(&t->sum, (int64_t)rows * columns));
    TRY(ALLOCATE(&t->flags, 1));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < t->stride; c++) {
            float x = problem_random(problem, which, i * columns + c),
                  g = problem_random(problem, which + 64, i * columns + c);
            t->value[i * t->stride + c] = c < columns ? x * spread : sentinel;
            t->gradient[i * t->stride + c] = c < columns ? (role == TENSOR_OUTPUT ? g : 0.0f) : sentinel;
        }
    return STATUS_OK;
}

status_t problem_array(problem_t *problem, bool by_row, int rows, int columns, int low, int bound) {
    int which = problem->arrays++;
    op_array_t *a = &problem->array[which];
    *a = (op_array_t){.rows = rows, .columns = columns, .by_row = by_row};
    TRY(ALLOCATE(&a->value, (int64_t)rows * columns));
    for (int64_t i = 0; i < (int64_t)rows * columns; i++)
        a->value[i] = low + (int)philox_below(problem->seed, PHILOX_TEST, (uint64_t)i, (uint32_t)which, 1,
                                              (uint32_t)(bound - low));
    return STATUS_OK;
}

void problem_leaves(problem_t *problem) {
    int rows = problem->shape[0];
    problem->leaf_start[0] = 0;
    problem->leaf_start[1] = rows / 3;
    problem->leaf_start[2] = rows / 3;
    problem->leaf_start[3] = rows;
    problem->leaves = (leaves_t){.count = 3, .start = problem->leaf_start};
}

static matrix_t tensor_view(const op_tensor_t *t, float *data) {
    return (matrix_t){.data = data, .dtype = DTYPE_F32, .rows = t->rows, .columns = t->columns, .stride = t->stride};
}
matrix_t problem_matrix(const problem_t *problem, int tensor) {
    op_tensor_t *t = (op_tensor_t *)(uintptr_t)&problem->tensor[tensor];
    int64_t count = t->rows * t->stride;
    if (!problem->half) return tensor_view(t, t->value);
    if (!t->half && problem->origin) t->half = mirror_half((problem_t *)(uintptr_t)problem, tensor);
    if (!t->half) {
        t->half = malloc((size_t)(count ? count : 1) * sizeof(*t->half));
        if (!t->half) abort();
        for (int64_t i = 0; i < count; i++) t->half[i] = bf16_round(t->value[i]);
    }
    return (matrix_t){
        .data = t->half, .dtype = DTYPE_BF16, .rows = t->rows, .columns = t->columns, .stride = t->stride};
}
void problem_settle(problem_t *problem) {
    for (int i = 0; i < problem->tensors; i++) {
        op_tensor_t *t = &problem->tensor[i];
        for (int64_t e = 0; t->half && e < t->rows * t->stride; e++)
            if (e % t->stride < t->columns) t->value[e] = bf16_widen(t->half[e]);
    }
}
matrix_t problem_gradient(const problem_t *problem, int tensor) {
    return tensor_view(&problem->tensor[tensor], problem->tensor[tensor].gradient);
}
gradient_sink_t problem_sink(problem_t *problem, int tensor) {
    op_tensor_t *t = &problem->tensor[tensor];
    return (gradient_sink_t){.sum = t->sum, .exponent = OP_EXPONENT, .flags = t->flags};
}

status_t problem_open(problem_t *problem, const op_case_t *row, uint64_t seed) {
    *problem = (problem_t){.op = row->op, .seed = seed};
    memcpy(problem->shape, row->shape, sizeof(problem->shape));
    problem_leaves(problem);
    problem->half = row->shape[OP_HALF] != 0;
    status_t status = row->op->setup(problem);
    if (status) problem_close(problem);
    // Cut off, not rounded, so that numbers below 1 stay there.
    for (int i = 0; problem->half && i < problem->tensors; i++) {
        op_tensor_t *t = &problem->tensor[i];
        for (int64_t e = 0; e < t->rows * t->stride; e++) {
            uint32_t bits;
            if (e % t->stride >= t->columns) continue;
            memcpy(&bits, &t->value[e], sizeof(bits));
            t->value[e] = bf16_widen((uint16_t)(bits >> 16));
        }
    }
    return status;
}

void problem_close(problem_t *problem) {
    for (int i = 0; i < problem->tensors; i++) {
        free(problem->tensor[i].value);
        free(problem->tensor[i].gradient);
        free(problem->tensor[i].sum);
        free(problem->tensor[i].flags);
        free(problem->tensor[i].half);
    }
    for (int i = 0; i < problem->arrays; i++) free(problem->array[i].value);
    free(problem->packed);
    *problem = (problem_t){0};
}

static bool is_result(const op_tensor_t *t) {
    return t->role == TENSOR_OUTPUT || t->role == TENSOR_SAVED;
}

// Whether the padding of every tensor is as it was.
static bool padding_whole(const problem_t *problem) {
    for (int i = 0; i < problem->tensors; i++) {
        const op_tensor_t *t = &problem->tensor[i];
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t c = t->columns; c < t->stride; c++)
                if ((t->half && t->half[r * t->stride + c] != bf16_round(sentinel)) ||
                    t->value[r * t->stride + c] != sentinel || t->gradient[r * t->stride + c] != sentinel)
                    return false;
    }
    return true;
}

// Tensors of the problem as [rows, columns] in double; freed by real_close.
static status_t real_open(const problem_t *problem, double **value) {
    for (int i = 0; i < OP_TENSORS; i++) value[i] = NULL;
    for (int i = 0; i < problem->tensors; i++) {
        const op_tensor_t *t = &problem->tensor[i];
        TRY(ALLOCATE(&value[i], (int64_t)t->rows * t->columns));
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t c = 0; c < t->columns; c++) value[i][r * t->columns + c] = (double)t->value[r * t->stride + c];
    }
    return STATUS_OK;
}
static void real_close(double **value) {
    for (int i = 0; i < OP_TENSORS; i++) free(value[i]);
}

int harness_fail(const op_case_t *row, const char *what, status_t status) {
    fprintf(stderr, "%s/%s: %s%s%s\n", row->op->name, row->name, what, status ? ": " : "",
            status ? status_message(status) : "");
    status_free(status);
    return 1;
}

// In a dry run an op asks for the scratch that it takes afterwards: a step that has begun allocates nothing.
static status_t run_measured(problem_t *at, device_t *device, bool backward) {
    device->measuring = true;
    status_t status = at->op->run(at, device);
    if (!status && backward) status = at->op->run_backward(at, device);
    device->measuring = false;
    if (status) return status;
    size_t bytes = device->workspace_bytes;
    TRY(at->op->run(at, device));
    if (backward) TRY(at->op->run_backward(at, device));
    if (device->workspace_bytes != bytes)
        FAIL(STATUS_FAILED, "took %zu bytes of scratch; the dry run said %zu", device->workspace_bytes, bytes);
    return STATUS_OK;
}

static status_t run_twin(problem_t *problem, device_t *device, bool backward) {
    problem_t twin;
    TRY(mirror_open(&twin, problem, device));
    status_t status = run_measured(&twin, device, backward);
    if (!status) status = mirror_fetch(&twin);
    mirror_close(&twin);
    return status;
}

static status_t run_where(problem_t *problem, device_t *device, bool backward) {
    const op_t *op = problem->op;
    if (op->prepare) op->prepare(problem);
    if (mirror_wanted(device)) {
        TRY(run_twin(problem, device, backward));
    } else {
        TRY(op->run(problem, device));
        if (backward) TRY(op->run_backward(problem, device));
    }
    problem_settle(problem);
    if (op->finish) op->finish(problem);
    if (backward && op->finish_backward) op->finish_backward(problem);
    return STATUS_OK;
}

status_t problem_forward(problem_t *problem, device_t *device) {
    return run_where(problem, device, false);
}

status_t problem_run(problem_t *problem, device_t *device) {
    TRY(run_where(problem, device, problem->op->run_backward != NULL));
    if (!padding_whole(problem)) FAIL(STATUS_FAILED, "wrote between rows");
    return STATUS_OK;
}

// ---- compare ----

static int compare_reference(const op_case_t *row, const char *set, const problem_t *problem, double *const *value) {
    int failures = 0;
    for (int i = 0; i < problem->tensors; i++) {
        const op_tensor_t *t = &problem->tensor[i];
        if (!is_result(t)) continue;
        for (int64_t e = 0; e < (int64_t)t->rows * t->columns; e++) {
            double want = value[i][e], got = (double)t->value[e / t->columns * t->stride + e % t->columns];
            bool same = want == got || fabs(got - want) <= row->op->tolerance * (1.0 + fabs(want));
            if (!same && failures++ < PRINTED_FAILURES)
                fprintf(stderr, "%s/%s on %s: %s[%lld, %lld] is %.9g, the reference says %.9g\n", row->op->name,
                        row->name, set, t->name, (long long)e / t->columns, (long long)e % t->columns, got, want);
        }
    }
    return failures;
}

int compare_bits(const op_case_t *row, const char *set, const problem_t *a, const problem_t *b) {
    int failures = 0;
    for (int i = 0; i < a->tensors; i++) {
        const op_tensor_t *x = &a->tensor[i], *y = &b->tensor[i];
        size_t bytes = (size_t)x->rows * (size_t)x->stride * sizeof(float);
        bool value = !memcmp(x->value, y->value, bytes), gradient = !memcmp(x->gradient, y->gradient, bytes);
        bool sum = !memcmp(x->sum, y->sum, (size_t)x->rows * (size_t)x->columns * sizeof(int64_t));
        if (value && gradient && sum && *x->flags == *y->flags) continue;
        failures++;
        fprintf(stderr, "%s/%s on %s: the bits of %s differ in its%s%s%s%s\n", row->op->name, row->name, set, x->name,
                value ? "" : " value", gradient ? "" : " gradient", sum ? "" : " sum",
                *x->flags == *y->flags ? "" : " flags");
    }
    return failures;
}

static status_t compare_problem(const op_case_t *row, const char *set, device_t *device, problem_t *problem,
                                int *failures) {
    double *value[OP_TENSORS] = {0};
    TRY(problem_open(problem, row, 1));
    status_t status = real_open(problem, value);
    if (!status) status = problem_run(problem, device);
    if (!status) {
        row->op->reference(problem, value);
        *failures += compare_reference(row, set, problem, value);
    }
    real_close(value);
    if (status) problem_close(problem);
    return status;
}

static status_t compare_set(const op_case_t *row, const char *set, int threads, problem_t *first, bool *have_first,
                            int *failures) {
    device_t *device;
    status_t status = device_open(set, threads, &device);
    if (status && status_kind(status) == STATUS_UNAVAILABLE) {
        status_free(status);
        return STATUS_OK;
    }
    if (status) return status;
    problem_t problem;
    status = compare_problem(row, set, device, &problem, failures);
    device_close(device);
    if (status) return status;
    if (*have_first) {
        *failures += compare_bits(row, set, first, &problem);
        problem_close(&problem);
        return STATUS_OK;
    }
    *first = problem;
    *have_first = true;
    return STATUS_OK;
}

int harness_compare_on(const op_case_t *row, device_t *device) {
    problem_t problem;
    int failures = 0;
    status_t status = compare_problem(row, device->table->name, device, &problem, &failures);
    if (status) return failures + harness_fail(row, device->table->name, status);
    problem_close(&problem);
    return failures;
}

int harness_compare(const op_case_t *row) {
    problem_t first;
    bool have_first = false;
    int failures = 0;
    for (int set = 0; set < KERNEL_SETS; set++)
        for (int threads = 1; threads <= 3; threads += 2) {
            status_t status = compare_set(row, kernel_sets[set], threads, &first, &have_first, &failures);
            if (status) failures += harness_fail(row, kernel_sets[set], status);
        }
    if (have_first) problem_close(&first);
    return failures;
}

// ---- threads ----

static status_t threads_one(const op_case_t *row, int threads, problem_t *problem) {
    device_t *device;
    TRY(device_open("cpu", threads, &device));
    status_t status = problem_open(problem, row, 5);
    if (!status) {
        status = problem_run(problem, device);
        if (status) problem_close(problem);
    }
    device_close(device);
    return status;
}

int harness_threads(const op_case_t *row) {
    static const int counts[] = {2, 3, 5};
    problem_t one, more;
    status_t status = threads_one(row, 1, &one);
    if (status) return harness_fail(row, "one thread", status);
    int failures = 0;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        char what[32];
        snprintf(what, sizeof(what), "%d threads", counts[i]);
        status = threads_one(row, counts[i], &more);
        if (status) {
            failures += harness_fail(row, what, status);
            continue;
        }
        failures += compare_bits(row, what, &one, &more);
        problem_close(&more);
    }
    problem_close(&one);
    return failures;
}

// ---- gradients ----

static double loss_of(const problem_t *problem, double *const *value) {
    problem->op->reference(problem, value);
    double loss = 0;
    for (int i = 0; i < problem->tensors; i++) {
        const op_tensor_t *t = &problem->tensor[i];
        if (t->role != TENSOR_OUTPUT) continue;
        for (int64_t e = 0; e < (int64_t)t->rows * t->columns; e++)
            loss += value[i][e] * (double)problem_random(problem, i + 64, e);
    }
    return loss;
}

static double loss_moved(const problem_t *problem, double *const *start, int tensor, int64_t element, double step) {
    double *value[OP_TENSORS] = {0};
    for (int i = 0; i < problem->tensors; i++) {
        size_t bytes = (size_t)problem->tensor[i].rows * (size_t)problem->tensor[i].columns * sizeof(double);
        value[i] = malloc(bytes ? bytes : 1);
        if (!value[i]) abort();
        memcpy(value[i], start[i], bytes);
    }
    value[tensor][element] += step;
    double loss = loss_of(problem, value);
    real_close(value);
    return loss;
}

static double gradient_found(const op_tensor_t *t, int64_t e) {
    if (t->role == TENSOR_PARAM) return ldexp((double)t->sum[e], -OP_EXPONENT);
    return (double)t->gradient[e / t->columns * t->stride + e % t->columns];
}

// Up to 48 elements of one tensor against central differences of the reference in double.
static int gradients_of(const op_case_t *row, const problem_t *problem, double *const *start, int tensor) {
    enum { SAMPLES = 48 };
    const op_tensor_t *t = &problem->tensor[tensor];
    int64_t count = (int64_t)t->rows * t->columns;
    int failures = 0;
    double largest = 0, moved[SAMPLES];
    int64_t element[SAMPLES];
    int samples = count < SAMPLES ? (int)count : SAMPLES;
    for (int i = 0; i < samples; i++) {
        element[i] = count <= SAMPLES
                         ? i
                         : (int64_t)philox_below(7, PHILOX_TEST, (uint64_t)i, (uint32_t)tensor, 2, (uint32_t)count);
        double step = 1e-5;
        moved[i] = (loss_moved(problem, start, tensor, element[i], step) -
                    loss_moved(problem, start, tensor, element[i], -step)) /
                   (2 * step);
        if (fabs(moved[i]) > largest) largest = fabs(moved[i]);
    }
    for (int i = 0; i < samples; i++) {
        double found = gradient_found(t, element[i]);
        if (fabs(found - moved[i]) <= 2e-5 * (largest + 0.1) + 2e-5 * fabs(moved[i])) continue;
        if (failures++ < PRINTED_FAILURES)
            fprintf(stderr, "%s/%s: d%s[%lld, %lld] is %.9g, finite differences say %.9g\n", row->op->name, row->name,
                    t->name, (long long)element[i] / t->columns, (long long)element[i] % t->columns, found, moved[i]);
    }
    return failures;
}

int harness_gradients(const op_case_t *row) {
    device_t *device;
    status_t status = device_open("cpu", 1, &device);
    if (status) return harness_fail(row, "gradients", status);
    int failures = harness_gradients_on(row, device);
    device_close(device);
    return failures;
}

int harness_gradients_on(const op_case_t *row, device_t *device) {
    if (!row->op->run_backward) return 0;
    problem_t problem = {0};
    double *start[OP_TENSORS] = {0};
    int failures = 0;
    status_t status = problem_open(&problem, row, 2);
    if (!status) status = real_open(&problem, start);
    if (!status) status = problem_run(&problem, device);
    for (int i = 0; !status && i < problem.tensors; i++) {
        const op_tensor_t *t = &problem.tensor[i];
        if (*t->flags) failures += harness_fail(row, "a gradient sum raised a flag", NULL);
        if (t->role == TENSOR_INPUT || t->role == TENSOR_PARAM) failures += gradients_of(row, &problem, start, i);
    }
    real_close(start);
    problem_close(&problem);
    return failures + (status ? harness_fail(row, "gradients", status) : 0);
}

// ---- row invariance ----

// Fills a smaller or larger problem with rows picked from `whole`; pick[i] is the row of `whole` that row i repeats.
static void invariance_fill(const problem_t *whole, problem_t *part, const int *pick) {
    for (int i = 0; i < whole->tensors; i++) {
        const op_tensor_t *from = &whole->tensor[i];
        op_tensor_t *to = &part->tensor[i];
        int64_t each = to->rows / part->shape[0]; // a tensor may have several rows for one of the op
        for (int64_t r = 0; r < to->rows; r++) {
            int64_t source = from->by_row ? pick[r / each] * each + r % each : r;
            memcpy(to->value + r * to->stride, from->value + source * from->stride, (size_t)to->stride * sizeof(float));
        }
    }
    for (int i = 0; i < whole->arrays; i++) {
        const op_array_t *from = &whole->array[i];
        op_array_t *to = &part->array[i];
        if (to->own) continue;
        for (int64_t r = 0; r < to->rows; r++) {
            int64_t source = from->by_row ? pick[r] : r;
            memcpy(to->value + r * to->columns, from->value + source * from->columns,
                   (size_t)to->columns * sizeof(int32_t));
        }
    }
}

static int invariance_check(const op_case_t *row, const problem_t *done, const problem_t *part, const int *pick,
                            int batch) {
    for (int i = 0; i < part->tensors; i++) {
        const op_tensor_t *want = &done->tensor[i], *got = &part->tensor[i];
        if (!want->by_row || !is_result(want)) continue;
        for (int64_t r = 0; r < got->rows; r++)
            if (memcmp(got->value + r * got->stride, want->value + pick[r] * want->stride,
                       (size_t)got->columns * sizeof(float))) {
                fprintf(stderr, "%s/%s: row %d of %s has other bits as row %lld of a batch of %d\n", row->op->name,
                        row->name, pick[r], want->name, (long long)r, batch);
                return 1;
            }
    }
    return 0;
}

static status_t invariance_batch(const op_case_t *row, const problem_t *whole, const problem_t *done, int batch,
                                 device_t *device, int *failures) {
    op_case_t smaller = *row;
    smaller.shape[0] = batch;
    int pick[130];
    for (int i = 0; i < batch; i++)
        pick[i] = (int)philox_below(3, PHILOX_TEST, (uint64_t)i, (uint32_t)batch, 3, (uint32_t)row->shape[0]);
    problem_t part;
    TRY(problem_open(&part, &smaller, 3));
    invariance_fill(whole, &part, pick);
    status_t status = problem_forward(&part, device);
    if (!status) *failures += invariance_check(row, done, &part, pick, batch);
    problem_close(&part);
    return status;
}

// Ops with rows that stand alone; attention has a check of its own.
int harness_invariance(const op_case_t *row) {
    device_t *device;
    status_t status = device_open("cpu", 2, &device);
    if (status) return harness_fail(row, "invariance", status);
    int failures = harness_invariance_on(row, device);
    device_close(device);
    return failures;
}

int harness_invariance_on(const op_case_t *row, device_t *device) {
    static const int all[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 63, 64, 65, 100, 127, 130}, few[] = {1, 3, 17, 65};
    bool simulated = !strcmp(device->table->name, "sim"); // which is slow
    const int *batches = simulated ? few : all, count = simulated ? 4 : 17;
    problem_t whole = {0}, done = {0};
    int failures = 0, by_row = 0;
    status_t status = problem_open(&whole, row, 3);
    for (int i = 0; !status && i < whole.tensors; i++) by_row += whole.tensor[i].by_row;
    if (!status && !by_row) {
        problem_close(&whole);
        return 0;
    }
    if (!status) status = problem_open(&done, row, 3);
    if (!status) status = problem_forward(&done, device);
    for (int i = 0; !status && i < count; i++)
        status = invariance_batch(row, &whole, &done, batches[i], device, &failures);
    problem_close(&whole);
    problem_close(&done);
    return failures + (status ? harness_fail(row, "invariance", status) : 0);
}

// ---- speed ----

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double bench_once(problem_t *problem, device_t *device, bool backward, int repeats, status_t *status) {
    double start = seconds_now();
    for (int i = 0; i < repeats && !*status; i++)
        *status = backward ? problem->op->run_backward(problem, device) : problem->op->run(problem, device);
    if (!*status) *status = device->table->synchronize(device);
    return (seconds_now() - start) / repeats;
}

static double bench_best(problem_t *problem, device_t *device, bool backward, status_t *status) {
    bench_once(problem, device, backward, 1, status);
    double one = bench_once(problem, device, backward, 1, status), best = one;
    int repeats = one < 0.01 ? (int)(0.01 / (one + 1e-7)) + 1 : 1;
    for (int i = 0; i < 10 && !*status; i++) {
        double t = bench_once(problem, device, backward, repeats, status);
        if (t < best) best = t;
    }
    return best;
}

static void bench_print(const op_case_t *row, bool backward, double seconds, roofline_t roofline) {
    double flops = row->op->flops ? row->op->flops(row->shape, backward) / seconds : 0;
    double bytes = row->op->bytes ? row->op->bytes(row->shape, backward) / seconds : 0;
    printf("%-14s %-28s %-8s %10.1f us", row->op->name, row->name, backward ? "backward" : "forward", seconds * 1e6);
    if (flops > 0) printf("  %7.1f GFLOP/s (%3.0f%%)", flops * 1e-9, 100 * flops / roofline.flops);
    if (bytes > 0) printf("  %7.2f GB/s (%3.0f%%)", bytes * 1e-9, 100 * bytes / roofline.bytes);
    printf("\n");
    fflush(stdout);
}

void harness_bench(const op_case_t *row, const char *device_name, roofline_t roofline) {
    device_t *device = NULL;
    problem_t problem = {0}, twin = {0};
    status_t status = device_open(device_name, 1, &device);
    if (!status) status = problem_open(&problem, row, 4);
    if (!status && row->op->prepare) row->op->prepare(&problem);
    if (!status && mirror_wanted(device)) status = mirror_open(&twin, &problem, device);
    problem_t *at = twin.device ? &twin : &problem;
    if (!status) {
        double seconds = bench_best(at, device, false, &status);
        if (!status) bench_print(row, false, seconds, roofline);
    }
    if (!status && row->op->run_backward) {
        double seconds = bench_best(at, device, true, &status);
        if (!status) bench_print(row, true, seconds, roofline);
    }
    if (status) harness_fail(row, "speed", status);
    mirror_close(&twin);
    problem_close(&problem);
    device_close(device);
}
